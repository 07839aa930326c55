"""Text to fleet: the engines file.

Owns the keys of the engines file, one row each, and how a fault in it is named: all faults at once,
each with its JSON path. What a value may be is decided by the checks of routing/specs.py. No state,
no lock; reads the one file it is told to and never writes, never looks at the environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from gateway.configuration import ConfigurationError, JsonObject, duplicate_faults, read_json
from gateway.fleetdiscover import of_group, with_discover
from gateway.fleetkeys import BAD, Key, as_fields, as_is, as_tuple, fields_of
from gateway.routing.checks import Check, quoted, step
from gateway.routing.checks import text as check_text
from gateway.routing.links import ModelLinks, link_faults
from gateway.routing.providers import PROVIDERS
from gateway.routing.specs import (
    ENGINE_CHECKS,
    MODEL_CHECKS,
    EngineSpec,
    FleetSpec,
    ModelSpec,
    duplicate_ids,
)
from gateway.routing.splits import SPLIT_CHECKS, SplitLinks, SplitSpec, check_chain
from gateway.routing.virtual import VIRTUAL_CHECKS, VirtualLinks, VirtualSpec, start_faults


def as_price(value: object, path: str, faults: list[str]) -> object:
    """Take {"input": USD, "output": USD} as a pair; a missing one is 0."""
    if not isinstance(value, JsonObject):
        return as_is(value, path, faults)
    noted_before = len(faults)
    faults.extend(duplicate_faults(value, path))
    unknown = [key for key in value if key not in ("input", "output")]
    faults.extend(f"{step(path, key)}: is not a known key; known here: input, output" for key in unknown)
    return (value.get("input", 0), value.get("output", 0)) if len(faults) == noted_before else BAD


def as_engines(value: object, path: str, faults: list[str]) -> object:
    """Take a list of URLs and engine objects as a tuple of EngineSpec."""
    if not isinstance(value, list):
        faults.append(f"{path}: must be a list of engines, not {quoted(value)}")
        return BAD
    engines = [_engine(item, f"{path}[{index}]", faults) for index, item in enumerate(value)]
    duplicates = [path + fault for fault in duplicate_ids(engines)]
    faults.extend(duplicates)
    return BAD if duplicates or None in engines else tuple(engines)


def as_shares(value: object, path: str, faults: list[str]) -> object:
    """Take an object of models with their weights as pairs."""
    if not isinstance(value, JsonObject):
        faults.append(f"{path}: must be an object of models with their weights, not {quoted(value)}")
        return BAD
    wrong = list(duplicate_faults(value, path))
    faults.extend(wrong)
    return BAD if wrong else tuple(value.items())


def as_auto(value: object, path: str, faults: list[str]) -> object:
    """Take the one word that may stand for the names of models."""
    if value != AUTO:
        faults.append(f"{path}: must be {quoted(AUTO)}, for the names that the engines list, not {quoted(value)}")
    return BAD


def as_consensus(value: object, path: str, faults: list[str]) -> object:
    """Take {"members": [...], ...} as the fields of a VirtualSpec."""
    fields = fields_of(value, path, CONSENSUS_KEYS, VIRTUAL_CHECKS, faults)
    if isinstance(value, JsonObject):
        few = [f"{step(path, 'start')}{fault}" for fault in start_faults(value.get("start"), value.get("members"))]
        faults.extend(few)
        fields = None if few else fields
    return BAD if fields is None else fields


def as_models(value: object, path: str, faults: list[str]) -> object:
    """Take an object of name -> model as a tuple of ModelSpec and VirtualSpec."""
    if not isinstance(value, JsonObject) or not value:
        faults.append(f"{path}: must be an object with at least one model, not {quoted(value)}")
        return BAD
    faults.extend(duplicate_faults(value, path))
    models = [_model(name, item, step(path, name), faults) for name, item in value.items()]
    return BAD if None in models else tuple(models)


ENGINE_KEYS = (
    Key("url", as_is, "url"),
    Key("id", as_is, "id"),
    Key("weight", as_is, "weight"),
    Key("max_concurrency", as_is, "max_concurrency"),
    Key("model", as_is, "model"),
    Key("api_key_env", as_is, "api_key_env"),
    Key("health_path", as_is, "health_path"),
    Key("resume", as_is, "resume"),
    Key("usage_in_streams", as_is, "usage_in_streams"),
    Key("max_batch", as_is, "max_batch"),
    Key("provider", as_is, "provider"),
    Key("dialect", as_is, "dialect"),
    Key("api_version", as_is, "api_version"),
    Key("endpoints", as_tuple, "endpoints"),
    Key("priority", as_is, "priority"),
    Key("region", as_is, "region"),
)
PARAM_KEYS = (
    Key("strip", as_tuple, "strip"),
    Key("defaults", as_fields, "defaults"),
    Key("force", as_fields, "force"),
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
    Key("capabilities", as_tuple, "capabilities"),
    *PARAM_KEYS,
)
GROUP_KEYS = (
    Key("models", as_auto, "models", required=True),
    *(row for row in MODEL_KEYS if row.key not in ("aliases", "family")),
)
SPLIT_KEYS = (
    Key("split", as_shares, "shares", required=True),
    Key("fallbacks", as_tuple, "fallbacks"),
    Key("aliases", as_tuple, "aliases"),
    *PARAM_KEYS,
)
CHAIN_KEYS = (
    Key("chain", as_tuple, "chain", required=True),
    Key("aliases", as_tuple, "aliases"),
    *PARAM_KEYS,
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
_CHAIN_CHECKS: Mapping[str, Check] = {**SPLIT_CHECKS, "chain": check_chain}
AUTO = "auto"


def _engine(value: object, path: str, faults: list[str]) -> EngineSpec | None:
    if isinstance(value, str):
        value = JsonObject(url=value)
    elif not isinstance(value, JsonObject):
        faults.append(f"{path}: must be a URL or an object, not {quoted(value)}")
        return None
    fields = fields_of(value, path, ENGINE_KEYS, ENGINE_CHECKS, faults)
    provider = value.get("provider")
    preset = PROVIDERS.get(provider) if isinstance(provider, str) else None
    if "url" not in value and not (preset and preset.url):
        own = f": each engine of {provider} has an address of its own" if preset else ""
        if preset or "provider" not in value:  # a word that is no provider is told already
            faults.append(f"{step(path, 'url')}: is missing{own}")
        return None
    return None if fields is None else EngineSpec(**fields)


_AnyModel = Union[ModelSpec, VirtualSpec, SplitSpec]


def _model(name: str, value: object, path: str, faults: list[str]) -> _AnyModel | None:
    kind = _kind(value)
    if kind == "consensus":
        return _virtual(name, value, path, faults)
    if kind in ("split", "chain"):
        return _split(name, value, path, faults)
    return _group(name, value, path, faults) if kind == "models" else real_model(name, value, path, faults)


def _split(name: str, value: object, path: str, faults: list[str]) -> SplitSpec | None:
    noted_before = len(faults)
    faults.extend(path + fault for fault in SPLIT_CHECKS["name"](name))
    keys = SPLIT_KEYS if _kind(value) == "split" else CHAIN_KEYS
    fields = fields_of(value, path, keys, _CHAIN_CHECKS, faults, {row.key for row in MODEL_KEYS})
    if fields is None or len(faults) > noted_before:
        return None
    chain = fields.pop("chain", None)
    if chain is not None:
        fields.update(shares=((chain[0], 1),), fallbacks=chain[1:])
    return SplitSpec(name, **fields)


def _group(name: str, value: object, path: str, faults: list[str]) -> ModelSpec | None:
    """Engines that say themselves which models there are."""
    noted_before = len(faults)
    faults.extend(path + fault for fault in MODEL_CHECKS["name"](name))
    fields = fields_of(value, path, with_discover(GROUP_KEYS, value, ENGINE_KEYS), MODEL_CHECKS, faults)
    for here, engine in of_group(fields or {}, path):
        if engine.model is not None:
            faults.append(f"{step(here, 'model')}: says one name where the engine's list says them all")
        if engine.is_echo or not engine.preset.lists_served:
            what = (
                "the echo engine lists nothing" if engine.is_echo else f"{engine.provider} does not list what it serves"
            )
            faults.append(f"{here}: {what}: name its models one by one")
    if fields is None or len(faults) > noted_before:
        return None
    fields.pop("models")
    return ModelSpec(name=name, **{"engines": (), **fields})


def _virtual(name: str, value: object, path: str, faults: list[str]) -> VirtualSpec | None:
    noted_before = len(faults)
    faults.extend(path + fault for fault in VIRTUAL_CHECKS["name"](name))
    fields = fields_of(value, path, VIRTUAL_KEYS, VIRTUAL_CHECKS, faults, {row.key for row in MODEL_KEYS})
    if fields is None or len(faults) > noted_before:
        return None
    return VirtualSpec(name, aliases=fields.get("aliases", ()), **fields["consensus"])


def real_model(name: str, value: object, path: str, faults: list[str]) -> ModelSpec | None:
    """Take an object with engines, or with what discovers them, as a model; None when a fault was noted."""
    bad_name = [path + fault for fault in MODEL_CHECKS["name"](name)]
    faults.extend(bad_name)
    keys = with_discover(MODEL_KEYS, value, ENGINE_KEYS)
    fields = fields_of(value, path, keys, MODEL_CHECKS, faults, instead=("discover", *_KINDS))
    return None if fields is None or bad_name else ModelSpec(name=name, **{"engines": (), **fields})


def load_engines_file(path: Path) -> FleetSpec:
    """Read an engines file; raises ConfigurationError naming every fault by its JSON path."""
    document: Any = read_json(path)
    faults: list[str] = []
    fields = fields_of(document, "", FLEET_KEYS, _FLEET_CHECKS, faults)
    if isinstance(document, JsonObject):
        faults.extend(_link_faults(document))
    if fields is None or faults:
        raise ConfigurationError(faults)
    specs: Sequence[_AnyModel] = fields["models"]
    groups = {name for name, model in document["models"].items() if _kind(model) == "models"}
    real = [spec for spec in specs if isinstance(spec, ModelSpec)]
    try:
        return FleetSpec(
            tuple(spec for spec in real if spec.name not in groups),
            fields.get("default_model"),
            virtual=tuple(spec for spec in specs if isinstance(spec, VirtualSpec)),
            splits=tuple(spec for spec in specs if isinstance(spec, SplitSpec)),
            groups=tuple(spec for spec in real if spec.name in groups),
        )
    except ValueError as error:
        raise ConfigurationError(str(error).split("; ")) from None


def _link_faults(document: JsonObject) -> Iterator[str]:
    # From the raw document: a model with another fault still exists for those that fall back to it.
    models = document.get("models")
    if isinstance(models, JsonObject):
        of_kind: dict[str, list[tuple[str, object]]] = {kind: [] for kind in (*_KINDS, "")}
        for name, model in models.items():
            of_kind[_kind(model)].append((name, model))
        real = [_links(name, model) for name, model in of_kind[""]]
        virtual = [_virtual_links(name, model) for name, model in of_kind["consensus"]]
        splits = [_split_links(name, model, kind) for kind in ("split", "chain") for name, model in of_kind[kind]]
        open_ended = bool(of_kind["models"])
        yield from link_faults(real, _text(document, "default_model"), virtual, splits, open_ended)


_KINDS = ("consensus", "split", "chain", "models")


def _kind(model: object) -> str:
    """The key that says what kind of model this is; "": one with engines and a name of its own."""
    return next((kind for kind in _KINDS if kind in model), "") if isinstance(model, JsonObject) else ""


def _split_links(name: str, model: Any, kind: str) -> SplitLinks:
    aliases, fallbacks, chain = (_texts(model, key) for key in ("aliases", "fallbacks", "chain"))
    if kind == "chain":
        return SplitLinks(name, aliases, chain, key="chain")
    shares = model["split"]
    return SplitLinks(name, aliases, tuple(shares) if isinstance(shares, JsonObject) else (), fallbacks)


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
