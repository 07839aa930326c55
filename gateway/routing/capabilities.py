"""What models can do, in the words of Ollama's API, whose clients offer their users no more than they are told. Pure.

Engines do not say it in one way, and most do not say it at all; so the file may. Else a model that chats is told to
take tools: they are passed on to any engine, and what an engine makes of them is for its answer to say, while clients
that are not told of tools (agents in editors) do not offer the model at all. Pictures and thinking are not promised: a
client would send, or wait for, what most models do not have.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.routing.specs import ModelSpec

CHATS = ("completion", "tools")
AGREE = ("completion",)
"""Of a model that is made of others."""
EMBEDS = ("embedding",)


def capabilities_of(spec: ModelSpec) -> tuple[str, ...]:
    """A model's: as the file has them, else by what its engines are said to serve."""
    if spec.capabilities is not None:
        return spec.capabilities
    for path, can in (("/chat/completions", CHATS), ("/embeddings", EMBEDS)):
        if any(engine.can_serve(path) for engine in spec.engines):
            return can
    return ()


def common(specs: Iterable[ModelSpec]) -> tuple[str, ...]:
    """Those of a model for which any of these may answer."""
    each = [capabilities_of(spec) for spec in specs]
    return tuple(what for what in each[0] if all(what in others for others in each)) if each else CHATS
