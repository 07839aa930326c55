"""What the parent of several processes decides, under a clock of its own."""

from __future__ import annotations

import random
import unittest
from typing import Any

from gateway.processes.supervision import (
    ASK_EVERY_S,
    END_EXTRA_S,
    HUNG_ASKS,
    LIVED_S,
    QUIET_ASKS,
    RESTART_FIRST_S,
    RESTART_MAX_S,
    START_S,
    Action,
    Ask,
    End,
    Kill,
    Log,
    Order,
    Place,
    Start,
    Supervision,
)

DRAIN_S, HAND_OVER_S = 30.0, 105.0


class Machine:
    """A supervision with its children, and what has been done. Children answer, but for those in `hung`."""

    def __init__(self, count: int = 3) -> None:
        self.plan = Supervision(count, DRAIN_S, HAND_OVER_S)
        self.now_s = 1000.0
        self.slots: dict[int, int] = {}
        self.hung: set[int] = set()
        self.done: list[Action] = []

    def do(self, actions: list[Action]) -> list[Action]:
        self.done += actions
        self.slots.update({one.child: one.slot for one in actions if isinstance(one, Start)})
        for one in actions:
            if isinstance(one, Ask) and one.child not in self.hung:
                self.plan.answered(one.child)
        return [one for one in actions if not isinstance(one, Ask)]

    def begin(self) -> list[Action]:
        return self.do(self.plan.begin(self.now_s))

    def ready(self, *children: int) -> list[Action]:
        return [one for child in children for one in self.do(self.plan.ready(child, self.now_s))]

    def died(self, child: int, status: int = -9) -> list[Action]:
        return self.do(self.plan.died(child, status, self.now_s))

    def roll(self) -> list[Action]:
        return self.do(self.plan.roll(self.now_s))

    def end(self, status: int = 0) -> list[Action]:
        return self.do(self.plan.end(self.now_s, status))

    def wait(self, seconds: float) -> list[Action]:
        """Let time pass, with each call of `due` when it is due."""
        end_s, actions = self.now_s + seconds, []
        while self.plan.due_s() <= end_s:
            self.now_s = max(self.now_s, self.plan.due_s())
            actions += self.do(self.plan.due(self.now_s))
        self.now_s = end_s
        return actions

    def serving(self) -> None:
        """All serve: children 1, 2, 3 in slots 0, 1, 2."""
        self.begin()
        self.ready(1)
        self.ready(*(child for child in self.slots if child != 1))


def starts(actions: list[Action]) -> list[tuple[int, int]]:
    return [(one.child, one.slot) for one in actions if isinstance(one, Start)]


def orders(actions: list[Action]) -> list[tuple[int, str]]:
    return [(one.child, one.what) for one in actions if isinstance(one, Order)]


def events(actions: list[Action]) -> list[str]:
    return [one.event for one in actions if isinstance(one, Log)]


class StartingTest(unittest.TestCase):
    def test_the_first_child_starts_alone_and_prints_the_others_follow(self) -> None:
        machine = Machine()
        self.assertEqual(machine.begin(), [Start(1, 0, True)])
        self.assertEqual(machine.ready(1), [Start(2, 1, False), Start(3, 2, False)])

    def test_what_keeps_the_first_from_serving_ends_all_with_its_status(self) -> None:
        killed = Log("error", "process_died", {"slot": 0, "signal": 9})  # it could not say so itself
        for status, expected in ((2, [End(2)]), (1, [End(1)]), (0, [End(1)]), (-9, [killed, End(1)])):
            with self.subTest(status=status):
                machine = Machine()
                machine.begin()
                self.assertEqual(machine.died(1, status), expected)

    def test_a_start_that_stands_still_is_killed(self) -> None:
        machine = Machine()
        machine.serving()
        machine.died(2)
        self.assertEqual(starts(machine.wait(RESTART_FIRST_S)), [(4, 1)])
        actions = machine.wait(START_S)
        self.assertEqual((events(actions), actions[-1]), (["process_killed"], Kill(4)))

    def test_a_second_word_of_being_ready_changes_nothing(self) -> None:
        machine = Machine()
        machine.serving()
        self.assertEqual(machine.ready(1, 2, 99), [])


class RestartingTest(unittest.TestCase):
    def test_the_dead_are_restarted_later_each_time_and_soon_again_once_they_have_lived(self) -> None:
        machine = Machine()
        machine.serving()
        child, waits = 2, []
        for _ in range(8):
            (line,) = machine.died(child)
            assert isinstance(line, Log)
            self.assertEqual((line.event, line.fields["slot"], line.fields["signal"]), ("process_died", 1, 9))
            wait_s = line.fields["restart_in_s"]
            self.assertEqual(machine.wait(wait_s - 0.001), [])
            ((child, slot),) = starts(machine.wait(0.001))
            self.assertEqual(slot, 1)
            machine.ready(child)
            waits.append(wait_s)
        self.assertEqual(waits, [1, 2, 4, 8, 16, 30, 30, 30])
        self.assertEqual((RESTART_FIRST_S, RESTART_MAX_S), (1.0, 30.0))
        machine.wait(LIVED_S)
        (line,) = machine.died(child, 3)
        assert isinstance(line, Log)
        self.assertEqual((line.fields["restart_in_s"], line.fields["status"]), (1.0, 3))
        self.assertGreaterEqual(line.fields["lived_s"], LIVED_S)

    def test_who_cannot_be_told_anything_is_replaced_and_killed_when_it_does_not_end(self) -> None:
        machine = Machine()
        machine.serving()
        self.assertEqual(events(machine.do(machine.plan.lost(2, machine.now_s))), ["process_lost"])
        self.assertEqual(machine.do(machine.plan.lost(2, machine.now_s)), [])
        self.assertEqual(starts(machine.wait(RESTART_FIRST_S)), [(4, 1)])
        machine.ready(4)
        actions = machine.wait(DRAIN_S + END_EXTRA_S)
        self.assertIn(Kill(2), actions)
        self.assertEqual(machine.died(2), [], "that was expected")

    def test_others_accept_for_who_is_not_there(self) -> None:
        machine = Machine()
        machine.begin()
        self.assertEqual(machine.plan.places(), {})
        machine.ready(1)
        self.assertEqual(machine.plan.places(), {1: Place(True, (1, 2))})
        machine.ready(2, 3)
        self.assertEqual(machine.plan.places()[3], Place(False, ()))
        machine.died(2)
        self.assertEqual(machine.plan.places(), {1: Place(True, (1,)), 3: Place(False, (1,))})


class HangingTest(unittest.TestCase):
    QUIET_S, HUNG_S = (QUIET_ASKS + 1) * ASK_EVERY_S, (HUNG_ASKS + 1) * ASK_EVERY_S

    def setUp(self) -> None:
        self.machine = Machine()
        self.machine.serving()
        self.machine.wait(100 * ASK_EVERY_S)

    def test_others_serve_for_one_that_does_not_answer_until_it_does(self) -> None:
        machine, before = self.machine, self.machine.plan.places()
        machine.hung = {1}
        self.assertEqual(machine.wait(self.QUIET_S - ASK_EVERY_S), [])
        self.assertEqual(machine.plan.places(), before)
        self.assertEqual(machine.wait(ASK_EVERY_S), [])
        places = machine.plan.places()
        self.assertEqual(places, {1: Place(False, ()), 2: Place(True, (0,)), 3: Place(False, (0,))})
        self.assertEqual(next(iter(places)), 1, "who leads no more is told first")
        machine.hung = set()
        machine.wait(ASK_EVERY_S)
        self.assertEqual(machine.plan.places(), before)

    def test_one_that_goes_on_not_answering_is_killed_once_and_followed_by_another(self) -> None:
        machine = self.machine
        machine.hung = {2}
        self.assertEqual(machine.wait(self.HUNG_S - ASK_EVERY_S), [])
        self.assertEqual(
            machine.wait(ASK_EVERY_S), [Log("error", "process_killed", {"slot": 1, "late": "answer"}), Kill(2)]
        )
        self.assertEqual(machine.wait(self.HUNG_S), [])
        self.assertEqual(events(machine.died(2)), ["process_died"])
        self.assertEqual(starts(machine.wait(RESTART_FIRST_S)), [(4, 1)])

    def test_time_in_which_the_parent_was_held_up_is_no_childs(self) -> None:
        machine = self.machine
        machine.hung = {1, 2, 3}
        for _ in range(QUIET_ASKS):
            machine.now_s += 1000.0
            self.assertEqual(machine.do(machine.plan.due(machine.now_s)), [])
        self.assertTrue(machine.plan.places()[1].leader)

    def test_who_starts_leaves_or_ends_is_not_asked(self) -> None:
        machine = self.machine
        machine.roll()
        machine.hung = {4}
        self.assertEqual(machine.wait(START_S - ASK_EVERY_S), [], "it is starting")
        machine.hung = {1}
        machine.ready(4)
        self.assertNotIn(1, {one.child for one in machine.wait(self.HUNG_S) if isinstance(one, Kill)}, "it hands over")
        machine.end()
        machine.hung = {2, 3, 4}
        self.assertEqual(machine.wait(self.HUNG_S), [], "it drains")


class LeaderTest(unittest.TestCase):
    def test_the_lowest_slot_that_serves_leads_and_no_other(self) -> None:
        machine = Machine()
        machine.serving()
        machine.died(1)
        places = machine.plan.places()
        self.assertEqual([child for child, place in places.items() if place.leader], [2])
        ((child, _),) = starts(machine.wait(RESTART_FIRST_S))
        self.assertTrue(machine.plan.places()[2].leader)
        machine.ready(child)
        places = machine.plan.places()
        self.assertEqual([number for number, place in places.items() if place.leader], [child])
        self.assertEqual(list(places)[-1], child, "the one before is told first")

    def test_who_has_been_replaced_leads_no_more(self) -> None:
        machine = Machine()
        machine.serving()
        machine.roll()
        self.assertTrue(machine.plan.places()[1].leader)
        machine.ready(4)
        places = machine.plan.places()
        self.assertEqual((places[1], places[4].leader), (Place(False, ()), True))


class RollingTest(unittest.TestCase):
    def test_each_is_replaced_when_its_successor_serves_one_after_another(self) -> None:
        machine = Machine()
        machine.serving()
        actions = machine.roll()
        self.assertEqual((events(actions), starts(actions)), (["rolling_restart"], [(4, 0)]))
        for old, new in ((1, 4), (2, 5)):
            actions = machine.ready(new)
            self.assertEqual(orders(actions), [(old, "hand_over")])
            self.assertEqual(starts(actions), [(new + 1, new - 3)])
            self.assertEqual(machine.plan.places()[new].accept, (), "no slot is ever without")
        actions = machine.ready(6)
        self.assertEqual((orders(actions), events(actions)), ([(3, "hand_over")], ["rolling_restart_done"]))
        self.assertEqual([machine.died(old, 0) for old in (1, 2, 3)], [[], [], []])

    def test_one_that_does_not_start_ends_it_and_the_old_ones_serve_on(self) -> None:
        machine = Machine()
        machine.serving()
        machine.roll()
        machine.ready(4)
        actions = machine.died(5, 2)
        self.assertEqual(events(actions), ["process_died", "rolling_restart_stopped"])
        self.assertEqual((orders(actions), starts(actions)), ([], []))
        self.assertEqual(starts(machine.wait(3600)), [])
        self.assertEqual(set(machine.plan.places()), {1, 2, 3, 4})
        self.assertEqual(starts(machine.roll()), [(6, 0)], "and it can be tried again")

    def test_one_that_never_serves_ends_it_too(self) -> None:
        machine = Machine()
        machine.serving()
        machine.roll()
        self.assertIn(Kill(4), machine.wait(START_S))
        self.assertIn("rolling_restart_stopped", events(machine.died(4)))

    def test_an_old_one_that_dies_meanwhile_is_followed_by_the_new_one(self) -> None:
        machine = Machine()
        machine.serving()
        machine.roll()
        self.assertEqual(events(machine.died(1)), ["process_died"])
        self.assertEqual(machine.plan.places()[2], Place(True, (0,)))
        actions = machine.ready(4)
        self.assertEqual((orders(actions), starts(actions)), ([], [(5, 1)]))

    def test_a_slot_that_has_nobody_just_now_gets_one_at_once(self) -> None:
        machine = Machine()
        machine.serving()
        machine.died(1)
        self.assertEqual(starts(machine.roll()), [(4, 0)])
        self.assertEqual(starts(machine.ready(4)), [(5, 1)])
        machine.died(4)
        self.assertEqual(starts(machine.wait(RESTART_FIRST_S)), [(6, 0)], "what the old one has died of is over")

    def test_one_that_is_starting_is_replaced_when_it_serves(self) -> None:
        machine = Machine()
        machine.serving()
        machine.died(1)
        self.assertEqual(starts(machine.wait(RESTART_FIRST_S)), [(4, 0)])
        self.assertEqual(starts(machine.roll()), [])
        self.assertEqual(starts(machine.ready(4)), [(5, 0)])

    def test_asked_for_twice_it_is_done_twice(self) -> None:
        machine = Machine(2)
        machine.serving()
        machine.roll()
        self.assertEqual(machine.roll(), [])
        machine.ready(3)
        self.assertEqual(starts(machine.ready(4)), [(5, 0)])

    def test_asked_for_before_all_serve_it_waits_for_them(self) -> None:
        machine = Machine(2)
        machine.begin()
        self.assertEqual(starts(machine.roll()), [])
        self.assertEqual(starts(machine.ready(1)), [(2, 1), (3, 0)])

    def test_who_hands_over_for_too_long_is_killed(self) -> None:
        machine = Machine(2)
        machine.serving()
        machine.roll()
        machine.ready(3, 4)
        self.assertEqual(machine.wait(HAND_OVER_S), [])
        self.assertEqual({one for one in machine.wait(END_EXTRA_S) if isinstance(one, Kill)}, {Kill(1), Kill(2)})


class EndingTest(unittest.TestCase):
    def test_all_drain_then_hurry_then_are_killed(self) -> None:
        machine = Machine(2)
        machine.serving()
        self.assertEqual(orders(machine.end()), [(1, "drain"), (2, "drain")])
        self.assertEqual(orders(machine.end()), [(1, "hurry"), (2, "hurry")])
        self.assertEqual(machine.end(), [Kill(1), Kill(2)])
        self.assertEqual(machine.died(1), [])
        self.assertEqual(machine.died(2), [End(1)])

    def test_the_status_is_0_when_all_have_ended_well(self) -> None:
        for last, expected in ((0, 0), (1, 1), (-9, 1)):
            with self.subTest(last=last):
                machine = Machine(2)
                machine.serving()
                machine.end(130)
                self.assertEqual(machine.died(1, 0), [])
                self.assertEqual(machine.died(2, last), [End(expected)])

    def test_before_anybody_serves_the_status_is_the_signals(self) -> None:
        machine = Machine(2)
        machine.begin()
        self.assertEqual(orders(machine.end(130)), [(1, "drain")])
        self.assertEqual(machine.died(1, 0), [End(130)])

    def test_nobody_is_started_any_more(self) -> None:
        machine = Machine(2)
        machine.serving()
        machine.died(1)
        machine.roll()
        machine.end()
        machine.do(machine.plan.lost(2, machine.now_s))
        self.assertEqual(starts(machine.ready(3)), [])
        self.assertEqual(starts(machine.wait(10)), [])
        self.assertEqual(machine.plan.reload(), [])
        self.assertEqual(machine.roll(), [])

    def test_one_that_serves_only_now_still_drains(self) -> None:
        machine = Machine(2)
        machine.begin()
        machine.end()
        self.assertEqual(machine.ready(1), [], "it has its order")
        self.assertEqual(machine.wait(DRAIN_S + END_EXTRA_S)[-1], Kill(1), "and no more time")
        self.assertEqual(machine.died(1, 0), [End(0)])

    def test_one_that_stands_still_at_its_start_has_no_more_time_than_that(self) -> None:
        machine = Machine(2)
        machine.begin()
        machine.wait(START_S - 1)
        machine.end()
        self.assertEqual(machine.wait(1)[-1], Kill(1))

    def test_while_all_drain_the_last_accept_for_those_that_have_ended(self) -> None:
        machine = Machine(2)
        machine.serving()
        machine.end()
        machine.died(1, 0)
        self.assertEqual(machine.plan.places(), {2: Place(True, (0,))})

    def test_who_does_not_end_is_killed_and_that_is_a_failure(self) -> None:
        machine = Machine(2)
        machine.serving()
        machine.end()
        machine.died(1, 0)
        self.assertEqual(machine.wait(DRAIN_S), [])
        self.assertEqual(machine.wait(END_EXTRA_S)[-1], Kill(2))
        self.assertEqual(machine.died(2), [End(1)])

    def test_with_nobody_alive_it_is_over_at_once(self) -> None:
        machine = Machine(2)
        machine.serving()
        machine.died(1)
        machine.died(2)
        self.assertEqual(machine.end(), [End(0)])

    def test_those_that_hand_over_are_told_too(self) -> None:
        machine = Machine(2)
        machine.serving()
        machine.roll()
        machine.ready(3)
        self.assertEqual(dict(orders(machine.end())), dict.fromkeys((1, 2, 3, 4), "drain"))

    def test_reloading_is_for_all_that_stay(self) -> None:
        machine = Machine(2)
        machine.serving()
        machine.roll()
        machine.ready(3)
        self.assertEqual(orders(machine.plan.reload()), [(2, "reload"), (3, "reload"), (4, "reload")])


class AnyOrderTest(unittest.TestCase):
    """Whatever happens, in whatever order: one leader at most, one child to come for each slot, an end."""

    def test_random_histories(self) -> None:
        for seed in range(300):
            rng = random.Random(seed)
            machine = Machine(rng.randint(2, 4))
            alive: set[int] = set()

            def take(actions: list[Any], alive: set[int] = alive) -> Any:
                for one in actions:
                    if isinstance(one, Start):
                        alive.add(one.child)
                    elif isinstance(one, End):
                        return one
                return None

            end = take(machine.begin())
            for _ in range(60):
                if end is not None:
                    break
                what = rng.random()
                child = rng.choice(sorted(alive))
                if what < 0.4:
                    end = take(machine.ready(child))
                elif what < 0.5:
                    alive.discard(child)
                    end = take(machine.died(child, rng.choice((0, 1, -9))))
                elif what < 0.55:
                    end = take(machine.do(machine.plan.lost(child, machine.now_s)))
                elif what < 0.65:
                    end = take(machine.roll())
                else:
                    end = take(machine.wait(rng.choice((0.1, 1.0, 40.0))))
                places = machine.plan.places()
                self.assertLessEqual(sum(place.leader for place in places.values()), 1, seed)
                self.assertLessEqual(set(places), alive, seed)
                if not alive and end is None:
                    end = take(machine.wait(RESTART_MAX_S))
            if end is None:
                for _ in range(3):
                    end = take(machine.end()) or end
                for child in sorted(alive):
                    self.assertIsNone(end, seed)
                    end = take(machine.died(child))
            self.assertIsNotNone(end, seed)


if __name__ == "__main__":
    unittest.main()
