"""The examples of README and docs, as tests/smoke.py and tests/http/test_readme.py run them.

Each file is one terminal session: its examples run in order, in one shell. A marker in an HTML comment stands above
each code block that is run:

    <!-- smoke: start -->            processes begun with `&`, each of which prints a line when it is ready
    <!-- smoke: until Ctrl-C -->     a process in the foreground, which ends well at Ctrl-C when it is ready
    <!-- smoke: expect 200 404 -->   commands with curl, and the status that each call of it gets
    <!-- smoke: run -->              commands that end well
    <!-- smoke: end -->              commands that end what was started
    <!-- smoke: file NAME -->        a file that is saved by this name
    <!-- smoke: tests -->            the tests: run in a fresh clone only
    <!-- not run: REASON -->         a block of commands that is not run
    <!-- recipe: PACKAGE -->         a program (python, js, sh) that is run by itself where this package is
                                     installed: tests/http/test_clients_page.py

A ```text block that follows shows the answer; a line of `...` stands for any number of lines.
Owns the reading only: nothing here starts a process. The examples use the ports 8000 to 8099 of
this machine, so that `moved` can put them elsewhere.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Callable, NamedTuple, Optional

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
# Every text for people, README first.
TEXTS = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
PREFIXES = range(180, 320)  # ports from 18000 up to 31999: below what systems give to outgoing connections
# For curl: the status behind each answer, without touching the commands.
CURLRC = 'write-out = "\\n\x1f%{http_code}\x1f\\n"\n'

_BLOCK = re.compile(
    r"^<!-- smoke: (?P<kind>start|until Ctrl-C|run|end|tests"
    r"|file (?P<name>[\w.-]+)|expect(?P<statuses>(?: \d{3})+)) -->\n"
    r"```(?P<language>\w+)\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<answer>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
_RECIPE = re.compile(
    r"^<!-- recipe: (?P<package>\S+) -->\n```(?P<language>python|js|sh)\n(?P<code>.*?)^```\n"
    r"\n```text\n(?P<answer>.*?)^```\n",
    re.MULTILINE | re.DOTALL,
)
_RECIPE_MARKER = re.compile(r"^<!-- recipe\b", re.MULTILINE)
_MARKER = re.compile(r"^<!-- smoke\b", re.MULTILINE)
_UNMARKED = re.compile(r"(?<! -->\n)^```sh\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_PORT = re.compile(r"\b80\d\d\b")
_STATUS = re.compile("\n\x1f(\\d{3})\x1f\n")


class Example(NamedTuple):
    """One block that is run; `statuses` is for `expect` only, `answer` is what the text shows, if anything."""

    kind: str
    statuses: tuple[int, ...]
    name: Optional[str]
    code: str
    answer: Optional[str]
    line: int


def examples(text: str) -> list[Example]:
    """Every marked example in order. Raises ValueError when a marker is not followed by a block that can be run."""
    found = []
    for match in _BLOCK.finditer(text):
        kind = match["kind"].split()[0]
        if (match["language"] == "sh") == (kind == "file"):
            raise ValueError(f"the example {match['code']!r} is marked {kind}, but is {match['language']}")
        statuses = tuple(int(status) for status in (match["statuses"] or "").split())
        line = text.count("\n", 0, match.start()) + 1
        found.append(Example(kind, statuses, match["name"], match["code"], match["answer"], line))
    markers = len(_MARKER.findall(text))
    if markers != len(found):
        raise ValueError(f"of {markers} smoke markers, {len(found)} stand above a code block")
    return found


class Recipe(NamedTuple):
    """How one client is used: the package it needs, by its name at PyPI or npm, and what the program prints."""

    package: str
    language: str
    code: str
    answer: str


def recipes(text: str) -> list[Recipe]:
    """Every recipe in order. Raises ValueError when a marker is not followed by a program and what it prints."""
    found = [Recipe(*match.group("package", "language", "code", "answer")) for match in _RECIPE.finditer(text)]
    markers = len(_RECIPE_MARKER.findall(text))
    if markers != len(found):
        raise ValueError(f"of {markers} recipes, {len(found)} are programs with what they print")
    return found


def unmarked(text: str) -> list[str]:
    """The blocks of commands that are neither run nor said not to be."""
    return _UNMARKED.findall(text)


def moved(code: str, port: Callable[[int], int]) -> str:
    """`code` with each of its ports replaced by what `port` says."""
    return _PORT.sub(lambda match: str(port(int(match[0]))), code)


def ports(code: str) -> set[int]:
    """The ports that `code` names."""
    return {int(port) for port in _PORT.findall(code)}


def without_statuses(printed: str) -> tuple[str, tuple[int, ...]]:
    """What was printed with `CURLRC`: the answers, and the status of each."""
    return _STATUS.sub("\n", printed), tuple(int(status) for status in _STATUS.findall(printed))


def shown_matches(shown: str, real: str) -> bool:
    """Whether a real answer is the shown one, up to empty lines and what differs each time: ids, times, numbers."""
    lines = [r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"\n" for line in _settled(shown)]
    return re.fullmatch("".join(lines), "".join(f"{line}\n" for line in _settled(real))) is not None


def _settled(text: str) -> list[str]:
    lines = []
    for line in text.splitlines():
        line = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", line.rstrip())
        line = re.sub(r"^Date: .*", "Date: DATE", line)
        line = re.sub(r"\bigw_\S+", "KEY", line)
        line = re.sub(r"\d+(\.\d+)?(e-?\d+)?", "0", line)
        if line:
            lines.append(line)
    return lines


def free_prefix(wanted: set[int]) -> int:
    """A prefix of two places more than a hundred ports have, under which all `wanted` are free. Raises OSError."""
    for prefix in PREFIXES:
        if all(is_free(prefix * 100 + port % 100) for port in wanted):
            return prefix
    raise OSError("no range of ports is free")


def is_free(port: int) -> bool:
    """Whether this port of this machine can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
