"""What other gateways have put in Redis, as one store reads it: their vectors, each told of once.

Owns the place in the stream of vectors up to which it has been read, and the name under which this gateway's own stand
there. All of it is for one thread, the store's, so there is no lock. Never talks to Redis itself, which the store does,
never waits, and is never a reason to leave Redis alone: without vectors answers are found by their keys as before.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, Callable, Optional

from gateway.clock import unix_s
from gateway.reuse.redisentries import news_after, news_in
from gateway.reuse.stored import Stored
from gateway.shared.redislink import Command

NEWS_MAX = 100  # vectors read with a batch: more would hold up look-ups


class News:
    """Tells `on_vector` of every answer with a vector that another gateway has put within the last `ttl_ms` or later.

    `on_vector` gets it with its `body` empty; None: nothing is read. Not thread-safe.
    """

    def __init__(self, ttl_ms: int, on_vector: Optional[Callable[[Stored], None]]) -> None:
        self.origin = os.urandom(8).hex().encode()
        """Which gateway a vector is from: this one's own are not told of."""
        self.behind = False
        """Whether there may be more to be read at once."""
        self._on_vector = on_vector
        self._listening = False
        self._last_id = b"%d-0" % max(0, int(unix_s() * 1000) - ttl_ms)
        self.listen()

    def listen(self) -> None:
        """Read on from where it ended, be it by an error."""
        self._listening = self.behind = self._on_vector is not None

    def commands(self) -> list[Command]:
        """What is to be asked for what comes next; nothing when nobody wants to hear it, or after an error."""
        return [news_after(self._last_id, NEWS_MAX)] if self._listening else []

    def hear(self, reply: Any) -> Optional[Exception]:
        """Tell of the vectors in a reply. Returns the error that it is instead: then nothing is read until `listen`."""
        if isinstance(reply, Exception):
            self._listening = self.behind = False
            return reply
        count = 0
        for record_id, stored in news_in(reply, self.origin):
            count += 1
            self._last_id = record_id
            if stored is not None and self._on_vector is not None:
                with contextlib.suppress(Exception):
                    self._on_vector(stored)
        self.behind = count >= NEWS_MAX
        return None
