"""What an operator does while requests run: draining engines, reloading, repeating a run, replaying its decisions."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from tests.resilience import ResilienceTest, ask, fleet
from tests.support import (
    CHAT,
    HAS_SIGHUP,
    ROOT,
    GatewayProcess,
    Header,
    Response,
    RunningGateway,
    eventually,
    gateway_process,
    process_environment,
)

ADMIN: list[Header] = [("Authorization", "Bearer sk-admin-1")]
USER: list[Header] = [("Authorization", "Bearer sk-user-1")]
KEYS = {"ADMIN_KEYS": "root:sk-admin-1", "API_KEYS": "u:sk-user-1"}


class OperatorTest(ResilienceTest):
    def order(
        self, running: RunningGateway, what: str, headers: Optional[list[Header]] = None, body: Any = None
    ) -> Response:
        """POST /admin/engines/..."""
        return running.ask("POST", f"/admin/engines/{what}", body, ADMIN if headers is None else headers)

    def shown(self, running: RunningGateway, engine_id: str, model: str = "m") -> dict[str, Any]:
        """What /health says of an engine."""
        found: dict[str, dict[str, Any]] = {
            e["id"]: e for e in running.get("/health", ADMIN).json()["models"][model]["engines"]
        }
        return found[engine_id]


class DrainTest(OperatorTest):
    def test_only_an_admin_may(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [{"url": engine.url, "id": "a"}]}}, **KEYS)
        for action in ("drain", "enable"):
            self.assert_error(self.order(running, f"a/{action}", []), 401, "unauthorized")
            self.assert_error(self.order(running, f"a/{action}", USER), 403, "forbidden")
        self.assertEqual(self.shown(running, "a")["state"], "up")
        for action in ("drain", "enable"):
            self.assertEqual(self.order(running, f"a/{action}").status, 200)

    def test_what_is_not_there(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [{"url": engine.url, "id": "a"}]}}, **KEYS)
        for what in ("b/drain", "a/explode", "a", "", "a/drain?model=other"):
            self.assert_error(self.order(running, what), 404, "not_found")
        for method in ("GET", "PUT", "DELETE"):
            answer = running.ask(method, "/admin/engines/a/drain", None, ADMIN)
            self.assert_error(answer, 405, "method_not_allowed")
            self.assertIn("POST", answer.header("allow") or "")
        self.assertEqual(self.shown(running, "a")["state"], "up")

    def test_without_authentication_everybody_may(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}}, AUTH="off")
        self.assertEqual(self.order(running, f"127.0.0.1:{engine.port}/drain", []).status, 200)
        self.assertEqual(self.states(running), ["draining"])

    def test_a_page_of_another_origin_may_not_even_where_no_key_is_needed(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}}, AUTH="off", CORS_ORIGINS="https://console.example")
        drain = f"127.0.0.1:{engine.port}/drain"
        self.assertEqual(self.order(running, drain, [("Origin", "https://evil.example")]).status, 403)
        self.assertEqual(self.states(running), ["up"])
        self.assertEqual(self.order(running, drain, [("Origin", "https://console.example")]).status, 200)

    def test_a_draining_engine_finishes_what_it_has_and_gets_nothing_new(self) -> None:
        leaving, staying = self.engine(), self.engine()
        specs = [{"url": leaving.url, "id": "leaving"}, {"url": staying.url, "id": "staying"}]
        running = self.serve({"m": {"engines": specs}}, HEALTH_INTERVAL=0.05, **KEYS)
        with leaving.hold_after(1) as gate:
            stream = self.begin(running, ask(stream=True), USER)
            stream.read_head()
            self.assertTrue(gate.wait_for_held(1, 5))
            answer = self.order(running, "leaving/drain").json()
            self.assertEqual((answer["engine"], answer["draining"]), ("leaving", True))
            self.assertEqual(self.shown(running, "leaving")["in_flight"], 1)
            probes = leaving.stats()["probes"]
            for _ in range(10):
                self.assertEqual(running.post(ask(), headers=USER).header("x-gateway-engine"), "staying")
            eventually(lambda: leaving.stats()["probes"] >= probes + 2)  # a good probe does not bring it back
            self.assertEqual(self.shown(running, "leaving")["state"], "draining")
            self.assertEqual(running.metrics()['gateway_engine_up{model="m",engine="leaving"}'], 0)
        self.assertEqual(stream.read_events()[-1], "data: [DONE]")
        self.assertEqual(leaving.stats()["requests"], 1)
        self.order(running, "leaving/enable")
        self.assertEqual(self.shown(running, "leaving")["state"], "up")
        asked = {running.post(ask(), headers=USER).header("x-gateway-engine") for _ in range(4)}
        self.assertEqual(asked, {"leaving", "staying"})
        eventually(lambda: self.changes(running) == [("up", "draining"), ("draining", "up")])

    def test_draining_the_last_engine_leaves_the_other_models(self) -> None:
        engine, other = self.engine(), self.engine(model="other")
        models = {"m": {"engines": [{"url": engine.url, "id": "a"}]}, "other": {"engines": [other.url]}}
        running = self.serve(models, AUTH="off")
        self.order(running, "a/drain", [])
        answer = running.post(ask())
        self.assertEqual((answer.status, answer.header("x-gateway-fallback")), (200, "m->other"))
        answer = running.post(ask(), headers=[("X-Gateway-Fallback", "off")])
        self.assert_error(answer, 502, "backend_unavailable")
        self.assertEqual(engine.stats()["requests"], 0)

    def test_those_who_wait_for_a_draining_engine_go_elsewhere(self) -> None:
        engine, other = self.engine("hang"), self.engine(model="other")
        models = {
            "m": {"engines": [{"url": engine.url, "id": "a", "max_concurrency": 1}]},
            "other": {"engines": [other.url]},
        }
        running = self.serve(models, AUTH="off")
        first = self.begin(running)
        self.assertTrue(engine.wait_for_requests(1, 5))
        second = self.begin(running)
        self.wait_for_waiting(running, 1)
        self.order(running, "a/drain", [])
        self.assert_answered_by(second.read_response(), other.port, attempts=1)
        engine.control("ok")
        self.assertEqual(first.read_response().header("x-gateway-engine"), "a")

    def test_one_id_in_two_models(self) -> None:
        engine = self.engine()
        spec = {"url": engine.url, "id": "gpu/1"}
        running = self.serve({"m": {"engines": [spec]}, "n": {"engines": [spec]}}, AUTH="off")
        self.assertEqual(self.order(running, "gpu%2F1/drain?model=n", []).json()["models"], ["n"])
        self.assertEqual(self.states(running), ["up", "draining"])
        self.assertEqual(sorted(self.order(running, "gpu%2F1/drain", []).json()["models"]), ["m", "n"])
        self.assertEqual(self.states(running), ["draining", "draining"])


class WeightTest(OperatorTest):
    def asked(self, running: RunningGateway, count: int) -> list[int]:
        """How many of so many requests `a` got, and `b`."""
        answers = [running.post(ask(), headers=USER).header("x-gateway-engine") for _ in range(count)]
        return [answers.count(name) for name in "ab"]

    def two(self, **options: Any) -> RunningGateway:
        specs = [{"url": self.engine().url, "id": name} for name in "ab"]
        return self.serve({"m": {"engines": specs}}, **KEYS, **options)

    def test_the_next_request_goes_by_it_and_health_and_the_log_tell_it(self) -> None:
        running = self.two()
        self.assertEqual(self.asked(running, 4), [2, 2])
        answer = self.order(running, "b/weight", body={"weight": 3})
        self.assertEqual((answer.status, answer.json()), (200, {"engine": "b", "weight": 3, "models": ["m"]}))
        self.assertEqual(self.asked(running, 8), [2, 6])
        self.assertEqual([self.shown(running, name)["weight"] for name in "ab"], [1, 3])

        def audited() -> list[tuple[str, str, int, list[str]]]:
            lines = [line for line in running.log_lines() if line.get("action") == "weigh_engine"]
            return [(line["key"], line["engine"], line["weight"], line["models"]) for line in lines]

        eventually(lambda: audited() == [("root", "b", 3, ["m"])])

    def test_only_an_admin_may(self) -> None:
        running = self.two()
        body = {"weight": 2}
        self.assert_error(self.order(running, "a/weight", [], body), 401, "unauthorized")
        self.assert_error(self.order(running, "a/weight", USER, body), 403, "forbidden")
        self.assertEqual(self.shown(running, "a")["weight"], 1)

    def test_what_is_not_there(self) -> None:
        running = self.two()
        for what in ("c/weight", "a/weight?model=other", "a/weights"):
            self.assert_error(self.order(running, what, body={"weight": 2}), 404, "not_found")
        self.assert_error(running.ask("GET", "/admin/engines/a/weight", None, ADMIN), 405, "method_not_allowed")
        self.assertEqual([self.shown(running, name)["weight"] for name in "ab"], [1, 1])

    def test_a_weight_that_the_engines_file_may_not_have_is_refused_with_every_fault(self) -> None:
        running = self.two()
        for weight in (0, -1, 1_000_001, 1.5, 2.0, True, "2", None, [2]):
            with self.subTest(weight=weight):
                answer = self.order(running, "a/weight", body={"weight": weight})
                self.assert_error(answer, 400, "invalid_body")
                fault = f"weight: must be an integer from 1 to 1000000, not {json.dumps(weight)}"
                self.assertEqual(answer.json()["message"], fault)
        self.assert_error(self.order(running, "a/weight", body={}), 400, "invalid_body")
        answer = self.order(running, "a/weight", body={"wieght": 2, "model": "m"})
        known = "is not known; known: weight"
        self.assertEqual(answer.json()["message"], f"wieght: {known}; model: {known}; weight: is missing")
        self.assert_error(self.order(running, "a/weight", body=[2]), 400, "invalid_body")
        self.assert_error(self.order(running, "a/weight", body=b"{"), 400, "invalid_json")
        self.assert_error(self.order(running, "a/weight"), 411, "length_required")
        self.assertEqual(self.shown(running, "a")["weight"], 1)

    def test_one_id_in_two_models(self) -> None:
        spec = {"url": self.engine().url, "id": "gpu/1"}
        running = self.serve({"m": {"engines": [spec]}, "n": {"engines": [spec]}}, AUTH="off")
        one = self.order(running, "gpu%2F1/weight?model=n", [], {"weight": 2}).json()
        self.assertEqual(one, {"engine": "gpu/1", "weight": 2, "models": ["n"]})
        self.assertEqual([self.shown(running, "gpu/1", model)["weight"] for model in "mn"], [1, 2])
        self.assertEqual(sorted(self.order(running, "gpu%2F1/weight", [], {"weight": 3}).json()["models"]), ["m", "n"])
        self.assertEqual([self.shown(running, "gpu/1", model)["weight"] for model in "mn"], [3, 3])


class Load:
    """Clients that ask without a pause until they are told to stop, each on one connection."""

    def __init__(self, process: GatewayProcess, clients: int) -> None:
        self.bad: list[Any] = []
        self.asked = [0] * clients
        self._stop = threading.Event()
        self._process = process
        self._threads = [
            threading.Thread(target=self._ask, args=(number,), name=f"load-{number}") for number in range(clients)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _ask(self, number: int) -> None:
        try:
            with self._process.connect() as client:
                while not self._stop.is_set():
                    stream = self.asked[number] % 2 == 1
                    answer = client.post(ask(stream=stream))
                    if answer.status != 200 or (stream and not answer.body.endswith(b"data: [DONE]\n\n")):
                        self.bad.append((answer.status, answer.body))
                    self.asked[number] += 1
        except Exception as error:
            self.bad.append(error)

    def wait_for_more(self, each: int) -> None:
        """Wait until every client has asked so many more requests."""
        goals = [asked + each for asked in self.asked]
        eventually(lambda: self.bad or all(asked >= goal for asked, goal in zip(self.asked, goals)))


@unittest.skipUnless(HAS_SIGHUP, "SIGHUP")
class ReloadTest(ResilienceTest):
    def test_engines_come_and_go_and_change_their_weight_and_no_request_is_lost(self) -> None:
        engines = [self.engine(), self.engine(), self.engine()]
        specs = [{"url": e.url, "id": f"e{n}"} for n, e in enumerate(engines)]

        def model(*chosen: dict[str, Any]) -> str:
            return fleet({"m": {"engines": list(chosen)}})

        process = self.enter(
            gateway_process(ENGINES_FILE="engines.json", files={"engines.json": model(specs[0], specs[1])})
        )
        reloads = 0

        def rewrite(text: str) -> None:
            nonlocal reloads
            reloads += 1
            (process.directory / "engines.json").write_text(text, "utf-8")
            process.signal(signal.SIGHUP)
            eventually(lambda: sum(line["event"] == "reloaded" for line in process.log_lines()) == reloads)

        with Load(process, 8) as load:
            load.wait_for_more(5)
            rewrite(model(*specs))
            self.assertTrue(engines[2].wait_for_requests(5, 5))
            rewrite(model(specs[1], specs[2]))
            load.wait_for_more(1)  # what e0 had is answered
            self.assertTrue(engines[0].wait_for_idle(5))
            asked = engines[0].stats()["requests"]
            load.wait_for_more(5)
            self.assertEqual(engines[0].stats()["requests"], asked)
            rewrite(model({**specs[1], "weight": 9}, specs[2]))
            load.wait_for_more(1)
            before = [e.stats()["requests"] for e in engines]
            load.wait_for_more(25)
            more = [e.stats()["requests"] - b for e, b in zip(engines, before)]
            rewrite(model(specs[0]))
            load.wait_for_more(5)
        self.assertEqual(load.bad, [])
        self.assertEqual(more[0], 0)
        self.assertGreater(more[1], 6 * more[2])
        self.assertGreater(more[2], 0)

        def held() -> list[tuple[str, int]]:
            health = process.ask("GET", "/health").json()
            return [(e["id"], e["in_flight"]) for e in health["models"]["m"]["engines"]]

        eventually(lambda: held() == [("e0", 0)])  # a stream's place is given back after its last byte

    def test_the_files_weights_are_set_again_in_place_of_an_operators(self) -> None:
        engines = [{"url": self.engine().url, "id": name, "weight": 2} for name in "ab"]
        text = fleet({"m": {"engines": engines}})
        process = self.enter(gateway_process(ENGINES_FILE="engines.json", files={"engines.json": text}))

        def weights() -> list[int]:
            return [e["weight"] for e in process.ask("GET", "/health").json()["models"]["m"]["engines"]]

        answer = process.ask("POST", "/admin/engines/b/weight", {"weight": 7})
        self.assertEqual((answer.status, weights()), (200, [2, 7]))
        process.signal(signal.SIGHUP)
        eventually(lambda: any(line["event"] == "reloaded" for line in process.log_lines()))
        self.assertEqual(weights(), [2, 2])

    def test_those_who_wait_for_an_engine_that_is_removed_get_the_new_one(self) -> None:
        old, new = self.engine("hang"), self.engine()
        text = fleet({"m": {"engines": [{"url": old.url, "max_concurrency": 1}]}})
        process = self.enter(gateway_process(ENGINES_FILE="engines.json", files={"engines.json": text}))
        first, second = self.enter(process.connect()), self.enter(process.connect())
        first.request("POST", CHAT, ask())
        self.assertTrue(old.wait_for_requests(1, 5))
        second.request("POST", CHAT, ask())
        waiting = b'gateway_engine_queue_depth{model="m"} 1'
        eventually(lambda: waiting in process.ask("GET", "/metrics").body)
        (process.directory / "engines.json").write_text(fleet({"m": {"engines": [new.url]}}), "utf-8")
        process.signal(signal.SIGHUP)
        self.assert_answered_by(second.read_response(), new.port, attempts=1)
        old.control("ok")
        self.assert_answered_by(first.read_response(), old.port, attempts=1)


class SeedTest(ResilienceTest):
    def test_the_same_seed_makes_the_same_choices(self) -> None:
        # Choices depend on time as well: on how long ago a failure was. On a busy machine that is not the same twice.
        self.enter(mock.patch("gateway.routing.engine.SUSPECT_S", math.inf))
        patience = {"BREAKER_OPEN_SECONDS": 600, "BREAKER_MAX_OPEN_SECONDS": 600, "BREAKER_WINDOW": 600}
        engines = [self.engine(), self.engine("flaky", seed=3), self.engine()]
        for strategy in ("random", "power_of_two"):
            with self.subTest(strategy=strategy):
                runs = []
                for seed in (7, 7, 8):
                    engines[1].control("flaky", seed=3)
                    specs = [{"url": e.url, "id": f"e{n}", "weight": n + 1} for n, e in enumerate(engines)]
                    running = self.serve({"m": {"engines": specs, "strategy": strategy}}, ROUTING_SEED=seed, **patience)
                    with running.connect() as client:
                        answers = [client.post(ask()) for _ in range(40)]
                    runs.append([(a.header("x-gateway-engine"), a.header("x-gateway-attempts")) for a in answers])
                self.assertEqual(runs[0], runs[1])
                self.assertNotEqual(runs[0], runs[2])


class ReplayTest(ResilienceTest):
    @contextlib.contextmanager
    def recorded(self, **variables: object) -> Iterator[GatewayProcess]:
        """A gateway over engines of which most misbehave, that writes its decisions to decisions.jsonl."""
        engines = [
            self.engine(),
            self.engine("flaky", seed=1),
            self.engine("rate_limit", retry_after=0.05),
            self.engine("error", status=503),
        ]
        specs = [{"url": e.url, "id": f"e{n}", "weight": 4 - n, "max_concurrency": 2} for n, e in enumerate(engines)]
        self.text = fleet(
            {
                "m": {"engines": specs, "hedge_after_ms": 20, "hedge_ratio": 0.5},
                "other": {"engines": [engines[0].url]},
            }
        )
        with gateway_process(
            {"STRATEGY": "random", "BREAKER_OPEN_SECONDS": "0.1", **variables},
            ENGINES_FILE="engines.json",
            DECISION_LOG="decisions.jsonl",
            HEALTH_INTERVAL="0.05",
            files={"engines.json": self.text},
        ) as process:
            yield process

    def ask_many(self, process: GatewayProcess, clients: int, each: int) -> None:
        """So many requests of every kind at the same time; the engines' faults may reach some of them."""

        def ask_some() -> None:
            with process.connect() as client:
                for number in range(each):
                    client.post(ask(f"question {number}", stream=number % 3 == 0))

        threads = [threading.Thread(target=ask_some, name=f"asker-{n}") for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    def replay(self, path: Path) -> tuple[int, str]:
        """`python main.py replay` on a file: exit status and what it printed."""
        done = subprocess.run(
            [sys.executable, str(ROOT / "main.py"), "replay", str(path)],
            env=process_environment({}),
            capture_output=True,
            timeout=30,
            check=False,
        )
        self.assertNotIn(b"Traceback", done.stderr)
        return done.returncode, done.stdout.decode() + done.stderr.decode()

    def end(self, process: GatewayProcess) -> list[str]:
        """Drain and stop it; the lines of its decision log."""
        process.signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)
        return (process.directory / "decisions.jsonl").read_text("utf-8").splitlines()

    @unittest.skipUnless(os.name == "posix", "signals as POSIX has them")
    def test_a_run_full_of_faults_is_repeated_decision_by_decision(self) -> None:
        with self.recorded(ROUTING_SEED=5) as process:
            self.ask_many(process, clients=12, each=25)
            lines = self.end(process)
            path = process.directory / "decisions.jsonl"
            first = json.loads(lines[0])
            self.assertEqual((first["op"], first["seed"]), ("start", 5))
            operations = {json.loads(line)["op"] for line in lines}
            self.assertLessEqual({"acquire", "settle", "retry", "probe", "join", "leave"}, operations)
            self.assertEqual(self.replay(path), (0, f"0 differences in {len(lines) - 1}\n"))
            first["models"]["m"]["engines"][0]["weight"] = 1
            path.write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n", "utf-8")
            status, told = self.replay(path)
            self.assertEqual(status, 1)
            self.assertRegex(told, r"\Aafter [0-9]+ equal decisions, line [0-9]+: [a-z_]+ of m: .*\bout: recorded ")

    @unittest.skipUnless(os.name == "posix", "signals as POSIX has them")
    def test_weights_that_an_operator_sets_are_a_part_of_it(self) -> None:
        text = fleet({"m": {"engines": [{"url": self.engine().url, "id": name} for name in "abc"]}})
        for strategy in ("round_robin", "random", "prefix_affinity"):
            options = {"STRATEGY": strategy, "ENGINES_FILE": "engines.json", "DECISION_LOG": "decisions.jsonl"}
            with self.subTest(strategy=strategy), gateway_process(options, files={"engines.json": text}) as process:
                self.ask_many(process, clients=6, each=5)
                with Load(process, 6) as load:
                    for engine, weight in (("a", 4), ("b", 9), ("a", 1)):
                        answer = process.ask("POST", f"/admin/engines/{engine}/weight", {"weight": weight})
                        self.assertEqual(answer.status, 200)
                        load.wait_for_more(3)
                lines = self.end(process)
                self.assertEqual(sum('"op":"weight"' in line for line in lines), 3)
                path = process.directory / "decisions.jsonl"
                self.assertEqual(self.replay(path), (0, f"0 differences in {len(lines) - 1}\n"))
                path.write_text("\n".join(line for line in lines if '"op":"weight"' not in line) + "\n", "utf-8")
                self.assertEqual(self.replay(path)[0], 1)  # without them it comes out otherwise

    @unittest.skipUnless(HAS_SIGHUP, "SIGHUP")
    def test_reloads_are_a_part_of_it(self) -> None:
        with self.recorded() as process:
            file = process.directory / "engines.json"
            models = json.loads(self.text)["models"]
            less = {"engines": [{**models["m"]["engines"][0], "weight": 9}, models["m"]["engines"][1]]}
            stages = [
                fleet({"m": less, "other": models["other"]}),  # engines leave with requests on them
                fleet({"m": less, "other": models["other"], "new": {"engines": models["other"]["engines"]}}),
                fleet({"m": models["m"]}),  # models leave
                self.text,
            ]
            with Load(process, 6) as load:
                for number, stage in enumerate(stages, 1):
                    load.wait_for_more(3)
                    file.write_text(stage, "utf-8")
                    process.signal(signal.SIGHUP)
                    eventually(lambda n=number: sum(x["event"] == "reloaded" for x in process.log_lines()) == n)
                load.wait_for_more(3)
            lines = self.end(process)
            count = len(lines) - 1
            self.assertEqual(self.replay(process.directory / "decisions.jsonl"), (0, f"0 differences in {count}\n"))


if __name__ == "__main__":
    unittest.main()
