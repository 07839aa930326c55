"""How a gateway ends: what is under way gets time, then is told that there is none left.

`Draining` owns the two words that shorten it, each an event, and the lock that lets one thread drain. It waits, so it
is for a thread that may. The parts of the gateway are closed by whoever called, afterwards.

It sets three flags of the pipeline. `draining`: each answer is its connection's last, and new requests are refused;
`lingering`: those are served all the same; `handing_over`: nobody need look for another gateway, for another process of
this one serves the address.
"""

from __future__ import annotations

import threading
import time
from typing import Callable, Optional

from gateway.pipeline import Pipeline
from gateway.server.livefeed import LiveFeed
from gateway.server.server import GatewayServer
from gateway.settings import Settings

END_TIMEOUT_S = 5.0
LAST_WRITES_S = 1.0  # for clients to take the last they are sent
DRAIN_POLL_S = 0.05
CUT_POLL_S = 0.01


class Draining:
    """Drains once. `hurry` and `end_hand_over` are for any thread, and safe in a signal's wake."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        server: GatewayServer,
        feed: Optional[LiveFeed],
        log: Callable[..., None],
    ) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._server = server
        self._feed = feed
        self._log = log
        self._hurry = threading.Event()
        self._no_hand_over = threading.Event()
        self._claim = threading.Lock()

    def begin(self) -> bool:
        """Whether the caller is the first, who is to `drain` or `hand_over`; else the one under way is hurried."""
        if self._claim.acquire(blocking=False):
            return True
        self._hurry.set()
        return False

    def hurry(self) -> None:
        """End what is under way at once."""
        self._hurry.set()

    def end_hand_over(self) -> None:
        """From now on `hand_over` is a `drain`."""
        self._no_hand_over.set()

    def hand_over(self) -> bool:
        """Leave the listening sockets to another process, and drain so that no client notices; then as `drain`.

        A client must not have its connection closed just as it sends a request on it. So all connections live on as
        they would without this, each for one more request, whose answer says `Connection: close`, or until
        KEEPALIVE_TIMEOUT has passed without one; requests and streams go on, for DRAIN_TIMEOUT beyond that.
        """
        settings, pipeline, server = self._settings, self._pipeline, self._server
        pipeline.handing_over = pipeline.lingering = True  # before `draining`: nobody is refused in between
        pipeline.draining = True
        server.leave_listening(END_TIMEOUT_S)
        if self._feed is not None:
            self._feed.end()
        self._log("info", "handing_over", in_flight=pipeline.in_flight, connections=server.connections)
        deadline_s = time.monotonic() + settings.keepalive_timeout_s + settings.drain_timeout_s
        while (server.connections or pipeline.in_flight) and time.monotonic() < deadline_s:
            if self._hurry.is_set() or self._no_hand_over.wait(DRAIN_POLL_S):
                break
        pipeline.handing_over = pipeline.lingering = False
        in_time = time.monotonic() < deadline_s
        return self._finish(settings.drain_timeout_s if in_time else 0.0)

    def drain(self, delay_s: float, limit_s: float) -> bool:
        """Wait until nothing is under way, at most `limit_s` seconds after `delay_s` in which new requests are still
        taken; then cut off what is. Returns whether nothing was."""
        pipeline = self._pipeline
        pipeline.lingering = delay_s > 0  # before `draining`: nobody is refused in between
        pipeline.draining = True
        if self._feed is not None:
            self._feed.end()
        self._log("info", "draining", in_flight=pipeline.in_flight, delay_s=delay_s)
        self._hurry.wait(delay_s)
        pipeline.lingering = False
        return self._finish(limit_s)

    def _finish(self, limit_s: float) -> bool:
        pipeline = self._pipeline
        deadline_s = time.monotonic() + limit_s
        while pipeline.in_flight and time.monotonic() < deadline_s:
            if self._hurry.wait(DRAIN_POLL_S):
                break
        cut_off = pipeline.in_flight
        self._server.shutdown()
        self._server.server_close()
        if cut_off:
            self._cut_off()
        self._server.end_connections(END_TIMEOUT_S)
        return cut_off == 0

    def _cut_off(self) -> None:
        """Tell everybody who still waits for an answer, or for the rest of one, that there will be none."""
        pipeline = self._pipeline
        deadline_s = time.monotonic() + END_TIMEOUT_S
        while pipeline.cut_off() and time.monotonic() < deadline_s:
            time.sleep(CUT_POLL_S)
        deadline_s = min(deadline_s, time.monotonic() + LAST_WRITES_S)
        while pipeline.in_flight and time.monotonic() < deadline_s:
            time.sleep(CUT_POLL_S)
