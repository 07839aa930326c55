"""One engine that serves every name, by names of its own: what is listed, what a request without a name gets."""

from __future__ import annotations

import json
import unittest
import urllib.parse
from typing import Any, Optional
from unittest import mock

from gateway.inference import EngineSpec, GatewayError, InferenceFactory
from gateway.routing.specs import FleetSpec, model_from
from gateway.upstream import listing as upstream_listing
from tests.access import AccessTest
from tests.naming_engine import NamingEngine, listing
from tests.support import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    HI,
    TIMEOUT_S,
    RunningGateway,
    SocketTest,
    chunk_of,
    dead_url,
    eventually,
    gateway,
    mock_engine,
)

QWEN = "Qwen/Qwen2.5-7B-Instruct"
THREE = ("llama3.2:latest", QWEN, "nomic-embed-text")


class OwnNamesTest(SocketTest):
    def engine(self, *names: str) -> NamingEngine:
        return self.enter(NamingEngine(*names))

    def serve(self, url: str, **variables: object) -> RunningGateway:
        """A gateway before that engine, of which the first round has ended."""
        running = self.enter(gateway(BACKEND_URL=url, **variables))
        self.assertTrue(running.app.factory.wait_probed(TIMEOUT_S))
        return running

    def listed(self, running: RunningGateway) -> list[str]:
        answer = running.get("/v1/models")
        self.assertEqual((answer.status, answer.json()["object"]), (200, "list"))
        return [entry["id"] for entry in answer.json()["data"]]


class ListTest(OwnNamesTest):
    def test_the_models_are_those_that_the_engine_lists(self) -> None:
        engine = self.engine(*THREE)
        assert isinstance(engine.listed, dict)
        engine.listed["data"][1]["max_model_len"] = 32768
        running = self.serve(engine.url)
        answer = running.get("/v1/models").json()
        self.assertEqual([entry["id"] for entry in answer["data"]], list(THREE))
        self.assertEqual({(entry["object"], entry["available"]) for entry in answer["data"]}, {("model", True)})
        self.assertEqual([entry.get("max_model_len") for entry in answer["data"]], [None, 32768, None])
        self.assertEqual(len(engine.asked), 1)  # not for each request

    def test_each_is_found_by_its_name_and_no_other_is(self) -> None:
        running = self.serve(self.engine(*THREE).url)
        entries = running.get("/v1/models").json()["data"]
        for entry in entries:
            for path in (urllib.parse.quote(entry["id"], safe=""), urllib.parse.quote(entry["id"], safe="/:")):
                with self.subTest(path):
                    answer = running.get(f"/v1/models/{path}")
                    self.assertEqual((answer.status, answer.json()), (200, entry))
        for path in ("default", "gpt-4o", "Qwen", "Qwen/"):
            with self.subTest(path):
                answer = running.get(f"/v1/models/{path}")
                self.assertEqual((answer.status, answer.error), (404, "model_not_found"))

    def test_an_engine_that_lists_nothing_is_listed_as_one(self) -> None:
        huge = {"data": [{"id": "a"}], "more": "x" * upstream_listing.LIST_MAX_BYTES}
        cases: dict[str, Any] = {"empty": listing(), "rubbish": b"<html>", "not found": None, "huge": huge}
        for name, answer in cases.items():
            with self.subTest(name):
                engine = self.engine("m")
                engine.listed = answer
                running = self.serve(engine.url)
                self.assertEqual(self.listed(running), ["default"])
                self.assertEqual(running.get("/v1/models/default").status, 200)
                self.assertEqual(running.post({**HI, "model": "m"}).status, 200)
                refused = running.post()
                self.assertEqual((refused.status, refused.error), (404, "backend_rejected"))
                self.assertEqual(engine.models, ["m", None])

    def test_one_that_refuses_to_say_is_too(self) -> None:
        engine = self.engine("m")
        engine.status = 401
        running = self.serve(engine.url)
        self.assertEqual(self.listed(running), ["default"])
        self.assertEqual(running.get("/readyz").status, 200)

    def test_the_mock_engine_is_listed(self) -> None:
        running = self.serve(self.enter(mock_engine("70b")).url, HEALTH_INTERVAL=60)
        self.assertEqual(self.listed(running), ["70b"])

    def test_echo_lists_itself(self) -> None:
        running = self.enter(gateway())
        self.assertEqual(self.listed(running), ["echo"])

    def test_a_fleet_with_names_asks_no_engine_for_its_own(self) -> None:
        engine = self.engine(QWEN)
        running = self.enter(gateway(ENGINES=f"m={engine.url}", HEALTH_INTERVAL=60))
        self.assertTrue(running.app.factory.wait_probed(TIMEOUT_S))
        self.assertEqual(self.listed(running), ["m"])
        self.assertEqual(engine.asked, [])


class UnnamedTest(OwnNamesTest):
    def test_a_request_without_a_model_gets_the_first_that_the_engine_lists(self) -> None:
        engine = self.engine(*THREE)
        running = self.serve(engine.url)
        for path, body in (
            (CHAT, HI),
            (COMPLETIONS, {"prompt": "hi"}),
            (EMBEDDINGS, {"input": "hi"}),
            (CHAT, {**HI, "model": None}),
            (CHAT, {"messages": [{"role": "user", "content": "word " * 100_000}]}),
        ):
            with self.subTest(path, body=str(body)[:40]):
                answer = running.post(body, path)
                self.assertEqual(answer.status, 200, answer.body)
                self.assertEqual(answer.json()["model"], THREE[0])
                self.assertEqual(answer.header("x-gateway-model"), THREE[0])
                self.assertEqual(running.request_line(answer.request_id)["model"], THREE[0])
        self.assertEqual(set(engine.models), {THREE[0]})

    def test_a_stream_does(self) -> None:
        running = self.serve(self.engine(*THREE).url)
        with running.connect() as client:
            client.request("POST", CHAT, {**HI, "stream": True})
            head = client.read_head("POST")
            events = client.read_events()
        self.assertEqual((head.status, head.header("x-gateway-model")), (200, THREE[0]))
        self.assertEqual(chunk_of(events[0])["choices"][0]["delta"], {"content": "hi"})

    def test_one_that_names_a_model_gets_it_listed_or_not(self) -> None:
        engine = self.engine(*THREE)
        engine.listed = listing(*THREE[:2])
        running = self.serve(engine.url)
        for name in THREE:
            answer = running.post({**HI, "model": name})
            self.assertEqual((answer.status, answer.json()["model"]), (200, name))
        unknown = running.post({**HI, "model": "gpt-4o"})
        self.assertEqual((unknown.status, unknown.error), (404, "backend_rejected"))
        self.assertIn("not found", unknown.json()["message"])
        self.assertEqual(engine.models, [*THREE, "gpt-4o"])
        self.assertEqual(running.request_line(unknown.request_id)["model"], "gpt-4o")

    def test_the_default_model_goes_first_listed_or_not(self) -> None:
        engine = self.engine(*THREE)
        for name, status in ((QWEN, 200), ("gpt-4o", 404)):
            running = self.serve(engine.url, DEFAULT_MODEL=name)
            answer = running.post()
            self.assertEqual(answer.status, status)
            self.assertEqual(engine.models[-1], name)
            self.assertEqual(running.request_line(answer.request_id)["model"], name)
            self.assertEqual(self.listed(running), list(THREE))

    def test_they_count_under_the_names_that_the_engine_lists(self) -> None:
        engine = self.engine(*THREE)
        running = self.serve(engine.url)
        for name in (None, QWEN, "made-up"):
            running.post(HI if name is None else {**HI, "model": name})
        for label, status in ((THREE[0], 200), (QWEN, 200), ("other", 404)):
            running.wait_for_metric(f'gateway_requests_total{{path="{CHAT}",model="{label}",status="{status}"}}', 1)

    def test_the_names_that_are_counted_are_a_closed_set_whatever_is_listed(self) -> None:
        running = self.serve(self.engine("a").url)
        router = running.app.factory.router
        (engine,) = router.pools["default"].engines
        self.assertEqual(list(router.counted_names()), ["default", "a"])
        with mock.patch("gateway.routing.names.COUNTED_NAMES_MAX", 4):
            for number in range(9):
                engine.listed = (upstream_listing.ListedModel(f"m{number}"),)
                router.counted_names()
        self.assertEqual(list(router.counted_names()), ["default", "a", "m0", "m1"])


class ChangeTest(OwnNamesTest):
    def test_ready_says_that_the_model_is_known(self) -> None:
        for interval in (0, 60):
            with self.subTest(interval=interval):
                engine = self.engine(*THREE)
                engine.gate.clear()
                variables = {"BACKEND_URL": engine.url, "HEALTH_INTERVAL": interval, "HEALTH_TIMEOUT": 60}
                running = self.enter(gateway(variables))
                eventually(lambda engine=engine: engine.asked)  # type: ignore[misc]
                answer = running.get("/readyz")
                self.assertEqual((answer.status, answer.json()), (503, {"status": "probing"}))
                # What traffic says of the engine tells nothing of its models.
                self.assertEqual(running.post({**HI, "model": QWEN}).status, 200)
                self.assertEqual(running.get("/readyz").status, 503)
                engine.gate.set()
                eventually(lambda running=running: running.get("/readyz").status == 200)  # type: ignore[misc]
                self.assertEqual(self.listed(running), list(THREE))

    def test_a_restart_with_another_model_is_seen_by_the_next_probe(self) -> None:
        engine = self.engine("a")
        running = self.serve(engine.url, HEALTH_INTERVAL=0.05)
        self.assertEqual(running.post().json()["model"], "a")
        engine.serve("b", "c")
        eventually(lambda: self.listed(running) == ["b", "c"])
        self.assertEqual(running.post().json()["model"], "b")
        engine.listed = None
        eventually(lambda: self.listed(running) == ["default"])

    def test_an_engine_that_starts_later_is_asked_then_also_without_probes(self) -> None:
        with mock.patch("gateway.upstream.prober.HOUSEKEEPING_S", 0.02):
            engine = self.engine("a")
            engine.status = 503
            running = self.serve(engine.url)
            self.assertEqual(self.listed(running), ["default"])
            engine.status = 200
            eventually(lambda: self.listed(running) == ["a"])
            asked = len(engine.asked)
            ticks = mock.Mock(wraps=running.app.factory.client.prune)
            with mock.patch.object(running.app.factory._health, "_housekeeping", ticks):
                eventually(lambda: ticks.call_count >= 3)
            self.assertEqual(len(engine.asked), asked)

    def test_one_that_is_down_keeps_its_last_list(self) -> None:
        engine = self.engine(*THREE)
        running = self.serve(engine.url, HEALTH_INTERVAL=0.05, HEALTH_FAILS=1)
        engine.close()
        eventually(lambda: running.get("/readyz").status == 503)
        answer = running.get("/v1/models").json()
        self.assertEqual([(entry["id"], entry["available"]) for entry in answer["data"]], [(n, False) for n in THREE])

    def test_a_dead_engine_ends_the_round(self) -> None:
        running = self.serve(dead_url())
        self.assertEqual(self.listed(running), ["default"])
        self.assertEqual(running.post().status, 502)


class AllowedTest(AccessTest):
    def test_a_key_sees_the_names_that_it_may_use(self) -> None:
        engine = self.enter(NamingEngine(*THREE))
        running = self.serve(BACKEND_URL=engine.url)
        self.assertTrue(running.app.factory.wait_probed(TIMEOUT_S))
        key = self.make(running, models=("Qwen/*", "gpt-*"))
        answer = running.get("/v1/models", key).json()
        self.assertEqual([entry["id"] for entry in answer["data"]], [QWEN])
        self.assertEqual(running.get(f"/v1/models/{QWEN}", key).status, 200)
        self.assertEqual(running.get(f"/v1/models/{THREE[0]}", key).status, 404)
        self.assertEqual(running.post({**HI, "model": QWEN}, headers=key).status, 200)
        unnamed = running.post(HI, headers=key)  # that is the first one
        self.assertEqual((unnamed.status, unnamed.error), (403, "forbidden"))
        self.assertIn(THREE[0], unnamed.json()["message"])
        self.assertEqual(running.post(HI, headers=self.make(running, "first", models=(THREE[0],))).status, 200)

    def test_the_ledger_tells_the_names_that_the_engine_lists(self) -> None:
        engine = self.enter(NamingEngine(*THREE))
        running = self.serve(BACKEND_URL=engine.url, LEDGER="on")
        self.assertTrue(running.app.factory.wait_probed(TIMEOUT_S))
        for name in (None, QWEN, "made-up"):
            running.post(HI if name is None else {**HI, "model": name})
        query = "SELECT model FROM ledger ORDER BY rowid"
        names = [(THREE[0],), (QWEN,), ("other",)]
        eventually(lambda: self.rows(query) == names)


class AlwaysOneTest(OwnNamesTest):
    """The engine's own name of the model, behind a # of its URL."""

    def test_one_engine_may_be_asked_for_one_model_always(self) -> None:
        engine = self.engine(*THREE)
        running = self.serve(f"{engine.url}#{QWEN}")
        self.assertEqual(self.listed(running), [QWEN])
        for name, served in ((None, QWEN), (QWEN, QWEN), ("gpt-4o", "gpt-4o")):
            answer = running.post(HI if name is None else {**HI, "model": name})
            self.assertEqual((answer.status, answer.json()["model"]), (200, served))
        self.assertEqual(engine.models, [QWEN] * 3)
        self.assertEqual(engine.asked, [])

    def test_engines_of_a_model_have_each_a_name_of_their_own(self) -> None:
        first, second = self.engine(QWEN), self.engine("qwen2.5:7b")
        fleet = f"qwen={first.url}#{QWEN},{second.url}#qwen2.5:7b"
        running = self.enter(gateway(ENGINES=fleet))
        for _ in range(4):
            answer = running.post({**HI, "model": "qwen"})
            self.assertEqual((answer.status, answer.json()["model"]), (200, "qwen"))
        self.assertEqual((first.models, second.models), ([QWEN] * 2, ["qwen2.5:7b"] * 2))
        self.assertEqual(self.listed(running), ["qwen"])


class LibraryTest(OwnNamesTest):
    def factory(self, *engines: EngineSpec, default: Optional[str] = None, **options: Any) -> InferenceFactory:
        fleet = FleetSpec((model_from("any", engines),), default, wildcard=True)
        factory = self.enter(InferenceFactory(fleet, **{"health_interval_s": 0, **options}))
        self.assertTrue(factory.wait_probed(TIMEOUT_S))
        return factory

    def test_the_library_asks_for_the_first_model_too_with_the_engine_s_key(self) -> None:
        engine = self.engine(*THREE)
        spec = EngineSpec(engine.url, api_key_env="KEY")
        factory = self.factory(spec, secrets={"KEY": "s3cret"})
        self.assertEqual(factory.generate("hi"), "hi")
        self.assertEqual(factory.chat(HI["messages"])["model"], THREE[0])
        self.assertEqual([chunk["model"] for chunk in factory.stream(HI["messages"])], [THREE[0]])
        self.assertEqual(factory.chat(HI["messages"], model=QWEN)["model"], QWEN)
        self.assertEqual(engine.models, [THREE[0]] * 3 + [QWEN])
        self.assertEqual([headers.get("Authorization") for headers in engine.asked], ["Bearer s3cret"])
        with self.assertRaises(GatewayError) as caught:
            factory.generate("hi", model="gpt-4o")
        self.assertEqual(caught.exception.status, 404)

    def test_several_engines_list_what_any_of_them_has(self) -> None:
        first, second = self.engine("a", "b"), self.engine("b", "c")
        factory = self.factory(EngineSpec(first.url), EngineSpec(second.url))
        self.assertEqual([one.id for one in factory.router.listed()], ["a", "b", "c"])

    def test_an_engine_that_a_reload_brings_is_asked(self) -> None:
        first, second = self.engine("a"), self.engine("b")
        for interval_s in (0, 3600):
            factory = self.factory(EngineSpec(first.url), health_interval_s=interval_s)
            factory.reload(FleetSpec((model_from("any", [second.url]),), wildcard=True))
            eventually(lambda factory=factory: [o.id for o in factory.router.listed()] == ["b"])  # type: ignore[misc]
            self.assertEqual(factory.chat(HI["messages"])["model"], "b")
            factory.reload(FleetSpec((model_from("m", [second.url]),)))
            self.assertEqual((factory.router.listed(), factory.router.unnamed()), ((), None))
        self.assertEqual(json.loads(json.dumps(second.models)), ["b", "b"])


if __name__ == "__main__":
    unittest.main()
