"""The operations that ask models: one for each path of `calling.PATHS`.

What their requests may hold is said where it is checked (upstream/fields.py, verify/question.py).
"""

from __future__ import annotations

from gateway.api import passed, translated
from gateway.api.asking import ASKING, HEADERS, PARAMETERS, SHAPED
from gateway.api.operation import JSON_TYPE, Answer, Body, Json, Operation, json_answer, ref
from gateway.calling import INFERENCE, PATHS
from gateway.reuse.serving import QUERY
from gateway.upstream.fields import BY_PATH
from gateway.upstream.fieldtypes import COMPLETION
from gateway.verify.question import request_schema

EVENT_STREAM = "text/event-stream"
TAG = "Inference"

_COMPLETING = (*ASKING, "invalid_stream", "invalid_max_tokens", "invalid_temperature", "invalid_top_p", "invalid_stop")
_STREAMED = (
    'With `"stream": true` the answer is `text/event-stream`: a chunk in JSON behind each `data:`, `[DONE]` at the end.'
    " A stream that breaks ends in one event with an error, without `[DONE]`."
    " Fields that are not listed are passed on to the engine as they are."
)
_EVENT: Json = {
    "description": "One server-sent event.",
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "A chunk in JSON, or `[DONE]`."}},
}


def _completed(schema: str) -> Answer:
    return Answer(200, "The answer, or the stream of it.", {JSON_TYPE: ref(schema), EVENT_STREAM: _EVENT}, HEADERS)


_QUERY_SCHEMA: Json = {
    "type": "object",
    "required": ["query"],
    "properties": {
        "query": {"description": "What is asked.", "type": "string", "pattern": r"\S"},
        **{name: COMPLETION[name].schema for name in ("model", "max_tokens", "temperature")},
    },
}
_DESCRIBED = (
    Operation(
        "POST",
        "/v1/chat/completions",
        "createChatCompletion",
        TAG,
        "Answer a conversation",
        "infer",
        (_completed("ChatCompletion"),),
        _STREAMED,
        PARAMETERS,
        Body(
            BY_PATH["/chat/completions"].schema,
            example={"messages": [{"role": "user", "content": "What is Python?"}], "max_tokens": 100},
        ),
        (*_COMPLETING, "invalid_messages", "invalid_n", *SHAPED, "no_consensus", "no_model_answered"),
    ),
    Operation(
        "POST",
        "/v1/completions",
        "createCompletion",
        TAG,
        "Go on with a text",
        "infer",
        (_completed("Completion"),),
        _STREAMED,
        PARAMETERS,
        Body(BY_PATH["/completions"].schema, example={"prompt": "Python is", "max_tokens": 20}),
        (*_COMPLETING, "invalid_prompt", "invalid_n"),
    ),
    Operation(
        "POST",
        "/v1/embeddings",
        "createEmbeddings",
        TAG,
        "Turn texts into vectors",
        "infer",
        (json_answer(200, "A vector for each input.", ref("Embeddings"), *HEADERS),),
        "Fields that are not listed are passed on to the engine as they are.",
        PARAMETERS,
        Body(BY_PATH["/embeddings"].schema, example={"input": ["What is Python?", "What is Rust?"]}),
        (*ASKING, "invalid_input", "invalid_stream"),
    ),
    Operation(
        "POST",
        QUERY,
        "query",
        TAG,
        "Answer one question",
        "infer",
        (json_answer(200, "The answer.", ref("QueryResult"), *HEADERS),),
        "Queries that come together leave in one call. Fields that are not listed are ignored.",
        PARAMETERS,
        Body(_QUERY_SCHEMA, example={"query": "What is AI?"}),
        (*ASKING, "invalid_query", "invalid_max_tokens", "invalid_temperature"),
    ),
    Operation(
        "POST",
        INFERENCE,
        "infer",
        TAG,
        "Ask several models and compare their answers",
        "verify",
        (json_answer(200, "What each has said, and on what they agree.", ref("Inference"), *HEADERS),),
        "Programs in the answers are run in a sandbox. One member's failure is told beside the others' answers.",
        PARAMETERS,
        Body(request_schema(), example={"prompt": "Write is_even(n) in Python.", "entry_point": "is_even"}),
        (
            *("invalid_prompt", "invalid_models", "invalid_tests", "invalid_inputs", "invalid_execution_config"),
            *("invalid_temperature", "invalid_max_tokens", *ASKING, "no_model_answered"),
        ),
    ),
)
_BY_PATH = {operation.path: operation for operation in (*_DESCRIBED, *translated.DESCRIBED, *passed.DESCRIBED)}
OPERATIONS = tuple(_BY_PATH[path] for path in PATHS)
"""In the order of the routes; a path that nobody has described stops the start."""
