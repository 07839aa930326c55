"""One fault from beginning to end: engines, a gateway, clients; the fault; what came of it, as a row of the table.

`play` owns every process it starts and ends them all. What a fault does is in faults.py; what must hold is judged here,
the same for every fault, and by the fault's own rule where it has one.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from gateway.threads import SPARE_THREADS
from tests.chaos import engines as engine_processes
from tests.chaos import observe
from tests.chaos.engines import EngineProcess
from tests.chaos.observe import Held, Log
from tests.chaos.traffic import Result, Traffic, tally
from tests.support import GatewayProcess, gateway_process

DECISIONS = "decisions.jsonl"
DRAIN_S = 20.0
SPARES = SPARE_THREADS + 4  # threads that may stay for what comes: workers', and those aside


class Setup(NamedTuple):
    """Who takes part. Times in seconds; `model` are keys of the engines file, `environment` the gateway's settings."""

    models: tuple[str, ...] = ("13b",)
    per_model: int = 3
    delay_s: float = 0.05  # of every answer, so that there are always requests for a fault to hit
    gap_s: float = 0.004  # between the events of a stream
    model: Mapping[str, Any] = {}
    environment: Mapping[str, object] = {}


class Scene(NamedTuple):
    """What a fault has to play with. `seconds`: how long the fault is to last."""

    gateway: GatewayProcess
    engines: list[EngineProcess]
    traffic: Traffic
    rng: random.Random
    seconds: float

    @property
    def victim(self) -> EngineProcess:
        """The one engine that misbehaves."""
        return self.engines[0]

    def states(self) -> dict[str, str]:
        """Every engine's state at the gateway, by id."""
        models = self.gateway.ask("GET", "/health").json()["models"]
        return {engine["id"]: engine["state"] for model in models.values() for engine in model["engines"]}

    def breakers(self) -> dict[str, str]:
        """Every engine's breaker at the gateway, by id."""
        models = self.gateway.ask("GET", "/health").json()["models"]
        return {engine["id"]: engine["breaker"] for model in models.values() for engine in model["engines"]}


class Seen(NamedTuple):
    """Everything a fault's own rule may look at."""

    scene: Scene
    results: Sequence[Result]
    log: Log
    notes: dict[str, str]


class Fault(NamedTuple):
    """One line of the table. `torment` returns when the fault is over; what it returns is shown.

    `seconds` is how long it lasts by itself. `plain` and `streams`: the outcomes that requests may have besides a whole
    answer. `rule` yields what else is wrong.
    """

    name: str
    torment: Callable[[Scene], Mapping[str, str]]
    setup: Setup = Setup()
    plain: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    rule: Callable[[Seen], Iterator[str]] = lambda seen: iter(())
    seconds: float = 5.0
    scales: bool = False  # whether `--seconds` changes `seconds`
    lead_s: float = 0.0  # a busy, healthy past: what has to be outweighed before a breaker opens


class Row(NamedTuple):
    """What came of one fault."""

    name: str
    requests: int
    plain: Counter[str]
    streams: Counter[str]
    metrics: str
    lost: int
    duplicated: int
    leaked: Held
    notes: Mapping[str, str]
    violations: tuple[str, ...]
    details: tuple[str, ...]


def play(fault: Fault, clients: int, seconds: float, seed: int, keep: Optional[Path] = None) -> Row:
    """Run one fault under `clients` clients for about `seconds`; `keep`: a directory for decision log and log."""
    with contextlib.ExitStack() as stack:
        setup = fault.setup
        engines = stack.enter_context(
            engine_processes.running(setup.models, setup.per_model, setup.delay_s, setup.gap_s)
        )
        gateway = stack.enter_context(_gateway(setup, engines))
        ports = [engine.port for engine in engines]
        warm = Traffic(gateway.port, setup.models, clients, "warm").start()
        warm.wait_for_more(3 * clients)
        warm.stop()
        before = observe.least_held(gateway, ports, 0.5)
        before = before._replace(threads=before.threads + SPARES)
        traffic = Traffic(gateway.port, setup.models, clients).start()
        try:
            traffic.wait_for_more(2 * clients)
            time.sleep(fault.lead_s)
            scene = Scene(gateway, engines, traffic, random.Random(seed), seconds)
            notes = dict(fault.torment(scene))
            during = observe.samples(gateway)
            for engine in engines:
                engine.heal()
            traffic.wait_for_more(2 * clients)
        finally:
            results = traffic.stop()
        leaked = observe.left_over(gateway, ports, before, clients + len(engines))
        after = observe.samples(gateway)
        gateway.signal(signal.SIGTERM)
        status = gateway.wait(DRAIN_S)
        log = Log(gateway, "chaos")
        if keep is not None:
            for name in (DECISIONS, "stderr"):
                (keep / name).write_bytes((gateway.directory / name).read_bytes())
        violations = list(_violations(fault, results, log, leaked, warm.results))
        violations += _counted(after, len(results) + len(warm.results))
        if status:
            violations.append(f"the gateway ended with {status}")
        violations += fault.rule(Seen(scene, results, log, notes))
        return Row(
            fault.name,
            len(results),
            tally(results, False),
            tally(results, True),
            _metrics(during, after, log),
            sum(result.outcome == "lost" for result in results),
            sum(count - 1 for count in log.requests.values() if count > 1),
            leaked,
            notes,
            tuple(violations),
            _details(results),
        )


@contextlib.contextmanager
def _gateway(setup: Setup, engines: Sequence[EngineProcess]) -> Iterator[GatewayProcess]:
    models = {
        name: {"engines": [{"url": e.url, "weight": 1} for e in engines if e.model == name], **setup.model}
        for name in setup.models
    }
    environment: dict[str, object] = {
        "HEALTH_INTERVAL": 1,
        "FALLBACK": "off",
        "LOG_FORMAT": "json",
        "ENGINES_FILE": "engines.json",
        "DECISION_LOG": DECISIONS,
        **setup.environment,
    }
    files = {"engines.json": json.dumps({"models": models})}
    with gateway_process(environment, files=files) as gateway:
        yield gateway


def last_for(scene: Scene) -> None:
    """Let the fault last its seconds: time itself is what clients are put through, so no condition ends this wait."""
    time.sleep(scene.seconds)


# --- what must hold -------------------------------------------------------------------------------------------------


def _violations(
    fault: Fault, results: Sequence[Result], log: Log, leaked: Held, warm: Sequence[Result]
) -> Iterator[str]:
    for example in _details(warm):
        yield f"before the fault: {example}"
    for outcome, count in tally(results, False).items():
        if outcome != "200" and outcome not in fault.plain:
            yield f"{count} of the non-streaming requests: {outcome}"
    for outcome, count in tally(results, True).items():
        if outcome != "complete" and outcome not in fault.streams:
            yield f"{count} of the streams: {outcome}"
    if any(leaked):
        yield f"left over: {leaked}"
    asked = Counter(result.request_id for result in results)
    if log.requests != asked:
        odd = sorted((log.requests - asked) + (asked - log.requests))
        yield f"the log has not one line for each request: {odd[:5]}"
    if log.other:
        yield f"the log has errors: {dict(log.other)}"


def _counted(after: Sequence[observe.Sample], asked: int) -> Iterator[str]:
    counted = sum(
        int(s.value) for s in after if s.name == "gateway_requests_total" and s.labels["path"].endswith("completions")
    )
    if counted != asked:
        yield f"{asked} requests were asked, gateway_requests_total has {counted}"


# --- what is shown --------------------------------------------------------------------------------------------------


def _metrics(during: Sequence[observe.Sample], after: Sequence[observe.Sample], log: Log) -> str:
    """The metrics that tell of a fault, in a few words."""
    parts = []
    states = Counter(int(s.value) for s in during if s.name == "gateway_breaker_state" and s.value)
    shown = {1: "half-open", 2: "open"}
    parts += [f"breakers {shown[state]} at its end: {count}" for state, count in sorted(states.items())]
    changes = Counter(change["after"] for change in log.changes if change["after"] != "up")
    if changes:
        parts.append("engine states: " + listed(changes))
    retries = observe.summed(after, "gateway_retries_total", "reason")
    if retries:
        parts.append(f"retries {sum(retries.values())}: " + listed(retries))
    outcomes = observe.summed(after, "gateway_engine_requests_total", "outcome")
    parts.append("attempts: " + listed(outcomes))
    return "; ".join(parts)


def listed(counts: Mapping[str, int]) -> str:
    """Counts in words, the greatest first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered)


def _details(results: Sequence[Result]) -> tuple[str, ...]:
    """One example of each bad outcome."""
    examples: dict[tuple[bool, str], str] = {}
    for result in results:
        if not result.good:
            kind = "stream" if result.stream else "plain"
            examples.setdefault(
                (result.stream, result.outcome),
                f"{kind} {result.request_id}: {result.outcome} after {result.took_s:.2f} s: {result.detail}",
            )
    return tuple(examples.values())
