"""What befalls engines, and when: `kill:10%@60s-120s`. Pure: who is hit comes from the seed.

A fault is `KIND:WHO[,VALUE]@BEGIN[-END]`. WHO is a number of engines or a share (`5`, `10%`), the same engines for
every strategy; END is when it is over, else it stays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from gateway.tools.loadtest.durations import duration_s

KINDS = {
    "kill": "dies: what it has is reset, connections are refused",
    "partition": "cannot be reached: nothing is answered, connections are not accepted",
    "slow": "takes VALUE times as long",
    "flap": "dies and comes back, each for VALUE (a time)",
    "error": "answers a share VALUE with status 500",
    "limited": "answers a share VALUE with status 429",
}
GRAMMAR = "KIND:WHO[,VALUE]@BEGIN[-END], with KIND one of " + ", ".join(KINDS)
_FAULT = re.compile(r"([a-z]+):([0-9]+(?:\.[0-9]+)?)(%?)(?:,([0-9.a-z%]+))?@([0-9.a-z]+)(?:-([0-9.a-z]+))?")


class Fault(NamedTuple):
    """One fault: so many `engines`, or a `share` of all where that is more than 0, from `begin_s` until `end_s`."""

    text: str
    kind: str
    engines: int
    share: float
    value: float
    begin_s: float
    end_s: float

    def hits(self, of: int, seed: int) -> list[int]:
        """Which of so many engines."""
        count = min(of, math.ceil(self.share * of) if self.share else self.engines)
        return Random(f"{seed} {self.text}").sample(range(of), count)


def faults(text: str) -> tuple[Fault, ...]:
    """Faults with blanks or `;` between them. Raises ValueError."""
    return tuple(_fault(part) for part in re.split(r"[;\s]+", text.strip()) if part)


def _fault(text: str) -> Fault:
    found = _FAULT.fullmatch(text)
    if found is None or found[1] not in KINDS:
        raise ValueError(f"must be {GRAMMAR}, not {text!r}")
    kind = found[1]
    who = float(found[2])
    if found[3] and who > 100:
        raise ValueError(f"a share is 100% at most, not {text!r}")
    if not found[3] and who != int(who):
        raise ValueError(f"a number of engines is a whole one, not {text!r}")
    begin_s = duration_s(found[5])
    end_s = duration_s(found[6]) if found[6] else math.inf
    if end_s <= begin_s:
        raise ValueError(f"must end after it begins: {text!r}")
    value = _value(kind, found[4], text)
    return Fault(text, kind, 0 if found[3] else int(who), who / 100 if found[3] else 0.0, value, begin_s, end_s)


def _value(kind: str, typed: str, text: str) -> float:
    if kind in ("kill", "partition"):
        if typed is not None:
            raise ValueError(f"{kind} takes no value: {text!r}")
        return 0.0
    if typed is None:
        raise ValueError(f"{kind} needs a value: {text!r}")
    if kind == "flap":
        found = duration_s(typed)
    else:
        percent = typed.endswith("%")
        try:
            found = float(typed.rstrip("%x")) / (100 if percent else 1)
        except ValueError:
            raise ValueError(f"must be {GRAMMAR}, not {text!r}") from None
    if found <= 0 or (kind in ("error", "limited") and found > 1):
        raise ValueError(f"the value must be more than 0{', at most 1' if kind != 'flap' else ''}: {text!r}")
    return found


def hang(known: Sequence[Fault]) -> bool:
    """Whether some of them make requests wait for engines that say nothing."""
    return any(fault.kind == "partition" for fault in known)
