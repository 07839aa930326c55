"""One connection to Redis, by redis-py: an optional extra that is imported only here, and only when a link is made.

Owns the connection and what must not be told of its URL, and when to try it again after a failure. No lock: a link is
for one thread, and a breaker's owner guards it.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Optional
from urllib.parse import unquote, urlsplit

from gateway.configuration import ConfigurationError

Command = tuple[Any, ...]

OPEN_S = 1.0
OPEN_MAX_S = 30.0

_MISSING = "REDIS_URL needs the package redis: pip install '.[redis]'"
_BAD_URL = (
    "REDIS_URL must be redis://host:port/number, rediss:// for the same with TLS, or unix:///path, with options that"
    " redis-py knows; in a password @, /, ? and # are written as %40, %2F, %3F and %23"
)
_SECRET_OPTIONS = ("password", "username", "ssl_password")
_OF_THE_POOL = ("max_connections", "timeout")
_TEXT_MAX = 200
_STATES = ("MISCONF", "NOREPLICAS", "BUSY", "LOADING", "NOAUTH")


class Breaker:
    """Open for 1 s after a failure, doubled up to `most_s` with each that comes before 30 s without one have passed.

    Times are of a monotonic clock, in seconds. Not thread-safe.
    """

    def __init__(self, most_s: float = OPEN_MAX_S) -> None:
        self._most_s = most_s
        self.retry_at_s: Optional[float] = None
        """When to try again; None: it is closed."""
        self._open_s = OPEN_S
        self._closed_at_s = float("-inf")

    def fail(self, now_s: float) -> bool:
        """Note a failure, of a trial or not; True: that opens it."""
        opens = self.retry_at_s is None
        again = not opens or now_s - self._closed_at_s < OPEN_MAX_S
        self._open_s = min(2 * self._open_s, self._most_s) if again else min(OPEN_S, self._most_s)
        self.retry_at_s = now_s + self._open_s
        return opens

    def recover(self, now_s: float) -> bool:
        """Note a success; True: that closes it."""
        if self.retry_at_s is None:
            return False
        self.retry_at_s = None
        self._closed_at_s = now_s
        return True


def refuse_unusable_url(url: str) -> None:
    """Raise ConfigurationError where a link could not be made; Redis itself is not asked."""
    Link(url, 1.0)


class Link:
    """A connection, made when it is needed, and made again when it was lost or dropped. Not thread-safe.

    `timeout_s` bounds each single wait: to connect, to send, to receive. Raises ConfigurationError without redis-py
    or for a malformed URL.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        try:
            self._redis: Any = importlib.import_module("redis")
        except ImportError:
            raise ConfigurationError([_MISSING]) from None
        self._timeout_s = timeout_s
        self._made = False
        try:
            _refuse_ambiguous(url)
            options = {**self._redis.connection.parse_url(url), **self._own_options()}
            make = options.pop("connection_class", self._redis.Connection)
            # No pool: for it these are, in URLs that others use, too.
            self._connection = make(**{name: options[name] for name in options if name not in _OF_THE_POOL})
        except Exception:  # whose text may show the password
            raise ConfigurationError([_BAD_URL]) from None
        self._secrets = _secrets(url, options)

    def talk(self, commands: Sequence[Command]) -> Iterator[Any]:
        """Send commands as one pipeline and yield each one's reply; one that is an error as the exception.

        Every reply must be taken. Raises when the connection fails: it must be dropped then.
        """
        connection = self._connection
        if self._made and self._is_stale():
            self.drop()
        if not self._made:
            connection.connect()
            self._made = True
        connection.send_packed_command(connection.pack_commands(commands))
        for _ in commands:
            try:
                reply = connection.read_response()
            except self._redis.exceptions.ResponseError as error:
                reply = error
            yield reply

    def drop(self) -> None:
        """Close the connection, if there is one."""
        self._made = False
        with contextlib.suppress(Exception):
            self._connection.disconnect()

    def lacks_script(self, reply: object) -> bool:
        """Whether the reply says that Redis does not know the script by its digest."""
        return isinstance(reply, self._redis.exceptions.NoScriptError)

    def is_of_one_command(self, error: Exception) -> bool:
        """Whether an error is of what was sent, not of the state that Redis is in (full, read-only)."""
        if type(error) is not self._redis.exceptions.ResponseError:
            return False
        return not str(error).startswith(_STATES)

    def in_words(self, error: BaseException) -> str:
        """An error as one line, without what the URL says before its host."""
        if isinstance(error, self._redis.exceptions.TimeoutError):
            return f"no answer within {self._timeout_s * 1000:.0f} ms"
        text = f"{type(error).__name__}: {error}"
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())[:_TEXT_MAX]

    def _is_stale(self) -> bool:
        """Whether the server has closed it meanwhile, or said what nobody asked for."""
        try:
            return bool(self._connection.can_read(0))
        except Exception:
            return True

    def _own_options(self) -> dict[str, Any]:
        """What no URL may set otherwise: nothing is tried twice, or waited for longer."""
        return {
            "socket_timeout": self._timeout_s,
            "socket_connect_timeout": self._timeout_s,
            "retry": self._redis.retry.Retry(self._redis.backoff.NoBackoff(), 0),
            "retry_on_timeout": False,
            "retry_on_error": [],
            "health_check_interval": 0,
            "decode_responses": False,
            "protocol": 2,
            "client_name": "inference-gateway",
        }


def _refuse_ambiguous(url: str) -> None:
    """Raise ValueError where a password that was not encoded would be taken for a host, a port, or a database."""
    parts = urlsplit(url)
    rest = parts.path + parts.query + parts.fragment
    if parts.fragment or not url.isprintable() or " " in url:
        raise ValueError
    if parts.scheme in ("redis", "rediss"):
        number = parts.path.strip("/")
        if "@" in rest or (number and not number.isdecimal()) or (parts.port or 1) < 1:
            raise ValueError


def _secrets(url: str, options: dict[str, Any]) -> list[str]:
    user_info = urlsplit(url).netloc.rpartition("@")[0]
    found = {user_info, *user_info.split(":", 1), *(str(options.get(name) or "") for name in _SECRET_OPTIONS)}
    return sorted({*found, *map(unquote, found)} - {""}, key=len, reverse=True)
