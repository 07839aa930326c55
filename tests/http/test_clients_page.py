"""docs/CLIENTS.md is true: each recipe whose package is installed prints what the page shows, from a mock engine.

The others are skipped, each with its reason; with REQUIRE_RECIPES=1 that is a failure for what `.ci/run` installs.
Packages for JavaScript are looked for in the folders OPENAI_JS and ANTHROPIC_JS (`npm install`, run there).
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Optional

from tests.readme_examples import Recipe, moved, recipes, shown_matches
from tests.support import ROOT, SocketTest, gateway, locale_wanted, mock_engine

PAGE = (ROOT / "docs" / "CLIENTS.md").read_text("utf-8")
RECIPES = recipes(PAGE)
NODE = shutil.which("node")
JS_FOLDERS = [
    Path(folder) / "node_modules" for name in ("OPENAI_JS", "ANTHROPIC_JS") if (folder := os.environ.get(name))
]
LIMIT_S = 120


def pinned() -> dict[str, str]:
    """The versions of the packages for Python that `.ci/run` installs."""
    text = (ROOT / ".ci" / "requirements.txt").read_text("utf-8")
    return dict(re.findall(r"(?m)^([\w-]+)(?:\[.*\])?==(\S+)$", text))


def js_folder(package: str) -> Optional[Path]:
    """The `node_modules` that has this package, or None."""
    return next((folder for folder in JS_FOLDERS if (folder / package).is_dir()), None)


def why_not(recipe: Recipe) -> Optional[str]:
    """Why this recipe cannot be run here, or None."""
    if recipe.language == "js":
        there = NODE is not None and js_folder(recipe.package) is not None
        return None if there else f"node, or {recipe.package} for JavaScript, is not installed"
    if recipe.language == "sh" and (os.name != "posix" or shutil.which("sh") is None):
        return "the commands are for a POSIX shell"
    try:
        importlib.metadata.distribution(recipe.package)
    except importlib.metadata.PackageNotFoundError:
        return f"{recipe.package} is not installed"
    return None


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_RECIPES") == "1", "REQUIRE_RECIPES=1 is not set")
    def test_what_is_installed_for_recipes_is_found(self) -> None:
        wanted = [recipe for recipe in RECIPES if recipe.language == "js" or recipe.package in pinned()]
        self.assertEqual([reason for recipe in wanted if (reason := why_not(recipe))], [])


class RecipesCase(SocketTest):
    """The recipes in one language, each run in a folder and a home of its own."""

    def check(self, language: str) -> None:
        engine = self.enter(mock_engine("qwen"))
        asked = self.enter(gateway(ENGINES=f"qwen={engine.url}", API_KEYS="alice:open-sesame"))
        for recipe in RECIPES:
            if recipe.language != language:
                continue
            with self.subTest(recipe.package):
                reason = why_not(recipe)
                if reason is not None:
                    self.skipTest(reason)
                printed = self.run_alone(recipe._replace(code=moved(recipe.code, lambda _: asked.port)))
                self.assertTrue(shown_matches(recipe.answer, printed), f"shown:\n{recipe.answer}\nprinted:\n{printed}")

    def run_alone(self, recipe: Recipe) -> str:
        """Run it with nothing of this process's environment; what it prints."""
        home = Path(self.enter(tempfile.TemporaryDirectory()))
        if recipe.language == "js":
            packages = js_folder(recipe.package)
            assert NODE is not None and packages is not None
            (home / "node_modules").symlink_to(packages.resolve(), target_is_directory=True)
            name, interpreter = "recipe.mjs", NODE
        else:
            name, interpreter = ("recipe.py", sys.executable) if recipe.language == "python" else ("recipe.sh", "sh")
        (home / name).write_text(recipe.code, "utf-8")
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
        environment = {"PATH": path, "HOME": str(home), "NO_PROXY": "*", "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {**locale_wanted(), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        done = subprocess.run(
            [interpreter, name],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT_S,
        )
        self.assertEqual(done.returncode, 0, done.stderr.decode("utf-8", "replace"))
        return done.stdout.decode("utf-8")


# A class each: they run side by side.
class PythonRecipesTest(RecipesCase):
    def test_every_recipe_prints_what_the_page_shows(self) -> None:
        self.check("python")


class JavaScriptRecipesTest(RecipesCase):
    def test_every_recipe_prints_what_the_page_shows(self) -> None:
        self.check("js")


class ShellRecipesTest(RecipesCase):
    def test_every_recipe_prints_what_the_page_shows(self) -> None:
        self.check("sh")


class PageTest(unittest.TestCase):
    def test_it_says_which_versions_are_run(self) -> None:
        versions = pinned()
        for recipe in RECIPES:
            if recipe.language != "js" and recipe.package in versions:
                with self.subTest(recipe.package):
                    name, version = re.escape(recipe.package), re.escape(versions[recipe.package])
                    self.assertRegex(PAGE, rf"(?m)^\| \[{name}\]\(#[\w-]+\).*\| (?:.*, )?{version}(?:, .*)? \| yes \|$")

    def test_a_recipe_without_what_it_prints_is_refused(self) -> None:
        program = "<!-- recipe: x -->\n```python\nprint(1)\n```\n"
        self.assertEqual(recipes(f"{program}\n```text\n1\n```\n"), [Recipe("x", "python", "print(1)\n", "1\n")])
        for text in (program, "<!-- recipe: x -->\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n"):
            with self.assertRaises(ValueError):
                recipes(text)


if __name__ == "__main__":
    unittest.main()
