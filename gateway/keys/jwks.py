"""The public keys of an identity provider: a JSON Web Key Set (RFC 7517) from a file or a URL, for RS256, ES256, EdDSA.

Owns the set, which is replaced whole, so a check takes no lock while the set is fresh, and when it is read again: after
five minutes in the background, and for an unknown key id at most every 30 s. The lock guards the decision to read; the
reading is done by a thread `jwks` of its own, without the lock. A set that cannot be read again stays in use.

The signatures themselves are checked by PyJWT and cryptography, an optional extra that is imported only here.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional
from urllib.parse import urlsplit

from gateway.configuration import ConfigurationError

KEY_ALGORITHMS: Mapping[str, Mapping[str, str]] = {
    "RS256": {"kty": "RSA"},
    "ES256": {"kty": "EC", "crv": "P-256"},
    "EdDSA": {"kty": "OKP", "crv": "Ed25519"},
}
"""The members by which a key of the set is one for that algorithm."""

SET_MAX_BYTES = 1 << 20
FRESH_S = 300.0
STALE_S = 600.0
RETRY_S = 30.0
RSA_MIN_BITS = 2048

# Never "d" and its kin: a set with private parts is a mistake that must not be ours to carry on.
_PUBLIC_MEMBERS = ("kty", "crv", "x", "y", "n", "e")


class MissingExtra(ConfigurationError):
    """What was configured needs packages that are not installed; the fault names them."""


class _Keys(NamedTuple):
    """One reading of the set. `read_at_s`: monotonic seconds; minus infinity before the first."""

    by_id: Mapping[str, Any]
    only: Any
    """The one key there is, for tokens without a key id; None when there are several."""
    read_at_s: float


class KeySet:
    """Checks signatures with the keys of a set, as `TokenVerifier` asks for. Thread-safe.

    `source` is the path of a file, which is read at once, or an http(s) URL, which is first read in the background;
    until then a check waits for it, `timeout_s` at most. `on_error(message)` hears of every reading that failed.
    `clock` gives monotonic seconds. Raises MissingExtra without PyJWT[crypto], ConfigurationError for an unknown
    algorithm, a bad URL, or a file without a usable key.
    """

    def __init__(
        self,
        source: str,
        algorithm: str,
        on_error: Optional[Callable[[str], None]] = None,
        *,
        timeout_s: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if algorithm not in KEY_ALGORITHMS:
            raise ConfigurationError([f"the algorithm must be one of {', '.join(KEY_ALGORITHMS)}"])
        self.algorithm = algorithm
        self._implementation = _implementation(algorithm)
        self._source = source
        self._is_url = "://" in source
        self._on_error = on_error
        self._timeout_s = timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._reading: Optional[threading.Event] = None  # set at its end; None while nothing is read
        self._reader: Optional[threading.Thread] = None  # the last one
        self._tried_at_s = float("-inf")
        self._keys = _Keys({}, None, float("-inf"))
        if self._is_url:
            _check_url(source)
            self._read_again()
        else:
            try:
                self._keys = self._read()
            except Exception as error:
                raise ConfigurationError([f"{source}: {_in_words(error)}"]) from error

    def check(self, key_id: Optional[str], signed: bytes, signature: bytes) -> bool:
        """Whether the signature is that of the key with this id; without an id, of the only key there is.

        Waits only when the key is unknown, or nothing could be read for ten minutes: then for the reading under way.
        """
        key = self._key(key_id)
        if key is None:
            return False
        try:
            return bool(self._implementation.verify(signed, key, signature))
        except Exception:  # a signature of the wrong shape is a wrong signature
            return False

    def must_wait(self, key_id: Optional[str]) -> bool:
        """Whether `check` would wait now: for a reading that is under way, or is begun by this. Never waits itself."""
        keys = self._keys
        key = keys.only if key_id is None else keys.by_id.get(key_id)
        if key is not None and self._clock() - keys.read_at_s < STALE_S:
            return False
        return self._read_again() is not None

    def close(self) -> None:
        """Wait for a reading under way to end, as long as it may take. Reads nothing afterwards."""
        with self._lock:
            self._tried_at_s = float("inf")
            reader = self._reader
        if reader is not None:
            reader.join(2 * self._timeout_s)

    def _key(self, key_id: Optional[str]) -> Any:
        keys = self._keys
        age_s = self._clock() - keys.read_at_s
        key = keys.only if key_id is None else keys.by_id.get(key_id)
        if key is not None and age_s < FRESH_S:
            return key
        reading = self._read_again()
        if key is None or age_s >= STALE_S:
            if reading is not None:
                # One that has taken longer hangs (in a look-up, say), and would cost each request these seconds.
                reading.wait(max(0.0, min(self._timeout_s, self._tried_at_s + self._timeout_s - self._clock())))
            keys = self._keys  # those of a reading that has just ended, too
            key = keys.only if key_id is None else keys.by_id.get(key_id)
        return key

    def _read_again(self) -> Optional[threading.Event]:
        """The end of the reading that is under way, or begun by this; None within 30 s of the last attempt.

        Requests wait for an event, not for the thread: `join` by several at once may raise before CPython 3.13.
        """
        with self._lock:
            if self._reading is not None:
                return self._reading
            if self._clock() - self._tried_at_s < RETRY_S:
                return None
            self._tried_at_s = self._clock()
            # Started under the lock, which costs no I/O: `close` may join what it finds here.
            reading = threading.Event()
            reader = threading.Thread(target=self._run, args=(reading,), name="jwks", daemon=True)
            try:
                reader.start()
            except RuntimeError:  # the system gives no more threads: the next attempt has its time
                return None
            self._reading, self._reader = reading, reader
            return reading

    def _run(self, reading: threading.Event) -> None:
        message = None
        try:
            self._keys = self._read()
        except Exception as error:
            # Without the query, which may hold a secret.
            message = f"{self._source.partition('?')[0]}: {_in_words(error)}"
        finally:
            with self._lock:
                self._reading = None
            reading.set()
        if message is not None and self._on_error is not None:
            with contextlib.suppress(Exception):
                self._on_error(message)

    def _read(self) -> _Keys:
        raw = _fetch(self._source, self._timeout_s) if self._is_url else _bounded(Path(self._source))
        document = json.loads(raw.decode("utf-8"))
        members = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(members, list):
            raise ValueError("it is not a JSON Web Key Set")
        usable = [(member.get("kid"), self._public_key(member)) for member in members if self._is_ours(member)]
        usable = [(key_id, key) for key_id, key in usable if key is not None]
        if not usable:
            raise ValueError(f"it has no usable key for {self.algorithm}")
        by_id = {key_id: key for key_id, key in reversed(usable) if isinstance(key_id, str)}
        return _Keys(by_id, usable[0][1] if len(usable) == 1 else None, self._clock())

    def _is_ours(self, member: object) -> bool:
        if not isinstance(member, dict):
            return False
        operations = member.get("key_ops", ["verify"])
        return (
            all(member.get(name) == value for name, value in KEY_ALGORITHMS[self.algorithm].items())
            and member.get("use", "sig") == "sig"
            and member.get("alg", self.algorithm) == self.algorithm
            and isinstance(operations, list)
            and "verify" in operations
        )

    def _public_key(self, member: Mapping[str, Any]) -> Any:
        """The key, or None for one that cannot be read or is too weak: others of the set are as good as before."""
        try:
            public = {name: member[name] for name in _PUBLIC_MEMBERS if name in member}
            key = self._implementation.from_jwk(public)
        except Exception:
            return None
        return None if getattr(key, "key_size", RSA_MIN_BITS) < RSA_MIN_BITS and self.algorithm == "RS256" else key


def refuse_unusable_key_set(source: str, algorithm: str) -> None:
    """Raise ConfigurationError where a KeySet could not be made; what is behind a URL is not asked."""
    if "://" not in source:
        KeySet(source, algorithm)
        return
    _implementation(algorithm)
    _check_url(source)


def _implementation(algorithm: str) -> Any:
    try:
        algorithms = importlib.import_module("jwt.algorithms")
        return algorithms.get_default_algorithms()[algorithm]
    except (ImportError, KeyError):  # PyJWT is missing; or it is there, without cryptography
        raise MissingExtra([f"tokens with {algorithm} need PyJWT and cryptography: pip install '.[jwt]'"]) from None


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        good = good and parts.username is None and url.isascii() and url.isprintable() and " " not in url
    except ValueError:
        good = False
    if not good:
        raise ConfigurationError(["the key set must be a file, or an http(s) URL without a password"])


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        raw = file.read(SET_MAX_BYTES + 1)
    if len(raw) > SET_MAX_BYTES:
        raise ValueError("it is larger than 1 MiB")
    return raw


def _fetch(url: str, timeout_s: float) -> bytes:
    # By hand: no redirect away from the configured address, no file:, no proxy of the environment.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    deadline_s = time.monotonic() + timeout_s
    raw = b""
    with opener.open(url, timeout=timeout_s) as response:
        while True:
            chunk: bytes = response.read1(65_536)
            raw += chunk
            if not chunk:
                return raw
            if len(raw) > SET_MAX_BYTES:
                raise ValueError("it is larger than 1 MiB")
            # A socket's timeout is per read: a server that drips would never meet it.
            if time.monotonic() >= deadline_s:
                raise TimeoutError(f"it did not come within {timeout_s:g} s")


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError, RecursionError)):
        return "cannot be used: it is not JSON"
    return f"cannot be used: {error}"
