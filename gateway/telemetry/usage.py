"""Reads the ledger: sums of requests, tokens, cost and errors, by key, model, engine, status, error, day or hour.

Owns the query's language, the same for `GET /admin/usage` and the command `usage`, and the shapes in which sums are
shown. No state and no lock.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from typing import Any, Callable, NamedTuple, Optional, Protocol
from urllib.parse import parse_qsl

EXPRESSION_BY_COLUMN: Mapping[str, str] = {
    "key": "key",
    "model": "model",
    "engine": "engine",
    "status": "status",
    "error": "error",
    "day": "strftime('%Y-%m-%d', ts_unix_s, 'unixepoch')",
    "hour": "strftime('%Y-%m-%dT%H:00Z', ts_unix_s, 'unixepoch')",
}
SUMS = ("requests", "prompt_tokens", "completion_tokens", "cost_usd", "errors")
DEFAULT_BY = ("key", "model", "day")
FORMATS = ("json", "csv")
COST_DIGITS = 12
"""Decimals of a sum of costs: a millionth of what one cheap token costs, and without the noise of adding floats."""

_SUMS_SQL = """COUNT(*), COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0),
    COALESCE(SUM(cost_usd), 0.0), SUM(error IS NOT NULL OR status >= 400)"""
_MOMENT = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(Z|[+ -][0-9]{2}:[0-9]{2})?")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class Database(Protocol):
    """What usage needs of a state database."""

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Every row of a query."""

    def close(self) -> object:
        """Called when a command is done with it."""


class UsageQuery(NamedTuple):
    """What is asked of the ledger: from `from_unix_s` up to, not including, `to_unix_s`; None: without a bound."""

    by: tuple[str, ...] = DEFAULT_BY
    from_unix_s: Optional[float] = None
    to_unix_s: Optional[float] = None
    format: str = "json"


def usage_rows(
    db: Database,
    by: Sequence[str] = DEFAULT_BY,
    from_unix_s: Optional[float] = None,
    to_unix_s: Optional[float] = None,
) -> list[dict[str, Any]]:
    """One dict per combination of the columns `by`, in their order, with the sums (`SUMS`); days and hours are UTC.

    The time is bounded as in UsageQuery. A request without a key, model or engine has None there; its unknown tokens
    and cost count as 0; an error is a request with an error's code, also a stream that broke after its status 200 (in
    rows from before codes were noted: any status from 400 on). Raises ValueError for an unknown column, and what the
    database's `read` raises.
    """
    columns = _columns(by)
    where = []
    params: list[float] = []
    for bound_unix_s, condition in ((from_unix_s, "ts_unix_s >= ?"), (to_unix_s, "ts_unix_s < ?")):
        if bound_unix_s is not None:
            where.append(condition)
            params.append(bound_unix_s)
    groups = ", ".join(EXPRESSION_BY_COLUMN[column] for column in columns)
    sql = f"SELECT {groups}, {_SUMS_SQL} FROM ledger"
    if where:
        sql += " WHERE " + " AND ".join(where)
    numbers = ", ".join(str(index + 1) for index in range(len(columns)))
    rows = db.read(f"{sql} GROUP BY {numbers} ORDER BY {numbers}", params)
    found = [dict(zip((*columns, *SUMS), row)) for row in rows]
    for row in found:
        row["cost_usd"] = round(row["cost_usd"], COST_DIGITS)
    return found


def usage_csv(rows: Sequence[Mapping[str, Any]], by: Sequence[str] = DEFAULT_BY) -> str:
    """The rows with a header line, lines ended as in RFC 4180. `by`: the columns, where there is no row to tell them.

    A name that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    columns = list(rows[0]) if rows else [*by, *SUMS]
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[column]) for column in columns])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return "'" + value
    if isinstance(value, float):
        return f"{value:.{COST_DIGITS}f}".rstrip("0").rstrip(".")  # never with an exponent
    return value


def parse_usage_query(query: str) -> UsageQuery:
    """What the query string of `/admin/usage` asks for; an empty parameter counts as absent.

    Raises ValueError saying which parameter is wrong and how.
    """
    given: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in ("by", "from", "to", "format"):
            raise ValueError(f"{name[:40]!r} is not a parameter; there are by, from, to and format")
        if name in given:
            raise ValueError(f"{name}: is given twice")
        if value:
            given[name] = value
    return _query(given.get("by"), given.get("from"), given.get("to"), given.get("format", "json"))


def _query(by: Optional[str], start: Optional[str], end: Optional[str], shape: str) -> UsageQuery:
    columns = _columns([part.strip() for part in by.split(",")]) if by is not None else DEFAULT_BY
    from_unix_s = _time("from", start, 0) if start is not None else None
    to_unix_s = _time("to", end, 1) if end is not None else None
    if from_unix_s is not None and to_unix_s is not None and from_unix_s >= to_unix_s:
        raise ValueError(f"to: {end!r} is not after from: {start!r}")
    if shape not in FORMATS:
        raise ValueError(f"format: must be one of {', '.join(FORMATS)}, not {shape[:40]!r}")
    return UsageQuery(columns, from_unix_s, to_unix_s, shape)


def _columns(by: Sequence[str]) -> tuple[str, ...]:
    for column in by:
        if column not in EXPRESSION_BY_COLUMN:
            raise ValueError(f"by: must be of {', '.join(EXPRESSION_BY_COLUMN)}, not {column[:40]!r}")
    if not by or len(set(by)) < len(by):
        raise ValueError("by: must name columns, each once")
    return tuple(by)


def _time(name: str, text: str, days_after: int) -> float:
    """Unix seconds of a time, or of a whole day's begin; with `days_after` 1, of its end."""
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            day = datetime.combine(date.fromisoformat(text), datetime.min.time(), timezone.utc)
            return (day + timedelta(days=days_after)).timestamp()
        if re.fullmatch(r"[0-9]{1,11}(\.[0-9]{1,9})?", text):
            return float(text)
        found = _MOMENT.fullmatch(text)
        if found is None:
            raise ValueError
        # In a query string an unescaped + is a space; Python reads Z only from 3.11 on.
        zone = (found[2] or "Z").replace(" ", "+").replace("Z", "+00:00")
        return datetime.fromisoformat(found[1] + zone).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(
            f"{name}: must be a day such as 2026-11-01, a time such as 2026-11-01T12:00:00Z,"
            f" or Unix seconds, not {text[:40]!r}"
        ) from None


def usage_command(argv: Sequence[str], open_db: Callable[[bool], Optional[Database]], prog: str = "usage") -> int:
    """Print sums of the ledger, called as `prog`; returns the exit status: 0 well, 2 arguments that cannot work.

    `open_db(False)` opens the state database, None: there is none; it is closed at the end. What it and its `read`
    raise is raised.
    """
    try:
        arguments = _parser(prog).parse_args(argv)
    except SystemExit as error:  # argparse has said what is wrong, or helped
        return 2 if error.code else 0
    try:
        query = _query(arguments.by, arguments.start, arguments.end, "json")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    db = open_db(False)
    if db is not None:
        try:
            rows = usage_rows(db, query.by, query.from_unix_s, query.to_unix_s)
        finally:
            db.close()
    if arguments.csv:
        sys.stdout.write(usage_csv(rows, query.by).replace("\r\n", "\n"))  # the terminal has its own line ends
    elif arguments.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        print(_table(rows, query.by))
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Sums of the ledger's requests, in UTC.")
    parser.add_argument("--by", help=f"columns, of {', '.join(EXPRESSION_BY_COLUMN)} (default: {','.join(DEFAULT_BY)})")
    parser.add_argument("--from", dest="start", help="first day, or the time from which, e.g. 2026-11-01")
    parser.add_argument("--to", dest="end", help="last day, or the time up to which, e.g. 2026-11-30")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--csv", action="store_true", help="print CSV")
    shape.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _table(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> str:
    """Aligned columns: names to the left, numbers to the right."""
    columns = [*by, *SUMS]
    lines = [columns] + [[_shown(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < len(by) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6f}" if isinstance(value, float) else str(value)
