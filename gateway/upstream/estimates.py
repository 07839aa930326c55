"""How many tokens a text has, where nobody has counted them. Pure functions.

A text's weight is a whole number, so that the weights of its pieces add up, wherever it is cut. A token weighs 4: as
much as 4 usual characters (ASCII and Latin-1), 2 of other alphabets and signs, 1 Chinese, Japanese or Korean one, or
half an emoji. docs/PERFORMANCE.md has how far off that is for texts of many kinds.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from typing import Any

from gateway.upstream.skim import SLICE_BYTES, Span, Text

WEIGHT_PER_TOKEN = 4

_ESCAPE_BYTES = 6  # of the longest, a backslash, u and four digits
_TEXTS = ("content", "text", "refusal")
_BELOW_WIDE = bytes(range(0x2E))
_HALF = re.compile("[\ud800-\udfff]")
_SLICE_CHARS = 65_536
_FEW_CHARS = 32  # for which an error handler takes less than an exception
# Where the upper bytes of UTF-16 begin, behind its mark: this codec is found twice as fast as that of a given order.
_UPPER = 3 if sys.byteorder == "little" else 2


def weigh(text: str) -> int:
    """The weight of a text; 0 for none. At most 5 ms for a million characters, 0.1 us for a short ASCII one."""
    if text.isascii():
        return len(text)
    if len(text) > _SLICE_CHARS:  # not three times in memory; between slices others get the interpreter's lock
        return sum(weigh(text[at : at + _SLICE_CHARS]) for at in range(0, len(text), _SLICE_CHARS))
    # The upper bytes of its UTF-16 units say of which kind each is: 0 is Latin-1, CJK begins at U+2E00, and what takes
    # two units (emoji) has both in that kind. Counted by calls into C, whatever the text is like.
    try:
        upper = text.encode("utf-16", "surrogatepass" if len(text) < _FEW_CHARS else "strict")[_UPPER::2]
    except UnicodeEncodeError:
        return _weigh_halves(text)
    wide = len(upper.translate(None, _BELOW_WIDE))
    return 2 * (len(upper) + wide) - upper.count(0)


def _weigh_halves(text: str) -> int:
    """The same of a longer text with halves of surrogate pairs, for each of which UTF-16 calls an error handler: each
    weighs as much as the sign that stands for what cannot be read."""
    return weigh(_HALF.sub("\ufffd", text))


def weigh_escaped(raw: bytes) -> int:
    """The weight of what stands between the quotes of a JSON string; what is no such thing counts by its bytes."""
    plain = raw.find(b"\\") < 0
    if plain and raw.isascii():
        return len(raw)
    try:
        text = raw.decode()
        return weigh(text if plain else json.loads(f'"{text}"'))
    except (ValueError, RecursionError):
        return len(raw)


def tokens_of(weight: int) -> int:
    """The tokens of a text of this weight; at least 1 for any text."""
    return -(-weight // WEIGHT_PER_TOKEN)


def weight_of_choices(payload: Text, choices: object) -> int:
    """The weight of what an answer's or an event's choices have generated: texts, reasoning, and calls of tools by name
    and arguments.

    What has not been read of a large one (see `skim.py`) is weighed where it stands in `payload`; what is no text, by
    its bytes.
    """
    if not isinstance(choices, list):
        return _weight(payload, choices)
    return sum(_weight_of_choice(payload, choice) for choice in choices)


def _weight_of_choice(payload: Text, choice: Any) -> int:
    if not isinstance(choice, dict):
        return _weight(payload, choice)
    said = choice.get("message") or choice.get("delta") or choice
    if not isinstance(said, dict):
        return _weight(payload, said)
    weight = sum(_weight(payload, said.get(key)) for key in _TEXTS)
    weight += _weight(payload, said.get("reasoning_content") or said.get("reasoning"))  # who sends both says the same
    calls = said.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if type(calls) is list else [calls]
    for function in (*functions, said.get("function_call")):
        if isinstance(function, dict):
            weight += _weight(payload, function.get("name")) + _weight(payload, function.get("arguments"))
        else:
            weight += _weight(payload, function)
    return weight


def _weight(payload: Text, value: object) -> int:
    """Of a text, of a list of parts with texts, or of what has not been read."""
    if isinstance(value, str):
        return weigh(value)
    if isinstance(value, Span):
        if value.kind == '"':
            return _weigh_slices(payload, value.start + 1, value.end - 1)
        return value.end - value.start
    if isinstance(value, list):
        return sum(_weight(payload, part.get("text")) for part in value if isinstance(part, dict))
    return 0


def _weigh_slices(payload: Text, start: int, end: int) -> int:
    """As `weigh_escaped`, of a text of any size, which is known to be valid; between slices others get the
    interpreter's lock."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    weight, begun = 0, ""
    for at in range(start, end, SLICE_BYTES):
        text = begun + decode(payload[at : min(at + SLICE_BYTES, end)])
        # An escape that the end may cut goes with what comes next. (Of two backslashes the first escapes the second.)
        cut = text.rfind("\\", max(0, len(text) - _ESCAPE_BYTES)) if at + SLICE_BYTES < end else -1
        if cut >= 0 and (cut + 1 - len(text[: cut + 1].rstrip("\\"))) % 2:
            text, begun = text[:cut], text[cut:]
        else:
            begun = ""
        weight += weigh(json.loads(f'"{text}"') if "\\" in text else text)
    return weight
