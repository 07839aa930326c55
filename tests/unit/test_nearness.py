"""Which engines are near, and to which other models a model's prompts may go because of it."""

from __future__ import annotations

import unittest
from random import Random
from typing import Optional

from gateway.errors import GatewayError
from gateway.routing.nearness import are_near, is_near_address, is_near_host
from gateway.routing.retry import Outcome
from gateway.routing.router import Router
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec, model_from
from gateway.routing.tries import Tries
from gateway.steps import drive
from gateway.upstream.client import EngineClient
from gateway.upstream.resolver import Resolver
from tests.naming import Names
from tests.support import eventually

ERROR = Outcome("error", "the engine answered 500", 500)
CANCELLED = Outcome("cancelled")  # nothing is held against an engine: the next request finds them all in again
NEAR, FAR, UNKNOWN = "http://10.0.0.1:8000/v1", "https://203.0.113.5/v1", "https://api.cloud.example/v1"


class HostTest(unittest.TestCase):
    def test_addresses(self) -> None:
        near = """127.0.0.1 127.255.255.254 ::1 0.0.0.0 :: 10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1
            fc00::1 fd12:3456::1 169.254.1.1 fe80::1 febf::1 100.64.0.1 100.127.255.255 ::ffff:127.0.0.1 ::ffff:10.1.2.3
            ::ffff:a01:203 ::ffff:100.64.0.1 ::ffff:169.254.1.1"""
        far = """9.255.255.255 11.0.0.1 172.15.255.255 172.32.0.1 192.167.1.1 192.169.0.1 169.253.1.1 100.63.255.255
            100.128.0.1 126.0.0.1 128.0.0.1 0.0.0.1 8.8.8.8 203.0.113.5 ::2 2001:db8::1 fbff::1 fe00::1 fec0::1
            2606:4700::1111 ::ffff:8.8.8.8 ::ffff:808:808 64:ff9b::a01:203 2002:a01:203::1 255.255.255.255"""
        for host in near.split():
            self.assertIs(is_near_host(host), True, host)
        for host in far.split():
            self.assertIs(is_near_host(host), False, host)

    def test_an_address_as_a_look_up_gives_it_may_have_a_zone(self) -> None:
        self.assertTrue(is_near_address("fe80::1%eth0"))
        self.assertFalse(is_near_address("2001:db8::1%eth0"))
        self.assertFalse(is_near_address("nonsense"))

    def test_names_that_are_never_public(self) -> None:
        hosts = """localhost LocalHost localhost. vllm gpu-1 3090box host.docker.internal a.localhost printer.local
            nas.lan
            x.home.arpa x.test vllm.default.svc vllm.default.svc.cluster.local x.localdomain x.intranet x.corp x.home
            x.private X.LAN nas.lan."""
        for host in hosts.split():
            self.assertIs(is_near_host(host), True, host)

    def test_other_names_tell_nothing(self) -> None:
        hosts = """api.openai.com api.openai.com. notlocal.example local.example home.example x.mylan x.testing
            localhost.example ai. 0x08080808 0X8080808 0x8.8.8.8"""
        for host in hosts.split():
            self.assertIs(is_near_host(host), None, host)

    def test_a_model_is_near_when_all_its_engines_are(self) -> None:
        for urls, expected in (
            ([NEAR], True),
            (["echo:"], True),
            ([NEAR, "echo:", "http://localhost:1/v1"], True),
            ([FAR], False),
            ([NEAR, FAR], False),
            ([UNKNOWN], None),
            ([NEAR, UNKNOWN], None),
            ([UNKNOWN, FAR], False),
        ):
            self.assertIs(are_near([EngineSpec(url) for url in urls], is_near_host), expected, urls)


class ResolvedTest(unittest.TestCase):
    def test_a_name_is_where_all_its_addresses_are_as_they_were_last_known(self) -> None:
        names = Names()
        host = "api.cloud.example"
        now_s = 100.0
        resolver = Resolver(30.0, getaddrinfo=names, clock=lambda: now_s)
        client = EngineClient(5.0, {}, resolver)
        self.addCleanup(client.close)
        self.assertIsNone(client.is_near(host))

        def look(answer: object) -> Optional[bool]:
            nonlocal now_s
            now_s += 60.0
            names.answers[host] = answer  # type: ignore[assignment]
            before = names.asked.count(host)
            client.keep_names([EngineSpec(UNKNOWN)])
            names.wait_for(host, before + 1)
            eventually(lambda: not resolver._under_way)
            with resolver._lock:  # whoever has taken it out notes what it has found before letting go of that
                pass
            return client.is_near(host)

        self.assertIs(look(OSError("not found")), None)
        self.assertIs(look(["10.0.0.7", "fd00::7"]), True)
        self.assertIs(look(OSError("not found")), True)
        self.assertIs(look(["10.0.0.7", "203.0.113.7"]), False)
        self.assertIs(look(["203.0.113.7", "2001:db8::7"]), False)
        now_s += 3600.0
        self.assertIsNone(resolver.known(host))
        self.assertIs(client.is_near(host), False)
        self.assertIs(look(["100.64.3.2"]), True)

    def test_a_name_that_is_not_kept_but_looked_up_each_time_is_known_as_well(self) -> None:
        host = "api.cloud.example"
        resolver = Resolver(0.0, getaddrinfo=Names(api_cloud_example=["10.0.0.7"]))
        client = EngineClient(5.0, {}, resolver)
        self.addCleanup(client.close)
        drive(resolver.addresses(host, float("inf")))
        self.assertIsNone(resolver.known(host))
        self.assertIs(client.is_near(host), True)


class ReachTest(unittest.TestCase):
    """Every engine that is asked fails: who is asked is all that a model may fall back to."""

    def setUp(self) -> None:
        self.where = {"10.0.0.1": True, "203.0.113.5": False}

    def router(self, *models: ModelSpec, fallback: str = "any") -> Router:
        return Router(FleetSpec(models), rng=Random(5), fallback=fallback, is_near=lambda host: self.where.get(host))

    def asked(self, router: Router, name: str) -> list[str]:
        route = router.route(name)
        tries = Tries(route, 1, b"", reaches=router.reaches)
        asked: list[str] = []
        while True:
            step = tries.next()
            if step is None:
                return asked
            assert step.lease is not None
            asked.append(step.pool.name)
            step.pool.settle(step.lease, CANCELLED, 0.0)
            tries.failed(ERROR)

    def told(self, router: Router, name: str) -> list[str]:
        return [name, *[other for other, why in router.fallbacks(name) if not why]]

    def assert_reaches(self, router: Router, **expected: str) -> None:
        for name, others in expected.items():
            self.assertEqual(self.asked(router, name), [name, *others.split()], name)
            self.assertEqual(self.told(router, name), [name, *others.split()], name)

    def fleet(self, **fields: object) -> tuple[ModelSpec, ...]:
        """A model of each kind; `near` gets the fields."""
        near = ModelSpec("near", (EngineSpec(NEAR),), **fields)  # type: ignore[arg-type]
        urls = {"far": [FAR], "close": [NEAR], "mixed": [NEAR, FAR], "unknown": [UNKNOWN], "half": [NEAR, UNKNOWN]}
        return (near, *[model_from(name, engines) for name, engines in urls.items()])

    def test_from_near_only_to_near_from_far_to_all(self) -> None:
        router = self.router(*self.fleet())
        self.assert_reaches(
            router,
            near="close",
            close="near",
            far="near close mixed unknown half",
            mixed="near far close unknown half",
            unknown="near close",
            half="near close",
        )

    def test_farther_by_its_own_list_which_comes_first(self) -> None:
        router = self.router(*self.fleet(fallbacks=("unknown", "far")))
        self.assert_reaches(router, near="unknown far close", close="near")

    def test_an_alias_in_the_own_list_stands_for_its_model(self) -> None:
        models = (
            ModelSpec("near", (EngineSpec(NEAR),), fallbacks=("c",)),
            ModelSpec("far", (EngineSpec(FAR),), aliases=("c",)),
        )
        self.assert_reaches(self.router(*models), near="far")

    def test_an_empty_list_and_the_other_settings_stay(self) -> None:
        self.assert_reaches(self.router(*self.fleet(fallbacks=())), near="")
        self.assert_reaches(self.router(*self.fleet(fallbacks=("far",)), fallback="configured"), near="far", far="")
        self.assert_reaches(self.router(*self.fleet(fallbacks=("far",)), fallback="off"), near="", far="")

    def test_why_a_model_is_not_among_the_fallbacks(self) -> None:
        router = self.router(*self.fleet())
        nothing = "nothing tells whether api.cloud.example is in a private network"
        self.assertEqual(
            router.fallbacks("near"),
            [
                ("far", "farther than its engines"),
                ("close", ""),
                ("mixed", "farther than its engines"),
                ("unknown", nothing),
                ("half", nothing),
            ],
        )
        self.assertEqual(router.fallbacks("unknown")[1], ("far", nothing))

    def test_what_is_known_changes_while_a_request_is_under_way(self) -> None:
        router = self.router(*self.fleet())
        self.where["api.cloud.example"] = True
        self.assert_reaches(router, near="close unknown half")
        tries = Tries(router.route("near"), 1, b"", reaches=router.reaches)
        for expected in ("near", "close"):
            step = tries.next()
            assert step is not None and step.lease is not None
            self.assertEqual(step.pool.name, expected)
            step.pool.settle(step.lease, CANCELLED, 0.0)
            tries.failed(ERROR)
        self.where["api.cloud.example"] = False
        self.assertIsNone(tries.next())

    def test_the_last_resort_is_one_of_those(self) -> None:
        router = self.router(*self.fleet())
        for name in ("near", "close"):
            (engine,) = router.pools[name].engines
            for _ in range(2):
                router.pools[name].record_probe(engine, "down", 2, 1)
        for name in ("mixed", "unknown", "half", "far"):
            self.assertEqual({engine.down for engine in router.pools[name].engines}, {False})
        self.assertEqual(self.asked(router, "near"), ["near"])
        self.assertNotIn("far", self.asked(router, "unknown"))

    def test_a_hung_engine_is_not_left_for_one_out_of_reach(self) -> None:
        for attempts in (1, 3):
            for other, leaves in ((FAR, False), (NEAR, True)):
                router = self.router(model_from("near", [NEAR]), model_from("other", [other]))
                tries = Tries(router.route("near"), attempts, b"", reaches=router.reaches)
                step = tries.next()
                assert step is not None and step.lease is not None
                for _ in range(2):
                    step.pool.record_probe(step.lease.engine, "gone", 2, 1)
                self.assertIs(tries.may_leave([step.lease], 1.0), leaves, (attempts, other))

    def test_a_wait_that_is_told_is_that_of_a_model_that_may_be_asked(self) -> None:
        router = self.router(model_from("near", [NEAR]), model_from("far", [FAR]))

        def rest(name: str, seconds: float) -> None:
            lease = router.pools[name].acquire([], b"")
            assert lease is not None
            router.pools[name].settle(lease, Outcome("rate_limited", "", 429, seconds), 0.0)

        rest("near", 40.0)
        rest("far", 3.0)
        tries = Tries(router.route("near"), 3, b"", reaches=router.reaches)
        self.assertIsNone(tries.next())
        error = tries.error()
        assert isinstance(error, GatewayError)
        self.assertEqual(error.code, "backend_rate_limited")
        assert error.retry_after_s is not None
        self.assertGreater(error.retry_after_s, 30.0)

    def test_a_long_pause_is_waited_for_when_what_is_left_is_out_of_reach(self) -> None:
        router = self.router(model_from("near", [NEAR]), model_from("far", [FAR]))
        self.assertEqual(len(router.route("near")), 2)
        tries = Tries(router.route("near"), 3, b"", reaches=router.reaches, jitter=lambda: 0.0)
        step = tries.next()
        assert step is not None and step.lease is not None
        step.pool.settle(step.lease, Outcome("error", "wait", 503), 0.0)
        tries.failed(Outcome("error", "wait", 503, retry_after_s=9.0))
        again = tries.next()
        assert again is not None
        self.assertEqual((again.pool.name, again.delay_s), ("near", 9.0))

    def test_what_is_too_long_goes_where_it_is_told_and_no_farther(self) -> None:
        long = ModelSpec("long", (EngineSpec(FAR),), fallbacks=("named",))
        asked = ModelSpec("asked", (EngineSpec(NEAR),), max_model_len=10, context_fallbacks=("long",))
        others = [model_from(name, [url]) for name, url in (("named", FAR), ("near", NEAR), ("far", FAR))]
        router = self.router(asked, long, *others)
        route = router.route_beyond(router.pools["asked"], "long")
        self.assertEqual([pool.name for pool in route], ["long", "named", "asked", "near"])
        self.assertEqual(self.asked(router, "asked"), ["asked", "near"])

    def test_a_reload_changes_what_is_within_reach(self) -> None:
        router = self.router(model_from("near", [NEAR]), model_from("other", [FAR]))
        self.assert_reaches(router, near="", other="near")
        router.reload(FleetSpec((model_from("near", [NEAR]), model_from("other", [NEAR]))))
        self.assert_reaches(router, near="other", other="near")
        router.reload(FleetSpec((model_from("near", [FAR]), model_from("other", [FAR]))))
        self.assert_reaches(router, near="other")
        router.reload(
            FleetSpec((ModelSpec("near", (EngineSpec(NEAR),), fallbacks=("other",)), model_from("other", [FAR])))
        )
        self.assert_reaches(router, near="other")

    def test_without_anybody_to_ask_names_that_tell_nothing_are_unknown(self) -> None:
        router = Router(FleetSpec((model_from("near", [NEAR]), model_from("other", [UNKNOWN]))))
        self.assertEqual(self.asked(router, "near"), ["near"])


if __name__ == "__main__":
    unittest.main()
