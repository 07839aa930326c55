"""Odd requests for a front to pass on, each with a second request hidden where another parser might find it. Pure.

A case is the bytes of one client connection: a chat request made odd in one or two ways (lengths against codings,
spellings of codings, repeated lengths, chunk sizes, extensions, trailers, targets, folds, white space, versions,
Expect), with `GET /smuggled-<id>` in its body, behind its end or in a trailer, and a plain last request that
closes.
"""

from __future__ import annotations

import json
import random

from tests.fuzz.cuts import mostly, spoil

# fmt: off
CODINGS = (
    "chunked", "Chunked", "CHUNKED", "xchunked", "chunkedx", "x-chunked", "chunked, chunked", "chunked,", ",chunked",
    "identity", "identity, chunked", "chunked, identity", "gzip, chunked", "chunked, gzip", "gzip", " chunked",
    "\tchunked", "chunked ", "\x0bchunked", "\x0cchunked", "chunked\x0b", "chunked\0", '"chunked"', "'chunked'",
    "chunked;q=1", "chunked; foo", "chunked\r\n ", "\r\n chunked", "chunked\r\n\t", "chun\r\n ked", "chunked\xa0",
    "\xa0chunked", "chunk", "cow", "", "trailers", "deflate,chunked",
)
CODING_NAMES = (
    "Transfer-Encoding", "transfer-encoding", "TRANSFER-ENCODING", "Transfer-Encoding ", "Transfer-Encoding\t",
    " Transfer-Encoding", "Transfer_Encoding", "Transfer-Encoding\x0b", "X-A: b\nTransfer-Encoding",
    "X-A: b\rTransfer-Encoding", "X-A\0\r\nTransfer-Encoding", "Transfer-Encoding\0", "Transfer\xadEncoding",
    "Transfer.Encoding", "\xefTransfer-Encoding",
)
LENGTH_NAMES = (
    "Content-Length", "content-length", "CONTENT-LENGTH", "Content-Length ", " Content-Length", "Content_Length",
    "Content-Length\t", "Content-Length\x0b", "X: y\nContent-Length", "Content.Length",
)
LENGTHS = (
    "{0}", "0", "+{0}", "-{0}", "0{0}", "{0}, {0}", "{0},{1}", "{0} ", "\t{0}", "{0};", "0x{0:x}", "{0}\x0b", "{0}.0",
    "{0} 0", "{1}", "", "{0}\r\n ", "\r\n {0}", "{0}_0", "18446744073709551616", "1e1", "{0}\0",
)
SIZES = (
    "{0:x}", "{0:X}", "0{0:x}", "{0:016x}", "{0:020x}", "0x{0:x}", "+{0:x}", "-{0:x}", " {0:x}", "{0:x} ", "{0:x}\t",
    "{0:x};a=b", "{0:x};a\nb", "{0:x};\n", "{0:x};\r", "{0:x};a\rb", "{0:x};\0", "{0:x};" + "a" * 500, "{0:x}g",
    "1{0:016x}", "{0:x}\n", "f" * 16, "{0:x},{0:x}", "{0:x};a=\"\r\n\"", "",
)
TRAILERS = (
    "", "X: y\r\n", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", "Host: other\r\n", "X : y\r\n",
    " X: y\r\n", "X\r\n", "X: y\n", "X: \0\r\n", "X: a\rb\r\n", "{2}", "X: y\r\n z\r\n", "Connection: close\r\n",
    "\n",
)
TARGETS = (
    "http://127.0.0.1{0}", "http://other{0}", "HTTP://127.0.0.1{0}", "http://127.0.0.1:80{0}", "{0}#x", "{0} x",
    "{0}\t", "/{0}", "/..{0}", "{0}%0d%0aX:y", "*", "{0}?a=b HTTP/1.1\r\nX: y", "http://a@127.0.0.1{0}",
    "http://127.0.0.1?{0}", "{0}\xe9", "{0}\0",
)
VERSIONS = (
    "HTTP/1.0", "HTTP/1.1", "HTTP/1.2", "HTTP/0.9", "", "HTTP/2.0", "http/1.1", "HTTP/1.1 ", "HTTP/01.1",
    "HTTP/1.1\t",
)
CONNECTIONS = (
    "close", "keep-alive", "Keep-Alive", "upgrade", "Transfer-Encoding", "Content-Length", "close, Content-Length",
    "Host", "keep-alive, Transfer-Encoding", "TE", "X-Request-ID",
)
HEADERS = (
    "X-A : b", "X-A: b\r\n c", " X-A: b", "X-A", ": b", "X-A: \0", "X-A: a\rb", "X-A: a\nB: c", "Host: other",
    "Host: 127.0.0.1", "X_A: b", "X-\xe9: b", "X-A: \xff", "Expect: 100-continue", "Expect: 200-ok",
    "Expect: 100-continue, x", "Upgrade: websocket", "Upgrade: h2c", "TE: trailers, chunked",
    "Trailer: Content-Length", "Max-Forwards: 0", "X-HTTP-Method-Override: GET", "X-A: " + "b" * 3000,
    "Content-Type: text/plain", "Cookie: a=b; c", "X-A:b", "X-A:", "X(A: b", "X-A: b\x7f",
    "Proxy-Connection: keep-alive", "X-Forwarded-For: 1.2.3.4", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
)
# fmt: on
METHODS = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "post", "X-Y", "POST\t", "GPOST", "CONNECT")
AIMED_SHARE = 0.4  # of the cases
PATH = "/v1/chat/completions"


def case(rng: random.Random, number: int, nonce: str) -> list[bytes]:
    """The segments of one connection. The hidden request asks for /smuggled-<number>, the last for /last-<number>."""
    hidden = f"GET /smuggled-{number} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-ID: s-{number}\r\n\r\n".encode()
    content = json.dumps({"messages": [{"role": "user", "content": nonce}], "stream": rng.random() < 0.1}).encode()
    fields = ["Host: 127.0.0.1", f"X-Request-ID: c-{number}", "Content-Type: application/json"]
    if rng.random() < AIMED_SHARE:
        body, aimed = _aimed(rng, hidden)
    else:
        body, aimed = _anyhow(rng, content, hidden)
    fields += aimed
    if rng.random() < 0.1:
        fields.append("Connection: " + rng.choice(CONNECTIONS))
    fields += rng.sample(HEADERS, mostly(rng, 0, 1, 2, share=0.75))
    rng.shuffle(fields)
    method = mostly(rng, "POST", *METHODS, share=0.95)
    target = mostly(rng, "{0}", *TARGETS, share=0.92).format(f"{PATH}?c-{number}")
    version = mostly(rng, "HTTP/1.1", *VERSIONS, share=0.95)
    line_end = mostly(rng, "\r\n", "\n", share=0.98)
    head = line_end.join((f"{method} {target} {version}", *fields)).encode("latin-1", "replace") + line_end.encode() * 2
    if rng.random() < 0.04:
        head = spoil(head, rng, 1)
    before = mostly(rng, b"", b"\r\n", b"\n", b"\r\n\r\n", share=0.96)
    usual = f"Host: 127.0.0.1\r\nX-Request-ID: l-{number}\r\nConnection: close\r\n\r\n"
    last = f"GET /last-{number} HTTP/1.1\r\n{usual}".encode()
    behind = mostly(rng, b"", hidden, b"\r\n", b"0\r\n\r\n", b"x", share=0.75)
    data = before + head + body + behind + last
    cut = rng.randrange(len(data)) if rng.random() < 0.4 else 0
    return [data[:cut], data[cut:]] if cut else [data]


def _aimed(rng: random.Random, hidden: bytes) -> tuple[bytes, list[str]]:
    """A body that is whole by a good framing line, and ends before the hidden request by an odd second one."""
    if rng.random() < 0.7:
        body = b"0\r\n\r\n" + hidden
        odd = (
            (rng.choice(CODING_NAMES), "chunked") if rng.random() < 0.5 else ("Transfer-Encoding", rng.choice(CODINGS))
        )
        return body, [f"Content-Length: {len(body)}", ": ".join(odd)]
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden)
    size = body.index(b"\r\n") + 2  # by this length, the hidden request is what follows
    odd = (rng.choice(LENGTH_NAMES), str(size)) if rng.random() < 0.5 else ("Content-Length", rng.choice(LENGTHS))
    return body, ["Transfer-Encoding: chunked", ": ".join(odd).format(size, size + 1)]


def _anyhow(rng: random.Random, content: bytes, hidden: bytes) -> tuple[bytes, list[str]]:
    """A body and framing lines that may or may not fit."""
    fields = []
    body, coded = _body(rng, content, hidden)
    framing = rng.random()
    if coded or framing < 0.15:
        name = mostly(rng, "Transfer-Encoding", *CODING_NAMES, share=0.8)
        fields.append(f"{name}: {mostly(rng, 'chunked', *CODINGS, share=0.7)}")
        if rng.random() < 0.1:
            fields.append(f"Transfer-Encoding: {rng.choice(CODINGS)}")
    if not coded or framing > 0.7:
        guesses = (len(body), len(content), len(body) - len(hidden), 0, 4, len(body) + 10)
        for _ in range(mostly(rng, 1, 2, share=0.9)):
            length = rng.choice(guesses) if coded else len(body)
            name = mostly(rng, "Content-Length", *LENGTH_NAMES, share=0.85)
            value = mostly(rng, "{0}", *LENGTHS, share=0.8).format(max(0, length), length + 1)
            fields.append(f"{name}: {value}")
    return body, fields


def _body(rng: random.Random, content: bytes, hidden: bytes) -> tuple[bytes, bool]:
    """A body with something hidden in it or behind what some take for its end, and whether it is in chunks."""
    kind = rng.randrange(6)
    if kind == 0:
        return content, False
    if kind == 1:
        return hidden, False
    if kind == 2:
        return b"0\r\n\r\n" + hidden, rng.random() < 0.5
    if kind == 3:
        return content + b"\r\n" + hidden, False
    parts = [content] if rng.random() < 0.4 else [content[:10], content[10:]]
    if kind == 4:
        parts.append(hidden)
    out = b""
    for part in parts:
        size = mostly(rng, "{0:x}", *SIZES, share=0.8).format(len(part)).encode("latin-1")
        out += (
            size
            + mostly(rng, b"\r\n", b"\n", b"\r", b"\r\r\n", b"", share=0.97)
            + part
            + mostly(rng, b"\r\n", b"\n", b"", b"x\r\n", b"\r\n\r\n", share=0.97)
        )
    trailer = mostly(rng, "", *TRAILERS, share=0.6).replace("{2}", hidden.decode())
    return out + mostly(rng, b"0", b"00", b"0;a", b"0 ", b"-0", b"0x0", b"0" * 20, b"", share=0.9) + mostly(
        rng, b"\r\n", b"\n", share=0.98
    ) + trailer.encode("latin-1") + mostly(rng, b"\r\n", b"\n", b"", share=0.98), True
