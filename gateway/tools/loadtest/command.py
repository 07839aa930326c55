"""`python main.py loadtest URL`: look whether the server is there, ask it as planned, tell what came of it.

Owns the signals while it runs: the first Ctrl-C (or SIGTERM) ends the load, and what was measured until then is told; a
second one ends the process at once.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from random import Random
from typing import Any

from gateway.clock import unix_s
from gateway.tools.asking import UsageError
from gateway.tools.loadtest.arrivals import due_ns
from gateway.tools.loadtest.durations import NS
from gateway.tools.loadtest.loop import Limits, Loop
from gateway.tools.loadtest.measures import Measures
from gateway.tools.loadtest.options import plan_of
from gateway.tools.loadtest.plan import Plan
from gateway.tools.loadtest.preflight import Found, Unreachable, find, head_of
from gateway.tools.loadtest.progress import Progress, line
from gateway.tools.loadtest.prompts import DEFAULT, POOL, bodies_in, body_of, words
from gateway.tools.loadtest.requests import Mix, Target, requests
from gateway.tools.loadtest.result import Run, result_of
from gateway.tools.loadtest.schedule import ClosedLoop, OpenLoop, Schedule
from gateway.tools.loadtest.table import clean, table
from gateway.tools.results import FAILED, INTERRUPTED, WRONG, check_files, failed, quiet_memory, tell

_OWN_DESCRIPTORS = 32
NAME_CHARS = 200  # of a model that a server lists


def main(argv: Sequence[str], prog: str = "loadtest") -> int:
    """Run it; returns the exit status: 0 well, 1 a threshold failed or there is no server, 2 wrong arguments."""
    try:
        plan = _with_descriptors(plan_of(argv, prog))
        bodies = _bodies(plan)
        check_files(plan.json_file, plan.html_file)
    except SystemExit as error:  # argparse has said what is wrong, or helped
        return WRONG if error.code else 0
    except UsageError as error:
        return failed(WRONG, *error.faults)
    try:
        found = find(plan)
    except Unreachable as error:
        return failed(FAILED, str(error))
    result = _run(plan, found, bodies)
    return _tell(plan, result)


def _bodies(plan: Plan) -> list[dict[str, Any]]:
    """What is asked. Raises UsageError."""
    chance = Random(f"prompts {plan.seed}")
    prefix = words(plan.shared_prefix, chance) if plan.shared_prefix else ""
    if plan.prompts is not None:
        return bodies_in(plan.prompts, plan.kind, prefix)
    span = plan.prompt_tokens
    if span is None:
        return [body_of(plan.kind, DEFAULT if plan.prompt is None else plan.prompt, prefix)]
    count = POOL if plan.unique or span.least != span.most else 1
    return [body_of(plan.kind, words(span.drawn(chance), chance), prefix) for _ in range(count)]


def _with_descriptors(plan: Plan) -> Plan:
    """Allow as many open files as the connections need; an open loop has fewer connections where that cannot be. Raises
    UsageError when a closed loop's callers are more."""
    try:
        import resource
    except ImportError:
        return plan
    wanted = plan.connections + _OWN_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
        except (OSError, ValueError):
            pass
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return plan
    allowed = soft - _OWN_DESCRIPTORS
    if allowed < 1 or not plan.open_loop:
        raise UsageError(f"--connections: {plan.connections} need more open files than the system allows ({soft})")
    return replace(plan, connections=allowed)


def _schedule(plan: Plan) -> Schedule:
    begin_ns = -round(plan.warmup_s * NS)
    if plan.open_loop:
        chance = Random(f"arrivals {plan.seed}") if plan.poisson else None
        return OpenLoop(due_ns(plan.stages, begin_ns, chance), plan.limit)
    end_ns = None if plan.duration_s is None else round(plan.duration_s * NS)
    least_s, most_s = plan.think_s
    think_ns = round(least_s * NS), round(most_s * NS)
    chance = Random(f"think {plan.seed}")
    return ClosedLoop(plan.connections, begin_ns, end_ns, plan.limit, think_ns, chance)


def _run(plan: Plan, found: Found, bodies: list[dict[str, Any]]) -> dict[str, Any]:
    measures = Measures(plan.open_loop, round(plan.expected_s * NS))
    if plan.duration_s is not None and plan.limit is None:
        measures.end_ns = round(plan.duration_s * NS)
    mix = Mix(bodies, plan.stream_share, plan.stream_usage, plan.max_tokens, plan.params, plan.unique)
    asked = requests(Target(head_of(plan), found.models), mix, plan.seed)
    limits = Limits(plan.connections, round(plan.timeout_s * NS), round(plan.connect_s * NS), plan.keepalive)
    schedule = _schedule(plan)
    progress = None if plan.quiet else Progress(sys.stderr)
    shown_ns = -(1 << 62)

    def tick(now_ns: int) -> None:
        nonlocal shown_ns
        if progress is not None and now_ns - shown_ns >= progress.every_ns:
            shown_ns = now_ns
            progress.show(line(measures, now_ns, plan.duration_s, plan.limit))

    loop = Loop(found.endpoint, schedule, asked, measures, limits, tick)
    if progress is not None:
        _announce(plan, found)
    began = datetime.fromtimestamp(unix_s(), timezone.utc).isoformat(timespec="seconds")
    # The collector would find little while the load runs, and each of its looks would hold up every request.
    with _interrupting(loop), quiet_memory(50_000, 50, 100):
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        ended_ns = loop.run(-round(plan.warmup_s * NS))
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    if progress is not None:
        progress.close()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return result_of(plan, Run(began, ended_ns, cpu_s, wall_s, loop.interrupted, found.models, python), measures)


def _announce(plan: Plan, found: Found) -> None:
    """Say on stderr what begins."""
    if found.listed:
        more = f", the first of {found.listed} that it lists" if found.listed > 1 else ", which it lists"
        name = found.models[0][0]  # what a server says may be for a terminal, and of any length
        print(f"model: {clean(name[:NAME_CHARS])}{more}", file=sys.stderr)
    if plan.key_from and plan.key_from != "--key":
        print(f"key: from {plan.key_from}", file=sys.stderr)
    sys.stderr.flush()


@contextmanager
def _interrupting(loop: Loop) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the loop, a second one the process; afterwards one does."""

    def handle(number: int, frame: object) -> None:
        if loop.interrupted:
            os._exit(INTERRUPTED)
        loop.interrupt()

    numbers = [signal.SIGINT, signal.SIGTERM]
    try:
        before = [signal.signal(number, handle) for number in numbers]
    except ValueError:  # not in the main thread: somebody else's signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def _tell(plan: Plan, result: dict[str, Any]) -> int:
    """Print and write the result; returns the exit status."""
    status = tell(result, table(result), _page, plan.json_file, plan.html_file)
    return FAILED if any(one["failed"] for one in result["thresholds"]) else status


def _page(result: Mapping[str, Any]) -> str:
    from gateway.tools.loadtest.page import page

    return page(result)
