"""Which answers are worth keeping, and that one given again is the same: under another id, as a stream, and back."""

from __future__ import annotations

import json
import random
import unittest
from typing import Any, Optional

from gateway.reuse.keeping import as_events, is_worth_keeping, stamped, stamped_events, whole_of, whole_of_answer
from gateway.upstream.answers import Usage, as_stream
from gateway.upstream.assembly import assembled
from gateway.upstream.eventlines import events_in

CHAT, COMPLETIONS, EMBEDDINGS = "/chat/completions", "/completions", "/embeddings"
USAGE = Usage(7, 5, False)
TOLD = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
DONE = b"data: [DONE]\n\n"


def message(content: Any = "Hello", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def choice(index: int = 0, reason: Any = "stop", **message_fields: Any) -> dict[str, Any]:
    return {"index": index, "message": message(**message_fields), "logprobs": None, "finish_reason": reason}


def chat(*choices: Any, **fields: Any) -> dict[str, Any]:
    return {
        "id": "r-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "13b",
        "choices": list(choices or (choice(),)),
        "usage": TOLD,
        **fields,
    }


def completion(*texts: str, **fields: Any) -> dict[str, Any]:
    choices = [
        {"index": index, "text": text, "logprobs": None, "finish_reason": "stop"} for index, text in enumerate(texts)
    ]
    return {"id": "r-1", "object": "text_completion", "created": 1, "model": "13b", "choices": choices, **fields}


def body_of(answer: object) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode()


class WorthTest(unittest.TestCase):
    def assert_worth(self, answer: dict[str, Any], expected: bool, path: str = CHAT) -> None:
        self.assertIs(is_worth_keeping(answer, path), expected, answer)

    def test_what_has_ended_by_itself_and_says_something(self) -> None:
        self.assert_worth(chat(), True)
        self.assert_worth(chat(choice(0), choice(1), choice(2)), True)
        self.assert_worth(chat(choice(tool_calls=[], refusal=None, function_call=None)), True)
        self.assert_worth(chat(choice(content=[{"type": "text", "text": "a"}])), True)
        self.assert_worth(completion("a", "b"), True, COMPLETIONS)

    def test_what_was_cut_off_or_filtered_or_has_no_end_is_not(self) -> None:
        for reason in ("length", "content_filter", "tool_calls", "function_call", "error", "", None, 1, "STOP "):
            self.assert_worth(chat(choice(reason=reason)), False)
            self.assert_worth(chat(choice(0), choice(1, reason=reason)), False)
            cut = completion("a", "b")
            cut["choices"][1]["finish_reason"] = reason
            self.assert_worth(cut, False, COMPLETIONS)
        missing = choice()
        del missing["finish_reason"]
        self.assert_worth(chat(missing), False)

    def test_what_calls_a_tool_or_refuses_is_not(self) -> None:
        call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        for fields in (
            {"tool_calls": [call]},
            {"function_call": {"name": "look", "arguments": "{}"}},
            {"refusal": "I will not"},
            {"tool_calls": [call], "content": None},
        ):
            self.assert_worth(chat(choice(**fields)), False)
            self.assert_worth(chat(choice(), choice(1, **fields)), False)
            without_role = choice(**fields)
            del without_role["message"]["role"]
            self.assert_worth(chat(without_role), False)

    def test_what_says_nothing_is_not(self) -> None:
        self.assert_worth(chat(choice(content="")), False)
        self.assert_worth(chat(choice(content=None)), False)
        self.assert_worth(chat(choice(content=None, reasoning_content="Hm.")), False)
        self.assert_worth(chat(choice(), choice(1, content="")), False)
        self.assert_worth(completion(""), False, COMPLETIONS)
        self.assert_worth(completion("a", ""), False, COMPLETIONS)

    def test_what_is_no_answer_is_not(self) -> None:
        cases: tuple[object, ...] = ([], None, {}, "stop", [None], ["stop"], [{}], [{"finish_reason": "stop"}])
        for choices in cases:
            for path in (CHAT, COMPLETIONS):
                self.assert_worth({"id": "r", "choices": choices}, False, path)
        self.assert_worth({}, False)
        self.assert_worth({"error": {"message": "no"}}, False)
        self.assert_worth(chat({"index": 0, "message": "Hello", "finish_reason": "stop"}), False)
        self.assert_worth(completion("a"), False, CHAT)
        self.assert_worth(chat(), False, COMPLETIONS)

    def test_embeddings_where_there_are_some(self) -> None:
        self.assert_worth({"data": [{"index": 0, "embedding": [1.0]}]}, True, EMBEDDINGS)
        self.assert_worth({"data": []}, False, EMBEDDINGS)
        self.assert_worth({}, False, EMBEDDINGS)


class StampedTest(unittest.TestCase):
    def test_only_the_id_is_another_one(self) -> None:
        answer = chat(choice(content="naïve 😀 \u2028 \x00"))
        found = stamped(body_of(answer), "r-1", "r-2")
        self.assertEqual(found, body_of({**answer, "id": "r-2"}))

    def test_an_id_that_stands_in_a_text_stays(self) -> None:
        text = 'He said "id":"r-1", then r-1.'
        found = json.loads(stamped(body_of(chat(choice(content=text))), "r-1", "r-2"))
        self.assertEqual(found["id"], "r-2")
        self.assertEqual(found["choices"][0]["message"]["content"], text)

    def test_the_id_of_something_inside_stays(self) -> None:
        found = json.loads(stamped(body_of(chat({**choice(), "id": "r-1"})), "r-1", "r-2"))
        self.assertEqual((found["id"], found["choices"][0]["id"]), ("r-2", "r-1"))

    def test_the_answers_own_id_is_the_one_that_changes_wherever_it_stands(self) -> None:
        answer = {"choices": [{**choice(), "id": "r-1"}], "model": "13b", "id": "r-1"}
        found = json.loads(stamped(body_of(answer), "r-1", "r-2"))
        self.assertEqual((found["id"], found["choices"][0]["id"]), ("r-2", "r-1"))

    def test_however_it_is_spaced_or_escaped(self) -> None:
        answer = chat(choice(content="é"))
        for body in (
            json.dumps(answer).encode(),
            json.dumps(answer, indent=2, ensure_ascii=False).encode(),
            body_of(answer).replace(b'"id":"r-1"', b'"\\u0069d" :\t"r-\\u0031"'),
        ):
            self.assertEqual(json.loads(stamped(body, "r-1", "r-2")), {**answer, "id": "r-2"})

    def test_an_id_of_any_allowed_characters(self) -> None:
        for old, new in (("a", "A._:/+=-9"), ("A._:/+=-9", "a"), ("r" * 128, "r"), ("a.a", "b")):
            self.assertEqual(json.loads(stamped(body_of(chat(id=old)), old, new)), chat(id=new))
        self.assertEqual(stamped(body_of(chat(id="axa")), "a.a", "b"), body_of(chat(id="axa")))

    def test_what_has_another_id_or_none_stays_as_it_is(self) -> None:
        for body in (body_of(chat(id="r-10")), b'{"result":"r-1"}', b'{"id": null}', b'["r-1"]', b'{"id":1}'):
            self.assertEqual(stamped(body, "r-1", "r-2"), body)

    def test_its_own_id_again(self) -> None:
        body = body_of(chat())
        self.assertEqual(stamped(body, "r-1", "r-1"), body)

    def test_numbers_of_an_answer_that_is_written_anew_stay(self) -> None:
        body = b'{"id": "r-1", "data": [{"embedding": [0.1, -2e-08, 123456789012345678901234567890]}]}'
        found = json.loads(stamped(body, "r-1", "r-2"))
        self.assertEqual(found["data"], json.loads(body)["data"])

    def test_every_event_of_a_stream(self) -> None:
        said = 'ask for "id":"r-1"'
        lines = as_stream(chat(choice(content=said), choice(1)), CHAT)
        lines = as_events(body_of(chat(choice(content=said), choice(1))), CHAT, True) + lines
        found = stamped_events(lines, "r-1", "r-2")
        events = list(events_in(found))
        self.assertEqual({event["id"] for event in events}, {"r-2"})
        self.assertEqual([{**event, "id": "r-1"} for event in events], list(events_in(lines)))
        self.assertEqual(found.count(DONE), 2)


class AsEventsTest(unittest.TestCase):
    def events(self, answer: dict[str, Any], path: str = CHAT, include_usage: bool = False) -> list[dict[str, Any]]:
        lines = as_events(body_of(answer), path, include_usage)
        self.assertTrue(lines.endswith(b"\n\n" + DONE))
        self.assertEqual(lines.count(DONE), 1)
        for event in lines.split(b"\n\n")[:-1]:
            self.assertRegex(event, rb"\Adata: [^\r\n]+\Z")
        return list(events_in(lines))

    def test_what_each_choice_says_then_why_it_ended(self) -> None:
        events = self.events(chat(choice(0, content="a"), choice(1, content="b"), system_fingerprint="f"))
        common = {"id": "r-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "13b"}
        for event in events:
            self.assertEqual({key: event[key] for key in common}, common)
            self.assertEqual(event["system_fingerprint"], "f")
            self.assertNotIn("usage", event)
            self.assertEqual(len(event["choices"]), 1)
            self.assertNotIn("message", event["choices"][0])
        choices = [event["choices"][0] for event in events]
        self.assertEqual([each["index"] for each in choices], [0, 1, 0, 1])
        self.assertEqual([each["finish_reason"] for each in choices], [None, None, "stop", "stop"])
        self.assertEqual([each["delta"] for each in choices], [message("a"), message("b"), {}, {}])

    def test_of_a_completion(self) -> None:
        events = self.events(completion("a", "b"), COMPLETIONS)
        self.assertEqual({event["object"] for event in events}, {"text_completion"})
        choices = [event["choices"][0] for event in events]
        self.assertEqual([each["text"] for each in choices], ["a", "b", "", ""])
        self.assertEqual([each["finish_reason"] for each in choices], [None, None, "stop", "stop"])
        self.assertEqual({"delta" in each for each in choices}, {False})

    def test_usage_in_an_event_of_its_own_when_that_is_asked_for(self) -> None:
        for path, answer in ((CHAT, chat()), (COMPLETIONS, completion("a", usage=TOLD))):
            *others, last = self.events(answer, path, include_usage=True)
            self.assertEqual((last["choices"], last["usage"], last["id"]), ([], TOLD, "r-1"))
            self.assertEqual([event for event in others if event.get("usage")], [])
            self.assertEqual(others, self.events(answer, path))

    def test_what_else_usage_says_is_told_as_well(self) -> None:
        told = {**TOLD, "prompt_tokens_details": {"cached_tokens": 3}}
        self.assertEqual(self.events(chat(usage=told), include_usage=True)[-1]["usage"], told)

    def test_a_line_end_in_a_text_ends_no_line(self) -> None:
        said = "a\n\ndata: [DONE]\r\n\u2028\u2029\x85b"
        events = self.events(chat(choice(content=said)))
        self.assertEqual(events[0]["choices"][0]["delta"]["content"], said)

    def test_a_choice_without_an_index_is_the_first(self) -> None:
        only = {"message": message(), "finish_reason": "stop"}
        self.assertEqual(self.events(chat(only))[1]["choices"][0]["index"], 0)


class ThereAndBackTest(unittest.TestCase):
    """A complete answer as its stream, and the complete answer of that."""

    def assert_same(self, answer: dict[str, Any], path: str) -> None:
        for include_usage in (False, True):
            back = json.loads(assembled(as_events(body_of(answer), path, include_usage), path))
            expected = answer if include_usage else {key: value for key, value in answer.items() if key != "usage"}
            self.assertEqual(back, expected)

    def test_of_several_choices(self) -> None:
        self.assert_same(chat(*[choice(index, content=f"answer {index}") for index in range(12)]), CHAT)
        self.assert_same(completion(*[f"text {index}" for index in range(12)], usage=TOLD), COMPLETIONS)

    def test_of_what_was_thought_and_other_members(self) -> None:
        annotations = [{"type": "url_citation", "url_citation": {"url": "u", "start_index": 0}}]
        logprobs = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]}
        thinking = choice(content="4", reasoning_content="2 + 2\n= 4", annotations=annotations)
        self.assert_same(chat({**thinking, "logprobs": logprobs, "stop_reason": 2}, system_fingerprint="f"), CHAT)
        scores = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [], "text_offset": [0]}
        answer = completion("a", usage=TOLD, kv_transfer={"a": [1]})
        answer["choices"][0]["logprobs"] = scores
        self.assert_same(answer, COMPLETIONS)

    def test_of_any_texts(self) -> None:
        letters = 'ab "\\\n\r\t\x00\x7f\x85\u2028é\u0301😀\ud83d/{}[],:\ufeff'
        for seed in range(300):
            chance = random.Random(seed)
            texts = [
                "".join(chance.choice(letters) for _ in range(chance.randrange(1, 30)))
                for _ in range(chance.randrange(1, 5))
            ]
            order = chance.sample(range(len(texts)), len(texts))
            choices = [choice(index, content=texts[index], reasoning_content=texts[-1 - index]) for index in order]
            answer = chat(*choices)
            back = json.loads(assembled(as_events(body_of(answer), CHAT, True), CHAT))
            choices.sort(key=lambda each: int(each["index"]))
            self.assertEqual(back, {**answer, "choices": choices}, seed)
            self.assert_same(completion(*texts, usage=TOLD), COMPLETIONS)

    def test_kept_again_it_is_the_same_answer(self) -> None:
        answer = chat(choice(content="é", reasoning_content="so"), choice(1))
        lines = as_events(body_of(answer), CHAT, True)
        whole = whole_of(lines, CHAT, "r-1", "13b", USAGE, TOLD)
        assert whole is not None
        self.assertEqual(json.loads(whole), answer)
        self.assertEqual(list(events_in(as_events(whole, CHAT, True))), list(events_in(lines)))


def event(*choices: dict[str, Any], **fields: Any) -> bytes:
    chunk = {"id": "chatcmpl-5", "object": "chat.completion.chunk", "created": 9, "model": "engine's"}
    return b"data: %b\n\n" % body_of({**chunk, "choices": list(choices), **fields})


def delta(index: int = 0, reason: Optional[str] = None, **fields: Any) -> dict[str, Any]:
    return {"index": index, "delta": fields, "finish_reason": reason}


class WholeTest(unittest.TestCase):
    def whole(
        self, lines: bytes, path: str = CHAT, usage: Usage = USAGE, reported: Optional[dict[str, Any]] = None
    ) -> Any:
        found = whole_of(lines, path, "r-9", "13b", usage, reported)
        return None if found is None else json.loads(found)

    def stream(self, *events: bytes) -> bytes:
        return b"".join((*events, DONE))

    def test_pieces_make_one_text_with_the_requests_id_and_model(self) -> None:
        found = self.whole(
            self.stream(
                event(delta(role="assistant", content="")),
                b": still there\n\n",
                event(delta(content="Hel"), delta(1, content="Sa")),
                event(delta(1, content="lut"), delta(content="lo 😀")),
                event(delta(reason="stop")),
                event(delta(1, reason="stop")),
            )
        )
        self.assertEqual((found["id"], found["model"], found["object"]), ("r-9", "13b", "chat.completion"))
        self.assertEqual([each["message"]["content"] for each in found["choices"]], ["Hello 😀", "Salut"])
        self.assertEqual([each["finish_reason"] for each in found["choices"]], ["stop", "stop"])
        self.assertEqual(found["usage"], TOLD)

    def test_the_engines_own_usage_is_kept_with_all_it_says(self) -> None:
        lines = self.stream(event(delta(content="a")), event(delta(reason="stop")))
        told = {**TOLD, "completion_tokens_details": {"reasoning_tokens": 2}}
        self.assertEqual(self.whole(lines, reported=told)["usage"], told)

    def test_without_it_usage_is_the_estimate(self) -> None:
        lines = self.stream(event(delta(content="a")), event(delta(reason="stop")))
        self.assertEqual(self.whole(lines, usage=Usage(3, 4, True))["usage"]["total_tokens"], 7)

    def test_a_usage_in_the_lines_is_not_believed_over_the_one_that_was_read(self) -> None:
        lines = self.stream(
            event(delta(content="a")), event(delta(reason="stop")), event(usage={**TOLD, "prompt_tokens": 10**9})
        )
        self.assertEqual(self.whole(lines)["usage"], TOLD)

    def test_of_completions(self) -> None:
        pieces: list[dict[str, Any]] = [{"index": 0, "text": text, "finish_reason": None} for text in ("Hel", "lo")]
        end: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "stop"}
        found = self.whole(self.stream(*[event(each) for each in (*pieces, end)]), COMPLETIONS)
        self.assertEqual((found["object"], found["choices"][0]["text"]), ("text_completion", "Hello"))

    def test_what_is_not_worth_keeping_is_not_put_together(self) -> None:
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        for lines in (
            self.stream(event(delta(content="a")), event(delta(reason="length"))),
            self.stream(event(delta(content="a")), event(delta(reason="content_filter"))),
            self.stream(event(delta(content="a"))),
            self.stream(event(delta(reason="stop"))),
            self.stream(event(delta(tool_calls=[call])), event(delta(reason="tool_calls"))),
            self.stream(event(delta(content="a", tool_calls=[call])), event(delta(reason="stop"))),
            self.stream(event(delta(refusal="No")), event(delta(reason="stop"))),
            self.stream(event(delta(content="a"), delta(1, content="b")), event(delta(reason="stop"))),
            self.stream(),
            b"",
        ):
            self.assertIsNone(self.whole(lines), lines)

    def test_what_makes_no_answer_is_not_either(self) -> None:
        for lines in (
            b"data: {\n\n",
            b"data: []\n\n",
            b"data: 5\n\n",
            self.stream(event(delta(content="a"))) + b"data: x",
        ):
            self.assertIsNone(self.whole(lines), lines)

    def test_of_an_answer_that_came_whole_though_a_stream_was_asked_for(self) -> None:
        parsed = chat(choice(content="é"), id="chatcmpl-5", model="engine's", usage=None)
        body = whole_of_answer(parsed, "r-9", "13b", USAGE)
        self.assertEqual(json.loads(body), chat(choice(content="é"), id="r-9"))
        self.assertEqual((parsed["id"], parsed["model"], parsed["usage"]), ("chatcmpl-5", "engine's", None))


if __name__ == "__main__":
    unittest.main()
