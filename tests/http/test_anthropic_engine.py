"""Engines that speak Anthropic's Messages alone: what OpenAI's and Anthropic's clients get of them."""

from __future__ import annotations

import json
import unittest
from typing import Any

from gateway.mock.messages import SIGNATURE
from gateway.mock.server import MockEngine
from tests.resilience import ResilienceTest, ask
from tests.support import CHAT, Response, RunningGateway, chunk_of, content_of

MESSAGES = "/v1/messages"
LACKS = "chat/completions,completions,embeddings,responses"
KEY = "sk-ant-secret"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


def tool(name: str, **properties: Any) -> dict[str, Any]:
    """A function for a chat request."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("weather", city={"type": "string"}), tool("clock", zone={"type": "string"})]


class AnthropicTest(ResilienceTest):
    """A gateway over engines of which some speak Anthropic's dialect."""

    def anthropic(self, behaviour: str = "ok", **options: Any) -> MockEngine:
        return self.engine(behaviour, lacks=LACKS, api_key=KEY, **options)

    def spec(self, engine: Any, **more: Any) -> dict[str, Any]:
        return {"url": engine.url, "dialect": "anthropic", "api_key_env": "MY_KEY", **more}

    def over(self, *engines: dict[str, Any], model: Any = None, **variables: object) -> RunningGateway:
        return self.serve({"m": {"engines": list(engines), **(model or {})}}, MY_KEY=KEY, **variables)

    def one(self, **variables: object) -> RunningGateway:
        """A gateway over one engine, `self.mock`."""
        self.mock = self.anthropic()
        return self.over(self.spec(self.mock), **variables)

    @property
    def asked(self) -> Any:
        """What the engine was asked last."""
        return self.mock.requests[-1]["body"]

    def events(self, running: RunningGateway, body: Any, path: str = CHAT) -> list[str]:
        with running.connect() as client:
            client.request("POST", path, {**body, "stream": True})
            head = client.read_head()
            self.assertEqual(head.status, 200)
            return client.read_events()

    def chunks(self, running: RunningGateway, body: Any) -> list[dict[str, Any]]:
        """Of a stream that ends well; comments are left out."""
        events = [event for event in self.events(running, body) if not event.startswith(":")]
        self.assertEqual(events[-1], "data: [DONE]")
        return [chunk_of(event) for event in events[:-1]]

    def message(self, response: Response) -> Any:
        self.assertEqual(response.status, 200, response.body)
        return response.json()["choices"][0]["message"]


def deltas(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def calls_of(chunks: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Name and arguments of the calls that a stream has told piece by piece."""
    calls: dict[int, list[str]] = {}
    for piece in (piece for delta in deltas(chunks) for piece in delta.get("tool_calls", [])):
        call = calls.setdefault(piece["index"], ["", ""])
        call[0] += piece["function"].get("name", "")
        call[1] += piece["function"].get("arguments", "")
    return [(name, json.loads(arguments)) for name, arguments in calls.values()]


class AnswersTest(AnthropicTest):
    def test_a_chat_request_is_answered_as_chat(self) -> None:
        running = self.one()
        response = running.post(ask())
        answer = response.json()
        self.assertEqual(
            (answer["object"], answer["model"], answer["id"]), ("chat.completion", "m", response.request_id)
        )
        self.assertTrue(answer["choices"][0]["message"]["content"])
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
        request = self.mock.requests[-1]
        self.assertEqual((request["path"], request["headers"]["x-api-key"]), (MESSAGES, KEY))
        self.assertIn("anthropic-version", request["headers"])
        self.assertNotIn("authorization", request["headers"])
        self.assertEqual(self.asked["max_tokens"], 32_000)
        line = running.request_line(response.request_id)
        self.assertEqual((line["path"], line["status"], line["usage_estimated"]), (CHAT, 200, False))

    def test_a_stream_says_the_same(self) -> None:
        running = self.one()
        whole = self.message(running.post(ask()))["content"]
        chunks = self.chunks(running, ask())
        self.assertEqual("".join(delta.get("content", "") for delta in deltas(chunks)), whole)
        self.assertEqual([c["choices"][0]["finish_reason"] for c in chunks][-1], "stop")
        self.assertFalse(any("usage" in chunk for chunk in chunks))
        self.assertEqual({chunk["model"] for chunk in chunks}, {"m"})
        self.assertEqual(len({chunk["id"] for chunk in chunks}), 1)

    def test_a_streams_usage_comes_to_who_has_asked_for_it_and_is_charged_to_all(self) -> None:
        running = self.one()
        chunks = self.chunks(running, ask(stream_options={"include_usage": True}))
        self.assertEqual(chunks[-1]["choices"], [])
        usage = chunks[-1]["usage"]
        whole = running.post(ask()).json()["usage"]
        self.assertEqual(usage, whole)
        self.assertNotIn("stream_options", self.asked)
        with running.connect() as client:
            client.request("POST", CHAT, ask(stream=True), [("X-Request-ID", "unasked")])
            client.read_head()
            client.read_events()
        line = running.request_line("unasked")
        self.assertEqual(line["prompt_tokens"], usage["prompt_tokens"])
        self.assertEqual(line["completion_tokens"], usage["completion_tokens"])
        self.assertFalse(line["usage_estimated"])

    def test_the_usage_counts_what_a_cache_has_written_and_read(self) -> None:
        running = self.one()
        marked = {"type": "text", "text": "five words make this up", "cache_control": {"type": "ephemeral"}}
        messages = [
            {"role": "system", "content": [marked]},
            {"role": "user", "content": [{**marked, "text": "two words"}]},
        ]
        usage = running.post({"model": "m", "messages": messages}).json()["usage"]
        self.assertEqual((usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]), (5, 2))
        self.assertEqual(usage["prompt_tokens_details"], {"cached_tokens": 5, "cache_write_tokens": 2})
        self.assertEqual(usage["prompt_tokens"], 5 + 2 + 1)
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])

    def test_tools_are_called_several_at_once_and_their_results_taken(self) -> None:
        running = self.one()
        body = {"model": "m", "tools": TOOLS, "messages": [{"role": "user", "content": "weather and clock please"}]}
        said = self.message(running.post(body))
        self.assertEqual([call["function"]["name"] for call in said["tool_calls"]], ["weather", "clock"])
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": f"it is {at}"}
            for at, call in enumerate(said["tool_calls"])
        ]
        again = running.post({**body, "messages": [*body["messages"], said, *results]})
        self.assertIn("it is 0", self.message(again)["content"])
        self.assertIn("it is 1", self.message(again)["content"])
        self.assertEqual([m["role"] for m in self.asked["messages"]], ["user", "assistant", "user"])

    def test_streamed_calls_are_those_of_the_whole_answer(self) -> None:
        running = self.one()
        body = {"model": "m", "tools": TOOLS, "messages": [{"role": "user", "content": "weather and clock please"}]}
        whole = [
            (call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in self.message(running.post(body))["tool_calls"]
        ]
        chunks = self.chunks(running, body)
        self.assertEqual(calls_of(chunks), whole)
        self.assertEqual(chunks[-1]["choices"][0]["finish_reason"], "tool_calls")

    def test_several_rounds_of_a_streamed_conversation(self) -> None:
        running = self.one()
        messages: list[Any] = [{"role": "user", "content": "first the weather then the clock"}]
        for name in ("weather", "clock"):
            chunks = self.chunks(
                running, {"model": "m", "tools": TOOLS, "parallel_tool_calls": False, "messages": messages}
            )
            ((called, arguments),) = calls_of(chunks)
            self.assertEqual(called, name)
            function = {"name": called, "arguments": json.dumps(arguments)}
            messages.append(
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": name, "type": "function", "function": function}],
                }
            )
            messages.append({"role": "tool", "tool_call_id": name, "content": f"{name} says so"})
        text = self.message(running.post({"model": "m", "tools": TOOLS, "messages": messages}))["content"]
        self.assertIn("clock says so", text)

    def test_a_demanded_call_and_one_that_is_forbidden(self) -> None:
        running = self.one()
        named = {"type": "function", "function": {"name": "clock"}}
        said = self.message(running.post(ask(tools=TOOLS, tool_choice=named)))
        self.assertEqual([call["function"]["name"] for call in said["tool_calls"]], ["clock"])
        self.assertNotIn("tool_calls", self.message(running.post(ask("weather", tools=TOOLS, tool_choice="none"))))

    def test_images_system_prompts_and_stop_sequences(self) -> None:
        running = self.one()
        content = [
            {"type": "text", "text": "one two three four"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        ]
        messages = [
            {"role": "system", "content": "be brief"},
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": content},
        ]
        whole = self.message(running.post({"model": "m", "messages": messages}))["content"]
        self.assertEqual([block["text"] for block in self.asked["system"]], ["be brief", "be kind"])
        self.assertEqual(self.asked["messages"][0]["content"][1]["source"]["data"], PIXEL)
        word = whole.split()[2]
        response = running.post({"model": "m", "messages": messages, "stop": word})
        self.assertEqual(self.asked["stop_sequences"], [word])
        choice = response.json()["choices"][0]
        self.assertEqual((choice["finish_reason"], choice["stop_reason"]), ("stop", word))
        self.assertEqual(choice["message"]["content"], whole[: whole.index(word)])

    def test_limits_of_tokens(self) -> None:
        running = self.one()
        for name in ("max_tokens", "max_completion_tokens"):
            response = running.post(ask(**{name: 2}))
            self.assertEqual(response.json()["choices"][0]["finish_reason"], "length")
            self.assertEqual(self.asked["max_tokens"], 2)
        running.post(ask(max_tokens=-1))
        self.assertEqual(self.asked["max_tokens"], 32_000)

    def test_thinking_is_told_and_given_back(self) -> None:
        running = self.one()
        body = ask("weather", tools=TOOLS, reasoning_effort="low")
        said = self.message(running.post(body))
        self.assertTrue(said["reasoning_content"])
        self.assertEqual(said["thinking_blocks"][0]["signature"], SIGNATURE)
        result = {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": "rain"}
        again = running.post({**body, "messages": [*body["messages"], said, result]})
        self.assertIn("rain", self.message(again)["content"])
        self.assertEqual(self.asked["messages"][1]["content"][0], said["thinking_blocks"][0])
        told = [delta for delta in deltas(self.chunks(running, body)) if "thinking_blocks" in delta]
        thought = "".join(b.get("thinking", "") for delta in told for b in delta["thinking_blocks"])
        self.assertEqual(thought, said["reasoning_content"])
        self.assertEqual(told[-1]["thinking_blocks"][0]["signature"], SIGNATURE)

    def test_an_answer_fits_its_schema_and_a_misfit_is_asked_for_again(self) -> None:
        running = self.one()
        schema = {
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
            "additionalProperties": False,
        }
        body = ask(
            response_format={"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": schema}}
        )
        self.assertEqual(json.loads(self.message(running.post(body))["content"]).keys(), {"n"})
        self.assertEqual(self.asked["output_config"]["format"], {"type": "json_schema", "schema": schema})
        self.mock.control("misfit", times=1)
        response = running.post(body)
        self.assertEqual(json.loads(self.message(response)["content"]).keys(), {"n"})
        self.assertEqual([m["role"] for m in self.asked["messages"]], ["user", "assistant", "user"])

    def test_what_cannot_be_said_is_the_clients_fault_and_nothing_is_sent(self) -> None:
        running = self.one()
        for options in ({"n": 2}, {"logprobs": True}):
            response = running.post(ask(**options))
            self.assert_error(response, 400, "not_supported")
            self.assertEqual(response.json()["param"], next(iter(options)))
            self.assertEqual(response.header("x-gateway-attempts"), "0")
        self.assertEqual(self.mock.requests, [])
        self.assertEqual(self.states(running), ["up"])

    def test_an_unasked_stream_is_put_together_and_json_is_made_a_stream(self) -> None:
        running = self.one()
        whole = self.message(running.post(ask()))
        self.mock.control("plain_json")
        events = self.events(running, ask())
        self.assertEqual(content_of(events), whole["content"])
        self.assertEqual(events[-1], "data: [DONE]")
        body = ask("weather and clock", tools=TOOLS)
        self.assertEqual([name for name, _ in calls_of(self.chunks(running, body))], ["weather", "clock"])

    def test_a_name_of_the_engines_own(self) -> None:
        self.mock = self.anthropic(model="claude-x")
        running = self.over(self.spec(self.mock, model="claude-x"))
        self.assertEqual(running.post(ask()).json()["model"], "m")
        self.assertEqual(self.asked["model"], "claude-x")


class AnthropicClientsTest(AnthropicTest):
    def test_what_only_anthropic_has_goes_through(self) -> None:
        running = self.one()
        mark = {"type": "ephemeral"}
        thinking = {"type": "thinking", "thinking": "hm", "signature": SIGNATURE}
        document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "long ago"}}
        used = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}
        result = {"type": "tool_result", "tool_use_id": "t1", "content": "no such city", "is_error": True}
        body = {
            "model": "m",
            "max_tokens": 2000,
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "system": [{"type": "text", "text": "be brief", "cache_control": mark}],
            "tools": [{"name": "weather", "input_schema": {"type": "object"}, "cache_control": mark}],
            "messages": [
                {"role": "user", "content": [document, {"type": "text", "text": "weather", "cache_control": mark}]},
                {"role": "assistant", "content": [thinking, used]},
                {"role": "user", "content": [result]},
            ],
        }
        answer = running.ask("POST", MESSAGES, body)
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(answer.json()["content"][0]["signature"], SIGNATURE)
        self.assertEqual((self.asked["thinking"], self.asked["system"]), (body["thinking"], body["system"]))
        self.assertEqual(self.asked["tools"][0]["cache_control"], mark)
        first, second, third = self.asked["messages"]
        self.assertEqual(first["content"][-1]["cache_control"], mark)
        self.assertIn("long ago", json.dumps(first["content"]))
        self.assertEqual(second["content"], [thinking, used])
        self.assertTrue(third["content"][0]["is_error"])

    def test_a_stream_is_made_of_named_events_with_pings(self) -> None:
        running = self.one()
        body = {"model": "m", "max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}}
        events = self.events(running, {**body, "messages": [{"role": "user", "content": "hi there"}]}, MESSAGES)
        names = [event.split("\n")[0].partition(": ")[2] for event in events]
        self.assertEqual((names[0], names[-2:]), ("message_start", ["message_delta", "message_stop"]))
        self.assertIn("ping", names)
        said = [json.loads(event.split("data: ", 1)[1]) for event in events]
        starts = [event["content_block"]["type"] for event in said if event["type"] == "content_block_start"]
        self.assertEqual(starts, ["thinking", "text"])
        signed = [e["delta"]["signature"] for e in said if e.get("delta", {}).get("type") == "signature_delta"]
        self.assertEqual(signed, [SIGNATURE])

    def test_a_schema_that_was_missed_is_asked_for_with_the_thinking_of_the_client(self) -> None:
        running = self.one()
        self.mock.control("misfit", times=1)
        thinking = {"type": "thinking", "thinking": "hm", "signature": SIGNATURE}
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        body = {
            "model": "m",
            "max_tokens": 2000,
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "output_config": {"format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}},
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": [thinking, {"type": "text", "text": "well"}]},
                {"role": "user", "content": "a number"},
            ],
        }
        answer = running.ask("POST", MESSAGES, body)
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(len(self.mock.requests), 2)
        self.assertEqual(self.asked["messages"][1]["content"][0], thinking)
        self.assertEqual(self.asked["thinking"], body["thinking"])


class ThinkingBetweenTest(AnthropicTest):
    """Anthropic's clients over an engine that thinks between its calls."""

    def test_a_turn_goes_back_to_the_engine_as_it_came(self) -> None:
        def thinking(words: str) -> dict[str, Any]:
            return {"type": "thinking", "thinking": words, "signature": f"sig-{words}"}

        def use(number: int) -> dict[str, Any]:
            return {"type": "tool_use", "id": f"toolu_{number}", "name": "look", "input": {"n": number}}

        words = {"type": "text", "text": "I look"}
        content = [thinking("a"), words, thinking("b"), use(1), thinking("c"), use(2)]
        said = {"id": "msg_1", "type": "message", "role": "assistant", "model": "x", "content": content}
        said.update(stop_reason="pause_turn", stop_sequence=None, usage={"input_tokens": 1, "output_tokens": 2})
        engine = self.scripted()
        running = self.over(self.spec(engine))
        hi = {"role": "user", "content": "hi"}
        client = self.enter(running.connect())
        client.request("POST", MESSAGES, {"model": "m", "max_tokens": 9, "messages": [hi]})
        side = engine.take()
        side.answer(json.dumps(said).encode())
        told = client.read_response().json()
        self.assertEqual((told["content"], told["stop_reason"]), (content, "pause_turn"))
        results = [{"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": "x"} for number in (1, 2)]
        turn = [hi, {"role": "assistant", "content": told["content"]}, {"role": "user", "content": results}]
        client.request("POST", MESSAGES, {"model": "m", "max_tokens": 9, "messages": turn})
        side.read_request()
        self.assertEqual(side.json["messages"][1]["content"], content)
        side.answer(json.dumps({**said, "content": [words]}).encode())
        self.assertEqual(client.read_response().status, 200)


if __name__ == "__main__":
    unittest.main()
