"""From a body's bytes to a request that engines may see; every refusal names the faulty field.

Pure functions. JSON is read strictly: UTF-8 only, no NaN, no infinities, no duplicate keys, bounded depth and digits,
so that an engine's parser cannot read something else than was checked here.
"""

from __future__ import annotations

import json
import re
from typing import Any, Callable, Optional

from gateway.errors import RequestRefused
from gateway.jsontext import decode_with

DEPTH_MAX = 128
DIGITS_MAX = 1000
TOKENS_MAX = 1_000_000
CHOICES_MAX = 128
STOPS_MAX = 4
ROLES = frozenset(("system", "user", "assistant", "tool", "developer", "function"))

_STRING = re.compile(r'"[^"]*"')  # in a text without escapes
_NOT_BRACKET = re.compile(r"[^\[\]{}]+")


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises `invalid_json`, or `invalid_body` when it is not an object."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestRefused("invalid_json", f"the body is not UTF-8 (byte {error.start})") from None
    # Counted before it is parsed: parsers recurse, and a thread's stack is small.
    if text.count("[") + text.count("{") > DEPTH_MAX and _depth_exceeds(text, DEPTH_MAX):
        raise RequestRefused("invalid_json", f"the JSON is nested deeper than {DEPTH_MAX} levels")
    try:
        value = _decode(text)
    except (ValueError, RecursionError) as error:
        raise RequestRefused("invalid_json", f"the body is not valid JSON: {error}") from None
    if type(value) is not dict:
        raise RequestRefused("invalid_body", "the body must be a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:100]!r} stands twice in one object")
            seen.add(key)
    return result


def _integer(digits: str) -> int:
    if len(digits) > DIGITS_MAX:
        raise ValueError(f"a number has more than {DIGITS_MAX} digits")
    return int(digits)


_INFINITIES = (float("inf"), float("-inf"))


def _float(digits: str) -> float:
    value = float(digits)
    if value in _INFINITIES:
        raise ValueError("a number is too large")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_decode = decode_with(
    json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
)


def _depth_exceeds(text: str, limit: int) -> bool:
    """Whether brackets outside strings nest deeper than `limit`. Linear in time and space, whatever the text holds."""
    # Escapes go first: a pattern that steps over them backtracks over a whole body from each of its quotes.
    plain = text.replace("\\\\", "").replace('\\"', "")
    rest = _NOT_BRACKET.sub("", _STRING.sub("", plain))
    depth = 0
    for bracket in rest:
        if bracket in "[{":
            depth += 1
            if depth > limit:
                return True
        else:
            depth -= 1
    return False


def validate_chat(request: dict[str, Any]) -> None:
    """Check a chat completion request (contract 5). Raises RequestRefused naming the field."""
    messages = request.get("messages")
    if type(messages) is not list or not messages:
        raise _refused("messages", "messages", "must be a non-empty list of messages")
    for index, message in enumerate(messages):
        if type(message) is not dict:
            raise _refused("messages", f"messages[{index}]", "must be an object")
        role = message.get("role")
        if type(role) is not str or role not in ROLES:
            raise _refused("messages", f"messages[{index}].role", f"must be one of {', '.join(sorted(ROLES))}")
        if type(message.get("content")) is not str:
            _check_content(message, f"messages[{index}]")
    _check_common(request)


def _check_content(message: dict[str, Any], where: str) -> None:
    content = message.get("content")
    if content is None:
        if message["role"] == "assistant" and (message.get("tool_calls") or message.get("function_call")):
            return
        raise _refused("messages", f"{where}.content", "is missing; only an assistant with tool_calls may omit it")
    if type(content) is not list or not content:
        raise _refused("messages", f"{where}.content", "must be a text or a list of typed parts")
    for index, part in enumerate(content):
        if type(part) is not dict or type(part.get("type")) is not str:
            raise _refused("messages", f"{where}.content[{index}]", "must be an object with a type")
        if part["type"] == "text" and type(part.get("text")) is not str:
            raise _refused("messages", f"{where}.content[{index}].text", "must be a text")


def validate_completion(request: dict[str, Any]) -> None:
    """Check a text completion request. Raises RequestRefused naming the field."""
    if not _texts_or_tokens(request.get("prompt")):
        raise _refused("prompt", "prompt", "must be a text, a non-empty list of texts, or a list of tokens")
    _check_common(request)


def validate_embedding(request: dict[str, Any]) -> None:
    """Check an embeddings request. Raises RequestRefused naming the field."""
    value = request.get("input")
    if value == "" or not _texts_or_tokens(value):
        raise _refused("input", "input", "must be a non-empty text, a non-empty list of texts, or of tokens")
    if type(request.get("model")) not in (str, type(None)):
        raise _refused("model", "model", "must be a text")
    if request.get("stream") is not None and request["stream"] is not False:
        raise _refused("stream", "stream", "must be false: embeddings are not streamed")


def _texts_or_tokens(value: Any) -> bool:
    if type(value) is str:
        return True
    if type(value) is not list or not value:
        return False
    return (
        all(type(item) is str for item in value)
        or all(type(item) is int for item in value)
        or all(type(i) is list and i and all(type(t) is int for t in i) for i in value)
    )


def _check_common(request: dict[str, Any]) -> None:
    for key, check in _FIELDS:
        value = request.get(key)
        if value is not None:
            fault = check(value)
            if fault is not None:
                code, text = fault
                raise RequestRefused(code, f"{key} {text}", param=key)


def _model(value: Any) -> Optional[tuple[str, str]]:
    return None if type(value) is str else ("invalid_model", "must be a text")


def _stream(value: Any) -> Optional[tuple[str, str]]:
    return None if type(value) is bool else ("invalid_stream", "must be true or false")


def _stream_options(value: Any) -> Optional[tuple[str, str]]:
    return None if type(value) is dict else ("invalid_stream", "must be an object")


def _max_tokens(value: Any) -> Optional[tuple[str, str]]:
    if type(value) is int and 1 <= value <= TOKENS_MAX:
        return None
    return "invalid_max_tokens", f"must be an integer from 1 to {TOKENS_MAX}"


def _temperature(value: Any) -> Optional[tuple[str, str]]:
    if type(value) in (int, float) and 0 <= value <= 2:
        return None
    return "invalid_temperature", "must be a number from 0 to 2"


def _top_p(value: Any) -> Optional[tuple[str, str]]:
    if type(value) in (int, float) and 0 <= value <= 1:
        return None
    return "invalid_top_p", "must be a number from 0 to 1"


def _stop(value: Any) -> Optional[tuple[str, str]]:
    if type(value) is str:
        return None
    if type(value) is list and len(value) <= STOPS_MAX and all(type(s) is str for s in value):
        return None
    return "invalid_stop", f"must be a text or a list of at most {STOPS_MAX} texts"


def _n(value: Any) -> Optional[tuple[str, str]]:
    if type(value) is int and 1 <= value <= CHOICES_MAX:
        return None
    return "invalid_n", f"must be an integer from 1 to {CHOICES_MAX}"


_FIELDS: tuple[tuple[str, Callable[[Any], Optional[tuple[str, str]]]], ...] = (
    ("model", _model),
    ("stream", _stream),
    ("stream_options", _stream_options),
    ("max_tokens", _max_tokens),
    ("max_completion_tokens", _max_tokens),
    ("temperature", _temperature),
    ("top_p", _top_p),
    ("stop", _stop),
    ("n", _n),
)


def _refused(kind: str, where: str, what: str) -> RequestRefused:
    return RequestRefused(f"invalid_{kind}", f"{where} {what}", param=where)


VALIDATOR_BY_PATH: dict[str, Callable[[dict[str, Any]], None]] = {
    "/chat/completions": validate_chat,
    "/completions": validate_completion,
    "/embeddings": validate_embedding,
}
