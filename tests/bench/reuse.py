"""What the cache saves and costs: hits beside misses and an nginx, misses beside a gateway without it, near look-ups.

Owns no process beyond its functions. Every prompt is distinct: those of the fill are numbered, and asked again in an
order of a fixed seed; those of a miss carry the number of their run, too, so none is ever asked twice. How many were
hits and misses the gateway's own counts tell, and a run that was not what it should be is invalid.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Callable, NamedTuple

from . import load, paced, payloads, peers
from .processes import BenchError
from .running import Target, Usage, running
from .upstream import Upstream, start_answering

if TYPE_CHECKING:
    from gateway.reuse.vectors import VectorIndex

ENTRIES = 10_000
DIMENSIONS = 384
_CONNECTIONS = 64
_MISS_CONNECTIONS = 32
_TURNS = 6  # of each gateway, in each round
_RATES = (1000, 2000)  # a second: at these nothing here is saturated
_PACED_TURNS = 3
_CACHE_MAX_BYTES = "1073741824"  # nothing that was filled in is to make place for a miss
_LOOKUPS = 200
_SIMILARITY = 0.95
_FORM_S = 0.5
_ADMIN_KEY = "sk-bench-admin-71c2e09d"
_SEED = 7

_HITS_LUA = """\
math.randomseed({seed})
local head, tail = {head}, {tail}
request = function()
  return wrk.format(nil, nil, nil, head .. math.random(0, {last}) .. tail)
end
"""
_MISSES_LUA = """\
local head, tail, number = {head}, {tail}, 0
request = function()
  number = number + 1
  return wrk.format(nil, nil, nil, head .. {run} .. number .. tail)
end
"""
_MARK = "\u0001"  # where the number of a prompt comes
_runs = itertools.count(1)
_TEXTS = (
    "What is the capital of France?",
    "Could you please explain how a vaccine works?",
    "Write a Python function that returns the n-th Fibonacci number without recursion.",
    "Translate 'good morning' into Spanish and into Japanese.",
    "How many kilometres are 26.2 miles?",
    "I don't understand why my container's health check fails after 30 seconds, can you help me find out?",
    "Summarise the causes of the First World War in five sentences.",
    "Is it safe to take 400 mg of ibuprofen before a flight?",
)


class Run(NamedTuple):
    """One measurement; `error` is empty when it is valid."""

    variant: str
    name: str
    metrics: dict[str, float]
    error: str


# --- hits and misses -------------------------------------------------------------------------------------------------


def hits_and_misses(gateway: peers.Gateway, upstream: Upstream, seconds: float, run_dir: Path) -> list[Run]:
    """Measures `gateway` with 10 000 answers kept: hits, an nginx that answers the same bytes, misses.

    They take turns; what a hit costs is compared with the miss of the same turn. Raises BenchError when it cannot be
    filled.
    """
    hit, miss = (f"{kind}, {_CONNECTIONS} connections, {ENTRIES} entries" for kind in ("hit", "miss"))
    hits_lua = _lua_of(_HITS_LUA, seed=_SEED, last=ENTRIES - 1)
    parts = {upstream.json_pid}
    with running(_with(gateway, CACHE="on", CACHE_MAX_BYTES=_CACHE_MAX_BYTES), upstream.json_ports, run_dir) as target:
        targets = [target, *_nginx(_fill(target), run_dir)]
        hits: list[list[Run]] = [[] for _ in targets]
        misses: list[Run] = []
        for _ in range(_TURNS):
            hits[0].append(_counted(target, parts, hit, "hit", hits_lua, seconds, run_dir))
            for other, taken in zip(targets[1:], hits[1:]):
                taken.append(_measured(other, parts, hit, hits_lua, _CONNECTIONS, seconds, run_dir))
            misses.append(_counted(target, parts, miss, "miss", None, seconds, run_dir))
        runs = [*map(_median, hits), _median(misses)]
        runs[0].metrics["to_miss"] = statistics.median(
            one.metrics["cpu_us_per_request"] / another.metrics["cpu_us_per_request"]
            for one, another in zip(hits[0], misses)
        )
        return runs + _paced(targets, seconds)


def _nginx(answer: bytes, run_dir: Path) -> list[Target]:
    """Starts an nginx that answers with these bytes; nothing where there is none."""
    own_dir = run_dir / f"nginx-{next(_runs)}"
    own_dir.mkdir()
    found = start_answering(own_dir, answer)
    if found is None:
        return []
    return [Target("nginx", found[0], found[1], {"Authorization": f"Bearer {payloads.API_KEY}"}, 1.0, 0.0)]


def _paced(targets: Sequence[Target], seconds: float) -> list[Run]:
    """Measures how long hits take when they come at a fixed rate."""
    head, tail = _body()
    runs = []
    for rate in _RATES:
        variant = f"hit, {rate}/s, {_CONNECTIONS} connections"
        taken: list[list[Run]] = [[] for _ in targets]
        before = _counts(targets[0])
        for _ in range(_PACED_TURNS):
            for target, own in zip(targets, taken):
                rng = random.Random(_SEED)
                bodies = (b"%b%d%b" % (head, rng.randrange(ENTRIES), tail) for _ in itertools.count())
                result = paced.run(target.port, target.headers, bodies, rate, _CONNECTIONS, seconds)
                metrics = {"p50_us": result.p50_us, "p99_us": result.p99_us}
                own.append(Run(variant, target.name, metrics, ""))
        runs += map(_median, taken)
        runs[-len(targets)] = runs[-len(targets)]._replace(error=_not_all(targets[0], "hit", before))
    return runs


def _fill(target: Target) -> bytes:
    """Has the gateway keep 10 000 answers; returns one of them, as a hit."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=30)
    headers = {**target.headers, "Content-Type": "application/json", "X-Gateway-Cache": "on"}
    head, tail = _body()
    try:
        for number in [*range(ENTRIES), 0]:
            connection.request("POST", payloads.CHAT_PATH, head + str(number).encode() + tail, headers)
            response = connection.getresponse()
            body, result = response.read(), response.headers["X-Gateway-Cache"]
            if response.status != 200:
                raise BenchError(f"{target.name}: cannot be filled: {response.status} {body[:200]!r}")
    except (OSError, http.client.HTTPException) as exc:
        raise BenchError(f"{target.name}: cannot be filled: {exc}") from exc
    finally:
        connection.close()
    if result != "hit":
        raise BenchError(f"{target.name}: what it was filled with is no hit, but {result}")
    return body


def _counted(
    target: Target, parts: set[int], variant: str, wanted: str, lua: str | None, seconds: float, run_dir: Path
) -> Run:
    """Measures it, and has the gateway's own counts say whether all were what was `wanted`. `lua` None: misses."""
    before = _counts(target)
    run = _measured(target, parts, variant, lua, _CONNECTIONS, seconds, run_dir)
    return run._replace(error=run.error or _not_all(target, wanted, before))


def _not_all(target: Target, wanted: str, before: dict[str, int]) -> str:
    """What else there has been than was wanted; "": nothing."""
    after = _counts(target)
    others = {name: after[name] - before[name] for name in after if name != wanted and after[name] > before[name]}
    return f"not all were {wanted}: {others}" if others else ""


def _counts(target: Target) -> dict[str, int]:
    """How many hits and misses there were so far."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=30)
    try:
        connection.request("GET", "/api/v1/cache/stats", headers={"Authorization": f"Bearer {_ADMIN_KEY}"})
        stats = json.loads(connection.getresponse().read())
        return {"hit": stats["hits"], "near": stats["near_hits"], "miss": stats["misses"]}
    except (OSError, http.client.HTTPException, ValueError, LookupError) as exc:
        raise BenchError(f"{target.name}: does not tell of its cache: {exc!r}") from exc
    finally:
        connection.close()


def _measured(
    target: Target, parts: set[int], variant: str, lua: str | None, connections: int, seconds: float, run_dir: Path
) -> Run:
    """Loads it, after a warm-up. `lua` None: misses."""

    def drive(run_s: float) -> load.LoadResult:
        script = _lua_of(_MISSES_LUA, run=load.lua(f"{next(_runs)}-")) if lua is None else lua
        return load.run(target.port, target.headers, connections, run_s, run_dir, request_lua=script)

    drive(target.warmup_s)
    usage = Usage(target.pid, parts)
    result = drive(seconds)
    cpu_s, foreign_percent = usage.so_far()
    metrics = {
        "cpu_us_per_request": cpu_s / max(1, result.requests) * 1e6,
        "requests_per_s": result.requests / result.duration_s,
        "p50_us": float(result.p50_us),
        "p99_us": float(result.p99_us),
        "foreign_cpu_percent": foreign_percent,
    }
    errors = ", ".join(f"{count} {kind}" for kind, count in result.errors.items())
    error = f"errors among {result.requests} requests: {errors}" if errors else ""
    return Run(variant, target.name, metrics, error if result.requests else "no request was answered")


def _with(gateway: peers.Gateway, **settings: str) -> peers.Gateway:
    """Returns our gateway with these settings, and a key that may see its counts."""

    def launch(port: int, engine_ports: list[int], run_dir: Path) -> peers.Launch:
        plain = gateway.plan(port, engine_ports, run_dir)
        return plain._replace(env={**plain.env, "ADMIN_KEYS": f"bench-admin:{_ADMIN_KEY}", **settings})

    return gateway._replace(plan=launch)


def _body() -> tuple[bytes, bytes]:
    """Returns a deterministic chat request as what comes before and after the number of its prompt."""
    request = json.loads(payloads.chat_request())
    request["messages"][-1]["content"] += f" Number {_MARK}."
    before, after = payloads.compact({**request, "temperature": 0}).split(json.dumps(_MARK)[1:-1].encode())
    return before, after


def _lua_of(script: str, **values: object) -> str:
    head, tail = (load.lua(part.decode()) for part in _body())
    return script.format(head=head, tail=tail, **values)


# --- what a miss costs -----------------------------------------------------------------------------------------------

_OFF = "CACHE=off, COALESCE=off"
_SETTINGS = {
    _OFF: {"CACHE": "off", "COALESCE": "off"},
    "CACHE=on, COALESCE=off": {"CACHE": "on", "COALESCE": "off"},
    "CACHE=on, COALESCE=on": {"CACHE": "on", "COALESCE": "on"},
}


def cost_of_misses(gateway: peers.Gateway, upstream: Upstream, seconds: float, run_dir: Path) -> list[Run]:
    """Measures distinct deterministic requests with the cache off and on: three gateways that take turns.

    Each difference is that of two runs of the same turn; reported is the median of them.
    """
    runs: dict[str, list[Run]] = {variant: [] for variant in _SETTINGS}
    parts = {upstream.json_pid}
    with contextlib.ExitStack() as stack:
        targets = {
            variant: stack.enter_context(running(_with(gateway, **settings), upstream.json_ports, run_dir))
            for variant, settings in _SETTINGS.items()
        }
        order = list(targets)
        for _ in range(_TURNS):
            for variant in order:
                target = targets[variant]
                runs[variant].append(_measured(target, parts, variant, None, _MISS_CONNECTIONS, seconds, run_dir))
            order.append(order.pop(0))  # none is always the first
    costs = {variant: [run.metrics["cpu_us_per_request"] for run in taken] for variant, taken in runs.items()}
    medians = {variant: _median(taken) for variant, taken in runs.items()}
    for variant, median in medians.items():
        if variant != _OFF:
            differences_us = [cost_us - off_us for cost_us, off_us in zip(costs[variant], costs[_OFF])]
            median.metrics["difference_us"] = statistics.median(differences_us)
            median.metrics["difference_low_us"] = min(differences_us)
            median.metrics["difference_high_us"] = max(differences_us)
            median.metrics["pairs"] = float(len(differences_us))
    return [*medians.values()]


def _median(runs: Sequence[Run]) -> Run:
    metrics = {name: statistics.median(run.metrics[name] for run in runs) for name in runs[0].metrics}
    return runs[0]._replace(metrics=metrics, error=next((run.error for run in runs if run.error), ""))


# --- near look-ups ---------------------------------------------------------------------------------------------------


def near_times() -> dict[str, dict[str, float]]:
    """Returns, by what was looked up and how, the milliseconds it takes; and the microseconds of bringing a text to
    the form that near duplicates share.

    Raises BenchError when this checkout has no near look-ups.
    """
    try:
        from gateway.reuse import vectors, wording
    except ImportError as exc:
        raise BenchError(f"near: this checkout has no near look-ups yet: {exc}") from exc
    rng = random.Random(_SEED)
    entries = [_vector(rng) for _ in range(ENTRIES)]
    found: dict[str, dict[str, float]] = {}
    for name, use_numpy in (("without numpy", False), ("with numpy", True)):
        try:
            index = vectors.VectorIndex(use_numpy=use_numpy)
        except ImportError:
            found[f"{name}: not installed"] = {}
            continue
        for number, entry in enumerate(entries):
            index.add(b"%d" % number, b"", vectors.unit(entry))
        for kind, queries in (("there", _near(entries, rng)), ("not there", (_vector(rng) for _ in range(_LOOKUPS)))):
            wanted = kind == "there"
            found[f"{name}, {kind}"] = _lookup_ms(index, [vectors.unit(query) for query in queries], wanted)
    found["form of a text"] = {"us_per_call": _time_us(wording.form)}
    return found


def _lookup_ms(index: VectorIndex, queries: Sequence[bytes], wanted: bool) -> dict[str, float]:
    index.nearest(b"", queries[0], _SIMILARITY)  # what is made ready once is not a look-up
    times_ms = []
    for query in queries:
        began_s = time.perf_counter()
        hit = index.nearest(b"", query, _SIMILARITY)
        times_ms.append((time.perf_counter() - began_s) * 1e3)
        if (hit is not None) != wanted:
            raise BenchError(f"near: found {hit}, where something is{'' if wanted else ' not'} to be found")
    times_ms.sort()
    return {"p50_ms": statistics.median(times_ms), "p99_ms": times_ms[len(times_ms) * 99 // 100]}


def _vector(rng: random.Random) -> list[float]:
    return [rng.gauss(0, 1) for _ in range(DIMENSIONS)]


def _near(entries: Sequence[list[float]], rng: random.Random) -> Iterator[list[float]]:
    """Vectors with a cosine of about 0.98 to one of the entries."""
    for entry in rng.sample(entries, _LOOKUPS):
        yield [value + 0.2 * rng.gauss(0, 1) for value in entry]


def _time_us(form: Callable[[str], object]) -> float:
    """Returns the microseconds of one call: of the fastest pass over the texts."""
    best_s, end_s = float("inf"), time.perf_counter() + _FORM_S
    while time.perf_counter() < end_s:
        began_s = time.perf_counter()
        for text in _TEXTS:
            form(text)
        best_s = min(best_s, time.perf_counter() - began_s)
    return best_s / len(_TEXTS) * 1e6
