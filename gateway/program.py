"""How the command was called: for its help, and for what messages tell the user to run. No state, no lock."""

from __future__ import annotations

import sys

DOTENV = ".env"
"""Where settings are read from beside the environment, in the current folder."""


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
