"""A table that forgets: two generations of a dict, so that forgetting costs nothing per look and needs no scan.

Owns the two dicts. It has no lock and reads no clock: its owner guards it and brings the time.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Callable, Generic, Optional, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class RecentlyUsed(Generic[K, V]):
    """Remembers what was used within `lifetime_s`, and of that at least the `capacity / 2` used last. Not thread-safe.

    When the young generation is `lifetime_s` old or half the capacity large it becomes the old one, and what was in
    the old one and not used since is gone, but for what `keep(value, now_s)` asks for (None: nothing). Holds at most
    `capacity` entries and what is kept. Values are never None.
    """

    __slots__ = ("_full", "_half", "_keep", "_lifetime_s", "_old", "_rotate_at_s", "_young")

    def __init__(self, lifetime_s: float, capacity: int, keep: Optional[Callable[[V, float], bool]] = None) -> None:
        self._lifetime_s = lifetime_s
        self._half = self._full = max(capacity // 2, 1)
        self._keep = keep
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._rotate_at_s = -float("inf")

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._young) + sum(1 for key in self._old if key not in self._young)

    def get(self, key: K, now_s: float) -> Optional[V]:
        """The value of `key`, which counts as used now; None when it is unknown or forgotten."""
        if now_s >= self._rotate_at_s:
            self._rotate(now_s)
        value = self._young.get(key)
        if value is None and self._old:
            value = self._old.pop(key, None)
            if value is not None:
                self.put(key, value, now_s)
        return value

    def put(self, key: K, value: V, now_s: float) -> None:
        """Remember `value`, used now."""
        if len(self._young) >= self._full and key not in self._young:
            self._rotate(now_s)
        self._young[key] = value

    def _rotate(self, now_s: float) -> None:
        forgotten, self._old, self._young = self._old, self._young, {}
        self._rotate_at_s = now_s + self._lifetime_s
        if self._keep is not None:
            self._young = {key: value for key, value in forgotten.items() if self._keep(value, now_s)}
            self._full = max(
                self._half, 2 * len(self._young)
            )  # else much to keep would mean to look at it for each put
