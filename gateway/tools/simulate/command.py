"""`python main.py simulate`: run the scenario once for each strategy, tell what came of it."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional, TextIO

from gateway.tools.asking import UsageError
from gateway.tools.simulate.options import Options, options_of
from gateway.tools.simulate.page import page
from gateway.tools.simulate.result import result_of
from gateway.tools.simulate.simulator import simulate
from gateway.tools.simulate.table import table

FAILED, WRONG, INTERRUPTED = 1, 2, 130
_ERASED = "\r\x1b[K"


def main(argv: Sequence[str], prog: str = "simulate") -> int:
    """Run it; returns the exit status: 0 well, 1 a file could not be written, 2 wrong arguments."""
    try:
        options = options_of(argv, prog)
        _check_files(options)
    except SystemExit as error:  # argparse has said what is wrong, or helped
        return WRONG if error.code else 0
    except UsageError as error:
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        return WRONG
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
    return _tell(options, result_of(options.scenario, runs, python))


def _check_files(options: Options) -> None:
    """Say before the run, not after it, what cannot be written. Raises UsageError."""
    for name, file in (("--json", options.json_file), ("--html", options.html_file)):
        if file is None or file == "-":
            continue
        path = Path(file)
        if path.is_dir() or not path.parent.is_dir():
            why = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
            raise UsageError(f"{name}: {path}: {why}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError(f"{name}: {path}: may not be written")


def _progress(strategy: str, stream: TextIO, quiet: bool) -> Optional[Callable[[float, int], object]]:
    if quiet or not stream.isatty():
        return None

    def show(share: float, count: int) -> None:
        stream.write(f"{_ERASED}{strategy}: {100 * share:.0f} %, {count} requests")
        stream.flush()

    return show


def _tell(options: Options, result: dict[str, Any]) -> int:
    status = 0
    text = json.dumps(result, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    if options.json_file == "-":
        _print(sys.stdout, text)
        _print(sys.stderr, table(result))
    else:
        _print(sys.stdout, table(result))
    files: list[tuple[str, Path, str]] = []
    if options.json_file not in (None, "-"):
        files.append(("--json", Path(str(options.json_file)), text))
    if options.html_file is not None:
        files.append(("--html", options.html_file, page(result)))
    for name, path, written in files:
        try:
            path.write_text(written, "utf-8")
        except OSError as error:
            print(f"error: {name}: {path}: {error.strerror or error}", file=sys.stderr)
            status = FAILED
    return status


def _print(stream: TextIO, text: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()
