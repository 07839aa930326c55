"""Who is chosen among candidates, and what it takes to be verified."""

from __future__ import annotations

import unittest
from typing import Optional

from gateway.verify.consensus import (
    Candidate,
    Decision,
    Inputs,
    Tested,
    decide,
    decide_tested,
    decide_texts,
    uncompared,
)

# Two examples (results 1 and 2), two literals, one near, one wild.
INPUTS = Inputs((0, 0, 1, 1, 2, 3), ("1", "2", None, None, None, None))
RIGHT = ("1", "2", "3", "4", "5", "6")
WRONG = ("1", "2", "3", "4", "9", "6")  # differs near the domain
WILD = ("1", "2", "3", "4", "5", "9")  # differs outside of it
FAILING = ("1", "7", "3", "4", "5", "6")  # fails an example
RAISING = ("!A", "!B", "!C", "!D", "!E", "!F")


def decision(
    *vectors: Optional[tuple[str, ...]], members: int = 0, families: str = "abcdefg", min_families: int = 1
) -> Decision:
    candidates = [Candidate(member, families[member], keys) for member, keys in enumerate(vectors)]
    return decide(candidates, INPUTS, members or len(vectors), min_families)


class VerifiedTest(unittest.TestCase):
    def test_three_that_agree_and_pass_the_examples_are_verified(self) -> None:
        made = decision(RIGHT, RIGHT, RIGHT)
        self.assertEqual((made.chosen, made.verified, made.strategy, made.agreement), (0, True, "consensus", 1.0))
        self.assertEqual(made.groups, [[0, 1, 2]])

    def test_programs_that_only_fail_beside_the_examples_agree_about_nothing(self) -> None:
        failing = ("1", "2", "!A", "!B", "!C", "6")
        made = decision(failing, failing, failing)
        self.assertEqual((made.chosen, made.verified, made.strategy), (0, False, "majority"))
        once = ("1", "2", "!A", "4", "!C", "!D")
        self.assertTrue(decision(once, once, once).verified)
        only = decide([Candidate(n, "ab"[n], ("1", "2")) for n in (0, 1)], Inputs((0, 0), ("1", "2")), 2)
        self.assertTrue(only.verified)  # where there is nothing beside

    def test_one_alone_agrees_with_nobody(self) -> None:
        keys = ("i1", "i2")
        only = decide([Candidate(0, "a", keys)], Inputs((0, 2), ("i1", None)), 1)
        self.assertEqual((only.verified, only.chosen), (False, 0))

    def test_two_of_three_are_verified_when_the_third_fails_an_example(self) -> None:
        made = decision(FAILING, RIGHT, RIGHT)
        self.assertEqual((made.chosen, made.verified), (1, True))

    def test_two_of_three_are_not_when_the_third_passes_and_differs_near_the_domain(self) -> None:
        made = decision(RIGHT, RIGHT, WRONG)
        self.assertEqual((made.chosen, made.verified, made.strategy), (0, False, "majority"))

    def test_a_result_that_nobody_can_look_into_is_not_known_to_be_the_same(self) -> None:
        for key in ("ofunction", "o[oPattern]", "large list 60000"):
            unseen = (*RIGHT[:4], key, "6")
            made = decision(unseen, unseen, unseen)
            self.assertEqual((made.chosen, made.verified, made.strategy), (0, False, "majority"), key)
        elsewhere = (*RIGHT[:5], "ofunction")
        self.assertTrue(decision(elsewhere, elsewhere, elsewhere).verified)

    def test_an_exception_near_the_domain_is_a_difference(self) -> None:
        self.assertFalse(decision(RIGHT, RIGHT, (*RIGHT[:4], "!E", "6")).verified)

    def test_a_difference_outside_of_the_domain_does_not_count_against_the_group(self) -> None:
        self.assertTrue(decision(RIGHT, RIGHT, WILD).verified)

    def test_but_who_differs_there_is_not_of_the_group(self) -> None:
        made = decision(RIGHT, WILD, FAILING)
        self.assertFalse(made.verified)

    def test_with_five_members_one_may_differ_and_two_may_not(self) -> None:
        other = (*WRONG[:4], "8", "6")
        self.assertTrue(decision(RIGHT, RIGHT, RIGHT, WRONG, FAILING).verified)
        self.assertFalse(decision(RIGHT, RIGHT, RIGHT, WRONG, other).verified)
        self.assertFalse(decision(RIGHT, RIGHT, RIGHT, WRONG).verified)

    def test_a_majority_is_one_of_all_members_not_of_those_that_ran(self) -> None:
        self.assertFalse(decision(RIGHT, RIGHT, members=4).verified)
        self.assertFalse(decision(RIGHT, RIGHT, None, RAISING, FAILING).verified)
        self.assertTrue(decision(RIGHT, RIGHT, members=3).verified)
        self.assertFalse(decision(RIGHT, members=2).verified)

    def test_without_an_example_nothing_could_have_failed(self) -> None:
        candidates = [Candidate(member, "", RIGHT) for member in range(3)]
        made = decide(candidates, Inputs(INPUTS.tiers, (None,) * 6), 3)
        self.assertEqual((made.verified, made.strategy), (False, "majority"))

    def test_what_a_result_must_not_be_is_demanded_but_is_not_enough_to_verify(self) -> None:
        candidates = [Candidate(member, "abc"[member], RIGHT) for member in range(3)]
        for expected, verified in ((("1", "≠7"), True), (("1", "≠2"), False), (("≠7", "≠7"), False)):
            inputs = INPUTS._replace(expected=(*expected, *INPUTS.expected[2:]))
            self.assertEqual(decide(candidates, inputs, 3).verified, verified, expected)

    def test_all_examples_must_pass(self) -> None:
        made = decision(FAILING, FAILING, FAILING)
        self.assertEqual((made.chosen, made.verified, made.strategy), (0, False, "majority"))
        self.assertEqual(made.details["examples_passed"], 1)

    def test_all_exceptions_are_one_result(self) -> None:
        self.assertTrue(decision((*RIGHT[:5], "!A"), (*RIGHT[:5], "!B"), members=3).verified)

    def test_a_candidate_known_to_be_wrong_is_not_verified_however_many_agree_with_it(self) -> None:
        for wrong in (FAILING, RAISING, ("2", "1", "3", "4", "5", "6")):
            self.assertFalse(decision(*[wrong] * 5).verified, wrong)


class ChoiceTest(unittest.TestCase):
    def test_who_passes_most_examples_is_chosen_before_a_larger_group(self) -> None:
        self.assertEqual(decision(FAILING, FAILING, RIGHT).chosen, 2)

    def test_who_raises_everywhere_is_out(self) -> None:
        self.assertEqual(decision(RAISING, RAISING, RIGHT).chosen, 2)
        made = decision(RAISING, None, RAISING)
        self.assertEqual((made.chosen, made.verified, made.strategy), (None, False, "abstained"))

    def test_a_tie_falls_to_agreement_near_the_domain(self) -> None:
        made = decision(WRONG, RIGHT, WILD)
        self.assertEqual((made.chosen, made.verified, made.strategy), (1, False, "best_available"))
        self.assertIs(made.details["tie"], True)

    def test_then_to_results_that_others_share(self) -> None:
        far = ("1", "2", "7", "8", "9", "6")
        middle = ("1", "2", "7", "4", "5", "6")
        self.assertEqual(decision(far, (*RIGHT[:4], "0", "6"), middle).chosen, 2)

    def test_exceptions_are_no_results_to_share(self) -> None:
        one, other = ("1", "2", "!", "!", "5", "6"), ("1", "2", "!", "!", "8", "6")
        self.assertEqual(decision(RIGHT, one, other).chosen, 0)

    def test_then_to_the_order_of_members(self) -> None:
        self.assertEqual(decision(WRONG, RIGHT).chosen, 0)
        self.assertEqual(decision(RIGHT, WRONG).chosen, 0)

    def test_the_chosen_group_comes_first_and_larger_ones_before_smaller(self) -> None:
        self.assertEqual(decision(WRONG, RIGHT, WILD, RIGHT).groups, [[1, 3], [0], [2]])

    def test_the_order_in_which_candidates_are_given_changes_nothing(self) -> None:
        candidates = [Candidate(member, "", keys) for member, keys in enumerate((WRONG, RIGHT, WILD))]
        self.assertEqual(decide(candidates[::-1], INPUTS, 3), decide(candidates, INPUTS, 3))


class FamiliesTest(unittest.TestCase):
    def test_members_of_one_family_are_one_voice(self) -> None:
        self.assertFalse(decision(RIGHT, RIGHT, RIGHT, families="aaa", min_families=2).verified)
        self.assertTrue(decision(RIGHT, RIGHT, RIGHT, families="aab", min_families=2).verified)

    def test_a_smaller_group_of_several_families_goes_before_a_larger_one_of_one(self) -> None:
        made = decision(WRONG, WRONG, WRONG, RIGHT, RIGHT, families="aaabc", min_families=2)
        self.assertEqual((made.chosen, made.verified), (3, False))


class TestsGivenTest(unittest.TestCase):
    def made(self, *passes: int, total: int = 3, families: str = "abcdef", min_families: int = 1) -> Decision:
        tested = [Tested(member, families[member], count) for member, count in enumerate(passes)]
        return decide_tested(tested, total, len(passes), min_families)

    def test_one_that_passes_is_verified_and_chosen(self) -> None:
        made = self.made(2, 3, 0)
        self.assertEqual((made.chosen, made.verified, made.strategy, made.groups), (1, True, "tests_passed", [[1]]))
        self.assertAlmostEqual(made.agreement, 1 / 3)

    def test_all_that_pass_are_the_group_and_the_first_of_them_is_chosen(self) -> None:
        made = self.made(0, 3, 1, 3)
        self.assertEqual((made.chosen, made.groups, made.agreement), (1, [[1, 3]], 0.5))

    def test_where_none_passes_the_most_tests_passed_choose_and_nobody_agrees_with_anybody(self) -> None:
        made = self.made(1, 1, 2)
        self.assertEqual((made.chosen, made.verified, made.strategy), (2, False, "best_available"))
        self.assertEqual(made.groups, [[2], [0], [1]])
        self.assertAlmostEqual(made.agreement, 1 / 3)

    def test_programs_of_one_family_are_not_enough_where_two_are_demanded(self) -> None:
        made = self.made(3, 3, 0, families="aab", min_families=2)
        self.assertEqual((made.chosen, made.verified, made.strategy), (0, False, "best_available"))
        self.assertTrue(self.made(3, 3, 0, families="aba", min_families=2).verified)

    def test_where_nothing_could_be_tested_there_is_no_choice(self) -> None:
        made = decide_tested([], 3, 2)
        self.assertEqual((made.chosen, made.verified, made.strategy), (None, False, "abstained"))


class UncomparedTest(unittest.TestCase):
    def test_the_first_that_has_answered_is_chosen_and_nobody_is_said_to_agree(self) -> None:
        made = uncompared([2, 1])
        self.assertEqual((made.chosen, made.verified, made.strategy, made.agreement), (1, False, "best_available", 0.0))
        self.assertEqual((made.groups, made.agrees), ([], False))

    def test_without_an_answer_there_is_no_choice(self) -> None:
        self.assertIsNone(uncompared([]).chosen)


class TextsTest(unittest.TestCase):
    def test_texts_are_never_verified(self) -> None:
        made = decide_texts([[0, 1, 2]], ["a", "b", "c"], 3)
        self.assertEqual((made.chosen, made.verified, made.strategy, made.agreement), (0, False, "majority", 1.0))

    def test_the_largest_group_is_chosen_and_a_tie_falls_to_the_first_member(self) -> None:
        self.assertEqual(decide_texts([[0], [2, 1]], ["a", "b", "c"], 3).chosen, 1)
        made = decide_texts([[2], [0]], ["a", "b", "c"], 3)
        self.assertEqual((made.chosen, made.strategy), (0, "best_available"))

    def test_a_majority_needs_the_families_asked_for(self) -> None:
        self.assertEqual(decide_texts([[0, 1]], ["a", "a"], 2, 2).strategy, "best_available")

    def test_no_answer_is_no_choice(self) -> None:
        made = decide_texts([], [], 3)
        self.assertEqual((made.chosen, made.strategy), (None, "no_code"))


if __name__ == "__main__":
    unittest.main()
