"""Two gateways in this process that are two processes of one: their bus is real, and so is what both are asked."""

from __future__ import annotations

import threading
import time
import unittest
from typing import Any
from unittest import mock

from gateway.agreeing.sums import PROCESSES
from gateway.processes.bus import Bus
from gateway.telemetry.events import RequestEvent
from gateway.telemetry.merging import fold
from tests.access import ADMIN_KEYS, AS_ROOT, AccessTest, ask, bearer
from tests.http.test_bus import Parent
from tests.support import CHAT, RawClient, RunningGateway, dead_url, engines, eventually, gateway, mock_engine

REQUESTS = 'gateway_requests_total{path="/v1/chat/completions",model="m",status="200"}'
COUNTED = f'{PROCESSES}{{state="counted"}}'
SILENT = f'{PROCESSES}{{state="silent"}}'


class TwoTest(AccessTest):
    def setUp(self) -> None:
        super().setUp()
        self.parent = Parent(fold)
        self.addCleanup(self.parent.close)
        self.children: list[Bus] = []

    def one(self, slot: int, **variables: object) -> RunningGateway:
        """One more process, in this slot."""
        child = len(self.children)
        bus = Bus(self.parent.link(child, slot), slot, 2)
        self.children.append(bus)
        running = self.enter(gateway({"STATE_DB": self.db, **variables}, bus=bus))
        self.addCleanup(bus.close, 1.0)
        bus.ready()
        return running

    def two(self, **variables: object) -> tuple[RunningGateway, RunningGateway]:
        """Two processes, of which the first leads."""
        both = self.one(0, **variables), self.one(1, **variables)
        self.lead(0)
        return both

    def lead(self, child: int) -> None:
        self.parent.do(lambda: self.parent.links.roster(child, True, []))
        eventually(lambda: self.children[child].leader)

    def end(self, child: int) -> None:
        """It is gone, without a word."""
        self.parent.do(lambda: self.parent.links.gone(child))

    def states(self, running: RunningGateway) -> dict[str, str]:
        models = running.get("/health", [AS_ROOT]).json()["models"]
        return {engine["id"]: engine["state"] for model in models.values() for engine in model["engines"]}


class SeedTest(TwoTest):
    def test_processes_of_one_seed_draw_otherwise_and_the_same_again(self) -> None:
        seeds = [running.app.seed for running in self.two(ENGINES="m=echo:", ROUTING_SEED="7")]
        self.assertEqual(len(set(seeds)), 2)
        self.assertEqual(seeds[0], 7)
        self.assertEqual(self.one(1, ENGINES="m=echo:", ROUTING_SEED="7").app.seed, seeds[1])


class MetricsTest(TwoTest):
    def test_who_has_had_an_answer_finds_it_counted_once_whoever_is_asked(self) -> None:
        both = self.two(ENGINES="m=echo:")
        for count in range(1, 41):
            answering, telling = both[count % 2], both[count // 2 % 2]
            self.assertEqual(answering.post().status, 200)
            self.assertEqual(telling.metrics()[REQUESTS], count)

    def test_an_answered_request_is_concluding_until_it_can_be_counted(self) -> None:
        app = self.one(0, ENGINES="m=echo:").app
        emit, open_then = app.telemetry.emit, []

        def emitted(event: RequestEvent) -> None:
            if event.path == CHAT:
                open_then.append(len(app.pipeline.concluding() or ()))
            emit(event)

        with mock.patch.object(app.telemetry, "emit", emitted), RawClient(app.address[1]) as client:
            self.assertEqual(client.post().status, 200)
            eventually(lambda: open_then)
        self.assertEqual(open_then, [1])

    def test_sums_are_exact_under_load_and_while_everybody_asks(self) -> None:
        both = self.two(ENGINES="m=echo:")
        seen: list[float] = []
        done = threading.Event()

        def ask_all() -> None:
            with both[0].connect() as one, both[1].connect() as other:
                for number in range(100):
                    client = (one, other)[number % 2]
                    assert client.post().status == 200

        def scrape() -> None:
            while not done.is_set():
                for running in both:
                    seen.append(running.metrics().get(REQUESTS, 0.0))

        threads = [threading.Thread(target=ask_all) for _ in range(4)]
        scraper = threading.Thread(target=scrape)
        for thread in (*threads, scraper):
            thread.start()
        for thread in threads:
            thread.join(60.0)
        last = [running.metrics()[REQUESTS] for running in both]
        done.set()
        scraper.join(60.0)
        self.assertEqual(last, [400, 400])
        self.assertEqual(seen, sorted(seen), "no count goes down")

    def test_histograms_gauges_and_exemplars_are_those_of_both(self) -> None:
        both = self.two(ENGINES="m=echo:", WORKERS="3", QUEUE_SIZE="7", TRACES="all")
        for running in both:
            running.post()
        for running in both:
            metrics = running.metrics()
            self.assertEqual(metrics["gateway_overhead_seconds_count"], 2)
            self.assertEqual(metrics["gateway_queue_size"], 14)
            self.assertEqual(metrics['gateway_engine_up{model="m",engine="echo"}'], 1)
            self.assertEqual((metrics[COUNTED], metrics[SILENT]), (2, 0))
            self.assertTrue(
                running.get("/metrics", [("Accept", "application/openmetrics-text")]).body.endswith(b"# EOF\n")
            )

    def test_what_one_has_counted_outlives_it_and_a_new_one_goes_on(self) -> None:
        both = self.two(ENGINES="m=echo:")
        for running in both:
            running.post()
        self.assertEqual(both[0].metrics()[REQUESTS], 2)
        self.end(1)
        eventually(lambda: both[0].metrics()[COUNTED] == 1)
        self.assertEqual(both[0].metrics()[REQUESTS], 2)
        new = self.one(1, ENGINES="m=echo:")
        new.post()
        self.assertEqual([running.metrics()[REQUESTS] for running in (both[0], new)], [3, 3])

    def test_what_was_counted_last_is_left_when_it_ends_well(self) -> None:
        both = self.two(ENGINES="m=echo:")
        both[1].post()
        both[1].stop()
        self.children[1].close(5.0)
        eventually(lambda: both[0].metrics()[COUNTED] == 1)
        self.assertEqual(both[0].metrics()[REQUESTS], 1)

    def test_one_that_does_not_answer_is_told_of_and_keeps_the_rest_waiting_for_a_second(self) -> None:
        both = self.two(ENGINES="m=echo:")
        both[1].post()
        self.assertEqual(both[0].metrics()[REQUESTS], 1)
        gate = threading.Event()
        self.addCleanup(gate.set)
        self.children[1].on("metrics", lambda what, slot: gate.wait(30.0) and None)
        began_s = time.monotonic()
        metrics = both[0].metrics()
        self.assertLess(time.monotonic() - began_s, 10)
        self.assertEqual((metrics[REQUESTS], metrics[COUNTED], metrics[SILENT]), (1, 1, 1))
        with both[0].connect() as client:
            self.assertEqual(client.post().status, 200)
        eventually(lambda: [line for line in both[0].log_lines() if line["event"] == "processes_silent"])

    def test_requests_are_answered_while_a_scrape_waits(self) -> None:
        both = self.two(ENGINES="m=echo:")
        gate, waits = threading.Event(), threading.Event()
        self.addCleanup(gate.set)
        self.children[1].on("metrics", lambda what, slot: waits.set() or (gate.wait(30.0) and None))
        scraper = self.enter(both[0].connect())
        scraper.request("GET", "/metrics")
        self.assertTrue(waits.wait(30.0))
        self.assertEqual(both[0].post().status, 200)
        gate.set()
        self.assertEqual(scraper.read_response().status, 200)


class EnginesTest(TwoTest):
    def test_an_engine_that_fails_one_processs_requests_is_out_in_both(self) -> None:
        engine = self.engine("error")
        variables = {"ENGINES": engines(m=[engine.url, "echo:"]), "RETRY_ATTEMPTS": 2, "BREAKER_MIN_REQUESTS": 2}
        both = self.two(**variables)
        eventually(lambda: both[1].post() and "open" in self.states(both[1]).values())
        eventually(lambda: self.states(both[0]) == self.states(both[1]))

    def test_a_refused_connection_is_told(self) -> None:
        both = self.two(ENGINES=engines(m=[dead_url(), "echo:"]))
        eventually(lambda: both[0].post() and "down" in self.states(both[0]).values())
        eventually(lambda: self.states(both[1]) == self.states(both[0]))

    def test_the_leader_alone_probes_and_the_next_one_goes_on(self) -> None:
        engine = self.engine()
        both = self.two(ENGINES=engines(m=engine.url), HEALTH_INTERVAL="0.2", HEALTH_FAILS="1")
        probed = [self.probes(running) for running in both]
        for running in both:
            eventually(lambda running=running: running.get("/readyz").status == 200)
        eventually(lambda: len(probed[0]) > 2)
        self.assertEqual(probed[1], [])
        engine.control("loading")
        for running in both:
            eventually(lambda running=running: list(self.states(running).values()) == ["down"])
        self.end(0)
        self.lead(1)
        engine.control("ok")
        eventually(lambda: list(self.states(both[1]).values()) == ["up"])
        self.assertGreater(len(probed[1]), 0)

    def probes(self, running: RunningGateway) -> list[str]:
        """The engines that a process probes, from now on."""
        seen: list[str] = []
        checker = running.app.factory._health
        probe = checker._probe
        checker._probe = lambda spec, timeout_s: (seen.append(spec.url), probe(spec, timeout_s))[1]
        return seen

    def test_what_is_in_flight_is_told_of_both(self) -> None:
        engine = self.engine("hang")
        both = self.two(ENGINES=engines(m=engine.url))
        clients = [self.begin(running) for running in both for _ in range(2)]
        for running in both:
            eventually(lambda running=running: self.in_flight(running) == 4)
        for client in clients:
            client.close()
        eventually(lambda: self.in_flight(both[0]) == 0)

    def in_flight(self, running: RunningGateway) -> int:
        (engine,) = running.get("/health").json()["models"]["m"]["engines"]
        return int(engine["in_flight"])


class OperatorsTest(TwoTest):
    def admin(self, running: RunningGateway, method: str, path: str, body: Any = None) -> Any:
        answer = running.ask(method, path, body, [AS_ROOT])
        self.assertLess(answer.status, 300, answer.body)
        return answer.json()

    def test_a_drain_at_one_is_a_drain_at_both_and_so_is_its_end(self) -> None:
        both = self.two(ENGINES="m=echo:", ADMIN_KEYS=ADMIN_KEYS)
        for running, verb, state in ((both[1], "drain", "draining"), (both[0], "enable", "up")):
            self.admin(running, "POST", f"/admin/engines/echo/{verb}")
            for other in both:
                eventually(lambda other=other, state=state: self.states(other) == {"echo": state})
        self.admin(both[1], "POST", "/admin/engines/echo/weight", {"weight": 9})
        eventually(lambda: both[0].app.factory.engines()[0].weight == 9)

    def test_a_key_made_at_one_is_good_at_the_other_at_once_and_a_revoked_one_is_not(self) -> None:
        both = self.two(ENGINES="m=echo:", ADMIN_KEYS=ADMIN_KEYS)
        for running in both:
            running.app.guard._stop.set()  # its looks by the clock
        key = bearer(self.admin(both[0], "POST", "/admin/keys", {"name": "alice"})["key"])
        self.assertEqual(both[0].post(headers=key).status, 200)
        eventually(lambda: both[1].post(headers=key).status == 200)
        self.admin(both[1], "DELETE", "/admin/keys/alice")
        eventually(lambda: both[0].post(headers=key).status == 401)

    def cache_figures(self, running: RunningGateway) -> tuple[int, int, int]:
        stats = self.admin(running, "GET", "/api/v1/cache/stats")
        return stats["entries"], stats["hits"], stats["misses"]

    def test_a_cleared_cache_is_cleared_in_both_and_its_figures_are_those_of_both(self) -> None:
        both = self.two(ENGINES="m=echo:", ADMIN_KEYS=ADMIN_KEYS, CACHE="on")
        for running in both:
            for _ in range(2):
                self.assertEqual(running.post(ask(temperature=0), headers=[AS_ROOT]).status, 200)
        for running in both:
            eventually(lambda: self.cache_figures(running) == (2, 2, 2))  # noqa: B023
        self.admin(both[0], "POST", "/api/v1/cache/clear")
        eventually(lambda: self.admin(both[1], "GET", "/api/v1/cache/stats")["entries"] == 0)

    def test_a_schema_kept_at_one_is_known_at_both(self) -> None:
        folder = self.directory / "schemas"
        folder.mkdir()
        both = self.two(ENGINES="m=echo:", ADMIN_KEYS=ADMIN_KEYS, SCHEMAS_DIR=folder)
        self.admin(both[0], "PUT", "/admin/schemas/one", {"type": "object"})
        eventually(lambda: both[1].get("/admin/schemas/one", [AS_ROOT]).status == 200)
        self.admin(both[1], "DELETE", "/admin/schemas/one")
        eventually(lambda: both[0].get("/admin/schemas/one", [AS_ROOT]).status == 404)


class AlertsTest(TwoTest):
    def test_alerts_are_the_leaders_over_what_both_have_counted_at_either(self) -> None:
        rule = {"name": "Errors", "what": "error_ratio", "above": 0.4, "at_least": 8, "window_s": 60, "by": ["model"]}
        rules = self.file("alerts.json", {"defaults": False, "interval_s": 0.1, "rules": [rule]})
        variables = {"ENGINES": engines(m=dead_url()), "RETRY_ATTEMPTS": 1, "ALERTS_FILE": rules}
        both = self.two(**variables)
        measuring = both[0].app.observing._alerts._measuring
        eventually(lambda: measuring._histories[60.0]._kept)  # it counts from its first look on
        for running in both:
            for _ in range(4):  # neither has enough by itself
                self.assertGreaterEqual(running.post().status, 500)
        for running in both:
            eventually(lambda running=running: [a["name"] for a in self.alerts(running)] == ["Errors"])
        self.assertEqual(both[1].metrics()['gateway_alerts{name="Errors",state="firing"}'], 1)
        eventually(lambda: [line for line in both[0].log_lines() if line["event"] == "alert"])
        self.assertEqual([line for line in both[1].log_lines() if line["event"] == "alert"], [])

    def alerts(self, running: RunningGateway) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = running.get("/api/v1/alerts").json()["alerts"]
        return found

    def test_objectives_are_those_of_both_and_a_new_process_knows_them(self) -> None:
        variables = {"ENGINES": engines(m="echo:", n=dead_url()), "SLO_AVAILABILITY": "0.9", "FALLBACK": "off"}
        both = self.two(**variables)
        for running in both:
            for _ in range(3):
                self.assertEqual(running.post(ask(model="m")).status, 200)
            self.assertEqual(running.post(ask(model="n")).status, 502)

        def counts(running: RunningGateway) -> dict[str, int]:
            slos = running.app.observing._slos
            assert slos is not None
            return {one.model: one.count_by_s[300] for one in slos.read()}

        for running in both:
            eventually(lambda running=running: counts(running) == {"m": 6, "n": 2})
        known = counts(both[0])
        self.end(1)
        self.assertEqual(counts(self.one(1, **variables)), known)


class ConsoleTest(TwoTest):
    def test_the_console_of_either_shows_what_both_have_answered(self) -> None:
        both = self.two(ENGINES="m=echo:")
        for running, count in zip(both, (3, 2)):
            for _ in range(count):
                self.assertEqual(running.post().status, 200)

        def shown(running: RunningGateway) -> tuple[float, int]:
            assert running.app.live is not None
            series = running.app.live.series
            return sum(point[0] for point in list(series.points)), len(series.requests)

        for running in both:
            eventually(lambda running=running: shown(running) == (5, 5))


class DiscoveryTest(TwoTest):
    def write(self, *urls: str) -> str:
        return str(self.file("list.json", list(urls)))

    def up(self, running: RunningGateway) -> set[str]:
        return {engine for engine, state in self.states(running).items() if state == "up"}

    def test_discovered_engines_are_in_at_once_where_the_leader_knows_them_to_be_well(self) -> None:
        first, second = self.enter(mock_engine("m")), self.enter(mock_engine("m"))
        discover = {"file": self.write(first.url), "interval": 1}
        fleet = self.file("engines.json", {"models": {"m": {"discover": discover}}})
        variables = {"ENGINES_FILE": fleet, "HEALTH_INTERVAL": 3600}
        leader = self.one(0, **variables)
        self.lead(0)
        eventually(lambda: len(self.up(leader)) == 1)
        other = self.one(1, **variables)
        eventually(lambda: len(self.up(other)) == 1)
        self.write(first.url, second.url)
        for running in (leader, other):
            eventually(lambda running=running: len(self.up(running)) == 2)


if __name__ == "__main__":
    unittest.main()
