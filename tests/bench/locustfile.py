"""Load with Locust on any gateway: chats, streams, queries and verified programs, every answer checked.

    pip install locust
    locust -f tests/bench/locustfile.py --host http://127.0.0.1:8080       # with a page to steer it
    locust -f tests/bench/locustfile.py --host … ChatUser StreamUser       # these users only
    locust -f tests/bench/locustfile.py --host … --headless --users 24 --spawn-rate 12 --run-time 20s --csv load

    GATEWAY_API_KEY   the key, if the gateway asks for one
    LOAD_MODEL        the model for chats, streams and queries (default: the gateway's own default)
    LOAD_MODELS       the models for /api/v1/inference, parted by commas (default: all of the gateway)
    LOAD_WAIT_S       seconds that a user rests between two requests, half of it to one and a half (default 0.1;
                      before an inference ten times that)
    LOAD_TIMEOUT_S    seconds without a byte after which a request has failed (default 60)
    LOAD_REPEATS      0: an answer need not hold what it was asked to repeat (default 1; mock engines repeat everything)
    LOAD_VERIFIED     1: an inference whose answer is not verified has failed (default 0: it needs a sandbox)

An answer that is not what was asked for is a failure, whatever its status. Each request has a word or number of its own
that its answer has to hold: an answer that belongs to somebody else is found, and no cache makes the load lighter. A
stream is one request, from its first byte out to its last byte in; its first token is reported beside it, with the type
TTFT. `python -m tests.bench.mixed` runs this against mock engines and draws the result.

Runs in Locust's process, a greenlet for each user; no lock: nothing is shared but what the environment says.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterable
from typing import Any, NamedTuple, Optional

import locust.stats
import requests
from locust import HttpUser, between, task

CHAT = "/v1/chat/completions"
FIRST_TOKEN = "TTFT"
KEY = os.environ.get("GATEWAY_API_KEY", "")
MODEL = os.environ.get("LOAD_MODEL", "")
MODELS = [name.strip() for name in os.environ.get("LOAD_MODELS", "").split(",") if name.strip()]
WAIT_S = float(os.environ.get("LOAD_WAIT_S", "0.1"))
TIMEOUT_S = float(os.environ.get("LOAD_TIMEOUT_S", "60"))
REPEATS = os.environ.get("LOAD_REPEATS", "1") != "0"
VERIFIED = os.environ.get("LOAD_VERIFIED", "0") == "1"
MAX_TOKENS = 100

# Percentiles in the CSV's history are those of the last seconds: of these, not of Locust's ten.
locust.stats.CURRENT_RESPONSE_TIME_PERCENTILE_WINDOW = 3


# --- what is asked, and whether that is what came (pure) ---


def repeating() -> tuple[str, str]:
    """Return a prompt, and the word that its answer must hold."""
    word = f"word{random.getrandbits(48):012x}"
    return f"Repeat this word, and say nothing else: {word}", word


def programming() -> tuple[str, str]:
    """Return a prompt for a program, with examples to try it on, and a line that the program must hold."""
    factor = random.randint(3, 10_000)
    line = f"return {factor} * number"
    program = f"def multiplied(number):\n    {line}"
    examples = f">>> multiplied(2)\n{2 * factor}\n>>> multiplied(-1)\n{-factor}"
    return f"Give this function back as it stands:\n\n```python\n{program}\n```\n\nIt does this:\n\n{examples}\n", line


def with_model(request: dict[str, Any]) -> dict[str, Any]:
    """Return the request, for the model that is wanted."""
    return {**request, "model": MODEL} if MODEL else request


def chat_request(prompt: str, stream: bool = False) -> dict[str, Any]:
    """Return a request for a chat completion."""
    messages = [{"role": "user", "content": prompt}]
    return with_model({"messages": messages, "max_tokens": MAX_TOKENS, **({"stream": True} if stream else {})})


def status_fault(status: int, body: bytes) -> Optional[str]:
    """Return what a status other than 200 says, short and without what differs each time: Locust groups by it."""
    if status == 200:
        return None
    try:
        error = json.loads(body)["error"]
        code = error["code"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        code = "no error object"
    return f"status {status}: {code}"


def text_fault(text: object, expected: str) -> Optional[str]:
    """Return what is wrong with the text of an answer; None: nothing."""
    if not isinstance(text, str) or not text.strip():
        return "no text in the answer"
    if REPEATS and expected not in text:
        return "the answer does not hold what was asked for"
    return None


def chat_fault(body: bytes, expected: str) -> Optional[str]:
    """Return what is wrong with a chat completion."""
    try:
        choice = json.loads(body)["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    except (ValueError, KeyError, IndexError, TypeError):
        return "not a chat completion"
    return text_fault(text, expected) or (None if finish else "no finish_reason")


def query_fault(body: bytes, expected: str) -> Optional[str]:
    """Return what is wrong with the answer to a query."""
    try:
        text = json.loads(body)["result"]
    except (ValueError, KeyError, TypeError):
        return "not a query's answer"
    return text_fault(text, expected)


def inference_fault(body: bytes, expected: str) -> Optional[str]:
    """Return what is wrong with the answer to an inference: of each model, of the one chosen, of the verdict."""
    try:
        answer = json.loads(body)
        responses, verification = answer["model_responses"], answer["verification"]
        errors = [response["error"] for response in responses]
        texts = [response["text"] for response in responses]
        verified = verification["verified"]
    except (ValueError, KeyError, TypeError):
        return "not an inference's answer"
    if not responses or any(errors):
        return "a model did not answer"
    for text in (*texts, answer.get("selected_response")):
        fault = text_fault(text, expected)
        if fault:
            return fault
    return "the answer is not verified" if VERIFIED and verified is not True else None


class StreamRead(NamedTuple):
    """A stream that has been read to its end. `first_token_s` None: no text came."""

    fault: Optional[str]
    first_token_s: Optional[float]
    length_bytes: int


def read_stream(lines: Iterable[bytes], expected: str, began_s: float) -> StreamRead:
    """Read the lines of a streamed chat completion, all of them, and say what is wrong with it.

    `began_s`: when the request was sent, on the clock of `time.perf_counter`. Raises what the lines raise.
    """
    texts: list[str] = []
    first_token_s: Optional[float] = None
    fault: Optional[str] = None
    length_bytes, finished, done = 0, False, False
    for line in lines:
        length_bytes += len(line) + 1
        if not line.startswith(b"data:"):
            continue  # a comment, or the end of an event
        data = line[5:].strip()
        if done:
            fault = fault or "events after [DONE]"
        elif data == b"[DONE]":
            done = True
        else:
            text, finish, event_fault = _event(data)
            fault = fault or event_fault
            finished = finished or finish
            if text and first_token_s is None:
                first_token_s = time.perf_counter() - began_s
            texts.append(text)
    if not done:
        fault = fault or "the stream ended without [DONE]"
    if not finished:
        fault = fault or "no finish_reason"
    return StreamRead(fault or text_fault("".join(texts), expected), first_token_s, length_bytes)


def _event(data: bytes) -> tuple[str, bool, Optional[str]]:
    """Return an event's text, whether it is the last one of the answer, and what is wrong with it."""
    try:
        event = json.loads(data)
        if "error" in event:
            return "", False, "an error within the stream"
        choices = event["choices"]
        if not choices:  # the usage
            return "", False, None
        return choices[0]["delta"].get("content") or "", bool(choices[0]["finish_reason"]), None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return "", False, "an event that is no chunk of a chat completion"


# --- the users ---


class _User(HttpUser):
    abstract = True
    wait_time = between(0.5 * WAIT_S, 1.5 * WAIT_S)

    def on_start(self) -> None:
        """Bring the key along in each request."""
        if KEY:
            self.client.headers["Authorization"] = f"Bearer {KEY}"

    def ask(self, path: str, name: str, request: dict[str, Any], expected: str, fault_of: Any) -> None:
        """Ask, and tell Locust whether that is what came."""
        with self.client.post(path, json=request, name=name, catch_response=True, timeout=TIMEOUT_S) as response:
            if response.error is not None:  # no answer at all: Locust names the error
                return
            fault = status_fault(response.status_code, response.content) or fault_of(response.content, expected)
            if fault:
                response.failure(fault)


class ChatUser(_User):
    """Asks for whole answers."""

    weight = 5

    @task
    def chat(self) -> None:
        """Ask for a chat completion."""
        prompt, word = repeating()
        self.ask(CHAT, "chat", chat_request(prompt), word, chat_fault)


class StreamUser(_User):
    """Asks for streams, and reads them to their end."""

    weight = 3

    @task
    def stream(self) -> None:
        """Ask for a streamed chat completion."""
        prompt, word = repeating()
        began_s = time.perf_counter()
        with self.client.post(
            CHAT,
            json=chat_request(prompt, stream=True),
            name="stream",
            catch_response=True,
            stream=True,
            timeout=TIMEOUT_S,
        ) as response:
            if response.error is not None:
                return
            try:
                read = self._read(response, word, began_s)
            except requests.RequestException as error:  # Locust takes it for a fault of this file's
                read = StreamRead(f"the stream broke: {type(error).__name__}", None, 0)
            # Locust's own time ends with the head.
            response.request_meta["response_time"] = (time.perf_counter() - began_s) * 1000
            response.request_meta["response_length"] = read.length_bytes
            if read.fault:
                response.failure(read.fault)
        if read.first_token_s is not None:
            self._report_first_token(read.first_token_s)

    def _read(self, response: requests.Response, word: str, began_s: float) -> StreamRead:
        if response.status_code != 200:
            return StreamRead(status_fault(response.status_code, response.content), None, len(response.content))
        if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
            return StreamRead("not an event stream", None, len(response.content))
        return read_stream(response.iter_lines(), word, began_s)

    def _report_first_token(self, first_token_s: float) -> None:
        self.environment.events.request.fire(
            request_type=FIRST_TOKEN,
            name="stream: first token",
            response_time=first_token_s * 1000,
            response_length=0,
            exception=None,
            context={},
        )


class QueryUser(_User):
    """Asks for what the gateway may put into batches."""

    weight = 3

    @task
    def query(self) -> None:
        """Ask a query."""
        prompt, word = repeating()
        self.ask("/query", "query", with_model({"query": prompt, "max_tokens": MAX_TOKENS}), word, query_fault)


class InferenceUser(_User):
    """Asks several models for a program, which the gateway runs. A rare user: each request is many calls and runs."""

    weight = 1
    wait_time = between(5 * WAIT_S, 15 * WAIT_S)

    @task
    def inference(self) -> None:
        """Ask for a verified program."""
        prompt, line = programming()
        request: dict[str, Any] = {"prompt": prompt, "max_tokens": 10 * MAX_TOKENS}
        if MODELS:
            request["models"] = MODELS
        self.ask("/api/v1/inference", "inference", request, line, inference_fault)
