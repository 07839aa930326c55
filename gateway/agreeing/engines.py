"""How engines are, told from one process of a gateway to the others.

`EngineWords` owns nothing: it tells what this process finds out, and has the factory apply what others do. One message
for each probe of the leader's, each list of models, each change of an engine's state by a request, and each word of an
operator's; what is applied is not told again, so nothing goes round. What comes is another process's own: an engine
that is not known here, because one of both has not reloaded yet, is passed over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from gateway.hearing import Hearing
from gateway.inference import InferenceFactory
from gateway.processes.bus import Bus
from gateway.routing.engine import UNPROVEN, Engine, ListedModel
from gateway.routing.members import EngineStanding
from gateway.routing.standing import StateChange
from gateway.upstream.peers import Peers

TOLD = frozenset({"open", "down", "resting", "misconfigured", "up"})
"""States that a request can bring an engine to, and that others need to know."""
Where = tuple[str, str, str]
"""A model's or group's name, an engine's id and its URL."""


class EngineWords(Peers):
    """This process's part of what all know of engines. `bind` before the bus starts. Thread-safe."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._factory: Optional[InferenceFactory] = None
        self.shares = bus.count > 1
        bus.on("probe", lambda what, slot: self._hearing.probe(*what))
        bus.on("list", lambda what, slot: self._hear_list(*what))
        bus.on("state", lambda what, slot: self._hearing.state(*what))
        bus.on("drain", lambda what, slot: self._hearing.draining(*what))
        bus.on("weight", lambda what, slot: self._known.set_weight(*what) and None)
        bus.on("standings", self._asked)
        bus.on("in_flight", lambda what, slot: self._in_flight())
        bus.on_leader(lambda: self._hearing.lead())

    def bind(self, factory: InferenceFactory) -> None:
        """Before the bus starts: whose engines they are."""
        self._factory = factory

    @property
    def _known(self) -> InferenceFactory:
        assert self._factory is not None
        return self._factory

    @property
    def _hearing(self) -> Hearing:
        return self._known.hearing

    # --- telling (`Peers`, and operators) ----------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        return self._bus.leader

    def probed(self, engine: Engine, error: Optional[str]) -> None:
        if self.shares:
            self._bus.tell("probe", [*_where(engine), error])

    def listed(self, engine: Engine) -> None:
        if self.shares and engine.listed is not None:
            self._bus.tell("list", [*_where(engine), [list(one) for one in engine.listed]])

    def changed(self, change: StateChange) -> None:
        if not self.shares or change.after not in TOLD:
            return
        pool = self._known.router.pools.get(change.model)
        for standing in () if pool is None else pool.standings(change.engine):
            where = (change.model, standing.id, standing.url)
            self._bus.tell("state", [*where, change.after, _left_s(standing, change.after), change.reason or None])

    def drain(self, engine_id: str, draining: bool, model: Optional[str]) -> None:
        """An operator has taken an engine out, or let it in again."""
        self._bus.tell("drain", [engine_id, draining, model])

    def weigh(self, engine_id: str, weight: int, model: Optional[str]) -> None:
        """An operator has given an engine another weight."""
        self._bus.tell("weight", [engine_id, weight, model])

    # --- asking ------------------------------------------------------------------------------------------------------

    def in_flight(self) -> Mapping[tuple[str, str], int]:
        """Requests in flight at each engine, of all other processes together. Waits a second at most."""
        found: dict[tuple[str, str], int] = {}
        for answer in self._bus.ask("in_flight") if self.shares else ():
            for model, engine, count in answer:
                found[model, engine] = found.get((model, engine), 0) + count
        return found

    def _hear_list(self, model: str, engine_id: str, url: str, listed: Sequence[Sequence[Any]]) -> None:
        self._hearing.list(model, engine_id, url, _models(listed))

    def _in_flight(self) -> list[tuple[str, str, int]]:
        return [(one.model, one.id, one.in_flight) for one in self._known.engines() if one.in_flight]

    def learn(self, lists_only: bool = False) -> None:
        """Ask the others how the engines are, and take that over: for a process that knows nothing yet. Waits a second
        at most.

        `lists_only`: after a reload only which models engines list, of engines that are new here. What a reload has
        made this process forget, those know still that have not reloaded yet. So nobody learns either that an engine
        does not take a key: a process that begins may have another.
        """
        if not self.shares:
            return
        for model, standing, late_s in self._standings():
            self._take(model, standing, late_s, lists_only)

    def joined(self) -> None:
        """What the leader found out of an engine before it was discovered here has been passed over, and it may be long
        until it is told again. What it finds out from now on is heard."""
        if not self.shares or self.leads or self._factory is None:
            return
        unknown = set(self._hearing.unknown())
        for model, standing, late_s in self._standings() if unknown else ():
            if (model, standing.id, standing.url) in unknown:
                self._take(model, standing, late_s, lists_only=False)

    def _standings(self) -> Iterator[tuple[str, EngineStanding, float]]:
        """How the leader says that engines are, or another if it does not answer: the model, that, and how many seconds
        ago it was so. Waits a second at most."""
        answer = leading(self._bus.ask("standings"))
        if answer is None:
            return
        late_s = max(0.0, time.monotonic() - answer["at_s"])  # all processes' monotonic clock is the machine's
        for model, standing in answer["engines"]:
            yield model, EngineStanding(*standing), late_s

    def _configured_weight(self, where: Where) -> Optional[int]:
        """As this process has read it: with another file, what an operator has said of the old one is over."""
        model, engine_id, url = where
        pool = self._known.router.pools.get(model)
        for engine in () if pool is None else pool.engines:
            if engine.id == engine_id and engine.spec.url == url:
                return engine.spec.weight
        return None

    def _asked(self, what: object, slot: int) -> dict[str, Any]:
        return {"leader": self._bus.leader, "at_s": time.monotonic(), "engines": self._hearing.standings()}

    def _take(self, model: str, told: EngineStanding, late_s: float, lists_only: bool) -> None:
        hearing, where = self._hearing, (model, told.id, told.url)
        if told.listed is not None:
            hearing.list(*where, _models(told.listed))
        if lists_only:
            return
        if told.answered and not told.down:
            hearing.proven(*where)
        for state, is_so, left_s in (
            ("open", told.open_s is not None, (told.open_s or 0.0) - late_s),
            ("down", told.down, 0.0),
            ("resting", told.out_reason == "resting", told.out_s - late_s),
        ):
            if is_so:
                hearing.state(*where, state, max(0.0, left_s), told.last_error)
        if told.draining:
            hearing.draining(told.id, True, model)
        if told.weight != told.configured_weight and told.configured_weight == self._configured_weight(where):
            self._known.set_weight(told.id, told.weight, model)
        if told.answered or (told.down and told.last_error != UNPROVEN):
            hearing.known(*where)


def leading(answers: Sequence[Mapping[str, Any]]) -> Optional[Mapping[str, Any]]:
    """The leader's of these answers, or another if it has not answered; None: nobody has."""
    return min(answers, key=lambda answer: not answer["leader"], default=None)


def _where(engine: Engine) -> Where:
    return engine.model_name, engine.id, engine.spec.url


def _models(told: Sequence[Sequence[Any]]) -> list[ListedModel]:
    return [ListedModel(*one) for one in told]


def _left_s(standing: EngineStanding, state: str) -> float:
    if state == "open":
        return standing.open_s or 0.0
    return standing.out_s if state == standing.out_reason else 0.0
