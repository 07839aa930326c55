"""`python -m tests.chaos.network [--minutes N] [--seed N] [--processes N] ...`: a fleet in namespaces, mixed faults.

Three gateways behind HAProxy (docs/deploy/haproxy), Redis, six mock engines, each on a node of its own
(tests/chaos/lab.py); clients that ask through HAProxy all the time; processes that are killed, frozen, drained,
machines that are cut off (tests/chaos/netfaults.py). Needs Linux, root, iproute2, haproxy and redis-server. Exit
status 1 when one of these does not hold:

* a request that is not streamed gets its answer, the only one and its own (or 502, when its gateway was cut off from
  all engines); a stream is complete, or ends with an error event, or is broken off, but only one that had begun, and
  only when a gateway was taken away;
* the limit of the model `limited` is not passed by more than 2 % in any minute;
* when the faults are over everything is in again, and no gateway, nor HAProxy, holds more threads, descriptors,
  places or memory than before.
"""

from __future__ import annotations

import argparse
import bisect
import importlib.util
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable, NamedTuple, Optional

from tests.chaos import lab as labs
from tests.chaos import nodes, observe, report
from tests.chaos.netfaults import UNPLUGGED, Storm
from tests.chaos.nodes import BURST, ENGINES, GATEWAYS, KEY, LIMITED, MODEL, RPM, Fleet
from tests.chaos.scene import SPARES, listed
from tests.chaos.traffic import Result, Traffic, tally
from tests.support import eventually

NAMES = (
    "haproxy",
    "redis",
    *(f"gateway{number}" for number in range(1, GATEWAYS + 1)),
    *(f"engine{number}" for number in range(1, ENGINES + 1)),
)
PROGRAMS = ("haproxy", "redis-server")
PAUSE_S = 0.02
ANSWER_S = (
    75.0  # more than REQUEST_TIMEOUT: two cut cables in a row cost HAProxy 11 s each, and both gateways' tries as well
)
LIMITED_CLIENTS, LIMITED_PAUSE_S = 8, 0.05  # together far more than RPM allows, of each gateway as well
CUT_OFF_MOST = 0.0005
SLOWEST_S = 45.0  # not what the kernel takes by itself to give a connection up
OVER = 0.02
WINDOW_S = 60.0
BACK_S = 60.0
MORE_MB = 24.0
MORE_DESCRIPTORS = 8  # of HAProxy, for checks under way
NO_ENGINE = "502 backend_unavailable"
CUT_OFF = NO_ENGINE + " of a gateway that was cut off"
REFUSED = ("429 rate_limit_exceeded", "503 limits_unavailable")
LIMITED_OUTCOMES = ("200", CUT_OFF, *REFUSED)
KNOWN_ERRORS = ("request", "engine_state", "redis")
OF_PROCESSES = ("process_died", "process_killed")


class Outcome(NamedTuple):
    """What came of it."""

    seconds: float
    faults: Counter[str]
    results: Sequence[Result]
    limited: Sequence[Result]
    over: Over
    shared_fail: str
    processes: int
    back_s: float
    memory_mb: tuple[float, float]
    violations: tuple[str, ...]
    examples: tuple[str, ...]


def missing() -> Optional[str]:
    """Why this cannot run here; None: it can."""
    if importlib.util.find_spec("redis") is None:
        return "the package redis is missing"
    return labs.missing(*PROGRAMS)


def play(
    seconds: float,
    clients: int,
    seed: int,
    most_s: float = 60.0,
    keep: Optional[Path] = None,
    shared_fail: str = "local",
    processes: int = 1,
) -> Outcome:
    """Run the fleet under faults, each of `most_s` at most, for about `seconds`. `keep`: a folder for the logs.
    `processes`: of each gateway."""
    with tempfile.TemporaryDirectory() as name, labs.Lab(NAMES) as lab:
        folder = keep or Path(name)
        with Fleet(lab, folder, {"SHARED_FAIL": shared_fail, "PROCESSES": processes}) as fleet:
            return _played(fleet, seconds, clients, seed, most_s, shared_fail)


def _played(fleet: Fleet, seconds: float, clients: int, seed: int, most_s: float, shared_fail: str) -> Outcome:
    key = (("X-API-Key", KEY),)
    warm = Traffic(nodes.PORT, (MODEL,), clients, "warm", host=fleet.address, headers=key).start()
    warm.wait_for_more(6 * clients)
    warm.stop()
    before = [observe.least_held(gateway, (nodes.ENGINE_PORT,), 0.5) for gateway in fleet.observed()]
    most = observe.Held(*(max(values) for values in zip(*before)))
    most = most._replace(threads=most.threads + SPARES, descriptors=most.descriptors + SPARES)
    memory_before = nodes.largest_mb(fleet.observed())
    front_before = fleet.front_descriptors()

    # Deterministic, so that Redis is asked and told for each: no two are alike, so none is answered by it.
    kept = {"temperature": 0}
    traffic = Traffic(
        nodes.PORT,
        (MODEL,),
        clients,
        host=fleet.address,
        headers=key,
        fields=kept,
        pause_s=PAUSE_S,
        answer_s=ANSWER_S,
    ).start()
    limited = Traffic(
        nodes.PORT,
        (LIMITED,),
        LIMITED_CLIENTS,
        "limited",
        host=fleet.address,
        headers=key,
        streams=False,
        pause_s=LIMITED_PAUSE_S,
        answer_s=ANSWER_S,
    ).start()
    storm = Storm(fleet, seed, most_s).start()
    began_s = time.monotonic()
    try:
        time.sleep(seconds)  # time itself is what the fleet is put through: no condition ends it
    finally:
        storm.stop()
        calm_s = time.monotonic()
        eventually(fleet.whole, BACK_S)
        back_s = time.monotonic() - calm_s
        traffic.wait_for_more(4 * clients)
        results, counted = traffic.stop(), limited.stop()
    ran_s = time.monotonic() - began_s
    # Connections to engines, which have one port: a probe's, too.
    kept_most = (clients + LIMITED_CLIENTS + 1) * ENGINES * fleet.processes
    left = [observe.left_over(gateway, (nodes.ENGINE_PORT,), most, kept_most) for gateway in fleet.observed()]
    memory_after = nodes.largest_mb(fleet.observed())
    front_after = eventually_least(fleet.front_descriptors, front_before + MORE_DESCRIPTORS)
    passed = [(r.began_unix_s, r.began_unix_s + r.took_s) for r in counted if r.outcome not in REFUSED]
    over = most_over(passed, RPM / 60.0, max(1.0, BURST * RPM))

    alone = [span for name, *span in storm.spans if name == UNPLUGGED]
    counted, results = excused(counted, alone), excused(results, alone)
    violations = list(_judged(results, warm.results, storm.counts, counted))
    cut_off = sum(result.outcome == CUT_OFF for result in (*results, *counted))
    if cut_off > max(5.0, CUT_OFF_MOST * len(results)):
        violations.append(f"{cut_off} requests were answered by a gateway that was cut off")
    slowest_s = max((result.took_s for result in results if not result.stream), default=0.0)
    if slowest_s > SLOWEST_S:
        violations.append(f"a request took {slowest_s:.1f} s")
    if over.minute > OVER:
        violations.append(f"the limit was passed by {100 * over.minute:.1f} %")
    for gateway, over_held in zip(fleet.gateways, left):
        if any(over_held):
            violations.append(f"{gateway.node.name} has left over: {over_held}")
    if memory_after > memory_before + MORE_MB:
        violations.append(f"memory grew from {memory_before:.0f} to {memory_after:.0f} MB")
    if front_after > front_before + MORE_DESCRIPTORS:
        violations.append(f"HAProxy had {front_before} descriptors open, and has {front_after}")
    known = KNOWN_ERRORS + (OF_PROCESSES if fleet.processes > 1 else ())
    for observed in fleet.observed():
        log = observe.Log(observed, "chaos")
        odd = {event: count for event, count in log.other.items() if event not in known}
        if odd:
            violations.append(f"a gateway's log has errors: {odd}")
    return Outcome(
        *(
            ran_s,
            storm.counts,
            results,
            counted,
            over,
            shared_fail,
            fleet.processes,
            back_s,
            (memory_before, memory_after),
        ),
        *(tuple(violations), _examples([*results, *counted])),
    )


def eventually_least(look: Callable[[], int], bound: int) -> int:
    """The least that `look` gives within SETTLE_S; at once when that is no more than `bound`."""
    least = look()
    deadline_s = time.monotonic() + observe.SETTLE_S
    while least > bound and time.monotonic() < deadline_s:
        time.sleep(0.2)
        least = min(least, look())
    return least


class Over(NamedTuple):
    """By which share the limit was passed in the whole time, and in the worst minute; what the whole may hold."""

    whole: float
    minute: float
    allowed: float


def most_over(spans_s: Sequence[tuple[float, float]], rate: float, burst: float) -> Over:
    """How far a limit was passed.

    `spans_s`: when each request that passed began and ended; it was let pass somewhere between. So what counts in a
    window lies in it as a whole: what is found to be over is over, and what is missed is no more than was under way at
    the window's two ends. In a window of T seconds rate × T may pass, and `burst` at once besides (GCRA).
    """
    if not spans_s:
        return Over(0.0, 0.0, 0.0)
    began_s, ended_s = sorted(began for began, _ in spans_s), sorted(ended for _, ended in spans_s)
    whole_s = ended_s[-1] - began_s[0]

    def allowed(window_s: float) -> float:
        return burst + rate * window_s

    whole = worst = len(spans_s) / allowed(whole_s) - 1.0
    for index, start_s in enumerate(began_s):
        if start_s + WINDOW_S > ended_s[-1]:
            break
        inside = bisect.bisect_right(ended_s, start_s + WINDOW_S) - index
        worst = max(worst, inside / allowed(WINDOW_S) - 1.0)
    return Over(whole, worst, allowed(whole_s))


def excused(results: Sequence[Result], spans_s: Sequence[Sequence[float]]) -> list[Result]:
    """The results, with those that a gateway cut off from all engines answered honestly under a name of their own.

    It says 502, and may have its cable back before HAProxy gives it up. What a gateway has answered is not asked of
    another: with all engines down each request would go to every gateway.
    """

    def alone(result: Result) -> bool:
        ended_s = result.began_unix_s + result.took_s
        return result.outcome == NO_ENGINE and any(
            result.began_unix_s <= end_s and ended_s >= start_s for start_s, end_s in spans_s
        )

    return [result._replace(outcome=CUT_OFF) if alone(result) else result for result in results]


def _judged(
    results: Sequence[Result], warm: Sequence[Result], faults: Counter[str], limited: Sequence[Result]
) -> Iterator[str]:
    for result in warm:
        if not result.good:
            yield f"before the faults: {result}"
            break
    broken = any(name.startswith("gateway") for name in faults)
    for outcome, count in tally(results, False).items():
        if outcome not in ("200", CUT_OFF):
            yield f"{count} of the non-streaming requests: {outcome}"
    for outcome, count in tally(results, True).items():
        if outcome not in ("complete", "error event", CUT_OFF) and not (outcome == "neither" and broken):
            yield f"{count} of the streams: {outcome}"
    for outcome, count in tally(limited, False).items():
        if outcome not in LIMITED_OUTCOMES:
            yield f"{count} of the requests with a limit: {outcome}"


def _examples(results: Sequence[Result]) -> tuple[str, ...]:
    found: dict[tuple[bool, str], str] = {}
    for result in results:
        if not result.good and result.outcome not in REFUSED:
            text = f"{'stream' if result.stream else 'plain'} {result.request_id}: {result.outcome} after "
            found.setdefault((result.stream, result.outcome), f"{text}{result.took_s:.2f} s: {result.detail}")
    return tuple(found.values())


def summary(outcome: Outcome) -> str:
    """What came of it, in Markdown."""
    plain, streams = tally(outcome.results, False), tally(outcome.results, True)
    slowest_s = max((result.took_s for result in outcome.results if not result.stream), default=0.0)
    passed = sum(result.outcome not in REFUSED for result in outcome.limited)
    rows = [
        ("time", f"{outcome.seconds:.0f} s, {sum(outcome.faults.values())} faults"),
        ("processes of each gateway", f"{outcome.processes}"),
        ("faults", listed(outcome.faults)),
        ("requests, not streamed", f"{sum(plain.values())}: {listed(plain)}; slowest {slowest_s:.1f} s"),
        ("requests, streamed", f"{sum(streams.values())}: {listed(streams)}"),
        (
            f"the limit of {RPM} requests a minute, decided in Redis for all gateways, "
            f"without it {outcome.shared_fail}",
            f"{len(outcome.limited)} asked, {passed} passed, {outcome.over.allowed:.0f} allowed "
            f"({100 * outcome.over.whole:+.1f} %); worst minute {100 * outcome.over.minute:+.1f} %",
        ),
        ("all in again", f"{outcome.back_s:.1f} s after the last fault"),
        ("memory of the largest gateway", f"{outcome.memory_mb[0]:.0f} MB before, {outcome.memory_mb[1]:.0f} MB after"),
        ("left over (threads, descriptors, sockets, places)", "see below" if outcome.violations else "nothing"),
        ("holds", "no" if outcome.violations else "yes"),
    ]
    lines = ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]
    return "\n".join(lines) + "\n"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.network", description=(__doc__ or "").split("\n\n")[1])
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="how long faults come (default 10)")
    add("--seed", type=int, default=1, help="of the faults (default 1)")
    add("--clients", type=int, default=24, help="clients at once, half of them streaming (default 24)")
    add("--shared-fail", choices=("local", "closed"), default="local", help="what gateways do without Redis")
    add("--processes", type=int, default=1, help="of each gateway (default 1)")
    add("--out", type=Path, default=Path("chaos-results"), help="where the logs and the summary go")
    options = parser.parse_args(argv)
    why = missing()
    if why is not None:
        print(f"tests.chaos.network: {why}", file=sys.stderr)
        return 2
    folder = options.out / time.strftime("network-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    fail = options.shared_fail
    outcome = play(
        options.minutes * 60.0,
        options.clients,
        options.seed,
        keep=folder.resolve(),
        shared_fail=fail,
        processes=options.processes,
    )
    command = f"python -m tests.chaos.network --minutes {options.minutes:g} --seed {options.seed} --shared-fail {fail}"
    command += f" --processes {options.processes}" if options.processes > 1 else ""
    text = f"`{command}` ({report.machine()}, {options.clients} clients):\n\n{summary(outcome)}"
    (folder / "network.md").write_text(text, "utf-8")
    print(text)
    for violation in outcome.violations:
        print(f"VIOLATION: {violation}")
    for example in outcome.examples:
        print(f"  {example}")
    print(f"saved in {folder}")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
