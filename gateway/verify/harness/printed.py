"""What a program printed, as it is compared, and as people are told of it.

Trusted code, in the judge: pure functions over texts that a program may have chosen.
"""

from __future__ import annotations

import re

from gateway.verify.harness.processes import PRINTED_BYTES_MAX  # in the sandbox this file stands before


def normalised(text: str) -> str:
    """Without white space at the ends of lines and of the text."""
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip()


def flooded(printed: str) -> bool:
    return len(printed) > PRINTED_BYTES_MAX // 4  # characters, of a run that was ended


def shortened(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}…")


def syntax_text(said: str) -> str:
    """One line of what node or bash says about a fault."""
    lines = [line for line in said.splitlines() if "rror" in line] or said.splitlines() or ["not a program"]
    place = re.search(r"main\.(?:js|mjs):(\d+)", said) or re.search(r"line (\d+)", said)
    return lines[0].split("main.sh: ")[-1].strip() + (f" (line {place.group(1)})" if place else "")
