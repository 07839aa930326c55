"""What was configured: engines, models and the fleet of models.

Owns the frozen `EngineSpec`, `ModelSpec` and `FleetSpec`, which refuse values that cannot work, the
checks behind them (the engines file uses the same ones), and the names of the strategies. No lock:
nothing here changes after it was made. Never holds live state, never does I/O, never reads the
environment (`api_key_env` is a name).
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Callable, NamedTuple

STRATEGIES = (
    "round_robin",
    "random",
    "least_connections",
    "power_of_two",
    "latency",
    "prefix_affinity",
)
ECHO_URL = "echo:"
DEFAULT_PORT_BY_SCHEME = {"http": 80, "https": 443}

# A check yields one text for each fault, made to be appended to the path of the value it looked at:
# `: must be ...` or, for a member, `[2]: must be ...`.
Check = Callable[[object], Iterator[str]]


class EngineAddress(NamedTuple):
    """The parts of an engine's URL: `host` without brackets, `base_path` without a last slash."""

    scheme: str
    host: str
    port: int
    base_path: str


_URL = re.compile(r"(https?)://(\[[^\]/]*\]|[^:/\[\]]*)(?::([^/]*))?(/.*)?", re.I | re.A)
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# Labels as the idna codec wants them: socket.getaddrinfo raises UnicodeError for any other.
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*)+")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse_engine_url(url: str) -> EngineAddress:
    """Take an engine's URL apart; without a path it gets `/v1`, and `echo:` has no host (port 0).

    Raises ValueError saying what is wrong. The text never repeats a user name, password or query.
    """
    if url == ECHO_URL:
        return EngineAddress("echo", "", 0, "")
    shown = f"not {quoted(url)}"
    if "?" in url or "#" in url:
        raise ValueError("must not hold a query or a fragment")
    if "@" in url:  # anywhere: a password may hold a slash
        raise ValueError("must not hold a user name or password (see api_key_env; %40 is an @)")
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(f"must be http://host[:port][/prefix], https://... or echo:, {shown}")
    scheme, host, port_text, path = match.groups()
    scheme, host = scheme.lower(), host.lower().strip("[]")
    if not is_host(host) or (":" in host) != (match[2][:1] == "["):
        raise ValueError(f"must have a host name or an IP address, {shown}")
    port = DEFAULT_PORT_BY_SCHEME[scheme]
    if port_text is not None:
        if not re.fullmatch("[0-9]{1,5}", port_text) or not 1 <= int(port_text) <= 65535:
            raise ValueError(f"must have a port from 1 to 65535, {shown}")
        port = int(port_text)
    if path and not _PATH.fullmatch(path):
        raise ValueError(f"must have other characters in its path %-encoded, {shown}")
    return EngineAddress(scheme, host, port, (path or "").rstrip("/") or "/v1")


def is_host(text: str) -> bool:
    """Whether `text` is a host name, an IPv4 address, or an IPv6 address (no brackets, no zone)."""
    if ":" in text or re.fullmatch("[0-9.]+", text):
        try:
            ipaddress.ip_address(text)
        except ValueError:
            return False
        return "%" not in text  # a zone would have to be encoded in URLs and in the Host header
    return len(text) <= 253 and _HOST_NAME.fullmatch(text) is not None


def bracketed(host: str) -> str:
    """The host as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def quoted(value: object) -> str:
    """A value as a fault shows it: as JSON, pure ASCII, at most 100 characters."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = ascii(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _url(value: object) -> Iterator[str]:
    try:
        parse_engine_url(value if isinstance(value, str) else "")
    except ValueError as fault:
        yield f": {fault}"


def name(value: object) -> Iterator[str]:
    """Check a name that goes into headers, metrics and log lines: ASCII, nothing invisible."""
    if not isinstance(value, str) or not re.fullmatch("[!-~]{1,256}", value):
        yield f": must be 1 to 256 printable ASCII characters without spaces, not {quoted(value)}"


def text(value: object) -> Iterator[str]:
    """Check a name that only ever stands in JSON."""
    if not isinstance(value, str) or not 1 <= len(value) <= 256 or not value.isprintable():
        yield f": must be a text of 1 to 256 printable characters, not {quoted(value)}"


def names(value: object) -> Iterator[str]:
    """Check a tuple of names, all different."""
    if not isinstance(value, tuple):
        yield f": must be a list of names, not {quoted(value)}"
        return
    for index, member in enumerate(value):
        yield from (f"[{index}]{fault}" for fault in name(member))
        if member in value[:index]:
            yield f"[{index}]: {quoted(member)} is named twice"


def integer(lowest: int, highest: int) -> Check:
    """Make a check for an integer of that range, ends included."""

    def check(value: object) -> Iterator[str]:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not lowest <= value <= highest:  # type: ignore[operator]
            yield f": must be an integer from {lowest} to {highest}, not {quoted(value)}"

    return check


def one_of(choices: Sequence[str]) -> Check:
    """Make a check for one of some words."""

    def check(value: object) -> Iterator[str]:
        if not isinstance(value, str) or value not in choices:
            yield f": must be one of {', '.join(choices)}, not {quoted(value)}"

    return check


def optional(check: Check) -> Check:
    """Make a check that lets None pass."""
    return lambda value: iter(()) if value is None else check(value)


def _env_name(value: object) -> Iterator[str]:
    if not isinstance(value, str) or not _ENV_NAME.fullmatch(value):
        # Not shown: who misread the field has put the key itself here.
        yield ": must be the name of an environment variable"


def _path(value: object) -> Iterator[str]:
    if not isinstance(value, str) or not _PATH.fullmatch(value):
        yield f": must be a path such as /health, not {quoted(value)}"


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


def boolean(value: object) -> Iterator[str]:
    """Check for true or false."""
    if not isinstance(value, bool):
        yield f": must be true or false, not {quoted(value)}"


def number(lowest: float, highest: float) -> Check:
    """Make a check for a number of that range, ends included."""

    def check(value: object) -> Iterator[str]:
        counts = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not counts or not lowest <= value <= highest:  # type: ignore[operator]
            yield f": must be a number from {lowest:g} to {highest:g}, not {quoted(value)}"

    return check


def _price(value: object) -> Iterator[str]:
    pair = value if isinstance(value, tuple) else ()
    if len(pair) != 2 or any(True for amount in pair for _ in number(0, 1_000_000)(amount)):
        yield ': must be {"input": 0.59, "output": 0.79}, in USD per million tokens'


def _hedge_after(value: object) -> Iterator[str]:
    if value != "p95" and list(number(1, 3_600_000)(value)):
        yield f': must be milliseconds from 1 to 3600000 or "p95", not {quoted(value)}'


ENGINE_CHECKS: Mapping[str, Check] = {
    "url": _url,
    "id": optional(name),
    "weight": integer(1, 1_000_000),
    "max_concurrency": optional(integer(1, 1_000_000)),
    "model": optional(text),
    "api_key_env": optional(_env_name),
    "health_path": optional(_path),
    "resume": boolean,
}
MODEL_CHECKS: Mapping[str, Check] = {
    "name": name,
    "engines": _engines,
    "strategy": optional(one_of(STRATEGIES)),
    "fallbacks": optional(names),
    "max_model_len": optional(integer(1, 1_000_000_000)),
    "aliases": names,
    "attempt_timeout_s": optional(number(0.001, 86_400)),
    "hedge_after_ms": optional(_hedge_after),
    "hedge_ratio": number(0, 1),
    "context_fallbacks": names,
    "price": optional(_price),
    "rpm": optional(integer(1, 1_000_000_000)),
    "tpm": optional(integer(1, 1_000_000_000)),
}


def _refuse_faults(checks: Mapping[str, Check], values: Mapping[str, object]) -> None:
    faults = [key + fault for key, check in checks.items() for fault in check(values[key])]
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
    continues a trailing assistant message, so a broken stream may go on here.
    """

    url: str
    id: str | None = None
    weight: int = 1
    max_concurrency: int | None = None
    model: str | None = None
    api_key_env: str | None = None
    health_path: str | None = None
    resume: bool = False
    address: EngineAddress = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _refuse_faults(ENGINE_CHECKS, vars(self))
        address = parse_engine_url(self.url)
        host = bracketed(address.host)
        object.__setattr__(self, "address", address)
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
    def is_echo(self) -> bool:
        """Whether this is the built-in echo engine, which has no host."""
        return self.address.scheme == "echo"

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

    def __post_init__(self) -> None:
        _refuse_faults(MODEL_CHECKS, vars(self))


@dataclass(frozen=True)
class FleetSpec:
    """All models, in order; raises ValueError naming every clash and every name that leads nowhere.

    `default_model` (a name or an alias) is used when a request names none; None takes the first.
    `wildcard`: the single model serves every name a request may ask for, so any default will do.
    """

    models: tuple[ModelSpec, ...]
    default_model: str | None = None
    wildcard: bool = False

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models: must hold at least one model")
        if self.wildcard and len(self.models) > 1:
            raise ValueError("models: a wildcard fleet has exactly one model")
        default = None if self.wildcard else self.default_model
        links = [ModelLinks(m.name, m.aliases, m.fallbacks or (), m.context_fallbacks) for m in self.models]
        faults = list(link_faults(links, default))
        if faults:
            raise ValueError("; ".join(faults))
        if self.default_model is None:
            object.__setattr__(self, "default_model", self.models[0].name)


class ModelLinks(NamedTuple):
    """The names by which one model is known and those by which it knows others."""

    name: str
    aliases: tuple[str, ...]
    fallbacks: tuple[str, ...]
    context_fallbacks: tuple[str, ...] = ()


def link_faults(models: Sequence[ModelLinks], default_model: str | None) -> Iterator[str]:
    """Yield, with their JSON paths, the faults that no model can see alone."""
    owner: dict[str, str] = {}
    for model in models:
        if model.name in owner:
            yield f"{step('models', model.name)}: is defined twice"
        owner[model.name] = model.name
    for model in models:
        for index, alias in enumerate(model.aliases):
            if alias in owner and alias not in model.aliases[:index]:
                yield f"{step('models', model.name)}.aliases[{index}]: {quoted(alias)} is taken"
            owner.setdefault(alias, model.name)
    for model in models:
        for key, others in (("fallbacks", model.fallbacks), ("context_fallbacks", model.context_fallbacks)):
            for index, other in enumerate(others):
                where = f"{step('models', model.name)}.{key}[{index}]"
                if other not in owner:
                    yield f"{where}: there is no model {quoted(other)}"
                elif owner[other] == model.name:
                    yield f"{where}: {quoted(other)} is the model itself"
    if default_model is not None and default_model not in owner:
        yield f"default_model: there is no model {quoted(default_model)}"


def step(path: str, key: str) -> str:
    """The JSON path of a member: `path.key`, or `path["key"]` where a dot would mislead."""
    if re.fullmatch("[A-Za-z0-9_-]+", key):
        return f"{path}.{key}" if path else key
    return f"{path}[{quoted(key)}]"


def model_from(name: str, engines: Sequence[str | EngineSpec], strategy: str | None = None) -> ModelSpec:
    """Make a model from URLs and specs, which mean the same; raises ValueError as those do."""
    specs = tuple(e if isinstance(e, EngineSpec) else EngineSpec(e) for e in engines)
    return ModelSpec(name=name, engines=specs, strategy=strategy)
