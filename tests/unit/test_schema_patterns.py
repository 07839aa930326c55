"""ECMA-262 patterns: what they match, what is refused, and that no pattern takes more than linear time."""

from __future__ import annotations

import contextlib
import random
import re
import threading
import unittest
from unittest import mock

from gateway.schemas import patterns
from gateway.schemas.patterns import Pattern
from gateway.schemas.patternsyntax import PatternFaulty, PatternUnsupported, parse


def free(steps: int) -> None:
    pass


def matches(pattern: str, text: str) -> bool:
    return Pattern(pattern).search(text, free)


def cost(pattern: str, text: str) -> int:
    steps: list[int] = []
    Pattern(pattern).search(text, steps.append)
    return sum(steps)


def places_held(held: list[Pattern]) -> int:
    return sum(len(places) for pattern in held for places, _ in pattern._states)


class MatchTest(unittest.TestCase):
    def check(self, pattern: str, yes: tuple[str, ...], no: tuple[str, ...]) -> None:
        for text, expected in (*((text, True) for text in yes), *((text, False) for text in no)):
            with self.subTest(pattern=pattern, text=text):
                self.assertEqual(matches(pattern, text), expected)

    def test_a_match_may_stand_anywhere_unless_it_is_anchored(self) -> None:
        self.check("b+", ("abc", "b"), ("", "ac"))
        self.check("^b", ("bc",), ("abc", ""))
        self.check("b$", ("ab",), ("abc", "b\n"))
        self.check("^$", ("",), ("\n", "a"))
        self.check("", ("", "a"), ())

    def test_repetitions(self) -> None:
        self.check("^a{2,3}$", ("aa", "aaa"), ("a", "aaaa"))
        self.check("^a{2}$", ("aa",), ("a", "aaa"))
        self.check("^a{2,}$", ("aa", "a" * 50), ("a",))
        self.check("^(ab)*?c$", ("c", "ababc"), ("abac",))
        self.check("^a{0}b$", ("b",), ("ab",))
        self.check("^(a*)*$", ("", "aaa"), ("b",))
        self.check("^(|a)+$", ("", "aa"), ("b",))

    def test_alternatives_and_groups(self) -> None:
        self.check("^(?:cat|dog)s?$", ("cat", "dogs"), ("cats!", "catdog"))
        self.check("^(?<kind>a|b)c$", ("ac", "bc"), ("c",))
        self.check("a|^$", ("", "xa"), ("x",))

    def test_classes(self) -> None:
        self.check(r"^[a-c_\d-]+$", ("a-3_",), ("d", "a b"))
        self.check(r"^[^a-c]$", ("d", "\n", "é"), ("a", ""))
        self.check(r"^[\s\S]$", ("\n", "x"), ("",))
        self.check(r"^[^\D]$", ("1",), ("a",))
        self.check(r"^[\b]$", ("\b",), ("b",))
        self.check("^[]a]*$", (), ("a",))  # in ECMA-262 an empty class, and then `a]*`
        self.check("[^]", ("x", "\n"), ("",))

    def test_boundaries_of_words(self) -> None:
        self.check(r"\bcat\b", ("a cat.", "cat"), ("cats", "_cat"))
        self.check(r"\Bat\b", ("cat",), ("at", "attic"))
        self.check(r"^\b$", (), ("",))
        self.check(r"^\B$", ("",), ())

    def test_escapes(self) -> None:
        self.check(r"^\x41\u0042\u{43}\ud83d\ude00\t\cA\0$", ("ABC\U0001f600\t\x01\0",), ("ABC",))
        self.check(r"^\-\_\@\.\/$", ("-_@./",), ("-_@x/",))
        self.check(r"^\p{Lu}\P{L}$", ("É1",), ("é1",))
        self.check(r"^[\p{Letter}\p{gc=Nd}]+$", ("aé٣",), ("a b",))

    def test_a_dot_is_no_end_of_a_line_and_one_character_of_any_plane(self) -> None:
        self.check("^.$", ("a", "\U0001f432"), ("\n", "\r", "\u2028", "ab"))

    def test_braces_that_count_nothing_stand_for_themselves(self) -> None:
        self.check("^{.*}$", ("{a}",), ("a",))
        self.check("^a{,2}]$", ("a{,2}]",), ("aa]",))

    def test_the_same_as_re_for_random_patterns(self) -> None:
        pick = random.Random(5)

        def made(depth: int) -> str:
            kind = pick.randrange(9 if depth else 4)
            if kind < 4:
                return pick.choice(["a", "b", "[ab]", "[^a]", ".", r"\w", r"\b", "^", "$", r"\B", "c"])
            if kind < 6:
                return made(depth - 1) + made(depth - 1)
            if kind < 7:
                return f"(?:{made(depth - 1)}|{made(depth - 1)})"
            return f"(?:{made(depth - 1)}){pick.choice(['*', '+', '?', '{2}', '{1,2}', '{0,3}', '{2,}'])}"

        found = 0
        for _ in range(600):
            text = made(4)
            # Of Python's `$` and `\B`, the one matches before a last newline, the other not in an empty text.
            theirs = re.compile(text.replace("$", r"\Z"))
            ours = Pattern(text)
            for _ in range(8):
                subject = "".join(pick.choice("abc -") for _ in range(pick.randrange(1, 7)))
                expected = theirs.search(subject) is not None
                found += expected
                self.assertEqual(ours.search(subject, free), expected, (text, subject))
        self.assertGreater(found, 500)
        self.assertLess(found, 600 * 8 - 500)


class RefusalTest(unittest.TestCase):
    def test_what_is_no_pattern(self) -> None:
        for pattern in (
            *(
                "(",
                ")",
                "(a",
                "a)",
                "[a",
                "*",
                "a**",
                "+a",
                "a{2}{3}",
                "a{3,2}",
                "^*",
                r"\a",
                r"\Z",
                r"\x4",
                r"\u{110000}",
            ),
            *("(?P<n>a)", "(?i)a", "[b-a]", r"[\d-z]", "(?<1>a)", "\\", r"\p", r"\p{", r"[\B]", r"\c1", r"\01"),
        ):
            with self.subTest(pattern=pattern):
                with self.assertRaises(PatternFaulty):
                    parse(pattern)

    def test_what_cannot_be_matched_in_linear_time_or_is_too_large(self) -> None:
        for pattern in (
            *(
                "(?=a)",
                "(?!a)",
                "(?<=a)b",
                "(?<!a)b",
                r"(a)\1",
                r"(?<n>a)\k<n>",
                r"\p{Script=Greek}",
                r"\p{Alphabetic}",
            ),
            *("(a{1000}){1000}", "((){1000}){1000}", "a{99999}", "(" * 200 + ")" * 200, "a" * 5000),
        ):
            with self.subTest(pattern=pattern[:20]):
                with self.assertRaises(PatternUnsupported):
                    parse(pattern)


class CostTest(unittest.TestCase):
    def test_the_cost_is_linear_in_the_text(self) -> None:
        for pattern in ("^(a+)+$", "(a*)*b", "^(a|a)*$", "(x+x+)+y", "^(a|aa)+$", "(.*)(.*)(.*)x$", "^(a?){30}a{30}$"):
            with self.subTest(pattern=pattern):
                for text in ("a", "x"):
                    once, tenfold = cost(pattern, text * 1000 + "!"), cost(pattern, text * 10000 + "!")
                    self.assertLess(tenfold, 12 * once)
                    self.assertLess(tenfold, 20_000)

    def test_whoever_pays_can_end_it(self) -> None:
        def refuse(steps: int) -> None:
            raise InterruptedError

        with self.assertRaises(InterruptedError):
            Pattern("a").search("b", refuse)

    def test_what_is_kept_of_a_pattern_is_bounded(self) -> None:
        pattern = Pattern(r"^\p{L}{0,50}!$")
        for start in range(0x4E00, 0x4E00 + patterns.KEPT_MAX + 500, 40):
            pattern.search("".join(map(chr, range(start, start + 40))), free)
        self.assertLessEqual(pattern.kept, patterns.KEPT_MAX)
        self.assertTrue(pattern.search("é" * 50 + "!", free))
        self.assertFalse(pattern.search("é" * 51 + "!", free))

    def test_states_of_many_places_count_by_their_places(self) -> None:
        pick = random.Random(7)
        pattern = Pattern("^[ab]*a[ab]{2400}$")
        for _ in range(3):
            self.assertFalse(pattern.search("".join(pick.choice("ab") for _ in range(300)), free))
        self.assertLessEqual(places_held([pattern]), patterns.KEPT_MAX)

    def test_what_is_kept_of_all_patterns_is_bounded(self) -> None:
        pick = random.Random(7)
        many = [Pattern(f"^[ab]*a[ab]{{{number}}}$") for number in range(300, 330)]
        with mock.patch.object(patterns, "ALL_KEPT_MAX", 40_000):
            for pattern in many:
                pattern.search("".join(pick.choice("ab") for _ in range(60)), free)
            self.assertLessEqual(places_held(many), 40_000)
        for pattern in many:
            self.assertTrue(pattern.search("a" * 400, free))

    def test_what_is_forgotten_holds_nothing_and_a_search_in_it_goes_on(self) -> None:
        pattern = Pattern("^(ab)*c$")
        pattern.search("ababab!", free)
        states = list(pattern._states.values())
        pattern.forget()
        self.assertEqual([(dict(state), state.by_kind) for state in states], [({}, {})] * len(states))
        paid: list[int] = []

        def forget(steps: int) -> None:
            paid.append(steps)
            pattern.forget()

        self.assertTrue(pattern.search("ababc", forget))
        self.assertFalse(pattern.search("ababa", forget))
        self.assertGreater(len(paid), 10)

    def test_what_is_paid_for_in_vain_is_not_kept(self) -> None:
        paid = 0

        def pay(steps: int) -> None:
            nonlocal paid
            paid += 1
            if paid % 4 == 0:
                raise InterruptedError

        pattern = Pattern("^[ab]*a[ab]{99}$")
        for start in range(0x4E00, 0x4E00 + 50):
            with contextlib.suppress(InterruptedError):
                pattern.search("ab" + chr(start), pay)
        held = sum(10 + len(places) for places, _ in pattern._states) + len(pattern._kinds)
        self.assertLessEqual(held, pattern.kept)

    def test_threads_that_share_a_pattern_agree(self) -> None:
        pattern = Pattern(r"^(\w+@\w+\.)?(a|b){2,9}c$")
        texts = ["x@y." + "ab" * (number % 6) + "c" for number in range(300)]
        expected = [bool(re.search(r"^(\w+@\w+\.)?(a|b){2,9}c$", text)) for text in texts]
        found: list[list[bool]] = []
        threads = [
            threading.Thread(target=lambda: found.append([pattern.search(text, free) for text in texts]))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(found, [expected] * 4)


if __name__ == "__main__":
    unittest.main()
