"""Text to fleet: the engines file, and the one-line forms ENGINES and BACKEND_URL.

Owns the keys of the engines file, one row each, and how a fault in it is named: all faults at once,
each with its JSON path. What a value may be is decided by the checks of routing/specs.py. No state,
no lock; reads the one file it is told to and never writes, never looks at the environment.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

from gateway.configuration import ConfigurationError, JsonObject, duplicate_faults, read_json
from gateway.routing.checks import ECHO_URL, Check, quoted, step
from gateway.routing.checks import text as check_text
from gateway.routing.specs import (
    ENGINE_CHECKS,
    MODEL_CHECKS,
    EngineSpec,
    FleetSpec,
    ModelLinks,
    ModelSpec,
    duplicate_ids,
    link_faults,
    model_from,
)
from gateway.routing.virtual import VIRTUAL_CHECKS, VirtualLinks, VirtualSpec, start_faults


class _Bad:
    """Stands for a value whose faults are already noted."""


_BAD = _Bad()
# Turns a JSON value into what the dataclass wants, or notes faults (path first) and returns _BAD.
_Parser = Callable[[object, str, "list[str]"], object]


class Key(NamedTuple):
    """One key of an object in the engines file; `field` is the dataclass field it fills."""

    key: str
    parse: _Parser
    field: str
    required: bool = False


def as_is(value: object, path: str, faults: list[str]) -> object:
    """Take a value as JSON gives it; null is a fault, because leaving the key out says the same."""
    if value is not None:
        return value
    faults.append(f"{path}: must not be null; leave the key out instead")
    return _BAD


def as_tuple(value: object, path: str, faults: list[str]) -> object:
    """Take a list as a tuple; anything else goes on to the field's check, which refuses it."""
    return tuple(value) if isinstance(value, list) else as_is(value, path, faults)


def as_price(value: object, path: str, faults: list[str]) -> object:
    """Take {"input": USD, "output": USD} as a pair; a missing one is 0."""
    if not isinstance(value, JsonObject):
        return as_is(value, path, faults)
    noted_before = len(faults)
    faults.extend(duplicate_faults(value, path))
    unknown = [key for key in value if key not in ("input", "output")]
    faults.extend(f"{step(path, key)}: is not a known key; known here: input, output" for key in unknown)
    return (value.get("input", 0), value.get("output", 0)) if len(faults) == noted_before else _BAD


def as_engines(value: object, path: str, faults: list[str]) -> object:
    """Take a list of URLs and engine objects as a tuple of EngineSpec."""
    if not isinstance(value, list):
        faults.append(f"{path}: must be a list of engines, not {quoted(value)}")
        return _BAD
    engines = [_engine(item, f"{path}[{index}]", faults) for index, item in enumerate(value)]
    duplicates = [path + fault for fault in duplicate_ids(engines)]
    faults.extend(duplicates)
    return _BAD if duplicates or None in engines else tuple(engines)


def as_consensus(value: object, path: str, faults: list[str]) -> object:
    """Take {"members": [...], ...} as the fields of a VirtualSpec."""
    fields = _fields(value, path, CONSENSUS_KEYS, VIRTUAL_CHECKS, faults)
    if isinstance(value, JsonObject):
        few = [f"{step(path, 'start')}{fault}" for fault in start_faults(value.get("start"), value.get("members"))]
        faults.extend(few)
        fields = None if few else fields
    return _BAD if fields is None else fields


def as_models(value: object, path: str, faults: list[str]) -> object:
    """Take an object of name -> model as a tuple of ModelSpec and VirtualSpec."""
    if not isinstance(value, JsonObject) or not value:
        faults.append(f"{path}: must be an object with at least one model, not {quoted(value)}")
        return _BAD
    faults.extend(duplicate_faults(value, path))
    models = [_model(name, item, step(path, name), faults) for name, item in value.items()]
    return _BAD if None in models else tuple(models)


ENGINE_KEYS = (
    Key("url", as_is, "url", required=True),
    Key("id", as_is, "id"),
    Key("weight", as_is, "weight"),
    Key("max_concurrency", as_is, "max_concurrency"),
    Key("model", as_is, "model"),
    Key("api_key_env", as_is, "api_key_env"),
    Key("health_path", as_is, "health_path"),
    Key("resume", as_is, "resume"),
    Key("usage_in_streams", as_is, "usage_in_streams"),
    Key("max_batch", as_is, "max_batch"),
)
MODEL_KEYS = (
    Key("engines", as_engines, "engines", required=True),
    Key("strategy", as_is, "strategy"),
    Key("fallbacks", as_tuple, "fallbacks"),
    Key("max_model_len", as_is, "max_model_len"),
    Key("aliases", as_tuple, "aliases"),
    Key("attempt_timeout", as_is, "attempt_timeout_s"),
    Key("hedge_after_ms", as_is, "hedge_after_ms"),
    Key("hedge_ratio", as_is, "hedge_ratio"),
    Key("context_fallbacks", as_tuple, "context_fallbacks"),
    Key("price", as_price, "price"),
    Key("rpm", as_is, "rpm"),
    Key("tpm", as_is, "tpm"),
    Key("family", as_is, "family"),
)
VIRTUAL_KEYS = (
    Key("consensus", as_consensus, "consensus", required=True),
    Key("aliases", as_tuple, "aliases"),
)
CONSENSUS_KEYS = (
    Key("members", as_tuple, "members", required=True),
    Key("start", as_is, "start"),
    Key("min_families", as_is, "min_families"),
    Key("fallback", as_is, "fallback"),
    Key("judge", as_is, "judge"),
)
FLEET_KEYS = (
    Key("models", as_models, "models", required=True),
    Key("default_model", as_is, "default_model"),
)
_FLEET_CHECKS: Mapping[str, Check] = {"default_model": check_text}


def _fields(
    value: object,
    path: str,
    keys: Sequence[Key],
    checks: Mapping[str, Check],
    faults: list[str],
    unfit: Container[str] = (),
) -> dict[str, Any] | None:
    """Read one object into dataclass fields; None when a fault was noted. `unfit`: keys that are known elsewhere."""
    if not isinstance(value, JsonObject):
        faults.append(f"{path or 'the file'}: must be an object, not {quoted(value)}")
        return None
    noted_before = len(faults)
    faults.extend(duplicate_faults(value, path))
    rows = {row.key: row for row in keys}
    fields: dict[str, Any] = {}
    for key, item in value.items():
        here = step(path, key)
        row = rows.get(key)
        if row is None:
            why = "is for models with engines, not for those made of others" if key in unfit else "is not a known key"
            faults.append(f"{here}: {why}; known here: {', '.join(rows)}")
            continue
        parsed = row.parse(item, here, faults)
        if parsed is not _BAD and row.field in checks:
            faults.extend(here + fault for fault in checks[row.field](parsed))
        fields[row.field] = parsed
    for row in keys:
        if row.required and row.key not in value:
            faults.append(f"{step(path, row.key)}: is missing")
    return fields if len(faults) == noted_before else None


def _engine(value: object, path: str, faults: list[str]) -> EngineSpec | None:
    if isinstance(value, str):
        value = JsonObject(url=value)
    elif not isinstance(value, JsonObject):
        faults.append(f"{path}: must be a URL or an object, not {quoted(value)}")
        return None
    fields = _fields(value, path, ENGINE_KEYS, ENGINE_CHECKS, faults)
    return None if fields is None else EngineSpec(**fields)


def _model(name: str, value: object, path: str, faults: list[str]) -> ModelSpec | VirtualSpec | None:
    if _is_virtual(value):
        return _virtual(name, value, path, faults)
    return _real(name, value, path, faults)


def _virtual(name: str, value: object, path: str, faults: list[str]) -> VirtualSpec | None:
    noted_before = len(faults)
    faults.extend(path + fault for fault in VIRTUAL_CHECKS["name"](name))
    fields = _fields(value, path, VIRTUAL_KEYS, VIRTUAL_CHECKS, faults, {row.key for row in MODEL_KEYS})
    if fields is None or len(faults) > noted_before:
        return None
    return VirtualSpec(name, aliases=fields.get("aliases", ()), **fields["consensus"])


def _real(name: str, value: object, path: str, faults: list[str]) -> ModelSpec | None:
    bad_name = [path + fault for fault in MODEL_CHECKS["name"](name)]
    faults.extend(bad_name)
    fields = _fields(value, path, MODEL_KEYS, MODEL_CHECKS, faults)
    return None if fields is None or bad_name else ModelSpec(name=name, **fields)


def load_engines_file(path: Path) -> FleetSpec:
    """Read an engines file; raises ConfigurationError naming every fault by its JSON path."""
    document = read_json(path)
    faults: list[str] = []
    fields = _fields(document, "", FLEET_KEYS, _FLEET_CHECKS, faults)
    if isinstance(document, JsonObject):
        faults.extend(_link_faults(document))
    if fields is None or faults:
        raise ConfigurationError(faults)
    models, virtual = _apart(fields["models"])
    try:
        return FleetSpec(models, fields.get("default_model"), virtual=virtual)
    except ValueError as error:
        raise ConfigurationError(str(error).split("; ")) from None


def _apart(specs: Sequence[ModelSpec | VirtualSpec]) -> tuple[tuple[ModelSpec, ...], tuple[VirtualSpec, ...]]:
    models = tuple(spec for spec in specs if isinstance(spec, ModelSpec))
    return models, tuple(spec for spec in specs if isinstance(spec, VirtualSpec))


def _link_faults(document: JsonObject) -> Iterator[str]:
    # From the raw document: a model with another fault still exists for those that fall back to it.
    models = document.get("models")
    if isinstance(models, JsonObject):
        real = [_links(name, model) for name, model in models.items() if not _is_virtual(model)]
        virtual = [_virtual_links(name, model) for name, model in models.items() if _is_virtual(model)]
        yield from link_faults(real, _text(document, "default_model"), virtual)


def _is_virtual(model: object) -> bool:
    return isinstance(model, JsonObject) and "consensus" in model


def _links(name: str, model: object) -> ModelLinks:
    aliases, fallbacks, larger = (_texts(model, key) for key in ("aliases", "fallbacks", "context_fallbacks"))
    return ModelLinks(name, aliases, fallbacks, larger, _text(model, "family"))


def _virtual_links(name: str, model: Any) -> VirtualLinks:
    consensus = model["consensus"]
    links = VirtualLinks(name, _texts(model, "aliases"), _texts(consensus, "members"), _text(consensus, "judge"))
    families: Any = consensus.get("min_families") if isinstance(consensus, JsonObject) else None
    missing_or_told = any(True for _ in VIRTUAL_CHECKS["min_families"](families))
    return links if missing_or_told else links._replace(min_families=families)


def _text(holder: object, key: str) -> str | None:
    value = holder.get(key) if isinstance(holder, JsonObject) else None
    return value if isinstance(value, str) else None


def _texts(holder: object, key: str) -> tuple[str | None, ...]:
    """A list of names as it stands there: what is none has its place."""
    members = holder.get(key) if isinstance(holder, JsonObject) else None
    return tuple(m if isinstance(m, str) else None for m in members) if isinstance(members, list) else ()


def _with_own_name(text: str) -> JsonObject:
    """An engine as it stands in a line: its URL, and behind a # its own name of the model, as it is but for `%2C` and
    `%3B`: commas and semicolons separate others."""
    url, mark, model = (piece.strip() for piece in text.partition("#"))
    if not mark:
        return JsonObject(url=url)
    if "@" in model and any(True for _ in ENGINE_CHECKS["url"](url)):
        return JsonObject(url=f"{url}%23{model}")  # rather a password with a #, of which no fault may show a part
    return JsonObject(url=url, model=re.sub("%2C", ",", re.sub("%3B", ";", model, flags=re.I), flags=re.I))


def parse_engines(text: str) -> FleetSpec:
    """Read `model=url,url;model=url`, each URL with or without `#` and the engine's own name of the model; raises
    ConfigurationError naming every fault."""
    faults: list[str] = []
    models: dict[str, list[object]] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        name, equals, urls = (piece.strip() for piece in part.partition("="))
        if not equals or not name or "://" in name:
            # Not shown: an address may hold a password.
            faults.append(
                "must be model=url,url;model=url; a part has no model name before its = "
                "(for one engine that serves every name, set BACKEND_URL instead)"
            )
        elif name in models:
            faults.append(f"{step('', name)}: is defined twice")
        else:
            models[name] = [_with_own_name(url.strip()) for url in urls.split(",") if url.strip()]
    specs = [_real(name, JsonObject(engines=urls), step("", name), faults) for name, urls in models.items()]
    if not specs and not faults:
        faults.append("must name at least one model, as in 13b=http://127.0.0.1:8000/v1")
    if faults:
        raise ConfigurationError(faults)
    return FleetSpec(models=tuple(spec for spec in specs if spec is not None))


def parse_backend_url(text: str) -> FleetSpec:
    """Make the fleet of one engine that serves every model name: under that name, or under the one behind a #. Raises
    ConfigurationError."""
    engine = _with_own_name(text)
    faults = [fault.removeprefix(": ") for fault in ENGINE_CHECKS["url"](engine["url"])]
    faults += [f"the model behind its #{fault}" for fault in ENGINE_CHECKS["model"](engine.get("model"))]
    if faults:
        raise ConfigurationError(faults)
    return FleetSpec((model_from("default", [EngineSpec(**engine)]),), wildcard=True)  # type: ignore[arg-type]


def echo_fleet() -> FleetSpec:
    """Make the fleet that serves every model name by echo, for when nothing is configured."""
    return FleetSpec((model_from("echo", [ECHO_URL]),), wildcard=True)
