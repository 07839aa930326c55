"""The normal form of a prompt's words: harmless rewordings may have one form, other questions never do."""

from __future__ import annotations

import json
import random
import unittest
from pathlib import Path
from typing import NamedTuple

from gateway.reuse.wording import LONGEST_CHARS, form

DATA = Path(__file__).resolve().parent.parent / "data"


class Pair(NamedTuple):
    a: str
    b: str
    why: str


def pairs(name: str) -> list[Pair]:
    """The pairs of a data file, in its order."""
    return [Pair(**json.loads(line)) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def equal(a: str, b: str) -> bool:
    """Whether an answer to one would be given to the other."""
    found = form(a)
    return found is not None and found == form(b)


class PairsTest(unittest.TestCase):
    def test_no_pair_of_different_questions_has_one_form(self) -> None:
        known = pairs("near_different.jsonl")
        self.assertGreaterEqual(len(known), 450)
        wrong = [pair for pair in known if pair.a == pair.b or equal(pair.a, pair.b)]
        self.assertFalse(wrong, "\n".join(map(str, wrong)))

    def test_no_polite_or_spaced_version_of_a_different_question_has_its_form(self) -> None:
        wrong = [
            pair
            for pair in pairs("near_different.jsonl")
            for a, b in ((f"Please {pair.a}", f"please {pair.b}"), (f"{pair.a} ", f"{pair.b}\n"))
            if a.strip() != b.strip() and equal(a, b)
        ]
        self.assertFalse(wrong, "\n".join(map(str, wrong)))

    def test_most_harmless_rewordings_have_one_form(self) -> None:
        known = pairs("near_same.jsonl")
        self.assertGreaterEqual(len(known), 120)
        missed = [pair for pair in known if not equal(pair.a, pair.b)]
        self.assertLessEqual(len(missed), 0.4 * len(known), "\n".join(map(str, missed)))

    def test_no_pair_is_listed_twice_or_as_both(self) -> None:
        both = [frozenset((pair.a, pair.b)) for name in ("different", "same") for pair in pairs(f"near_{name}.jsonl")]
        self.assertEqual(len(both), len(set(both)))


class RulesTest(unittest.TestCase):
    def same(self, *texts: str) -> None:
        """All of them have one form."""
        for text in texts[1:]:
            with self.subTest(text=text):
                self.assertIsNotNone(form(text))
                self.assertEqual(form(texts[0]), form(text))

    def differ(self, *texts: str) -> None:
        """No two of them have one form."""
        forms = [form(text) or text for text in texts]
        self.assertEqual(len(set(forms)), len(texts), forms)

    def test_case_says_nothing_in_first_words_known_names_and_capitals_only(self) -> None:
        self.same("What is the capital of France?", "what is the capital of france", "WHAT IS THE CAPITAL OF FRANCE")
        self.same("How do I boil an egg?", "how do i boil an egg?")
        self.same("What is Python?", "what is python")

    def test_case_counts_everywhere_else(self) -> None:
        self.differ("Tell us about trade", "Tell US about trade")
        self.differ("Who is in Geneva?", "WHO is in Geneva?")
        self.differ("Turkey recipes", "turkey recipes")
        self.differ("What is I?", "what is i?")
        self.differ("Is a python venomous?", "Is a Python venomous?")

    def test_the_last_sign_says_nothing_where_the_words_make_the_question(self) -> None:
        self.same("What is inflation?", "What is inflation", "what is inflation??", "What is inflation ?")
        self.same("Is it cold in Oslo?", "is it cold in Oslo")

    def test_the_last_sign_counts_where_it_makes_the_question(self) -> None:
        self.differ("Python is fast.", "Python is fast?", "Python is fast!")
        self.differ("Delete the file", "Delete the file?")
        self.differ("What is done is done.", "What is done is done?")
        self.differ("What is 5!", "What is 5?")

    def test_politeness_says_nothing_before_an_order_or_a_question(self) -> None:
        self.same(
            "Explain how magnets work.",
            "Please explain how magnets work",
            "Could you please explain how magnets work?",
            "Can you explain how magnets work?",
            "Hi! Can you explain how magnets work? Thanks!",
            "explain how magnets work, please",
        )

    def test_what_only_looks_polite_counts(self) -> None:
        self.differ("Can you swim?", "Swim", "Swim?")
        self.differ("Would you describe yourself as shy?", "Describe yourself as shy")
        self.differ("Do as you please", "Do as you")
        self.differ("Hello, world in C", "world in C")
        self.differ("How do I say no, thanks", "How do I say no")

    def test_articles_say_nothing_only_in_known_places(self) -> None:
        self.same("What is the difference between tea and chai?", "what is difference between tea and chai")
        self.same("Write a short poem about rain", "write short poem about rain")
        self.differ("What is matter?", "What is the matter?")
        self.differ("Few know", "A few know", "The few know")

    def test_contractions_are_their_words(self) -> None:
        self.same("What's the tallest tower?", "what is the tallest tower?", "What’s the tallest tower")
        self.same("My car won't start", "My car will not start")
        self.differ("My car won't start", "My car will start", "My car can't start")
        self.differ("It's red", "Its red")

    def test_words_that_are_spoken_of_stay_as_they_are(self) -> None:
        self.differ("What does won't mean?", "What does will not mean?")
        self.differ("Spell colour", "Spell color")
        self.differ("Translate to French: hello", "Translate to French: hello!", "Translate to French: Hello")
        self.differ('Who said "I think"?', 'Who said "i think"?')

    def test_numbers_units_order_and_negation_count(self) -> None:
        self.differ(
            "Round 3", "Round 3.0", "Round three", "Round -3", "Round 3%", "Round $3", "Round 1,000", "Round 1.000"
        )
        self.differ("Does Alice owe Bob?", "Does Bob owe Alice?")
        self.differ("Is it safe?", "Is it not safe?", "Is it unsafe?")

    def test_code_and_lines_stay_as_they_are(self) -> None:
        self.differ("if x:\n  a()\n  b()", "if x:\n  a()\nb()")
        self.differ(" a\n b", "a\n b")
        self.differ("If x:\n  a()", "if x:\n  a()")
        self.differ("What is `a  b`?", "What is `a b`?")
        self.differ("What is C?", "What is C++?", "What is C#?", "What is c?")

    def test_letters_of_other_languages_stay(self) -> None:
        self.differ("un año", "un ano")
        self.same("un a\u00f1o", "un a\u00f1o ")

    def test_letters_that_only_look_alike_are_others(self) -> None:
        # A question may be about them: how many there are, or in which form.
        for one, other in (("un an\u0303o", "un a\u00f1o"), ("in e\u0301 now", "in \u00e9 now")):
            self.differ(one, other)
            self.differ(f"How many code points are {one}?", f"How many code points are {other}?")

    def test_what_shares_nothing_has_no_form(self) -> None:
        for text in ("", " \n", "?", "please", "Hello!", "What is it?", "Why?", "a\tb", "a\x00b", "x " * LONGEST_CHARS):
            with self.subTest(text=text[:20]):
                self.assertIsNone(form(text))


class PropertiesTest(unittest.TestCase):
    def test_it_never_raises_and_says_the_same_each_time(self) -> None:
        chance = random.Random(7)
        parts = [
            "please",
            "What",
            "is",
            "the",
            "'",
            '"',
            "“",
            "”",
            "\n",
            ":",
            "?",
            "!",
            ".",
            ",",
            "I",
            "can't",
            "é",
            "e\u0301",
        ]
        parts += [
            "  ",
            " ",
            "Hi",
            "thanks",
            "can you",
            "explain",
            "x=1",
            "`",
            "😀",
            "\u200d",
            "\u3000",
            "US",
            "'s",
            "(",
            ")",
            "-",
        ]
        for _ in range(3000):
            text = "".join(chance.choice(parts) + chance.choice(("", " ")) for _ in range(chance.randrange(14)))
            with self.subTest(text=text):
                self.assertEqual(form(text), form(text))
        for _ in range(500):
            text = "".join(chr(chance.randrange(0x11000)) for _ in range(chance.randrange(40)))
            form(text)

    def test_space_around_the_text_says_nothing(self) -> None:
        for pair in pairs("near_same.jsonl"):
            self.assertEqual(form(pair.a.strip()), form(f" {pair.a.strip()}  "))

    def test_long_hostile_texts_are_read(self) -> None:
        for unit in (
            '"',
            "'a ",
            "“a ",
            "a.",
            "?",
            "! ",
            "can't ",
            "a'",
            "-a",
            "1+1+",
            "the the ",
            "what is ",
            "hi ",
            "(",
            "e\u0301",
        ):
            form(unit * (LONGEST_CHARS // len(unit)))


if __name__ == "__main__":
    unittest.main()
