"""Prompts stay near: with real sockets, what was meant for a dead model nearby goes to no model farther away.

What is far has a public address, and connections there lead to this machine: no traffic leaves it.
"""

from __future__ import annotations

import socket
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from gateway.errors import GatewayError
from gateway.fleet import load_engines_file
from gateway.inference import InferenceFactory
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec, model_from
from gateway.steps import drive
from gateway.upstream.resolver import Resolver
from tests.dialects import RESPONSES
from tests.naming import Names, resolver_threads
from tests.resilience import ResilienceTest, ask, fleet
from tests.scripted import STREAM_HEAD, chunked, delta
from tests.support import MockEngine, RunningGateway, dead_url, eventually

CLOUD = "api.cloud.example"
PUBLIC, PRIVATE = "203.0.113.7", "10.77.0.7"


class NearnessTest(ResilienceTest):
    """The model `m` is dead and near; `cloud` is well, wherever its name says that it is."""

    def setUp(self) -> None:
        super().setUp()
        self.names = Names()
        self.names.answers[CLOUD] = [PUBLIC]
        self.enter(mock.patch.object(socket, "getaddrinfo", self.names))
        self.reached: list[str] = []
        connect = socket.socket.connect_ex

        def here(sock: socket.socket, address: Any) -> int:
            if address[0] in (PUBLIC, PRIVATE):
                self.reached.append(address[0])
                address = ("127.0.0.1", *address[1:])
            return connect(sock, address)

        self.enter(mock.patch.object(socket.socket, "connect_ex", here))
        self.cloud = self.engine(model="cloud")

    def tearDown(self) -> None:
        self.names.release()
        super().tearDown()

    def url(self, engine: MockEngine, host: str = CLOUD) -> str:
        return f"http://{host}:{engine.port}/v1"

    def models(self, *others: str, **own: object) -> dict[str, dict[str, Any]]:
        """`m`, then `cloud`, with those engines more."""
        return {"m": {"engines": [dead_url()], **own}, "cloud": {"engines": [self.url(self.cloud), *others]}}

    def serve_known(self, models: dict[str, dict[str, Any]], **variables: object) -> RunningGateway:
        running = self.serve(models, **variables)
        self.wait_until_known(running.app.factory.client.resolver)
        return running

    def wait_until_known(self, resolver: Resolver) -> None:
        eventually(lambda: resolver.last_known(CLOUD))

    def assert_stays(self, running: RunningGateway, body: dict[str, Any]) -> None:
        self.assert_error(running.post(body), 502, "backend_unavailable")
        self.assertEqual(self.cloud.requests, [])
        self.assertEqual(self.reached, [])

    def assert_falls_back(self, running: RunningGateway, body: dict[str, Any], path: str) -> None:
        response = running.post(body)
        self.assertEqual(response.status, 200, response.body)
        self.assertEqual(response.header("x-gateway-fallback"), path)

    def test_nothing_goes_farther(self) -> None:
        running = self.serve_known(self.models())
        for body in (ask(), ask(stream=True), ask(n=1, temperature=0)):
            self.assert_stays(running, body)

    def test_nothing_goes_where_a_public_address_is_configured(self) -> None:
        self.assert_stays(
            self.serve({"m": {"engines": [dead_url()]}, "cloud": {"engines": [self.url(self.cloud, PUBLIC)]}}), ask()
        )

    def test_nothing_goes_where_nobody_knows_what_it_is(self) -> None:
        self.names.hold(CLOUD)
        self.assert_stays(self.serve(self.models()), ask())

    def test_a_model_with_one_engine_far_away_is_far(self) -> None:
        near = self.engine()
        self.assert_stays(self.serve_known(self.models(near.url)), ask())
        self.assertEqual(near.requests, [])

    def test_another_model_nearby_gets_it(self) -> None:
        near = self.engine()
        running = self.serve_known({**self.models(), "near": {"engines": [near.url]}})
        for body in (ask(), ask(stream=True)):
            self.assert_falls_back(running, body, "m->near")
        self.assertEqual(self.reached, [])

    def test_a_name_of_a_private_network_is_near(self) -> None:
        self.names.answers[CLOUD] = [PRIVATE]
        running = self.serve_known(self.models())
        for body in (ask(), ask(stream=True)):
            self.assert_falls_back(running, body, "m->cloud")

    def test_its_own_list_leads_farther(self) -> None:
        for setting in ("any", "configured"):
            running = self.serve_known(self.models(fallbacks=["cloud"]), FALLBACK=setting)
            for body in (ask(), ask(stream=True)):
                self.assert_falls_back(running, body, "m->cloud")

    def test_without_a_list_configured_and_off_are_as_they_were(self) -> None:
        for setting in ("configured", "off"):
            self.assert_stays(self.serve_known(self.models(), FALLBACK=setting), ask())
        self.assert_stays(self.serve_known(self.models(fallbacks=["cloud"]), FALLBACK="off"), ask())

    def test_a_model_far_away_falls_back_to_all(self) -> None:
        running = self.serve_known({"gone": {"engines": [f"http://{CLOUD}:{dead_port()}/v1"]}, **self.models()})
        response = running.post(ask(model="gone"))
        self.assertEqual((response.status, response.header("x-gateway-fallback")), (200, "gone->cloud"), response.body)

    def test_a_model_of_unknown_whereabouts_keeps_its_prompts_near(self) -> None:
        self.names.answers["gone.cloud.example"] = OSError("not found")
        running = self.serve_known(
            {"m": {"engines": ["http://gone.cloud.example:1/v1"]}, "cloud": self.models()["cloud"]}
        )
        self.assert_stays(running, ask())

    def test_a_name_that_moves_away_gets_nothing_any_more(self) -> None:
        self.names.answers[CLOUD] = [PRIVATE]
        running = self.serve_known(self.models())
        self.assert_falls_back(running, ask(), "m->cloud")
        self.names.answers[CLOUD] = [PUBLIC]
        resolver = running.app.factory.client.resolver
        with resolver._lock:
            resolver._begin_locked(CLOUD, resolver._names[CLOUD], 0.0)
        resolver._staff()
        eventually(lambda: not resolver._under_way and not resolver_threads())
        asked = len(self.cloud.requests)
        self.assert_error(running.post(ask()), 502, "backend_unavailable")
        self.assertEqual((len(self.cloud.requests), set(self.reached)), (asked, {PRIVATE}))

    def test_nothing_is_sent_where_a_name_has_moved_away_to_since_it_was_chosen(self) -> None:
        self.names.answers[CLOUD] = [PRIVATE]
        running = self.serve(self.models(), DNS_TTL=0)
        resolver = running.app.factory.client.resolver
        for body in (ask(), ask(stream=True)):
            self.names.answers[CLOUD] = [PRIVATE]
            drive(resolver.addresses(CLOUD, float("inf")))
            self.names.answers[CLOUD] = [PUBLIC]  # which the next look-up, that of the connection, finds
            self.assert_error(running.post(body), 502, "backend_unavailable")
            self.assertIs(running.app.factory.client.is_near(CLOUD), False)
        self.assertEqual(self.cloud.requests, [])
        self.names.answers[CLOUD] = [PRIVATE]
        drive(resolver.addresses(CLOUD, float("inf")))
        self.assert_falls_back(running, ask(), "m->cloud")
        self.assert_nothing_held(running)

    def test_a_broken_stream_does_not_go_on_where_a_reload_has_taken_its_fallback(self) -> None:
        broken = self.scripted()
        near, far = {"url": broken.url, "resume": True}, {"url": self.url(self.cloud, PUBLIC), "resume": True}
        for models in ({"m": {"engines": [dead_url()]}}, {"m": {"engines": [dead_url()], "fallbacks": ["b"]}}):
            running = self.serve({**models, "b": {"engines": [near]}})
            client = self.begin(running, ask(stream=True))
            side = broken.take()
            side.send(STREAM_HEAD + chunked(delta("Once ")))
            self.assertEqual(client.read_head().status, 200)
            path = Path(self.enter(tempfile.TemporaryDirectory())) / "engines.json"
            path.write_text(fleet({**models, "b": {"engines": [near, far]}}), "utf-8")
            running.app.factory.reload(load_engines_file(path))
            side.close()
            named = "fallbacks" in models["m"]
            self.assertEqual("data: [DONE]" in client.read_events(), named)
            self.assertEqual(self.reached, [PUBLIC] if named else [])

    def test_a_place_that_was_waited_for_is_not_taken_where_a_name_has_moved_away(self) -> None:
        self.names.answers[CLOUD] = [PRIVATE]
        slow = self.scripted()
        engine = {"url": f"http://{CLOUD}:{slow.port}/v1", "max_concurrency": 1}
        running = self.serve_known({"m": {"engines": [dead_url()]}, "cloud": {"engines": [engine]}})
        first = self.begin(running, ask(model="cloud"))
        side = slow.take()
        second = self.begin(running)
        self.wait_for_waiting(running, 1, "cloud")
        with mock.patch.object(running.app.factory.router, "_is_near", lambda host: host == "127.0.0.1"):
            side.close()
            self.assert_error(second.read_response(), 502, "backend_unavailable")
        first.close()
        self.assert_nothing_held(running)

    def test_a_request_that_leaves_a_hung_engine_stays_near(self) -> None:
        hung = self.scripted()
        running = self.serve_known({"m": {"engines": [hung.url]}, "cloud": self.models()["cloud"]})
        client = self.begin(running)
        side = hung.take()
        pool = self.pool(running)
        (engine,) = pool.engines
        for _ in range(2):
            pool.record_probe(engine, "gone", 2, 1)
        side.close()
        self.assertEqual(client.read_response().status, 502)
        self.assertEqual(self.reached, [])

    def test_a_reload_may_bring_a_model_near_and_take_it_away(self) -> None:
        fleet_at = lambda host: FleetSpec(  # noqa: E731
            (model_from("m", [dead_url()]), model_from("cloud", [self.url(self.cloud, host)]))
        )
        running = self.serve_known(self.models())
        self.assert_stays(running, ask())
        running.app.factory.reload(fleet_at("localhost"))
        self.assert_falls_back(running, ask(), "m->cloud")
        running.app.factory.reload(fleet_at(PUBLIC))
        self.assert_error(running.post(ask()), 502, "backend_unavailable")
        self.assertEqual(self.reached, [])

    def test_what_is_too_long_goes_where_it_is_told(self) -> None:
        other = self.engine(model="other")
        models = {
            "m": {"engines": ["echo:"], "max_model_len": 16, "context_fallbacks": ["cloud"]},
            "cloud": {"engines": [f"http://{CLOUD}:{dead_port()}/v1"]},
            "far": {"engines": [self.url(other, PUBLIC)]},
        }
        running = self.serve_known(models)
        response = running.post(ask("word " * 200))
        self.assertEqual(response.status, 502, response.body)
        self.assertEqual((response.header("x-gateway-attempts"), other.requests), ("1", []))
        self.assertEqual(running.post(ask(model="cloud")).header("x-gateway-model"), "m")

    def test_what_its_model_has_no_endpoint_for_stays_near_too(self) -> None:
        native: dict[str, Any] = {"engines": [{"url": dead_url(), "endpoints": [RESPONSES]}]}
        running = self.serve_known({**self.models(), "m": native})
        asked = {"model": "m", "input": "a secret"}
        self.assert_error(running.post(asked, RESPONSES), 502, "backend_unavailable")
        self.assert_error(running.post(asked, "/v1/embeddings"), 400, "endpoint_not_served")
        self.assert_error(running.post(ask("a secret")), 400, "endpoint_not_served")
        self.assertEqual((self.cloud.requests, self.reached), ([], []))
        near = self.engine(model="near")
        running = self.serve_known({**self.models(), "m": native, "near": {"engines": [near.url]}})
        answer = running.post(asked, RESPONSES)
        self.assertEqual((answer.status, answer.header("x-gateway-fallback")), (200, "m->near"), answer.body)
        self.assert_error(running.post(asked, "/v1/embeddings"), 400, "endpoint_not_served")  # it has not failed
        self.assertEqual((self.cloud.requests, self.reached), ([], []))

    def test_the_library_has_the_same_rule(self) -> None:
        dead, own = dead_url(), ModelSpec("own", (EngineSpec(dead_url()),), fallbacks=("cloud",))
        fleet = FleetSpec((model_from("m", [dead]), model_from("cloud", [self.url(self.cloud)]), own))
        with InferenceFactory(fleet, health_interval_s=0) as factory:
            self.wait_until_known(factory.client.resolver)
            for ask_it in (factory.generate, lambda *args: list(factory.stream([], *args[1:]))):
                with self.assertRaises(GatewayError):
                    ask_it("hi", "m")
            self.assertEqual(self.cloud.requests, [])
            self.assertTrue(factory.generate("hi", "own"))


def dead_port() -> int:
    return int(dead_url().rpartition(":")[2].partition("/")[0])


if __name__ == "__main__":
    unittest.main()
