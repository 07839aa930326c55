"""Which parts of an answer are code, in which language, and what program they make."""

from __future__ import annotations

import random
import unittest
from typing import Optional

from gateway.verify.blocks import CodeBlock, bare_code, code_blocks, without_thinking
from gateway.verify.programs import BLOCKS_MAX, LONGEST_CHARS, Program, program_of

ADD = "def add(a, b):\n    return a + b"


def codes(text: str) -> list[str]:
    return [block.code for block in code_blocks(text)]


def languages(text: str) -> list[str]:
    return [block.language for block in code_blocks(text)]


def language(info: str, code: str = "x") -> str:
    return code_blocks(f"```{info}\n{code}\n```")[0].language


class FencesTest(unittest.TestCase):
    def test_a_block_has_its_language_its_code_and_the_lines_it_stands_in(self) -> None:
        self.assertEqual(
            code_blocks(f"Sure!\n\n```python\n{ADD}\n```\nDone."), [CodeBlock("python", ADD, line_start=4, line_end=5)]
        )

    def test_prose_is_never_code(self) -> None:
        for text in ("", "Use `x = 1` here.", "Call ``` x ``` or ```y```.", "    x = 1", "~~gone~~ and ``two``"):
            self.assertEqual(code_blocks(text), [], text)

    def test_both_kinds_of_fences_close_only_with_their_own_sign_and_length(self) -> None:
        self.assertEqual(codes("~~~\na\n```\nb\n~~~"), ["a\n```\nb"])
        self.assertEqual(codes("intro\n````\n```python\na\n```\n````\ntext"), ["```python\na\n```"])
        self.assertEqual(codes("```\na\n```` \nb"), ["a"])

    def test_a_fence_with_a_word_inside_a_block_does_not_close_it(self) -> None:
        self.assertEqual(codes("```python\na\n```python\nb\n```"), ["a\n```python\nb"])

    def test_a_fence_in_a_docstring_does_not_close_the_block(self) -> None:
        code = 'def f():\n    """\n    ```\n    f()\n    ```\n    """\n    return 1'
        self.assertEqual(codes(f"```python\n{code}\n```"), [code])

    def test_a_block_that_was_cut_off_runs_to_the_end(self) -> None:
        self.assertEqual(code_blocks("a\n```python\nx = 1\ny =\n\n"), [CodeBlock("python", "x = 1\ny =", 3, 4)])
        for left in ("`", "``", "\n"):
            self.assertEqual(codes(f"```python\nx = 1\n{left}"), ["x = 1"])
        self.assertEqual(codes("```python\nx = 1```"), ["x = 1"])
        self.assertEqual(codes("```"), [])

    def test_indentation_in_lists_is_removed_and_that_of_the_code_is_not(self) -> None:
        self.assertEqual(codes(f"1. One\n\n   ```python\n   {ADD.replace(chr(10), chr(10) + '   ')}\n   ```\n"), [ADD])
        self.assertEqual(codes("- ```python\n  if x:\n      y\n  ```"), ["if x:\n    y"])
        self.assertEqual(codes("* a\n\t* b\n\t\t```\n\t\tx\n\t\t\ty\n\t\t```"), ["x\n\ty"])
        self.assertEqual(codes("        ```\n        x\n        ```"), ["x"])

    def test_code_less_indented_than_its_fence_keeps_its_shape(self) -> None:
        self.assertEqual(codes("1. One\n   ```python\ndef f():\n  return 1\n   ```\nend"), ["def f():\n  return 1"])
        self.assertEqual(codes("   ```\n   x = '''\ny'''\n   ```"), ["x = '''\ny'''"])

    def test_spaces_that_do_not_break_are_spaces_where_code_is_indented_by_them(self) -> None:
        code = "def add(a, b):\n    if a:\n\t  return '\xa0'\n    return b"
        pasted = "def add(a, b):\n\xa0\xa0\xa0\xa0if a:\n\t\xa0 return '\xa0'\n \xa0 \xa0return b"
        self.assertEqual(codes(f"Here:\n```python\n{pasted}\n```"), [code])
        deeper = "\n".join(f"\xa0\xa0{line}" for line in ["```python", *pasted.split("\n"), "```"])
        self.assertEqual(codes(f"Here:\n{deeper.replace(chr(9), '  ')}"), [code.replace("\t", "  ")])
        bare = bare_code(pasted)
        self.assertEqual(bare and bare.code, code)

    def test_a_block_in_a_quotation_loses_the_marks_and_ends_with_it(self) -> None:
        self.assertEqual(code_blocks("> ```js\n> a\n>\n>  b\n> ```\n"), [CodeBlock("javascript", "a\n\n b", 2, 4)])
        self.assertEqual(codes("> ```\n> a\nprose\n```\nb\n```"), ["a", "b"])
        self.assertEqual(codes("> > ```\n> > a\n> > ```"), ["a"])
        self.assertEqual(codes("```\n> a\n```"), ["> a"])

    def test_line_ends_of_any_system_count_and_are_made_line_feeds(self) -> None:
        for end in ("\r\n", "\r", "\n"):
            text = end.join(["a", "```python", "x = 1", "", "y = 2", "```", "b"])
            self.assertEqual(code_blocks(text), [CodeBlock("python", "x = 1\n\ny = 2", 3, 5)])
        self.assertEqual(codes("```\na\x0cb\u2028c\n```"), ["a\x0cb\u2028c"])

    def test_a_fence_behind_prose_opens_a_block_when_it_names_a_language(self) -> None:
        self.assertEqual(code_blocks("Here: ```python\nx = 1\n```\nbye"), [CodeBlock("python", "x = 1", 2, 2)])
        self.assertEqual(codes("Type ``` twice"), [])

    def test_blocks_without_code_are_left_out(self) -> None:
        self.assertEqual(codes("```python\n```\n```\n\n \n```\n```\nx\n```"), ["x"])

    def test_blocks_inside_a_block_of_markdown_are_part_of_it(self) -> None:
        text = "See:\n```markdown\n# T\n```python\nx\n```\nend\n```\nafter"
        self.assertEqual(code_blocks(text), [CodeBlock("markdown", "# T\n```python\nx\n```\nend", 3, 7)])

    def test_an_answer_wrapped_in_markdown_is_read_without_the_wrapping(self) -> None:
        self.assertEqual(code_blocks("\n```md\nHere:\n```python\nx\n```\nend\n```\n"), [CodeBlock("python", "x", 5, 5)])
        self.assertEqual(code_blocks("````\n```js\nx\n```\n````"), [CodeBlock("javascript", "x", 3, 3)])


class ThinkingTest(unittest.TestCase):
    def test_what_was_thought_is_no_answer_and_lines_keep_their_numbers(self) -> None:
        text = "<think>\nMaybe\n```python\nwrong\n```\n</think>\n\n```python\nright\n```"
        self.assertEqual(code_blocks(text), [CodeBlock("python", "right", 9, 9)])
        for opened, closed in (("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"), ("\n<Think>", "</Think>")):
            self.assertEqual(without_thinking(f"{opened}a{closed}b"), "\n" * opened.count("\n") + "b")

    def test_thinking_that_was_opened_in_the_prompt_ends_all_the_same(self) -> None:
        self.assertEqual(codes("Hm.\n```\na\n```\n</think>\n\n```\nb\n```"), ["b"])
        self.assertEqual(without_thinking("Hm.</think>\n\n42").strip(), "42")

    def test_thinking_without_an_end_leaves_nothing(self) -> None:
        self.assertEqual(without_thinking("<think>\n```\na\n```").strip(), "")

    def test_the_last_channel_is_the_answer(self) -> None:
        text = "<|channel|>analysis<|message|>Hm\n<|end|><|start|>assistant<|channel|>final<|message|>42"
        self.assertEqual(without_thinking(text), "\n42")

    def test_code_about_thinking_is_no_thinking(self) -> None:
        code = 'answer = text.split("</think>")[-1]\nx = "<think>"'
        self.assertEqual(codes(f"```python\n{code}\n```"), [code])


class LanguagesTest(unittest.TestCase):
    def test_names_of_a_language_are_one(self) -> None:
        for info in ("python", "Python3", "py3", "py", 'python title="x"', "{.python}", "{.python .numberLines}"):
            self.assertEqual(language(info), "python", info)
        for info in ("python:src/a.py", "python,linenos", "{python}", "python3.11", " python ", "main.py", "ipython"):
            self.assertEqual(language(info), "python", info)
        for info in ("js", "node", "JavaScript", "javascript {1,3}", "language-js", "index.mjs"):
            self.assertEqual(language(info), "javascript", info)
        for info in ("sh", "shell", "bash", "BASH"):
            self.assertEqual(language(info), "bash", info)
        for info, word in (
            ("C++", "c++"),
            ("json", "json"),
            ("TypeScript", "typescript"),
            ('title="x"', ""),
            ("md", "markdown"),
        ):
            self.assertEqual(language(info), word, info)

    def test_what_was_typed_at_a_prompt_is_no_program(self) -> None:
        for info in ("console", "bash session", "shell-session", "terminal"):
            self.assertEqual(language(info), "console", info)
        self.assertEqual(language("bash", "$ pip install x\nok"), "console")
        self.assertEqual(language("", "me@host:~$ ls\na"), "console")
        self.assertEqual(language("python", ">>> 1 + 1\n2"), "pycon")
        self.assertEqual(language("bash", "echo $HOME"), "bash")

    def test_a_language_is_guessed_only_where_it_is_clear(self) -> None:
        for code in (
            ADD,
            "import math\nprint(math.pi)",
            "class A:\n    pass\n\nA.x = 1\nimport os",
            "#!/usr/bin/env python3\nx",
        ):
            self.assertEqual(language("", code), "python", code)
        for code in ("function f(a) {\n  return a;\n}", "const f = (a) => a;\nconsole.log(f(1));"):
            self.assertEqual(language("", code), "javascript", code)
        self.assertEqual(language("", "#!/usr/bin/env bash\nls"), "bash")
        for code in ("55", "[1, 2]", '{"a": 1}', "x = 1", "import Foundation", "def f(x)\n  x\nend", "fn f() {}"):
            self.assertEqual(language("", code), "", code)
        for code in (
            "const x: number = 1;\nfunction f(a: string) {",
            "if you like:\nfor example:",
            "import java.util.List;\nclass A {}",
        ):
            self.assertEqual(language("", code), "", code)


class BareCodeTest(unittest.TestCase):
    def test_an_answer_that_is_only_code_is_a_block(self) -> None:
        self.assertEqual(bare_code(f"\n{ADD}\n\n"), CodeBlock("python", ADD, 2, 3))
        long = f'"""Adds.\n\nIt does so well.\n"""\nfrom typing import List\n\n\n@cache\n{ADD}\n\n\n'
        long += 'if __name__ == "__main__":\n    print(add(1, 2))'
        self.assertEqual(bare_code(long), CodeBlock("python", long, 1, len(long.split("\n"))))
        script = "function add(a, b) {\n  return a + b;\n}\n\nconsole.log(add(1, 2));"
        self.assertEqual(bare_code(script), CodeBlock("javascript", script, 1, 5))
        self.assertEqual(bare_code("<think>\nx\n</think>\n" + ADD), CodeBlock("python", ADD, 4, 5))

    def test_any_line_of_prose_leaves_a_doubt(self) -> None:
        for text in (
            "",
            "x = 5",
            "42",
            "Use print(x).",
            f"Here it is:\n{ADD}",
            f"{ADD}\n\nThis adds two numbers.",
            f"```\n{ADD}",
        ):
            self.assertIsNone(bare_code(text), text)
        self.assertIsNone(bare_code("function f() {\n}\nThat is all"))


def program(*parts: tuple[str, str], entry_point: Optional[str] = None, prompt_language: str = "") -> Optional[Program]:
    return program_of([CodeBlock(named, code, 1, 1) for named, code in parts], entry_point, prompt_language)


def python(*parts: str, entry_point: Optional[str] = "add") -> Optional[Program]:
    return program(*(("python", part) for part in parts), entry_point=entry_point)


class ProgramsTest(unittest.TestCase):
    def blocks(self, found: Optional[Program]) -> tuple[int, ...]:
        self.assertIsNotNone(found)
        return () if found is None else found.blocks

    def test_a_usage_in_a_block_of_its_own_follows_the_definition(self) -> None:
        self.assertEqual(python(ADD, "print(add(1, 2))"), Program("python", f"{ADD}\n\nprint(add(1, 2))\n", (0, 1)))
        self.assertEqual(self.blocks(python(ADD, "print(add(1, 2))", entry_point=None)), (0, 1))

    def test_imports_and_helpers_of_other_blocks_are_joined(self) -> None:
        helper, main = "def half(a):\n    return a / 2", "def add(a, b):\n    return half(a) + math.pi"
        self.assertEqual(self.blocks(python(helper, main)), (0, 1))
        self.assertEqual(self.blocks(python(main, helper)), (0, 1))
        found = python("import math", main, helper)
        self.assertEqual(found, Program("python", f"import math\n{main}\n\n{helper}\n", (0, 1, 2)))

    def test_of_two_versions_the_last_full_one_runs_alone(self) -> None:
        first, second = f"{ADD}\nprint(add(1, 1))", "def add(a, b):\n    return sum((a, b))\nprint(add(2, 2))"
        for entry_point in ("add", None):
            self.assertEqual(python(first, second, entry_point=entry_point), Program("python", second + "\n", (1,)))

    def test_a_usage_of_the_version_before_is_left_out(self) -> None:
        second = "def add(a, b):\n    return sum((a, b))"
        self.assertEqual(self.blocks(python(ADD, "n = add(1, 2)\nprint(n)", second)), (2,))
        self.assertEqual(self.blocks(python(f"{ADD}\na = 5", second)), (1,))

    def test_a_version_keeps_what_only_the_one_before_has(self) -> None:
        first = f"from math import sqrt\nimport os\n{ADD}"
        second = "def add(a, b):\n    return sqrt(a) + b"
        self.assertEqual(python(first, second), Program("python", f"from math import sqrt\n{second}\n", (0, 1)))
        found = python(f"def half(a):\n    return a / 2\n\n{ADD}", "def add(a, b):\n    return half(a)")
        self.assertEqual(self.blocks(found), (0, 1))

    def test_what_is_only_sketched_is_no_version(self) -> None:
        for sketch in (
            'def add(a, b):\n    """Adds.\n    >>> add(1, 2)\n    3\n    """',
            "def add(a, b):\n    ...",
            "def add(a, b): pass",
            "def add(\n    a: int,\n    b: int,\n) -> int:\n    # TODO",
            "def add(a, b):\n    # ... rest of the code\n    return c",
            "def add(a, b):",
        ):
            for parts, place in (((sketch, ADD), 1), ((ADD, sketch), 0)):
                self.assertEqual(self.blocks(python(*parts)), (place,), sketch)
        one_line = "def add(a, b): return b + a"
        self.assertEqual(self.blocks(python(ADD, one_line)), (1,))

    def test_excerpts_that_explain_a_program_are_left_out(self) -> None:
        whole = "import math\n\ndef add(a, b):\n    c = a\n    c += b\n    return c"
        excerpt = "def add(a, b):\n    c = a"
        self.assertEqual(self.blocks(python(whole, excerpt, "c += b")), (0,))
        self.assertEqual(self.blocks(python("import math", excerpt, whole)), (2,))
        self.assertEqual(self.blocks(python(ADD, ADD)), (1,))

    def test_a_correction_that_only_leaves_a_line_out_is_no_excerpt(self) -> None:
        wrong = "def add(a, b):\n    a = -a\n    return a + b"
        self.assertEqual(self.blocks(python(wrong, ADD)), (1,))

    def test_other_ways_under_other_names_do_not_run_beside_it(self) -> None:
        other = "def add_fast(a, b):\n    c = a\n    return c + b\nprint(add_fast(1, 2))"
        self.assertEqual(self.blocks(python(ADD, other)), (0,))
        self.assertEqual(self.blocks(python(f"{ADD}\nc = add(1, 2)", other)), (0,))
        self.assertEqual(self.blocks(python("print('a')\nprint('b')", "print('c')", entry_point=None)), (0,))

    def test_a_demonstration_stays_in_the_program(self) -> None:
        guarded = f'{ADD}\n\nif __name__ == "__main__":\n    print(add(1, 2))'
        self.assertEqual(python(guarded), Program("python", guarded + "\n", (0,)))

    def test_results_shown_beside_calls_and_tests_of_a_file_are_left_out(self) -> None:
        for shown in (
            "add(1, 2) -> 3",
            "add(1, 2) = 3",
            "add(1, 2): 3",
            "from adding import add\nassert add(1, 2) == 3",
        ):
            self.assertEqual(self.blocks(python(ADD, shown)), (0,), shown)
        self.assertEqual(self.blocks(python(ADD, "assert add(1, 2) == 3")), (0, 1))

    def test_output_data_transcripts_and_installing_are_no_program(self) -> None:
        others = (
            ("bash", "pip install x\npython main.py"),
            ("json", "{}"),
            ("text", "3"),
            ("pycon", ">>> 1"),
            ("", "3"),
        )
        self.assertIsNone(program(*others))
        self.assertIsNone(program())
        self.assertEqual(self.blocks(program(*others, ("python", ADD))), (5,))
        self.assertEqual(
            program(("bash", "for i in 1 2; do echo $i; done")),
            Program("bash", "for i in 1 2; do echo $i; done\n", (0,)),
        )

    def test_what_was_typed_at_pythons_prompt_is_a_program_where_nothing_else_defines(self) -> None:
        typed = (
            ">>> import math\n>>> def add(a, b):\n...     c = a\n...\n...     return c + b\n...\n>>> add(1, 2)\n3\n"
            ">>> add(1,\n...     'x')\nTraceback (most recent call last):\n  ...\nTypeError: no\n>>> two = 2"
        )
        made = Program("python", "import math\ndef add(a, b):\n    c = a\n\n    return c + b\n\ntwo = 2\n", (0,))
        for entry_point in (None, "add"):
            self.assertEqual(program(("pycon", typed), entry_point=entry_point), made)
            self.assertEqual(program_of(code_blocks(f"```python\n{typed}\n```"), entry_point), made)
            self.assertEqual(self.blocks(program(("pycon", typed), ("python", ADD), entry_point=entry_point)), (1,))
        self.assertEqual(self.blocks(program(("pycon", typed), ("python", "print(1)"), entry_point="add")), (0,))
        self.assertIsNone(program(("pycon", ">>> add(1, 2)\n3"), entry_point="add"))
        self.assertIsNone(program(("pycon", typed), entry_point="other"))

    def test_commands_of_a_notebook_are_taken_out(self) -> None:
        self.assertEqual(python(f"!pip install x\n{ADD}"), Program("python", f"\n{ADD}\n", (0,)))
        self.assertIsNone(python("pip install numpy"))

    def test_code_that_is_indented_as_a_whole_is_not(self) -> None:
        self.assertEqual(python("    " + ADD.replace("\n", "\n    ")), Program("python", ADD + "\n", (0,)))

    def test_a_method_can_be_the_entry_point(self) -> None:
        first = "class Solution:\n    def add(self, a, b):\n        return a"
        second = "class Solution:\n    def add(self, a, b):\n        return a + b"
        self.assertEqual(self.blocks(python(first, second)), (1,))

    def test_the_language_asked_for_wins_then_the_one_with_the_entry_point(self) -> None:
        script = "function add(a, b) {\n  return a + b;\n}"
        both = (("python", ADD), ("javascript", script))
        for wanted, place in (("js", 1), ("Python", 0)):
            self.assertEqual(self.blocks(program(*both, entry_point="add", prompt_language=wanted)), (place,))
        self.assertEqual(
            self.blocks(program(("python", "print(1)\nprint(2)"), ("javascript", script), entry_point="add")), (1,)
        )

    def test_a_block_without_a_language_is_in_the_one_asked_for(self) -> None:
        self.assertEqual(self.blocks(program(("", "x = 5\nprint(x)"), ("", "5"), prompt_language="python")), (0,))
        self.assertIsNone(program(("", "x = 5")))

    def test_no_script_declares_a_name_twice(self) -> None:
        first = "const add = (a, b) => a + b;\nconst x = add(1, 2);"
        for parts, kept in (((first, "console.log(add(3, 4));"), (0, 1)), ((first, "const x = add(3, 4);"), (0,))):
            self.assertEqual(self.blocks(program(*(("javascript", part) for part in parts))), kept)

    def test_imports_from_the_future_stay_first(self) -> None:
        found = python(
            f"from math import pi\n{ADD}", "from __future__ import annotations\ndef add(a, b):\n    return pi"
        )
        self.assertIsNotNone(found)
        self.assertTrue(found is not None and found.code.startswith("from __future__ import annotations\nfrom math"))


class GeneratedTest(unittest.TestCase):
    def test_blocks_put_into_markdown_come_back_as_they_were(self) -> None:
        chance = random.Random(13)
        lines = [
            "x = 1",
            "def f():",
            "    return 1",
            "",
            "# note",
            "- a",
            "> b",
            "\ttabbed",
            "`y`",
            "1. z",
            "~~",
            "'''",
        ]
        prose = ["Some text.", "", "- item", "Use `a`.", "| a | b |", "## Title", "> quoted"]
        for _ in range(400):
            written: list[str] = []
            wanted: list[CodeBlock] = []
            for _ in range(chance.randrange(4)):
                written += chance.choices(prose, k=chance.randrange(4))
                body = ["first", *chance.choices(lines, k=chance.randrange(6))]
                sign, length = chance.choice("`~"), chance.randrange(3, 6)
                if length > 3 and chance.random() < 0.5:
                    body += [sign * 3 + "js", "inner", sign * 3]
                lead = chance.choice(["", "  ", "   ", "> ", "> > ", "\t", ">   "])
                word = chance.choice(["python", "rust", "json"])
                first = len(written) + 2
                written.append(lead + sign * length + word)
                written += [lead + line for line in body]
                written += [lead + sign * (length + chance.randrange(2)), ""]
                wanted.append(CodeBlock(word, "\n".join(body), first, first + len(body) - 1))
            for end in ("\n", "\r\n"):
                self.assertEqual(code_blocks(end.join(written)), wanted, written)

    def test_a_block_stands_in_the_lines_it_names(self) -> None:
        chance = random.Random(14)
        signs = [
            "```",
            "~~~",
            "```python",
            "````",
            "> ",
            "- ",
            "    ",
            "\t",
            "x = 1",
            "</think>",
            "<think>",
            "\n",
            "\r\n",
            "\r",
            " ",
        ]
        for _ in range(2000):
            text = "".join(chance.choices(signs, k=chance.randrange(30)))
            lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
            for block in code_blocks(text):
                stands = lines[block.line_start - 1 : block.line_end]
                self.assertEqual(len(stands), len(block.code.split("\n")), text)
                for line, code in zip(stands, block.code.split("\n")):
                    self.assertIn(code.strip(" "), line.expandtabs(4) + line, text)
            program_of(code_blocks(text), "x", "python")


class HostileTest(unittest.TestCase):
    def test_a_megabyte_of_signs_is_read_to_its_end(self) -> None:
        # Were any of it quadratic, this would not end.
        for piece in (
            "`",
            "~",
            "```\n",
            "`~",
            ">",
            "> ",
            "- ",
            "\r",
            " ",
            "\t",
            "<think>",
            "</think>\n",
            "1. ",
            "```python\n",
        ):
            text = piece * ((1_000_000 if piece == "`" else 150_000) // len(piece))
            for end in ("", "\n```\nx\n```"):
                code_blocks(text + end)
                bare_code(text + end)

    def test_a_program_is_found_in_bounded_time(self) -> None:
        pieces = (
            "def f():\n",
            'def f():\n"""\n',
            "from a import (\n",
            "import a ",
            ")",
            "f(",
            "x\n",
            "const {",
            "a:",
            "const a = (b",
            "class",
        )
        for piece in pieces:
            code = piece * (LONGEST_CHARS // 4 // len(piece))
            for named in ("python", "javascript", "bash"):
                program_of([CodeBlock(named, code, 1, 1), CodeBlock(named, "x = 1", 1, 1)], "f")
                program_of([CodeBlock(named, code[:1500], 1, 1)] * (BLOCKS_MAX + 9), "f")
        for line in ("for" + " in" * 300_000, "class a(" + "(" * 500_000, "a:" + " " * 500_000, "f" + "()" * 300_000):
            bare_code(f"import a\n{ADD}\n{line}")
            code_blocks(f"```\n{line}\n```")

    def test_a_program_too_long_is_none(self) -> None:
        self.assertIsNone(python("x = 1\n" * LONGEST_CHARS))
