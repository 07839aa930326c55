"""The bench's command line: `python -m tests.bench --help`.

Owns the order of a run: the upstream once, then rounds in which every gateway has its turn (A B C,
A B C: a noisy minute hits all of them), then the report. Whatever was measured is reported, also
after Ctrl-C; every process it started is ended in any case.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path

if sys.platform != "linux":
    sys.exit("tests.bench: needs Linux, whose /proc it reads CPU and memory from")

from . import load, measure, peers, processes, report, sections, upstream

_DEFAULT_SECTIONS = "requests,connections,streams,idle,startup,engines"
_MAX_UPSTREAM_PORTS = 8
_IN_THIS_PROCESS = {
    "routing": sections.measure_routing,
    "authtiming": sections.measure_authtiming,
    "estimates": sections.measure_estimates,
    "near": sections.measure_near,
}


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures the gateway and its peers side by side on this machine.",
        epilog=peers.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", default=",".join(peers.NAMES), help="gateways to measure (default: all)")
    add("--section", default=_DEFAULT_SECTIONS, help=f"any of {','.join(sections.SECTIONS)}")
    add("--seconds", type=float, default=4.0, help="length of one load run (default 4)")
    add("--rounds", type=int, default=3, help="rounds; medians are reported (default 3)")
    add("--python", action="append", help="interpreter for the gateway; may be repeated")
    add("--upstreams", type=int, default=1, help="engines behind each gateway (default 1)")
    add("--streams", default="100,500", help="numbers of streams at once (default 100,500)")
    add("--idle", type=int, default=2000, help="idle connections (default 2000)")
    add("--out", type=Path, default=Path("bench-results"), help="where the report goes")
    options = parser.parse_args(argv)
    options.only = _choices(parser, "--only", options.only, peers.NAMES)
    options.section = _choices(parser, "--section", options.section, sections.SECTIONS)
    options.python = options.python or [sys.executable]
    try:
        options.streams = tuple(int(count) for count in options.streams.split(","))
    except ValueError:
        parser.error(f"--streams: not a list of numbers: {options.streams}")
    if options.seconds < 1 or options.rounds < 1:
        parser.error("--seconds and --rounds must be at least 1")
    if not 1 <= options.upstreams <= _MAX_UPSTREAM_PORTS:
        parser.error(f"--upstreams must be 1 to {_MAX_UPSTREAM_PORTS}")
    return options


def _choices(parser: argparse.ArgumentParser, option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    unknown = [name for name in chosen if name not in known]
    if unknown:
        parser.error(f"{option}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    return chosen


def _find(options: argparse.Namespace) -> tuple[list[peers.Gateway], dict[str, str]]:
    """Returns what can be measured, and for what cannot the reason."""
    found: list[peers.Gateway] = []
    missing: dict[str, str] = {}
    for name in options.only:
        for answer in peers.find(name, options.python):
            if isinstance(answer, peers.Missing):
                missing[answer.name] = answer.reason
            else:
                found.append(answer)
    return found, missing


def _measure_round(plan: sections.Plan, gateways: list[peers.Gateway], rows: list[sections.Row], progress: str) -> None:
    """Appends one round's rows to `rows` as they come: an interrupted round still counts."""
    if {"requests", "connections", "streams"} & set(plan.sections):
        _say(f"{progress}: direct")
        rows += sections.measure_direct(plan)
    for gateway in gateways:
        _say(f"{progress}: {gateway.name}")
        rows += sections.measure_gateway(plan, gateway)
        if gateway.name.startswith("gateway"):
            if "engines" in plan.sections:
                _say(f"{progress}: {gateway.name}, engine counts")
                rows += sections.measure_engine_counts(plan, gateway)
            if "memory" in plan.sections:
                _say(f"{progress}: {gateway.name}, 50 000 requests")
                rows += sections.measure_memory(plan, gateway)
            if "cache" in plan.sections:
                _say(f"{progress}: {gateway.name}, cache")
                rows += sections.measure_cache(plan, gateway)


def _run(options: argparse.Namespace, command: str) -> int:
    gateways, missing = _find(options)
    for name, reason in missing.items():
        _say(f"{name}: not measured, {reason}")
    versions = {gateway.name: gateway.version for gateway in gateways}
    rounds: list[list[sections.Row]] = []
    try:
        for name, rows in _IN_THIS_PROCESS.items():
            if name in options.section:
                _say(name)
                rounds.append(rows())
        if set(options.section) - set(_IN_THIS_PROCESS):
            versions["upstream"] = _measure_rounds(options, gateways, rounds)
    except KeyboardInterrupt:
        _say("interrupted: what was measured so far follows")
        _report(options, command, rounds, versions, missing)
        return 130
    return _report(options, command, rounds, versions, missing)


def _measure_rounds(
    options: argparse.Namespace, gateways: list[peers.Gateway], rounds: list[list[sections.Row]]
) -> str:
    """Appends the rounds to `rounds` while they happen; returns what the upstream was."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        run_dir = Path(folder)
        try:
            engines = upstream.start(run_dir, options.upstreams, options.seconds)
            plan = sections.Plan(options.section, options.seconds, options.streams, options.idle, run_dir, engines)
            for number in range(1, options.rounds + 1):
                rounds.append([])
                progress = f"round {number}/{options.rounds}"
                _measure_round(plan, gateways, rounds[-1], progress)
        finally:
            processes.stop_all()
    return engines.version


def _report(
    options: argparse.Namespace,
    command: str,
    rounds: list[list[sections.Row]],
    versions: dict[str, str],
    missing: dict[str, str],
) -> int:
    """Prints and saves the report; returns the exit status."""
    rounds = [report.with_added_latency(rows) for rows in rounds]
    summaries = report.summarise(rounds)
    facts = report.machine()
    text = report.markdown(summaries, command, facts, versions, missing)
    print(text)
    result = {
        "command": command,
        "machine": facts,
        "versions": versions,
        "missing": missing,
        "medians": [summary._asdict() for summary in summaries],
        "rounds": [[row._asdict() for row in rows] for rows in rounds],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "bench.md").write_text(text)
    _say(f"saved {options.out / 'bench.json'} and {options.out / 'bench.md'}")
    return 1 if any(summary.error for summary in summaries) else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Runs the bench; returns 0, 1 when a measurement was invalid, 2 when it could not run,
    130 when it was interrupted."""
    options = _options(argv)
    measures_gateways = bool(set(options.section) - set(_IN_THIS_PROCESS))
    if measures_gateways and not load.available():
        _say("tests.bench: wrk not found (Debian: apt-get install wrk)")
        return 2
    if measures_gateways and not measure.supported():
        _say("tests.bench: this kernel has no /proc/<pid>/smaps_rollup")
        return 2
    processes.install_cleanup()
    processes.open_files_limit()
    try:
        return _run(options, shlex.join(["python", "-m", "tests.bench", *argv]))
    except processes.BenchError as exc:
        _say(f"tests.bench: {exc}")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
