"""One call's answer, split among those who have shared it: texts by index, embeddings byte by byte, usage to the token.

Pure functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional, Union

from gateway.upstream.answers import Usage
from gateway.upstream.nonfinite import dump_with_nulls

# An embedding as it stands in an answer: numbers in brackets, or base64. They are cut out as they are, so that nobody
# gets another number than the engine has given.
_EMBEDDING = re.compile(rb'"embedding"\s*:\s*(\[[^\[\]"{}]*\]|"[A-Za-z0-9+/=_-]*")')


_KEYS = {"object", "index", "embedding"}


class WrongCount(Exception):
    """The engine has not answered each of what it was asked."""


class Parts(NamedTuple):
    """What an answer with embeddings consists of."""

    common: dict[str, Any]
    """All but `data` and `usage`."""
    vectors: list[bytes]
    """The JSON of each embedding, in the order of the inputs."""


def choices_of(answer: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The choice, which has a text, of each of `count` prompts. Raises WrongCount."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != count:
        raise WrongCount
    placed: list[dict[str, Any]] = [{}] * count
    for place, choice in enumerate(choices):
        index = choice.get("index", place if count == 1 else None) if isinstance(choice, dict) else None
        if type(index) is not int or not 0 <= index < count or placed[index] or type(choice.get("text")) is not str:
            raise WrongCount
        placed[index] = choice
    return placed


def embeddings_of(body: Union[bytes, bytearray], count: int) -> Parts:
    """The embedding of each of `count` inputs. Raises WrongCount."""
    vectors: list[bytes] = []

    def cut(match: re.Match[bytes]) -> bytes:
        vectors.append(match[1])
        return b'"embedding":%d' % (len(vectors) - 1)

    try:
        outline = json.loads(_EMBEDDING.sub(cut, body))
    except (ValueError, RecursionError):
        raise WrongCount from None
    data = outline.pop("data", None) if isinstance(outline, dict) else None
    if not isinstance(data, list) or len(data) != count or len(vectors) != count:
        raise WrongCount
    placed: list[Optional[bytes]] = [None] * count
    for place, item in enumerate(data):
        if not isinstance(item, dict) or item.get("embedding") != place or not item.keys() <= _KEYS:
            raise WrongCount  # what else is said of one is not understood here
        index = item.get("index", place)
        if type(index) is not int or not 0 <= index < count or placed[index] is not None:
            raise WrongCount
        placed[index] = vectors[place]
    outline.pop("usage", None)
    return Parts(outline, [vector for vector in placed if vector is not None])


def embeddings_body(parts: Parts, first: int, count: int, request_id: str, usage: Usage) -> bytes:
    """The answer for who has asked for `count` of the inputs, from `first` on."""
    items = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector)
        for index, vector in enumerate(parts.vectors[first : first + count])
    )
    told = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    head = dump_with_nulls({**parts.common, "object": "list", "id": request_id, "usage": told})
    return b'%b,"data":[%b]}' % (head[:-1], items)


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """A whole number shared out by weight, to the last one: what is left over goes to the largest remainders
    (Hamilton's method)."""
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def usages(usage: Usage, asked: Sequence[int], answered: Sequence[int]) -> list[Usage]:
    """The usage of one call shared out among callers, by the weights of what each has asked and got."""
    prompts, completions = shares(usage.prompt_tokens, asked), shares(usage.completion_tokens, answered)
    return [usage._replace(prompt_tokens=p, completion_tokens=c) for p, c in zip(prompts, completions)]
