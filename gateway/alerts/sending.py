"""Sends alerts, however long the other side takes: nobody waits for it.

`Sender` owns the notices that wait, the latest of each alert, and the thread `alerts-send`. Its lock guards these and
the counts of results; nothing is sent under it. What cannot be delivered is tried again, after 1 s, 2 s and so on up to
a minute; a newer notice of the same alert takes the place of an older one, so no more than one of each ever waits, and
never more than `WAITING_MAX`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Callable, NamedTuple, Optional, Protocol
from urllib.parse import urlsplit

from gateway.alerts.messages import Notice, alertmanager_body, webhook_body
from gateway.alerts.rules import Labels
from gateway.clock import unix_s
from gateway.posting import Answer, Poster, in_words

ALERTMANAGER, WEBHOOK = "alertmanager", "webhook"
API_PATH = "/api/v2/alerts"
WAITING_MAX = 1000
AT_ONCE = 100
"""Alerts in one request."""
TIMEOUT_S = 10.0
RETRY_S, RETRY_MAX_S = 1.0, 60.0
AGAIN = (408, 429)
"""Statuses below 500 that say to try again."""
LATE_S = 3600.0
"""A resolved alert that could not be told of for so long is news to nobody."""
RESULTS = ("sent", "failed", "refused", "dropped", "expired")
"""Of notices: delivered; not delivered now, tried again; refused for good; no room for it; too late."""


class Target(NamedTuple):
    """Where alerts go. Only `shown` may be printed."""

    kind: str
    url: str
    shown: str


def target_of(url: str) -> Target:
    """A bare origin is an Alertmanager, and so is an address that ends in its API's path; any other is a webhook."""
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc}"
    if parts.query or "?" in url:
        return Target(WEBHOOK, url, shown)
    if parts.path in ("", "/"):
        return Target(ALERTMANAGER, url.rstrip("/") + API_PATH, shown)
    return Target(ALERTMANAGER if parts.path.endswith(API_PATH) else WEBHOOK, url, shown)


class Post(Protocol):
    """Sends bodies to one address (`Poster`)."""

    def post(self, body: bytes, timeout_s: float) -> Answer:
        """Within so many seconds in all. Raises OSError and http.client.HTTPException."""

    def cut(self) -> None:
        """End what is under way, and whatever comes; from any thread."""


Log = Callable[..., None]
"""Writes a line of the log: level, event, and fields by name."""


class Sender:
    """Delivers notices in the background. Thread-safe. `start` it, `close` it.

    `own_url` is where the gateway is found. `clock` gives Unix seconds, `monotonic` monotonic ones. `retry_s`: the
    first pause behind a failure.
    """

    def __init__(
        self,
        target: Target,
        own_url: str,
        log: Log,
        post: Optional[Post] = None,
        clock: Callable[[], float] = unix_s,
        monotonic: Callable[[], float] = time.monotonic,
        retry_s: float = RETRY_S,
    ) -> None:
        self.target = target
        self._retry_s = retry_s
        self._own_url = own_url
        self._log = log
        self._post = post or Poster(target.url, "", {}, packs=False)
        self._clock = clock
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._waiting: dict[Labels, Notice] = {}
        self._counts = dict.fromkeys(RESULTS, 0)
        self._closing_s: Optional[float] = None  # until when, monotonic
        self._failing = False
        self._thread: Optional[threading.Thread] = None

    @property
    def counts(self) -> Mapping[str, int]:
        """Notices so far, by what became of them."""
        with self._changed:
            return dict(self._counts)

    def offer(self, notices: Sequence[Notice]) -> None:
        """Have them sent; never blocks."""
        with self._changed:
            for notice in notices:
                if notice.labels in self._waiting or len(self._waiting) < WAITING_MAX:
                    self._waiting[notice.labels] = notice
                else:
                    self._counts["dropped"] += 1
            self._changed.notify()

    def start(self) -> None:
        """Start sending."""
        self._thread = threading.Thread(target=self._run, name="alerts-send", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Send what waits, once and within so many seconds, and end."""
        with self._changed:
            self._closing_s = self._monotonic() + timeout_s
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._post.cut()  # what hangs would only end at its own time

    def _run(self) -> None:
        pause_s = 0.0
        while True:
            with self._changed:
                if self._closing_s is None and (pause_s or not self._waiting):
                    # Behind a failure for a while, else until there is something. Woken at the end in either case.
                    self._changed.wait_for(self._woken(pause_s), pause_s or None)
                closing_s = self._closing_s
                batch = self._next_locked()
            if not batch:
                if closing_s is not None:
                    return
                pause_s = 0.0
                continue
            left_s = TIMEOUT_S if closing_s is None else min(TIMEOUT_S, closing_s - self._monotonic())
            delivered = left_s > 0 and self._deliver(batch, left_s)
            if closing_s is not None and not delivered:
                return
            pause_s = 0.0 if delivered else min(RETRY_MAX_S, max(self._retry_s, 2 * pause_s))

    def _woken(self, pause_s: float) -> Callable[[], bool]:
        if pause_s:
            return lambda: self._closing_s is not None
        return lambda: self._closing_s is not None or bool(self._waiting)

    def _next_locked(self) -> list[Notice]:
        """What goes in one request; it goes on waiting until it has arrived."""
        oldest = self._clock() - LATE_S
        for labels, notice in list(self._waiting.items()):
            if notice.ends_unix_s is not None and notice.ends_unix_s < oldest:
                del self._waiting[labels]
                self._counts["expired"] += 1
        notices = list(self._waiting.values())
        if notices and self.target.kind != ALERTMANAGER:
            notices = [notice for notice in notices if notice.name == notices[0].name]
        return notices[:AT_ONCE]

    def _deliver(self, batch: Sequence[Notice], timeout_s: float) -> bool:
        """Returns whether it is done with, be it that it was refused."""
        fault, again = "", True
        try:
            if self.target.kind == ALERTMANAGER:
                body = alertmanager_body(batch, self._clock(), self._own_url)
            else:
                body = webhook_body(batch, self._own_url)
            status = self._post.post(body, timeout_s).status
        except Exception as error:  # whatever it is: without this thread nobody would hear of an alert any more
            fault = in_words(error)
        else:
            if not 200 <= status < 300:
                fault, again = f"it answers {status}", status >= 500 or status in AGAIN
        self._tell(fault)
        if fault and again:
            self._put_last(batch)
            return False
        self._settle(batch, "refused" if fault else "sent")
        return True

    def _put_last(self, batch: Sequence[Notice]) -> None:
        """What could not be delivered waits behind everything else: it may be these alerts that are not taken."""
        with self._changed:
            self._counts["failed"] += len(batch)
            for notice in batch:
                latest = self._waiting.pop(notice.labels, None)
                if latest is not None:
                    self._waiting[notice.labels] = latest

    def _settle(self, batch: Sequence[Notice], result: str) -> None:
        with self._changed:
            self._counts[result] += len(batch)
            for notice in batch:
                if self._waiting.get(notice.labels) is notice:  # else a newer one has come meanwhile
                    del self._waiting[notice.labels]

    def _tell(self, error: str) -> None:
        """Log the first failure, and the first success behind it."""
        if error and not self._failing:
            self._log("warning", "alerts_not_sent", to=self.target.shown, error=error)
        elif self._failing and not error:
            self._log("info", "alerts_sent_again", to=self.target.shown)
        self._failing = bool(error)
