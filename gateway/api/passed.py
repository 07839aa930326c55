"""The operations that are passed on as they are: one for each path of `calling.PASSED`.

What their requests and answers hold is the engine's to say; what is said of them here is what the gateway reads.
"""

from __future__ import annotations

from typing import Any, Optional

from gateway.api.asking import ASKING, HEADERS, PARAMETERS
from gateway.api.operation import JSON_TYPE, Answer, Body, Json, Operation, Parameter
from gateway.bodies import BODIES, FORMS
from gateway.calling import PASSED
from gateway.pipeline import PERMISSIONS
from gateway.upstream.fields import BY_PATH

TAG = "Passed on"
FORM_TYPE = "multipart/form-data"
_ANYTHING: Json = {}
_JSON = {JSON_TYPE: _ANYTHING}
_TEXT: Json = {"type": "string"}
_FORM: Json = {
    "type": "object",
    "properties": {"model": {**_TEXT, "description": "Best before the file, which is then passed on while it comes."}},
    "additionalProperties": True,
}
_MODEL = Parameter("query", "model", "Whose engine is asked; without it, the first model's.", _TEXT)


def _operation(
    path: str, name: str, summary: str, example: Optional[dict[str, Any]] = None, content: Optional[Any] = None
) -> Operation:
    engine_path = PASSED[path]
    body: Optional[Body] = None
    if path in FORMS:
        body = Body(_FORM, media_type=FORM_TYPE)
    elif path not in BODIES:
        body = Body(BY_PATH[engine_path].schema, example=example)
    return Operation(
        BY_PATH[engine_path].method,
        path,
        name,
        TAG,
        summary,
        PERMISSIONS.get(path, "infer"),
        (Answer(200, "The engine's answer.", content or _JSON, HEADERS),),
        "Passed on as it is, to an engine of the model that has this endpoint.",
        PARAMETERS if body is not None else (_MODEL, *PARAMETERS),
        body,
        (*ASKING, "unsupported_media_type", "length_required"),
    )


_ANY_TYPE = {"*/*": _ANYTHING}
DESCRIBED = (
    _operation("/v1/rerank", "rerank", "Sort documents by what they have to say to a query", {"query": "x"}),
    _operation("/v1/moderations", "createModeration", "Tell what is harmful", {"input": "Hello"}),
    _operation("/v1/audio/speech", "createSpeech", "Speak a text", {"input": "Hello", "voice": "alloy"}, _ANY_TYPE),
    _operation("/v1/audio/transcriptions", "createTranscription", "Write down what is said", content=_ANY_TYPE),
    _operation("/v1/audio/translations", "createTranslation", "Write down in English what is said", content=_ANY_TYPE),
    _operation("/v1/images/generations", "createImage", "Draw a picture", {"prompt": "A cat"}, _ANY_TYPE),
    _operation("/v1/images/edits", "createImageEdit", "Change a picture", content=_ANY_TYPE),
    _operation("/v1/images/variations", "createImageVariation", "Vary a picture", content=_ANY_TYPE),
    _operation("/tokenize", "tokenize", "Tell the tokens of a text", {"content": "Hello"}),
    _operation("/detokenize", "detokenize", "Tell the text of tokens", {"tokens": [72, 105]}),
    _operation("/props", "getProps", "Tell how the engine is set up (llama.cpp)"),
    _operation("/slots", "getSlots", "Tell what the engine is doing, with prompts (llama.cpp)"),
)
