"""Verifications with a real sandbox: programs that models have written are run, compared, and believed or not."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from tests.panels import code
from tests.parallel import alone
from tests.verified import VerifiedTest, answer

RIGHT, ALSO_RIGHT, WRONG = code("return x + 1"), code("return sum((x, 1))"), code("return x")
HOSTILE = code("import os\n    os.kill(os.getpid(), 9)")
ENDLESS = code("while True: pass")
# What programs are kept apart by is tested elsewhere; here it is to be the same wherever tests run.
REAL = {"SANDBOX": "process", "SANDBOX_MIN": "process", "HEAL_ATTEMPTS": 0, "SANDBOX_TIMEOUT": 5}


@unittest.skipUnless(os.name == "posix", "programs are run on POSIX systems only")
class RealSandboxTest(VerifiedTest):
    def setUp(self) -> None:
        super().setUp()
        # A place of its own for what is run, where others look for what theirs may have left.
        self.place = Path(self.enter(tempfile.TemporaryDirectory(prefix="verified-")))
        self.place.chmod(0o755)  # programs may be run as another user
        self.enter(mock.patch.object(tempfile, "tempdir", str(self.place)))
        self.addCleanup(self.assert_no_job_left)

    def assert_no_job_left(self) -> None:
        self.assertEqual(list(self.place.glob("gateway-job-*")), [])

    def told(self, texts: dict[str, str], **fields: Any) -> Any:
        running = self.several("".join(texts), **REAL)
        client = self.infer(running, **fields)
        for name, side in self.take("".join(texts)).items():
            answer(side, texts[name])
        client.timeout_s = 90.0  # programs wait for their turn where others want the processors
        response = client.read_response()
        self.assertEqual(response.status, 200, response.body)
        self.assertEqual(running.log.getvalue().count("internal_error"), 0)
        return response.json()

    def test_what_agrees_on_everything_and_meets_the_example_is_verified(self) -> None:
        told = self.told({"a": WRONG, "b": RIGHT, "c": ALSO_RIGHT})
        verification = told["verification"]
        self.assertEqual((verification["verified"], verification["synthesis_strategy"]), (True, "consensus"))
        self.assertEqual(verification["groups"][0], ["b", "c"])
        self.assertEqual(told["selected_response"], RIGHT)
        run = told["model_responses"][1]["execution_results"][0]
        self.assertEqual((run["success"], run["exit_code"], run["isolation"]), (True, 0, "process"))

    def test_without_an_example_nothing_is_verified(self) -> None:
        told = self.told({"a": RIGHT, "b": RIGHT}, prompt="Write a Python function f(x).")
        self.assertFalse(told["verification"]["verified"])
        self.assertEqual(told["verification"]["synthesis_strategy"], "majority")

    def test_the_clients_tests_decide(self) -> None:
        told = self.told({"a": WRONG, "b": RIGHT, "c": WRONG}, tests=["assert f(1) == 2", "assert f(5) == 6"])
        verification = told["verification"]
        self.assertEqual((verification["verified"], verification["synthesis_strategy"]), (True, "tests_passed"))
        self.assertEqual((told["selected_response"], verification["groups"][0]), (RIGHT, ["b"]))

    def test_pairs_for_a_named_function_are_calls(self) -> None:
        pairs = [{"input": [1], "output": 2}, {"input": 5, "output": 6}]
        told = self.told({"a": WRONG, "b": RIGHT}, tests=pairs, entry_point="f")
        self.assertEqual(told["verification"]["groups"], [["b"]])

    def test_pairs_are_what_a_program_reads_and_prints(self) -> None:
        program = "```python\nprint(int(input()) + {})\n```"
        pairs = [{"input": "1\n", "output": "2\n"}, {"input": "5\n", "output": "6\n"}]
        told = self.told({"a": program.format(1), "b": program.format(2)}, tests=pairs)
        self.assertEqual(told["verification"]["groups"], [["a"]])
        self.assertTrue(told["verification"]["verified"])

    def test_programs_that_none_survives_are_told_of_and_verify_nothing(self) -> None:
        told = self.told({"a": HOSTILE, "b": HOSTILE})
        verification = told["verification"]
        self.assertEqual((verification["verified"], told["selected_response"]), (False, None))
        self.assertEqual(verification["successful_executions"], 0)

    def test_programs_without_an_end_are_ended(self) -> None:
        told = self.told({"a": ENDLESS, "b": RIGHT, "c": RIGHT}, execution_config={"timeout": 1})
        self.assertEqual(told["verification"]["groups"], [["b", "c"]])
        self.assertTrue(told["verification"]["verified"])

    def test_programs_without_a_function_are_compared_by_what_they_print(self) -> None:
        program = "```python\nprint({})\n```"
        texts = {"a": program.format("6 * 7"), "b": program.format("42"), "c": program.format("41")}
        told = self.told(texts, prompt="Print the answer.")
        self.assertEqual(told["verification"]["groups"][0], ["a", "b"])
        self.assertEqual(told["model_responses"][0]["execution_results"][0]["stdout"], "42\n")

    @alone
    def test_programs_that_read_are_compared_by_what_they_print_for_examples_and_the_like(self) -> None:
        prompt = "Read two integers and print their sum. Input: 1 2 Output: 3"
        read = "a, b = map(int, input().split())"
        texts = {
            "a": f"```python\n{read}\nprint(a + b if a < 3 else a)\n```",
            "b": f"```python\n{read}\nprint(a + b)\n```",
            "c": f"```python\ndef main():\n    {read}\n    print(sum((a, b)))\n\nmain()\n```",
        }
        told = self.told(texts, prompt=prompt)
        verification = told["verification"]
        self.assertEqual(verification["groups"], [["b", "c"], ["a"]])
        self.assertFalse(verification["verified"])  # one of three, which meets the example, says something else
        self.assertEqual(verification["details"]["examples_passed"], 1)
        self.assertEqual(told["selected_response"], texts["b"])
        self.assertEqual(told["model_responses"][2]["execution_results"][0]["stdout"], "3\n")
        more = {"d": texts["b"], "e": texts["c"]}
        verification = self.told({**texts, **more}, prompt=prompt)["verification"]
        self.assertEqual((verification["verified"], verification["synthesis_strategy"]), (True, "consensus"))
        self.assertEqual(verification["groups"], [["b", "c", "d", "e"], ["a"]])
        texts["a"] = f"```python\n{read}\nprint(a)\n```"
        verification = self.told(texts, prompt=prompt)["verification"]
        self.assertEqual((verification["verified"], verification["groups"]), (True, [["b", "c"]]))

    @alone
    @unittest.skipUnless(shutil.which("node"), "no node here")
    def test_programs_in_another_language_read_too(self) -> None:
        program = "```javascript\nconst lines = require('fs').readFileSync(0, 'utf8').split('\\n');\n{}\n```"
        add = "console.log(lines[1].split(' ').reduce((a, b) => {} + Number(b), 0));"
        texts = {"a": program.format(add.format("a")), "b": program.format(add.format("Number(a)"))}
        told = self.told(texts, prompt="Sample Input:\n3\n1 2 3\n\nSample Output:\n6\n")
        self.assertTrue(told["verification"]["verified"])
        self.assertEqual(told["verification"]["details"]["inputs"], 16)

    def test_programs_that_lack_what_they_read_are_given_and_not_verified(self) -> None:
        text = "```python\nprint(int(input()) + {})\n```"
        told = self.told(
            {"a": "```python\n1 / 0\n```", "b": text.format(1), "c": text.format("1.0")}, prompt="Add one."
        )
        verification = told["verification"]
        self.assertEqual((verification["verified"], verification["synthesis_strategy"]), (False, "best_available"))
        self.assertEqual(told["selected_response"], text.format(1))

    def test_what_is_written_for_a_shell_is_run_too(self) -> None:
        program = "```bash\necho {}\n```"
        told = self.told({"a": program.format("42"), "b": program.format("42")}, prompt="Print it.")
        self.assertEqual(told["verification"]["groups"], [["a", "b"]])
        self.assertEqual(told["model_responses"][0]["execution_results"][0]["stdout"], "42\n")

    def test_the_clients_inputs_are_tried(self) -> None:
        prompt = "Write a Python function f(x).\n\n>>> f(1)\n2\n"
        special = code("return 0 if x == 123456789 else x + 1")
        told = self.told({"a": RIGHT, "b": special}, prompt=prompt, inputs=[[123456789]])
        self.assertEqual(len(told["verification"]["groups"]), 2)
        self.assertFalse(told["verification"]["verified"])
        json.dumps(told)


if __name__ == "__main__":
    unittest.main()
