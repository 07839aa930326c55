"""Who is asking: the key at the door.

Owns the map from key digests to identities; it is replaced whole, so reading needs no lock. Keys are known as SHA-256
digests only. A wrong key's digest is compared by looking it up: what that could leak is the digest of a guess, which
tells nothing about a key (SHA-256 is preimage resistant), and the final comparison is constant-time.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import NamedTuple, Optional

from gateway.errors import RequestRefused
from gateway.settings import ApiKey

KEY_MAX_BYTES = 8192


class Identity(NamedTuple):
    """Who a request is from. `name` is None when authentication is off."""

    name: Optional[str]
    role: str


ANYONE = Identity(None, "admin")


class Authenticator:
    """Recognises keys. With no keys, everybody is let in. Thread-safe."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._by_digest = {key.digest: (key.digest, Identity(key.name, key.role)) for key in keys}

    @property
    def required(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self._by_digest)

    def identify(
        self, authorization: Optional[bytes], x_api_key: Optional[bytes], repeated: frozenset[bytes]
    ) -> Identity:
        """The identity behind the headers. Raises `unauthorized`; the error never repeats what was sent."""
        if not self._by_digest:
            return ANYONE
        if repeated and (b"authorization" in repeated or b"x-api-key" in repeated):
            raise _unauthorized("the key is sent twice")
        key: Optional[bytes] = None
        if authorization is not None:
            scheme, _, rest = authorization.partition(b" ")
            if scheme.lower() in (b"bearer", b"api-key"):
                key = rest.strip()
        elif x_api_key is not None:
            key = x_api_key
        if not key or len(key) > KEY_MAX_BYTES:
            raise _unauthorized("a key is required: Authorization: Bearer <key>, or X-API-Key: <key>")
        digest = hashlib.sha256(key).digest()
        known, identity = self._by_digest.get(digest, (bytes(32), ANYONE))
        if not hmac.compare_digest(known, digest):
            raise _unauthorized("the key is not known")
        return identity


def _unauthorized(message: str) -> RequestRefused:
    return RequestRefused("unauthorized", message, headers=(("WWW-Authenticate", "Bearer"),))
