"""The loop that waits for many sockets, and the threads for what must wait for one; without HTTP."""

from __future__ import annotations

import queue
import select
import socket
import threading
import time
import unittest
from typing import Callable, Optional
from unittest import mock

from gateway.server import loop as loop_module
from gateway.server.loop import HUNG_UP, SPARE_THREADS, Loop, Threads
from tests.support import TIMEOUT_S, SocketTest, eventually

REAL_START = threading.Thread.start


class Calls:
    """A target that notes each of its calls; with `take` it reads what is there."""

    def __init__(self, sock: Optional[socket.socket] = None) -> None:
        self._sock = sock
        self._calls: queue.Queue[tuple[int, str]] = queue.Queue()

    def __call__(self, events: int) -> None:
        if self._sock is not None:
            self._sock.recv(100)
        self._calls.put((events, threading.current_thread().name))

    def next(self) -> int:
        """Wait for the next call; returns its events."""
        return self._calls.get(timeout=TIMEOUT_S)[0]

    def next_thread(self) -> str:
        """Wait for the next call; returns the name of its thread."""
        return self._calls.get(timeout=TIMEOUT_S)[1]

    @property
    def count(self) -> int:
        """Calls that nobody has asked for."""
        return self._calls.qsize()


@unittest.skipUnless(hasattr(select, "epoll"), "needs epoll")
class LoopTest(SocketTest):
    def setUp(self) -> None:
        self.errors: queue.Queue[BaseException] = queue.Queue()
        self.loop = Loop(self.id(), self.errors.put)
        self.addCleanup(self.close)
        self._settler, self._settling = self.pair()
        self._settled = Calls(self._settling)
        self.loop.start()
        self.loop.watch(self._settling.fileno(), self._settled, each=False)

    def close(self) -> None:
        if not self.loop._closing:
            self.loop.close(TIMEOUT_S)

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """The far end and the watched end of a connection."""
        ends = socket.socketpair()
        for end in ends:
            self.addCleanup(end.close)
        return ends

    def settle(self) -> None:
        """Wait until the loop has seen to everything that has happened before."""
        for _ in range(2):  # the first may be reported in one go with what came before it
            self._settler.send(b"x")
            self._settled.next()

    def on_loop(self, job: Callable[[], None]) -> None:
        """Run `job` on the loop's thread and wait for its end."""
        far, near = self.pair()
        done = threading.Event()

        def run(events: int) -> None:
            near.recv(1)
            self.loop.unwatch(near.fileno())
            try:
                job()
            finally:
                done.set()

        self.loop.watch(near.fileno(), run)
        far.send(b"x")
        self.assertTrue(done.wait(TIMEOUT_S))

    # --- sockets

    def test_each_arrival_calls_the_target_once_though_nothing_is_read(self) -> None:
        far, near = self.pair()
        calls = Calls()
        self.loop.watch(near.fileno(), calls)
        for _ in range(3):
            far.send(b"x")
            self.assertEqual(calls.next(), select.EPOLLIN)
            self.settle()
            self.assertEqual(calls.count, 0)
        self.assertEqual(near.recv(100), b"xxx")

    def test_targets_are_called_on_the_loop_s_thread(self) -> None:
        far, near = self.pair()
        calls = Calls()
        self.loop.watch(near.fileno(), calls)
        far.send(b"x")
        self.assertEqual(calls.next_thread(), self.id())
        self.on_loop(lambda: self.assertEqual(self.loop.thread_id, threading.get_ident()))
        self.assertNotEqual(self.loop.thread_id, threading.get_ident())
        self.assertTrue(self.errors.empty())

    def test_what_had_arrived_before_is_reported_too(self) -> None:
        far, near = self.pair()
        far.send(b"x")
        calls = Calls()
        self.loop.watch(near.fileno(), calls)
        self.assertEqual(calls.next(), select.EPOLLIN)

    def test_an_end_is_told_from_an_arrival(self) -> None:
        far, near = self.pair()
        calls = Calls()
        self.loop.watch(near.fileno(), calls)
        far.send(b"x")
        self.assertFalse(calls.next() & HUNG_UP)
        far.shutdown(socket.SHUT_WR)
        self.assertTrue(calls.next() & HUNG_UP)

    def test_without_each_the_target_is_called_until_all_is_taken(self) -> None:
        far, near = self.pair()
        far.send(b"x" * 250)
        calls = Calls(near)  # a hundred bytes each time
        self.loop.watch(near.fileno(), calls, each=False)
        for _ in range(3):
            calls.next()
        self.settle()
        self.assertEqual(calls.count, 0)

    def test_another_target_gets_what_arrives_from_then_on(self) -> None:
        far, near = self.pair()
        first, second = Calls(), Calls()
        self.loop.watch(near.fileno(), first)
        far.send(b"x")
        first.next()
        self.loop.retarget(near.fileno(), second)
        self.settle()
        self.assertEqual((first.count, second.count), (0, 0))
        far.send(b"x")
        second.next()
        self.settle()
        self.assertEqual((first.count, second.count), (0, 0))

    def test_look_reports_what_was_left_and_nothing_where_nothing_was(self) -> None:
        far, near = self.pair()
        calls = Calls()
        self.loop.watch(near.fileno(), calls)
        far.send(b"x")
        calls.next()
        self.loop.look(near.fileno())
        calls.next()
        near.recv(100)
        self.loop.look(near.fileno())
        self.settle()
        self.assertEqual(calls.count, 0)
        far.send(b"x")
        calls.next()

    def test_an_unwatched_socket_is_silent_and_can_be_watched_again(self) -> None:
        far, near = self.pair()
        calls = Calls()
        self.loop.watch(near.fileno(), calls)
        self.loop.unwatch(near.fileno())
        self.loop.unwatch(near.fileno())
        far.send(b"x")
        self.settle()
        self.assertEqual(calls.count, 0)
        self.loop.watch(near.fileno(), calls)
        calls.next()

    def test_a_forgotten_socket_is_silent_and_its_number_free(self) -> None:
        far, near = self.pair()
        calls, others = Calls(), Calls()
        number = near.fileno()
        self.loop.watch(number, calls)
        self.loop.forget(number)
        self.loop.forget(number)
        far.send(b"x")
        self.settle()
        self.assertEqual(calls.count, 0)
        near.close()
        other_far, other = self.pair()
        if other.fileno() != number:
            other_far, other = other, other_far
        self.assertEqual(other.fileno(), number)
        self.loop.watch(number, others)
        other_far.send(b"x")
        others.next()
        self.assertEqual(calls.count, 0)

    def test_a_hundred_sockets_are_each_reported_to_their_own_target(self) -> None:
        pairs = [self.pair() for _ in range(100)]
        calls = [Calls() for _ in pairs]
        for (_, near), own in zip(pairs, calls):
            self.loop.watch(near.fileno(), own)
        for far, _ in pairs[::3]:
            far.send(b"x")
        for own in calls[::3]:
            own.next()
        self.settle()
        self.assertEqual(sum(own.count for own in calls), 0)

    # --- turns

    def keep_waiting(self) -> None:
        """The loop wakes up for what it has to do alone, not just because it has waited long enough."""
        patcher = mock.patch.object(loop_module, "WAIT_MAX_S", 2 * TIMEOUT_S)
        patcher.start()
        self.addCleanup(patcher.stop)
        self.settle()

    def test_again_comes_after_what_has_its_turn_now(self) -> None:
        self.keep_waiting()
        order: queue.Queue[str] = queue.Queue()

        def first() -> None:
            self.loop.again(lambda events: order.put(f"again {events}"), 0)
            self.loop.again(lambda events: self.loop.again(lambda events: order.put("again, twice"), 0), 0)
            order.put("first")

        self.on_loop(first)
        self.assertEqual([order.get(timeout=TIMEOUT_S) for _ in range(3)], ["first", "again 0", "again, twice"])
        self.settle()
        self.assertTrue(order.empty())

    def test_later_is_not_before_its_time_and_in_the_order_of_the_times(self) -> None:
        self.keep_waiting()
        done: queue.Queue[tuple[str, float]] = queue.Queue()
        began: list[float] = []

        def put(name: str) -> Callable[[int], None]:
            return lambda events: done.put((f"{name} {events}", time.monotonic()))

        def plan() -> None:
            began.append(time.monotonic())
            self.loop.later(0.06, put("last"))
            self.loop.later(0.02, put("second"))
            self.loop.later(0.0, put("first"))

        self.on_loop(plan)
        for name, delay_s in (("first 0", 0.0), ("second 0", 0.02), ("last 0", 0.06)):
            seen, at_s = done.get(timeout=TIMEOUT_S)
            self.assertEqual(seen, name)
            self.assertGreaterEqual(at_s - began[0], delay_s)

    def test_the_same_target_can_come_later_twice_at_one_time(self) -> None:
        calls = Calls()

        def plan() -> None:
            with mock.patch.object(time, "monotonic", return_value=time.monotonic()):
                self.loop.later(0.0, calls)
                self.loop.later(0.0, calls)

        self.on_loop(plan)
        calls.next()
        calls.next()
        self.assertTrue(self.errors.empty())

    # --- faults and the end

    def test_a_target_that_raises_is_reported_and_the_loop_goes_on(self) -> None:
        far, near = self.pair()

        def broken(events: int) -> None:
            raise RuntimeError(f"broken {events}")

        self.loop.watch(near.fileno(), broken)
        for _ in range(2):
            far.send(b"x")
            self.assertEqual(str(self.errors.get(timeout=TIMEOUT_S)), "broken 1")

        def plan() -> None:
            self.loop.again(broken, 0)
            self.loop.later(0.0, broken)

        self.on_loop(plan)
        for _ in range(2):
            self.assertEqual(str(self.errors.get(timeout=TIMEOUT_S)), "broken 0")
        self.settle()
        self.assertTrue(self.errors.empty())

    def test_what_threads_post_is_called_soon_on_the_loop_s_thread_each_in_order_though_one_raises(self) -> None:
        seen: queue.Queue[tuple[int, int, str]] = queue.Queue()

        def post(name: int) -> None:
            for number in range(200):

                def call(events: int, name: int = name, number: int = number) -> None:
                    seen.put((name, number, threading.current_thread().name))
                    if number == 100:
                        raise ValueError(str(name))

                self.assertTrue(self.loop.soon(call))

        threads = [threading.Thread(target=post, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        calls = [seen.get(timeout=TIMEOUT_S) for _ in range(800)]
        for thread in threads:
            thread.join(TIMEOUT_S)
        self.assertEqual({thread for _, _, thread in calls}, {self.id()})
        for name in range(4):
            self.assertEqual([number for one, number, _ in calls if one == name], list(range(200)))
        self.assertEqual({str(self.errors.get(timeout=TIMEOUT_S)) for _ in range(4)}, set("0123"))

    def test_who_posts_to_a_loop_that_has_ended_is_told(self) -> None:
        self.loop.close(TIMEOUT_S)
        self.assertFalse(self.loop.soon(Calls()))

    def test_close_ends_the_thread_and_gives_the_descriptors_back(self) -> None:
        epoll, wakers = self.loop._epoll, (self.loop._wakeup.receiver, self.loop._wakeup._sender)
        self.settle()
        self.loop.close(TIMEOUT_S)
        self.assertNotIn(self.id(), [thread.name for thread in threading.enumerate()])
        self.assertTrue(epoll.closed)
        self.assertEqual([sock.fileno() for sock in wakers], [-1, -1])

    def test_after_each_turn_something_is_called_that_may_raise(self) -> None:
        turns: queue.Queue[str] = queue.Queue()
        far, near = self.pair()

        def after_turn() -> None:
            turns.put(threading.current_thread().name)
            raise ValueError("after a turn")

        other = Loop("other", self.errors.put, after_turn)
        self.addCleanup(other.close, TIMEOUT_S)
        target = Calls(near)
        other.watch(near.fileno(), target)
        other.start()
        for _ in range(2):
            far.send(b"x")
            target.next()
            self.assertEqual(turns.get(timeout=TIMEOUT_S), "other")
            self.assertEqual(str(self.errors.get(timeout=TIMEOUT_S)), "after a turn")

    def test_a_loop_that_was_never_started_can_be_closed(self) -> None:
        other = Loop("never", self.errors.put)
        other.close(TIMEOUT_S)
        self.assertTrue(other._epoll.closed)


class Held:
    """Jobs that wait until they are let go; notes the thread of each."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.threads: queue.Queue[threading.Thread] = queue.Queue()

    def __call__(self) -> None:
        self.threads.put(threading.current_thread())
        if not self.go.wait(TIMEOUT_S):
            raise AssertionError("never let go")

    def started(self, count: int) -> list[threading.Thread]:
        """Wait until so many jobs have begun; returns their threads."""
        return [self.threads.get(timeout=TIMEOUT_S) for _ in range(count)]


class ThreadsTest(unittest.TestCase):
    def setUp(self) -> None:
        patcher = mock.patch.object(loop_module, "IDLE_S", 0.05)  # so that none is left behind but one
        patcher.start()
        self.addCleanup(patcher.stop)
        self.threads = Threads(self.id())

    def live(self) -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == self.id()]

    def hold(self, count: int) -> Held:
        """So many jobs, running."""
        held = Held()
        self.addCleanup(held.go.set)
        for _ in range(count):
            self.threads.run(held)
        return held

    def keep_idle_threads(self) -> None:
        """Idle threads stay for as long as this test runs."""
        patcher = mock.patch.object(loop_module, "IDLE_S", 2 * TIMEOUT_S)
        patcher.start()
        self.addCleanup(patcher.stop)

    def test_a_job_runs_at_once_however_many_are_running(self) -> None:
        self.threads.start()
        held = self.hold(30)
        self.assertEqual(len(set(held.started(30))), 30)

    def test_a_thread_that_is_idle_takes_the_next_job(self) -> None:
        self.keep_idle_threads()
        self.threads.start()
        eventually(lambda: self.threads._idle == 1)
        (thread,) = self.live()
        for _ in range(5):
            held = self.hold(1)
            self.assertEqual(held.started(1), [thread])
            held.go.set()
            eventually(lambda: self.threads._idle == 1)
        held = self.hold(2)  # one more than are idle
        self.assertIn(thread, held.started(2))
        self.assertEqual(len(self.live()), 2)

    def test_no_more_than_the_spare_threads_stay(self) -> None:
        self.keep_idle_threads()
        self.threads.start()
        held = self.hold(SPARE_THREADS + 14)
        held.started(SPARE_THREADS + 14)
        held.go.set()
        eventually(lambda: len(self.live()) == SPARE_THREADS)
        eventually(lambda: self.threads._idle == SPARE_THREADS)
        again = self.hold(SPARE_THREADS + 1)
        self.assertEqual(len(set(again.started(SPARE_THREADS + 1))), SPARE_THREADS + 1)

    def test_idle_threads_end_by_and_by_but_for_one(self) -> None:
        self.threads.start()
        held = self.hold(10)
        held.started(10)
        held.go.set()
        eventually(lambda: len(self.live()) == 1)
        self.assertEqual(self.hold(1).started(1), self.live())

    def test_without_another_thread_the_next_that_is_free_runs_every_job(self) -> None:
        self.keep_idle_threads()
        self.threads.start()
        eventually(lambda: self.threads._idle == 1)
        held = self.hold(1)
        (only,) = held.started(1)
        ran: queue.Queue[tuple[int, threading.Thread]] = queue.Queue()

        def job(number: int) -> Callable[[], None]:
            return lambda: ran.put((number, threading.current_thread()))

        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            for number in range(20):
                self.threads.run(job(number))
            self.assertTrue(ran.empty())
            held.go.set()
            for number in range(20):
                self.assertEqual(ran.get(timeout=TIMEOUT_S), (number, only))
        eventually(lambda: self.threads._idle == 1)
        again = self.hold(3)  # nothing has been lost count of
        self.assertEqual(len(set(again.started(3))), 3)
        self.assertEqual(len(self.live()), 3)

    def test_jobs_of_many_callers_all_run_whether_threads_can_be_started_or_not(self) -> None:
        self.threads.start()
        turn = iter(range(10_000))

        def now_and_then(thread: threading.Thread) -> None:
            if thread.name == self.id() and next(turn) % 2:
                raise RuntimeError("can't start new thread")
            REAL_START(thread)

        ran: queue.Queue[int] = queue.Queue()

        def call() -> None:
            for number in range(100):
                self.threads.run(lambda: ran.put(number))  # noqa: B023

        callers = [threading.Thread(target=call, name="caller", daemon=True) for _ in range(4)]
        with mock.patch.object(threading.Thread, "start", now_and_then):
            for caller in callers:
                caller.start()
            for _ in range(400):
                ran.get(timeout=TIMEOUT_S)
        for caller in callers:
            caller.join(TIMEOUT_S)
        self.assertTrue(ran.empty())

    def test_who_gets_not_even_a_first_thread_is_told(self) -> None:
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            self.assertRaises(RuntimeError, self.threads.start)


if __name__ == "__main__":
    unittest.main()
