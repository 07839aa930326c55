"""That following a text in a terminal (tests/smoke.py) notices what is wrong with it."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import unittest
from pathlib import Path

from tests.readme_examples import moved

if os.name == "posix":
    from tests.smoke import Session, Way


@unittest.skipUnless(os.name == "posix" and shutil.which("bash"), "needs bash and a terminal")
class FollowingTest(unittest.TestCase):
    def follow(self, text: str) -> tuple[str, int, int]:
        """What was printed, and how many examples passed and failed."""
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()) as printed:
            folder = Path(name)
            path = folder / "TEXT.md"
            path.write_text(text, "utf-8")
            with Session(path, Way(folder, {"PATH": os.environ["PATH"], "HOME": name}, None)) as session:
                session.follow()
        return printed.getvalue(), session.passed, session.failed

    def test_blocks_share_one_shell(self) -> None:
        text = (
            "<!-- smoke: run -->\n```sh\nword=shared; alias said='echo it is'\n```\n\n"
            '<!-- smoke: run -->\n```sh\nsaid "$word"\n```\n\n```text\nit is shared\n```\n'
        )
        self.assertEqual(self.follow(text)[1:], (2, 0))

    def test_a_file_is_saved_where_the_commands_run(self) -> None:
        text = "<!-- smoke: file a.txt -->\n```text\nhello\n```\n\n<!-- smoke: run -->\n```sh\ncat a.txt\n```\n\n"
        self.assertEqual(self.follow(text + "```text\nhello\n```\n")[1:], (2, 0))
        self.assertEqual(self.follow(text + "```text\ngoodbye\n```\n")[1:], (1, 1))

    def test_a_command_that_fails_is_told(self) -> None:
        printed, _, failed = self.follow("<!-- smoke: run -->\n```sh\nfalse\n```\n")
        self.assertEqual(failed, 1)
        self.assertIn("exit status 1", printed)

    def test_of_tests_it_tells_how_many_there_were_and_what_failed_at_first(self) -> None:
        ran = "Ran 3 tests in 1.0s\n\nOK"
        again = "Run again, by itself, since it failed: a.test_b\nOSError: at first\n"
        for told in (ran, f"{again}\n-----\n{ran}"):
            code = f"printf '%s\\n' '...' '' '{told}'"
            printed, *found = self.follow(f"<!-- smoke: tests -->\n```sh\n{code}\n```\n")
            self.assertEqual(found, [1, 0], printed)
            self.assertTrue(printed.startswith(f"{told}\nPASS"), printed)

    def test_a_missing_status_is_told(self) -> None:
        printed, _, failed = self.follow("<!-- smoke: expect 200 -->\n```sh\ntrue\n```\n")
        self.assertEqual(failed, 1)
        self.assertIn("got ()", printed)

    def test_another_status_and_another_order_are_told(self) -> None:
        code = "for status in 200 404; do printf '\\n\\037%s\\037\\n' $status; done"
        for expected, counts in (("200 404", (1, 0)), ("404 200", (0, 1)), ("200 400", (0, 1)), ("200", (0, 1))):
            with self.subTest(expected=expected):
                printed, *found = self.follow(f"<!-- smoke: expect {expected} -->\n```sh\n{code}\n```\n")
                self.assertEqual(tuple(found), counts, printed)

    def test_what_is_left_running_is_told_and_ended(self) -> None:
        printed, _, failed = self.follow("<!-- smoke: run -->\n```sh\nsleep 60 &\n```\n")
        self.assertEqual(failed, 1)
        self.assertIn("sleep 60", printed)

    def test_a_process_that_ends_instead_of_serving_is_told(self) -> None:
        printed, _, failed = self.follow("<!-- smoke: until Ctrl-C -->\n```sh\nexit 3\n```\n")
        self.assertTrue(failed)
        self.assertIn("the shell has ended", printed)

    def test_ports_are_moved_only_where_they_are_some(self) -> None:
        self.assertEqual(moved("8080 80800 x8080 :8001/", lambda port: port + 1000), "9080 80800 x8080 :9001/")


if __name__ == "__main__":
    unittest.main()
