"""What a gateway has seen, to be simulated again: a log of decisions, or a state database's ledger. Reads one file.

From a log (`DECISION_LOG`) come the times at which requests chose their first engine, and how long good answers held
their places; from a ledger the times of arrival (a row's time less its latency) and the latencies of good answers,
which hold the gateway's queue, too. Both hold whatever wait there was at engines: a fleet that was overloaded then
looks slower than it is.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Optional

MOST = 2_000_000  # requests that are read, the first ones
_SQLITE = b"SQLite format 3\x00"
_ROWS = """SELECT ts_unix_s - latency_s, latency_s, prompt_tokens, completion_tokens FROM ledger
    WHERE status < 400 AND error IS NULL AND latency_s > 0 ORDER BY ts_unix_s LIMIT ?"""


class Recorded(NamedTuple):
    """What was seen: seconds of service, times of arrival, and where known tokens of prompts and answers."""

    name: str
    service_s: list[float]
    arrivals_s: list[float]
    prompt_tokens: list[int]
    output_tokens: list[int]

    @property
    def rate_per_s(self) -> float:
        """Requests a second, on average."""
        span_s = max(self.arrivals_s) - min(self.arrivals_s)
        return (len(self.arrivals_s) - 1) / span_s if span_s > 0 else 0.0


def recorded(path: Path) -> Recorded:
    """Read a file. Raises OSError; ValueError when it is neither, or holds too little."""
    with path.open("rb") as file:
        is_database = file.read(len(_SQLITE)) == _SQLITE
    found = _ledger(path) if is_database else _decisions(path)
    if len(found.service_s) < 2 or len(found.arrivals_s) < 2:
        raise ValueError("holds fewer than two answered requests")
    return found


def _ledger(path: Path) -> Recorded:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute(_ROWS, (MOST,)).fetchall()
    except sqlite3.Error as error:
        raise ValueError(f"cannot be read as a state database: {error}") from error
    return Recorded(
        path.name,
        [float(row[1]) for row in rows],
        [float(row[0]) for row in rows],
        [int(row[2]) for row in rows if row[2] is not None],
        [int(row[3]) for row in rows if row[3]],
    )


def _decisions(path: Path) -> Recorded:
    found = Recorded(path.name, [], [], [], [])
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                if text.endswith("\n"):
                    raise ValueError(f"line {number} is not JSON") from None
                break
            if not isinstance(line, dict) or "op" not in line:
                raise ValueError(f"line {number} is no decision")
            if len(found.service_s) < MOST:
                _take(line, found)
    return found


def _take(line: dict[str, object], found: Recorded) -> None:
    if line["op"] == "acquire" and not line.get("tried"):
        at_s = _seconds(line.get("now_s"))
        if at_s is not None:
            found.arrivals_s.append(at_s)
    elif line["op"] == "settle" and line.get("outcome") == "ok":
        held_s = _seconds(line.get("held_s")) or _seconds(line.get("duration_s"))
        if held_s:
            found.service_s.append(held_s)


def _seconds(value: object) -> Optional[float]:
    return float(value) if isinstance(value, (int, float)) and value >= 0 else None
