"""JSON Web Tokens (RFC 7519, 7515): checking those that clients show, and signing the gateway's own.

Owns the strict reading of a compact token and the rules for its claims; one algorithm, fixed by configuration, is all a
verifier knows, whatever a token says. HS256/384/512 are done here; other signatures come from a `SignatureCheck`
(keys/jwks.py). No state, no lock. No error repeats a token or a part of one.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, NoReturn, Optional, Protocol, Union

from gateway.clock import unix_s
from gateway.keys.roles import MODEL_PATTERN
from gateway.routing.checks import region

HMAC_DIGESTS: Mapping[str, str] = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}
SECRET_MIN_BYTES = 32
TOKEN_MAX_BYTES = 8192
TTL_MAX_S = 3600.0

_SUBJECT_PATTERN = "[!-~]{1,256}"  # goes into log lines and headers
_ROLE_PATTERN = "[A-Za-z0-9._@+-]{1,64}"
_MODELS_MAX = 100


class TokenRefused(Exception):
    """A token is not accepted; the text says why and repeats nothing of it."""


class SignatureCheck(Protocol):
    """Knows the keys of one algorithm. Thread-safe."""

    algorithm: str

    def check(self, key_id: Optional[str], signed: bytes, signature: bytes) -> bool:
        """Whether the signature is a known key's; `key_id` is the token's `kid`."""


class Bearer(NamedTuple):
    """Who a token speaks for. `models` (): it names none; `rpm`, `tpm` None: it sets no limit of its own; `residency`:
    the region that what it asks must not leave, "": it may.

    `from_key`: the gateway issued it for the key named `name`, so it is worth no more than that key is now.
    """

    name: str
    role: str
    models: tuple[str, ...]
    rpm: Optional[int]
    tpm: Optional[int]
    expires_unix_s: float
    from_key: bool
    residency: str = ""


class HmacSignature:
    """HS256, HS384 or HS512 with one secret of at least 32 bytes; ValueError for another. Immutable."""

    def __init__(self, secret: bytes, algorithm: str) -> None:
        if algorithm not in HMAC_DIGESTS:
            raise ValueError(f"the algorithm must be one of {', '.join(HMAC_DIGESTS)}")
        if len(secret) < SECRET_MIN_BYTES:
            raise ValueError(f"the secret must have at least {SECRET_MIN_BYTES} bytes, not {len(secret)}")
        if secret.lstrip().startswith((b"-----BEGIN", b"ssh-", b"ecdsa-")):
            raise ValueError("the secret is a public or private key file; everybody may know the former")
        self.algorithm = algorithm
        self._secret = secret
        self._digest = HMAC_DIGESTS[algorithm]

    def sign(self, signed: bytes) -> bytes:
        """The signature of the first two parts of a token."""
        return hmac.digest(self._secret, signed, self._digest)

    def check(self, key_id: Optional[str], signed: bytes, signature: bytes) -> bool:
        """Whether that is the signature; takes the same time wherever it differs. One secret: `key_id` says nothing."""
        return hmac.compare_digest(self.sign(signed), signature)


class TokenVerifier:
    """Accepts tokens with one algorithm, issuer and audience. Immutable, so thread-safe.

    `key` is the secret of an HMAC (`algorithm` HS256, HS384, HS512), or a SignatureCheck, which brings its own.
    `issuer` and `audience` None: `iss` is not looked at; a token that has an `aud` is refused, as it is for somebody
    else. `leeway_s` forgives clocks that differ; `clock` gives Unix seconds. Raises ValueError for a bad secret.
    """

    def __init__(
        self,
        key: Union[bytes, SignatureCheck],
        algorithm: str = "HS256",
        *,
        issuer: Optional[str] = None,
        audience: Optional[str] = None,
        leeway_s: float = 30.0,
        clock: Callable[[], float] = unix_s,
    ) -> None:
        self._signature: SignatureCheck = HmacSignature(key, algorithm) if isinstance(key, bytes) else key
        self.algorithm = self._signature.algorithm
        self._issuer = issuer
        self._audience = audience
        self._leeway_s = leeway_s
        self._clock = clock

    @property
    def can_issue(self) -> bool:
        """Whether `issue` and `sign` work: only with a secret."""
        return isinstance(self._signature, HmacSignature)

    def verify(self, token: Union[str, bytes]) -> dict[str, Any]:
        """The claims of a token that is genuine, for us, and valid now. Raises TokenRefused."""
        header_part, payload_part, signature_part = _parts(token)
        header = _object(header_part, "header")
        if header.get("alg") != self.algorithm:
            raise TokenRefused("the algorithm is not the configured one")
        if "crit" in header:
            raise TokenRefused("the header has critical extensions, and none is known")
        key_id = header.get("kid")
        if key_id is not None and not isinstance(key_id, str):
            raise TokenRefused("kid is not a string")
        signature = _decode(signature_part, "signature")
        if not self._signature.check(key_id, header_part + b"." + payload_part, signature):
            raise TokenRefused("the signature is wrong")
        claims = _object(payload_part, "payload")
        self._check_times(claims)
        self._check_origin(claims)
        return claims

    def must_wait(self, token: Union[str, bytes]) -> bool:
        """Whether `verify` would have to wait for the keys that check this token's signature. Never waits itself."""
        must_wait = getattr(self._signature, "must_wait", None)
        if must_wait is None:
            return False
        try:
            header = _object(_parts(token)[0], "header")
        except TokenRefused:
            return False
        key_id = header.get("kid")
        if header.get("alg") != self.algorithm or not (key_id is None or isinstance(key_id, str)):
            return False
        return bool(must_wait(key_id))

    def identify(self, token: Union[str, bytes]) -> Bearer:
        """Who a token speaks for, as `verify` accepts it. Raises TokenRefused, also for claims of the wrong shape."""
        claims = self.verify(token)
        return Bearer(
            _word(claims, "sub", _SUBJECT_PATTERN),
            _word(claims, "role", _ROLE_PATTERN, "user"),
            _models(claims),
            _limit(claims, "rpm"),
            _limit(claims, "tpm"),
            float(claims["exp"]),
            claims.get("igw") == "key",
            _residency(claims),
        )

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A token with exactly these claims. Raises ValueError when there is no secret to sign with."""
        if not isinstance(self._signature, HmacSignature):
            raise ValueError(f"tokens with {self.algorithm} are signed elsewhere")
        signed = _encode({"alg": self.algorithm, "typ": "JWT"}) + b"." + _encode(claims)
        return (signed + b"." + _base64url(self._signature.sign(signed))).decode("ascii")

    def issue(
        self,
        name: str,
        role: str,
        *,
        models: Sequence[str] = (),
        rpm: Optional[int] = None,
        tpm: Optional[int] = None,
        ttl_s: float = TTL_MAX_S,
        key_expires_unix_s: Optional[float] = None,
        residency: str = "",
    ) -> tuple[str, int]:
        """A token for the holder of a key, and the whole seconds it is good for: `ttl_s`, or until the key expires.

        Raises ValueError: no secret, a `ttl_s` that is not 1 to 3600, or a key that has expired.
        """
        if not 1 <= ttl_s <= TTL_MAX_S:
            raise ValueError(f"ttl_s must be 1 to {TTL_MAX_S:g}")
        now_unix_s = int(self._clock())
        expires_unix_s = int(now_unix_s + ttl_s)
        if key_expires_unix_s is not None:
            expires_unix_s = min(expires_unix_s, int(key_expires_unix_s))
        if expires_unix_s <= now_unix_s:
            raise ValueError("the key has expired")
        claims: dict[str, Any] = {"sub": name, "role": role, "igw": "key"}
        optional: dict[str, Any] = {
            "iss": self._issuer,
            "aud": self._audience,
            "models": list(models) or None,
            "rpm": rpm,
            "tpm": tpm,
            "residency": residency or None,
        }
        claims.update((claim, value) for claim, value in optional.items() if value is not None)
        claims.update(iat=now_unix_s, exp=expires_unix_s, jti=os.urandom(12).hex())
        return self.sign(claims), expires_unix_s - now_unix_s

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now_unix_s = self._clock()
        if "exp" not in claims:
            raise TokenRefused("exp is missing")
        if now_unix_s >= _time(claims, "exp") + self._leeway_s:
            raise TokenRefused("it has expired")
        for claim in ("nbf", "iat"):
            if claim in claims and now_unix_s < _time(claims, claim) - self._leeway_s:
                raise TokenRefused(f"it is not valid yet ({claim})")

    def _check_origin(self, claims: Mapping[str, Any]) -> None:
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise TokenRefused("the issuer is not the configured one")
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [] if audience is None else [audience]
        if not all(isinstance(member, str) for member in audiences):
            raise TokenRefused("aud is neither a string nor a list of strings")
        # RFC 7519, 4.1.3: a token that names an audience is refused by all who are not of it.
        if (self._audience is not None or "aud" in claims) and self._audience not in audiences:
            raise TokenRefused("the audience is not the configured one")


# --- reading ---------------------------------------------------------------------------------------------------------


def _parts(token: Union[str, bytes]) -> list[bytes]:
    try:
        raw = token.encode("ascii") if isinstance(token, str) else token
    except UnicodeEncodeError:
        raise TokenRefused("it is not ASCII") from None
    if len(raw) > TOKEN_MAX_BYTES:
        raise TokenRefused("it is larger than 8 KiB")
    parts = raw.split(b".")
    if len(parts) != 3 or not all(parts):
        raise TokenRefused("it has not three parts")
    return parts


def _decode(part: bytes, name: str) -> bytes:
    # The alphabet alone is not enough: the last character may carry bits that nobody reads, and then several texts
    # would be the same token (RFC 4648, 3.5). Encoding again tells, and tells padding and blanks as well.
    if re.fullmatch(rb"[A-Za-z0-9_-]+", part):
        try:
            decoded = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
        except (binascii.Error, ValueError):
            decoded = b""
        if _base64url(decoded) == part:
            return decoded
    raise TokenRefused(f"the {name} is not base64url")


def _object(part: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(_decode(part, name).decode("utf-8"), object_pairs_hook=_members, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # JSON, UTF-8, NaN, too many digits; too deep
        raise TokenRefused(f"the {name} is not JSON") from None
    if not isinstance(value, dict):
        raise TokenRefused(f"the {name} is not an object")
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise TokenRefused("a name is there twice")
    return members


def _no_constant(constant: str) -> NoReturn:
    raise ValueError


def _encode(members: Mapping[str, Any]) -> bytes:
    return _base64url(json.dumps(members, separators=(",", ":"), allow_nan=False).encode("ascii"))


def _base64url(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


# --- claims ----------------------------------------------------------------------------------------------------------


def _time(claims: Mapping[str, Any], claim: str) -> float:
    value = claims[claim]
    # bool is an int; 1e400 reads as infinity; an int beyond floats raises OverflowError.
    try:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise TokenRefused(f"{claim} is not a time")


def _word(claims: Mapping[str, Any], claim: str, pattern: str, default: Optional[str] = None) -> str:
    value = claims.get(claim, default)
    if isinstance(value, str) and re.fullmatch(pattern, value):
        return value
    raise TokenRefused(f"{claim} is missing or not usable")


def _models(claims: Mapping[str, Any]) -> tuple[str, ...]:
    if "models" not in claims:
        return ()
    models = claims["models"]
    if isinstance(models, str):
        models = models.split(",")
    # An empty list is refused: it would otherwise stand for every model.
    if not isinstance(models, list) or not 1 <= len(models) <= _MODELS_MAX:
        raise TokenRefused("models is not a list of names")
    if not all(isinstance(model, str) and re.fullmatch(MODEL_PATTERN, model) for model in models):
        raise TokenRefused("models is not a list of names")
    return tuple(models)


def _limit(claims: Mapping[str, Any], claim: str) -> Optional[int]:
    value = claims.get(claim)
    if value is None or (type(value) is int and 1 <= value <= 1_000_000_000):
        return value
    raise TokenRefused(f"{claim} is not a positive integer")


def _residency(claims: Mapping[str, Any]) -> str:
    if "residency" not in claims:
        return ""
    value = claims["residency"]
    # Anything but a region's name is refused: what cannot be read must not count for nothing.
    if any(True for _ in region(value)):
        raise TokenRefused("residency is not a region")
    return str(value).lower()
