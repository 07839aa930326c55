"""What was configured: engines, models and the fleet of models.

Owns the frozen `EngineSpec`, `ModelSpec` and `FleetSpec`, which refuse values that cannot work, the check of each of
their fields (the engines file uses the same ones; how a value is checked stands in checks.py), and the names of the
strategies. No lock: nothing here changes after it was made. Never holds live state, never does I/O, never reads the
environment (`api_key_env` is a name).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.routing import checks
from gateway.routing.checks import (
    DEFAULT_PORT_BY_SCHEME,
    Check,
    EngineAddress,
    bracketed,
    parse_engine_url,
    quoted,
    step,
)
from gateway.routing.virtual import VirtualLinks, VirtualSpec, virtual_faults

STRATEGIES = (
    "round_robin",
    "random",
    "least_connections",
    "power_of_two",
    "latency",
    "prefix_affinity",
)


def _engines(value: object) -> Iterator[str]:
    specs = value if isinstance(value, tuple) else ()
    if not specs or not all(isinstance(spec, EngineSpec) for spec in specs):
        yield ": must be a list of at least one engine"
        return
    yield from duplicate_ids(specs)


def duplicate_ids(engines: Sequence[EngineSpec | None]) -> Iterator[str]:
    """Yield a fault for each engine whose id came before; None (an unreadable one) is skipped."""
    first_index: dict[str | None, int] = {}
    for index, spec in enumerate(engines):
        if spec is not None and first_index.setdefault(spec.id, index) != index:
            before = f"engines[{first_index[spec.id]}]"
            yield f'[{index}].id: {quoted(spec.id)} is the id of {before} too; set another "id"'


ENGINE_CHECKS: Mapping[str, Check] = {
    "url": checks.url,
    "id": checks.optional(checks.name),
    "weight": checks.integer(1, 1_000_000),
    "max_concurrency": checks.optional(checks.integer(1, 1_000_000)),
    "max_batch": checks.optional(checks.integer(1, 1_000_000)),
    "model": checks.optional(checks.text),
    "api_key_env": checks.optional(checks.env_name),
    "health_path": checks.optional(checks.path),
    "resume": checks.boolean,
    "usage_in_streams": checks.boolean,
}
MODEL_CHECKS: Mapping[str, Check] = {
    "name": checks.name,
    "engines": _engines,
    "strategy": checks.optional(checks.one_of(STRATEGIES)),
    "fallbacks": checks.optional(checks.names),
    "max_model_len": checks.optional(checks.integer(1, 1_000_000_000)),
    "aliases": checks.names,
    "attempt_timeout_s": checks.optional(checks.number(0.001, 86_400)),
    "hedge_after_ms": checks.optional(checks.hedge_after),
    "hedge_ratio": checks.number(0, 1),
    "context_fallbacks": checks.names,
    "price": checks.optional(checks.price),
    "rpm": checks.optional(checks.integer(1, 1_000_000_000)),
    "tpm": checks.optional(checks.integer(1, 1_000_000_000)),
    "family": checks.optional(checks.name),
}


def _refuse_faults(check_by_field: Mapping[str, Check], values: Mapping[str, object]) -> None:
    faults = [key + fault for key, check in check_by_field.items() for fault in check(values[key])]
    if faults:
        raise ValueError("; ".join(faults))


@dataclass(frozen=True)
class EngineSpec:
    """One engine of one model, as configured; raises ValueError naming each field that cannot work.

    `url` is `http://host[:port][/prefix]`, `https://...` or `echo:` (the built-in echo engine);
    without a path it gets `/v1`, a last slash is dropped. `id` is `host:port` (or `echo`) unless
    given. `weight` (1 to 1000000) is its share of the requests. `max_concurrency` is how many
    requests may be in flight here, None for no limit. `model` is the name sent to this engine, None
    for the gateway's own. `api_key_env` is the NAME of the environment variable that holds this
    engine's key, None for no key. `health_path` is what probes ask for, None for the default. `resume`: this engine
    continues a trailing assistant message, so a broken stream may go on here. `usage_in_streams`: this engine can be
    asked for the usage of a stream (`stream_options`); False: it refuses that, and never is. `max_batch`: prompts or
    texts that the gateway puts into one request, None for no limit of the engine's own.
    """

    url: str
    id: str | None = None
    weight: int = 1
    max_concurrency: int | None = None
    model: str | None = None
    api_key_env: str | None = None
    health_path: str | None = None
    resume: bool = False
    usage_in_streams: bool = True
    max_batch: int | None = None
    address: EngineAddress = field(init=False, repr=False, compare=False)
    is_echo: bool = field(init=False, repr=False, compare=False)
    """Whether this is the built-in echo engine, which has no host."""

    def __post_init__(self) -> None:
        _refuse_faults(ENGINE_CHECKS, vars(self))
        address = parse_engine_url(self.url)
        host = bracketed(address.host)
        object.__setattr__(self, "address", address)
        object.__setattr__(self, "is_echo", address.scheme == "echo")
        if self.id is None:
            own_id = "echo" if self.is_echo else f"{host}:{address.port}"
            object.__setattr__(self, "id", own_id)
        if not self.is_echo:
            # One spelling for one engine: a reload recognises it by its id and URL.
            usual = DEFAULT_PORT_BY_SCHEME[address.scheme] == address.port
            port = "" if usual else f":{address.port}"
            url = f"{address.scheme}://{host}{port}{address.base_path}"
            object.__setattr__(self, "url", url)

    @property
    def scheme(self) -> str:
        """`http`, `https` or `echo`."""
        return self.address.scheme

    @property
    def host(self) -> str:
        """Host name or address in lower case, IPv6 without brackets; empty for echo."""
        return self.address.host

    @property
    def port(self) -> int:
        """TCP port, 80 or 443 when the URL names none; 0 for echo."""
        return self.address.port

    @property
    def base_path(self) -> str:
        """What stands before `/chat/completions`, such as `/v1`; empty for echo."""
        return self.address.base_path


@dataclass(frozen=True)
class ModelSpec:
    """One model and the engines that serve it; raises ValueError naming each faulty field.

    `strategy` is one of STRATEGIES, None for the gateway's default. `fallbacks` are the models
    tried when this one cannot answer: None leaves it to the setting FALLBACK, empty means none.
    `max_model_len` is the context in tokens, None when unknown. `aliases` are further names. `attempt_timeout_s`
    moves a request away from an engine that has not answered by then, None leaves it to the request's own time limit.
    `hedge_after_ms` (or "p95") asks a second engine when the first has not answered by then, for at most `hedge_ratio`
    of the requests; None never. `context_fallbacks` are the models for prompts longer than `max_model_len`.
    `price` is USD per million tokens of the prompt and of the answer; `rpm`, `tpm` limit requests and tokens a minute.
    `family` names what several models come from: they may err alike; None: the model's own name.
    """

    name: str
    engines: tuple[EngineSpec, ...]
    strategy: str | None = None
    fallbacks: tuple[str, ...] | None = None
    max_model_len: int | None = None
    aliases: tuple[str, ...] = ()
    attempt_timeout_s: float | None = None
    hedge_after_ms: float | str | None = None
    hedge_ratio: float = 0.1
    context_fallbacks: tuple[str, ...] = ()
    price: tuple[float, float] | None = None
    rpm: int | None = None
    tpm: int | None = None
    family: str | None = None

    def __post_init__(self) -> None:
        _refuse_faults(MODEL_CHECKS, vars(self))


@dataclass(frozen=True)
class FleetSpec:
    """All models, in order; raises ValueError naming every clash and every name that leads nowhere.

    `default_model` (a name or an alias, of a model made of others, too) is used when a request names none; None takes
    the first with engines.
    `wildcard`: the single model serves every name a request may ask for, so any default will do. `virtual` are the
    models that are made of others.
    """

    models: tuple[ModelSpec, ...]
    default_model: str | None = None
    wildcard: bool = False
    virtual: tuple[VirtualSpec, ...] = ()

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models: must hold at least one model with engines")
        if self.wildcard and len(self.models) > 1:
            raise ValueError("models: a wildcard fleet has exactly one model")
        default = None if self.wildcard else self.default_model
        links = [ModelLinks(m.name, m.aliases, m.fallbacks or (), m.context_fallbacks, m.family) for m in self.models]
        virtual = [VirtualLinks(v.name, v.aliases, v.members, v.judge, v.min_families) for v in self.virtual]
        faults = list(link_faults(links, default, virtual))
        if faults:
            raise ValueError("; ".join(faults))
        if self.default_model is None:
            object.__setattr__(self, "default_model", self.models[0].name)

    def model_by_name(self) -> Mapping[str, str]:
        """Every name that a request may use, with the model it stands for."""
        return {name: model.name for model in self.models for name in (model.name, *model.aliases)}

    def family_by_model(self) -> Mapping[str, str]:
        """What each model comes from."""
        return {model.name: model.family or model.name for model in self.models}

    def virtual_by_name(self) -> Mapping[str, VirtualSpec]:
        """The models made of others, by every name that a request may use."""
        return {name: spec for spec in self.virtual for name in (spec.name, *spec.aliases)}


class ModelLinks(NamedTuple):
    """The names by which one model is known and those by which it knows others; None stands for what is no name, a
    fault of its own."""

    name: str
    aliases: Sequence[str | None]
    fallbacks: Sequence[str | None]
    context_fallbacks: Sequence[str | None] = ()
    family: str | None = None


def link_faults(
    models: Sequence[ModelLinks], default_model: str | None, virtual: Sequence[VirtualLinks] = ()
) -> Iterator[str]:
    """Yield, with their JSON paths, the faults that no model can see alone. `virtual`: those made of others."""
    owner: dict[str, str] = {}
    for model in models:
        if model.name in owner:
            yield f"{step('models', model.name)}: is defined twice"
        owner[model.name] = model.name
    for model in models:
        for index, alias in enumerate(model.aliases):
            if alias is None:
                continue
            if alias in owner and alias not in model.aliases[:index]:
                yield f"{step('models', model.name)}.aliases[{index}]: {quoted(alias)} is taken"
            owner.setdefault(alias, model.name)
    made = {name for links in virtual for name in (links.name, *links.aliases)} - set(owner)
    for model in models:
        for key, others in (("fallbacks", model.fallbacks), ("context_fallbacks", model.context_fallbacks)):
            for index, other in enumerate(others):
                where = f"{step('models', model.name)}.{key}[{index}]"
                if other is None:
                    continue
                if other in made:
                    yield f"{where}: {quoted(other)} is made of others: only a model with engines can stand in"
                elif other not in owner:
                    yield f"{where}: there is no model {quoted(other)}"
                elif owner[other] == model.name:
                    yield f"{where}: {quoted(other)} is the model itself"
    families = {model.name: model.family or model.name for model in models}
    yield from virtual_faults(virtual, owner, families)
    if default_model is not None and default_model not in owner and default_model not in made:
        yield f"default_model: there is no model {quoted(default_model)}"


def model_from(name: str, engines: Sequence[str | EngineSpec], strategy: str | None = None) -> ModelSpec:
    """Make a model from URLs and specs, which mean the same; raises ValueError as those do."""
    specs = tuple(e if isinstance(e, EngineSpec) else EngineSpec(e) for e in engines)
    return ModelSpec(name=name, engines=specs, strategy=strategy)
