"""Where the command runs: how it was called, for its help and for what messages tell the user to run; its terminal.

Anything may import this. No state, no lock.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

DOTENV = ".env"
"""Where settings are read from beside the environment, in the current folder."""
CHILD_VARIABLE = "INFERENCE_GATEWAY_PROCESS"
"""Says, in the environment, what the parent of several processes hands to one of them (`processes/child.py`)."""


def program() -> str:
    """The command as its user would repeat it: `python main.py`, `python -m gateway`, `inference-gateway`."""
    from pathlib import Path  # here: nothing slow is imported before the signals are handled

    called = sys.argv[0]
    name = Path(called).name
    if not name.endswith(".py"):
        return name.removesuffix(".exe")
    python = Path(sys.executable or "python").name.removesuffix(".exe")
    if name == "__main__.py":
        return f"{python} -m gateway"
    return f'{python} "{called}"' if " " in called else f"{python} {called}"


def shows_colours(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether this is a terminal that knows colours, and nobody has said NO_COLOR."""
    terminal = environ.get("TERM")
    knows = terminal != "dumb" if terminal else "WT_SESSION" in environ  # Windows' own terminal has no TERM
    return stream.isatty() and knows and not environ.get("NO_COLOR")
