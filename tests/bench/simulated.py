"""The simulator beside the real thing: `python -m tests.bench.simulated`.

A gateway process over mock engines of unlike speed, each with a `max_concurrency`, is asked by the load test in an open
loop; the simulator gets the same engines and requests at the very same times (the load test's, by its seed). Told are
p50 and p95 of both for each strategy, and by how much they differ: exit 1 beyond `--within`. What the machine does
besides goes into the real times only: run it on one that is idle.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from gateway.mock.server import MockEngine
from gateway.tools.loadtest.arrivals import Stage, due_ns
from gateway.tools.loadtest.command import main as loadtest
from gateway.tools.loadtest.durations import NS
from gateway.tools.simulate.arrivals import trace
from gateway.tools.simulate.distributions import Distribution
from gateway.tools.simulate.scenario import Fleet, Rules, Scenario, Work
from gateway.tools.simulate.simulator import simulate
from tests.support import gateway_process

DELAYS_S = (0.1, 0.1, 0.15, 0.15, 0.2, 0.3)
PLACES = 3  # on each engine
STRATEGIES = ("round_robin", "least_connections", "power_of_two", "latency")
NOISE_S = 0.002  # that gateway, mock engine, load test and machine add to each answer, on average


class Times(NamedTuple):
    """Milliseconds, and answers."""

    p50_ms: float
    p95_ms: float
    answered: int


def real(strategy: str, rate: float, seconds: float, seed: int) -> Times:
    """What the load test measures at a gateway process over mock engines."""
    mocks = [MockEngine(model="m", behaviour="slow", delay=delay).start() for delay in DELAYS_S]
    engines = [
        {"url": f"http://127.0.0.1:{mock.port}/v1", "id": f"e{index}", "max_concurrency": PLACES}
        for index, mock in enumerate(mocks)
    ]
    fleet = json.dumps({"models": {"m": {"strategy": strategy, "engines": engines}}})
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            gateway_process(files={"engines.json": fleet}, ENGINES_FILE="engines.json", LOG_LEVEL="error") as process,
        ):
            told = Path(folder) / "told.json"
            options = ["--rate", f"{rate:g}", "--duration", f"{seconds:g}s", "--arrivals", "poisson", "--quiet"]
            with contextlib.redirect_stdout(io.StringIO()):
                loadtest([process.url, *options, "--seed", str(seed), "--json", str(told)])
            result = json.loads(told.read_text("utf-8"))
    finally:
        for mock in mocks:
            mock.close()
    times = result["times"]["response"]
    return Times(times["p50_ms"], times["p95_ms"], result["requests"]["ok"])


def simulated(strategy: str, rate: float, seconds: float, seed: int) -> Times:
    """What the simulator says of the same."""
    due = due_ns([Stage(rate, rate, seconds)], 0, Random(f"arrivals {seed}"))
    speeds = iter([DELAYS_S[0] / delay for delay in DELAYS_S])
    scenario = Scenario(
        fleet=Fleet(
            engines=len(DELAYS_S),
            slots=PLACES,
            max_concurrency=PLACES,
            speed=Distribution("as given", 1.0, lambda chance: next(speeds)),
        ),
        arrivals=trace("the load test's", [at_ns / NS for at_ns in due]),
        work=Work(service=Distribution("with noise", DELAYS_S[0] + NOISE_S, _noisy)),
        rules=Rules(health_interval_s=0, workers=256),
        duration_s=seconds,
        seed=seed,
    )
    found = simulate(scenario, strategy).measures
    p50, p95 = (value or 0.0 for value in found.latency.percentiles((50.0, 95.0)))
    return Times(p50 / 1e6, p95 / 1e6, found.answered)


def _noisy(chance: Random) -> float:
    # Without any, engines of one speed never change places: `latency` would keep to a rank that no real fleet has.
    return DELAYS_S[0] + chance.expovariate(1 / NOISE_S)


def main(argv: Sequence[str]) -> int:
    """Compare; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.simulated", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each real run (default 30)")
    parser.add_argument("--load", type=float, default=0.85, help="share of what the engines can do (default 0.85)")
    parser.add_argument("--within", type=float, default=0.1, help="the difference allowed (default 0.1)")
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args(argv)
    rate = options.load * sum(PLACES / delay for delay in DELAYS_S)
    print(f"{len(DELAYS_S)} engines, {PLACES} places each, {rate:.1f} requests/s for {options.seconds:g} s")
    print(f"{'strategy':<18} {'real p50':>9} {'simulated':>9} {'':>7}  {'real p95':>9} {'simulated':>9}")
    worst = 0.0
    for strategy in STRATEGIES:
        seen = real(strategy, rate, options.seconds, options.seed)
        told = simulated(strategy, rate, options.seconds, options.seed)
        off = [told.p50_ms / seen.p50_ms - 1, told.p95_ms / seen.p95_ms - 1]
        worst = max(worst, *map(abs, off))
        print(
            f"{strategy:<18} {seen.p50_ms:>6.1f} ms {told.p50_ms:>6.1f} ms {off[0]:>+7.1%}  {seen.p95_ms:>6.1f} ms"
            f" {told.p95_ms:>6.1f} ms {off[1]:>+7.1%}  ({seen.answered} and {told.answered} answered)",
            flush=True,
        )
    print(f"largest difference {worst:.1%}, allowed {options.within:.0%}")
    return 0 if worst <= options.within else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
