"""All models whose engines are discovered, each with a watch.

`Discoveries` owns the watches. `_lock` guards which there are; it is never held while one is started, ended or asked.
Which they are is changed by one thread at a time (a reload); anybody may look.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Callable

from gateway.discovery.answers import Asker
from gateway.discovery.consul import ConsulAsker
from gateway.discovery.dns import DnsAsker, SrvAsker
from gateway.discovery.files import FileAsker
from gateway.discovery.kubernetes import KubernetesAsker
from gateway.discovery.watch import Change, State, Take, Watch
from gateway.routing.found import discovered, refuse_template
from gateway.routing.sources import (
    ConsulSource,
    DiscoverSpec,
    DnsSource,
    FileSource,
    KubernetesSource,
    SrvSource,
)
from gateway.routing.specs import FleetSpec

FIRST_S = 10.0  # for which a start waits for first answers, and then begins without
CLOSE_S = 2.0  # for all watches to end; each is a daemon with bounded waits


class Discoveries:
    """Finds the engines of a fleet's models, from `start` on. Thread-safe. `take` takes them over, `on_change` hears
    what is new, both on the watches' threads; `secrets` gives tokens by their variables' names."""

    def __init__(
        self,
        fleet: FleetSpec,
        take: Take,
        on_change: Callable[[Change], None],
        secrets: Callable[[], Mapping[str, str]],
    ) -> None:
        self._take = take
        self._on_change = on_change
        self._secrets = secrets
        self._lock = threading.Lock()
        self._watches = {name: self._new(name, discover) for name, discover in discovered(fleet)}
        self._first_until_s = time.monotonic() + FIRST_S
        self._closed = False

    def start(self) -> None:
        """Begin to look."""
        for watch in self._now():
            watch.start()

    def follow(self, fleet: FleetSpec) -> None:
        """Watch for the models of this fleet from now on: new ones begin, those that are as before go on, all others
        end. One thread at a time."""
        wanted = dict(discovered(fleet))
        begun: list[Watch] = []
        with self._lock:
            before = self._watches
            if self._closed:
                return
            kept = {name: w for name, w in before.items() if wanted.get(name) == w.discover}
            for name, discover in wanted.items():
                if name not in kept:
                    begun.append(self._new(name, discover))
            self._watches = {**kept, **{watch.model: watch for watch in begun}}
        for watch in before.values():
            if watch.model not in kept:
                watch.cancel()
        for watch in begun:
            watch.start()

    def _new(self, name: str, discover: DiscoverSpec) -> Watch:
        return Watch(name, discover, asker_of(discover, self._secrets), self._take, self._on_change)

    def pending(self) -> bool:
        """Whether a first answer is still waited for. Never blocks."""
        return time.monotonic() < self._first_until_s and any(not watch.first.is_set() for watch in self._now())

    def states(self) -> list[State]:
        """What is known of each source now."""
        return [watch.look() for watch in self._now()]

    def _now(self) -> list[Watch]:
        with self._lock:
            return list(self._watches.values())

    def close(self) -> None:
        """End all watches; waits CLOSE_S at most: a look-up that hangs is left."""
        with self._lock:
            self._closed = True
            watches = list(self._watches.values())
        for watch in watches:
            watch.cancel()
        deadline_s = time.monotonic() + CLOSE_S
        for watch in watches:
            watch.join(max(0.0, deadline_s - time.monotonic()))


def asker_of(discover: DiscoverSpec, secrets: Callable[[], Mapping[str, str]]) -> Asker:
    """Who asks a source."""
    source = discover.source
    if isinstance(source, DnsSource):
        return DnsAsker(source)
    if isinstance(source, SrvSource):
        return SrvAsker(source)
    if isinstance(source, KubernetesSource):
        return KubernetesAsker(source)
    if isinstance(source, ConsulSource):
        return ConsulAsker(source, discover.interval_s, secrets)
    assert isinstance(source, FileSource)
    return FileAsker(source)


def refuse_templates(fleet: FleetSpec) -> None:
    """Raise ValueError naming the models whose template makes no engine."""
    for name, discover in discovered(fleet):
        try:
            refuse_template(discover)
        except ValueError as error:
            raise ValueError(f"discover of {name}: {error}") from None
