"""What a step may wait for, and how steps are driven on a thread."""

from __future__ import annotations

import socket
import threading
import time
import unittest
from typing import Any, Optional, cast

from gateway.steps import ASIDE, Conversable, Event, Opened, Pause, Places, Readable, Steps, Turn, Wait, Writable, drive
from gateway.upstream.connection import Connection
from tests.support import TIMEOUT_S


class Conversation:
    """Is opened, by `open`, with what it has been given."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def open(self) -> Any:
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer


def opened(answer: Any) -> Opened:
    return Opened(cast(Conversable, Conversation(answer)))


class DriveTest(unittest.TestCase):
    def test_it_gives_what_the_steps_give(self) -> None:
        def steps() -> Steps[str]:
            first = yield opened(1)
            second = yield opened(2)
            return f"{first} {second}"

        self.assertEqual(drive(steps()), "1 2")

    def test_steps_without_a_wait(self) -> None:
        def steps(value: Any) -> Steps[Any]:
            if value:
                raise ValueError(value)
            return "none"
            yield ASIDE

        self.assertEqual(drive(steps("")), "none")
        self.assertRaisesRegex(ValueError, "wrong", drive, steps("wrong"))

    def test_what_a_wait_raises_is_raised_where_the_steps_wait(self) -> None:
        for raised in (OSError("gone"), KeyboardInterrupt()):
            seen: list[BaseException] = []

            def steps(raised: BaseException = raised, seen: list[BaseException] = seen) -> Steps[str]:
                try:
                    yield opened(raised)
                except BaseException as error:
                    seen.append(error)
                return (yield opened("went on"))

            self.assertEqual(drive(steps()), "went on")
            self.assertEqual(seen, [raised])

    def test_what_the_steps_do_not_catch_is_raised_and_their_finally_has_run(self) -> None:
        given_back: list[str] = []

        def inner() -> Steps[None]:
            try:
                yield opened(OSError("gone"))
            finally:
                given_back.append("inner")

        def outer() -> Steps[None]:
            try:
                yield from inner()
            finally:
                given_back.append("outer")

        self.assertRaisesRegex(OSError, "gone", drive, outer())
        self.assertEqual(given_back, ["inner", "outer"])


class WaitTest(unittest.TestCase):
    def setUp(self) -> None:
        ours, self.far = socket.socketpair()
        ours.setblocking(False)
        self.connection = Connection(ours)
        self.addCleanup(self.far.close)
        self.addCleanup(self.connection.close)

    def blocked(self, wait: Wait, behind: Optional[threading.Thread] = None) -> Any:
        if behind is not None:
            behind.start()
            self.addCleanup(behind.join, TIMEOUT_S)
        return wait.block()

    def fill(self) -> None:
        try:
            while True:
                self.connection.sock.send(b"x" * 65536)
        except BlockingIOError:
            pass

    def test_readable_when_something_comes_or_the_end(self) -> None:
        self.assertTrue(self.blocked(Readable(self.connection), threading.Thread(target=self.far.send, args=(b"x",))))
        self.assertEqual(self.connection.sock.recv(9), b"x")
        self.assertTrue(self.blocked(Readable(self.connection), threading.Thread(target=self.far.close)))

    def test_readable_not_in_time(self) -> None:
        self.assertFalse(self.blocked(Readable(self.connection, time.monotonic() + 0.01)))
        self.assertFalse(self.blocked(Readable(self.connection, time.monotonic() - 1.0)))
        self.far.send(b"x")
        self.assertTrue(self.blocked(Readable(self.connection, time.monotonic() - 1.0)))  # it had come

    def test_writable_when_one_of_them_is(self) -> None:
        self.assertTrue(self.blocked(Writable((self.connection,))))
        self.fill()
        self.assertFalse(self.blocked(Writable((self.connection,), time.monotonic() + 0.01)))
        ours, far = socket.socketpair()
        other = Connection(ours)
        self.addCleanup(far.close)
        self.addCleanup(other.close)
        self.assertTrue(self.blocked(Writable((self.connection, other))))

    def test_who_blocks_watches_the_socket_alone(self) -> None:
        for wait in (Readable, lambda connection, until_s: Writable((connection,), until_s)):
            unwatched: list[int] = []
            self.connection.watched_by(unwatched.append)
            watched = self.connection.descriptor
            wait(self.connection, time.monotonic()).block()
            self.assertEqual((unwatched, self.connection.descriptor), ([watched], -1))

    def test_an_event_that_is_set_or_not_in_time(self) -> None:
        event = threading.Event()
        self.assertFalse(self.blocked(Event(event, 0.01)))
        self.assertTrue(self.blocked(Event(event, TIMEOUT_S), threading.Thread(target=event.set)))

    def test_a_pause_takes_its_time(self) -> None:
        began_s = time.monotonic()
        self.assertIsNone(self.blocked(Pause(0.02)))
        self.assertGreaterEqual(time.monotonic() - began_s, 0.02)

    def test_who_may_block_has_its_turn_and_needs_no_other_thread(self) -> None:
        self.assertIsNone(self.blocked(ASIDE))
        self.assertIsNone(self.blocked(Turn(cast(Places, None), None)))


if __name__ == "__main__":
    unittest.main()
