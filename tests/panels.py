"""What the tests of verifications share: members and a sandbox that do what the test says, and steps run by hand.

Opens no socket and starts no process. Everything happens on the test's own thread, when the test says so.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Callable, Generic, Optional, TypeVar, cast
from unittest import mock

from gateway.asked import Asked
from gateway.errors import GatewayError
from gateway.inference import Answer, Call
from gateway.steps import ASIDE, Flagged, Say, Steps
from gateway.upstream.answers import Usage
from gateway.upstream.call import CHAT
from gateway.verify.panel import Done, Member, Message, Panel
from gateway.verify.sandbox.job import Job, Run
from gateway.verify.sandbox.sandbox import Sandbox

T = TypeVar("T")


class Clock:
    """Monotonic seconds that only the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@contextlib.contextmanager
def clock_of(*modules: str) -> Iterator[Clock]:
    """The clock that these modules go by."""
    clock = Clock()
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch(f"{module}.time", SimpleNamespace(monotonic=clock)))
        yield clock


def answer_of(text: Optional[str]) -> Answer:
    """A complete chat answer; None: without a text."""
    choices = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    return Answer(json.dumps({"choices": choices}).encode(), Usage(1, 1, False))


def code(body: str, name: str = "f") -> str:
    """An answer with a program: `f(x)` with that body."""
    return f"Here it is:\n\n```python\ndef {name}(x):\n    {body}\n```\n"


def asked_of(stream: bool = False) -> Asked:
    """A request as a panel needs it."""
    call = Call(CHAT, {"messages": [], "stream": stream}, request_id="r")
    return cast(Asked, SimpleNamespace(call=call, request_id="r"))


class Invitation:
    """One call to a member: what it was asked, and how to answer."""

    def __init__(self, call: Call, done: Done) -> None:
        self.call = call
        self.done = done
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1

    def say(self, text: Optional[str]) -> None:
        """Answer with a text."""
        self.done(answer_of(text), None)

    def fail(self, code: str = "backend_error") -> None:
        """Answer with an error."""
        self.done(None, GatewayError(code, "it is broken"))

    @property
    def messages(self) -> list[Message]:
        """What it was asked."""
        return cast("list[Message]", self.call.request["messages"])


class Members:
    """Stands for whoever asks the members: `calls` are all that were begun, in order."""

    def __init__(self) -> None:
        self.calls: list[Invitation] = []

    def begin(self, asked: Asked, call: Call, done: Done) -> Callable[[], None]:
        invitation = Invitation(call, done)
        self.calls.append(invitation)
        return invitation.cancel

    def make(self, member: Member, number: int, messages: Sequence[Message]) -> Call:
        return Call(CHAT, {"model": member.model, "messages": list(messages)}, request_id=f"r.{number}")

    @property
    def models(self) -> list[Optional[str]]:
        """Who was asked, in order."""
        return [invitation.call.model for invitation in self.calls]

    def panel(self, deadline_s: float, asked: Optional[Asked] = None) -> Panel:
        return Panel(asked or asked_of(), self.begin, self.make, deadline_s)


class Ticket:
    """One job that was handed in."""

    def __init__(self, job: Job, done: Callable[[Run], None]) -> None:
        self.job = job
        self.done = done
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1

    @property
    def payload(self) -> Any:
        return json.loads(self.job.payload)


def run_of(report: Optional[Mapping[str, Any]] = None, **changes: Any) -> Run:
    """A run that has ended well, with that report."""
    data = b"" if report is None else json.dumps(report).encode()
    return Run("exit", 0, b"", b"", False, data, 0.01, "namespaces", None)._replace(**changes)


UNAVAILABLE = Run("setup", None, b"", b"", False, b"", 0.0, "", "isolation_unavailable")


class Jail:
    """Stands for the sandbox: `answer` gives a job's run, None: it is still running. Jobs are kept in `tickets`."""

    def __init__(self, answer: Callable[[Job], Optional[Run]]) -> None:
        self.answer = answer
        self.tickets: list[Ticket] = []

    def submit(self, job: Job, done: Callable[[Run], None]) -> Ticket:
        ticket = Ticket(job, done)
        self.tickets.append(ticket)
        run = self.answer(job)
        if run is not None:
            done(run)
        return ticket

    def close(self, timeout_s: float = 0.0) -> None:
        """There is nothing to end."""

    def level(self) -> str:
        return "namespaces"

    @property
    def sandbox(self) -> Sandbox:
        return cast(Sandbox, self)

    def of(self, harness: str) -> list[Ticket]:
        """The jobs of that harness."""
        return [ticket for ticket in self.tickets if ticket.job.harness == harness]


class ByHand(Generic[T]):
    """Steps that are run until they wait, and go on when the test says so."""

    def __init__(self, steps: Steps[T]) -> None:
        self._steps = steps
        self._result: list[T] = []
        self.error: Optional[Exception] = None
        self.said: list[bytes] = []
        self.asides = 0
        self.wait: Optional[Flagged] = None
        self._resume(None)

    def _resume(self, value: Any) -> None:
        self.wait = None
        try:
            wait = self._steps.send(value)
            while wait is ASIDE or isinstance(wait, Say):
                if isinstance(wait, Say):
                    self.said.append(wait.lines)
                else:
                    self.asides += 1
                wait = self._steps.send(None)
        except StopIteration as end:
            self._result.append(end.value)
        except Exception as error:
            self.error = error
        else:
            assert isinstance(wait, Flagged), wait
            self.wait = wait

    def go(self) -> None:
        """Go on as long as something has come."""
        while self.wait is not None and self.wait.flag.is_set():
            self._resume(True)

    def time_passes(self) -> None:
        """The wait has taken as long as it may."""
        assert self.wait is not None, "it does not wait"
        self._resume(self.wait.flag.is_set())

    def close(self) -> None:
        """Whoever runs the steps lets go of them."""
        self._steps.close()

    @property
    def ended(self) -> bool:
        return bool(self._result) or self.error is not None

    @property
    def result(self) -> T:
        if self.error is not None:
            raise self.error
        assert self._result, "it has not ended"
        return self._result[0]
