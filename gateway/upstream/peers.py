"""Other processes of the same gateway, as those who find something out about engines see them.

No state, no lock. `Peers` is what it is where there are none: this process does everything itself, and tells nobody.
"""

from __future__ import annotations

from typing import Optional

from gateway.routing.engine import Engine
from gateway.routing.standing import StateChange


class Peers:
    """Who else serves these engines. All of it is thread-safe, and all but `joined` returns at once."""

    shares = False
    """Whether there are others. Then what one finds out is told to them."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that probes engines and asks them for their models."""
        return True

    def probed(self, engine: Engine, error: Optional[str]) -> None:
        """A probe has passed (`error` None) or failed."""

    def joined(self) -> None:
        """There are engines here that nothing is known of, perhaps: take over what the others know. May wait a second;
        for the thread that has found them."""

    def listed(self, engine: Engine) -> None:
        """An engine has been asked for its models, and has listed some at least once."""

    def changed(self, change: StateChange) -> None:
        """A request has changed an engine's state."""
