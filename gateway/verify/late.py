"""What asks several models, loaded when somebody first wants that: it takes 2.5 MB and 90 ms that most never need.

`Late` owns the one `Verify` that is made. Two threads may make one each at the same time: a single operation of a dict
decides which is kept, and the other has started nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.routing.router import Router
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.verify.panel import Begin
    from gateway.verify.serving import Verify


class Late:
    """Gives the `Verify` of a gateway. Thread-safe."""

    begin: Begin
    """Asks for a part of a request; set before anything is served."""

    def __init__(self, settings: Settings, router: Router) -> None:
        self._settings = settings
        self._router = router
        self._made: dict[str, Verify] = {}

    def get(self) -> Verify:
        """The one, made now if need be."""
        if not self._made:
            from gateway.verify.serving import Verify

            self._made.setdefault("", Verify(self._settings, self._router, self.begin))
        return self._made[""]

    def close(self, timeout_s: float) -> None:
        """End what it has started, when no request is under way any more."""
        for verify in self._made.values():
            verify.close(timeout_s)
