"""Engines whose breakers have opened at other gateways: a hint, which is believed for a while and with bounds.

`Hints` owns up to where it has read what others have published (a stream in Redis of at most HINTS_MAX entries, by
Redis' own clock). All of it is for the thread `shared`; what is published comes from any thread, by the line. No lock.

A hint names an engine by a digest of its URL and its model. What it leads to is decided in the routing (`Roster.hint`):
that engine is left alone for the told time at most, unless it would be the last one that is in. What is left alone by a
hint alone is not published again, so nothing goes round.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping
from typing import Any, Callable

from gateway.routing.pool import ModelPool
from gateway.routing.standing import HINTED, StateChange
from gateway.shared.line import Job, Line
from gateway.shared.scripts import Script

HINTS_MAX = 1000
READ_MAX = 100
KEEP_S = 3600
_NAME = b"{igw}:hints"
# KEYS: the hints. ARGV: how many are kept, the seconds for which they are; who says so, of which engine, for how long.
_HINT = """
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'o', ARGV[3], 'e', ARGV[4], 'l', ARGV[5])
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""

# KEYS: the hints. ARGV: the number up to which they are read, how many to read. Replies each one's number, who says so,
# of which engine, and how many milliseconds of it are left.
_HINTS = """
local t = redis.call('TIME')
local found = redis.call('XREAD', 'COUNT', ARGV[2], 'STREAMS', KEYS[1], ARGV[1])
local out = {}
for _, entry in ipairs(found and found[1][2] or {}) do
  local fields = entry[2]
  local said = tonumber(string.match(entry[1], '^%d+'))
  local left = (tonumber(fields[6]) or 0) - (t[1] * 1000 + math.floor(t[2] / 1000) - said)
  local n = #out
  out[n + 1], out[n + 2], out[n + 3], out[n + 4] = entry[1], fields[2] or '', fields[4] or '', left
end
return out
"""

HINT = Script(_HINT)
HINTS = Script(_HINTS)


class Hints:
    """Publishes that breakers have opened here, and applies what others have published. `name`: this gateway's."""

    def __init__(self, line: Line, name: bytes) -> None:
        self._line = line
        self._name = name
        self._read_to: bytes = b"0"
        self._pools: Callable[[], Mapping[str, ModelPool]] = dict
        self._told: Callable[[StateChange], None] = lambda change: None

    def bind(self, pools: Callable[[], Mapping[str, ModelPool]], told: Callable[[StateChange], None]) -> None:
        """Have hints applied to these engines, and `told` of what they change, on the thread shared."""
        self._pools, self._told = pools, told

    def changed(self, change: StateChange) -> None:
        """The state of an engine has changed here. Never blocks."""
        if change.after != "open" or change.reason == HINTED or self._line.is_open:
            return  # without Redis nobody would hear of it while it lasts
        pool = self._pools().get(change.model)
        for engine in () if pool is None else pool.engines:
            if engine.id == change.engine:
                left_ms = int((engine.breaker.until_s - time.monotonic()) * 1000)
                if left_ms > 0:
                    self._publish(digest_of(engine.spec.url, change.model), left_ms)

    def _publish(self, digest: bytes, left_ms: int) -> None:
        arguments = (HINTS_MAX, KEEP_S, self._name, digest, left_ms)
        self._line.tell(Job(lambda whole: HINT.command((_NAME,), arguments, whole)))

    def beat(self) -> list[Job]:
        """What is to be read now."""
        return [Job(lambda whole: HINTS.command((_NAME,), (self._read_to, READ_MAX), whole), self._heard)]

    def _apply(self, digest: bytes, left_s: float) -> None:
        for model, pool in list(self._pools().items()):
            for engine in pool.engines:
                if digest_of(engine.spec.url, model) == digest:
                    with contextlib.suppress(KeyError):  # a reload has just taken it out
                        change = pool.hint(engine.id, left_s)
                        if change is not None:
                            self._told(change)

    def _heard(self, reply: Any) -> None:
        if not isinstance(reply, list):
            return
        for at in range(0, len(reply) - 3, 4):
            self._read_to, origin, digest, left_ms = reply[at : at + 4]
            if origin != self._name and isinstance(left_ms, int) and left_ms > 0:
                self._apply(digest, left_ms / 1000)


def digest_of(url: str, model: str) -> bytes:
    """What stands for an engine of a model."""
    text = f"{url}\0{model}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()
