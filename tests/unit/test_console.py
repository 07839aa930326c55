"""The console's files as they are written: what their policy would stop, what they name of each other, how its colours
can be read."""

from __future__ import annotations

import re
import unittest
from pathlib import Path

import gateway

FOLDER = Path(gateway.__file__).parent / "console"
TESTS = Path(__file__).parent.parent / "console"
PAGE = (FOLDER / "index.html").read_text(encoding="utf-8")
STYLE = (FOLDER / "style.css").read_text(encoding="utf-8")
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.js"))}
LINES_MAX = 400
COMMENT = re.compile(r"/\*.*?\*/|^\s*//.*?$|(?<=[;,{}]) //.*?$", re.DOTALL | re.MULTILINE)
# What would read a text as HTML or as a program, or reach beyond the gateway.
FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTMLUnsafe|srcdoc=|"
    r"\beval\(|\bFunction\(|trustedTypes|WebSocket|EventSource|sendBeacon|XMLHttpRequest|document\.cookie|indexedDB"
)
STORES = {"theme.js", "shortcuts.js"}
"""Who may write to what outlives the tab: neither knows of a key."""
SHELL = {"app.js", "session.js", "shortcuts.js", "ui.js"}
"""Whose elements stand in the page; a page's own are made by it."""
IMPORT = re.compile(r"import\s*\{([^}]*)\}\s*from\s*\"\./([\w.]+)\"")
EXPORT = re.compile(r"export (?:async )?(?:function\*?|class|const|let) (\w+)")


class SafetyTest(unittest.TestCase):
    def test_no_script_reads_a_text_as_html_or_as_a_program(self) -> None:
        for name, text in SCRIPTS.items():
            bare = COMMENT.sub("", text)
            with self.subTest(name):
                self.assertEqual(FORBIDDEN.findall(bare), [])
                self.assertEqual(re.findall(r"\.on\w+ = [\"'`]", bare), [])
                self.assertIsNone(re.search(r"setTimeout\(\s*[\"'`]", bare))

    def test_only_the_theme_and_the_switch_of_the_shortcuts_outlive_a_tab(self) -> None:
        self.assertEqual({name for name, text in SCRIPTS.items() if "localStorage" in COMMENT.sub("", text)}, STORES)
        self.assertEqual(
            {name for name, text in SCRIPTS.items() if "sessionStorage" in COMMENT.sub("", text)}, {"api.js"}
        )

    def test_the_page_has_neither_scripts_nor_styles_in_it(self) -> None:
        self.assertEqual(re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", PAGE), [])

    def test_nothing_is_loaded_from_elsewhere(self) -> None:
        for name, text in {**SCRIPTS, "index.html": PAGE, "style.css": STYLE}.items():
            found = set(re.findall(r"https?://[^\"'`\s]+", text)) - {"http://www.w3.org/2000/svg"}
            with self.subTest(name):
                self.assertEqual({url for url in found if "127.0.0.1" not in url and "example" not in url}, set())
        self.assertNotIn("@import", STYLE)
        self.assertNotIn("url(", STYLE)


class NamesTest(unittest.TestCase):
    def test_every_import_is_exported(self) -> None:
        for name, text in SCRIPTS.items():
            for names, target in IMPORT.findall(text):
                exported = set(EXPORT.findall(SCRIPTS.get(target, "")))
                wanted = {part.split(" as ")[0].strip() for part in names.split(",") if part.strip()}
                with self.subTest(name, target=target):
                    self.assertEqual(wanted - exported, set())

    def test_every_import_is_used(self) -> None:
        for name, text in SCRIPTS.items():
            rest = COMMENT.sub("", IMPORT.sub("", text))
            names = [part.split(" as ")[-1].strip() for found, _ in IMPORT.findall(text) for part in found.split(",")]
            with self.subTest(name):
                self.assertEqual([one for one in names if one and not re.search(rf"\b{re.escape(one)}\b", rest)], [])

    def test_every_page_and_file_that_the_page_names_is_there(self) -> None:
        named = re.findall(r"(?:href|src)=\"console/([^\"]+)\"", PAGE) + re.findall(
            r"import\(\"\./([^\"]+)\"\)", SCRIPTS["app.js"]
        )
        self.assertGreater(len(named), 4)
        self.assertEqual([name for name in named if not (FOLDER / name).is_file()], [])

    def test_every_icon_and_element_that_a_script_asks_for_is_in_the_page(self) -> None:
        there = set(re.findall(r"\bid=\"([^\"]+)\"", PAGE))
        self.assertEqual(len(there), len(re.findall(r"\bid=\"([^\"]+)\"", PAGE)), "an id stands twice in the page")
        for name, text in SCRIPTS.items():
            found = re.findall(r"getElementById\(\"([^\"]+)\"\)|byId\(\"([^\"]+)\"\)", text) if name in SHELL else []
            wanted = {one or other for one, other in found}
            wanted |= {f"i-{icon}" for icon in re.findall(r"(?:\bicon\(|\bicon: )\"([\w-]+)\"", text)}
            with self.subTest(name):
                self.assertEqual(wanted - there, set())
        self.assertEqual(set(re.findall(r"href=\"#(i-[\w-]+)\"", PAGE)) - there, set())

    def test_every_export_icon_and_class_of_the_style_is_used(self) -> None:
        tests = "".join(path.read_text(encoding="utf-8") for path in TESTS.glob("*.test.mjs"))
        for name, text in SCRIPTS.items():
            others = PAGE + tests + "".join(other for file, other in SCRIPTS.items() if file != name)
            with self.subTest(name):
                self.assertEqual([one for one in EXPORT.findall(text) if not re.search(rf"\b{one}\b", others)], [])
        scripts = "".join(SCRIPTS.values())
        icons = re.findall(r"<symbol id=\"i-([\w-]+)\"", PAGE)
        self.assertEqual([one for one in icons if f'"#i-{one}"' not in PAGE and f'"{one}"' not in scripts], [])
        selectors = re.sub(r"\{[^{}]*\}", " ", re.sub(r"/\*.*?\*/", "", STYLE, flags=re.DOTALL))
        classes = sorted(set(re.findall(r"\.([a-zA-Z][\w-]*)", selectors)))
        used = set(re.findall(r"[\w-]+", PAGE + scripts))
        self.assertGreater(len(classes), 100)
        self.assertEqual([one for one in classes if one not in used], [])

    def test_modules_stay_short(self) -> None:
        for name, text in SCRIPTS.items():
            with self.subTest(name):
                self.assertLessEqual(text.count("\n"), LINES_MAX)
                self.assertTrue(text.startswith("//"), "a module says first what it owns")


def tokens(selector: str) -> dict[str, str]:
    """The colours that a rule at the top of the style sheet sets."""
    rule = STYLE.split(selector + " {", 1)[1].split("}", 1)[0]
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})\b", rule))


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.1."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """The ratio of two colours, WCAG 2.1."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


class ColourTest(unittest.TestCase):
    def check(self, theme: dict[str, str], pairs: list[tuple[str, str]], least: float) -> None:
        for colour, ground in pairs:
            with self.subTest(colour, ground=ground):
                self.assertGreaterEqual(contrast(theme[f"--{colour}"], theme[f"--{ground}"]), least)

    def test_text_can_be_read_and_lines_be_seen_in_both_themes(self) -> None:
        texts = [
            (text, ground)
            for text in ("text", "soft", "faint")
            for ground in ("ground", "surface", "raised", "sunken", "hover")
        ]
        for tone in ("good", "warn", "bad", "info", "mute"):
            texts += [(f"{tone}-text", f"{tone}-ground"), (f"{tone}-text", "surface"), ("text", f"{tone}-ground")]
        texts += [
            ("on-accent", "accent"),
            ("on-accent", "accent-strong"),
            ("accent-text", "accent-ground"),
            ("accent-text", "ground"),
        ]
        marks = [(f"series-{name}", "surface") for name in ("1", "2", "3", "4", "bad")]
        marks += [
            (tone, ground) for tone in ("good", "warn", "bad", "info", "accent") for ground in ("surface", "ground")
        ]
        marks += [("control-line", "surface"), ("bad", "bad-ground")]
        for selector in (":root", ':root[data-theme="dark"]'):
            theme = tokens(selector)
            with self.subTest(selector):
                self.check(theme, texts, 4.5)
                self.check(theme, marks, 3.0)


if __name__ == "__main__":
    unittest.main()
