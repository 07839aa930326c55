"""Answers of engines that are no streams: heads and bodies that are wrong, short, long, early, late or absurd.

Rules, besides those of `checks.py`: never 500; an answer is the engine's own or another attempt's: whatever is no
good answer makes the gateway ask again, so the client gets 200 with its own text; only an engine's 4xx may reach it
as that (`backend_rejected`); nothing behind an answer reaches anybody; the next request on the client's connection
gets its own answer; status, code and number of attempts do not depend on how the answer was cut.

Without sockets: `parse_response_head` raises nothing but FramingError, `parse_answer` nothing but InvalidAnswer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any, Optional

from gateway.upstream.answers import InvalidAnswer, complete, parse_answer, usage_of
from gateway.upstream.framing import FramingError, parse_response_head
from tests.fuzz import cuts
from tests.fuzz.asking import Asked, Asking, Case, no_surplus, nonces, plain_text
from tests.fuzz.cuts import mostly, spoil
from tests.fuzz.engine import CLOSE, KEEP, RESET, Script, text_of
from tests.fuzz.finding import Report, after_pure, rng_of, shown
from tests.fuzz.talk import Answer, End
from tests.scripted import chunked

# fmt: off
STATUSES = (
    0, 1, 99, 100, 101, 103, 199, 201, 202, 204, 205, 206, 299, 300, 301, 304, 399, 400, 401, 402, 403, 404, 408, 409,
    413, 418, 422, 425, 429, 451, 499, 500, 501, 502, 503, 504, 529, 599, 600, 700, 999,
)
VERSIONS = ("HTTP/1.0", "HTTP/1.2", "HTTP/2", "HTTP/2.0", "http/1.1", "HTTP/1.1 ", "", "ICY", "HTTP/1.", "HTTP/0.9")
RETRY_AFTERS = (
    "1", "0", "-1", "1.5", "1e9", "9" * 400, "nan", "inf", "-inf", "soon", "", "1, 2", "0x10", "\u00b2", " 7 ", "1_0",
    "Fri, 27 Nov 2026 15:00:00 GMT", "1 Jan 2026 0:0:99999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT",
    "Mon, 01 Jan 0001 00:00:00 GMT", "1 Jan 99999 0:0:0", "1 Jan 2026 25:61:61 +99999999",
    "Thu, 01 Jan 1970 00:00:00 -9999", "Wed, 30 Feb 2026 00:00:00 GMT", "1 1 1 1 1 1", "Sun Nov  6 08:49:37 1994",
    "Sunday, 06-Nov-94 08:49:37 GMT", "\xff\xfe",
)
FIGURES: tuple[Any, ...] = (
    0, 1, -1, 10**6, 10**12, 10**30, 10**399, -(10**399), 1.5, 1e308, True, False, None, "7", "", [], {}, [1],
    {"a": 1}, 2**63, 2**31,
)
SURPLUSES = (
    b"\r\n", b"\0", b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nSURPLUS", b"SURPLUS" * 10_000, b"0\r\n\r\n",
)
HEADERS = (
    "X-A", "X-A : b", " X-A: b", "X-A: \0", "X-A: a\rb", ": x", "Content-Encoding: gzip", "Connection: close",
    "Connection: keep-alive", "Connection: \xff", "Content-Type: text/html", "Content-Type: text/event-stream",
    "Content-Type:", "Trailer: X", "Upgrade: h2c", "X: " + "y" * 70000, "X-A: b\nX-B: c", "Set-Cookie: a=b",
    "Content-Length: 5", "Transfer-Encoding: gzip", "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: identity", "X-Request-ID: other", "Server: \xe9",
)
# fmt: on


def body_of(rng: random.Random, nonce: bytes) -> bytes:
    """A body that is mostly a good answer."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text_of(nonce)},
        "finish_reason": "stop",
    }
    answer: dict[str, Any] = {"id": "e", "object": "chat.completion", "model": "m", "choices": [choice]}
    if rng.random() < 0.7:
        answer["usage"] = {
            key: mostly(rng, 5, *FIGURES, share=0.5) for key in ("prompt_tokens", "completion_tokens", "total_tokens")
        }
        answer["usage"] = mostly(rng, answer["usage"], *FIGURES, share=0.8)
    odd = rng.random()
    if odd < 0.12:
        answer[rng.choice(("choices", "id", "model", "object", "created"))] = rng.choice(FIGURES)
    elif odd < 0.2:
        choice[rng.choice(("message", "index", "finish_reason", "delta"))] = rng.choice(FIGURES)
    elif odd < 0.25:
        answer["error"] = rng.choice(
            (
                *FIGURES,
                {"message": "no"},
                {"message": ["\ud800"]},
                {"code": 7, "message": {"a": "b"}},
                "\ud800",
                "x" * 70_000,
            )
        )
    elif odd < 0.27:
        answer["choices"] *= rng.choice((2, 3, 1000))
    data = json.dumps(answer).encode()
    odd = rng.random()
    if odd < 0.05:
        data = rng.choice(
            (
                b"",
                b"null",
                b"[]",
                b"{}",
                b'"x"',
                b"7",
                b"NaN",
                b"[" * 5000,
                b'{"a":' * 3000,
                b"<html>",
                b"\xef\xbb\xbf" + data,
                data.decode().encode("utf-16"),
                b"\xff\xfe",
                data + data,
                data[:-1],
                b" " * 9000 + data,
                data.replace(b"5", b"Infinity"),
            )
        )
    elif odd < 0.1:
        data = spoil(data, rng, rng.randint(1, 3))
    elif odd < 0.13:
        padding = rng.choice((65536, 65535, 65537, 131072, 262144, 300000, 1048576, 1048577)) - len(data) - 8
        data = data[:-1] + b',"p":"' + b"p" * max(0, padding) + b'"}'
    return data


def wire_of(rng: random.Random, nonce: bytes) -> tuple[bytes, str, bool]:
    """A whole response, what becomes of the connection then, and whether that leaves nothing to chance."""
    status = mostly(rng, 200, *STATUSES, share=0.6)
    body = body_of(rng, nonce)
    if status >= 400 and rng.random() < 0.7:
        body = rng.choice(
            (
                b"",
                b"no",
                b'{"error": "no"}',
                b'{"error": {"message": "no"}}',
                b'{"error": {"message": 7}}',
                b'{"message": "no"}',
                b'{"detail": [{"loc": []}]}',
                b"[]",
                b'{"error": ' + b"9" * 400 + b"}",
                b"x" * 70_000,
                b"\xff",
                b'{"error": {"message": "content_policy"}}',
            )
        )
    lines = [
        " ".join(
            (
                mostly(rng, "HTTP/1.1", *VERSIONS, share=0.95),
                mostly(rng, f"{status:03d}", "20", "2000", "abc", "", "+20", "2 0", share=0.98),
                mostly(rng, "Fine", "", "\xe9", "x" * 300, share=0.9),
            )
        )
    ]
    lines.append(mostly(rng, "Content-Type: application/json", *HEADERS, share=0.9))
    end = mostly(rng, KEEP, CLOSE, RESET, share=0.75)
    framed = rng.random()
    payload = body
    short = False
    if framed < 0.6:
        shift = mostly(rng, 0, 1, 100, -1, -20, share=0.85)
        length = max(0, len(body) + shift)
        short = shift > 0
        lines.append(
            "Content-Length: "
            + mostly(
                rng,
                str(length),
                f"+{length}",
                f"{length}.0",
                f"0{length}",
                "",
                "x",
                "9" * 18,
                "9" * 30,
                f"{length}, {length}",
                f"0x{length:x}",
                share=0.95,
            )
        )
    elif framed < 0.9:
        lines.append("Transfer-Encoding: " + mostly(rng, "chunked", "Chunked", "chunked, gzip", "x", "", share=0.93))
        payload = b"".join(map(chunked, cuts.some(body, rng))) if body else b""
        payload += mostly(
            rng,
            b"0\r\n\r\n",
            b"0\r\nX: 1\r\n\r\n",
            b"0\r\nGET / HTTP/1.1\r\n\r\n",
            b"0\r\n",
            b"",
            b"0x0\r\n\r\n",
            b"0\n\n",
            b"0;a\r\n\r\n",
            share=0.8,
        )
        if rng.random() < 0.1:
            payload = spoil(payload, rng, 1)
        short = True  # perhaps
    else:
        end = mostly(rng, CLOSE, KEEP, RESET, share=0.9)
        short = True
    if status == 429 or rng.random() < 0.05:
        lines.append("Retry-After: " + rng.choice(RETRY_AFTERS))
    lines += rng.sample(HEADERS, mostly(rng, 0, 1, 2, share=0.8))
    head = "\r\n".join(lines).encode("utf-8" if rng.random() < 0.5 else "latin-1", "replace") + mostly(
        rng, b"\r\n\r\n", b"\n\n", b"\r\n", b"", share=0.99
    )
    if rng.random() < 0.05:
        head = spoil(head, rng, 1)
    before = mostly(
        rng,
        b"",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
        b"HTTP/1.1 100\r\n\r\n" * 50,
        b"HTTP/1.1 199 X\r\nContent-Length: 5\r\n\r\n",
        b"\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        share=0.93,
    )
    data = before + head + payload
    behind = mostly(rng, b"", *SURPLUSES, share=0.85)
    if short and end == KEEP and rng.random() < 0.9:
        end = CLOSE  # else it is the timeout that ends it, which takes long
    return data + behind, end, end != RESET and not behind


def make(report: Report, number: int) -> Case:
    """The case of that number."""
    names = nonces(report, number, 4)
    scripts = []
    sure = True
    stream = rng_of("stream", report.seed, number).random() < 0.15
    for way, name in enumerate(names):
        rng = rng_of(report.name, report.seed, number)  # the same for each way, but for the nonce
        data, end, sure = wire_of(rng, name)
        how = rng_of("ways", report.seed, number * 10 + way)
        segments = [
            [data],
            cuts.some(data, how),
            cuts.around(data, (b"\r\n", b"\r\n\r\n", b'"'), how),
            cuts.every(data),
        ][way]
        if len(segments) > 150:
            segments = cuts.some(data, how, 100)
        scripts.append((name, Script(segments or [data], end)))
    return Case(number, stream, tuple(scripts), sure, {})


def judge(asked: Asked) -> Iterator[tuple[str, str]]:
    """What does not hold of one way."""
    answer = asked.answer
    if isinstance(answer, End):
        return
    yield from no_surplus(answer)
    if answer.status == 200:
        if text_of(asked.nonce) not in plain_text(answer) and asked.attempts > 1:
            yield "own answer", f"{answer}"[:500]
        return
    code = _code(answer)
    rejected = 400 <= answer.status < 500 and code == "backend_rejected"
    if answer.status == 504 and code == "gateway_timeout":
        return
    if not rejected:
        yield (
            "another engine is asked",
            f"{answer.status} {code} after {asked.attempts} attempts: {answer.body[:300]!r}",
        )


def verdict(asked: Asked) -> object:
    """What must be the same for each way."""
    answer = asked.answer
    if isinstance(answer, End):
        return answer.why
    return answer.status, _code(answer), asked.attempts


def _code(answer: Answer) -> Optional[str]:
    if answer.status == 200:
        return None
    try:
        return str(json.loads(answer.body)["error"])
    except (ValueError, KeyError, TypeError):
        return repr(answer.body[:80])


def pure(report: Report, number: int) -> None:
    """A case without a socket."""
    rng = rng_of(report.name, report.seed, number)
    name = nonces(report, number, 1)[0]
    data, _, _ = wire_of(rng, name)
    report.count("answers parsed")
    _only(report, number, FramingError, data[: max(0, data.find(b"\r\n\r\n"))], parse_response_head)
    _only(report, number, InvalidAnswer, body_of(rng, name), _whole_answer)


def _whole_answer(body: bytes) -> None:
    answer = parse_answer(body, "/chat/completions")
    usage = usage_of(answer.get("usage"), 10, 10)
    complete(answer, body, "id", "model", usage)


def _only(report: Report, number: int, kind: type[Exception], data: bytes, parse: Any) -> None:
    try:
        parse(data)
    except kind:
        pass
    except Exception as error:
        report.found(f"nothing but {kind.__name__}", number, f"{parse.__name__}: {error!r:.300}", shown([data]))


def run(report: Report, numbers: Iterator[int]) -> None:
    """Put these cases to a gateway."""
    asking = Asking(report, lambda number: make(report, number), judge, verdict)
    asking.run(after_pure(report, numbers, pure, 10))
