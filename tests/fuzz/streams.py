"""Event streams of engines: events, comments, line ends, ends and errors in every order, cut anywhere.

Rules, besides those of `checks.py`: a client that got a 200 gets whole lines that the engine sent, in their order,
none left out (but events of usage) and with nothing changed (but usage that it did not ask for, and numbers that are
none), then `[DONE]` and the body's end, or one error event and no `[DONE]`; never `[DONE]` where the
engine has given no reason; nothing behind the engine's end reaches it; what it gets does not depend on how the stream
was cut (but for events that look like the usual delta and are not JSON: those are not parsed where they come alone);
the next request on its connection gets its own answer.

Without sockets: `EventStream` says the same for every single cut, and raises nothing but StreamBroken.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gateway.upstream.sse import EventStream, StreamBroken
from tests.fuzz import cuts
from tests.fuzz.answers import FIGURES
from tests.fuzz.asking import SURPLUS, Asked, Asking, Case, no_surplus, nonces
from tests.fuzz.cuts import mostly, spoil
from tests.fuzz.engine import CLOSE, KEEP, RESET, Script, text_of
from tests.fuzz.finding import Report, after_pure, rng_of, shown
from tests.fuzz.talk import End
from tests.scripted import chunked

# fmt: off
COMMENTS = (
    b": ping\n\n", b":\n", b"\n", b"\n\n\n", b": \xff\xfe\n", b"event: x\n", b"id: 7\n", b"retry: 5\n", b"data\n\n",
    b":" + b"c" * 3000 + b"\n\n", b"\r\n", b"\r", b"\0\n", b"data:\n\n", b"data: \r", b"id\n", b"event\n\n", b" \n",
    b"event: error\n",
)
ODD_EVENTS = (
    b"data: {}", b"data: []", b"data: null", b"data: 7", b'data: "x"', b"data: {", b"data: NaN", b"data:",
    b"data: \xff", b"data:{}", b"data:  {}", b"DATA: {}", b" data: {}", b'data: {"choices": 7}',
    b'data: {"choices": [7]}', b'data: {"choices": [{}]}', b'data: {"choices": [{"delta": 7}]}',
    b'data: {"choices": [], "usage": 7}', b'data: {"error": "no"}', b'data: {"error": {"message": "no"}}',
    b'data: {"error": {"message": {"a": 1}}}', b'data: {"error": null}', b'data: {"error": "\\ud800"}',
    b'data: {"choices": [{"index": {"a": 1}, "finish_reason": "stop"}]}',
    b'data: {"choices": [{"index": [], "delta": {}, "finish_reason": "stop"}]}', b"data: " + b"[" * 3000,
    b'data: {"choices": [{"index": 1, "delta": {"content": "other"}, "finish_reason": null}]}', b"data: [DONE] ",
    b"data: [done]", b"data:[DONE]",
    b'data: {"choices": [{"index": 0, "delta": {"content": "big' + b"x" * 20_000 + b'"}, "finish_reason": null}]}',
    b'data: {"choices": [], "n": ' + b"9" * 5000 + b"}", b"event: error\ndata: no", b'error: {"message": "no"}',
    b'data: {"choices": [\ndata: ],\r\ndata: "x": 1\rdata: }', b'data: {"a":\ndata: 1', b'id: 7\ndata: {}\nid: 8',
    b'event: u\ndata: {"choices": null, "usage": {"prompt_tokens": 1}}', b'data: {"usage": {}, "timings": {}}',
    b'data: {"choices": [{"index": 0, "delta": {"content": "NaN"}, "finish_reason": null, "logprobs": [-Infinity]}]}',
)
BEHIND = (
    b"data: SURPLUS\n\n", b'data: {"choices": [{"delta": {"content": "SURPLUS"}}]}\n\n', b"SURPLUS", b"\n",
    b": SURPLUS\n", b"data: [DONE]\n\n",
)
# fmt: on


def events_of(rng: random.Random, nonce: bytes) -> bytes:
    """A stream's payload, mostly good."""
    line_end = mostly(rng, b"\n", b"\r\n", b"\r", share=0.8)
    words = text_of(nonce).replace(" ", " \n").split("\n") * mostly(rng, 1, 3, 10, share=0.8)
    out = ["\ufeff".encode()] if rng.random() < 0.03 else []
    out += [rng.choice(COMMENTS)] if rng.random() < 0.1 else []
    prefix = mostly(rng, b"data: ", b"data:", share=0.9)
    for word in words:
        out.append(prefix + _delta(word, None, rng) + line_end * 2)
        if rng.random() < 0.06:
            out.append(rng.choice(COMMENTS))
        if rng.random() < 0.03:
            out.append(rng.choice(ODD_EVENTS) + line_end * 2)
    finish: Any = mostly(rng, "stop", "length", None, 7, "", {}, "null", "REASON_UNSPECIFIED", share=0.85)
    out.append(prefix + _delta("", finish, rng) + line_end * 2)
    if rng.random() < 0.6:
        usage: Any = {
            key: mostly(rng, 5, *FIGURES, share=0.8) for key in ("prompt_tokens", "completion_tokens", "total_tokens")
        }
        usage = mostly(rng, usage, *FIGURES, share=0.9)
        out.append(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + line_end * 2)
    if rng.random() < 0.85:
        out.append(
            mostly(rng, b"data: [DONE]", b"data:[DONE]", b"data: [DONE]x", b"[DONE]", share=0.95)
            + line_end * mostly(rng, 2, 1, 0, 3, share=0.8)
        )
        if rng.random() < 0.15:
            out.append(rng.choice(BEHIND))
    if rng.random() < 0.04:
        rng.shuffle(out)
    data = b"".join(out)
    if rng.random() < 0.06:
        data = spoil(data, rng, 1)
    return data[: rng.randrange(len(data))] if rng.random() < 0.05 else data


def _delta(text: str, finish: object, rng: random.Random) -> bytes:
    separators = mostly(rng, (", ", ": "), (",", ":"), share=0.6)
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    event: dict[str, Any] = {"id": "e", "object": "chat.completion.chunk", "choices": [choice]}
    if rng.random() < 0.1:
        event["usage"] = rng.choice(FIGURES)
    return json.dumps(event, separators=separators).encode()


def wire_of(rng: random.Random, payload: bytes, how: random.Random) -> tuple[bytes, str, bool]:
    """The response around a payload; `how` cuts its chunks. Also how it ends, and whether nothing is left to chance."""
    kind = mostly(
        rng,
        "text/event-stream",
        "text/event-stream; charset=utf-8",
        "Text/Event-Stream",
        "application/json",
        "text/plain",
        "",
        share=0.85,
    )
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n"
    framed = rng.random()
    if framed < 0.7:
        body = b"".join(chunked(part) for part in cuts.some(payload, how, 10) if part)
        ending = mostly(rng, b"0\r\n\r\n", b"0\r\nX: 1\r\n\r\n", b"", b"0\r\n", b"x", b"5\r\nab", share=0.85)
        head += "Transfer-Encoding: chunked\r\n\r\n"
        end = (
            mostly(rng, KEEP, CLOSE, RESET, share=0.8)
            if ending.startswith(b"0\r\n") and ending.endswith(b"\r\n\r\n")
            else CLOSE
        )
        behind = mostly(rng, b"", b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nSURPLUS", b"\r\n", share=0.85)
        return head.encode() + body + ending + behind, end, end != RESET and not behind
    if framed < 0.8:
        shift = mostly(rng, 0, 5, -5, share=0.8)
        end = KEEP if not shift else CLOSE
        return f"{head}Content-Length: {max(0, len(payload) + shift)}\r\n\r\n".encode() + payload, end, True
    return head.encode() + b"\r\n" + payload, mostly(rng, CLOSE, RESET, share=0.9), False


def make(report: Report, number: int) -> Case:
    """The case of that number."""
    scripts = []
    sure = False
    said = set()  # by the ways, but for their nonces
    for way, name in enumerate(nonces(report, number, 4)):
        rng = rng_of(report.name, report.seed, number)
        payload = events_of(rng, name)
        said.add(payload.replace(name, b"NONCE"))
        how = rng_of("ways", report.seed, number * 10 + way)
        data, end, sure = wire_of(rng, payload, how)
        sure = sure and all_json(payload)
        segments = [
            [data],
            cuts.some(data, how),
            cuts.around(data, (b"\n", b"\r\n", b"data: "), how),
            cuts.some(data, how, 100),
        ][way]
        scripts.append((name, Script(segments or [data], end, always=True)))
    options = {"stream_options": {"include_usage": True}} if rng_of("usage", report.seed, number).random() < 0.3 else {}
    return Case(number, True, tuple(scripts), sure and len(said) == 1, options)  # more: a nonce was spoilt


def all_json(payload: bytes) -> bool:
    """Whether every event is JSON."""
    waiting = b""  # the data of an event of several lines
    for line in (*payload.splitlines(), b""):
        data = line[5:].strip() if line.startswith(b"data:") else b""
        if not line and waiting:
            return False
        if data in (b"", b"[DONE]"):
            continue
        waiting += data
        try:
            _json(waiting)
        except (ValueError, RecursionError):
            continue
        waiting = b""
    return True


def judge(asked: Asked) -> Iterator[tuple[str, str]]:
    """What does not hold of one way."""
    answer = asked.answer
    if isinstance(answer, End):
        return
    payload = b"".join(asked.script.segments)
    if b"chunked" in payload[:200]:
        payload = _dechunked(payload)
    if SURPLUS not in b"".join(until_done(payload)):  # else it may stand before the end
        yield from no_surplus(answer)
    if answer.status != 200:
        return
    if not answer.header(b"content-type").startswith(b"text/event-stream"):
        yield "a stream", f"200 with {answer.headers}"
        return
    lines = answer.body.splitlines(keepends=True)
    events = [line.strip() for line in lines if line.strip()]
    last = events[-1] if events else b""
    done = [line for line in events if line in (b"data: [DONE]", b"data:[DONE]")]
    if len(done) > 1:
        yield "one end", f"[DONE] {len(done)} times: {answer.body[-600:]!r}"
    elif done:
        if last != done[0] or not answer.whole:
            yield "one end", f"[DONE] is not the end, or the body has none: {answer.body[-600:]!r}"
    elif not last.startswith(b'data: {"error":'):
        yield "one end", f"neither [DONE] nor an error: whole {answer.whole}, {answer.body[-600:]!r}"
    own = [line for line in lines if line.strip()]
    if not done and own:
        own = own[:-1]
    sent = iter([told(line.strip()) for line in payload.splitlines()])
    for line in own:
        if line.strip() in done:
            continue
        if told(line.strip()) not in sent:  # those before are not looked at again
            if b'"chat.completion.chunk"' in line and b"application/json" in payload[:200]:
                return
            yield "nothing invented", f"{line[:300]!r} is not what the engine sent, or not in its order"
            return
    if done and not any(is_end(line.strip()) for line in payload.splitlines()):
        yield "no end invented", f"[DONE] without a reason: {answer.body[-600:]!r}"
    if done and b"application/json" not in payload[:200]:
        ended = False  # the answer is whole: what breaks the stream from here on only ends it
        for sent, got in itertools.zip_longest(events_in(payload), events_in(answer.body)):
            if sent != got:
                if got is None and ended and (broken(sent) or asked.script.end != KEEP):
                    return
                yield "nothing left out", f"the engine sent {sent!r:.300}, the client got {got!r:.300}"
                return
            ended = ended or is_end(got)


def events_in(payload: bytes) -> Iterator[bytes]:
    """The events before `[DONE]`, but for those of usage, which not every client wants, with what rides on them."""
    for line in until_done(payload):
        event = None if broken(line.strip()) else _json(line.strip()[5:])
        if event is not None and event.get("usage") is not None and not event.get("choices"):
            continue
        line = told(line.strip())
        if line.startswith(b"data:") and line not in SAYS_NOTHING:
            yield line


SAYS_NOTHING = (b"data:", b"data: {}", b'data: {"choices": []}', b'data: {"choices": null}')


def told(line: bytes) -> bytes:
    """A line without what the client need not get of it: usage, and numbers that are none."""
    line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        event = _json(line[5:]) if line.startswith(b"data:") else None
    except (ValueError, RecursionError):
        return line
    if not isinstance(event, dict):
        return line
    event.pop("usage", None)
    return b"data: " + json.dumps(event).encode()


def _json(data: bytes) -> Any:
    """An event's JSON, read as event streams are: bytes that are no UTF-8 stand for a character of their own."""
    return json.loads(data.decode("utf-8", "replace"), parse_constant=lambda name: None)


def broken(line: bytes) -> bool:
    """Whether no event is like this, or one that tells of an error."""
    try:
        event = _json(line[5:])
    except (ValueError, RecursionError):
        return True
    return not isinstance(event, dict) or bool(event.get("error"))


def is_end(line: bytes) -> bool:
    """Whether a line gives the reason of a choice's end."""
    return re.search(rb'"finish_reason": ?"(?!"|null"|REASON_UN)', line) is not None


def until_done(payload: bytes) -> list[bytes]:
    """The lines before `[DONE]`."""
    lines = payload.splitlines(keepends=True)
    return list(itertools.takewhile(lambda line: line[:5] != b"data:" or line[5:].strip() != b"[DONE]", lines))


def _dechunked(data: bytes) -> bytes:
    """The payload of a well-formed chunked body behind its head, as far as it goes."""
    position = data.find(b"\r\n\r\n") + 4
    out = [data[:position]]
    while True:
        end = data.find(b"\r\n", position)
        try:
            size = int(data[position:end], 16)
        except ValueError:
            break
        if not size:
            break
        out.append(data[end + 2 : end + 2 + size])
        position = end + 4 + size
    return b"".join(out)


def verdict(asked: Asked) -> object:
    """What must be the same for each way: what a client gets of a stream that is whole, without the nonce.

    One that breaks is an error before its first event or an error event behind it, by what had come when it was looked
    at: both are "broken".
    """
    answer = asked.answer
    if isinstance(answer, End):
        return answer.why
    if answer.status != 200 or not re.search(rb"data: ?\[DONE\]\s*$", answer.body):
        return "broken"
    return answer.body.replace(asked.nonce, b"NONCE")


def pure(report: Report, number: int) -> None:
    """One payload without a socket, cut in every way."""
    rng = rng_of(report.name, report.seed, number)
    payload = events_of(rng, nonces(report, number, 1)[0])
    hide = rng.random() < 0.5
    report.count("streams read")
    ways: list[Sequence[bytes]] = [[payload]]
    ways += [cuts.at(payload, [rng.randrange(len(payload) + 1)]) for _ in range(30)]
    ways += [cuts.some(payload, rng, 20) for _ in range(5)] + [cuts.around(payload, (b"\n", b"data: "), rng)]
    if len(payload) < 3000:
        ways.append([payload[i : i + 1] for i in range(len(payload))])
    first = read(ways[0], hide)
    for way in ways:
        said = read(way, hide)
        if said != first and b"not JSON" in repr((said[1], first[1])).encode():
            report.note("an event that is not JSON may pass as it came, where it looks like the usual one")
            return
        if said != first:
            report.found("same verdict", number, f"{first!r:.700} when whole, {said!r:.700} when cut", shown(way))
            return
        if said[0] == "error":
            report.found("nothing but StreamBroken", number, str(said[1]), shown(way))
            return


def read(segments: Sequence[bytes], hide_usage: bool) -> tuple[str, object, bytes]:
    """What is made of a payload cut like this: how it ended, the usage, the client's lines."""
    stream = EventStream(hide_usage)
    out = []
    try:
        for segment in segments:
            out.append(stream.feed(segment))
        out.append(stream.end())
    except StreamBroken as error:
        out.append(error.lines)
        return "broken", str(error), b"".join(out)
    except Exception as error:
        return "error", repr(error), b""
    return "done", repr(stream.usage), b"".join(out)


def run(report: Report, numbers: Iterator[int]) -> None:
    """Put these cases to a gateway."""
    asking = Asking(report, lambda number: make(report, number), judge, verdict)
    asking.run(after_pure(report, numbers, pure, 3))
