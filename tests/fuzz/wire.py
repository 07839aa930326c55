"""A client's bytes, cut up in every way, sent to gateways; what each way of cutting has come to is compared.

Behind the bytes of each case comes a good request with a nonce, the *probe*, that closes the connection. Rules,
besides those of `checks.py`:

* same verdict: the statuses and codes of the responses before the probe's, and whether the probe is answered, are
  the same for each segmentation, on the server with a loop and on the one with a thread for each connection. (One
  exception: a request whose body nobody wants, a 404 say, may keep the connection or close it, by whether its body
  had come.)
* well-formed: whatever comes back are whole responses that can be read in one way only
* a response for a request: never more than `reference.py` finds requests
* two readings: what `reference.py` refuses is not taken, and nothing behind it is answered
* own answer: no response holds a nonce of another case; the probe's answer holds its own, and nothing follows it

Disagreements are looked at again alone before they count: a machine that is busy makes some requests late (408).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional

from tests.fuzz import cuts, reference
from tests.fuzz.checks import Watched, watched
from tests.fuzz.finding import ODD_MAX, Report, look_again, rng_of, shown
from tests.fuzz.talk import PAUSE, Answer, Await, End, Quiet, Talk, Talks

PROBE_HOST = b"127.0.0.1"
CLIENT_TIMEOUT_S = 3.0
WHERE = ("loop", "threads")
AT_ONCE = 96
EACH_BYTE_SHARE = 0.25  # of cases also go byte by byte: such a one takes a third of a second
NONCE = re.compile(rb"(?:case|probe)-[0-9a-f]{12}")
MARKS = (b"\r\n", b"\r\n\r\n", b": ", b"0\r\n", b";")
REFUSED_WHOLE = (400, 408, 431, 501, 505)  # HTTP itself: these always close


class Case(NamedTuple):
    """What is sent before the probe."""

    number: int
    data: bytes


class Outcome(NamedTuple):
    """What came back: status and code of each response before the probe's, and how it ended."""

    answers: tuple[tuple[int, str], ...]
    end: str  # kept (the probe was answered), closed, reset, late, malformed...


class Run(NamedTuple):
    """One case, cut in one way, at one gateway."""

    case: Case
    where: str
    segments: list[bytes]
    border: int  # before this segment the client waits until something has come back; 0: nowhere


def nonce(kind: str, seed: int, number: int) -> str:
    """The nonce of a case or its probe."""
    return f"{kind}-{rng_of(kind, seed, number).getrandbits(48):012x}"


def chat(text: str) -> bytes:
    """The body of a chat request."""
    return json.dumps({"messages": [{"role": "user", "content": text}]}).encode()


def probe_of(seed: int, number: int) -> bytes:
    """The good request that follows a case."""
    name = nonce("probe", seed, number)
    body = chat(name)
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: %b\r\nX-Request-ID: %b\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (PROBE_HOST, name.encode(), len(body), body)
    )


Tell = Callable[[Case, "list[tuple[Run, Outcome]]"], None]


class Wire:
    """Runs cases against two gateways, one with a loop and one without. `make(rng, nonce)` gives a case's bytes.

    `settings`: of the gateways, besides the usual; with several, cases take turns.
    """

    def __init__(
        self,
        report: Report,
        make: Callable[[random.Random, str], bytes],
        settings: Sequence[Mapping[str, object]] = ({},),
    ) -> None:
        self._report = report
        self._make = make
        self._settings = settings
        self._gateways: dict[tuple[int, str], Watched] = {}
        self._issued: set[bytes] = set()  # nonces: a spoilt one is nobody's

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        """The gateways are there meanwhile."""
        usual = {"CLIENT_TIMEOUT": CLIENT_TIMEOUT_S, "KEEPALIVE_TIMEOUT": 20, "MAX_HEADER_BYTES": 8192}
        with contextlib.ExitStack() as stack:
            for number, own in enumerate(self._settings):
                for where in WHERE:
                    running = watched(self._report, {**usual, **own}, where == "threads")
                    self._gateways[number, where] = stack.enter_context(running)
            yield

    def case(self, number: int) -> Case:
        """The case of that number."""
        name = nonce("case", self._report.seed, number)
        return Case(number, self._make(rng_of(self._report.name, self._report.seed, number), name))

    def run(self, numbers: Iterator[int]) -> None:
        """Send these cases, and look again at what is odd."""
        odd: list[Case] = []
        some = itertools.takewhile(lambda number: len(odd) < ODD_MAX, numbers)
        with self._serving():
            self._send(map(self.case, some), AT_ONCE, lambda case, runs: odd.append(case))
            look_again(self._report, odd, lambda case: self._send(iter([case]), 8, self._tell))

    def _send(self, cases: Iterator[Case], at_once: int, tell: Tell) -> None:
        """Send every case in every way; `tell` is called for those that break a rule."""

        def talks() -> Iterator[tuple[int, Talk]]:
            for case in cases:
                runs = [run for where in WHERE for run in self._ways(case, where)]
                turn = case.number % len(self._settings)
                if tell != self._tell:
                    self._report.count("cases")
                    self._report.count("conversations", len(runs))
                done: list[tuple[Run, Outcome]] = []
                for run in runs:
                    yield self._gateways[turn, run.where].port, self._talk(run, done, len(runs), tell)

        Talks(at_once).run(talks())

    def _tell(self, case: Case, runs: list[tuple[Run, Outcome]]) -> None:
        for rule, detail in faults(case, self._report.seed, runs, False):
            repro = "\n".join(f"{run.where} {outcome}: {shown(run.segments)}" for run, outcome in _examples(runs))
            self._report.found(rule, case.number, detail, repro)

    def _ways(self, case: Case, where: str) -> Iterator[Run]:
        """Every way in which a case is cut."""
        probe = probe_of(self._report.seed, case.number)
        data = case.data + probe
        rng = rng_of("ways", self._report.seed, case.number)
        yield Run(case, where, [data], 0)
        yield Run(case, where, cuts.some(data, rng), 0)
        ways = [cuts.around(data, MARKS, rng)]
        if where == "loop" and rng.random() < EACH_BYTE_SHARE:
            ways.append(cuts.every(data))
        for way in ways:
            if len(way) > 1:
                yield Run(case, where, way, 0)
        first = cuts.some(case.data, rng, 2)
        if first:
            yield Run(case, where, [*first, probe], len(first))

    def _talk(self, run: Run, done: list[tuple[Run, Outcome]], of: int, tell: Tell) -> Talk:
        for number, segment in enumerate(run.segments):
            if number and number == run.border:
                yield Quiet()
            yield segment
            yield PAUSE
        name = nonce("probe", self._report.seed, run.case.number).encode()
        own = {name, nonce("case", self._report.seed, run.case.number).encode()}
        self._issued |= own
        readings = reference.read_all(run.case.data + probe_of(self._report.seed, run.case.number))
        # Else the probe is no request of its own: the case's bytes swallow it, or begin its first line.
        intact = all(one.verdict == reference.TAKEN for one in reference.read_all(run.case.data))
        answers: list[tuple[int, str]] = []
        end = ""
        while not end:
            method = method_of(readings, len(answers))
            got = yield Await(method)
            if isinstance(got, End):
                end = got.why
            elif got.status >= 200:
                foreign = self._issued.intersection(NONCE.findall(got.body)) - own
                if foreign:
                    end = f"a foreign nonce: {foreign}"
                elif not got.whole:
                    end = "a response is cut short"
                elif intact and got.header(b"x-request-id") == name:
                    end = yield from self._probed(got, name)
                else:
                    answers.append((got.status, code_of(got)))
                    if method == "HEAD" and got.status in REFUSED_WHOLE:
                        end = "closed"  # a head that could not be read was no HEAD's: its body may follow
        done.append((run, Outcome(tuple(answers), end)))
        if len(done) == of and faults(run.case, self._report.seed, done, tell != self._tell):
            done.sort(key=lambda pair: len(pair[0].segments))
            tell(run.case, done)

    def _probed(self, got: Answer, name: bytes) -> Generator[Await, Any, str]:
        if got.status != 200 or name not in got.body:
            return f"the probe's answer is {got.status} {got.body[:200]!r}"
        after = yield Await()
        if after != End("closed"):
            return f"behind the probe's answer came {after}"
        return "kept"


def method_of(readings: list[reference.Reading], index: int) -> str:
    """What the request is whose response comes next: a HEAD's has no body."""
    return readings[index].method.decode() if index < len(readings) else ""


def code_of(answer: Answer) -> str:
    """An error's code; nothing for an answer."""
    if answer.status < 400 or not answer.body:  # (a HEAD's)
        return ""
    try:
        return str(json.loads(answer.body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"no error body: {answer.body[:80]!r}"


def faults(case: Case, seed: int, runs: list[tuple[Run, Outcome]], busy: bool) -> list[tuple[str, str]]:
    """The rules that do not hold, with what happened. `busy`: what was too late (408) may be so for that."""
    readings = reference.read_all(case.data + probe_of(seed, case.number))
    if b"HEAD" in case.data and readings[-1].verdict == reference.UNSURE:
        return []  # whether the response has a body cannot be told
    found: list[tuple[str, str]] = []
    outcomes = [outcome for _, outcome in runs if not (busy and "408" in str(outcome))]
    if not outcomes:
        return []
    for outcome in set(outcomes):
        if any(status == 500 for status, _ in outcome.answers):
            found.append(("no 500", f"{outcome}"))
        if any(code.startswith("no error body") for _, code in outcome.answers):
            found.append(("well-formed", f"{outcome}"))
        if outcome.end not in ("kept", "closed", "reset"):
            rule = "own answer" if "nonce" in outcome.end or "probe" in outcome.end else "well-formed"
            found.append(("an end" if outcome.end == "late" else rule, f"{outcome}"))
        read = against_reference(readings, outcome)
        if read is not None:
            found.append(read)
    bodies = b"content-length" in case.data.lower() or b"transfer-encoding" in case.data.lower()
    different = {outcome for outcome in outcomes if not alike(outcomes[0], outcome, bodies)}
    if different:
        found.append(("same verdict", f"{outcomes[0]} when whole, and {sorted(different)}"))
    return found


def alike(one: Outcome, other: Outcome, bodies: bool) -> bool:
    """Whether two segmentations have come to the same."""
    if one.answers == other.answers and (one.end == "kept") == (other.end == "kept"):
        return True
    short, long = sorted((one, other), key=lambda outcome: (len(outcome.answers), outcome.end == "kept"))
    if not bodies or short.end == "kept" or not short.answers or short.answers[-1][0] in REFUSED_WHOLE:
        return False
    return long.answers[: len(short.answers)] == short.answers


def against_reference(readings: list[reference.Reading], outcome: Outcome) -> Optional[tuple[str, str]]:
    """What the gateway took and the reference does not."""
    verdicts = [reading.verdict for reading in readings]
    if reference.UNSURE in verdicts:
        return None
    taken = verdicts.count(reference.TAKEN)
    limit = len(readings) - (1 if outcome.end == "kept" else 0)
    last = readings[-1]
    if len(outcome.answers) > limit and last.verdict != reference.REFUSED:
        return "a response for a request", f"{outcome}, and these requests: {readings}"
    if last.verdict == reference.REFUSED:
        # (What a GET says in a body is not read: its connection is closed.)
        accepted = len(outcome.answers) > taken and outcome.answers[taken][0] < 300 and last.method != b"GET"
        if accepted or outcome.end == "kept":
            return "two readings", f"taken, and the reference refuses it: {last.why}: {outcome}"
    return None


def _examples(runs: list[tuple[Run, Outcome]]) -> list[tuple[Run, Outcome]]:
    """One run for each outcome, the shortest."""
    found: dict[Outcome, Run] = {}
    for run, outcome in sorted(runs, key=lambda pair: len(pair[0].segments)):
        found.setdefault(outcome, run)
    return [(run, outcome) for outcome, run in found.items()]
