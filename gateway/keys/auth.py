"""Who is asking, and what that caller may do: keys of the settings, keys of the state database, tokens.

Owns the map from the settings' key digests to identities, and small caches of identities made from database keys and
from tokens. Both are dicts whose single operations are atomic, so nothing here is locked. Keys are known as SHA-256
digests only; looking a digest up can leak at most the digest of a guess, and the last comparison takes constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Callable, NamedTuple, Optional

from gateway.clock import unix_s
from gateway.errors import RequestRefused
from gateway.keys.jwt import TokenRefused, TokenVerifier
from gateway.keys.record import KeyRecord, name_digest
from gateway.keys.roles import DEFAULT_ROLES, Role, model_allowed
from gateway.keys.store import KeyStore
from gateway.limits.limiter import NO_KEY_LIMITS, KeyLimits
from gateway.settingvalues import ApiKey

KEY_MAX_BYTES = 8192
CACHE_MAX = 4096
TOKEN_CACHE_S = 60.0
"""How long a token is taken for good without looking at its signature again: a signing key may be withdrawn."""
NOBODY = Role("nobody", frozenset())


class Identity(NamedTuple):
    """A caller. `name` is None when authentication is off; `models` are patterns, () allows what the role does."""

    name: Optional[str]
    role: str
    rights: Role = DEFAULT_ROLES["admin"]
    models: tuple[str, ...] = ()
    limits: KeyLimits = NO_KEY_LIMITS
    budget_usd: Optional[float] = None
    budget_period: str = "month"
    priority: str = "normal"
    is_key: bool = False
    key_expires_unix_s: Optional[float] = None
    residency: str = ""
    """The region that what it asks must not leave; "": it may."""

    def require(self, permission: str) -> None:
        """Raise `forbidden`, naming the permission, unless the role has it."""
        if permission not in self.rights.permissions:
            raise RequestRefused("forbidden", f"this needs the permission {permission}")

    @property
    def may_use_all(self) -> bool:
        """Whether neither the role nor the key names the models that may be asked."""
        return not (self.models or self.rights.models)

    def may_use(self, *names: str) -> bool:
        """Whether both the role and the key allow the model of these names: its own and its aliases, as they are now.

        Each of both may do so by another name. So keys outlive a model's renaming where the old name stays an alias.
        """
        return self.rights.allows_model(*names) and model_allowed(self.models, *names)


ANYONE = Identity(None, "admin")


class Authenticator:
    """Recognises keys and tokens. Without any, everybody is let in. Thread-safe.

    `default_limits` are for keys without their own. `store` (keys of the state database) may be set later. `clock`
    gives Unix seconds, `monotonic` monotonic ones.
    """

    def __init__(
        self,
        keys: Iterable[ApiKey] = (),
        *,
        roles: Mapping[str, Role] = DEFAULT_ROLES,
        default_limits: KeyLimits = NO_KEY_LIMITS,
        verifier: Optional[TokenVerifier] = None,
        enabled: bool = True,
        clock: Callable[[], float] = unix_s,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roles = roles
        self._defaults = default_limits if any(default_limits) else NO_KEY_LIMITS
        self._verifier = verifier
        self._enabled = enabled
        self._clock = clock
        self._monotonic = monotonic
        self.store: Optional[KeyStore] = None
        self.refused: Collection[bytes] = ()
        """Digests of keys, and of keys' names for their tokens, that were revoked at another gateway."""
        self._by_digest = {
            key.digest: (
                key.digest,
                Identity(key.name, key.role, self._role(key.role), limits=self._defaults, is_key=True),
            )
            for key in keys
        }
        self._by_name = {identity.name: identity for _, identity in self._by_digest.values()}
        self._by_record: dict[bytes, tuple[KeyRecord, Identity]] = {}
        self._by_token: dict[bytes, tuple[float, float, bool, Identity]] = {}

    @property
    def required(self) -> bool:
        """Whether a key or token is needed."""
        if not self._enabled:
            return False
        return bool(self._by_digest or self._verifier or (self.store is not None and self.store.lookup_table()))

    def _role(self, name: str) -> Role:
        return self._roles.get(name) or NOBODY

    def identify(
        self, authorization: Optional[bytes], x_api_key: Optional[bytes], repeated: frozenset[bytes]
    ) -> Identity:
        """The identity behind the headers. Raises `unauthorized`; the error never repeats what was sent."""
        if not self.required:
            return ANYONE
        if repeated and (b"authorization" in repeated or b"x-api-key" in repeated):
            raise _unauthorized("the key is sent twice")
        key = shown_key(authorization, x_api_key)
        if not key or len(key) > KEY_MAX_BYTES:
            raise _unauthorized("a key is required: Authorization: Bearer <key>, or X-API-Key: <key>")
        digest = hashlib.sha256(key).digest()
        if digest in self.refused:
            raise _unauthorized("the key is not valid any more")
        found = self._by_digest.get(digest)
        if found is not None and hmac.compare_digest(found[0], digest):
            return found[1]
        identity = self._from_store(digest)
        if identity is None and self._verifier is not None and key.count(b".") == 2:
            identity = self._from_token(self._verifier, key, digest)
        if identity is None:
            raise _unauthorized("the key is not known, or not valid any more")
        return identity

    def must_wait(self, authorization: Optional[bytes], x_api_key: Optional[bytes]) -> bool:
        """Whether `identify` would have to wait now, for keys to check a token with. Never waits itself."""
        verifier = self._verifier
        if verifier is None or not self._enabled:
            return False
        try:
            token = shown_key(authorization, x_api_key)
        except RequestRefused:
            return False
        if token.count(b".") != 2 or len(token) > KEY_MAX_BYTES:
            return False
        return self._kept(hashlib.sha256(token).digest()) is None and verifier.must_wait(token)

    def _from_store(self, digest: bytes) -> Optional[Identity]:
        record = None if self.store is None else self.store.find(digest)
        if record is None:
            return None
        cached = self._by_record.get(digest)
        if cached is not None and cached[0] is record:
            return cached[1]
        identity = self._identity_of(record)
        if len(self._by_record) >= CACHE_MAX:
            self._by_record.clear()
        self._by_record[digest] = (record, identity)
        return identity

    def _identity_of(self, record: KeyRecord) -> Identity:
        defaults = self._defaults
        limits = KeyLimits(
            defaults.rpm if record.rpm is None else record.rpm,
            defaults.tpm if record.tpm is None else record.tpm,
            defaults.concurrency if record.concurrency is None else record.concurrency,
        )
        return Identity(
            record.name,
            record.role,
            self._role(record.role),
            record.models,
            limits if any(limits) else NO_KEY_LIMITS,
            record.budget_usd,
            record.budget_period or "month",
            record.priority or "normal",
            True,
            record.expires_unix_s,
            record.residency or "",
        )

    def _kept(self, digest: bytes) -> Optional[tuple[float, float, bool, Identity]]:
        """What was found out about a token lately: verifying costs 19 us, and clients send the same one again.

        The cache's time is monotonic, or a clock that is set back would keep a token from being looked at for years;
        the token's own end is the wall clock's.
        """
        cached = self._by_token.get(digest)
        if cached is None or self._monotonic() >= cached[0] or self._clock() >= cached[1]:
            return None
        return cached

    def _from_token(self, verifier: TokenVerifier, token: bytes, digest: bytes) -> Identity:
        cached = self._kept(digest)
        if cached is None:
            try:
                bearer = verifier.identify(token)
            except TokenRefused as error:
                raise _unauthorized(f"the token is refused: {error}") from None
            limits = KeyLimits(bearer.rpm or self._defaults.rpm, bearer.tpm or self._defaults.tpm)
            identity = Identity(
                bearer.name,
                bearer.role,
                self._role(bearer.role),
                bearer.models,
                limits._replace(concurrency=self._defaults.concurrency),
                residency=bearer.residency,
            )
            if len(self._by_token) >= CACHE_MAX:
                self._by_token.clear()
            cached = (self._monotonic() + TOKEN_CACHE_S, bearer.expires_unix_s, bearer.from_key, identity)
            self._by_token[digest] = cached
        _, _, from_key, identity = cached
        return self._still_good(identity) if from_key else identity

    def _still_good(self, identity: Identity) -> Identity:
        """A token that was exchanged for a key is as good as the key is now, and has its budget and limits."""
        if identity.name in self._by_name:  # a key of the settings: it lives as long as this process
            return identity
        record = None if self.store is None or identity.name is None else self.store.current(identity.name)
        if record is None:  # a key of another gateway
            if self.refused and identity.name is not None and name_digest(identity.name) in self.refused:
                raise _unauthorized("the key behind the token is not valid any more")
            return identity
        if record.digest in self.refused or record.refusal(record.digest, self._clock()) is not None:
            raise _unauthorized("the key behind the token is not valid any more")
        return self._identity_of(record)._replace(models=identity.models, is_key=False)

    def exchange(self, identity: Identity) -> tuple[str, int]:
        """A token for the holder of a key, and the seconds it is good for.

        Raises `not_found` (no secret), `forbidden` (not a key), `unauthorized` (it has just expired).
        """
        verifier = self._verifier
        if verifier is None or not verifier.can_issue:
            raise RequestRefused("not_found", "tokens are not configured here (JWT_SECRET)")
        if not identity.is_key or identity.name is None:
            raise RequestRefused("forbidden", "only a key can be exchanged for a token")
        limits = identity.limits
        try:
            return verifier.issue(
                identity.name,
                identity.role,
                models=identity.models,
                rpm=limits.rpm or None,
                tpm=limits.tpm or None,
                key_expires_unix_s=identity.key_expires_unix_s,
                residency=identity.residency,
            )
        except ValueError:  # less than a second is left of it
            raise _unauthorized("the key is not valid any more") from None


def shown_key(authorization: Optional[bytes], x_api_key: Optional[bytes]) -> bytes:
    """The key or token that the headers show; b"": none. Raises `unauthorized` for two that differ.

    An Authorization of another scheme shows none: it is for a proxy on the way, or a client's library adds it to all
    that it sends. What shows an empty key shows none either.
    """
    key = b""
    if authorization:
        scheme, _, rest = authorization.partition(b" ")
        if scheme.lower() in (b"bearer", b"api-key"):
            key = rest.strip()
    if not x_api_key:
        return key
    if key and not hmac.compare_digest(key, x_api_key):  # which of them counts could be judged otherwise elsewhere
        raise _unauthorized("two different keys are sent: Authorization and X-API-Key")
    return x_api_key


def _unauthorized(message: str) -> RequestRefused:
    return RequestRefused("unauthorized", message, headers=(("WWW-Authenticate", "Bearer"),))
