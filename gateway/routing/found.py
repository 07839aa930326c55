"""What sources of engines have found, as engines: each with what the model's template says, and a fleet with them.

Pure functions. What a source says is a stranger's: how much of it counts is bounded, and what cannot be an engine is
told of and left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple, Optional

from gateway.routing.checks import bracketed, quoted
from gateway.routing.sources import DiscoverSpec
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec

FOUND_MAX = 10_000  # engines of one source; what is beyond is left out
FAULTS_MAX = 5  # of those that are told

_FIELDS = frozenset(one.name for one in fields(EngineSpec) if one.init)
_TEMPLATE_ONLY = ("api_key_env", "provider")  # which key is sent is not for a source to say


class Found(NamedTuple):
    """One engine that a source has found: where it is (`host` and `port`, or `own["url"]`), and what else it says."""

    host: str = ""
    port: int = 0
    own: Mapping[str, Any] = {}


class Listing(NamedTuple):
    """A source's answer as engines; `faults` tell of what has been left out."""

    engines: tuple[EngineSpec, ...]
    faults: tuple[str, ...]


def engines_of(found: Sequence[Found], discover: DiscoverSpec) -> Listing:
    """The engines that have been found, in their order, each once. Raises nothing."""
    engines: dict[Optional[str], EngineSpec] = {}
    urls: set[str] = set()
    faults: list[str] = []
    for index, one in enumerate(found[:FOUND_MAX]):
        try:
            engine = engine_of(one, discover.template)
        except ValueError as error:
            faults.append(f"[{index}]: {error}")
            continue
        if engine.url in urls and engine.id in engines:
            continue
        if engine.id in engines:
            faults.append(f"[{index}]: {quoted(engine.id)} is the id of another engine, too")
            continue
        engines[engine.id] = engine
        urls.add(engine.url)
    if len(found) > FOUND_MAX:
        faults.append(f"{len(found)} engines: only the first {FOUND_MAX} count")
    more = len(faults) - FAULTS_MAX
    told = [*faults[:FAULTS_MAX], *([f"and {more} more"] if more > 0 else [])]
    return Listing(tuple(engines.values()), tuple(told))


def engine_of(found: Found, template: Mapping[str, Any]) -> EngineSpec:
    """One engine with what the template says of all; what it says of itself goes before. Raises ValueError."""
    own = {key: value for key, value in found.own.items() if value is not None}
    faults = [f"{key}: only the template may say this" for key in _TEMPLATE_ONLY if key in own]
    faults += [f"{key}: is not a known key" for key in own if key not in _FIELDS]
    if faults:
        raise ValueError("; ".join(faults))
    common = dict(template)
    scheme, path = common.pop("scheme", "http"), common.pop("path", "")
    if found.host:
        own["url"] = f"{scheme}://{bracketed(found.host)}:{found.port}{path}"
    return EngineSpec(**{**common, **own})


def refuse_template(discover: DiscoverSpec) -> None:
    """Raise ValueError for a template of which no engine can be made."""
    unknown = [key for key in discover.template if key not in _FIELDS - {"url", "id"} and key not in ("scheme", "path")]
    if unknown:
        raise ValueError("; ".join(f"template.{key}: is not a known key" for key in unknown))
    sample_of(discover)


def sample_of(discover: DiscoverSpec) -> EngineSpec:
    """An engine as those that will be found. Raises ValueError."""
    return engine_of(Found("engine", 1), discover.template)


def discovered(fleet: FleetSpec) -> Iterator[tuple[str, DiscoverSpec]]:
    """The models and groups whose engines are discovered, by name."""
    for model in (*fleet.models, *fleet.groups):
        if model.discover is not None:
            yield model.name, model.discover


def with_found(fleet: FleetSpec, found: Mapping[str, Sequence[EngineSpec]]) -> FleetSpec:
    """The fleet with the engines that have been found, by the name of their model or group; of others none is known."""

    def filled(model: ModelSpec) -> ModelSpec:
        if model.discover is None or not found.get(model.name):
            return model
        return replace(model, engines=tuple(found[model.name]))

    if not any(True for _ in discovered(fleet)):
        return fleet
    return replace(fleet, models=tuple(map(filled, fleet.models)), groups=tuple(map(filled, fleet.groups)))
