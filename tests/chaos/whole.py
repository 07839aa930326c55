"""Faults of the whole fleet, and those whose point is a measured time or share rather than an outcome.

Functions only; each is a fault's `torment` or `rule`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Callable

from tests.chaos.faults import BROKEN_OFF, moves_no_breaker, unix_s
from tests.chaos.scene import Fault, Scene, Seen, Setup
from tests.support import eventually

PROBE_S = 1.0
PROBE_TAKES_S = 0.5  # on a busy machine
BREAKER_FIRST_S, BREAKER_MAX_S = 5.0, 60.0
SHARE_MAX = 0.02
SHARE_WINDOW_S = 10.0
LOOK_S = 0.25  # how often a returning engine's share is looked at
ERROR_WITHIN_S = 1.0
REJECTED = 1000


# --- an engine that fails fast attracts nothing, and gets its share back --------------------------------------------


def fails_fast(scene: Scene) -> Mapping[str, str]:
    """One engine answers 503 at once for ten seconds, then it is well; its share of the requests meanwhile."""
    victim = scene.victim
    before = _asked(scene)
    victim.behave("error", status=503, delay=0.0)
    time.sleep(SHARE_WINDOW_S)
    after = _asked(scene)
    share = (after[victim.id] - before[victim.id]) / max(1, sum(after.values()) - sum(before.values()))
    victim.behave("ok")
    back_s, breaker_s = _time_until_back(scene)
    return {"share": f"{share * 100:.2f} %", "back after": f"{back_s:.1f} s", "of it breaker": f"{breaker_s:.1f} s"}


def _asked(scene: Scene) -> dict[str, int]:
    return {engine.id: int(engine.stats()["requests"]) for engine in scene.engines}


def _time_until_back(scene: Scene) -> tuple[float, float]:
    """Seconds until the victim gets half of its fair share again; how many of them its breaker had still to be open."""
    began_s = time.monotonic()
    breaker_s = _breaker_left_s(scene)
    before = _asked(scene)

    def back() -> bool:
        nonlocal before
        time.sleep(LOOK_S)
        now = _asked(scene)
        got = now[scene.victim.id] - before[scene.victim.id]
        fair = (sum(now.values()) - sum(before.values())) / len(scene.engines)
        before = now
        return got >= fair / 2 > 0

    eventually(back, BREAKER_MAX_S + 10.0)
    return time.monotonic() - began_s, breaker_s


def _breaker_left_s(scene: Scene) -> float:
    """How long the victim's breaker will still be open: 5 s from its first opening, twice that from the next ..."""
    if scene.breakers()[scene.victim.id] == "closed":
        return 0.0
    lines = [line for line in scene.gateway.log_lines() if line["event"] == "engine_state"]
    opened: list[float] = [
        unix_s(line["ts"]) for line in lines if line["engine"] == scene.victim.id and line["after"] == "open"
    ]
    if not opened:
        return 0.0
    open_s = min(BREAKER_FIRST_S * 2 ** (len(opened) - 1), BREAKER_MAX_S)
    return max(0.0, opened[-1] + open_s - time.time())


def fast_failure_rule(seen: Seen) -> Iterator[str]:
    """Less than 2 % of the traffic; back within two probe intervals and what the breaker had left."""
    share = float(seen.notes["share"].split()[0]) / 100
    if share >= SHARE_MAX:
        yield f"the failing engine got {seen.notes['share']} of the requests"
    back_s, breaker_s = (float(seen.notes[name].split()[0]) for name in ("back after", "of it breaker"))
    if back_s > breaker_s + 2 * (PROBE_S + PROBE_TAKES_S):
        yield f"it was back only after {back_s} s"


# --- the caller's faults ----------------------------------------------------------------------------------------------


def rejecting(scene: Scene) -> Mapping[str, str]:
    """Every engine answers 400 to a thousand requests."""
    for engine in scene.engines:
        engine.behave("bad_request", delay=0.0)
    before = len(scene.traffic.results)
    scene.traffic.wait_for_more(REJECTED + 100, 60.0)
    breakers = set(scene.breakers().values())
    assert len(scene.traffic.results) >= before + REJECTED
    return {"breakers": ", ".join(sorted(breakers))}


def rejecting_rule(seen: Seen) -> Iterator[str]:
    """A thousand at least were rejected, and no state moved."""
    yield from moves_no_breaker(seen)
    rejected = sum(result.outcome == "400 backend_rejected" for result in seen.results)
    if rejected < REJECTED:
        yield f"only {rejected} requests were rejected"
    if seen.notes["breakers"] != "closed":
        yield f"breakers: {seen.notes['breakers']}"


# --- nobody is left ---------------------------------------------------------------------------------------------------


def all_down(down: Callable[[Scene], None]) -> Callable[[Scene], Mapping[str, str]]:
    """Every engine is gone for the fault's seconds; then one is back."""

    def torment(scene: Scene) -> Mapping[str, str]:
        down(scene)
        began_unix_s = time.time()
        time.sleep(scene.seconds)
        scene.engines[-1].heal()
        back_s = time.monotonic()

        def served() -> bool:
            return any(r.good and r.began_unix_s > began_unix_s for r in scene.traffic.results[-500:])

        resumed = _resumed_after_s(served, back_s)
        refused = [r for r in scene.traffic.results if not r.good and r.began_unix_s > began_unix_s]
        slowest_s = max((r.took_s for r in refused), default=0.0)
        return {"slowest error": f"{slowest_s:.2f} s", "served again after": f"{resumed:.2f} s"}

    return torment


def _resumed_after_s(served: Callable[[], bool], back_s: float) -> float:
    eventually(served, BREAKER_MAX_S + 10.0)
    return time.monotonic() - back_s


def all_down_rule(seen: Seen) -> Iterator[str]:
    """The error within a second, service again within a probe interval."""
    slowest_s = float(seen.notes["slowest error"].split()[0])
    resumed_s = float(seen.notes["served again after"].split()[0])
    if slowest_s > ERROR_WITHIN_S:
        yield f"an error took {slowest_s} s"
    if resumed_s > PROBE_S + PROBE_TAKES_S:
        yield f"served again only after {resumed_s} s"


def _kill_all(scene: Scene) -> None:
    for engine in scene.engines:
        engine.kill()


def _all_behave(behaviour: str, **options: Any) -> Callable[[Scene], None]:
    def change(scene: Scene) -> None:
        for engine in scene.engines:
            engine.behave(behaviour, **options)

    return change


def _down(name: str, down: Callable[[Scene], None], *codes: str) -> Fault:
    return Fault(name, all_down(down), plain=codes, streams=(*codes, *BROKEN_OFF), rule=all_down_rule, seconds=4.0)


WHOLE = (
    Fault(
        "503 at once, least_connections",
        fails_fast,
        Setup(model={"strategy": "least_connections"}),
        rule=fast_failure_rule,
        seconds=SHARE_WINDOW_S,
        lead_s=10.0,
    ),
    Fault(
        "400 from every engine",
        rejecting,
        plain=("400 backend_rejected",),
        streams=("400 backend_rejected",),
        rule=rejecting_rule,
    ),
    _down("every engine killed", _kill_all, "502 backend_unavailable"),
    _down("every engine: error 503", _all_behave("error", status=503), "502 backend_error"),
    _down("every engine: loading", _all_behave("loading"), "502 backend_error"),
    _down("every engine: rate_limit", _all_behave("rate_limit"), "429 backend_rate_limited"),
)
