"""The library against real engines on real sockets: asking, failing over, falling back, giving up."""

from __future__ import annotations

import json
import threading
import unittest
from collections.abc import Sequence
from random import Random
from typing import Any, Callable, Optional, Union

from gateway.errors import ClientGone, EngineFailed, GatewayError, RequestRefused
from gateway.mock.server import MockEngine
from gateway.routing.specs import FleetSpec, model_from
from gateway.routing.standing import StateChange
from gateway.upstream.stream import EngineStream
from inference import Answer, Call, EngineSpec, InferenceFactory, ModelSpec
from tests.parallel import alone
from tests.ports import free_port
from tests.scripted import DONE, STREAM_HEAD, ScriptedEngine, chunked, delta
from tests.support import dead_url, eventually

HI = [{"role": "user", "content": "hi there"}]
TIMEOUT_S = 10.0
CANCEL_S = 1.0  # contract 9.5

Engines = Sequence[Union[str, EngineSpec]]


class LibraryTest(unittest.TestCase):
    def engine(self, model: str = "13b", behaviour: str = "ok", **options: Any) -> MockEngine:
        engine = MockEngine(model=model, behaviour=behaviour, **options).start()
        self.addCleanup(engine.close)
        return engine

    def factory(self, models: Union[dict[str, Engines], FleetSpec], **options: Any) -> InferenceFactory:
        self.changes: list[StateChange] = []
        settings = {"health_interval_s": 0, "rng": Random(9), "on_change": self.changes.append, **options}
        factory = InferenceFactory(models, **settings)
        self.addCleanup(factory.close)
        return factory

    def states(self, factory: InferenceFactory) -> dict[str, str]:
        return {item.url: item.state for item in factory.engines()}

    def error(self, kind: type[GatewayError], ask: Callable[[], object]) -> GatewayError:
        with self.assertRaises(kind) as caught:
            ask()
        return caught.exception

    def assert_idle(self, factory: InferenceFactory) -> None:
        self.assertEqual({item.in_flight for item in factory.engines()}, {0})


class MisuseTest(LibraryTest):
    def test_an_unknown_strategy_or_fallback_is_refused_by_name(self) -> None:
        for options, words in (
            ({"strategy": "zz"}, "strategy must be one of round_robin, .*least_connections.*, not 'zz'"),
            ({"fallback": "zz"}, "fallback must be one of any, configured, off, not 'zz'"),
        ):
            with self.assertRaisesRegex(ValueError, words):
                InferenceFactory({"13b": [dead_url()]}, **options)  # type: ignore[arg-type]

    def test_a_closed_factory_says_so(self) -> None:
        engine = self.engine()
        factory = self.factory({"13b": [engine.url]})
        self.assertTrue(factory.generate("hi"))
        factory.close()
        factory.close()
        asks: tuple[Callable[[], object], ...] = (
            lambda: factory.generate("hi"),
            lambda: factory.chat(HI),
            lambda: list(factory.stream(HI)),
        )
        for ask in asks:
            with self.assertRaisesRegex(RuntimeError, "is closed"):
                ask()
        self.assertEqual(engine.stats()["requests"], 1)


def chat_call(model: Optional[str] = None, stream: bool = False, **options: Any) -> Call:
    request: dict[str, Any] = {"messages": HI, **({"stream": True} if stream else {})}
    if model is not None:
        request["model"] = model
    return Call("/chat/completions", request, **options)


def text_of(chunks: Sequence[dict[str, Any]]) -> str:
    return "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])


class AskTest(LibraryTest):
    def test_generate_gives_the_text_and_chat_the_whole_answer(self) -> None:
        engine = self.engine()
        factory = self.factory({"13b": [engine.url]})
        answer = factory.chat(HI, model="13b")
        self.assertEqual(answer["model"], "13b")
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
        usage = answer["usage"]
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])
        text = answer["choices"][0]["message"]["content"]
        self.assertTrue(text)
        self.assertEqual(factory.generate("hi there", model="13b"), text)
        self.assert_idle(factory)

    def test_fields_reach_the_engine_as_given(self) -> None:
        engine = self.engine()
        factory = self.factory({"13b": [engine.url]})
        factory.chat(HI, "13b", temperature=0, max_tokens=7, stop=["x"], user="me")
        sent = engine.requests[-1]["body"]
        expected = {"model": "13b", "messages": HI, "temperature": 0, "max_tokens": 7, "stop": ["x"], "user": "me"}
        self.assertEqual(sent, expected)

    def test_an_engine_gets_its_own_name_of_the_model_and_its_key(self) -> None:
        engine = self.engine("llama")
        spec = EngineSpec(engine.url, model="llama-13b.gguf", api_key_env="ENGINE_KEY")
        factory = self.factory({"13b": [spec]}, secrets={"ENGINE_KEY": "s3cret"})
        self.assertEqual(factory.chat(HI)["model"], "13b")
        seen = engine.requests[-1]
        self.assertEqual(seen["body"]["model"], "llama-13b.gguf")
        self.assertEqual(seen["headers"]["authorization"], "Bearer s3cret")

    def test_no_model_is_the_first_and_an_unknown_one_is_refused(self) -> None:
        first, second = self.engine(), self.engine()
        factory = self.factory({"13b": [first.url], "7b": [second.url]})
        self.assertEqual(factory.chat(HI)["model"], "13b")
        error = self.error(RequestRefused, lambda: factory.chat(HI, "70b"))
        self.assertEqual((error.code, error.status), ("model_not_found", 404))
        self.assertEqual(len(second.requests), 0)

    def test_requests_share_one_connection(self) -> None:
        engine = self.engine()
        factory = self.factory({"13b": [engine.url]})
        for _ in range(10):
            factory.generate("hi")
        self.assertEqual(list(factory.stream(HI))[-1]["choices"][0]["finish_reason"], "stop")
        self.assertLessEqual(engine.stats()["connections_total"], 2)

    def test_an_engine_that_closed_a_kept_connection_is_asked_on_a_new_one(self) -> None:
        engine = self.engine(port=free_port())
        factory = self.factory({"13b": [engine.url]}, retry_attempts=1)
        factory.generate("hi")
        port = engine.port
        engine.close()
        again = MockEngine(port=port).start()
        self.addCleanup(again.close)
        call = chat_call()
        self.assertIsInstance(factory.run(call), Answer)
        self.assertEqual(call.attempts, 1)

    def test_an_engine_without_usage_is_estimated(self) -> None:
        factory = self.factory({"13b": [self.engine(behaviour="no_usage").url]})
        call = chat_call()
        factory.run(call)
        assert call.usage is not None
        self.assertTrue(call.usage.estimated)
        usage = factory.chat(HI)["usage"]
        self.assertEqual(usage["prompt_tokens"], 2)
        self.assertGreater(usage["completion_tokens"], 0)

    def test_the_echo_engine_answers_without_any_server(self) -> None:
        factory = self.factory({"echo": ["echo:"]})
        self.assertEqual(factory.generate("what is python"), "Echo: what is python")
        self.assertEqual(text_of(list(factory.stream(HI))), "Echo: hi there")

    def test_what_happened_can_be_told_afterwards(self) -> None:
        engine = self.engine()
        factory = self.factory({"13b": [engine.url]})
        call = chat_call("13b", request_id="req-7")
        answer = factory.run(call)
        assert isinstance(answer, Answer)
        self.assertEqual(json.loads(answer.body)["id"], "req-7")
        self.assertEqual(engine.requests[-1]["headers"]["x-request-id"], "req-7")
        self.assertEqual((call.served_model, call.attempts, call.fallback), ("13b", 1, None))
        self.assertEqual(call.engine_id, factory.engines()[0].id)
        self.assertEqual([(r.model, r.outcome) for r in call.records], [("13b", "ok")])


class StreamTest(LibraryTest):
    def test_chunks_arrive_while_the_engine_still_writes(self) -> None:
        engine = self.engine()
        gate = engine.hold_after(1)
        self.addCleanup(gate.release)
        chunks = self.factory({"13b": [engine.url]}).stream(HI)
        got = [next(chunks)]
        while not text_of(got):
            got.append(next(chunks))  # the rest is still behind the gate
        gate.release()
        got += chunks
        self.assertEqual(got[-1]["choices"][0]["finish_reason"], "stop")

    def test_a_stream_says_what_the_plain_answer_says(self) -> None:
        factory = self.factory({"13b": [self.engine().url]})
        self.assertEqual(text_of(list(factory.stream(HI))), factory.generate("hi there"))
        self.assert_idle(factory)

    @alone
    def test_leaving_the_loop_closes_the_engines_connection(self) -> None:
        engine = self.engine()
        gate = engine.hold_after(1)
        self.addCleanup(gate.release)
        factory = self.factory({"13b": [engine.url]})
        chunks = factory.stream(HI)
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]
        self.assertTrue(engine.wait_for_cancelled(1, CANCEL_S))
        self.assert_idle(factory)
        self.assertEqual(self.states(factory), {engine.url: "up"})

    def test_usage_comes_only_when_asked_for(self) -> None:
        factory = self.factory({"13b": [self.engine().url]})
        self.assertNotIn(True, ["usage" in c and bool(c["usage"]) for c in factory.stream(HI) if not c["choices"]])
        asked = list(factory.stream(HI, stream_options={"include_usage": True}))
        self.assertEqual(asked[-1]["choices"], [])
        self.assertGreater(asked[-1]["usage"]["total_tokens"], 0)

    def test_streams_of_unusual_engines_are_whole(self) -> None:
        for behaviour, options in (("no_done", {}), ("plain_json", {}), ("drip", {"gap": 0.0}), ("no_usage", {})):
            with self.subTest(behaviour=behaviour):
                engine = self.engine(behaviour=behaviour, **options)
                factory = self.factory({"13b": [engine.url]})
                chunks = list(factory.stream(HI))
                engine.control("ok")
                self.assertEqual(text_of(chunks), factory.generate("hi there"))
                self.assertEqual(chunks[-1]["choices"][0]["finish_reason"], "stop")
                self.assert_idle(factory)

    def test_a_stream_that_breaks_in_the_middle_gives_what_came_and_then_raises(self) -> None:
        for behaviour in ("drop_mid_stream", "end_mid_stream", "reset_mid_stream", "malformed"):
            with self.subTest(behaviour=behaviour):
                engine, other = self.engine(behaviour=behaviour, events=9, after=2), self.engine()
                gate = engine.hold_after(1)
                factory = self.factory({"13b": [engine.url], "7b": [other.url]})
                chunks = factory.stream(HI)
                got = [next(chunks)]  # from here on no other engine may take over
                gate.release()

                def read(chunks: Any = chunks, got: list[dict[str, Any]] = got) -> None:
                    for chunk in chunks:
                        got.append(chunk)

                error = self.error(EngineFailed, read)
                self.assertEqual((error.code, error.status), ("backend_error", 502))
                if behaviour != "reset_mid_stream":  # a reset may overtake what was sent before it
                    self.assertTrue(text_of(got))
                self.assertEqual(len(other.requests), 0)
                self.assert_idle(factory)

    def test_until_the_first_event_another_engine_takes_over(self) -> None:
        for behaviour in ("error", "reset", "error_first_event", "rate_limit", "unauthorized"):
            with self.subTest(behaviour=behaviour):
                bad, good = self.engine(behaviour=behaviour), self.engine()
                factory = self.factory({"13b": [bad.url, good.url]})
                for _ in range(2):  # the rotation begins with each of them once
                    self.assertTrue(text_of(list(factory.stream(HI))))
                self.assertEqual(len(bad.requests), 1)

    @alone
    def test_an_engine_silent_between_events_is_given_up(self) -> None:
        engine = self.engine()
        gate = engine.hold_after(1)
        self.addCleanup(gate.release)
        factory = self.factory({"13b": [engine.url]}, stream_idle_timeout_s=0.1)
        error = self.error(EngineFailed, lambda: list(factory.stream(HI)))
        self.assertIn(error.status, (502, 504))
        self.assertTrue(engine.wait_for_cancelled(1, CANCEL_S))
        self.assert_idle(factory)


class BalanceTest(LibraryTest):
    def test_three_engines_get_equal_counts(self) -> None:
        engines = [self.engine() for _ in range(3)]
        factory = self.factory({"13b": [engine.url for engine in engines]})
        for _ in range(12):
            factory.generate("hi")
        self.assertEqual([len(engine.requests) for engine in engines], [4, 4, 4])

    def test_weights_give_exact_proportions(self) -> None:
        engines = [self.engine() for _ in range(3)]
        specs = [EngineSpec(engine.url, weight=weight) for engine, weight in zip(engines, (1, 2, 3))]
        factory = self.factory({"13b": specs})
        for _ in range(12):
            factory.generate("hi")
        self.assertEqual([len(engine.requests) for engine in engines], [2, 4, 6])

    def test_models_do_not_share_engines(self) -> None:
        big, small = self.engine("70b"), self.engine("7b")
        factory = self.factory({"70b": [big.url], "7b": [small.url]}, strategy="least_connections")
        for _ in range(5):
            factory.generate("hi", "7b")
        self.assertEqual((len(big.requests), len(small.requests)), (0, 5))

    def test_many_threads_at_once_are_all_answered(self) -> None:
        engines = [self.engine() for _ in range(3)]
        factory = self.factory({"13b": [engine.url for engine in engines]}, strategy="least_connections")
        texts: list[str] = []
        faults: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(10):
                    texts.append(factory.generate("hi"))
                    texts.append(text_of(list(factory.stream([{"role": "user", "content": "hi"}]))))
            except BaseException as fault:
                faults.append(fault)

        threads = [threading.Thread(target=work, name=f"caller-{i}") for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S * 3)
        self.assertEqual((faults, len(texts), len(set(texts))), ([], 160, 3))
        self.assertEqual(sum(engine.stats()["requests"] for engine in engines), 160)
        self.assertEqual(sum(engine.stats()["duplicates"] for engine in engines), 0)
        self.assert_idle(factory)


class FailoverTest(LibraryTest):
    def test_a_refused_engine_is_out_at_once_and_nobody_notices(self) -> None:
        dead, good = dead_url(), self.engine()
        factory = self.factory({"13b": [dead, good.url]})
        for _ in range(6):
            factory.generate("hi")
        self.assertEqual(len(good.requests), 6)
        self.assertEqual(self.states(factory), {dead: "down", good.url: "up"})
        self.assertEqual([(c.before, c.after) for c in self.changes], [("up", "down")])
        self.assert_idle(factory)

    def test_every_kind_of_failure_moves_to_another_engine(self) -> None:
        for behaviour, kind in (
            ("error", "error"),
            ("reset", "reset"),
            ("malformed", "invalid"),
            ("truncate", "truncated"),
            ("unauthorized", "unauthorized"),
            ("rate_limit", "rate_limited"),
        ):
            with self.subTest(behaviour=behaviour):
                bad, good = self.engine(behaviour=behaviour), self.engine()
                factory = self.factory({"13b": [bad.url, good.url]})
                calls = [chat_call() for _ in range(2)]
                for call in calls:
                    self.assertIsInstance(factory.run(call), Answer)
                self.assertEqual((len(bad.requests), len(good.requests)), (1, 2))
                retried = next(call for call in calls if call.attempts == 2)
                self.assertEqual(retried.retries, [("13b", kind)])
                self.assertEqual([record.outcome for record in retried.records], [kind, "ok"])
                self.assert_idle(factory)

    def test_a_408_of_the_engine_is_its_own_failure(self) -> None:
        bad, good = self.engine(behaviour="error", status=408), self.engine()
        factory = self.factory({"13b": [bad.url, good.url]})
        for _ in range(2):
            factory.generate("hi")
        self.assertEqual((len(bad.requests), len(good.requests)), (1, 2))
        alone = self.factory({"13b": [bad.url]})
        error = self.error(EngineFailed, lambda: alone.generate("hi"))
        self.assertEqual((error.code, error.status), ("backend_error", 502))

    def test_the_callers_fault_is_told_once_and_blames_nobody(self) -> None:
        for behaviour, options, status in (("bad_request", {}, 400), ("error", {"status": 422}, 422)):
            with self.subTest(behaviour=behaviour):
                engines = [self.engine(behaviour=behaviour, **options) for _ in range(2)]
                spare = self.engine()
                factory = self.factory({"13b": [engine.url for engine in engines], "7b": [spare.url]})
                error = self.error(RequestRefused, lambda f=factory: f.generate("hi", "13b"))  # type: ignore[misc]
                self.assertEqual((error.code, error.status), ("backend_rejected", status))
                self.assertTrue(error.message)
                self.assertEqual(sum(len(engine.requests) for engine in engines), 1)
                self.assertEqual(len(spare.requests), 0)
                self.assertEqual({item.state for item in factory.engines()}, {"up"})
                self.assertEqual({item.last_error for item in factory.engines()}, {None})

    def test_attempts_stop_at_the_limit(self) -> None:
        engines = [self.engine(behaviour="error") for _ in range(4)]
        factory = self.factory({"13b": [engine.url for engine in engines]}, retry_attempts=2)
        call = chat_call()
        error = self.error(EngineFailed, lambda: factory.run(call))
        self.assertEqual((error.code, call.attempts), ("backend_error", 2))
        self.assertEqual(sorted(len(engine.requests) for engine in engines), [0, 0, 1, 1])

    def test_when_all_engines_ask_for_a_pause_the_caller_is_told_how_long(self) -> None:
        engines = [self.engine(behaviour="rate_limit", retry_after=wait_s) for wait_s in (30, 20)]
        factory = self.factory({"13b": [engine.url for engine in engines]})
        for _ in range(2):
            error = self.error(EngineFailed, lambda: factory.generate("hi"))
            self.assertEqual((error.code, error.status), ("backend_rate_limited", 429))
            assert error.retry_after_s is not None
            self.assertTrue(15 < error.retry_after_s <= 20, error.retry_after_s)
        self.assertEqual([len(engine.requests) for engine in engines], [1, 1])
        self.assertEqual({item.state for item in factory.engines()}, {"resting"})

    def test_a_lone_engine_with_a_wrong_key_is_a_backend_error(self) -> None:
        engine = self.engine(behaviour="unauthorized")
        factory = self.factory({"13b": [engine.url]})
        for _ in range(2):
            error = self.error(EngineFailed, lambda: factory.generate("hi"))
            self.assertEqual((error.code, error.status), ("backend_error", 502))
        self.assertEqual(self.states(factory), {engine.url: "misconfigured"})
        engine.control("ok")
        factory.generate("hi")
        self.assertEqual(self.states(factory), {engine.url: "up"})

    def test_the_last_engine_is_tried_although_it_is_down(self) -> None:
        engine = self.engine(behaviour="refuse", seconds=3600)
        factory = self.factory({"13b": [engine.url]})
        error = self.error(EngineFailed, lambda: factory.generate("hi"))
        self.assertEqual((error.code, error.status), ("backend_unavailable", 502))
        self.assertEqual(self.states(factory), {engine.url: "down"})
        engine.control("ok")
        self.assertTrue(factory.generate("hi"))
        self.assertEqual(self.states(factory), {engine.url: "up"})


class FallbackTest(LibraryTest):
    def test_a_dead_model_falls_back_to_another_and_says_so(self) -> None:
        good = self.engine("13b")
        factory = self.factory({"70b": [dead_url(), dead_url()], "13b": [good.url]})
        call = chat_call("70b")
        self.assertIsInstance(factory.run(call), Answer)
        self.assertEqual((call.fallback, call.served_model, call.attempts), ("70b->13b", "13b", 3))
        self.assertEqual(good.requests[-1]["body"]["model"], "13b")
        self.assertEqual(factory.chat(HI, "70b")["model"], "13b")
        self.assertTrue(text_of(list(factory.stream(HI, "70b"))))

    def test_any_goes_through_the_models_in_order(self) -> None:
        third = self.engine("7b")
        factory = self.factory({"70b": [dead_url()], "13b": [dead_url()], "7b": [third.url]}, fallback="any")
        call = chat_call("13b")
        factory.run(call)
        self.assertEqual(call.fallback, "13b->7b")
        self.assertEqual([record.model for record in call.records], ["13b", "70b", "7b"])

    def test_configured_uses_only_the_models_own_list(self) -> None:
        second, third = self.engine("13b"), self.engine("7b")
        models = (
            ModelSpec("70b", (EngineSpec(dead_url()),), fallbacks=("7b",)),
            model_from("13b", [second.url]),
            model_from("7b", [third.url]),
        )
        factory = self.factory(FleetSpec(models), fallback="configured")
        call = chat_call("70b")
        factory.run(call)
        self.assertEqual((call.fallback, len(second.requests)), ("70b->7b", 0))

    def test_off_and_a_request_that_forbids_it_end_in_an_error(self) -> None:
        second = self.engine("13b")
        off = self.factory({"70b": [dead_url()], "13b": [second.url]}, fallback="off")
        self.assertEqual(self.error(EngineFailed, lambda: off.generate("hi", "70b")).code, "backend_unavailable")
        on = self.factory({"70b": [dead_url()], "13b": [second.url]})
        call = chat_call("70b", allow_fallback=False)
        self.assertEqual(self.error(EngineFailed, lambda: on.run(call)).code, "backend_unavailable")
        self.assertEqual((len(second.requests), call.fallback), (0, None))


class TimeTest(LibraryTest):
    def test_a_hung_engine_is_a_gateway_timeout_and_its_connection_is_closed(self) -> None:
        engine = self.engine(behaviour="hang")
        factory = self.factory({"13b": [engine.url]}, request_timeout_s=0.2, first_token_timeout_s=0.2)
        for ask in (lambda: factory.generate("hi"), lambda: list(factory.stream(HI))):
            error = self.error(EngineFailed, ask)
            self.assertEqual((error.code, error.status), ("gateway_timeout", 504))
        self.assertTrue(engine.wait_for_cancelled(2, CANCEL_S))
        self.assert_idle(factory)

    def test_a_hung_engine_delays_nobody_else(self) -> None:
        hung, good = self.engine("70b", "hang"), self.engine("13b")
        factory = self.factory({"70b": [hung.url], "13b": [good.url]}, fallback="off")
        call = chat_call("70b")
        failed: list[GatewayError] = []
        thread = self.in_background(factory, call, failed)
        self.assertTrue(hung.wait_for_requests(1, TIMEOUT_S))
        self.assertTrue(factory.generate("hi", "13b"))
        self.assertTrue(thread.is_alive())
        call.cancel()
        thread.join(TIMEOUT_S)

    def in_background(self, factory: InferenceFactory, call: Call, failed: list[GatewayError]) -> threading.Thread:
        """Run `call` on a thread of its own; its error goes into `failed`."""

        def work() -> None:
            try:
                answer = factory.run(call)
                if isinstance(answer, EngineStream):
                    self.fail("a silent engine began a stream")
            except GatewayError as error:
                failed.append(error)

        thread = threading.Thread(target=work, name="caller", daemon=True)
        thread.start()
        return thread

    @alone
    def test_cancelling_from_another_thread_closes_the_engines_connection(self) -> None:
        for stream in (False, True):
            with self.subTest(stream=stream):
                engine, spare = self.engine(behaviour="hang"), self.engine()
                factory = self.factory({"13b": [engine.url], "7b": [spare.url]})
                call = chat_call("13b", stream=stream)
                failed: list[GatewayError] = []
                thread = self.in_background(factory, call, failed)
                self.assertTrue(engine.wait_for_requests(1, TIMEOUT_S))
                call.cancel()
                self.assertTrue(engine.wait_for_cancelled(1, CANCEL_S))
                thread.join(TIMEOUT_S)
                self.assertEqual([type(error) for error in failed], [ClientGone])
                self.assertEqual(len(spare.requests), 0)
                self.assertEqual([record.outcome for record in call.records], ["cancelled"])
                self.assertEqual({item.state for item in factory.engines()}, {"up"})
                self.assert_idle(factory)

    def test_a_call_cancelled_before_it_begins_asks_nobody(self) -> None:
        engine = self.engine()
        factory = self.factory({"13b": [engine.url]})
        call = chat_call()
        call.cancel()
        self.error(ClientGone, lambda: factory.run(call))
        self.assertEqual(len(engine.requests), 0)
        self.assert_idle(factory)


class LifeTest(LibraryTest):
    def test_engines_tells_each_engine_as_it_is(self) -> None:
        engine, dead = self.engine(), dead_url()
        factory = self.factory({"13b": [EngineSpec(engine.url, id="one", weight=3)], "7b": [dead]}, fallback="off")
        self.error(EngineFailed, lambda: factory.generate("hi", "7b"))
        first, second = factory.engines()
        self.assertEqual((first.model, first.id, first.url, first.state), ("13b", "one", engine.url, "up"))
        self.assertEqual((first.weight, first.in_flight, first.last_error), (3, 0, None))
        self.assertEqual((second.model, second.state), ("7b", "down"))
        self.assertTrue(second.last_error)

    def test_requests_under_way_are_counted(self) -> None:
        engine = self.engine()
        gate = engine.hold_after(1)
        self.addCleanup(gate.release)
        factory = self.factory({"13b": [engine.url]})
        chunks = factory.stream(HI)
        next(chunks)
        self.assertEqual(factory.engines()[0].in_flight, 1)
        gate.release()
        list(chunks)
        self.assert_idle(factory)

    def test_closing_ends_threads_and_idle_connections(self) -> None:
        engine = self.engine()
        before = set(threading.enumerate())
        with InferenceFactory({"13b": [engine.url]}, health_interval_s=0.05) as factory:
            factory.generate("hi")
            eventually(lambda: engine.stats()["probes"] > 0 or engine.stats()["requests"] > 0)
        factory.close()
        own = ("mock-",)
        eventually(lambda: not [t for t in set(threading.enumerate()) - before if not t.name.startswith(own)])
        eventually(lambda: engine.stats()["connections"] == 0)

    def test_probes_take_an_engine_out_and_bring_it_back(self) -> None:
        engine, other = self.engine(), self.engine()
        factory = self.factory({"13b": [engine.url, other.url]}, health_interval_s=0.02, health_timeout_s=2.0)
        engine.control("loading")
        eventually(lambda: self.states(factory)[engine.url] == "down")
        self.assertEqual(self.states(factory)[other.url], "up")
        engine.control("ok")
        eventually(lambda: self.states(factory)[engine.url] == "up")

    def test_an_event_of_several_lines_is_one_chunk(self) -> None:
        lines = "".join(f"data: {line}\n" for line in json.dumps({"choices": [], "x": 1}, indent=1).splitlines())
        wire = b"\xef\xbb\xbf" + lines.encode() + b"\ndata:\n\n" + delta("a") + delta("", "stop")[:-1] + DONE
        with ScriptedEngine() as engine:
            factory = self.factory({"13b": [engine.url]})
            got: list[dict[str, Any]] = []
            reader = threading.Thread(target=lambda: got.extend(factory.stream(HI, "13b")), name="reader")
            reader.start()
            engine.take().send(STREAM_HEAD + chunked(wire) + b"0\r\n\r\n")
            reader.join(10)
        self.assertEqual(got[0], {"choices": [], "x": 1})
        self.assertEqual([chunk["choices"][0]["finish_reason"] for chunk in got[1:]], [None, "stop"])

    def test_another_fleet_takes_over_and_what_is_in_flight_goes_on(self) -> None:
        old, new = self.engine(), self.engine()
        gate = old.hold_after(1)
        self.addCleanup(gate.release)
        factory = self.factory({"13b": [old.url]})
        chunks = factory.stream(HI, "13b")
        got = [next(chunks)]
        factory.reload(FleetSpec((model_from("13b", [new.url]), model_from("7b", [new.url]))))
        factory.generate("hi", "13b")
        factory.generate("hi", "7b")
        self.assertEqual((len(old.requests), len(new.requests)), (1, 2))
        gate.release()
        got += chunks
        self.assertEqual(got[-1]["choices"][0]["finish_reason"], "stop")
        eventually(lambda: old.stats()["connections"] == 0)

    def test_requests_prepare_engines_while_another_fleet_takes_over(self) -> None:
        engine, other = self.engine(), self.engine()
        factory = self.factory({"13b": [engine.url, other.url]})
        for _ in range(2):
            factory.generate("hi")
        asker: Any = factory.asker._attempts.engines
        engines = set(asker._endpoints)
        self.assertEqual(len(engines), 2)

        class Meanwhile:
            """An engine's endpoint; while it is looked at, a request is the first to ask another engine."""

            def __init__(self, endpoint: Any) -> None:
                self._endpoint = endpoint

            @property
            def spec(self) -> EngineSpec:
                asker._endpoints[object()] = self._endpoint
                spec: EngineSpec = self._endpoint.spec
                return spec

        asker._endpoints = {item: Meanwhile(endpoint) for item, endpoint in asker._endpoints.items()}
        factory.reload(FleetSpec((model_from("13b", [engine.url, other.url]),)))
        self.assertLessEqual(engines, set(asker._endpoints))

    def test_models_and_engines_that_cannot_work_are_refused_with_their_place(self) -> None:
        with self.assertRaises(ValueError) as caught:
            InferenceFactory({"13b": ["ftp://x"]})
        self.assertIn("ftp://x", str(caught.exception))
        with self.assertRaises(ValueError):
            InferenceFactory({})


if __name__ == "__main__":
    unittest.main()
