"""What a mock engine answers where a gateway only passes on: reranking, moderation, audio, images, tokens, its slots.

Pure. Shapes as of OpenAI's API and of llama.cpp's server. Here a token is a character, and its number Unicode's.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import time
import zlib
from typing import Any, NamedTuple, Optional

from gateway.mock.saying import Asked, BadRequest, Json, Stream

_MODERATED = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/instructions", "self-harm/intent"),
    *("sexual", "sexual/minors", "violence", "violence/graphic"),
)
_SPEECH_TYPES = {"opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac", "wav": "audio/wav", "pcm": "audio/pcm"}
_SPEECH_PIECES = 16
_SPEECH_PIECE_BYTES = 1024
_MOST_IMAGES = 10
_N_CTX = 4096
# A PNG of one transparent dot, without its end: a text is appended to it.
_DOT = (b"IHDR" + bytes((0, 0, 0, 1, 0, 0, 0, 1, 8, 6, 0, 0, 0)), b"IDAT" + zlib.compress(bytes(5)), b"IEND")


class Raw(NamedTuple):
    """An answer that is not JSON."""

    media_type: str
    body: bytes


def form(body: bytes, content_type: str) -> Optional[Json]:
    """Return the fields of a multipart form: texts, and of a file its name, size and SHA-256. None if it is no form."""
    kind, _, parameters = content_type.partition(";")
    _, found, boundary = parameters.partition("boundary=")
    if kind.strip().lower() != "multipart/form-data" or not found:
        return None
    mark = b"\r\n--" + boundary.split(";")[0].strip().strip('"').encode("latin-1")
    _, *parts = (b"\r\n" + body).split(mark)
    if not parts or not parts[-1].startswith(b"--"):
        return None
    fields: Json = {}
    for part in parts[:-1]:
        head, blank, data = part.partition(b"\r\n\r\n")
        named = _disposition(head.decode("utf-8", "replace"))
        if not blank or "name" not in named:
            return None
        fields[named["name"]] = data.decode("utf-8", "replace")
        if "filename" in named:
            digest = hashlib.sha256(data).hexdigest()
            fields[named["name"]] = {"filename": named["filename"], "bytes": len(data), "sha256": digest}
    return fields


def _disposition(head: str) -> dict[str, str]:
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        if name.lower() == "content-disposition":
            pairs = (pair.partition("=") for pair in value.split(";"))
            return {key.strip().lower(): text.strip().strip('"') for key, _, text in pairs}
    return {}


def transcription(asked: Asked) -> Any:
    """Answer with a text that tells what was received: the file's name and size, and the model asked for."""
    file, model = asked.body.get("file"), asked.body.get("model")
    if not isinstance(file, dict) or not isinstance(model, str):
        raise BadRequest("'file' and 'model' must be fields of a multipart form")
    text = f"Mock transcript from {asked.model} at {asked.port}: {file['filename']}, {file['bytes']} bytes, for {model}"
    if asked.body.get("response_format") == "text":
        return Raw("text/plain; charset=utf-8", f"{text}\n".encode())
    return {"text": text, "usage": {"type": "duration", "seconds": 1}}


def speech_type(asked: Asked) -> str:
    """Return the media type of the speech asked for."""
    return _SPEECH_TYPES.get(str(asked.body.get("response_format")), "audio/mpeg")


def speech(asked: Asked) -> Stream:
    """Return noise that depends on the input alone, in `events` pieces (None: 16) of a KiB."""
    seed = _required(asked, "input").encode("utf-8", "surrogatepass")
    count = _SPEECH_PIECES if asked.events is None else asked.events
    pieces = (hashlib.shake_256(b"%d:%b" % (number, seed)).digest(_SPEECH_PIECE_BYTES) for number in range(count))
    return [], pieces, []


def whole_speech(asked: Asked) -> Raw:
    """Return `speech` in one piece."""
    return Raw(speech_type(asked), b"".join(speech(asked)[1]))


def images(asked: Asked) -> Json:
    """Answer with one-dot PNGs, which tell them apart by a comment."""
    prompt, n = _required(asked, "prompt"), asked.body.get("n")
    count = min(n, _MOST_IMAGES) if type(n) is int and n > 0 else 1
    pictures = [_picture(f"{prompt} {number}") for number in range(count)]
    data = [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures]
    size = len(prompt.split())
    details = {"text_tokens": size, "image_tokens": 0}
    usage = {
        "input_tokens": size,
        "input_tokens_details": details,
        "output_tokens": count,
        "total_tokens": size + count,
    }
    return {"created": int(time.time()), "data": data, **({"usage": usage} if asked.usage else {})}


def _picture(comment: str) -> bytes:
    header, dot, end = _DOT
    chunks = (header, b"tEXtComment\0" + comment.encode("latin-1", "replace"), dot, end)
    framed = (b"%b%b%b" % ((len(c) - 4).to_bytes(4, "big"), c, zlib.crc32(c).to_bytes(4, "big")) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def rerank(asked: Asked) -> Json:
    """Rank documents by the words that they share with the query."""
    documents, top_n = asked.body.get("documents"), asked.body.get("top_n")
    if not isinstance(documents, list) or not all(isinstance(one, (str, dict)) for one in documents):
        raise BadRequest("'documents' must be a list of texts")
    query = set(_required(asked, "query").lower().split())
    texts = [str(one.get("text")) if isinstance(one, dict) else one for one in documents]
    shared = [len(query & set(text.lower().split())) / max(1, len(query)) for text in texts]
    results: list[Json] = [{"index": index, "relevance_score": score} for index, score in enumerate(shared)]
    results.sort(key=lambda result: -float(result["relevance_score"]))
    size = len(query) + sum(len(text.split()) for text in texts)
    answer: Json = {"model": asked.model, "object": "list", "results": results[: top_n if type(top_n) is int else None]}
    return {**answer, "usage": {"prompt_tokens": size, "total_tokens": size}} if asked.usage else answer


def moderation(asked: Asked) -> Json:
    """Flag, as violence, each input that has the word `violence`."""
    value = asked.body.get("input")
    inputs = value if isinstance(value, list) else [value]
    if not inputs or not all(isinstance(one, (str, dict)) for one in inputs):
        raise BadRequest("'input' must be text or a list of texts or parts")
    results = []
    for one in inputs:
        text = str(one.get("text", "")) if isinstance(one, dict) else one
        found = {"violence"} if "violence" in text.lower().split() else set()
        results.append(
            {
                "flagged": bool(found),
                "categories": {name: name in found for name in _MODERATED},
                "category_scores": {name: float(name in found) for name in _MODERATED},
                "category_applied_input_types": {name: ["text"] for name in _MODERATED},
            }
        )
    return {"id": asked.identifier("modr-"), "model": asked.model, "results": results}


def tokenize(asked: Asked) -> Json:
    """Return a text's tokens, with their pieces where `with_pieces` asks."""
    text = _required(asked, "content")
    if asked.body.get("with_pieces") is True:
        return {"tokens": [{"id": ord(letter), "piece": letter} for letter in text]}
    return {"tokens": [ord(letter) for letter in text]}


def detokenize(asked: Asked) -> Json:
    """Return the text of tokens."""
    tokens = asked.body.get("tokens")
    if not isinstance(tokens, list) or not all(type(one) is int and 0 <= one <= sys.maxunicode for one in tokens):
        raise BadRequest("'tokens' must be a list of token numbers")
    return {"content": "".join(map(chr, tokens))}


def props(asked: Asked) -> Json:
    """Return what llama.cpp's server tells about itself, as far as clients look at it."""
    return {
        "default_generation_settings": {"n_ctx": _N_CTX},
        "total_slots": 1,
        "model_path": f"/models/{asked.model}.gguf",
        "chat_template": "",
        "modalities": {"vision": False, "audio": False},
        "build_info": "mock",
        "is_sleeping": False,
    }


def slots(_asked: Asked) -> list[Json]:
    """Return the state of the one slot."""
    return [{"id": 0, "id_task": -1, "n_ctx": _N_CTX, "speculative": False, "is_processing": False}]


def _required(asked: Asked, name: str) -> str:
    value = asked.body.get(name)
    if not isinstance(value, str):
        raise BadRequest(f"'{name}' must be text")
    return value
