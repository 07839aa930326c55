"""One source, watched for one model: asked again and again, each answer handed on that says something new.

`Watch` owns what is known of its source: the engines of the last good answer, since when, and what went wrong since.
Its thread alone asks and hands on, so that no older answer can follow a newer one. `_lock` guards what others read
(`look`); it is never held while the source is asked, or while anybody is told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from random import Random
from typing import Callable, NamedTuple, Optional

from gateway.discovery.answers import Answer, Asker, Cancelled, DiscoveryError
from gateway.routing.found import Found, Listing, engines_of
from gateway.routing.sources import DiscoverSpec
from gateway.routing.specs import EngineSpec

LEAST_S = 1.0  # between the beginnings of two looks, whatever a source says
EMPTY_HOLD_S = 30.0  # how long DNS has to say that there is nothing until it is believed (HAProxy's `hold nx`)
JITTER = 0.1  # of a wait: so much sooner at most, so that not all gateways ask at once
IDS_MAX = 20  # of engines that are named in one line


class Change(NamedTuple):
    """What is new of a source: engines that have come or gone (ids), or an `error` ("": it is over)."""

    model: str
    source: str
    engines: int
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    error: Optional[str] = None


class State(NamedTuple):
    """What is known of a source now. `age_s`: of the last good answer, None: there was none."""

    model: str
    kind: str
    source: str
    engines: int
    failures: int
    age_s: Optional[float]
    error: str


Take = Callable[[str, DiscoverSpec, "tuple[EngineSpec, ...]"], bool]
"""Takes over the engines of a model. False: they are not wanted (any more)."""


class Watch:
    """Watches one source from `start` until `cancel`. `step` is one look, also without a thread; `clock` gives
    monotonic seconds, `rng` the jitter."""

    def __init__(
        self,
        model: str,
        discover: DiscoverSpec,
        asker: Asker,
        take: Take,
        on_change: Callable[[Change], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: Optional[Random] = None,
    ) -> None:
        self.model = model
        self.discover = discover
        self._asker = asker
        self._take = take
        self._on_change = on_change
        self._clock = clock
        self._rng = rng or Random()
        self._ending = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._lock = threading.Lock()
        self._engines: Optional[tuple[EngineSpec, ...]] = None  # of the last good answer; None: there was none
        self._good_at_s: Optional[float] = None
        self._empty_since_s: Optional[float] = None
        self._failures = 0
        self._in_a_row = 0
        self._error = ""
        self._told: Optional[str] = None  # of what is wrong with single engines
        self._listed: Optional[tuple[Sequence[Found], Listing]] = None  # the last answer
        self.first = threading.Event()
        """Set when the first look has ended, whichever way."""

    # --- a look ----------------------------------------------------------------------------------------------------

    def step(self) -> float:
        """Look once, and hand on what is new. Returns the seconds until the next look. Raises Cancelled."""
        began_s = self._clock()
        try:
            answer = self._asker.ask()
            again_s = self._good(answer)
        except Cancelled:
            raise
        except DiscoveryError as error:
            again_s = self._bad(str(error))
        except Exception as error:  # what nobody has foreseen is no reason to look no more
            again_s = self._bad(f"{type(error).__name__}: {error}")
        finally:
            self.first.set()
        wait_s = min(again_s, self.discover.interval_s) * (1 - JITTER * self._rng.random())
        return max(wait_s, LEAST_S - (self._clock() - began_s), 0.0)

    def _good(self, answer: Answer) -> float:
        if self._listed is None or self._listed[0] != answer.found:
            self._listed = (answer.found, engines_of(answer.found, self.discover))
        listing = self._listed[1]  # of thousands the same ones are not made each time
        if answer.strict and listing.faults:
            raise DiscoveryError("; ".join(listing.faults))
        now_s = self._clock()
        if listing.engines or not (answer.doubtful and self._engines):
            self._empty_since_s = None
        else:
            if self._empty_since_s is None:
                self._empty_since_s = now_s
            if now_s - self._empty_since_s < EMPTY_HOLD_S:
                raise DiscoveryError(f"there is nothing of that name: believed after {EMPTY_HOLD_S:g} s")
        before = self._engines
        if not self._take(self.model, self.discover, listing.engines):
            raise Cancelled("it is configured otherwise")
        with self._lock:
            self._engines, self._good_at_s = listing.engines, now_s
            failed, self._error, self._in_a_row = bool(self._error), "", 0
        self._tell(before, listing.engines, failed, "; ".join(listing.faults))
        return self.discover.interval_s if answer.again_s is None else answer.again_s

    def _bad(self, error: str) -> float:
        with self._lock:
            self._failures += 1
            self._in_a_row += 1
            new, self._error = error != self._error, error
            count = len(self._engines or ())
        if new:
            self._on_change(Change(self.model, str(self.discover.source), count, error=error))
        return LEAST_S * float(2 ** min(self._in_a_row - 1, 12))

    def _tell(
        self, before: Optional[tuple[EngineSpec, ...]], now: tuple[EngineSpec, ...], failed: bool, faults: str
    ) -> None:
        ids = [{engine.id or "": None for engine in engines} for engines in (before or (), now)]
        added = tuple(one for one in ids[1] if one not in ids[0])
        removed = tuple(one for one in ids[0] if one not in ids[1])
        source = str(self.discover.source)
        if before != now:  # the first answer, too
            self._on_change(Change(self.model, source, len(now), _few(added), _few(removed)))
        elif failed:
            self._on_change(Change(self.model, source, len(now), error=""))
        if faults and faults != self._told:
            self._on_change(Change(self.model, source, len(now), error=f"left out: {faults}"))
        self._told = faults

    def look(self) -> State:
        """What is known now. Thread-safe."""
        with self._lock:
            age_s = None if self._good_at_s is None else max(0.0, self._clock() - self._good_at_s)
            source = self.discover.source
            count = len(self._engines or ())
            return State(self.model, source.kind, str(source), count, self._failures, age_s, self._error)

    # --- the thread ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look now, and then again and again."""
        thread = threading.Thread(target=self._run, name=f"discover-{self.model}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system gives no more threads
            self._bad("no thread is left to look")
            self.first.set()
            return
        self._thread = thread

    def _run(self) -> None:
        try:
            while not self._ending.wait(self.step()):
                pass
        except Cancelled:
            pass

    def cancel(self) -> None:
        """Look no more; does not wait for the end."""
        self._ending.set()
        self._asker.cancel()

    def join(self, timeout_s: float) -> None:
        """Wait for the end, so long at most."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)


def _few(ids: tuple[str, ...]) -> tuple[str, ...]:
    more = len(ids) - IDS_MAX
    return (*ids[:IDS_MAX], f"and {more} more") if more > 0 else ids
