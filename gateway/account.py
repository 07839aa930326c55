"""What one request has taken and has to pay: its limits, its caller's slot, its cost.

An `Account` belongs to one request from its admission on, and is settled once, before the last write where the usage is
known by then: the client's next request finds it done. It holds no lock: a request belongs to one thread at a time.
Raises nothing: each step is taken whatever becomes of the others.
"""

from __future__ import annotations

from typing import Callable, Optional

from gateway.guard import Guard
from gateway.inference import Call
from gateway.keys.auth import Identity
from gateway.limits.limiter import Admission


class Account:
    """The money and the limits of one request. `on_error` is told of what nobody had foreseen, and of which request."""

    __slots__ = ("_admission", "_guard", "_on_error", "_request_id", "cost_usd", "settled")

    def __init__(
        self, guard: Guard, admission: Admission, on_error: Callable[[Exception, str], object], request_id: str
    ) -> None:
        self._guard = guard
        self._admission = admission
        self._on_error = on_error
        self._request_id = request_id
        self.cost_usd: Optional[float] = None
        self.settled = False

    def cost_of(self, call: Call) -> Optional[float]:
        """What the tokens that a call has used cost in USD, each ask's at its own model's price; None where none of the
        models has a price."""
        usage, cost = call.usage, self._guard.cost
        if not call.asks:
            return None if usage is None else cost(call.served_model, usage.prompt_tokens, usage.completion_tokens)
        costs = [cost(model, took.prompt_tokens, took.completion_tokens) for model, took in call.asks]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if known else None

    def settle(self, call: Call, identity: Optional[Identity]) -> None:
        """Charge for the tokens that the call has used, and give back what was reserved beyond them, and the caller's
        slot; once."""
        if self.settled:
            return
        self.settled = True
        usage, admission = call.usage, self._admission
        tokens = 0
        try:  # before what was reserved for it is given back
            if usage is not None:
                tokens = usage.prompt_tokens + usage.completion_tokens
                if self._guard.prices:
                    self.cost_usd = self.cost_of(call)
                    if self.cost_usd:
                        self._guard.spend(identity, self.cost_usd)
        except Exception as error:  # the client gets its answer all the same
            self._report(error)
        if admission.holds:
            for give_back in (admission.release_concurrency, lambda: admission.settle(tokens)):
                try:
                    give_back()
                except Exception as error:
                    self._report(error)

    def leave(self) -> None:
        """The caller has left, though its request goes on for others: its slot is free."""
        try:
            self._admission.release_concurrency()
        except Exception as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        try:
            self._on_error(error, self._request_id)
        except Exception:
            pass  # then there is no log either
