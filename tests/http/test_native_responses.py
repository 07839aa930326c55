"""Engines that serve OpenAI's Responses themselves: what passes, what is checked, and who answers when they do not."""

from __future__ import annotations

import json
import tempfile
import unittest
from typing import Any, Optional

from tests.dialects import RESPONSES
from tests.http.test_structured import CITY, ROME
from tests.resilience import ResilienceTest, ask
from tests.scripted import STREAM_HEAD, EngineSide, chunked
from tests.support import CHAT, Response, RunningGateway, dead_url

Json = dict[str, Any]
REFUSED = "invalid_response_format"
NATIVE = [RESPONSES, CHAT]
CITY_TEXT = {"format": {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}}
FUNCTION = {
    "type": "function",
    "name": "get_weather",
    "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def event(kind: str, response: Json) -> bytes:
    """An event of a stream that tells of the whole."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, 'response': response})}\n\n".encode()


def said(answer: Json) -> str:
    """The text of a Response."""
    messages = [item for item in answer["output"] if item["type"] == "message"]
    return "".join(part["text"] for item in messages for part in item["content"])


class NativeCase(ResilienceTest):
    def native(self, **options: Any) -> RunningGateway:
        self.mock = self.engine(lacks="", model="real", **options)
        spec = {"url": self.mock.url, "model": "real", "endpoints": NATIVE}
        return self.serve({"m": {"engines": [spec]}})

    def ask(self, running: RunningGateway, **options: Any) -> Response:
        return running.post({"model": "m", "input": "hi", **options}, RESPONSES)

    def streamed(self, running: RunningGateway, body: Json) -> tuple[list[Json]]:
        """A stream's head and events."""
        client = self.enter(running.connect())
        client.request("POST", RESPONSES, {"model": "m", "input": "hi", **body, "stream": True})
        head = client.read_head()
        return head, [json.loads(told.partition("data: ")[2]) for told in client.read_events()]


class NativeTest(NativeCase):
    def test_conversations_that_the_engine_keeps_go_on(self) -> None:
        running = self.native()
        first = running.post({"model": "m", "input": "my name is Ada", "store": True}, RESPONSES)
        self.assertEqual(first.status, 200, first.body)
        again = {"model": "m", "input": "and now?", "previous_response_id": first.json()["id"]}
        second = running.post(again, RESPONSES)
        self.assertEqual((second.status, second.json()["previous_response_id"]), (200, first.json()["id"]))
        self.assertEqual(self.mock.requests[-1]["path"], "/v1/responses")
        line = running.request_line(second.request_id)
        used = second.json()["usage"]
        self.assertEqual(
            (line["prompt_tokens"], line["completion_tokens"]), (used["input_tokens"], used["output_tokens"])
        )

    def test_its_stream_passes_and_its_usage_is_counted(self) -> None:
        running = self.native()
        client = self.enter(running.connect())
        client.request("POST", RESPONSES, {"model": "m", "input": "hi", "stream": True})
        head = client.read_head()
        self.assertEqual(head.header("content-type"), "text/event-stream")
        events = [json.loads(event.partition("data: ")[2]) for event in client.read_events()]
        self.assertEqual((events[0]["type"], events[-1]["type"]), ("response.created", "response.completed"))
        used = events[-1]["response"]["usage"]
        line = running.request_line(head.request_id)
        self.assertEqual(
            (line["prompt_tokens"], line["completion_tokens"]), (used["input_tokens"], used["output_tokens"])
        )

    def test_a_broken_stream_ends_in_its_own_error_event(self) -> None:
        running = self.native(behaviour="drop_mid_stream")
        head, events = self.streamed(running, {"input": "hi there you all"})
        self.assertEqual([event["sequence_number"] for event in events], list(range(len(events))))
        self.assertEqual((events[-1]["type"], events[-1]["code"]), ("error", "backend_error"))
        self.assertNotIn("response.completed", [event["type"] for event in events])
        self.assertEqual(running.request_line(head.request_id)["error"], "backend_error")

    def test_a_part_of_an_event_is_not_passed_on(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [{"url": engine.url, "endpoints": [RESPONSES]}]}})
        client = self.enter(running.connect())
        client.request("POST", RESPONSES, {"model": "m", "input": "hi", "stream": True})
        side = engine.take()
        side.send(STREAM_HEAD + chunked(event("response.created", {})) + chunked(b"event: response.in_pro"))
        client.read_head()
        self.assertEqual(client.read_event(), event("response.created", {}).decode().strip())
        side.close()
        told = client.read_event()
        assert told is not None
        self.assertTrue(told.startswith("event: error\ndata: "), told)

    def test_where_no_engine_has_it_it_is_translated(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        self.assertEqual(running.post({"model": "m", "input": "hi"}, RESPONSES).status, 200)
        kept = running.post({"model": "m", "input": "hi", "previous_response_id": "resp_1"}, RESPONSES)
        self.assert_error(kept, 400, "not_supported")


class ParametersTest(NativeCase):
    """What a model's requests lack, have by default, or always, in the words of Responses."""

    def sent(self, model: Json, **options: Any) -> Json:
        """The body that the engine gets."""
        self.mock = self.engine(lacks="")
        running = self.serve({"m": {"engines": [{"url": self.mock.url, "endpoints": NATIVE}], **model}})
        self.assertEqual(self.ask(running, **options).status, 200)
        last = self.mock.requests[-1]
        self.assertEqual(last["path"], RESPONSES)
        body: Json = last["body"]
        return body

    def test_what_means_the_same_everywhere_is_checked_before_it_is_sent(self) -> None:
        running = self.native()
        for name in ("top_p", "temperature", "stream"):
            code = f"invalid_{name}"
            with self.subTest(name):
                refused = self.ask(running, **{name: "AAA"})
                self.assertEqual((refused.status, refused.error), (400, code))
                self.assertEqual(self.ask(running, **{name: None}).status, 200)

    def test_what_is_stripped_is_not_sent(self) -> None:
        sent = self.sent(
            {"strip": ["temperature", "max_tokens", "reasoning_effort"]},
            temperature=1,
            Max_Output_Tokens=1,
            max_output_tokens=9,
            top_p=1,
            reasoning={"effort": "low", "summary": "auto"},
        )
        self.assertEqual(sent, {"model": "m", "input": "hi", "top_p": 1, "reasoning": {"summary": "auto"}})

    def test_defaults_are_for_who_has_not_said(self) -> None:
        defaults = {"temperature": 0.5, "max_tokens": 7, "verbosity": "low", "stop": "x", "top_k": 4}
        sent = self.sent({"defaults": defaults})
        body = {"model": "m", "input": "hi", "max_output_tokens": 7, "text": {"verbosity": "low"}}
        self.assertEqual(sent, {**body, "temperature": 0.5, "top_k": 4})
        sent = self.sent({"defaults": defaults}, max_output_tokens=8, temperature=0, text={"verbosity": "high"})
        told = (sent["max_output_tokens"], sent["temperature"], sent["text"])
        self.assertEqual(told, (8, 0, {"verbosity": "high"}))

    def test_what_is_forced_is_so_whatever_was_said(self) -> None:
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        force = {"max_completion_tokens": 7, "reasoning_effort": "low", "tools": [tool], "seed": 4}
        sent = self.sent({"force": force}, max_output_tokens=100, reasoning={"effort": "high", "summary": "auto"})
        self.assertEqual((sent["max_output_tokens"], sent["reasoning"]["effort"]), (7, "low"))
        self.assertEqual(sent["reasoning"]["summary"], "auto")
        self.assertEqual(sent["tools"], [{"type": "function", "name": "f", "parameters": {"type": "object"}}])
        self.assertNotIn("seed", sent)


class FittingTest(NativeCase):
    """Answers that have to fit."""

    def test_a_misfit_is_asked_again_with_its_faults(self) -> None:
        running = self.native(behaviour="misfit", times=1)
        answer = self.ask(running, text=CITY_TEXT)
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(sorted(json.loads(said(answer.json()))), ["name", "people"])
        line = running.request_line(answer.request_id)
        self.assertEqual((line["schema_retries"], line["attempts"]), (1, 2))
        used = answer.json()["usage"]
        counted = (line["prompt_tokens"], line["completion_tokens"])
        self.assertEqual((used["input_tokens"], used["output_tokens"], used["total_tokens"]), (*counted, sum(counted)))
        asked = self.mock.requests[-1]
        self.assertEqual(asked["path"], RESPONSES)
        first, misfit, told = asked["body"]["input"]
        self.assertEqual((first, misfit["type"], told["role"]), ({"role": "user", "content": "hi"}, "message", "user"))
        self.assertIn("$.name", told["content"])

    def test_at_last_it_is_an_error_that_names_the_faults(self) -> None:
        running = self.native(behaviour="misfit")
        answer = self.ask(running, text=CITY_TEXT)
        self.assert_error(answer, 502, "invalid_model_output")
        self.assertIn("$.name", answer.body.decode())
        self.assertEqual(running.request_line(answer.request_id)["attempts"], 3)

    def test_known_habits_are_repaired(self) -> None:
        running = self.native(behaviour="code_fence")
        answer = self.ask(running, text=CITY_TEXT)
        self.assertEqual(sorted(json.loads(said(answer.json()))), ["name", "people"])
        self.assertEqual(running.request_line(answer.request_id)["repaired"], ["code_fence"])
        called = self.ask(running, input="get_weather in Rome", tools=[FUNCTION])
        (call,) = [item for item in called.json()["output"] if item["type"] == "function_call"]
        self.assertEqual(list(json.loads(call["arguments"])), ["city"])

    def test_strict_functions_are_called_again(self) -> None:
        running = self.native(behaviour="misfit", times=1)
        answer = self.ask(running, input="get_weather in Rome", tools=[FUNCTION])
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(running.request_line(answer.request_id)["schema_retries"], 1)
        kinds = [item.get("type") for item in self.mock.requests[-1]["body"]["input"]]
        self.assertEqual(kinds[-1], "function_call_output")
        running = self.native(behaviour="misfit")
        lax = self.ask(running, input="get_weather in Rome", tools=[{**FUNCTION, "strict": False}])
        self.assertEqual(lax.status, 200)

    def test_a_schema_that_cannot_be_checked_is_refused(self) -> None:
        running = self.native()
        form = {"type": "json_schema", "name": "x", "schema": {"type": "object", "$dynamicRef": "#x"}}
        answer = self.ask(running, text={"format": form})
        self.assert_error(answer, 400, REFUSED)
        self.assertIn("text.format.schema.$dynamicRef", answer.body.decode())
        odd = {**FUNCTION, "parameters": {"$dynamicRef": "#x"}}
        answer = self.ask(running, tools=[{"type": "web_search"}, odd])
        self.assertIn("tools[1].parameters.$dynamicRef", answer.body.decode())
        self.assertEqual(self.mock.requests, [])

    def test_a_schema_that_the_gateway_keeps_is_sent_with_its_name(self) -> None:
        directory = self.enter(tempfile.TemporaryDirectory())
        with open(f"{directory}/city.json", "w", encoding="utf-8") as file:
            json.dump(CITY, file)
        self.mock = self.engine(lacks="")
        engines = [{"url": self.mock.url, "endpoints": NATIVE}]
        running = self.serve({"m": {"engines": engines}}, SCHEMAS_DIR=directory)
        answer = self.ask(running, text={"format": {"type": "json_schema", "name": "city"}, "verbosity": "low"})
        self.assertEqual(answer.status, 200, answer.body)
        sent = self.mock.requests[-1]["body"]["text"]
        self.assertEqual((sent["format"]["schema"], sent["verbosity"]), (CITY, "low"))
        self.assert_error(self.ask(running, text={"format": {"type": "json_schema", "name": "x"}}), 400, REFUSED)

    def test_a_stream_that_fits_passes_and_one_that_does_not_ends_in_an_error(self) -> None:
        for behaviour, end in (("ok", "response.completed"), ("misfit", "error"), ("code_fence", "error")):
            with self.subTest(behaviour):
                running = self.native(behaviour=behaviour)
                head, events = self.streamed(running, {"text": CITY_TEXT})
                kinds = [told["type"] for told in events]
                self.assertEqual((kinds[0], kinds[-1]), ("response.created", end))
                self.assertEqual([told["sequence_number"] for told in events], list(range(len(events))))
                if end == "error":
                    self.assertNotIn("response.completed", kinds)
                    self.assertEqual(events[-1]["code"], "invalid_model_output")
                    self.assertEqual(running.request_line(head.request_id)["error"], "invalid_model_output")

    def test_what_the_client_has_said_ends_no_stream(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [{"url": engine.url, "endpoints": NATIVE}]}})
        told = {"status": "in_progress", "metadata": {"type": "response.completed"}}
        misfit = {"type": "message", "content": [{"type": "output_text", "text": "x"}]}
        client = self.enter(running.connect())
        client.request("POST", RESPONSES, {"model": "m", "input": "hi", "text": CITY_TEXT, "stream": True})
        side = engine.take()
        side.send(STREAM_HEAD + chunked(event("response.created", told)))
        client.read_head()
        self.assertEqual(client.read_event(), event("response.created", told).decode().strip())
        last = event("response.completed", {**told, "status": "completed", "output": [misfit]})
        side.send(chunked(last) + b"0\r\n\r\n")
        self.assertIn("invalid_model_output", client.read_event() or "")

    def test_whatever_type_an_answer_has_it_is_checked(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [{"url": engine.url, "endpoints": NATIVE}]}}, SCHEMA_RETRIES=0)
        message = {"type": "message", "content": [{"type": "output_text", "text": f"```json\n{ROME}\n```"}]}
        repaired = json.dumps({"status": "completed", "output": [message]}).encode()
        side: Optional[EngineSide] = None
        for body, kind, status in (
            (b"sorry", "text/plain", 502),
            (repaired, "text/plain", 200),
            (repaired, "application/json", 200),
        ):
            for stream in (False, True):
                client = self.enter(running.connect())
                client.request("POST", RESPONSES, {"model": "m", "input": "hi", "text": CITY_TEXT, "stream": stream})
                side = engine.take() if side is None else side.read_request()
                side.answer(body + b" " * 100_000, kind)
                answer = client.read_response()
                self.assertEqual((answer.status, answer.header("content-type")), (status, "application/json"))
                if status == 200:
                    self.assertEqual(json.loads(said(answer.json())), json.loads(ROME))

    def test_a_large_answer_is_checked_too(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [{"url": engine.url, "endpoints": NATIVE}]}}, SCHEMA_RETRIES=0)
        client = self.enter(running.connect())
        client.request("POST", RESPONSES, {"model": "m", "input": "hi", "text": CITY_TEXT})
        text = {"type": "output_text", "text": "x" * 100_000}
        message = {"type": "message", "role": "assistant", "content": [text]}
        engine.take().answer(json.dumps({"status": "completed", "output": [message]}).encode())
        self.assert_error(client.read_response(), 502, "invalid_model_output")

    def test_what_was_cut_short_or_refused_is_passed_on(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [{"url": engine.url, "endpoints": NATIVE}]}})
        refusal = {"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}
        half = {"type": "message", "content": [{"type": "output_text", "text": ROME[:5]}]}
        side: Optional[EngineSide] = None
        for body in ({"status": "completed", "output": [refusal]}, {"status": "incomplete", "output": [half]}):
            client = self.enter(running.connect())
            client.request("POST", RESPONSES, {"model": "m", "input": "hi", "text": CITY_TEXT})
            side = engine.take() if side is None else side.read_request()
            side.answer(json.dumps(body).encode())
            answer = client.read_response()
            self.assertEqual((answer.status, answer.json()), (200, body))


class InsteadTest(NativeCase):
    """Engines that have only chat answer where those with the endpoint do not."""

    def both(self, behaviour: str = "loading", **variables: object) -> RunningGateway:
        self.mock, self.chat = self.engine(behaviour, lacks=""), self.engine()
        engines = [{"url": self.mock.url, "endpoints": NATIVE}, self.chat.url]
        return self.serve({"m": {"engines": engines}}, HEALTH_INTERVAL=0, **variables)

    def test_a_whole_answer(self) -> None:
        running = self.both(RETRY_ATTEMPTS=2)
        answer = self.ask(running)
        self.assertEqual((answer.status, answer.json()["object"]), (200, "response"), answer.body)
        self.assertEqual(answer.header("x-gateway-engine"), f"127.0.0.1:{self.chat.port}")
        self.assertEqual(answer.header("x-gateway-attempts"), "3")
        self.assertEqual({one["path"] for one in self.chat.requests}, {CHAT})
        self.assertEqual({one["path"] for one in self.mock.requests}, {RESPONSES})
        line = running.request_line(answer.request_id)
        self.assertEqual((line["status"], line["attempts"], line["path"]), (200, 3, RESPONSES))
        self.assertEqual(line["completion_tokens"], answer.json()["usage"]["output_tokens"])
        self.assert_nothing_held(running)

    def test_a_stream(self) -> None:
        running = self.both()
        head, events = self.streamed(running, {})
        self.assertEqual(head.header("content-type"), "text/event-stream")
        self.assertEqual((events[0]["type"], events[-1]["type"]), ("response.created", "response.completed"))
        self.assertEqual(head.header("x-gateway-engine"), f"127.0.0.1:{self.chat.port}")
        used = events[-1]["response"]["usage"]
        line = running.request_line(head.request_id)
        counted = (line["prompt_tokens"], line["completion_tokens"])
        self.assertEqual(counted, (used["input_tokens"], used["output_tokens"]))

    def test_it_has_to_fit_all_the_same(self) -> None:
        running = self.both()
        self.chat.control("misfit", times=1)
        answer = self.ask(running, text=CITY_TEXT)
        self.assertEqual(sorted(json.loads(said(answer.json()))), ["name", "people"])
        self.assertEqual(running.request_line(answer.request_id)["schema_retries"], 1)

    def test_a_fallback_model(self) -> None:
        other = self.engine(model="o")
        engines = [{"url": dead_url(), "endpoints": NATIVE}]
        models = {"m": {"engines": engines, "fallbacks": ["o"]}, "o": {"engines": [other.url]}}
        running = self.serve(models, HEALTH_INTERVAL=0)
        answer = self.ask(running)
        self.assertEqual((answer.status, answer.header("x-gateway-fallback")), (200, "m->o"), answer.body)

    def test_another_model_where_its_own_has_nothing_else(self) -> None:
        other = self.engine(model="o")
        engines = [{"url": dead_url(), "endpoints": [RESPONSES]}]
        running = self.serve({"m": {"engines": engines}, "o": {"engines": [other.url]}}, HEALTH_INTERVAL=0)
        answer = self.ask(running)
        self.assertEqual((answer.status, answer.header("x-gateway-fallback")), (200, "m->o"), answer.body)
        self.assert_error(running.post(ask()), 400, "endpoint_not_served")

    def test_an_engine_that_turns_out_to_lack_it_is_asked_in_chat(self) -> None:
        self.mock = self.engine(lacks="responses", lacks_status=501)
        running = self.serve({"m": {"engines": [{"url": self.mock.url, "endpoints": NATIVE}]}}, HEALTH_INTERVAL=0)
        for number in (1, 2):
            answer = self.ask(running)
            self.assertEqual((answer.status, answer.json()["object"]), (200, "response"), answer.body)
            paths = [one["path"] for one in self.mock.requests]
            self.assertEqual(paths, [RESPONSES, *[CHAT] * number])  # it is remembered

    def test_what_chat_has_no_words_for_fails_as_its_engine_does(self) -> None:
        running = self.both()
        for more in ({"previous_response_id": "resp_1"}, {"store": True}):
            answer = self.ask(running, **more)
            self.assert_error(answer, 502, "backend_error")
        self.assertEqual(self.chat.requests, [])

    def test_where_all_engines_have_it_their_failure_is_told_and_no_more_is_asked(self) -> None:
        self.mock = self.engine("loading", lacks="")
        engines = [{"url": self.mock.url, "endpoints": NATIVE}]
        running = self.serve({"m": {"engines": engines}}, HEALTH_INTERVAL=0, RETRY_ATTEMPTS=2)
        answer = self.ask(running)
        self.assert_error(answer, 502, "backend_error")
        self.assertEqual({one["path"] for one in self.mock.requests}, {RESPONSES})
        self.assertEqual(running.request_line(answer.request_id)["attempts"], 2)

    def test_where_nobody_is_left_to_ask_it_is_told_who_has_failed(self) -> None:
        self.mock = self.engine("loading", lacks="")
        running = self.serve({"m": {"engines": [{"url": self.mock.url, "endpoints": [RESPONSES]}]}}, HEALTH_INTERVAL=0)
        answer = self.ask(running)
        self.assert_error(answer, 502, "backend_error")
        line = running.request_line(answer.request_id)
        self.assertEqual((line["engine"], line["model"]), (f"127.0.0.1:{self.mock.port}", "m"))

    def test_who_leaves_meanwhile_ends_what_is_asked_instead(self) -> None:
        chat = self.scripted()
        engines = [{"url": dead_url(), "endpoints": NATIVE}, chat.url]
        running = self.serve({"m": {"engines": engines}}, HEALTH_INTERVAL=0, RETRY_ATTEMPTS=1)
        for stream in (False, True):
            client = self.enter(running.connect())
            client.request("POST", RESPONSES, {"model": "m", "input": "hi", "stream": stream})
            side = chat.take()
            client.close()
            self.assertTrue(side.wait_until_left())
            self.assert_nothing_held(running)

    def test_an_engine_that_has_answered_already_is_the_one_that_answers(self) -> None:
        native, chat = self.scripted(), self.engine()
        engines = [{"url": native.url, "endpoints": NATIVE}, chat.url]
        running = self.serve({"m": {"engines": engines}}, HEALTH_INTERVAL=0, RETRY_ATTEMPTS=1)
        client = self.enter(running.connect())
        client.request("POST", RESPONSES, {"model": "m", "input": "hi", "text": CITY_TEXT})
        side = native.take()
        side.answer(b'{"output": []}')
        side.read_request()
        side.answer(b"{}", status="503 Service Unavailable")
        answer = client.read_response()
        self.assert_error(answer, 502, "backend_error")
        self.assertGreater(running.request_line(answer.request_id)["prompt_tokens"], 0)
        self.assertEqual(chat.requests, [])

    def test_what_an_engine_refuses_is_asked_nowhere_else(self) -> None:
        running = self.both("bad_request")
        self.assertEqual(self.ask(running).status, 400)
        self.assertEqual(self.chat.requests, [])


class MadeOfOthersTest(NativeCase):
    """Models that others answer for."""

    def answered_by(self, running: RunningGateway) -> set[Optional[str]]:
        """The models that answer for `s`, of as many sessions as meet all of them."""
        seen = set()
        for number in range(40):
            answer = running.post({"model": "s", "input": "hi"}, RESPONSES, [("X-Session-Id", str(number))])
            self.assertEqual((answer.status, answer.json()["object"]), (200, "response"), answer.body)
            seen.add(answer.header("x-gateway-model"))
        return seen

    def test_a_split_passes_on_where_its_model_can_and_translates_where_not(self) -> None:
        native, chat = self.engine(lacks="", model="a"), self.engine(model="b")
        models: Json = {
            "a": {"engines": [{"url": native.url, "endpoints": NATIVE}]},
            "b": {"engines": [chat.url]},
            "s": {"split": {"a": 1, "b": 1}},
        }
        self.assertEqual(self.answered_by(self.serve(models)), {"a", "b"})
        self.assertEqual({one["path"] for one in native.requests}, {RESPONSES})
        self.assertEqual({one["path"] for one in chat.requests}, {CHAT})

    def test_who_lacks_an_endpoint_leaves_its_share_to_the_others(self) -> None:
        able, chat = self.engine(model="a"), self.engine(model="b")
        models: Json = {
            "a": {"engines": [able.url]},
            "b": {"engines": [{"url": chat.url, "endpoints": [CHAT]}]},
            "s": {"split": {"a": 1, "b": 1}},
            "n": {"split": {"b": 1, "c": 1}},
            "c": {"engines": [{"url": chat.url, "endpoints": [CHAT]}]},
        }
        running = self.serve(models, FALLBACK="off")
        for number in range(20):
            session = [("X-Session-Id", str(number))]
            answer = running.post({"model": "s", "input": "hi"}, "/v1/embeddings", session)
            self.assertEqual((answer.status, answer.header("x-gateway-model")), (200, "a"), answer.body)
        self.assert_error(running.post({"model": "n", "input": "hi"}, "/v1/embeddings"), 400, "endpoint_not_served")

    def test_a_member_that_has_only_this_endpoint_has_its_share(self) -> None:
        native, chat = self.engine(lacks="", model="a"), self.engine(model="b")
        models: Json = {
            "a": {"engines": [{"url": native.url, "endpoints": [RESPONSES]}]},
            "b": {"engines": [chat.url]},
            "s": {"split": {"a": 1, "b": 1}},
        }
        self.assertEqual(self.answered_by(self.serve(models)), {"a", "b"})

    def test_what_a_split_forces_is_so_in_chat_too(self) -> None:
        native, chat = self.engine("loading", lacks="", model="a"), self.engine(model="b")
        models: Json = {
            "a": {"engines": [{"url": native.url, "endpoints": NATIVE}]},
            "b": {"engines": [chat.url]},
            "s": {"split": {"a": 1, "b": 1}, "fallbacks": ["b"], "force": {"seed": 4, "max_tokens": 7}},
        }
        running = self.serve(models, HEALTH_INTERVAL=0, RETRY_ATTEMPTS=1)
        for number in range(20):
            answer = running.post({"model": "s", "input": "hi"}, RESPONSES, [("X-Session-Id", str(number))])
            self.assertEqual(answer.status, 200, answer.body)
            sent = chat.requests[-1]["body"]
            self.assertEqual((sent["seed"], sent.get("max_completion_tokens", sent.get("max_tokens"))), (4, 7))
        self.assertEqual({one["body"]["max_output_tokens"] for one in native.requests}, {7})

    def test_a_chain_goes_on_whatever_fallback_says(self) -> None:
        second = self.engine(model="b")
        models: Json = {
            "a": {"engines": [dead_url()]},
            "b": {"engines": [second.url]},
            "c": {"chain": ["a", "b"]},
        }
        running = self.serve(models, FALLBACK="off", HEALTH_INTERVAL=0)
        answer = running.post(ask(model="c"))
        self.assertEqual((answer.status, answer.header("x-gateway-model")), (200, "b"), answer.body)
        self.assertEqual(running.post(ask(model="a")).status, 502)

    def test_a_chain_goes_from_one_to_the_other(self) -> None:
        native, chat = self.engine("loading", lacks="", model="a"), self.engine(model="b")
        models: Json = {
            "a": {"engines": [{"url": native.url, "endpoints": NATIVE}]},
            "b": {"engines": [chat.url]},
            "c": {"chain": ["a", "b"]},
        }
        running = self.serve(models, HEALTH_INTERVAL=0)
        answer = running.post({"model": "c", "input": "hi"}, RESPONSES)
        self.assertEqual((answer.status, answer.header("x-gateway-model")), (200, "b"), answer.body)


if __name__ == "__main__":
    unittest.main()
