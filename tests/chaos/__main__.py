"""`python -m tests.chaos [--seconds N] [--clients N] [--only FAULT,...] [--out DIR]`: every fault, then the table.

Exit status 1 when something that must hold did not; each violation is printed as it is found.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

if sys.platform != "linux":
    sys.exit("tests.chaos: needs Linux, whose /proc it reads threads and descriptors from")

from tests.chaos import report
from tests.chaos.faults import FAULTS
from tests.chaos.replays import replayed
from tests.chaos.scene import DECISIONS, Fault, Row, play
from tests.chaos.whole import WHOLE

ALL = (*FAULTS, *WHOLE)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the faults; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    try:
        for fault in options.faults:
            rows.append(_run(fault, options))
            _tell(rows[-1])
    finally:
        command = "python -m tests.chaos " + shlex.join(arguments)
        text = f"`{command.strip()}` ({report.machine()}, {options.clients} clients):\n\n{report.table(rows)}"
        path = report.save(options.out, text)
        print(f"\n{text}\nsaved as {path}")
    violated = [row.name for row in rows if row.violations]
    print(f"{len(rows)} faults, {len(violated)} with violations" + (": " + ", ".join(violated) if violated else ""))
    return 1 if violated else 0


def _run(fault: Fault, options: argparse.Namespace) -> Row:
    seconds = fault.seconds if options.seconds is None or not fault.scales else options.seconds
    began_s = time.monotonic()
    print(f"{fault.name} ...", flush=True)
    with tempfile.TemporaryDirectory() as name:
        keep = Path(name)
        row = play(fault, options.clients, seconds, options.seed, keep)
        notes = dict(row.notes)
        violations = (*row.violations, *replayed(keep / DECISIONS, notes))
        if violations:
            for kept in ("stderr", DECISIONS):
                target = options.out / f"{fault.name.replace(' ', '-').replace(',', '')}.{Path(kept).name}"
                target.write_bytes((keep / kept).read_bytes())
    print(f"  {time.monotonic() - began_s:.0f} s", flush=True)
    return row._replace(notes=notes, violations=violations)


def _tell(row: Row) -> None:
    print(f"  {row.requests} requests: {dict(row.plain)} {dict(row.streams)}; {row.metrics}")
    for name, text in row.notes.items():
        print(f"  {name}: {text}")
    for violation in row.violations:
        print(f"  VIOLATION: {violation}")
    if row.violations:
        for detail in row.details:
            print(f"    {detail}")
    sys.stdout.flush()


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Breaks engines under load and counts what reached the clients."
    )
    add = parser.add_argument
    add("--seconds", type=float, help="how long the kill runs last (default 60 with 3 engines, 20 with 9)")
    add("--clients", type=int, default=64, help="clients at once (default 64)")
    add("--only", default="", help="comma list: faults whose name begins so (default: all)")
    add("--seed", type=int, default=1, help="of the order of kills (default 1)")
    add("--out", type=Path, default=Path("chaos-results"), help="where the table goes, and the logs of what failed")
    add("--list", action="store_true", help="name the faults and end")
    options = parser.parse_args(argv)
    if options.list:
        print("\n".join(fault.name for fault in ALL))
        parser.exit()
    wanted = tuple(filter(None, map(str.strip, options.only.split(","))))
    options.faults = [fault for fault in ALL if not wanted or fault.name.startswith(wanted)]
    if not options.faults:
        parser.error(f"--only: no fault's name begins with any of {', '.join(wanted)}; see --list")
    if options.clients < 2 or (options.seconds is not None and options.seconds < 1):
        parser.error("--clients must be at least 2, --seconds at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
