"""What a program reads and prints: whether it reads, and how what it printed is compared and told of.

Runs inside the sandbox, in front of the harnesses that use it.
"""

from __future__ import annotations

import re

from gateway.verify.harness.keys import key_of  # in the sandbox this file stands before

SHOWN_CHARS = 200
# Of Python, of JavaScript, and of a shell and what it starts.
_READS = re.compile(
    r"\binput\s*\(|\bstdin\b|\bfileinput\b|\bopen\(\s*0\b|readFileSync\(\s*0\b|createInterface\b"
    r"|(?:^|[;|&({]|\b(?:while|do|then|if|until)\b)[ \t]*(?:IFS=\S*[ \t]+)?(?:read|mapfile|readarray)\b"
    r"|(?:^|[;|(])[ \t]*(?:awk|bc|cat|cut|grep|head|rev|sed|sort|tail|tac|tr|uniq|wc|xargs)\b",
    re.MULTILINE,
)


def reads_stdin(source: str) -> bool:
    """Whether a program looks as if it read what it is given."""
    return bool(_READS.search(source))


def printed_key(text: str, status: int = 0) -> str:
    """The key of a run that printed `text` and ended with `status`."""
    return key_of((normalised(text), status))


def normalised(text: str) -> str:
    """Without white space at the ends of lines and of the text."""
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip()


def shortened(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…")


def syntax_text(said: str) -> str:
    """One line of what node or bash says about a fault."""
    lines = [line for line in said.splitlines() if "rror" in line] or said.splitlines() or ["not a program"]
    place = re.search(r"main\.(?:js|mjs):(\d+)", said) or re.search(r"line (\d+)", said)
    return lines[0].split("main.sh: ")[-1].strip() + (f" (line {place.group(1)})" if place else "")
