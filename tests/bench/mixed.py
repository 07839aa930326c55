"""Mixed load by Locust on a gateway and mock engines, all real processes: `python -m tests.bench.mixed --help`.

Starts three mock engines and a gateway on free ports, runs `locustfile.py` without a page, and turns its CSV files into
a table and a chart. Load generator, engines and gateway share the machine; what each took of it is told beside the
figures. Everything it started has ended when it ends; no lock, one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

if sys.platform != "linux":
    sys.exit("tests.bench.mixed: needs Linux, whose /proc it reads CPU from")

from tests.ports import free_port

from . import client, measure, mixedreport, peers, processes
from .processes import BenchError, Child

MODELS = ("70b", "13b", "7b")
KEY = "bench-key"
DELAY_S = 0.02  # an engine's, before an answer's first byte
GAP_S = 0.01  # between a stream's events
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10
MARGIN_S = 60.0
REPOSITORY = peers.REPOSITORY
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
PERFORMANCE = REPOSITORY / "docs" / "PERFORMANCE.md"
IMAGE = REPOSITORY / "docs" / "images" / "load.svg"
BEGIN, END = "<!-- figures of tests.bench.mixed -->\n", "<!-- /figures -->\n"


class Stage(NamedTuple):
    """What runs: the engines, and the gateway with its address."""

    engines: list[Child]
    gateway: Child
    url: str


class Spent(NamedTuple):
    """CPU seconds of each part over the run; `machine_s`: of all that ran on the machine, others too."""

    gateway_s: float
    engines_s: float
    locust_s: float
    machine_s: float


@contextmanager
def stage(run_dir: Path) -> Iterator[Stage]:
    """Start engines and gateway; end them afterwards. Raises BenchError when one of them does not answer."""
    try:
        ports = {model: free_port() for model in MODELS}
        engines = [_engine(model, port, run_dir) for model, port in ports.items()]
        for engine, port in zip(engines, ports.values()):
            client.wait_until_answering(engine, port, "/health", START_TIMEOUT_S)
        port = free_port()
        env = peers.plain_env(
            HOST="127.0.0.1",
            PORT=str(port),
            ENGINES=";".join(f"{model}=http://127.0.0.1:{engine}/v1" for model, engine in ports.items()),
            API_KEYS=f"bench:{KEY}",
            LOG_FORMAT="json",
        )
        argv = [sys.executable, str(REPOSITORY / "main.py")]
        gateway = processes.start("gateway", argv, run_dir / "gateway.log", env, run_dir)
        client.wait_until_answering(gateway, port, "/readyz", START_TIMEOUT_S)
        yield Stage(engines, gateway, f"http://127.0.0.1:{port}")
    finally:
        processes.stop_all()


def _engine(model: str, port: int, run_dir: Path) -> Child:
    argv = [sys.executable, str(REPOSITORY / "main.py"), "mock", "--model", model, "--port", str(port)]
    argv += ["--delay", str(DELAY_S), "--gap", str(GAP_S)]
    return processes.start(f"engine {model}", argv, run_dir / f"engine-{port}.log", peers.plain_env(), run_dir)


def run_locust(on: Stage, options: argparse.Namespace, run_dir: Path) -> tuple[Spent, bool]:
    """Run Locust to its end; its files begin with `load` in the folder of results.

    Returns what was spent, and whether Locust knows of no failure: its files lack what came in the last second. Raises
    BenchError when it does not end, or could not run, or when a process ends under the load.
    """
    argv = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", on.url, "--headless"]
    argv += ["--users", str(options.users), "--spawn-rate", str(options.spawn_rate)]
    argv += ["--run-time", f"{options.seconds}s", "--stop-timeout", f"{STOP_TIMEOUT_S}s"]
    argv += ["--csv", str(options.out / "load"), "--csv-full-history", "--only-summary", "--loglevel", "WARNING"]
    env = peers.plain_env(
        GATEWAY_API_KEY=KEY, LOAD_VERIFIED="1" if options.verified else "0", PYTHONDONTWRITEBYTECODE="1"
    )
    before = _spent(on)
    locust = processes.start("locust", argv, run_dir / "locust.log", env, run_dir)
    status = locust.wait(options.seconds + MARGIN_S)
    after = _spent(on)
    locust.stop()
    for child in (on.gateway, *on.engines):
        if not child.alive():
            raise BenchError(f"{child.name}: ended under load; it printed:\n{child.log_tail()}")
    if status != 0:
        print(locust.log_tail(40), file=sys.stderr)
    if status not in (0, 1):  # 1: requests failed, which the table tells
        raise BenchError(f"locust: {'did not end' if status is None else f'exit status {status}'}")
    return Spent(*(now - then for now, then in zip(after, before))), status == 0


def _spent(on: Stage) -> Spent:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)  # only Locust has, between the two times that this is asked
    engines_s = sum(measure.cpu_s(engine.pid) for engine in on.engines)
    locust_s = ended.ru_utime + ended.ru_stime
    return Spent(measure.cpu_s(on.gateway.pid), engines_s, locust_s, measure.machine_busy_s())


def described(options: argparse.Namespace, spent: Spent) -> str:
    """Return the circumstances in one sentence: what the figures are worth depends on them."""
    cores = os.cpu_count() or 1
    total_s = cores * options.seconds
    others_s = max(0.0, spent.machine_s - spent.gateway_s - spent.engines_s - spent.locust_s)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return (
        f"{options.users} users for {options.seconds} s, {python}. CPU seconds, of {total_s} that {cores} cores have:"
        f" the gateway with the programs it ran {spent.gateway_s:.1f}, the engines {spent.engines_s:.1f},"
        f" Locust {spent.locust_s:.1f}, others {others_s:.1f}."
    )


def write_documents(text: str, image: str) -> None:
    """Put the figures where the document has them. Raises BenchError when it has no place for them."""
    document = PERFORMANCE.read_text("utf-8")
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"{PERFORMANCE.name}: no lines {BEGIN.strip()} and {END.strip()}")
    IMAGE.parent.mkdir(exist_ok=True)
    IMAGE.write_text(image, "utf-8")
    PERFORMANCE.write_text(f"{head}{begin}\n{text}\n{end}{tail}", "utf-8")


def run(options: argparse.Namespace) -> int:
    """Measure and report; returns 1 when a request failed or none was made, else 0. Raises BenchError."""
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("stats", "stats_history"):
        (options.out / f"load_{name}.csv").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="load-") as folder, stage(Path(folder)) as on:
        spent, good = run_locust(on, options, Path(folder))
    rows = mixedreport.rows_of((options.out / "load_stats.csv").read_text("utf-8"))
    rates, lines = mixedreport.course_of((options.out / "load_stats_history.csv").read_text("utf-8"))
    text = f"{mixedreport.table(rows)}\n{described(options, spent)}\n"
    subtitle = f"{options.users} users, mock engines; p50 and p95 of the last 3 s, each panel with a scale of its own"
    image = mixedreport.chart(rates, lines, "A gateway under mixed load", subtitle)
    (options.out / "load.md").write_text(text, "utf-8")
    (options.out / "load.svg").write_text(image, "utf-8")
    print(text)
    fault = mixedreport.fault_of(rows, mixedreport.NAMES) or (None if good else "failed: see what Locust says above")
    if fault:
        print(f"tests.bench.mixed: {fault}", file=sys.stderr)
        return 1
    if options.docs:
        write_documents(text, image)
    return 0


def main(argv: list[str]) -> int:
    """Run; returns 0, 1 when a request failed or none was made, 2 when nothing could be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.mixed",
        description="Mixed load by Locust on a gateway and mock engines; fails when a request does.",
    )
    add = parser.add_argument
    add("--seconds", type=int, default=20, help="length of the run (default 20)")
    add("--users", type=int, default=24, help="users at once (default 24: 10 chat, 6 stream, 6 query, 2 inference)")
    add("--spawn-rate", type=int, default=12, help="users that begin in a second (default 12)")
    add("--verified", action="store_true", help="an inference whose answer is not verified has failed")
    add(
        "--out",
        type=Path,
        default=Path("bench-results"),
        help="folder for CSV, table and chart (default bench-results)",
    )
    add("--docs", action="store_true", help="put table and chart into docs/PERFORMANCE.md and docs/images as well")
    options = parser.parse_args(argv)
    if min(options.seconds, options.users, options.spawn_rate) < 1:
        parser.error("--seconds, --users and --spawn-rate must be at least 1")
    if importlib.util.find_spec("locust") is None:
        print(f"tests.bench.mixed: {sys.executable} has no locust: pip install locust", file=sys.stderr)
        return 2
    processes.install_cleanup()
    try:
        return run(options)
    except BenchError as error:
        print(f"tests.bench.mixed: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
