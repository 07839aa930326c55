"""The simulated members' answers, one after the other, put to what serves: how it decides, and how many it waits for.

The panel, the verification and the reading of answers are the gateway's own, run by hand on this thread. Members answer
in a given order, never two at once, which is when the least of them are heard before it is decided. Nobody is asked to
repair anything. In place of the sandbox stand the results that were measured when the tasks were prepared, or, where
inputs are made for each draw, the harness itself in this process and the programs run anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from gateway.verify.consensus import Decision
from gateway.verify.harness.generate import generate
from gateway.verify.panel import Member
from gateway.verify.question import Question, RunLimits
from gateway.verify.sandbox.job import Job, Limits, Run
from gateway.verify.verification import Verification, read
from tests.panels import ByHand, Jail, Members, run_of

from .members import Task
from .programs import outputs

LIMITS = RunLimits(Limits().wall_s, Limits().memory_bytes, 1.0)


class Served(NamedTuple):
    """What is served, and after how many answers."""

    decision: Decision
    heard: int


class Serving:
    """Serves one task. `per_draw`: inputs are made from the programs that have come, as the product does."""

    def __init__(self, task: Task, per_draw: bool = False) -> None:
        self._task = task
        self._texts = [f"```python\n{program}\n```" for program in task.programs]
        self._place: dict[str, int] = {}
        for place, text in enumerate(self._texts):
            program = read(text, task.entry_point).program
            if program is None:
                raise ValueError(f"{task.name}: no program is seen in the answer with program {place}")
            self._place.setdefault(program.code, place)
        self._per_draw = per_draw
        self._wraps: list[Any] = []

    def serve(self, programs: Sequence[int], order: Sequence[int]) -> Served:
        """Has the members, who have written these programs, answer in that order, until it is decided."""
        asked = Members()
        members = tuple(Member(str(index), str(index)) for index in range(len(programs)))
        question = Question(self._task.prompt, members, len(members), 1, LIMITS, ())
        verification = Verification(asked.panel(math.inf), question, Jail(self._run).sandbox, heal_attempts=0)
        steps = ByHand(verification.run())
        heard = 0
        for index in order:
            if steps.ended:
                break
            asked.calls[index].say(self._texts[programs[index]])
            steps.go()
            heard += 1
        return Served(steps.result.decision, heard)

    def _run(self, job: Job) -> Optional[Run]:
        payload = json.loads(job.payload)
        if job.harness == "generate":
            return run_of(self._made(payload) if self._per_draw else self._prepared())
        keys: Sequence[str] = self._task.keys[self._place[job.code]]
        if self._per_draw:
            keys = outputs([job.code], self._task.entry_point, payload["inputs"], self._wraps)[0]
        return run_of({"keys": keys, "total": len(keys)})

    def _prepared(self) -> dict[str, Any]:
        shape = self._task.inputs
        rows = [
            {"args": str(index), "tier": tier, "expected": expected}
            for index, (tier, expected) in enumerate(zip(shape.tiers, shape.expected))
        ]
        return {"entry_point": self._task.entry_point, "inputs": rows}

    def _made(self, asked: dict[str, Any]) -> dict[str, Any]:
        candidates, answers, seed = asked["candidates"], asked["answers"], asked["seed"]
        made = generate(asked["prompt"], asked["entry_point"], candidates, answers, seed=seed)
        self._wraps = [entry.wrap for entry in made.inputs]
        rows = [{"args": entry.args, "tier": entry.tier, "expected": entry.expected} for entry in made.inputs]
        return {"entry_point": self._task.entry_point, "inputs": rows}
