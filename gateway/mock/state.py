"""What is in force at one mock engine, and what it has seen: behaviour, gate and bell; counts and the last requests.

The condition `changed` guards them all and is notified of every number. Nothing is called and no client's socket
touched while it is held.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, Optional

from gateway.mock.behaviours import Behaviour

_KEPT_REQUESTS = 64
_KEPT_BODY_BYTES = 1 << 20
_KEPT_REQUEST_IDS = 100_000
_KEPT_CONVERSATIONS = 64
_COUNTS = "requests in_flight cancelled probes connections connections_total request_ids duplicates"


class _Bell:
    """Wakes, once, all `users`, who wait for `ear` to be readable, when `rope` is closed."""

    def __init__(self) -> None:
        self.ear, self.rope = socket.socketpair()
        self.users = 0


class Gate:
    """Stops streams after `after` content events until released. Thread safe; leaving it as a context releases."""

    def __init__(self, after: int, state: State) -> None:
        self.after = after
        self.released = False
        self._state = state
        self._held = 0

    def release(self) -> None:
        """Let the streams that wait here go on, and all later ones pass."""
        self.released = True
        self._state.ring()

    def note_held(self) -> None:
        """Count a stream that has sent `after` content events and now waits here."""
        with self._state.changed:
            self._held += 1
            self._state.changed.notify_all()

    def wait_for_held(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` streams in all have come to this gate; False after `timeout_s`."""
        with self._state.changed:
            return self._state.changed.wait_for(lambda: self._held >= count, timeout_s)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class Conversations:
    """The last conversations that a later request may refer to, by the identifier of their last answer. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items_by_id: OrderedDict[str, list[Any]] = OrderedDict()

    def keep(self, identifier: str, items: list[Any]) -> None:
        """Keep a conversation, and forget the oldest of too many."""
        with self._lock:
            self._items_by_id[identifier] = items
            if len(self._items_by_id) > _KEPT_CONVERSATIONS:
                self._items_by_id.popitem(last=False)

    def find(self, identifier: object) -> Optional[list[Any]]:
        """Return the items of a conversation, None when it is not known, or no longer."""
        with self._lock:
            return self._items_by_id.get(str(identifier))


class State:
    """What the connections of one engine share. All methods are thread safe."""

    def __init__(self, model: str, port: int, behaviour: Behaviour) -> None:
        self.model = model
        self.port = port
        self.behaviour = behaviour
        self.gate: Optional[Gate] = None
        self.conversations = Conversations()
        self.api_key = ""  # "": no key is asked for
        self.lacks: frozenset[str] = frozenset()  # the paths of endpoints that are answered with `lacks_status`
        self.lacks_status = 404
        self.changed = threading.Condition()
        self._bell: Optional[_Bell] = None
        self._counts = dict.fromkeys(_COUNTS.split(), 0)
        self._requests: deque[dict[str, Any]] = deque(maxlen=_KEPT_REQUESTS)
        self._seen_ids: OrderedDict[str, None] = OrderedDict()

    def change(self, behaviour: Behaviour, spared: Optional[socket.socket]) -> None:
        """Put `behaviour` in force; `spared` is the connection that asked, closed by its own thread."""
        raise NotImplementedError

    @contextlib.contextmanager
    def bell(self) -> Iterator[socket.socket]:
        """A context with a socket that the next `ring` makes readable: enter it, look for what you want, then wait."""
        with self.changed:
            bell = self._bell = self._bell or _Bell()
            bell.users += 1
        try:
            yield bell.ear
        finally:
            with self.changed:
                bell.users -= 1
                if not bell.users:
                    bell.ear.close()
                    bell.rope.close()
                    self._bell = None if self._bell is bell else self._bell

    def ring(self) -> None:
        """Make all connections that wait look again at what they wait for."""
        with self.changed:
            if self._bell is not None:
                self._bell.rope.close()
            self._bell = None

    def hold_after(self, events: int) -> Gate:
        """Stop streams that arrive from now on after `events` content events, until released.

        For chat, 0 means after the role event. A gate set before is released.
        """
        gate = Gate(events, self)
        with self.changed:
            previous, self.gate = self.gate, gate
        if previous is not None:
            previous.release()
        return gate

    def arrived(self, path: str, headers: dict[str, str], body: object, body_bytes: int) -> int:
        """Note an inference request and return its running number, from 1."""
        kept = body if body_bytes <= _KEPT_BODY_BYTES else None
        request_id = headers.get("x-request-id")
        with self.changed:
            self._requests.append({"path": path, "headers": headers, "body": kept, "body_bytes": body_bytes})
            self._counts["requests"] += 1
            self._counts["in_flight"] += 1
            if request_id is not None:
                self._counts["duplicates" if request_id in self._seen_ids else "request_ids"] += 1
                self._seen_ids.setdefault(request_id)
                if len(self._seen_ids) > _KEPT_REQUEST_IDS:
                    self._seen_ids.popitem(last=False)
            self.changed.notify_all()
            return self._counts["requests"]

    def count(self, **steps: int) -> None:
        """Add to the counts that are named, all at one moment."""
        with self.changed:
            for name, step in steps.items():
                self._counts[name] += step
            self.changed.notify_all()

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The last 64 inference requests, oldest first: dicts with `path`, `headers` (names in lower case), `body`
        (parsed; None if not JSON or above 1 MiB) and `body_bytes`."""
        with self.changed:
            return list(self._requests)

    def stats(self) -> dict[str, Any]:
        """Return the behaviour's name and options, and all counts as of one moment.

        `requests`, `in_flight` and `cancelled` count inference requests; `probes` counts GETs of /health and
        /v1/models; `connections` are open now; `request_ids` counts distinct X-Request-ID headers and `duplicates`
        requests that brought one seen before.
        """
        behaviour = self.behaviour
        named = {"behaviour": behaviour.name, "options": behaviour.options, "model": self.model, "port": self.port}
        with self.changed:
            return {**named, **self._counts}

    def wait_for_requests(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` inference requests have arrived in all; False after `timeout_s`."""
        return self._wait(lambda: self._counts["requests"] >= count, timeout_s)

    def wait_for_cancelled(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` callers have left before their answer; False after `timeout_s`."""
        return self._wait(lambda: self._counts["cancelled"] >= count, timeout_s)

    def wait_for_idle(self, timeout_s: float) -> bool:
        """Wait until no inference request is in flight; False after `timeout_s`."""
        return self._wait(lambda: self._counts["in_flight"] == 0, timeout_s)

    def _wait(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        with self.changed:
            return self.changed.wait_for(reached, timeout_s)
