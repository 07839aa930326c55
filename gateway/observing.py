"""What listens to finished requests beside the metrics and the log: built from the settings, started and ended at once.

Owns its parts and nothing else; each has a thread of its own for whatever takes long, and none is waited for by a
request: `observe` is called on telemetry's thread with each batch, and hands over.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Callable, Optional, Protocol

from gateway.settings import Settings
from gateway.telemetry.events import RequestEvent
from gateway.telemetry.registry import Registry
from gateway.traces.building import exporters_of
from gateway.traces.spans import Find


class Part(Protocol):
    """Something that listens. `observe` must not block."""

    def observe(self, events: Sequence[RequestEvent], /) -> None: ...

    def start(self) -> None: ...

    def close(self, timeout_s: float, /) -> None:
        """Send or write what is left, within so many seconds, and end. After the last `observe`."""


class Observing:
    """All parts that the settings ask for. `start` and `close` belong to one thread.

    `log` writes a line of the gateway's own log, `find_engine` tells where an engine is. `live`: the console's; None:
    it is off.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        log: Callable[..., None],
        find_engine: Find,
        live: Optional[Part],
    ) -> None:
        console = () if live is None else (live,)
        self._parts: tuple[Part, ...] = (*exporters_of(settings, registry, log, find_engine), *console)

    @property
    def observers(self) -> tuple[Part, ...]:
        """Those that are called with finished requests."""
        return self._parts

    def start(self) -> None:
        """Start the threads of all parts."""
        for part in self._parts:
            part.start()

    def close(self, timeout_s: float) -> None:
        """End all parts, within so many seconds together."""
        deadline_s = time.monotonic() + timeout_s
        for part in self._parts:
            part.close(max(0.0, deadline_s - time.monotonic()))
