"""What settings name but do not hold: roles, key sets, the state database, the decision log, rules of alerts.

Read at the start, and looked at before it, so that everything that would stop it is told at once.
No state, no lock. Looking makes and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, Optional

from gateway.alerts.rulesfile import rules_at
from gateway.configuration import ConfigurationError
from gateway.keys.jwks import KeySet, refuse_unusable_key_set
from gateway.keys.jwt import TokenVerifier
from gateway.keys.roles import DEFAULT_ROLES, Role, load_roles
from gateway.program import program
from gateway.reuse.answerschema import AnswerFileError, refuse_foreign
from gateway.settings import Settings, is_loopback
from gateway.settingvalues import KEY_SET_ALGORITHMS
from gateway.shared.redislink import refuse_unusable_url
from gateway.state.file import StateDbError, holds_keys, refuse_unusable
from gateway.tools.decisionlog import refuse_unwritable


def faults_of_named(values: Mapping[str, Any]) -> Iterator[str]:
    """Every fault of what settings name; for `settings.load`. `values`: those that could be read, by field."""
    looks: list[Callable[[], object]] = [
        lambda: roles_at(values.get("roles_file")),
        lambda: refuse_unwritable(values.get("decision_log")),
        lambda: rules_at(values.get("alerts_file"), slos=_has_slos(values)),
    ]
    source, algorithm = values.get("jwt_jwks"), values.get("jwt_algorithm")
    if source is not None and algorithm in KEY_SET_ALGORITHMS and values.get("auth") != "off":
        looks.append(lambda: _look_at_key_set(source, algorithm))
    if values.get("cache") and values.get("cache_db") is not None:
        looks.append(lambda: _look_at_cache_db(values["cache_db"]))
    if values.get("redis_url") is not None:
        looks.append(lambda: refuse_unusable_url(values["redis_url"]))
    if "state_db" in values:
        looks.append(lambda: _look_at_state_db(values))
    for look in looks:
        try:
            look()
        except ConfigurationError as error:
            yield from error.faults


def _has_slos(values: Mapping[str, Any]) -> bool:
    # One that is set and faulty is missing here: the rules that need it have no fault of their own.
    objectives = ("slo_availability", "slo_latency_ms")
    return any(values.get(name, True) is not None for name in objectives)


def _look_at_key_set(source: str, algorithm: str) -> None:
    try:
        refuse_unusable_key_set(source, algorithm)
    except ConfigurationError as error:
        raise _of_key_set(error) from None


def _look_at_cache_db(path: Path) -> None:
    try:
        refuse_unusable(path, to_be_made=True)
        refuse_foreign(path)
    except (StateDbError, AnswerFileError) as error:
        raise ConfigurationError([f"CACHE_DB: {error}"]) from None


def _look_at_state_db(values: Mapping[str, Any]) -> None:
    path: Path = values["state_db"]
    try:
        refuse_unusable(path, to_be_made=values.get("ledger") == "on")
        state_keys = holds_keys(path)
    except StateDbError as error:
        raise ConfigurationError([f"STATE_DB: {error}"]) from None
    access = [values.get(name, True) for name in ("user_keys", "admin_keys", "jwt_secret", "jwt_jwks")]
    # A faulty list of keys is missing here, not empty. That there is no file at all, the settings have seen.
    if "host" in values and values.get("auth") == "auto" and not any(access) and path.is_file():
        _refuse_strangers(values["host"], state_keys)


def roles_of(settings: Settings) -> Mapping[str, Role]:
    """The roles there are. Raises ConfigurationError naming ROLES_FILE."""
    return roles_at(settings.roles_file)


def roles_at(path: Optional[Path]) -> Mapping[str, Role]:
    """The roles in a file (None: those there always are). Raises ConfigurationError naming ROLES_FILE."""
    if path is None:
        return DEFAULT_ROLES
    try:
        return load_roles(path)
    except ConfigurationError as error:
        raise ConfigurationError([f"ROLES_FILE: {path}: {fault}" for fault in error.faults]) from None


def verifier_of(settings: Settings, log: Callable[..., None]) -> Optional[TokenVerifier]:
    """Who checks tokens; None: nobody. Raises ConfigurationError naming JWT_JWKS."""
    issuer, audience = settings.jwt_issuer, settings.jwt_audience
    if settings.auth == "off":
        return None
    if settings.jwt_secret is not None:
        return TokenVerifier(settings.jwt_secret, settings.jwt_algorithm, issuer=issuer, audience=audience)
    if settings.jwt_jwks is None:
        return None
    try:
        keys = KeySet(
            settings.jwt_jwks, settings.jwt_algorithm, lambda message: log("error", "key_set", message=message)
        )
    except ConfigurationError as error:
        raise _of_key_set(error) from None
    return TokenVerifier(keys, issuer=issuer, audience=audience)


def _of_key_set(error: ConfigurationError) -> ConfigurationError:
    return ConfigurationError([f"JWT_JWKS: {fault}" for fault in error.faults])


def refuse_to_serve_strangers(settings: Settings, keys_required: bool) -> None:
    """Raise ConfigurationError where others can reach the gateway and nobody is asked for a key without AUTH=off.

    A state database without a key protects nobody; that there is a file is all the settings have seen.
    """
    if settings.auth != "off":
        _refuse_strangers(settings.host, keys_required)


def _refuse_strangers(host: str, keys_required: bool) -> None:
    if not is_loopback(host) and not keys_required:
        raise ConfigurationError(
            [
                f"HOST: others can reach {host} and no key is configured: set API_KEYS or ADMIN_KEYS,"
                f" make one with `{program()} keys create --name NAME`, or set AUTH=off to serve everybody"
            ]
        )
