"""How often the consensus is right, verifies, and verifies what is wrong: simulated members on real tasks.

    python -m tests.bench.consensus [--tasks FILE] [--pool mix,hard] [--p 0.6,0.7,0.8] [--rho 0,0.2,0.5]
                                    [--members 3,5] [--trials N] [--honest N] [--quick]

Beside the product's decision on all answers ("consensus") stand: the first member's answer, the majority of equal
texts, the majority by behaviour on the inputs that the prompt names, and what is served, where members answer one after
the other in random order and nobody is waited for once it is decided (see `served.py`), with how many were heard.
Intervals are 95 %, by bootstrap over the tasks. `--honest N` draws N times per task as the product meets them, inputs
made from the drawn members' own programs, and compares. At the end every program is judged by its task's tests in the
sandbox: no wrong one may pass.
"""

from __future__ import annotations

import argparse
import functools
import json
import queue
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Callable, NamedTuple

from gateway.verify.building import HARNESSES
from gateway.verify.consensus import Candidate, Decision, Inputs, decide
from gateway.verify.execution import judged_of
from gateway.verify.harness.generate import generate
from gateway.verify.harness.keys import comparable
from gateway.verify.sandbox.job import Job, Limits, Run
from gateway.verify.sandbox.sandbox import Sandbox
from gateway.verify.sandbox.texts import harness_sources

from .members import Task, draw, inputs_of, prepare, run_on
from .served import Serving

TASKS = Path(__file__).resolve().parents[1] / "data" / "humaneval_even.jsonl"
TRIALS, TRIALS_QUICK = 100, 40
EVERY_QUICK = 3
RESAMPLES = 400
JUDGED_S = 5.0
JUDGE_LIMITS = Limits(wall_s=15.0, cpu_s=7.0)
WAITING_MAX = 200  # programs that wait to be judged
Policy = Callable[[Task, tuple[int, ...]], tuple[int, bool]]
SERVED = "as served"


class Tally(NamedTuple):
    """Of one task: trials, those answered right, those verified, and those verified although wrong."""

    trials: int
    right: int
    verified: int
    wrong: int
    heard: int
    """Answers that were waited for."""


def main(argv: Sequence[str]) -> int:
    """Prints the tables. Returns 1 when a program that fails the tests passes them in the sandbox."""
    options = _options(argv)
    started = time.monotonic()
    tasks = prepare(options.tasks, every=EVERY_QUICK if options.quick else 1)
    print(f"{len(tasks)} tasks, {options.trials} trials each; prepared in {time.monotonic() - started:.0f} s")
    print(_about(tasks))
    print("right / verified / wrong among verified, %; [95 % interval]")
    for pool, right, shared, members in _settings(options):
        _print_setting(tasks, pool, right, shared, members, options.trials)
    wrong = _with_tests(tasks)
    if options.honest:
        _print_honest(tasks, options.honest)
    print(f"{time.monotonic() - started:.0f} s in all")
    return 1 if wrong else 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.consensus")
    parser.add_argument("--tasks", type=Path, default=TASKS)
    parser.add_argument("--pool", default="")
    parser.add_argument("--p", default="")
    parser.add_argument("--rho", default="")
    parser.add_argument("--members", default="3,5")
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--honest", type=int, default=0, metavar="N")
    parser.add_argument("--quick", action="store_true", help="a third of the tasks, fewer settings: under a minute")
    options = parser.parse_args(argv)
    options.pool = options.pool or ("mix" if options.quick else "mix,hard")
    options.p = options.p or ("0.6,0.8" if options.quick else "0.5,0.6,0.7,0.8")
    options.rho = options.rho or ("0.2" if options.quick else "0,0.2,0.5")
    options.trials = options.trials or (TRIALS_QUICK if options.quick else TRIALS)
    return options


def _settings(options: argparse.Namespace) -> Iterator[tuple[str, float, float, int]]:
    for pool in options.pool.split(","):
        for right in map(float, options.p.split(",")):
            for shared in map(float, options.rho.split(",")):
                for members in map(int, options.members.split(",")):
                    yield pool, right, shared, members


def _about(tasks: list[Task]) -> str:
    wrong = sum(len(task.wrongs) for task in tasks)
    alike = sum(_vector(task, program) == _vector(task, 0) for task in tasks for program in task.wrongs)
    apart = sum(_vector(task, program, 2) != _vector(task, 0, 2) for task in tasks for program in task.rights)
    right = sum(len(task.rights) for task in tasks)
    inputs = sum(len(task.inputs.tiers) for task in tasks) / len(tasks)
    return (
        f"{wrong} wrong programs, {alike} of them like the right one on all inputs ({inputs:.0f} a task); "
        f"{right} others that pass the tests, {apart} of them unlike it near the domain"
    )


def _vector(task: Task, program: int, tier: int = 3) -> tuple[str, ...]:
    return tuple(comparable(key) for key, of_input in zip(task.keys[program], task.inputs.tiers) if of_input <= tier)


def _first(_task: Task, _programs: tuple[int, ...]) -> tuple[int, bool]:
    return 0, False


def _same_text(_task: Task, programs: tuple[int, ...]) -> tuple[int, bool]:
    program, count = Counter(programs).most_common(1)[0]
    return programs.index(program), 2 * count > len(programs)


def _prompt_inputs(task: Task, programs: tuple[int, ...]) -> tuple[int, bool]:
    groups = Counter(_vector(task, program, 0) for program in programs)
    vector, count = groups.most_common(1)[0]
    chosen = next(place for place, program in enumerate(programs) if _vector(task, program, 0) == vector)
    return chosen, 2 * count > len(programs) and bool(vector)


def _consensus(task: Task, programs: tuple[int, ...]) -> tuple[int, bool]:
    return _answer(_decided(task.keys, task.inputs, programs))


def _decided(keys: list[tuple[str, ...]], inputs: Inputs, programs: Sequence[int]) -> Decision:
    candidates = [Candidate(member, str(member), keys[program]) for member, program in enumerate(programs)]
    return decide(candidates, inputs, len(programs))


def _answer(decision: Decision) -> tuple[int, bool]:
    return decision.chosen or 0, decision.verified


POLICIES: dict[str, Policy] = {
    "first answer": _first,
    "same text": _same_text,
    "prompt's inputs": _prompt_inputs,
    "consensus": _consensus,
}


def tallies(
    tasks: list[Task], policy: Policy, pool: str, right: float, shared: float, members: int, trials: int
) -> list[Tally]:
    """Returns, for each task, what a policy made of `trials` draws: the same draws for every policy."""
    made = []
    for task in tasks:
        remembered = lru_cache(maxsize=None)(lambda programs, task=task: (*policy(task, programs), len(programs)))
        made.append(
            _tally(task, ((drawn, remembered(drawn)) for drawn in _draws(task, pool, right, shared, members, trials)))
        )
    return made


def served_tallies(tasks: list[Task], pool: str, right: float, shared: float, members: int, trials: int) -> list[Tally]:
    """Returns the same of what is served, each draw's members answering in an order of their own."""
    made = []
    for task in tasks:
        serving = Serving(task)
        orders = Random(f"{task.name} orders")
        remembered = lru_cache(maxsize=None)(lambda programs, order, serving=serving: _served(serving, programs, order))
        made.append(
            _tally(
                task,
                (
                    (drawn, remembered(drawn, tuple(orders.sample(range(members), members))))
                    for drawn in _draws(task, pool, right, shared, members, trials)
                ),
            )
        )
    return made


def _served(serving: Serving, programs: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, bool, int]:
    decision, heard = serving.serve(programs, order)
    return (*_answer(decision), heard)


def _draws(task: Task, pool: str, right: float, shared: float, members: int, trials: int) -> Iterator[tuple[int, ...]]:
    rng = Random(f"{task.name} {pool} {right} {shared} {members}")
    for _ in range(trials):
        yield tuple(draw(task, pool, right, shared, members, rng))


def _tally(task: Task, answered: Iterable[tuple[tuple[int, ...], tuple[int, bool, int]]]) -> Tally:
    """Of draws, each with the member chosen, whether that was verified, and how many answers were waited for."""
    counts = [0, 0, 0, 0, 0]
    for programs, (chosen, verified, heard) in answered:
        right = task.right[programs[chosen]]
        for index, value in enumerate((1, right, verified, verified and not right, heard)):
            counts[index] += value
    return Tally(*counts)


def shares(made: Sequence[Tally]) -> tuple[float, float, float]:
    """Returns the shares of right answers, of verified ones, and of wrong ones among the verified."""
    trials = sum(tally.trials for tally in made)
    verified = sum(tally.verified for tally in made)
    wrong = sum(tally.wrong for tally in made)
    return sum(tally.right for tally in made) / trials, verified / trials, wrong / max(1, verified)


def _print_setting(tasks: list[Task], pool: str, right: float, shared: float, members: int, trials: int) -> None:
    print(f"\n{pool}, p {right}, rho {shared}, {members} members")
    for name, policy in POLICIES.items():
        by_all = tallies(tasks, policy, pool, right, shared, members, trials)
        _print_tallies(name, by_all)
    made = served_tallies(tasks, pool, right, shared, members, trials)
    heard = sum(tally.heard for tally in made) / sum(tally.trials for tally in made)
    rng = Random(1)
    resampled = [rng.choices(list(zip(by_all, made)), k=len(made)) for _ in range(RESAMPLES)]
    more = sorted(_more_wrong(pairs) for pairs in resampled)
    low, high = more[int(RESAMPLES * 0.025)], more[int(RESAMPLES * 0.975) - 1]
    value = _more_wrong(list(zip(by_all, made)))
    told = f"   {heard:.2f} answers heard; {100 * value:+.1f} [{100 * low:+.1f} {100 * high:+.1f}] wrong, beside {name}"
    _print_tallies(SERVED, made, told)


def _more_wrong(pairs: Sequence[tuple[Tally, Tally]]) -> float:
    """By how much the second of each pair verifies what is wrong more often, as a share of what it verifies."""
    return shares([after for _, after in pairs])[2] - shares([before for before, _ in pairs])[2]


def _print_tallies(name: str, made: list[Tally], more: str = "") -> None:
    rng = Random(1)
    samples = [shares(rng.choices(made, k=len(made))) for _ in range(RESAMPLES)]
    cells = []
    for index, value in enumerate(shares(made)):
        ordered = sorted(sample[index] for sample in samples)
        low, high = ordered[int(RESAMPLES * 0.025)], ordered[int(RESAMPLES * 0.975) - 1]
        cells.append(f"{100 * value:5.1f} [{100 * low:4.1f} {100 * high:5.1f}]")
    print(f"  {name:<16} {'   '.join(cells)}{more}", flush=True)


def _with_tests(tasks: list[Task]) -> int:
    """Has every program judged by its task's tests, as the gateway would; returns how many wrong ones pass."""
    sandbox = Sandbox("auto", "process", source_by_harness=harness_sources(HARNESSES))
    judged: queue.SimpleQueue[tuple[bool, bool]] = queue.SimpleQueue()
    count = 0
    try:
        print(f"\nwith the tasks' tests given, judged at level {sandbox.level()}:", end=" ", flush=True)
        for task in tasks:
            payload = {"mode": "tests", "language": "python", "entry_point": task.entry_point, "tests": [task.test]}
            job = Job("python", "", "judge", json.dumps({**payload, "total_s": JUDGED_S}).encode(), JUDGE_LIMITS)
            for source, right in zip(task.programs, task.right):
                sandbox.submit(job._replace(code=source), functools.partial(_note, judged, right))
                count += 1
            while count > judged.qsize() + WAITING_MAX:
                time.sleep(0.05)
        results = [judged.get() for _ in range(count)]
    finally:
        sandbox.close(5.0)
    passed = sum(passes for right, passes in results if right)
    wrong = sum(passes for right, passes in results if not right)
    rights = sum(right for right, _ in results)
    print(f"{passed} of {rights} right programs pass, {wrong} of {count - rights} wrong ones")
    return wrong


def _note(judged: queue.SimpleQueue[tuple[bool, bool]], right: bool, run: Run) -> None:
    found = judged_of(run, json.loads(run.report) if run.report else None)
    judged.put((right, found.error is None and found.passed == found.total > 0))


def _print_honest(tasks: list[Task], draws: int) -> None:
    """The same draws on the inputs prepared, and on inputs made from the drawn programs themselves."""
    names = ("prepared inputs", "inputs per draw", SERVED)
    tallies_of: dict[str, list[Tally]] = {name: [] for name in names}
    for task in tasks:
        rng = Random(f"{task.name} honest")
        serving = Serving(task, per_draw=True)
        answered: dict[str, list[tuple[tuple[int, ...], tuple[int, bool, int]]]] = {name: [] for name in names}
        for _ in range(draws):
            programs = tuple(draw(task, "mix", 0.6, 0.2, 3, rng))
            texts = [task.programs[program] for program in programs]
            made = generate(task.prompt, None, texts)
            keys = run_on(task, texts, made)
            outcomes = (
                (*_answer(_decided(task.keys, task.inputs, programs)), len(programs)),
                (*_answer(_decided(keys, inputs_of(made), range(len(programs)))), len(programs)),
                _served(serving, programs, tuple(rng.sample(range(len(programs)), len(programs)))),
            )
            for name, outcome in zip(names, outcomes):
                answered[name].append((programs, outcome))
        for name in names:
            tallies_of[name].append(_tally(task, answered[name]))
    print("\nmix, p 0.6, rho 0.2, 3 members, on prepared inputs, on inputs made for the draw, and so as served")
    for name, made_of in tallies_of.items():
        _print_tallies(name, made_of)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
