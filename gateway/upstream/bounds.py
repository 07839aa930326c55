"""How many tokens an answer may say that it took, by what was asked. Pure functions.

Generous: no honest engine is doubted. A tokenizer takes no more tokens than its text has bytes; templates, images and
what an engine adds on its own are allowed for.
"""

from __future__ import annotations

from typing import Optional

from gateway.upstream.answers import COMPLETION_BELIEVED, PROMPT_BELIEVED, Bounds
from gateway.upstream.call import CHAT, Call
from gateway.upstream.fields import BY_PATH

TOKENS_UNKNOWN = 10_000_000
"""Where nothing is known; and of a prompt, whatever its length."""
PART_TOKENS = 65_536
"""Of an image, a sound or a film that a message refers to."""


def bounds_of(call: Call, context_tokens: Optional[int] = None, earlier_weight: int = 0) -> Bounds:
    """The most that an answer to `call` may say, of a model with so large a context (None: unknown).

    `earlier_weight`: of the text that an earlier stream has given, and that this one has gone on from (see
    `estimates.py`; no character has more bytes than twice its weight).
    """
    if BY_PATH[call.path].passes:  # a sound, or a conversation that the engine keeps
        return Bounds(TOKENS_UNKNOWN, _completion(call, context_tokens))
    prompt = len(call.body) + PROMPT_BELIEVED + 2 * earlier_weight + PART_TOKENS * _parts(call)
    return Bounds(min(prompt, TOKENS_UNKNOWN), _completion(call, context_tokens))


def _parts(call: Call) -> int:
    """What the messages hold that is no text."""
    messages = call.request.get("messages") if call.path == CHAT else None
    contents = [message.get("content") for message in messages or () if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return sum(isinstance(part, dict) and part.get("type") != "text" for part in parts)


def _completion(call: Call, context_tokens: Optional[int]) -> int:
    fields = BY_PATH[call.path]
    if not fields.asked:
        return COMPLETION_BELIEVED
    asked = fields.answer_tokens(call.request)
    if asked:
        each = 2 * asked + COMPLETION_BELIEVED  # some do not count what a model thinks
    elif context_tokens is not None:
        each = context_tokens + COMPLETION_BELIEVED
    else:
        return TOKENS_UNKNOWN
    # Those that `best_of` has an engine throw away are counted, too.
    return min(each * fields.generated(call.request), max(each, 100 * TOKENS_UNKNOWN))
