"""Clients: threads on keep-alive connections that ask, streaming and not, and keep what they got.

`Traffic` owns its threads and the list of results (appending is atomic: no lock). A client judges every answer: is it
the answer to its own question, complete, and only one. Nothing here knows about the fault of the day.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

from tests.support import CHAT, Closed, Header, RawClient, Response, chunk_of, eventually

ANSWER_S = 30.0  # no fault here may keep a client waiting for this long
PAUSE_AFTER_ERROR_S = 0.02  # an error is quick: without a pause one client would ask thousands of times
WORDS = "nothing is lost when an engine fails"


class Result(NamedTuple):
    """What one request came to. `outcome`: `200`, `complete`, `error event`, `neither`, `lost`, `wrong`, or
    `<status> <code>`."""

    request_id: str
    stream: bool
    outcome: str
    began_unix_s: float
    took_s: float
    detail: str = ""

    @property
    def good(self) -> bool:
        """Whether the client has the whole answer."""
        return self.outcome in ("200", "complete")


class ChaosClient(RawClient):
    """A client that takes either a stream or a whole body, whichever comes."""

    began = False  # a stream's head has come: from now on it can only end well or badly

    def read_answer(self) -> tuple[Response, Optional[list[str]]]:
        """The next response; with its events when it is a stream."""
        self.began = False
        head = self.read_head()
        if (head.header("content-type") or "").startswith("text/event-stream"):
            self.began = True
            return head, self.read_events()
        length = int(head.header("content-length") or "0")
        body = self._take(length, time.monotonic() + self.timeout_s)
        self._body = None
        return Response(head.status, head.headers, body), None


class Traffic:
    """`clients` threads that ask until `stop`; every second one asks for streams, unless `streams` says otherwise.

    `headers` come with each request, `fields` in its body; `pause_s` is how long a client rests between two, `answer_s`
    how long it waits for any part of an answer.
    """

    def __init__(
        self,
        port: int,
        models: Sequence[str],
        clients: int,
        prefix: str = "chaos",
        *,
        host: str = "127.0.0.1",
        headers: Sequence[Header] = (),
        fields: Optional[Mapping[str, Any]] = None,
        streams: bool = True,
        pause_s: float = 0.0,
        answer_s: float = ANSWER_S,
    ) -> None:
        self.results: list[Result] = []
        self._port, self._host = port, host
        self._headers, self._fields, self._pause_s = tuple(headers), dict(fields or {}), pause_s
        self._answer_s = answer_s
        self._models = models
        self._prefix = prefix
        self._numbers = itertools.count()
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(streams and n % 2 == 1,), name=f"client-{n}", daemon=True)
            for n in range(clients)
        ]

    def start(self) -> Traffic:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> list[Result]:
        """Ask no more, wait for the answers that are due, leave; returns all results."""
        self._end.set()
        deadline_s = time.monotonic() + self._answer_s + 5.0
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        assert not any(thread.is_alive() for thread in self._threads), "a client does not end"
        return self.results

    def wait_for_more(self, count: int, timeout_s: float = ANSWER_S) -> None:
        """Wait until `count` more requests have come to an end."""
        target = len(self.results) + count
        eventually(lambda: len(self.results) >= target, timeout_s)

    def _run(self, stream: bool) -> None:
        client: Optional[ChaosClient] = None
        while not self._end.is_set():
            if client is None:
                try:
                    client = ChaosClient(self._port, self._host, self._answer_s)
                except OSError as error:
                    self.results.append(Result("-", stream, "lost", time.time(), 0.0, f"cannot connect: {error}"))
                    return
            number = next(self._numbers)
            result, keep = self._ask(client, number, stream)
            self.results.append(result)
            if not keep:
                client.close()
                client = None
            if self._pause_s or not result.good:
                self._end.wait(self._pause_s if result.good else max(self._pause_s, PAUSE_AFTER_ERROR_S))
        if client is not None:
            client.close()

    def _ask(self, client: ChaosClient, number: int, stream: bool) -> tuple[Result, bool]:
        request_id = f"{self._prefix}-{number}"
        model = self._models[number % len(self._models)]
        prompt = f"{WORDS} {number}"
        body = {**self._fields, "model": model, "stream": stream, "messages": [{"role": "user", "content": prompt}]}
        began_unix_s, began_s = time.time(), time.monotonic()
        keep = False
        try:
            client.request("POST", CHAT, body, [*self._headers, ("X-Request-ID", request_id)])
            head, events = client.read_answer()
            outcome, detail = judge(head, events, request_id, prompt)
            keep = head.header("connection") != "close" and outcome not in ("neither", "error event", "wrong")
            if keep:
                client.assert_quiet()
        except (OSError, Closed) as error:
            outcome, detail = "neither" if client.began else "lost", f"{type(error).__name__}: {error}"
        except (AssertionError, ValueError, LookupError, TypeError) as error:
            silent = str(error).startswith("nothing within")
            outcome = "neither" if client.began else "lost" if silent else "wrong"
            detail = f"{type(error).__name__}: {error}"
        took_s = time.monotonic() - began_s
        return Result(request_id, stream, outcome, began_unix_s, took_s, detail[:500]), keep


def judge(head: Response, events: Optional[list[str]], request_id: str, prompt: str) -> tuple[str, str]:
    """The outcome of a response that has been read to its end, and what is to be told about it."""
    if head.request_id != request_id:
        return "wrong", f"the answer to {head.request_id}"
    if events is not None:
        return _judge_stream(events, prompt)
    found: Any = json.loads(head.body)
    if head.status != 200:
        error = found.get("error")
        code = error["code"] if isinstance(error, dict) else error
        return f"{head.status} {code}", f"{head.header('x-gateway-engine')}: {found.get('message', error)}"
    text = found["choices"][0]["message"]["content"]
    if found["id"] != request_id or not _is_answer(text, prompt):
        return "wrong", f"{found['id']}: {text!r}"
    return "200", ""


def _judge_stream(events: list[str], prompt: str) -> tuple[str, str]:
    done = events[-1:] == ["data: [DONE]"]
    chunks = [chunk_of(event) for event in (events[:-1] if done else events)]
    errors = [chunk for chunk in chunks if "error" in chunk]
    if errors:
        honest = not done and len(errors) == 1 and chunks[-1] is errors[0]
        return ("error event" if honest else "neither"), str(errors[0])
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    if not done or not any(choice["finish_reason"] for choice in choices):
        return "neither", f"ends with {events[-1:]}"
    return ("complete", "") if _is_answer(text, prompt) else ("wrong", text)


def _is_answer(text: str, prompt: str) -> bool:
    return re.fullmatch(r"Mock answer from \S+ at [0-9]+: " + re.escape(prompt), text) is not None


def tally(results: Sequence[Result], stream: bool) -> Counter[str]:
    """How often each outcome came, of streams or of the others."""
    return Counter(result.outcome for result in results if result.stream == stream)
