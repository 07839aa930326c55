"""`python main.py advise`: read what was seen, find the fleet, say why. Reads one file."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.configuration import ConfigurationError
from gateway.routing.specs import STRATEGIES
from gateway.settings import load
from gateway.tools.advise.sizing import Ask, Tried, advise
from gateway.tools.advise.telling import as_json, lines
from gateway.tools.arguments import between, option, parser_of, whole
from gateway.tools.results import FAILED, INTERRUPTED, WRONG, failed
from gateway.tools.simulate.recorded import recorded

LEDGER = "ledger"  # instead of a file: STATE_DB
_DESCRIPTION = """How many engines, how many workers and which limits keep a promise of latency, by what a gateway has
seen and what the simulator makes of that."""
_EPILOG = """examples:
  {prog} --slo-ms 500 --from ledger
  {prog} --slo-ms 2000 --percentile 99 --from decisions.jsonl --slots 16

exit status: 0 well, 1 no number of engines keeps the promise, 2 wrong arguments"""


def _parser(prog: str) -> argparse.ArgumentParser:
    known = parser_of(prog, "--slo-ms MS --from FILE [options]", _DESCRIPTION, _EPILOG)
    option(known, "--slo-ms", "MS", "an answer's latency at most", between(1, 86_400_000), required=True)
    source = "a log of decisions or a state database; ledger: that of STATE_DB"
    option(known, "--from", "FILE", source, dest="source", required=True)
    option(known, "--percentile", "P", "of the answers (default 95)", between(50, 99.9), 95.0)
    option(known, "--headroom", "X", "times the rate of the busiest minute (default 1.3)", between(0.1, 1000), 1.3)
    option(known, "--slots", "N", "requests that an engine works on at once (default 8)", whole(1, 100_000), 8)
    known.add_argument("--strategy", choices=STRATEGIES, default="least_connections", help="default least_connections")
    option(known, "--seed", "N", "the same again (default 1)", whole(0, 2**31 - 1), 1)
    known.add_argument("--json", action="store_true", help="print JSON")
    return known


REQUESTS = 20_000  # simulated for each fleet


def main(
    argv: Sequence[str],
    prog: str = "advise",
    environment: Mapping[str, str] = os.environ,
    requests: int = REQUESTS,
) -> int:
    """Run it; returns the exit status: 0 well, 1 the promise cannot be kept, 2 wrong arguments."""
    try:
        typed = _parser(prog).parse_args(list(argv))
    except SystemExit as error:
        return WRONG if error.code else 0
    try:
        path = _state_db(environment) if typed.source == LEDGER else Path(typed.source)
        record = recorded(path)
        if record.rate_per_s <= 0:
            raise ValueError("all its requests came at one moment")
    except (OSError, ValueError, ConfigurationError) as error:
        why = error.strerror or error if isinstance(error, OSError) else error
        return failed(WRONG, f"--from: {typed.source}: {why}")
    ask = Ask(typed.slo_ms / 1000, typed.percentile, typed.headroom, typed.slots, typed.strategy, typed.seed, requests)
    try:
        advice = advise(record, ask, _progress)
    except KeyboardInterrupt:
        return INTERRUPTED
    if typed.json:
        print(json.dumps(as_json(advice, ask, path.name), indent=1, allow_nan=False))
    else:
        print("\n".join(lines(advice, ask, path.name)))
    return FAILED if advice.engines is None else 0


def _progress(tried: Tried) -> None:
    if sys.stderr.isatty():
        print(f"simulated {tried.engines} engines", file=sys.stderr)


def _state_db(environment: Mapping[str, str]) -> Path:
    path = load({**environment, "AUTH": "off"}, Path(".env")).state_db
    if not path.is_file():
        raise ValueError(f"there is no state database {path}; LEDGER=on has one kept")
    return path
