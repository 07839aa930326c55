"""Bodies to a collector, and another try as OTLP wants it.

A `Delivery` tries again with what is told to be tried again, and logs once that a collector fails, and once that it is
back. It belongs to the one thread that sends, but for `end`. https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Mapping
from typing import Any, Callable, Optional

from gateway.posting import Poster, in_words

TIMEOUT_S = 10.0  # of a POST, with everything, but the look-up of a name
TRIES = 5  # of a body
FIRST_PAUSE_S = 1.0  # doubled with each try
PAUSE_MAX_S = 300.0  # whatever Retry-After says
AGAIN = frozenset({429, 502, 503, 504})
"""What is to be tried again, by OTLP; everything else is not."""
TELL_S = 60.0  # between two lines that say that it fails

Log = Callable[..., None]


class Delivery:
    """Sends bodies until they are taken, or given up. `what` is sent, `stopping` is set when the gateway ends."""

    def __init__(
        self,
        collector: Poster,
        what: str,
        log: Log,
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._collector = collector
        self._what = what
        self._log = log
        self._stopping = stopping
        self._clock = clock
        self._failing = False  # and told so
        self._crashed = False  # likewise
        self._told_at_s = -TELL_S
        self.end_s: Optional[float] = None
        """When everything must have been sent (monotonic); None: the gateway does not end yet. Set before
        `stopping`."""

    def export(self, make: Callable[[], bytes], rejected: str) -> Optional[int]:
        """Have what `make` makes taken; how many of it were not all the same, by their name in a partial success.

        None: it was given up, or could not be made, which is logged once.
        """
        try:
            said = self.send(make())
        except Exception as error:  # nobody had foreseen that, or a callback of a metric raises: the next may do better
            if not self._crashed:
                self._crashed = True
                self._log("error", "otlp", message=f"{self._what} cannot be sent: {type(error).__name__}: {error}")
            return None
        if said is None:
            return None
        count, why = rejected_in(said, rejected)
        if count or why:
            self._tell_rejected(count, why)
        return count

    def end(self, thread: threading.Thread, timeout_s: float, wake: Callable[[], None] = lambda: None) -> None:
        """Have the thread that sends end, with what is left, within so many seconds; `wake` it, should it sleep."""
        if thread.ident is None:
            return
        self.end_s = self._clock() + timeout_s
        self._stopping.set()
        wake()
        thread.join(timeout_s)
        if thread.is_alive():
            self._collector.cut()
            thread.join(0.1)

    def send(self, body: bytes) -> Optional[dict[str, Any]]:
        """Have a body taken, at last; what was said to it, None: it was given up."""
        pause_s = FIRST_PAUSE_S
        for number in range(1, TRIES + 1):
            fault, again, asked_s = "", True, None
            try:
                answer = self._collector.post(body, self._time_s())
            except (OSError, http.client.HTTPException) as error:
                fault = in_words(error)
            else:
                if 200 <= answer.status < 300:
                    self._is_back()
                    return _said(answer.body)
                fault, again, asked_s = f"it answers {answer.status}", answer.status in AGAIN, answer.retry_after_s
            if number > 1 or not again:
                self._tell(fault)
            if not again or number == TRIES:
                return None
            wait_s = pause_s * random.uniform(0.8, 1.2) if asked_s is None else asked_s
            pause_s *= 2
            if self._stopping.wait(min(wait_s, PAUSE_MAX_S)):
                self._tell(fault)
                return None
        return None

    def _time_s(self) -> float:
        end_s = self.end_s
        return TIMEOUT_S if end_s is None else max(0.01, min(TIMEOUT_S, end_s - self._clock()))

    def _tell(self, fault: str) -> None:
        now_s = self._clock()
        if not self._failing and now_s - self._told_at_s >= TELL_S:
            self._failing, self._told_at_s = True, now_s
            message = f"{self._collector.shown} takes no {self._what}: {fault}; they are dropped until it does"
            self._log("warning", "otlp", message=message)

    def _tell_rejected(self, count: int, why: str) -> None:
        """Log, once in a while, that a part of a body was not taken."""
        now_s = self._clock()
        if now_s - self._told_at_s >= TELL_S:
            self._told_at_s = now_s
            message = f"{self._collector.shown} has rejected {count} {self._what}: {why[:500]}"
            self._log("warning", "otlp", message=message)

    def _is_back(self) -> None:
        if self._failing:
            self._failing = False
            self._log("info", "otlp", message=f"{self._collector.shown} takes {self._what} again")


def _said(body: bytes) -> dict[str, Any]:
    """The answer to a body that was taken; whatever else it is, it was."""
    try:
        said = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def rejected_in(said: Mapping[str, Any], field: str) -> tuple[int, str]:
    """How many were not taken (by their name in a partial success), and why."""
    partial = said.get("partialSuccess")
    if not isinstance(partial, dict):
        return 0, ""
    count, why = partial.get(field), partial.get("errorMessage")
    try:
        number = int(count) if isinstance(count, (str, int)) and len(str(count)) < 10 else 0
    except ValueError:
        number = 0
    return max(0, number), why if isinstance(why, str) else ""
