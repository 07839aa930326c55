"""How many tokens a text has, where nobody has counted them. Pure functions.

A text's weight is a whole number, so that the weights of its pieces add up: a character weighs 1, one of a script that
is written without spaces between words as much as a token (`WEIGHT_PER_TOKEN`).
"""

from __future__ import annotations

import json
import re

WEIGHT_PER_TOKEN = 4

# Chinese, Japanese and Korean characters, with their marks and full-width forms.
_WIDE = re.compile("[\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]+")


def weigh(text: str) -> int:
    """The weight of a text; 0 for none."""
    size = len(text)
    if not text.isascii():
        size += (WEIGHT_PER_TOKEN - 1) * sum(map(len, _WIDE.findall(text)))
    return size


def weigh_escaped(raw: bytes) -> int:
    """The weight of what stands between the quotes of a JSON string; what is no such thing counts by its bytes."""
    if raw.find(b"\\") < 0 and raw.isascii():
        return len(raw)
    try:
        text = json.loads(b'"%b"' % raw)
    except (ValueError, RecursionError):
        return len(raw)
    return weigh(text)


def tokens_of(weight: int) -> int:
    """The tokens of a text of this weight; at least 1 for any text."""
    return -(-weight // WEIGHT_PER_TOKEN)
