"""The seconds of other processes of the same gateway, for the console of this one.

Each process tells the others what its second was; whoever is watched adds. `Others` owns what has come and not been
added yet, a second or two of each sender's, so that clocks which do not beat together make no second empty and the next
one double; its lock guards that, and is held to put in or take out. Counts add up exactly; percentiles are of at most
KEPT values of each process, evenly out of its own in order, each for as many as it stands for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

KEPT = 200
"""Of one process's durations of one second."""
WAITING_MAX = 2
"""Seconds of one sender that wait; of more, the oldest are added together."""
SILENT_ROLLS = 5
"""Seconds after which a process that tells nothing is gone, and with it what was in flight there."""
SENDERS_MAX = 1024

Key = tuple[str, str]
Json = dict[str, Any]


class Spread(NamedTuple):
    """Durations in seconds, in order, and how many they stand for."""

    seen: int
    values: Sequence[float]


class Told(NamedTuple):
    """What one process tells of one of its seconds."""

    sender: str
    """Other than any other process's."""
    counts: Sequence[float]
    """Requests, errors, prompt and completion tokens, cache hits and misses, cost in USD."""
    gauges: Sequence[int]
    """Requests in flight, requests that wait, workers that work."""
    latencies: Spread
    ttfts: Spread
    sparks: Sequence[tuple[str, str, int, float]]
    """Model, engine, attempts, seconds of all of them."""
    requests: Sequence[tuple[float, str]]
    """The last of them: when they ended (Unix seconds), and as the feed has them."""
    skipped: int
    """Requests that are not among them."""
    watched: bool
    """Whether somebody watches there."""
    in_flight: Sequence[tuple[str, str, int]]
    """Model, engine, requests; told only while somebody watches elsewhere."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing in it."""
        return not (any(self.counts) or any(self.gauges) or self.requests or self.sparks or self.watched)


class _Sender:
    __slots__ = ("last", "silent", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Told] = deque()
        self.last: Told
        self.silent = 0


class Others:
    """What others tell. Thread-safe; `take` is for the thread that ends seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._senders: dict[str, _Sender] = {}

    def hear(self, told: Sequence[Any]) -> None:
        """A process has told of a second (a `Told`, as JSON has it)."""
        one = _told(told)
        with self._lock:
            sender = self._senders.get(one.sender)
            if sender is None:
                if len(self._senders) >= SENDERS_MAX:
                    return
                sender = self._senders[one.sender] = _Sender()
            sender.last = one
            sender.silent = 0
            sender.waiting.append(one)

    def take(self) -> list[Told]:
        """A second of each that has told of one, which are added to that of this process."""
        taken: list[Told] = []
        with self._lock:
            for name, sender in list(self._senders.items()):
                if not sender.waiting:
                    sender.silent += 1
                    if sender.silent > SILENT_ROLLS:
                        del self._senders[name]
                while sender.waiting:
                    taken.append(sender.waiting.popleft())
                    if len(sender.waiting) < WAITING_MAX:
                        break
        return taken

    def gauges(self) -> tuple[int, int, int]:
        """Requests in flight, requests that wait, workers that work, of all of them together."""
        with self._lock:
            told = [sender.last.gauges for sender in self._senders.values()]
        in_flight, queue, busy = (sum(values) for values in zip((0, 0, 0), *told))
        return in_flight, queue, busy

    def watched(self) -> bool:
        """Whether somebody watches at one of them."""
        with self._lock:
            return any(sender.last.watched for sender in self._senders.values())

    def in_flight(self) -> Mapping[Key, int]:
        """Requests in flight at each engine, of all of them together."""
        with self._lock:
            told = [sender.last.in_flight for sender in self._senders.values()]
        found: dict[Key, int] = {}
        for engines in told:
            for model, engine, count in engines:
                found[model, engine] = found.get((model, engine), 0) + count
        return found


def _told(data: Sequence[Any]) -> Told:
    sender, counts, gauges, latencies, ttfts, sparks, requests, skipped, watched, in_flight = data
    spreads = Spread(*latencies), Spread(*ttfts)
    texts = [(float(unix_s), str(text)) for unix_s, text in requests]
    engines = [(str(model), str(engine), int(count)) for model, engine, count in in_flight]
    marks = [(str(model), str(engine), int(count), float(sum_s)) for model, engine, count, sum_s in sparks]
    return Told(sender, counts, gauges, *spreads, marks, texts, skipped, watched, engines)


def spread_of(ordered_s: Sequence[float], seen: int) -> Spread:
    """At most KEPT of durations in order that stand for `seen` ones; the first and the last are among them."""
    count = len(ordered_s)
    if count <= KEPT:
        return Spread(seen, list(ordered_s))
    return Spread(seen, [ordered_s[place * (count - 1) // (KEPT - 1)] for place in range(KEPT)])


def percentiles_s(spreads: Iterable[Spread], shares: Sequence[float]) -> list[float | None]:
    """The least of all durations that each of these shares does not exceed (nearest rank); None: there is none."""
    weighted = sorted((value, one.seen / len(one.values)) for one in spreads for value in one.values)
    total = sum(weight for _, weight in weighted)
    found: list[float | None] = []
    for share in shares:
        at, below = None, 0.0
        for value, weight in weighted:
            at = value
            below += weight
            if below >= share * total - 1e-9:
                break
        found.append(at)
    return found
