"""What a request leaves behind: every metric moves, and exactly one log line, for streams and refusals too."""

from __future__ import annotations

import gzip
import json
import re
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

from gateway.settings import reload
from tests.support import (
    CHAT,
    HI,
    Response,
    RunningGateway,
    SocketTest,
    dead_url,
    engines,
    eventually,
    gateway,
    mock_engine,
)

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
LOG_KEYS = [
    *("ts", "level", "event", "request_id", "method", "path", "status", "error", "latency_ms", "queue_ms", "engine_ms"),
    *("ttft_ms", "stream", "model", "engine", "attempts", "fallback", "prompt_tokens", "completion_tokens"),
    *("usage_estimated", "key", "client", "trace_id"),
]


def counted(running: RunningGateway, *responses: Response) -> dict[str, float]:
    """The metrics with these requests in them: a request is counted after its last byte, before its line is written."""
    for response in responses:
        running.request_line(response.request_id)
    return running.metrics()


class Metrics(SocketTest):
    def start(self, **variables: object) -> RunningGateway:
        self.engine = self.enter(mock_engine())
        self.name = f"127.0.0.1:{self.engine.port}"
        return self.enter(gateway({"ENGINES": engines(_13b=self.engine.url), **variables}))

    def test_a_good_answer_moves_its_metrics(self) -> None:
        running = self.start()
        before = running.metrics()
        response = running.post()
        after = counted(running, response)
        usage = response.json()["usage"]
        labels = f'path="{CHAT}",model="13b"'
        engine = f'model="13b",engine="{self.name}"'
        for sample, moved in {
            f'gateway_requests_total{{{labels},status="200"}}': 1,
            f"gateway_request_duration_seconds_count{{{labels}}}": 1,
            'gateway_tokens_total{model="13b",kind="prompt"}': usage["prompt_tokens"],
            'gateway_tokens_total{model="13b",kind="completion"}': usage["completion_tokens"],
            f'gateway_engine_requests_total{{{engine},outcome="ok"}}': 1,
            f"gateway_engine_duration_seconds_count{{{engine}}}": 1,
            "gateway_queue_wait_seconds_count": 1,
            "gateway_overhead_seconds_count": 1,
        }.items():
            with self.subTest(sample=sample):
                self.assertEqual(after.get(sample, 0) - before.get(sample, 0), moved)
        self.assertEqual(after[f"gateway_engine_up{{{engine}}}"], 1)
        self.assertEqual(after[f"gateway_engine_inflight{{{engine}}}"], 0)
        self.assertGreater(after[f"gateway_request_duration_seconds_sum{{{labels}}}"], 0)

    def test_a_stream_moves_its_metrics_when_it_has_ended(self) -> None:
        running = self.start()
        gate = self.engine.hold_after(1)
        self.addCleanup(gate.release)
        total = f'gateway_requests_total{{path="{CHAT}",model="13b",status="200"}}'
        with running.connect() as client:
            client.request("POST", CHAT, {**HI, "stream": True})
            client.read_head()
            self.assertIsNotNone(client.read_event())
            self.assertTrue(gate.wait_for_held(1, 5))
            self.assertNotIn(total, running.metrics())
            gate.release()
            self.assertEqual(client.read_events()[-1], "data: [DONE]")
        self.assertEqual(running.wait_for_metric(total, 1), 1)
        after = running.metrics()
        self.assertEqual(after['gateway_time_to_first_token_seconds_count{model="13b"}'], 1)
        self.assertGreater(after['gateway_tokens_total{model="13b",kind="completion"}'], 0)
        self.assertEqual(after['gateway_tokens_total{model="13b",kind="prompt"}'], 2)
        self.assertEqual(after[f'gateway_engine_requests_total{{model="13b",engine="{self.name}",outcome="ok"}}'], 1)

    def test_requests_under_way_are_shown(self) -> None:
        running = self.start(WORKERS=1)
        self.engine.control("hang")
        first, second = self.enter(running.connect()), self.enter(running.connect())
        first.request("POST", CHAT, HI)
        self.assertTrue(self.engine.wait_for_requests(1, 5))
        second.request("POST", CHAT, HI)
        self.assertEqual(running.wait_for_metric("gateway_queue_depth", 1), 1)
        now = running.metrics()
        self.assertEqual(now["gateway_workers_busy"], 1)
        self.assertEqual(now["gateway_requests_in_flight"], 2)
        self.assertEqual(now[f'gateway_engine_inflight{{model="13b",engine="{self.name}"}}'], 1)
        self.engine.control("ok")
        answered = [first.read_response(), second.read_response()]
        self.assertEqual([response.status for response in answered], [200, 200])
        eventually(lambda: running.metrics()["gateway_workers_busy"] == 0)
        now = counted(running, *answered)
        self.assertEqual((now["gateway_queue_depth"], now["gateway_requests_in_flight"]), (0, 0))
        self.assertEqual(now[f'gateway_engine_inflight{{model="13b",engine="{self.name}"}}'], 0)
        self.assertGreater(now["gateway_queue_wait_seconds_sum"], 0)

    def test_retries_and_fallbacks_are_counted(self) -> None:
        good = self.enter(mock_engine())
        bad = self.enter(mock_engine(behaviour="error"))
        running = self.enter(gateway(ENGINES=engines(_70b=dead_url(), _13b=[bad.url, good.url])))
        retried = running.post({**HI, "model": "13b"})
        self.assertEqual(retried.header("x-gateway-attempts"), "2")
        fallen_back = running.post({**HI, "model": "70b"})
        self.assertEqual(fallen_back.header("x-gateway-fallback"), "70b->13b")
        now = counted(running, retried, fallen_back)
        self.assertGreaterEqual(now['gateway_retries_total{model="13b",reason="error"}'], 1)
        self.assertEqual(now['gateway_fallbacks_total{from_model="70b",to_model="13b"}'], 1)
        up = {key: value for key, value in now.items() if key.startswith('gateway_engine_up{model="70b"')}
        self.assertEqual(list(up.values()), [0])
        refused = [key for key in now if "gateway_engine_requests_total" in key and 'outcome="refused"' in key]
        self.assertEqual(len(refused), 1)

    def test_refusals_are_counted_under_what_was_asked(self) -> None:
        running = self.start(API_KEYS="k:sk-123456")
        key = [("X-API-Key", "sk-123456")]
        responses = [
            running.post(),
            running.post(b"{", headers=key),
            running.post({**HI, "model": "13b", "n": 0}, headers=key),
            running.post({**HI, "model": "no-such-model"}, headers=key),
            running.get("/no/such/path"),
        ]
        with running.connect() as client:
            client.send(b"nonsense\r\n\r\n")
            responses.append(client.read_response())
        now = counted(running, *responses)
        totals: dict[tuple[str, str], float] = {}
        for name, value in now.items():
            found = re.match(r'gateway_requests_total\{path="([^"]*)",model="[^"]*",status="([0-9]+)"\}', name)
            if found:
                totals[found[1], found[2]] = totals.get((found[1], found[2]), 0) + value
        self.assertEqual(totals[CHAT, "401"], 1)
        self.assertEqual(totals[CHAT, "400"], 2)
        self.assertEqual(totals[CHAT, "404"], 1)
        self.assertEqual(totals["other", "404"], 1)
        self.assertEqual(totals["other", "400"], 1)

    def test_errors_of_requests_by_an_alias_count_under_the_models_name(self) -> None:
        directory = self.enter(tempfile.TemporaryDirectory())
        path = Path(directory) / "engines.json"
        fleet = {"models": {"13b": {"engines": [dead_url()], "aliases": ["chat"]}}}
        path.write_text(json.dumps(fleet), "utf-8")
        running = self.enter(gateway(ENGINES_FILE=path))
        now = counted(running, running.post({**HI, "model": "chat"}))
        self.assertEqual(now[f'gateway_requests_total{{path="{CHAT}",model="13b",status="502"}}'], 1)
        self.assertFalse([sample for sample in now if 'model="chat' in sample])

        fleet["models"]["13b"]["aliases"] = ["chatty"]
        path.write_text(json.dumps(fleet), "utf-8")
        running.app.reload(reload(running.app.settings, {}, None))
        now = counted(running, running.post({**HI, "model": "chatty"}))
        self.assertEqual(now[f'gateway_requests_total{{path="{CHAT}",model="13b",status="502"}}'], 2)

    def test_a_model_that_is_not_configured_counts_under_other(self) -> None:
        running = self.start()
        now = counted(running, running.post({**HI, "model": "no-such-model"}))
        self.assertEqual(now[f'gateway_requests_total{{path="{CHAT}",model="other",status="404"}}'], 1)

    def test_what_is_refused_at_the_door_counts_under_the_model_that_it_names(self) -> None:
        running = self.start()
        for path, faulty in (
            (CHAT, {**HI, "temperature": 9}),
            (CHAT, {"messages": []}),
            ("/v1/completions", {}),
            ("/v1/embeddings", {"input": []}),
        ):
            named = running.post({**faulty, "model": "13b"}, path)
            unknown = running.post({**faulty, "model": "no-such-model"}, path)
            nameless = [running.post({**faulty, "model": model}, path) for model in (None, "", 13, ["13b"], {"a": 1})]
            self.assertEqual({answer.status for answer in (named, unknown, *nameless)}, {400})
            now = counted(running, named, unknown, *nameless)
            self.assertGreaterEqual(now[f'gateway_requests_total{{path="{path}",model="13b",status="400"}}'], 1)
            self.assertGreaterEqual(now[f'gateway_requests_total{{path="{path}",model="other",status="400"}}'], 1)
            self.assertGreaterEqual(now[f'gateway_requests_total{{path="{path}",model="",status="400"}}'], 5)
            self.assertEqual(running.request_line(named.request_id)["model"], "13b")
            self.assertEqual(running.request_line(unknown.request_id)["model"], "no-such-model")
            self.assertEqual({running.request_line(answer.request_id)["model"] for answer in nameless}, {None})

    def test_what_is_refused_while_draining_counts_under_its_model(self) -> None:
        running = self.start()
        running.app.pipeline.draining = True
        refused = running.post({**HI, "model": "13b"})
        self.assertEqual(refused.error, "draining")
        now = counted(running, refused)
        self.assertEqual(now[f'gateway_requests_total{{path="{CHAT}",model="13b",status="503"}}'], 1)

    def test_what_callers_make_up_makes_no_series(self) -> None:
        running = self.start()
        responses = []
        for number in range(30):
            responses.append(running.post({**HI, "model": f"made-up-{number}"}))
            responses.append(running.get(f"/made/up/{number}"))
            responses.append(running.get(f"/v1/models/made-up-{number}"))
        counted(running, *responses)
        text = running.get("/metrics").body.decode()
        self.assertNotIn("made-up", text)
        self.assertNotIn("/made/up", text)

    def test_unknown_model_names_count_under_other_where_one_engine_serves_all(self) -> None:
        engine = self.enter(mock_engine())
        running = self.enter(gateway(BACKEND_URL=engine.url))
        responses = [running.post({**HI, "model": f"made-up-{number}"}) for number in range(5)]
        self.assertEqual({response.status for response in responses}, {200})
        now = counted(running, *responses)
        self.assertFalse([sample for sample in now if "made-up" in sample])
        self.assertEqual(now[f'gateway_requests_total{{path="{CHAT}",model="other",status="200"}}'], 5)

    def test_the_process_describes_itself(self) -> None:
        running = self.start()
        now = running.metrics()
        for name in ("process_resident_memory_bytes", "process_open_fds"):
            self.assertGreaterEqual(now[name], 0)
        self.assertGreater(now["process_cpu_seconds_total"], 0)
        self.assertLess(abs(now["process_start_time_seconds"] - time.time()), 86_400)

    def test_every_metric_is_declared_with_help_and_type_before_its_samples(self) -> None:
        running = self.start()
        counted(running, running.post())
        declared: dict[str, str] = {}
        helped: set[str] = set()
        for line in running.get("/metrics").body.decode().splitlines():
            if line.startswith("# HELP "):
                helped.add(line.split()[2])
            elif line.startswith("# TYPE "):
                _, _, name, kind = line.split()
                self.assertNotIn(name, declared)
                declared[name] = kind
            else:
                name = re.split(r"[{ ]", line)[0]
                base = re.sub(r"_(bucket|sum|count)\Z", "", name)
                self.assertTrue(name in declared or declared.get(base) == "histogram", line)
        self.assertEqual(helped, set(declared))


class Formats(SocketTest):
    def test_the_text_format_unless_openmetrics_is_asked_for(self) -> None:
        running = self.enter(gateway())
        for accept, kind, end in (
            (None, "text/plain; version=0.0.4; charset=utf-8", b"\n"),
            ("*/*", "text/plain; version=0.0.4; charset=utf-8", b"\n"),
            (OPENMETRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8", b"\n# EOF\n"),
        ):
            answer = running.get("/metrics", [] if accept is None else [("Accept", accept)])
            self.assertEqual((answer.status, answer.header("content-type")), (200, kind))
            self.assertEqual(answer.header("vary"), "Accept, Accept-Encoding")
            self.assertEqual(answer.header("content-encoding"), None)
            self.assertTrue(answer.body.endswith(end))
            self.assertEqual(b"# EOF" in answer.body, len(end) > 1)

    def test_packed_for_who_takes_that(self) -> None:
        running = self.enter(gateway())
        for accept in ("*/*", OPENMETRICS):
            asked = [("Accept", accept), ("Accept-Encoding", "gzip")]
            packed = running.get("/metrics", asked)
            self.assertEqual(packed.header("content-encoding"), "gzip")
            text = gzip.decompress(packed.body)
            self.assertLess(len(packed.body), len(text) / 3)
            names = {line.split()[2] for line in text.decode().splitlines() if line.startswith("# TYPE ")}
            plain = running.get("/metrics", asked[:1]).body.decode()
            self.assertEqual(names, {line.split()[2] for line in plain.splitlines() if line.startswith("# TYPE ")})
            head = running.ask("HEAD", "/metrics", None, asked)
            self.assertEqual((head.status, head.header("content-encoding"), head.body), (200, "gzip", b""))

    def test_whose_an_engine_is_stands_in_opentelemetrys_labels(self) -> None:
        engine = self.enter(mock_engine())
        directory = self.enter(tempfile.TemporaryDirectory())
        path = Path(directory) / "engines.json"
        fleet = {
            "models": {
                "13b": {"engines": [{"url": engine.url, "provider": "vllm"}]},
                "7b": {"engines": [{"url": engine.url, "model": "13b"}]},
                "echo": {"engines": ["echo:"]},
            }
        }
        path.write_text(json.dumps(fleet), "utf-8")
        running = self.enter(gateway(ENGINES_FILE=path))
        now = counted(running, *(running.post({**HI, "model": model}) for model in fleet["models"]))
        for model, provider in (("13b", "vllm"), ("7b", "openai"), ("echo", "gateway")):
            labels = f'gen_ai_provider_name="{provider}",gen_ai_request_model="{model}"'
            self.assertEqual(
                [value for name, value in now.items() if labels in name and "duration_seconds_count" in name], [1]
            )


class LogLines(SocketTest):
    def test_the_keys_are_exactly_those_of_the_contract(self) -> None:
        engine = self.enter(mock_engine())
        running = self.enter(gateway(ENGINES=engines(_13b=engine.url)))
        for response in (running.post(), running.post({**HI, "stream": True}), running.post({})):
            self.assertEqual(sorted(running.request_line(response.request_id)), sorted(LOG_KEYS))
        untraced = running.get("/v1/models")  # no engine is asked for it
        self.assertEqual(sorted([*running.request_line(untraced.request_id), "trace_id"]), sorted(LOG_KEYS))

    def test_a_good_answers_line_is_complete(self) -> None:
        engine = self.enter(mock_engine())
        running = self.enter(gateway(ENGINES=engines(_13b=engine.url)))
        response = running.post()
        line = running.request_line(response.request_id)
        usage = response.json()["usage"]
        expected: dict[str, Any] = {
            "level": "info",
            "event": "request",
            "request_id": response.request_id,
            "method": "POST",
            "path": CHAT,
            "status": 200,
            "error": None,
            "ttft_ms": None,
            "stream": False,
            "model": "13b",
            "engine": f"127.0.0.1:{engine.port}",
            "attempts": 1,
            "fallback": None,
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "usage_estimated": False,
            "key": None,
            "client": "127.0.0.1",
        }
        self.assertEqual({key: line[key] for key in expected}, expected)
        self.assertRegex(line["ts"], r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z\Z")
        self.assertGreater(line["engine_ms"], 0)
        self.assertGreaterEqual(line["queue_ms"], 0)
        self.assertGreaterEqual(line["latency_ms"], line["engine_ms"] + line["queue_ms"] - 0.01)

    def test_a_streams_line_comes_after_its_end(self) -> None:
        engine = self.enter(mock_engine())
        running = self.enter(gateway(ENGINES=engines(_13b=engine.url)))
        gate = engine.hold_after(1)
        self.addCleanup(gate.release)
        with running.connect() as client:
            client.request("POST", CHAT, {**HI, "stream": True}, [("X-Request-ID", "the-stream")])
            client.read_head()
            client.read_event()
            self.assertTrue(gate.wait_for_held(1, 5))
            other = running.post({}).request_id  # whose line is written behind anything logged before it
            running.request_line(other)
            self.assertEqual(running.request_lines("the-stream"), [])
            gate.release()
            client.read_events()
        line = running.request_line("the-stream")
        self.assertEqual((line["status"], line["stream"], line["error"]), (200, True, None))
        self.assertGreater(line["ttft_ms"], 0)
        self.assertGreaterEqual(line["latency_ms"], line["ttft_ms"])
        self.assertEqual(line["prompt_tokens"], 2)

    def test_an_errors_line_names_the_error_and_the_model_asked_for(self) -> None:
        running = self.enter(gateway(ENGINES=engines(_70b=dead_url(), _13b=dead_url())))
        response = running.post({**HI, "model": "70b"})
        line = running.request_line(response.request_id)
        self.assertEqual((line["status"], line["error"], line["level"]), (502, "backend_unavailable", "warning"))
        self.assertEqual(line["model"], "70b")
        self.assertEqual(line["attempts"], 2)

    def test_a_model_that_is_not_configured_is_named_as_it_was_asked_for(self) -> None:
        running = self.enter(gateway(ENGINES=engines(_13b=dead_url())))
        line = running.request_line(running.post({**HI, "model": "no such\nmodel"}).request_id)
        self.assertEqual((line["error"], line["model"], line["engine"]), ("model_not_found", "no such\nmodel", None))

    def test_names_longer_than_any_models_are_cut(self) -> None:
        longest, endless = "n" * 256, "n" * 100_000
        running = self.enter(gateway(ENGINES=f"{longest}={dead_url()}"))
        for name, shown, error in (
            (longest, longest, "backend_unavailable"),
            (endless, longest + "…", "model_not_found"),
        ):
            line = running.request_line(running.post({**HI, "model": name}).request_id)
            self.assertEqual((line["error"], line["model"]), (error, shown))
        anything = self.enter(gateway())
        line = anything.request_line(anything.post({**HI, "model": endless}).request_id)
        self.assertEqual((line["status"], line["model"]), (200, longest + "…"))

    def test_every_request_has_exactly_one_line(self) -> None:
        engine = self.enter(mock_engine())
        dead = dead_url()
        running = self.enter(
            gateway(ENGINES=engines(_13b=engine.url, _7b=dead), FALLBACK="off", API_KEYS="k:sk-1", LOG_LEVEL="debug")
        )
        key = ("X-API-Key", "sk-1")
        sent = [
            ("POST", CHAT, HI, True),
            ("POST", CHAT, {**HI, "stream": True}, True),
            ("POST", CHAT, {**HI, "model": "7b"}, True),
            ("POST", CHAT, {**HI, "model": "7b", "stream": True}, True),
            ("POST", CHAT, {**HI, "model": "nope"}, True),
            ("POST", CHAT, b"{", True),
            ("POST", CHAT, HI, False),
            ("PUT", CHAT, None, True),
            ("OPTIONS", CHAT, None, False),
            ("GET", "/nope", None, True),
            ("GET", "/healthz", None, False),
            ("GET", "/metrics", None, False),
            ("HEAD", "/v1/models", None, True),
            ("GET", "/health", None, True),
        ]
        for number, (method, path, body, with_key) in enumerate(sent):
            headers = [("X-Request-ID", f"r{number}"), *([key] if with_key else [])]
            running.ask(method, path, body, headers)
        for number in range(len(sent)):
            running.request_line(f"r{number}")
        running.stop()  # writes what is left
        ids = [line["request_id"] for line in running.request_lines()]
        self.assertEqual(sorted(ids), sorted(f"r{number}" for number in range(len(sent))))

    def test_probes_are_not_in_the_way_at_the_usual_level(self) -> None:
        running = self.enter(gateway())
        for _ in range(3):
            running.get("/healthz")
            running.get("/metrics")
        running.request_line(running.post().request_id)
        self.assertEqual([line["path"] for line in running.request_lines()], [CHAT])

    def test_the_path_is_logged_without_its_query(self) -> None:
        running = self.enter(gateway())
        response = running.ask("POST", f"{CHAT}?token=abc-in-query", HI)
        self.assertEqual(running.request_line(response.request_id)["path"], CHAT)
        self.assertNotIn("abc-in-query", running.log.getvalue())

    def test_no_request_can_forge_a_line(self) -> None:
        running = self.enter(gateway())
        response = running.post({**HI, "model": 'x"}\n{"event": "request", "request_id": "forged"}'})
        running.request_line(response.request_id)
        self.assertEqual(running.request_lines("forged"), [])

    def test_no_prompt_and_no_answer_is_logged(self) -> None:
        engine = self.enter(mock_engine())
        failing = self.enter(mock_engine(behaviour="bad_request"))
        running = self.enter(
            gateway(ENGINES=engines(_13b=engine.url, _7b=failing.url, echo="echo:"), LOG_LEVEL="debug", FALLBACK="off")
        )
        secret = "zanzibar-marmalade"
        body = {"messages": [{"role": "user", "content": secret}]}
        ids = [
            running.post(body).request_id,
            running.post({**body, "stream": True}).request_id,
            running.post({**body, "model": "7b"}).request_id,
            running.post({**body, "model": "echo"}).request_id,
            running.post({**body, "temperature": 9}).request_id,
            running.post({**body, "stop": [secret] * 9}).request_id,
            running.post({"messages": [{"role": secret, "content": secret}]}).request_id,
            running.post(json.dumps(body).encode()[:-1]).request_id,
            running.post({"prompt": secret}, "/v1/completions").request_id,
            running.post({"input": secret}, "/v1/embeddings").request_id,
        ]
        for request_id in ids:
            running.request_line(request_id)
        self.assertNotIn(secret, running.log.getvalue())
        self.assertNotIn("Mock answer", running.log.getvalue())
        self.assertNotIn(secret, running.get("/metrics").body.decode())

    def test_the_text_format_has_one_line_a_request_too(self) -> None:
        running = self.enter(gateway(LOG_FORMAT="text"))
        request_id = running.post().request_id
        eventually(lambda: request_id in running.log.getvalue())
        lines = [line for line in running.log.getvalue().splitlines() if request_id in line]
        self.assertEqual(len(lines), 1)
        self.assertIn(" 200 ", lines[0])

    def test_no_name_of_a_model_can_break_the_text_format(self) -> None:
        running = self.enter(gateway(ENGINES="13b=echo:", LOG_FORMAT="text"))
        wild = "a\n2026 INFO POST /forged 200 request_id=x\r\x1b[2J\x00\x7f\x85\u2028\ud800 b=c"
        request_id = running.post({**HI, "model": wild}).request_id
        eventually(lambda: request_id in running.log.getvalue())
        (line,) = [line for line in running.log.getvalue().splitlines() if request_id in line]
        self.assertIn(" 404 ", line)
        self.assertIn(f"  {json.dumps(wild)} ", line)
        self.assertTrue(line.isascii() and line.isprintable(), line)


if __name__ == "__main__":
    unittest.main()
