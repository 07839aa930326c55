"""Simulated engines: what they work on, how fast, and what becomes of it when something befalls them.

A `Machine` owns its slots, the requests that wait for one, and the prefixes that it remembers. What it has to say goes
to the gateway of each try (`virtual.py`), never at once but as an event of its own. One thread, no I/O.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from gateway.routing.retry import OK, Outcome
from gateway.tools.simulate.distributions import mixed
from gateway.tools.simulate.events import Events
from gateway.tools.simulate.request import Attempt
from gateway.tools.simulate.scenario import Fleet, Scenario

REFUSED_S = 0.001  # until a connection is refused, or an error is answered
REFUSED = Outcome("refused", "cannot connect to the engine")
RESET = Outcome("reset", "the engine closed the connection")
BROKEN = Outcome("truncated", "the stream ended early")
NOT_ACCEPTED = Outcome("connect_timeout", "the engine did not accept a connection in time")
SILENT = Outcome("timeout", "the stream has stood still")
FAILED = Outcome("error", "the engine answered 500", 500)
LIMITED = Outcome("rate_limited", "", 429)


class Machine:
    """One engine whose slots work independently of each other."""

    def __init__(self, events: Events, scenario: Scenario, fleet: Fleet, speed: float) -> None:
        self.events = events
        self.slots = fleet.slots
        self.speed = speed
        self.batching = fleet.batching
        self.seed = scenario.seed
        self.hiccup = scenario.work.hiccup if scenario.work.hiccup[0] > 0 else None
        self.cache_size = fleet.cache
        self.hit_saves = fleet.hit_saves
        self.hits = 0
        self.connect_timeout_s = scenario.rules.connect_timeout_s
        self.idle_timeout_s = scenario.rules.stream_idle_timeout_s
        self.running = 0
        self.waiting: deque[Attempt] = deque()
        self.live: dict[Attempt, None] = {}  # what it works on, what waits, what is answered behind a partition
        self.remembered: dict[bytes, None] = {}  # the latest last
        self.dead = 0  # so many faults have killed it
        self.cut = 0
        self.slowness = 1.0
        self.error_share = 0.0
        self.limited_share = 0.0
        self.served = 0
        self.busy_slot_s = 0.0
        self.accounted_s = events.now_s

    @property
    def load(self) -> int:
        """How many requests are here."""
        return len(self.live)

    def account(self) -> None:
        """Count how long slots have been busy, until now."""
        now_s = self.events.now_s
        self.busy_slot_s += self.running * (now_s - self.accounted_s)
        self.accounted_s = now_s

    # --- what comes -----------------------------------------------------------------------------------------------

    def take(self, attempt: Attempt) -> None:
        """A request comes."""
        if self.dead or self.cut or self.error_share or self.limited_share:
            if self._turned_away(attempt):
                return
        self.live[attempt] = None
        if self.running < self.slots:
            self._start(attempt)
        else:
            self.waiting.append(attempt)

    def _turned_away(self, attempt: Attempt) -> bool:
        events = self.events
        if self.dead:
            outcome, after_s = REFUSED, REFUSED_S
        elif self.cut:
            outcome, after_s = NOT_ACCEPTED, self.connect_timeout_s
        else:
            drawn = mixed(self.seed, attempt.request.number, attempt.index, 1)
            if drawn >= self.error_share + self.limited_share:
                return False
            outcome, after_s = (FAILED if drawn < self.error_share else LIMITED), REFUSED_S
        events.at(events.now_s + after_s, self._told, (attempt, outcome))
        return True

    def _start(self, attempt: Attempt) -> None:
        """A slot begins to work on it."""
        self.account()
        self.running += 1
        attempt.running_s = self.events.now_s
        request = attempt.request
        need_s, first_s = request.need_s, request.first_s
        if self.hiccup is not None and mixed(self.seed, request.number, attempt.index, 2) < self.hiccup[0]:
            need_s *= self.hiccup[1]
            first_s *= self.hiccup[1]
        if self.cache_size and request.prefix:
            spared_s = self._spared_s(request.prefix, first_s)
            need_s -= spared_s
            first_s -= spared_s
        attempt.need_s, attempt.first_after_s = need_s, first_s
        self._work(attempt, request.stream)

    def _spared_s(self, prefix: bytes, first_s: float) -> float:
        remembered = self.remembered
        known = prefix in remembered
        if known:
            del remembered[prefix]
        elif len(remembered) >= self.cache_size:
            del remembered[next(iter(remembered))]
        remembered[prefix] = None
        if not known:
            return 0.0
        self.hits += 1
        return first_s * self.hit_saves

    def _work(self, attempt: Attempt, stream: bool) -> None:
        events = self.events
        pace = self.slowness / self.speed
        number = events.number = events.number + 1
        heappush(events.heap, (events.now_s + attempt.need_s * pace, number, self._finish, attempt))
        attempt.first_after_s *= pace
        attempt.need_s *= pace
        if stream:
            number = events.number = events.number + 1
            heappush(events.heap, (events.now_s + attempt.first_after_s, number, self._first, attempt))

    def _finished(self, attempt: Attempt) -> None:
        """A slot has done its work."""
        self._release()
        self._tell_end(attempt)

    def _tell_end(self, attempt: Attempt) -> None:
        if self.cut:
            attempt.parked = True
            return
        del self.live[attempt]
        self.served += 1
        attempt.gateway.ended(attempt, OK)

    def _release(self) -> None:
        self.account()
        self.running -= 1
        waiting = self.waiting
        while waiting:
            attempt = waiting.popleft()
            if not attempt.over:
                self._start(attempt)
                return

    # --- what ends otherwise --------------------------------------------------------------------------------------

    def drop(self, attempt: Attempt) -> None:
        """Nobody waits for this any more (its `over` is set): the slot is for others."""
        if attempt in self.live:
            del self.live[attempt]
            if attempt.running_s >= 0 and not attempt.parked:
                self._release()

    def kill(self) -> None:
        """It dies."""
        self.dead += 1
        if self.dead > 1:
            return
        lost = list(self.live)
        self.account()
        self.live.clear()
        self.waiting.clear()
        self.remembered.clear()
        self.running = 0
        for attempt in lost:
            attempt.running_s = -1.0
            if attempt.over:  # with the other try of the same request, which was here, too
                continue
            attempt.gateway.ended(attempt, BROKEN if attempt.begun else RESET)

    def revive(self) -> None:
        """One fault less that has killed it."""
        self.dead -= 1

    def cut_off(self) -> None:
        """It cannot be reached."""
        self.cut += 1
        for attempt in [one for one in self.live if one.begun]:
            self.events.at(self.events.now_s + self.idle_timeout_s, self._idle, attempt)

    def rejoin(self) -> None:
        """It can be reached again: what it has answered meanwhile arrives."""
        self.cut -= 1
        if self.cut:
            return
        for attempt in [one for one in self.live if one.parked]:
            if not attempt.over:
                self._tell_end(attempt)

    def slow_down(self, factor: float) -> None:
        """What begins from now on takes so many times as long as before."""
        self.slowness *= factor

    # --- what was said for later ----------------------------------------------------------------------------------

    def _finish(self, attempt: Attempt) -> None:
        # `running_s` less than 0: the engine has died since.
        if not attempt.over and attempt.running_s >= 0:
            self._finished(attempt)

    def _first(self, attempt: Attempt) -> None:
        if not (attempt.over or attempt.running_s < 0 or self.cut or attempt.begun):
            attempt.gateway.first(attempt)

    def _idle(self, attempt: Attempt) -> None:
        if self.cut and not attempt.over:
            attempt.gateway.ended(attempt, SILENT)

    def _told(self, what: tuple[Attempt, Outcome]) -> None:
        attempt, outcome = what
        if not attempt.over:
            attempt.gateway.ended(attempt, outcome)


class Batch(Machine):
    """One engine whose slots share a batch, the slower the more there are.

    `_work_s` is what each request in the batch has got done, in seconds of one that is alone, since the beginning: all
    go on alike, so who came when it was w and needs n is ready when it is w + n.
    """

    def __init__(self, events: Events, scenario: Scenario, fleet: Fleet, speed: float) -> None:
        super().__init__(events, scenario, fleet, speed)
        self._work_s = 0.0
        self._at_s = events.now_s
        self._rate = speed
        self._due: list[tuple[float, int, Attempt, bool]] = []
        self._plan = 0  # the number of the one event that counts

    def _turn(self) -> None:
        """Note what was done until now, before something changes."""
        now_s = self.events.now_s
        if self.running:
            self._work_s += (now_s - self._at_s) * self._rate
        self._at_s = now_s

    def _start(self, attempt: Attempt) -> None:
        self._turn()
        super()._start(attempt)

    def _work(self, attempt: Attempt, stream: bool) -> None:
        events = self.events
        number = events.number = events.number + 2
        heappush(self._due, (self._work_s + attempt.need_s, number, attempt, False))
        if stream:
            heappush(self._due, (self._work_s + attempt.first_after_s, number - 1, attempt, True))
        self._plan_next()

    def _plan_next(self) -> None:
        due, events = self._due, self.events
        while due and (due[0][2].over or due[0][2].running_s < 0):
            heappop(due)
        self._plan += 1
        if due:
            self._rate = self.speed / self.slowness / (1 + self.batching * (max(1, self.running) - 1))
            events.at(events.now_s + max(0.0, due[0][0] - self._work_s) / self._rate, self._tick, self._plan)

    def _tick(self, plan: int) -> None:
        if plan != self._plan:
            return  # something has changed meanwhile
        self._turn()
        due = self._due
        while due and due[0][0] <= self._work_s + 1e-9:
            _, _, attempt, first = heappop(due)
            if attempt.over or attempt.running_s < 0:
                continue
            if first:
                self._first(attempt)
            else:
                self._finished(attempt)
        self._turn()
        self._plan_next()

    def _release(self) -> None:
        self._turn()
        super()._release()
        self._plan_next()

    def kill(self) -> None:
        """See `Machine.kill`."""
        self._turn()
        super().kill()
        if not self.live:
            self._due.clear()

    def slow_down(self, factor: float) -> None:
        """All takes so many times as long as before, from now on."""
        self._turn()
        super().slow_down(factor)
        self._plan_next()
