"""Simulated members: programs of one task, judged by its own tests, and what they return on the product's inputs.

`prepare` runs every program once, and keeps the result in the temporary directory, under a name made of everything it
depends on; `draw` then only picks. A wrong member's program is an edit of the right one. Plain edits flatter any
method, because most fail the prompt's own examples: the pool "hard" holds only those that pass them all, and "mix"
takes from either half of the time.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from gateway.verify import harness
from gateway.verify.consensus import Inputs
from gateway.verify.harness.generate import Generated, generate
from gateway.verify.harness.keys import matches

from .mutants import mutants, plain
from .programs import outputs, verdicts

MUTANTS_MAX, WRONG_MAX, RIGHT_MAX = 70, 36, 8
OTHER_RIGHT = 0.25  # of the right members: another program that passes the tests
_WORKERS = 2


class Task(NamedTuple):
    """One task: its programs (the first is the canonical one), which are right, and what they return."""

    name: str
    prompt: str
    entry_point: str
    test: str
    programs: list[str]
    right: list[bool]
    keys: list[tuple[str, ...]]
    inputs: Inputs
    rights: list[int]  # others than the canonical one
    wrongs: list[int]
    hard: list[int]  # wrong ones that pass every example; all of them, where there is no example


def prepare(path: Path, seed: int = 0, every: int = 1) -> list[Task]:
    """Returns the tasks of a file (JSON lines as HumanEval's); the first run takes a minute or two.

    `every` 3: each third task only. A task of which no edit is wrong is left out. Raises OSError, and ValueError (a
    file that is something else).
    """
    kept = Path(tempfile.gettempdir()) / f"consensus-{_digest(path, seed)}-{every}.json"
    try:
        raw = json.loads(kept.read_text("utf-8"))
    except (OSError, ValueError):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()][::every]
        with ThreadPoolExecutor(_WORKERS) as workers:
            raw = list(workers.map(lambda row: _measured(row, seed), rows))
        kept.write_text(json.dumps(raw), "utf-8")
    tasks = [_task(row) for row in raw]
    return [task for task in tasks if task.wrongs]


def draw(task: Task, pool: str, right: float, shared: float, members: int, rng: Random) -> list[int]:
    """Returns one program per member.

    A member is right with probability `right`; a wrong one gives the same program as an earlier wrong one with
    probability `shared`.
    """
    chosen: list[int] = []
    wrong: list[int] = []
    for _ in range(members):
        if rng.random() < right:
            other = task.rights and rng.random() < OTHER_RIGHT
            chosen.append(rng.choice(task.rights) if other else 0)
            continue
        if wrong and rng.random() < shared:
            made = rng.choice(wrong)
        else:
            hard = pool == "hard" or (pool == "mix" and rng.random() < 0.5)
            made = rng.choice(task.hard if hard and task.hard else task.wrongs)
        wrong.append(made)
        chosen.append(made)
    return chosen


def run_on(task: Task, programs: Sequence[str], made: Generated) -> list[tuple[str, ...]]:
    """Returns the keys of other programs, on other inputs, of the same task."""
    texts = [entry.args for entry in made.inputs]
    return [tuple(keys) for keys in outputs(list(programs), task.entry_point, texts, [e.wrap for e in made.inputs])]


def inputs_of(made: Generated) -> Inputs:
    """Returns the generated inputs as the decision takes them."""
    return Inputs(tuple(entry.tier for entry in made.inputs), tuple(entry.expected for entry in made.inputs))


def _measured(row: dict[str, str], seed: int) -> dict[str, Any]:
    name = row["entry_point"]
    right = plain(row["prompt"] + row["canonical_solution"])
    edited = mutants(right, name, Random(f"{seed}/{row['task_id']}"), MUTANTS_MAX)
    passed = verdicts([right, *edited], name, row["test"])
    if not passed[0]:
        raise ValueError(f"{row['task_id']}: the canonical solution fails its tests")
    good = [text for text, ok in zip(edited, passed[1:]) if ok][:RIGHT_MAX]
    bad = [text for text, ok in zip(edited, passed[1:]) if not ok][:WRONG_MAX]
    programs = [right, *good, *bad]
    # Of what the candidates contain, the right program and a few of the wrong ones stand for all.
    made = generate(row["prompt"], None, [right, *bad[:2]], seed=seed)
    keys = outputs(programs, name, [entry.args for entry in made.inputs], [entry.wrap for entry in made.inputs])
    return {
        "row": row,
        "programs": programs,
        "right": len(good) + 1,
        "keys": keys,
        "tiers": [entry.tier for entry in made.inputs],
        "expected": [entry.expected for entry in made.inputs],
    }


def _task(raw: dict[str, Any]) -> Task:
    row, count = raw["row"], len(raw["programs"])
    keys = [tuple(keys) for keys in raw["keys"]]
    inputs = Inputs(tuple(raw["tiers"]), tuple(raw["expected"]))
    wrongs = list(range(raw["right"], count))
    hard = [
        program
        for program in wrongs
        if all(expected is None or matches(key, expected) for key, expected in zip(keys[program], inputs.expected))
    ]
    return Task(
        row["task_id"],
        row["prompt"],
        row["entry_point"],
        row["test"],
        raw["programs"],
        [program < raw["right"] for program in range(count)],
        keys,
        inputs,
        list(range(1, raw["right"])),
        wrongs,
        hard,
    )


def _digest(path: Path, seed: int) -> str:
    digest = hashlib.sha256(f"{seed}".encode() + path.read_bytes())
    here = Path(__file__).parent
    files = [here / "mutants.py", here / "programs.py", here / "members.py"]
    for file in files + sorted(Path(harness.__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
