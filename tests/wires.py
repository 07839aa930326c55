"""A bus in memory: processes of one gateway that are objects of one test, with what a real one does and no thread.

What is told and asked goes through JSON, as on the way through a parent, and is heard before `tell` returns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Callable, Optional

from gateway.processes.bus import Bus
from gateway.telemetry.merging import fold


class Wires:
    """The parent: who is there, who leads, and what the dead have left."""

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self.buses: list[WireBus] = []
        self.left: list[Any] = []
        self.told: list[tuple[int, str, Any]] = []
        """Slot, topic and what, in order."""

    def bus(self, slot: Optional[int] = None) -> WireBus:
        """One more process."""
        return WireBus(self, len(self.buses) if slot is None else slot)

    def topics(self) -> list[str]:
        return [topic for _, topic, _ in self.told]

    def lead(self) -> None:
        """The lowest slot leads."""
        for bus in sorted(self.buses, key=lambda bus: bus.slot)[:1]:
            if not bus.leader:
                bus.lead()

    def end(self, bus: WireBus) -> None:
        """A process has ended, in whatever way."""
        self.buses.remove(bus)
        if bus.kept is not None:
            self.left = [fold(self.left[0], bus.kept)] if self.left else [bus.kept]
        self.lead()


class WireBus(Bus):
    """`silent`: it is there, and does not answer."""

    def __init__(self, wires: Wires, slot: int) -> None:
        super().__init__(None, slot, wires.count)
        self._wires = wires
        self.kept: Any = None
        self.silent = False
        self.asked = 0

    def start(self) -> None:
        self._wires.buses.append(self)
        self._wires.lead()

    def lead(self) -> None:
        self._leader = True
        for callback in self._leader_callbacks:
            callback()

    def handlers(self) -> Sequence[str]:
        return tuple(self._handlers)

    def handler(self, topic: str) -> Callable[[Any, int], Any]:
        return self._handlers[topic]

    def tell(self, topic: str, what: Any) -> None:
        body = json.dumps(what)
        self._wires.told.append((self.slot, topic, json.loads(body)))
        for other in self._others():
            if topic in other.handlers():
                other.handler(topic)(json.loads(body), self.slot)

    def keep(self, topic: str, what: Any) -> None:
        self.kept = json.loads(json.dumps(what))

    def ask(self, topic: str, what: Any = None, timeout_s: float = 1.0) -> list[Any]:
        return self._ask_others(topic, what)[0]

    def survey(self, topic: str, what: Any = None, timeout_s: float = 1.0) -> tuple[list[Any], int]:
        answers, silent = self._ask_others(topic, what)
        answers += [other.kept for other in silent if other.kept is not None]
        return answers, len(silent)

    def close(self, timeout_s: float) -> None:
        if self in self._wires.buses:
            self._wires.end(self)

    def _others(self) -> list[WireBus]:
        return [bus for bus in self._wires.buses if bus is not self]

    def _ask_others(self, topic: str, what: Any) -> tuple[list[Any], list[WireBus]]:
        answers: list[Any] = list(self._wires.left) if topic == "metrics" else []
        silent = []
        for other in self._others():
            if other.silent:
                silent.append(other)
                continue
            other.asked += 1
            answer = (
                other.handler(topic)(json.loads(json.dumps(what)), self.slot) if topic in other.handlers() else None
            )
            if answer is not None:
                answers.append(json.loads(json.dumps(answer)))
        return answers, silent
