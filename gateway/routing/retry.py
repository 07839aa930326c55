"""What an attempt's outcome means: is the engine to blame, is another try allowed, how long does it rest?

One pure function over one table. Owns no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Optional

REST_DEFAULT_S = 1.0  # a 429 without Retry-After
REST_MAX_S = 3600.0
MISCONFIGURED_S = 60.0
OVERLOADED = 529  # an engine's own word, in Anthropic's dialect and others
RATE_LIMITED = "the engine is rate limited"  # where it says no more than that


BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 2.0


def backoff_ceiling_s(tries_before: int) -> float:
    """The longest pause before the same engine is asked again: 0.1, 0.2, 0.4 ... at most 2 seconds.

    The pause itself is a random share of it ("full jitter": M. Brooker, Exponential Backoff And Jitter, 2015).
    """
    return float(min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (tries_before - 1)))


class Outcome(NamedTuple):
    """How one attempt ended. `kind` is one of telemetry's OUTCOMES; `retry_after_s` as the engine sent it, or None;
    `details`: the engine's own `code`, `type` and `param`, where it has answered with an error; None: it has not."""

    kind: str
    message: str = ""
    status: Optional[int] = None
    retry_after_s: Optional[float] = None
    details: Optional[Mapping[str, object]] = None


OK = Outcome("ok")
CANCELLED = Outcome("cancelled")
CRASHED = Outcome("error", "the gateway could not make anything of the engine's answer")
"""By an exception that nobody had foreseen; its text is for the log only."""


class Verdict(NamedTuple):
    """`blame`: what the engine gets: `none`, `good`, `failure`, `down`, `rest`, `misconfigured`. `retry`: ask
    another?"""

    blame: str
    retry: bool


_VERDICTS: dict[str, Verdict] = {
    "ok": Verdict("good", False),
    "refused": Verdict("down", True),
    "connect_timeout": Verdict("failure", True),
    "reset": Verdict("failure", True),
    "timeout": Verdict("failure", True),
    # The timeout that it would have become: the engine is out already, but one that only answers its probes between two
    # such failures is to be left alone for longer, and is not taken for one that answers well until it dies.
    "hung": Verdict("failure", True),
    "error": Verdict("failure", True),
    "invalid": Verdict("failure", True),
    "truncated": Verdict("failure", True),
    # It answers, in a way of its own: no open breaker mends that, and its haste is no merit. Another one may do better.
    "unasked_stream": Verdict("none", True),
    # It was started without what this request takes, such as embeddings: it may be well in all else.
    "not_implemented": Verdict("none", True),
    "moved": Verdict("none", True),  # away from where the request may go: nothing has been sent
    "rate_limited": Verdict("rest", True),
    "unauthorized": Verdict("misconfigured", True),
    "rejected": Verdict("good", False),  # the caller's fault, and proof that the engine is alive
    "cancelled": Verdict("none", False),
}


def judge(outcome: Outcome) -> Verdict:
    """The verdict on an outcome. Pure: the same outcome always gets the same verdict."""
    return _VERDICTS[outcome.kind]


def rest_s(outcome: Outcome) -> float:
    """Seconds an engine rests after a 429, or a client is to wait after a 529: its Retry-After, within reason, else one
    second."""
    if outcome.retry_after_s is None:
        return REST_DEFAULT_S
    return min(max(outcome.retry_after_s, 0.0), REST_MAX_S)
