"""One request on its way: what is asked, in the words of each engine, and afterwards what happened.

A `Call` belongs to the thread that runs it, but for `cancel`, which any thread may call at any time.
"""

from __future__ import annotations

import hashlib
import threading
import uuid
from typing import Any, Callable, Optional, Union

from gateway.dialects.anthropic.plain import THINKING, plain
from gateway.errors import ClientGone
from gateway.routing.params import Params
from gateway.steps import Event, Flag, Flagged, Steps
from gateway.telemetry.events import AttemptRecord, Mark, Trace
from gateway.upstream import answers
from gateway.upstream.ask import Ask
from gateway.upstream.attempt import Attempt
from gateway.upstream.estimates import tokens_of, weigh
from gateway.upstream.fields import BY_PATH, Prompts
from gateway.upstream.fieldtypes import Request
from gateway.upstream.members import without_members
from gateway.upstream.passed import Form

CHAT = "/chat/completions"
AFFINITY_PREFIX_CHARS = 1024
FLAG_LOOK_S = 5.0  # a timer of the loop holds the request that long, even if it has been woken before


class Call(Ask):
    """One request on its way: what is asked, and afterwards what happened. `cancel` may be called from any thread."""

    __slots__ = (
        "_attempts",
        "_cancelled",
        "_heir",
        "_waiting_on",
        "allow_fallback",
        "asks",
        "attempts",
        "caller",
        "context_tokens",
        "engine_id",
        "engine_s",
        "fallback",
        "form",
        "hedged",
        "idempotency_key",
        "is_joint",
        "is_query",
        "lacking",
        "limit_s",
        "marks",
        "may_use",
        "model",
        "must_stay",
        "origin",
        "priority",
        *("records", "region", "repairs", "replays", "request_id", "residency", "resumed", "retries"),
        "schema_retries",
        "served_model",
        "session",
        "shape",
        "split",
        "stand_ins",
        "trace",
        "usage",
        "waited_s",
    )

    def __init__(
        self,
        path: str,
        request: dict[str, Any],
        body: Optional[bytes] = None,
        *,
        request_id: Optional[str] = None,
        session: str = "",
        allow_fallback: bool = True,
        idempotency_key: str = "",
        priority: str = "normal",
    ) -> None:
        unlimited = BY_PATH[path].unlimited(request) if -1 in request.values() else ()
        if unlimited:
            request = {key: value for key, value in request.items() if key not in unlimited}
            body = None if body is None else without_members(body, unlimited)
        self.path = path
        self.body = answers.dump(request) if body is None else body
        self.rich: Optional[dict[str, Any]] = None  # the request with what only engines of another dialect know
        if path == CHAT and THINKING in self.body:
            self.rich, request = request, plain(request)
            self.body = answers.dump(request)
        self.request = request
        model = request.get("model")
        self.model: Optional[str] = model if model else None
        self.stream = bool(request.get("stream")) and BY_PATH[path].streams
        self.request_id = request_id or str(uuid.uuid4())
        self.session = session
        self.allow_fallback = allow_fallback
        self.idempotency_key = idempotency_key
        self.priority = priority
        self.form: Optional[Form] = None  # what is passed on instead of the request
        self.limit_s: Optional[float] = None  # for all its attempts; None: what the gateway gives a request
        self.lacking: Optional[str] = None  # only engines that have not this path are asked
        self.is_joint = False  # it asks for several requests at once, by a list of their inputs
        self.is_query = False  # a `/query`, whose answer is its text alone
        self.residency = ""  # the region that it must not leave; "": it may
        self.caller = ""  # who asks, as a name that only says whether it is the same one
        self._cancelled = False
        self.attempts = 0
        self.engine_s = 0.0
        self.engine_id: Optional[str] = None
        self.region: Optional[str] = None  # of that engine
        self.served_model: Optional[str] = None
        self.fallback: Optional[str] = None
        self.usage: Optional[answers.Usage] = None
        self.records: list[AttemptRecord] = []
        self.trace: Optional[Trace] = None  # that its attempts are told of; None: they are told of none
        self.marks: tuple[Mark, ...] = ()  # what it has waited for
        self.retries: list[tuple[str, str]] = []
        self.may_use: Optional[Callable[[str], bool]] = None  # None: every model
        self.context_tokens: Optional[int] = None  # of the model that answered; None: unknown
        self.shape: Optional[Any] = None  # what its answers have to be like: a `fitting.Shape`
        # What each ask has taken, and whose it was, where there was more than one; else `usage`, of `served_model`.
        self.asks: list[tuple[Optional[str], answers.Usage]] = []
        self.schema_retries = 0  # asks for an answer that fits, after the first
        self.repairs: tuple[str, ...] = ()  # what was wrong with the answer's JSON
        self.hedged = False
        self.replays = [True]  # the one replay that a request has, whatever engine it goes to; empty: used up
        self.resumed = 0
        self.waited_s = 0.0
        self.must_stay = False  # what answers is a fallback that is one because it is near
        self.origin: Optional[Call] = None  # whose stream this call goes on with
        self.split = ""  # the model that it named, for which another one answers
        self.stand_ins: Optional[tuple[str, ...]] = None  # that split's fallbacks; None: the model's own
        self._attempts: dict[Attempt, None] = {}
        self._heir: Optional[Call] = None  # what is asked in the place of this
        self._waiting_on: Union[threading.Event, Flag, None] = None
        self._params: Optional[Params] = None  # by which `request` is what the model's engines get
        self._plain: Optional[tuple[Request, bytes]] = None  # what it was before; None: the same
        self._payloads: dict[tuple[Optional[str], bool, Optional[Params]], bytes] = {}
        self._prompts: Optional[Prompts] = None

    @property
    def cancelled(self) -> bool:
        """Whether it has been given up, or that of which it is a part."""
        return self._cancelled or (self.origin is not None and self.origin.cancelled)

    def cancel(self) -> None:
        """Give up: what waits for an engine is woken and its connection closed. Idempotent, never blocks."""
        self._cancelled = True
        for attempt in list(self._attempts):
            attempt.abort("cancelled")
        waiting_on = self._waiting_on
        if waiting_on is not None:
            waiting_on.set()
        if self._heir is not None:
            self._heir.cancel()

    def begin(self, attempt: Attempt) -> None:
        """Make an attempt part of this call; raises ClientGone when the call has been cancelled.

        `cancel` sets the flag and then looks for attempts, this stores the attempt and then looks at the flag: one of
        the two sees the other.
        """
        attempt.replays = self.replays
        self._attempts[attempt] = None
        if self.cancelled:
            raise ClientGone()

    def end(self, attempt: Attempt) -> None:
        """The attempt is over, or its connection has passed to a stream, which `cancel` still reaches."""
        self._attempts.pop(attempt, None)

    def wait(self, event: threading.Event, timeout_s: float) -> Steps[None]:
        """Wait for `event`, at most `timeout_s` seconds; raises ClientGone when the call is cancelled meanwhile."""
        self._waiting_on = event
        if not self.cancelled:
            yield Event(event, timeout_s)
        self._waiting_on = None
        if self.cancelled:
            raise ClientGone()

    def wait_flagged(self, flag: Flag) -> Steps[None]:
        """Wait for `flag`, without a thread; raises ClientGone when the call is cancelled instead. Who sets it does so
        whatever happens, in a `finally`: there is no other bound."""
        self._waiting_on = flag
        while not (flag.is_set() or self.cancelled):
            yield Flagged(flag, FLAG_LOOK_S)
        self._waiting_on = None
        if self.cancelled:
            raise ClientGone()

    def wakes(self, flag: Optional[Flag]) -> None:
        """Have `cancel` set `flag` from now on; None: nothing."""
        self._waiting_on = flag
        if flag is not None and self.cancelled:
            flag.set()

    def continuation(self, text: str, params: Optional[Params] = None) -> Call:
        """The call that asks an engine to go on after `text`, which the client has already. `params`: of its model."""
        request = dict(self.request_for(params))
        if text:  # else nothing has been given yet, and the request is asked as it is
            request = _with(request, [{"role": "assistant", "content": text}])
            request["add_generation_prompt"] = False  # vLLM's words for it; llama.cpp continues by itself
            request["continue_final_message"] = True
        for key in BY_PATH[self.path].asked:
            if (request.get(key) or 0) > 0:
                request[key] = max(1, request[key] - tokens_of(weigh(text)))
        call = Call(self.path, request, request_id=self.request_id, session=self.session, priority=self.priority)
        call._params = params
        call.be_part_of(self)
        call.caller = self.caller
        call.replays = self.replays
        call.records = self.records  # what becomes of its attempts is told with the rest
        return call

    def again(self, more: list[dict[str, Any]]) -> Call:
        """The same call with `more` messages behind its own, for a whole answer, as a part of this one."""
        call = self.part(self.path, _with(_whole(self.unadapted), more))  # of which each model gets its own
        if self.rich is not None:
            call.rich = _with(_whole(self.rich), more)
        return call

    def part(self, path: str, request: Request) -> Call:
        """A call that asks the same model for something else, for the same caller, as a part of this one."""
        call = Call(path, request, request_id=self.request_id, session=self.session, priority=self.priority)
        call.be_part_of(self)
        call.model, call.caller, call.may_use = self.model, self.caller, self.may_use
        call.allow_fallback, call.split, call.stand_ins = self.allow_fallback, self.split, self.stand_ins
        return call

    def be_part_of(self, call: Call) -> None:
        """Its attempts are another call's, too: `cancel` of that reaches them."""
        self.origin = call
        self.residency = call.residency
        self.trace = call.trace
        self._attempts = call._attempts

    def take_over(self, call: Call) -> None:
        """Stand for a call that has given nothing, in all that is told of it; `cancel` of that reaches this one.

        As in `begin`, one of the two sees the other. Raises ClientGone."""
        self.origin, self._attempts = None, {}
        self.records, self.attempts, self.marks = call.records, call.attempts, call.marks
        self.retries, self.hedged = call.retries, call.hedged
        self.waited_s, self.engine_s = call.waited_s, call.engine_s
        self.engine_id, self.served_model, self.fallback = call.engine_id, call.served_model, call.fallback
        self.region = call.region
        self.priority, self.idempotency_key = call.priority, call.idempotency_key
        call._heir = self
        if call.cancelled:
            raise ClientGone()

    def tell_of(self, part: Call) -> None:
        """What another call's engines were asked for is told with this one's. (Its `attempts` are not: those are what
        the client's answer took.)"""
        self.records.extend(part.records)
        self.marks += part.marks
        self.retries.extend(part.retries)
        self.hedged = self.hedged or part.hedged
        self.waited_s += part.waited_s
        self.engine_s += part.engine_s

    def can_resume(self) -> bool:
        """Whether a stream of this call could go on elsewhere: one choice of plain text, which begins with it."""
        request = self.request
        if not self.stream or self.path != CHAT or (request.get("n") or 1) != 1:
            return False
        # What is generated under a grammar, or to continue the client's own words, is not continued by its text alone.
        shaped = any(request.get(key) for key in ("tools", "functions", "response_format", "grammar", "json_schema"))
        return not shaped and request["messages"][-1].get("role") != "assistant"

    def affinity(self) -> bytes:
        """Return what `prefix_affinity` goes by: a digest of the session, or of the prompt's first characters.
        (Decisions are recorded with it, and no prompt is to stand in a file.)"""
        text = self.session or BY_PATH[self.path].text(self.request, AFFINITY_PREFIX_CHARS)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() if text else b""


def _whole(request: Request) -> Request:
    """The same, not to be told as a stream."""
    return {key: value for key, value in request.items() if key not in ("stream", "stream_options")}


def _with(request: Request, messages: list[dict[str, Any]]) -> Request:
    """The same with these messages behind its own."""
    return {**request, "messages": [*request["messages"], *messages]}
