"""The operations that are answered without an engine, by server/routes.py."""

from __future__ import annotations

from gateway.api.operation import JSON_TYPE, Answer, Json, Operation, Parameter, json_answer, ref
from gateway.dialects.bypath import OLLAMA

STATE = "State"
MODELS_TAG = "Models"
_TEXT: Json = {"type": "string"}
_IF_NONE_MATCH = Parameter("header", "If-None-Match", "The `ETag` of what is known already.", _TEXT)
_UNCHANGED = Answer(304, "What is known already is still so.", {}, ("ETag",))

CONSOLE_TAG = "Console"
INDEX = Operation(
    "GET",
    "/",
    "index",
    STATE,
    "List the paths, or show the console",
    "",
    (
        Answer(
            200,
            "Every path with its methods; for browsers, the console.",
            {JSON_TYPE: ref("Index"), "text/html": _TEXT},
        ),
        _UNCHANGED,
    ),
    "Who prefers `text/html` (`Accept`) gets the console, which needs no key; not with `CONSOLE=off`.",
    (_IF_NONE_MATCH,),
)
CONSOLE = Operation(
    "GET",
    "/console/{file}",
    "consoleFile",
    CONSOLE_TAG,
    "Give a file of the console",
    None,
    (Answer(200, "The file.", {"*/*": {}}, ("ETag",)), _UNCHANGED),
    "Not with `CONSOLE=off`.",
    (Parameter("path", "file", "The file's name.", _TEXT), _IF_NONE_MATCH),
    errors=("not_found",),
)
HEALTHZ = Operation(
    "GET",
    "/healthz",
    "live",
    STATE,
    "Say that the process serves",
    None,
    (json_answer(200, "It does, also while it drains.", ref("Status")),),
)
READYZ = Operation(
    "GET",
    "/readyz",
    "ready",
    STATE,
    "Say whether requests can be served",
    None,
    (
        json_answer(200, "They can.", ref("Status")),
        json_answer(503, "Not now; `status` says why.", ref("Status")),
    ),
)
_HEALTH = (
    json_answer(200, "`ok`, or `degraded`: some engines are out.", ref("Health")),
    json_answer(503, "`down`: no engine is available.", ref("Health")),
)
HEALTH = Operation("GET", "/health", "health", STATE, "Tell of every engine", "", _HEALTH)
API_HEALTH = Operation("GET", "/api/v1/health", "apiHealth", STATE, "Tell of every engine", "", _HEALTH)
METRICS = Operation(
    "GET",
    "/metrics",
    "metrics",
    STATE,
    "Give the metrics to Prometheus",
    "metrics",
    (
        Answer(
            200,
            "Prometheus' text format 0.0.4, or, where `Accept` names it, OpenMetrics 1.0 with exemplars.",
            {"text/plain": _TEXT, "application/openmetrics-text": _TEXT},
        ),
    ),
    "Open on loopback to who comes through no proxy; `METRICS_AUTH` says otherwise.",
)
ALERTS = Operation(
    "GET",
    "/api/v1/alerts",
    "alerts",
    STATE,
    "List the alerts",
    "metrics",
    (json_answer(200, "Those that are pending, firing, or have resolved within an hour.", ref("Alerts")),),
    "Firing ones first. What the rules are, and where alerts are sent: `ALERTS_FILE` and `ALERTS_URL`.",
)
_LISTS = {"anyOf": [ref("Models"), ref("AnthropicModels")]}
_TOLD = {"anyOf": [ref("Model"), ref("AnthropicModel")]}
_MODELS = (
    json_answer(200, "Those that the caller may use; with `anthropic-version`, as Anthropic lists them.", _LISTS),
)
MODELS = Operation("GET", "/v1/models", "listModels", MODELS_TAG, "List the models", "", _MODELS)
API_MODELS = Operation("GET", "/api/v1/models", "apiListModels", MODELS_TAG, "List the models", "", _MODELS)
MODEL = Operation(
    "GET",
    "/v1/models/{id}",
    "getModel",
    MODELS_TAG,
    "Tell of one model",
    "",
    (json_answer(200, "The model; with `anthropic-version`, as Anthropic tells of it.", _TOLD),),
    "Names with slashes are found plain and percent-encoded.",
    (Parameter("path", "id", "The model's name, or an alias.", _TEXT),),
    errors=("model_not_found", "not_found"),
)
TAGS = Operation(
    "GET",
    "/api/tags",
    "ollamaTags",
    MODELS_TAG,
    "List the models, for Ollama's clients",
    "",
    (json_answer(200, "Those that the caller may use; sizes are unknown.", ref("OllamaModels")),),
    error_format=OLLAMA,
)
RUNNING = Operation(
    "GET",
    "/api/ps",
    "ollamaRunning",
    MODELS_TAG,
    "List the models that are loaded, for Ollama's clients",
    "",
    (json_answer(200, "All that the caller may use.", ref("OllamaModels")),),
    error_format=OLLAMA,
)
VERSION = Operation(
    "GET",
    "/api/version",
    "ollamaVersion",
    STATE,
    "Tell the version of Ollama whose API this is",
    "",
    (json_answer(200, "Its version.", ref("OllamaVersion")),),
    error_format=OLLAMA,
)
DOCUMENT = Operation(
    "GET",
    "/openapi.json",
    "openapi",
    STATE,
    "Give this document",
    None,
    (json_answer(200, "OpenAPI 3.1.", {"type": "object"}, "ETag"), _UNCHANGED),
    "It tells of no model, engine or key, and needs none.",
    (_IF_NONE_MATCH,),
)
DOCS = Operation(
    "GET",
    "/docs",
    "docs",
    STATE,
    "Show this document as a page",
    None,
    (
        Answer(
            200, "One page, without scripts and whatever else it would have to load.", {"text/html": _TEXT}, ("ETag",)
        ),
        _UNCHANGED,
    ),
    "",
    (_IF_NONE_MATCH,),
)
_EVENTS: Json = {"history": ref("LiveHistory"), "tick": ref("LiveTick"), "end": ref("LiveEnd")}
LIVE = Operation(
    "GET",
    "/api/v1/live",
    "liveFeed",
    CONSOLE_TAG,
    "Follow what happens, a second at a time",
    "metrics",
    (Answer(200, "Events, until the client leaves.", {"text/event-stream": {**_TEXT, "x-events": _EVENTS}}),),
    "What the console shows. First an event `history` (`LiveHistory`), then a `tick` (`LiveTick`) each second; another"
    " `history` behind ticks that a client has not kept up with, or a jump of the clock; `end` (`LiveEnd`) when the key"
    " is not valid any more, or the gateway stops. Not with `CONSOLE=off`.",
    errors=("not_found", "draining"),
)
OPERATIONS = (
    MODELS,
    API_MODELS,
    MODEL,
    TAGS,
    RUNNING,
    VERSION,
    INDEX,
    HEALTHZ,
    READYZ,
    HEALTH,
    API_HEALTH,
    METRICS,
    ALERTS,
    DOCUMENT,
    DOCS,
    CONSOLE,
    LIVE,
)
