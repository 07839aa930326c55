"""The members of a verification: whose answer counts, how long they are waited for, and that nothing is missed."""

from __future__ import annotations

import functools
import threading
import unittest
from typing import Any, Callable, Optional
from unittest import mock

from gateway.errors import ClientGone
from gateway.inference import Answer
from gateway.steps import Flagged, Say, Steps, drive
from gateway.upstream.answers import Usage
from gateway.verify import panel as panels
from gateway.verify.panel import COMMENT, COMMENT_S, LOOK_S, Mailbox, Member, Panel, text_of
from tests.panels import ByHand, Clock, Members, answer_of, asked_of, clock_of

A, B, C = Member("a", "a"), Member("b", "b"), Member("c", "llama")
QUESTION = [{"role": "user", "content": "q"}]
WAIT_S = 20.0


def never() -> bool:
    return False


class PanelCase(unittest.TestCase):
    clock: Clock

    def setUp(self) -> None:
        manager = clock_of("gateway.verify.panel")
        self.clock = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        self.members = Members()
        self.asked = asked_of()

    def panel(self, *members: Member, for_s: float = 60.0) -> Panel:
        panel = self.members.panel(self.clock.now_s + for_s, self.asked)
        panel.invite(members, QUESTION)
        return panel

    def gather(self, panel: Panel, enough: Callable[[], bool] = never) -> ByHand[None]:
        return ByHand(panel.gather(enough))


class GatherTest(PanelCase):
    def test_all_are_asked_at_once_and_waited_for(self) -> None:
        panel = self.panel(A, B, C)
        self.assertEqual(self.members.models, ["a", "b", "c"])
        self.assertEqual([call.call.request_id for call in self.members.calls], ["r.1", "r.2", "r.3"])
        running = self.gather(panel)
        for place in (2, 0):
            self.members.calls[place].say(f"from {place}")
            running.go()
            self.assertFalse(running.ended)
        self.members.calls[1].say("from 1")
        running.go()
        self.assertTrue(running.ended)
        self.assertEqual([voice.text for voice in panel.voices], ["from 0", "from 1", "from 2"])
        self.assertEqual([voice.member.family for voice in panel.voices], ["a", "b", "llama"])
        self.assertEqual(panel.answers, 3)

    def test_answers_that_are_there_already_need_no_wait(self) -> None:
        panel = self.panel(A, B)
        for call in self.members.calls:
            call.say("x")
        self.assertTrue(self.gather(panel).ended)

    def test_it_is_looked_after_each_answer_whether_that_is_enough(self) -> None:
        panel = self.panel(A, B, C)
        running = self.gather(panel, lambda: panel.answers == 2)
        self.members.calls[0].say("x")
        running.go()
        self.assertFalse(running.ended)
        self.members.calls[2].say("x")
        running.go()
        self.assertTrue(running.ended)
        self.assertFalse(panel.voices[1].over)

    def test_an_error_is_what_a_member_has_said_too(self) -> None:
        panel = self.panel(A, B)
        self.members.calls[0].fail("rate_limit_exceeded")
        self.members.calls[1].done(None, ValueError("unforeseen"))
        self.gather(panel)
        self.assertEqual([voice.text for voice in panel.voices], [None, None])
        errors = [voice.error.code if voice.error else "" for voice in panel.voices]
        self.assertEqual(errors, ["rate_limit_exceeded", "backend_error"])
        self.assertEqual(panel.answers, 0)

    def test_an_answer_without_a_text_is_an_error(self) -> None:
        for text in (None, "", " \n"):
            members = Members()
            panel = members.panel(self.clock.now_s + 60)
            panel.invite([A], QUESTION)
            members.calls[0].say(text)
            self.gather(panel)
            self.assertEqual(panel.voices[0].error and panel.voices[0].error.code, "backend_error")

    def test_who_is_late_is_cut_off_at_the_deadline(self) -> None:
        panel = self.panel(A, B, for_s=30)
        running = self.gather(panel)
        self.members.calls[0].say("x")
        running.go()
        assert running.wait is not None
        self.assertLessEqual(running.wait.seconds, 30)
        self.clock.now_s += 30
        running.time_passes()
        self.assertTrue(running.ended)
        self.assertEqual([call.cancelled for call in self.members.calls], [0, 1])
        late = panel.voices[1]
        self.assertEqual((late.over, late.text, late.error and late.error.code), (True, None, "gateway_timeout"))
        self.assertEqual(late.latency_s, 30)
        self.assertTrue(panel.is_late)

    def test_what_comes_after_that_counts_no_more(self) -> None:
        panel = self.panel(A, for_s=30)
        running = self.gather(panel)
        self.clock.now_s += 30
        running.time_passes()
        self.members.calls[0].say("too late")
        self.gather(panel).close()
        ByHand(panel.mailbox.wait(self.clock.now_s))
        self.assertIsNone(panel.voices[0].text)
        self.assertEqual(panel.answers, 0)

    def test_what_comes_at_the_deadline_counts(self) -> None:
        panel = self.panel(A, for_s=30)
        running = self.gather(panel)
        self.members.calls[0].say("just in time")
        self.clock.now_s += 30
        running.time_passes()
        self.assertEqual(panel.voices[0].text, "just in time")

    def test_a_wait_is_looked_after_from_time_to_time_and_goes_on(self) -> None:
        running = self.gather(self.panel(A, for_s=60))
        for _ in range(5):
            assert running.wait is not None
            self.assertEqual(running.wait.seconds, LOOK_S)
            self.clock.now_s += LOOK_S
            running.time_passes()
        self.assertFalse(running.ended)

    def test_latency_is_that_of_the_answer_not_of_its_reading(self) -> None:
        panel = self.panel(A)
        running = self.gather(panel)
        self.clock.now_s += 2
        self.members.calls[0].say("x")
        self.clock.now_s += 5
        running.go()
        self.assertEqual(panel.voices[0].latency_s, 2)


class AgainTest(PanelCase):
    def heal(self, panel: Panel) -> None:
        """Ask the first member again."""
        panel.ask(panel.voices[0], [*QUESTION, {"role": "user", "content": "correct it"}])

    def first_said(self, text: Optional[str] = "first") -> Panel:
        panel = self.panel(A)
        self.clock.now_s += 1
        self.members.calls[0].say(text)
        self.gather(panel)
        return panel

    def test_a_repaired_answer_replaces_the_first_for_the_same_member(self) -> None:
        panel = self.first_said()
        self.heal(panel)
        self.assertEqual(panel.voices[0].text, "first")
        running = self.gather(panel)
        self.clock.now_s += 3
        self.members.calls[1].say("second")
        running.go()
        voice = panel.voices[0]
        self.assertEqual((voice.text, voice.healed, voice.answers, len(panel.voices)), ("second", True, 2, 1))
        self.assertEqual(voice.latency_s, 4)
        self.assertEqual(panel.calls, [call.call for call in self.members.calls])

    def test_a_first_answer_is_no_repaired_one(self) -> None:
        self.assertFalse(self.first_said().voices[0].healed)

    def test_a_repair_that_fails_leaves_the_first(self) -> None:
        panel = self.first_said()
        self.heal(panel)
        self.members.calls[1].fail()
        self.gather(panel)
        voice = panel.voices[0]
        self.assertEqual((voice.text, voice.healed, voice.error, voice.over), ("first", False, None, True))

    def test_a_repair_that_is_late_leaves_the_first(self) -> None:
        panel = self.first_said()
        self.heal(panel)
        running = self.gather(panel)
        self.clock.now_s += 60
        running.time_passes()
        self.assertEqual((panel.voices[0].text, panel.voices[0].error), ("first", None))
        self.assertEqual(self.members.calls[1].cancelled, 1)

    def test_what_an_earlier_call_says_late_is_no_answer_to_a_later_one(self) -> None:
        panel = self.first_said()
        self.heal(panel)
        self.members.calls[0].say("again")
        running = self.gather(panel)
        running.go()
        self.assertFalse(running.ended)
        self.assertEqual(panel.voices[0].text, "first")

    def test_an_answer_after_an_error_counts_and_is_not_healed(self) -> None:
        panel = self.panel(A)
        self.members.calls[0].fail()
        self.gather(panel)
        self.heal(panel)
        self.members.calls[1].say("now")
        self.gather(panel)
        voice = panel.voices[0]
        self.assertEqual((voice.text, voice.error, voice.healed), ("now", None, False))


class ConsultTest(PanelCase):
    def test_who_is_consulted_is_no_member(self) -> None:
        panel = self.panel(A)
        running = ByHand(panel.consult(C, QUESTION))
        self.members.calls[1].say("[[1]]")
        running.go()
        self.assertEqual(running.result, "[[1]]")
        self.assertEqual((len(panel.voices), panel.answers, len(panel.calls)), (1, 0, 2))

    def test_nothing_in_time_or_an_error_is_nothing(self) -> None:
        for fails in (True, False):
            members = Members()
            panel = members.panel(self.clock.now_s + 10)
            running = ByHand(panel.consult(C, QUESTION))
            if fails:
                members.calls[0].fail()
                running.go()
            else:
                self.clock.now_s += 10
                running.time_passes()
            self.assertIsNone(running.result)
            self.assertGreaterEqual(members.calls[0].cancelled, 1)

    def test_members_that_answer_meanwhile_are_heard(self) -> None:
        panel = self.panel(A)
        running = ByHand(panel.consult(C, QUESTION))
        self.members.calls[0].say("x")
        running.go()
        self.assertFalse(running.ended)
        self.assertEqual(panel.voices[0].text, "x")


class CloseTest(PanelCase):
    def test_who_has_not_answered_is_cancelled_and_the_others_are_not(self) -> None:
        panel = self.panel(A, B)
        self.members.calls[0].say("x")
        running = self.gather(panel, lambda: panel.answers == 1)
        self.assertTrue(running.ended)
        panel.close()
        self.assertEqual([call.cancelled for call in self.members.calls], [0, 1])
        error = panel.voices[1].error
        self.assertEqual(error and error.code, "client_closed_request")
        panel.close()
        self.assertEqual([call.cancelled for call in self.members.calls], [0, 1])


class ClientTest(PanelCase):
    def test_a_client_that_leaves_ends_the_wait(self) -> None:
        running = self.gather(self.panel(A))
        assert self.asked.call is not None
        self.asked.call.cancel()
        running.go()
        self.assertIsInstance(running.error, ClientGone)

    def test_one_that_has_left_before_is_not_waited_for(self) -> None:
        assert self.asked.call is not None
        self.asked.call.cancel()
        self.assertIsInstance(self.gather(self.panel(A)).error, ClientGone)


class CommentTest(PanelCase):
    def stream(self) -> ByHand[None]:
        self.asked = asked_of(stream=True)
        return self.gather(self.panel(A))

    def test_a_client_that_waits_for_a_stream_is_told_so_from_time_to_time(self) -> None:
        running = self.stream()
        for count in range(4):
            self.assertEqual(len(running.said), count)
            assert running.wait is not None
            self.assertLessEqual(running.wait.seconds, COMMENT_S)
            self.clock.now_s += COMMENT_S
            running.time_passes()
        self.assertEqual(set(running.said), {COMMENT})
        self.assertRegex(COMMENT, rb"^:[^\n]*\n\n$")

    def test_nothing_is_said_before_it_is_due(self) -> None:
        running = self.stream()
        self.clock.now_s += COMMENT_S - 0.5
        running.time_passes()
        self.assertEqual(running.said, [])

    def test_a_client_that_waits_for_a_whole_answer_is_told_nothing(self) -> None:
        running = self.gather(self.panel(A))
        for _ in range(4):
            self.clock.now_s += COMMENT_S
            running.time_passes()
        self.assertEqual(running.said, [])

    def test_what_comes_while_it_is_told_is_not_missed(self) -> None:
        self.asked = asked_of(stream=True)
        panel = self.panel(A)
        steps = panel.gather(never)
        next(steps)
        self.clock.now_s += COMMENT_S
        said = steps.send(False)
        self.assertIsInstance(said, Say)
        self.members.calls[0].say("x")
        wait = steps.send(None)
        assert isinstance(wait, Flagged)
        self.assertTrue(wait.flag.is_set())
        with self.assertRaises(StopIteration):
            steps.send(True)


class MailboxTest(unittest.TestCase):
    def test_news_are_noted_in_the_order_in_which_they_came(self) -> None:
        mailbox = Mailbox(asked_of())
        noted: list[int] = []
        for number in range(5):
            mailbox.put(functools.partial(noted.append, number))
        self.assertTrue(drive(mailbox.wait(float("inf"))))
        self.assertEqual(noted, [0, 1, 2, 3, 4])

    def test_who_is_woken_finds_what_has_come(self) -> None:
        mailbox = Mailbox(asked_of())
        steps = mailbox.wait(float("inf"))
        wait = next(steps)
        assert isinstance(wait, Flagged)
        found: list[bool] = []
        # Woken by `put` itself, as by a reader that goes on in the same moment on another thread.
        wait.flag.call(lambda: found.append(bool(mailbox._come)))
        mailbox.put(lambda: None)
        self.assertEqual(found, [True])
        steps.close()

    def test_without_news_the_wait_ends_at_its_time(self) -> None:
        self.assertFalse(drive(Mailbox(asked_of()).wait(0.0)))

    def test_nothing_is_missed_whoever_puts_it_and_whenever(self) -> None:
        mailbox = Mailbox(asked_of())
        noted: list[int] = []
        total, threads = 2000, 4

        def put(first: int) -> None:
            for number in range(first, total, threads):
                mailbox.put(functools.partial(noted.append, number))

        def read() -> Steps[None]:
            while len(noted) < total:
                # Nothing but a put ends the wait: what was missed once would make it last for ever.
                assert (yield from mailbox.wait(float("inf")))

        with mock.patch.object(panels, "LOOK_S", WAIT_S):
            writers = [threading.Thread(target=put, args=(first,), daemon=True) for first in range(threads)]
            for writer in writers:
                writer.start()
            reader = threading.Thread(target=drive, args=(read(),), daemon=True)
            reader.start()
            reader.join(WAIT_S)
            for writer in writers:
                writer.join(WAIT_S)
        self.assertEqual(len(noted), total)
        self.assertFalse(reader.is_alive())


class TextTest(unittest.TestCase):
    def test_calls_of_tools_are_a_text_that_is_equal_where_they_are(self) -> None:
        def calling(identity: str, arguments: str) -> Answer:
            call = {"id": identity, "type": "function", "function": {"name": "f", "arguments": arguments}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            return Answer(b"", Usage(0, 0, False), {"choices": [{"message": message}]})

        said = text_of(calling("call_1", '{"a": 1, "b": [2]}'))
        self.assertEqual(said, '[{"arguments": {"a": 1, "b": [2]}, "name": "f"}]')
        self.assertEqual(text_of(calling("call_2", '{"b":[2],"a":1}')), said)
        self.assertNotEqual(text_of(calling("call_1", '{"a": 2}')), said)
        self.assertIsNone(text_of(calling("call_1", "{")))

    def test_the_text_of_the_first_choice(self) -> None:
        self.assertEqual(text_of(answer_of("hi")), "hi")
        answer = answer_of("hi")
        text_of(answer)
        self.assertEqual(answer.parsed and answer.parsed["choices"][0]["message"]["content"], "hi")

    def test_what_has_none_has_none(self) -> None:
        bodies: list[Any] = [
            b"",
            b"{}",
            b"[]",
            b"5",
            b'{"choices":[]}',
            b'{"choices":[{}]}',
            b'{"choices":[{"message":5}]}',
        ]
        bodies += [b'{"choices":[{"message":{"content":[]}}]}', b"[" * 100_000]
        for body in bodies:
            self.assertIsNone(text_of(Answer(body, Usage(0, 0, False))), body[:40])


if __name__ == "__main__":
    unittest.main()
