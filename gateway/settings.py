"""What the gateway was told: settings from the environment, `.env` and the engines file.

Owns the one table (`SETTINGS`) behind the parsing, `.env.example` and the README's table, and the
frozen `Settings` it fills. No lock: nothing here changes after loading. Never prints or keeps a
client's key (only its digest), and never shows one in a fault.

`python -m gateway.settings env` prints `.env.example`, `table` the README's table.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable

from gateway import dotenv
from gateway.fleet import (
    ConfigurationError,
    echo_fleet,
    load_engines_file,
    parse_backend_url,
    parse_engines,
)
from gateway.routing.specs import (
    STRATEGIES,
    EngineSpec,
    FleetSpec,
    ModelSpec,
    bracketed,
    is_host,
    quoted,
)
from gateway.routing.specs import name as check_name

# Takes a variable's text (unset: its default, which is "" where it has none); raises ValueError, or
# ConfigurationError for several faults, saying what the value must be.
Parser = Callable[[str], Any]

DAY_S = 86_400.0


def integer(lowest: int, highest: int) -> Parser:
    """Parse a whole number of that range, ends included."""

    def parse(text: str) -> int:
        # Digits only: int() would also take "1_000", " 7" and digits of other scripts.
        if re.fullmatch("[0-9]{1,18}", text) and lowest <= int(text) <= highest:
            return int(text)
        raise ValueError(f"must be an integer from {lowest} to {highest}, not {quoted(text)}")

    return parse


def seconds(lowest_s: float, highest_s: float, *, zero_is_off: bool = False) -> Parser:
    """Parse a finite number of seconds of that range; with `zero_is_off` also 0."""
    allowed = f"a number of seconds from {lowest_s:g} to {highest_s:g}"
    if zero_is_off:
        allowed += ", or 0 for off"

    def parse(text: str) -> float:
        if re.fullmatch(r"[0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18}", text):
            value_s = float(text)
            if lowest_s <= value_s <= highest_s or (zero_is_off and value_s == 0):
                return value_s
        raise ValueError(f"must be {allowed}, not {quoted(text)}")

    return parse


def choice(*choices: str) -> Parser:
    """Parse one of some words, in any case."""

    def parse(text: str) -> str:
        if text.lower() in choices:
            return text.lower()
        raise ValueError(f"must be one of {', '.join(choices)}, not {quoted(text)}")

    return parse


def flag(text: str) -> bool:
    """Parse on or off, under their usual names."""
    word = text.lower()
    if word in ("on", "true", "yes", "1"):
        return True
    if word in ("off", "false", "no", "0"):
        return False
    raise ValueError(f"must be on or off, not {quoted(text)}")


def optional(parse: Parser) -> Parser:
    """Parse what is there; an unset variable is None."""
    return lambda text: parse(text) if text else None


def _host(text: str) -> str:
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not is_host(host):
        raise ValueError(f"must be a host name or an IP address, not {quoted(text)}")
    return host


def _model_name(text: str) -> str:
    for fault in check_name(text):
        raise ValueError(fault[2:])
    return text


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(part.strip() for part in text.split(",")) if text else ()
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[!-.0-~]+", origin):
            raise ValueError(f"must be * or origins such as https://a.example, not {quoted(text)}")
    if "*" in origins and len(origins) > 1:
        raise ValueError("must be either * or a list of origins, not both")
    return origins


@dataclass(frozen=True)
class ApiKey:
    """A client's key as the gateway knows it: `digest` is the SHA-256 of the key."""

    name: str
    digest: bytes = field(repr=False)
    role: str


def api_keys(role: str) -> Parser:
    """Parse a comma list of `name:key` or `key` (named by its digest). No fault shows an entry."""

    def parse(text: str) -> tuple[ApiKey, ...]:
        keys: list[ApiKey] = []
        faults: list[str] = []
        for number, entry in enumerate(text.split(",") if text else (), 1):
            try:
                keys.append(_api_key(entry.strip(), role))
            except ValueError as error:
                faults.append(f"entry {number}: {error}")
        if faults:
            raise ConfigurationError(faults)
        return tuple(keys)

    return parse


def _api_key(entry: str, role: str) -> ApiKey:
    name, colon, key = entry.partition(":")
    if not colon:
        name, key = "", entry
    if not re.fullmatch("[!-~]{1,8192}", key):  # what can arrive in a header
        raise ValueError("the key must be 1 to 8192 printable ASCII characters without spaces")
    digest = hashlib.sha256(key.encode("ascii")).digest()
    if not colon:
        name = "key-" + digest.hex()[:8]
    if not re.fullmatch("[A-Za-z0-9._@+-]{1,64}", name):
        raise ValueError("the name before : must be 1 to 64 of A-Z a-z 0-9 . _ @ + -")
    return ApiKey(name, digest, role)


@dataclass(frozen=True)
class Setting:
    """One variable: `default` is its text as in the environment, "" for none."""

    name: str
    field: str
    parse: Parser
    default: str
    help: str
    section: str


LISTEN, ENGINES, CHOOSING, WORK = "Listening", "Engines", "Choosing an engine", "Work under way"
HEALTH, CLIENTS, ACCESS, LOGS = "Health probes", "Clients", "Access", "Logs"
_TIMEOUT = seconds(0.001, DAY_S)

# Two lines a row: what it is, then what it means and why the default is what it is.
# fmt: off
SETTINGS: tuple[Setting, ...] = (
    Setting("HOST", "host", _host, "127.0.0.1",
            "Listening address; one that others can reach needs a key, or `AUTH=off`", LISTEN),
    Setting("PORT", "port", integer(0, 65_535), "8080",
            "Listening port; 0 takes any free one", LISTEN),
    Setting("DRAIN_TIMEOUT", "drain_timeout_s", _TIMEOUT, "30",
            "Seconds that requests and streams in flight get to finish after SIGTERM", LISTEN),

    Setting("BACKEND_URL", "backend_fleet", optional(parse_backend_url), "",
            "One engine for every model name: `http://host:port`, with or without `/v1`", ENGINES),
    Setting("ENGINES", "inline_fleet", optional(parse_engines), "",
            "Engines in one line: `13b=http://127.0.0.1:8010/v1,http://127.0.0.1:8011/v1;"
            "7b=http://127.0.0.1:8020/v1`", ENGINES),
    Setting("ENGINES_FILE", "engines_file", optional(Path), "",
            "JSON file with models and engines, read again on SIGHUP. Set one of `BACKEND_URL`, "
            "`ENGINES` and `ENGINES_FILE`; with none, echo answers", ENGINES),
    Setting("DEFAULT_MODEL", "default_model", optional(_model_name), "",
            "Model for requests that name none; unset: `default_model` of the file, else the first",
            ENGINES),

    Setting("STRATEGY", "strategy", choice(*STRATEGIES), "round_robin",
            f"For models without their own: {', '.join(f'`{s}`' for s in STRATEGIES)}", CHOOSING),
    Setting("FALLBACK", "fallback", choice("any", "configured", "off"), "any",
            "When a model cannot answer: `any`: its own `fallbacks`, without such a list the other "
            "models in file order; `configured`: only its own `fallbacks`; `off`: no other model",
            CHOOSING),
    Setting("RETRY_ATTEMPTS", "retry_attempts", integer(1, 100), "3",
            "Attempts per model, each on another engine where there is one", CHOOSING),

    Setting("WORKERS", "workers", integer(1, 10_000), "256",
            "Worker threads at most, started on demand; an open stream occupies none", WORK),
    Setting("QUEUE_SIZE", "queue_size", integer(1, 1_000_000), "1024",
            "Requests that may wait for a worker; one more gets 503 `overloaded`", WORK),
    Setting("QUEUE_TIMEOUT", "queue_timeout_s", _TIMEOUT, "30",
            "Seconds a request may wait for a worker, then 503 `queue_timeout`", WORK),
    Setting("CONNECT_TIMEOUT", "connect_timeout_s", _TIMEOUT, "5",
            "Seconds to connect to an engine", WORK),
    Setting("REQUEST_TIMEOUT", "request_timeout_s", _TIMEOUT, "60",
            "Seconds for a whole request that is not streamed, all attempts together", WORK),
    Setting("FIRST_TOKEN_TIMEOUT", "first_token_timeout_s", _TIMEOUT, "60",
            "Seconds until the first event of a stream", WORK),
    Setting("STREAM_IDLE_TIMEOUT", "stream_idle_timeout_s", _TIMEOUT, "60",
            "Seconds between two events of a stream", WORK),

    Setting("HEALTH_INTERVAL", "health_interval_s", seconds(0.01, DAY_S, zero_is_off=True), "5",
            "Seconds between two probes of an engine; 0 turns probes off", HEALTH),
    Setting("HEALTH_TIMEOUT", "health_timeout_s", _TIMEOUT, "2",
            "Seconds a probe may take", HEALTH),
    Setting("HEALTH_FAILS", "health_fails", integer(1, 1_000), "2",
            "Failed probes in a row that take an engine out; one alone may be chance", HEALTH),
    Setting("HEALTH_PASSES", "health_passes", integer(1, 1_000), "1",
            "Good probes in a row that bring an engine back", HEALTH),

    Setting("MAX_BODY_BYTES", "max_body_bytes", integer(1, 1 << 40), "33554432",
            "Largest request body (32 MiB: room for a few images); a larger one gets 413", CLIENTS),
    Setting("MAX_HEADER_BYTES", "max_header_bytes", integer(256, 1 << 24), "32768",
            "Largest request line and headers together; larger ones get 431", CLIENTS),
    Setting("CLIENT_TIMEOUT", "client_timeout_s", _TIMEOUT, "30",
            "Seconds a client may take to send a whole request", CLIENTS),
    Setting("KEEPALIVE_TIMEOUT", "keepalive_timeout_s", _TIMEOUT, "75",
            "Seconds an idle client connection is kept; more than the 60 usual in balancers",
            CLIENTS),
    Setting("MAX_CONNECTIONS", "max_connections", integer(1, 1_000_000), "10000",
            "Open client connections", CLIENTS),
    Setting("ERROR_FORMAT", "error_format", choice("simple", "openai"), "simple",
            "Shape of error bodies: `simple` or `openai`", CLIENTS),
    Setting("CORS_ORIGINS", "cors_origins", _origins, "",
            "Origins whose pages may call the gateway: comma list or `*`", CLIENTS),

    Setting("API_KEYS", "user_keys", api_keys("user"), "",
            "Comma list of `name:key` or `key`, role `user`; any key turns authentication on",
            ACCESS),
    Setting("ADMIN_KEYS", "admin_keys", api_keys("admin"), "",
            "The same with the role `admin`", ACCESS),
    Setting("AUTH", "auth", choice("auto", "off"), "auto",
            "`auto`: on as soon as a key exists; `off`: everybody may do everything", ACCESS),

    Setting("LOG_LEVEL", "log_level", choice("debug", "info", "warning", "error"), "info",
            "`debug`, `info`, `warning` or `error`; to stderr", LOGS),
    Setting("LOG_FORMAT", "log_format", choice("auto", "text", "json"), "auto",
            "`text`, `json` (a line each), or `auto`: text on a terminal, JSON elsewhere", LOGS),
    Setting("LOG_BODIES", "log_bodies", flag, "off",
            "`on` logs prompts and answers, which may be private", LOGS),
)
# fmt: on


@dataclass(frozen=True)
class Settings:
    """All settings, valid together; made by `load`. Immutable, so any thread may read it.

    `engines_file` is what `reload` reads again (None: the fleet came from elsewhere);
    `default_model` is the variable DEFAULT_MODEL (the fleet knows its default). `engine_keys` are
    the engines' own keys by the names their `api_key_env` give; a name not set is missing.
    """

    host: str
    port: int
    drain_timeout_s: float
    engines_file: Path | None
    default_model: str | None
    strategy: str
    fallback: str
    retry_attempts: int
    workers: int
    queue_size: int
    queue_timeout_s: float
    connect_timeout_s: float
    request_timeout_s: float
    first_token_timeout_s: float
    stream_idle_timeout_s: float
    health_interval_s: float
    health_timeout_s: float
    health_fails: int
    health_passes: int
    max_body_bytes: int
    max_header_bytes: int
    client_timeout_s: float
    keepalive_timeout_s: float
    max_connections: int
    error_format: str
    cors_origins: tuple[str, ...]
    auth: str
    log_level: str
    log_format: str
    log_bodies: bool
    fleet: FleetSpec
    api_keys: tuple[ApiKey, ...]
    engine_keys: Mapping[str, str] = field(repr=False)

    @property
    def auth_on(self) -> bool:
        """Whether clients need a key."""
        return self.auth != "off" and bool(self.api_keys)

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the listening address."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listening address; of names, only localhost is."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def load(environ: Mapping[str, str], dotenv_path: Path | None) -> Settings:
    """Read the settings: `environ` first, then the `.env` at `dotenv_path` (None: there is none).

    An empty value counts as unset; unknown names are ignored. Raises ConfigurationError naming
    every faulty variable at once; no fault shows a secret.
    """
    faults: list[str] = []
    texts, dotenv_faults = _texts(environ, dotenv_path)
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        try:
            values[setting.field] = setting.parse(texts.get(setting.name, setting.default))
        except ConfigurationError as error:
            faults.extend(f"{setting.name}: {fault}" for fault in error.faults)
        except ValueError as error:
            faults.append(f"{setting.name}: {error}")
    if dotenv_faults:
        # What its unread lines say is unknown: judging how settings fit together would mislead.
        raise ConfigurationError([*dotenv_faults, *faults])
    faults.extend(_key_faults(values))
    faults.extend(_exposure_faults(values))
    fleet = _fleet(values, faults)
    if faults or fleet is None:
        raise ConfigurationError(faults)
    keys = values["user_keys"] + values["admin_keys"]
    own = {f.name: values[f.name] for f in fields(Settings) if f.name in values}
    return Settings(**own, fleet=fleet, api_keys=keys, engine_keys=_engine_keys(fleet, texts))


def reload(settings: Settings, environ: Mapping[str, str], dotenv_path: Path | None) -> Settings:
    """Read the engines file again; everything but the fleet and the engines' keys stays.

    Without an engines file the settings come back as they are. Raises ConfigurationError.
    """
    if settings.engines_file is None:
        return settings
    texts, dotenv_faults = _texts(environ, dotenv_path)
    faults = list(dotenv_faults)
    fleet = _fleet_of_file(settings.engines_file, settings.default_model, faults)
    if faults or fleet is None:
        raise ConfigurationError(faults)
    return replace(settings, fleet=fleet, engine_keys=_engine_keys(fleet, texts))


def _texts(environ: Mapping[str, str], dotenv_path: Path | None) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """What is set, environment before `.env`, stripped and not empty; and the faults of `.env`."""
    from_file: Mapping[str, str] = {}
    faults: tuple[str, ...] = ()
    if dotenv_path is not None:
        try:
            from_file = dotenv.read(dotenv_path)
        except ConfigurationError as error:
            faults = error.faults
    texts: dict[str, str] = {}
    for source in (from_file, environ):
        texts.update((name, text.strip()) for name, text in source.items() if text.strip())
    return MappingProxyType(texts), faults


def _key_faults(values: Mapping[str, Any]) -> Iterator[str]:
    # Entries by number, not by name: who wrote `key:name` has put the key where the name belongs.
    places: dict[tuple[str, object], str] = {}
    for variable, setting_field in (("API_KEYS", "user_keys"), ("ADMIN_KEYS", "admin_keys")):
        for number, key in enumerate(values.get(setting_field, ()), 1):
            here = f"entry {number}"
            for what, value in (("key", key.digest), ("name", key.name)):
                before = places.setdefault((what, value), f"{here} of {variable}")
                if before != f"{here} of {variable}":
                    yield f"{variable}: {here} has the same {what} as {before}"
                    break  # without a name of its own, the same key has the same name, too


def _exposure_faults(values: Mapping[str, Any]) -> Iterator[str]:
    keys = values.get("user_keys"), values.get("admin_keys")
    exposed = "host" in values and not is_loopback(values["host"])
    # A faulty list of keys is missing here, not empty: its own fault says enough.
    if exposed and values.get("auth") == "auto" and keys == ((), ()):
        yield (
            f"HOST: others can reach {values['host']} and no key is configured:"
            " set API_KEYS or ADMIN_KEYS, or AUTH=off to serve everybody"
        )


def _fleet(values: Mapping[str, Any], faults: list[str]) -> FleetSpec | None:
    """The fleet of BACKEND_URL, ENGINES or ENGINES_FILE, or echo; None when a fault was noted."""
    sources = {
        "BACKEND_URL": "backend_fleet",
        "ENGINES": "inline_fleet",
        "ENGINES_FILE": "engines_file",
    }
    # A source that was refused is missing in `values`, one that is not set is None.
    given = [name for name, key in sources.items() if key not in values or values[key] is not None]
    if len(given) > 1:
        faults.append(f"{', '.join(given)}: exclude each other; set only one of them")
        return None
    if not given:
        fleet = echo_fleet()
    elif given == ["ENGINES_FILE"]:
        return _fleet_of_file(values["engines_file"], values.get("default_model"), faults)
    elif sources[given[0]] in values:
        fleet = values[sources[given[0]]]
    else:
        return None
    return _with_default(fleet, values.get("default_model"), faults)


def _fleet_of_file(path: Path, default_model: str | None, faults: list[str]) -> FleetSpec | None:
    try:
        fleet = load_engines_file(path)
    except ConfigurationError as error:
        faults.extend(f"ENGINES_FILE: {path}: {fault}" for fault in error.faults)
        return None
    return _with_default(fleet, default_model, faults)


def _with_default(fleet: FleetSpec, default_model: str | None, faults: list[str]) -> FleetSpec | None:
    if default_model is None:
        return fleet
    try:
        return replace(fleet, default_model=default_model)
    except ValueError:
        known = ", ".join(model.name for model in fleet.models[:20])
        faults.append(f"DEFAULT_MODEL: there is no model {quoted(default_model)}; known: {known}")
        return None


def _engine_keys(fleet: FleetSpec, texts: Mapping[str, str]) -> Mapping[str, str]:
    names = {engine.api_key_env for model in fleet.models for engine in model.engines}
    return MappingProxyType({name: texts[name] for name in names if name and name in texts})


def describe(settings: Settings) -> str:
    """What would run, for `check`: address, authentication, models and engines; no secrets."""
    fleet = settings.fleet
    lines = [
        f"address: http://{bracketed(settings.host)}:{settings.port}",
        f"authentication: {_describe_access(settings)}",
    ]
    if fleet.wildcard:
        lines.append(f"every model name is served by {fleet.models[0].name}")
    for model in fleet.models:
        default = fleet.default_model in (model.name, *model.aliases) and not fleet.wildcard
        lines.append(f"model {model.name}{' (default)' if default else ''}")
        if model.aliases:
            lines.append(f"  aliases: {', '.join(model.aliases)}")
        lines.append(f"  strategy: {model.strategy or settings.strategy}")
        lines.append(f"  fallbacks: {_describe_fallbacks(model, settings)}")
        lines.extend(f"  engine {_describe_engine(e, settings)}" for e in model.engines)
    return "\n".join(lines)


def _describe_access(settings: Settings) -> str:
    if settings.auth_on:
        count = len(settings.api_keys)
        admins = sum(key.role == "admin" for key in settings.api_keys)
        return f"on, {count} {'key' if count == 1 else 'keys'} ({admins} admin)"
    return "off (AUTH=off)" if settings.auth == "off" else "off (no key configured)"


def _describe_fallbacks(model: ModelSpec, settings: Settings) -> str:
    if settings.fallback == "off":
        return "none (FALLBACK=off)"
    if model.fallbacks is not None:
        return ", ".join(model.fallbacks) or "none"
    others = [other.name for other in settings.fleet.models if other.name != model.name]
    return ", ".join(others if settings.fallback == "any" else ()) or "none"


def _describe_engine(engine: EngineSpec, settings: Settings) -> str:
    parts = [f"{engine.id}: {engine.url}", f"weight {engine.weight}"]
    if engine.max_concurrency is not None:
        parts.append(f"at most {engine.max_concurrency} at once")
    if engine.model is not None:
        parts.append(f"model {engine.model}")
    if engine.api_key_env is not None:
        unset = "" if engine.api_key_env in settings.engine_keys else ", which is not set"
        parts.append(f"key from {engine.api_key_env}{unset}")
    return ", ".join(parts)


def env_example() -> str:
    """Render `.env.example`: every setting with its help and default, commented out."""
    lines = ["# Copy to .env and take the # off what you change. The environment goes before .env."]
    section = ""
    for setting in SETTINGS:
        if setting.section != section:
            section = setting.section
            lines += ["", f"# --- {section} ---"]
        help_text = setting.help.replace("`", "")
        lines += ["", *textwrap.wrap(help_text, 96, initial_indent="# ", subsequent_indent="# ")]
        lines.append(f"#{setting.name}={setting.default}")
    return "\n".join(lines) + "\n"


def readme_table() -> str:
    """Render the README's table of settings in Markdown."""
    lines = ["| name | default | meaning |", "|---|---|---|"]
    for setting in SETTINGS:
        default = f"`{setting.default}`" if setting.default else "–"
        meaning = setting.help.replace("|", "\\|")
        lines.append(f"| `{setting.name}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _main(arguments: list[str]) -> int:
    renderers = {"env": env_example, "table": readme_table}
    if len(arguments) != 1 or arguments[0] not in renderers:
        print("usage: python -m gateway.settings env|table", file=sys.stderr)
        return 2
    # Bytes: the table has a dash that a Windows console's encoding may lack.
    sys.stdout.buffer.write(renderers[arguments[0]]().encode())
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
