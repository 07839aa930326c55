"""A request's steps on a loop, and on a thread where they must block."""

from __future__ import annotations

import socket
import threading
import time
import unittest
from typing import Any, Callable, Optional, cast
from unittest import mock

from gateway.server.loop import Loop
from gateway.server.task import Task
from gateway.steps import ASIDE, Conversable, Event, Opened, Pause, Readable, Say, Steps, Turn, Writable
from gateway.threads import Threads
from gateway.upstream.connection import Connection
from gateway.workers import Job, Overloaded, WorkerPool
from tests.support import TIMEOUT_S, eventually


class Noted(Task, Job):
    """Notes how its steps have ended, and on which thread. It is its own job."""

    def __init__(self, loop: Loop, threads: Threads) -> None:
        Task.__init__(self, self, loop, threads)
        self.ended: list[tuple[Any, Optional[Exception], str]] = []

    def _done(self, value: Any, error: Optional[Exception]) -> None:
        self.ended.append((value, error, threading.current_thread().name))

    def run(self) -> bool:
        self.drive()
        return True

    def begin(self, steps: Steps[Any]) -> None:
        """Run steps, on the loop's thread."""
        self._steps = steps
        self._loop.soon(lambda events: self._run(steps.send, None))

    def fail(self, error: Exception) -> None:
        """End its wait for a place, on the loop's thread."""
        self._loop.soon(lambda events: self.throw(error))


class Conversation:
    """A conversation of these steps."""

    def __init__(self, steps: Callable[[], Steps[Any]]) -> None:
        self.converse = steps


def opened(steps: Callable[[], Steps[Any]]) -> Opened:
    return Opened(cast(Conversable, Conversation(steps)))


def thread_name() -> str:
    return threading.current_thread().name


class TaskTest(unittest.TestCase):
    epoll = True

    def setUp(self) -> None:
        if not self.epoll:
            without = mock.patch("gateway.server.loop.HAS_EPOLL", False)
            without.start()
            self.addCleanup(without.stop)
        self.errors: list[BaseException] = []
        self.loop = Loop("clients", self.errors.append)
        self.threads = Threads("aside", 2)
        self.threads.start()
        self.loop.start()
        self.addCleanup(self.assertEqual, self.errors, [])
        self.addCleanup(self.threads.close, TIMEOUT_S)
        self.addCleanup(self.loop.close, TIMEOUT_S)

    def pool(self, workers: int, queue_size: int = 9) -> WorkerPool:
        pool = WorkerPool(workers, queue_size, self.errors.append)
        pool.start()
        self.addCleanup(pool.close, TIMEOUT_S)
        return pool

    def connection(self) -> tuple[Connection, socket.socket]:
        ours, far = socket.socketpair()
        ours.setblocking(False)
        connection = Connection(ours)
        self.addCleanup(far.close)
        self.addCleanup(connection.close)
        return connection, far

    def task(self) -> Noted:
        return Noted(self.loop, self.threads)

    def run_steps(self, steps: Steps[Any]) -> tuple[Any, Optional[Exception], str]:
        task = self.task()
        task.begin(steps)
        return self.ended(task)

    def ended(self, task: Noted) -> tuple[Any, Optional[Exception], str]:
        return eventually(lambda: task.ended)[0]

    def test_steps_without_a_wait_end_on_the_loop(self) -> None:
        def steps(value: Any) -> Steps[Any]:
            if isinstance(value, Exception):
                raise value
            return value
            yield ASIDE

        self.assertEqual(self.run_steps(steps("value")), ("value", None, "clients"))
        error = ValueError()
        self.assertEqual(self.run_steps(steps(error)), (None, error, "clients"))

    def test_a_socket_is_waited_for_on_the_loop(self) -> None:
        connection, far = self.connection()
        waits = threading.Event()

        def steps() -> Steps[Any]:
            parts = []
            while len(parts) < 3:
                waits.set()
                parts.append(((yield from connection.received()), thread_name()))
            return parts

        task = self.task()
        task.begin(steps())
        for part in (b"a", b"b", b"c"):
            self.assertTrue(waits.wait(TIMEOUT_S))
            waits.clear()
            far.send(part)
        parts = [(part, "clients") for part in (b"a", b"b", b"c")]
        self.assertEqual(self.ended(task), (parts, None, "clients"))

    def test_a_socket_is_waited_for_until_then(self) -> None:
        connection, _ = self.connection()

        def steps() -> Steps[Any]:
            until_s = time.monotonic() + 0.01
            while (yield Readable(connection, until_s)):  # maybe in vain
                pass
            return "late"

        self.assertEqual(self.run_steps(steps()), ("late", None, "clients"))

    def test_a_wait_that_is_over_in_time_ends_no_later_one(self) -> None:
        connection, far = self.connection()

        def steps() -> Steps[Any]:
            began_s = time.monotonic()
            until_s = began_s + 0.03
            self.loop.later(0.005, lambda events: far.send(b"x") and None)
            came = yield from connection.received(until_s)
            yield Pause(0.06)
            return came, time.monotonic() - began_s >= 0.06

        self.assertEqual(self.run_steps(steps()), ((b"x", True), None, "clients"))

    def test_what_comes_meanwhile_does_not_cut_a_pause_short(self) -> None:
        connection, far = self.connection()

        def steps() -> Steps[Any]:
            yield Writable((connection,))
            began_s = time.monotonic()
            far.send(b"x")
            yield Pause(0.03)
            return time.monotonic() - began_s >= 0.03

        self.assertEqual(self.run_steps(steps()), (True, None, "clients"))

    def test_a_conversation_is_part_of_the_steps(self) -> None:
        connection, far = self.connection()

        def conversation() -> Steps[Any]:
            return (yield from connection.received())

        def broken() -> Steps[Any]:
            yield Pause(0.0)
            raise OSError("gone")

        def steps() -> Steps[Any]:
            far.send(b"x")
            got = yield opened(conversation)
            try:
                yield opened(broken)
            except OSError as error:
                return got, str(error), thread_name()

        self.assertEqual(self.run_steps(steps()), ((b"x", "gone", "clients"), None, "clients"))

    def test_what_it_cannot_wait_for_is_driven_on_a_thread_to_the_end(self) -> None:
        connection, far = self.connection()
        event = threading.Event()

        def conversation() -> Steps[Any]:
            yield ASIDE
            return thread_name()

        def steps() -> Steps[Any]:
            names = [thread_name()]
            threading.Timer(0.01, event.set).start()
            names.append(str((yield Event(event, TIMEOUT_S))))
            names.append(thread_name())
            far.send(b"x")
            yield Readable(connection)
            names.append(thread_name())
            return names

        names = ["clients", "True", "aside", "aside"]
        self.assertEqual(self.run_steps(steps()), (names, None, "clients"))

        def in_conversation() -> Steps[Any]:
            return (yield opened(conversation)), thread_name()

        self.assertEqual(self.run_steps(in_conversation()), (("aside", "aside"), None, "clients"))

    def test_what_fails_on_a_thread_is_told_on_the_loop(self) -> None:
        error = ValueError()

        def steps() -> Steps[Any]:
            yield ASIDE
            raise error

        self.assertEqual(self.run_steps(steps()), (None, error, "clients"))

    def test_what_is_said_to_the_client_is_said_on_the_loop_whoever_runs_the_steps(self) -> None:
        said: list[tuple[bytes, str]] = []
        task = Noted(self.loop, self.threads)
        task._say = lambda lines: said.append((lines, thread_name()))  # type: ignore[method-assign]

        def steps() -> Steps[str]:
            yield Say(b"a")
            yield ASIDE
            there = thread_name()
            yield Say(b"b")
            yield Say(b"c")
            return f"{there}, {thread_name()}"

        task.begin(steps())
        eventually(lambda: task.ended)
        self.assertEqual(said, [(b"a", "clients"), (b"b", "clients"), (b"c", "clients")])
        self.assertEqual(task.ended, [("aside, clients", None, "clients")])

    def test_with_a_place_it_goes_on_at_once_and_a_worker_drives_it(self) -> None:
        pool = self.pool(1)
        task = self.task()

        def steps() -> Steps[Any]:
            yield Turn(pool, task)
            before = thread_name()
            yield ASIDE
            return before, thread_name()

        task.begin(steps())
        self.assertEqual(self.ended(task), (("clients", "worker"), None, "clients"))
        self.assertTrue(task.has_place)
        self.assertEqual(pool.busy, 1)  # who has made the task gives it back

    def test_without_a_place_it_waits_and_a_worker_drives_it(self) -> None:
        pool, first, second = self.pool(1), self.task(), self.task()

        def steps(task: Noted) -> Steps[Any]:
            yield Turn(pool, task)
            return thread_name()

        first.begin(steps(first))
        self.assertEqual(self.ended(first)[0], "clients")
        second.begin(steps(second))
        eventually(lambda: pool.depth == 1)
        self.assertFalse(second.has_place or second.ended)
        pool.leave(first)
        self.assertEqual(self.ended(second), ("worker", None, "clients"))
        self.assertTrue(second.has_place)

    def test_a_turn_behind_what_a_thread_has_done_is_taken_on_the_loop(self) -> None:
        pool, task = self.pool(1), self.task()

        def steps() -> Steps[Any]:
            yield ASIDE
            before = thread_name()
            yield Turn(pool, task)
            return before, thread_name()

        task.begin(steps())
        self.assertEqual(self.ended(task), (("aside", "clients"), None, "clients"))

    def test_a_full_queue_is_told_where_the_steps_wait(self) -> None:
        pool, first, second = self.pool(1, queue_size=0), self.task(), self.task()

        def steps(task: Noted) -> Steps[Any]:
            try:
                yield Turn(pool, task)
            except Overloaded:
                return "overloaded"
            return "place"

        for task, told in ((first, "place"), (second, "overloaded")):
            task.begin(steps(task))
            self.assertEqual(self.ended(task), (told, None, "clients"))
        self.assertFalse(second.has_place)

    def test_a_wait_for_a_place_can_be_given_up(self) -> None:
        pool, first, second = self.pool(1), self.task(), self.task()

        def steps(task: Noted) -> Steps[Any]:
            yield Turn(pool, task)
            return "place"

        first.begin(steps(first))
        self.ended(first)
        second.begin(steps(second))
        eventually(lambda: pool.depth == 1)
        self.assertTrue(second.claim())
        pool.gave_up(second)
        error = ValueError()
        second.fail(error)
        self.assertEqual(self.ended(second), (None, error, "clients"))

    def test_a_socket_that_cannot_be_watched_is_told_where_the_steps_wait(self) -> None:
        watched, far = self.connection()
        other, _ = self.connection()
        unwatched, _ = self.connection()
        register = self.loop.add

        def add(descriptor: int) -> None:
            if descriptor == unwatched.sock.fileno():
                raise OSError("no more")
            register(descriptor)

        def steps() -> Steps[Any]:
            try:
                yield Writable((watched, other, unwatched))
            except Exception as error:
                told = type(error).__name__
            yield ASIDE
            far.send(b"x")  # the loop is told, and is not to run the steps as well
            for _ in range(2):
                turn = threading.Event()
                self.loop.soon(lambda events, turn=turn: turn.set())  # type: ignore[misc]
                turn.wait(TIMEOUT_S)
            return told

        task = self.task()
        with mock.patch.object(self.loop, "add", add):
            task.begin(steps())
            self.assertEqual(self.ended(task), ("EngineFailed", None, "clients"))
        self.assertEqual(len(task.ended), 1)


class TaskWithoutEpollTest(TaskTest):
    epoll = False


if __name__ == "__main__":
    unittest.main()
