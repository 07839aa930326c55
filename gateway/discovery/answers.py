"""What every way of discovering has in common: how one is asked, what it answers, and how it fails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Optional, Protocol

from gateway.routing.checks import parse_address
from gateway.routing.found import Found

ASK_S = 15.0  # that one look may take, but for what is to wait for a change


class DiscoveryError(Exception):
    """A source could not be asked, or has said what is no answer; the text says why, and holds no secret."""


class Cancelled(DiscoveryError):
    """Nobody wants the answer any more."""


class Answer(NamedTuple):
    """What a source says there is. `again_s`: ask again after so many seconds; None: after the interval. `doubtful`: an
    empty answer may be the source's own trouble. `strict`: what cannot be an engine makes it no answer at all."""

    found: Sequence[Found]
    again_s: Optional[float] = None
    doubtful: bool = False
    strict: bool = False


class Asker(Protocol):
    """Asks one source. `ask` is for one thread, `cancel` for any."""

    def ask(self) -> Answer:
        """Ask once; blocks, for a bounded time. Raises DiscoveryError; Cancelled soon after `cancel`."""

    def cancel(self) -> None:
        """End what is asked now, and ask nothing more. Does not block."""


def in_order(found: Iterable[Found]) -> list[Found]:
    """By address, IPv4 first, and names behind them; whatever order a source has them in, an engine keeps its place."""

    def key(one: Found) -> tuple[int, int, str, int]:
        address = parse_address(one.host)
        return (address.version, int(address), "", one.port) if address else (9, 0, one.host, one.port)

    return sorted(found, key=key)
