"""What one request may take, has taken and has to pay: its limits, its caller's slot, its cost.

An `Account` belongs to one request and is settled once, before the last write where the usage is known by then: the
client's next request finds it done. It holds no lock: a request belongs to one thread at a time. Raises nothing: each
step is taken whatever becomes of the others.
"""

from __future__ import annotations

from typing import Callable, Optional

from gateway.inference import Call
from gateway.policy.auth import Identity
from gateway.policy.guard import Guard
from gateway.policy.limits import Admission


class Account:
    """The money and the limits of one request. `on_error` is told of what nobody had foreseen, and of which request."""

    __slots__ = ("_admission", "_guard", "_on_error", "_request_id", "cost_usd", "limit_headers", "settled")

    def __init__(self, guard: Guard, on_error: Callable[[Exception, str], object], request_id: str) -> None:
        self._guard = guard
        self._on_error = on_error
        self._request_id = request_id
        self._admission: Optional[Admission] = None
        self.limit_headers = b""  # lines that tell what is left to the caller
        self.cost_usd: Optional[float] = None
        self.settled = False

    def open(self, admission: Admission) -> None:
        """The request has been admitted."""
        self._admission = admission
        self.limit_headers = admission.header_lines()

    @property
    def admitted(self) -> bool:
        """Whether the request has been admitted."""
        return self._admission is not None

    def release(self) -> None:
        """Give the caller's slot back."""
        admission = self._admission
        if admission is not None:
            try:
                admission.release_concurrency()
            except Exception as error:
                self._report(error)

    def settle(self, call: Call, identity: Optional[Identity]) -> None:
        """Charge for the tokens that the call has used, and give back what was reserved beyond them; once."""
        if self.settled:
            return
        self.settled = True
        usage, admission = call.usage, self._admission
        tokens = 0
        try:  # before what was reserved for it is given back
            if usage is not None:
                tokens = usage.prompt_tokens + usage.completion_tokens
                self.cost_usd = self._guard.cost(call.served_model, usage.prompt_tokens, usage.completion_tokens)
                if self.cost_usd:
                    self._guard.spend(identity, self.cost_usd)
        except Exception as error:  # the client gets its answer all the same
            self._report(error)
        if admission is not None:
            self.release()
            try:
                admission.settle(tokens)
            except Exception as error:
                self._report(error)

    def _report(self, error: Exception) -> None:
        try:
            self._on_error(error, self._request_id)
        except Exception:
            pass  # then there is no log either
