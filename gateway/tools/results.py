"""What a load test and a simulation have in common when they run and tell: exit statuses, files, a quiet collector."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Optional, TextIO

from gateway.tools.asking import UsageError

FAILED, WRONG, INTERRUPTED = 1, 2, 130


def failed(status: int, *texts: str) -> int:
    """Say on stderr what is wrong; returns the status."""
    for text in texts:
        print(f"error: {text}", file=sys.stderr)
    return status


def check_files(json_file: Optional[str], html_file: Optional[Path]) -> None:
    """Say before the run, not after it, what `tell` cannot write. Raises UsageError."""
    for name, file in (("--json", json_file), ("--html", html_file)):
        if file is None or file == "-":
            continue
        path = Path(file)
        if path.is_dir() or not path.parent.is_dir():
            why = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
            raise UsageError(f"{name}: {path}: {why}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError(f"{name}: {path}: may not be written")


def tell(
    result: Mapping[str, Any],
    table: str,
    page: Callable[[Mapping[str, Any]], str],
    json_file: Optional[str],
    html_file: Optional[Path],
) -> int:
    """Print the table, and write the result as JSON (`-`: to stdout, the table to stderr then) and as a page, where
    they are asked for; returns the exit status: 0, or 1 a file could not be written."""
    status = 0
    text = json.dumps(result, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    files: list[tuple[str, Path, str]] = []
    if json_file == "-":
        _print(sys.stdout, text)
    elif json_file is not None:
        files.append(("--json", Path(json_file), text))
    _print(sys.stderr if json_file == "-" else sys.stdout, table)
    if html_file is not None:
        files.append(("--html", html_file, page(result)))
    for name, path, written in files:
        try:
            path.write_text(written, "utf-8", "replace")  # a name may hold what UTF-8 cannot
        except OSError as error:
            status = failed(FAILED, f"{name}: {path}: {error.strerror or error}")
    return status


def _print(stream: TextIO, text: str) -> None:
    """Print what the stream's encoding may not know."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()


@contextmanager
def quiet_memory(*thresholds: int) -> Iterator[None]:
    """With these thresholds of the collector, which looks at nothing that is there already."""
    if not hasattr(gc, "freeze"):
        yield
        return
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*thresholds)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
