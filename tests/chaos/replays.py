"""The decision log of a run, repeated by `python main.py replay`: the same decisions, and not with another weight."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT

REPLAY_TIMEOUT_S = 300.0


def replayed(decisions: Path, notes: dict[str, str], another_weight: bool = True) -> Iterator[str]:
    """Repeat a decision log, and a copy with one weight changed; yields what is wrong, notes what was said."""
    status, said = _replay(decisions)
    notes["replay"] = said
    if status != 0 or not re.fullmatch("0 differences in [1-9][0-9]*", said):
        yield f"replay ended with {status}: {said}"
    if not another_weight:
        return
    status, said = _replay(_with_another_weight(decisions))
    difference = re.search(r"line [0-9]+: \w+ of [^:]+", said)
    notes["with one weight changed"] = f"differs at {difference[0]}" if difference else said
    if status != 1 or difference is None:
        yield f"replay with another weight ended with {status}: {said}"


def _replay(decisions: Path) -> tuple[int, str]:
    command = [sys.executable, "main.py", "replay", str(decisions.resolve())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=REPLAY_TIMEOUT_S)
    return done.returncode, (done.stdout + done.stderr).strip()


def _with_another_weight(decisions: Path) -> Path:
    changed = decisions.with_name("another-weight.jsonl")
    with decisions.open(encoding="utf-8") as file, changed.open("w", encoding="utf-8") as copy:
        start = json.loads(next(file))
        next(iter(start["models"].values()))["engines"][0]["weight"] += 1
        copy.write(json.dumps(start) + "\n")
        copy.writelines(file)
    return changed
