"""One verification: ask members, run what they wrote, decide; ask more, or have a program repaired, while undecided.

Steps (see `steps.py`). A `Verification` belongs to one request and to who runs its steps; it holds no lock, and no
thread while it waits. Members are asked by `begin`, programs run by `Runs`; what they say reaches it by its mailbox.
Whatever ends it, `finally` cancels the members that have not answered and kills what runs.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Sequence
from typing import NamedTuple, Optional

from gateway.errors import GatewayError
from gateway.jsontext import utf8
from gateway.steps import ASIDE, Steps
from gateway.telemetry.events import Mark
from gateway.verify import consensus
from gateway.verify.blocks import CodeBlock, bare_code, code_blocks, without_thinking
from gateway.verify.consensus import Candidate, Decision, Tested
from gateway.verify.execution import Inputs, Judged, Runs
from gateway.verify.finals import groups_of
from gateway.verify.harness.keys import NO_INPUT, error_key, is_error, key_of, matches
from gateway.verify.judging import groups_said, judge_messages
from gateway.verify.panel import Panel, Voice
from gateway.verify.programs import Program, program_of
from gateway.verify.question import Question
from gateway.verify.sandbox.job import Run
from gateway.verify.sandbox.sandbox import Sandbox

RUNS_S = 300.0  # that programs may wait for their turn, when all members have answered: many may be verified at once
LARGE_CHARS = 16_384  # of answers: to look for code in more takes a while
READ_CHARS_MAX = 131_072  # of an answer: code behind that is not looked for
SILENT = (key_of(("", 0)),)  # of a program that ended well, and printed nothing
UNFED = (error_key(NO_INPUT),)  # of one that had nothing to read, and no example says what it might have
REPAIR = (
    "Your program was run, and failed:\n\n{error}\n\n"
    "Correct it. Answer with the whole corrected program in one code block, without anything else."
)


class Reading(NamedTuple):
    """What an answer says."""

    text: str
    """Without what the model has thought aloud."""
    blocks: tuple[CodeBlock, ...]
    program: Optional[Program]


class Verdict(NamedTuple):
    """How a verification has ended."""

    decision: Decision
    voices: list[Voice]
    readings: dict[int, Reading]
    """By the index of the member that has answered."""
    judged: dict[int, Judged]
    """Likewise, of those whose program was run."""
    shown: dict[int, Run]
    inputs: Optional[Inputs]
    unavailable: bool
    """There was something to run, and no sandbox."""


class Verification:
    """Sees one question through with a panel. Each member may be asked `heal_attempts` times to repair its program."""

    def __init__(self, panel: Panel, question: Question, sandbox: Sandbox, heal_attempts: int) -> None:
        self._panel = panel
        self._question = question
        self._heal_attempts = heal_attempts
        self.runs = Runs(sandbox, panel.mailbox, question)
        self._readings: dict[int, Reading] = {}
        self._read_answers: dict[int, int] = {}  # by member, of how many answers that reading is the last
        self._judged: dict[int, Judged] = {}
        self._inputs: Optional[Inputs] = None
        self._entry_point = question.entry_point
        self.marks: tuple[Mark, ...] = ()

    def run(self) -> Steps[Verdict]:
        """The decision, and what it was made of. Raises `no_model_answered`, ClientGone."""
        question, panel = self._question, self._panel
        try:
            panel.invite(question.members[: question.start], question.messages)
            while True:
                seen = panel.answers
                yield from panel.gather(functools.partial(self._may_decide, seen))
                seen = panel.answers
                decision = yield from self._decide()
                if panel.answers == seen and self._is_settled(decision):
                    break
                if any(not voice.over for voice in panel.voices) or panel.answers > seen or self._heal():
                    continue
                more = question.members[len(panel.voices) :]
                if not more or panel.is_late:
                    break
                panel.invite(more, question.messages)
            panel.close()  # what comes from now on would be told, but not judged
            yield from self._read()  # what has come while programs ran
            if not any(voice.text is not None for voice in panel.voices):
                raise nobody(panel.voices)
            decision = yield from self._judge_texts(decision)
            shown = yield from self._show()
            unavailable = any(judged.unavailable for judged in self._judged.values())
            return Verdict(decision, panel.voices, self._readings, self._judged, shown, self._inputs, unavailable)
        finally:
            panel.close()

    def _may_decide(self, seen: int) -> bool:
        """Whether there are more than the `seen` answers, and so many that they may be a strict majority. Where nothing
        is compared, all are waited for."""
        if self._panel.answers <= seen or not self._question.verify:
            return False
        return 2 * sum(voice.text is not None for voice in self._panel.voices) > len(self._question.members)

    # --- deciding --------------------------------------------------------------------------------------------------

    def _decide(self) -> Steps[Decision]:
        question, voices = self._question, self._panel.voices
        self._judged = {}
        yield from self._read()
        writers = [v for v in voices if v.text is not None and self._readings[v.index].program is not None]
        families = [voice.member.family for voice in voices]
        # Now: members may answer while programs run, and are read then.
        texts = [None if v.text is None else self._readings[v.index].text for v in voices]
        if not question.verify:
            return consensus.uncompared([voice.index for voice in voices if voice.text is not None])
        if question.execute and writers:
            yield from self._judge(writers)
            if not all(self._judged[voice.index].unavailable for voice in writers):
                decision = self._decide_judged(writers)
                if decision is not None:
                    return decision
                texts = [None if self._has_failed(index) else text for index, text in enumerate(texts)]
        if sum(len(text) for text in texts if text is not None) > LARGE_CHARS:
            yield ASIDE
        return consensus.decide_texts(groups_of(texts), families, len(question.members), question.min_families)

    def _decide_judged(self, writers: Sequence[Voice]) -> Optional[Decision]:
        """The decision by what programs have done; None: none is known to work, and some cannot be told apart, since
        they print nothing, or lack what they read, and have nothing to be called."""
        question, inputs = self._question, self._inputs
        members, families = len(question.members), question.min_families
        all_judged = [(voice, self._judged[voice.index]) for voice in writers]
        total = len(question.tests) + len(question.pairs)
        if total:
            tested = [Tested(v.index, v.member.family, j.passed) for v, j in all_judged if j.passed is not None]
            return consensus.decide_tested(tested, total, members, families)
        assert inputs is not None
        candidates = [Candidate(v.index, v.member.family, j.keys) for v, j in all_judged if not self._is_mute(j)]
        shape = consensus.Inputs(inputs.tiers or (0,), inputs.expected or (None,))
        decision = consensus.decide(candidates, shape, members, families)
        return None if decision.chosen is None and len(candidates) < len(writers) else decision

    def _has_failed(self, index: int) -> bool:
        """Whether a member's program was run, and is known not to work."""
        judged = self._judged.get(index)
        return judged is not None and not self._is_mute(judged)

    def _is_mute(self, judged: Judged) -> bool:
        """Whether a program could not show whether it works: it printed nothing at all, or had nothing to read."""
        is_called = self._inputs is not None and self._inputs.entry_point is not None
        keys = judged.keys if is_called or judged.keys is None else tuple(dict.fromkeys(judged.keys))
        return keys in (SILENT, UNFED)

    def _read(self) -> Steps[None]:
        """Look for code in what has come."""
        unread_chars = 0
        for voice in self._panel.voices:
            if voice.text is None or self._read_answers.get(voice.index) == voice.answers:
                continue
            unread_chars += len(voice.text)
            if unread_chars > LARGE_CHARS:
                yield ASIDE
            reading = read(voice.text, self._entry_point)
            if voice.before is not None and not self._repairs(voice, reading):
                voice.take_back()
            else:
                self._readings[voice.index] = reading
            voice.before = None
            self._read_answers[voice.index] = voice.answers

    def _repairs(self, voice: Voice, reading: Reading) -> bool:
        """Whether an answer brings another program than the one that failed: neither an excuse nor the same again."""
        if reading.program is None:
            return False
        failed = self._program(voice)
        return (reading.program.language, reading.program.code) != (failed.language, failed.code)

    def _judge(self, writers: Sequence[Voice]) -> Steps[None]:
        programs = [self._program(voice) for voice in writers]
        answers = [self._readings[voice.index].text for voice in writers]
        until_s = self._runs_until_s()
        inputs = self._inputs = yield from self.runs.inputs(programs, answers, until_s)
        if inputs.entry_point is not None and inputs.entry_point != self._entry_point:
            self._entry_point = inputs.entry_point  # now that it is known, what answers consist of is seen better
            if sum(map(len, answers)) > LARGE_CHARS:
                yield ASIDE
            for voice in writers:
                reading = self._readings[voice.index]
                program = program_of(reading.blocks, inputs.entry_point)
                if program is not None:
                    self._readings[voice.index] = reading._replace(program=program)
            programs = [self._program(voice) for voice in writers]
        results = yield from self.runs.judge(programs, inputs, until_s)
        self._judged = {voice.index: judged for voice, judged in zip(writers, results)}

    def _program(self, voice: Voice) -> Program:
        program = self._readings[voice.index].program
        assert program is not None
        return program

    def _runs_until_s(self) -> float:
        return max(time.monotonic(), self._panel.deadline_s) + self._question.limits.timeout_s + RUNS_S

    def _judge_texts(self, decision: Decision) -> Steps[Decision]:
        """Where words alone do not decide, ask the judge, if there is one."""
        question = self._question
        if question.judge is None or not question.verify or self._judged or 2 * decision.agreement > 1:
            return decision
        texts = [None if v.text is None else self._readings[v.index].text for v in self._panel.voices]
        if sum(text is not None for text in texts) < 2:
            return decision
        began_s = time.monotonic()
        try:
            said = yield from self._panel.consult(question.judge, judge_messages(question.prompt, texts))
        finally:
            told = {"model": question.judge.model}
            self.marks += (Mark("judge", began_s, time.monotonic() - began_s, told),)
        groups = None if said is None else groups_said(said, texts)
        if groups is None:
            return decision
        families = [voice.member.family for voice in self._panel.voices]
        decided = consensus.decide_texts(groups, families, len(question.members), question.min_families)
        return decided._replace(details={**decided.details, "judge": question.judge.model})

    def _is_settled(self, decision: Decision) -> bool:
        """Whether no further answer is needed: it is verified, or there is nothing that it could fail by and a strict
        majority says it."""
        question = self._question
        if decision.verified or not question.verify:
            return True
        inputs = self._inputs
        demands = bool(question.tests or question.pairs) or (
            inputs is not None and any(key is not None for key in inputs.expected)
        )
        return not demands and decision.agrees

    def _heal(self) -> bool:
        """Send programs that have failed back to who wrote them, once each; whether there are any."""
        if self._panel.is_late:
            return False
        healing = False
        for voice in self._panel.voices:
            error = None if voice.text is None else self._failure(voice)
            if error is None or voice.heals >= self._heal_attempts:
                continue
            voice.heals += 1
            healing = True
            after = (
                {"role": "assistant", "content": voice.text},
                {"role": "user", "content": REPAIR.format(error=error)},
            )
            self._panel.ask(voice, (*self._question.messages, *after))
        return healing

    def _failure(self, voice: Voice) -> Optional[str]:
        """Why a member's program has failed; None: it has not, as far as can be seen."""
        judged = self._judged.get(voice.index)
        if judged is None or judged.unavailable or judged.is_tests_fault or judged.is_judges_fault:
            return None
        if judged.error is not None:
            return judged.error
        keys, inputs = judged.keys, self._inputs
        if keys is None or inputs is None or keys == UNFED:
            return None
        what = "call" if inputs.entry_point is not None else "run"
        if all(map(is_error, keys)):
            return f"every {what} ends with {keys[0][1:] or 'an exception'}" if keys else None
        for index, expected in enumerate(inputs.expected):
            if expected is not None and not matches(keys[index], expected) and self._somebody_gives(index, expected):
                given = inputs.arguments[index]
                call = f"{inputs.entry_point} called with {given}"
                if inputs.entry_point is None:
                    call = f"the program, which is to read {given!r},"
                return f"{call} does not give what the example in the question says"
        return None

    def _somebody_gives(self, index: int, expected: str) -> bool:
        """An example that nobody's program gives may have been misread."""
        return any(j.keys is not None and matches(j.keys[index], expected) for j in self._judged.values())

    def _show(self) -> Steps[dict[int, Run]]:
        """Run each program by itself, if its output is wanted."""
        if not (self._question.show_runs and self._question.execute):
            return {}
        writers = [v for v in self._panel.voices if v.text is not None and self._readings[v.index].program is not None]
        programs = [self._program(voice) for voice in writers]
        shown = yield from self.runs.show(programs, self._inputs, self._runs_until_s())
        return {voice.index: shown[program] for voice, program in zip(writers, programs) if program in shown}


def read(text: str, entry_point: Optional[str]) -> Reading:
    """What an answer says: its code, and what that makes."""
    if len(text) > READ_CHARS_MAX:  # and of what it says, nothing but that it is the same
        digest = hashlib.sha256(utf8(text)).hexdigest()
        text = f"{text[:READ_CHARS_MAX]}\n\n{digest}"
    said = without_thinking(text)
    blocks = code_blocks(text)
    if not blocks:
        bare = bare_code(said)
        blocks = [] if bare is None else [bare]
    return Reading(said, tuple(blocks), program_of(blocks, entry_point))


def nobody(voices: Sequence[Voice]) -> GatewayError:
    """The error of a verification in which no member has answered. Where all were refused for the same reason, which is
    the caller's own, that one."""
    errors = [voice.error for voice in voices if voice.error is not None]
    if errors and len({error.code for error in errors}) == 1 and errors[0].status in (400, 403, 404, 413, 429):
        if errors[0].code != "backend_rate_limited":
            return errors[0]
    details = {voice.member.model: described(voice.error) for voice in voices if voice.error is not None}
    return GatewayError("no_model_answered", "none of the models has answered", details={"details": details})


def described(error: GatewayError) -> dict[str, object]:
    """An error of one member."""
    return {"error": error.code, "message": error.message}
