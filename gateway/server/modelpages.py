"""Which models there are, in the words of each dialect's clients.

Owns nothing; reads the router's snapshot. A caller is told of those that it may use: another does not exist for it.
"""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Mapping
from typing import Any, Optional

from gateway.api import own
from gateway.dialects.anthropic.listing import model_of, models_of
from gateway.dialects.ollama import pages
from gateway.errors import GatewayError
from gateway.keys.auth import Identity
from gateway.pipeline import Pipeline
from gateway.routing.capabilities import capabilities_at
from gateway.routing.splits import SplitSpec
from gateway.routing.virtual import VirtualSpec
from gateway.server.admin import Reply, json_reply
from gateway.server.parsing import RequestHead

_ANTHROPICS = b"anthropic-version"  # a header that Anthropic's clients alone send
MODEL_START = own.MODEL.path.partition("{")[0]


class ModelPages:
    """Answers about models. Thread-safe."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def all(self, head: RequestHead, identity: Optional[Identity]) -> Reply:
        """All models that the caller may use."""
        assert identity is not None  # this path is not open
        entries = self._entries(identity)
        if _ANTHROPICS in head.headers:
            return json_reply(models_of([(entry["id"], entry["created"]) for entry in entries]))
        return json_reply({"object": "list", "data": entries})

    def one(self, head: RequestHead, identity: Optional[Identity]) -> Reply:
        """One of them: another does not exist for the caller."""
        assert identity is not None  # this path is not open
        name = urllib.parse.unquote(head.path[len(MODEL_START) :])
        entry = self._entry(name, self._listed(), identity)
        if entry is None:
            raise GatewayError("model_not_found", f"the model {name[:200]!r} does not exist", param="model")
        return json_reply(model_of(name, entry["created"]) if _ANTHROPICS in head.headers else entry)

    def tags(self, head: RequestHead, identity: Optional[Identity]) -> Reply:
        """The same for Ollama's clients."""
        return json_reply(pages.tags(self._told(identity)))

    def running(self, head: RequestHead, identity: Optional[Identity]) -> Reply:
        """What Ollama would have loaded: all."""
        return json_reply(pages.running(self._told(identity)))

    def version(self, head: RequestHead, identity: Optional[Identity]) -> Reply:
        """Of Ollama, whose API this is."""
        return json_reply(pages.version())

    def _told(self, identity: Optional[Identity]) -> list[pages.Model]:
        assert identity is not None  # these paths are not open
        router, told = self._pipeline.factory.router, []
        for one in self._entries(identity):
            with contextlib.suppress(GatewayError):  # it has gone meanwhile
                can = capabilities_at(router, one["id"])
                told.append(pages.Model(one["id"], one["created"], one.get("max_model_len"), can))
        return told

    def _entries(self, identity: Identity) -> list[dict[str, Any]]:
        listed = self._listed()
        names = listed or self._pipeline.factory.router.names()
        entries = []
        for name in names:
            with contextlib.suppress(GatewayError):  # a reload replaces names and models one after the other
                entries.append(self._entry(name, listed, identity))
        return [entry for entry in entries if entry is not None]

    def _listed(self) -> dict[str, Optional[int]]:
        return {one.id: one.max_model_len for one in self._pipeline.factory.router.listed()}

    def _entry(self, name: str, listed: Mapping[str, Optional[int]], identity: Identity) -> Optional[dict[str, Any]]:
        """A model that the caller may use; `listed`: where one engine serves every name, what it lists, with the
        context. Raises `model_not_found` for one that is just coming or going."""
        router = self._pipeline.factory.router
        if name not in (listed or router.names()) or not router.is_within(name, identity.residency):
            return None
        virtual = router.virtual(name)
        if virtual is not None:
            return self._virtual_entry(name, virtual, identity)
        split = (router.splits or {}).get(name)
        if split is not None:
            return self._split_entry(name, split, identity)
        pool = router.route(name, may_use=identity.may_use)[0]
        # Where one engine serves every name, the name is the model.
        names = (name,) if listed else router.names_of(pool.name)
        if not identity.may_use(*names):
            return None
        entry = self._any_entry(name, pool.any_available(identity.residency))
        if pool.spec.family is not None:
            entry["family"] = pool.spec.family
        max_model_len = pool.spec.max_model_len or listed.get(name)
        if max_model_len is not None:
            entry["max_model_len"] = max_model_len
        return entry

    def _split_entry(self, name: str, split: SplitSpec, identity: Identity) -> Optional[dict[str, Any]]:
        """A model that others answer for; there is an answer where one of them, or of its fallbacks, can give it."""
        if not identity.may_use(split.name, *split.aliases):
            return None
        router = self._pipeline.factory.router
        members = [share for share, _ in split.shares]
        there = [other for other in (*members, *(split.fallbacks or ())) if other in router.routed]
        available = any(router.route(other)[0].any_available(identity.residency) for other in there)
        return {**self._any_entry(name, available), "members": members}

    def _any_entry(self, name: str, available: bool) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._pipeline.started_unix_s,
            "owned_by": "inference-gateway",
            "available": available,
        }

    def _virtual_entry(self, name: str, virtual: VirtualSpec, identity: Identity) -> Optional[dict[str, Any]]:
        """A model made of others; there is an answer where one of them can give it."""
        if not identity.may_use(virtual.name, *virtual.aliases):
            return None
        router = self._pipeline.factory.router
        available = any(router.route(member)[0].any_available(identity.residency) for member in virtual.members)
        return {**self._any_entry(name, available), "members": list(virtual.members)}
