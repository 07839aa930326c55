"""`python main.py simulate`: run the scenario once for each strategy, tell what came of it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from typing import Callable, Optional, TextIO

from gateway.tools.asking import UsageError
from gateway.tools.results import INTERRUPTED, WRONG, check_files, failed, tell
from gateway.tools.simulate.options import options_of
from gateway.tools.simulate.page import page
from gateway.tools.simulate.result import result_of
from gateway.tools.simulate.simulator import simulate
from gateway.tools.simulate.table import table

_ERASED = "\r\x1b[K"


def main(argv: Sequence[str], prog: str = "simulate") -> int:
    """Run it; returns the exit status: 0 well, 1 a file could not be written, 2 wrong arguments."""
    try:
        options = options_of(argv, prog)
        check_files(options.json_file, options.html_file)
    except SystemExit as error:  # argparse has said what is wrong, or helped
        return WRONG if error.code else 0
    except UsageError as error:
        return failed(WRONG, *error.faults)
    try:
        runs = [
            simulate(options.scenario, strategy, _progress(strategy, sys.stderr, options.quiet))
            for strategy in options.strategies
        ]
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if sys.stderr.isatty() and not options.quiet:
            sys.stderr.write(_ERASED)
            sys.stderr.flush()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    result = result_of(options.scenario, runs, python)
    return tell(result, table(result), page, options.json_file, options.html_file)


def _progress(strategy: str, stream: TextIO, quiet: bool) -> Optional[Callable[[float, int], object]]:
    if quiet or not stream.isatty():
        return None

    def show(share: float, count: int) -> None:
        stream.write(f"{_ERASED}{strategy}: {100 * share:.0f} %, {count} requests")
        stream.flush()

    return show
