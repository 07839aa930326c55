"""What the gateway's own process, metrics and log say: before a fault, after it, and what is left over.

Reads /proc (Linux only), /metrics and the log file. Owns nothing; every wait is bounded.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import CHAT, GatewayProcess, parse_metrics

SETTLE_S = 20.0
SETTLED_GAUGES = (
    "gateway_engine_inflight",
    "gateway_engine_queue_depth",
    "gateway_workers_busy",
    "gateway_queue_depth",
)
_SAMPLE = re.compile(r"([a-z_]+)(?:\{(.*)\})?")
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')


class Sample(NamedTuple):
    """One sample of /metrics."""

    name: str
    labels: dict[str, str]
    value: float


class Held(NamedTuple):
    """What the processes that serve hold: threads, descriptors but for kept connections to engines, those, places and
    requests."""

    threads: int
    descriptors: int
    engine_sockets: int
    leases: int


def samples(gateway: GatewayProcess) -> list[Sample]:
    """Every sample of /metrics now."""
    found = []
    for printed, value in parse_metrics(gateway.ask("GET", "/metrics").body).items():
        match = _SAMPLE.fullmatch(printed)
        if match is not None:
            found.append(Sample(match[1], dict(_LABEL.findall(match[2] or "")), value))
    return found


def summed(found: Sequence[Sample], name: str, label: str) -> Counter[str]:
    """The values of one metric, added up by one label; whole numbers, zeros left out."""
    totals: Counter[str] = Counter()
    for sample in found:
        if sample.name == name and sample.value:
            totals[sample.labels.get(label, "")] += int(sample.value)
    return totals


def held(gateway: GatewayProcess, engine_ports: Collection[int]) -> Held:
    """What the gateway holds now."""
    leases = sum(int(s.value) for s in samples(gateway) if s.name in SETTLED_GAUGES)
    descriptors = sockets = 0
    for pid in gateway.serving_pids():
        to_engines = _sockets_to(pid, engine_ports)
        inodes = _open_inodes(pid)
        descriptors += len(inodes)
        sockets += sum(inode in to_engines for inode in inodes)
    return Held(threads(gateway), descriptors - sockets, sockets, leases)


def threads(gateway: GatewayProcess) -> int:
    """The threads now of the processes that serve."""
    return sum(1 for pid in gateway.serving_pids() for _ in Path(f"/proc/{pid}/task").iterdir())


def _open_inodes(pid: int) -> list[str]:
    """The target of each open descriptor; a socket's inode number, anything else as it is."""
    targets = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
        targets.append(target[len("socket:[") : -1] if target.startswith("socket:[") else target)
    return targets


def _sockets_to(pid: int, ports: Collection[int]) -> set[str]:
    """The inodes of TCP sockets whose far end is one of these ports (proc(5), /proc/net/tcp: rem_address, inode)."""
    inodes = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[2].rpartition(":")[2], 16) in ports:
            inodes.add(fields[9])
    return inodes


def least_held(gateway: GatewayProcess, engine_ports: Collection[int], seconds: float = 1.0) -> Held:
    """The least of each over some time: probes come and go."""
    looks: list[Held] = []
    deadline_s = time.monotonic() + seconds
    while not looks or time.monotonic() < deadline_s:
        looks.append(held(gateway, engine_ports))
        time.sleep(0.05)
    return Held(*(min(values) for values in zip(*looks)))


def left_over(gateway: GatewayProcess, engine_ports: Collection[int], before: Held, most_per_engine: int) -> Held:
    """What is held beyond `before` after everybody has left; looks until that is nothing, for at most SETTLE_S.

    Kept connections to engines are no leak as long as there are at most `most_per_engine` to each.
    """
    least = [10**9] * 4
    allowed = before._replace(engine_sockets=most_per_engine * len(engine_ports), leases=0)
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        least = [min(pair) for pair in zip(least, held(gateway, engine_ports))]
        over = Held(*(max(0, now - most) for now, most in zip(least, allowed)))
        if not any(over) or time.monotonic() >= deadline_s:
            return over
        time.sleep(0.05)


class Log:
    """The gateway's log as counted: request lines by id, engines' changes of state in order."""

    def __init__(self, gateway: GatewayProcess, prefix: str) -> None:
        lines = gateway.log_lines()
        self.requests: Counter[str] = Counter(
            line["request_id"]
            for line in lines
            if line["event"] == "request" and line["path"] == CHAT and line["request_id"].startswith(prefix + "-")
        )
        self.changes: list[dict[str, Any]] = [line for line in lines if line["event"] == "engine_state"]
        self.other: Counter[str] = Counter(
            line["event"]
            for line in lines
            if line["level"] == "error" and line["event"] not in ("request", "engine_state")
        )
