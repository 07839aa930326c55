"""A running gateway, asked from the command line over kept-alive connections.

No state but that of each connection, no lock. The key of `Address.headers` is never part of a message.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from typing import NamedTuple, Optional
from urllib.parse import urlsplit

KEY_VARIABLE = "GATEWAY_API_KEY"


class Unusable(Exception):
    """There is no use in going on; the text is for the user."""


class UsageError(Exception):
    """The command cannot be run as it was given; one text a fault."""

    def __init__(self, *faults: str) -> None:
        super().__init__(*faults)
        self.faults = faults


class Address(NamedTuple):
    """Where the gateway is, and what a request to it carries."""

    url: str
    secure: bool
    host: str
    port: Optional[int]
    prefix: str
    headers: dict[str, str]

    @classmethod
    def of(cls, url: str, key: Optional[str]) -> Address:
        """That of a URL, which may end with /v1. Raises UsageError."""
        try:
            parts = urlsplit(url.strip())
            host, port = parts.hostname, parts.port
            parts.path.encode("ascii")
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment or parts.username:
            raise UsageError("--url: must be that of a gateway, as in http://127.0.0.1:8080")
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return cls(f"{parts.scheme}://{parts.netloc}{prefix}", parts.scheme == "https", host, port, prefix, headers)


def url_of(host: str, port: int) -> str:
    """The URL at which a gateway with these settings is reached from its own machine. Raises UsageError."""
    if not port:
        raise UsageError("PORT is 0: name the gateway with --url")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def checked_key(key: Optional[str], name: str = KEY_VARIABLE) -> Optional[str]:
    """The key of that name without blanks around it, None where nothing is left. Raises UsageError, which does not show
    it."""
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError(f"{name}: must be one word of ASCII characters")
    return key or None


class Answer(NamedTuple):
    """What the gateway has said."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def error(self) -> str:
        """Status, code and message of an error, in either of its shapes."""
        try:
            told = json.loads(self.body)
            error = told["error"]
            code, message = (error["code"], error["message"]) if type(error) is dict else (error, told["message"])
        except (ValueError, LookupError, TypeError, RecursionError):
            return f"{self.status} {http.client.responses.get(self.status, '')}".rstrip()
        return f"{self.status} {code}: {message}"


class Connection:
    """One kept-alive connection, opened when it is needed. For one thread, but for `abort`."""

    def __init__(self, gateway: Address) -> None:
        kind = http.client.HTTPSConnection if gateway.secure else http.client.HTTPConnection
        self._gateway = gateway
        self._connection = kind(gateway.host, gateway.port)
        self._aborted = False

    def ask(self, method: str, path: str, body: Optional[bytes], timeout_s: float, **headers: str) -> Answer:
        """One request. Raises Unusable when there is nobody to ask, OSError and HTTPException when it breaks off."""
        deadline_s = time.monotonic() + timeout_s
        kept = self._connection.sock is not None
        try:
            try:
                return self._ask_once(method, path, body, timeout_s, headers)
            except ConnectionError:
                if not kept or self._aborted:
                    raise
                self._connection.close()  # it was idle for too long: that says nothing of the gateway
                return self._ask_once(method, path, body, deadline_s - time.monotonic(), headers)
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise

    def _ask_once(
        self, method: str, path: str, body: Optional[bytes], timeout_s: float, headers: dict[str, str]
    ) -> Answer:
        connection, gateway = self._connection, self._gateway
        connection.timeout = max(0.001, timeout_s)
        if connection.sock is None:
            try:
                connection.connect()
            except OSError as error:
                reason = error.strerror or str(error) or type(error).__name__
                raise Unusable(f"cannot reach a gateway at {gateway.url}: {reason}") from error
        sock: socket.socket = connection.sock
        sock.settimeout(connection.timeout)
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, gateway.prefix + path, body, {**gateway.headers, **kind, **headers})
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        if answer.status == 401:
            wanted = f"does not take the key in {KEY_VARIABLE}" if gateway.headers else f"wants a key in {KEY_VARIABLE}"
            raise Unusable(f"the gateway at {gateway.url} {wanted}: {answer.error()}")
        return answer

    def close(self) -> None:
        """Close it. It may be used again."""
        self._connection.close()

    def abort(self) -> None:
        """End what it is waiting for; from any thread."""
        self._aborted = True
        sock = self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
