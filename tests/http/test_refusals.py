"""What an engine's 401 and 403 take out, on whose word, and how a reload with another key forgets it."""

from __future__ import annotations

import json
import threading
import unittest
from random import Random
from typing import Any, Optional

from gateway.errors import GatewayError
from gateway.routing.accusers import Accusers
from gateway.routing.engine import Engine
from gateway.routing.pool import ModelPool
from gateway.routing.retry import OK, Outcome
from gateway.routing.router import Router
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec
from gateway.upstream.status import status_outcome
from inference import InferenceFactory
from tests.resilience import ResilienceTest, ask
from tests.support import Header, Response, RunningGateway, SocketTest, dead_url, eventually, mock_engine

REFUSED = Outcome("unauthorized", "no", 403)
MODERATED: tuple[Any, ...] = (
    {"error": {"code": "content_policy_violation", "message": "no"}},
    {"error": {"type": "content_filter", "message": "no"}},
    {"error": {"message": "no", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
    {"error": {"code": 403, "message": "x", "metadata": {"reasons": ["violence"], "flagged_input": "y"}}},
    {"error": {"message": 'openai/gpt-4o requires moderation on OpenAI. Your input was flagged for "violence".'}},
    {"error": {"message": "The prompt was not let through"}},
    {"error": "Blocked for safety reasons"},
    {"detail": "This request violates our content policy."},
    {"message": "input text is harmful"},
    {"error": {"param": "prompt", "message": "no"}},
    {"error": "content_filter", "message": "no"},
    {"error": "moderation", "message": "no"},
    {"error": {"code": "content_filter", "message": {"text": "no"}}},
    {"code": "content_filter", "error": {"message": "no"}},
)
CREDENTIALS: tuple[Any, ...] = (
    {"error": {"message": "Your API key does not have access to this model", "code": "model_access_denied"}},
    {"error": {"message": "Your account was flagged for unsafe content"}},
    {
        "error": {
            "message": "Country, region, or territory not supported",
            "code": "unsupported_country_region_territory",
        }
    },
    {"error": {"message": "You do not have permission to use prompt caching"}},
    {"error": {"message": "Forbidden"}},
    {"error": "forbidden"},
    {"error": "Forbidden", "message": "no permission to read prompts"},
    {"error": {"message": 7, "metadata": {"reasons": []}}},
    {"error": []},
    {"error": None},
    {},
    [],
    "no",
    7,
)


class StatusTest(unittest.TestCase):
    def test_a_403_that_is_explained_as_moderation_is_the_callers(self) -> None:
        for error in MODERATED:
            with self.subTest(error=error):
                outcome = status_outcome(403, {}, json.dumps(error).encode())
                self.assertEqual((outcome.kind, outcome.status), ("rejected", 403))
                self.assertTrue(outcome.message)

    def test_any_other_403_and_every_401_is_the_engines(self) -> None:
        bodies = [json.dumps(error).encode() for error in CREDENTIALS]
        bodies += [b"", b"<html>blocked by policy: your request was flagged</html>", b"\xff{", b"[" * 100_000]
        for body in bodies:
            with self.subTest(body=body[:80]):
                self.assertEqual(status_outcome(403, {}, body).kind, "unauthorized")
        for error in (*MODERATED, *CREDENTIALS):
            with self.subTest(error=error):
                self.assertEqual(status_outcome(401, {}, json.dumps(error).encode()).kind, "unauthorized")

    def test_what_an_engine_says_of_the_key_is_not_passed_on(self) -> None:
        outcome = status_outcome(403, {}, b'{"error": {"message": "key sk-123 has no rights"}}')
        self.assertNotIn("sk-123", outcome.message)


class AccusersTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 100.0
        self.accusers = Accusers(lambda: self.now_s)
        self.a, self.b, self.c = (Engine(EngineSpec(f"http://{name}:1/v1"), "m") for name in "abc")

    def test_one_callers_word_takes_out_one_engine(self) -> None:
        self.assertFalse(self.accusers.told)
        self.assertTrue(self.accusers.believed("x", self.a))
        self.assertFalse(self.accusers.believed("x", self.b))
        self.assertFalse(self.accusers.believed("x", self.c))
        self.assertTrue(self.accusers.believed("x", self.a))
        self.assertTrue(self.accusers.told)

    def test_another_caller_is_believed_too(self) -> None:
        self.accusers.believed("x", self.a)
        self.assertTrue(self.accusers.believed("y", self.b))
        self.assertFalse(self.accusers.believed("y", self.a))

    def test_after_a_minute_it_may_be_another_engine(self) -> None:
        self.accusers.believed("x", self.a)
        self.now_s += 59.0
        self.assertFalse(self.accusers.believed("x", self.b))
        self.accusers.believed("x", self.a)  # out for another minute
        self.now_s += 59.0
        self.assertFalse(self.accusers.believed("x", self.b))
        self.now_s += 1.0
        self.assertTrue(self.accusers.believed("x", self.b))

    def test_a_caller_avoids_for_a_minute_what_refused_it(self) -> None:
        for engine in (self.a, self.b):
            self.accusers.believed("x", engine)
        self.assertEqual(self.accusers.avoided("x"), (self.a, self.b))
        self.assertEqual(self.accusers.avoided("y"), ())
        self.now_s += 60.0
        self.assertEqual(self.accusers.avoided("x"), ())
        self.assertFalse(self.accusers.told)

    def test_what_is_forgotten_of_an_engine_frees_its_caller(self) -> None:
        self.accusers.believed("x", self.a)
        self.accusers.forget([self.a])
        self.assertFalse(self.accusers.told)
        self.assertTrue(self.accusers.believed("x", self.b))

    def test_it_keeps_a_bounded_number_of_callers_and_believes_no_more(self) -> None:
        for number in range(4096):
            self.assertTrue(self.accusers.believed(str(number), self.a))
        self.assertFalse(self.accusers.believed("one more", self.a))
        self.now_s += 60.0
        self.assertTrue(self.accusers.believed("one more", self.a))


class AvoidingTest(unittest.TestCase):
    def test_an_engine_to_avoid_is_chosen_only_when_no_other_is_free(self) -> None:
        specs = tuple(EngineSpec(f"http://{name}:1/v1", id=name, max_concurrency=2) for name in "abc")
        pool = ModelPool(ModelSpec("m", specs), "round_robin", Random(1), lambda: 5.0)
        first, second, _ = pool.engines
        chosen = []
        for _ in range(6):
            lease = pool.acquire((), b"", (first, second))
            assert lease is not None
            chosen.append(lease.engine.id)
        self.assertEqual((chosen[:2], sorted(chosen[2:])), (["c", "c"], ["a", "a", "b", "b"]))


class OneCallerTest(ResilienceTest):
    """Four engines that answer 403 without saying why."""

    def start(self, **variables: object) -> RunningGateway:
        self.four = [self.engine("error", status=403) for _ in range(4)]
        return self.serve({"m": {"engines": [e.url for e in self.four]}}, HEALTH_INTERVAL=0, **variables)

    def out(self, running: RunningGateway) -> int:
        return self.states(running).count("misconfigured")

    def test_one_caller_takes_out_one_engine_and_another_caller_a_second(self) -> None:
        keys = "x:sk-x-0123456789,y:sk-y-0123456789"
        for stream in (False, True):
            with self.subTest(stream=stream):
                running = self.start(API_KEYS=keys)
                x: list[Header] = [("Authorization", "Bearer sk-x-0123456789")]
                y: list[Header] = [("X-API-Key", "sk-y-0123456789")]
                for _ in range(5):
                    self.assert_error(running.post(ask(stream=stream), headers=x), 502, "backend_error")
                    self.assertEqual(self.out(running), 1)
                running.post(ask(stream=stream), headers=y)
                self.assertEqual(self.out(running), 2)
                for engine in self.four:
                    engine.control("ok")
                for who in (x, y):
                    self.assertEqual(running.post(ask(), headers=who).status, 200)

    def test_without_keys_a_caller_is_an_address(self) -> None:
        running = self.start(TRUSTED_PROXIES="127.0.0.1")
        for address in ("2001:db8::1", "2001:db8::2", "2001:db8::3"):  # one household
            self.assertEqual(running.post(ask(), headers=[("X-Forwarded-For", address)]).status, 502)
        self.assertEqual(self.out(running), 1)
        running.post(ask(), headers=[("X-Forwarded-For", "198.51.100.7")])
        self.assertEqual(self.out(running), 2)

    def test_it_is_one_engine_of_all_models(self) -> None:
        first, second = self.engine("error", status=403), self.engine("error", status=403)
        running = self.serve({"m": {"engines": [first.url]}, "n": {"engines": [second.url]}})
        for model in ("m", "n"):
            running.post(ask(model=model))
        self.assertEqual(self.out(running), 1)

    def test_a_401_takes_out_every_engine_that_says_it(self) -> None:
        running = self.start()
        for engine in self.four:
            engine.control("unauthorized")
        for _ in range(2):
            running.post(ask())
        self.assertEqual(self.out(running), 4)

    def test_who_was_refused_is_asked_elsewhere_first(self) -> None:
        running = self.start()
        running.post(ask())  # three of four have refused it
        refused = [engine.stats()["requests"] for engine in self.four]
        self.assertEqual(sorted(refused), [0, 1, 1, 1])
        self.four[refused.index(0)].control("ok")
        for _ in range(5):
            answer = running.post(ask())
            self.assert_answered_by(answer, self.four[refused.index(0)].port, attempts=1)


class ModerationTest(ResilienceTest):
    def test_the_engines_words_reach_the_caller_and_no_engine_is_out(self) -> None:
        for stream in (False, True):
            with self.subTest(stream=stream):
                first, second = self.scripted(), self.scripted()
                running = self.serve({"m": {"engines": [first.url, second.url]}}, HEALTH_INTERVAL=0)
                client = self.begin(running, ask(stream=stream))
                body = json.dumps({"error": {"code": "content_policy_violation", "message": "flagged: violence"}})
                first.take().answer(body.encode(), status="403 Forbidden")
                answer: Response = client.read_response()
                self.assert_error(answer, 403, "backend_rejected")
                self.assertEqual(answer.json()["message"], "flagged: violence")
                self.assertEqual(answer.header("x-gateway-attempts"), "1")
                self.assertEqual(self.states(running), ["up", "up"])


def spec(key: Optional[str] = "KEY", model: Optional[str] = None, url: str = "http://a:1/v1") -> FleetSpec:
    return FleetSpec((ModelSpec("m", (EngineSpec(url, id="a", api_key_env=key, model=model),)),))


class ForgettingTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 50.0
        self.router = Router(spec(), rng=Random(1), clock=lambda: self.now_s)

    @property
    def engine(self) -> Engine:
        return self.router.pools["m"].engines[0]

    def spoil(self, *outcomes: Outcome) -> None:
        pool = self.router.pools["m"]
        for outcome in outcomes:
            lease = pool.acquire((), b"") or pool.acquire_last_resort(())
            if lease is not None:
                pool.settle(lease, outcome, 0.1)

    def test_another_key_variable_model_or_secret_forgets_what_was_held_against_it(self) -> None:
        broken = [Outcome("error", "x")] * 5
        for what, outcomes in (
            ("misconfigured", [REFUSED]),
            ("resting", [Outcome("rate_limited", "", 429, 900.0)]),
            ("open", broken),
            ("down", [Outcome("refused", "x")]),
        ):
            changes: tuple[tuple[FleetSpec, tuple[str, ...]], ...] = (
                (spec("OTHER"), ()),
                (spec(None), ()),
                (spec(model="other"), ()),
                (spec(), ("KEY",)),
                (spec(url="http://b:1/v1"), ()),
            )
            for changed, renewed in changes:
                with self.subTest(state=what, changed=changed, renewed=renewed):
                    self.router = Router(spec(), rng=Random(1), clock=lambda: self.now_s)
                    self.spoil(*outcomes)
                    self.assertEqual(self.engine.state(self.now_s), what)
                    self.router.reload(changed, renewed)
                    self.assertEqual(self.engine.state(self.now_s), "up")
                    self.assertIsNone(self.engine.last_error)
                    self.assertTrue(self.router.pools["m"].any_available())
                    self.assertEqual(self.router.pools["m"].due_for_probe(5.0), [self.engine])

    def test_any_other_change_keeps_it(self) -> None:
        self.spoil(REFUSED)
        self.router.reload(spec(), ("OTHER",))
        self.assertEqual(self.engine.state(self.now_s), "misconfigured")
        heavier = FleetSpec((ModelSpec("m", (EngineSpec("http://a:1/v1", id="a", api_key_env="KEY", weight=3),)),))
        self.router.reload(heavier)
        self.assertEqual(self.engine.state(self.now_s), "misconfigured")

    def test_what_an_operator_said_stays(self) -> None:
        self.router.pools["m"].set_draining("a", True)
        self.router.reload(spec("OTHER"))
        self.assertEqual(self.engine.state(self.now_s), "draining")

    def test_what_was_asked_under_the_old_key_says_nothing_of_the_new_one(self) -> None:
        pool = self.router.pools["m"]
        outcomes = [
            *[Outcome("error", "x")] * 6,
            REFUSED,
            Outcome("refused"),
            OK,
            Outcome("rate_limited", "", 429, 9.0),
        ]
        leases = [pool.acquire((), b"") for _ in range(len(outcomes) + 1)]
        self.router.reload(spec(), ("KEY",))
        self.assertEqual(self.engine.in_flight, len(leases))
        stream = leases.pop()
        assert stream is not None
        self.assertIsNone(pool.answered(stream, 0.1))
        for lease, outcome in zip(leases, outcomes):
            assert lease is not None
            self.assertIsNone(pool.settle(lease, outcome, 0.1))
            self.assertEqual(self.engine.state(self.now_s), "up")
        self.assertIsNone(pool.settle(stream, Outcome("reset", "x"), 0.1))
        self.assertEqual(self.engine.in_flight, 0)
        self.assertEqual((self.engine.ok_at_s, self.engine.failed_at_s), (float("-inf"), float("-inf")))
        self.assertIsNone(self.engine.last_error)
        self.spoil(*[Outcome("error", "x")] * 5)  # what comes now counts
        self.assertEqual(self.engine.state(self.now_s), "open")

    def test_who_was_refused_by_the_old_key_does_not_avoid_the_new_one(self) -> None:
        self.router.accusers.believed("x", self.engine)
        self.router.reload(spec(), ("KEY",))
        self.assertFalse(self.router.accusers.told)


class NewKeyTest(SocketTest):
    def test_the_next_request_has_the_new_key_and_the_engine_is_in(self) -> None:
        engine = self.enter(mock_engine(behaviour="unauthorized"))
        fleet = FleetSpec((ModelSpec("m", (EngineSpec(engine.url, api_key_env="KEY"), EngineSpec(dead_url()))),))
        with InferenceFactory(fleet, secrets={"KEY": "old"}, health_interval_s=0, fallback="off") as factory:
            with self.assertRaises(GatewayError):
                factory.generate("hi")
            self.assertEqual(factory.engines()[0].state, "misconfigured")
            engine.control("ok")
            factory.reload(fleet, {"KEY": "old"})
            self.assertEqual(factory.engines()[0].state, "misconfigured")
            factory.reload(fleet, {"KEY": "new"})
            self.assertEqual(factory.engines()[0].state, "up")
            self.assertEqual(factory.generate("hi"), factory.generate("hi"))
            endpoint = factory.asker._attempts.engines._endpoints[factory.router.pools["m"].engines[0]]
            self.assertIn(b"Authorization: Bearer new\r\n", endpoint.wire("/chat/completions", b"", b""))

    def test_it_is_probed_soon(self) -> None:
        engine = self.enter(mock_engine())
        fleet = FleetSpec((ModelSpec("m", (EngineSpec(engine.url, api_key_env="KEY"),)),))
        probed = threading.Event()
        with InferenceFactory(fleet, secrets={"KEY": "old"}, health_interval_s=3600) as factory:
            factory.generate("hi")
            health = factory._health
            inner = health._probe
            eventually(lambda: engine.stats()["probes"] == 1 and not health._under_way)

            def probe(spec: EngineSpec, timeout_s: float) -> Optional[str]:
                probed.set()
                return inner(spec, timeout_s)

            health._probe = probe
            factory.reload(fleet, {"KEY": "old"})
            self.assertFalse(health._under_way or probed.is_set())  # one that has begun is either
            factory.reload(fleet, {"KEY": "new"})
            self.assertTrue(probed.wait(10))


if __name__ == "__main__":
    unittest.main()
