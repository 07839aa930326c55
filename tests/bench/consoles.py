"""What open consoles cost: `python -m tests.bench.consoles`.

One gateway after another, each a fresh process in front of nine engines (which are one nginx): without a console
(CONSOLE=off), with one that nobody watches, and with `--consoles` that follow `/api/v1/live` and read all of it. Rounds
alternate, and the ratios are of figures of the same round, so that a noisy minute hits both. `at rest`: the CPU that a
second takes while nothing is asked, by the scheduler's own count.

`--threads`: instead, the CPU of the threads that the feed is for, under load, with no console, some and four times as
many; in a gateway of this process, since only it can tell its threads apart. A busy machine moves these figures least.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import selectors
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

if sys.platform != "linux":
    sys.exit("tests.bench.consoles: needs Linux, whose /proc it reads CPU from")

from . import load, payloads, peers, processes, upstream
from .running import Target, Usage, running, with_engines

ENGINES = 9
REST_S = 6.0
FEED = "/api/v1/live"
KEY = "a-key-of-the-consoles"


class Figures(NamedTuple):
    """Of one run: requests a second, CPU of the gateway for each, latency; bytes and ticks that consoles have read."""

    per_s: float
    cpu_us: float
    p50_us: int
    p99_us: int
    rest_ms: float
    ticks: float
    kb_per_tick: float


class Consoles(threading.Thread):
    """So many connections that read the feed, as fast as it comes."""

    def __init__(self, port: int, count: int) -> None:
        super().__init__(daemon=True)
        self.read_bytes = 0
        self.ticks = 0
        self._ends = False
        self._selector = selectors.DefaultSelector()
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port), 10)
            sock.sendall(f"GET {FEED} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\n\r\n".encode())
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)

    def run(self) -> None:
        while not self._ends:
            for key, _ in self._selector.select(0.2):
                data = key.fileobj.recv(1 << 20)  # type: ignore[union-attr]
                if not data:
                    raise processes.BenchError("a feed has ended")
                self.read_bytes += len(data)
                self.ticks += data.count(b"event: tick")

    def end(self) -> None:
        self._ends = True
        self.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


@contextlib.contextmanager
def watching(port: int, count: int) -> Iterator[Optional[Consoles]]:
    """With so many consoles, all of which have begun."""
    if not count:
        yield None
        return
    consoles = Consoles(port, count)
    consoles.start()
    try:
        deadline_s = time.monotonic() + 20
        while consoles.ticks < count and time.monotonic() < deadline_s:
            time.sleep(0.05)
        yield consoles
    finally:
        consoles.end()


def scheduled_s(pid: int) -> float:
    """CPU seconds of all threads of a process, in nanoseconds' steps."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def measure(target: Target, consoles: int, seconds: float, run_dir: Path, upstream_pid: int) -> Figures:
    load.run(target.port, target.headers, 32, 1.0, run_dir)
    with watching(target.port, consoles) as readers:
        began_s, cpu_s = time.monotonic(), scheduled_s(target.pid)
        time.sleep(REST_S)
        rest_ms = (scheduled_s(target.pid) - cpu_s) / (time.monotonic() - began_s) * 1e3
        before = (readers.ticks, readers.read_bytes) if readers else (0, 0)
        usage, cpu_s = Usage(target.pid, {upstream_pid}), scheduled_s(target.pid)
        result = load.run(target.port, target.headers, 32, seconds, run_dir)
        cpu_us = (scheduled_s(target.pid) - cpu_s) / result.requests * 1e6
        busy = usage.so_far()[1]
        if result.errors:
            raise processes.BenchError(f"errors under load: {result.errors}")
        ticks = (readers.ticks - before[0]) if readers else 0
        kb = (readers.read_bytes - before[1]) / max(1, ticks) / 1e3 if readers else 0.0
    per_s = result.requests / result.duration_s
    print(
        f"  {consoles:3} consoles: {per_s:.0f}/s, {cpu_us:.1f} us, p99 {result.p99_us / 1e3:.1f} ms; "
        f"others {busy:.0f} %",
        flush=True,
    )
    per_console = ticks / max(1, consoles) / result.duration_s
    return Figures(per_s, cpu_us, result.p50_us, result.p99_us, rest_ms, per_console, kb)


def variant(gateway: peers.Gateway, **more: str) -> peers.Gateway:
    """The same gateway with a key for consoles, and further settings."""

    def launch(port: int, engine_ports: list[int], run_dir: Path) -> peers.Launch:
        plain = gateway.plan(port, engine_ports, run_dir)
        return plain._replace(env={**plain.env, "ADMIN_KEYS": f"console:{KEY}", **more})

    return gateway._replace(plan=launch)


def thread_costs(port: int, native_ids: dict[str, int], consoles: int, seconds: float, run_dir: Path) -> None:
    """Print what each of these threads of this process takes of a second, under load and with so many consoles."""

    def used_s(native_id: int) -> float:
        return int(Path(f"/proc/self/task/{native_id}/schedstat").read_text().split()[0]) / 1e9

    code = f"from tests.bench.consoles import Consoles; Consoles({port}, {consoles}).run()"
    readers = processes.start("consoles", [sys.executable, "-c", code], run_dir / f"consoles-{consoles}")
    try:
        time.sleep(2.5)  # all have begun
        before = {name: used_s(native_id) for name, native_id in native_ids.items()}
        result = load.run(port, {}, 32, seconds, run_dir)
        per_s = {name: (used_s(native_ids[name]) - before[name]) / result.duration_s for name in native_ids}
    finally:
        readers.stop()
    costs = ", ".join(f"{name} {value * 1e3:.2f}" for name, value in per_s.items())
    print(
        f"{consoles:4} consoles, {result.requests / result.duration_s:.0f} requests/s: {costs} ms a second", flush=True
    )


def measure_threads(consoles: int, seconds: float, run_dir: Path, engine_port: int) -> None:
    from tests.support import gateway

    engines = [{"url": f"http://127.0.0.1:{engine_port}/v1", "id": f"e{number}"} for number in range(ENGINES)]
    path = run_dir / "engines.json"
    path.write_text(json.dumps({"models": {payloads.MODEL: {"engines": engines}}}))
    for count in (0, consoles, 4 * consoles):
        with gateway({"ENGINES_FILE": path}) as running_here:
            native_ids = {
                thread.name: thread.native_id
                for thread in threading.enumerate()
                if thread.name in ("live", "relay", "clients") and thread.native_id is not None
            }
            load.run(running_here.port, {}, 32, 1.0, run_dir)
            thread_costs(running_here.port, native_ids, count, seconds, run_dir)


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--consoles", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", action="store_true")
    options = parser.parse_args(argv)
    if options.threads:
        with tempfile.TemporaryDirectory() as folder:
            engine = upstream.start(Path(folder), 1, 1.0)
            measure_threads(options.consoles, options.seconds, Path(folder), engine.json_ports[0])
        return 0
    (found,) = peers.find("gateway", [sys.executable])
    if isinstance(found, peers.Missing) or not load.available():
        sys.exit(f"cannot measure: {found.reason if isinstance(found, peers.Missing) else 'wrk is not installed'}")
    gateway = with_engines(found, "round_robin", ENGINES)
    runs = {
        "off": (variant(gateway, CONSOLE="off"), 0),
        "nobody": (variant(gateway, CONSOLE="on"), 0),
        "watched": (variant(gateway, CONSOLE="on"), options.consoles),
    }
    figures: dict[str, list[Figures]] = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        engine = upstream.start(run_dir, 1, 1.0)
        for number in range(options.rounds):
            names = list(runs) if number % 2 == 0 else list(reversed(runs))
            for name in names:
                peer, consoles = runs[name]
                with running(peer, engine.json_ports, run_dir) as target:
                    figures[name].append(measure(target, consoles, options.seconds, run_dir, engine.json_pid))
    report(figures, options.consoles)
    return 0


def report(figures: dict[str, list[Figures]], consoles: int) -> None:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{python}, {len(figures['off'])} rounds, {consoles} consoles, load {os.getloadavg()[0]:.1f}")
    names = "requests/s", "CPU us", "p50 us", "p99 us", "at rest ms/s", "ticks/s", "KB/tick"
    print(f"{'':10}" + "".join(f"{name:>14}" for name in names))
    for name, of in figures.items():
        print(f"{name:10}" + "".join(f"{statistics.median(column):14.2f}" for column in zip(*of)))
    for name, base in (("nobody", "off"), ("watched", "nobody"), ("watched", "off")):
        per_s = statistics.median(a.per_s / b.per_s for a, b in zip(figures[name], figures[base]))
        cpu = statistics.median(a.cpu_us / b.cpu_us for a, b in zip(figures[name], figures[base]))
        print(f"{name} / {base}: requests/s x {per_s:.3f}, CPU a request x {cpu:.3f}")


if __name__ == "__main__":
    sys.exit(main())
