"""The bodies of answers, in JSON Schema: the gateway's own as they are made, an engine's as far as it is checked."""

from __future__ import annotations

from typing import Any

from gateway.api.operation import Json, ref
from gateway.errors import ERRORS
from gateway.telemetry.usage import EXPRESSION_BY_COLUMN, SUMS

TEXT: Json = {"type": "string"}
FLAG: Json = {"type": "boolean"}
COUNT: Json = {"type": "integer", "minimum": 0}
NUMBER: Json = {"type": "number", "minimum": 0}
ENGINE_STATES = ("up", "down", "resting", "misconfigured", "open", "half_open", "draining", "removed")
STRATEGIES = ("tests_passed", "consensus", "majority", "best_available", "abstained", "no_code")
ISOLATIONS = ("container", "bubblewrap", "namespaces", "process")


def _or_null(schema: Json) -> Json:
    return {**schema, "type": [schema["type"], "null"]}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _open(optional: Json, /, **required: Json) -> Json:
    """An object that may have other members as well."""
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def _closed(optional: Json, /, **required: Json) -> Json:
    """An object that has no others."""
    return {**_open(optional, **required), "additionalProperties": False}


def _const(value: Any) -> Json:
    return {"const": value}


_TEXT_OR_NULL = _or_null(TEXT)
_COUNT_OR_NULL = _or_null(COUNT)
_USAGE = _open({"completion_tokens": COUNT}, prompt_tokens=COUNT, total_tokens=COUNT)

_ANSWERED: dict[str, Json] = {
    "ChatCompletion": _open(
        {"object": TEXT, "created": COUNT, "verification": ref("Verification")},
        id={**TEXT, "description": "The request's id."},
        model={**TEXT, "description": "The gateway's name of the model that has answered."},
        choices=_list(_open({"index": COUNT, "finish_reason": _TEXT_OR_NULL})),
        usage=ref("Usage"),
    ),
    "Completion": _open(
        {"object": TEXT, "created": COUNT},
        id=TEXT,
        model=TEXT,
        choices=_list(_open({"index": COUNT, "text": TEXT, "finish_reason": _TEXT_OR_NULL})),
        usage=ref("Usage"),
    ),
    "Embeddings": _open(
        {"object": TEXT},
        model=TEXT,
        data=_list(_open({"index": COUNT, "embedding": {"type": ["array", "string"]}})),
        usage=ref("Usage"),
    ),
    "Usage": {**_USAGE, "description": "Tokens; estimated where the engine told none."},
    "QueryResult": _closed({}, result=TEXT),
}

_BLOCK = _closed({}, language=TEXT, code=TEXT, line_start=COUNT, line_end=COUNT)
_RUN = _closed(
    {},
    success=FLAG,
    exit_code={"type": ["integer", "null"]},
    stdout=_TEXT_OR_NULL,
    stderr=_TEXT_OR_NULL,
    execution_time=NUMBER,
    error=_TEXT_OR_NULL,
    isolation={"enum": [*ISOLATIONS, None]},
    truncated=FLAG,
)
_MEMBERS_ANSWER = _closed(
    {},
    model_name=TEXT,
    provider=_TEXT_OR_NULL,
    text=_TEXT_OR_NULL,
    code_blocks=_list(_BLOCK),
    execution_results=_list(_RUN),
    latency=NUMBER,
    timestamp=TEXT,
    error={"anyOf": [_closed({}, error={"enum": list(ERRORS)}, message=TEXT), {"type": "null"}]},
    healed=FLAG,
)
_VERIFIED: dict[str, Json] = {
    "Verification": _closed(
        {},
        verified=FLAG,
        consensus=FLAG,
        agreement={"type": "number", "minimum": 0, "maximum": 1},
        successful_executions=COUNT,
        total_executions=COUNT,
        synthesis_strategy={"enum": list(STRATEGIES)},
        groups=_list(_list(TEXT)),
        details={"type": "object"},
    ),
    "Inference": _closed(
        {},
        request_id=TEXT,
        model_responses=_list(_MEMBERS_ANSWER),
        verification=ref("Verification"),
        selected_response=_TEXT_OR_NULL,
        total_latency=NUMBER,
        timestamp=TEXT,
    ),
}

ENGINE = _closed(
    {},
    id=TEXT,
    url=TEXT,
    state={"enum": list(ENGINE_STATES)},
    weight={"type": "number", "minimum": 0},
    in_flight=COUNT,
    last_error=_TEXT_OR_NULL,
    breaker=TEXT,
    available=FLAG,
    region=_TEXT_OR_NULL,
)
_STATE: dict[str, Json] = {
    "Index": _closed({}, name=TEXT, version=TEXT, endpoints={"type": "object", "additionalProperties": TEXT}),
    "Status": _closed({}, status=TEXT),
    "Health": _closed(
        {},
        status={"enum": ["ok", "degraded", "down"]},
        models={
            "type": "object",
            "additionalProperties": _closed({}, available=FLAG, strategy=TEXT, engines=_list(ref("Engine"))),
        },
    ),
    "Engine": ENGINE,
    "Alert": _closed(
        {"silenced": {**_const(True), "description": "It is not sent."}},
        name={**TEXT, "description": "The rule's name."},
        state={"enum": ["pending", "firing", "resolved"]},
        severity=TEXT,
        labels={"type": "object", "additionalProperties": TEXT},
        value={"type": ["number", "null"], "description": "What was measured when its condition held last."},
        since={**NUMBER, "description": "When it came into this state, in Unix seconds."},
        summary=TEXT,
    ),
    "Alerts": _closed({}, alerts=_list(ref("Alert"))),
    "Slo": _closed(
        {},
        model=TEXT,
        objective={"enum": ["availability", "latency"]},
        target={**NUMBER, "description": "The share of requests that are to be good."},
        budget_remaining={"type": "number", "description": "What is left of three days' error budget, of 1."},
        burn={
            "type": "object",
            "additionalProperties": NUMBER,
            "description": "By window (1h, 6h, 3d): how many times as fast as allowed it is spent.",
        },
    ),
    "Model": _closed(
        {
            "family": TEXT,
            "max_model_len": COUNT,
            "members": {**_list(TEXT), "description": "The models that it is made of."},
        },
        id=TEXT,
        object=_const("model"),
        created=COUNT,
        owned_by=TEXT,
        available=FLAG,
    ),
    "Models": _closed({}, object=_const("list"), data=_list(ref("Model"))),
    "AnthropicModel": _open({}, type=_const("model"), id=TEXT, display_name=TEXT, created_at=TEXT),
    "AnthropicModels": _closed(
        {},
        data=_list(ref("AnthropicModel")),
        has_more=FLAG,
        first_id=_or_null(TEXT),
        last_id=_or_null(TEXT),
    ),
    "OllamaModels": _closed({}, models=_list(_open({}, name=TEXT, model=TEXT, size=COUNT, digest=TEXT))),
    "OllamaVersion": _closed({}, version=TEXT),
    "OllamaModel": _open({}, details={"type": "object"}, model_info={"type": "object"}, capabilities=_list(TEXT)),
}

KEY: dict[str, Json] = {
    "name": TEXT,
    "role": TEXT,
    "state": {"enum": ["active", "expired", "revoked", "rotated"]},
    "models": {**_list(TEXT), "description": "Empty: all."},
    "rpm": _COUNT_OR_NULL,
    "tpm": _COUNT_OR_NULL,
    "concurrency": _COUNT_OR_NULL,
    "budget_usd": _or_null(NUMBER),
    "budget_period": _TEXT_OR_NULL,
    "priority": _TEXT_OR_NULL,
    "residency": {**_TEXT_OR_NULL, "description": "The region that what it asks must not leave."},
    "created": {**COUNT, "description": "Unix seconds, like the other times."},
    "expires": _COUNT_OR_NULL,
    "revoked": _COUNT_OR_NULL,
    "previous_key_until": _COUNT_OR_NULL,
}
_USED: dict[str, Json] = {
    **dict.fromkeys(EXPRESSION_BY_COLUMN, _TEXT_OR_NULL),
    "status": _COUNT_OR_NULL,
    **dict.fromkeys(SUMS, COUNT),
    "cost_usd": NUMBER,
}
_MANAGED: dict[str, Json] = {
    "Key": _closed({}, **KEY),
    "NewKey": _closed({}, **KEY, key={**TEXT, "description": "The secret."}),
    "Keys": _closed({}, keys=_list(ref("Key"))),
    "Token": _closed({}, token=TEXT, access_token=TEXT, token_type=_const("Bearer"), expires_in=COUNT),
    "UsageRows": _closed(
        {},
        rows=_list({"type": "object", "required": list(SUMS), "properties": _USED, "additionalProperties": False}),
    ),
    "DrainedEngine": _closed({}, engine=TEXT, draining=FLAG, models=_list(TEXT)),
    "WeighedEngine": _closed({}, engine=TEXT, weight=COUNT, models=_list(TEXT)),
    "CacheStats": _closed(
        {},
        entries=COUNT,
        bytes=COUNT,
        hits=COUNT,
        near_hits=COUNT,
        misses=COUNT,
        evictions=COUNT,
        saved_tokens=NUMBER,
        saved_usd=NUMBER,
    ),
    "Cleared": _closed({}, cleared=COUNT),
    "KeptSchema": _closed({}, name=TEXT, schema={"description": "JSON Schema 2020-12."}),
    "Schemas": _closed({}, schemas={"type": "array", "items": {"$ref": "#/components/schemas/KeptSchema"}}),
    "Forgotten": _closed({}, name=TEXT, deleted={"const": True}),
}

_CODE: Json = {"enum": list(ERRORS)}
_DETAILS: Json = _open({}, error_code=_CODE)
_FAILED: dict[str, Json] = {
    "SimpleError": {
        "description": "An error as everybody reads it but OpenAI's SDKs. Some codes have further members.",
        **_open(
            {"details": {"type": ["object", "array"]}}, error=_CODE, message=TEXT, param=_TEXT_OR_NULL, request_id=TEXT
        ),
    },
    "OpenAIError": {
        "description": "An error as OpenAI's SDKs read it. In `backend_rejected`, `code` is the engine's, and the"
        " gateway's is `gateway_code`.",
        **_open({}, error=_open({"param": _TEXT_OR_NULL}, message=TEXT, type=_TEXT_OR_NULL, code={}), request_id=TEXT),
    },
    "AnthropicError": {
        "description": "An error as Anthropic's clients read it; `details.error_code` is the gateway's code.",
        **_open({}, type=_const("error"), request_id=TEXT, error=_open({}, type=TEXT, message=TEXT, details=_DETAILS)),
    },
    "OllamaError": {"description": "An error as Ollama's clients read it.", **_closed({}, error=TEXT)},
    "Error": {"anyOf": [ref("SimpleError"), ref("OpenAIError")]},
}

_TIMES: Json = {
    "done_reason": TEXT,
    "total_duration": {**COUNT, "description": "Nanoseconds, like the other durations."},
    "load_duration": COUNT,
    "prompt_eval_count": COUNT,
    "prompt_eval_duration": COUNT,
    "eval_count": COUNT,
    "eval_duration": COUNT,
}
_TRANSLATED: dict[str, Json] = {
    "AnthropicMessage": _open(
        {"stop_sequence": _TEXT_OR_NULL},
        id=TEXT,
        type=_const("message"),
        role=_const("assistant"),
        model=TEXT,
        content=_list(_open({}, type=TEXT)),
        stop_reason=_TEXT_OR_NULL,
        usage=_open({}, input_tokens=COUNT, output_tokens=COUNT),
    ),
    "AnthropicCount": _closed({}, input_tokens=COUNT),
    "Response": _open(
        {"error": {"type": ["object", "null"]}, "incomplete_details": {"type": ["object", "null"]}},
        id=TEXT,
        object=_const("response"),
        created_at=COUNT,
        status={"enum": ["completed", "incomplete"]},
        model=TEXT,
        output=_list(_open({}, type=TEXT)),
        usage={"type": ["object", "null"]},
    ),
    "OllamaChat": _open(_TIMES, model=TEXT, created_at=TEXT, message=_open({}, role=TEXT, content=TEXT), done=FLAG),
    "OllamaGenerated": _open(_TIMES, model=TEXT, created_at=TEXT, response=TEXT, done=FLAG),
    "OllamaEmbedded": _open(_TIMES, model=TEXT, embeddings=_list({"type": "array"})),
    "OllamaEmbedding": _closed({}, embedding={"type": "array"}),
}

_NUMBER_OR_NULL = _or_null({"type": "number"})
_POINT = {**_list(_NUMBER_OR_NULL), "description": "A second: its values, by `columns`. null: nothing was measured."}
_LIVE: dict[str, Json] = {
    "LiveHistory": _open(
        {},
        version=TEXT,
        started={**NUMBER, "description": "All times are Unix seconds, unless they end with `_ms`."},
        now=NUMBER,
        interval_s=NUMBER,
        kept_s=COUNT,
        slow_ms=NUMBER,
        slo=_closed({}, availability=_NUMBER_OR_NULL, latency_ms=_NUMBER_OR_NULL),
        columns=_list(TEXT),
        points={**_list(_POINT), "description": "One a second, the oldest first."},
        engines=_list(ref("LiveEngine")),
        sparks={
            "type": "object",
            "additionalProperties": _list(_NUMBER_OR_NULL),
            "description": "By `<model> <engine>`: the means, in milliseconds, of the attempts that have ended in each"
            " of the last 60 seconds.",
        },
        alerts=_list(ref("Alert")),
        slos=_list(ref("Slo")),
        requests={**_list(ref("LiveRequest")), "description": "The last 200, the oldest first."},
    ),
    "LiveTick": _open(
        {
            "alerts": {**_list(ref("Alert")), "description": "All of them, if they have changed."},
            "slos": {**_list(ref("Slo")), "description": "Likewise, every ten seconds at most."},
        },
        now=NUMBER,
        point=_POINT,
        engines={**_list(ref("LiveEngine")), "description": "Those that have changed."},
        gone={**_list(TEXT), "description": "Engines that are no more: `<model> <engine>`."},
        sparks={"type": "object", "additionalProperties": NUMBER},
        requests={**_list(ref("LiveRequest")), "description": "New ones, at most 20, the newest."},
        skipped={**COUNT, "description": "So many more there were."},
    ),
    "LiveEnd": _closed({}, code={"enum": ["draining", "forbidden", "overloaded", "unauthorized"]}, message=TEXT),
    "LiveEngine": _closed(
        {},
        model=TEXT,
        engine=TEXT,
        **{name: schema for name, schema in ENGINE["properties"].items() if name != "id"},
        max_concurrency=_COUNT_OR_NULL,
        last_error_at=_NUMBER_OR_NULL,
    ),
    "LiveRequest": _open(
        {
            "cache": TEXT,
            "fallback": TEXT,
            "part_of": {**TEXT, "description": "The request that this one is a part of."},
            "cost_usd": NUMBER,
            "marks": _list(_closed({}, name=TEXT, start_ms=_NUMBER_OR_NULL, duration_ms=_NUMBER_OR_NULL)),
        },
        id=TEXT,
        trace=_TEXT_OR_NULL,
        time={**NUMBER, "description": "When it has ended."},
        **dict.fromkeys(("method", "path"), TEXT),
        **dict.fromkeys(("model", "engine", "error"), _TEXT_OR_NULL),
        status=COUNT,
        **dict.fromkeys(("latency_ms", "queue_ms", "ttft_ms"), _NUMBER_OR_NULL),
        stream=FLAG,
        **dict.fromkeys(("prompt_tokens", "completion_tokens"), _COUNT_OR_NULL),
        attempts=_list(
            _closed(
                {},
                **dict.fromkeys(("model", "engine", "outcome"), TEXT),
                **dict.fromkeys(("start_ms", "duration_ms", "ttft_ms"), _NUMBER_OR_NULL),
            )
        ),
    ),
}

SCHEMAS: dict[str, Json] = {**_ANSWERED, **_TRANSLATED, **_VERIFIED, **_STATE, **_MANAGED, **_LIVE, **_FAILED}
