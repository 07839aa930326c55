"""The README's examples, as tests/smoke.sh and tests/test_readme.py run them.

A marker in an HTML comment stands above each code block that is run:

    <!-- smoke: start -->       a process that stays: it prints a line when it is ready
    <!-- smoke: expect 404 -->  one curl command and the status it gets
    <!-- smoke: python -->      a program that ends well

A ```text block that follows shows the answer; a line of `...` stands for any number of lines.
Owns the reading only: nothing here starts a process. The examples use the ports 8000 to 8099 of
this machine, so that `moved` can put them elsewhere.

`python -m tests.readme_examples FOLDER PREFIX` writes each example to a file there, port 80xx as
PREFIXxx; `python -m tests.readme_examples free` prints a prefix whose ports nobody uses.
"""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from typing import Callable, NamedTuple, Optional

README = Path(__file__).resolve().parent.parent / "README.md"
PREFIXES = range(180, 320)  # ports from 18000 up to 31999: below what systems give to outgoing connections

_BLOCK = re.compile(
    r"^<!-- smoke: (?P<kind>start|python|expect (?P<status>\d{3})) -->\n"
    r"```(?P<language>\w+)\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<answer>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
_MARKER = re.compile(r"^<!-- smoke\b", re.MULTILINE)
_PORT = re.compile(r"\b80\d\d\b")


class Example(NamedTuple):
    """One block that is run; `status` is for `expect` only, `answer` is what the README shows, if anything."""

    kind: str
    status: Optional[int]
    code: str
    answer: Optional[str]
    line: int


def examples(text: str) -> list[Example]:
    """Every marked example in order. Raises ValueError when a marker is not followed by a block."""
    found = []
    for match in _BLOCK.finditer(text):
        kind = match["kind"].split()[0]
        if (match["language"] == "python") != (kind == "python"):
            raise ValueError(f"the example {match['code']!r} is marked {kind}, but is {match['language']}")
        status = int(match["status"]) if match["status"] else None
        line = text.count("\n", 0, match.start()) + 1
        found.append(Example(kind, status, match["code"], match["answer"], line))
    markers = len(_MARKER.findall(text))
    if markers != len(found):
        raise ValueError(f"of {markers} smoke markers, {len(found)} stand above a code block")
    return found


def moved(code: str, port: Callable[[int], int]) -> str:
    """`code` with each of its ports replaced by what `port` says."""
    return _PORT.sub(lambda match: str(port(int(match[0]))), code)


def shown_matches(shown: str, real: str) -> bool:
    """Whether a real answer is the shown one, up to what differs from run to run: ids, times, numbers."""
    lines = [r"(?:.*\n)*?" if line == "..." else re.escape(_settled(line)) + r"\n" for line in shown.splitlines()]
    settled = "".join(f"{_settled(line)}\n" for line in real.splitlines())
    return re.fullmatch("".join(lines), settled) is not None


def _settled(line: str) -> str:
    line = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", line.rstrip())
    if line.startswith("Date: "):
        return "Date: DATE"
    return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "0", line)


def free_prefix() -> int:
    """A prefix for the ports of all examples. Raises OSError when none is free."""
    ports = sorted(
        {int(port) for example in examples(README.read_text("utf-8")) for port in _PORT.findall(example.code)}
    )
    for prefix in PREFIXES:
        if all(_is_free(prefix * 100 + port % 100) for port in ports):
            return prefix
    raise OSError("no range of ports is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _main(arguments: list[str]) -> int:
    if arguments == ["free"]:
        print(free_prefix())
        return 0
    folder, prefix = Path(arguments[0]), int(arguments[1])
    for number, example in enumerate(examples(README.read_text("utf-8"))):
        code = moved(example.code, lambda port: prefix * 100 + port % 100)
        suffix = ".py" if example.kind == "python" else ".sh"
        name = f"{number:02}-{example.status or example.kind}-line-{example.line}{suffix}"
        (folder / name).write_text(code, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
