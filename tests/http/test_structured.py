"""Answers that have to fit a schema, over real sockets: what clients get, what engines are asked, what is counted."""

from __future__ import annotations

import json
import os
import threading
import time
import unittest
from typing import Any, Optional
from unittest import mock

from gateway.fitting import Fitted, Shape
from tests.access import ADMIN_KEYS, AS_ROOT, AccessTest
from tests.dialects import GENERATE, MESSAGES, OLLAMA_CHAT, RESPONSES, DialectTest, asking, ends_well, error_of, text_of
from tests.resilience import ask
from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked, delta
from tests.support import CHAT, TIMEOUT_S, RunningGateway, dead_url, eventually

Json = dict[str, Any]
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["name", "people"],
    "additionalProperties": False,
}
CITY_FORM = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
OBJECT_FORM = {"type": "json_object"}
ROME = '{"name": "Rome", "people": 3}'
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def structured(**options: Any) -> Json:
    return ask(**{"response_format": CITY_FORM, **options})


def told_form(path: str) -> Json:
    """What asks for a city in a request to that path."""
    if path == MESSAGES:
        return {"output_config": {"format": {"type": "json_schema", "schema": CITY}}}
    if path == RESPONSES:
        return {"text": {"format": {"type": "json_schema", "name": "city", "schema": CITY}}}
    return {"format": CITY} if path in (OLLAMA_CHAT, GENERATE) else {"response_format": CITY_FORM}


def asking_city(path: str, stream: bool = False) -> Json:
    return {**asking(path, stream=stream), **told_form(path)}


PATHS = (CHAT, MESSAGES, RESPONSES, OLLAMA_CHAT, GENERATE)


def completion(content: Optional[str], finish: str = "stop", **message: Any) -> bytes:
    told = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [told], "usage": usage}).encode()


class AnswersTest(DialectTest):
    def one(self, behaviour: str = "ok", **options: Any) -> RunningGateway:
        variables = {name: options.pop(name) for name in list(options) if name.isupper()}
        self.mock = self.engine(behaviour, **options)
        return self.serve({"m": {"engines": [self.mock.url]}}, **variables)

    def test_an_answer_that_fits_is_passed_on(self) -> None:
        running = self.one()
        for form in (CITY_FORM, OBJECT_FORM):
            answer = running.post(structured(response_format=form))
            self.assertEqual((answer.status, answer.header("x-gateway-attempts")), (200, "1"))
            line = running.request_line(answer.request_id)
            self.assertNotIn("schema_retries", line)
            self.assertNotIn("repaired", line)

    def test_what_its_engines_do_not_get_is_checked_all_the_same(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url], "strip": ["response_format"]}})
        client = self.begin(running, structured())
        side = engine.take()
        self.assertNotIn("response_format", side.json)
        side.answer(completion("{}"))
        side.read_request()
        self.assertNotIn("response_format", side.json)
        side.answer(completion(ROME))
        self.assertEqual(client.read_response().json()["choices"][0]["message"]["content"], ROME)

    def test_a_misfit_is_asked_again(self) -> None:
        for times in (1, 2):
            running = self.one("misfit", times=times)
            answer = running.post(structured())
            self.assertEqual((answer.status, answer.header("x-gateway-attempts")), (200, str(times + 1)), answer.body)
            body = answer.json()
            self.assertEqual(sorted(json.loads(body["choices"][0]["message"]["content"])), ["name", "people"])
            line = running.request_line(answer.request_id)
            self.assertEqual((line["schema_retries"], line["attempts"], line["status"]), (times, times + 1, 200))
            counted = (line["prompt_tokens"], line["completion_tokens"])
            self.assertEqual((body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]), counted)
            self.assertEqual(body["usage"]["total_tokens"], sum(counted))
            metrics = running.metrics()
            self.assertEqual(metrics['gateway_tokens_total{model="m",kind="prompt"}'], counted[0])
            self.assertEqual(metrics['gateway_tokens_total{model="m",kind="completion"}'], counted[1])
            engine = f'model="m",engine="127.0.0.1:{self.mock.port}"'
            asked = [
                value for name, value in metrics.items() if name.startswith("gateway_engine_requests_total{" + engine)
            ]
            self.assertEqual(sum(asked), times + 1)
            self.assert_nothing_held(running)

    def test_at_last_it_is_an_error_that_names_the_faults(self) -> None:
        for retries in (0, 2):
            running = self.one("misfit", SCHEMA_RETRIES=retries)
            answer = running.post(structured())
            self.assert_error(answer, 502, "invalid_model_output")
            body = answer.json()
            details = body["details"] if "details" in body else body["error"]["details"]
            self.assertIn("$.name", json.dumps(details))
            line = running.request_line(answer.request_id)
            self.assertEqual((line["attempts"], line.get("schema_retries", 0)), (retries + 1, retries))
            self.assertGreater(line["completion_tokens"], 0)
            self.assertEqual(self.states(running), ["up"])

    def test_known_habits_are_repaired_and_logged(self) -> None:
        habits = {"code_fence": "code_fence", "trailing_comma": "trailing_comma", "prose_before": "text_around"}
        for behaviour, repaired in habits.items():
            running = self.one(behaviour)
            for body in (structured(), structured(response_format=OBJECT_FORM)):
                # An empty object has no place for a comma.
                if behaviour == "trailing_comma" and body["response_format"] is OBJECT_FORM:
                    continue
                answer = running.post(body)
                json.loads(answer.json()["choices"][0]["message"]["content"])
                self.assertEqual(answer.header("x-gateway-attempts"), "1")
                self.assertEqual(running.request_line(answer.request_id)["repaired"], [repaired])

    def test_strict_functions_are_checked_and_called_again(self) -> None:
        running = self.one("misfit", times=1)
        answer = running.post(ask("get_weather in Rome", tools=[WEATHER]))
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(running.request_line(answer.request_id)["schema_retries"], 1)
        running = self.one("misfit")
        lax = {"type": "function", "function": {**WEATHER["function"], "strict": False}}  # type: ignore[dict-item]
        answer = running.post(ask("get_weather in Rome", tools=[lax]))
        self.assertEqual((answer.status, answer.header("x-gateway-attempts")), (200, "1"))
        running = self.one("code_fence")
        answer = running.post(ask("get_weather in Rome", tools=[WEATHER]))
        (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
        self.assertEqual(list(json.loads(call["function"]["arguments"])), ["city"])
        self.assertEqual(running.request_line(answer.request_id)["repaired"], ["code_fence"])

    def test_all_of_several_choices_have_to_fit(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.begin(running, structured(n=2))
        side = engine.take()
        both = json.loads(completion(ROME))
        both["choices"].append({**json.loads(completion("{}"))["choices"][0], "index": 1})
        side.answer(json.dumps(both).encode())
        side.read_request()
        self.assertEqual(side.json["messages"], ask()["messages"])
        both["choices"][1]["message"]["content"] = f"Sure: {ROME}"
        side.answer(json.dumps(both).encode())
        answer = client.read_response()
        said = [json.loads(one["message"]["content"]) for one in answer.json()["choices"]]
        self.assertEqual(said, [json.loads(ROME)] * 2)

    def test_what_was_refused_or_cut_short_is_passed_on(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        side: Optional[EngineSide] = None
        for body in (completion('{"na', "length"), completion(None, refusal="No."), completion("", "content_filter")):
            client = self.begin(running, structured())
            side = engine.take() if side is None else side.read_request()
            side.answer(body)
            answer = client.read_response()
            message = json.loads(body)["choices"][0]["message"]
            self.assertEqual((answer.status, answer.json()["choices"][0]["message"]), (200, message))

    def test_each_client_gets_what_fits_in_its_own_dialect(self) -> None:
        for path in PATHS:
            with self.subTest(path):
                running = self.one("misfit", times=1)
                answer = running.post(asking_city(path), path)
                self.assertEqual(answer.status, 200, answer.body)
                self.assertEqual(sorted(json.loads(text_of(path, [answer.json()]))), ["name", "people"])
                self.assertEqual(running.request_line(answer.request_id)["schema_retries"], 1)
                running = self.one("misfit")
                answer = running.post(asking_city(path), path)
                self.assertEqual(answer.status, 502)
                self.assertIn(
                    "does not fit its schema", error_of(path, answer.json())[1] if path != CHAT else str(answer.json())
                )

    def test_an_engine_that_speaks_another_dialect_is_asked_again_too(self) -> None:
        for behaviour, options, status in (("ok", {}, 200), ("misfit", {"times": 1}, 200), ("misfit", {}, 502)):
            engine = self.engine(behaviour, **options)
            url = engine.url[: -len("/v1")] if engine.url.endswith("/v1") else engine.url
            for path in (CHAT, MESSAGES):
                running = self.serve({"m": {"engines": [{"url": f"{url}/v1", "dialect": "anthropic"}]}})
                answer = running.post(asking_city(path), path)
                self.assertEqual(answer.status, status, (path, behaviour, answer.body))

    def test_another_model_may_be_the_one_that_answers_again(self) -> None:
        first, second = self.scripted(), self.engine(model="n")
        models = {"m": {"engines": [first.url], "fallbacks": ["n"]}, "n": {"engines": [second.url]}}
        running = self.serve(models, RETRY_ATTEMPTS=1)
        client = self.begin(running, structured())
        side = first.take()
        side.answer(completion("{}"))
        side.read_request()
        side.answer(b"{}", status="500 Internal Server Error")
        answer = client.read_response()
        self.assertEqual((answer.status, answer.header("x-gateway-fallback")), (200, "m->n"), answer.body)
        line = running.request_line(answer.request_id)
        self.assertEqual((line["attempts"], line["schema_retries"], line["fallback"]), (3, 1, "m->n"))

    def test_an_engine_that_fails_when_asked_again_is_an_error(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}}, RETRY_ATTEMPTS=1)
        for status, code in (
            ("500 No", "backend_error"),
            ("400 Bad Request", "invalid_model_output"),
        ):
            client = self.begin(running, structured())
            side = engine.take()
            side.answer(completion("{}"))
            side.read_request()
            side.answer(b'{"error": {"message": "no"}}', status=status)
            answer = client.read_response()
            self.assertEqual(answer.error, code, answer.body)
            line = running.request_line(answer.request_id)
            self.assertEqual((line["attempts"], line["completion_tokens"]), (2, 5))
            side.close()

    def test_all_asks_together_take_no_longer_than_one_may(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}}, REQUEST_TIMEOUT=3)
        client = self.begin(running, structured())
        began_s = time.monotonic()
        side = engine.take()
        time.sleep(1.6)  # the time itself is what is tested
        side.answer(completion("{}"))
        side.read_request()
        answer = client.read_response()
        self.assert_error(answer, 504, "gateway_timeout")
        self.assertLess(time.monotonic() - began_s, 4.55)

    def test_who_leaves_ends_the_asking_again(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.begin(running, structured())
        side = engine.take()
        side.answer(completion("{}"))
        side.read_request()
        client.close()
        self.assertTrue(side.wait_until_left())
        line = eventually(lambda: running.request_lines())[0]
        self.assertEqual((line["error"], line["attempts"], line["completion_tokens"]), ("client_closed_request", 2, 5))
        self.assert_nothing_held(running)

    def test_who_leaves_while_asking_again_waits_for_a_place_is_seen(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [{"url": engine.url, "max_concurrency": 1}]}})
        client = self.begin(running, structured())
        side = engine.take()
        other = self.begin(running, ask("me too"))
        self.wait_for_waiting(running, 1)
        side.answer(completion("{}"))  # now the other one has the place
        side = side.read_request()
        self.assertEqual(side.json["messages"][0]["content"], "me too")
        self.wait_for_waiting(running, 1)
        client.close()
        self.wait_for_waiting(running, 0)
        side.answer(completion("there"))
        self.assertEqual(other.read_response().status, 200)
        self.assert_nothing_held(running)

    def test_what_members_of_a_consensus_say_has_to_fit(self) -> None:
        first, second = self.engine("misfit", model="a", times=1), self.engine("code_fence", model="b")
        models = {
            "a": {"engines": [first.url]},
            "b": {"engines": [second.url]},
            "m": {"consensus": {"members": ["a", "b"]}},
        }
        running = self.serve(models, SANDBOX="off")
        answer = running.post(structured())
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(sorted(json.loads(answer.json()["choices"][0]["message"]["content"])), ["name", "people"])

        def told() -> dict[str, Any]:
            parts = [one for one in running.request_lines() if one.get("part_of")]
            return {one["model"]: (one.get("schema_retries"), one.get("repaired")) for one in parts}

        eventually(lambda: len(told()) == 2)
        self.assertEqual(told(), {"a": (1, None), "b": (None, ["code_fence"])})

    def test_draining_ends_it(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.begin(running, structured())
        side = engine.take()
        side.answer(completion("{}"))
        side.read_request()
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        self.assert_error(client.read_response(), 503, "draining")
        stopping.join()

    def test_large_answers_are_checked(self) -> None:
        long = json.dumps({"name": "x" * 1_200_000, "people": 1})
        for stream in (False, True):
            engine = self.scripted()
            running = self.serve({"m": {"engines": [engine.url]}})
            client = self.begin(running, structured(stream=stream))
            side = engine.take()
            side.answer(completion("{}" + " " * 1_200_000))
            side.read_request()
            side.answer(completion(long))
            if not stream:
                self.assertEqual(client.read_response().json()["choices"][0]["message"]["content"], long)
            else:
                self.assertEqual(client.read_head().status, 200)
                *events, done = client.read_events()
                self.assertEqual((text_of(CHAT, [json.loads(one[6:]) for one in events]), done), (long, "data: [DONE]"))

    def test_a_schema_that_cannot_be_checked_is_refused(self) -> None:
        running = self.one()
        where = "response_format.json_schema.schema.properties.name.nullable"
        faulty = {"properties": {"name": {"nullable": True}}}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": faulty}}
        answer = running.post(structured(response_format=form))
        self.assert_error(answer, 400, "invalid_response_format")
        self.assertIn(where, answer.body.decode())
        below = "properties.name.nullable"
        function = {"type": "function", "name": "f", "parameters": faulty, "strict": True}
        tool = {"name": "f", "input_schema": faulty, "strict": True}
        for path, options, where in (
            (RESPONSES, {"text": {"format": {**form, "name": "x", "schema": faulty}}}, "text.format.schema"),
            (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.name"),
            (RESPONSES, {"tools": [function]}, "tools[0].parameters"),
            (MESSAGES, {"output_config": {"format": {**form, "schema": faulty}}}, "output_config.format.schema"),
            (MESSAGES, {"tools": [tool]}, "tools[0].input_schema"),
            (OLLAMA_CHAT, {"format": faulty}, "format"),
        ):
            with self.subTest(path, where=where):
                answer = running.post({**asking(path), **options}, path)
                told = error_of(path, answer.json())[1]
                wanted = where if where.endswith("name") else f"{where}.{below}"
                self.assertEqual((answer.status, told.partition(" ")[0]), (400, wanted))
        answer = running.post(
            ask(tools=[{"type": "function", "function": {"name": "f", "strict": True, "parameters": 7}}])
        )
        self.assertEqual(answer.status, 400)
        self.assertEqual(sum(line["attempts"] for line in running.request_lines()), 0)

    def test_hostile_schemas_take_little_time(self) -> None:
        running = self.one()
        deep: Json = {}
        for _ in range(100):
            deep = {"properties": {"a": deep}}
        for schema in (
            {"anyOf": [{}] * 5000},
            {"pattern": "(a+)+" * 50},
            {"pattern": "((((a{1,99}){1,99}){1,99}){1,99})"},
            {"multipleOf": 10**900},
            {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
            deep,
        ):
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            began_s = time.monotonic()
            self.assertIn(running.post(structured(response_format=form), CHAT).status, (200, 400, 502))
            self.assertLess(time.monotonic() - began_s, 5)


class StreamsTest(DialectTest):
    def one(self, behaviour: str, **options: Any) -> RunningGateway:
        return self.serve({"m": {"engines": [self.engine(behaviour, **options).url]}})

    def events(self, running: RunningGateway, body: Json) -> list[str]:
        client = self.begin(running, body)
        self.assertEqual(client.read_head().status, 200)
        return client.read_events()

    def test_one_that_fits_ends_well(self) -> None:
        running = self.one("ok")
        self.assertEqual(self.events(running, structured(stream=True))[-1], "data: [DONE]")
        self.assertEqual(self.events(running, ask("get_weather", tools=[WEATHER], stream=True))[-1], "data: [DONE]")

    def test_a_misfit_ends_with_an_error(self) -> None:
        for behaviour in ("misfit", "code_fence", "trailing_comma", "prose_before"):
            running = self.one(behaviour)
            for body in (structured(stream=True), ask("get_weather", tools=[WEATHER], stream=True)):
                *events, last = self.events(running, body)
                error = json.loads(last[6:])["error"]
                self.assertEqual(error["code"] if isinstance(error, dict) else error, "invalid_model_output", behaviour)
                self.assertNotIn("data: [DONE]", events)
                self.assertTrue(text_of(CHAT, [json.loads(one[6:]) for one in events]) or "tools" in body)
            line = running.request_line(json.loads(last[6:])["request_id"])
            self.assertEqual((line["error"], line["status"]), ("invalid_model_output", 200))
            self.assertGreater(line["completion_tokens"], 0)
            self.assertEqual(self.states(running), ["up"])

    def test_the_error_has_the_text(self) -> None:
        *_, last = self.events(self.one("code_fence"), structured(stream=True))
        self.assertIn("```json", json.loads(last[6:])["text"])

    def test_each_dialect_has_its_error_and_no_good_end(self) -> None:
        for path in PATHS[1:]:
            with self.subTest(path):
                running = self.one("misfit")
                told = self.streamed(running, path, asking_city(path, stream=True))
                self.assert_broken(path, told, "invalid_model_output")
                told = self.streamed(self.one("ok"), path, asking_city(path, stream=True))
                self.assertTrue(ends_well(path, told))

    def test_one_that_was_cut_short_ends_as_it_did(self) -> None:
        self.assertEqual(self.events(self.one("ok"), structured(stream=True, max_tokens=1))[-1], "data: [DONE]")

    def test_an_engine_that_sends_no_stream_is_asked_again(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.begin(running, structured(stream=True, stream_options={"include_usage": True}))
        side = engine.take()
        side.answer(completion("{}"))
        side.read_request()
        self.assertNotIn("stream_options", side.json)
        side.answer(completion(ROME))
        self.assertEqual(client.read_head().status, 200)
        *events, done = client.read_events()
        told = [json.loads(one[6:]) for one in events]
        self.assertEqual((text_of(CHAT, told), done), (ROME, "data: [DONE]"))
        self.assertEqual([one["usage"]["total_tokens"] for one in told if one.get("usage")], [16])

    def test_an_end_without_a_mark_or_with_an_odd_one_is_judged(self) -> None:
        for end in (b"", b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n"):
            engine = self.scripted()
            running = self.serve({"m": {"engines": [engine.url]}}, STREAM_END_GRACE=0.2)
            client = self.begin(running, structured(stream=True))
            side = engine.take()
            side.send(STREAM_HEAD + chunked(delta("{}", "stop")) + (chunked(end) if end else b"") + b"0\r\n\r\n")
            client.read_head()
            *events, last = client.read_events()
            self.assertIn("invalid_model_output", last, end)
            self.assertNotIn("[DONE]", "".join(events))

    def test_a_stream_that_breaks_is_told_as_that(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.begin(running, structured(stream=True))
        side = engine.take()
        side.send(STREAM_HEAD + chunked(delta('{"na')))
        client.read_head()
        client.read_event()
        side.reset()
        self.assertIn("backend_error", client.read_events()[-1])


class ReuseTest(DialectTest):
    def one(self, behaviour: str, **options: Any) -> RunningGateway:
        self.mock = self.engine(behaviour, **options)
        return self.serve({"m": {"engines": [self.mock.url]}}, CACHE="on")

    def cache(self, running: RunningGateway, **options: Any) -> Optional[str]:
        answer = running.post(structured(temperature=0, **options))
        return answer.header("x-gateway-cache")

    def test_what_fits_is_kept_and_a_misfit_is_not(self) -> None:
        running = self.one("misfit", times=3)
        self.assert_error(running.post(structured(temperature=0)), 502, "invalid_model_output")
        self.assertEqual([self.cache(running), self.cache(running)], ["miss", "hit"])

    def test_what_was_repaired_is_kept_repaired(self) -> None:
        running = self.one("code_fence")
        first, second = (running.post(structured(temperature=0)) for _ in range(2))
        self.assertEqual((first.header("x-gateway-cache"), second.header("x-gateway-cache")), ("miss", "hit"))
        said = [one.json()["choices"][0]["message"]["content"] for one in (first, second)]
        self.assertEqual(said[0], said[1])
        json.loads(said[0])

    def test_a_stream_that_does_not_fit_as_it_is_is_not_kept(self) -> None:
        for behaviour in ("misfit", "code_fence"):
            running = self.one(behaviour, times=1)
            client = self.begin(running, structured(temperature=0, stream=True))
            client.read_head()
            self.assertIn("invalid_model_output", client.read_events()[-1])
            running.app.pipeline.reuse._threads.close(5)  # what was to be kept has been, or not
            self.assertEqual(self.cache(running), "miss", behaviour)

    def test_followers_get_what_fits_and_each_is_told_of_a_misfit(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}}, COALESCE="on")
        clients = [self.begin(running, structured(temperature=0))]
        side = engine.take()
        clients.append(self.begin(running, structured(temperature=0)))
        eventually(lambda: running.app.pipeline.in_flight == 2)
        side.answer(completion("{}"))
        side.read_request()
        side.answer(completion(ROME))
        for client in clients:
            self.assertEqual(client.read_response().json()["choices"][0]["message"]["content"], ROME)
        clients = [self.begin(running, structured(temperature=0, stream=True)) for _ in range(2)]
        side.read_request()
        eventually(lambda: running.app.pipeline.in_flight == 2)
        side.send(STREAM_HEAD + chunked(delta("{}", "stop")) + chunked(DONE) + b"0\r\n\r\n")
        for client in clients:
            client.read_head()
            events = client.read_events()
            self.assertIn("invalid_model_output", events[-1])
            self.assertNotIn("data: [DONE]", events)

    def test_all_who_follow_a_large_stream_get_what_one_thread_has_found(self) -> None:
        fit = Shape.fit
        for name, ends in (("Rome", "data: [DONE]"), (5, "invalid_model_output")):
            gate, threads = threading.Event(), []

            def gated(shape: Shape, given: Json, gate: Any = gate, threads: Any = threads) -> Fitted:
                threads.append(threading.current_thread().name)
                gate.wait(TIMEOUT_S)
                return fit(shape, given)

            engine = self.scripted()
            running = self.serve({"m": {"engines": [engine.url]}}, COALESCE="on")
            text = json.dumps({"name": name, "people": 3}) + " " * 20_000
            body = structured(temperature=0, stream=True)
            with self.subTest(ends), mock.patch.object(Shape, "fit", gated):
                clients = [self.begin(running, body) for _ in range(2)]
                side = engine.take()
                eventually(lambda running=running: running.app.pipeline.in_flight == 2)  # type: ignore[misc]
                side.send(STREAM_HEAD + chunked(delta(text, "stop")) + chunked(DONE) + b"0\r\n\r\n")
                eventually(lambda threads=threads: threads)  # type: ignore[misc]
                clients.append(self.begin(running, body))  # while it is looked at, as is who leaves
                clients.pop(0).close()
                for client in clients:
                    client.read_head()
                    self.assertIn("people", client.read_event() or "")
                gate.set()
                for client in clients:
                    self.assertIn(ends, client.read_events()[-1])
                eventually(lambda running=running: running.app.pipeline.in_flight == 0)  # type: ignore[misc]
            self.assertEqual(threads, ["judge"])


class RegistryTest(AccessTest):
    def setUp(self) -> None:
        super().setUp()
        self.schemas = self.directory / "schemas"
        self.schemas.mkdir()

    def one(self, behaviour: str = "ok", **options: Any) -> RunningGateway:
        engine = self.engine(behaviour, **options)
        models = {"m": {"engines": [engine.url]}}
        return self.serve(models, SCHEMAS_DIR=self.schemas, ADMIN_KEYS=ADMIN_KEYS)

    def put(self, running: RunningGateway, name: str, schema: Any, headers: Any = (AS_ROOT,)) -> Any:
        return running.ask("PUT", f"/admin/schemas/{name}", schema, headers)

    def test_they_are_kept_used_and_forgotten(self) -> None:
        running = self.one()
        self.assertEqual(running.get("/admin/schemas", [AS_ROOT]).json(), {"schemas": []})
        answer = self.put(running, "city", CITY)
        self.assertEqual((answer.status, answer.json()), (201, {"name": "city", "schema": CITY}))
        self.assertEqual(self.put(running, "city", CITY).status, 200)
        self.assertEqual(json.loads((self.schemas / "city.json").read_text()), CITY)
        self.assertEqual(running.get("/admin/schemas/city", [AS_ROOT]).json(), {"name": "city", "schema": CITY})
        named = {"type": "json_schema", "json_schema": {"name": "city"}}
        answer = running.post(ask(response_format=named), headers=[AS_ROOT])
        self.assertEqual(sorted(json.loads(answer.json()["choices"][0]["message"]["content"])), ["name", "people"])
        self.assertEqual(running.ask("DELETE", "/admin/schemas/city", None, [AS_ROOT]).status, 200)
        self.assertEqual(running.ask("DELETE", "/admin/schemas/city", None, [AS_ROOT]).status, 404)
        self.assertEqual(running.get("/admin/schemas/city", [AS_ROOT]).status, 404)
        self.assert_error(running.post(ask(response_format=named), headers=[AS_ROOT]), 400, "invalid_response_format")
        self.assertEqual(list(self.schemas.iterdir()), [])
        eventually(lambda: len(self.audited(running)) == 4)
        kept, forgotten = ("info", "root", "keep_schema", "city"), ("root", "forget_schema", "city")
        self.assertEqual(self.audited(running), [kept, kept, ("info", *forgotten), ("warning", *forgotten)])

    def audited(self, running: RunningGateway) -> list[tuple[str, ...]]:
        lines = [line for line in running.log_lines() if line["event"] == "admin"]
        return [(line["level"], line["key"], line["action"], line["name"]) for line in lines]

    def test_they_outlive_a_restart_and_a_reload(self) -> None:
        self.put(self.one(), "city", CITY)
        running = self.one()
        running.app.reload(running.app.settings)
        self.assertEqual(running.get("/admin/schemas/city", [AS_ROOT]).status, 200)

    def test_only_administrators_may(self) -> None:
        running = self.one()
        for role in ("user", "operator", "readonly"):
            try:
                headers = self.make(running, role, role=role)
            except ValueError:
                continue
            self.assertEqual(self.put(running, "x", CITY, headers).status, 403, role)
            self.assertEqual(running.ask("DELETE", "/admin/schemas/x", None, headers).status, 403)
        self.assertEqual(self.put(running, "x", CITY, ()).status, 401)

    def test_what_is_no_schema_or_no_name_is_refused(self) -> None:
        running = self.one()
        answer = self.put(running, "x", {"properties": {"a": {"nullable": True}}})
        self.assert_error(answer, 400, "invalid_response_format")
        self.assertIn("$.properties.a.nullable", answer.body.decode())
        self.assertEqual(self.put(running, "a%2F..%2Fb", CITY).status, 400)
        self.assertEqual(self.put(running, "x" * 65, CITY).status, 400)
        self.assertEqual(self.put(running, "x", [1]).status, 400)
        self.assertEqual(self.put(running, "x", b"{no").status, 400)
        self.assertEqual(list(self.schemas.iterdir()), [])

    @unittest.skipIf(os.name == "nt" or not hasattr(os, "geteuid"), "folders have no such rights here")
    def test_a_folder_that_cannot_be_written_is_the_gateways_fault(self) -> None:
        running = self.one()
        self.schemas.rmdir()
        answer = self.put(running, "x", CITY)
        self.assert_error(answer, 500, "internal_error")
        self.assertNotIn(str(self.schemas), answer.body.decode())
        self.assertEqual(running.get("/admin/schemas", [AS_ROOT]).json(), {"schemas": []})

    def test_without_a_folder_there_are_none(self) -> None:
        running = self.serve({"m": {"engines": [dead_url()]}}, ADMIN_KEYS=ADMIN_KEYS)
        self.assertEqual(self.put(running, "x", CITY).status, 404)
        self.assertEqual(running.get("/admin/schemas", [AS_ROOT]).json(), {"schemas": []})

    def test_many_at_once_leave_one_of_them(self) -> None:
        running = self.one()
        threads = [threading.Thread(target=self.put, args=(running, "x", {"const": number})) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told = running.get("/admin/schemas/x", [AS_ROOT]).json()["schema"]
        self.assertEqual(json.loads((self.schemas / "x.json").read_text()), told)

    def test_what_misfits_took_is_paid_for(self) -> None:
        engine = self.engine("misfit")
        price = {"input": 1_000_000, "output": 1_000_000}
        running = self.serve({"m": {"engines": [engine.url], "price": price}}, ADMIN_KEYS=ADMIN_KEYS)
        answer = running.post(structured(), headers=[AS_ROOT])
        self.assertEqual(answer.status, 502)
        line = running.request_line(answer.request_id)
        self.assertEqual(line["cost_usd"], line["prompt_tokens"] + line["completion_tokens"])
        self.assertEqual(line["attempts"], 3)

    def test_each_ask_costs_what_its_own_model_does(self) -> None:
        """3 tokens of the prompt and 5 of the answer, each time."""
        first, second = self.enter(ScriptedEngine()), self.enter(ScriptedEngine())
        price, dear = {"input": 125_000, "output": 125_000}, {"input": 1_000_000, "output": 1_000_000}
        for prices, cost in (((price, dear), 9.0), ((price, None), 1.0), ((None, dear), 8.0), ((None, None), None)):
            models: Json = {
                "a": {"engines": [first.url], "fallbacks": ["b"]},
                "b": {"engines": [second.url]},
            }
            for model, its in zip(models.values(), prices):
                model.update({} if its is None else {"price": its})
            running = self.serve(models, ADMIN_KEYS=ADMIN_KEYS, RETRY_ATTEMPTS=1)
            client = self.enter(running.connect())
            client.request("POST", CHAT, {**structured(), "model": "a"}, [AS_ROOT])
            side = first.take()
            side.answer(completion("{}"))
            side.read_request()
            side.answer(b'{"error": {"message": "busy"}}', status="503 Busy")
            side.close()
            second.take().answer(completion(ROME))
            answer = client.read_response()
            self.assertEqual((answer.status, answer.header("x-gateway-fallback")), (200, "a->b"))
            line = running.request_line(answer.request_id)
            self.assertEqual((line.get("cost_usd"), line["prompt_tokens"]), (cost, 6))
            told = answer.header("x-gateway-cost-usd")
            self.assertEqual(None if told is None else float(told), cost)


if __name__ == "__main__":
    unittest.main()
