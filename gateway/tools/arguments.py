"""How the commands with many options read them: values by functions that raise ValueError. Pure but for argparse."""

from __future__ import annotations

import argparse
import re
from typing import Any, Callable


def parser_of(prog: str, usage: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser whose help has both texts as they are; of `epilog`, `{prog}` is the command."""
    return argparse.ArgumentParser(
        prog=prog,
        usage=f"%(prog)s {usage}",
        description=description,
        epilog=epilog.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def option(
    group: argparse._ActionsContainer,
    names: str,
    metavar: str,
    about: str,
    read: Callable[[str], Any] = str,
    default: object = None,
    *,
    all_as: str = "",
    **more: Any,
) -> None:
    """An option with a value, which `read` makes of a text; what its ValueError says goes behind the option's name.
    `all_as`: it may be repeated, and all values of that name are a list. `more`: see `add_argument`."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    if all_as:
        more.update(action="append", dest=all_as)
    told = about.replace("%", "%%")
    group.add_argument(*names.split(), metavar=metavar, help=told, type=convert, default=default, **more)


def whole(least: int, most: int) -> Callable[[str], int]:
    """What reads whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", text.strip()) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}, not {text!r}")
        return int(text)

    return read


def between(least: float, most: float) -> Callable[[str], float]:
    """What reads numbers from `least` to `most`."""

    def read(text: str) -> float:
        found = float(text) if re.fullmatch(r"[0-9]{1,10}(?:\.[0-9]+)?|\.[0-9]+", text.strip()) else -1.0
        if not least <= found <= most:
            raise ValueError(f"must be a number from {least} to {most}, not {text!r}")
        return found

    return read


def share(text: str) -> float:
    """A share such as 0.2 or 20%. Raises ValueError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(%?)", text.strip())
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"must be a share from 0 to 1, as in 0.5 or 50%, not {text!r}")
    return value
