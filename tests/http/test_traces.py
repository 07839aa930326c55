"""Traces over real sockets: what engines are told of a caller's trace, and the spans that a collector gets."""

from __future__ import annotations

import json
import math
import re
import time
import unittest
import uuid
from collections import Counter
from typing import Any
from unittest import mock

from gateway.server import report
from tests.collector import Collector, Span, needs_otel
from tests.http.test_passing import END, KIND, TRANSCRIPTIONS, field, file
from tests.panels import code
from tests.resilience import ask
from tests.scripted import DONE, STREAM_HEAD, chunked, delta
from tests.support import CHAT, EMBEDDINGS, RunningGateway, eventually
from tests.verified import VerifiedTest, completion

TRACE = "12345678901234567890123456789012"
SPAN = "1234567890123456"
PARENT = ("traceparent", f"00-{TRACE}-{SPAN}-01")
STATE = ("tracestate", "congo=t61rcWkgMzE, rojo=00f067aa0ba902b7")
LINE = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-(0[0-3])")


def told(request: dict[str, Any]) -> tuple[str, str, str]:
    """Trace id, span id and flags that an engine was told."""
    match = LINE.fullmatch(request["headers"]["traceparent"])
    assert match is not None, request["headers"]
    return match[1], match[2], match[3]


class TracesTest(VerifiedTest):
    def collecting(self, models: Any, *, queued_s: float = math.inf, **variables: object) -> RunningGateway:
        """A gateway whose spans a collector gets. `queued_s`: from when on a wait for a worker is told, which on a busy
        machine is any request's now and then."""
        self.enter(mock.patch.object(report, "QUEUED_S", queued_s))
        self.collector = self.enter(Collector())
        return self.serve(models, OTEL_EXPORTER_OTLP_ENDPOINT=self.collector.url, **variables)

    def spans(self, running: RunningGateway) -> list[Span]:
        """All that the gateway has to tell, which is over then; each tree is looked at."""
        running.stop()
        spans = self.collector.spans()
        by_id = {span.span_id: span for span in spans}
        self.assertEqual(len(by_id), len(spans), "each id once")
        for span in spans:
            self.assertLessEqual(span.began_s, span.ended_s, span.name)
            parent = by_id.get(span.parent_id)
            if parent is not None:
                self.assertEqual(span.trace_id, parent.trace_id)
                if span.kind != "server":
                    self.assertGreaterEqual(span.began_s, parent.began_s, span.name)
                    self.assertLessEqual(span.ended_s, parent.ended_s, span.name)
        return spans

    def named(self, spans: list[Span], name: str) -> list[Span]:
        return [span for span in spans if span.name == name]


class Propagation(VerifiedTest):
    def test_an_engine_is_told_of_the_caller_s_trace_with_the_attempt_s_own_span(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        answer = running.post(ask(), headers=[PARENT, STATE])
        request = engine.requests[0]
        trace_id, span_id, flags = told(request)
        self.assertEqual((trace_id, flags), (TRACE, "01"))
        self.assertNotEqual(span_id, SPAN)
        self.assertEqual(request["headers"]["tracestate"], "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7")
        self.assertEqual(running.request_line(answer.request_id)["trace_id"], TRACE)

    def test_without_a_caller_s_trace_the_request_s_id_is_the_trace_s(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        answer = running.post(ask())
        trace_id, _, flags = told(engine.requests[0])
        self.assertEqual((uuid.UUID(answer.request_id).hex, flags), (trace_id, "03"))
        self.assertEqual(running.request_line(answer.request_id)["trace_id"], trace_id)
        self.assertNotIn("tracestate", engine.requests[0]["headers"])
        own = running.post(ask(), headers=[("X-Request-ID", str(uuid.uuid4()))])
        trace_id, _, _ = told(engine.requests[1])
        self.assertEqual(running.request_line(own.request_id)["trace_id"], trace_id)
        self.assertNotEqual(uuid.UUID(own.request_id).hex, trace_id)

    def test_what_is_no_traceparent_gets_to_no_engine(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        for headers in (
            [("traceparent", "garbage")],
            [("traceparent", f"00-{TRACE}-{SPAN}-01-more"), STATE],
            [PARENT, PARENT, STATE],
            [STATE],
        ):
            running.post(ask(), headers=headers)
            request = engine.requests[-1]
            self.assertNotEqual(told(request)[0], TRACE)
            self.assertNotIn("tracestate", request["headers"])
        running.post(ask(), headers=[PARENT, ("tracestate", "no tracestate")])
        self.assertEqual(told(engine.requests[-1])[0], TRACE)
        self.assertNotIn("tracestate", engine.requests[-1]["headers"])

    def test_with_propagators_off_nothing_is_taken_and_nothing_sent(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}}, OTEL_PROPAGATORS="none")
        answer = running.post(ask(), headers=[PARENT, STATE])
        headers = engine.requests[0]["headers"]
        self.assertFalse({"traceparent", "tracestate"} & set(headers))
        self.assertIsNone(running.request_line(answer.request_id).get("trace_id"))

    def test_with_propagators_off_and_a_collector_only_that_one_is_told(self) -> None:
        engine, collector = self.engine(), self.enter(Collector())
        running = self.serve(
            {"m": {"engines": [engine.url]}}, OTEL_PROPAGATORS="none", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url
        )
        answer = running.post(ask(), headers=[PARENT, STATE])
        self.assertFalse({"traceparent", "tracestate"} & set(engine.requests[0]["headers"]))
        self.assertEqual(running.request_line(answer.request_id)["trace_id"], uuid.UUID(answer.request_id).hex)
        running.stop()
        self.assertEqual(len(collector.sent()), 1)

    def test_an_engine_that_is_asked_once_more_within_a_try_is_told_the_same_span(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.begin(running, ask(stream=True), [PARENT])
        side = engine.take()
        self.assertIn(b"include_usage", side.body)
        heads = [side.head]
        side.answer(b'{"error": {"message": "stream_options is not supported"}}', status="400 Bad Request")
        side = self.next_of(engine)
        heads.append(side.head)
        side.send(STREAM_HEAD + chunked(delta("yes", "stop") + DONE) + b"0\r\n\r\n")
        self.assertEqual(client.read_head().status, 200)
        spans = {line for head in heads for line in head.split(b"\r\n") if line.startswith(b"traceparent")}
        self.assertEqual(len(spans), 1)

    def test_every_dialect_and_what_is_passed_on_is_told(self) -> None:
        engine = self.engine()
        claude = {"url": engine.url, "dialect": "anthropic"}
        running = self.serve({"m": {"engines": [engine.url]}, "claude": {"engines": [claude], "fallbacks": []}})
        for path, body in (
            (CHAT, ask()),
            (CHAT, ask(stream=True)),
            (CHAT, ask(model="claude")),
            ("/v1/messages", {**ask(), "max_tokens": 9}),
            ("/api/chat", ask()),
            ("/v1/responses", {"model": "m", "input": "hi"}),
            ("/v1/rerank", {"model": "m", "query": "q", "documents": ["a"]}),
        ):
            with self.subTest(path=path):
                before = len(engine.requests)
                running.post(body, path, [PARENT, STATE])
                request = engine.requests[before]
                self.assertEqual(told(request)[0], TRACE)
                self.assertIn("tracestate", request["headers"])
        form = field("model", b"m") + file(b"sound") + END
        client = self.enter(running.connect())
        lines = [f"Content-Type: {KIND}", f"Content-Length: {len(form)}", ": ".join(PARENT), ": ".join(STATE)]
        client.send("\r\n".join([f"POST {TRANSCRIPTIONS} HTTP/1.1", "Host: gateway", *lines, "", ""]).encode() + form)
        self.assertEqual(client.read_response().status, 200)
        self.assertEqual((engine.requests[-1]["path"], told(engine.requests[-1])[0]), (TRANSCRIPTIONS, TRACE))

    def test_each_try_has_a_span_of_its_own(self) -> None:
        bad, good = self.engine("error"), self.engine()
        running = self.serve({"m": {"engines": [bad.url, good.url]}}, STRATEGY="round_robin")
        spans = set()
        for _ in range(4):
            running.post(ask(), headers=[PARENT])
        requests = [*bad.requests, *good.requests]
        self.assertTrue(bad.requests)
        for request in requests:
            trace_id, span_id, _ = told(request)
            self.assertEqual(trace_id, TRACE)
            spans.add(span_id)
        self.assertEqual(len(spans), len(requests))


@needs_otel
class Spans(TracesTest):
    def test_a_request_and_its_attempt_are_told(self) -> None:
        engine = self.engine()
        running = self.collecting({"m": {"engines": [engine.url]}}, OTEL_SERVICE_NAME="my gateway")
        answer = running.post(ask(), headers=[PARENT, STATE])
        usage = answer.json()["usage"]
        request, attempt = self.spans(running)
        self.assertEqual((request.name, request.kind), (f"POST {CHAT}", "server"))
        self.assertEqual((request.trace_id, request.parent_id), (TRACE, SPAN))
        self.assertEqual(request.state, "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7")
        self.assertEqual(request.flags, 0x301)
        self.assertEqual(request.status, 0)
        self.assertEqual(request.resource["service.name"], "my gateway")
        for key, value in {
            "http.request.method": "POST",
            "http.route": CHAT,
            "http.response.status_code": 200,
            "client.address": "127.0.0.1",
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "m",
            "gen_ai.response.model": "m",
            "gen_ai.usage.input_tokens": usage["prompt_tokens"],
            "gen_ai.usage.output_tokens": usage["completion_tokens"],
            "gateway.request_id": answer.request_id,
            "gateway.attempts": 1,
            "gateway.sampled_by": "sampler",
        }.items():
            self.assertEqual(request.attributes[key], value, key)
        self.assertEqual((attempt.name, attempt.kind, attempt.parent_id), ("chat m", "client", request.span_id))
        self.assertEqual(attempt.span_id, told(engine.requests[0])[1])
        self.assertEqual(attempt.attributes["server.address"], "127.0.0.1")
        self.assertEqual(attempt.attributes["server.port"], engine.port)
        self.assertEqual(attempt.attributes["gateway.outcome"], "ok")
        self.assertFalse([key for span in (request, attempt) for key in span.attributes if "messages" in key])

    def test_a_stream_tells_of_its_first_event_and_ends_with_it(self) -> None:
        engine = self.engine()
        running = self.collecting({"m": {"engines": [engine.url]}})
        gate = engine.hold_after(1)
        client = self.begin(running, ask(stream=True))
        client.read_head()
        self.assertTrue(gate.wait_for_held(1, 5))
        gate.release()
        while client.read_event() is not None:
            pass
        eventually(running.request_lines)
        request, attempt = self.spans(running)
        for span in (request, attempt):
            ((name, at_s),) = span.events
            self.assertEqual(name, "first_event")
            self.assertTrue(span.began_s <= at_s <= span.ended_s)
        self.assertTrue(request.attributes["gen_ai.request.stream"])
        self.assertEqual(attempt.span_id, told(engine.requests[0])[1])

    def test_tries_and_the_fallback_are_told_in_their_order(self) -> None:
        bad, worse, good = self.engine("error"), self.engine("error"), self.engine(model="b")
        models = {"a": {"engines": [bad.url, worse.url], "fallbacks": ["b"]}, "b": {"engines": [good.url]}}
        running = self.collecting(models, RETRY_ATTEMPTS=2)
        running.post(ask(model="a"), headers=[PARENT])
        request, *rest = self.spans(running)
        attempts = [span for span in rest if span.kind == "client"]
        self.assertEqual([span.name for span in attempts], ["chat a", "chat a", "chat b"])
        self.assertEqual([span.attributes["gateway.outcome"] for span in attempts], ["error", "error", "ok"])
        self.assertEqual([span.attributes.get("http.response.status_code") for span in attempts], [500, 500, None])
        self.assertEqual([span.status for span in attempts], [2, 2, 0])
        self.assertEqual([span.attributes["gateway.attempt"] for span in attempts], [1, 2, 3])
        seen = {told(one)[1] for engine in (bad, worse, good) for one in engine.requests}
        self.assertEqual({span.span_id for span in attempts}, seen)
        self.assertEqual({span.parent_id for span in rest}, {request.span_id})
        self.assertEqual(request.attributes["gateway.fallback"], "a->b")
        self.assertEqual(request.attributes["gen_ai.request.model"], "a")
        self.assertEqual(request.attributes["gen_ai.response.model"], "b")
        self.assertEqual(request.status, 0, "it was answered")
        self.assertEqual([attempt.began_s for attempt in attempts], sorted(attempt.began_s for attempt in attempts))

    def test_both_engines_of_a_hedged_request_are_told(self) -> None:
        hung, good = self.engine("hang"), self.engine()
        running = self.collecting({"m": {"engines": [hung.url, good.url], "hedge_after_ms": 20, "hedge_ratio": 1.0}})
        running.post(ask())
        request, *attempts = self.spans(running)
        self.assertEqual(Counter(one.attributes["gateway.outcome"] for one in attempts), Counter(ok=1, cancelled=1))
        self.assertEqual({one.status for one in attempts}, {0}, "to have been slower is no failure")
        self.assertTrue(request.attributes["gateway.hedged"])
        self.assertEqual({one.span_id for one in attempts}, {told(one.requests[0])[1] for one in (hung, good)})

    def test_a_stream_that_goes_on_elsewhere_has_a_span_for_each_engine(self) -> None:
        first, second = self.engine("drop_mid_stream"), self.engine()
        specs = [{"url": one.url, "resume": True} for one in (first, second)]
        running = self.collecting({"m": {"engines": specs}})
        while not first.requests:
            answer = running.post(ask(stream=True), headers=[PARENT])
            running.request_line(answer.request_id)
        spans = self.spans(running)
        resumed = next(span for span in spans if span.attributes.get("gateway.resumed"))
        attempts = [span for span in spans if span.parent_id == resumed.span_id]
        self.assertEqual([one.attributes["gateway.outcome"] for one in attempts], ["truncated", "ok"])
        self.assertEqual([len(one.events) for one in attempts], [1, 1])
        seen = {told(one)[1] for engine in (first, second) for one in engine.requests}
        self.assertLessEqual({one.span_id for one in attempts}, seen)

    def test_what_is_asked_again_or_in_other_words_is_in_the_same_trace(self) -> None:
        schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
        for behaviour, path, body, asked in (
            ("misfit", CHAT, ask(response_format=schema), 2),
            ("ok", "/v1/responses", {"model": "m", "input": "hi"}, 1),
        ):
            with self.subTest(path=path):
                engine = self.engine(behaviour)
                engine.lack("responses")
                running = self.collecting({"m": {"engines": [engine.url]}}, SCHEMA_RETRIES=1, RETRY_ATTEMPTS=1)
                running.post(body, path, [PARENT])
                request, *attempts = self.spans(running)
                self.assertEqual({attempt.parent_id for attempt in attempts}, {request.span_id})
                seen = [told(one) for one in engine.requests]
                self.assertEqual(len(seen), asked)
                self.assertEqual({trace_id for trace_id, _, _ in seen}, {TRACE})
                self.assertEqual({span_id for _, span_id, _ in seen}, {attempt.span_id for attempt in attempts})

    def test_a_wait_for_a_place_is_told(self) -> None:
        queued_s = report.QUEUED_S
        for variables, model, name in (
            ({"WORKERS": 1, "queued_s": queued_s}, {}, "queue"),
            ({}, {"max_concurrency": 1}, "place"),
        ):
            with self.subTest(name=name):
                engine = self.scripted()
                running = self.collecting({"m": {"engines": [{"url": engine.url, **model}]}}, **variables)
                first = self.begin(running)
                side = engine.take()
                late = self.begin(running)
                pool = self.pool(running)
                eventually(lambda: running.app.workers.depth or pool.waiting)  # noqa: B023
                time.sleep(queued_s)  # a wait that is shorter is not told
                side.answer(completion("yes"))
                self.next_of(engine).answer(completion("yes"))
                for client in (first, late):
                    self.assertEqual(client.read_response().status, 200)
                eventually(lambda: len(running.request_lines()) == 2)  # noqa: B023
                spans = self.spans(running)
                second = max((span for span in spans if span.kind == "server"), key=lambda span: span.began_s)
                waits = self.named(spans, name)  # for a worker the first one may have waited, too
                (wait,) = (span for span in waits if span.trace_id == second.trace_id)
                self.assertLessEqual(len(waits), 2 if name == "queue" else 1)
                self.assertEqual(wait.kind, "internal")

    def test_a_pause_before_another_try_is_told(self) -> None:
        running = self.collecting({"m": {"engines": [self.engine("error").url]}}, RETRY_ATTEMPTS=2)
        running.post(ask())
        request, pause, first, second = self.spans(running)
        self.assertEqual((pause.name, pause.parent_id), ("pause", request.span_id))
        self.assertTrue(first.ended_s <= pause.began_s + 1e-6 and pause.ended_s <= second.began_s + 1e-6)

    def test_a_request_without_a_wait_has_no_such_span(self) -> None:
        running = self.collecting({"m": {"engines": [self.engine().url]}})
        running.post(ask())
        self.assertEqual(Counter(span.kind for span in self.spans(running)), Counter(server=1, client=1))


@needs_otel
class Shared(TracesTest):
    """Requests that have to do with each other are linked."""

    def servers(self, spans: list[Span]) -> dict[str, Span]:
        """The spans of requests, by their ids."""
        return {span.span_id: span for span in spans if span.kind == "server"}

    def test_who_waits_for_another_s_call_is_linked_to_it(self) -> None:
        engine = self.scripted()
        running = self.collecting({"m": {"engines": [engine.url]}}, COALESCE="on")
        leader = self.begin(running, ask(temperature=0))
        side = engine.take()
        follower = self.begin(running, ask(temperature=0))
        flights = running.app.pipeline.reuse.flights
        eventually(lambda: any(flight.followers for flight in list(flights._by_key.values())))
        side.answer(completion("yes"))
        for client in (leader, follower):
            self.assertEqual(client.read_response().status, 200)
        eventually(lambda: len(running.request_lines()) == 2)
        spans = self.spans(running)
        servers = self.servers(spans)
        (shared,) = self.named(spans, "shared")
        ((trace_id, span_id),) = shared.links
        self.assertNotEqual(shared.trace_id, trace_id)
        self.assertEqual(servers[span_id].trace_id, trace_id)
        (attempt,) = (span for span in spans if span.kind == "client")
        self.assertEqual(attempt.parent_id, span_id)
        self.assertTrue(servers[shared.parent_id].attributes["gateway.coalesced"])

    def test_the_requests_of_a_batch_are_linked_and_its_call_is_its_leader_s(self) -> None:
        engine = self.engine()
        running = self.collecting(
            {"m": {"engines": [engine.url]}}, BATCH_EMBEDDINGS="on", BATCH_MAX_WAIT_MS=60_000, BATCH_MAX_SIZE=3
        )
        running.post({"model": "m", "input": "first"}, EMBEDDINGS)  # alone; those that come now are waited for
        clients = []
        for number in range(3):
            client = self.enter(running.connect())
            client.request("POST", EMBEDDINGS, {"model": "m", "input": f"text {number}"}, [])
            clients.append(client)
        for client in clients:
            self.assertEqual(client.read_response().status, 200)
        eventually(lambda: len(running.request_lines()) == 4)
        spans = self.spans(running)
        servers = self.servers(spans)
        batches = [span for span in self.named(spans, "batch") if span.attributes.get("gateway.batch.requests") != 1]
        (leads,) = (span for span in batches if span.attributes["gateway.batch.leads"])
        follows = [span for span in batches if span is not leads]
        self.assertEqual((leads.attributes["gateway.batch.requests"], len(leads.links), len(follows)), (3, 2, 2))
        self.assertEqual({link[1] for span in follows for link in span.links}, {leads.parent_id})
        self.assertEqual({span.parent_id for span in follows}, {span_id for _, span_id in leads.links})
        (attempt,) = (span for span in spans if span.kind == "client" and span.parent_id == leads.parent_id)
        self.assertEqual(attempt.span_id, told(engine.requests[-1])[1])
        self.assertEqual(servers[leads.parent_id].attributes["gateway.batch"], 3)

    def test_an_answer_from_memory_has_the_look_that_found_it(self) -> None:
        running = self.collecting({"m": {"engines": [self.engine().url]}}, CACHE="on")
        running.post(ask(temperature=0))
        self.assertEqual(running.post(ask(temperature=0), headers=[PARENT]).header("X-Gateway-Cache"), "hit")
        spans = [span for span in self.spans(running) if span.trace_id == TRACE]
        request, cache = spans
        self.assertEqual((cache.name, cache.parent_id), ("cache", request.span_id))
        self.assertTrue(cache.attributes["gateway.cache.found"])

    def test_a_look_into_the_cache_by_an_embedding_has_the_engine_s_try_below_it(self) -> None:
        chat, embedder = self.engine(), self.engine(model="e")
        running = self.collecting(
            {"m": {"engines": [chat.url]}, "e": {"engines": [embedder.url]}},
            CACHE="on",
            CACHE_NEAR="on",
            CACHE_GUARD="off",
            EMBEDDINGS_MODEL="e",
        )
        running.post(ask("What is the capital of France?", temperature=0), headers=[PARENT])
        spans = self.spans(running)
        request = spans[0]
        (cache,) = self.named(spans, "cache")
        self.assertEqual((cache.parent_id, cache.kind), (request.span_id, "internal"))
        self.assertFalse(cache.attributes["gateway.cache.found"])
        below = {span.attributes["gen_ai.request.model"]: span for span in spans if span.kind == "client"}
        self.assertEqual((below["e"].parent_id, below["m"].parent_id), (cache.span_id, request.span_id))
        self.assertEqual(told(embedder.requests[0])[:2], (TRACE, below["e"].span_id))


@needs_otel
class Verified(VerifiedTest):
    """The parts of a verification are requests below it."""

    def test_members_the_judge_and_programs_are_below_the_whole(self) -> None:
        collector = self.enter(Collector())
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        running = self.several("ab", **endpoint)
        self.jail(running)
        client = self.infer(running, [PARENT, STATE], models=["a", "b"])
        sides = self.say({"a": code("return x + 1"), "b": code("return x + 1")})
        answer = client.read_response()
        self.assertEqual(answer.status, 200)
        running.request_line(answer.request_id)
        running.stop()
        spans = collector.spans()
        (whole,) = (span for span in spans if span.parent_id == SPAN)
        parts = [span for span in spans if span.kind == "server" and span is not whole]
        self.assertEqual({span.trace_id for span in spans}, {TRACE})
        self.assertEqual({span.parent_id for span in parts}, {whole.span_id})
        self.assertEqual({span.attributes["gateway.part_of"] for span in parts}, {answer.request_id})
        self.assertEqual(
            [span.flags for span in (whole, *parts)], [0x301, 0x101, 0x101], "only one parent is elsewhere"
        )
        attempts = {span.span_id: span for span in spans if span.kind == "client"}
        for side in sides.values():
            line = re.search(rb"traceparent: (\S+)\r\n", side.head)
            assert line is not None
            match = LINE.fullmatch(line[1].decode())
            assert match is not None
            self.assertEqual(match[1], TRACE)
            self.assertIn(attempts[match[2]].parent_id, {part.span_id for part in parts})
            self.assertIn(b"tracestate: congo=t61rcWkgMzE,rojo=00f067aa0ba902b7\r\n", side.head)
        runs = [span for span in spans if span.name == "sandbox"]
        self.assertEqual({span.parent_id for span in runs}, {whole.span_id})
        harnesses = Counter(span.attributes["gateway.sandbox.harness"] for span in runs)
        self.assertEqual(set(harnesses), {"generate", "judge", ""})
        self.assertTrue(whole.attributes["gateway.verification.verified"])

    def test_a_judge_s_verdict_is_told(self) -> None:
        collector = self.enter(Collector())
        virtual = {"v": {"members": ["a", "b"], "judge": "j"}}
        running = self.several("abj", virtual, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        client = self.chat(running, messages=[{"role": "user", "content": "Which city?"}])
        self.say({"a": "It is Paris, on the Seine.", "b": "The city that you mean is called Paris."})
        self.say({"j": "[[1, 2]]"})
        answer = client.read_response()
        self.assertEqual(answer.status, 200)
        running.request_line(answer.request_id)
        running.stop()
        spans = collector.spans()
        (judge,) = (span for span in spans if span.name == "judge")
        (whole,) = (span for span in spans if span.span_id == judge.parent_id)
        self.assertEqual(judge.attributes["gateway.judge.model"], "j")
        self.assertEqual(len([span for span in spans if span.parent_id == whole.span_id and span.kind == "server"]), 3)


@needs_otel
class Failures(TracesTest):
    def test_a_failed_request_is_told_though_it_was_not_sampled_and_says_so(self) -> None:
        engine = self.engine("error")
        running = self.collecting({"m": {"engines": [engine.url]}}, OTEL_TRACES_SAMPLER="always_off", RETRY_ATTEMPTS=1)
        self.assertEqual(running.post(ask(), headers=[PARENT]).status, 502)
        engine.control("ok")
        running.post(ask())
        running.post({"messages": 7})
        request, attempt = self.spans(running)
        self.assertEqual(request.attributes["gateway.sampled_by"], "error")
        self.assertEqual((request.status, request.attributes["error.type"]), (2, "backend_error"))
        self.assertEqual(request.flags & 1, 0, "engines were told that it is not")
        self.assertEqual(told(engine.requests[0])[2], "00")
        self.assertEqual((attempt.status, attempt.attributes["error.type"]), (2, "error"))

    def test_a_stream_that_breaks_is_a_failure_and_a_client_that_leaves_is_none(self) -> None:
        engine = self.engine("drop_mid_stream")
        running = self.collecting({"m": {"engines": [engine.url]}}, OTEL_TRACES_SAMPLER="always_off")
        answer = running.post(ask(stream=True))
        running.request_line(answer.request_id)
        engine.control("hang")
        client = self.begin(running)
        self.assertTrue(engine.wait_for_requests(2, 5))
        client.close()
        eventually(lambda: len(running.request_lines()) == 2)
        self.assertEqual(running.request_lines()[1]["status"], 499)
        request, *_ = spans = self.spans(running)
        self.assertEqual([span.kind for span in spans], ["server", "client"])
        self.assertEqual((request.attributes["http.response.status_code"], request.status), (200, 2))

    def test_what_the_caller_has_decided_holds(self) -> None:
        running = self.collecting({"m": {"engines": [self.engine().url]}})
        running.post(ask(), headers=[(PARENT[0], f"00-{TRACE}-{SPAN}-00")])
        running.post(ask(), headers=[PARENT])
        self.assertEqual(len(self.spans(running)), 2)


@needs_otel
class Content(TracesTest):
    def test_prompts_and_answers_are_told_where_they_are_logged(self) -> None:
        for switch in ("on", "off"):
            running = self.collecting({"m": {"engines": [self.engine().url]}}, LOG_BODIES=switch)
            running.post(ask("tell nobody \ud800 of ü".encode("utf-8", "replace").decode()))
            running.stop()
            attributes = self.spans(running)[0].attributes
            if switch == "off":
                self.assertNotIn("tell nobody", json.dumps([sent.body for sent in self.collector.sent()]))
                continue
            asked = json.loads(attributes["gen_ai.input.messages"])
            self.assertEqual([(one["role"], one["parts"][0]["type"]) for one in asked], [("user", "text")])
            self.assertIn("tell nobody", asked[0]["parts"][0]["content"])
            (answered,) = json.loads(attributes["gen_ai.output.messages"])
            self.assertEqual((answered["role"], answered["finish_reason"]), ("assistant", "stop"))


if __name__ == "__main__":
    unittest.main()
