"""The loop that waits for many sockets, over whatever the system has for that; without HTTP."""

from __future__ import annotations

import queue
import select
import socket
import threading
import time
import unittest
from pathlib import Path
from typing import Callable, Optional
from unittest import mock

from gateway.server import loop as loop_module
from gateway.server.loop import HUNG_UP, TOGETHER, Loop
from tests.support import TIMEOUT_S, SocketTest, eventually

DESCRIPTORS = Path("/proc/self/fd")


class Calls:
    """A target that notes each of its calls; with `sock` it reads what is there."""

    def __init__(self, sock: Optional[socket.socket] = None) -> None:
        self._sock = sock
        self._calls: queue.Queue[tuple[int, str]] = queue.Queue()

    def __call__(self, events: int) -> None:
        if self._sock is not None:
            self._sock.recv(100)
        self._calls.put((events, threading.current_thread().name))

    def next(self) -> tuple[int, str]:
        """Wait for the next call; its events, and the name of its thread."""
        return self._calls.get(timeout=TIMEOUT_S)

    @property
    def count(self) -> int:
        """Calls that nobody has asked for."""
        return self._calls.qsize()


@unittest.skipUnless(hasattr(select, "epoll"), "needs epoll")
class LoopTest(SocketTest):
    """Over epoll; `WithoutEpoll` runs the same over selectors."""

    has_epoll = True

    def setUp(self) -> None:
        self.enter(mock.patch.object(loop_module, "HAS_EPOLL", self.has_epoll))
        self.errors: queue.Queue[BaseException] = queue.Queue()
        self.loop = Loop(self.id(), self.errors.put)
        self.addCleanup(self.close)
        self.loop.start()

    def close(self) -> None:
        if not self.loop._closing:
            self.loop.close(TIMEOUT_S)

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """The far end and the watched end of a connection; neither blocks."""
        ends = socket.socketpair()
        for end in ends:
            end.setblocking(False)
            self.addCleanup(end.close)
        return ends

    def on_loop(self, job: Callable[[], object]) -> None:
        """Run `job` on the loop's thread and wait for its end."""
        done = threading.Event()

        def run(events: int) -> None:
            try:
                job()
            finally:
                done.set()

        self.loop.soon(run)
        self.assertTrue(done.wait(TIMEOUT_S))

    def settle(self) -> None:
        """Wait until the loop has seen to everything that has happened before."""
        for _ in range(3):  # the first may be seen in one go with what came before it
            self.on_loop(lambda: None)

    def add(self, sock: socket.socket, target: Calls, writing: bool = False) -> None:
        def run() -> None:
            self.loop.add(sock.fileno())
            self.loop.wait_for(sock.fileno(), target, writing)

        self.on_loop(run)

    def wait_for(self, sock: socket.socket, target: Calls, writing: bool = False) -> None:
        self.on_loop(lambda: self.loop.wait_for(sock.fileno(), target, writing))

    def drained(self, calls: Calls) -> None:
        """Forget what has been told so far, in vain as well."""
        self.settle()
        while calls.count:
            calls.next()

    # --- sockets that are waited for

    def test_each_arrival_is_told_on_the_loop_s_thread(self) -> None:
        far, near = self.pair()
        calls = Calls()
        self.add(near, calls)
        self.drained(calls)
        for _ in range(3):
            self.wait_for(near, calls)
            far.send(b"x")
            self.assertEqual(calls.next()[1], self.id())
            self.assertEqual(near.recv(100), b"x")

    def test_what_had_come_before_is_told(self) -> None:
        far, near = self.pair()
        far.send(b"x")
        calls = Calls()
        self.add(near, calls)
        calls.next()

    def test_what_comes_between_the_try_and_the_wait_is_told(self) -> None:
        far, near = self.pair()
        calls = Calls()
        self.add(near, calls)
        self.drained(calls)

        def run() -> None:
            with self.assertRaises(BlockingIOError):
                near.recv(1)
            far.send(b"x")
            self.loop.wait_for(near.fileno(), calls)

        self.on_loop(run)
        calls.next()

    def test_an_end_is_told_from_an_arrival_where_there_is_epoll(self) -> None:
        far, near = self.pair()
        calls = Calls()
        self.add(near, calls)
        self.drained(calls)
        self.wait_for(near, calls)
        far.close()
        events, _ = calls.next()
        self.assertEqual(bool(events & HUNG_UP), self.has_epoll)

    def test_room_is_told_when_there_is_some(self) -> None:
        far, near = self.pair()
        calls = Calls()
        self.add(near, calls, writing=True)
        calls.next()  # there is
        with self.assertRaises(BlockingIOError):
            while True:
                near.send(b"x" * 65536)
        self.drained(calls)
        self.wait_for(near, calls, writing=True)
        self.settle()
        self.assertEqual(calls.count, 0)
        while not calls.count:
            try:
                far.recv(1 << 20)
            except BlockingIOError:
                self.settle()
        calls.next()

    def test_another_target_gets_what_comes_from_then_on(self) -> None:
        far, near = self.pair()
        first, second = Calls(), Calls()
        self.add(near, first)
        self.drained(first)
        self.wait_for(near, second)
        far.send(b"x")
        second.next()
        self.assertEqual(first.count, 0)

    def test_a_forgotten_socket_is_silent_and_can_be_waited_for_again(self) -> None:
        far, near = self.pair()
        calls = Calls()
        self.add(near, calls)
        self.drained(calls)
        self.on_loop(lambda: self.loop.forget(near.fileno()))
        far.send(b"x")
        self.settle()
        self.assertEqual(calls.count, 0)
        near.recv(1)
        self.wait_for(near, calls)
        far.send(b"x")
        calls.next()

    def test_a_closed_socket_s_number_is_the_next_one_s(self) -> None:
        for _ in range(5):
            far, near = self.pair()
            calls = Calls()
            self.add(near, calls)
            self.drained(calls)
            self.wait_for(near, calls)

            def end(near: socket.socket = near) -> None:
                self.loop.forget(near.fileno())
                near.close()

            self.on_loop(end)
            far.close()

    def test_a_hundred_sockets_are_each_reported_to_their_own_target(self) -> None:
        watched = []
        for _ in range(100):
            far, near = self.pair()
            calls = Calls()
            self.add(near, calls)
            watched.append((far, near, calls))
        for _, near, calls in watched:
            self.drained(calls)
            self.wait_for(near, calls)
        for far, _, calls in watched[::2]:
            far.send(b"x")
            calls.next()
        self.assertEqual(sum(calls.count for _, _, calls in watched[1::2]), 0)

    # --- sockets that are watched

    def test_a_watched_socket_is_told_of_until_all_is_taken(self) -> None:
        far, near = self.pair()
        calls = Calls(near)
        self.on_loop(lambda: self.loop.watch(near.fileno(), calls))
        far.send(b"x" * 250)
        for _ in range(3):
            calls.next()
        self.settle()
        self.assertEqual(calls.count, 0)

    def test_a_watched_socket_is_told_of_while_it_takes_something(self) -> None:
        _, near = self.pair()
        calls = Calls()
        self.on_loop(lambda: self.loop.watch(near.fileno(), calls, writing=True))
        for _ in range(3):
            calls.next()
        self.on_loop(lambda: self.loop.unwatch(near.fileno()))

    def test_an_unwatched_socket_is_silent_and_can_be_watched_again(self) -> None:
        far, near = self.pair()
        calls = Calls(near)
        for _ in range(2):
            self.on_loop(lambda: self.loop.watch(near.fileno(), calls))
            far.send(b"x")
            calls.next()
            self.loop.unwatch(near.fileno())  # from any thread
            far.send(b"x")
            self.settle()
            self.assertEqual(calls.count, 0)
            near.recv(1)
        self.loop.unwatch(near.fileno())  # again, in vain

    # --- calls without a socket

    def test_again_comes_after_what_has_its_turn_now(self) -> None:
        order: list[str] = []
        done = threading.Event()

        def first(events: int) -> None:
            self.loop.again(lambda events: (order.append(f"again {events}"), done.set()), 7)
            order.append("first")

        def both() -> None:  # in one turn
            self.loop.soon(first)
            self.loop.soon(lambda events: order.append("second"))

        self.on_loop(both)
        self.assertTrue(done.wait(TIMEOUT_S))
        self.assertEqual(order, ["first", "second", "again 7"])

    def test_later_comes_in_the_order_of_the_times(self) -> None:
        order: queue.Queue[int] = queue.Queue()

        def arrange() -> None:
            for number in (3, 1, 2):
                self.loop.later(number * 0.01, lambda events, number=number: order.put(number))  # type: ignore[misc]

        self.on_loop(arrange)
        self.assertEqual([order.get(timeout=TIMEOUT_S) for _ in range(3)], [1, 2, 3])

    def test_the_same_target_can_come_later_twice_at_one_time(self) -> None:
        calls = Calls()
        with mock.patch("gateway.server.loop.time.monotonic", return_value=0.0):
            self.loop._later.clear()
            for _ in range(2):
                self.loop.later(0.0, calls)
        self.settle()
        for _ in range(2):
            calls.next()

    def test_a_target_that_raises_is_reported_and_the_loop_goes_on(self) -> None:
        def fail(events: int) -> None:
            raise ZeroDivisionError

        def arrange() -> None:
            self.loop.again(fail, 0)
            self.loop.later(0.0, fail)

        self.on_loop(arrange)
        self.loop.soon(fail)
        for _ in range(3):
            self.assertIsInstance(self.errors.get(timeout=TIMEOUT_S), ZeroDivisionError)
        self.settle()

    def test_each_that_is_posted_while_the_loop_ends_is_called_once(self) -> None:
        for _ in range(20):
            loop = Loop("ending", self.errors.put)
            loop.start()
            calls: queue.Queue[int] = queue.Queue()

            def post(loop: Loop = loop, calls: queue.Queue[int] = calls) -> None:
                for number in range(100):
                    loop.soon(lambda events, number=number: calls.put(number))  # type: ignore[misc]

            poster = threading.Thread(target=post, name="poster", daemon=True)
            poster.start()
            loop.close(TIMEOUT_S)
            poster.join(TIMEOUT_S)
            self.assertEqual(sorted(calls.get(timeout=TIMEOUT_S) for _ in range(100)), list(range(100)))
            self.assertTrue(calls.empty())

    # --- its turns and its end

    def test_after_each_turn_something_is_called_that_may_raise(self) -> None:
        turns = threading.Semaphore(0)

        def after() -> None:
            turns.release()
            raise ZeroDivisionError

        loop = Loop("turns", self.errors.put, after)
        self.addCleanup(loop.close, TIMEOUT_S)
        loop.start()
        for _ in range(3):
            loop.soon(lambda events: None)
            self.assertTrue(turns.acquire(timeout=TIMEOUT_S))
            self.assertIsInstance(self.errors.get(timeout=TIMEOUT_S), ZeroDivisionError)

    def test_turns_that_come_too_early_wait_unless_enough_is_ready(self) -> None:
        now_s, slept = [0.0], []
        ready: list[list[tuple[int, int]]] = []
        loop = Loop("turns", self.errors.put, turn_s=1.0, clock=lambda: now_s[0])
        self.addCleanup(loop.close, TIMEOUT_S)
        poller, loop._poller = loop._poller, mock.Mock()
        self.addCleanup(poller.close)
        loop._poller.poll.side_effect = lambda timeout_s, most: ready.pop(0)
        with mock.patch("gateway.server.loop.time", mock.Mock(wraps=time, sleep=slept.append)):
            now_s[0] = 0.25
            ready[:] = [[(1, 1)], [(1, 1), (2, 1)]]
            self.assertEqual(len(loop._wait(9.0, 100)), 2)
            self.assertEqual(slept, [0.75])
            ready[:] = [[(number, 1) for number in range(TOGETHER)]]
            self.assertEqual(len(loop._wait(9.0, 100)), TOGETHER)
            now_s[0] = 5.0
            ready[:] = [[(1, 1)]]
            self.assertEqual(len(loop._wait(9.0, 100)), 1)
            self.assertEqual((slept, loop.began_s), ([0.75], 5.0))

    def test_close_ends_the_thread_and_gives_the_descriptors_back(self) -> None:
        self.loop.close(TIMEOUT_S)
        self.assertFalse(self.loop._thread.is_alive())
        self.assertEqual(self.loop._wakeup.receiver.fileno(), -1)
        self.loop.unwatch(0)  # nothing happens

    @unittest.skipUnless(DESCRIPTORS.is_dir(), "counts descriptors in /proc")
    def test_a_loop_that_was_never_started_can_be_closed(self) -> None:
        before = len(list(DESCRIPTORS.iterdir()))
        loop = Loop("never", self.errors.put)
        loop.close(TIMEOUT_S)
        eventually(lambda: len(list(DESCRIPTORS.iterdir())) == before)


class WithoutEpoll(LoopTest):
    has_epoll = False


if __name__ == "__main__":
    unittest.main()
