"""A bare HTTP client on raw sockets, for what wrk does not do: first answers and idle connections.

Owns no state beyond its sockets; every wait is bounded. Not used where time per request is
measured.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Mapping

from . import payloads
from .processes import BenchError, Child

_POLL_S = 0.005
_ANSWER_TIMEOUT_S = 15.0
_NOT_READY = (404, 429, 502, 503, 504)
_REFUSAL_PATIENCE_S = 5.0


def request_bytes(port: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """Returns a whole chat request, head and body, for a keep-alive connection."""
    lines = [f"POST {payloads.CHAT_PATH} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def wait_until_answering(child: Child, port: int, path: str, timeout_s: float) -> None:
    """Returns when a GET of `path` gets 200; raises BenchError when `child` ends or time is up."""
    deadline = time.monotonic() + timeout_s
    while _status("GET", port, path, {}, None)[0] != 200:
        _check(child, deadline, timeout_s)


def wait_for_chat(child: Child, port: int, headers: Mapping[str, str], timeout_s: float, stream: bool = False) -> float:
    """Returns the monotonic time of the first good chat answer, which is checked to be one.

    With `stream`, the first event counts. Raises BenchError when `child` ends first, when
    `timeout_s` passes, when the answer is 200 but not the engine's, or when the gateway goes on
    for 5 s answering with an error that is no "not ready yet".
    """
    deadline = time.monotonic() + timeout_s
    body = payloads.chat_request(stream)
    while True:
        status, answer = _status("POST", port, payloads.CHAT_PATH, headers, body, stream)
        if status == 200:
            answered_at = time.monotonic()
            if b"Paris" not in answer:
                raise BenchError(f"{child.name}: not the engine's answer: {answer[:200]!r}")
            return answered_at
        if status and status not in _NOT_READY:
            deadline = min(deadline, time.monotonic() + _REFUSAL_PATIENCE_S)
        _check(child, deadline, timeout_s, f"last answer {status} {answer[:200]!r}")


def open_idle(port: int, headers: Mapping[str, str], count: int, limit_s: float) -> _Idle:
    """Opens `count` keep-alive connections, one good request on each, one after the other.

    Stops early when `limit_s` has passed or the gateway refuses; the caller sees how many it holds.
    """
    request = request_bytes(port, headers, payloads.chat_request())
    idle = _Idle()
    deadline = time.monotonic() + limit_s
    while len(idle.socks) < count and time.monotonic() < deadline:
        try:
            sock = socket.create_connection(("127.0.0.1", port), _ANSWER_TIMEOUT_S)
        except OSError:
            break
        idle.socks.append(sock)
        try:
            sock.sendall(request)
            answer = http.client.HTTPResponse(sock)
            answer.begin()
            answer.read()
        except (OSError, http.client.HTTPException):
            break
        if answer.status != 200:
            break
    return idle


class _Idle:
    """Open connections that wait for nothing."""

    def __init__(self) -> None:
        self.socks: list[socket.socket] = []

    def still_open(self) -> int:
        """Returns how many the gateway has not closed."""
        return sum(1 for sock in self.socks if _is_open(sock))

    def close(self) -> None:
        """Closes them all."""
        for sock in self.socks:
            sock.close()


def _is_open(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _status(
    method: str,
    port: int,
    path: str,
    headers: Mapping[str, str],
    body: bytes | None,
    first_part: bool = False,
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_TIMEOUT_S)
    all_headers = {**headers, "Content-Type": "application/json", "Connection": "close"}
    try:
        connection.request(method, path, body, all_headers)
        answer = connection.getresponse()
        return answer.status, answer.read1(4096) if first_part else answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _check(child: Child, deadline: float, timeout_s: float, detail: str = "none at all") -> None:
    if not child.alive():
        raise BenchError(f"{child.name}: ended at start; it printed:\n{child.log_tail()}")
    if time.monotonic() > deadline:
        raise BenchError(f"{child.name}: not ready after {timeout_s:g} s ({detail}); it printed:\n{child.log_tail()}")
    time.sleep(_POLL_S)
