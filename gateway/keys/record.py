"""What a key is: its record, what its fields may be, and what may be told of it.

No state, no lock. A record holds digests (SHA-256 of a secret), which no text made from it shows; it never holds a
secret.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from gateway.clock import unix_s
from gateway.keys.roles import MODEL_PATTERN, NAME_PATTERN, model_allowed
from gateway.limits.budgets import BUDGET_PERIODS
from gateway.routing.checks import quoted, region

KEY_PREFIX = "igw_"
PRIORITIES = ("high", "normal", "low")
MODELS_MAX = 100
PREVIOUS_MAX = 100
ARGUMENTS = (
    "name",
    "role",
    "models",
    "rpm",
    "tpm",
    "concurrency",
    "budget_usd",
    "budget_period",
    "expires",
    "priority",
    "residency",
)
"""What may be said of a new key, in the admin API and, with dashes, on the command line."""

_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_S = 100 * 366 * 86_400
_LARGEST = 1_000_000_000


class KeyRefused(ValueError):
    """What was asked of the keys cannot be; `faults` names every reason. Nothing was changed."""

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True)
class KeyRecord:
    """A key as the gateway knows it. None for a limit: the gateway's default; `models` (): every model; `residency`:
    the region that what it asks must not leave, in lower case, None: it may.

    `previous_keys`: the digests that rotations have replaced, the latest last, and until when each is good.
    """

    name: str
    digest: bytes = field(repr=False)
    role: str
    models: tuple[str, ...]
    rpm: Optional[int]
    tpm: Optional[int]
    concurrency: Optional[int]
    budget_usd: Optional[float]
    budget_period: Optional[str]
    created_unix_s: float
    expires_unix_s: Optional[float]
    revoked_unix_s: Optional[float]
    previous_keys: tuple[tuple[bytes, float], ...] = field(repr=False)
    priority: Optional[str]
    residency: Optional[str] = None

    def refusal(self, digest: bytes, now_unix_s: float) -> Optional[str]:
        """Why a key of this record, known by its digest, is not good now: for the log. None: it is good."""
        if self.revoked_unix_s is not None:
            return "revoked"
        if digest != self.digest and now_unix_s >= dict(self.previous_keys).get(digest, -math.inf):
            return "rotated"
        if self.expires_unix_s is not None and now_unix_s >= self.expires_unix_s:
            return "expired"
        return None

    def grace_until_unix_s(self, now_unix_s: float) -> Optional[float]:
        """When the last of the secrets that were replaced ends; None: none of them is good now."""
        good = [until for digest, until in self.previous_keys if self.refusal(digest, now_unix_s) is None]
        return max(good, default=None)

    def allows_model(self, model: str) -> bool:
        """Whether the key may ask that model; its role's patterns may forbid it all the same."""
        return model_allowed(self.models, model)


def parse_duration(text: object) -> float:
    """Seconds of a text such as 10s, 30m, 24h, 90d; 0s is allowed. Raises ValueError saying what it must be."""
    match = re.fullmatch("([0-9]{1,12})([smhd])", text) if isinstance(text, str) else None
    if match and int(match[1]) * _UNIT_S[match[2]] <= _LONGEST_S:
        return float(int(match[1]) * _UNIT_S[match[2]])
    raise ValueError(f"must be a whole number with s, m, h or d, at most 100 years, as in 90d, not {quoted(text)}")


def arguments_of(document: object) -> dict[str, Any]:
    """The arguments of `KeyStore.create` in the body of `POST /admin/keys`; `expires` is as in `parse_duration`.

    Null counts as absent. Raises KeyRefused; what the fields may be is for `create` to say.
    """
    if not isinstance(document, dict):
        raise KeyRefused(f"the body: must be an object, not {quoted(document)}")
    faults = [
        f"{quoted(name)}: is not a known field; known: {', '.join(ARGUMENTS)}"
        for name in document
        if name not in ARGUMENTS
    ]
    arguments = {name: value for name, value in document.items() if name in ARGUMENTS and value is not None}
    if "name" not in arguments:
        faults.append("name: is missing")
    if "expires" in arguments:
        try:
            arguments["expires_s"] = parse_duration(arguments.pop("expires"))
        except ValueError as error:
            faults.append(f"expires: {error}")
    if faults:
        raise KeyRefused(*faults)
    return arguments


def to_public(record: KeyRecord, now_unix_s: Optional[float] = None) -> dict[str, Any]:
    """What the admin API tells of a key: times in whole Unix seconds or None, an empty `models` for all; no digest."""
    now_unix_s = unix_s() if now_unix_s is None else now_unix_s
    refusal = record.refusal(record.digest, now_unix_s)
    return {
        "name": record.name,
        "role": record.role,
        "state": "active" if refusal is None else refusal,
        "models": list(record.models),
        "rpm": record.rpm,
        "tpm": record.tpm,
        "concurrency": record.concurrency,
        "budget_usd": record.budget_usd,
        "budget_period": record.budget_period,
        "priority": record.priority,
        "residency": record.residency,
        "created": _whole(record.created_unix_s),
        "expires": _whole(record.expires_unix_s),
        "revoked": _whole(record.revoked_unix_s),
        "previous_key_until": _whole(record.grace_until_unix_s(now_unix_s)),
    }


def secret_digest(secret: str) -> bytes:
    """The SHA-256 by which a key's secret is known."""
    return hashlib.sha256(secret.encode("ascii")).digest()


def name_digest(name: str) -> bytes:
    """What stands for a key's name where keys are told by their digests: that of no secret."""
    return hashlib.sha256(b"name:" + name.encode("utf-8", "surrogatepass")).digest()


def new_secret() -> tuple[str, bytes]:
    """A new key's secret, and its digest."""
    secret = KEY_PREFIX + base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode("ascii")
    return secret, secret_digest(secret)


def _whole(unix_s: Optional[float]) -> Optional[int]:
    return None if unix_s is None else int(unix_s)


def rotated(
    record: KeyRecord, digest: bytes, now_unix_s: float, grace_s: float, expires_s: Optional[float]
) -> KeyRecord:
    """The record with a new secret's digest; the rules are those of `KeyStore.rotate`. Raises KeyRefused."""
    refusal = record.refusal(record.digest, now_unix_s)
    if refusal == "revoked":
        raise KeyRefused(f"the key {record.name} is revoked; a new one needs another name")
    if refusal == "expired" and expires_s is None:
        raise KeyRefused(f"the key {record.name} has expired; say when the new one does")
    earlier = tuple((old, until) for old, until in record.previous_keys if now_unix_s < until) if grace_s else ()
    if len(earlier) >= PREVIOUS_MAX:
        raise KeyRefused(f"{PREVIOUS_MAX} earlier secrets of {record.name} are good still; a grace of 0s ends them")
    until_unix_s = now_unix_s + grace_s
    if record.expires_unix_s is not None:
        until_unix_s = min(until_unix_s, record.expires_unix_s)
    return replace(
        record,
        digest=digest,
        expires_unix_s=record.expires_unix_s if expires_s is None else now_unix_s + expires_s,
        previous_keys=(*earlier, (record.digest, until_unix_s)),
    )


def key_schema() -> dict[str, Any]:
    """The body of `POST /admin/keys` in JSON Schema; one that this refuses is refused by `create`, too."""
    count = {"type": ["integer", "null"], "minimum": 1, "maximum": _LARGEST}
    name = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
    model = {"type": "string", "pattern": f"^{MODEL_PATTERN}$"}
    fields: dict[str, dict[str, Any]] = {
        "name": name,
        "role": {"description": "`user` by default.", "type": ["string", "null"]},
        "models": {
            "description": "Names or patterns of the models that it may ask; by default all.",
            "type": ["array", "null"],
            "items": model,
            "maxItems": MODELS_MAX,
        },
        "rpm": {"description": "Requests per minute.", **count},
        "tpm": {"description": "Tokens per minute.", **count},
        "concurrency": {"description": "Requests at once.", **count},
        "budget_usd": {
            "description": "US dollars per period; by default no budget.",
            "type": ["number", "null"],
            "minimum": 1e-6,
            "maximum": _LARGEST,
        },
        "budget_period": {"description": "`month` by default.", "enum": [*BUDGET_PERIODS, None]},
        "expires": {
            "description": "From now, for example 90d; by default never.",
            "type": ["string", "null"],
            "pattern": "^[0-9]{1,12}[smhd]$",
        },
        "priority": {"description": "Who goes first when requests wait.", "enum": [*PRIORITIES, None]},
        "residency": {
            "description": "The region that what it asks must not leave, as in `eu`; by default none.",
            "type": ["string", "null"],
            "pattern": "^[A-Za-z0-9._-]{1,64}$",
        },
    }
    return {"type": "object", "required": ["name"], "properties": fields, "additionalProperties": False}


def is_name(value: object) -> bool:
    """Whether a key may have that name."""
    return isinstance(value, str) and re.fullmatch(NAME_PATTERN, value) is not None


def faults_of(record: KeyRecord, roles: tuple[str, ...]) -> Iterator[str]:
    """Every field that cannot be, whatever its type; `roles` are those that exist."""
    if not is_name(record.name):
        yield f"name: must be 1 to 64 of A-Z a-z 0-9 . _ @ + -, not {quoted(record.name)}"
    if record.role not in roles:
        yield f"role: must be one of {', '.join(roles)}, not {quoted(record.role)}"
    yield from _models_faults(record.models)
    for name in ("rpm", "tpm", "concurrency"):
        value = getattr(record, name)
        if value is not None and (type(value) is not int or not 1 <= value <= _LARGEST):
            yield f"{name}: must be an integer from 1 to {_LARGEST}, not {quoted(value)}"
    yield from _budget_faults(record.budget_usd, record.budget_period)
    if record.priority is not None and record.priority not in PRIORITIES:
        yield f"priority: must be one of {', '.join(PRIORITIES)}, not {quoted(record.priority)}"
    if record.residency is not None:
        yield from (f"residency{fault}" for fault in region(record.residency))


def _models_faults(models: object) -> Iterator[str]:
    if not isinstance(models, tuple) or len(models) > MODELS_MAX:
        yield f"models: must be a list of at most {MODELS_MAX} names or patterns, not {quoted(models)}"
        return
    for model in models:
        if not isinstance(model, str) or not re.fullmatch(MODEL_PATTERN, model):
            yield f"models: must be names or patterns such as 13b*, not {quoted(model)}"


def _budget_faults(budget_usd: object, period: object) -> Iterator[str]:
    if budget_usd is not None and not _is_number(budget_usd, 1e-6, _LARGEST):
        yield f"budget_usd: must be a number of US dollars above 0, not {quoted(budget_usd)}"
    if period is not None and period not in BUDGET_PERIODS:
        yield f"budget_period: must be one of {', '.join(BUDGET_PERIODS)}, not {quoted(period)}"
    if period is not None and budget_usd is None:
        yield "budget_period: says nothing without budget_usd"


def span_faults(name: str, span_s: object, lowest_s: float) -> Iterator[str]:
    """What is wrong with a time from now on in seconds; nothing with None."""
    if span_s is not None and not _is_number(span_s, lowest_s, _LONGEST_S):
        yield f"{name}: must be {lowest_s:g} seconds to 100 years, not {quoted(span_s)}"


def _is_number(value: object, lowest: float, highest: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and lowest <= value <= highest  # type: ignore[arg-type, operator]
