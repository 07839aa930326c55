"""What is told of the cache, and how it is cleared.

Owns nothing. Clearing may wait for Redis: it is for a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from gateway.clock import unix_s
from gateway.errors import GatewayError, RequestRefused
from gateway.reuse.caches import Caches
from gateway.reuse.redisstore import RedisUnavailable
from gateway.reuse.stored import Chosen
from gateway.server.everybody import Everybody, added
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.observe import Telemetry

COUNT_S = 0.5  # that the figures may wait for what has just been finished
AGE_MAX_S = 1e10
NAME_CHARS = 256


class CachePages:
    """Answers at `/api/v1/cache/`. Thread-safe. `caches` None: CACHE=off, there is nothing."""

    def __init__(
        self, caches: Optional[Caches], metrics: GatewayMetrics, telemetry: Telemetry, everybody: Everybody
    ) -> None:
        self._caches = caches
        self._metrics = metrics
        self._telemetry = telemetry
        self._everybody = everybody

    def stats(self) -> dict[str, Any]:
        """What the caches of all processes hold, and have saved since the start. May wait for the others."""
        told = added(self.own_stats(), self._everybody.cache_stats())
        return {**told, "saved_usd": round(told["saved_usd"], 9)}

    def own_stats(self) -> dict[str, float]:
        """What this process's cache holds, and has saved since the start."""
        self._telemetry.flush(COUNT_S)
        store = None if self._caches is None else self._caches.store
        totals = self._metrics.cache_totals
        return {
            "entries": 0 if store is None else len(store),
            "bytes": 0 if store is None else store.bytes,
            "hits": totals["hit"],
            "near_hits": totals["near"],
            "misses": totals["miss"],
            "evictions": 0 if store is None else store.evictions,
            "saved_tokens": totals["saved_tokens"],
            "saved_usd": float(totals["saved_usd"]),
        }

    def clear(self, wanted: Mapping[str, Any]) -> int:
        """Drop answers: of a `model`, of a `key` (its name), `older_than_s`; {}: all. Returns how many. Raises
        GatewayError."""
        chosen = checked(wanted)
        if self._caches is None:
            return 0
        dropped = Chosen(unix_s(), chosen.get("model"), chosen.get("key"), chosen.get("older_than_s"))
        self._everybody.cache_cleared(dropped)
        try:
            return self._caches.clear(dropped)
        except RedisUnavailable as error:
            self._telemetry.log("warning", "redis", message=str(error))
            raise GatewayError(
                "internal_error", "this gateway's answers are dropped; Redis could not be asked, and still has some"
            ) from error

    def forget_key(self, name: str) -> None:
        """Drop the answers of a key that has been revoked. Raises nothing: what Redis cannot be told is logged."""
        if self._caches is None:
            return
        dropped = Chosen(unix_s(), scope=name)
        self._everybody.cache_cleared(dropped)
        try:
            self._caches.clear(dropped)
        except RedisUnavailable as error:
            self._telemetry.log("warning", "redis", message=str(error))


def checked(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be dropped, null counting as absent. Raises RequestRefused, also for a name that is not known and says
    nothing: who has misspelled what to drop does not mean everything."""
    chosen: dict[str, Any] = {}
    for key, value in wanted.items():
        if key not in ("model", "key", "older_than_s"):
            known = "model, key, older_than_s"
            raise RequestRefused("invalid_body", f"{key[:40]} is not known; known: {known}", param=key[:40])
        if value is None:
            continue
        if key == "older_than_s":
            if type(value) not in (int, float) or not 0 <= value <= AGE_MAX_S:
                raise RequestRefused("invalid_body", "older_than_s must be a number of seconds", param=key)
        elif type(value) is not str or len(value) > NAME_CHARS:
            raise RequestRefused("invalid_body", f"{key} must be a name", param=key)
        chosen[key] = value
    return chosen
