"""Chunked bodies of requests: sizes, extensions, data and trailers, each mostly right and sometimes not.

On sockets, as `wire.py` says; and without: `ChunkedBody` says the same of the same bytes however they are cut (every
single cut, byte by byte, and at random): payload, end and rest, or that they are broken; it raises nothing but
FramingError, and takes nothing that `reference.py` refuses; `reading.py` has a reader read it behind a head.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Optional

from gateway.upstream.framing import ChunkedBody, FramingError
from tests.fuzz import cuts, reading, reference
from tests.fuzz.cuts import mostly, spoil
from tests.fuzz.finding import Report, after_pure, rng_of, shown
from tests.fuzz.wire import Wire, chat, nonce

# fmt: off
SIZES = (
    "%X", "0%x", "0000%x", "%x ", "%x\t", " %x", "+%x", "-%x", "0x%x", "0X%x", "%x_", "%xh", "%x.0", "", "%x%x",
    "%x,", "%x\0", "\xef\xbc\x95", "0" * 14 + "%x", "0" * 15 + "%x", "0" * 16 + "%x", "f" * 16, "f" * 17, "f" * 400,
    "%x\x0b", "1_0", "\xb2", "0x", "%x\r", "%x \t ",
)
EXTENSIONS = (
    ";", ";a", ";a=b", ' ; x="q;1"', ";a\rb", ";a\0b", ";a\nb", ";\r", "; a", ";" + "x" * 300, ";" + "x" * 4080,
    ";" + "x" * 5000, ";a\x01", " a", ";\xe9", ';a="\r\n"', ";;;", ";a=b;c=d", "\t;a", ";\t",
)
LINE_ENDS = ("\n", "\r", "\r\r\n", "", "\n\r\n", "\0\r\n", " \r\n")
TRAILERS = (
    "X: 1", "X:1", "X : 1", " X: 1", "\tX: 1", "X", ": 1", "X: \0", "X: \r1", "X: \x7f", "X\0: 1",
    "GET /healthz HTTP/1.1", "Host: a", "X: 1\r\n 2", "Content-Length: 5", "Transfer-Encoding: chunked",
    "X: " + "y" * 4090, "X: " + "y" * 9000, "Expires: x", "X\xe9: 1", "X: 1\nY: 2", "X(: 1", "0", "5",
)
# fmt: on


HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunks(rng: random.Random, payload: bytes) -> bytes:
    """`payload` as chunks that may be broken."""
    usual = 0.92
    out = []
    while payload:
        size = min(len(payload), rng.choice((1, 2, 3, 7, 16, 30, 60, 300)))
        digits = mostly(rng, "%x", *SIZES, share=usual)
        digits = digits.replace("%x", f"{size:x}").replace("%X", f"{size:X}")
        out.append((digits + mostly(rng, "", *EXTENSIONS, share=usual)).encode("latin-1"))
        out.append(_line_end(rng))
        out.append(payload[:size])
        if rng.random() < 0.01:
            out.append(rng.choice((b"x", b"0", b"\r\n")))
        out.append(_line_end(rng))
        payload = payload[size:]
    out.append(
        mostly(rng, b"0", b"00", b"0" * 16, b"0" * 17, b"-0", b"+0", b"0x0", b"0 ", b"0;e", b"", b"0_0", share=0.9)
    )
    out.append(_line_end(rng))
    for _ in range(mostly(rng, 0, 1, 2, 5, share=0.6)):
        out += [rng.choice(TRAILERS).encode("latin-1"), _line_end(rng)]
    if rng.random() < 0.01:
        out.append(b"X: 1\r\n" * rng.choice((99, 100, 101, 3000)))
    out.append(_line_end(rng))
    data = b"".join(out)
    return spoil(data, rng, 1) if rng.random() < 0.15 else data


def _line_end(rng: random.Random) -> bytes:
    return mostly(rng, "\r\n", *LINE_ENDS, share=0.99).encode("latin-1")


def make(rng: random.Random, name: str) -> bytes:
    """The bytes of one case: a request with such a body."""
    method = mostly(rng, "POST", "GET", "PUT", share=0.96)
    target = mostly(rng, "/v1/chat/completions", "/healthz", "/nowhere", share=0.93)
    head = [
        f"{method} {target} HTTP/1.1",
        "Host: 127.0.0.1",
        "Transfer-Encoding: chunked",
    ]
    if rng.random() < 0.1:
        head.append(
            rng.choice(("Expect: 100-continue", "Trailer: X", "TE: trailers", "Content-Type: application/json"))
        )
    return "\r\n".join(head).encode() + b"\r\n\r\n" + chunks(rng, chat(name))


def pure(report: Report, number: int) -> None:
    """One body without a socket, cut in every way."""
    rng = rng_of(report.name, report.seed, number)
    data = chunks(rng, rng.choice((b"", b"a", b"hello", chat(nonce("case", report.seed, number)))))
    data += rng.choice((b"", b"", b"GET / HTTP/1.1\r\n\r\n", b"\r\n", b"0"))
    reading.check(report, number, HEAD + data, rng)
    report.count("bodies decoded")
    ways: list[Sequence[bytes]] = [[data], [data[i : i + 1] for i in range(len(data))]]
    places = range(1, len(data)) if len(data) < 120 else [rng.randrange(1, len(data)) for _ in range(60)]
    ways += [cuts.at(data, [place]) for place in places]
    ways += [cuts.some(data, rng, 8) for _ in range(10)]
    first: Optional[object] = None
    for way in ways:
        said = decoded(way)
        if first is None:
            first = said
            read = reference.read_chunked(data, 0)
            if said[0] == "whole" and read.verdict == reference.REFUSED:
                report.found("two readings", number, f"taken, and the reference refuses it: {read.why}", shown(way))
            if read.verdict == reference.TAKEN and said[0] == "broken":
                report.note(f"stricter than the reference: {said[1]!r}")
        elif said[0] != first[0] or (said[0] != "broken" and said != first):
            report.found("same verdict", number, f"{first} when whole, {said} when cut", shown(way))
            return
        if said[0] == "error":
            report.found("nothing but FramingError", number, str(said[1]), shown(way))
            return


def decoded(segments: Sequence[bytes]) -> tuple[str, object, bytes]:
    """What the decoder makes of bytes cut like this: whole, open or broken; the payload; what is behind its end."""
    decoder = ChunkedBody()
    payload = []
    try:
        for number, segment in enumerate(segments):
            payload.append(decoder.feed(segment))
            if decoder.complete:
                return "whole", b"".join(payload), decoder.rest + b"".join(segments[number + 1 :])
    except FramingError as error:
        return "broken", str(error), b""
    except Exception as error:
        return "error", repr(error), b""
    return "open", b"".join(payload), b""


def run(report: Report, numbers: Iterator[int]) -> None:
    """Send these cases."""
    Wire(report, make).run(after_pure(report, numbers, pure, 3))
