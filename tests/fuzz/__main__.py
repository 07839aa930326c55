"""`python -m tests.fuzz [NAME] [--seconds N] [--seed N] [--case N]`: one fuzzer, or all of them in turn.

`nonces` and `fronts` are runs of their own and not among "all": `--requests` and `--cases` say how long they are.
Exit status 1 when a rule did not hold; what broke it is printed with all that is needed to see it again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from typing import Callable, Optional

from tests.fuzz import answers, bodies, fields, fronts, heads, nonces, streams
from tests.fuzz.finding import Report, numbers

FUZZERS = {
    "heads": heads.run,
    "bodies": bodies.run,
    "streams": streams.run,
    "answers": answers.run,
    "fields": fields.run,
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run what is asked for; returns the exit status."""
    options = _options(argv)
    runs: dict[str, Callable[[Report], None]] = {
        name: lambda report, run=run: run(report, numbers(options.seconds, options.case))
        for name, run in FUZZERS.items()
    }
    runs["nonces"] = lambda report: nonces.run(report, options.requests, options.seconds_at_most)
    runs["fronts"] = lambda report: fronts.run(report, options.cases, options.case)
    names = [options.name] if options.name else list(FUZZERS)
    failed = [name for name in names if not _run(name, options.seed, runs[name])]
    print(f"{len(names)} run, {len(failed)} found something" + (f": {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _run(name: str, seed: int, run: Callable[[Report], None]) -> bool:
    """Whether everything held."""
    print(f"{name}: seed {seed} ...", flush=True)
    report = Report(name, seed)
    began_s = time.monotonic()
    run(report)
    report.counts["seconds"] = round(time.monotonic() - began_s)
    print("\n".join(report.lines()), flush=True)
    return not report.findings


def _options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Odd bytes from both sides of the gateway."
    )
    add = parser.add_argument
    add("name", nargs="?", choices=[*FUZZERS, "nonces", "fronts"], help="one of them (default: all but the last two)")
    add("--seconds", type=float, default=20.0, help="how long each fuzzer makes new cases (default 20)")
    add("--seed", type=int, help="of all cases (default: a random one, which is printed)")
    add("--case", type=int, help="only this case, as a report names it")
    add("--requests", type=int, default=30_000, help="of nonces (default 30000)")
    add("--seconds-at-most", type=float, default=3600.0, help="nonces ends after these with what it has")
    add("--cases", type=int, default=1_000, help="of fronts, for each front and setting together (default 1000)")
    options = parser.parse_args(argv)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)
    return options


if __name__ == "__main__":
    sys.exit(main())
