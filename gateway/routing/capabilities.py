"""What models can do, in the words of Ollama's API, whose clients offer their users no more than they are told. Pure.

Engines do not say it in one way, and most do not say it at all; so the file may. Else a model that chats is told to
take tools: they are passed on to any engine, and what an engine makes of them is for its answer to say, while clients
that are not told of tools (agents in editors) do not offer the model at all. Pictures and thinking are not promised: a
client would send, or wait for, what most models do not have.
"""

from __future__ import annotations

from typing import Optional

from gateway.routing.providers import CHAT
from gateway.routing.router import Router
from gateway.routing.specs import ModelSpec

CHATS = ("completion", "tools")
AGREE = ("completion",)
"""Of a model that is made of others."""
EMBEDS = ("embedding",)


def capabilities_of(spec: ModelSpec) -> tuple[str, ...]:
    """A model's: as the file has them, else by what its engines are said to serve."""
    if spec.capabilities is not None:
        return spec.capabilities
    for path, can in ((CHAT, CHATS), ("/embeddings", EMBEDS)):
        if any(engine.can_serve(path) for engine in spec.engines):
            return can
    return () if spec.engines else CHATS  # of which none is known yet


def capabilities_at(router: Router, name: Optional[str]) -> tuple[str, ...]:
    """Those of what a request that names it asks; of a split those that all of its models have. Raises GatewayError."""
    if router.virtual(name) is not None:
        return AGREE
    split = (router.splits or {}).get(name)
    names = [name] if split is None else [share for share, _ in split.shares if share in router.routed]
    each = [capabilities_of(router.route(one)[0].spec) for one in names]
    return tuple(what for what in each[0] if all(what in others for others in each)) if each else CHATS
