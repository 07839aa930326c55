"""A run: the scenario's requests through its gateways to its machines, for one strategy. No I/O."""

from __future__ import annotations

import math
import time
from random import Random
from typing import Callable, NamedTuple, Optional

from gateway.limits.limiter import Limiter
from gateway.tools.results import quiet_memory
from gateway.tools.simulate.draws import rows
from gateway.tools.simulate.events import BEGIN_S, Events
from gateway.tools.simulate.faults import Fault, hang
from gateway.tools.simulate.machines import Batch, Machine
from gateway.tools.simulate.measures import MOMENTS, Measures
from gateway.tools.simulate.scenario import Fleet, Scenario
from gateway.tools.simulate.virtual import MODEL, STANDBY, Gateway, fleet_spec

LOOKS = 5 * MOMENTS  # how often the engines are looked at in a run
_SLOWEST = 0.01  # of the speed of an engine: a law may give less, or nothing


class Run(NamedTuple):
    """What came of it: the counts, the engines of each model, the gateways, the probes that were made, how many
    requests had no end, how long it was in virtual time, and the seconds of a processor that it took."""

    strategy: str
    measures: Measures
    machines: dict[str, list[Machine]]
    gateways: list[Gateway]
    probes: int
    unanswered: int
    virtual_s: float
    took_s: float


def simulate(scenario: Scenario, strategy: str, progress: Optional[Callable[[float, int], object]] = None) -> Run:
    """Run it. `progress` is told now and then of the share that is done and the requests that have come."""
    began_s = time.process_time()
    events = Events()
    end_s = BEGIN_S + scenario.duration_s
    measures = Measures(BEGIN_S, BEGIN_S + scenario.warmup_s, end_s, scenario.overhead_s)
    machines = {MODEL: _machines(scenario, scenario.fleet, events, MODEL)}
    if scenario.standby is not None:
        machines[STANDBY] = _machines(scenario, scenario.standby, events, STANDBY)
    rules = scenario.rules
    limiter = None
    if any(rules.everybody) or any(rules.key_limits):
        limiter = Limiter(rules.everybody, clock=events.clock)
    spec, hangs = fleet_spec(scenario), hang(scenario.faults)
    gateways = [
        Gateway(scenario, strategy, spec, events, machines, limiter, measures, index, hangs)
        for index in range(scenario.gateways)
    ]
    for gateway in gateways:
        gateway.start()
    for fault in scenario.faults:
        _schedule(fault, machines[MODEL], events, scenario.seed)
    looking = _Looking(events, gateways, machines[MODEL], measures, scenario.duration_s / LOOKS)
    # What a request leaves is no circle: the collector would mostly look at all engines in vain.
    with quiet_memory(100_000, 50, 1000):
        _run(scenario, events, gateways, measures, progress)
    for machine in (one for group in machines.values() for one in group):
        machine.account()
    looking.last()
    unanswered = sum(gateway.door.open for gateway in gateways)
    probes = sum(gateway.probing.probes for gateway in gateways)
    virtual_s = events.now_s - BEGIN_S
    return Run(strategy, measures, machines, gateways, probes, unanswered, virtual_s, time.process_time() - began_s)


def _run(
    scenario: Scenario,
    events: Events,
    gateways: list[Gateway],
    measures: Measures,
    progress: Optional[Callable[[float, int], object]],
) -> None:
    until, came = events.until, measures.came
    heap = events.heap
    arrive = [gateway.door.arrive for gateway in gateways]
    for row in rows(scenario, BEGIN_S):
        at_s = row[1]
        if heap[0][0] <= at_s:
            until(at_s)
        events.now_s = at_s
        came(at_s)
        arrive[row[8]](row)
        if progress is not None and not row[0] % 20_000:
            progress((at_s - BEGIN_S) / scenario.duration_s, row[0])
    until(BEGIN_S + scenario.duration_s)
    # What is under way ends, each by its deadline.
    last_s = events.now_s + 4 * max(scenario.rules.request_timeout_s, scenario.rules.stream_idle_timeout_s)
    while any(gateway.door.open for gateway in gateways) and events.now_s < last_s:
        until(events.now_s + 0.1)


def _machines(scenario: Scenario, fleet: Fleet, events: Events, name: str) -> list[Machine]:
    kind = Batch if fleet.batching else Machine
    chance = Random(f"{scenario.seed} speeds {name}")
    found: list[Machine] = []
    for _ in range(fleet.engines):
        speed = max(fleet.speed.draw(chance), fleet.speed.mean * _SLOWEST)
        found.append(kind(events, scenario, fleet, speed))
    return found


def _schedule(fault: Fault, machines: list[Machine], events: Events, seed: int) -> None:
    for index in fault.hits(len(machines), seed):
        events.at(BEGIN_S + fault.begin_s, _begin, (fault, machines[index]))
        if fault.end_s < math.inf and fault.kind != "flap":
            events.at(BEGIN_S + fault.end_s, _end, (fault, machines[index]))


def _begin(what: tuple[Fault, Machine]) -> None:
    fault, machine = what
    if fault.kind == "kill":
        machine.kill()
    elif fault.kind == "partition":
        machine.cut_off()
    elif fault.kind == "slow":
        machine.slow_down(fault.value)
    elif fault.kind == "error":
        machine.error_share += fault.value
    elif fault.kind == "limited":
        machine.limited_share += fault.value
    else:
        machine.kill()
        machine.events.at(machine.events.now_s + fault.value, _back, what)


def _end(what: tuple[Fault, Machine]) -> None:
    fault, machine = what
    if fault.kind == "kill":
        machine.revive()
    elif fault.kind == "partition":
        machine.rejoin()
    elif fault.kind == "slow":
        machine.slow_down(1 / fault.value)
    elif fault.kind == "error":
        machine.error_share -= fault.value
    elif fault.kind == "limited":
        machine.limited_share -= fault.value


def _back(what: tuple[Fault, Machine]) -> None:
    """One that flaps comes back, to die once more unless the fault is over by then."""
    fault, machine = what
    machine.revive()
    again_s = machine.events.now_s + fault.value
    if again_s < BEGIN_S + fault.end_s:
        machine.events.at(again_s, _begin, what)


class _Looking:
    """Looks at the engines in turn, until the run's end."""

    def __init__(
        self, events: Events, gateways: list[Gateway], machines: list[Machine], measures: Measures, every_s: float
    ) -> None:
        self._events = events
        self._pools = [gateway.route[0] for gateway in gateways]
        self._machines = machines
        self._measures = measures
        self._every_s = every_s
        self._busy_slot_s = 0.0
        self._since_s = events.now_s
        events.at(events.now_s + every_s, self._look, None)

    def _look(self, nothing: None) -> None:
        self.last()
        if self._events.now_s + self._every_s <= self._measures.end_s + 1e-6:
            self._events.at(self._events.now_s + self._every_s, self._look, None)

    def last(self) -> None:
        """Look once more, if that is still within the run."""
        now_s = self._events.now_s
        if now_s > self._measures.end_s + 1e-6 or now_s <= self._since_s:
            return
        for machine in self._machines:
            machine.account()
        busy_slot_s = sum(machine.busy_slot_s for machine in self._machines)
        slot_s = sum(machine.slots for machine in self._machines) * (now_s - self._since_s)
        share = (busy_slot_s - self._busy_slot_s) / slot_s
        self._busy_slot_s, self._since_s = busy_slot_s, now_s
        out = max(sum(not engine.available(now_s) for engine in pool.engines) for pool in self._pools)
        self._measures.looked(now_s, [machine.load for machine in self._machines], out, share)
