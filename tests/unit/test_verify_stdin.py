"""What prompts say a program reads and prints, and what else it is run with."""

from __future__ import annotations

import ast
import json
import time
import unittest
from collections import Counter
from random import Random
from typing import Any, Optional

from gateway.verify.building import HARNESSES
from gateway.verify.harness.feeds import Feeds
from gateway.verify.harness.generate import STDINS_MAX, Generated, generate
from gateway.verify.harness.mining import Pool
from gateway.verify.harness.stdin import stdin_examples
from gateway.verify.harness.stdio import printed_key, reads_stdin
from gateway.verify.sandbox.texts import harness_sources

READER = "a, b = map(int, input().split())\nprint(a + b)"
TASK = "### Input\nThe first line contains n.\n\n### Output\nPrint the sum.\n\n"


def read(prompt: str) -> list[tuple[str, Optional[str]]]:
    return [tuple(example) for example in stdin_examples(prompt)]  # type: ignore[misc]


def more(*known: str, prompt: str = "", sources: tuple[str, ...] = (), seed: int = 1) -> list[str]:
    return Feeds(list(known), prompt, Pool(), list(sources), Random(seed)).more(30)


class ExamplesTest(unittest.TestCase):
    def test_each_usual_form_gives_what_is_read_and_printed(self) -> None:
        for prompt in (
            "Input:\n5\nOutput:\n15",
            "Input: 5 Output: 15",
            "Input: 5\nOutput: 15\n\nWrite it in Python.",
            "Add them up. Input: 5 Output: 15",
            "Example: Input: 5, Output: 15.",
            "Add them up. Input:\n```\n5\n```\nOutput:\n```\n15\n```",
            "**Input:** 5\n**Output:** 15",
            "Input: `5`\nOutput: `15`",
            "Input 1:\n```\n5\n```\nOutput 1:\n```\n15\n```\nExplained: all of them.",
            "Example:\n```\nInput:\n5\n\nOutput:\n15\n```\n",
            "```input\n5\n```\n\n```output\n15\n```",
            "Example\ninput\n5\noutput\n15\nNote\nThat is all.",
            "Example: input `5` -> output `15`",
            "For the input `5` it prints `15`.",
            TASK + "### Sample Input 1\n```\n5\n```\n### Sample Output 1\n```\n15\n```\n",
            TASK + "**Sample Input**\n\n    5\n\n**Sample Output**\n\n    15\n",
            "---Input---\nOne number.\n\n---Output---\nThe sum.\n\n---Examples---\nInput\n5\n\nOutput\n15\n",
            "Input: 5\r\nOutput: 15\r\n",
            "Example:\nInput:\n5\nOutput:\n15\nUse Python, please.",
            "Input:\n5\nOutput:\n15\nWrite it in Python",
        ):
            self.assertEqual([(s, o and o.strip()) for s, o in read(prompt)], [("5\n", "15")], prompt)

    def test_what_is_shown_as_wrong_is_no_expectation(self) -> None:
        for prompt in (
            "It prints this wrong result:\n\nInput: 1 2\nOutput: 3\n\nMend it.",
            "Currently:\nInput: 1 2\nOutput: 3\n",
            "### Actual output\nInput: 1 2\nOutput: 3\n",
            "Input: 1 2\nOutput: 3\n\nThis is wrong.",
            "Input: 1 2\nOutput: 3\n\nIt should print -1.",
            "Input: 1 2\nOutput: 3\nExpected Output: -1",
            "Input: 1 2\nOutput: 3\n\nInput: 1 2\nOutput: -1",
            "Input: 1 2\nOutput: 3\n\nInput: 1 2\nOutput: -1\n\nInput: 1 2\nOutput: 3",
        ):
            self.assertEqual(read(prompt), [("1 2\n", None)], prompt)

    def test_beside_what_is_wrong_what_is_right_is_expected(self) -> None:
        for prompt in (
            "Currently:\nInput: 1 2\nOutput: 3\n\nIt should be:\nInput: 1 2\nOutput: -1",
            "Incorrect example:\nInput: 1 2\nOutput: 3\nCorrect example:\nInput: 1 2\nOutput: -1",
            "It should be:\nInput: 1 2\nOutput: -1\n\nCurrently:\nInput: 1 2\nOutput: 3",
            "Print -1 if a number is wrong.\nInput: 1 2\nOutput: -1",
            "Input: 1 2\nOutput: -1\n\nIt should print the difference of any two numbers.",
        ):
            self.assertEqual(read(prompt), [("1 2\n", "-1")], prompt)

    def test_several_lines_and_several_examples(self) -> None:
        prompt = "Sample Input 1\n\n3\n1 2 3\n\nSample Output 1\n\n1\n6\n\n"
        prompt += "Sample Input 2\n\n1\n9\n\nSample Output 2\n\n1\n9\n"
        self.assertEqual(read(prompt), [("3\n1 2 3\n", "1\n6"), ("1\n9\n", "1\n9")])
        self.assertEqual(read("Input: 1 2 Output: 3. Input: 4 5 Output: 9"), [("1 2\n", "3"), ("4 5\n", "9")])
        self.assertEqual(read("Sample Input:\n5\nSample Output:\n2\nYES\n"), [("5\n", "2\nYES")])
        self.assertEqual(read("Input:\na\nb\nOutput:\nb\na\n"), [("a\nb\n", "b\na")])
        self.assertEqual(read("Input: 3\n1 2 3\nOutput: 6"), [("3\n1 2 3\n", "6")])
        self.assertEqual(read("input `1\\n2` gives output `3`"), [("1\n2\n", "3")])

    def test_prose_and_arguments_are_no_examples(self) -> None:
        for prompt in (
            TASK,
            "Input: a number n\nOutput: n squared",
            "Input: the numbers\nOutput: their sum",
            "Input: nums = [2, 7], target = 9\nOutput: [0, 1]",
            "Input: none\nOutput: 5",
            "Input: 5\nThis is said of it.\n\nAnd this.\nOutput: 5",
            "Input: 1 2 ... 100\nOutput: 5050",
            "Input:\nOutput:\n5",
            "Output: 15\nInput: 5",
            "It takes input and gives output.",
        ):
            self.assertEqual(read(prompt), [], prompt)

    def test_where_it_is_doubtful_what_is_printed_nothing_is_expected(self) -> None:
        for prompt in (
            "Input: 5\nOutput: 15 (the sum of 1 to 5)",
            "Input: 5\nOutput: 15 because it is the sum",
            "Input: 5\nOutput: all right.",
            "Input: 5\nOutput: Alice\nBob",
            "Input: 5\nOutput: 1 2 ... 5",
            'Input: "5"\nOutput: "15"',
            "input `5` wrongly prints `14`",
        ):
            self.assertEqual(read(prompt), [("5\n", None)], prompt)

    def test_any_text_takes_linear_time(self) -> None:
        parts = (
            "Input:",
            "Input: ",
            "Input:\n",
            "Input: 5 Output: ",
            "input\n5\n",
            "input `",
            "```",
            ". input: output ",
        )
        started = time.process_time()
        for part in (*parts, "Example ", "Output:\n5\n", " ", "*", "`", "-", "Input: 5\nOutput: "):
            text = part * (200_000 // len(part))
            stdin_examples(text)
            generate(text, None, [READER])
        for line, count in (
            ("1", 39),
            ("1", 990),
            ("1 1", 39),
            ("a", 39),
            ("1 " * 140, 1),
            ("1 1 1 a", 37),
            ("1-" * 900, 1),
        ):
            text = f"Sample Input\n{(line + chr(10)) * count}\nSample Output\n5\n"
            self.assertEqual(len(stdin_examples(text)), 1)
            generate(text, None, [READER])
        self.assertLess(time.process_time() - started, 30)  # an endless search is what this is about


class FeedsTest(unittest.TestCase):
    def test_a_number_alone_is_tried_small_and_near(self) -> None:
        self.assertLessEqual({"1\n", "2\n", "3\n", "4\n", "6\n"}, set(more("5\n")))
        self.assertNotIn("0\n", more("5\n"))
        self.assertIn("0\n", more("5\n", prompt="n is non-negative"))
        self.assertIn("-5\n", more("5\n", prompt="n may be negative"))

    def test_numbers_change_and_what_counts_them_stays(self) -> None:
        for known in ("3\n4 9 2\n", "2\n4 5\n6 7\n", "2\n3\n1 2 3\n2\n5 6\n", "3 4 5 6\n", "2\nab\ncd\n", "5\nabcde\n"):
            made = more(known)
            self.assertGreater(len(made), 10, known)
            self.assertNotIn(known, made)
            for text in made:
                lines, before = text.splitlines(), known.splitlines()
                self.assertEqual([len(line.split()) for line in lines], [len(line.split()) for line in before], text)
                self.assertEqual(lines[0].split()[0], before[0].split()[0])
        self.assertTrue(
            all(text.split()[2:4] == ["3", "1"] or text.split()[1] == "3" for text in more("2\n3\n1 2 3\n2\n5 6\n"))
        )

    def test_a_number_that_only_looks_like_a_count_in_one_example_is_none(self) -> None:
        self.assertTrue(any(not text.startswith("1\n") for text in more("1\n2\n", "5\n7\n")))

    def test_signs_stay(self) -> None:
        self.assertFalse(any("-" in text for text in more("7 8\n")))
        self.assertTrue(any("-" in text for text in more("7 -8\n")))

    def test_ends_of_edges_stay_below_their_number(self) -> None:
        for text in more("4 3\n1 2\n2 3\n3 4\n"):
            rows = [line.split() for line in text.splitlines()]
            self.assertEqual(rows[0], ["4", "3"])
            self.assertTrue(all(1 <= int(end) <= 4 and row[0] != row[1] for row in rows[1:] for end in row), text)

    def test_k_of_n_stays_below_n(self) -> None:
        heads = {text.splitlines()[0] for text in more("5 2\n1 4 9 3 2\n")}
        self.assertGreater(len(heads), 2)
        self.assertTrue(all(head.startswith("5 ") and 1 <= int(head[2:]) <= 5 for head in heads), heads)

    def test_rows_of_a_grid_keep_their_length_and_their_characters(self) -> None:
        for text in more("2 3\n#.#\n..#\n"):
            head, *rows = text.splitlines()
            self.assertEqual((head, [len(row) for row in rows]), ("2 3", [3, 3]))
            self.assertLessEqual(set("".join(rows)), set("#."))

    def test_words_change_and_those_that_programs_know_do_not(self) -> None:
        self.assertTrue(all(len(text.split()) == 1 for text in more("hello\n")))
        source = "if line == 'pop' or line[0] == \"push\": pass"
        for text in more("3\npush 4\npush 5\npop\n", sources=(source,)):
            self.assertEqual([line.split()[0] for line in text.splitlines()], ["3", "push", "push", "pop"])

    def test_lists_and_dates_keep_their_form(self) -> None:
        for text in more("1,2,3\n"):
            self.assertRegex(text, r"^[1-9],[1-9],[1-9]\n$")
        for text in more("2024-02-28 23:59\n"):
            self.assertRegex(text, r"^[12]\d{3}-0[12]-[12]\d [12]\d:[1-5]\d\n$")

    def test_distinct_and_sorted_numbers_stay_so(self) -> None:
        for text in more("4\n1 4 6 9\n", prompt="a sorted list of distinct numbers"):
            numbers = [int(word) for word in text.split()[1:]]
            self.assertEqual(numbers, sorted(set(numbers)))

    def test_equal_arguments_give_equal_texts_each_once(self) -> None:
        self.assertEqual(more("1 2\n"), more("1 2\n"))
        self.assertNotEqual(more("1 2\n"), more("1 2\n", seed=2))
        self.assertEqual(len(set(more("1 2\n"))), len(more("1 2\n")))
        self.assertEqual((more(), more("x" * 3000 + "\n")), ([], []))


class GeneratedTest(unittest.TestCase):
    PROMPT = "Read two integers and print their sum. Input: 1 2 Output: 3"

    def assertReads(self, made: Generated, *first: str) -> None:
        self.assertIsNone(made.function)
        self.assertEqual(tuple(row.args for row in made.inputs if row.tier == 0), first)
        self.assertEqual({row.tier for row in made.inputs}, {0, 2})
        self.assertLessEqual(len(made.inputs), STDINS_MAX)

    def test_programs_that_read_get_the_examples_and_more_like_them(self) -> None:
        made = generate(self.PROMPT, None, [READER] * 2)
        self.assertReads(made, "1 2\n")
        self.assertEqual([row.expected for row in made.inputs if row.expected is not None], [printed_key("3 \n")])

    def test_functions_of_programs_that_read_are_parts_of_them(self) -> None:
        code = f"def solve():\n    {READER.splitlines()[0]}\n    print(add(a, b))\ndef add(a, b): return a + b\nsolve()"
        self.assertReads(generate(self.PROMPT, None, [code, code, READER]), "1 2\n")
        self.assertReads(generate("Print f(a) = g(a). " + self.PROMPT, None, [code] * 3), "1 2\n")

    def test_a_function_that_is_asked_for_is_called(self) -> None:
        main = f"if __name__ == '__main__':\n    {READER.splitlines()[0]}\n    print(add(a, b))"
        code = f"def add(a, b): return a + b\n{main}"
        for prompt, name in (
            *((f"Write add(a, b). {self.PROMPT}", None), (self.PROMPT, "add")),
            (f"Write a function that adds. {self.PROMPT}", None),
        ):
            made = generate(prompt, name, [code] * 3)
            self.assertEqual(made.function and made.function.name, "add")
        made = generate(self.PROMPT, None, ["def add(a, b): return a + b"] * 2 + [READER])
        self.assertEqual(made.function and made.function.name, "add")

    def test_programs_that_do_not_read_get_nothing(self) -> None:
        self.assertEqual(generate(self.PROMPT, None, ["print(3)"] * 2), Generated(None, []))
        self.assertEqual(generate("Read two integers and print their sum.", None, [READER]), Generated(None, []))

    def test_the_clients_texts_are_read_too(self) -> None:
        inputs: list[Any] = [["7 8"], [1, 2]]
        self.assertReads(generate(self.PROMPT, None, [READER], inputs=inputs), "1 2\n", "7 8\n")
        self.assertReads(generate("Add two integers.", None, [READER], inputs=inputs), "7 8\n")

    def test_it_is_seen_whether_a_program_reads(self) -> None:
        for code in (
            *("x = input()", "import sys\nfor line in sys.stdin: pass", "data = open(0).read()", "import fileinput"),
            *("require('fs').readFileSync(0, 'utf8')", "process.stdin.on('data', f)", "readline.createInterface(x)"),
            *(
                "read a b",
                "while IFS= read -r x; do echo; done",
                "x=$(cat)",
                "awk '{print $1}'",
                "readFileSync('/dev/stdin')",
            ),
        ):
            self.assertTrue(reads_stdin(code), code)
        for code in (
            "print(1)",
            "def f(inputs): return read(inputs)",
            "console.log(1)",
            "echo read",
            "x = my_input(1)",
        ):
            self.assertFalse(reads_stdin(code), code)

    def test_the_harness_reports_them(self) -> None:
        names: dict[str, Any] = {"__name__": "harness"}
        exec(compile(harness_sources(HARNESSES)["generate"], "generate", "exec"), names)
        reports: list[bytes] = []
        payload = {"prompt": self.PROMPT, "candidates": [READER], "inputs": []}
        names["harness_main"]("", json.dumps(payload).encode(), reports.append)
        report = json.loads(reports[0])
        self.assertIsNone(report["entry_point"])
        self.assertEqual(report["inputs"][0]["args"], "1 2\n")

    def test_no_name_means_two_things_in_one_harness(self) -> None:
        for source in harness_sources(HARNESSES).values():
            names: Counter[str] = Counter()
            for node in ast.parse(source).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    names[node.name] += 1
                elif isinstance(node, ast.Assign):
                    names.update(target.id for target in node.targets if isinstance(target, ast.Name))
            self.assertEqual([name for name, count in names.items() if count > 1], [])


if __name__ == "__main__":
    unittest.main()
