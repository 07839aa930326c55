"""Names to addresses: what is kept for how long, who waits for what, and what a look-up that hangs can hold up."""

from __future__ import annotations

import socket
import threading
import time
import unittest
from typing import Callable, Optional
from unittest import mock

from gateway.steps import drive
from gateway.upstream import resolver as module
from gateway.upstream.resolver import RETRY_S, Address, Resolver, in_order
from tests.naming import Names, entry, resolver_threads
from tests.support import TIMEOUT_S, eventually

TTL_S = 30.0


def far() -> float:
    return time.monotonic() + TIMEOUT_S


def v4(address: str) -> Address:
    return (socket.AF_INET, (address, 0))


class ResolverTest(unittest.TestCase):
    """A resolver whose time and network the test plays."""

    def setUp(self) -> None:
        self.now_s = 1000.0
        self.names = Names(a=["10.0.0.1"])
        self.addCleanup(self.names.release)

    def resolver(self, ttl_s: float = TTL_S) -> Resolver:
        resolver = Resolver(ttl_s, getaddrinfo=self.names, clock=lambda: self.now_s)
        self.addCleanup(lambda: eventually(lambda: not resolver_threads()))
        self.addCleanup(resolver.close)
        self.addCleanup(self.names.release)
        return resolver

    def ask(self, resolver: Resolver, host: str = "a") -> list[str]:
        return [address[0] for _, address in drive(resolver.addresses(host, far()))]

    def in_thread(self, run: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=run, name="asking")
        thread.start()
        self.addCleanup(thread.join, TIMEOUT_S)
        return thread

    def settle(self) -> None:
        """Wait until nothing is looked up."""
        eventually(lambda: not resolver_threads())

    # --- kept ---

    def test_an_answer_is_kept_for_its_time_and_renewed_while_it_is_used(self) -> None:
        resolver = self.resolver()
        self.assertEqual(self.ask(resolver), ["10.0.0.1"])
        self.names.answers["a"] = ["10.0.0.2"]
        self.now_s += TTL_S * 0.7
        self.assertEqual(self.ask(resolver), ["10.0.0.1"])
        self.assertEqual(self.names.asked, ["a"])
        gate = self.names.hold("a")
        self.now_s += TTL_S * 0.2
        self.assertEqual(self.ask(resolver), ["10.0.0.1"])  # which asks anew, and does not wait for it
        self.names.wait_for("a", 2)
        self.now_s += TTL_S * 0.5
        self.assertEqual(self.ask(resolver), ["10.0.0.1"])
        gate.set()
        eventually(lambda: self.ask(resolver) == ["10.0.0.2"])
        self.assertEqual(len(self.names.asked), 2)

    def test_what_is_known_is_told_without_waiting_until_it_is_too_old(self) -> None:
        resolver = self.resolver()
        self.assertIsNone(resolver.known("a"))
        self.ask(resolver)
        self.assertEqual(resolver.known("a"), (v4("10.0.0.1"),))
        self.now_s += TTL_S
        self.assertIsNone(resolver.known("a"))
        self.assertEqual(self.names.asked, ["a"])

    def test_the_last_good_answer_survives_failures_which_are_repeated_after_a_pause(self) -> None:
        resolver = self.resolver()
        self.ask(resolver)
        self.names.answers["a"] = socket.gaierror(socket.EAI_AGAIN, "try again")
        self.now_s += 10 * TTL_S
        for times in range(2, 5):
            self.assertEqual(self.ask(resolver), ["10.0.0.1"])
            self.names.wait_for("a", times)
            self.settle()
            for _ in range(3):
                self.assertEqual(self.ask(resolver), ["10.0.0.1"])
            self.settle()
            self.assertEqual(len(self.names.asked), times)
            self.now_s += RETRY_S
        self.names.answers["a"] = ["10.0.0.9"]
        eventually(lambda: self.ask(resolver) == ["10.0.0.9"])

    def test_a_name_without_addresses_fails_at_once_until_the_pause_is_over(self) -> None:
        resolver = self.resolver()
        for failure in (
            socket.gaierror(socket.EAI_NONAME, "unknown"),
            UnicodeError("label too long"),
            OSError(24, "x"),
        ):
            self.names.answers["a"] = failure
            before = len(self.names.asked)
            for _ in range(3):
                with self.assertRaises(OSError) as raised:
                    self.ask(resolver)
                self.assertNotIsInstance(raised.exception, socket.timeout)
            self.assertEqual(len(self.names.asked), before + 1)
            self.settle()
            self.now_s += RETRY_S
        self.assertEqual(raised.exception.errno, 24)
        self.names.answers["a"] = []
        with self.assertRaises(socket.gaierror):
            self.ask(resolver)

    def test_with_no_time_to_live_each_asks_anew(self) -> None:
        resolver = self.resolver(0.0)
        resolver.keep(["a"])
        resolver.tick()
        self.assertEqual(self.names.asked, [])
        for number in (1, 2, 3):
            self.names.answers["a"] = [f"10.0.0.{number}"]
            self.assertEqual(self.ask(resolver), [f"10.0.0.{number}"])
            self.assertIsNone(resolver.known("a"))
        self.names.answers["a"] = socket.gaierror(socket.EAI_NONAME, "unknown")
        for _ in range(2):
            with self.assertRaises(socket.gaierror):
                self.ask(resolver)
        self.assertEqual(len(self.names.asked), 5)

    def test_names_that_are_kept_are_looked_up_unasked_and_forgotten_when_they_go(self) -> None:
        self.names.answers["b"] = ["10.0.1.1"]
        resolver = self.resolver()
        resolver.keep(["a", "b"])
        eventually(lambda: resolver.known("a") and resolver.known("b"))
        self.now_s += TTL_S * 0.8
        resolver.tick()
        self.settle()
        self.assertEqual(sorted(self.names.asked), ["a", "a", "b", "b"])
        resolver.keep(["b"])
        self.assertIsNone(resolver.known("a"))
        self.assertIsNotNone(resolver.known("b"))
        self.now_s += TTL_S
        resolver.tick()
        self.settle()
        self.assertEqual(sorted(self.names.asked), ["a", "a", "b", "b", "b"])

    def test_a_name_behind_which_nobody_answers_is_looked_up_again_though_not_at_every_turn(self) -> None:
        resolver = self.resolver()
        self.ask(resolver)
        resolver.doubt("a")
        self.settle()
        self.assertEqual(len(self.names.asked), 1)
        self.now_s += RETRY_S
        self.names.answers["a"] = ["10.0.0.7"]
        resolver.doubt("a")
        eventually(lambda: self.ask(resolver) == ["10.0.0.7"])

    def test_a_change_is_told_once_and_a_failure_or_another_order_is_none(self) -> None:
        resolver = self.resolver()
        told: list[str] = []
        resolver.on_change = told.append
        rounds: list[tuple[object, int]] = [
            (["10.0.0.1", "10.0.0.2"], 0),
            (["10.0.0.2", "10.0.0.1"], 0),
            (socket.gaierror(socket.EAI_AGAIN, "x"), 0),
            (["10.0.0.2"], 1),
            (["10.0.0.2"], 1),
        ]
        for answer, count in rounds:
            self.names.answers["a"] = answer  # type: ignore[assignment]
            resolver.keep(["a"])
            self.settle()
            self.assertEqual(told, ["a"] * count)
            self.now_s += 2 * TTL_S
        self.assertTrue(resolver.holds("a", v4("10.0.0.2")))
        self.assertFalse(resolver.holds("a", v4("10.0.0.1")))

    # --- waiting ---

    def test_a_name_has_one_look_up_at_a_time_and_all_share_it(self) -> None:
        for ttl_s in (TTL_S, 0.0):
            with self.subTest(ttl_s=ttl_s):
                self.share(self.resolver(ttl_s))

    def share(self, resolver: Resolver) -> None:
        self.names.asked.clear()
        self.names.hold("a")
        lookups = [resolver._ask("a")[1] for _ in range(8)]
        self.names.wait_for("a")
        self.assertEqual(len(set(lookups)), 1)
        self.names.release()
        for lookup in lookups:
            assert lookup is not None
            drive(resolver._wait(lookup, far(), lambda: False))
            self.assertEqual(lookup.addresses, (v4("10.0.0.1"),))
        self.assertEqual(self.names.asked, ["a"])

    def test_a_wait_ends_at_its_deadline_or_when_nobody_wants_it_any_more(self) -> None:
        resolver = self.resolver()
        self.names.hold("a")
        with self.assertRaises(socket.timeout):
            drive(resolver.addresses("a", time.monotonic() + 0.01))
        ended = threading.Event()
        raised: list[Optional[BaseException]] = []

        def wait() -> None:
            try:
                drive(resolver.addresses("a", float("inf"), ended.is_set))
            except OSError as error:
                raised.append(error)

        thread = self.in_thread(wait)
        ended.set()
        thread.join(TIMEOUT_S)
        self.assertIsInstance(raised[0], socket.timeout)

    def test_look_ups_that_hang_keep_no_other_name_waiting(self) -> None:
        resolver = self.resolver()
        stuck = [f"stuck{number}" for number in range(3 * module.THREADS)]
        for host in stuck:
            self.names.hold(host)
        resolver.keep(stuck)
        eventually(lambda: len(self.names.asked) == module.THREADS)
        with self.assertRaises(socket.timeout):  # for a moment they count
            drive(resolver.addresses("a", time.monotonic() + 0.01))
        self.assertEqual(len(resolver_threads()), module.THREADS)
        for count in (2 * module.THREADS, 3 * module.THREADS):
            self.now_s += module.STUCK_S
            resolver.tick()
            self.assertEqual(len(resolver_threads()), count)
        self.now_s += module.STUCK_S
        self.assertEqual(self.ask(resolver), ["10.0.0.1"])

    def test_what_a_name_that_hangs_for_ever_holds_is_bounded(self) -> None:
        resolver = self.resolver()
        self.names.hold("a")
        for _ in range(20):
            resolver.keep(["a"])
            self.now_s += module.LOST_S
        self.names.wait_for("a", module.LOOKUPS_PER_NAME)
        self.assertEqual(len(resolver_threads()), module.LOOKUPS_PER_NAME)
        with mock.patch.object(module, "LOOKUPS_MAX", module.LOOKUPS_PER_NAME + 1):
            self.names.answers["b"] = ["10.0.1.1"]
            self.assertEqual(self.ask(resolver, "b"), ["10.0.1.1"])
            self.names.hold("c")
            resolver.keep(["a", "c"])
            self.names.wait_for("c")
            self.now_s += module.LOST_S
            with self.assertRaises(socket.timeout):
                drive(resolver.addresses("d", time.monotonic() + 0.01))

    def test_a_look_up_begun_after_a_lost_one_stands_for_the_name(self) -> None:
        resolver = self.resolver()
        gate = self.names.hold("a")
        resolver.keep(["a"])
        self.names.wait_for("a")
        with self.names._lock:
            del self.names._held["a"]
        self.now_s += module.LOST_S
        self.assertEqual(self.ask(resolver), ["10.0.0.1"])
        self.names.answers["a"] = ["10.0.0.66"]
        gate.set()
        self.settle()
        self.assertEqual(self.ask(resolver), ["10.0.0.1"])

    def test_without_threads_it_is_this_machine_that_fails(self) -> None:
        resolver = self.resolver()
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            with self.assertRaises(OSError) as raised:
                drive(resolver.addresses("a", far()))
        self.assertNotIsInstance(raised.exception, (socket.gaierror, socket.timeout))
        self.now_s += RETRY_S
        self.assertEqual(self.ask(resolver), ["10.0.0.1"])

    # --- the end ---

    def test_closing_ends_waits_and_threads(self) -> None:
        resolver = self.resolver()
        gate = self.names.hold("a")
        failures: list[OSError] = []

        def wait() -> None:
            try:
                drive(resolver.addresses("a", float("inf")))
            except OSError as error:
                failures.append(error)

        thread = self.in_thread(wait)
        self.names.wait_for("a")
        with mock.patch.object(module, "CLOSE_S", 0.0):
            resolver.close()
        thread.join(TIMEOUT_S)
        self.assertEqual(len(failures), 1)
        gate.set()
        self.settle()
        with self.assertRaises(OSError):
            drive(resolver.addresses("b", far()))
        self.assertEqual(self.names.asked, ["a"])

    def test_threads_end_when_there_is_nothing_to_look_up(self) -> None:
        resolver = self.resolver()
        for _ in range(3):
            self.ask(resolver)
            self.settle()
            self.now_s += 2 * TTL_S


class OrderTest(unittest.TestCase):
    def order(self, *addresses: str) -> list[str]:
        return [address[0] for _, address in in_order([entry(address) for address in addresses])]

    def test_families_take_turns_from_the_first_on(self) -> None:
        for given, expected in (
            ("::1 ::2 ::3 1.1.1.1 1.1.1.2", "::1 1.1.1.1 ::2 1.1.1.2 ::3"),
            ("1.1.1.1 1.1.1.2 1.1.1.3 ::1", "1.1.1.1 ::1 1.1.1.2 1.1.1.3"),
            ("::1 1.1.1.1 1.1.1.2 1.1.1.3", "::1 1.1.1.1 1.1.1.2 1.1.1.3"),
            ("1.1.1.1 1.1.1.2", "1.1.1.1 1.1.1.2"),
            ("::1 ::1 1.1.1.1 ::1", "::1 1.1.1.1"),
            ("", ""),
        ):
            with self.subTest(given=given):
                self.assertEqual(self.order(*given.split()), expected.split())

    def test_what_is_no_internet_address_is_left_out(self) -> None:
        odd = (socket.AF_UNIX if hasattr(socket, "AF_UNIX") else 99, socket.SOCK_STREAM, 0, "", ("/x", 0))
        self.assertEqual(in_order([odd, entry("1.1.1.1")]), (v4("1.1.1.1"),))


if __name__ == "__main__":
    unittest.main()
