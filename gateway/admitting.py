"""What a request needs of every limit and of its key's budget, taken before anything is sent: by this gateway alone, or
with others by Redis. Else the error that says why not.

Owns nothing, and holds no lock. What is taken is the request's account's, which gives it back.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Callable, Optional, Protocol

from gateway.account import Account
from gateway.asked import Asked
from gateway.clock import unix_s
from gateway.errors import GatewayError, RequestRefused
from gateway.guard import Guard
from gateway.inference import Call, InferenceFactory
from gateway.keys.auth import Identity
from gateway.limits.addresses import address_group
from gateway.limits.budgets import Reservation
from gateway.limits.limiter import Admission, Refusal, WrappedAdmission
from gateway.limits.prices import TokensAtMost
from gateway.shared.budgets import SPENT
from gateway.shared.state import SharedState
from gateway.steps import Steps
from gateway.upstream.estimates import tokens_of
from gateway.upstream.fields import BY_PATH

TAKEN_WAIT_S = 1.0  # until what is in flight elsewhere may have ended
NO_TOKENS = TokensAtMost(0, 0)  # of what no engine is asked for


class Admitting:
    """Lets calls pass within the limits of `guard`. Thread-safe. `on_error`: as of an `Account`."""

    def __init__(
        self, guard: Guard, factory: InferenceFactory, on_error: Callable[[BaseException, str], GatewayError]
    ) -> None:
        self._guard = guard
        self._factory = factory
        self._on_error = on_error

    def admit(self, asked: Asked, call: Call, identity: Identity, asks: bool) -> None:
        """Take what the call needs of every limit. Raises GatewayError, also for an unknown model. `asks`: engines."""
        model = self._route(asked, call, identity)
        address = asked.client_address
        admission = admission_of(
            self._guard, identity, model, address, lambda: tokens_at_most(call) if asks else NO_TOKENS
        )
        self._open_account(asked, admission)

    def admit_shared(
        self, shared: SharedState, asked: Asked, call: Call, identity: Identity, asks: bool
    ) -> Steps[None]:
        """The same by what all gateways together have let pass. Raises `limits_unavailable`, too.

        What no limit applies to does not wait.
        """
        model = self._route(asked, call, identity)

        def estimate() -> TokensAtMost:
            return tokens_at_most(call) if asks else NO_TOKENS

        reservations: list[Releasable] = []
        try:
            if identity.budget_usd is not None and identity.name is not None:
                yield from self._reserve(shared, identity, identity.name, model, estimate(), reservations)
            subject = self._guard.subject(identity, model, asked.client_address, estimate)
            admission = self._guard.limiter.unlimited
            if subject is not None:
                decided = yield from shared.limits.admit(subject)
                if isinstance(decided, Refusal):
                    raise too_many(decided, subject.tokens_estimate)
                admission = decided
        except BaseException:
            for reservation in reservations:
                reservation.release()
            raise
        for reservation in reservations:
            admission = BudgetedAdmission(admission, reservation)
        self._open_account(asked, admission)

    def _reserve(
        self,
        shared: SharedState,
        identity: Identity,
        name: str,
        model: str,
        tokens: TokensAtMost,
        reservations: list[Releasable],
    ) -> Steps[None]:
        """Keep back what the request may cost, here and in Redis; what is to be released is added to `reservations`.

        Raises `budget_exceeded`.
        """
        own = reserve_budget(self._guard, identity, name, model, tokens)
        if own is None or identity.budget_usd is None:
            return
        reservations.append(own)
        reserved = yield from shared.budgets.reserve(name, identity.budget_usd, own.cost_usd, unix_s())
        if reserved == SPENT:
            raise budget_spent(self._guard, identity, name)
        if isinstance(reserved, str):
            raise budget_taken(self._guard, identity, name, TAKEN_WAIT_S)
        reservations.append(reserved)

    def _route(self, asked: Asked, call: Call, identity: Identity) -> str:
        """The model that is asked, which the caller may use. Raises GatewayError."""
        call.trace = asked.trace
        address, router = asked.client_address, self._factory.router
        pool = router.route(call.model, may_use=call.may_use)[0]
        model = asked.model = pool.name
        if pool.spec.params is not None:  # before anything goes by what is asked for
            call.adapt(pool.spec.params)
        call.caller = identity.name or str(address_group(address))
        if asked.restricted:
            named = call.model or model
            # Where one engine serves every name, the name asked for is the model.
            if not identity.may_use(*((named,) if router.fleet.by_engines else router.names_of(model))):
                raise forbidden(named)
        return model

    def _open_account(self, asked: Asked, admission: Admission) -> None:
        asked.limit_headers = admission.header_lines
        asked.account = Account(self._guard, admission, self._on_error, asked.request_id)


def admission_of(
    guard: Guard, identity: Identity, model: str, address: str, estimate: Callable[[], TokensAtMost]
) -> Admission:
    """Take what a request needs of every limit. Raises 429, or 400 for what could never pass.

    `estimate` says how many tokens the request may take; called only where a limit of tokens or a budget applies.
    """
    name = identity.name
    if identity.budget_usd is not None and name is not None:
        return _within_budget(guard, identity, name, model, address, estimate())
    subject = guard.subject(identity, model, address, estimate)
    if subject is None:
        return guard.limiter.unlimited  # the usual case: 1 us less
    admission = guard.limiter.admit(subject, guard.clock())
    if isinstance(admission, Refusal):
        raise too_many(admission, subject.tokens_estimate)
    return admission


def _within_budget(
    guard: Guard, identity: Identity, name: str, model: str, address: str, tokens: TokensAtMost
) -> Admission:
    reservation = reserve_budget(guard, identity, name, model, tokens)
    try:
        admission = admission_of(guard, identity._replace(budget_usd=None), model, address, lambda: tokens)
    except GatewayError:
        if reservation is not None:
            reservation.release()
        raise
    return admission if reservation is None else BudgetedAdmission(admission, reservation)


class Releasable(Protocol):
    """What is reserved until the cost is known."""

    def release(self) -> None: ...


class BudgetedAdmission(WrappedAdmission):
    """One that has reserved a part of its key's budget, too: `settle` gives that back, once the cost is spent."""

    __slots__ = ("_reservation",)

    def __init__(self, admission: Admission, reservation: Releasable) -> None:
        super().__init__(admission)
        self._reservation = reservation

    def settle(self, real_tokens: int) -> None:
        try:
            super().settle(real_tokens)
        finally:
            self._reservation.release()


def reserve_budget(
    guard: Guard, identity: Identity, name: str, model: str, tokens: TokensAtMost
) -> Optional[Reservation]:
    """Keep back what the request may cost at the price of `model`; None: nothing. Raises `budget_exceeded`."""
    now_unix_s = unix_s()
    budgets = guard.budgets
    if budgets.check(name, identity.budget_usd, identity.budget_period, now_unix_s) is not None:
        raise budget_spent(guard, identity, name)
    price = guard.prices.get(model)
    cost = 0.0 if price is None else tokens.cost_usd(price, guard.context_tokens.get(model))
    if not cost:
        return None
    reservation = budgets.reserve(name, cost)
    if isinstance(reservation, Reservation):
        return reservation
    raise budget_taken(guard, identity, name, reservation)


def budget_spent(guard: Guard, identity: Identity, name: str) -> GatewayError:
    """The error of a request whose key has spent its budget."""
    reset_unix_s = guard.budgets.reset_unix_s(name)
    reset = _utc(reset_unix_s)
    message = f"the budget of {identity.budget_usd:g} USD a {identity.budget_period} is spent until {reset}"
    return _over_budget(message, reset, reset_unix_s - unix_s())


def budget_taken(guard: Guard, identity: Identity, name: str, wait_s: float) -> GatewayError:
    """The error of a request that may go beyond its key's budget, with what others in flight may cost."""
    budget = f"the budget of {identity.budget_usd:g} USD a {identity.budget_period}"
    reset = _utc(guard.budgets.reset_unix_s(name))
    return _over_budget(f"what is left of {budget} may be taken by requests in flight", reset, wait_s)


def _utc(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _over_budget(message: str, reset: str, retry_after_s: float) -> GatewayError:
    return GatewayError("budget_exceeded", message, retry_after_s=retry_after_s, details={"reset": reset})


def too_many(refusal: Refusal, tokens: int) -> GatewayError:
    """The error of a request for so many tokens that a limit refuses."""
    if refusal.never:
        return RequestRefused(
            "request_exceeds_limit",
            f"the request may take {tokens} tokens, the limit of {refusal.limit_name} is {refusal.limit}",
            details={"limit": refusal.limit_name},
            headers=refusal.headers(),
        )
    return GatewayError(
        "rate_limit_exceeded",
        f"the limit of {refusal.limit} {refusal.limit_name} is reached",
        retry_after_s=refusal.retry_after_s,
        details={"limit": refusal.limit_name},
        headers=refusal.headers(),
    )


def forbidden(model: str) -> GatewayError:
    """The error of a request for a model that its key may not use."""
    return RequestRefused("forbidden", f"the model {model[:200]} is not allowed for this key", param="model")


def tokens_at_most(call: Call) -> TokensAtMost:
    """The tokens to reserve: the prompt's, estimated, and all that each of the choices may have.

    Also of those that `best_of` has an engine make and throw away: they are counted and paid for.
    """
    row = BY_PATH[call.path]
    prompt = tokens_of(call.prompt_weight())
    if not row.asked:  # nothing is generated
        return TokensAtMost(prompt, 0)
    return TokensAtMost(prompt, row.answer_tokens(call.request) or None, row.generated(call.request))
