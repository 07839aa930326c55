"""One verification from question to verdict: whom it waits for, whom it asks again, what it runs and how often."""

from __future__ import annotations

import json
import unittest
from collections.abc import Mapping
from typing import Any, Optional

from gateway.errors import ClientGone, GatewayError
from gateway.inference import Answer
from gateway.verify.answering import has_consensus, noted, response_of, verification_of
from gateway.verify.execution import JUDGED_S, SPARE_S, START_S
from gateway.verify.panel import LARGE_BYTES, Member, Panel
from gateway.verify.question import Question, RunLimits
from gateway.verify.sandbox.job import Job, Run
from gateway.verify.verification import LARGE_CHARS, Verdict, Verification
from tests.panels import UNAVAILABLE, ByHand, Clock, Jail, Members, answer_of, asked_of, clock_of, code, run_of

MODULES = ("gateway.verify.panel", "gateway.verify.verification", "gateway.verify.execution")
PROMPT = "Write f(x) that adds one.\n\n>>> f(1)\n2\n"
RIGHT, WRONG, BROKEN = code("return x + 1"), code("return x"), code("return x +")
ALSO_RIGHT = code("return 1 + x")
EXAMPLE = {
    "entry_point": "f",
    "inputs": [{"tier": 0, "args": "(1,)", "expected": "i2"}, {"tier": 2, "args": "(5,)"}],
}
NO_EXAMPLE = {**EXAMPLE, "inputs": [{"tier": 0, "args": "(1,)"}, {"tier": 2, "args": "(5,)"}]}
FINE = RunLimits(30.0, 256 << 20, 1.0)


def members_of(text: str) -> tuple[Member, ...]:
    return tuple(Member(name, name) for name in text)


def padded(text: str) -> Answer:
    """An answer whose JSON is large, and whose text is not."""
    answer = answer_of(text)
    return Answer(answer.body + b" " * LARGE_BYTES, answer.usage)


def question(members: str = "abc", **changes: Any) -> Question:
    messages = ({"role": "user", "content": PROMPT},)
    start = changes.pop("start", len(members))
    return Question(PROMPT, members_of(members), start, 1, FINE, messages)._replace(**changes)


class VerificationCase(unittest.TestCase):
    clock: Clock

    def setUp(self) -> None:
        manager = clock_of(*MODULES)
        self.clock = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        self.members = Members()
        self.asked = asked_of()
        self.held: set[str] = set()  # the harnesses whose jobs are not answered yet
        self.made: Mapping[str, Any] = EXAMPLE
        self.reports: dict[str, Mapping[str, Any]] = {
            "return x + 1": {"error": None, "keys": ["i2", "i6"]},
            "return 1 + x": {"error": None, "keys": ["i2", "i6"]},
            "return x +": {"error": {"kind": "syntax", "text": "invalid syntax"}, "keys": None},
            "return x": {"error": None, "keys": ["i1", "i5"]},
        }
        self.jail = Jail(self.answer)

    def answer(self, job: Job) -> Optional[Run]:
        if job.harness in self.held:
            return None
        return self.run_of(job)

    def run_of(self, job: Job) -> Run:
        if job.harness == "generate":
            return run_of(self.made)
        if job.harness == "judge":
            return run_of(next(report for part, report in self.reports.items() if f"    {part}\n" in job.code))
        return run_of(stdout=b"printed")

    def begin(self, asks: Optional[Question] = None, heals: int = 0, for_s: float = 60.0) -> ByHand[Verdict]:
        panel = self.panel = self.members.panel(self.clock.now_s + for_s, self.asked)
        verification = self.verification = Verification(panel, asks or question(), self.jail.sandbox, heals)
        return ByHand(verification.run())

    panel: Panel
    verification: Verification

    def say(self, running: ByHand[Verdict], *texts: Optional[str], start: int = 0) -> None:
        """Have the calls from `start` on answer these texts, None: an error; then go on."""
        for invitation, text in zip(self.members.calls[start:], texts):
            if text is None:
                invitation.fail()
            else:
                invitation.say(text)
            running.go()

    @property
    def cancelled(self) -> list[int]:
        return [min(1, invitation.cancelled) for invitation in self.members.calls]


class MajorityTest(VerificationCase):
    def test_a_majority_that_agrees_is_not_waited_beyond(self) -> None:
        running = self.begin()
        self.say(running, RIGHT)
        self.assertFalse(running.ended)
        self.assertEqual(self.jail.tickets, [])  # one of three decides nothing
        self.say(running, RIGHT, ALSO_RIGHT)
        verdict = running.result
        self.assertEqual((verdict.decision.chosen, verdict.decision.verified), (0, True))
        self.assertEqual(self.cancelled, [0, 0, 1])
        error = verdict.voices[2].error
        self.assertEqual(error and error.code, "client_closed_request")

    def test_two_that_differ_are_waited_beyond(self) -> None:
        running = self.begin()
        self.say(running, RIGHT, WRONG)
        self.assertFalse(running.ended)
        self.say(running, ALSO_RIGHT, start=2)
        decision = running.result.decision
        self.assertEqual((decision.chosen, decision.verified, decision.groups[0]), (0, True, [0, 2]))

    def test_without_an_example_a_majority_is_enough_but_not_verified(self) -> None:
        self.made = NO_EXAMPLE
        running = self.begin()
        self.say(running, WRONG, WRONG)
        decision = running.result.decision
        self.assertEqual((decision.chosen, decision.verified, decision.strategy), (0, False, "majority"))
        self.assertEqual(self.cancelled, [0, 0, 1])

    def test_a_majority_that_fails_the_example_is_waited_beyond(self) -> None:
        running = self.begin()
        self.say(running, WRONG, WRONG)
        self.assertFalse(running.ended)
        self.say(running, RIGHT, start=2)
        decision = running.result.decision
        self.assertEqual((decision.chosen, decision.verified), (2, False))

    def test_words_decide_where_there_is_no_code(self) -> None:
        running = self.begin()
        self.say(running, "The answer is 42.", "So it is 42.")
        decision = running.result.decision
        self.assertEqual((decision.strategy, decision.verified, decision.groups), ("majority", False, [[0, 1]]))
        self.assertEqual(self.jail.tickets, [])

    def test_failed_members_count_among_all(self) -> None:
        running = self.begin(question("abcd"))
        self.say(running, None, None, RIGHT, ALSO_RIGHT)
        decision = running.result.decision
        self.assertEqual((decision.agreement, decision.verified), (0.5, False))

    def test_one_that_answers_while_programs_run_is_heard_of_too(self) -> None:
        self.held = {"judge"}
        running = self.begin(question(show_runs=True))
        self.say(running, RIGHT, ALSO_RIGHT)
        self.say(running, "I do not know.", start=2)
        for ticket in self.jail.of("judge"):
            ticket.done(self.run_of(ticket.job))
        running.go()
        verdict = running.result
        self.assertTrue(verdict.decision.verified)
        self.assertEqual(verdict.voices[2].text, "I do not know.")
        self.assertEqual(self.cancelled, [0, 0, 0])
        self.assertEqual(response_of(verdict, "r", 1.0, True)["model_responses"][2]["text"], "I do not know.")

    def test_one_that_is_not_waited_for_is_left_before_programs_are_shown(self) -> None:
        self.held = {""}
        running = self.begin(question(show_runs=True))
        self.say(running, RIGHT, RIGHT)
        self.assertFalse(running.ended)
        self.assertEqual(self.cancelled, [0, 0, 1])
        self.members.calls[2].say("too late")
        running.go()
        for ticket in self.jail.of(""):
            ticket.done(self.run_of(ticket.job))
        running.go()
        self.assertIsNone(running.result.voices[2].text)

    def test_so_it_is_where_nothing_can_be_run(self) -> None:
        self.held = {"generate", "judge"}
        running = self.begin()
        self.say(running, RIGHT, WRONG, RIGHT)
        for harness in ("generate", "judge"):
            for ticket in self.jail.of(harness):
                ticket.done(UNAVAILABLE)
            running.go()
            self.held = set()
            self.jail.answer = lambda job: UNAVAILABLE
        self.assertTrue(running.result.unavailable)


class NotComparedTest(VerificationCase):
    def test_without_verify_all_are_waited_for_and_nothing_is_judged(self) -> None:
        running = self.begin(question(verify=False, show_runs=True))
        self.say(running, RIGHT, RIGHT)
        self.assertFalse(running.ended)
        self.say(running, WRONG, start=2)
        verdict = running.result
        decision = verdict.decision
        self.assertEqual((decision.strategy, decision.verified), ("best_available", False))
        self.assertEqual((decision.agreement, decision.groups, decision.chosen), (0.0, [], 0))
        self.assertEqual(
            [ticket.job.harness for ticket in self.jail.tickets], ["", ""]
        )  # one program was written twice
        self.assertEqual(sorted(verdict.shown), [0, 1, 2])

    def test_without_execution_nothing_is_run(self) -> None:
        running = self.begin(question(execute=False, show_runs=True))
        self.say(running, RIGHT, RIGHT, WRONG)
        verdict = running.result
        self.assertEqual((self.jail.tickets, verdict.shown, verdict.judged), ([], {}, {}))
        self.assertFalse(verdict.decision.verified)


class AdaptiveTest(VerificationCase):
    def test_only_the_first_are_asked_and_no_more_when_they_agree(self) -> None:
        running = self.begin(question("abcde", start=3))
        self.assertEqual(self.members.models, ["a", "b", "c"])
        self.say(running, RIGHT, ALSO_RIGHT, RIGHT)
        self.assertEqual(len(running.result.voices), 3)
        self.assertEqual(self.members.models, ["a", "b", "c"])

    def test_the_others_are_asked_while_those_are_undecided(self) -> None:
        running = self.begin(question("abcde", start=3))
        self.say(running, RIGHT, WRONG, None)
        self.assertEqual(self.members.models, ["a", "b", "c", "d", "e"])
        self.assertEqual(self.members.calls[3].messages, self.members.calls[0].messages)
        self.say(running, ALSO_RIGHT, RIGHT, start=3)
        decision = running.result.decision
        self.assertEqual((decision.groups[0], decision.agreement), ([0, 3, 4], 0.6))

    def test_nobody_is_asked_after_the_deadline(self) -> None:
        running = self.begin(question("abcde", start=3))
        self.say(running, RIGHT)
        self.clock.now_s += 60
        running.time_passes()
        running.go()
        verdict = running.result
        self.assertEqual(self.members.models, ["a", "b", "c"])
        self.assertEqual((verdict.decision.chosen, verdict.decision.verified), (0, False))
        self.assertEqual([v.error and v.error.code for v in verdict.voices], [None, *["gateway_timeout"] * 2])


class HealTest(VerificationCase):
    def test_who_failed_is_asked_once_more_with_the_error(self) -> None:
        running = self.begin(heals=1)
        self.say(running, BROKEN, WRONG, RIGHT)
        self.assertEqual(self.members.models, ["a", "b", "c", "a", "b"])
        messages = self.members.calls[3].messages
        self.assertEqual([m["role"] for m in messages], ["user", "assistant", "user"])
        self.assertEqual((messages[0]["content"], messages[1]["content"]), (PROMPT, BROKEN))
        self.assertIn("syntax error: invalid syntax", messages[2]["content"])
        self.assertIn("f called with (1,)", self.members.calls[4].messages[2]["content"])
        self.say(running, ALSO_RIGHT, start=3)
        verdict = running.result
        self.assertEqual((verdict.decision.verified, verdict.decision.groups[0]), (True, [0, 2]))
        self.assertEqual([voice.healed for voice in verdict.voices], [True, False, False])
        self.assertEqual(len(verdict.voices), 3)

    def test_an_excuse_is_no_repair(self) -> None:
        running = self.begin(question("abc"), heals=1)
        self.say(running, BROKEN, BROKEN, RIGHT)
        self.say(running, "Sorry, I cannot help with that.", "Sorry, I cannot help with that.", start=3)
        verdict = running.result
        self.assertEqual([voice.text for voice in verdict.voices], [BROKEN, BROKEN, RIGHT])
        self.assertFalse(any(voice.healed for voice in verdict.voices))
        self.assertEqual((verdict.decision.chosen, verdict.decision.strategy), (2, "best_available"))

    def test_the_same_program_again_is_no_repair(self) -> None:
        running = self.begin(question("ab"), heals=2)
        self.say(running, BROKEN, RIGHT)
        self.say(running, "Corrected:\n\n" + BROKEN, start=2)
        self.say(running, WRONG, start=3)
        verdict = running.result
        self.assertEqual([voice.text for voice in verdict.voices], [WRONG, RIGHT])
        self.assertTrue(verdict.voices[0].healed)
        self.members = Members()
        running = self.begin(question("ab"), heals=2)
        self.say(running, BROKEN, RIGHT)
        self.say(running, "Corrected:\n\n" + BROKEN, start=2)
        self.say(running, BROKEN + "Now it is right.", start=3)
        verdict = running.result
        self.assertEqual([voice.text for voice in verdict.voices], [BROKEN, RIGHT])
        self.assertFalse(verdict.voices[0].healed)

    def test_a_repair_that_is_repaired_in_vain_stays_a_repaired_one(self) -> None:
        running = self.begin(question("ab"), heals=2)
        self.say(running, BROKEN, RIGHT)
        self.say(running, WRONG, start=2)
        self.assertEqual(len(self.members.calls), 4)
        self.say(running, "I cannot.", start=3)
        voice = running.result.voices[0]
        self.assertEqual((voice.text, voice.healed), (WRONG, True))

    def test_nobody_is_asked_a_third_time(self) -> None:
        running = self.begin(question("ab"), heals=1)
        self.say(running, BROKEN, BROKEN)
        self.assertEqual(self.members.models, ["a", "b", "a", "b"])
        self.say(running, BROKEN, code("return x +", "g"), start=2)
        self.assertTrue(running.ended)
        self.assertEqual(len(self.members.calls), 4)
        self.assertFalse(running.result.decision.verified)

    def test_where_none_is_to_be_repaired_nobody_is_asked_again(self) -> None:
        running = self.begin(question("ab"), heals=0)
        self.say(running, BROKEN, RIGHT)
        self.assertTrue(running.ended)
        self.assertEqual(len(self.members.calls), 2)

    def test_an_example_that_nobody_meets_may_be_misread_and_repairs_nothing(self) -> None:
        running = self.begin(question("ab"), heals=1)
        self.say(running, WRONG, WRONG)
        self.assertTrue(running.ended)
        self.assertEqual(len(self.members.calls), 2)

    def test_a_repair_is_not_waited_for_once_a_majority_is_verified(self) -> None:
        running = self.begin(heals=1)
        self.say(running, BROKEN, RIGHT, None)
        self.assertEqual(self.members.models, ["a", "b", "c", "a"])
        self.say(running, RIGHT, start=3)
        self.assertTrue(running.result.decision.verified)

    def test_a_repair_that_fails_leaves_what_there_was(self) -> None:
        running = self.begin(question("ab"), heals=1)
        self.say(running, RIGHT, BROKEN)
        self.say(running, None, start=2)
        verdict = running.result
        self.assertEqual([voice.text for voice in verdict.voices], [RIGHT, BROKEN])
        self.assertFalse(verdict.voices[1].healed)
        self.assertEqual(verdict.decision.chosen, 0)

    def test_a_repair_in_other_words_is_no_program_and_no_second_voice(self) -> None:
        running = self.begin(question("ab"), heals=1)
        self.say(running, RIGHT, BROKEN)
        self.say(running, "I cannot.", start=2)
        decision = running.result.decision
        self.assertEqual((decision.chosen, decision.groups[0], decision.agreement), (0, [0], 0.5))

    def test_nothing_is_repaired_for_want_of_a_sandbox(self) -> None:
        self.jail.answer = lambda job: UNAVAILABLE
        running = self.begin(heals=1)
        self.say(running, BROKEN, WRONG, RIGHT)
        self.assertEqual(len(self.members.calls), 3)
        self.assertTrue(running.ended)

    def test_what_could_not_be_judged_is_tried_once_more_and_is_nothing_to_repair(self) -> None:
        fault = {"error": {"kind": "judge", "text": "no process could be started"}, "keys": ["!judge", "!judge"]}
        self.reports["return x"] = fault
        running = self.begin(question("abc"), heals=1)
        self.say(running, RIGHT, None, WRONG)
        self.assertEqual(len(self.members.calls), 3)
        verdict = running.result
        self.assertEqual([ticket.job.code.count("x + 1") for ticket in self.jail.of("judge")], [1, 0, 0])
        self.assertEqual((verdict.decision.chosen, verdict.decision.agrees), (0, False))
        told = verification_of(verdict)
        self.assertEqual(told["details"]["not_judged"], {"c": "judge error: no process could be started"})
        self.assertNotIn("failures", told["details"])
        self.assertEqual((told["successful_executions"], told["total_executions"]), (1, 1))

    def test_what_can_be_judged_the_second_time_counts_as_if_it_were_the_first(self) -> None:
        answers = iter([run_of({"error": {"kind": "judge", "text": "?"}, "keys": []})])
        self.jail.answer = lambda job: (next(answers, None) if job.harness == "judge" else None) or self.run_of(job)
        running = self.begin(question("ab"))
        self.say(running, RIGHT, RIGHT)
        self.assertTrue(running.result.decision.verified)
        self.assertEqual(len(self.jail.of("judge")), 2)

    def test_tests_tell_what_is_to_be_repaired(self) -> None:
        self.reports["return x"] = {
            "error": None,
            "keys": [],
            "passed": 0,
            "total": 1,
            "failures": [{"index": 0, "text": "1 != 2"}],
        }
        self.reports["return x + 1"] = {"error": None, "keys": [], "passed": 1, "total": 1, "failures": []}
        running = self.begin(question("ab", tests=("assert f(1) == 2",)), heals=1)
        self.say(running, WRONG)
        self.say(running, WRONG, WRONG)
        self.assertIn("1 of 1 tests failed; the first: 1 != 2", self.members.calls[2].messages[2]["content"])
        self.say(running, RIGHT, start=2)
        decision = running.result.decision
        self.assertEqual((decision.strategy, decision.chosen, decision.verified), ("tests_passed", 0, True))

    def test_what_no_program_could_do_better_is_nothing_to_repair(self) -> None:
        faulty = {"index": 0, "text": "the test is not Python", "faulty": True}
        real = {"index": 1, "text": "1 != 2", "faulty": False}
        report: dict[str, Any] = {"error": None, "keys": [], "passed": 0, "total": 2}
        for failures, repaired in (([faulty], False), ([faulty, faulty], False), ([faulty, real], True)):
            with self.subTest(failures=failures):
                self.members.calls.clear()
                self.reports["return x"] = {**report, "failures": failures}
                running = self.begin(question("a", tests=("assert f(1 ==", "assert f(1) == 2")), heals=1)
                self.say(running, WRONG)
                self.assertEqual(len(self.members.calls), 1 + repaired)
                if repaired:
                    self.assertIn(
                        "2 of 2 tests failed; the first: 1 != 2", self.members.calls[1].messages[2]["content"]
                    )
                    running.close()
                else:
                    failures_told = verification_of(running.result)["details"]["failures"]
                    self.assertIn("the test is not Python", failures_told["a"])


class JudgeTest(VerificationCase):
    JUDGE = Member("j", "j")

    def judged(self, *texts: Optional[str]) -> ByHand[Verdict]:
        running = self.begin(question("".join("abc"[: len(texts)]), judge=self.JUDGE))
        self.say(running, *texts)
        return running

    def test_it_is_asked_where_words_do_not_decide(self) -> None:
        running = self.judged("Paris, on the Seine.", "The capital, called Paris, of France.", "Lyon.")
        self.assertEqual(self.members.models[3:], ["j"])
        content = self.members.calls[3].messages[1]["content"]
        self.assertIn(PROMPT.strip(), content)
        self.assertIn("Answer 3:\nLyon.", content)
        self.say(running, "[[1, 2], [3]]", start=3)
        decision = running.result.decision
        self.assertEqual((decision.strategy, decision.groups, decision.verified), ("majority", [[0, 1], [2]], False))
        self.assertEqual(decision.details["judge"], "j")
        self.assertEqual(len(running.result.voices), 3)

    def test_it_is_not_asked_where_they_do(self) -> None:
        running = self.judged("42", "42", "43")
        self.assertTrue(running.ended)
        self.assertEqual(self.members.models, ["a", "b", "c"])

    def test_it_is_not_asked_of_programs_that_were_run_nor_of_one_answer(self) -> None:
        self.assertTrue(self.judged(RIGHT, WRONG, None).ended)
        self.assertNotIn("j", self.members.models)
        self.members = Members()
        self.assertTrue(self.judged("Paris.", None, None).ended)
        self.assertNotIn("j", self.members.models)

    def test_what_it_says_in_vain_changes_nothing(self) -> None:
        for text in ("They all agree.", "[[1, [2]]]", None):
            self.members = Members()
            running = self.judged("Paris, on the Seine.", "The capital of France.", "Lyon.")
            self.say(running, text, start=3)
            decision = running.result.decision
            self.assertEqual((decision.strategy, decision.chosen), ("best_available", 0))
            self.assertNotIn("judge", decision.details)


class UnavailableTest(VerificationCase):
    def test_without_a_sandbox_words_decide_and_it_is_said(self) -> None:
        self.jail.answer = lambda job: UNAVAILABLE
        running = self.begin(question(show_runs=True))
        self.say(running, RIGHT, RIGHT)
        verdict = running.result
        self.assertTrue(verdict.unavailable)
        self.assertFalse(verdict.decision.verified)
        self.assertEqual(verdict.decision.strategy, "majority")
        told = verification_of(verdict)
        self.assertEqual(told["details"]["error"], "isolation_unavailable")
        self.assertEqual((told["successful_executions"], told["total_executions"]), (0, 0))
        shown = response_of(verdict, "r", 1.0, True)["model_responses"][0]["execution_results"][0]
        self.assertEqual((shown["success"], shown["error"], shown["isolation"]), (False, "isolation_unavailable", None))


class RunTest(VerificationCase):
    def test_what_was_run_is_not_run_again(self) -> None:
        running = self.begin(question("abc"))
        self.say(running, RIGHT, WRONG)
        judged = [ticket.job.code for ticket in self.jail.of("judge")]
        self.assertEqual(len(judged), 2)
        self.say(running, RIGHT, start=2)
        self.assertTrue(running.ended)
        # The third wrote what the first did; but there is one more answer, and with it other inputs might be made.
        self.assertEqual(len(self.jail.of("generate")), 2)
        self.assertEqual(len(self.jail.of("judge")), 2)

    def test_inputs_are_made_of_all_that_was_written(self) -> None:
        running = self.begin(question("abc", inputs=([7],)))
        self.say(running, RIGHT, WRONG)
        payload = self.jail.of("generate")[0].payload
        self.assertEqual((payload["prompt"], payload["inputs"], payload["language"]), (PROMPT, [[7]], "python"))
        self.assertEqual(len(payload["candidates"]), 2)
        self.assertEqual(payload["answers"][0].strip(), RIGHT.strip())
        job = self.jail.of("judge")[0]
        self.assertEqual(job.payload["inputs"], ["(1,)", "(5,)"])
        self.assertEqual((job.payload["mode"], job.payload["entry_point"]), ("outputs", "f"))

    def test_tests_take_the_place_of_inputs(self) -> None:
        self.reports["return x + 1"] = {"error": None, "keys": [], "passed": 2, "total": 2, "failures": []}
        pairs = ({"input": "1", "output": "2"},)
        for changes in ({"tests": ("assert 1",)}, {"pairs": pairs}, {"tests": ("assert 1",), "pairs": pairs}):
            self.jail.tickets.clear()
            self.members = Members()
            running = self.begin(question("ab", **changes))
            self.say(running, RIGHT, None)
            self.assertTrue(running.result.decision.verified)
            self.assertEqual(self.jail.of("generate"), [])
            payload = self.jail.of("judge")[0].payload
            given = (payload["mode"], payload["tests"], payload["pairs"])
            self.assertEqual(given, ("tests", list(changes.get("tests", ())), list(changes.get("pairs", ()))))

    def test_a_program_is_shown_with_what_the_first_pair_has_it_read(self) -> None:
        pairs = ({"input": "7", "output": "8"}, {"input": "8", "output": "9"})
        for changes, stdin in (({"pairs": pairs}, b"7"), ({}, b"")):
            running = self.begin(question("a", show_runs=True, **changes))
            self.members.calls[-1].say(RIGHT)
            running.go()
            self.assertTrue(running.ended)
            self.assertEqual(self.jail.of("")[-1].job.payload, stdin)

    def test_without_an_entry_point_inputs_are_what_programs_read(self) -> None:
        first, second = EXAMPLE["inputs"]
        self.made = {"entry_point": None, "inputs": [{**first, "args": "1 2"}, second]}  # type: ignore[dict-item]
        running = self.begin(question("ab", show_runs=True), heals=1)
        self.say(running, RIGHT, WRONG)
        payload = self.jail.of("judge")[0].payload
        self.assertEqual((payload["mode"], payload["inputs"]), ("program", ["1 2", "(5,)"]))
        self.assertEqual((payload["entry_point"], payload["total_s"]), (None, JUDGED_S + 2 * START_S))
        asked = self.members.calls[2].messages[-1]["content"]
        self.assertIn("the program, which is to read '1 2', does not give what the example", asked)
        self.say(running, RIGHT, start=2)
        self.assertTrue(running.result.decision.verified)
        self.assertEqual({ticket.job.payload for ticket in self.jail.of("")}, {b"1 2"})

    def test_programs_that_print_nothing_whatever_they_read_agree_about_nothing(self) -> None:
        self.made = {"entry_point": None, "inputs": [{"tier": 0, "args": "1"}, {"tier": 2, "args": "2"}]}
        silent = {"error": None, "keys": ["(s'',0)"] * 2}
        self.reports.update({"return x + 1": silent, "return 1 + x": silent})
        running = self.begin(question())
        self.say(running, RIGHT, ALSO_RIGHT, RIGHT)
        decision = running.result.decision
        self.assertEqual((decision.verified, decision.strategy, decision.groups[0]), (False, "majority", [0, 2]))

    def test_starting_another_language_for_each_run_is_allowed_for(self) -> None:
        first, second = EXAMPLE["inputs"]
        self.made = {"entry_point": None, "inputs": [first, second]}
        running = self.begin(question("ab"))
        text = RIGHT.replace("```python", "```javascript")
        self.say(running, text, text)
        self.assertTrue(running.ended)
        self.assertEqual(self.jail.of("judge")[0].payload["total_s"], JUDGED_S + 2 * START_S)

    def test_programs_that_only_lack_what_they_read_are_given_and_not_sent_back(self) -> None:
        self.made = {"entry_point": None}
        unfed = {"error": None, "keys": ["!no input"]}
        self.reports.update({"return x + 1": unfed, "return 1 + x": unfed})
        for texts, strategy, chosen in (
            ((BROKEN, RIGHT, ALSO_RIGHT), "best_available", 1),
            ((BROKEN, ALSO_RIGHT, ALSO_RIGHT), "majority", 1),
            ((WRONG, RIGHT, RIGHT), "best_available", 0),  # that prints something
            ((BROKEN, BROKEN, BROKEN), "abstained", None),
        ):
            self.members = Members()
            running = self.begin(question())
            self.say(running, *texts)
            decision = running.result.decision
            self.assertEqual((decision.verified, decision.strategy, decision.chosen), (False, strategy, chosen))
        self.members = Members()
        running = self.begin(question("ab"), heals=1)
        self.say(running, RIGHT, ALSO_RIGHT)
        self.assertTrue(running.ended)
        self.assertEqual(len(self.members.calls), 2)

    def test_a_run_may_take_what_the_request_allows(self) -> None:
        running = self.begin(question("ab", limits=RunLimits(4.0, 64 << 20, 0.5), show_runs=True))
        self.say(running, RIGHT, RIGHT)
        self.assertTrue(running.ended)
        limits = {ticket.job.harness: ticket.job.limits for ticket in self.jail.tickets}
        self.assertEqual({run.memory_bytes for run in limits.values()}, {64 << 20})
        self.assertEqual((limits[""].wall_s, limits[""].cpu_s), (4.0, 2.0))
        self.assertLessEqual(limits["judge"].wall_s, 2 * JUDGED_S + SPARE_S)

    def test_a_run_that_does_not_end_is_killed_and_has_failed(self) -> None:
        self.held = {"judge"}
        running = self.begin(question("ab"))
        self.say(running, RIGHT, WRONG)
        self.assertFalse(running.ended)
        first = self.jail.of("judge")[0]
        first.done(self.run_of(first.job))
        running.go()
        self.clock.now_s += 10_000
        running.time_passes()
        verdict = running.result
        self.assertEqual(self.jail.of("judge")[1].cancelled, 1)
        self.assertEqual(verdict.judged[1].error, "it did not end in time")
        self.assertEqual(verdict.decision.chosen, 0)

    def test_a_report_that_is_none_is_a_failure(self) -> None:
        for run, error in (
            (run_of(), "it ended with status 0"),
            (run_of()._replace(report=b"[1"), "it ended with status 0"),
            (run_of()._replace(report=b"[" * 100_000), "it ended with status 0"),
            (run_of()._replace(report=b"[]"), "it ended with status 0"),
            (run_of(reason="memory", exit_code=None), "it used too much memory"),
            (run_of(reason="cpu", exit_code=None), "it used too much CPU time"),
            (run_of(reason="wall", exit_code=None), "it did not end in time"),
            (run_of(reason="output", exit_code=None), "it printed too much"),
            (run_of(exit_code=3, stderr=b"no\xff"), "it ended with status 3 no\ufffd"),
        ):
            self.members = Members()
            self.jail = Jail(lambda job, run=run: run if job.harness == "judge" else run_of(EXAMPLE))  # type: ignore[misc]
            running = self.begin(question("ab"))
            self.say(running, RIGHT, RIGHT)
            verdict = running.result
            self.assertEqual(verdict.judged[0].error, error)
            self.assertFalse(verdict.decision.verified)

    def test_a_large_answer_is_read_on_a_thread(self) -> None:
        running = self.begin(question("ab"))
        self.say(running, RIGHT + "\n" * LARGE_CHARS, RIGHT)
        self.assertTrue(running.result.decision.verified)
        self.assertGreaterEqual(running.asides, 1)

    def test_large_answers_are_compared_on_a_thread_also_when_the_last_is_small(self) -> None:
        running = self.begin(question("abc"))
        self.say(running, "one " * LARGE_CHARS, "two " * LARGE_CHARS)
        before = running.asides
        self.assertGreaterEqual(before, 1)
        self.say(running, "3", start=2)
        self.assertTrue(running.ended)
        self.assertEqual(running.asides, before + 1)

    def test_small_answers_need_no_thread(self) -> None:
        running = self.begin(question("ab"))
        self.say(running, "42", "42")
        self.assertEqual((running.ended, running.asides), (True, 0))

    def test_an_answer_that_takes_a_while_to_parse_is_parsed_on_a_thread(self) -> None:
        running = self.begin(question("ab"))
        self.say(running, "42")
        before = running.asides
        self.members.calls[1].done(None, GatewayError("backend_error", "x" * LARGE_BYTES))
        running.go()
        self.assertEqual(running.asides, before)  # an error is nothing to parse
        running = self.begin(question("ab"))
        self.members.calls[2].done(padded("42"), None)
        running.go()
        self.assertEqual(running.asides, 1)

    def test_where_none_passes_all_tests_one_that_passes_some_is_the_best_there_is(self) -> None:
        report = {"error": None, "keys": [], "passed": 0, "total": 2, "failures": [{"index": 0, "text": "no"}]}
        self.reports.update({"return x + 1": report, "return x": {**report, "passed": 1}})
        running = self.begin(question("ab", tests=("assert f(1) == 3", "assert f(1) == 1")))
        self.say(running, RIGHT, WRONG)
        decision = running.result.decision
        self.assertEqual((decision.verified, decision.strategy, decision.chosen), (False, "best_available", 1))


class EndTest(VerificationCase):
    def test_when_nobody_has_answered_it_is_told_why(self) -> None:
        running = self.begin()
        self.say(running, None, None, None)
        error = running.error
        assert isinstance(error, GatewayError)
        self.assertEqual((error.code, error.status), ("no_model_answered", 503))
        assert error.details is not None
        details = error.details["details"]
        expected = {"error": "backend_error", "message": "it is broken"}
        self.assertEqual(details, {"a": expected, "b": expected, "c": expected})

    def test_when_the_callers_own_limit_refused_all_that_is_told(self) -> None:
        for code_of_all, expected in (
            ("rate_limit_exceeded", "rate_limit_exceeded"),
            ("budget_exceeded", "budget_exceeded"),
            ("forbidden", "forbidden"),
            ("backend_rate_limited", "no_model_answered"),
            ("overloaded", "no_model_answered"),
        ):
            self.members = Members()
            running = self.begin()
            for invitation in self.members.calls:
                invitation.fail(code_of_all)
            running.go()
            assert isinstance(running.error, GatewayError)
            self.assertEqual(running.error.code, expected)

    def test_a_client_that_leaves_ends_all_of_it(self) -> None:
        self.held = {"judge"}
        running = self.begin()
        self.say(running, RIGHT, WRONG)
        call = self.asked.call
        assert call is not None
        call.cancel()
        running.go()
        self.assertIsInstance(running.error, ClientGone)
        self.assertEqual(self.cancelled, [0, 0, 1])
        self.assertTrue(all(ticket.cancelled for ticket in self.jail.of("judge")))

    def test_whoever_lets_go_of_the_steps_ends_all_of_it(self) -> None:
        self.held = {"judge"}
        running = self.begin()
        self.say(running, RIGHT, WRONG)
        running.close()
        self.assertEqual(self.cancelled, [0, 0, 1])
        self.assertTrue(all(ticket.cancelled for ticket in self.jail.of("judge")))


class ToldTest(VerificationCase):
    def verdict(self) -> Verdict:
        running = self.begin(question(show_runs=True), heals=1)
        self.say(running, RIGHT, BROKEN, None)
        self.say(running, ALSO_RIGHT, start=3)
        return running.result

    def test_the_object_beside_an_answer(self) -> None:
        told = verification_of(self.verdict())
        self.assertEqual(
            list(told),
            [
                *("verified", "consensus", "agreement", "successful_executions", "total_executions"),
                *("synthesis_strategy", "groups", "details"),
            ],
        )
        self.assertEqual((told["verified"], told["consensus"], told["agreement"]), (True, True, 0.6667))
        self.assertEqual((told["successful_executions"], told["total_executions"]), (2, 2))
        self.assertEqual((told["synthesis_strategy"], told["groups"]), ("consensus", [["a", "b"]]))
        details = told["details"]
        self.assertEqual((details["chosen"], details["entry_point"]), ("a", "f"))
        self.assertEqual([m["model"] for m in details["members"]], ["a", "b", "c"])
        self.assertEqual((details["members"][1]["healed"], details["members"][2]["error"]), (True, "backend_error"))
        json.dumps(told)

    def test_what_the_log_line_says(self) -> None:
        verdict = self.verdict()
        line = noted(verdict.decision, verdict.voices, self.verification.runs)
        runs = line.pop("runs")
        self.assertEqual(
            line,
            {"result": "consensus", "verified": True, "agreement": 0.6667, "members": 3, "answered": 2, "healed": 1},
        )
        self.assertEqual(len(runs), len(self.jail.tickets))
        self.assertEqual(runs[0], ["namespaces", "ok", 0.01])

    def test_what_it_says_of_one_that_has_ended_before(self) -> None:
        running = self.begin(question("abc"))
        self.say(running, RIGHT)
        line = noted(None, self.panel.voices, self.verification.runs)
        self.assertEqual((line["result"], line["verified"], line["agreement"]), ("unfinished", False, None))
        self.assertEqual((line["members"], line["answered"], line["runs"]), (3, 1, []))

    def test_a_minority_is_no_consensus(self) -> None:
        running = self.begin(question("ab"))
        self.say(running, RIGHT, WRONG)
        self.assertFalse(has_consensus(running.result))


if __name__ == "__main__":
    unittest.main()
