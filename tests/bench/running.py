"""A gateway while it is measured: started, ready, charged for what it uses, and ended.

Owns the child process for as long as the `with` block lasts, and nothing after it; no lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.ports import free_port

from . import client, measure, payloads, peers, processes
from .processes import BenchError


class Target(NamedTuple):
    """A gateway that answers now, or the upstream itself (`direct`)."""

    name: str
    port: int
    pid: int
    headers: dict[str, str]
    warmup_s: float
    start_s: float


@contextlib.contextmanager
def running(
    gateway: peers.Gateway, engine_ports: list[int], run_dir: Path, stream_port: int | None = None
) -> Iterator[Target]:
    """Starts `gateway` and yields it once it answers; ends it afterwards, whatever happens.

    With `stream_port`, its engine is the streaming one, and readiness is that of its port's
    first stream, not of a plain answer.
    """
    port = free_port()
    work_dir = run_dir / f"{gateway.name}-{port}"
    work_dir.mkdir()
    launch = gateway.plan(port, [stream_port] if stream_port else engine_ports, work_dir)
    began = time.monotonic()
    child = processes.start(gateway.name, launch.argv, work_dir / "log", launch.env, work_dir)
    try:
        answered = client.wait_for_chat(
            child, port, launch.headers, gateway.ready_timeout_s, stream=stream_port is not None
        )
        headers, start_s = launch.headers, answered - began
        yield Target(gateway.name, port, child.pid, headers, gateway.warmup_s, start_s)
        if not child.alive():
            raise BenchError(f"{gateway.name}: ended under load; it printed:\n{child.log_tail()}")
    finally:
        child.stop()


def with_engines(gateway: peers.Gateway, strategy: str, count: int) -> peers.Gateway:
    """Returns our gateway with `count` engines, all on the upstream's ports, from a file."""

    def launch(port: int, engine_ports: list[int], run_dir: Path) -> peers.Launch:
        ports = (engine_ports[index % len(engine_ports)] for index in range(count))
        engines = [{"url": f"http://127.0.0.1:{engine}/v1", "id": f"e{index}"} for index, engine in enumerate(ports)]
        model = {"strategy": strategy, "engines": engines}
        path = run_dir / "engines.json"
        models = {payloads.MODEL: model}
        path.write_text(json.dumps({"default_model": payloads.MODEL, "models": models}))
        plain = gateway.plan(port, engine_ports, run_dir)
        env = {name: value for name, value in plain.env.items() if name != "ENGINES"}
        return plain._replace(env={**env, "ENGINES_FILE": str(path), "HEALTH_INTERVAL": "0"})

    return gateway._replace(plan=launch)


class Usage:
    """CPU used since its creation: by a gateway, and by whatever is not part of the run."""

    def __init__(self, pid: int, upstream_pids: set[int]) -> None:
        self._pid = pid
        self._part = {pid} | upstream_pids
        self._began = self._now()

    def so_far(self) -> tuple[float, float]:
        """Returns the gateway's CPU seconds, and the share of the machine (percent) that others
        used: the higher, the less the figures can be trusted."""
        began, now = self._began, self._now()
        cpu_s, busy_s, part_s, wall_s = (now[index] - began[index] for index in range(4))
        share = (busy_s - part_s) / (wall_s * (os.cpu_count() or 1))
        return cpu_s, max(0.0, share * 100)

    def _now(self) -> tuple[float, float, float, float]:
        own_s = sum(
            used.ru_utime + used.ru_stime
            for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        )
        part_s = own_s + sum(map(measure.cpu_s, self._part))
        return measure.cpu_s(self._pid), measure.machine_busy_s(), part_s, time.monotonic()
