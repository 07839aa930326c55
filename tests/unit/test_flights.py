"""Single flight: who leads, who follows, what each is told, and when nobody is left."""

from __future__ import annotations

import copy
import functools
import itertools
import threading
import unittest
from typing import Any, Optional, cast

from gateway.asked import Asked, Head
from gateway.errors import ClientGone, EngineFailed, GatewayError, RequestRefused
from gateway.hedging import Answer
from gateway.reuse.flights import OWN_CODES, Flight, Flights, Stream, again
from gateway.steps import Flag
from gateway.upstream.answers import Usage
from gateway.upstream.call import Call

ANSWER = Answer(b"{}", Usage(1, 1, False))
KEY = b"k"


class OpenStream(Stream):
    """Stands for a stream that may be followed."""

    def join(self, exchange: object, head: bytes) -> None:
        """Nobody comes so far."""


def request() -> Asked:
    asked = Asked(cast(Head, None), "127.0.0.1", "r", 0.0)
    asked.call = Call("/completions", {"prompt": "a"})
    return asked


def is_cancelled(asked: Asked) -> bool:
    assert asked.call is not None
    return asked.call.cancelled


def client_leaves(flights: Flights, flight: Flight, asked: Asked) -> bool:
    """As the server has it, for whoever of a flight: returns whether that left nobody."""
    asked.left = True
    if asked.call is not None and not asked.needed:
        asked.call.cancel()
    return flights.leave(flight, asked)


class FlightTest(unittest.TestCase):
    def setUp(self) -> None:
        self.flights = Flights()

    def lead(self, key: bytes = KEY) -> tuple[Flight, Asked]:
        leader = request()
        flight, flag = self.flights.join(key, leader)
        self.assertIsNone(flag)
        return flight, leader

    def follow(self, flight: Flight, key: bytes = KEY) -> tuple[Asked, Flag]:
        follower = request()
        joined, flag = self.flights.join(key, follower)
        self.assertIs(joined, flight)
        assert flag is not None
        return follower, flag

    def flown(self, followers: int) -> tuple[Flight, Asked, list[Asked], list[Flag]]:
        flight, leader = self.lead()
        pairs = [self.follow(flight) for _ in range(followers)]
        return flight, leader, [asked for asked, _ in pairs], [flag for _, flag in pairs]

    def assert_none_joins(self, flight: Flight) -> None:
        """Whoever comes now leads a flight of its own."""
        other, flag = self.flights.join(KEY, request())
        self.assertIsNot(other, flight)
        self.assertIsNone(flag)


class JoinTest(FlightTest):
    def test_the_first_leads_and_others_follow(self) -> None:
        flight, leader, followers, flags = self.flown(3)
        self.assertIs(flight.leader, leader)
        self.assertEqual(list(flight.followers), followers)
        self.assertIs(leader.flight, flight)
        self.assertEqual([asked.flight for asked in followers], [None] * 3)
        self.assertEqual([flag.is_set() for flag in flags], [False] * 3)
        self.assertEqual(len(set(map(id, flags))), 3)
        self.assertEqual((len(self.flights), flight.over), (1, False))
        self.assertEqual(len(self.flights), 1)

    def test_each_key_has_a_flight_of_its_own(self) -> None:
        one, _ = self.lead(b"a")
        other, _ = self.lead(b"b")
        self.assertIsNot(one, other)
        self.follow(one, b"a")
        self.follow(other, b"b")
        self.assertEqual((len(self.flights), len(one.followers), len(other.followers)), (2, 1, 1))

    def test_one_without_a_key_is_followed_by_nobody(self) -> None:
        flight = Flight(None, request())
        self.assertEqual(len(self.flights), 0)
        self.flights.landed(flight, ANSWER)
        self.flights.end(flight)
        self.assertEqual(len(self.flights), 0)

    def test_a_leader_is_needed_while_somebody_follows(self) -> None:
        flight, leader = self.lead()
        self.assertFalse(leader.needed)
        follower, _ = self.follow(flight)
        self.assertTrue(leader.needed)
        self.assertFalse(follower.needed)
        self.flights.leave(flight, follower)
        self.assertFalse(leader.needed)
        self.follow(flight)
        self.flights.landed(flight, ANSWER)
        self.assertFalse(leader.needed)

    def test_an_answer_is_everybodys(self) -> None:
        flight, _, _, flags = self.flown(3)
        self.flights.landed(flight, ANSWER)
        self.assertTrue(all(flag.is_set() for flag in flags))
        self.assertIs(flight.result, ANSWER)
        self.assertEqual((flight.error, flight.own_fault, flight.over), (None, False, True))
        self.assertEqual(len(self.flights), 0)
        self.assert_none_joins(flight)

    def test_an_engines_error_is_everybodys_as_well(self) -> None:
        for error in (
            EngineFailed("backend_error", "no"),
            EngineFailed("backend_unavailable", "gone"),
            RequestRefused("backend_rejected", "no"),
            GatewayError("overloaded", "full"),
        ):
            flight, _, _, flags = self.flown(2)
            self.flights.failed(flight, error)
            self.assertTrue(all(flag.is_set() for flag in flags))
            self.assertIs(flight.error, error)
            self.assertEqual((flight.result, flight.own_fault, flight.over), (None, False, True), error.code)
            self.assertEqual(len(self.flights), 0)

    def test_what_befalls_a_leader_alone_is_its_own(self) -> None:
        self.assertLessEqual({"draining", "forbidden", "queue_timeout"}, set(OWN_CODES))
        errors: list[Optional[GatewayError]] = [None, ClientGone()]
        errors += [GatewayError(code, "no") for code in OWN_CODES]
        for error in errors:
            flight, _, _, flags = self.flown(2)
            self.flights.failed(flight, error)
            self.assertTrue(all(flag.is_set() for flag in flags))
            self.assertTrue(flight.own_fault, error)
            self.assertIsNone(flight.result)
            self.assert_none_joins(flight)
            self.flights = Flights()

    def test_after_that_one_of_the_followers_leads_and_the_others_follow_it(self) -> None:
        flight, _, followers, _ = self.flown(3)
        self.flights.failed(flight, ClientGone())
        joined = [self.flights.join(KEY, asked) for asked in followers]
        self.assertEqual([flag is None for _, flag in joined], [True, False, False])
        self.assertEqual(len({id(other) for other, _ in joined} - {id(flight)}), 1)
        self.assertIs(joined[0][0].leader, followers[0])

    def test_an_old_flight_that_ends_leaves_the_new_one_of_its_key(self) -> None:
        flight, _ = self.lead()
        self.flights.close(flight)
        new, _ = self.lead()
        for end in (self.flights.close, self.flights.end, lambda old: self.flights.landed(old, ANSWER)):
            end(flight)
            self.follow(new)
        self.assertEqual((len(self.flights), len(new.followers)), (1, 3))

    def test_flags_are_set_without_the_lock(self) -> None:
        flight, _, _, flags = self.flown(2)
        seen: list[bool] = []

        def look() -> None:
            free = self.flights._lock.acquire(blocking=False)
            if free:
                self.flights._lock.release()
            seen.append(free)

        for flag in flags:
            flag.call(look)
        self.flights.opened(flight, OpenStream())
        self.flights.landed(flight, ANSWER)
        self.assertEqual(seen, [True] * 4)


class StreamTest(FlightTest):
    def test_whoever_waits_and_whoever_comes_later_may_follow(self) -> None:
        flight, leader, _, (flag,) = self.flown(1)
        stream = OpenStream()
        self.flights.opened(flight, stream)
        self.assertTrue(flag.is_set())
        _, late = self.follow(flight)
        self.assertTrue(late.is_set())
        self.assertIs(flight.result, stream)
        self.assertEqual((len(self.flights), flight.over), (1, False))
        self.assertTrue(leader.needed)

    def test_until_it_is_closed(self) -> None:
        flight, leader, followers, _ = self.flown(2)
        self.flights.opened(flight, OpenStream())
        self.assertEqual(self.flights.close(flight), 2)
        self.assertEqual(len(self.flights), 0)
        self.assertEqual((flight.over, leader.needed), (False, True))
        self.assert_none_joins(flight)
        self.flights.leave(flight, followers[0])
        self.assertEqual(self.flights.close(flight), 1)

    def test_when_it_has_ended_nobody_waits_for_its_leader(self) -> None:
        flight, leader, followers, _ = self.flown(2)
        self.flights.opened(flight, OpenStream())
        self.flights.end(flight)
        self.assertTrue(flight.over)
        self.assertFalse(leader.needed)
        self.assert_none_joins(flight)
        self.assertFalse(client_leaves(self.flights, flight, leader))
        self.assertEqual([self.flights.leave(flight, asked) for asked in followers], [False, False])

    def test_one_that_has_ended_before_it_is_told_of_is_followed_all_the_same(self) -> None:
        flight, _, _, flags = self.flown(2)
        stream = OpenStream()
        self.flights.end(flight)
        self.flights.opened(flight, stream)
        self.assertIs(flight.result, stream)
        self.assertEqual([flag.is_set() for flag in flags], [True, True])

    def test_one_that_nobody_has_waited_for_is_not_kept(self) -> None:
        flight, _ = self.lead()
        self.flights.end(flight)
        self.flights.opened(flight, OpenStream())
        self.assertIsNone(flight.result)


class LeaveTest(FlightTest):
    def test_in_every_order_the_last_one_ends_it_and_only_the_last(self) -> None:
        for count in (0, 1, 2, 3):
            for order in itertools.permutations(range(count + 1)):
                for streams in (False, True):
                    self.flights = Flights()
                    flight, leader, followers, _ = self.flown(count)
                    if streams:
                        self.flights.opened(flight, OpenStream())
                    everybody = [leader, *followers]
                    for place in order[:-1]:
                        self.assertFalse(client_leaves(self.flights, flight, everybody[place]), order)
                        self.assertFalse(is_cancelled(leader), order)
                        self.assertEqual(len(self.flights), 1, order)
                    self.assertTrue(client_leaves(self.flights, flight, everybody[order[-1]]), order)
                    self.assertTrue(is_cancelled(leader), order)
                    self.assert_none_joins(flight)

    def test_who_leaves_twice_counts_once(self) -> None:
        flight, leader, followers, _ = self.flown(2)
        leader.left = True
        self.assertFalse(self.flights.leave(flight, followers[0]))
        self.assertFalse(self.flights.leave(flight, followers[0]))
        self.assertFalse(is_cancelled(leader))
        self.assertTrue(self.flights.leave(flight, followers[1]))

    def test_nobody_is_deserted_by_followers_while_the_leaders_client_is_there(self) -> None:
        flight, leader, followers, _ = self.flown(2)
        self.assertEqual([self.flights.leave(flight, asked) for asked in followers], [False, False])
        self.assertFalse(is_cancelled(leader))
        self.follow(flight)

    def test_who_comes_when_all_but_the_leaders_steps_have_left_is_waited_for(self) -> None:
        flight, leader, (follower,), _ = self.flown(1)
        self.assertFalse(client_leaves(self.flights, flight, leader))
        self.follow(flight)
        self.assertFalse(client_leaves(self.flights, flight, follower))
        self.assertTrue(leader.needed)
        self.assertFalse(is_cancelled(leader))

    def test_whichever_of_two_is_first_one_of_them_sees_that_nobody_is_left(self) -> None:
        """The leader's client leaves by setting `left` and looking, a follower by going and looking at `left`."""
        for order in set(itertools.permutations(["set", "look", "go"])):
            if order.index("set") > order.index("look"):
                continue
            self.flights = Flights()
            flight, leader, (follower,), _ = self.flown(1)
            for step in order:
                if step == "set":
                    leader.left = True
                elif step == "look" and not leader.needed:
                    assert leader.call is not None
                    leader.call.cancel()
                elif step == "go":
                    self.flights.leave(flight, follower)
            self.assertTrue(is_cancelled(leader), order)

    def test_after_the_end_nobody_is_cancelled(self) -> None:
        for ends in ("landed", "failed"):
            self.flights = Flights()
            flight, leader, (follower,), _ = self.flown(1)
            if ends == "landed":
                self.flights.landed(flight, ANSWER)
            else:
                self.flights.failed(flight, EngineFailed("backend_error", "no"))
            leader.left = True
            self.assertFalse(self.flights.leave(flight, follower))
            self.assertFalse(self.flights.leave(flight, leader))
            self.assertFalse(is_cancelled(leader))

    def test_a_leader_that_has_no_call_yet_is_no_fault(self) -> None:
        flight, leader, (follower,), _ = self.flown(1)
        leader.call = None
        leader.left = True
        self.assertTrue(self.flights.leave(flight, follower))

    def test_threads_that_leave_at_once_end_each_flight(self) -> None:
        for _ in range(100):
            self.flights = Flights()
            flight, leader, followers, _ = self.flown(3)
            begin = threading.Barrier(4)
            deserted: list[bool] = []
            leave = functools.partial(self.leave_with_others, begin, flight, deserted)
            threads = [threading.Thread(target=leave, args=(asked,)) for asked in (leader, *followers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertIn(True, deserted)
            self.assertTrue(is_cancelled(leader))
            self.assertEqual((len(self.flights), flight.followers), (0, {}))

    def leave_with_others(self, begin: threading.Barrier, flight: Flight, deserted: list[bool], asked: Asked) -> None:
        begin.wait()
        deserted.append(client_leaves(self.flights, flight, asked))


class HammerTest(unittest.TestCase):
    def test_everybody_leads_once_or_is_told(self) -> None:
        flights = Flights()
        errors: list[BaseException] = []
        led: list[Flight] = []
        followed: list[tuple[Flight, Flag]] = []
        begin = threading.Barrier(6)

        def ask_again_and_again() -> None:
            begin.wait()
            try:
                for turn in range(300):
                    asked = request()
                    flight, flag = flights.join(b"%d" % (turn % 3), asked)
                    if flag is not None:
                        followed.append((flight, flag))
                        continue
                    led.append(flight)
                    if turn % 2:
                        flights.landed(flight, ANSWER)
                    else:
                        flights.failed(flight, EngineFailed("backend_error", "no"))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=ask_again_and_again) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])
        self.assertEqual(len(led) + len(followed), 1800)
        self.assertEqual(len(set(map(id, led))), len(led))
        self.assertEqual(len(flights), 0)
        for flight, flag in followed:
            self.assertTrue(flag.is_set())
            self.assertTrue(flight.result is ANSWER or flight.error is not None)


class AgainTest(unittest.TestCase):
    def test_the_same_in_all_it_says(self) -> None:
        error = RequestRefused(
            "backend_rejected",
            "the engine says no",
            param="messages[0]",
            retry_after_s=3.5,
            status=422,
            details={"a": 1},
            engine={"code": "x"},
            headers=(("Retry-After", "4"),),
        )
        other = again(error)
        self.assertIsNot(other, error)
        self.assertIs(type(other), RequestRefused)
        self.assertEqual((str(other), other.args), (str(error), error.args))
        self.assertEqual(vars(other), vars(error))

    def test_of_every_kind(self) -> None:
        errors: list[GatewayError] = [
            ClientGone(),
            EngineFailed("backend_error", "no"),
            GatewayError("overloaded", "full", retry_after_s=1.0),
        ]
        for error in errors:
            other = again(error)
            self.assertIs(type(other), type(error))
            self.assertEqual((other.code, other.status, other.message), (error.code, error.status, error.message))

    def test_where_it_was_raised_and_what_is_changed_stays_with_each(self) -> None:
        error: Any = EngineFailed("backend_error", "no", retry_after_s=1.0)
        try:
            raise error from ValueError("why")
        except EngineFailed:
            pass
        one, other = again(error), again(error)
        self.assertIsNone(one.__traceback__)
        before = copy.copy(vars(error))
        one.retry_after_s = 9.0
        self.assertEqual((vars(error), vars(other)), (before, before))
        with self.assertRaises(EngineFailed):
            raise one
        self.assertIsNone(other.__traceback__)


if __name__ == "__main__":
    unittest.main()
