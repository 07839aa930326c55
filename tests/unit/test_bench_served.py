"""The bench's model of serving: it decides as the gateway does, and hears no more than the gateway waits for."""

from __future__ import annotations

import itertools
import unittest

from gateway.verify.consensus import Inputs
from gateway.verify.harness.keys import key_of
from tests.bench.consensus import _decided
from tests.bench.members import Task
from tests.bench.served import Serving

PROMPT = "Write double(x).\n>>> double(1)\n2\n"
RIGHT, SQUARE, OTHER, BROKEN = range(4)
RESULTS = ((2, 6, 10), (2, 9, 25), (2, 4, 6), (0, 0, 0))
PROGRAMS = tuple(f"def double(x):\n    return {body}\n" for body in ("2 * x", "x * x + 1 * (x < 2)", "x + 1", "0"))


def task(expected: bool = True) -> Task:
    shape = Inputs((0, 1, 1), (key_of(2) if expected else None, None, None))
    keys = [tuple(map(key_of, results)) for results in RESULTS]
    right = [True, False, False, False]
    return Task("T/0", PROMPT, "double", "", list(PROGRAMS), right, keys, shape, [], [1, 2, 3], [1, 2])


class ServedTest(unittest.TestCase):
    def test_nobody_is_waited_for_when_most_of_all_agree(self) -> None:
        decision, heard = Serving(task()).serve((RIGHT, SQUARE, RIGHT), (0, 2, 1))
        self.assertEqual((decision.chosen, decision.verified, heard), (0, True, 2))

    def test_who_differs_is_heard_when_it_answers_earlier(self) -> None:
        decision, heard = Serving(task()).serve((RIGHT, SQUARE, RIGHT), (0, 1, 2))
        self.assertEqual((decision.chosen, decision.verified, heard), (0, False, 3))

    def test_equal_mistakes_are_verified_before_the_one_who_is_right_is_heard(self) -> None:
        decision, heard = Serving(task()).serve((SQUARE, SQUARE, RIGHT), (1, 0, 2))
        self.assertEqual((decision.chosen, decision.verified, heard), (0, True, 2))

    def test_a_majority_is_enough_where_nothing_could_fail(self) -> None:
        decision, heard = Serving(task(expected=False)).serve((OTHER, OTHER, RIGHT), (0, 1, 2))
        self.assertEqual((decision.strategy, decision.verified, heard), ("majority", False, 2))

    def test_when_all_are_heard_the_decision_is_that_on_all_answers(self) -> None:
        given = task()
        serving = Serving(given)
        heard_all = 0
        for programs in itertools.product(range(4), repeat=3):
            for order in itertools.permutations(range(3)):
                decision, heard = serving.serve(programs, order)
                if heard == 3:
                    heard_all += 1
                    self.assertEqual(decision, _decided(given.keys, given.inputs, programs))
        self.assertGreater(heard_all, 200)

    def test_inputs_can_be_made_from_what_has_come(self) -> None:
        decision, heard = Serving(task(), per_draw=True).serve((RIGHT, OTHER, RIGHT), (2, 0, 1))
        self.assertEqual((decision.chosen, decision.verified, heard), (0, True, 2))


if __name__ == "__main__":
    unittest.main()
