"""Queries and embeddings asked together: from a request's place in a batch to its own answer.

Steps (see `steps.py`). `Together` holds no lock: who leads which batch is decided by `batching.py`. A kind of request
is described by a `Kind`: how its inputs become one call, and how that call's answer is split.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

from gateway.asked import Asked
from gateway.errors import ClientGone, GatewayError
from gateway.hedging import Answer
from gateway.reuse import splitting
from gateway.reuse.batching import Batch, Gathering, Seat
from gateway.reuse.flights import again
from gateway.reuse.splitting import WrongCount
from gateway.steps import ASIDE, Flagged, Pause, Steps
from gateway.upstream.answers import Usage, dump
from gateway.upstream.call import Call
from gateway.upstream.estimates import weigh

ENGINES_WORDS = ("backend_error", "backend_rate_limited", "backend_rejected", "backend_unavailable", "not_implemented")
REJECTIONS = ("backend_error", "backend_rejected", "context_too_long", "not_implemented")
"""What an engine may say for one of the requests, or for their being a list."""
SPLIT_ASIDE_BYTES = 65_536  # an answer of more is split on a thread

Ask = Callable[[Asked, Call], Steps[Any]]


class Kind(NamedTuple):
    """What is asked together."""

    field: str
    """The field that holds the inputs."""
    split: Callable[[Answer, Sequence[Seat]], list[Answer]]
    """The answer of each seat. Raises WrongCount."""


class Together:
    """Asks for many at once. Thread-safe. `ask` has one call asked, once there is a place; `inputs_max` of a batch."""

    def __init__(self, gathering: Gathering, ask: Ask, inputs_max: int) -> None:
        self.gathering = gathering
        self._ask = ask
        self._inputs_max = inputs_max

    def serve(
        self, asked: Asked, call: Call, kind: Kind, inputs: list[str], engine_max: Optional[int]
    ) -> Steps[Answer]:
        """The answer to a request that may share its call. `engine_max`: inputs that the engines take at once; None:
        any. Raises GatewayError."""
        model = call.model or ""
        inputs_max = self._inputs_max if engine_max is None else min(self._inputs_max, engine_max)
        if not self.gathering.takes_lists(model) or len(inputs) > inputs_max:
            return (yield from self._alone(asked, call, kind))
        seat = Seat(asked, call, inputs)
        batch, leads = self.gathering.take_seat(_key(asked, call, kind), seat, inputs_max)
        answer = yield from self._together(seat, batch, leads, kind)
        self.gathering.answered(batch.trial, model)
        return answer

    def _together(self, seat: Seat, batch: Batch, leads: bool, kind: Kind) -> Steps[Answer]:
        asked = seat.asked
        if leads:
            yield from self._gather(batch, kind)
        else:
            yield from self._follow(seat, kind)
        if seat.answer is not None:
            return seat.answer
        if seat.error is not None:
            raise again(seat.error)
        if asked.left and not asked.needed:
            raise ClientGone()
        return (yield from self._alone(asked, seat.call, kind))

    def _gather(self, batch: Batch, kind: Kind) -> Steps[None]:
        """Wait for others, and ask for all."""
        began_s, lead = time.monotonic(), batch.leader.call
        try:
            if lead is not None:
                lead.wakes(batch.full)  # when nobody is left who waits
            if not (yield Flagged(batch.full, self.gathering.wait_s)):
                yield Pause(0.0)  # who has come by then is part of it
        except BaseException:
            self.gathering.begin(batch)
            _tell_all(batch, None)
            raise
        seats = self.gathering.begin(batch)
        asked = batch.leader
        wait_s = self.gathering.waited_s(batch)
        if seats:  # else all have left
            asked.reused = asked.reused._replace(batch=len(seats), batch_wait_s=wait_s)
            others = [seat.asked for seat in seats if seat.asked is not asked]
            asked.note("batch", began_s, {"requests": len(seats), "leads": True}, *others)
        if lead is not None:
            lead.wakes(None)
            lead.waited_s += wait_s
        yield from self._lead(batch, kind)

    def _follow(self, seat: Seat, kind: Kind) -> Steps[None]:
        """Wait for what the batch is given; lead what is left of it, if that is to be."""
        began_s, leaders = time.monotonic(), [] if seat.of is None else [seat.of.leader]
        try:
            yield from seat.call.wait_flagged(seat.flag)
        except BaseException:
            self.gathering.leave(seat)
            raise
        finally:
            seat.asked.note("batch", began_s, {"leads": False}, *leaders)
        batch, seat.batch = seat.batch, None
        if batch is not None:
            yield from self._lead(batch, kind)

    def _alone(self, asked: Asked, call: Call, kind: Kind) -> Steps[Answer]:
        """Ask for one request by itself."""
        seat = Seat(asked, call, [])
        answer: Answer = yield from self._ask(asked, call)
        if kind is EMBEDDINGS:
            return answer
        seat.inputs = [call.request[kind.field]]
        try:
            return kind.split(answer, (seat,))[0]
        except WrongCount:
            raise _no_text() from None

    # --- leading ---------------------------------------------------------------------------------------------------

    def _lead(self, batch: Batch, kind: Kind) -> Steps[None]:
        """Ask for all seats of a batch, and tell each what became of it. Raises nothing that is one seat's alone."""
        try:
            while batch.seats:
                if (yield from self._lead_once(batch, kind)):
                    return
        except BaseException as error:  # also where the steps are closed: nobody is left waiting
            fault = error if isinstance(error, GatewayError) else None
            _tell_all(batch, fault)
            raise
        finally:
            self.gathering.end(batch)

    def _lead_once(self, batch: Batch, kind: Kind) -> Steps[bool]:
        """Ask once; False: what is left of the batch is to be asked again."""
        seats = batch.seats
        if len(seats) == 1:
            yield from self._lead_one(batch, seats[0], kind)
            return True
        call = _joint_call(batch, kind)
        try:
            answer = yield from self._ask(batch.leader, call)
        except GatewayError as error:
            return self._failed(batch, call, error)
        finally:
            if batch.leader.call is not None:
                batch.leader.call.tell_of(call)
                batch.leader.call.attempts += call.attempts
        try:
            if len(answer.body) > SPLIT_ASIDE_BYTES:
                yield ASIDE
            answers = kind.split(answer, seats)
        except WrongCount:
            self.gathering.list_refused(call.model or "")
            _tell_all(batch, None)
            return True
        self.gathering.list_taken(batch, call.model or "")
        for seat, own in zip(seats, answers):
            adopt(seat.call, call, seat.asked is batch.leader)
            if not seat.asked.reused.batch:
                seat.asked.reused = seat.asked.reused._replace(batch=len(seats))
            seat.call.usage = own.usage
            seat.answer = own
        _wake(seats)
        return True

    def _lead_one(self, batch: Batch, seat: Seat, kind: Kind) -> Steps[None]:
        """Ask for the only seat of a batch, as if there was none."""
        try:
            seat.answer = yield from self._alone(batch.leader, seat.call, kind)
        except GatewayError as error:
            seat.error = error
        seat.flag.set()

    def _failed(self, batch: Batch, call: Call, error: GatewayError) -> bool:
        """See to a list that was answered with an error; False: a half of the batch is to be asked."""
        if error.code not in REJECTIONS:  # it is not for what was asked
            for seat in batch.seats:
                adopt(seat.call, call, seat.asked is batch.leader)
            _tell_all(batch, _for_all(error))
            return True
        if self.gathering.list_rejected(batch, failed=error.code == "backend_error"):
            _tell_all(batch, None)
            return True
        self.gathering.halve(batch)
        return False


def _joint_call(batch: Batch, kind: Kind) -> Call:
    """The call that asks for all seats: the leader's, with everybody's inputs."""
    seats = batch.seats
    lead = next((seat.call for seat in seats if seat.asked is batch.leader), seats[0].call)
    inputs = [text for seat in seats for text in seat.inputs]
    request = {**lead.request, kind.field: inputs}
    call = Call(
        lead.path,
        request,
        request_id=batch.leader.request_id,
        allow_fallback=lead.allow_fallback,
        priority=lead.priority,
    )
    call.model, call.caller, call.may_use, call.is_query = lead.model, lead.caller, lead.may_use, lead.is_query
    call.split, call.stand_ins, call.residency = lead.split, lead.stand_ins, lead.residency
    call.is_joint = True
    if batch.leader.call is not None:
        call.be_part_of(batch.leader.call)  # which is cancelled when nobody waits any more
    return call


def adopt(call: Call, shared: Call, leads: bool) -> None:
    """Note for one request what became of the call that it shares; who leads tells of its attempts."""
    call.engine_id, call.region = shared.engine_id, shared.region
    call.served_model = shared.served_model
    call.context_tokens = shared.context_tokens
    call.fallback = shared.fallback
    if not leads:
        call.attempts = shared.attempts


def _tell_all(batch: Batch, error: Optional[GatewayError]) -> None:
    """Everybody gets the error; None: each is to ask for itself."""
    for seat in batch.seats:
        seat.error = error
    _wake(batch.seats)


def _wake(seats: Sequence[Seat]) -> None:
    for seat in seats:
        seat.flag.set()


def _for_all(error: GatewayError) -> GatewayError:
    """What an engine has said to a batch, without its words: they may repeat what somebody else has asked."""
    if error.engine is None and error.code not in ENGINES_WORDS:
        return error
    plain = again(error)
    plain.message = f"the engine failed on a batch of requests ({error.code})"
    plain.args = (plain.message,)
    plain.engine = plain.details = None
    return plain


def _no_text() -> GatewayError:
    return GatewayError("backend_error", "the engine's answer has no text")


def _key(asked: Asked, call: Call, kind: Kind) -> tuple[object, ...]:
    """What all requests of a batch have in common."""
    others = {key: value for key, value in call.request.items() if key not in (kind.field, "model", "user")}
    restricted = asked.identity.name if asked.identity is not None and call.may_use is not None else None
    how = call.allow_fallback, call.priority, call.residency
    return call.path, call.model, call.is_query, how, restricted, dump(others)


# --- splitting -----------------------------------------------------------------------------------------------------


def _split_texts(answer: Answer, seats: Sequence[Seat]) -> list[Answer]:
    parsed = answer.parsed
    if parsed is None:
        raise WrongCount
    choices = splitting.choices_of(parsed, len(seats))
    texts = [choice["text"] for choice in choices]
    prompts = [weigh(text) for seat in seats for text in seat.inputs]
    usages = splitting.usages(answer.usage, prompts, [weigh(text) for text in texts])
    return [
        Answer(dump({"result": choice["text"]}), usage, {"choices": [choice]}) for choice, usage in zip(choices, usages)
    ]


def _split_embeddings(answer: Answer, seats: Sequence[Seat]) -> list[Answer]:
    count = sum(len(seat.inputs) for seat in seats)
    parts = splitting.embeddings_of(answer.body, count)
    weights = [sum(max(1, weigh(text)) for text in seat.inputs) for seat in seats]
    usages = splitting.usages(answer.usage, weights, [0] * len(seats))
    answers: list[Answer] = []
    first = 0
    for seat, usage in zip(seats, usages):
        answers.append(_part(parts, first, len(seat.inputs), seat.asked.request_id, usage))
        first += len(seat.inputs)
    return answers


def _part(parts: splitting.Parts, first: int, count: int, request_id: str, usage: Usage) -> Answer:
    body = splitting.embeddings_body(parts, first, count, request_id, usage)
    return Answer(body, usage, {"data": parts.vectors[first : first + count]})


QUERIES = Kind("prompt", _split_texts)
EMBEDDINGS = Kind("input", _split_embeddings)
