"""Which fields a request has on each path, of which types, and what is estimated from them.

One table, `BY_PATH`, that checks, limits and routing go by: what does not stand in a path's row, fields of other paths
included, is passed on to engines and never read. Pure functions. The readers take requests that nobody has checked, too
(a library's caller brings its own): what has another type than its field counts as absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Callable, NamedTuple

from gateway.errors import RequestRefused
from gateway.upstream.echo import content_text
from gateway.upstream.estimates import WEIGHT_PER_TOKEN, tokens_of, weigh
from gateway.upstream.fieldtypes import (
    CHAT,
    COMPLETION,
    EMBEDDING,
    INPUT_SCHEMA,
    MESSAGES_SCHEMA,
    PROMPT_SCHEMA,
    RESPONSE,
    Check,
    Field,
    Json,
    Request,
    check_input,
    check_messages,
    check_prompt,
    checks_of,
    schema_of,
)

BEST_OF_MAX = 1_000_000  # beyond it nothing is reserved: what an engine would never do need not be a number for floats


class Prompts(NamedTuple):
    """What a request gives engines to read, by its weight (see `estimates.py`).

    `weight` of all of it, `longest` of the longest prompt (what a model's context must have room for).
    """

    weight: int
    longest: int


class PathFields(NamedTuple):
    """What one path reads."""

    own: str
    """The field that the path is about."""
    check: Callable[[Request], None]
    """Of that field; raises RequestRefused."""
    optional: Mapping[str, Check]
    """The others that have a type; null counts as absent."""
    prompts: Callable[[Request], Prompts]
    texts: Callable[[Request], Iterator[str]]
    """The prompts' text in pieces, without copying it."""
    between: str
    """What stands between two of these pieces."""
    asked: tuple[str, ...]
    """Fields that say how many tokens an answer may have; () where no tokens are generated."""
    several: bool
    """Whether there may be several prompts, each answered, and `best_of` has engines generate more than they give."""
    schema: Json
    """What `validate` takes, in JSON Schema; a request that this refuses is refused by `validate`, too."""
    passes: bool = False
    """Whether requests and answers are passed on as they are."""
    method: str = "POST"

    def validate(self, request: Request) -> None:
        """Raise RequestRefused naming a faulty field: the path's own, else the request's first."""
        self.check(request)
        check_of = self.optional.get
        for key, value in request.items():
            check = check_of(key)
            if check is None:
                if key != self.own:
                    self._refuse_double(key)
            elif value is not None:
                fault = check(value)
                if fault is not None:
                    code, text = fault
                    raise RequestRefused(code, f"{key} {text}", param=key)

    def _refuse_double(self, key: str) -> None:
        """Raise RequestRefused for a key that some engines take for a field that is read here, and others do not.

        Those written in Go do not look at the case of keys (encoding/json): a second `MODEL` would pass by all that
        goes by `model`.
        """
        folded = key.casefold()
        read = folded in self.optional or folded == self.own or (self.several and folded == "best_of")
        if read and folded != key:
            raise RequestRefused("invalid_body", f"{key[:100]} is spelled {folded}", param=key[:100])

    def answer_tokens(self, request: Request) -> int:
        """Tokens that each choice may have, as asked for; 0: the request does not say, or none are generated.

        Where two fields say it, engines differ in which one they read: the larger counts.
        """
        most = 0
        for key in self.asked:
            value = request.get(key)
            if type(value) is int and value > most:
                most = value
        return most

    def unlimited(self, request: Request) -> list[str]:
        """The fields that ask for as many tokens as there may be, with -1: they count as absent, and not every engine
        takes them."""
        return [key for key in self.asked if request.get(key) == -1]

    def choices(self, request: Request) -> int:
        """Choices in a complete answer: `n` for each prompt; 1 where there are none."""
        return (_whole(request.get("n")) or 1) * self._count(request) if self.asked else 1

    def generated(self, request: Request) -> int:
        """Choices that are generated, those that `best_of` has an engine make and throw away included."""
        if not self.several:
            return self.choices(request)
        count = _whole(request.get("n")) or 1
        return self._count(request) * max(count, min(_taken_for_whole(request.get("best_of")), BEST_OF_MAX))

    def _count(self, request: Request) -> int:
        return _count_of(request.get(self.own)) if self.several else 1

    def text(self, request: Request, limit_chars: int) -> str:
        """The first characters of what it gives engines to read; token numbers are written out."""
        parts: list[str] = []
        left = limit_chars
        for text in self.texts(request):
            if parts:
                left -= len(self.between)
            parts.append(text[: max(0, left)])
            left -= len(text)
            if left <= 0:
                break
        return self.between.join(parts)[:limit_chars]

    @property
    def streams(self) -> bool:
        """Whether answers can be streamed, and `stream` and `stream_options` mean something."""
        return bool(self.asked) and not self.passes


def _whole(value: Any) -> int:
    return value if type(value) is int else 0


def _taken_for_whole(value: Any) -> int:
    """As what number engines may read a field that nobody has checked: many take 5.0 and "5" for 5."""
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is str:
        digits = value.strip().lstrip("+0").partition(".")[0]
        if digits.isdecimal():
            return int(digits) if len(digits) <= len(str(BEST_OF_MAX)) else BEST_OF_MAX
    return _whole(value)


def completion_of(query: Request) -> Request:
    """The completion that answers a query: `{"query", "model", "max_tokens", "temperature"}`. Raises RequestRefused."""
    text = query.get("query")
    if type(text) is not str or not text.strip():
        raise RequestRefused("invalid_query", "query must be a non-empty text", param="query")
    request = {key: query[key] for key in ("model", "max_tokens", "temperature") if query.get(key) is not None}
    request["prompt"] = text
    BY_PATH["/completions"].validate(request)
    return request


# --- what is estimated ---------------------------------------------------------------------------------------------


def _chat_prompts(request: Request) -> Prompts:
    messages = request.get("messages")
    weight = 0
    if type(messages) is list and messages:
        weight = len(messages) - 1  # the line ends between them
        for message in messages:
            if type(message) is dict:
                content = message.get("content")
                weight += weigh(content if type(content) is str else content_text(content))
                if len(message) > 2:  # more than role and content
                    weight += sum(_weight(message[key]) for key in _BESIDE_CONTENT if message.get(key))
    for key in _DEFINITIONS:
        if request.get(key):
            weight += _weight(request[key])
    return Prompts(weight, weight)


# What else of a message, and of a request, a model reads; engines write both into its prompt.
_BESIDE_CONTENT = ("name", "tool_calls", "function_call", "refusal", "reasoning_content", "reasoning")
_DEFINITIONS = ("tools", "functions")


def _weight(value: Any) -> int:
    """About the weight that a JSON value has as text."""
    weight = 0
    left = [value]
    while left:
        item = left.pop()
        if type(item) is str:
            weight += weigh(item) + 2
        elif type(item) is dict:
            weight += sum(map(weigh, item)) + 4 * len(item) + 2
            left.extend(item.values())
        elif type(item) is list:
            weight += len(item) + 2
            left.extend(item)
        else:
            weight += 4
    return weight


def _texts_of_chat(request: Request) -> Iterator[str]:
    messages = request.get("messages")
    for message in messages if type(messages) is list else ():
        yield content_text(message.get("content")) if type(message) is dict else ""


def _completion_prompts(request: Request) -> Prompts:
    value = request.get("prompt")
    prompts = _prompts_of(value)
    suffix = request.get("suffix")
    if type(suffix) is not str or not suffix:
        return prompts
    more = weigh(suffix)
    return Prompts(prompts.weight + more * _count_of(value), prompts.longest + more)


def _count_of(value: Any) -> int:
    """How many prompts a text, a list of texts or tokens, or a list of lists of tokens is."""
    return len(value) if type(value) is list and value and type(value[0]) is not int else 1


def _prompts_of(value: Any) -> Prompts:
    """Of a text, a list of texts or tokens, or a list of lists of tokens: a token is one, whatever its number."""
    if type(value) is str:
        weight = weigh(value)
        return Prompts(weight, weight)
    if type(value) is not list or not value:
        return Prompts(0, 0)
    if type(value[0]) is int:
        weight = len(value) * WEIGHT_PER_TOKEN
        return Prompts(weight, weight)
    total = longest = 0
    for item in value:
        # Each of several prompts is whole tokens, and at least one: engines begin each anew.
        if type(item) is str:
            weight = max(1, tokens_of(weigh(item))) * WEIGHT_PER_TOKEN
        else:
            weight = (len(item) if type(item) is list else 1) * WEIGHT_PER_TOKEN
        total += weight
        longest = max(longest, weight)
    return Prompts(total, longest)


def _texts_of(value: Any) -> Iterator[str]:
    if type(value) is str:
        yield value
    elif type(value) is list:
        for item in value:
            if type(item) is list:
                yield from map(str, item)
            else:
                yield item if type(item) is str else str(item)


ONLY_MODEL = {"model": CHAT["model"]}


def _passed(
    own: str,
    *also: str,
    method: str = "POST",
    asked: tuple[str, ...] = (),
    fields: Mapping[str, Field] = ONLY_MODEL,
) -> PathFields:
    """A path whose requests are passed on; of these fields a model is given all to read. `fields` are checked."""

    def prompts(request: Request) -> Prompts:
        weight = sum(_weight(request[key]) for key in (own, *also) if request.get(key))
        return Prompts(weight, weight)

    def texts(request: Request) -> Iterator[str]:
        for key in (own, *also):
            yield from _texts_of(request.get(key))

    properties = {name: field.schema for name, field in fields.items()}
    schema = {"type": "object", "properties": properties, "additionalProperties": True}
    return PathFields(own, _anything, checks_of(fields), prompts, texts, "\n", asked, False, schema, True, method)


def _anything(request: Request) -> None:
    """What is in it is for the engine to say."""


# --- the table -----------------------------------------------------------------------------------------------------

BY_PATH: dict[str, PathFields] = {
    "/chat/completions": PathFields(
        "messages",
        check_messages,
        checks_of(CHAT),
        _chat_prompts,
        _texts_of_chat,
        "\n",
        ("max_tokens", "max_completion_tokens"),
        several=False,
        schema=schema_of("messages", MESSAGES_SCHEMA, CHAT),
    ),
    "/completions": PathFields(
        "prompt",
        check_prompt,
        checks_of(COMPLETION),
        _completion_prompts,
        lambda request: _texts_of(request.get("prompt")),
        "",
        ("max_tokens",),
        several=True,
        schema=schema_of("prompt", PROMPT_SCHEMA, COMPLETION),
    ),
    "/embeddings": PathFields(
        "input",
        check_input,
        checks_of(EMBEDDING),
        lambda request: _prompts_of(request.get("input")),
        lambda request: _texts_of(request.get("input")),
        "",
        (),
        several=False,
        schema=schema_of("input", INPUT_SCHEMA, EMBEDDING),
    ),
    "/responses": _passed("input", "instructions", "tools", asked=("max_output_tokens",), fields=RESPONSE),
    "/rerank": _passed("query", "documents"),
    "/moderations": _passed("input"),
    "/audio/speech": _passed("input", "instructions"),
    "/audio/transcriptions": _passed("prompt"),
    "/audio/translations": _passed("prompt"),
    "/images/generations": _passed("prompt"),
    "/images/edits": _passed("prompt"),
    "/images/variations": _passed("prompt"),
    "/tokenize": _passed(""),
    "/detokenize": _passed(""),
    "/props": _passed("", method="GET"),
    "/slots": _passed("", method="GET"),
}
