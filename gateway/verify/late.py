"""What asks several models, loaded when somebody first wants that: it takes 2.5 MB and 90 ms that most never need.

`Late` owns the one `Verify` that is made, and the thread that looks at the sandbox before anybody asks. Two threads may
make one each at the same time: a single operation of a dict decides which is kept, and the other has started nothing.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Callable

from gateway.routing.router import Router
from gateway.settings import Settings
from gateway.threads import Threads

if TYPE_CHECKING:
    from gateway.verify.panel import Begin
    from gateway.verify.serving import Verify

NAMED_MAX = 8  # models, in what is told


class Late:
    """Gives the `Verify` of a gateway. Thread-safe."""

    begin: Begin
    """Asks for a part of a request; set before anything is served."""

    def __init__(self, settings: Settings, router: Router) -> None:
        self._settings = settings
        self._router = router
        self._made: dict[str, Verify] = {}
        self._lookers = Threads("sandbox-look", 1)
        self._closed = False

    def get(self) -> Verify:
        """The one, made now if need be."""
        if not self._made:
            from gateway.verify.serving import Verify

            self._made.setdefault("", Verify(self._settings, self._router, self.begin))
        return self._made[""]

    def look(self, tell: Callable[[str], None]) -> None:
        """Where there are models made of others, have the sandbox tried, and `tell` called with what people should know
        where nothing can run in it. Never blocks. What works is ready for the first program then."""
        if self._router.fleet.virtual:
            self._lookers.run(lambda: self._look(tell))

    def _look(self, tell: Callable[[str], None]) -> None:
        try:
            sandbox = self.get().sandbox
            if self._closed:  # perhaps before there was anything to close
                sandbox.close()
            if sandbox.level() is None and not self._closed:
                tell(self._never_verified(sandbox.describe()))
        except Exception:
            traceback.print_exc()

    def _never_verified(self, lines: Sequence[str]) -> str:
        names = [virtual.name for virtual in self._router.fleet.virtual]
        more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
        reasons = "; ".join(line.partition("sandbox: ")[2] for line in lines)
        return f"no program is run for {', '.join(names[:NAMED_MAX])}{more}, so no answer is verified: {reasons}"

    def close(self, timeout_s: float) -> None:
        """End what it has started, when no request is under way any more."""
        self._closed = True
        for verify in self._made.values():
            verify.close(timeout_s)
        self._lookers.close(timeout_s)
