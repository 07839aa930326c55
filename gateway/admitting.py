"""What a request needs of every limit, taken before anything is sent: by this gateway alone, or with others by Redis.

Owns nothing, and holds no lock. What is taken is the request's account's, which gives it back.
"""

from __future__ import annotations

import functools
from typing import Callable, Union

from gateway.account import Account
from gateway.asked import Asked
from gateway.clock import unix_s
from gateway.errors import GatewayError, RequestRefused
from gateway.guard import BudgetedAdmission, Guard, budget_spent, budget_taken, reserve_budget, too_many
from gateway.inference import Call, InferenceFactory
from gateway.keys.auth import Identity
from gateway.limits.addresses import address_group
from gateway.limits.budgets import Reservation
from gateway.limits.limiter import Admission, Refusal
from gateway.limits.prices import TokensAtMost
from gateway.shared.budgets import SPENT, Reserved
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
        admission = self._guard.admit(identity, model, address, lambda: tokens_at_most(call) if asks else NO_TOKENS)
        self._open_account(asked, admission)

    def admit_shared(
        self, shared: SharedState, asked: Asked, call: Call, identity: Identity, asks: bool
    ) -> Steps[None]:
        """The same by what all gateways together have let pass. Raises `limits_unavailable`, too.

        What no limit applies to does not wait.
        """
        model = self._route(asked, call, identity)
        estimate = functools.partial(tokens_at_most, call) if asks else _no_tokens
        reservations: list[Union[Reservation, Reserved]] = []
        try:
            if identity.budget_usd is not None and identity.name is not None:
                yield from self._reserve(shared, identity, identity.name, model, estimate(), reservations)
            subject = self._guard.subject(identity, model, asked.client_address, estimate)
            admission: Union[Admission, Refusal] = self._guard.limiter.unlimited
            if subject is not None:
                admission = yield from shared.limits.admit(subject)
                if isinstance(admission, Refusal):
                    raise too_many(admission, subject.tokens_estimate)
            assert not isinstance(admission, Refusal)
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
        reservations: list[Union[Reservation, Reserved]],
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


def forbidden(model: str) -> GatewayError:
    """The error of a request for a model that its key may not use."""
    return RequestRefused("forbidden", f"the model {model[:200]} is not allowed for this key", param="model")


def _no_tokens() -> TokensAtMost:
    return NO_TOKENS


def tokens_at_most(call: Call) -> TokensAtMost:
    """The tokens to reserve: the prompt's, estimated, and all that each of the choices may have.

    Also of those that `best_of` has an engine make and throw away: they are counted and paid for.
    """
    row = BY_PATH[call.path]
    prompt = tokens_of(call.prompt_weight())
    if not row.asked:  # nothing is generated
        return TokensAtMost(prompt, 0)
    return TokensAtMost(prompt, row.answer_tokens(call.request) or None, row.generated(call.request))
