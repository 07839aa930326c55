"""What a mock engine can be told to do: the names, their options, and the checks on both.

Owns the closed set of behaviour names and the table of options (unit, range, default). Values are
frozen; nothing here has a lock, reads a socket or knows how a behaviour is carried out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MEANINGS: dict[str, str] = {
    "ok": "answers",
    "slow": "answers after `delay` seconds (default 1)",
    "error": "answers `status` (default 500) with a JSON error",
    "flaky": "a `ratio` of the requests (default 0.5, `seed`) gets `status` (default 500)",
    "refuse": "refuses connections for `seconds` (default 5), then listens again and is ok",
    "reset": "resets the connection before any byte of the answer",
    "hang": "reads the request and stays silent until the caller leaves or the behaviour changes",
    "drip": "answers one byte at a time, `gap` seconds apart (default 0.01)",
    "malformed": "answers 200 with a body, or an event after `after` good ones, that is not JSON",
    "truncate": "announces more than it sends; streams end in the middle of a line",
    "drop_mid_stream": "closes the connection after `after` content events (default 2)",
    "end_mid_stream": "as drop_mid_stream, but ends the body properly, only too early",
    "reset_mid_stream": "as drop_mid_stream, but resets the connection",
    "no_done": "streams finish, but without data: [DONE]",
    "no_usage": "answers carry no usage, asked for or not",
    "plain_json": "answers stream requests with one plain JSON body",
    "error_first_event": "streams begin, and end, with an error event",
    "rate_limit": "answers 429, with Retry-After when `retry_after` is given",
    "unauthorized": "answers 401",
    "bad_request": "answers 400 with an OpenAI error",
    "loading": "answers 503 on /health and to requests",
}


class BehaviourError(ValueError):
    """A behaviour or one of its options cannot be carried out; the text names which and why."""


@dataclass(frozen=True)
class _Option:
    field: str
    low: float
    high: float
    whole: bool
    default: float | None


_OPTIONS: dict[str, _Option] = {
    "delay": _Option("delay_s", 0, 86_400, False, 0.0),
    "status": _Option("status", 300, 599, True, 500),
    "ratio": _Option("ratio", 0, 1, False, 0.5),
    "seed": _Option("seed", 0, 2**63, True, 0),
    "events": _Option("events", 0, 1_000_000, True, None),
    "gap": _Option("gap_s", 0, 86_400, False, 0.0),
    "after": _Option("after", 0, 1_000_000, True, None),
    "retry_after": _Option("retry_after_s", 0, 86_400, False, None),
    "seconds": _Option("seconds", 0.001, 86_400, False, 5.0),
}
OPTION_NAMES: tuple[str, ...] = tuple(_OPTIONS)
WHOLE_OPTIONS = frozenset(name for name, option in _OPTIONS.items() if option.whole)

_OWN_DEFAULTS: dict[str, dict[str, float]] = {"slow": {"delay": 1.0}, "drip": {"gap": 0.01}}


@dataclass(frozen=True)
class Behaviour:
    """One behaviour with all its options settled; immutable, compared by identity where it runs.

    `delay_s` is waited before the answer's first byte, `gap_s` between events (bytes for drip),
    `events` is the number of content events (None: one per word), `after` the number of content
    events before a stream is spoilt (None: the behaviour's own), `retry_after_s` the Retry-After
    of an error (None: no such header), `seconds` how long connections are refused.
    """

    name: str
    delay_s: float
    status: int
    ratio: float
    seed: int
    events: int | None
    gap_s: float
    after: int | None
    retry_after_s: float | None
    seconds: float

    def options(self) -> dict[str, Any]:
        """Return the options under the names that the control endpoint takes."""
        return {name: getattr(self, option.field) for name, option in _OPTIONS.items()}


def settle(name: object, options: Mapping[str, object]) -> Behaviour:
    """Return the behaviour `name` with `options` checked and defaults filled in.

    An option of None counts as absent. Raises BehaviourError, naming every fault at once.
    """
    if not isinstance(name, str) or name not in MEANINGS:
        raise BehaviourError(f"behaviour: unknown {name!r}; one of: {', '.join(MEANINGS)}")
    faults = [
        f"{unknown}: no such option; one of: {', '.join(_OPTIONS)}" for unknown in options if unknown not in _OPTIONS
    ]
    settled: dict[str, Any] = {}
    for key, option in _OPTIONS.items():
        value = options.get(key)
        if value is None:
            settled[option.field] = _OWN_DEFAULTS.get(name, {}).get(key, option.default)
            continue
        try:
            settled[option.field] = _checked(key, option, value)
        except BehaviourError as fault:
            faults.append(str(fault))
    if faults:
        raise BehaviourError("; ".join(faults))
    return Behaviour(name=name, **settled)


def _checked(key: str, option: _Option, value: object) -> float:
    numeric = isinstance(value, int if option.whole else (int, float))
    if numeric and not isinstance(value, bool):
        assert isinstance(value, (int, float))
        if option.low <= value <= option.high:  # NaN fails both comparisons
            return value if option.whole else float(value)
    kind = "a whole number" if option.whole else "a number"
    raise BehaviourError(f"{key}: must be {kind} from {option.low:g} to {option.high:g}, not {value!r:.60}")
