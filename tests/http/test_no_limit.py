"""`max_tokens: -1`, as local clients say that there is to be no limit: what limits and engines make of it."""

from __future__ import annotations

import unittest
from typing import Any

from gateway.admitting import tokens_at_most
from gateway.upstream.bounds import bounds_of
from gateway.upstream.call import Call
from tests.access import AccessTest
from tests.onloop import OnLoopTest, completion
from tests.resilience import ask
from tests.scripted import DONE, STREAM_HEAD, chunked, delta
from tests.support import CHAT, COMPLETIONS, content_of

TEXT = b'{"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}'
NO_LIMIT = {"max_tokens": -1, "max_completion_tokens": -1}


class Engines(OnLoopTest):
    def test_an_engine_of_a_chat_does_not_get_it(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running, ask(temperature=0, **NO_LIMIT))
        side = engine.take()
        self.assertEqual(side.json, ask(temperature=0))
        side.answer(completion())
        self.assert_says(client, "fine")
        for own, sent in (({"max_tokens": 5, "max_completion_tokens": -1}, {"max_tokens": 5}), (NO_LIMIT, {})):
            client.request("POST", CHAT, ask(stream=True, **own))
            wanted = {**ask(stream=True, **sent), "stream_options": {"include_usage": True}}
            self.assertEqual(side.read_request().json, wanted)
            side.send(STREAM_HEAD + chunked(delta("fine", "stop") + DONE) + b"0\r\n\r\n")
            client.read_head()
            self.assertEqual(content_of(client.read_events()), "fine")
            self.assert_nothing_held(running)

    def test_an_engine_gets_byte_for_byte_what_it_would_get_without_it(self) -> None:
        # `@` stands for the member with what separates it; what is around it must come through as the client wrote it.
        texts = {
            CHAT: (
                '{"messages": [{"role":"user", "content":"h\\u00e9 \u00e9 max_tokens"}]@,  "model" : "m","top_p":0.50}',
                '{@"messages":[{"role":"user","content":"\\"max_tokens\\": -1, {"}],"n":1,"model":"m"}',
                '\n{ "model":"m", "messages":[{"role":"user","content":"hi"}],\t"x":{"max_tokens": -1, "y":[1e2]}@}\n',
            ),
            COMPLETIONS: (
                '{"prompt": ["hi", "ho"]@,  "best_of" : 2, "model":"m"}',
                '{@"prompt":"hi","max_completion_tokens":-1 ,"model":"m"}',
                '{ "model": "m", "prompt" : "hi"@ }',
            ),
        }
        members = {
            CHAT: ('"max_tokens": -1', '"max_completion_tokens":-1', '"max_tokens":-1 , "max_completion_tokens" : -1'),
            COMPLETIONS: ('"max_tokens": -1', '"max\\u005ftokens":-1'),
        }
        for options in ({}, {"model": "its-own"}):
            engine = self.scripted()
            running = self.serve({"m": {"engines": [{"url": engine.url, **options}]}}, RETRY_ATTEMPTS=1)
            client = self.enter(running.connect())
            side = None
            for path, path_texts in texts.items():
                for text in path_texts:
                    sent = []
                    for member in ("", *members[path]):
                        comma = ("%s, " if text.startswith("{@") else " , %s") if member else "%s"
                        body = text.replace("@", comma % member).encode()
                        client.request("POST", path, body)
                        side = engine.take() if side is None else side.read_request()
                        sent.append(side.body)
                        answer = completion() if path == CHAT else TEXT
                        side.answer(answer)
                        self.assertEqual(client.read_response().status, 200)
                    with self.subTest(path=path, text=text, **options):
                        self.assertEqual(sent, sent[:1] * len(sent))
                        if not options:
                            self.assertEqual(sent[0], text.replace("@", "").encode())

    def test_an_engine_that_is_asked_for_usage_does_not_get_it_either(self) -> None:
        running, engine = self.one_engine()
        client = self.enter(running.connect())
        client.request("POST", COMPLETIONS, b'{"max_tokens":-1, "prompt":"hi", "model":"m", "stream":true}')
        side = engine.take()
        self.assertEqual(
            side.body, b'{"stream_options":{"include_usage":true},"prompt":"hi", "model":"m", "stream":true}'
        )
        side.answer(TEXT)
        self.assertEqual(client.read_response().status, 200)

    def test_other_numbers_below_one_and_what_is_no_whole_number_are_refused_and_sent_nowhere(self) -> None:
        running, engine = self.one_engine()
        for path, body, fields in (
            (CHAT, ask(), ("max_tokens", "max_completion_tokens")),
            (COMPLETIONS, {"prompt": "hi"}, ("max_tokens",)),
        ):
            for field in fields:
                for value in (0, -2, -1.0, True, "-1", [-1]):
                    with self.subTest(path=path, field=field, value=value):
                        answer = running.post({**body, field: value}, path)
                        self.assertEqual((answer.status, answer.error), (400, "invalid_max_tokens"))
                        self.assertEqual(answer.json()["param"], field)
        self.assertTrue(engine.nobody_waits())

    def test_a_stream_that_goes_on_elsewhere_has_no_limit_there_either(self) -> None:
        first, second = self.scripted(), self.scripted()
        running = self.serve({"m": {"engines": [{"url": e.url, "resume": True} for e in (first, second)]}})
        client = self.begin(running, ask(stream=True, **NO_LIMIT))
        side = first.take()
        side.send(STREAM_HEAD + chunked(delta("Once upon a time")))
        client.read_head()
        client.read_event()
        side.close()
        other = second.take()
        self.assertEqual(other.json["messages"][-1]["content"], "Once upon a time")
        self.assertEqual([key for key in NO_LIMIT if key in other.json], [])
        other.send(STREAM_HEAD + chunked(delta("!", "stop") + DONE) + b"0\r\n\r\n")
        self.assertEqual(content_of(client.read_events()), "!")


class Limits(AccessTest):
    def test_it_counts_as_absent(self) -> None:
        for path, body in (("/chat/completions", ask()), ("/completions", {"prompt": "hi there"})):

            def told(more: dict[str, Any], path: str = path, body: dict[str, Any] = body) -> Any:
                call = Call(path, {**body, **more})
                return tokens_at_most(call), call.estimated_tokens(), bounds_of(call, 500)

            absent, no_limit = told({}), told({"max_tokens": -1})
            self.assertEqual(absent[:2], no_limit[:2])
            self.assertEqual(absent[2].completion, no_limit[2].completion)
            sent = [Call(path, {**body, **more}).payload("m", True) for more in ({}, {"max_tokens": -1})]
            self.assertEqual(sent[0], sent[1])  # a library's call has no bytes of its own
        call = Call("/chat/completions", ask(max_tokens=900, max_completion_tokens=-1))
        self.assertEqual(tokens_at_most(call).answer, 900)

    def test_it_bends_no_limit(self) -> None:
        running = self.serve({"m": {"engines": ["echo:"], "max_model_len": 1000}})
        self.freeze(running)
        left = []
        for name, more in (("absent", {}), ("no-limit", NO_LIMIT)):
            answer = running.post(ask(**more), headers=self.make(running, name, tpm=100_000))
            self.assertEqual(answer.status, 200, answer.body)
            left.append(answer.header("x-ratelimit-remaining-tokens"))
        self.assertEqual(left[0], left[1])
        answer = running.post(ask("word " * 4000, **NO_LIMIT), headers=self.make(running, "free"))
        self.assert_error(answer, 400, "context_too_long")


if __name__ == "__main__":
    unittest.main()
