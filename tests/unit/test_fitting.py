"""Whether answers fit what their request asks for, and how they are asked again, by a scripted ask."""

from __future__ import annotations

import json
import unittest
from typing import Any, Optional, Union
from unittest import mock

from gateway import fitting as module
from gateway.errors import ClientGone, EngineFailed, GatewayError, RequestRefused
from gateway.fitting import Fitted, Judging, Limits, Shape, fitting, give_shape, shape_of, takes_long_to_shape
from gateway.hedging import Answer
from gateway.schemas.compiled import Compiled
from gateway.schemas.faults import Fault, SchemaRefused
from gateway.schemas.schema import compile_schema
from gateway.steps import ASIDE, Steps
from gateway.telemetry.events import AttemptRecord
from gateway.upstream.answers import Usage, dump
from gateway.upstream.call import CHAT, Call

Json = dict[str, Any]
CITY = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
BONN = '{"name": "Bonn"}'
WEATHER = {"type": "function", "function": {"name": "weather", "strict": True, "parameters": CITY}}
HI = [{"role": "user", "content": "hi"}]
# A schema whose checking takes too long: each level tries both ways of the one below.
COMPLEX = {
    "$defs": {
        f"d{level}": {"anyOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 4} if level < 20 else {"const": 1}
        for level in range(21)
    },
    "$ref": "#/$defs/d0",
}


def form(schema: Any, name: str = "city") -> Json:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


def request_of(**options: Any) -> Json:
    return {"model": "m", "messages": HI, **options}


def shape(**options: Any) -> Shape:
    found = shape_of(request_of(**options), {})
    assert found is not None
    return found


def choice(content: Any = None, finish: str = "stop", **message: Any) -> Json:
    return {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}


def answer(*choices: Any) -> Json:
    return {"id": "x", "model": "e", "choices": list(choices), "usage": {"prompt_tokens": 3, "completion_tokens": 5}}


def called(arguments: Any, name: str = "weather", identifier: str = "c1") -> Json:
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


class ShapeTest(unittest.TestCase):
    def refused(self, kept: Optional[Json] = None, **options: Any) -> str:
        with self.assertRaises(RequestRefused) as caught:
            shape_of(request_of(**options), kept or {})
        self.assertEqual((caught.exception.code, caught.exception.status), ("invalid_response_format", 400))
        return str(caught.exception.param)

    def test_what_asks_for_nothing_is_not_checked(self) -> None:
        for options in ({}, {"response_format": None}, {"response_format": {"type": "text"}}, {"tools": []}):
            self.assertIsNone(shape_of(request_of(**options), {}))
        lax = {"type": "function", "function": {"name": "weather", "strict": False, "parameters": CITY}}
        self.assertIsNone(shape_of(request_of(tools=[lax]), {}))

    def test_a_schema_that_cannot_be_checked_is_refused_with_its_place(self) -> None:
        where = "response_format.json_schema.schema.properties.a.nullable"
        self.assertEqual(self.refused(response_format=form({"properties": {"a": {"nullable": True}}})), where)
        tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"$dynamicRef": "#"}}}
        self.assertEqual(self.refused(tools=[WEATHER, tool]), "tools[1].function.parameters.$dynamicRef")
        self.assertEqual(self.refused(response_format={"type": "json_schema"}), "response_format.json_schema")
        self.assertEqual(self.refused(response_format="json"), "response_format")
        self.assertEqual(self.refused(response_format=form(None)), "response_format.json_schema.name")
        self.assertEqual(self.refused(response_format=form(None, [])), "response_format.json_schema.name")  # type: ignore[arg-type]

    def test_the_schemas_of_a_request_have_the_bounds_of_one_together(self) -> None:
        def tools(count: int, parameters: Json) -> list[Json]:
            functions = [{"name": f"f{number}", "strict": True, "parameters": parameters} for number in range(count)]
            return [{"type": "function", "function": function} for function in functions]

        large = {"prefixItems": [{}] * 2500}
        self.assertIsNotNone(shape(tools=tools(2, large)))
        self.assertEqual(self.refused(tools=tools(3, large)), "tools[2].function.parameters")
        self.assertEqual(
            self.refused(response_format=form(large), tools=tools(2, large)), "tools[1].function.parameters"
        )
        self.assertEqual(self.refused(tools=tools(11, {"pattern": "a{2000}"})), "tools[10].function.parameters")

    def test_a_kept_schema_stands_in_what_engines_get(self) -> None:
        kept = {"city": compile_schema(CITY)}
        named = {"type": "json_schema", "json_schema": {"name": "city", "strict": True}}
        call = Call(CHAT, request_of(response_format=named), b"as it came")
        give_shape(call, kept)
        told = {"name": "city", "strict": True, "schema": CITY}
        self.assertEqual(json.loads(call.payload("m"))["response_format"], {"type": "json_schema", "json_schema": told})
        self.assertTrue(call.shape.fit(answer(choice("{}"))).faults)

    def test_a_request_that_says_all_is_sent_as_it_came(self) -> None:
        call = Call(CHAT, request_of(response_format=form(CITY)), b"as it came")
        give_shape(call, {})
        self.assertEqual(call.payload("m"), b"as it came")

    def test_every_choice_is_checked(self) -> None:
        fitted = shape(response_format=form(CITY)).fit(answer(choice(BONN), choice("{}"), choice('{"name": 1}')))
        self.assertEqual([fault.path for fault in fitted.faults], ["$", "$.name"])
        self.assertEqual(fitted.text, "{}")

    def test_what_was_cut_short_or_refused_is_passed_on(self) -> None:
        for one in (
            choice('{"na', "length"),
            choice("", "content_filter"),
            choice(None, refusal="I will not."),
        ):
            self.assertTrue(shape(response_format=form(CITY)).fit(answer(one)).fits_as_it_is, one)

    def test_calls_of_tools_are_no_answers_to_a_schema(self) -> None:
        one = choice(None, "tool_calls", tool_calls=[called("no JSON", "other")])
        lax = {"type": "function", "function": {"name": "other"}}
        self.assertTrue(shape(response_format=form(CITY), tools=[lax]).fit(answer(one)).fits_as_it_is)

    def test_an_answer_that_says_nothing_does_not_fit(self) -> None:
        for one in (
            choice(None),
            choice(""),
            choice([]),
            {},
            {"message": None},
            None,
            7,
            {"message": {"tool_calls": []}},
        ):
            fitted = shape(response_format={"type": "json_object"}).fit(answer(one))
            self.assertEqual([(fault.path, fault.message) for fault in fitted.faults], [("$", "is empty")], one)
            self.assertEqual(fitted.text, "")

    def test_known_habits_are_repaired_in_the_answer(self) -> None:
        whole = answer(choice(f"```json\n{BONN}\n```"), choice(None, tool_calls=[called('{"name": "x",}')]))
        fitted = shape(response_format=form(CITY), tools=[WEATHER]).fit(whole)
        self.assertEqual((list(fitted.faults), fitted.repairs), ([], ("code_fence", "trailing_comma")))
        self.assertEqual(whole["choices"][0]["message"]["content"], BONN)
        self.assertEqual(whole["choices"][1]["message"]["tool_calls"][0]["function"]["arguments"], '{"name": "x"}')
        self.assertEqual(fitted.text, f"```json\n{BONN}\n```")
        self.assertFalse(fitted.fits_as_it_is)

    def test_the_text_is_that_of_the_choice_that_does_not_fit(self) -> None:
        fitted = shape(response_format=form(CITY)).fit(answer(choice(f"```\n{BONN}\n```"), choice("no"), choice("nor")))
        self.assertEqual(fitted.text, "no")

    def test_odd_calls_crash_nothing(self) -> None:
        for calls in ({}, "x", 7, [7], [{}], [{"function": 1}], [{"function": {"name": []}}]):
            shape(tools=[WEATHER]).fit(answer(choice(None, tool_calls=calls)))

    def test_a_schema_that_takes_too_long_is_final(self) -> None:
        fitted = shape(response_format=form(COMPLEX)).fit(answer(choice("2")))
        self.assertTrue(fitted.is_final)
        self.assertEqual((fitted.faults[0].path, fitted.text), ("$", "2"))


class CompiledTest(unittest.TestCase):
    def test_what_is_small_or_known_needs_no_thread(self) -> None:
        large = {"properties": {f"a property of some length {number}": {"type": "string"} for number in range(20)}}
        tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": large}}
        with mock.patch.object(module, "_COMPILED", Compiled()):
            self.assertFalse(takes_long_to_shape(request_of(response_format=form(CITY))))
            for options in ({"response_format": form(large)}, {"tools": [tool]}):
                self.assertTrue(takes_long_to_shape(request_of(**options)))
            shape(response_format=form(large))
            for options in ({"response_format": form(large)}, {"tools": [tool]}):
                self.assertFalse(takes_long_to_shape(request_of(**options)))
        for odd in ({"response_format": 7}, {"response_format": {"json_schema": 7}}, {"tools": 7}, {"tools": [7]}):
            self.assertFalse(takes_long_to_shape(request_of(**odd)))

    def test_equal_schemas_are_compiled_once(self) -> None:
        compiled = Compiled()
        first = compiled.schema({"type": "object", "maxProperties": 3})
        self.assertIs(compiled.schema({"maxProperties": 3, "type": "object"}), first)
        self.assertIsNot(compiled.schema({"maxProperties": 4, "type": "object"}), first)

    def test_what_was_used_last_is_kept_within_bounds(self) -> None:
        compiled = Compiled(10_000)
        documents = [{"const": number} for number in range(10)]
        first = compiled.schema(documents[0])
        for document in documents:
            self.assertIs(compiled.schema(documents[0]), first)
            compiled.schema(document)
        missing = [bool(compiled.missing(document)) for document in documents]
        self.assertEqual((missing[0], missing[1], missing[-1]), (False, True, False))

    def test_one_that_is_too_large_is_not_kept_and_drives_out_none(self) -> None:
        compiled = Compiled(10_000)
        small, large = compiled.schema(CITY), {"anyOf": [{"const": number} for number in range(100)]}
        compiled.schema(large)
        self.assertIs(compiled.schema(CITY), small)
        self.assertTrue(compiled.missing(large))

    def test_what_is_refused_is_refused_again(self) -> None:
        compiled = Compiled()
        for _ in range(2):
            with self.assertRaises(SchemaRefused):
                compiled.schema({"nullable": True})


class Script:
    """An ask whose answers are given: bodies, or errors to raise. `asked`: the calls."""

    def __init__(self, *given: Union[Json, GatewayError], large: bool = False) -> None:
        self._given = list(given)
        self._large = large
        self.asked: list[Call] = []

    def __call__(self, call: Call) -> Steps[Any]:
        yield from ()
        self.asked.append(call)
        call.attempts += 1
        call.records.append(AttemptRecord("m", "e", "ok", 0.0))
        given = self._given.pop(0)
        if isinstance(given, GatewayError):
            raise given
        call.engine_id, call.served_model, call.usage = f"e{len(self.asked)}", "m", Usage(3, 5, False)
        return Answer(dump(given), call.usage, None if self._large else given)


class AskingTest(unittest.TestCase):
    def run_steps(self, steps: Steps[Any]) -> Any:
        self.waits: list[Any] = []
        try:
            while True:
                self.waits.append(next(steps))
        except StopIteration as end:
            return end.value

    def ask(self, script: Script, call: Optional[Call] = None, retries: int = 2, total_s: float = 60.0) -> Any:
        self.call = call or self.call_for(response_format=form(CITY))
        return self.run_steps(fitting(script, self.call, self.call.shape, Limits(retries, total_s)))

    def call_for(self, **options: Any) -> Call:
        call = Call(CHAT, request_of(**options), request_id="r1")
        give_shape(call, {})
        return call

    def misfit(self, script: Script, **options: Any) -> GatewayError:
        with self.assertRaises(GatewayError) as caught:
            self.ask(script, **options)
        self.assertEqual((caught.exception.code, caught.exception.status), ("invalid_model_output", 502))
        return caught.exception

    def test_an_answer_that_fits_is_given_as_it_came(self) -> None:
        script = Script(answer(choice(BONN)))
        given = self.ask(script)
        self.assertEqual(given.body, dump(answer(choice(BONN))))
        self.assertEqual((self.call.schema_retries, self.call.repairs, self.waits), (0, (), []))

    def test_a_misfit_is_asked_again_with_its_faults(self) -> None:
        script = Script(answer(choice('{"name": 1}')), answer(choice(BONN)))
        given = self.ask(script)
        told = json.loads(given.body)
        self.assertEqual(told["choices"][0]["message"]["content"], BONN)
        self.assertEqual((told["id"], told["model"]), ("r1", "m"))
        self.assertEqual(told["usage"], {"prompt_tokens": 6, "completion_tokens": 10, "total_tokens": 16})
        hi, said, corrected = script.asked[1].request["messages"]
        self.assertEqual((hi, said), (HI[0], {"role": "assistant", "content": '{"name": 1}'}))
        self.assertEqual(corrected["role"], "user")
        self.assertIn("- $.name: must be a string, is 1\n", corrected["content"])
        self.assertEqual(script.asked[1].request["response_format"], form(CITY))
        call = self.call
        self.assertEqual((call.schema_retries, call.attempts, call.engine_id), (1, 2, "e2"))
        self.assertEqual((call.usage, len(call.records)), (Usage(6, 10, False), 2))

    def test_calls_that_do_not_fit_are_to_be_made_again(self) -> None:
        calls = [called("{}"), called(BONN, identifier="c2")]
        script = Script(answer(choice(None, "tool_calls", tool_calls=calls)), answer(choice("as you like")))
        self.ask(script, self.call_for(tools=[WEATHER]))
        _, said, *results = script.asked[1].request["messages"]
        self.assertEqual(said, {"role": "assistant", "content": None, "tool_calls": calls})
        self.assertEqual([one["tool_call_id"] for one in results], ["c1", "c2"])
        for one in results:
            self.assertIn('- $.tool_calls[0].function.arguments: must have the property "name"\n', one["content"])
            self.assertIn("Make the calls again", one["content"])
            self.assertNotIn("JSON alone", one["content"])

    def test_odd_answers_are_misfits_and_nothing_else(self) -> None:
        wrong = called("{}")
        for one in (
            *(None, 7, "x", [], {}, {"message": "x"}, {"message": [7]}, choice(None), choice([7]), choice({"a": 1})),
            *(choice(None, tool_calls=calls) for calls in (["x", wrong], [None, wrong], [[], wrong], [{}, wrong])),
            *(choice(7, tool_calls=calls) for calls in ([{"function": 1}, wrong], [{"id": {}, **wrong}])),
            *(choice(None, tool_calls=[called(arguments)]) for arguments in (7, [], {"name": 1})),
            *(choice(None, tool_calls=[called(BONN, name)]) for name in ("other", None, 7, [])),  # type: ignore[arg-type]
        ):
            with self.subTest(one=one):
                script = Script(answer(one), answer(one))
                options = {"response_format": form(CITY), "tools": [WEATHER]}
                self.misfit(script, call=self.call_for(**options), retries=1)
                for told in script.asked[1].request["messages"]:
                    self.assertTrue(all(type(call) is dict for call in told.get("tool_calls", ())))

    def test_calls_that_are_none_are_passed_on(self) -> None:
        for calls in ("x", 7, {"a": 1}, ["x"], [None], [{}], [{"function": "x"}]):
            with self.subTest(calls=calls):
                one = answer(choice(f"```{BONN}```", tool_calls=calls))
                self.assertEqual(self.ask(Script(one), self.call_for(tools=[WEATHER])).body, dump(one))

    def test_an_odd_usage_is_replaced_in_an_answer_that_is_repaired(self) -> None:
        for usage in (7, "x", [], [7], None):
            with self.subTest(usage=usage):
                given = self.ask(Script({**answer(choice(f"Here: {BONN}")), "usage": usage}))
                told = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
                self.assertEqual(json.loads(given.body)["usage"], told)

    def test_of_several_choices_none_is_named(self) -> None:
        script = Script(answer(choice(BONN), choice("no")), answer(choice(BONN), choice(BONN)))
        self.ask(script, self.call_for(response_format=form(CITY), n=2))
        self.assertEqual(script.asked[1].request["messages"], HI)

    def test_it_is_asked_no_more_often_than_that(self) -> None:
        for retries in (0, 1, 2):
            script = Script(*[answer(choice(f'{{"name": {number}}}')) for number in range(5)])
            error = self.misfit(script, retries=retries)
            self.assertEqual(len(script.asked), retries + 1)
            self.assertEqual(error.details["text"], f'{{"name": {retries}}}')
            self.assertEqual(
                error.details["details"], [{"path": "$.name", "message": f"must be a string, is {retries}"}]
            )
            self.assertEqual(self.call.usage, Usage(3 * (retries + 1), 5 * (retries + 1), False))

    def test_each_ask_names_the_faults_of_the_answer_before_alone(self) -> None:
        script = Script(answer(choice("one")), answer(choice("two")), answer(choice(BONN)))
        self.ask(script)
        self.assertEqual([one["content"] for one in script.asked[2].request["messages"]][:2], ["hi", "two"])

    def test_all_asks_have_one_time_together(self) -> None:
        script = Script(answer(choice("one")), answer(choice("two")), answer(choice("three")))
        clock = mock.Mock(monotonic=mock.Mock(side_effect=[100.0, 130.0, 161.0]))
        with mock.patch.object(module, "time", clock):  # this module's alone: other threads have their time
            self.misfit(script)
        self.assertEqual([call.limit_s for call in script.asked], [None, 30.0])

    def test_a_schema_that_cannot_be_checked_is_not_asked_for_again(self) -> None:
        script = Script(answer(choice("2")), answer(choice("2")))
        error = self.misfit(script, call=self.call_for(response_format=form(COMPLEX)))
        self.assertEqual((len(script.asked), self.call.schema_retries), (1, 0))
        self.assertIn("too many steps", str(error))
        self.assertEqual(error.details["text"], "2")

    def test_a_refusal_of_the_longer_request_is_not_the_clients(self) -> None:
        script = Script(answer(choice("no")), RequestRefused("context_too_long", "too long", param="messages"))
        error = self.misfit(script)
        self.assertEqual(error.details["text"], "no")

    def test_an_ask_that_fails_is_told_of_with_the_first(self) -> None:
        for failure in (EngineFailed("backend_unavailable", "none"), ClientGone()):
            script = Script(answer(choice("no")), failure)
            with self.assertRaises(type(failure)):
                self.ask(script)
            self.assertEqual((self.call.attempts, len(self.call.records)), (2, 2))
            self.assertEqual((self.call.engine_id, self.call.usage), ("e1", Usage(3, 5, False)))

    def test_a_repaired_answer_is_told_of(self) -> None:
        given = self.ask(Script(answer(choice(f"Here: {BONN}"))))
        self.assertEqual(json.loads(given.body)["choices"][0]["message"]["content"], BONN)
        self.assertEqual((self.call.repairs, self.call.schema_retries), (("text_around",), 0))

    def test_a_stream_that_came_whole_is_asked_for_whole_again_and_told_as_one(self) -> None:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        script = Script(answer(choice("no")), answer(choice(BONN)))
        given = self.ask(script, self.call_for(response_format=form(CITY), **options))
        self.assertEqual(set(script.asked[1].request), {"model", "messages", "response_format"})
        self.assertFalse(script.asked[1].stream)
        self.assertTrue(given.body.endswith(b"data: [DONE]\n\n"))
        events = [json.loads(line[6:]) for line in given.body.split(b"\n\n")[:-2]]
        said = [one["delta"].get("content") or "" for event in events for one in event["choices"]]
        self.assertEqual("".join(said), BONN)
        self.assertEqual([event["usage"]["total_tokens"] for event in events if event.get("usage")], [16])

    def test_a_large_answer_is_read_on_a_thread(self) -> None:
        given = self.ask(Script(answer(choice(BONN)), large=True))
        self.assertEqual((self.waits, given.body), ([ASIDE], dump(answer(choice(BONN)))))

    def test_asking_again_is_given_up_with_the_call(self) -> None:
        call = self.call_for(response_format=form(CITY))
        again = call.again(HI)
        self.assertFalse(again.cancelled)
        call.cancel()
        self.assertTrue(again.cancelled)
        with self.assertRaises(ClientGone):
            self.run_steps(again.wait(mock.Mock(), 60.0))


class PaidTest(unittest.TestCase):
    """What each ask took is kept with the model that took it, also where a later one is in vain."""

    def asks(self, *later: Union[str, EngineFailed]) -> Any:
        models = iter(("a", *later))

        def ask(call: Call) -> Steps[Any]:
            yield from ()
            model = next(models)
            if isinstance(model, EngineFailed):
                call.engine_id, call.served_model = "e", "in vain"
                raise model
            given = answer(choice("{}"))
            call.engine_id, call.served_model, call.usage = "e", model, Usage(3, 5, False)
            return Answer(dump(given), call.usage, given)

        call = Call(CHAT, request_of(response_format=form(CITY)))
        give_shape(call, {})
        with self.assertRaises(GatewayError):
            list(fitting(ask, call, call.shape, Limits(len(later), 60.0)))  # type: ignore[arg-type]
        return call.asks

    def test_one_ask_is_its_usage(self) -> None:
        self.assertEqual(self.asks(), [])

    def test_several_are_each_their_own(self) -> None:
        took = Usage(3, 5, False)
        self.assertEqual(self.asks("b", "a"), [("a", took), ("b", took), ("a", took)])
        self.assertEqual(self.asks(EngineFailed("backend_error", "no")), [("a", took)])


class MisfitTest(unittest.TestCase):
    def details(self, text: str) -> Json:
        found = module.misfit(Fitted({}, [Fault("$", "is wrong")], text=text)).details
        assert found is not None
        return found

    def test_a_long_text_is_cut_at_a_character_and_said_to_be(self) -> None:
        for text, kept in (("x" * 65_537, 65_536), ("é" * 40_000, 32_768), ("x" + "€" * 30_000, 21_846)):
            told = self.details(text)
            self.assertEqual((told["text"], told["truncated"]), (text[:kept], True))

    def test_a_short_one_is_told_as_it_is(self) -> None:
        for text in ("", "x" * 65_536, "é" * 32_768, "\ud83d"):
            told = self.details(text)
            self.assertEqual((told["text"], told.get("truncated")), (text, None))


class JudgingTest(unittest.TestCase):
    def lines(self, *pieces: str, **end: Any) -> bytes:
        events = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", **end}]})
        return b"".join(b"data: %b\n\n" % dump(event) for event in events)

    def judge(self, *lines: bytes, shape_: Optional[Shape] = None) -> tuple[bytes, Optional[GatewayError]]:
        judging = Judging(shape_ or shape(response_format=form(CITY)))
        passed = b""
        for number, some in enumerate(lines, 1):
            more, end = judging.lines(some, number == len(lines))
            self.assertEqual(more + end, some)
            passed += more
        error = judging.error()
        return passed + end if error is None else passed, error

    def test_a_stream_that_fits_is_passed_on(self) -> None:
        lines = self.lines('{"name":', ' "Bonn"}')
        self.assertEqual(self.judge(lines, b"data: [DONE]\n\n"), (lines + b"data: [DONE]\n\n", None))
        self.assertEqual(self.judge(lines + b"data: [DONE]\n\n"), (lines + b"data: [DONE]\n\n", None))

    def test_a_misfit_has_no_end(self) -> None:
        lines = self.lines('{"name":', " 1}")
        for parts in ((lines, b"data: [DONE]\n\n"), (lines + b"data: [DONE]\n\n",)):
            passed, error = self.judge(*parts)
            assert error is not None
            self.assertEqual(
                (passed, error.code, error.details["text"]), (lines, "invalid_model_output", '{"name": 1}')
            )

    def test_an_end_is_one_however_it_is_written(self) -> None:
        lines = self.lines("{}")
        for end in (b"data:[DONE]\n\n", b"data: \t[DONE] \r\n\r\n", b"\ndata: [DONE]\r\r", b": x\rdata:[DONE]\n\n"):
            for parts in ((lines + end,), (lines, end)):
                passed, error = self.judge(*parts)
                self.assertIsNotNone(error, end)
                self.assertNotIn(b"[DONE]", passed)

    def test_what_says_so_in_its_text_is_no_end(self) -> None:
        self.assertIsNotNone(self.judge(self.lines("data: [DONE]", "\ndata: [DONE]\n"), b"data: [DONE]\n\n")[1])
        self.assertIsNone(self.judge(self.lines('{"name": "data: [DONE]"}'), b"data: [DONE]\n\n")[1])

    def test_what_would_be_repaired_is_a_misfit_with_its_text(self) -> None:
        fenced = f"```json\n{BONN}\n```"
        _, error = self.judge(self.lines(fenced), b"data: [DONE]\n\n")
        assert error is not None
        self.assertEqual(error.details["text"], fenced)
        self.assertEqual(error.details["details"], [{"path": "$", "message": "is not JSON alone: code_fence"}])

    def test_what_was_cut_short_is_passed_on(self) -> None:
        lines = self.lines('{"na', finish_reason="length")
        self.assertIsNone(self.judge(lines, b"data: [DONE]\n\n")[1])

    def test_comments_are_not_read(self) -> None:
        self.assertIsNone(self.judge(b": ping\n\n" + self.lines(BONN), b": x\n\ndata: [DONE]\n\n")[1])

    def test_calls_are_judged_too(self) -> None:
        events = [
            {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **called('{"na')}]}}]},
            {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": 'me": 1}'}}]}}]},
        ]
        lines = b"".join(b"data: %b\n\n" % dump(event) for event in events)
        _, error = self.judge(lines, b"data: [DONE]\n\n", shape_=shape(tools=[WEATHER]))
        assert error is not None
        self.assertEqual(error.details["details"][0]["path"], "$.tool_calls[0].function.arguments.name")

    def test_what_cannot_be_held_or_read_is_a_misfit(self) -> None:
        with mock.patch.object(module, "_STREAM_MAX_BYTES", 100):
            self.assertIsNotNone(self.judge(self.lines("x" * 200, BONN), b"data: [DONE]\n\n")[1])
        self.assertIsNotNone(self.judge(b"data: {no\n\n" + self.lines(BONN), b"data: [DONE]\n\n")[1])


if __name__ == "__main__":
    unittest.main()
