"""What one process of a gateway has in common with the others, put together.

`Agreement` owns the thread "agreeing", which once a second tells the others what was counted here, leaves the metrics
with the parent, and does what others' words ask for and the bus's own thread must not wait for. Its work is a deque,
whose single operations are atomic. Its lock holds taking and telling together, neither of which waits: what is asked of
a count is either told before, or not in it. With one process there is no thread, and nothing is told.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Optional, Protocol

from gateway.agreeing.engines import EngineWords, leading
from gateway.agreeing.sums import Log, Sums
from gateway.inference import InferenceFactory
from gateway.processes.bus import Bus
from gateway.reuse.stored import Chosen
from gateway.server.everybody import Everybody
from gateway.telemetry.exposition import Family
from gateway.telemetry.registry import Registry

INTERVAL_S = 1.0
PUSH_SHARE = 0.04
"""Of this process's time that leaving its metrics with the parent may take: with thousands of engines it is done less
often than once a second."""
WORK_MAX = 1000
"""Words of others' that wait to be done; beyond, the oldest are dropped: they are repeated, or seen to by a timer."""


class Counting(Protocol):
    """Something that counts requests, and needs to know of those of all processes."""

    shares: bool

    def take(self) -> Any:
        """What was counted here since this was called last, as JSON; None: nothing."""

    def add(self, told: Any, /) -> None:
        """Count what another process has taken."""


class Lasting(Protocol):
    """Something that a new process cannot find out by itself, such as what was counted before it."""

    def state(self) -> Any: ...
    def restore(self, state: Any, /) -> None: ...


class Agreement(Everybody):
    """This process among the others. Everything is bound before `start`, which joins them; thread-safe from then on.

    `crashed` hears of what nobody had foreseen.
    """

    def __init__(self, bus: Bus, registry: Registry, log: Log, crashed: Callable[[BaseException], object]) -> None:
        super().__init__(registry)
        self.bus = bus
        self.waits = bus.count > 1
        self.engines = EngineWords(bus)
        self.sums = Sums(bus, registry, log)
        self._crashed = crashed
        self._counting: dict[str, Counting] = {}
        self._lasting: dict[str, Lasting] = {}
        self._work: deque[Callable[[], object]] = deque(maxlen=WORK_MAX)
        self._telling = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._thread: Optional[threading.Thread] = None

    # --- before `start` ----------------------------------------------------------------------------------------------

    def bind(self, factory: InferenceFactory, settling: Callable[[], Callable[[], bool]]) -> None:
        """Whose engines they are; `settling` as in `Sums`."""
        self.engines.bind(factory)
        self.sums.bind(settling)

    def count(self, topic: str, counting: Counting) -> None:
        """Tell the others each second what this has counted, and have it count what they tell."""
        counting.shares = self.waits
        self._counting[topic] = counting
        self.bus.on(topic, lambda what, slot: counting.add(what))

    def keep(self, topic: str, lasting: Lasting) -> None:
        """Have this know, in a new process, what the others know."""
        self._lasting[topic] = lasting
        self.bus.on(f"{topic}.state", lambda what, slot: self._state(topic))

    def hear(self, topic: str, handler: Callable[[Any], object]) -> None:
        """Have `handler` called with what others tell of a topic, on the thread "agreeing": it may wait."""
        self.bus.on(topic, lambda what, slot: self._later(lambda: handler(what)))

    # --- the thread --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Learn from the others what they know, and go on agreeing. The bus has started. Waits 3 s at most, where
        nobody answers."""
        if not self.waits:
            return
        self._guarded(self.engines.learn)
        for topic, lasting in self._lasting.items():
            self._guarded(partial(self._restore, topic, lasting))
        self._thread = threading.Thread(target=self._run, name="agreeing", daemon=True)
        self._thread.start()

    def _restore(self, topic: str, lasting: Lasting) -> None:
        answer = leading(self.bus.ask(f"{topic}.state"))
        if answer is not None:
            lasting.restore(answer["state"])

    def close(self, timeout_s: float) -> None:
        """End the thread, and tell for the last time what was counted. Before the bus is closed, after all else."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self.waits:
            self._guarded(self._tell_counts)
            self._guarded(self.sums.push)

    def _run(self) -> None:
        next_s, push_at_s = time.monotonic() + INTERVAL_S, 0.0
        while not self._closing:
            if self._wake.wait(max(0.0, next_s - time.monotonic())):
                self._wake.clear()  # before the look at the work, and at `_closing`
            while self._work:
                self._guarded(self._work.popleft())
            now_s = time.monotonic()
            if now_s < next_s:
                continue
            next_s = now_s + INTERVAL_S
            self._guarded(self._tell_counts)
            if now_s >= push_at_s:
                began_s = time.thread_time()
                self._guarded(self.sums.push)
                push_at_s = now_s + (time.thread_time() - began_s) / PUSH_SHARE

    def _guarded(self, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception as error:  # whatever it is, the next second may go well
            self._crashed(error)

    def _later(self, work: Callable[[], object]) -> None:
        self._work.append(work)
        self._wake.set()

    def _tell_counts(self) -> None:
        for topic in self._counting:
            with self._telling:
                self._tell_count_locked(topic)

    def _tell_count_locked(self, topic: str) -> None:
        told = self._counting[topic].take()
        if told is not None:
            self.bus.tell(topic, told)

    def _state(self, topic: str) -> dict[str, Any]:
        with self._telling:
            if topic in self._counting:
                self._tell_count_locked(topic)  # first: who asks hears it before the answer, and not behind it, too
            state = self._lasting[topic].state()
        return {"leader": self.bus.leader, "state": state}

    # --- for who answers requests (`Everybody`) ----------------------------------------------------------------------

    def collect(self) -> list[Family]:
        return self.sums.collect()

    def in_flight(self) -> Mapping[tuple[str, str], int]:
        return self.engines.in_flight()

    def cache_stats(self) -> Sequence[Mapping[str, float]]:
        return self.bus.ask("cache_stats")

    def drained(self, engine_id: str, draining: bool, model: Optional[str]) -> None:
        self.engines.drain(engine_id, draining, model)

    def weighed(self, engine_id: str, weight: int, model: Optional[str]) -> None:
        self.engines.weigh(engine_id, weight, model)

    def keys_changed(self) -> None:
        self.bus.tell("keys", None)

    def cache_cleared(self, chosen: Chosen) -> None:
        self.bus.tell("cache", list(chosen))

    def schemas_changed(self) -> None:
        self.bus.tell("schemas", None)
