"""A gateway in this process under watch: what must hold whatever was sent to it.

No 500; no exception in its log (other than one that a client saw as a 500, which is told as that: the rest are
notes); every exchange ends: nothing in flight, no place on an engine, no stream, no request in line, no more
threads than before; memory is bounded: the resident set grows by no more than GROWTH_BYTES over a run.
"""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, Optional
from unittest import mock

from gateway.app import Gateway
from gateway.server import parsing
from tests.fuzz.finding import Report
from tests.support import eventually, load_settings

GROWTH_BYTES = 192 << 20
ENDS_WITHIN_S = 15.0
SPARE_THREADS = 128  # what gateways keep of the threads they once needed, and those of others in this process


class Log(io.StringIO):
    """What the gateway logs: kept but for requests that went as they may, since there are very many of them."""

    def __init__(self, on_request: Optional[Callable[[dict[str, Any]], None]] = None) -> None:
        super().__init__()
        self._on_request = on_request
        self.kept: list[dict[str, Any]] = []

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if self._on_request is not None and '"event": "request"' in line:
                self._on_request(json.loads(line))
            if '"event": "request"' in line and '"status": 500' not in line:
                continue
            with contextlib.suppress(ValueError):
                self.kept.append(json.loads(line))
        return len(text)


class Watched:
    """A gateway that serves in this process, and what it was when it began."""

    def __init__(self, app: Gateway, log: Log, report: Report) -> None:
        self.app = app
        self.port = app.address[1]
        self._log = log
        self._report = report
        self._threads = threading.active_count()
        self._resident = resident_bytes()

    def check(self) -> None:
        """Report what does not hold, once everybody has had an answer."""
        report = self._report
        try:
            eventually(lambda: not self._held(), ENDS_WITHIN_S)
        except AssertionError:
            report.found("every exchange ends", "-", f"still held: {self._held()}")
        for line in self._log.kept:
            if line["event"] == "internal_error":
                last = line["traceback"].strip().splitlines()[-1]
                report.note(f"an exception in the log: {last[:160]}")
            elif line["event"] == "request":
                report.found("no 500", line["request_id"], f"{line['method']} {line['path']} has status 500 in the log")
        grown = resident_bytes() - self._resident
        report.count("MiB grown", max(0, grown >> 20))
        if grown > GROWTH_BYTES:
            report.found("memory is bounded", "-", f"{grown >> 20} MiB more than at the beginning")

    def _held(self) -> dict[str, int]:
        app = self.app
        held = {
            "exchanges": app.pipeline.in_flight,
            "streams": len(app.relay),
            "places on engines": sum(engine.in_flight for engine in app.factory.engines()),
            "in line": sum(pool.waiting for pool in app.factory.router.pools.values()),
            "threads": max(0, threading.active_count() - self._threads - SPARE_THREADS),
        }
        return {name: number for name, number in held.items() if number}


@contextlib.contextmanager
def watched(
    report: Report,
    environment: Optional[Mapping[str, object]] = None,
    without_epoll: bool = False,
    on_request: Optional[Callable[[dict[str, Any]], None]] = None,
) -> Iterator[Watched]:
    """A gateway with these settings, checked and stopped at the end. `without_epoll`: as where there is no epoll;
    `on_request` is told every request's log line, on the thread that writes them."""
    log = Log(on_request)
    settings = load_settings({"LOG_FORMAT": "json", **(environment or {})})
    patched = mock.patch("gateway.server.loop.HAS_EPOLL", False) if without_epoll else contextlib.nullcontext()
    with patched:
        app = Gateway(settings, log).start()
    running = Watched(app, log, report)
    try:
        yield running
        running.check()
    finally:
        app.stop(0)


@contextlib.contextmanager
def heads_read_by(name: str, other: Callable[..., None]) -> Iterator[None]:
    """The gateway reads heads with this in place of its function of that name, also those that it has read before."""
    parsing._parse_known.cache_clear()
    try:
        with mock.patch.object(parsing, name, other):
            yield
    finally:
        parsing._parse_known.cache_clear()


def resident_bytes() -> int:
    """What this process holds in memory; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * 4096
