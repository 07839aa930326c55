"""What processes of one gateway say to each other: frames, and who gets which."""

from __future__ import annotations

import json
import random
import signal
import unittest
from typing import Any
from unittest import mock

from gateway.processes import frames
from gateway.processes.bus import Alone
from gateway.processes.child import orders_to
from gateway.processes.frames import FRAME_MAX_BYTES, Frame, FrameError, Outbox, Unpacker, pack
from gateway.processes.switchboard import ASKS_MAX, LEFT_MAX, TOPICS_MAX, Switchboard


def frame(kind: str, what: Any = None, **head: Any) -> Frame:
    (made,) = Unpacker().feed(pack(kind, json.dumps(what).encode(), **head))
    return made


def read(data: bytes) -> tuple[dict[str, Any], Any]:
    """A frame's head and what its body says."""
    (one,) = Unpacker().feed(data)
    return one.head, json.loads(one.body) if one.body else None


class FramesTest(unittest.TestCase):
    def test_frames_come_out_whole_however_their_bytes_come(self) -> None:
        sent = [("tell", {"t": "a"}, b'"x\\ny"'), ("ready", {}, b""), ("ask", {"t": "b", "n": 7}, b"[1, 2]" * 900)]
        data = b"".join(pack(kind, body, **head) for kind, head, body in sent)
        rng = random.Random(5)
        for _ in range(50):
            unpacker, at, come = Unpacker(), 0, []
            while at < len(data):
                size = rng.choice((1, 2, 3, 7, 1000))
                come += unpacker.feed(data[at : at + size])
                at += size
            self.assertEqual([(f.kind, {k: v for k, v in f.head.items() if k != "k"}, f.body) for f in come], sent)

    def test_what_is_no_frame_is_said_to_be_none(self) -> None:
        length = (5).to_bytes(4, "big")
        for data in (
            (FRAME_MAX_BYTES + 1).to_bytes(4, "big"),
            length + b"[1]\n1",
            length + b'{"k":',
            length + b"\xff\xff\xff\n1",
            (8).to_bytes(4, "big") + b'{"k":1}\n',
            (100_000).to_bytes(4, "big") + b"[" * 100_000,
        ):
            with self.subTest(data=data[:20]), self.assertRaises(FrameError):
                Unpacker().feed(data)

    def test_heads_that_lack_something_are_refused(self) -> None:
        with self.assertRaisesRegex(FrameError, "the text 't'"):
            frame("tell", t=1).text("t")
        with self.assertRaisesRegex(FrameError, "the number 'n'"):
            frame("ask", n=True).number("n")

    def test_a_frame_that_nobody_would_take_is_not_made(self) -> None:
        with self.assertRaises(FrameError):
            pack("tell", b"1" * FRAME_MAX_BYTES)

    def test_an_outbox_is_bounded_in_frames_and_in_bytes_but_for_what_must_be_sent(self) -> None:
        box = Outbox(max_bytes=100, max_frames=3)
        self.assertTrue(box.put(b"x" * 60))
        self.assertFalse(box.put(b"x" * 60))
        self.assertTrue(box.put(b"x" * 60, must=True))
        self.assertEqual((len(box), box.dropped), (2, 1))
        box.sent(60)
        box.sent(50)
        self.assertEqual(bytes(box.first()), b"x" * 10)
        self.assertTrue(box.put(b"y" * 90))
        box.sent(10)
        for _ in range(2):
            box.put(b"z")
        self.assertFalse(box.put(b"z"))
        box.clear()
        self.assertEqual(len(box), 0)
        self.assertTrue(box.put(b"x" * 100))


class SwitchboardTest(unittest.TestCase):
    def setUp(self) -> None:
        self.logged: list[tuple[str, dict[str, Any]]] = []
        self.board = Switchboard(self.fold, lambda event, **fields: self.logged.append((event, fields)))
        for child, slot in ((10, 0), (11, 1), (12, 2)):
            self.board.joined(child, slot)

    def fold(self, a: Any, b: Any) -> Any:
        return a + b

    def test_what_one_tells_all_others_hear_with_its_slot(self) -> None:
        told = self.board.route(11, frame("tell", {"x": 1}, t="health"))
        self.assertEqual([child for child, _ in told], [10, 12])
        for _, data in told:
            self.assertEqual(read(data), ({"k": "tell", "t": "health", "s": 1}, {"x": 1}))

    def test_a_question_goes_to_all_others_and_answers_come_back(self) -> None:
        (who, due), *asked = self.board.route(10, frame("ask", "?", t="m", n=4))
        self.assertEqual((who, read(due)[0]), (10, {"k": "due", "n": 4, "c": 2}))
        self.assertEqual([child for child, _ in asked], [11, 12])
        self.assertEqual(read(asked[0][1]), ({"k": "ask", "t": "m", "n": 4, "a": 10, "s": 0}, "?"))
        ((child, data),) = self.board.route(12, frame("answer", 5, a=10, n=4))
        self.assertEqual((child, read(data)), (10, ({"k": "answer", "n": 4}, 5)))
        self.assertEqual(self.board.route(12, frame("answer", 5, a=10, n=4)), [], "it has answered")

    def test_who_asks_alone_waits_for_nobody(self) -> None:
        self.board.gone(11)
        self.board.gone(12)
        ((child, due),) = self.board.route(10, frame("ask", t="m", n=1))
        self.assertEqual((child, read(due)[0]["c"]), (10, 0))

    def test_the_newest_snapshots_of_the_dead_are_one_sum_beside_the_answers(self) -> None:
        for child, value in ((11, 1), (11, 5), (12, 7)):
            self.assertEqual(self.board.route(child, frame("keep", value, t="m")), [])
        self.board.gone(11)
        self.board.gone(12)
        due, left = self.board.route(10, frame("ask", t="m", n=1))
        self.assertEqual(read(due[1])[0]["c"], 1)
        self.assertEqual((left[0], read(left[1])), (10, ({"k": "answer", "n": 1}, 12)))
        self.assertEqual(len(self.board.route(10, frame("ask", t="other", n=2))), 1)

    def test_who_dies_with_a_question_open_is_answered_for_once(self) -> None:
        self.board.route(11, frame("keep", 5, t="m"))
        self.board.route(10, frame("ask", t="m", n=1))
        ((child, data),) = self.board.gone(11)
        self.assertEqual((child, read(data)), (10, ({"k": "answer", "n": 1}, 5)))
        ((child, data),) = self.board.gone(12)
        self.assertEqual((child, read(data)), (10, ({"k": "answer", "n": 1}, None)), "it has left nothing")

    def test_who_waits_no_longer_gets_what_the_silent_have_left_and_how_many_they_are(self) -> None:
        self.board.route(11, frame("keep", 5, t="m"))
        self.board.route(10, frame("ask", t="m", n=1))
        self.board.route(12, frame("answer", 7, a=10, n=1))
        left, late = self.board.route(10, frame("late", n=1))
        self.assertEqual((left[0], read(left[1])), (10, ({"k": "answer", "n": 1}, 5)))
        self.assertEqual((late[0], read(late[1])[0]), (10, {"k": "late", "n": 1, "c": 1}))
        self.assertEqual(self.board.route(11, frame("answer", 6, a=10, n=1)), [], "it would count twice")
        self.assertEqual(self.board.gone(11), [])
        ((_, late_again),) = self.board.route(10, frame("late", n=1))
        self.assertEqual(read(late_again)[0]["c"], 0)

    def test_answers_for_who_is_gone_go_nowhere(self) -> None:
        self.board.route(10, frame("ask", t="m", n=1))
        self.board.gone(10)
        self.assertEqual(self.board.route(11, frame("answer", 5, a=10, n=1)), [])

    def test_snapshots_that_cannot_be_added_stay_side_by_side_and_bounded(self) -> None:
        for child in range(100, 101 + LEFT_MAX):
            self.board.joined(child, 1)
            self.board.route(child, frame("keep", {"n": child} if child % 2 else child, t="m"))
            self.board.gone(child)
        _, *left = [read(data)[1] for child, data in self.board.route(10, frame("ask", t="m", n=1)) if child == 10]
        self.assertEqual(len(left), LEFT_MAX)
        self.assertEqual(self.logged[0][0], "snapshots_apart")

    def test_a_sum_that_no_frame_holds_is_lost_with_a_line_and_costs_nobody_a_link(self) -> None:
        for child, value in ((11, "x" * 150), (12, "y" * 150)):
            self.board.route(child, frame("keep", value, t="m"))
            self.board.gone(child)
        with mock.patch.object(frames, "FRAME_MAX_BYTES", 300):
            (due,) = self.board.route(10, frame("ask", t="m", n=1))
            self.assertEqual(read(due[1])[0]["c"], 0)
            self.assertEqual([event for event, _ in self.logged], ["snapshot_lost"])
            self.board.route(10, frame("ask", t="m", n=2))
        self.assertEqual(len(self.logged), 1, "it is there no longer")

    def test_a_snapshot_that_just_fits_and_its_answer_does_not_is_none(self) -> None:
        for child in (11, 12):
            self.board.route(child, frame("keep", "x" * 150, t="m"))
        self.board.route(10, frame("ask", t="m", n=1))
        self.board.route(10, frame("ask", t="m", n=2))
        with mock.patch.object(frames, "FRAME_MAX_BYTES", 150):
            self.assertEqual([read(data)[1] for _, data in self.board.gone(11)], [None, None])
            self.assertEqual(read(self.board.route(10, frame("late", n=1))[0][1])[1], None)

    def test_a_snapshot_that_is_no_json_is_lost_with_a_line(self) -> None:
        (broken,) = Unpacker().feed(pack("keep", b"{", t="m"))
        self.board.route(11, broken)
        self.board.gone(11)
        self.assertEqual(self.logged[0][0], "snapshot_lost")

    def test_what_no_child_says_is_refused(self) -> None:
        for wrong in (frame("roster"), frame("tell"), frame("ask", t="m"), frame("answer", a=1), frame("keep")):
            with self.subTest(kind=wrong.kind), self.assertRaises(FrameError):
                self.board.route(10, wrong)
        with self.assertRaises(FrameError):
            self.board.route(99, frame("tell", t="m"))
        with self.assertRaises(FrameError):
            for number in range(TOPICS_MAX + 1):
                self.board.route(10, frame("keep", t=str(number)))

    def test_questions_that_nobody_answers_are_forgotten_at_last(self) -> None:
        for number in range(ASKS_MAX + 1):
            self.board.route(10, frame("ask", t="m", n=number))
        self.assertEqual(self.board.route(11, frame("answer", 1, a=10, n=0)), [])
        self.assertEqual(len(self.board.route(11, frame("answer", 1, a=10, n=1))), 1)


class OrdersTest(unittest.TestCase):
    """What the parent says, as the signals that the main thread waits for."""

    def carried_out(self, *orders: str) -> list[str]:
        signals = mock.Mock()
        carry_out = orders_to(signals)
        for order in orders:
            carry_out(order)
        return [signal.Signals(call.args[0]).name for call in signals.put.call_args_list]

    @unittest.skipUnless(hasattr(signal, "SIGUSR2"), "SIGUSR2")
    def test_each_order_is_a_signal(self) -> None:
        self.assertEqual(self.carried_out("reload", "hand_over", "drain"), ["SIGHUP", "SIGUSR2", "SIGTERM"])
        self.assertEqual(self.carried_out("drain", "hurry"), ["SIGTERM", "SIGTERM"])
        self.assertEqual(self.carried_out("orphaned"), ["SIGTERM"])

    def test_who_drains_already_is_not_hurried_by_the_death_of_its_parent(self) -> None:
        self.assertEqual(self.carried_out("drain", "orphaned"), ["SIGTERM"])
        self.assertEqual(self.carried_out("orphaned", "orphaned"), ["SIGTERM"])

    def test_what_a_newer_parent_may_say_is_ignored(self) -> None:
        self.assertEqual(self.carried_out("dance"), [])


class AloneTest(unittest.TestCase):
    def test_one_process_leads_and_tells_nobody(self) -> None:
        bus = Alone()
        became: list[int] = []
        bus.on("m", lambda what, slot: what)
        bus.on_leader(lambda: became.append(1))
        bus.start()
        bus.ready()
        bus.tell("m", 1)
        bus.keep("m", 1)
        self.assertEqual((bus.leader, bus.slot, bus.count, bus.ask("m"), became), (True, 0, 1, [], []))
        bus.close(1.0)


if __name__ == "__main__":
    unittest.main()
