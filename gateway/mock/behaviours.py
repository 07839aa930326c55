"""What a mock engine can be told to do: the names, their options, and the checks on both.

Nothing here has a lock, reads a socket or knows how a behaviour is carried out.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

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
    "error_mid_stream": "as drop_mid_stream, but with an error event of `status` (default 500)",
    "hang_mid_stream": "as drop_mid_stream, but stays silent until the caller leaves or the behaviour changes",
    "no_done": "streams finish, but without their last event: [DONE], message_stop, response.completed",
    "no_usage": "answers carry no usage, asked for or not",
    "plain_json": "answers stream requests with one plain JSON body",
    "error_first_event": "streams begin, and end, with an error event",
    "misfit": "answers that are to fit a schema do not, nor do the arguments of tools",
    "code_fence": "JSON that is to fit a schema is in a fence of Markdown",
    "trailing_comma": "JSON that is to fit a schema has a comma before its last bracket",
    "prose_before": "JSON that is to fit a schema comes after a sentence",
    "overloaded": "answers 529, with Retry-After when `retry_after` is given",
    "rate_limit": "answers 429, with Retry-After when `retry_after` is given",
    "unauthorized": "answers 401",
    "bad_request": "answers 400",
    "loading": "answers 503 on /health and to requests",
}


class BehaviourError(ValueError):
    """A behaviour or one of its options cannot be carried out; the text names which and why."""


class _Option(NamedTuple):
    low: float
    high: float
    whole: bool
    default: Optional[float]


OPTIONS: dict[str, _Option] = {
    "delay": _Option(0, 86_400, False, 0.0),
    "status": _Option(300, 599, True, 500),
    "ratio": _Option(0, 1, False, 0.5),
    "seed": _Option(0, 2**63, True, 0),
    "events": _Option(0, 1_000_000, True, None),
    "gap": _Option(0, 86_400, False, 0.0),
    "after": _Option(0, 1_000_000, True, None),
    "retry_after": _Option(0, 86_400, False, None),
    "seconds": _Option(0.001, 86_400, False, 5.0),
    "times": _Option(1, 1_000_000, True, None),
}
_OWN_DEFAULTS: dict[str, dict[str, float]] = {"slow": {"delay": 1.0}, "drip": {"gap": 0.01}}


class Behaviour:
    """One behaviour with all its options settled, and the dice that `flaky` throws.

    Options: `delay` in seconds before the answer's first byte, `gap` in seconds between events (bytes for drip),
    `events` the number of content events (None: one per word), `after` the number of content events before a stream is
    spoilt (None: the behaviour's own), `retry_after` the Retry-After of an error in seconds (None: no such header),
    `seconds` how long connections are refused, `times` the number of requests that get the behaviour before all others
    get `ok` (None: all get it).
    """

    def __init__(self, name: object, options: Mapping[str, object]) -> None:
        """An option of None counts as absent. Raises BehaviourError, naming every fault at once."""
        if not isinstance(name, str) or name not in MEANINGS:
            raise BehaviourError(f"behaviour: unknown {name!r}; one of: {', '.join(MEANINGS)}")
        faults = [f"{key}: no such option; one of: {', '.join(OPTIONS)}" for key in options if key not in OPTIONS]
        self.name = name
        self.options: dict[str, Any] = {}
        for key, (low, high, whole, default) in OPTIONS.items():
            value: Any = options.get(key)
            if value is None:
                self.options[key] = _OWN_DEFAULTS.get(name, {}).get(key, default)
            elif type(value) in ((int,) if whole else (int, float)) and low <= value <= high:
                self.options[key] = value if whole else float(value)  # NaN fails both comparisons
            else:
                kind = "a whole number" if whole else "a number"
                faults.append(f"{key}: must be {kind} from {low:g} to {high:g}, not {value!r:.60}")
        if faults:
            raise BehaviourError("; ".join(faults))
        self._dice = random.Random(self.options["seed"])
        self._given = options
        self._taken = itertools.count()

    def __getattr__(self, option: str) -> Any:
        return self.options[option]

    def fails(self) -> bool:
        """Return whether this request is one of the `ratio` that fails, in seeded order."""
        return self._dice.random() < float(self.options["ratio"])

    def take(self) -> Behaviour:
        """Return the behaviour for one more request: this, or `ok` with its options behind `times` requests."""
        if self.options["times"] is None or next(self._taken) < self.options["times"]:
            return self
        return Behaviour("ok", self._given)
