"""What open consoles cost: `python -m tests.bench.consoles`.

Gateways in front of nine engines (which are one nginx): without a console (CONSOLE=off), with one that nobody watches,
and with `--consoles` that follow `/api/v1/live` and read all of it. Each round has fresh processes and short slices of
load on one after the other, there and back; the ratios are of figures of the same round, so that a noisy minute hits
all. CPU is the scheduler's own count.

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
FEED = "/api/v1/live"
KEY = "a-key-of-the-consoles"


class Figures(NamedTuple):
    """Of one gateway in one round."""

    requests: int
    duration_s: float
    cpu_s: float
    p99_us: int
    ticks: int
    """That consoles have read, all together."""
    read_bytes: int

    def plus(self, other: Figures) -> Figures:
        """Both slices together; of the latencies, the worse."""
        return Figures(*(max(pair) if n == 3 else sum(pair) for n, pair in enumerate(zip(self, other))))  # type: ignore[arg-type]

    @property
    def per_s(self) -> float:
        return self.requests / self.duration_s

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.requests * 1e6


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
        while consoles.ticks < count:
            if not consoles.is_alive() or time.monotonic() > deadline_s:
                raise processes.BenchError(f"{count} consoles have not begun")
            time.sleep(0.05)
        yield consoles
    finally:
        consoles.end()


def scheduled_s(pid: int) -> float:
    """CPU seconds of all threads of a process, in nanoseconds' steps."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def measure(target: Target, readers: Optional[Consoles], seconds: float, run_dir: Path) -> Figures:
    """One slice of load."""
    before, cpu_s = (readers.ticks, readers.read_bytes) if readers else (0, 0), scheduled_s(target.pid)
    result = load.run(target.port, target.headers, 32, seconds, run_dir)
    cpu_s = scheduled_s(target.pid) - cpu_s
    if result.errors:
        raise processes.BenchError(f"errors under load: {result.errors}")
    if readers is not None and not readers.is_alive():
        raise processes.BenchError("a feed has ended")
    ticks, read_bytes = (readers.ticks - before[0], readers.read_bytes - before[1]) if readers else (0, 0)
    return Figures(result.requests, result.duration_s, cpu_s, result.p99_us, ticks, read_bytes)


def measure_round(off: Target, on: Target, consoles: int, seconds: float, run_dir: Path) -> dict[str, Figures]:
    """All three in short slices, there and back."""
    for target in (off, on):
        load.run(target.port, target.headers, 32, 1.0, run_dir)
    figures = {"off": measure(off, None, seconds, run_dir), "nobody": measure(on, None, seconds, run_dir)}
    with watching(on.port, consoles) as readers:
        figures["watched"] = measure(on, readers, seconds, run_dir).plus(measure(on, readers, seconds, run_dir))
    figures["nobody"] = figures["nobody"].plus(measure(on, None, seconds, run_dir))
    figures["off"] = figures["off"].plus(measure(off, None, seconds, run_dir))
    return figures


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
    parser.add_argument("--seconds", type=float, default=2.0)
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
    off, on = variant(gateway, CONSOLE="off"), variant(gateway, CONSOLE="on")
    figures: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        engine = upstream.start(run_dir, 1, 1.0)
        for _ in range(options.rounds):
            with running(off, engine.json_ports, run_dir) as without, running(on, engine.json_ports, run_dir) as target:
                usage = Usage(target.pid, {without.pid, engine.json_pid})
                found_here = measure_round(without, target, options.consoles, options.seconds, run_dir)
                print(f"  {'; '.join(map(_shown, found_here.items()))}; others {usage.so_far()[1]:.0f} %", flush=True)
            for name, one in found_here.items():
                figures.setdefault(name, []).append(one)
    report(figures, options.consoles)
    return 0


def _shown(item: tuple[str, Figures]) -> str:
    name, one = item
    return f"{name} {one.per_s:.0f}/s {one.cpu_us:.1f} us"


def report(figures: dict[str, list[Figures]], consoles: int) -> None:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{python}, {len(figures['off'])} rounds, {consoles} consoles, load {os.getloadavg()[0]:.1f}")
    for name, of in figures.items():
        per_s, cpu_us, p99_us = (
            statistics.median(getattr(one, key) for one in of) for key in ("per_s", "cpu_us", "p99_us")
        )
        print(f"{name:8} {per_s:8.0f} requests/s {cpu_us:7.1f} us of CPU each, p99 {p99_us / 1e3:.1f} ms")
    watched = figures["watched"]
    ticks = sum(one.ticks for one in watched)
    per_console = ticks / consoles / sum(one.duration_s for one in watched)
    print(f"each console: {per_console:.2f} ticks/s of {sum(one.read_bytes for one in watched) / ticks / 1e3:.1f} KB")
    for name, base in (("nobody", "off"), ("watched", "nobody"), ("watched", "off")):
        pairs = list(zip(figures[name], figures[base]))
        per_s, cpu = (
            statistics.median(getattr(a, key) / getattr(b, key) for a, b in pairs) for key in ("per_s", "cpu_us")
        )
        print(f"{name} / {base}: requests/s x {per_s:.3f}, CPU a request x {cpu:.3f}")


if __name__ == "__main__":
    sys.exit(main())
