"""Heads of requests: made from a grammar, each part mostly right and sometimes not, then a few bytes spoilt.

On sockets, as `wire.py` says; and without: `parse_head` raises nothing but HttpError, gives the same twice, and
takes nothing that `reference.py` refuses; `reading.py` has a reader read all of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from gateway.errors import HttpError
from gateway.server.parsing import parse_head
from tests.fuzz import reading, reference
from tests.fuzz.cuts import mostly, spoil
from tests.fuzz.finding import Report, after_pure, rng_of, shown
from tests.fuzz.wire import Wire, chat, nonce

# fmt: off
METHODS = (
    "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "post", "P", "X" * 300, "", "P\0ST",
    "P(ST", "PRI",
)
TARGETS = (
    "/healthz", "/v1/models", "/v1/models/x", "/", "*", "/v1/completions", "/v1/embeddings", "/metrics", "/nowhere",
    "http://127.0.0.1/v1/chat/completions", "HTTP://h/", "http://", "https://h?x", "ftp://h/", "v1", "", "//", "/ /",
    "/\t", "/%00", "/\xe9", "/" + "a" * 3000, "/v1/chat/completions?x=1", "/v1/chat/completions#x",
    "/v1/chat/completions/", "127.0.0.1:80",
)
VERSIONS = (
    "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "HTTP/1.1 ", "http/1.1", "HTTP/1.10", "HTTP/11", "HTTP/1,1", "",
    "HTTP/1.1\0", "HTTP/\xb9.1",
)
LINE_ENDS = ("\n", "\r", "\r\r\n", "\r\n\r\n", "\r\n ", "\r\n\t", "\0\r\n", "\x85")
LENGTHS = (
    "0", "1", "-1", "+{0}", " {0} ", "{0}, {0}", "{0},{1}", "0x{0:x}", "{0}.0", "{0}e0", "{0} {0}", "0{0}", "", "abc",
    "{0};", "{0},", "9" * 18, "9" * 19, "9" * 400, "{1}", "\u00b2".encode().decode("latin-1"), "{0}\x0b", "1_0",
    ",{0}", "\x00{0}",
)
CODINGS = (
    "chunked", "Chunked", "chunked, chunked", "gzip, chunked", "identity", "xchunked", "chunkedx", "chunked;q=1",
    "\x0bchunked", "chunked\x0c", " chunked", "\tchunked ", "", ",chunked", "chunked,", "gzip", "'chunked'",
    '"chunked"', "chun ked", "chunked\xa0", "trailers",
)
CONNECTIONS = (
    "close", "Close", "keep-alive", "keep-alive, close", "upgrade", "x", "", "close,", "content-length", "closed",
    "\x00", "TE, close", "host",
)
EXPECTS = ("100-continue", "100-Continue", "200-ok", "", "100-continue, 100-continue", "100-continue;x")
HOSTS = (
    "", "127.0.0.1:80", "a b", "h/x", "[::1]", "[::1]:80", "h:99999", "h:999999", "user@h", "h,h", "\xe9", "h\0", "[",
    "h:-1", "h\th",
)
OTHERS = (
    "X-A: b", "X-A:b", "X-A : b", " X-A: b", "\tX-A: b", "X-A", ":", ": b", "X-A:", "X\0A: b", "X-A: b\0",
    "X-A: \x7f", "X\xe9: b", "X(A: b", "X-A: b\r\n c", "X-A: \xe9\xff", "X-" + "A" * 2000 + ": b",
    "X-A: " + "b" * 3000, "X-A: b\rX-B: c", "X-A: b\nX-B: c", "Content-Length\t: 3", "Content_Length: 3",
    "Content-Length\x0b: 3", "Transfer-Encoding\t: chunked", "Transfer_Encoding: chunked",
    "transfer-encoding:chunked", "Content-Type: text/plain", "Content-Encoding: gzip",
    "Content-Type: application/json; charset=x", "X-Request-ID: \x01", "X-Forwarded-For: 1.2.3.4", "Upgrade: h2c",
    "HTTP2-Settings: x", "Authorization: Basic x", "TE: trailers", "Trailer: X", "Cookie: " + "c" * 500,
    "Range: bytes=0-1", "Te: chunked",
)
# fmt: on


def make(rng: random.Random, name: str) -> bytes:
    """The bytes of one case: a head of its own, the body that its path wants, and now and then something before it."""
    body = chat(name)
    if rng.random() < 0.15:
        body = b""
    lines = [_request_line(rng), *_fields(rng, len(body))]
    ends = [mostly(rng, "\r\n", *LINE_ENDS, share=0.995) for _ in lines]
    head = "".join(line + end for line, end in zip(lines, ends)).encode("latin-1") + b"\r\n"
    if rng.random() < 0.2:
        head = spoil(head, rng, rng.randint(1, 2))
    before = mostly(
        rng,
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"\r\n" * 3,
        b"\n",
        b"\r",
        b"\n\r\n",
        b"\r\r\n",
        b" ",
        b"\r\n\n",
        b"\0",
        b"\r\n" * 700,
        share=0.8,
    )
    return before + head + body


def _request_line(rng: random.Random) -> str:
    method = mostly(rng, "POST", *METHODS)
    target = mostly(rng, "/v1/chat/completions", *TARGETS, share=0.7)
    version = mostly(rng, "HTTP/1.1", *VERSIONS, share=0.85)
    return mostly(rng, " ", "  ", "\t", "", " \t", "\x0b", share=0.97).join((method, target, version))


def _fields(rng: random.Random, size: int) -> list[str]:
    fields = []
    if rng.random() < 0.95:
        fields.append("Host: " + mostly(rng, "127.0.0.1", *HOSTS, share=0.85))
    if rng.random() < 0.05:
        fields.append("Host: 127.0.0.1")
    if rng.random() < 0.93:
        for _ in range(mostly(rng, 1, 2, 3, share=0.9)):
            fields.append(
                _spelt("Content-Length", rng) + ": " + mostly(rng, "{0}", *LENGTHS, share=0.85).format(size, size + 1)
            )
    if rng.random() < 0.08:
        fields.append(_spelt("Transfer-Encoding", rng) + ": " + rng.choice(CODINGS))
    if rng.random() < 0.15:
        fields.append("Connection: " + rng.choice(CONNECTIONS))
    if rng.random() < 0.08:
        fields.append("Expect: " + rng.choice(EXPECTS))
    fields += rng.sample(OTHERS, mostly(rng, 0, 1, 2, 3, share=0.5))
    if rng.random() < 0.01:
        fields += [f"X-{number}: y" for number in range(rng.choice((50, 200, 1500)))]
    rng.shuffle(fields)
    return fields


def _spelt(name: str, rng: random.Random) -> str:
    return mostly(rng, name, name.lower(), name.upper(), name.swapcase(), share=0.7)


def pure(report: Report, number: int) -> None:
    """One case without a socket."""
    data = make(rng_of(report.name, report.seed, number), nonce("case", report.seed, number))
    reading.check(report, number, data, rng_of("cuts", report.seed, number))
    end = data.find(b"\r\n\r\n")
    start = len(data) - len(data.lstrip(b"\r\n"))
    if end <= start:
        return
    report.count("heads parsed")
    block = data[start:end]
    verdicts = [_verdict(report, number, block) for _ in range(2)]
    if verdicts[0] != verdicts[1]:
        report.found("same verdict", number, f"twice the same head: {verdicts}", shown([block]))
    read = reference.read(block + b"\r\n\r\n" + b"0\r\n\r\n", 0)
    if verdicts[0] == "taken" and read.verdict == reference.REFUSED and "chunk" not in read.why:
        report.found("two readings", number, f"parse_head takes it, the reference refuses: {read.why}", shown([block]))


def _verdict(report: Report, number: int, block: bytes) -> str:
    try:
        parse_head(block)
    except HttpError as error:
        return f"{error.code} {error.message}"
    except Exception as error:
        report.found("nothing but HttpError", number, repr(error), shown([block]))
        return repr(error)
    return "taken"


def run(report: Report, numbers: Iterator[int]) -> None:
    """Send these cases."""
    Wire(report, make).run(after_pure(report, numbers, pure, 20))
