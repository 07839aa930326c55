"""What an answer without code comes down to, and which answers are the same."""

from __future__ import annotations

import json
import random
import unittest
from collections.abc import Sequence
from fractions import Fraction
from typing import Optional

from gateway.verify.finals import Final, final_of, groups_of, same


class ShapesTest(unittest.TestCase):
    def all_are(self, wanted: Optional[Final], texts: Sequence[str]) -> None:
        for text in texts:
            self.assertEqual(final_of(text), wanted, text)

    def test_a_number_is_found_in_the_shapes_that_models_give_it(self) -> None:
        self.all_are(
            Final("number", "42"),
            (
                *("42", "42.", " **42** ", "`42`", "42.0", "+42", "$42$", "\\(42\\)", "= 42", "x = 42", "≈ 42"),
                *("The answer is 42.", "The answer is **42**.", "Answer: 42", "**Answer:** 42", "**Answer: 42**"),
                *(
                    "The final answer is $\\boxed{42}$.",
                    "\\[\\boxed{42}\\]",
                    "First \\boxed{6}, so \\boxed{42}",
                    "#### 42",
                ),
                "Final Answer: The final answer is $\\boxed{42}$. I hope it is correct.",
                "Step 1: 6 apples.\nStep 2: 7 each.\n\n### Final Answer\n\nThe final answer is: 42",
                *("### Answer:\n\n42", "Six times seven.\n#### 42", "So, 6 * 7 = 42.", "Therefore, the total is 42."),
                *("The answer is 42 because 6 * 7 is that.", "The answer to the question is 42, which is even."),
                *("<think>\nIs the answer is 41?\n</think>\n\n42", "It is 41.\n</think>\n\nThe answer is 42."),
                "The answer is 41. Wait, that is wrong. The correct answer is 42.",
            ),
        )

    def test_numbers_are_what_they_are_worth(self) -> None:
        for text, value in (
            *(("1,234.50", "2469/2"), ("1.234,5", "2469/2"), ("1 234 567", "1234567"), ("1'000", "1000"), ("-3", "-3")),
            *(
                ("−3", "-3"),
                ("1/2", "1/2"),
                ("0.5", "1/2"),
                (".5", "1/2"),
                ("\\boxed{\\dfrac{2}{4}}", "1/2"),
                ("1½", "3/2"),
            ),
            *(
                ("2 1/2", "5/2"),
                ("1.5e3", "1500"),
                ("1.5 × 10^3", "1500"),
                ("1.5 \\times 10^{3}", "1500"),
                ("10⁵", "100000"),
            ),
            *(("5 million", "5000000"), ("two", "2"), ("0,75", "3/4"), ("1.234.567", "1234567"), ("1e-2", "1/100")),
            ("\\boxed{1{,}000}", "1000"),
        ):
            self.assertEqual(final_of(text), Final("number", value), text)

    def test_units_are_named_alike_and_never_converted(self) -> None:
        for texts, unit in (
            (
                (
                    "5 km",
                    "5 kilometres",
                    "5km",
                    "The answer is 5 kilometers.",
                    "\\boxed{5\\text{ km}}",
                    "\\boxed{5\\,\\mathrm{km}}",
                ),
                "km",
            ),
            (("$5", "5 dollars", "5 USD", "\\boxed{\\$5}", "The answer is $5.00."), "USD"),
            (("5%", "5 percent", "5 per cent", "\\boxed{5\\%}"), "%"),
            (("5 m/s²", "5 m/s^2"), "m/s^2"),
            (("5 °C", "5°C", "5 degrees Celsius"), "C"),
            (("5 apples", "5 apples in total"), "apple"),
        ):
            self.all_are(Final("number", "5", unit), texts)

    def test_a_sentence_that_says_how_much_something_is_gives_that(self) -> None:
        for text in (
            "The distance is 5 kilometers.",
            "The total distance that the train covers is **5 km**",
            "It is 5 km.",
            "Its length is about 5 kilometres",
        ):
            self.assertEqual(final_of(text), Final("number", "5", "km"), text)
        self.assertTrue(same("The distance is 42 kilometers", "42 km"))
        for text in (
            "The distance is 5 km, not 6.",
            "The distance is not 5 km.",
            "The first distance is 5 km.",
            "The distance is 5 km or 6 km.",
            "The distance is 5 km. The time is 2 h.",
            "The distance to Bern is 5 km and to Thun is 6 km",
            "The distance is 5 times that",
            "The winners are 5 cats",
            "Anna is 5 years.",
            "The distance is 5 km.\nThe time is 2 h.",
        ):
            self.assertIsNone(final_of(text), text)

    def test_a_lists_only_item_is_the_answer(self) -> None:
        self.all_are(Final("number", "5"), ("- 5", "* 5", "+ 5.", "- **5**", "• 5"))
        self.all_are(Final("number", "-5"), ("-5", "- -5"))
        self.all_are(Final("choice", "B"), ("- B", "- (B)"))
        self.assertIsNone(final_of("- 5\n- 6"))
        self.assertTrue(same("- Paris", "Paris"))

    def test_a_choice_is_its_letter(self) -> None:
        self.all_are(
            Final("choice", "B"),
            (
                *(
                    "B",
                    "(B)",
                    "B.",
                    "B)",
                    "[B]",
                    "Option B",
                    "option b",
                    "**B**",
                    "Answer: B",
                    "Answer: b)",
                    "Answer: (b)",
                ),
                *("The correct answer is **B) Paris**.", "The answer is B. Paris", "(B) Paris"),
                *(
                    "B) Paris",
                    "B: Paris",
                    "Option B: Paris",
                    "\\boxed{B}",
                    "\\boxed{\\text{B}}",
                    "The answer is (B) Paris.",
                ),
                "**B) Paris**\n\nParis is the capital.",
                "The answer is B because it is so.",
            ),
        )
        self.all_are(Final("choice", "A,C"), ("A and C", "A, C", "The answers are A and C.", "C and A"))

    def test_a_letter_that_may_be_a_word_or_a_list_is_no_choice(self) -> None:
        for text in ("A dog", "a", "A. Lincoln was here", "A) x\nB) y\nC) z", "The answer is a dog.", "I", "B-52"):
            found = final_of(text)
            self.assertTrue(found is None or found.kind == "text", (text, found))

    def test_yes_and_no_are_found_where_they_begin_or_are_the_answer(self) -> None:
        self.all_are(
            Final("boolean", "yes"), ("Yes", "yes.", "**Yes**, it is.", "Yes - always", "True", "The answer is yes.")
        )
        self.all_are(Final("boolean", "no"), ("No", "No, it is not.\nFor 4 = 2 * 2.", "false", "\\boxed{\\text{No}}"))
        self.all_are(None, ("No one knows.", "Yes and no.", "Yes, but only on Mondays.", "Nobody", "No. 5"))

    def test_dates_that_can_be_read_in_one_way_are_one(self) -> None:
        self.all_are(
            Final("date", "2024-03-05"),
            ("2024-03-05", "March 5, 2024", "5 March 2024", "5th of March 2024", "The answer is Mar. 5th, 2024."),
        )
        self.all_are(None, ("03/05/2024", "2024-13-05", "March 2024"))

    def test_json_is_compared_by_value(self) -> None:
        self.all_are(
            Final("json", '{"a":[1,2,"1"],"b":{"c":null}}'),
            (
                '{"a": [1, 2, "1"], "b": {"c": null}}',
                ' {"b":{"c":null},"a":[1.0,2e0,"1"]} ',
                'Here you are:\n```json\n{"b": {"c": null},\n "a": [1, 2.00, "1"]}\n```\nDone.',
                '```\n{"a": [1, 2, "1"], "b": {"c": null}}\n```',
            ),
        )
        self.all_are(None, ('{"a": NaN}', '{"a": 1, "a": 2}', '{"a": 1', "```python\n{}\n```", "[" * 60 + "]" * 60))
        self.assertNotEqual(final_of('{"a": true}'), final_of('{"a": 1}'))

    def test_what_a_text_calls_its_answer_is_its_answer(self) -> None:
        self.assertTrue(same("The answer is Paris.", "Paris"))
        self.assertTrue(same("\\boxed{\\text{Paris}}", "After all, the final answer is **Paris**."))
        self.assertFalse(same("The answer is Paris.", "The answer is Lyon."))
        self.assertEqual(final_of("\\boxed{x^2 + 1}"), Final("expression", "x^2+1"))

    def test_what_is_taken_back_or_one_of_several_is_no_answer(self) -> None:
        for text in (
            *("The answer is 10. Wait, it is 12.", "The answer is 10.\n\nActually, 12 of them.", "Yes. Actually no."),
            *("Yes, it is. No, wait: it is not.", "x = 5 or x = -5", "So x² = 25, and x = ±5"),
        ):
            self.assertIsNone(final_of(text), text)
        for text in ("Wait, 5 + 7. The answer is 12.", "The answer is 10. Actually, the answer is 12."):
            self.assertEqual(final_of(text), Final("number", "12"), text)
        self.assertEqual(final_of("The answer is actually 12."), final_of("The answer is actually 12"))

    def test_numbers_that_are_not_plainly_the_answer_are_none(self) -> None:
        self.all_are(
            None,
            (
                *(
                    "",
                    "  ",
                    "<think>42",
                    "3 or 4",
                    "between 3 and 5",
                    "The answer is not 42.",
                    "5 more than six",
                    "1/0",
                ),
                *(
                    "12:30",
                    "3.5.1",
                    "(1, 5)",
                    "Armstrong landed in 1969.",
                    "Aldrin did, in 1969.",
                    "2 times 3",
                    "3x + 2",
                ),
                *(
                    "Therefore, Bob wins with 5 votes.",
                    "So there are at least 5.",
                    "Hence 3 of 5 are.",
                    "192.168.0.1",
                    "$5 km",
                ),
                "I have 3 cats.\nAnd 2 dogs.",
            ),
        )


class GroupsTest(unittest.TestCase):
    def test_the_largest_group_is_first_and_who_gave_nothing_is_in_none(self) -> None:
        texts = ["7", None, "The answer is 42.", "", "\\boxed{42}", "<think>7", "7.5"]
        self.assertEqual(groups_of(texts), [[2, 4], [0], [6]])
        self.assertEqual(groups_of([]), [])

    def test_answers_without_a_final_form_are_compared_by_their_words(self) -> None:
        texts = [
            "The sky looks blue as short waves scatter inside clouds.",
            "The sky looks blue as short waves scatter inside clouds",
            "The sky looks blue as long waves scatter inside clouds.",
            "The sky does not look blue.",
        ]
        self.assertEqual(groups_of(list(texts)), [[0, 1], [2], [3]])

    def test_long_texts_are_the_same_only_to_the_letter(self) -> None:
        text = "word " * 3000
        self.assertEqual(groups_of([text, text + "\n", text + "more"]), [[0, 1], [2]])

    def test_a_number_without_a_unit_joins_the_only_unit_there_is(self) -> None:
        self.assertEqual(groups_of(["42 km", "42", "42 kilometers"]), [[0, 1, 2]])
        self.assertEqual(groups_of(["42 km", "42", "42 m", "42 km"]), [[0, 3], [1], [2]])
        self.assertEqual(groups_of(["50%", "0.5", "1/2"]), [[1, 2], [0]])

    def test_a_yes_is_no_choice_and_no_number(self) -> None:
        self.assertEqual(len(groups_of(["yes", "A", "1", "[1]", '"1"', "no"])), 6)

    def test_of_nothing_nothing_is_the_same(self) -> None:
        self.assertFalse(same("", ""))
        self.assertFalse(same("<think>a", "<think>a"))


class GeneratedTest(unittest.TestCase):
    def test_a_number_survives_every_way_of_writing_it(self) -> None:
        chance = random.Random(21)
        frames = (
            "{}",
            "**{}**",
            "The answer is {}.",
            "#### {}",
            "\\boxed{{{}}}",
            "<think>9</think>\n{}",
            "Answer: {}\n",
            "a + b = {}",
        )
        for _ in range(500):
            value = Fraction(chance.randrange(-(10**7), 10**7), chance.choice((1, 10, 100)))
            number = float(value)
            written = {f"{value.numerator}/{value.denominator}", f"{number:.2f}", f"{number:,.2f}", f"{number:.9e}"}
            for text in written:
                framed = chance.choice(frames).format(text)
                self.assertEqual(final_of(framed), Final("number", str(value)), framed)

    def test_groups_are_a_partition_whatever_the_order(self) -> None:
        chance = random.Random(22)
        pool = [
            "5",
            "5 km",
            "5 m",
            "#### 5",
            "5.0",
            "yes",
            "Yes, so it is.",
            "B",
            "(B)",
            "Paris",
            "paris",
            "{}",
            "[5]",
            "",
            None,
        ]
        for _ in range(300):
            texts = chance.choices(pool, k=chance.randrange(9))
            groups = groups_of(list(texts))
            members = sorted(index for group in groups for index in group)
            self.assertEqual(members, [index for index, text in enumerate(texts) if text])
            order = chance.sample(range(len(texts)), len(texts))
            again = groups_of([texts[index] for index in order])
            self.assertEqual(
                {frozenset(group) for group in groups}, {frozenset(order[i] for i in group) for group in again}
            )
            place = {index: number for number, group in enumerate(groups) for index in group}
            for one in members:
                for other in members:
                    if same(texts[one] or "", texts[other] or ""):
                        self.assertEqual(place[one], place[other])

    def test_json_is_the_same_in_any_order_and_spacing(self) -> None:
        chance = random.Random(23)
        for _ in range(200):
            value = {chance.choice("abcdef"): chance.choice([1, 2.5, None, [1, {"x": "y"}], "é"]) for _ in range(4)}
            mixed = dict(chance.sample(sorted(value.items()), len(value)))
            self.assertTrue(same(json.dumps(value), f"```json\n{json.dumps(mixed, indent=2, ensure_ascii=False)}\n```"))


class HostileTest(unittest.TestCase):
    def test_long_texts_of_any_signs_are_read_in_bounded_time(self) -> None:
        # Were any of it quadratic, this would not end.
        pieces = (
            "9",
            "1,",
            "answer is ",
            "the ",
            "\\boxed{",
            "{",
            "[",
            "####\n",
            "yes ",
            "A and ",
            '{"a":',
            "**a",
            " ",
            "= ",
            "\\frac{",
        )
        for piece in (*pieces, "$", "a.", "the answer of ", "answer *", "(", "`", "So 1", "1/", "- "):
            for text in (piece * (300_000 // len(piece)), piece * (3900 // len(piece)), piece * (280 // len(piece))):
                groups_of([text, text + "x", "x" + text])

    def test_json_of_too_many_values_or_digits_is_no_final(self) -> None:
        self.assertIsNone(final_of("[" + "1," * 20_000 + "1]"))
        self.assertEqual(final_of("[" + "9" * 5000 + "]"), Final("json", "[" + "9" * 5000 + "]"))
