"""Requests that leave together: when a batch leaves, who leads it, and what is learnt of lists."""

from __future__ import annotations

import itertools
import random
import threading
import unittest
from typing import Callable, Optional, cast

from gateway.asked import Asked, Head
from gateway.reuse.batching import KEYS_KEPT, LISTS_AGAIN_S, Batch, Gathering, Seat
from gateway.reuse.flights import Flights
from gateway.upstream.call import Call

WAIT_S = 0.02
MODEL = "13b"
KEY = "k"


def request() -> Asked:
    asked = Asked(cast(Head, None), "127.0.0.1", "r", 0.0)
    asked.call = Call("/completions", {"prompt": "a"})
    return asked


def seat(inputs: int = 1) -> Seat:
    asked = request()
    assert asked.call is not None
    return Seat(asked, asked.call, ["a"] * inputs)


class BatchingTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 100.0
        self.gathering = Gathering(WAIT_S, lambda: self.now_s)

    def take(self, own: Optional[Seat] = None, most: int = 8, key: str = KEY) -> tuple[Batch, bool]:
        return self.gathering.take_seat(key, seat() if own is None else own, most)

    def warm(self, key: str = KEY) -> None:
        """Have one come before, so that the next one is not alone; no time passes."""
        batch, leads = self.take(key=key)
        self.assertTrue(leads and batch.full.is_set())

    def gathered(self, count: int, most: int = 8) -> tuple[Batch, list[Seat]]:
        """A batch that is open, and those who are in it."""
        before, _ = self.take()
        if not before.full.is_set():  # it was not alone, either
            self.gathering.begin(before)
        seats = [seat() for _ in range(count)]
        batches = [self.take(each, most)[0] for each in seats]
        self.assertEqual(len(set(map(id, batches))), 1)
        return batches[0], seats

    def begun(self, count: int) -> tuple[Batch, list[Seat]]:
        """A batch that has left."""
        batch, seats = self.gathered(count, most=count + 1)
        self.assertEqual(self.gathering.begin(batch), seats)
        return batch, seats


class GatherTest(BatchingTest):
    def test_one_that_comes_alone_leaves_at_once(self) -> None:
        own = seat()
        batch, leads = self.take(own)
        self.assertTrue(leads)
        self.assertTrue(batch.full.is_set())
        self.assertEqual(batch.seats, [own])
        self.assertIs(own.asked.batch, batch)

    def test_it_is_joined_by_nobody(self) -> None:
        one, _ = self.take()
        other, leads = self.take()
        self.assertIsNot(one, other)
        self.assertTrue(leads)

    def test_the_next_one_within_the_wait_gathers(self) -> None:
        self.warm()
        self.now_s += WAIT_S / 2
        batch, leads = self.take()
        self.assertTrue(leads)
        self.assertFalse(batch.full.is_set())
        self.now_s += WAIT_S / 2
        joined, leads = self.take()
        self.assertIs(joined, batch)
        self.assertFalse(leads)
        self.assertEqual(len(batch.seats), 2)

    def test_one_that_comes_later_is_alone_again(self) -> None:
        self.warm()
        self.now_s += 1.01 * WAIT_S
        batch, _ = self.take()
        self.assertTrue(batch.full.is_set())

    def test_one_that_follows_others_who_joined_a_batch_is_not_alone(self) -> None:
        for _ in range(20):  # they usually come one by one
            self.now_s += 3 * WAIT_S
            self.warm()
        self.now_s += 0.75 * WAIT_S
        batch, _ = self.take()
        self.now_s += 0.75 * WAIT_S
        self.assertIs(self.take()[0], batch)
        self.now_s += 0.25 * WAIT_S
        self.gathering.begin(batch)
        self.now_s += 0.25 * WAIT_S  # since the last one came, half of the wait
        batch, leads = self.take()
        self.assertTrue(leads)
        self.assertFalse(batch.full.is_set())

    def test_one_that_comes_late_in_a_flood_is_not_alone(self) -> None:
        for _ in range(40):
            batch, _ = self.take()
            self.now_s += WAIT_S / 10
        self.gathering.begin(batch)
        self.now_s += 2 * WAIT_S
        self.assertFalse(self.take()[0].full.is_set())

    def test_but_it_is_when_the_flood_is_over(self) -> None:
        for _ in range(40):
            batch, _ = self.take()
            self.now_s += WAIT_S / 10
        self.gathering.begin(batch)
        self.now_s += 1000 * WAIT_S
        self.assertTrue(self.take()[0].full.is_set())

    def test_those_who_come_one_by_one_soon_leave_at_once_again(self) -> None:
        for _ in range(40):
            batch, _ = self.take()
            self.now_s += WAIT_S / 10
        alone = []
        for _ in range(20):
            self.gathering.begin(batch)
            self.now_s += 3 * WAIT_S
            batch, _ = self.take()
            alone.append(batch.full.is_set())
        self.assertEqual(alone, sorted(alone))
        self.assertGreater(sum(alone), 10)

    def test_a_full_one_leaves(self) -> None:
        batch, seats = self.gathered(3, most=4)
        self.assertFalse(batch.full.is_set())
        last = seat()
        self.assertEqual(self.take(last, most=4), (batch, False))
        self.assertTrue(batch.full.is_set())
        self.assertEqual(batch.seats, [*seats, last])
        other, leads = self.take(most=4)
        self.assertIsNot(other, batch)
        self.assertTrue(leads)
        self.assertFalse(other.full.is_set())

    def test_one_without_room_leaves_and_a_new_one_opens(self) -> None:
        self.warm()
        large, small = seat(3), seat(2)
        batch, _ = self.take(large, most=4)
        other, leads = self.take(small, most=4)
        self.assertTrue(leads)
        self.assertIsNot(other, batch)
        self.assertEqual((batch.full.is_set(), other.full.is_set()), (True, False))
        self.assertEqual((batch.seats, other.seats), ([large], [small]))
        self.assertEqual((batch.inputs, other.inputs), (3, 2))

    def test_what_fills_a_batch_by_its_inputs_leaves(self) -> None:
        self.warm()
        batch, _ = self.take(seat(1), most=4)
        self.assertEqual(self.take(seat(3), most=4), (batch, False))
        self.assertTrue(batch.full.is_set())
        self.assertEqual(batch.inputs, 4)

    def test_what_fills_one_by_itself_leaves_at_once(self) -> None:
        self.warm()
        batch, leads = self.take(seat(4), most=4)
        self.assertTrue(leads and batch.full.is_set())
        self.assertTrue(self.take(most=4)[1])

    def test_where_only_one_leaves_at_a_time_each_does_at_once(self) -> None:
        for _ in range(5):
            batch, leads = self.take(most=1)
            self.assertTrue(leads and batch.full.is_set())
            self.assertEqual(len(batch.seats), 1)

    def test_only_equals_share_one(self) -> None:
        self.warm("a")
        self.warm("b")
        one, other = self.take(key="a")[0], self.take(key="b")[0]
        self.assertIsNot(one, other)
        self.assertIs(self.take(key="a")[0], one)
        self.assertIs(self.take(key="b")[0], other)
        self.assertTrue(self.take(key="c")[0].full.is_set())

    def test_each_kind_is_alone_for_itself(self) -> None:
        self.warm("a")
        batch, _ = self.take(key="b")
        self.assertTrue(batch.full.is_set())

    def test_not_more_kinds_are_remembered_than_it_says(self) -> None:
        for number in range(KEYS_KEPT + 10):
            self.take(key=str(number))
        self.assertFalse(self.take(key=str(KEYS_KEPT + 9))[0].full.is_set())
        self.assertTrue(self.take(key="0")[0].full.is_set())
        self.assertTrue(self.take(key="9")[0].full.is_set())
        self.assertFalse(self.take(key="0")[0].full.is_set())

    def test_without_a_wait_only_what_comes_at_the_same_time_gathers(self) -> None:
        self.gathering = Gathering(0.0, lambda: self.now_s)
        self.warm()
        self.now_s += 0.001
        self.assertTrue(self.take()[0].full.is_set())

    def test_how_long_it_has_gathered(self) -> None:
        batch, _ = self.gathered(2)
        self.now_s += 0.015
        self.assertAlmostEqual(self.gathering.waited_s(batch), 0.015)


class BeginTest(BatchingTest):
    def test_nobody_joins_one_that_has_left(self) -> None:
        batch, seats = self.gathered(3)
        self.assertEqual(self.gathering.begin(batch), seats)
        self.assertTrue(self.take()[1])
        self.assertEqual(batch.seats, seats)

    def test_an_old_one_that_leaves_does_not_close_the_new_one(self) -> None:
        full, _ = self.gathered(2, most=2)
        new, _ = self.take()
        self.gathering.begin(full)
        self.assertIs(self.take()[0], new)

    def test_those_who_have_left_are_not_asked_for(self) -> None:
        for left in itertools.product((False, True), repeat=3):
            self.gathering = Gathering(WAIT_S, lambda: self.now_s)
            batch, seats = self.gathered(3)
            for each, gone in zip(seats, left):
                each.asked.left = gone
            expected = [each for each, gone in zip(seats, left) if not gone]
            self.assertEqual(self.gathering.begin(batch), expected, left)
            self.assertEqual(batch.seats, expected)

    def test_one_whose_own_followers_wait_is_asked_for_though_its_client_has_left(self) -> None:
        batch, seats = self.gathered(2)
        flights = Flights()
        flight, _ = flights.join(b"k", seats[1].asked)
        follower = request()
        flights.join(b"k", follower)
        for each in seats:
            each.asked.left = True
        self.assertEqual((batch.misses(seats[0]), batch.misses(seats[1])), (True, False))
        self.assertEqual(self.gathering.begin(batch), [seats[1]])
        flights.leave(flight, follower)
        self.assertTrue(batch.misses(seats[1]))

    def test_its_leader_is_needed_while_anybody_is_there(self) -> None:
        batch, seats = self.gathered(3)
        leader = seats[0].asked
        self.assertTrue(leader.needed)
        self.assertFalse(seats[1].asked.needed)
        for each in seats[:2]:
            each.asked.left = True
        self.assertTrue(leader.needed)
        batch.over = True
        self.assertFalse(leader.needed)
        batch.over = False
        seats[2].asked.left = True
        self.assertFalse(leader.needed)

    def test_its_leader_is_needed_for_those_who_wait_for_one_that_has_left(self) -> None:
        _, seats = self.gathered(2)
        flights = Flights()
        flights.join(b"k", seats[1].asked)
        flights.join(b"k", request())
        for each in seats:
            each.asked.left = True
        self.assertTrue(seats[1].asked.needed)
        self.assertTrue(seats[0].asked.needed)


class HalveTest(BatchingTest):
    def leader_of(self, *seats: Seat) -> Seat:
        """The one who is told to lead."""
        told = [each for each in seats if each.batch is not None]
        self.assertEqual(len(told), 1)
        return told[0]

    def test_the_first_of_the_other_half_leads_that(self) -> None:
        for count in range(2, 9):
            self.gathering = Gathering(WAIT_S, lambda: self.now_s)
            batch, seats = self.begun(count)
            line = batch.line
            self.gathering.halve(batch)
            middle = (count + 1) // 2
            other = seats[middle].batch
            assert other is not None
            self.assertEqual((batch.seats, other.seats), (seats[:middle], seats[middle:]))
            self.assertEqual((batch.line, other.line), ((*line, 0), (*line, 1)))
            self.assertIs(other.leader, seats[middle].asked)
            self.assertIs(batch.leader, seats[0].asked)
            self.assertEqual([each.flag.is_set() for each in seats], [each is seats[middle] for each in seats])
            self.assertIs(other, seats[middle].asked.batch)
            self.assertEqual(seats[middle].asked.needed, len(other.seats) > 1)
            self.assertEqual((other.key, other.opened_s, other.over), (batch.key, batch.opened_s, False))

    def test_until_each_is_alone(self) -> None:
        batch, seats = self.begun(8)
        batches, alone = [batch], []
        while batches:
            one = batches.pop()
            if len(one.seats) == 1:
                alone.append(one)
                continue
            self.gathering.halve(one)
            new = self.leader_of(*[each for each in seats if each.batch is not None])
            assert new.batch is not None
            batches += (one, new.batch)
            new.batch = None
        self.assertEqual(len({one.line for one in alone}), 8)
        self.assertEqual({id(one.seats[0]) for one in alone}, set(map(id, seats)))

    def test_who_has_left_leads_nothing(self) -> None:
        for left in itertools.product((False, True), repeat=3):
            self.gathering = Gathering(WAIT_S, lambda: self.now_s)
            batch, seats = self.begun(6)
            for each, gone in zip(seats[3:], left):
                each.asked.left = gone
            self.gathering.halve(batch)
            there = [each for each in seats[3:] if not each.asked.left]
            if not there:
                self.assertEqual([each.batch for each in seats], [None] * 6)
                continue
            leader = self.leader_of(*seats)
            self.assertIs(leader, there[0])
            assert leader.batch is not None
            self.assertIs(leader.batch.seats[0], leader)
            self.assertEqual([each for each in leader.batch.seats if not each.asked.left], there)

    def test_who_leaves_before_it_has_begun_to_lead_hands_over_in_every_order(self) -> None:
        for order in itertools.permutations(range(3)):
            self.gathering = Gathering(WAIT_S, lambda: self.now_s)
            batch, seats = self.begun(6)
            self.gathering.halve(batch)
            others = seats[3:]
            there = list(others)
            for place in order:
                own = others[place]
                own.asked.left = True
                self.gathering.leave(own)
                self.assertIsNone(own.batch)
                there.remove(own)
                if there:
                    leader = self.leader_of(*others)
                    self.assertIs(leader, there[0], order)
                    self.assertTrue(leader.flag.is_set())
                    assert leader.batch is not None
                    self.assertIs(leader.batch.leader, leader.asked)
                    self.assertEqual(leader.asked.needed, len(there) > 1)
            self.assertEqual([each.batch for each in others], [None] * 3)
            self.assertEqual(batch.seats, seats[:3])

    def test_who_leaves_and_leads_nothing_changes_nothing(self) -> None:
        batch, seats = self.begun(3)
        self.gathering.leave(seats[1])
        self.assertEqual(batch.seats, seats)

    def test_who_has_begun_to_lead_hands_over_nothing(self) -> None:
        batch, seats = self.begun(4)
        self.gathering.halve(batch)
        other, seats[2].batch = seats[2].batch, None  # as its steps do when they go on
        assert other is not None
        seats[2].asked.left = True
        self.gathering.leave(seats[2])
        self.assertEqual(other.seats, seats[2:])
        self.assertIsNone(seats[3].batch)
        self.assertTrue(seats[2].asked.needed)

    def test_a_batch_of_nobody_is_handed_to_nobody(self) -> None:
        batch, seats = self.begun(2)
        for each in seats:
            each.asked.left = True
        self.gathering.hand_over(batch)
        self.assertEqual(batch.seats, [])


class ListsTest(BatchingTest):
    def batch(self) -> Batch:
        return self.begun(4)[0]

    def halves(self, batch: Batch) -> tuple[Batch, Batch]:
        seats = list(batch.seats)
        self.gathering.halve(batch)
        (other,) = [each.batch for each in seats if each.batch is not None]
        for each in seats:
            each.batch = None
        return batch, other

    def rejected(self, batch: Batch, failed: bool = False) -> bool:
        return self.gathering.list_rejected(batch, failed)

    def all_answered(self, batch: Batch, count: int, model: str = MODEL) -> None:
        for _ in range(count):
            self.gathering.answered(batch.trial, model)

    def test_parts_of_parts_are_halved_and_tell_nothing_while_one_has_no_answer(self) -> None:
        batch = self.begun(8)[0]
        for _ in range(3):
            self.assertFalse(self.rejected(batch))
            _, batch = self.halves(batch)
        self.all_answered(batch, 7)
        self.assertTrue(self.gathering.takes_lists(MODEL))

    def test_two_that_have_nothing_in_common_are_asked_one_by_one(self) -> None:
        batch = self.batch()
        self.assertFalse(self.rejected(batch))
        one, other = self.halves(batch)
        self.assertFalse(self.rejected(one))
        self.assertTrue(self.rejected(other))
        one, other = self.halves(one)
        self.assertTrue(self.rejected(one))
        self.assertTrue(self.rejected(other))

    def test_but_not_where_a_list_was_taken(self) -> None:
        one, other = self.halves(self.batch())
        inner, rest = self.halves(other)
        self.gathering.list_taken(inner, MODEL)
        for each in (one, rest, *self.halves(one)):
            self.assertFalse(self.rejected(each))

    def test_what_becomes_of_another_batch_is_another_matter(self) -> None:
        for _ in range(40):
            self.assertFalse(self.rejected(self.batch()))
        self.gathering.list_taken(self.batch(), MODEL)
        one, other = self.halves(self.batch())
        self.assertFalse(self.rejected(one))
        self.assertTrue(self.rejected(other))
        self.assertTrue(self.gathering.takes_lists(MODEL))

    def test_when_all_are_answered_it_was_rejected_for_being_a_list(self) -> None:
        batch = self.batch()
        self.rejected(batch)
        self.all_answered(batch, 3)
        self.assertTrue(self.gathering.takes_lists(MODEL))
        self.all_answered(batch, 1)
        self.assertFalse(self.gathering.takes_lists(MODEL))

    def test_also_where_parts_were_taken_by_another_engine(self) -> None:
        batch = self.batch()
        self.rejected(batch)
        self.gathering.list_taken(self.halves(batch)[1], MODEL)
        self.all_answered(batch, 4)
        self.assertFalse(self.gathering.takes_lists(MODEL))

    def test_lists_that_are_taken_are_taken_however_many_are_answered(self) -> None:
        for _ in range(5):
            batch = self.batch()
            self.gathering.list_taken(batch, MODEL)
            self.all_answered(batch, 4)
        self.assertTrue(self.gathering.takes_lists(MODEL))

    def test_who_has_left_before_it_was_asked_for_is_not_waited_for(self) -> None:
        batch, seats = self.gathered(3, most=4)
        seats[1].asked.left = True
        self.gathering.begin(batch)
        self.rejected(batch)
        self.all_answered(batch, 2)
        self.assertFalse(self.gathering.takes_lists(MODEL))

    def fails_on_one(self) -> None:
        batch = self.batch()
        self.assertTrue(self.rejected(batch, failed=True))
        self.all_answered(batch, 4)

    def test_one_on_which_an_engine_fails_may_be_an_accident_and_two_in_a_row_are_none(self) -> None:
        self.fails_on_one()
        self.assertTrue(self.gathering.takes_lists(MODEL))
        self.gathering.list_taken(self.batch(), MODEL)
        self.fails_on_one()
        self.assertTrue(self.gathering.takes_lists(MODEL))
        self.fails_on_one()
        self.assertFalse(self.gathering.takes_lists(MODEL))

    def test_each_model_is_known_for_itself(self) -> None:
        batch = self.batch()
        self.rejected(batch)
        self.all_answered(batch, 4, "70b")
        self.assertTrue(self.gathering.takes_lists(MODEL))
        self.assertFalse(self.gathering.takes_lists("70b"))

    def test_after_a_pause_it_is_tried_again(self) -> None:
        self.gathering.list_refused(MODEL)
        self.now_s += LISTS_AGAIN_S - 0.5
        self.assertFalse(self.gathering.takes_lists(MODEL))
        self.now_s += 0.5
        self.assertTrue(self.gathering.takes_lists(MODEL))


class HammerTest(unittest.TestCase):
    def test_everybody_is_in_one_batch_that_has_a_leader_and_is_not_too_large(self) -> None:
        most, threads_count, turns = 7, 6, 400
        gathering = Gathering(1000.0)
        begin = threading.Barrier(threads_count)
        taken: list[tuple[Seat, Batch, bool]] = []
        left: list[tuple[Batch, list[Seat]]] = []
        errors: list[BaseException] = []

        def ask_again_and_again(seed: int) -> None:
            chance = random.Random(seed)
            own: list[Batch] = []
            begin.wait()
            try:
                for _ in range(turns):
                    each = seat(chance.randrange(1, 4))
                    batch, leads = gathering.take_seat(chance.randrange(2), each, most)
                    taken.append((each, batch, leads))
                    if leads:
                        own.append(batch)
                    if own and chance.random() < 0.3:  # its time is over
                        one = own.pop(chance.randrange(len(own)))
                        left.append((one, list(gathering.begin(one))))
                left.extend((one, list(gathering.begin(one))) for one in own)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=ask_again_and_again, args=(seed,)) for seed in range(threads_count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])
        self.assertEqual(len(taken), threads_count * turns)
        places: dict[int, Batch] = {}
        for batch, seats in left:
            self.assertLessEqual(sum(len(each.inputs) for each in seats), most)
            self.assertIs(seats[0].asked, batch.leader)
            for each in seats:
                self.assertNotIn(id(each), places)
                places[id(each)] = batch
        self.assertEqual(len(places), len(taken))
        for each, batch, leads in taken:
            self.assertIs(places[id(each)], batch)
            self.assertEqual(leads, batch.leader is each.asked)
        self.assertEqual(sum(leads for _, _, leads in taken), len(left))
        self.assertEqual(gathering._open, {})

    def test_a_batch_that_all_leave_while_it_is_handed_over_has_one_leader_at_most(self) -> None:
        for seed in range(60):
            gathering = Gathering(1000.0)
            gathering.take_seat(KEY, seat(), 99)
            seats = [seat() for _ in range(8)]
            batches = [gathering.take_seat(KEY, each, 99)[0] for each in seats]
            gathering.begin(batches[0])
            begin = threading.Barrier(4)
            others = seats[4:]

            def go(action: Callable[[], object], begin: threading.Barrier = begin) -> None:
                begin.wait()
                action()

            def leave(own: Seat, gathering: Gathering = gathering) -> None:
                own.asked.left = True
                gathering.leave(own)

            staying = others.pop(seed % 4)
            actions: list[Callable[[], object]] = [lambda own=own: leave(own) for own in others]  # type: ignore[misc]
            actions.append(lambda gathering=gathering, batch=batches[0]: gathering.halve(batch))  # type: ignore[misc]
            threads = [threading.Thread(target=go, args=(action,)) for action in actions]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertTrue(staying.flag.is_set(), seed)
            assert staying.batch is not None
            self.assertIs(staying.batch.leader, staying.asked)
            self.assertEqual([own.batch for own in others], [None] * 3)


if __name__ == "__main__":
    unittest.main()
