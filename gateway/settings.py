"""What the gateway was told: settings from the environment, `.env` and the engines file.

Owns the one table (`SETTINGS`) behind the reading, `.env.example` and docs/CONFIGURATION.md, the rules of what goes
with what, and the frozen `Settings` that they fill; what one value may be is decided in settingvalues.py. No lock:
nothing here changes after loading. Never prints or keeps a client's key (only its digest), and never shows one in a
fault.

`python -m gateway.settings env` prints `.env.example`, `table` the table of docs/CONFIGURATION.md.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gateway import dotenv
from gateway.configuration import ConfigurationError
from gateway.ending import run_to_end
from gateway.fleet import load_engines_file
from gateway.fleetlines import echo_fleet, parse_backend_url, parse_engines, provider_fleet
from gateway.routing.checks import Network, is_header_value, parse_address, quoted
from gateway.routing.specs import STRATEGIES, FleetSpec
from gateway.settingvalues import (
    DAY_MS,
    DAY_S,
    KEY_SET_ALGORITHMS,
    SAMPLERS,
    SECRET_ALGORITHMS,
    ApiKey,
    Parser,
    api_keys,
    choice,
    file_path,
    flag,
    header_pairs,
    host,
    hosts,
    http_url,
    integer,
    jwt_algorithm,
    jwt_secret,
    model_name,
    networks,
    objective,
    optional,
    origins,
    processes,
    ratio,
    region_name,
    seconds,
    share,
    trace_context,
)
from gateway.verify.sandbox.job import ORDER as LEVELS_OF_ISOLATION


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
WATCHING = "Console, traces, alerts"
LIMITS, REUSE, VERIFY = "Limits, budgets, ledger", "Batches and the cache", "Verification"
_TIMEOUT = seconds(0.001, DAY_S)

# Two lines a row: what it is, then what it means and why the default is what it is.
# fmt: off
SETTINGS: tuple[Setting, ...] = (
    Setting("HOST", "host", host, "127.0.0.1",
            "Listening address; one that others can reach needs a key, or `AUTH=off`", LISTEN),
    Setting("PORT", "port", integer(0, 65_535), "8080",
            "Listening port; 0 takes any free one", LISTEN),
    Setting("PROCESSES", "processes", processes, "1",
            "Processes that serve this address, each with its own `WORKERS`; 0: one for each processor", LISTEN),
    Setting("DRAIN_TIMEOUT", "drain_timeout_s", _TIMEOUT, "30",
            "Seconds that requests and streams in flight get to finish after SIGTERM", LISTEN),
    Setting("DRAIN_DELAY", "drain_delay_s", seconds(0.001, DAY_S, zero_is_off=True), "0",
            "Seconds after SIGTERM for which connections are still taken, with `/readyz` 503: for balancers that "
            "learn late of it; 0: none", LISTEN),
    Setting("ALLOWED_HOSTS", "allowed_hosts", hosts, "",
            "Further names by which a gateway on loopback may be asked for (comma list): any other `Host` is 421, "
            "or a page elsewhere could reach it through a browser", LISTEN),

    Setting("BACKEND_URL", "backend_fleet", optional(parse_backend_url), "",
            "One engine for every model name: `http://host:port`, with or without `/v1`. The gateway lists the models "
            "that it lists, and asks it for the first one where a request names none; with `#name` behind it, for that "
            "one always", ENGINES),
    Setting("ENGINES", "inline_fleet", optional(parse_engines), "",
            "Engines in one line: `13b=http://127.0.0.1:8010/v1,http://127.0.0.1:8011/v1;"
            "7b=http://127.0.0.1:8020/v1`. Behind a URL, `#name` is what that engine itself calls the model, if it is "
            "another name: `qwen=http://127.0.0.1:8001/v1#Qwen/Qwen2.5-7B-Instruct` (`%2C` and `%3B` in it are `,` and "
            "`;`). `http://127.0.0.1:8001/v1#name` alone is the model `name` there", ENGINES),
    Setting("ENGINES_FILE", "engines_file", optional(file_path), "",
            "JSON file with models and engines, read again on SIGHUP. Set one of `BACKEND_URL`, "
            "`ENGINES` and `ENGINES_FILE`; with none, the providers are asked whose keys are set (`GROQ_API_KEY`: "
            "`groq/…`), and without those, echo answers", ENGINES),
    Setting("DEFAULT_MODEL", "default_model", optional(model_name), "",
            "Model for requests that name none; unset: `default_model` of the file, else the first",
            ENGINES),

    Setting("STRATEGY", "strategy", choice(*STRATEGIES), "round_robin",
            f"For models without their own: {', '.join(f'`{s}`' for s in STRATEGIES)}", CHOOSING),
    Setting("REGION", "region", optional(region_name), "",
            "Where this gateway is: engines of the same `region` come first; unset: regions do not count", CHOOSING),
    Setting("FALLBACK", "fallback", choice("any", "configured", "off"), "any",
            "When a model cannot answer: `any`: its own `fallbacks` (an empty list: none), then the other "
            "models in file order, but from a model whose engines are all on this machine or private networks only to "
            "such models; `configured`: only its own `fallbacks`; `off`: no other model",
            CHOOSING),
    Setting("ROUTING_SEED", "routing_seed", optional(integer(0, 10**18 - 1)), "",
            "Seed of every random decision, to repeat a run; with `PROCESSES` each makes its own of it; unset: a "
            "new one each start", CHOOSING),
    Setting("DECISION_LOG", "decision_log", optional(file_path), "",
            "File that gets one JSON line for every decision, for `python main.py replay`; with `PROCESSES` one "
            "for each: `.0`, `.1`, … is put behind its name", CHOOSING),
    Setting("RETRY_ATTEMPTS", "retry_attempts", integer(1, 100), "3",
            "Attempts per model, each on another engine where there is one", CHOOSING),
    Setting("SCHEMA_RETRIES", "schema_retries", integer(0, 10), "2",
            "Times a model is asked again, with its faults named, whose answer does not fit the schema asked for",
            CHOOSING),
    Setting("SCHEMAS_DIR", "schemas_dir", optional(file_path), "",
            "Folder of schemas, `<name>.json`, that requests may use by name; kept by `/admin/schemas`", CHOOSING),

    Setting("WORKERS", "workers", integer(1, 10_000), "256",
            "Requests that are asked at once; more of them queue. An open stream is none of them", WORK),
    Setting("QUEUE_SIZE", "queue_size", integer(1, 1_000_000), "1024",
            "Requests that may wait for a worker; one more gets 503 `overloaded`", WORK),
    Setting("QUEUE_TIMEOUT", "queue_timeout_s", _TIMEOUT, "30",
            "Seconds a request may wait for a worker, then 503 `queue_timeout`", WORK),
    Setting("CONNECT_TIMEOUT", "connect_timeout_s", _TIMEOUT, "5",
            "Seconds to connect to an engine (look-up, all addresses, TLS); at most half of a request's time", WORK),
    Setting("DNS_TTL", "dns_ttl_s", seconds(0.001, DAY_S, zero_is_off=True), "30",
            "Seconds that the addresses of an engine's name are kept; 0: looked up for each connection", WORK),
    Setting("REQUEST_TIMEOUT", "request_timeout_s", _TIMEOUT, "60",
            "Seconds for a whole request that is not streamed, all attempts together", WORK),
    Setting("FIRST_TOKEN_TIMEOUT", "first_token_timeout_s", _TIMEOUT, "60",
            "Seconds until the first event of a stream", WORK),
    Setting("STREAM_IDLE_TIMEOUT", "stream_idle_timeout_s", _TIMEOUT, "60",
            "Seconds that a stream may be silent", WORK),
    Setting("STREAM_END_GRACE", "stream_end_grace_s", _TIMEOUT, "1",
            "Seconds that the engine of a finished stream gets for its usage and `[DONE]`; then the gateway ends it", WORK),  # noqa: E501
    Setting("MAX_ANSWER_BYTES", "max_answer_bytes", integer(1024, 1 << 40), "67108864",
            "Largest complete answer taken from an engine (64 MiB); a larger one is the engine's failure", WORK),
    Setting("MAX_EVENT_BYTES", "max_event_bytes", integer(1024, 1 << 40), "8388608",
            "Largest event of a stream (8 MiB), and the most that is kept of one before its first event, likewise", WORK),  # noqa: E501

    Setting("HEALTH_INTERVAL", "health_interval_s", seconds(0.01, DAY_S, zero_is_off=True), "5",
            "Seconds between two probes of an engine; 0 turns probes off", HEALTH),
    Setting("HEALTH_TIMEOUT", "health_timeout_s", _TIMEOUT, "2",
            "Seconds a probe may take", HEALTH),
    Setting("HEALTH_FAILS", "health_fails", integer(1, 1_000), "2",
            "Failed probes in a row that take an engine out; one alone may be chance", HEALTH),
    Setting("HEALTH_PASSES", "health_passes", integer(1, 1_000), "1",
            "Good probes in a row that bring an engine back", HEALTH),

    Setting("BREAKER_WINDOW", "breaker_window_s", _TIMEOUT, "30",
            "Seconds of outcomes that an engine's circuit breaker looks at", HEALTH),
    Setting("BREAKER_MIN_REQUESTS", "breaker_min_requests", integer(1, 1_000_000), "5",
            "Outcomes in that window before it may open; fewer say little", HEALTH),
    Setting("BREAKER_FAILURE_RATIO", "breaker_failure_ratio", ratio, "0.5",
            "Share of failures among them at which it opens", HEALTH),
    Setting("BREAKER_OPEN_SECONDS", "breaker_open_s", _TIMEOUT, "5",
            "Seconds an open breaker leaves its engine alone; doubled each time the trial after it fails", HEALTH),
    Setting("BREAKER_MAX_OPEN_SECONDS", "breaker_max_open_s", _TIMEOUT, "60",
            "Seconds at most, no less than `BREAKER_OPEN_SECONDS`", HEALTH),

    Setting("MAX_BODY_BYTES", "max_body_bytes", integer(1, 1 << 40), "33554432",
            "Largest request body (32 MiB: room for a few images); a larger one gets 413", CLIENTS),
    Setting("MAX_UPLOAD_BYTES", "max_upload_bytes", integer(1, 1 << 50), "1073741824",
            "Largest form (audio, images); it is passed on while it comes, so it takes no memory", CLIENTS),
    Setting("MAX_HEADER_BYTES", "max_header_bytes", integer(256, 1 << 24), "32768",
            "Largest request line and headers together; larger ones get 431", CLIENTS),
    Setting("MAX_JSON_VALUES", "max_json_values", integer(100, 1 << 40), "1000000",
            "Values and keys in a body's JSON; more get 400 `invalid_json`: small ones take much memory and time", CLIENTS),  # noqa: E501
    Setting("CLIENT_TIMEOUT", "client_timeout_s", _TIMEOUT, "30",
            "Seconds a client may take to send a whole request, and for 64 KiB of a form or 1 MiB of a large answer; a whole form has 60 times as long",  # noqa: E501
            CLIENTS),
    Setting("KEEPALIVE_TIMEOUT", "keepalive_timeout_s", _TIMEOUT, "75",
            "Seconds an idle client connection is kept; more than the 60 usual in balancers",
            CLIENTS),
    Setting("MAX_CONNECTIONS", "max_connections", integer(1, 1_000_000), "10000",
            "Open client connections", CLIENTS),
    Setting("ERROR_FORMAT", "error_format", choice("auto", "simple", "openai"), "auto",
            "Shape of errors: `simple`, `openai`, or `auto`: `openai` for OpenAI's SDKs, else `simple`", CLIENTS),
    Setting("CORS_ORIGINS", "cors_origins", origins, "",
            "Origins whose pages may call the gateway: comma list or `*`", CLIENTS),

    Setting("API_KEYS", "user_keys", api_keys("user"), "",
            "Comma list of `name:key` or `key`, role `user`; any key turns authentication on",
            ACCESS),
    Setting("ADMIN_KEYS", "admin_keys", api_keys("admin"), "",
            "The same with the role `admin`", ACCESS),
    Setting("AUTH", "auth", choice("auto", "off"), "auto",
            "`auto`: on as soon as a key exists; `off`: everybody may do everything", ACCESS),

    Setting("STATE_DB", "state_db", file_path, "gateway.db",
            "SQLite file for keys, budgets and the ledger; made when the first key is created or `LEDGER=on`", ACCESS),
    Setting("ROLES_FILE", "roles_file", optional(file_path), "",
            "JSON file with roles besides `admin`, `user` and `viewer`", ACCESS),
    Setting("METRICS_AUTH", "metrics_auth", choice("auto", "off"), "auto",
            "`auto`: `/metrics` needs the permission `metrics` unless only this machine can reach it; `off`: open", ACCESS),  # noqa: E501
    Setting("JWT_SECRET", "jwt_secret", optional(jwt_secret), "",
            "Secret of at least 32 bytes: tokens signed with it are accepted, keys can be exchanged for one", ACCESS),
    Setting("JWT_ALGORITHM", "jwt_algorithm", jwt_algorithm, "HS256",
            "The one algorithm that is accepted: HS256, HS384, HS512, with JWT_JWKS also RS256, ES256, EdDSA", ACCESS),
    Setting("JWT_ISSUER", "jwt_issuer", optional(str), "",
            "`iss` that a token must have", ACCESS),
    Setting("JWT_AUDIENCE", "jwt_audience", optional(str), "",
            "`aud` that a token must have", ACCESS),
    Setting("JWT_JWKS", "jwt_jwks", optional(str), "",
            "URL or file of a JSON Web Key Set; needs `pip install '.[jwt]'`", ACCESS),

    Setting("RATE_LIMIT_RPM", "rate_limit_rpm", optional(integer(0, 10**9)), "",
            "Requests a minute for keys without their own limit; unset or 0: no limit", LIMITS),
    Setting("RATE_LIMIT_TPM", "rate_limit_tpm", optional(integer(0, 10**9)), "",
            "Tokens a minute, prompt and answer, likewise", LIMITS),
    Setting("RATE_LIMIT_CONCURRENCY", "rate_limit_concurrency", optional(integer(0, 10**9)), "",
            "Requests at a time, likewise", LIMITS),
    Setting("RATE_LIMIT_IP_RPM", "rate_limit_ip_rpm", optional(integer(0, 10**9)), "",
            "Requests a minute of one client address (IPv6: of a /64)", LIMITS),
    Setting("RATE_LIMIT_GLOBAL_RPM", "rate_limit_global_rpm", optional(integer(0, 10**9)), "",
            "Requests a minute of everybody together", LIMITS),
    Setting("RATE_LIMIT_GLOBAL_TPM", "rate_limit_global_tpm", optional(integer(0, 10**9)), "",
            "Tokens a minute of everybody together", LIMITS),
    Setting("RATE_LIMIT_BURST", "rate_limit_burst", ratio, "0.1",
            "Share of a minute's requests that may pass at once; at least one", LIMITS),
    Setting("RATE_LIMIT_TOKEN_BURST", "rate_limit_token_burst", ratio, "1.0",
            "Share of a minute's tokens that may pass at once; at least those of the largest request that can pass", LIMITS),  # noqa: E501
    Setting("RATE_LIMIT_TARGET_WAIT", "limit_target_wait_s", seconds(0.001, DAY_S, zero_is_off=True), "2",
            "When requests wait longer for a worker or an engine, keys' limits shrink, low priorities first; 0: never", LIMITS),  # noqa: E501
    Setting("RATE_LIMIT_TARGET_ERRORS", "limit_target_errors", share, "0.5",
            "When a larger share of requests fails, likewise; 0: never", LIMITS),
    Setting("TRUSTED_PROXIES", "trusted_proxies", networks, "",
            "Addresses and networks whose `X-Forwarded-For` is believed", LIMITS),
    Setting("LEDGER", "ledger", choice("auto", "on", "off"), "auto",
            "One row per request in STATE_DB, never texts: `auto` when that file exists, `on` makes it, `off`", LIMITS),
    Setting("LEDGER_DAYS", "ledger_days", integer(0, 36_500), "90",
            "Days that rows are kept; 0: for ever", LIMITS),

    Setting("BATCH_MAX_SIZE", "batch_max_size", integer(1, 4096), "32",
            "Queries (or texts of embeddings) in one call to an engine at most; 1: each has a call of its own", REUSE),
    Setting("BATCH_MAX_WAIT_MS", "batch_max_wait_ms", integer(0, 60_000), "20",
            "Milliseconds that the first query of a batch waits for others; one that comes alone does not wait", REUSE),
    Setting("BATCH_EMBEDDINGS", "batch_embeddings", flag, "off",
            "`on`: `/v1/embeddings` requests of one model that come together share calls, too", REUSE),
    Setting("COALESCE", "coalesce", flag, "on",
            "Identical deterministic requests under way (temperature 0 or a seed; embeddings) share one call; "
            "a request says otherwise with `X-Gateway-Coalesce: on` or `off`", REUSE),
    Setting("CACHE", "cache", flag, "off",
            "`on`: answers to deterministic requests are kept and given again; `X-Gateway-Cache: on` has any request "
            "count as one", REUSE),
    Setting("CACHE_TTL", "cache_ttl_s", seconds(1, 10 * 365 * DAY_S), "3600",
            "Seconds that an answer is kept", REUSE),
    Setting("CACHE_MAX_BYTES", "cache_max_bytes", integer(65_536, 1 << 40), "67108864",
            "Memory that answers may take (64 MiB); the least recently used go", REUSE),
    Setting("CACHE_DB", "cache_db", optional(file_path), "",
            "SQLite file that keeps the answers, too: the cache outlives the process", REUSE),
    Setting("CACHE_SCOPE", "cache_scope", choice("key", "global"), "key",
            "Who is given the same answers and calls: `key`: each key its own; `global`: all keys together", REUSE),
    Setting("CACHE_NEAR", "cache_near", flag, "off",
            "`on`: a question that differs from one that was answered in case, politeness, articles or punctuation "
            "alone is given that answer", REUSE),
    Setting("CACHE_GUARD", "cache_guard", flag, "on",
            "The guard of words for `CACHE_NEAR`, which needs no model; `off`: the similarity of embeddings alone "
            "decides what is alike, which gives wrong answers now and then", REUSE),
    Setting("CACHE_SIMILARITY", "cache_similarity", ratio, "0.95",
            "Least cosine of two questions' embeddings, where `EMBEDDINGS_MODEL` is set", REUSE),
    Setting("EMBEDDINGS_MODEL", "embeddings_model", optional(model_name), "",
            "Model of this gateway that gives the embeddings of questions", REUSE),
    Setting("REDIS_URL", "redis_url", optional(str), "",
            "`redis://host:port/0`: gateways hold limits and budgets together, share revoked keys and kept answers; "
            "needs `pip install '.[redis]'`", REUSE),
    Setting("SHARED_FAIL", "shared_fail", choice("local", "closed"), "local",
            "When Redis cannot be asked for a limit: `local`: this gateway lets pass its share of it, by the number of "
            "gateways last known; `closed`: what a limit applies to is refused with 503", REUSE),
    Setting("REDIS_TIMEOUT_MS", "redis_timeout_ms", integer(1, 60_000), "50",
            "Milliseconds that a request waits for Redis at most, each time that it asks; then it is left alone for a "
            "while", REUSE),

    Setting("SANDBOX", "sandbox", choice("auto", *LEVELS_OF_ISOLATION, "off"), "auto",
            "Where programs that models wrote are run: `auto`: the strongest level there is of `container`, "
            "`bubblewrap`, `namespaces`, `process`; a level's name; `off`: nothing is run", VERIFY),
    Setting("SANDBOX_MIN", "sandbox_min", choice(*LEVELS_OF_ISOLATION), "namespaces",
            "Below this level nothing is run, and the answer says so; `process` is no isolation, only limits", VERIFY),
    Setting("SANDBOX_RUNTIME", "sandbox_runtime", optional(str), "",
            "The command that runs containers, with its options; unset: `docker` or `podman`, if found", VERIFY),
    Setting("SANDBOX_IMAGE", "sandbox_image", optional(str), "",
            "The image for level `container`, with `python3` in it; it must be there: none is pulled", VERIFY),
    Setting("SANDBOX_CONCURRENCY", "sandbox_concurrency", integer(1, 1000), "2",
            "Programs that run at once; others wait", VERIFY),
    Setting("SANDBOX_TIMEOUT", "sandbox_timeout_s", seconds(0.1, 3600), "30",
            "Seconds that a request may ask for one program at most", VERIFY),
    Setting("SANDBOX_MEMORY_MB", "sandbox_memory_mb", integer(32, 1 << 20), "256",
            "MiB of memory that a request may ask for one program at most", VERIFY),
    Setting("HEAL_ATTEMPTS", "heal_attempts", integer(0, 5), "1",
            "How often a program that failed goes back to the model that wrote it, with its error; 0: never", VERIFY),
    Setting("VERIFY_TIMEOUT", "verify_timeout_s", seconds(0.1, DAY_S), "60",
            "Seconds for all members of a verification; who has not answered by then does not count", VERIFY),

    Setting("LOG_LEVEL", "log_level", choice("debug", "info", "warning", "error"), "info",
            "`debug`, `info`, `warning` or `error`; to stderr", LOGS),
    Setting("LOG_FORMAT", "log_format", choice("auto", "text", "json"), "auto",
            "`text`, `json` (a line each), or `auto`: text on a terminal, JSON elsewhere", LOGS),
    Setting("LOG_BODIES", "log_bodies", flag, "off",
            "`on` logs prompts, and answers that are not streamed; they may be private", LOGS),
    Setting("SLOW_MS", "slow_ms", integer(0, DAY_MS), "0",
            "Milliseconds above which a request's line is a warning and tells of its attempts; 0: never", LOGS),

    Setting("CONSOLE", "console", flag, "on",
            "`off`: no page at `/`, and nothing is kept for it", WATCHING),
    Setting("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp_endpoint", optional(http_url), "",
            "Where traces go: `http://127.0.0.1:4318`, say; OTLP over HTTP, in JSON; unset: nowhere", WATCHING),
    Setting("OTEL_EXPORTER_OTLP_HEADERS", "otlp_headers", header_pairs, "",
            "What is sent with them: `name=value` pairs parted by commas, values percent-encoded", WATCHING),
    Setting("OTEL_SERVICE_NAME", "otel_service_name", str, "inference-gateway",
            "The name of this gateway in traces and metrics", WATCHING),
    Setting("OTEL_TRACES_SAMPLER", "traces_sampler", choice(*SAMPLERS), "parentbased_always_on",
            "Which requests are traced, as OpenTelemetry has it: `always_on`, `always_off`, `traceidratio`, or these "
            "with `parentbased_` before, where the caller's decision goes first; failed requests always are", WATCHING),
    Setting("OTEL_TRACES_SAMPLER_ARG", "traces_ratio", share, "1.0",
            "The share of requests for `traceidratio`, 0 to 1", WATCHING),
    Setting("OTEL_PROPAGATORS", "propagates_traces", trace_context, "tracecontext",
            "`tracecontext`: `traceparent` and `tracestate` are taken from callers and sent to engines; `none`: "
            "they are not", WATCHING),
    Setting("OTEL_TRACES_EXPORTER", "traces_exporter", choice("otlp", "none"), "otlp",
            "`none`: no traces are sent there", WATCHING),
    Setting("OTEL_METRICS_EXPORTER", "metrics_exporter", choice("none", "otlp"), "none",
            "`otlp`: the metrics are sent to that endpoint, too", WATCHING),
    Setting("OTEL_METRIC_EXPORT_INTERVAL", "metric_interval_ms", integer(100, DAY_MS), "60000",
            "Milliseconds from one time that they are sent to the next", WATCHING),
    Setting("ALERTS_FILE", "alerts_file", optional(file_path), "",
            "JSON file of rules and silences, beside or instead of the usual rules; read again on SIGHUP", WATCHING),
    Setting("ALERTS_URL", "alerts_url", optional(http_url), "",
            "Where alerts are sent: an Alertmanager (`http://127.0.0.1:9093`) or a webhook", WATCHING),
    Setting("SLO_AVAILABILITY", "slo_availability", optional(objective), "",
            "Share of requests that are to be answered without a fault of the service: `0.999`, say", WATCHING),
    Setting("SLO_LATENCY_MS", "slo_latency_ms", optional(integer(1, DAY_MS)), "",
            "Milliseconds within which an answer (a stream's first event) counts as in time; the share that is to be "
            "is SLO_AVAILABILITY, else 0.99", WATCHING),
)
# fmt: on

_SOURCES = {"BACKEND_URL": "backend_fleet", "ENGINES": "inline_fleet", "ENGINES_FILE": "engines_file"}  # of engines


@dataclass(frozen=True)
class Settings:
    """All settings, valid together; made by `load`. Immutable, so any thread may read it.

    `engines_file` is what `reload` reads again (None: the fleet came from elsewhere);
    `default_model` is the variable DEFAULT_MODEL (the fleet knows its default). `engine_keys` are
    the engines' own keys by the names their `api_key_env` give; a name not set is missing. `dotenv_path` is the `.env`
    that was read, None for none; `dotenv_warnings` tell what in it says nothing here.
    """

    host: str
    port: int
    processes: int
    drain_timeout_s: float
    drain_delay_s: float
    allowed_hosts: tuple[str, ...]
    engines_file: Path | None
    default_model: str | None
    strategy: str
    region: str | None
    fallback: str
    routing_seed: int | None
    decision_log: Path | None
    retry_attempts: int
    schema_retries: int
    schemas_dir: Path | None
    workers: int
    queue_size: int
    queue_timeout_s: float
    connect_timeout_s: float
    dns_ttl_s: float
    request_timeout_s: float
    first_token_timeout_s: float
    stream_idle_timeout_s: float
    stream_end_grace_s: float
    max_answer_bytes: int
    max_event_bytes: int
    health_interval_s: float
    health_timeout_s: float
    health_fails: int
    health_passes: int
    breaker_window_s: float
    breaker_min_requests: int
    breaker_failure_ratio: float
    breaker_open_s: float
    breaker_max_open_s: float
    max_body_bytes: int
    max_upload_bytes: int
    max_header_bytes: int
    max_json_values: int
    client_timeout_s: float
    keepalive_timeout_s: float
    max_connections: int
    error_format: str
    cors_origins: tuple[str, ...]
    auth: str
    state_db: Path
    roles_file: Path | None
    metrics_auth: str
    jwt_secret: bytes | None = field(repr=False)
    jwt_algorithm: str
    jwt_issuer: str | None
    jwt_audience: str | None
    jwt_jwks: str | None
    rate_limit_rpm: int | None
    rate_limit_tpm: int | None
    rate_limit_concurrency: int | None
    rate_limit_ip_rpm: int | None
    rate_limit_global_rpm: int | None
    rate_limit_global_tpm: int | None
    rate_limit_burst: float
    rate_limit_token_burst: float
    limit_target_wait_s: float
    limit_target_errors: float
    trusted_proxies: tuple[Network, ...]
    ledger: str
    ledger_days: int
    batch_max_size: int
    batch_max_wait_ms: int
    batch_embeddings: bool
    coalesce: bool
    cache: bool
    cache_ttl_s: float
    cache_max_bytes: int
    cache_db: Path | None
    cache_scope: str
    cache_near: bool
    cache_guard: bool
    cache_similarity: float
    embeddings_model: str | None
    redis_url: str | None = field(repr=False)
    shared_fail: str
    redis_timeout_ms: int
    sandbox: str
    sandbox_min: str
    sandbox_runtime: str | None
    sandbox_image: str | None
    sandbox_concurrency: int
    sandbox_timeout_s: float
    sandbox_memory_mb: int
    heal_attempts: int
    verify_timeout_s: float
    log_level: str
    log_format: str
    log_bodies: bool
    slow_ms: int
    console: bool
    otlp_endpoint: str | None = field(repr=False)
    otlp_headers: Mapping[str, str] = field(repr=False)
    otel_service_name: str
    traces_sampler: str
    traces_ratio: float
    propagates_traces: bool
    traces_exporter: str
    metrics_exporter: str
    metric_interval_ms: int
    alerts_file: Path | None
    alerts_url: str | None = field(repr=False)
    slo_availability: float | None
    slo_latency_ms: int | None
    fleet: FleetSpec
    api_keys: tuple[ApiKey, ...]
    engine_keys: Mapping[str, str] = field(repr=False)
    dotenv_path: Path | None = field(compare=False)
    dotenv_warnings: tuple[str, ...] = field(compare=False)
    flags: frozenset[str] = frozenset()  # which of the settings the command line gave

    @property
    def auth_on(self) -> bool:
        """Whether the settings alone have clients show a key or a token; a key of the state database does so, too."""
        return self.auth != "off" and bool(self.api_keys or self.jwt_secret or self.jwt_jwks)

    @property
    def has_peers(self) -> bool:
        """Whether other processes, or gateways that share Redis, choose among the same engines, as far as is known."""
        return self.processes != 1 or self.redis_url is not None

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the listening address."""
        return is_loopback(self.host)


def _is_there(path: Path | None) -> bool:
    """Whether the file exists; a path that cannot be looked at does not."""
    try:
        return path is not None and path.is_file()
    except (OSError, ValueError):
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listening address; of names, only localhost is."""
    address = parse_address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def load(
    environ: Mapping[str, str],
    dotenv_path: Path | None,
    look: Callable[[Mapping[str, Any]], Iterable[str]] = lambda values: (),
    flags: Mapping[str, str] = MappingProxyType({}),
) -> Settings:
    """Read the settings: `flags` first, then `environ`, then the `.env` at `dotenv_path` (None: there is none).

    `flags` are the texts that the command line gave, by name; when engines are among them, other sources of engines
    count as unset.

    An empty value counts as unset; unknown names are ignored (`dotenv_warnings` tell of those in `.env`). `look` finds
    the faults of other files that the settings name; it gets the values that could be read, by field. Raises
    ConfigurationError naming every faulty variable at once; no fault shows a secret.
    """
    faults: list[str] = []
    from_file, dotenv_faults = _read_dotenv(dotenv_path)
    texts, blank = _texts(environ, from_file)
    texts = _with_flags(texts, flags)
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
    faults.extend(_jwt_faults(values))
    faults.extend(_breaker_faults(values))
    faults.extend(_cache_faults(values))
    faults.extend(_otlp_faults(values))
    fleet = _fleet(values, texts, faults)
    if fleet is not None:
        faults.extend(_embedding_faults(values, fleet))
        faults.extend(_engine_key_faults(fleet, texts, blank))
    faults.extend(look(MappingProxyType(values)))
    # Not without the fleet: it names the keys of engines.
    warnings = () if from_file is None or fleet is None else tuple(_unknown_names(from_file, fleet))
    if faults or fleet is None:
        raise ConfigurationError(faults, warnings)
    keys = values["user_keys"] + values["admin_keys"]
    own = {f.name: values[f.name] for f in fields(Settings) if f.name in values}
    return Settings(
        **own,
        fleet=fleet,
        api_keys=keys,
        engine_keys=_engine_keys(fleet, texts),
        flags=frozenset(flags),
        dotenv_path=None if dotenv_path is None or from_file is None else _absolute(dotenv_path),
        dotenv_warnings=warnings,
    )


def flag_of(name: str) -> str:
    """The command line's flag for the setting of that name."""
    return "--" + name.lower().replace("_", "-")


def as_given(faults: Iterable[str], flags: Container[str]) -> list[str]:
    """The faults, each with the flag instead of the name where the command line gave the setting."""

    def given(names: str) -> str:
        return ", ".join(flag_of(name) if name in flags else name for name in names.split(", "))

    return [given(names) + colon + what for names, colon, what in (fault.partition(": ") for fault in faults)]


def reload(settings: Settings, environ: Mapping[str, str], dotenv_path: Path | None) -> Settings:
    """Read the engines file again; everything but the fleet and the engines' keys stays.

    Without an engines file the settings come back as they are. Raises ConfigurationError.
    """
    if settings.engines_file is None:
        return settings
    from_file, dotenv_faults = _read_dotenv(dotenv_path)
    texts, blank = _texts(environ, from_file)
    faults = list(dotenv_faults)
    fleet = _fleet_of_file(settings.engines_file, settings.default_model, faults)
    if fleet is not None and not dotenv_faults:
        faults.extend(_engine_key_faults(fleet, texts, blank))
    if faults or fleet is None:
        raise ConfigurationError(faults)
    return replace(settings, fleet=fleet, engine_keys=_engine_keys(fleet, texts))


def _read_dotenv(path: Path | None) -> tuple[dotenv.Variables | None, tuple[str, ...]]:
    """What `.env` says (None: there is none, or it cannot be read), and its faults."""
    try:
        return (None if path is None else dotenv.read(path)), ()
    except ConfigurationError as error:
        return None, error.faults


def _texts(environ: Mapping[str, str], from_file: dotenv.Variables | None) -> tuple[Mapping[str, str], frozenset[str]]:
    """What is set, environment before `.env`, stripped and not empty; and the names of what is set to nothing."""
    values = {} if from_file is None else from_file.values
    texts: dict[str, str] = {}
    for source in (values, environ):
        texts.update((name, text.strip()) for name, text in source.items() if text.strip())
    blank = frozenset(values).union(environ).difference(texts)
    return MappingProxyType(texts), blank


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except OSError:  # the working directory is gone
        return path


def _unknown_names(from_file: dotenv.Variables, fleet: FleetSpec) -> Iterator[str]:
    keys = {name for name, _ in fleet.secrets()}
    return dotenv.unknown_names(from_file.assignments, [*(setting.name for setting in SETTINGS), *sorted(keys)])


def _with_flags(texts: Mapping[str, str], flags: Mapping[str, str]) -> Mapping[str, str]:
    shadowed = set(_SOURCES) if _SOURCES.keys() & flags.keys() else set()
    return MappingProxyType({**{name: text for name, text in texts.items() if name not in shadowed}, **flags})


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
    other = values.get("jwt_secret", True) or values.get("jwt_jwks") or _is_there(values.get("state_db"))
    if exposed and values.get("auth") == "auto" and keys == ((), ()) and not other:
        yield (
            f"HOST: others can reach {values['host']} and no key is configured:"
            " set API_KEYS or ADMIN_KEYS, or AUTH=off to serve everybody"
        )


def _otlp_faults(values: Mapping[str, Any]) -> Iterator[str]:
    if values.get("metrics_exporter") == "otlp" and values.get("otlp_endpoint", "") is None:
        yield "OTEL_METRICS_EXPORTER: otlp needs OTEL_EXPORTER_OTLP_ENDPOINT, or there is nowhere to send them"


def _jwt_faults(values: Mapping[str, Any]) -> Iterator[str]:
    secret, keys = values.get("jwt_secret"), values.get("jwt_jwks")
    algorithm = values.get("jwt_algorithm")
    if secret and keys:
        yield "JWT_SECRET, JWT_JWKS: exclude each other; set only one of them"
    elif secret and algorithm in KEY_SET_ALGORITHMS:
        yield f"JWT_ALGORITHM: {algorithm} needs JWT_JWKS, not JWT_SECRET"
    elif keys and algorithm in SECRET_ALGORITHMS:
        yield f"JWT_ALGORITHM: {algorithm} needs JWT_SECRET; set the algorithm of the keys in JWT_JWKS"
    elif secret is keys is None and "jwt_secret" in values and "jwt_jwks" in values and values.get("auth") != "off":
        yield from _keyless_jwt_faults(values, algorithm)


def _keyless_jwt_faults(values: Mapping[str, Any], algorithm: str | None) -> Iterator[str]:
    # Without a key no token is asked for, and nobody would notice: everybody is served, or keys alone count.
    needed = "JWT_JWKS" if algorithm in KEY_SET_ALGORITHMS else "JWT_SECRET"
    if algorithm not in (None, "HS256"):
        yield f"JWT_ALGORITHM: {algorithm} needs {needed}, which is not set"
        either = needed
    else:
        either = "JWT_SECRET or JWT_JWKS"
    for name, setting_field in (("JWT_ISSUER", "jwt_issuer"), ("JWT_AUDIENCE", "jwt_audience")):
        if values.get(setting_field) is not None:
            yield f"{name}: says nothing without {either}, which is not set"


def _breaker_faults(values: Mapping[str, Any]) -> Iterator[str]:
    first_s, longest_s = values.get("breaker_open_s", 0.0), values.get("breaker_max_open_s", DAY_S)
    if first_s > longest_s:
        yield (
            f"BREAKER_OPEN_SECONDS, BREAKER_MAX_OPEN_SECONDS: {first_s:g} is more than {longest_s:g},"
            " but a breaker opens for the former at first and never for longer than the latter"
        )


def _cache_faults(values: Mapping[str, Any]) -> Iterator[str]:
    if not values.get("cache", True):
        for name, setting_field in (("CACHE_NEAR", "cache_near"), ("CACHE_DB", "cache_db")):
            if values.get(setting_field):
                yield f"{name}: says nothing without CACHE=on"
    if not values.get("cache_guard", True):
        if not values.get("cache_near", True):
            yield "CACHE_GUARD: says nothing without CACHE_NEAR=on"
        elif values.get("embeddings_model", "") is None:
            yield "CACHE_GUARD: off needs EMBEDDINGS_MODEL, or nothing would tell what is alike"


def _embedding_faults(values: Mapping[str, Any], fleet: FleetSpec) -> Iterator[str]:
    model = values.get("embeddings_model")
    if model in fleet.split_by_name():
        yield f"EMBEDDINGS_MODEL: others answer for the model {quoted(model)}, and what they give cannot be compared"
    elif model in fleet.virtual_by_name():
        yield f"EMBEDDINGS_MODEL: the model {quoted(model)} is made of others: it answers chat completions only"
    elif model is not None and not (fleet.by_engines or fleet.groups) and model not in fleet.model_by_name():
        known = ", ".join(spec.name for spec in fleet.models[:20])
        yield f"EMBEDDINGS_MODEL: there is no model {quoted(model)}; known: {known}"


def _fleet(values: Mapping[str, Any], texts: Mapping[str, str], faults: list[str]) -> FleetSpec | None:
    """The fleet of BACKEND_URL, ENGINES or ENGINES_FILE, of the providers whose keys are set, or echo; None when a
    fault was noted."""
    # A source that was refused is missing in `values`, one that is not set is None.
    given = [name for name, key in _SOURCES.items() if key not in values or values[key] is not None]
    if len(given) > 1:
        faults.append(f"{', '.join(given)}: exclude each other; set only one of them")
        return None
    if not given:
        fleet = provider_fleet(texts.__contains__) or echo_fleet()
    elif given == ["ENGINES_FILE"]:
        return _fleet_of_file(values["engines_file"], values.get("default_model"), faults)
    elif _SOURCES[given[0]] in values:
        fleet = values[_SOURCES[given[0]]]
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
        others = [*(v.name for v in fleet.virtual), *(s.name for s in fleet.splits)]
        known = ", ".join([*(f"{m.prefix}…" if m.prefix else m.name for m in fleet.models), *others][:20])
        faults.append(f"DEFAULT_MODEL: there is no model {quoted(default_model)}; known: {known}")
        return None


def _engine_key_faults(fleet: FleetSpec, texts: Mapping[str, str], blank: Container[str]) -> Iterator[str]:
    """What is wrong with the engines' keys, which go into a header; no fault shows one. One that is not set is none:
    the engine may need it for other gateways only."""
    users: dict[str, list[str]] = {}
    for name, whose in fleet.secrets():
        users.setdefault(name, []).append(whose)
    for name, engines in users.items():
        more = f" and {len(engines) - 3} more" if len(engines) > 3 else ""
        whose = f"the key of engine {', '.join(engines[:3])}{more}"
        if name in blank:
            yield f"{name}: {whose} is empty; take the variable away if the engine needs no key"
        elif not is_header_value(texts.get(name, "x")):
            yield f"{name}: {whose} must be printable ASCII characters, without line breaks"


def _engine_keys(fleet: FleetSpec, texts: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType({name: texts[name] for name, _ in fleet.secrets() if name in texts})


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
    """Render the table of settings in docs/CONFIGURATION.md, some rows of which README has, too."""
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
    run_to_end(lambda: _main(sys.argv[1:]), printing=True)
