"""The table: one line per fault, in Markdown. Functions only."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.chaos.scene import Row, listed

HEAD = (
    "| fault | requests | clients: not streaming | streaming | metrics, log, measured | lost | duplicated | leaked | "
    "holds |"
)
LEGEND = "leaked: threads, descriptors, sockets to engines, leases (places on engines, requests in flight)."


def table(rows: Sequence[Row]) -> str:
    """All rows as a Markdown table."""
    lines = [HEAD, "|---|---:|---|---|---|---:|---:|---|---|"]
    for row in rows:
        said = "; ".join([row.metrics, *(f"{name}: {text}" for name, text in row.notes.items())])
        leaked = ", ".join(map(str, row.leaked))
        cells = [
            row.name,
            _number(row.requests),
            _outcomes(row.plain),
            _outcomes(row.streams),
            said,
            str(row.lost),
            str(row.duplicated),
            leaked,
            "no" if row.violations else "yes",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + f"\n\n{LEGEND}\n"


def _outcomes(counts: Mapping[str, int]) -> str:
    return listed(counts) or "none"


def _number(value: int) -> str:
    return f"{value:,}".replace(",", " ")


def machine() -> str:
    """Interpreter, system and processors, as one line."""
    processors = len(os.sched_getaffinity(0))
    return f"{platform.python_implementation()} {platform.python_version()}, {sys.platform}, {processors} processors"


def save(directory: Path, text: str) -> Path:
    """Write the report; returns its path."""
    path = directory / "chaos.md"
    path.write_text(text, "utf-8")
    return path
