"""What can happen to a fleet of gateways, to a process, a machine, a cable: a table of faults, and who makes them.

Three kinds (gateways, engines, Redis) go on side by side, one fault of each at a time: of three gateways two are
well, of six engines five. `Storm` owns one thread a kind, "faults-<kind>", and ends each fault that it has begun.
Which, to whom and for how long comes from the seed alone.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Callable, NamedTuple

from tests.chaos.nodes import DRAIN_S, Fleet, Program, freeze, thaw

JOIN_S = 90.0
End = Callable[[], None]


class NetFault(NamedTuple):
    """One row. `begin` does it, and returns what undoes it; it is given who it happens to, and the dice."""

    kind: str
    name: str
    begin: Callable[[Fleet, random.Random], End]
    least_s: float = 1.0
    most_s: float = 8.0


def _killed(pick: Callable[[Fleet], Sequence[Program]]) -> Callable[[Fleet, random.Random], End]:
    def begin(fleet: Fleet, dice: random.Random) -> End:
        node = dice.choice(pick(fleet))
        node.kill()

        def end() -> None:
            node.start()
            node.wait()

        return end

    return begin


def _drained(fleet: Fleet, dice: random.Random) -> End:
    node = dice.choice(fleet.gateways)
    node.signal(signal.SIGTERM)

    def end() -> None:
        status = node.process.wait(DRAIN_S)
        assert status == 0, f"{node.node.name} ended with {status}"
        node.start()
        node.wait()

    return end


def _frozen(pick: Callable[[Fleet], Sequence[Program]]) -> Callable[[Fleet, random.Random], End]:
    def begin(fleet: Fleet, dice: random.Random) -> End:
        node = dice.choice(pick(fleet))
        freeze(node)
        return lambda: thaw(node)

    return begin


def _one_signalled(number: int, then: int) -> Callable[[Fleet, random.Random], End]:
    """Something that happens to one of the processes of a gateway."""

    def begin(fleet: Fleet, dice: random.Random) -> End:
        pid = dice.choice(sorted(dice.choice(fleet.gateways).children()))
        os.kill(pid, number)

        def end() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, then)

        return end

    return begin


def _unplugged(pick: Callable[[Fleet], Sequence[Program]]) -> Callable[[Fleet, random.Random], End]:
    def begin(fleet: Fleet, dice: random.Random) -> End:
        node = dice.choice(pick(fleet)).node
        fleet.lab.cut(node)
        return lambda: fleet.lab.mend(node)

    return begin


def _parted(
    one: Callable[[Fleet], Sequence[Program]], other: Callable[[Fleet], Sequence[Program]]
) -> Callable[[Fleet, random.Random], End]:
    def begin(fleet: Fleet, dice: random.Random) -> End:
        first, second = dice.choice(one(fleet)).node, dice.choice(other(fleet)).node
        fleet.lab.part(first, second)
        return lambda: fleet.lab.join(first, second)

    return begin


def _gateways(fleet: Fleet) -> Sequence[Program]:
    return fleet.gateways


def _engines(fleet: Fleet) -> Sequence[Program]:
    return fleet.engines


def _redis(fleet: Fleet) -> Sequence[Program]:
    return [fleet.redis]


def _haproxy(fleet: Fleet) -> Sequence[Program]:
    return [fleet.haproxy]


FAULTS = (
    NetFault("gateway", "killed", _killed(_gateways)),
    NetFault("gateway", "stopped and started", _drained, 0.0, 0.5),
    NetFault("gateway", "frozen", _frozen(_gateways)),
    NetFault("gateway", "its cable cut", _unplugged(_gateways), 1.0, 30.0),
    NetFault("gateway", "cut from HAProxy", _parted(_haproxy, _gateways), 1.0, 16.0),
    NetFault("engine", "killed", _killed(_engines)),
    NetFault("engine", "frozen", _frozen(_engines)),
    NetFault("engine", "its cable cut", _unplugged(_engines)),
    NetFault("engine", "cut from a gateway", _parted(_gateways, _engines)),
    NetFault("redis", "killed", _killed(_redis)),
    NetFault("redis", "frozen", _frozen(_redis)),
    NetFault("redis", "its cable cut", _unplugged(_redis)),
    NetFault("redis", "cut from a gateway", _parted(_gateways, _redis)),
)
OF_SEVERAL = (
    NetFault("gateway", "one process killed", _one_signalled(signal.SIGKILL, 0)),
    NetFault("gateway", "one process frozen", _one_signalled(signal.SIGSTOP, signal.SIGCONT), 1.0, 20.0),
)
"""What happens to gateways of several processes as well."""
UNPLUGGED = "gateway: its cable cut"
KINDS = tuple(dict.fromkeys(fault.kind for fault in FAULTS))


class Storm:
    """Faults of every kind until `stop`. None lasts longer than `most_s`; each comes once before any comes again."""

    def __init__(self, fleet: Fleet, seed: int, most_s: float = 60.0) -> None:
        self._faults = FAULTS + (OF_SEVERAL if fleet.processes > 1 else ())
        self.counts: Counter[str] = Counter()
        self.spans: list[tuple[str, float, float]] = []
        """Each fault that is over: its name, when it began and when it had ended, in seconds since 1970."""
        self.failures: list[str] = []
        self._fleet = fleet
        self._most_s = most_s
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(kind, seed), name=f"faults-{kind}", daemon=True) for kind in KINDS
        ]

    def start(self) -> Storm:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """End every fault that is in force, and begin no other. AssertionError when one could not be ended."""
        self._end.set()
        deadline_s = time.monotonic() + JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        assert not any(thread.is_alive() for thread in self._threads), "a fault does not end"
        assert not self.failures, self.failures

    def _run(self, kind: str, seed: int) -> None:
        dice = random.Random(f"{seed} {kind}")
        rows = [fault for fault in self._faults if fault.kind == kind]
        while not self._end.is_set():
            dice.shuffle(rows)
            for fault in rows:
                if self._end.wait(dice.uniform(0.3, 2.0)):
                    return
                lasts_s = min(self._most_s, dice.uniform(fault.least_s, fault.most_s))
                began_unix_s = time.time()
                try:
                    end = fault.begin(self._fleet, dice)
                    self.counts[f"{kind}: {fault.name}"] += 1
                    self._end.wait(lasts_s)
                    end()
                    self.spans.append((f"{kind}: {fault.name}", began_unix_s, time.time()))
                except Exception as error:  # a thread: who stops the storm is told
                    self.failures.append(f"{kind}: {fault.name}: {type(error).__name__}: {error}")
                    return
