"""What a run has found: the rule that was broken, and how to see it again.

A `Report` belongs to one run; `found` and `count` may be called from any thread (single operations on a list and,
under the lock, on a Counter).
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Callable, NamedTuple, Optional, TypeVar

SHOWN_BYTES = 3000  # of a repro's bytes
ODD_MAX = 60  # no more cases are made when so many were odd
LOOKED_AT_AGAIN = 12
LOOKS = 3
LOOKED_S = 20.0  # this takes at most about so long

T = TypeVar("T")


class Finding(NamedTuple):
    """A rule that did not hold. `repro`: what to send, as text."""

    rule: str
    case: str
    detail: str
    repro: str


class Report:
    """What one run of one fuzzer has found and counted."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.seed = seed
        self.findings: list[Finding] = []
        self.counts: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._lock = threading.Lock()

    def found(self, rule: str, case: object, detail: str, repro: str = "") -> None:
        """A rule did not hold in this case."""
        self.findings.append(Finding(rule, str(case), detail, repro))

    def count(self, what: str, by: int = 1) -> None:
        """Count what happened."""
        with self._lock:
            self.counts[what] += by

    def note(self, what: str) -> None:
        """Remember what is worth a look and breaks no rule."""
        with self._lock:
            self.notes[what] += 1

    def lines(self, per_rule: int = 3) -> list[str]:
        """The report for a person: counts, notes, findings (the first few of each rule, with their repro)."""
        counts = ", ".join(f"{what} {number}" for what, number in sorted(self.counts.items()))
        lines = [f"{self.name}: seed {self.seed}: {counts or 'nothing counted'}"]
        lines += [f"  note: {what} ({number})" for what, number in self.notes.most_common(8)]
        seen: Counter[str] = Counter()
        for finding in self.findings:
            seen[finding.rule] += 1
            if seen[finding.rule] <= per_rule:
                lines.append(f"  FOUND {finding.rule}: case {finding.case}: {finding.detail}")
                only = f" --case {finding.case}" if finding.case.isdigit() else ""  # else a nonce, or no case by itself
                lines.append(f"    again: python -m tests.fuzz {self.name} --seed {self.seed}{only}")
                lines += [f"    {line}" for line in finding.repro.splitlines()]
        lines += [f"  {rule}: {number} in all" for rule, number in seen.items() if number > per_rule]
        return lines


def rng_of(name: str, seed: int, case: int) -> random.Random:
    """The generator of one case: the same for the same name, seed and number on every Python."""
    return random.Random(f"{name}/{seed}/{case}")


def shown(segments: Sequence[bytes]) -> str:
    """Bytes as they were cut, for a repro; long ones are told by their beginning, end and length."""
    return "[" + ", ".join(_short(segment) for segment in _few(segments)) + "]"


def _few(segments: Sequence[bytes]) -> Sequence[bytes]:
    if len(segments) <= 40:
        return segments
    return [*segments[:20], b"(... %d more ...)" % (len(segments) - 40), *segments[-20:]]


def _short(data: bytes) -> str:
    if len(data) <= SHOWN_BYTES:
        return repr(data)
    return f"{data[: SHOWN_BYTES // 2]!r} + ({len(data) - SHOWN_BYTES} bytes) + {data[-SHOWN_BYTES // 2 :]!r}"


def numbers(seconds: float, case: Optional[int] = None) -> Iterator[int]:
    """Cases' numbers until `seconds` have passed, at least one; only `case` where that is given."""
    if case is not None:
        yield case
        return
    end_s = time.monotonic() + seconds
    for number in itertools.count():
        yield number
        if time.monotonic() >= end_s:
            return


def after_pure(report: Report, cases: Iterator[int], pure: Callable[[Report, int], None], more: int) -> Iterator[int]:
    """The cases' numbers, each after `pure` for it and for `more` numbers of its own that no socket sees."""
    for number in cases:
        first = (number + 1) * 1_000_000
        for other in (number, *range(first, first + more)):
            pure(report, other)
        yield number


def look_again(report: Report, odd: Sequence[T], look: Callable[[T], None]) -> None:
    """Put odd cases again, each by itself: `look` does it, and reports what does not hold then either."""
    end_s = time.monotonic() + LOOKED_S
    for case in odd[:LOOKED_AT_AGAIN]:
        before = len(report.findings)
        for _ in range(LOOKS):
            if len(report.findings) == before and time.monotonic() < end_s:
                look(case)
        if len(report.findings) == before:
            report.note("odd once only, when much was going on")
    if len(odd) > LOOKED_AT_AGAIN:
        report.note(f"{len(odd) - LOOKED_AT_AGAIN} more cases were odd and not looked at again")
