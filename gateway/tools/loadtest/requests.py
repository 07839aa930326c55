"""Which request comes next, as the bytes that are sent: the same ones in the same order for the same seed.

One object for one thread. What does not differ from one request to the next is made once and kept (at most KEPT).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple, Optional

from gateway.tools.loadtest.prompts import Span, made_unique

KEPT = 4096


class Request(NamedTuple):
    """One request: its bytes, the model that it asks, and whether it asks for a stream."""

    wire: bytes
    model: str
    stream: bool


class Target(NamedTuple):
    """Where requests go, and what each carries: `head` is all of an HTTP head but the length of the body."""

    head: bytes
    models: tuple[tuple[str, float], ...]  # with their weights


class Mix(NamedTuple):
    """What a request may be: one of `bodies`, and the rest as often as said."""

    bodies: Sequence[Mapping[str, Any]]
    stream_share: float = 0.0
    stream_usage: bool = True
    max_tokens: Optional[Span] = None
    params: Mapping[str, Any] = {}
    unique: bool = False


def requests(target: Target, mix: Mix, seed: int) -> Iterator[Request]:
    """Requests without end."""
    chance = Random(f"requests {seed}")
    names = [name for name, _ in target.models]
    weights = list(itertools.accumulate(weight for _, weight in target.models))
    kept: dict[tuple[object, ...], Request] = {}
    bodies, share, span = mix.bodies, mix.stream_share, mix.max_tokens
    for number in itertools.count():
        model = names[0] if len(names) == 1 else chance.choices(names, cum_weights=weights)[0]
        which = 0 if len(bodies) == 1 else chance.randrange(len(bodies))
        stream = share >= 1 or (share > 0 and chance.random() < share)
        max_tokens = None if span is None else span.drawn(chance)
        key = (model, which, stream, max_tokens)
        request = None if mix.unique else kept.get(key)
        if request is None:
            body = dict(bodies[which])
            if mix.unique:
                body = made_unique(body, f"[{seed:x}-{number}]")
            request = Request(target.head + _body(body, model, stream, max_tokens, mix), _model(body, model), stream)
            if not mix.unique and len(kept) < KEPT:
                kept[key] = request
        yield request


def _model(body: Mapping[str, Any], model: str) -> str:
    own = body.get("model")  # a line of a file may name its own
    return own if type(own) is str and own else model


def _body(body: dict[str, Any], model: str, stream: bool, max_tokens: Optional[int], mix: Mix) -> bytes:
    body = {"model": model, **body, **mix.params}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    for name in ("stream", "stream_options"):
        if name not in mix.params:
            body.pop(name, None)
    if stream:
        body["stream"] = True
        if mix.stream_usage:
            body.setdefault("stream_options", {"include_usage": True})
    text = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return b"Content-Length: %d\r\n\r\n%b" % (len(text), text)
