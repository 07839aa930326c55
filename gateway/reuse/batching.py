"""Requests that leave together: gathered by what they have in common, asked with one call, each answered for itself.

The first of a batch leads: its steps wait until the batch is full or has waited long enough, ask for all, and tell each
what became of it. A batch that the engine rejects is halved, and the first of the other half leads that: so one query
that cannot be answered fails alone. The leader's client may leave: its steps go on as long as others wait.

An engine that answers a list with an error may take no lists, or one of the requests may be at fault. What tells them
apart is how all of them end: a list whose requests are all answered in the end was rejected for being one (`Trial`).
Where the engine has failed (5xx), that may have been an accident: it is believed the second time in a row.

`Gathering` owns the batches that are still open; its lock guards them, their seats, trials and what is known of lists.
Flags are set without it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Hashable
from typing import Any, Callable, Optional

from gateway.asked import Asked
from gateway.errors import GatewayError
from gateway.hedging import Answer
from gateway.steps import Flag
from gateway.upstream.call import Call

LISTS_AGAIN_S = 600.0  # after this, a model whose engines took no lists is asked with one again
SILENCE_WAITS = 50  # after so many times the wait nothing is known any more of how they come
GAP_WEIGHT = 0.2  # of a new gap in the usual one
KEYS_KEPT = 1024  # of what is known of models, and of kinds of requests: callers may choose names


class Seat:
    """One request in a batch, with `inputs` of what the batch asks for. It is over when `flag` is set: there is an
    `answer` or an `error`, it is to lead (`batch`), or neither: then it is to ask for itself."""

    __slots__ = ("answer", "asked", "batch", "call", "error", "flag", "inputs", "of")

    def __init__(self, asked: Asked, call: Call, inputs: list[str]) -> None:
        self.asked = asked
        self.call = call
        self.inputs = inputs
        self.flag = Flag()
        self.answer: Optional[Answer] = None
        self.error: Optional[GatewayError] = None
        self.batch: Optional[Batch] = None
        self.of: Optional[Batch] = None  # where it sits


class Trial:
    """What becomes of a batch that has left, and of all its parts."""

    __slots__ = ("answered", "failed", "rejected", "scattered", "seats", "taken")

    def __init__(self) -> None:
        self.seats = 0
        self.answered = 0  # of these
        self.taken = False  # a list, of any of its parts
        self.rejected: Optional[tuple[int, ...]] = None  # the `line` of the smallest part
        self.scattered = False  # parts have been rejected that have no request in common
        self.failed = False  # an engine, on a list


class Batch:
    """Seats that leave together. `line`: which half it is of which half of what has left."""

    __slots__ = ("full", "key", "leader", "line", "opened_s", "over", "seats", "trial")

    def __init__(
        self, key: Hashable, seats: list[Seat], opened_s: float, trial: Trial, line: tuple[int, ...] = ()
    ) -> None:
        self.key = key
        self.seats = seats
        self.leader = seats[0].asked
        self.opened_s = opened_s
        self.trial = trial
        self.line = line
        self.full = Flag()
        self.over = False

    @property
    def inputs(self) -> int:
        """What all of them ask for."""
        return sum(len(seat.inputs) for seat in self.seats)

    def needs(self, asked: Asked) -> bool:
        """Whether others wait for what `asked` is given. Once it is under way, that is so of each: who leaves pays its
        share all the same, as long as anybody stays."""
        if self.over:
            return False
        return any(seat.asked is not asked and not self.misses(seat) for seat in list(self.seats))

    def misses(self, seat: Seat) -> bool:
        """Whether nobody waits for what a seat is given: its client has left, and leads no flight for others."""
        asked = seat.asked
        return asked.left and not (asked.flight is not None and asked.flight.needs(asked))


class Gathering:
    """Batches that gather. Thread-safe. `wait_s`: how long the first of a batch waits for others."""

    def __init__(self, wait_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.wait_s = wait_s
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[Hashable, Batch] = {}
        self._arrivals: dict[Hashable, tuple[float, float]] = {}  # when the last one came, and the usual gap (s)
        self._alone_until_s: dict[str, float] = {}  # models whose engines take no lists
        self._failed: dict[str, None] = {}  # models on whose last list an engine has failed, and then answered each

    def take_seat(self, key: Hashable, seat: Seat, inputs_max: int) -> tuple[Batch, bool]:
        """The batch of a request, and whether it has to lead it. A batch of `inputs_max` leaves; so does one that has
        no room for it, and a request that comes alone."""
        now_s = self._clock()
        leaving: list[Batch] = []
        with self._lock:
            lonely = self._is_lonely_locked(key, now_s)
            batch = self._open.get(key)
            if batch is not None and batch.inputs + len(seat.inputs) > inputs_max:
                leaving.append(self._open.pop(key))
                batch = None
            leads = batch is None
            if batch is None:
                batch = Batch(key, [seat], now_s, Trial())
                if lonely:
                    leaving.append(batch)
                else:
                    self._open[key] = batch
            else:
                batch.seats.append(seat)
            seat.of = batch
            if batch.inputs >= inputs_max and self._open.get(key) is batch:
                leaving.append(self._open.pop(key))
            if leads:
                seat.asked.batch = batch
        for one in leaving:
            one.full.set()
        return batch, leads

    def _is_lonely_locked(self, key: Hashable, now_s: float) -> bool:
        """Whether nobody is to be expected within `wait_s`: neither has one come for so long, nor do they usually.

        (One that comes late in a flood, because everybody is busy, is not alone.)
        """
        last_s, usual_s = self._arrivals.pop(key, (-math.inf, math.inf))
        gap_s = now_s - last_s
        silence = gap_s > SILENCE_WAITS * self.wait_s
        lonely = gap_s > self.wait_s and (silence or usual_s > self.wait_s)
        _forget_oldest(self._arrivals)
        if silence or usual_s == math.inf:
            usual_s = math.inf if silence else gap_s
        else:
            usual_s += GAP_WEIGHT * (gap_s - usual_s)
        self._arrivals[key] = now_s, usual_s
        return lonely

    def begin(self, batch: Batch) -> list[Seat]:
        """Nobody more joins a batch; returns the seats of those who are still there."""
        with self._lock:
            if self._open.get(batch.key) is batch:
                del self._open[batch.key]
            batch.seats = [seat for seat in batch.seats if not batch.misses(seat)]
            for seat in batch.seats:
                seat.asked.batch = batch
            batch.trial.seats = len(batch.seats)
            return batch.seats

    def halve(self, batch: Batch) -> None:
        """Leave a batch its first half, and have the first of the others who is still there lead those."""
        with self._lock:
            middle = (len(batch.seats) + 1) // 2
            batch.seats, others = batch.seats[:middle], batch.seats[middle:]
            other = Batch(batch.key, others, batch.opened_s, batch.trial, (*batch.line, 1))
            batch.line = (*batch.line, 0)
            for seat in others:
                seat.of = seat.asked.batch = other
        self.hand_over(other)

    def end(self, batch: Batch) -> None:
        """Everybody has been told. (A batch and its requests would keep each other in memory.)"""
        with self._lock:
            batch.over = True
            for asked in (batch.leader, *(seat.asked for seat in batch.seats)):
                if asked.batch is batch:
                    asked.batch = None
            for seat in batch.seats:
                seat.of = None

    def hand_over(self, batch: Batch) -> None:
        """Have the first seat of a batch lead it whose steps still wait for that."""
        while batch.seats:
            seat = batch.seats[0]
            with self._lock:
                there = not batch.misses(seat)
                if there:
                    batch.leader = seat.asked
                    seat.asked.batch = batch
                    seat.batch = batch
            if there:
                seat.flag.set()
                return
            batch.seats = batch.seats[1:]

    def leave(self, seat: Seat) -> None:
        """The client of a seat has left. If it has just been made a leader, another one is; if it was the last that its
        batch was for, the engine is left."""
        with self._lock:
            batch, seat.batch = seat.batch, None
            leader = None if seat.of is None else seat.of.leader
            seat.of = None
        if batch is not None:
            batch.seats = batch.seats[1:]
            self.hand_over(batch)
        elif leader is not None and leader.left and not leader.needed and leader.call is not None:
            leader.call.cancel()

    def waited_s(self, batch: Batch) -> float:
        """How long a batch has gathered."""
        return self._clock() - batch.opened_s

    # --- what is known of lists -----------------------------------------------------------------------------------

    def takes_lists(self, model: str) -> bool:
        """Whether a model's engines may be asked with a list."""
        until_s = self._alone_until_s.get(model)
        if until_s is None:
            return True
        if self._clock() < until_s:
            return False
        with self._lock:
            self._alone_until_s.pop(model, None)
        return True

    def list_taken(self, batch: Batch, model: str) -> None:
        """A list has been answered."""
        batch.trial.taken = True
        if model in self._failed:
            with self._lock:
                self._failed.pop(model, None)

    def list_rejected(self, batch: Batch, failed: bool) -> bool:
        """A list has been answered with an error, or an engine has `failed` on it; whether its requests are to be asked
        each for itself. Else it is to be halved: where one request is at fault, the lists are rejected that it is in,
        each a part of the one before; and what makes an engine fail is asked as seldom as may be.
        """
        trial, line = batch.trial, batch.line
        with self._lock:
            trial.failed = trial.failed or failed
            if trial.rejected is None or line[: len(trial.rejected)] == trial.rejected:
                trial.rejected = line
            else:
                trial.scattered = True
            return failed or (trial.scattered and not trial.taken)

    def answered(self, trial: Trial, model: str) -> None:
        """A request has its own answer, however it was asked for. When that is so of all that have left with it, and a
        list of them was rejected, it was so for being a list."""
        with self._lock:
            trial.answered += 1
            if trial.rejected is None or trial.answered != trial.seats:
                return
            if trial.failed and model not in self._failed:
                self._failed[model] = None
                _forget_oldest(self._failed)
                return
        self.list_refused(model)

    def list_refused(self, model: str) -> None:
        """A model's engines take no lists."""
        with self._lock:
            self._alone_until_s[model] = self._clock() + LISTS_AGAIN_S
            _forget_oldest(self._alone_until_s)


def _forget_oldest(known: dict[Any, Any]) -> None:
    while len(known) > KEYS_KEPT:
        del known[next(iter(known))]
