"""What the parent of several processes decides: who is started, restarted, replaced, told to end, and killed.

`Supervision` is a state machine: what happens comes in as a call with the time, what is to be done goes out as a list
of actions, in order; `parent.py` does it. Pure: no process, no signal, no clock. For one thread.

    a child    starting   it has been started, and has START_S to say that it serves
               ready      it serves; while it does not answer others serve for it, and after HUNG_ASKS it is killed
               leaving    it has been replaced, or cannot be told anything: it ends when its clients have, or is killed

A slot has one child, beside it, while it is replaced, the next one, and any number of those that leave. The first child
of all starts alone: what keeps it from serving (a file, a key) would keep all, and is told once.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

START_S = 60.0
"""For a child to say that it serves."""
RESTART_FIRST_S = 1.0
RESTART_MAX_S = 30.0
LIVED_S = 60.0
"""After this the next death is taken for the first."""
END_EXTRA_S = 30.0
"""Beyond what its settings give it to drain, for a child to end on its own."""
ASK_EVERY_S = 1.0
"""A child that serves is asked whether the loop that accepts its clients goes round."""
QUIET_ASKS = 5
"""Unanswered: others serve for it. Counted and not timed: while the parent itself is held up, nobody is asked."""
HUNG_ASKS = 15
"""Unanswered: it hangs, and is killed."""


class Start(NamedTuple):
    """Start a child. `announce`: it prints where the gateway is."""

    child: int
    slot: int
    announce: bool


class Order(NamedTuple):
    """Tell a child: "drain", "hurry", "reload" or "hand_over"."""

    child: int
    what: str


class Ask(NamedTuple):
    """Ask a child whether it goes round."""

    child: int


class Kill(NamedTuple):
    """End a child at once."""

    child: int


class Log(NamedTuple):
    """A line of the log."""

    level: str
    event: str
    fields: dict[str, Any]


class End(NamedTuple):
    """All is over: the parent ends with this status."""

    status: int


Action = Union[Start, Order, Ask, Kill, Log, End]


class Place(NamedTuple):
    """What a child is to know of itself among the others."""

    leader: bool
    accept: tuple[int, ...]
    """Slots that have nobody, on whose sockets it accepts beside its own."""


class Phase(enum.Enum):
    """How far a child is."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"


@dataclass
class _Child:
    number: int
    slot: int
    started_s: float
    deadline_s: float  # it is killed then
    phase: Phase = Phase.STARTING
    killed: bool = False
    unanswered: int = 0  # since it has last said that it goes round

    @property
    def serves(self) -> bool:
        return self.phase is Phase.READY and self.unanswered <= QUIET_ASKS


@dataclass
class _Slot:
    current: Optional[_Child] = None
    following: Optional[_Child] = None  # takes its place, once it is ready
    restart_s: float = math.inf
    delay_s: float = RESTART_FIRST_S


@dataclass
class _Rolling:
    slots: list[int]  # still to be replaced
    again: bool = False  # asked for once more meanwhile
    child: Optional[int] = None  # which is waited for


class Supervision:
    """`count` slots. A child may drain for `drain_s` when it is told to end, for `hand_over_s` when it is replaced."""

    def __init__(self, count: int, drain_s: float, hand_over_s: float) -> None:
        self._drain_s = drain_s + END_EXTRA_S
        self._hand_over_s = hand_over_s + END_EXTRA_S
        self._slots = [_Slot() for _ in range(count)]
        self._children: dict[int, _Child] = {}
        self._last = 0
        self._ask_s = math.inf  # when those that serve are asked again
        self._first: Optional[int] = None  # the first child of all, until it is ready
        self._rolling: Optional[_Rolling] = None
        self._asked_to_end = 0
        self._status = 0

    # --- what happens ----------------------------------------------------------------------------------------------

    def begin(self, now_s: float) -> list[Action]:
        """Start the first child."""
        start = self._start(0, now_s, announce=True)
        self._first = start.child
        self._ask_s = now_s + ASK_EVERY_S
        return [start]

    def ready(self, number: int, now_s: float) -> list[Action]:
        """A child says that it serves."""
        child = self._children.get(number)
        if child is None or child.phase is not Phase.STARTING:
            return []
        child.phase = Phase.READY
        if not self._asked_to_end:
            child.deadline_s = math.inf
        slot = self._slots[child.slot]
        actions: list[Action] = []
        if number == self._first:
            self._first = None
            if not self._asked_to_end:
                actions += [self._start(other, now_s) for other in range(1, len(self._slots))]
        if slot.following is child:
            old, slot.current, slot.following = slot.current, child, None
            if old is not None:
                self._leaves(old, now_s + self._hand_over_s)
                actions.append(Order(old.number, "hand_over"))
        return actions + self._roll_on(now_s, number)

    def answered(self, number: int) -> None:
        """A child says that it goes round."""
        child = self._children.get(number)
        if child is not None:
            child.unanswered = 0

    def lost(self, number: int, now_s: float) -> list[Action]:
        """A child cannot be told anything any more: it drains, for it sees that, too. Another one takes its place."""
        child = self._children.get(number)
        if child is None or child.phase is Phase.LEAVING:
            return []
        if self._asked_to_end:
            return []  # it has a limit already
        self._leaves(child, now_s + self._drain_s)
        return self._vacate(child, now_s, "process_lost", {})

    def died(self, number: int, status: int, now_s: float) -> list[Action]:
        """A child has ended: `status` as `subprocess` has it, the negative number of a signal."""
        child = self._children.pop(number, None)
        if child is None:
            return []
        if number == self._first:
            self._first = None
            if not self._asked_to_end:
                self._asked_to_end = 1
                self._status = status if status > 0 else 1
                actions: list[Action] = [End(self._status)]
                if status < 0:  # else it has said itself why
                    actions.insert(0, Log("error", "process_died", self._of(child, {"signal": -status})))
                return actions
        if self._asked_to_end:
            self._clear(child)
            if status:
                self._status = self._status or 1
            return [] if self._children else [End(self._status)]
        fields = {"status": status} if status >= 0 else {"signal": -status}
        if child.phase is Phase.LEAVING:
            return [] if status == 0 or child.killed else [Log("warning", "process_died", self._of(child, fields))]
        return self._vacate(child, now_s, "process_died", {**fields, "lived_s": round(now_s - child.started_s, 1)})

    def end(self, now_s: float, status: int = 0) -> list[Action]:
        """A signal to end: the first has all drain, the second ends that, the third kills. `status`: the parent's if
        none has served yet."""
        self._asked_to_end += 1
        if self._asked_to_end == 1:
            if self._first is not None:
                self._status = status
            self._rolling = None
            for slot in self._slots:
                slot.restart_s = math.inf
            if not self._children:
                return [End(self._status)]
            return self._tell_all("drain", now_s + self._drain_s)
        if self._asked_to_end == 2:
            return self._tell_all("hurry", now_s + END_EXTRA_S)
        self._status = 1
        return [self._kill(child) for child in self._children.values()]

    def reload(self) -> list[Action]:
        """Have all that stay read the engines' file again, those that start, too: they may have read it before."""
        staying = [child for child in self._children.values() if child.phase is not Phase.LEAVING]
        return [] if self._asked_to_end else [Order(child.number, "reload") for child in staying]

    def roll(self, now_s: float) -> list[Action]:
        """Replace all children, one slot after another. While that is under way: once more behind it."""
        if self._asked_to_end:
            return []
        if self._rolling is not None:
            self._rolling.again = True
            return []
        self._rolling = _Rolling(list(range(len(self._slots))))
        return [Log("info", "rolling_restart", {"processes": len(self._slots)}), *self._roll_on(now_s, None)]

    def due(self, now_s: float) -> list[Action]:
        """The time has come for something, perhaps."""
        actions: list[Action] = []
        for child in list(self._children.values()):
            if child.deadline_s <= now_s:
                late = "start" if child.phase is Phase.STARTING and not self._asked_to_end else "end"
                actions += self._kill_late(child, late)
        if self._ask_s <= now_s:
            self._ask_s = now_s + ASK_EVERY_S
            for child in list(self._children.values()):
                actions += self._ask(child)
        for number, slot in enumerate(self._slots):
            if slot.restart_s <= now_s and slot.current is None:
                actions.append(self._start(number, now_s))
        return actions

    # --- what is so ------------------------------------------------------------------------------------------------

    def due_s(self) -> float:
        """When `due` is to be called, unless something happens before."""
        times = [child.deadline_s for child in self._children.values()]
        return min([self._ask_s, *times, *(slot.restart_s for slot in self._slots)])

    def places(self) -> dict[int, Place]:
        """What each child is to know of itself: those that lead no more come before the one that does."""
        live = [slot.current for slot in self._slots if slot.current is not None and slot.current.serves]
        deserted = tuple(sorted(set(range(len(self._slots))) - {child.slot for child in live}))
        others = [child for child in self._children.values() if child.phase is not Phase.STARTING]
        places = {child.number: Place(False, ()) for child in others if child not in live}
        places.update((child.number, Place(False, deserted)) for child in live[1:])
        if live:
            places[live[0].number] = Place(True, deserted)
        return places

    # --- parts -----------------------------------------------------------------------------------------------------

    def _start(self, number: int, now_s: float, announce: bool = False) -> Start:
        self._last += 1
        child = self._children[self._last] = _Child(self._last, number, now_s, now_s + START_S)
        slot = self._slots[number]
        slot.restart_s = math.inf
        if slot.current is None:
            slot.current = child
        else:
            slot.following = child
        return Start(child.number, number, announce)

    def _ask(self, child: _Child) -> list[Action]:
        if child.phase is not Phase.READY or child.killed or self._asked_to_end:
            return []
        child.unanswered += 1
        return self._kill_late(child, "answer") if child.unanswered > HUNG_ASKS else [Ask(child.number)]

    def _kill_late(self, child: _Child, late: str) -> list[Action]:
        return [Log("error", "process_killed", self._of(child, {"late": late})), self._kill(child)]

    def _kill(self, child: _Child) -> Kill:
        child.killed = True
        child.deadline_s = math.inf
        return Kill(child.number)

    def _tell_all(self, what: str, deadline_s: float) -> list[Action]:
        for child in self._children.values():
            child.deadline_s = min(child.deadline_s, deadline_s)
        return [Order(number, what) for number in self._children]

    @staticmethod
    def _leaves(child: _Child, deadline_s: float) -> None:
        child.phase = Phase.LEAVING
        child.deadline_s = deadline_s

    def _of(self, child: _Child, fields: dict[str, Any]) -> dict[str, Any]:
        return {"slot": child.slot, **fields}

    def _clear(self, child: _Child) -> bool:
        """Take a child out of its slot; returns whether that has nobody now."""
        slot = self._slots[child.slot]
        if slot.following is child:
            slot.following = None
        if slot.current is not child:
            return False
        slot.current, slot.following = slot.following, None
        return slot.current is None

    def _vacate(self, child: _Child, now_s: float, event: str, fields: dict[str, Any]) -> list[Action]:
        """A child that was to stay does not."""
        fields = self._of(child, fields)
        if self._clear(child):
            slot = self._slots[child.slot]
            if now_s - child.started_s >= LIVED_S:
                slot.delay_s = RESTART_FIRST_S
            fields["restart_in_s"] = slot.delay_s
            slot.restart_s = now_s + slot.delay_s
            slot.delay_s = min(2 * slot.delay_s, RESTART_MAX_S)
        actions: list[Action] = [Log("error", event, fields)]
        rolling = self._rolling
        if rolling is not None and rolling.child == child.number:
            self._rolling = None
            message = "the new process does not start; the old ones serve on, those that were replaced before are new"
            actions.append(Log("error", "rolling_restart_stopped", {"slot": child.slot, "message": message}))
            return actions
        return actions + self._roll_on(now_s, None)

    def _roll_on(self, now_s: float, ready: Optional[int]) -> list[Action]:
        """Replace the next slot's child, when the one before serves."""
        rolling = self._rolling
        if rolling is None:
            return []
        if rolling.child is not None:
            if rolling.child != ready:
                return []
            rolling.child = None
            rolling.slots.pop(0)
        if not rolling.slots:
            self._rolling = None
            done: list[Action] = [Log("info", "rolling_restart_done", {"processes": len(self._slots)})]
            return done + (self.roll(now_s) if rolling.again else [])
        number = rolling.slots[0]
        current = self._slots[number].current
        if current is not None and current.phase is not Phase.READY:
            return []  # it has just been started, and may have read what is to be read again: when it serves
        self._slots[number].delay_s = RESTART_FIRST_S
        start = self._start(number, now_s)
        rolling.child = start.child
        return [start]
