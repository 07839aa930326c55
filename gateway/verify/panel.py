"""The members of a verification: who is asked, what each has answered, and how to wait for all of them at once.

`Mailbox` owns what has come and the flag that its reader waits for. Everybody who has something appends it first and
then sets the flag; the reader puts up a new flag first and then takes what has come: what is appended behind that sets
the new one. So nothing is missed, and there is no lock. Nothing here asks an engine or runs a program: both are begun
by functions that come in, and report to the mailbox from whatever thread they end on.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional, Protocol

from gateway.asked import Asked
from gateway.errors import ClientGone, GatewayError
from gateway.inference import Answer, Call
from gateway.steps import ASIDE, Flag, Flagged, Say, Steps

COMMENT_S = 5.0  # between two comments to a client that waits for a stream
COMMENT = b": asking several models\n\n"
LARGE_BYTES = 65_536  # to parse more takes a while
LOOK_S = 5.0  # a timer of the loop holds the request that long, even if it has been woken before

Message = dict[str, Any]
Done = Callable[[Optional[Answer], Optional[Exception]], None]


class Begin(Protocol):
    """Asks for a call that is a part of a request, as a request of its own: with its limits, its place and its report.

    `done` is called once, on any thread, with the answer or the error; `cancel`, the result, may be called at any time.
    """

    def __call__(self, asked: Asked, call: Call, done: Done, /) -> Callable[[], None]: ...


class MakeCall(Protocol):
    """Makes the call that asks a member."""

    def __call__(self, member: Member, number: int, messages: Sequence[Message], /) -> Call: ...


class Member(NamedTuple):
    """One model of those asked. `family`: what it comes from."""

    model: str
    family: str


class Voice:
    """What one member has answered. `text` or `error` is set when it is `over`."""

    def __init__(self, index: int, member: Member) -> None:
        self.index = index
        self.member = member
        self.call: Optional[Call] = None
        self.answer: Optional[Answer] = None
        self.error: Optional[GatewayError] = None
        self.text: Optional[str] = None
        self.began_s = 0.0
        self.latency_s = 0.0
        self.over = False
        self.answers = 0  # that it has given
        self.heals = 0  # that it was asked for
        self.healed = False  # its answer is a repaired one
        # What it said before, and whether that was repaired, until the repair has been read.
        self.before: Optional[tuple[Optional[Answer], str, bool]] = None
        self.cancel: Callable[[], None] = _nothing

    def take_back(self) -> None:
        """What it was asked to repair is what it has said: its last answer repairs nothing."""
        if self.before is not None:
            self.answer, self.text, self.healed = self.before


class Mailbox:
    """What has come for one request, to be done by who runs its steps. `put` is for any thread."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._come: deque[tuple[Callable[[], None], int]] = deque()
        self._flag = Flag()
        self._comment_s = time.monotonic() + COMMENT_S

    def put(self, news: Callable[[], None], size_bytes: int = 0) -> None:
        """Something has come: `news` notes it, and reads `size_bytes` for that. Never blocks."""
        self._come.append((news, size_bytes))
        self._flag.set()

    def wait(self, until_s: float) -> Steps[bool]:
        """Note what has come; False: nothing has until then (monotonic seconds). Raises ClientGone.

        A client that waits for a stream is told so from time to time: it, and what is between, would not wait longer.
        """
        call = self._asked.call
        assert call is not None
        while True:
            self._flag = Flag()
            if call.cancelled:
                raise ClientGone()
            come = [self._come.popleft() for _ in range(len(self._come))]
            if sum(size_bytes for _, size_bytes in come) > LARGE_BYTES:
                yield ASIDE
            for news, _ in come:
                news()
            now_s = time.monotonic()
            if come or now_s >= until_s:
                return bool(come)
            if call.stream and now_s >= self._comment_s:
                self._comment_s = now_s + COMMENT_S
                yield Say(COMMENT)
            call.wakes(self._flag)
            next_s = min(until_s, self._comment_s) if call.stream else until_s
            yield Flagged(self._flag, min(LOOK_S, max(0.0, next_s - now_s)))
            call.wakes(None)


class Panel:
    """The members of one verification. Belongs to who runs its steps, as its mailbox does.

    `make_call` gives the call that asks a member, by its number among all that are made, with messages. Nobody is
    waited for beyond `deadline_s` (monotonic).
    """

    def __init__(self, asked: Asked, begin: Begin, make_call: MakeCall, deadline_s: float) -> None:
        self._asked = asked
        self._begin = begin
        self._make_call = make_call
        self.deadline_s = deadline_s
        self.mailbox = Mailbox(asked)
        self.voices: list[Voice] = []
        self.calls: list[Call] = []
        """All that was asked."""

    def invite(self, members: Sequence[Member], messages: Sequence[Message]) -> None:
        """Ask further members."""
        for member in members:
            voice = Voice(len(self.voices), member)
            self.voices.append(voice)
            self.ask(voice, messages)

    def ask(self, voice: Voice, messages: Sequence[Message]) -> None:
        """Ask one member, for the first time or again."""
        call = self._make_call(voice.member, len(self.calls) + 1, messages)
        self.calls.append(call)
        voice.call = call
        voice.began_s = time.monotonic()
        voice.over = False

        def done(answer: Optional[Answer], error: Optional[Exception]) -> None:
            at_s = time.monotonic()
            size_bytes = 0 if answer is None else len(answer.body)
            self.mailbox.put(lambda: self._answered(voice, call, answer, error, at_s), size_bytes)

        voice.cancel = self._begin(self._asked, call, done)

    def gather(self, enough: Callable[[], bool]) -> Steps[None]:
        """Wait until all have answered, or it is enough, or the time is over. Raises ClientGone."""
        while any(not voice.over for voice in self.voices) and not enough():
            if not (yield from self.mailbox.wait(self.deadline_s)):
                for voice in self.voices:
                    self._end(voice, GatewayError("gateway_timeout", "the model has not answered in time"))

    def consult(self, member: Member, messages: Sequence[Message]) -> Steps[Optional[str]]:
        """What one that is no member answers; None: nothing in time. Raises ClientGone."""
        voice = Voice(len(self.voices), member)
        self.ask(voice, messages)
        try:
            while not voice.over and (yield from self.mailbox.wait(self.deadline_s)):
                pass
        finally:
            voice.cancel()
        return voice.text

    @property
    def answers(self) -> int:
        """How many answers have come in all."""
        return sum(voice.answers for voice in self.voices)

    @property
    def is_late(self) -> bool:
        """Whether nobody is to be asked any more."""
        return time.monotonic() >= self.deadline_s

    def close(self) -> None:
        """Wait for nobody any more."""
        for voice in self.voices:
            self._end(voice, GatewayError("client_closed_request", "not waited for: the others had decided"))

    def _answered(
        self, voice: Voice, call: Call, answer: Optional[Answer], error: Optional[Exception], at_s: float
    ) -> None:
        if voice.over or call is not voice.call:
            return  # it comes too late
        voice.over = True
        voice.latency_s += at_s - voice.began_s
        text = None if answer is None else text_of(answer)
        if text is not None:
            if voice.text is not None:
                voice.before = voice.answer, voice.text, voice.healed
            voice.healed = voice.text is not None
            voice.answer, voice.text, voice.error = answer, text, None
            voice.answers += 1
        elif voice.text is None:  # else what it has said before is repaired by nothing
            no_text = GatewayError("backend_error", "the model's answer has no text")
            voice.error = error if isinstance(error, GatewayError) else no_text

    def _end(self, voice: Voice, error: GatewayError) -> None:
        if not voice.over:
            voice.cancel()
            assert voice.call is not None
            self._answered(voice, voice.call, None, error, time.monotonic())


def text_of(answer: Answer) -> Optional[str]:
    """The text of a complete chat answer, or the calls of tools that it consists of, as JSON; None: it has neither."""
    parsed = answer.parsed
    try:
        if parsed is None:  # it is large
            parsed = answer.parsed = json.loads(answer.body)
        message = parsed["choices"][0]["message"]
        content = message.get("content")
        if not content and message.get("tool_calls"):
            content = _calls_text(message["tool_calls"])
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError):
        return None
    return content if isinstance(content, str) and content.strip() else None


def _calls_text(calls: Sequence[Any]) -> str:
    """Calls of tools without what differs each time, so that equal ones are equal. Raises what wrong shapes raise."""
    named = [(call["function"]["name"], call["function"].get("arguments") or "{}") for call in calls]
    return json.dumps([{"name": name, "arguments": json.loads(text)} for name, text in named], sort_keys=True)


def _nothing() -> None:
    """There is nothing to cancel."""
