"""What was configured: engines, models and the fleet of models.

Owns the frozen `EngineSpec`, `ModelSpec` and `FleetSpec`, which refuse values that cannot work, the check of each of
their fields (the engines file uses the same ones; how a value is checked stands in checks.py), and the names of the
strategies. No lock: nothing here changes after it was made. Never holds live state, never does I/O, never reads the
environment (`api_key_env` is a name).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.routing import checks, providers
from gateway.routing.checks import (
    DEFAULT_PORT_BY_SCHEME,
    Check,
    EngineAddress,
    bracketed,
    has_path,
    parse_engine_url,
    quoted,
)
from gateway.routing.links import ModelLinks, link_faults
from gateway.routing.params import PARAM_CHECKS, Params, params_of
from gateway.routing.providers import PROVIDERS, Provider
from gateway.routing.sources import DiscoverSpec
from gateway.routing.splits import SplitLinks, SplitSpec
from gateway.routing.virtual import VirtualLinks, VirtualSpec

STRATEGIES = ("round_robin", "random", "least_connections", "power_of_two", "latency", "prefix_affinity")


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
    "provider": checks.optional(checks.one_of(tuple(PROVIDERS))),
    "dialect": checks.optional(checks.one_of(providers.DIALECTS)),
    "api_version": checks.optional(checks.api_version),
    "endpoints": checks.optional(checks.several_of(providers.ENDPOINTS)),
    "priority": checks.integer(0, 65_535),
    "region": checks.optional(checks.region),
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
    "capabilities": checks.optional(checks.several_of(providers.CAPABILITIES)),
    "discover": checks.optional(checks.instance(DiscoverSpec)),
    **PARAM_CHECKS,
}


def _refuse_faults(check_by_field: Mapping[str, Check], values: Mapping[str, object]) -> None:
    faults = [key + fault for key, check in check_by_field.items() for fault in check(values[key])]
    if faults:
        raise ValueError("; ".join(faults))


@dataclass(frozen=True)
class EngineSpec:
    """One engine of one model, as configured; raises ValueError naming each field that cannot work.

    `url` is `http://host[:port][/prefix]`, `https://...` or `echo:` (the built-in echo engine); without a path it gets
    `/v1`, a last slash is dropped. `id` is `host:port` (or `echo`) unless given. `weight` (1 to 1000000) is its share
    of the requests. `max_concurrency` is how many requests may be in flight here, None for no limit. `model` is the
    name sent to this engine, None for the gateway's own. `api_key_env` is the NAME of the environment variable that
    holds this engine's key, None for no key. `health_path` is what probes ask for, None for the default. `resume`: this
    engine continues a trailing assistant message, so a broken stream may go on here. `usage_in_streams`: this engine
    can be asked for the usage of a stream (`stream_options`); False: it refuses that, and never is. `max_batch`:
    prompts or texts that the gateway puts into one request, None for no limit of the engine's own. `provider`: one of
    PROVIDERS, which says what is not said here: `url` ("": its own), `api_key_env` (only for the provider's own
    address), `health_path`, `dialect`. `dialect` is what it speaks, `openai` unless its provider says otherwise.
    `api_version` is sent as Azure's `api-version`; None: as the address needs it. `endpoints`: the only ones that it
    serves, as the gateway's clients name them (`/v1/embeddings`); None: it is asked for any. `region` is where it is
    (see regions.py), kept in lower case; None: nobody has said, so it gets nothing that must stay somewhere.
    `priority`: it gets requests while none of its region with a lower number is in.
    """

    url: str = ""
    id: str | None = None
    weight: int = 1
    max_concurrency: int | None = None
    model: str | None = None
    api_key_env: str | None = None
    health_path: str | None = None
    resume: bool = False
    usage_in_streams: bool = True
    max_batch: int | None = None
    provider: str | None = None
    dialect: str | None = None
    api_version: str | None = None
    endpoints: tuple[str, ...] | None = None
    priority: int = 0
    region: str | None = None
    address: EngineAddress = field(init=False, repr=False, compare=False)
    is_echo: bool = field(init=False, repr=False, compare=False)
    """Whether this is the built-in echo engine, which has no host."""

    def __post_init__(self) -> None:
        preset = PROVIDERS.get(self.provider) if isinstance(self.provider, str) else None
        if preset is not None:
            self._take_url(preset)
        _refuse_faults(ENGINE_CHECKS, vars(self))
        if self.region is not None:
            object.__setattr__(self, "region", self.region.lower())
        address = parse_engine_url(self.url)
        if preset is not None:
            self._take(preset, address)
        if self.dialect is None:
            object.__setattr__(self, "dialect", providers.OPENAI)
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

    def _take_url(self, preset: Provider) -> None:
        if not self.url:
            object.__setattr__(self, "url", preset.url)
        elif isinstance(self.url, str) and self.url != checks.ECHO_URL and not has_path(self.url):
            object.__setattr__(self, "url", self.url.rstrip("/") + preset.path)

    def _take(self, preset: Provider, address: EngineAddress) -> None:
        """What has not been said is as the provider has it."""
        beside_base = f"{address.base_path}/{preset.health}"
        own: dict[str, str | None] = {
            "api_key_env": preset.key_env if preset.may_have_key(address) else None,
            "health_path": preset.health if preset.health.startswith("/") else beside_base,
            "dialect": preset.dialect,
        }
        if self.provider == "azure" and address.base_path.startswith(providers.AZURE_DATED):
            own["api_version"] = providers.AZURE_API_VERSION
        for key, value in own.items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)

    @property
    def preset(self) -> Provider:
        """What its provider's engines have in common."""
        return PROVIDERS[self.provider] if self.provider else providers.OTHER[self.dialect or providers.OPENAI]

    def target(self, path: str) -> str:
        """What a request for `path` (of OpenAI's, behind the base path) asks the server for."""
        return providers.with_query(
            f"{providers.base_of(self.base_path, path)}{providers.path_in(self.dialect or providers.OPENAI, path)}",
            self._version_query(),
        )

    def can_serve(self, path: str) -> bool:
        """Whether it has anything like `path` (of OpenAI's), as far as that was said."""
        if self.is_echo:
            return path in providers.OF_MODELS
        if path == providers.RESPONSES and self.endpoints is None:
            return self.preset.has_responses  # others may, too; but what is translated works with all
        if self.endpoints is not None and providers.endpoint_of(path) not in self.endpoints:
            return False
        return providers.has_path(self.dialect or providers.OPENAI, path)

    def list_target(self) -> str:
        """What the request for its models asks the server for."""
        return providers.with_query(f"{self.base_path}/models", self.preset.list_query, self._version_query())

    def _version_query(self) -> str:
        return f"api-version={self.api_version}" if self.api_version else ""

    def header_lines(self, secret: str) -> list[str]:
        """The header lines that go with each request; `secret` "": it needs no key."""
        return providers.header_lines(self.preset, self.dialect or providers.OPENAI, secret)

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

    `strategy` is one of STRATEGIES, None for the gateway's default. `fallbacks` are the models tried when this one
    cannot answer: None leaves it to the setting FALLBACK, empty means none. `max_model_len` is the context in tokens,
    None when unknown. `aliases` are further names. `attempt_timeout_s` moves a request away from an engine that has not
    answered by then, None leaves it to the request's own time limit. `hedge_after_ms` (or "p95") asks a second engine
    when the first has not answered by then, for at most `hedge_ratio` of the requests; None never. `context_fallbacks`
    are the models for prompts longer than `max_model_len`. `price` is USD per million tokens of the prompt and of the
    answer; `rpm`, `tpm` limit requests and tokens a minute. `family` names what several models come from: they may err
    alike; None: the model's own name. `capabilities`: see capabilities.py; None: not said. `strip` are fields of
    requests that its engines do not get, `defaults` those that they get where the client has not said, `force` those
    that they get in any case. `prefix`: its engines' own names count, each behind that ("": by itself); None: it has
    this one name. `source`: the group whose engines have listed it, None: it was configured. `discover` says where its
    engines are found, of which none may be known yet; None: they are `engines`, at least one.
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
    capabilities: tuple[str, ...] | None = None
    strip: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    force: Mapping[str, Any] = field(default_factory=dict)
    prefix: str | None = field(default=None, compare=False)
    source: str | None = None
    discover: DiscoverSpec | None = None
    params: Params | None = field(init=False, repr=False, compare=False, default=None)
    """What changes its requests; None: nothing."""

    def __post_init__(self) -> None:
        unknown = self.discover is not None and self.engines == ()
        _refuse_faults(
            {key: check for key, check in MODEL_CHECKS.items() if not unknown or key != "engines"}, vars(self)
        )
        object.__setattr__(self, "params", params_of(self.strip, self.defaults, self.force))


@dataclass(frozen=True)
class FleetSpec:
    """All models, in order; raises ValueError naming every clash and every name that leads nowhere.

    `default_model` (a name or an alias, of a model without engines, too) is used when a request names none; None takes
    the first with engines.
    `wildcard`: the single model serves every name a request may ask for, so any default will do. `virtual` are the
    models that are made of others, `splits` those that others answer for. `groups` are engines whose lists say which
    models there are besides (see listed.py): with any, a name that is not known may become one.
    """

    models: tuple[ModelSpec, ...]
    default_model: str | None = None
    wildcard: bool = False
    virtual: tuple[VirtualSpec, ...] = ()
    splits: tuple[SplitSpec, ...] = ()
    groups: tuple[ModelSpec, ...] = ()
    by_engines: bool = field(init=False, repr=False, compare=False, default=False)
    """Whether models go by their engines' own names: of one that serves every name, or behind each one's prefix."""

    def __post_init__(self) -> None:
        if not self.models and not self.groups:
            raise ValueError("models: must hold at least one model with engines")
        if self.wildcard:
            if len(self.models) > 1:
                raise ValueError("models: a wildcard fleet has exactly one model")
            object.__setattr__(self, "models", (replace(self.models[0], prefix=""),))
        prefixes = tuple(model.prefix for model in self.models if model.prefix is not None)
        object.__setattr__(self, "by_engines", bool(prefixes))
        default = self.default_model
        if default is not None and prefixes and default.startswith(prefixes):
            default = None  # it is one of theirs
        links = [ModelLinks(m.name, m.aliases, m.fallbacks or (), m.context_fallbacks, m.family) for m in self.models]
        virtual = [VirtualLinks(v.name, v.aliases, v.members, v.judge, v.min_families) for v in self.virtual]
        splits = [SplitLinks(s.name, s.aliases, [n for n, _ in s.shares], s.fallbacks or ()) for s in self.splits]
        faults = list(link_faults(links, default, virtual, splits, bool(self.groups)))
        if faults:
            raise ValueError("; ".join(faults))
        if self.default_model is None and self.models and (self.wildcard or not prefixes):
            object.__setattr__(self, "default_model", self.models[0].name)

    def engines(self) -> Iterator[tuple[str, EngineSpec]]:
        """Every engine, with the name of its model or group."""
        return ((model.name, engine) for model in (*self.models, *self.groups) for engine in model.engines)

    def secrets(self) -> Iterator[tuple[str, str]]:
        """Each variable that holds a secret for engines, or for who tells where they are, with whose it is."""
        yield from ((e.api_key_env, f"{e.id} of {model}") for model, e in self.engines() if e.api_key_env)
        for model in (*self.models, *self.groups):
            names = model.discover.secret_names() if model.discover else ()
            yield from ((name, f"(discovered) of {model.name}") for name in names)

    def model_by_name(self) -> Mapping[str, str]:
        """Every name that a request may use, with the model it stands for; a model that others answer for stands for
        itself."""
        names = {name: model.name for model in self.models for name in (model.name, *model.aliases)}
        return {**names, **{name: split.name for split in self.splits for name in (split.name, *split.aliases)}}

    def family_by_model(self) -> Mapping[str, str]:
        """What each model comes from."""
        return {model.name: model.family or model.name for model in self.models}

    def virtual_by_name(self) -> Mapping[str, VirtualSpec]:
        """The models made of others, by every name that a request may use."""
        return {name: spec for spec in self.virtual for name in (spec.name, *spec.aliases)}

    def split_by_name(self) -> Mapping[str, SplitSpec]:
        """The models that others answer for, by every name that a request may use."""
        return {name: spec for spec in self.splits for name in (spec.name, *spec.aliases)}


def model_from(name: str, engines: Sequence[str | EngineSpec], strategy: str | None = None) -> ModelSpec:
    """Make a model from URLs and specs, which mean the same; raises ValueError as those do."""
    specs = tuple(e if isinstance(e, EngineSpec) else EngineSpec(e) for e in engines)
    return ModelSpec(name=name, engines=specs, strategy=strategy)
