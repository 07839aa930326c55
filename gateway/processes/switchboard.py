"""Who gets which frame: the parent's half of the bus, without its sockets.

`Switchboard` owns which children listen, the questions whose answers are still to come, and the snapshots that children
have left. Pure and for one thread; bodies of frames are passed on unread. Bounded: ASKS_MAX questions are remembered,
each child's newest snapshot of each topic, and of all the dead one sum a topic.
"""

from __future__ import annotations

import json
from typing import Any, Callable

from gateway.processes.frames import Frame, FrameError, pack

ASKS_MAX = 4096
TOPICS_MAX = 64
LEFT_MAX = 64
"""Snapshots of the dead that could not be added to others, a topic; beyond, the oldest are forgotten."""

Fold = Callable[[Any, Any], Any]
"""Adds two snapshots of one topic. What it raises is no reason to stop: both are kept side by side."""
Delivery = tuple[int, bytes]
"""A child's number and a frame for it."""


class _Ask:
    def __init__(self, topic: str, waits_for: set[int]) -> None:
        self.topic = topic
        self.waits_for = waits_for


class Switchboard:
    """Routes what children say. `log(event, **fields)` is called with what an operator should know."""

    def __init__(self, fold: Fold, log: Callable[..., None]) -> None:
        self._fold = fold
        self._log = log
        self._slots: dict[int, int] = {}  # of children that have said hello, by their number
        self._asks: dict[tuple[int, int], _Ask] = {}  # by who asks and its number for it
        self._kept: dict[int, dict[str, bytes]] = {}
        self._left: dict[str, list[Any]] = {}

    def joined(self, child: int, slot: int) -> None:
        """A child listens from now on."""
        self._slots[child] = slot

    def route(self, child: int, frame: Frame) -> list[Delivery]:
        """What follows from a child's frame: frames for others, or for itself. Raises FrameError for what is none of
        a child's."""
        kind = frame.kind
        if child not in self._slots:
            raise FrameError(f"a frame {kind!r} before the first")
        if kind == "tell":
            told = pack("tell", frame.body, t=frame.text("t"), s=self._slots[child])
            return [(other, told) for other in self._slots if other != child]
        if kind == "ask":
            return self._ask(child, frame)
        if kind == "answer":
            return self._answer(child, frame)
        if kind == "late":
            return self._late(child, frame.number("n"))
        if kind == "keep":
            kept = self._kept.setdefault(child, {})
            topic = frame.text("t")
            if topic not in kept and len(kept) >= TOPICS_MAX:
                raise FrameError(f"more than {TOPICS_MAX} topics to keep")
            kept[topic] = frame.body
            return []
        raise FrameError(f"a frame of no known kind: {kind!r}")

    def _ask(self, child: int, frame: Frame) -> list[Delivery]:
        topic, number = frame.text("t"), frame.number("n")
        others = [other for other in self._slots if other != child]
        left = self._answers_left(topic, number)
        if others:
            while len(self._asks) >= ASKS_MAX:  # of who has been answered by too few, and waits no more
                del self._asks[next(iter(self._asks))]
            self._asks[child, number] = _Ask(topic, set(others))
        asked = pack("ask", frame.body, t=topic, n=number, a=child, s=self._slots[child])
        return [
            (child, pack("due", n=number, c=len(others) + len(left))),
            *((child, answer) for answer in left),
            *((other, asked) for other in others),
        ]

    def _answer(self, child: int, frame: Frame) -> list[Delivery]:
        key = (frame.number("a"), frame.number("n"))
        ask = self._asks.get(key)
        if ask is None or child not in ask.waits_for:
            return []  # who has asked is gone
        ask.waits_for.discard(child)
        if not ask.waits_for:
            del self._asks[key]
        return [(key[0], pack("answer", frame.body, n=key[1]))]

    def _late(self, child: int, number: int) -> list[Delivery]:
        """Who has asked waits no longer: what those have left who have not answered, and how many they are."""
        ask = self._asks.pop((child, number), None)
        silent = set[int]() if ask is None else ask.waits_for
        left = [self._kept.get(other, {}).get(ask.topic, b"") for other in silent] if ask is not None else []
        return [
            *((child, self._answer_of(body, number)) for body in left),
            (child, pack("late", n=number, c=len(silent))),
        ]

    def gone(self, child: int) -> list[Delivery]:
        """A child is no more: what it has left is added to what others have, and who waits for its answer gets that."""
        self._slots.pop(child, None)
        kept = self._kept.pop(child, {})
        answers: list[Delivery] = []
        for (asker, number), ask in list(self._asks.items()):
            if asker == child:
                del self._asks[asker, number]
            elif child in ask.waits_for:
                # It has been told what the dead had left before this one had died: so nothing is counted twice.
                answers.append((asker, self._answer_of(kept.get(ask.topic, b""), number)))
                ask.waits_for.discard(child)
                if not ask.waits_for:
                    del self._asks[asker, number]
        for topic, body in kept.items():
            self._add(topic, body)
        return answers

    def _answer_of(self, body: bytes, number: int) -> bytes:
        """What a child has left as the answer to a question; none, where it is longer than any frame."""
        try:
            return pack("answer", body, n=number)
        except FrameError as error:
            self._log("snapshot_lost", reason=str(error))
            return pack("answer", n=number)

    def _answers_left(self, topic: str, number: int) -> list[bytes]:
        """What the dead have left, as answers. A sum that has become longer than any frame is forgotten: it is no use
        to anybody, and whoever asks must not lose its link by it."""
        answers: list[bytes] = []
        for snapshot in list(self._left.get(topic, ())):
            try:
                answers.append(pack("answer", json.dumps(snapshot).encode(), n=number))
            except FrameError as error:
                self._left[topic].remove(snapshot)
                self._log("snapshot_lost", topic=topic, reason=str(error))
        return answers

    def _add(self, topic: str, body: bytes) -> None:
        try:
            snapshot = json.loads(body)
        except (ValueError, RecursionError) as error:
            self._log("snapshot_lost", topic=topic, reason=str(error))
            return
        left = self._left.setdefault(topic, [])
        if left:
            try:
                left[-1] = self._fold(left[-1], snapshot)
                return
            except Exception as error:  # another version's, say, before a rolling restart
                self._log("snapshots_apart", topic=topic, reason=f"{type(error).__name__}: {error}")
        left.append(snapshot)
        if len(left) > LEFT_MAX:
            del left[0]
