"""What the tests of clients of other dialects share: the same question in each, and what an answer to it says.

Pure, but for the `DialectTest`, whose gateways, engines and connections are closed when its test has ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Optional

from tests.resilience import ResilienceTest
from tests.support import CHAT, Header, RawClient, RunningGateway

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
RESPONSES = "/v1/responses"
OLLAMA_CHAT = "/api/chat"
GENERATE = "/api/generate"
EMBED = "/api/embed"
EMBEDDINGS = "/api/embeddings"
SPEAKING = (MESSAGES, RESPONSES, OLLAMA_CHAT, GENERATE)
OLLAMA = (OLLAMA_CHAT, GENERATE, EMBED, EMBEDDINGS)
STREAM_TYPES = dict.fromkeys((MESSAGES, RESPONSES), "text/event-stream")
GOOD_ENDS = ("message_stop", "response.completed", "response.incomplete")
TOOLS = {"get_weather": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}

Json = dict[str, Any]


def asking(path: str, text: str = "hi there", stream: bool = False, **options: Any) -> Json:
    """The body of a request that asks a model `m`."""
    body: Json = {"model": "m", "stream": stream}
    if path == RESPONSES:
        body["input"] = text
    elif path == GENERATE:
        body["prompt"] = text
    else:
        body["messages"] = [{"role": "user", "content": text}]
        if path == MESSAGES:
            body["max_tokens"] = 64
    return {**body, **options}


def tools_of(path: str) -> list[Json]:
    """`TOOLS`, as a request to that path names them."""
    if path == MESSAGES:
        return [{"name": name, "input_schema": schema} for name, schema in TOOLS.items()]
    if path == RESPONSES:
        return [{"type": "function", "name": name, "parameters": schema} for name, schema in TOOLS.items()]
    functions = [{"name": name, "parameters": schema} for name, schema in TOOLS.items()]
    return [{"type": "function", "function": function} for function in functions]


def without_stream(body: Json) -> Json:
    """A request to count, or to embed: those know no streams."""
    return {key: value for key, value in body.items() if key not in ("stream", "max_tokens")}


# --- what comes back -----------------------------------------------------------------------------------------------


def mark_of(path: str) -> bytes:
    """What ends an event of a stream."""
    return b"\n" if path in OLLAMA else b"\n\n"


def read(path: str, events: Iterable[Optional[str]]) -> list[Json]:
    """The events of a stream, each of which has to be whole and to have its own name, but comments and pings."""
    told = []
    for event in events:
        assert event is not None, "the stream has ended"
        if path in OLLAMA:
            told.append(json.loads(event))
        elif not event.startswith(":") and event != "data: [DONE]":
            name, _, data = event.rpartition("data: ")
            value = json.loads(data)
            assert path == CHAT or name == f"event: {value['type']}\n", event
            if value.get("type") != "ping":
                told.append(value)
    return told


def text_of(path: str, told: Iterable[Json]) -> str:
    """The text in the events of a stream, or in a whole answer given as the only one of them."""
    return "".join(_text(path, one) for one in told)


def _text(path: str, told: Json) -> str:
    if path == CHAT:
        said = [one.get("delta") or one.get("message") or {} for one in told.get("choices", ())]
        return "".join(one.get("content") or "" for one in said)
    if path == MESSAGES:
        if told["type"] == "message":
            return "".join(block["text"] for block in told["content"] if block["type"] == "text")
        return str(told["delta"].get("text", "")) if told["type"] == "content_block_delta" else ""
    if path == RESPONSES:
        if "type" in told:
            return str(told["delta"]) if told["type"] == "response.output_text.delta" else ""
        items = [item for item in told["output"] if item["type"] == "message"]
        return "".join(part["text"] for item in items for part in item["content"])
    return str(told["message"]["content"] if "message" in told else told.get("response", ""))


def usage_of(path: str, told: list[Json]) -> tuple[int, int]:
    """The tokens of the prompt and the answer: in the events of a stream, or in a whole answer."""
    if path in OLLAMA:
        return told[-1]["prompt_eval_count"], told[-1]["eval_count"]
    if path == MESSAGES:
        found = told[-2] if len(told) > 1 else told[0]
    else:
        found = told[-1].get("response", told[-1])
    return found["usage"]["input_tokens"], found["usage"]["output_tokens"]


def calls_of(path: str, told: Json) -> list[tuple[str, Any]]:
    """The names and arguments of the calls in a whole answer."""
    if path == MESSAGES:
        return [(one["name"], one["input"]) for one in told["content"] if one["type"] == "tool_use"]
    if path == RESPONSES:
        calls = [one for one in told["output"] if one["type"] == "function_call"]
        return [(one["name"], json.loads(one["arguments"])) for one in calls]
    calls = [one["function"] for one in told["message"].get("tool_calls", ())]
    return [(one["name"], one["arguments"]) for one in calls]


def ends_well(path: str, told: Iterable[Json]) -> bool:
    """Whether a client would take the stream for a whole one."""
    return any(one.get("done") is True or one.get("type") in GOOD_ENDS for one in told)


def error_of(path: str, body: Json) -> tuple[str, str]:
    """The error in a body, or in the last event of a stream: its code ("": it has none) and its message."""
    error = body["error"]
    if path in OLLAMA:
        assert list(body) == ["error"], body
        return "", error
    if path in (MESSAGES, COUNT):
        assert body["type"] == "error" and body["request_id"], body
        return error["details"]["error_code"], error["message"]
    return error.get("gateway_code") or error["code"], error["message"]


class DialectTest(ResilienceTest):
    """A gateway with a model `m`, asked in every dialect."""

    def client(
        self, running: RunningGateway, path: str, body: Optional[Json] = None, headers: Iterable[Header] = ()
    ) -> RawClient:
        """A client that has sent its request."""
        client = self.enter(running.connect())
        client.request("POST", path, asking(path, stream=True) if body is None else body, headers)
        return client

    def rest(self, client: RawClient, path: str) -> list[Json]:
        """What is left of a stream, whose body has to end in good order."""
        return read(path, client.read_events(mark_of(path)))

    def streamed(
        self, running: RunningGateway, path: str, body: Optional[Json] = None, headers: Iterable[Header] = ()
    ) -> list[Json]:
        """All events of a stream."""
        client = self.client(running, path, body, headers)
        head = client.read_head()
        self.assertEqual(head.status, 200)
        self.assertEqual(head.header("content-type"), STREAM_TYPES.get(path, "application/x-ndjson"))
        return self.rest(client, path)

    def assert_broken(self, path: str, told: list[Json], code: str) -> None:
        """The stream ended with one error, and nothing that could be taken for a good end."""
        self.assertFalse(ends_well(path, told), told)
        self.assertEqual([one for one in told[:-1] if one.get("type") == "error" or one.get("error")], [])
        self.assertIn(error_of(path, told[-1])[0], ("", code))
