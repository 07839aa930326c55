"""What a gateway has seen, to be simulated again: a log of decisions, or a state database's ledger. Reads one file.

From a log (`DECISION_LOG`) come the times at which requests chose their first engine, and how long good answers held
their places; from a ledger the times of arrival (a row's time less its latency) and the latencies of good answers,
which hold the gateway's queue, too. Both hold whatever wait there was at engines: a fleet that was overloaded then
looks slower than it is.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Optional

from gateway.tools.replay import lines_of

MOST = 2_000_000  # requests that are read, the first ones
_SQLITE = b"SQLite format 3\x00"
_ROWS = """SELECT ts_unix_s - latency_s, latency_s FROM ledger
    WHERE status < 400 AND error IS NULL AND latency_s > 0 ORDER BY ts_unix_s LIMIT ?"""


class Recorded(NamedTuple):
    """What was seen: seconds of service, times of arrival."""

    name: str
    service_s: list[float]
    arrivals_s: list[float]

    @property
    def rate_per_s(self) -> float:
        """Requests a second, on average."""
        span_s = max(self.arrivals_s) - min(self.arrivals_s)
        return (len(self.arrivals_s) - 1) / span_s if span_s > 0 else 0.0


def recorded(path: Path) -> Recorded:
    """Read a file. Raises OSError; ValueError when it is neither, or holds too little."""
    found = _ledger(path) if _is_database(path) else _decisions(path)
    if len(found.service_s) < 2 or len(found.arrivals_s) < 2:
        raise ValueError("holds fewer than two answered requests")
    return found


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except FileNotFoundError:
        return False  # `lines_of` says what there is instead


def _ledger(path: Path) -> Recorded:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute(_ROWS, (MOST,)).fetchall()
    except sqlite3.Error as error:
        raise ValueError(f"cannot be read as a state database: {error}") from error
    return Recorded(path.name, [float(row[1]) for row in rows], [float(row[0]) for row in rows])


def _decisions(path: Path) -> Recorded:
    found = Recorded(path.name, [], [])
    for _, line in lines_of(path):
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
