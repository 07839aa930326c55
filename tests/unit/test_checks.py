"""What checks a change says the same everywhere: .ci/run, pre-commit, GitHub's workflow."""

from __future__ import annotations

import os
import re
import subprocess
import unittest
from pathlib import Path

from tests.support import ROOT


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


class VersionsTest(unittest.TestCase):
    def test_pre_commit_takes_the_versions_that_ci_takes(self) -> None:
        pinned = {line.strip() for line in text(".ci/requirements.txt").splitlines() if "==" in line}
        named = re.findall(r'"([^"\s]+==[^"\s]+)"', text(".pre-commit-config.yaml"))
        self.assertLessEqual({"ruff", "mypy"}, {name.partition("==")[0] for name in named})
        self.assertEqual(set(named) - pinned, set())

    def test_pre_commit_pins_all_that_it_installs(self) -> None:
        for listed in re.findall(r"additional_dependencies: \[(.*)\]", text(".pre-commit-config.yaml")):
            for name in listed.split(", "):
                self.assertRegex(name, r'^"\S+==\S+"$')

    def test_pre_commit_runs_what_ci_runs(self) -> None:
        run, hooks = text(".ci/run"), text(".pre-commit-config.yaml")
        for command in ("ruff check --no-cache", "ruff format --no-cache", "mypy --strict"):
            self.assertIn(f"entry: {command}", hooks)
        for command in ('ruff" check --no-cache', 'ruff" format --no-cache', "--strict"):
            self.assertIn(command, run)


class WorkflowTest(unittest.TestCase):
    """Without a package that reads YAML: the few rules that this file keeps."""

    TEXT = text(".github/workflows/ci.yml")

    def test_it_calls_ci_run(self) -> None:
        commands = re.findall(r"(?m)^ +- run: (.*)$", self.TEXT)
        self.assertEqual(commands, ['sudo -E env "PATH=$PATH" bash .ci/run'])

    def test_its_blocks_are_mappings_and_lists(self) -> None:
        top = []
        for line in self.TEXT.splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                self.assertNotIn("\t", line)
                matched = re.fullmatch(r"((?:  )*)(- )?([\w-]+):(?: \S.*)?", line)
                assert matched is not None, line
                if not matched[1]:
                    top.append(matched[3])
        self.assertEqual(top, ["name", "on", "permissions", "concurrency", "jobs"])

    def test_it_is_bounded_may_only_read_and_pins_what_it_uses(self) -> None:
        self.assertIn("permissions:\n  contents: read\n", self.TEXT)
        self.assertRegex(self.TEXT, r"(?m)^ +timeout-minutes: 30$")
        used = re.findall(r"uses: (.*)", self.TEXT)
        self.assertGreater(len(used), 1)
        for action in used:
            self.assertRegex(action, r"^actions/[\w-]+@v\d+\.\d+\.\d+$")


@unittest.skipUnless(os.name == "posix", "a shell script")
class ScriptsTest(unittest.TestCase):
    def test_scripts_are_ones_and_may_be_run(self) -> None:
        for name in (".ci/run", "tests/smoke.sh", "mock.sh"):
            with self.subTest(name):
                self.assertTrue(os.access(ROOT / name, os.X_OK))
                self.assertEqual(subprocess.run(["bash", "-n", name], cwd=ROOT, check=False).returncode, 0)

    def test_ci_follows_the_readme_in_a_fresh_clone(self) -> None:
        self.assertRegex(
            text(".ci/run"), r'(?s)\nfollow_readme\(\) .*tests/smoke\.sh --newcomer.*\nstep "[^"]+" follow_readme\n'
        )


class ChangelogTest(unittest.TestCase):
    def test_it_has_the_sections_of_keep_a_changelog(self) -> None:
        changelog = Path(ROOT, "CHANGELOG.md").read_text("utf-8")
        self.assertTrue(changelog.startswith("# Changelog\n"))
        releases = re.findall(r"(?m)^## (.*)$", changelog)
        self.assertEqual(releases[0], "Unreleased")
        for release in releases[1:]:
            self.assertRegex(release, r"^\d+\.\d+\.\d+ - \d{4}-\d{2}-\d{2}$")
        kinds = set(re.findall(r"(?m)^### (.*)$", changelog))
        self.assertLessEqual(kinds, {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"})


if __name__ == "__main__":
    unittest.main()
