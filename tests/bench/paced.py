"""Requests at a fixed rate, over connections that wait for nobody: how long answers take when nothing is saturated.

A closed loop asks again as soon as it is answered, so with many connections it tells how long a queue of its own making
is. Here each request is due at a moment of its own, and its time counts from then, also when it was late to be sent
(what is slow would else hide what waits behind it). One thread on raw sockets; every wait is bounded.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from . import client
from .processes import BenchError

_END_S = 10.0  # for what is still to be answered when the last request was due
_LENGTH = b"content-length:"


class PacedResult(NamedTuple):
    """One run: microseconds from when a request was due to the last byte of its answer."""

    p50_us: float
    p99_us: float


def run(
    port: int, headers: Mapping[str, str], bodies: Iterator[bytes], rate: int, connections: int, seconds: float
) -> PacedResult:
    """Asks `rate` times a second. Raises BenchError when an answer is no 200, or does not come."""
    total = int(rate * seconds)
    sockets = [socket.create_connection(("127.0.0.1", port), timeout=_END_S) for _ in range(connections)]
    try:
        with selectors.DefaultSelector() as selector:
            for sock in sockets:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(sock, selectors.EVENT_READ)
            requests = (client.request_bytes(port, headers, body) for body in bodies)
            times_s = sorted(_times(selector, sockets, requests, rate, total))
    except OSError as exc:
        raise BenchError(f"at {rate} requests/s: {exc}") from exc
    finally:
        for sock in sockets:
            sock.close()
    return PacedResult(times_s[total // 2] * 1e6, times_s[total * 99 // 100] * 1e6)


def _times(
    selector: selectors.BaseSelector, sockets: list[socket.socket], requests: Iterator[bytes], rate: int, total: int
) -> Iterator[float]:
    """Gives the seconds of each answer, as they come."""
    free = list(sockets)
    due_s: dict[socket.socket, float] = {}
    came: dict[socket.socket, bytes] = {}
    sent = answered = 0
    began_s = time.perf_counter()
    end_s = began_s + total / rate + _END_S
    while answered < total:
        now_s = time.perf_counter()
        if now_s > end_s:
            raise BenchError(f"at {rate} requests/s: {total - answered} of {total} have no answer")
        while sent < total and free and began_s + sent / rate <= now_s:
            sock = free.pop(0)  # the one that has waited longest: all are used
            due_s[sock], came[sock] = began_s + sent / rate, b""
            sock.sendall(next(requests))
            sent += 1
        wait_s = began_s + sent / rate - time.perf_counter() if sent < total and free else 0.1
        for key, _ in selector.select(max(0.0, wait_s)):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            data = sock.recv(65_536)
            if not data:
                raise BenchError(f"at {rate} requests/s: a connection was closed")
            came[sock] += data
            if _is_complete(came[sock]):
                yield time.perf_counter() - due_s.pop(sock)
                answered += 1
                free.append(sock)


def _is_complete(data: bytes) -> bool:
    head, blank, body = data.partition(b"\r\n\r\n")
    if not blank:
        return False
    if not head.startswith(b"HTTP/1.1 200 "):
        raise BenchError(f"an answer is no 200: {head[:200]!r}")
    _, found, rest = head.lower().partition(_LENGTH)
    if not found:
        raise BenchError(f"an answer has no Content-Length: {head[:200]!r}")
    return len(body) >= int(rest.partition(b"\r\n")[0])
