"""The faults that one engine (or the whole fleet, one after the other) is put through, and what each may cost.

A table: name, what is done, with what settings, which outcomes besides a whole answer are allowed. No state.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Callable

from tests.chaos.scene import Fault, Scene, Seen, Setup, last_for

BROKEN_OFF = ("error event",)  # a stream that has begun and whose engine fails can only be ended honestly
HUNG = {"REQUEST_TIMEOUT": 2, "FIRST_TOKEN_TIMEOUT": 2, "STREAM_IDLE_TIMEOUT": 2}
TIMED_OUT = ("504 gateway_timeout",)
FOUND_OUT_S = 9.0  # with an interval of 1 s and probes of 2 s
LATE_S = 0.25  # between a timeout and the log line's clock on a busy machine


def one_behaves(behaviour: str, **options: Any) -> Callable[[Scene], Mapping[str, str]]:
    """One engine behaves like this for the fault's seconds."""

    def torment(scene: Scene) -> Mapping[str, str]:
        scene.victim.behave(behaviour, **options)
        last_for(scene)
        return {}

    return torment


def stopped(scene: Scene) -> Mapping[str, str]:
    """One engine is stopped (SIGSTOP) and goes on later (SIGCONT)."""
    scene.victim.stop()
    last_for(scene)
    scene.victim.go_on()
    return {}


def killed(scene: Scene) -> Mapping[str, str]:
    """Engines are killed, ended and started again at random; one of each model at least is alive at any time."""
    ends_s = time.monotonic() + scene.seconds
    counts = {"kills": 0, "terminations": 0, "starts": 0}
    while time.monotonic() < ends_s:
        engine = scene.rng.choice(scene.engines)
        if not engine.alive:
            engine.start()
            engine.wait()
            counts["starts"] += 1
        elif sum(e.alive for e in scene.engines if e.model == engine.model) > 1:
            if scene.rng.random() < 0.7:
                engine.kill()
                counts["kills"] += 1
            else:
                engine.terminate()
                counts["terminations"] += 1
        time.sleep(scene.rng.uniform(0.05, 0.6))
    return {name: str(count) for name, count in counts.items()}


def hung_cost(seen: Seen) -> Iterator[str]:
    """A hung engine may cost what it held when it was found out, and nothing that was asked later."""
    opened = [
        unix_s(change["ts"])
        for change in seen.log.changes
        if change["engine"] == seen.scene.victim.id and change["after"] in ("open", "down")
    ]
    late = [r for r in seen.results if not r.good and opened and r.began_unix_s > opened[0] + LATE_S]
    costs = sum(not r.good for r in seen.results)
    seen.notes["held by the hung engine"] = str(costs - len(late))
    if costs and not opened:
        yield "the hung engine was never taken out"
    if late:
        yield f"{len(late)} requests failed that were asked after the hung engine was out: {late[0]}"


def moved_on(seen: Seen) -> Iterator[str]:
    """What waits for a stopped engine is moved when its probes take it out: after two intervals at most until the first
    of them, two probes, and the pause between them."""
    slowest_s = max(result.took_s for result in seen.results)
    seen.notes["slowest"] = f"{slowest_s:.2f} s"
    if slowest_s > FOUND_OUT_S:
        yield f"a request took {slowest_s:.2f} s"


def unix_s(timestamp: str) -> float:
    """A log line's `ts` as seconds since 1970."""
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def moves_no_breaker(seen: Seen) -> Iterator[str]:
    """The caller's faults change no engine's state."""
    if seen.log.changes:
        yield f"an engine's state moved: {seen.log.changes[0]}"


def _one(behaviour: str, **options: Any) -> Fault:
    shown = ", ".join(f"{name} {value}" for name, value in options.items())
    return Fault(f"{behaviour} ({shown})" if shown else behaviour, one_behaves(behaviour, **options))


_ONE_OF_THREE = (
    _one("ok"),
    _one("slow", delay=0.5),
    _one("error"),
    _one("error", status=503)._replace(name="error (status 503, after 15 good seconds)", lead_s=15.0),
    _one("flaky", ratio=0.5),
    _one("refuse", seconds=3)._replace(streams=BROKEN_OFF),
    _one("reset"),
    _one("malformed"),
    _one("malformed", after=2)._replace(streams=BROKEN_OFF),
    _one("truncate")._replace(streams=BROKEN_OFF),
    _one("drop_mid_stream")._replace(streams=BROKEN_OFF),
    _one("end_mid_stream")._replace(streams=BROKEN_OFF),
    _one("reset_mid_stream")._replace(streams=BROKEN_OFF),
    _one("error_first_event"),
    _one("no_done"),
    _one("no_usage"),
    _one("plain_json"),
    _one("drip", gap=0.0005),
    _one("rate_limit"),
    _one("rate_limit", retry_after=2),
    _one("unauthorized"),
    _one("loading"),
    _one("bad_request")._replace(
        plain=("400 backend_rejected",), streams=("400 backend_rejected",), rule=moves_no_breaker
    ),
)

_MOVES_ON = Setup(model={"attempt_timeout": 0.5}, environment=HUNG)

FAULTS = (
    *_ONE_OF_THREE,
    Fault(
        "hang (after 15 good seconds)",
        one_behaves("hang"),
        Setup(environment=HUNG),
        plain=TIMED_OUT,
        streams=(*TIMED_OUT, *BROKEN_OFF),
        rule=hung_cost,
        seconds=12.0,
        lead_s=15.0,
    ),
    Fault("hang (attempt_timeout 0.5)", one_behaves("hang"), _MOVES_ON),
    Fault(
        "SIGSTOP",
        stopped,
        Setup(environment=HUNG),
        plain=TIMED_OUT,
        streams=(*TIMED_OUT, *BROKEN_OFF),
        rule=hung_cost,
        seconds=9.0,
    ),
    Fault(
        "SIGSTOP (usual time limits)",
        stopped,
        Setup(environment={"STREAM_IDLE_TIMEOUT": 2}),
        streams=BROKEN_OFF,
        rule=moved_on,
        seconds=12.0,
    ),
    Fault("SIGSTOP (attempt_timeout 0.5)", stopped, _MOVES_ON, streams=BROKEN_OFF),
    Fault("kill and restart (3 engines)", killed, streams=BROKEN_OFF, seconds=60.0, scales=True),
    Fault(
        "kill and restart (9 engines)",
        killed,
        Setup(models=("70b", "13b", "7b")),
        streams=BROKEN_OFF,
        seconds=20.0,
        scales=True,
    ),
)
