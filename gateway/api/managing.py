"""The operations of administrators, and the exchange of a key for a token: answered by server/admin.py."""

from __future__ import annotations

from gateway.api.operation import Answer, Body, Json, Operation, Parameter, json_answer, ref
from gateway.keys.record import key_schema
from gateway.telemetry.usage import EXPRESSION_BY_COLUMN, FORMATS

KEYS = "Keys and usage"
ENGINES = "Engines"
CACHE = "Cache"
SCHEMAS = "Schemas"
_USED = 'In `SCHEMAS_DIR`; used as `{"type": "json_schema", "json_schema": {"name": "city"}}`.'
_TEXT: Json = {"type": "string"}
_SPAN: Json = {"type": ["string", "null"], "pattern": "^[0-9]{1,12}[smhd]$"}
_NAME = Parameter("path", "name", "The key's name.", _TEXT)
_STATE_DB = "Keys live in `STATE_DB`."

TOKEN = Operation(
    "POST",
    "/auth/token",
    "exchangeToken",
    KEYS,
    "Exchange a key for a token",
    "",
    (json_answer(200, "A token, signed with `JWT_SECRET`, that can do what the key can.", ref("Token")),),
    "Has no body.",
    errors=("not_found",),
)
LIST_KEYS = Operation(
    "GET",
    "/admin/keys",
    "listKeys",
    KEYS,
    "List the keys",
    "admin",
    (json_answer(200, "All keys, without their secrets.", ref("Keys")),),
    _STATE_DB,
)
CREATE_KEY = Operation(
    "POST",
    "/admin/keys",
    "createKey",
    KEYS,
    "Make a key",
    "admin",
    (json_answer(201, "The key, with its secret, which is shown this once.", ref("NewKey")),),
    _STATE_DB,
    body=Body(key_schema(), example={"name": "alice", "rpm": 60, "expires": "90d"}),
    errors=("key_exists",),
)
REVOKE_KEY = Operation(
    "DELETE",
    "/admin/keys/{name}",
    "revokeKey",
    KEYS,
    "Revoke a key",
    "admin",
    (json_answer(200, "The key as it is now: revoked, for good.", ref("Key")),),
    "",
    (_NAME,),
    errors=("not_found",),
)
ROTATE_KEY = Operation(
    "POST",
    "/admin/keys/{name}/rotate",
    "rotateKey",
    KEYS,
    "Give a key another secret",
    "admin",
    (json_answer(200, "The key, with its new secret, which is shown this once.", ref("NewKey")),),
    "",
    (_NAME,),
    Body(
        {
            "type": "object",
            "properties": {
                "grace": {"description": "How much longer the old secret is good; 1h by default.", **_SPAN},
                "expires": {"description": "When the key ends, from now; by default as before.", **_SPAN},
            },
            "additionalProperties": False,
        },
        required=False,
        example={"grace": "1h"},
    ),
    ("not_found",),
)
_TIME = "a day, a time such as `2026-11-01T12:00:00Z`, or Unix seconds"
USAGE = Operation(
    "GET",
    "/admin/usage",
    "usage",
    KEYS,
    "Sum up what was used",
    "admin",
    (
        Answer(
            200,
            "A row for each combination of the columns.",
            {"application/json": ref("UsageRows"), "text/csv": {"type": "string"}},
        ),
    ),
    "",
    (
        Parameter("query", "by", f"Columns, with commas between: {', '.join(EXPRESSION_BY_COLUMN)}.", _TEXT),
        Parameter("query", "from", f"From when: {_TIME}.", _TEXT),
        Parameter("query", "to", f"Up to when: {_TIME}.", _TEXT),
        Parameter("query", "format", "The shape of the answer.", {"enum": ["", *FORMATS]}),
    ),
    errors=("invalid_body",),
)
_WEIGHT: Json = {"type": "integer", "minimum": 1, "maximum": 1_000_000}
_ENGINE = (
    Parameter("path", "id", "The engine's id, as `GET /health` lists it.", _TEXT),
    Parameter("query", "model", "The model, where several have an engine of that id; else all of them.", _TEXT),
)
_ENGINE_ANSWER = (json_answer(200, "Which models' engine it is.", ref("DrainedEngine")),)
DRAIN_ENGINE = Operation(
    "POST",
    "/admin/engines/{id}/drain",
    "drainEngine",
    ENGINES,
    "Give an engine nothing new",
    "admin",
    _ENGINE_ANSWER,
    "What it is answering, it answers. Has no body.",
    _ENGINE,
    errors=("not_found",),
)
ENABLE_ENGINE = Operation(
    "POST",
    "/admin/engines/{id}/enable",
    "enableEngine",
    ENGINES,
    "Take a drained engine back",
    "admin",
    _ENGINE_ANSWER,
    "Has no body.",
    _ENGINE,
    errors=("not_found",),
)
WEIGH_ENGINE = Operation(
    "POST",
    "/admin/engines/{id}/weight",
    "weighEngine",
    ENGINES,
    "Give an engine another weight",
    "admin",
    (json_answer(200, "The weight that it has now, and which models' engine it is.", ref("WeighedEngine")),),
    "The next request is placed by it. A reload of the engines file, and a restart, set the file's again.",
    _ENGINE,
    Body(
        {"type": "object", "properties": {"weight": _WEIGHT}, "required": ["weight"], "additionalProperties": False},
        example={"weight": 2},
    ),
    ("not_found",),
)
CACHE_STATS = Operation(
    "GET",
    "/api/v1/cache/stats",
    "cacheStats",
    CACHE,
    "Tell what the cache holds and has saved",
    "metrics",
    (json_answer(200, "Since the start.", ref("CacheStats")),),
)
CLEAR_CACHE = Operation(
    "POST",
    "/api/v1/cache/clear",
    "clearCache",
    CACHE,
    "Drop kept answers",
    "admin",
    (json_answer(200, "How many were dropped.", ref("Cleared")),),
    "Without a body all of them.",
    body=Body(
        {
            "type": "object",
            "properties": {
                "model": {"description": "Only this model's.", "type": ["string", "null"], "maxLength": 256},
                "key": {
                    "description": "Only those of the key of this name.",
                    "type": ["string", "null"],
                    "maxLength": 256,
                },
                "older_than_s": {
                    "description": "Only those that are older, in seconds.",
                    "type": ["number", "null"],
                    "minimum": 0,
                    "maximum": 1e10,
                },
            },
            "additionalProperties": False,
        },
        required=False,
        example={"model": "13b"},
    ),
)
_SCHEMA_NAME = Parameter("path", "name", "The schema's name.", {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"})
LIST_SCHEMAS = Operation(
    "GET",
    "/admin/schemas",
    "listSchemas",
    SCHEMAS,
    "List the kept schemas",
    "admin",
    (json_answer(200, "All of them, by name.", ref("Schemas")),),
    _USED,
)
SCHEMA = Operation(
    "GET",
    "/admin/schemas/{name}",
    "getSchema",
    SCHEMAS,
    "Show a kept schema",
    "admin",
    (json_answer(200, "It.", ref("KeptSchema")),),
    "",
    (_SCHEMA_NAME,),
    errors=("not_found",),
)
KEEP_SCHEMA = Operation(
    "PUT",
    "/admin/schemas/{name}",
    "keepSchema",
    SCHEMAS,
    "Keep a schema",
    "admin",
    (
        json_answer(200, "It replaces one of that name.", ref("KeptSchema")),
        json_answer(201, "It is new.", ref("KeptSchema")),
    ),
    _USED,
    (_SCHEMA_NAME,),
    Body({"type": "object"}, example={"type": "object", "properties": {"city": {"type": "string"}}}),
    errors=("not_found", "invalid_response_format"),
)
FORGET_SCHEMA = Operation(
    "DELETE",
    "/admin/schemas/{name}",
    "forgetSchema",
    SCHEMAS,
    "Forget a schema",
    "admin",
    (json_answer(200, "It is gone.", ref("Forgotten")),),
    "",
    (_SCHEMA_NAME,),
    errors=("not_found",),
)
OPERATIONS = (
    *(TOKEN, LIST_KEYS, CREATE_KEY, REVOKE_KEY, ROTATE_KEY, USAGE, DRAIN_ENGINE, ENABLE_ENGINE, WEIGH_ENGINE),
    *(CACHE_STATS, CLEAR_CACHE, LIST_SCHEMAS, SCHEMA, KEEP_SCHEMA, FORGET_SCHEMA),
)
