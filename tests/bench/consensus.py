"""How often the consensus is right, verifies, and verifies what is wrong: simulated members on real tasks.

    python -m tests.bench.consensus [--tasks FILE] [--pool mix,hard] [--p 0.6,0.7,0.8] [--rho 0,0.2,0.5]
                                    [--members 3,5] [--trials N] [--honest N] [--quick]

Beside the product's decision stand: the first member's answer, the majority of equal texts, and the majority by
behaviour on the inputs that the prompt names. Intervals are 95 %, by bootstrap over the tasks. `--honest N` draws N
times per task as the product meets them, inputs made from the drawn members' own programs, and compares. At the end
every program is judged by its task's tests in the sandbox: no wrong one may pass.
"""

from __future__ import annotations

import argparse
import functools
import json
import queue
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
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

TASKS = Path(__file__).resolve().parents[1] / "data" / "humaneval_even.jsonl"
TRIALS, TRIALS_QUICK = 100, 40
EVERY_QUICK = 3
RESAMPLES = 400
JUDGED_S = 5.0
JUDGE_LIMITS = Limits(wall_s=15.0, cpu_s=7.0)
WAITING_MAX = 200  # programs that wait to be judged
Policy = Callable[[Task, tuple[int, ...]], tuple[int, bool]]


class Tally(NamedTuple):
    """Of one task: trials, those answered right, those verified, and those verified although wrong."""

    trials: int
    right: int
    verified: int
    wrong: int


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
        rng = Random(f"{task.name} {pool} {right} {shared} {members}")
        remembered = lru_cache(maxsize=None)(lambda programs, task=task: policy(task, programs))
        rights = verified = wrong = 0
        for _ in range(trials):
            programs = tuple(draw(task, pool, right, shared, members, rng))
            chosen, is_verified = remembered(programs)
            is_right = task.right[programs[chosen]]
            rights += is_right
            verified += is_verified
            wrong += is_verified and not is_right
        made.append(Tally(trials, rights, verified, wrong))
    return made


def shares(made: Sequence[Tally]) -> tuple[float, float, float]:
    """Returns the shares of right answers, of verified ones, and of wrong ones among the verified."""
    trials = sum(tally.trials for tally in made)
    verified = sum(tally.verified for tally in made)
    wrong = sum(tally.wrong for tally in made)
    return sum(tally.right for tally in made) / trials, verified / trials, wrong / max(1, verified)


def _print_setting(tasks: list[Task], pool: str, right: float, shared: float, members: int, trials: int) -> None:
    print(f"\n{pool}, p {right}, rho {shared}, {members} members")
    for name, policy in POLICIES.items():
        made = tallies(tasks, policy, pool, right, shared, members, trials)
        rng = Random(1)
        samples = [shares(rng.choices(made, k=len(made))) for _ in range(RESAMPLES)]
        cells = []
        for index, value in enumerate(shares(made)):
            ordered = sorted(sample[index] for sample in samples)
            low, high = ordered[int(RESAMPLES * 0.025)], ordered[int(RESAMPLES * 0.975) - 1]
            cells.append(f"{100 * value:5.1f} [{100 * low:4.1f} {100 * high:5.1f}]")
        print(f"  {name:<16} {'   '.join(cells)}", flush=True)


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
    """The same draws twice: on the inputs prepared, and on inputs made from the drawn programs themselves."""
    counts = {"prepared inputs": [0, 0, 0, 0], "inputs per draw": [0, 0, 0, 0]}
    for task in tasks:
        rng = Random(f"{task.name} honest")
        for _ in range(draws):
            programs = draw(task, "mix", 0.6, 0.2, 3, rng)
            texts = [task.programs[program] for program in programs]
            made = generate(task.prompt, None, texts)
            keys = run_on(task, texts, made)
            decisions = (
                _decided(task.keys, task.inputs, programs),
                _decided(keys, inputs_of(made), range(len(programs))),
            )
            for count, decision in zip(counts.values(), decisions):
                chosen, verified = _answer(decision)
                right = task.right[programs[chosen]]
                for index, value in enumerate((1, right, verified, verified and not right)):
                    count[index] += value
    print("\nmix, p 0.6, rho 0.2, 3 members, once on prepared inputs and once on inputs made for the draw")
    for name, (trials, rights, verified, wrong) in counts.items():
        shown = shares([Tally(trials, rights, verified, wrong)])
        print(f"  {name:<16} " + "   ".join(f"{100 * value:5.1f}" for value in shown))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
