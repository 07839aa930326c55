"""The bus of several processes, over real sockets: children in threads, and the parent's links in one."""

from __future__ import annotations

import json
import operator
import random
import socket
import threading
import time
import unittest
from typing import Any

from gateway.processes.bus import Bus
from gateway.processes.frames import pack
from gateway.processes.links import Links
from gateway.processes.switchboard import Fold
from tests.support import TIMEOUT_S, eventually


class Parent:
    """Links on a thread of their own, as the parent's loop has them."""

    def __init__(self, fold: Fold = operator.add) -> None:
        self.logged: list[tuple[str, dict[str, Any]]] = []
        self.ready: list[int] = []
        self.round: list[int] = []
        self.lost: list[tuple[int, bool]] = []
        self._commands: list[Any] = []
        self.links = Links(fold, self._log, self.ready.append, self.round.append, self._lose)
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="test-parent", daemon=True)
        self._thread.start()

    def _log(self, level: str, event: str, **fields: Any) -> None:
        self.logged.append((event, fields))

    def _lose(self, child: int, closed: bool) -> None:
        self.lost.append((child, closed))

    def do(self, command: Any) -> None:
        """Call `command` on the parent's thread, and wait for that."""
        done = threading.Event()
        self._commands.append(lambda: (command(), done.set()))
        assert done.wait(TIMEOUT_S)

    def _run(self) -> None:
        while not self._ending:
            for command in self._commands[:]:
                self._commands.remove(command)
                command()
            for key, events in self.links.selector.select(0.002):
                self.links.ready(key, events)
            self.links.report(time.monotonic())

    def link(self, child: int, slot: int) -> socket.socket:
        """A child's end of a new link."""
        ours, theirs = socket.socketpair()
        self.do(lambda: self.links.add(child, slot, ours))
        return theirs

    def close(self) -> None:
        self._ending = True
        self._thread.join(TIMEOUT_S)
        self.links.close()


class BusTest(unittest.TestCase):
    def setUp(self) -> None:
        self.parent = Parent()
        self.addCleanup(self.parent.close)

    def bus(self, slot: int, child: int = -1, count: int = 3) -> Bus:
        made = Bus(self.parent.link(slot if child < 0 else child, slot), slot, count)
        self.addCleanup(made.close, 1.0)
        return made

    def three(self, **handlers: Any) -> list[Bus]:
        buses = [self.bus(slot) for slot in range(3)]
        for bus in buses:
            for topic, handler in handlers.items():
                bus.on(topic, lambda what, slot, bus=bus, handler=handler: handler(bus, what, slot))
            bus.start()
            bus.ready()
        eventually(lambda: len(self.parent.ready) == 3)
        return buses

    def test_all_others_hear_what_one_tells_in_its_order(self) -> None:
        heard: list[tuple[int, Any, int]] = []
        buses = self.three(x=lambda bus, what, slot: heard.append((bus.slot, what, slot)))
        for number in range(100):
            buses[1].tell("x", number)
        eventually(lambda: len(heard) == 200)
        for slot in (0, 2):
            self.assertEqual([what for who, what, _ in heard if who == slot], list(range(100)))
        self.assertEqual({sender for _, _, sender in heard}, {1})

    def test_all_others_answer_and_nobody_waits_longer_than_for_the_last(self) -> None:
        buses = self.three(m=lambda bus, what, slot: {"me": bus.slot, "you": slot, "what": what})
        began_s = time.monotonic()
        answers = buses[0].ask("m", [1], timeout_s=60.0)
        self.assertLess(time.monotonic() - began_s, 30)
        self.assertEqual(sorted(a["me"] for a in answers), [1, 2])
        self.assertEqual({(a["you"], tuple(a["what"])) for a in answers}, {(0, (1,))})

    def test_who_has_no_answer_and_who_fails_are_not_waited_for(self) -> None:
        crashed: list[BaseException] = []

        def answer(bus: Bus, what: Any, slot: int) -> Any:
            if bus.slot == 1:
                raise ValueError("no")
            return None

        buses = self.three(m=answer)
        buses[1].crashed = crashed.append
        self.assertEqual(buses[0].ask("m", timeout_s=60.0), [])
        self.assertEqual(buses[0].ask("unknown", timeout_s=60.0), [])
        eventually(lambda: [str(error) for error in crashed] == ["no"])

    def three_of_which_one_waits(self) -> tuple[list[Bus], threading.Event]:
        """They answer their slots, the second when the event is set."""
        gate = threading.Event()
        self.addCleanup(gate.set)

        def answer(bus: Bus, what: Any, slot: int) -> Any:
            if bus.slot == 1:
                gate.wait(TIMEOUT_S)
            return bus.slot

        return self.three(m=answer), gate

    def test_who_is_stuck_costs_its_answer_and_no_more(self) -> None:
        buses, gate = self.three_of_which_one_waits()
        self.assertEqual(buses[0].ask("m", timeout_s=0.3), [2])
        gate.set()
        eventually(lambda: sorted(buses[0].ask("m", timeout_s=5.0)) == [1, 2])

    def test_a_survey_has_what_the_silent_have_left_and_tells_how_many_they_are(self) -> None:
        buses, gate = self.three_of_which_one_waits()
        buses[1].keep("m", 100)
        answers, silent = buses[1].survey("m", timeout_s=60.0)  # behind that
        self.assertEqual((sorted(answers), silent), ([0, 2], 0))
        eventually(lambda: buses[0].survey("m", timeout_s=0.5) == ([2, 100], 1))
        gate.set()
        eventually(lambda: sorted(buses[0].survey("m", timeout_s=5.0)[0]) == [1, 2])
        self.assertEqual(buses[0].survey("m", timeout_s=60.0)[1], 0)

    def test_who_does_not_read_has_its_frames_dropped_and_nobody_else(self) -> None:
        heard: list[int] = []
        stuck = self.parent.link(7, 1)
        self.addCleanup(stuck.close)
        stuck.sendall(pack("hello"))
        sender, reader = self.bus(0), self.bus(2)
        reader.on("x", lambda what, slot: heard.append(what["n"]))
        sender.start()
        reader.start()
        sender.ready()
        reader.ready()
        eventually(lambda: len(self.parent.ready) == 2)
        for number in range(3000):
            sender.tell("x", {"n": number, "pad": "x" * 20_000})
            if number % 50 == 49:  # no faster than it is taken: the sender's own queue is bounded, too
                eventually(lambda number=number: heard and heard[-1] == number)
        self.assertEqual(heard, list(range(3000)))
        self.assertEqual(sender.dropped, 0)
        eventually(lambda: any(event == "bus_dropped" and f["slot"] == 1 for event, f in self.parent.logged))

    def test_a_parent_that_takes_nothing_blocks_nobody(self) -> None:
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        bus = Bus(theirs, 0, 2)
        bus.start()
        began_s = time.monotonic()
        for _ in range(200):
            bus.tell("x", "y" * 1_000_000)
        self.assertLess(time.monotonic() - began_s, TIMEOUT_S)
        self.assertGreater(bus.dropped, 100)
        self.assertEqual(bus.ask("x", timeout_s=0.05), [])
        bus.close(0.05)

    def test_what_was_told_last_is_sent_before_the_end(self) -> None:
        heard: list[int] = []
        buses = self.three(x=lambda bus, what, slot: heard.append(what["n"]) if bus.slot == 0 else None)
        for number in range(200):
            buses[1].tell("x", {"n": number, "pad": "x" * 10_000})
        buses[1].close(TIMEOUT_S)
        eventually(lambda: heard == list(range(200)))
        eventually(lambda: self.parent.lost == [(1, True)])

    def test_what_the_dead_have_left_is_answered_by_the_parent(self) -> None:
        buses = self.three(m=lambda bus, what, slot: bus.slot)
        buses[1].keep("m", 40)
        buses[2].keep("m", 2)
        for child in (1, 2):
            buses[child].close(TIMEOUT_S)
            self.parent.do(lambda child=child: self.parent.links.gone(child))
        self.assertEqual(buses[0].ask("m", timeout_s=60.0), [42])

    def test_a_leader_is_told_and_an_order_and_whose_sockets_to_accept_on(self) -> None:
        bus = self.bus(0)
        led: list[bool] = []
        accept: list[Any] = []
        orders: list[str] = []
        bus.on_leader(lambda: led.append(bus.leader))
        bus.on_accept = accept.append
        bus.on_order = orders.append
        bus.start()
        self.assertFalse(bus.leader)
        self.parent.do(lambda: self.parent.links.roster(0, True, [1, 2]))
        self.parent.do(lambda: self.parent.links.roster(0, True, []))
        self.parent.do(lambda: self.parent.links.order(0, "drain"))
        eventually(lambda: orders == ["drain"])
        self.assertEqual((led, accept, bus.leader), ([True], [[1, 2], []], True))
        self.parent.do(lambda: self.parent.links.roster(0, False, []))
        eventually(lambda: not bus.leader)

    def test_a_child_answers_that_it_goes_round_as_often_as_it_is_asked_once_it_can(self) -> None:
        bus = self.bus(0)
        bus.start()
        self.parent.do(lambda: self.parent.links.ask(0))
        bus.tell("x", 1)
        bus.ask("x")  # by now it has been asked
        self.assertEqual(self.parent.round, [])
        bus.on_round = bus.goes_round
        for _ in range(2):
            self.parent.do(lambda: self.parent.links.ask(0))
        eventually(lambda: self.parent.round == [0, 0])

    def test_a_child_whose_parent_is_gone_is_told_and_waits_for_no_answer(self) -> None:
        ours, theirs = socket.socketpair()
        bus = Bus(theirs, 0, 2)
        orders: list[str] = []
        bus.on_order = orders.append
        bus.start()
        asked: list[Any] = []
        asker = threading.Thread(target=lambda: asked.append(bus.ask("x", timeout_s=60.0)), daemon=True)
        asker.start()
        self.assertTrue(ours.recv(100))
        ours.close()
        eventually(lambda: orders == ["orphaned"])
        asker.join(TIMEOUT_S)
        self.assertEqual(asked, [[]])
        bus.tell("x", 1)
        self.assertEqual(bus.ask("x", timeout_s=60.0), [])
        bus.close(1.0)

    def test_a_handler_that_asks_is_told_that_it_must_not(self) -> None:
        crashed: list[BaseException] = []
        buses = self.three(x=lambda bus, what, slot: bus.ask("x"))
        for bus in buses:
            bus.crashed = crashed.append
        buses[0].tell("x", 1)
        eventually(lambda: len(crashed) == 2)
        self.assertIsInstance(crashed[0], RuntimeError)

    def test_what_is_no_frame_costs_its_sender_its_link_and_no_other(self) -> None:
        buses = self.three(m=lambda bus, what, slot: bus.slot)
        for number, data in enumerate((b"\xff\xff\xff\xff", pack("nonsense"), pack("hello") + pack("roster"))):
            bad = self.parent.link(20 + number, number)
            bad.sendall(data)
            self.assertEqual(bad.recv(10), b"")
            bad.close()
        eventually(lambda: self.parent.lost == [(20, False), (21, False), (22, False)])
        self.assertEqual([(event, f["slot"]) for event, f in self.parent.logged], [("bus_broken", n) for n in range(3)])
        self.assertEqual(sorted(buses[0].ask("m", timeout_s=60.0)), [1, 2])

    def test_bytes_of_nobody_never_stop_the_parent(self) -> None:
        rng = random.Random(3)
        for number in range(200):
            bad = self.parent.link(100 + number, 1)
            head = rng.choice(({"k": "ask"}, {"k": "answer", "a": 1, "n": 2}, {"k": 5}, {"k": "keep", "t": "m"}, []))
            rest = json.dumps(head).encode() + b"\n" + rng.randbytes(20)
            size = len(rest) if rng.random() < 0.8 else rng.getrandbits(32)
            with bad:
                try:
                    bad.sendall((pack("hello") if rng.random() < 0.5 else b"") + size.to_bytes(4, "big") + rest)
                except OSError:
                    pass
        buses = self.three(m=lambda bus, what, slot: bus.slot)
        self.assertEqual(sorted(buses[0].ask("m", timeout_s=60.0)), [1, 2])


if __name__ == "__main__":
    unittest.main()
