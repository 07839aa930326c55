"""What the fuzzers of engines share: a case is a script for an engine, cut in several ways; a client asks, gets what
the gateway makes of it, and asks again on the same connection.

Every way of a case has a nonce of its own and the same length, so that scripts written for one hold for all. Models
are many, all at the same engine, and each is asked by one at a time: what has an engine rest or taken out (429, 401)
touches nobody else, and such a model is not asked again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, NamedTuple

from tests.fuzz.checks import Watched, watched
from tests.fuzz.engine import NONCE, Script, ScriptEngine, text_of
from tests.fuzz.finding import ODD_MAX, Report, look_again, rng_of, shown
from tests.fuzz.talk import Answer, Await, End, Talk, Talks

MODELS = 3000
SURPLUS = b"SURPLUS"  # stands in what an engine sends behind an answer's end
AT_ONCE = 48
ANSWER_S = 7.0  # more than any of the timeouts below
SETTINGS: Mapping[str, object] = {
    "RETRY_ATTEMPTS": 2,
    "FALLBACK": "off",
    "REQUEST_TIMEOUT": 3,
    "FIRST_TOKEN_TIMEOUT": 2,
    "STREAM_IDLE_TIMEOUT": 1,
    "CLIENT_TIMEOUT": 10,
    "BREAKER_MIN_REQUESTS": 1_000_000,
    "MAX_EVENT_BYTES": 262144,
    "MAX_ANSWER_BYTES": 1048576,
    "RATE_LIMIT_TARGET_WAIT": 0,
    "RATE_LIMIT_TARGET_ERRORS": 0,
}


class Asked(NamedTuple):
    """One way of one case: the request's nonce, the script as it was cut, and what came of it."""

    nonce: bytes
    script: Script
    stream: bool
    answer: Any  # Answer or End
    attempts: int  # that the engine saw


Judge = Callable[[Asked], Iterator["tuple[str, str]"]]


class Case(NamedTuple):
    """What an engine says: `scripts` are the same bytes for nonces of their own, cut in different ways.

    `sure`: all of the ways must come to the same (nothing may be lost on the way, nothing waits for a timeout).
    """

    number: int
    stream: bool
    scripts: tuple[tuple[bytes, Script], ...]
    sure: bool
    body: Mapping[str, Any]


class Asking:
    """Runs cases. `make(number)` gives one; `judge` yields what does not hold of one way; `verdict` of a way is
    compared with the other ways'."""

    def __init__(
        self,
        report: Report,
        make: Callable[[int], Case],
        judge: Judge,
        verdict: Callable[[Asked], object],
    ) -> None:
        self._report = report
        self._make = make
        self._judge = judge
        self._verdict = verdict
        self._models = list(range(MODELS))  # those whose engines have nothing held against them, the next one last
        self._issued: set[bytes] = set()  # nonces: a spoilt one is nobody's

    def run(self, numbers: Iterator[int]) -> None:
        """Put these cases to a gateway, and look again at what is odd."""
        odd: list[Case] = []
        with self._gateway() as (running, engine):
            some = itertools.takewhile(lambda number: len(odd) < ODD_MAX, numbers)
            self._ask(running, engine, map(self._make, some), AT_ONCE, lambda case, found, asked: odd.append(case))
        self._models = list(range(MODELS))
        with self._gateway() as (running, engine):

            def look(case: Case) -> None:
                self._ask(running, engine, iter([case]), len(case.scripts), self._tell)

            look_again(self._report, odd, look)

    @contextlib.contextmanager
    def _gateway(self) -> Iterator[tuple[Watched, ScriptEngine]]:
        with ScriptEngine() as engine, contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            two = [{"url": engine.url, "id": "one"}, {"url": engine.url, "id": "two"}]
            models = {f"m{number}": {"engines": two, "price": {"input": 1, "output": 2}} for number in range(MODELS)}
            path = directory / "engines.json"
            path.write_text(json.dumps({"models": models}), "utf-8")
            yield stack.enter_context(watched(self._report, {**SETTINGS, "ENGINES_FILE": path})), engine

    def _ask(
        self,
        running: Watched,
        engine: ScriptEngine,
        cases: Iterator[Case],
        at_once: int,
        tell: Callable[[Case, list[tuple[str, str]], list[Asked]], None],
    ) -> None:
        def talks() -> Iterator[tuple[int, Talk]]:
            for case in cases:
                if tell != self._tell:
                    self._report.count("cases")
                done: list[tuple[Asked, list[tuple[str, str]]]] = []
                for nonce, script in case.scripts:
                    engine.script(nonce, script)
                    self._issued.add(nonce)
                    yield running.port, self._talk(case, nonce, script, engine, done, tell)

        Talks(at_once).run(talks())

    def _talk(
        self,
        case: Case,
        nonce: bytes,
        script: Script,
        engine: ScriptEngine,
        done: list[tuple[Asked, list[tuple[str, str]]]],
        tell: Callable[[Case, list[tuple[str, str]], list[Asked]], None],
    ) -> Talk:
        model = self._next_model()
        yield request(nonce, case.stream, model, case.body)
        got = yield Await(due_s=ANSWER_S)
        asked = Asked(nonce, script, case.stream, got, engine.asked.get(nonce, 0))
        found = [*self._common(asked), *self._judge(asked)]
        if not isinstance(got, End):
            self._report.count(f"status {got.status}")
        if isinstance(got, Answer) and got.status == 200 and asked.attempts == 1:
            self._models.insert(0, model)  # else an engine of it may rest, or be out
        if isinstance(got, Answer) and got.whole and got.header(b"connection") != b"close":
            again = nonce[:-1] + (b"0" if nonce[-1:] != b"0" else b"1")
            self._issued.add(again)
            model = self._next_model()
            yield request(again, not case.stream, model, {})
            after = yield Await(due_s=ANSWER_S)
            self._models.insert(0, model)
            if isinstance(after, End) or after.status != 200 or text_of(again) not in plain_text(after):
                found.append(("own answer", f"the next request on the connection got {after}"[:600]))
        done.append((asked, found))
        if len(done) == len(case.scripts):
            self._conclude(case, done, tell)

    def _next_model(self) -> int:
        """A model that nobody else uses, and whose engines are all in."""
        return self._models.pop() if self._models else 0

    def _conclude(
        self,
        case: Case,
        done: list[tuple[Asked, list[tuple[str, str]]]],
        tell: Callable[[Case, list[tuple[str, str]], list[Asked]], None],
    ) -> None:
        faults = [fault for _, found in done for fault in found]
        verdicts = [self._verdict(asked) for asked, _ in done]
        if case.sure and any(verdict != verdicts[0] for verdict in verdicts):
            odd = next(verdict for verdict in verdicts if verdict != verdicts[0])
            faults.append(("same verdict", f"{verdicts[0]!r:.400} or {odd!r:.400}"))
        if faults:
            tell(case, faults, [asked for asked, _ in done])

    def _common(self, asked: Asked) -> Iterator[tuple[str, str]]:
        answer = asked.answer
        if isinstance(answer, End):
            yield "an answer", f"the client got {answer}"[:400]
            return
        if answer.status == 500:
            yield "no 500", f"{answer.body[:300]!r}"
        if self._issued.intersection(NONCE.findall(seen(answer))) - {asked.nonce}:
            yield "own answer", f"another's nonce: {answer}"[:600]

    def _tell(self, case: Case, faults: list[tuple[str, str]], asked: list[Asked]) -> None:
        repro = "\n".join(f"{one.script.end}: {shown(one.script.segments)}" for one in asked[:3])
        for rule, detail in dict(faults).items():
            self._report.found(rule, case.number, detail, repro)


def no_surplus(answer: Answer) -> Iterator[tuple[str, str]]:
    """Nothing that an engine has sent behind an answer is in what a client got."""
    if SURPLUS in seen(answer):
        yield "own answer", f"bytes behind an answer reached a client: {answer}"[:600]


def seen(answer: Answer) -> bytes:
    """All that a client sees of an answer."""
    return answer.body + b" ".join(value for _, value in answer.headers)


def nonces(report: Report, number: int, count: int) -> list[bytes]:
    """The nonces of a case's ways. The last digit is never 0 or 1: those are for the request after."""
    rng = rng_of("nonces", report.seed, number)
    return [f"ask-{rng.getrandbits(44):011x}{rng.choice('23456789')}".encode() for _ in range(count)]


def request(nonce: bytes, stream: bool, model: int, more: Mapping[str, Any]) -> bytes:
    """A chat request with that nonce."""
    message = {"role": "user", "content": nonce.decode()}
    body = json.dumps({"model": f"m{model}", "messages": [message], "stream": stream, **more}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def plain_text(answer: Answer) -> str:
    """What a good answer says, streamed or not; nothing for anything else."""
    if answer.header(b"content-type").startswith(b"text/event-stream"):
        texts = re.findall(rb'"content": ?"((?:[^"\\]|\\.)*)"', answer.body)
        return b"".join(texts).decode("utf-8", "replace")
    try:
        return str(json.loads(answer.body)["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
