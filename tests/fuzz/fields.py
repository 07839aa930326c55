"""JSON requests by path: types shuffled, fields of other paths added, numbers, depth, duplicates, unicode.

Rules, besides those of `checks.py` and `wire.py`: `parse_json` raises nothing but RequestRefused and gives what
`json.loads` gives; validators raise nothing but RequestRefused. The gateways answer by echo and by an engine that
says what it was asked, under a limit of tokens and a context length, so that prompts are counted.
"""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.errors import RequestRefused
from gateway.upstream.fields import BY_PATH
from gateway.validation import parse_json
from tests.fuzz.cuts import mostly, spoil
from tests.fuzz.finding import Report, after_pure, rng_of, shown
from tests.fuzz.wire import Wire, nonce
from tests.support import mock_engine

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
# fmt: off
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 128, 129, 10**6, 10**6 + 1, 10**30, -(10**30), 1.0, 1.5, 1e308, -0.0, 5e-324, "",
    "x", "\0", "\ud800", "é", "𝄞", "7", [], [1], ["a"], [[]], [[1]], [None], [{}], {}, {"a": 1}, {"": ""}, [1, "a"],
    ["a", 1], [[1], ["a"]], [True], [1.5], [10**30], ["a"] * 70, "x" * 9000,
)
KEYS = (
    "model", "messages", "prompt", "input", "stream", "stream_options", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "stop", "n", "best_of", "tools", "tool_choice", "functions", "response_format", "user",
    "seed", "logprobs", "top_logprobs", "echo", "suffix", "encoding_format", "dimensions", "x", "", "\ud800",
)
# fmt: on


def request_of(rng: random.Random, path: str, name: str) -> dict[str, Any]:
    """A request for that path, mostly good."""
    message: dict[str, Any] = {"role": "user", "content": name}
    own: dict[str, Any] = {
        "/v1/chat/completions": {"messages": [message]},
        "/v1/completions": {"prompt": mostly(rng, name, [name], [name, name], [1, 2], [[1], [2]], share=0.7)},
        "/v1/embeddings": {"input": mostly(rng, name, [name], [1, 2], [[1]], share=0.7)},
    }[path]
    request = dict(own)
    for _ in range(mostly(rng, 1, 0, 2, 3, 6, share=0.4)):
        request[rng.choice(KEYS)] = rng.choice(ODD)
    odd = rng.random()
    if odd < 0.2:
        message[rng.choice(("role", "content", "name", "tool_calls", "function_call", "x"))] = rng.choice(
            (*ODD, "assistant", "tool", "system")
        )
    elif odd < 0.3:
        parts = [
            {"type": "text", "text": name},
            {"type": rng.choice(ODD), "text": rng.choice(ODD)},
            {"type": "image_url", "image_url": rng.choice(ODD)},
        ]
        message["content"] = rng.sample(parts, rng.randint(0, 3)) + [rng.choice(ODD) for _ in range(rng.randint(0, 1))]
    elif odd < 0.36 and "messages" in request:
        request["messages"] = [rng.choice((message, rng.choice(ODD))) for _ in range(3)]
    if rng.random() < 0.3:
        request["stream"] = mostly(rng, True, False, share=0.8)
        if rng.random() < 0.3:
            request["stream_options"] = rng.choice(
                ({"include_usage": True}, {"include_usage": 7}, {}, None, {"x": [1]})
            )
    items = list(request.items())
    rng.shuffle(items)
    return dict(items)


def body_of(rng: random.Random, path: str, name: str) -> bytes:
    """The bytes of a body."""
    data = json.dumps(request_of(rng, path, name), ensure_ascii=rng.random() < 0.7)
    if rng.random() < 0.12:
        number = rng.choice(
            (
                "9" * 400,
                "-" + "9" * 999,
                "9" * 1001,
                "9" * 5000,
                "1e400",
                "-1e400",
                "1e-400",
                "NaN",
                "Infinity",
                "-Infinity",
                "01",
                "+1",
                ".5",
                "1.",
                "0x1",
                "1E5",
                "-0",
            )
        )
        data = data[:-1] + f', "{rng.choice(KEYS[:13])}": {number}}}'
    if rng.random() < 0.05:
        data = (
            data[:-1]
            + ', "x": '
            + rng.choice(
                (
                    "[" * 127 + "]" * 127,
                    "[" * 128 + "]" * 128,
                    "[" * 5000 + "]" * 5000,
                    '{"a":' * 200 + "1" + "}" * 200,
                    "[" * 100_000,
                    '"' + "[" * 300 + '"',
                )
            )
            + "}"
        )
    if rng.random() < 0.03:
        data = data[:-1] + f', "x": [{"[]," * 3000}0]}}'
    encoded = data.encode("utf-8", "surrogatepass")
    odd = rng.random()
    if odd < 0.08:
        return spoil(encoded, rng, rng.randint(1, 2))
    if odd < 0.12:
        return rng.choice(
            (
                b"",
                b"{}",
                b"[]",
                b"null",
                b"7",
                b'"x"',
                b"\xef\xbb\xbf" + encoded,
                data.encode("utf-16", "surrogatepass"),
                encoded + b"x",
                encoded * 2,
                b" \r\n\t" + encoded + b"\n",
                b"\0" + encoded,
            )
        )
    return encoded


def make(rng: random.Random, name: str) -> bytes:
    """The bytes of one case."""
    path = rng.choice(PATHS)
    body = body_of(rng, path, name)
    return b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)


def pure(report: Report, number: int) -> None:
    """One body without a socket."""
    rng = rng_of(report.name, report.seed, number)
    path = rng.choice(PATHS)
    body = body_of(rng, path, nonce("case", report.seed, number))
    report.count("bodies parsed")
    try:
        value = parse_json(body)
        if value != json.loads(body):
            report.found("as json.loads", number, f"{value!r:.300}", shown([body]))
        BY_PATH[path[3:]].validate(value)
    except RequestRefused:
        pass
    except Exception as error:
        report.found("nothing but RequestRefused", number, f"{error!r:.300}", shown([body]))


def run(report: Report, numbers: Iterator[int]) -> None:
    """Send these cases."""
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(mock_engine("m"))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = []
        for number, url in enumerate(("echo:", engine.url)):
            models = {"m": {"engines": [url], "max_model_len": 8192, "price": {"input": 1, "output": 1}}}
            path = folder / f"{number}.json"
            path.write_text(json.dumps({"models": models}), "utf-8")
            settings.append({"ENGINES_FILE": path, "RATE_LIMIT_GLOBAL_TPM": 10**9, "BREAKER_MIN_REQUESTS": 10**6})
        Wire(report, make, settings).run(after_pure(report, numbers, pure, 20))
