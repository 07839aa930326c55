"""A Response that comes to be. Sans-I/O; no lock."""

from __future__ import annotations

from typing import Optional

from gateway.dialects.dialect import Json
from gateway.dialects.reading import count_in, text_in
from gateway.dialects.responses.output import Output
from gateway.dialects.responses.request import Asked
from gateway.dialects.said import Usage, said_in, usage_in

# Of chat's reasons to end, those by which a Response is incomplete, and what they are called here.
_CUT_OFF = {"length": "max_output_tokens", "content_filter": "content_filter"}


class Making:
    """One Response: who it is, what it holds so far, and how it ends."""

    def __init__(self, asked: Asked, first: Json) -> None:
        """`first`: the answer, or its first chunk: what the Response is called, and whose it is."""
        created = count_in(first, "created")
        name = text_in(first, "id") or str(created)
        self._id = f"resp_{name}"
        self._created = created
        self._model = text_in(first, "model") or text_in(asked.chat, "model")
        self._echo = asked.echo
        self._service_tier = asked.echo["service_tier"]
        self._output = Output(name, asked.tools)
        self._usage: Optional[Usage] = None
        self._cut_off: Optional[str] = None

    def take(self, chunk: Json) -> list[Json]:
        """A chunk, or the whole answer: the events that tell what is new in it."""
        self._usage = usage_in(chunk) or self._usage
        self._service_tier = text_in(chunk, "service_tier") or self._service_tier
        said = said_in(chunk)
        if said is None:
            return []
        self._cut_off = _CUT_OFF.get(said.finish_reason or "", self._cut_off)
        return self._output.take(said)

    def close(self) -> list[Json]:
        """All has come: the events that end what is open, and the Response."""
        events = self._output.close(incomplete=self._cut_off is not None)
        response = self.whole()
        return [*events, {"type": f"response.{response['status']}", "response": response}]

    def whole(self) -> Json:
        """The Response at its end."""
        return self.response("completed" if self._cut_off is None else "incomplete")

    def response(self, status: str, error: Optional[Json] = None) -> Json:
        """The Response as it is."""
        return {
            **self._echo,
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": error,
            "incomplete_details": {"reason": self._cut_off} if status == "incomplete" else None,
            "model": self._model,
            "output": self._output.items(),
            "service_tier": self._service_tier,
            "usage": None if self._usage is None else _told(self._usage),
        }


def _told(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.written},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }
