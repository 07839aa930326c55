"""Limits over real sockets: who is refused and told when to come back, and that everything taken is given back."""

from __future__ import annotations

import threading
import unittest
from collections import Counter
from collections.abc import Iterable
from typing import Any, Optional

from tests.access import ADMIN_KEYS, AS_ROOT, AccessTest, Clock, ask, bearer
from tests.support import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    TIMEOUT_S,
    Header,
    RawClient,
    Response,
    RunningGateway,
    eventually,
)

ECHO = {"echo": {"engines": ["echo:"]}}
LIMITS = tuple(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset"))


def told(answer: Response) -> dict[str, Optional[int]]:
    """What the answer says of limits, without the common part of the names."""
    headers = {name: answer.header(name) for name in LIMITS}
    return {name[12:]: None if value is None else int(value) for name, value in headers.items()}


class LimitsTest(AccessTest):
    def assert_limited(self, answer: Response, name: str) -> float:
        """The answer refuses for that limit; returns its Retry-After."""
        self.assert_error(answer, 429, "rate_limit_exceeded")
        body = answer.json()
        self.assertEqual(body["limit"], name)
        self.assertIn(name, body["message"])
        retry_after = answer.header("retry-after")
        assert retry_after is not None
        self.assertGreaterEqual(int(retry_after), 1)
        return int(retry_after)

    def assert_recovers(self, running: RunningGateway, clock: Clock, refused: Response, again: Any) -> None:
        """After its Retry-After the same request passes."""
        retry_after = refused.header("retry-after")
        assert retry_after is not None
        clock.now_s += int(retry_after)
        answer = again()
        self.assertEqual(answer.status, 200, answer.body)


class RequestsTest(LimitsTest):
    def test_a_key_has_its_burst_then_its_rate(self) -> None:
        running = self.serve(ECHO)
        clock = self.freeze(running)
        key = self.make(running, rpm=60)
        for left in (5, 4, 3, 2, 1, 0):
            answer = running.post(headers=key)
            self.assertEqual(answer.status, 200)
            self.assertEqual(told(answer)["limit-requests"], 60)
            self.assertEqual(told(answer)["remaining-requests"], left)
        refused = running.post(headers=key)
        self.assertEqual(self.assert_limited(refused, "key requests per minute"), 1)
        self.assertEqual((told(refused)["remaining-requests"], told(refused)["reset-requests"]), (0, 6))
        self.assert_recovers(running, clock, refused, lambda: running.post(headers=key))
        self.assert_limited(running.post(headers=key), "key requests per minute")

    def test_a_refused_request_comes_to_no_engine(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        self.freeze(running)
        key = self.make(running, rpm=1)
        self.assertEqual(running.post(headers=key).status, 200)
        for _ in range(5):
            self.assert_limited(running.post(headers=key), "key requests per minute")
        self.assertEqual(engine.stats()["requests"], 1)

    def test_keys_do_not_share_their_limits_and_tokens_of_a_key_do(self) -> None:
        running = self.serve(ECHO, JWT_SECRET="x" * 32)
        self.freeze(running)
        alice, bob = self.make(running, "alice", rpm=10), self.make(running, "bob", rpm=10)
        issued = bearer(running.ask("POST", "/auth/token", None, alice).json()["token"])
        self.assertEqual(running.post(headers=alice).status, 200)
        self.assert_limited(running.post(headers=issued), "key requests per minute")
        self.assertEqual(running.post(headers=bob).status, 200)

    def test_keys_without_their_own_have_the_default_limits(self) -> None:
        running = self.serve(ECHO, API_KEYS="settings:sk-settings", RATE_LIMIT_RPM=10, RATE_LIMIT_CONCURRENCY=3)
        self.freeze(running)
        for headers in (bearer("sk-settings"), self.make(running)):
            self.assertEqual(running.post(headers=headers).status, 200)
            self.assert_limited(running.post(headers=headers), "key requests per minute")
        own = self.make(running, "own", rpm=1_000)
        self.assertEqual([running.post(headers=own).status for _ in range(3)], [200] * 3)

    def test_the_burst_is_a_setting(self) -> None:
        running = self.serve(ECHO, RATE_LIMIT_BURST=1)
        self.freeze(running)
        key = self.make(running, rpm=8)
        self.assertEqual([running.post(headers=key).status for _ in range(9)], [200] * 8 + [429])

    def test_who_asks_for_no_model_there_is_is_told_of_no_models_limits(self) -> None:
        running = self.serve({"m": {"engines": ["echo:"], "rpm": 20}})
        key = self.make(running, rpm=60)
        self.assertEqual(told(running.post(ask(model="m"), headers=key))["limit-requests"], 20)
        unknown = running.post(ask(model="nope"), headers=key)
        self.assertEqual((unknown.status, told(unknown)["limit-requests"]), (404, 60))

    def test_a_model_and_everybody_together_have_limits(self) -> None:
        fleet = {"m": {"engines": ["echo:"], "rpm": 20}, "n": {"engines": ["echo:"]}}
        running = self.serve(fleet, RATE_LIMIT_GLOBAL_RPM=60)
        clock = self.freeze(running)
        for _ in range(2):
            self.assertEqual(running.post(ask(model="m")).status, 200)
        refused = running.post(ask(model="m"))
        self.assertEqual(self.assert_limited(refused, "model requests per minute"), 3)
        for _ in range(4):
            self.assertEqual(running.post(ask(model="n")).status, 200)
        self.assert_limited(running.post(ask(model="n")), "global requests per minute")
        self.assert_recovers(running, clock, refused, lambda: running.post(ask(model="m")))

    def test_answers_without_an_engine_are_not_limited(self) -> None:
        running = self.serve(ECHO, ADMIN_KEYS=ADMIN_KEYS, RATE_LIMIT_RPM=1, RATE_LIMIT_IP_RPM=1)
        for _ in range(5):
            for path in ("/healthz", "/metrics", "/v1/models", "/health", "/admin/keys"):
                self.assertEqual(running.get(path, [AS_ROOT]).status, 200)

    def test_changed_limits_count_without_a_restart(self) -> None:
        running = self.serve(ECHO)
        self.freeze(running)
        key = self.make(running, rpm=10)
        self.assertEqual([running.post(headers=key).status for _ in range(2)], [200, 429])
        db = running.app.guard.open_db()
        db.write_now(lambda connection: connection.execute("UPDATE keys SET rpm = 1000"))
        eventually(lambda: running.post(headers=key).status == 200)


class AddressesTest(LimitsTest):
    def post_from(self, running: RunningGateway, *forwarded: str) -> Response:
        return running.post(headers=[("X-Forwarded-For", value) for value in forwarded])

    def test_each_address_has_its_limit(self) -> None:
        running = self.serve(ECHO, RATE_LIMIT_IP_RPM=20)
        clock = self.freeze(running)
        self.assertEqual([running.post().status for _ in range(2)], [200, 200])
        refused = running.post()
        self.assertEqual(self.assert_limited(refused, "address requests per minute"), 3)
        self.assert_recovers(running, clock, refused, running.post)

    def test_a_stranger_cannot_name_another_address(self) -> None:
        running = self.serve(ECHO, RATE_LIMIT_IP_RPM=20, TRUSTED_PROXIES="10.0.0.0/8")
        self.freeze(running)
        statuses = [self.post_from(running, f"203.0.113.{number}").status for number in range(4)]
        self.assertEqual(statuses, [200, 200, 429, 429])
        eventually(lambda: len(running.request_lines()) == 4)
        self.assertEqual({line["client"] for line in running.request_lines()}, {"127.0.0.1"})

    def test_behind_a_trusted_proxy_its_client_counts(self) -> None:
        running = self.serve(ECHO, RATE_LIMIT_IP_RPM=20, TRUSTED_PROXIES="127.0.0.1, 10.0.0.0/8")
        self.freeze(running)
        for number in range(4):
            self.assertEqual(self.post_from(running, f"203.0.113.{number}").status, 200)
        # What the client claims stands before what the proxies saw, in one header or in several.
        self.assertEqual(self.post_from(running, "198.51.100.1, 203.0.113.9, 10.1.2.3").status, 200)
        self.assertEqual(self.post_from(running, "198.51.100.2", "203.0.113.9").status, 200)
        self.assert_limited(
            self.post_from(running, "198.51.100.3", "203.0.113.9, 10.9.9.9"), "address requests per minute"
        )
        eventually(lambda: len(running.request_lines()) == 7)
        self.assertEqual([line["client"] for line in running.request_lines()].count("203.0.113.9"), 3)

    def test_refused_keys_are_audited_by_the_address_that_counts(self) -> None:
        running = self.serve(ECHO, ADMIN_KEYS=ADMIN_KEYS, TRUSTED_PROXIES="127.0.0.1")
        running.post(headers=[*bearer("wrong"), ("X-Forwarded-For", "203.0.113.7")])
        line = eventually(lambda: self.audit(running, "authentication_refused"))[0]
        self.assertEqual(line["client"], "203.0.113.7")


class TokensTest(LimitsTest):
    def test_tokens_are_reserved_before_and_settled_by_the_answer(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        self.freeze(running)
        key = self.make(running, tpm=10_000)
        answer = running.post(ask("hi there", max_tokens=900), headers=key)
        used = answer.json()["usage"]["total_tokens"]
        self.assertEqual(told(answer)["remaining-tokens"], 10_000 - 902)  # when it was admitted
        again = running.post(ask("hi there", max_tokens=900), headers=key)
        self.assertEqual(told(again)["remaining-tokens"], 10_000 - used - 902)
        self.assertLess(used, 50)

    def test_the_next_request_finds_it_settled_whoever_sends_it(self) -> None:
        running = self.serve(ECHO)
        self.freeze(running)
        key = self.make(running, tpm=10_000)
        for _ in range(30):  # each on a connection of its own: they would not fit if one waited for the other's end
            self.assertEqual(running.post(ask("x", max_tokens=700), headers=key).status, 200)

    def test_a_refusal_tells_when_to_come_back(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        clock = self.freeze(running)
        key = self.make(running, tpm=6_000)
        with engine.hold_after(0) as gate:
            held = self.begin(running, key, stream=True, max_tokens=5_900)
            self.assertTrue(gate.wait_for_held(1, TIMEOUT_S))
            refused = running.post(ask(max_tokens=300), headers=key)
            self.assertEqual(self.assert_limited(refused, "key tokens per minute"), 3)  # 204 of 6 000 are lacking
            asked = engine.stats()["requests"]
            self.assert_recovers(running, clock, refused, lambda: running.post(ask(max_tokens=300), headers=key))
            self.assertEqual(engine.stats()["requests"], asked + 1)
        held.read_head()
        held.read_events()

    def test_what_could_never_pass_is_400(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}}, RATE_LIMIT_GLOBAL_TPM=50_000)
        key = self.make(running, tpm=1_000)
        for body, headers, limit in (
            (ask(max_tokens=1_000), key, "key tokens per minute"),
            (ask("word " * 1_000), key, "key tokens per minute"),
            (ask(max_tokens=300, n=4), key, "key tokens per minute"),
            (ask(max_tokens=60_000), self.make(running, "rich"), "global tokens per minute"),
        ):
            with self.subTest(limit=limit, body=str(body)[-40:]):
                answer = running.post(body, headers=headers)
                self.assert_error(answer, 400, "request_exceeds_limit")
                self.assertEqual(answer.json()["limit"], limit)
                self.assertIsNone(answer.header("retry-after"))
        self.assertEqual(engine.stats()["requests"], 0)

    def test_every_choice_is_reserved(self) -> None:
        running = self.serve(ECHO)
        self.freeze(running)
        key = self.make(running, tpm=10_000)
        self.assertEqual(told(running.post(ask(max_tokens=100, n=5), headers=key))["remaining-tokens"], 10_000 - 502)

    def test_what_best_of_has_made_and_thrown_away_is_reserved(self) -> None:
        running = self.serve(ECHO)
        self.freeze(running)
        key = self.make(running, tpm=10_000)
        for options, tokens in (
            ({"best_of": 5}, 500),
            ({"best_of": 5, "n": 2}, 500),
            ({"best_of": 1, "n": 2}, 200),
            ({"best_of": 3, "prompt": ["hi", "hi"]}, 600),
            ({"best_of": 5.0}, 500),
            ({"best_of": "5"}, 500),
            ({"best_of": 0.5}, 100),
            ({"best_of": "x"}, 100),
            ({"best_of": -1}, 100),
        ):
            with self.subTest(**options):
                answer = running.post({"prompt": "hi", "max_tokens": 100, **options}, COMPLETIONS, key)
                self.assertAlmostEqual(told(answer)["remaining-tokens"] or 0, 10_000 - tokens, delta=8)
            running.app.guard.clock.now_s += 60.0  # type: ignore[attr-defined]
        for best_of in (10**6, 10**400):
            answer = running.post({"prompt": "hi", "max_tokens": 100, "best_of": best_of}, COMPLETIONS, key)
            self.assert_error(answer, 400, "request_exceeds_limit")

    def test_a_stream_settles_when_it_ends(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        self.freeze(running)
        key = self.make(running, tpm=10_000, concurrency=1)
        with running.connect() as client:
            client.request("POST", CHAT, ask(stream=True, max_tokens=900), key)
            self.assertEqual(told(client.read_head())["remaining-tokens"], 10_000 - 902)
            self.assertEqual(client.read_events()[-1], "data: [DONE]")
        self.assert_idle(running)

        def settled() -> bool:
            return (told(running.post(ask(max_tokens=1), headers=key))["remaining-tokens"] or 0) > 9_800

        eventually(settled)

    def test_failed_and_cancelled_requests_give_their_tokens_back(self) -> None:
        bad, hanging = self.engine("error", status=500), self.engine("hang")
        fleet = {"bad": {"engines": [bad.url], "fallbacks": []}, "hang": {"engines": [hanging.url], "fallbacks": []}}
        running = self.serve(fleet, BREAKER_MIN_REQUESTS=1_000_000)
        self.freeze(running)
        key = self.make(running, tpm=10_000)
        self.assertEqual(running.post(ask(model="bad", max_tokens=900), headers=key).status, 502)
        client = self.begin(running, key, model="hang", max_tokens=900)
        self.assertTrue(hanging.wait_for_requests(1, TIMEOUT_S))
        client.close()
        self.assert_idle(running)
        for _ in range(30):  # a connection each: not even the next one may find the tokens of a failed request taken
            self.assertEqual(running.post(ask(model="bad", max_tokens=900), headers=key).status, 502)

    def test_completions_and_embeddings_count_too(self) -> None:
        running = self.serve(ECHO)
        key = self.make(running, tpm=1_000)
        for path, body in (
            (COMPLETIONS, {"prompt": "x" * 8_000}),
            (COMPLETIONS, {"prompt": ["x" * 4_000, "x" * 4_000]}),
            (EMBEDDINGS, {"input": "x" * 8_000}),
            (EMBEDDINGS, {"input": ["x" * 4_000] * 2}),
        ):
            with self.subTest(path):
                self.assert_error(running.post(body, path, key), 400, "request_exceeds_limit")


class ConcurrencyTest(LimitsTest):
    def test_so_many_at_once_and_no_more(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        key = self.make(running, concurrency=2)
        with engine.hold_after(1) as gate:
            held = [self.begin(running, key, stream=True) for _ in range(2)]
            self.assertTrue(gate.wait_for_held(2, TIMEOUT_S))
            refused = running.post(headers=key)
            self.assert_limited(refused, "key concurrent requests")
            self.assertEqual(engine.stats()["requests"], 2)
            other = self.make(running, "bob", concurrency=2)
            self.assertEqual(running.post(headers=other).status, 200)
        for client in held:
            client.read_head()
            self.assertEqual(client.read_events()[-1], "data: [DONE]")
        self.assertEqual(running.post(headers=key).status, 200)

    def test_the_time_to_come_back_is_what_requests_usually_take(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        clock = self.freeze(running)
        key = self.make(running, concurrency=1)
        for waits_s in (1, 3):
            with engine.hold_after(1) as gate:
                held = self.begin(running, key, stream=True)
                self.assertTrue(gate.wait_for_held(1, TIMEOUT_S))
                refused = running.post(headers=key)
                self.assertEqual(self.assert_limited(refused, "key concurrent requests"), waits_s)
                clock.now_s += 3.0
            held.read_response()
            self.assert_recovers(running, clock, refused, lambda: running.post(headers=key))

    def test_the_slot_is_free_before_the_last_byte(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}, "echo": {"engines": ["echo:"]}})
        key = self.make(running, concurrency=1)
        for model in ("m", "echo"):
            for options in ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}):
                with self.subTest(model=model, **options):
                    for _ in range(40):  # a connection each: nothing but the answer's end orders them
                        with running.connect() as client:
                            answer = client.post(ask(model=model, **options), headers=key)
                            self.assertEqual(answer.status, 200, answer.body)

    def test_also_when_the_answer_is_an_error(self) -> None:
        bad = self.engine("error", status=500)
        cut = self.engine("drop_mid_stream", after=1)
        fleet = {"bad": {"engines": [bad.url], "fallbacks": []}, "cut": {"engines": [cut.url], "fallbacks": []}}
        running = self.serve(fleet, BREAKER_MIN_REQUESTS=1_000_000)
        key = self.make(running, concurrency=1)
        for _ in range(20):
            self.assertEqual(running.post(ask(model="bad"), headers=key).status, 502)
            self.assertIn(b"backend_error", running.post(ask(model="cut", stream=True), headers=key).body)
        self.assert_idle(running)

    def test_who_leaves_gives_the_slot_back(self) -> None:
        hanging = self.engine("hang")
        running = self.serve({"m": {"engines": [hanging.url]}}, WORKERS=1)
        key = self.make(running, concurrency=2)
        asked = self.begin(running, key)
        self.assertTrue(hanging.wait_for_requests(1, TIMEOUT_S))
        queued = self.begin(running, key)
        eventually(lambda: running.app.workers.depth == 1)
        self.assert_limited(running.post(headers=key), "key concurrent requests")
        queued.close()
        eventually(lambda: running.app.workers.depth == 0)
        asked.close()
        self.assert_idle(running)
        hanging.control("ok")
        self.assertEqual(running.post(headers=key).status, 200)

    def test_a_stream_that_its_client_leaves_gives_it_back(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        key = self.make(running, concurrency=1, tpm=100_000)
        with engine.hold_after(1) as gate:
            client = self.begin(running, key, stream=True)
            self.assertTrue(gate.wait_for_held(1, TIMEOUT_S))
            client.close()
            self.assert_idle(running)
        eventually(lambda: running.post(headers=key).status == 200)

    def test_a_full_queue_gives_it_back(self) -> None:
        hanging = self.engine("hang")
        running = self.serve({"m": {"engines": [hanging.url]}}, WORKERS=1, QUEUE_SIZE=1)
        key = self.make(running, concurrency=3)
        held = [self.begin(running, key)]
        self.assertTrue(hanging.wait_for_requests(1, TIMEOUT_S))
        held.append(self.begin(running, key))
        eventually(lambda: running.app.workers.depth == 1)
        for _ in range(5):
            answer = running.post(headers=key)
            self.assert_error(answer, 503, "overloaded")
        for client in held:
            client.close()
        self.assert_idle(running)


class HeadersTest(LimitsTest):
    def test_every_answer_carries_them(self) -> None:
        good, bad, fussy = self.engine(), self.engine("error", status=500), self.engine("bad_request")
        fleet = {
            "m": {"engines": [good.url], "price": {"input": 1, "output": 1}},
            "bad": {"engines": [bad.url], "fallbacks": []},
            "fussy": {"engines": [fussy.url], "fallbacks": []},
        }
        running = self.serve(fleet)
        key = self.make(running, rpm=600, tpm=60_000, concurrency=9, models=("m", "bad", "fussy"))
        spent = self.make(running, "spent", rpm=600, tpm=60_000, budget_usd=0.000001, models=("m",))
        viewer = self.make(running, "viewer", role="viewer", rpm=600, tpm=60_000)
        self.assertEqual(running.post(ask(model="m"), headers=spent).status, 200)
        for name, body, headers, status in (
            ("an answer", ask(model="m"), key, 200),
            ("a stream", ask(model="m", stream=True), key, 200),
            ("a failed engine", ask(model="bad"), key, 502),
            ("a refusing engine", ask(model="fussy"), key, 400),
            ("a request that is not valid", ask(model="m", temperature=7), key, 400),
            ("no JSON", b"{", key, 400),
            ("an unknown model", ask(model="nope"), key, 404),
            ("a request that could never pass", ask(model="m", max_tokens=100_000), key, 400),
            ("a spent budget", ask(model="m"), spent, 429),
            ("a role that may not", ask(model="m"), viewer, 403),
        ):
            with self.subTest(name):
                answer = running.post(body, headers=headers)
                self.assertEqual(answer.status, status, answer.body)
                numbers = told(answer)
                self.assertEqual((numbers["limit-requests"], numbers["limit-tokens"]), (600, 60_000))
                self.assertTrue(0 <= (numbers["remaining-requests"] or 0) <= 60)
                self.assertTrue(0 <= (numbers["remaining-tokens"] or 0) <= 60_000)
                for reset in ("reset-requests", "reset-tokens"):
                    self.assertIsNotNone(numbers[reset])

    def test_a_stranger_is_told_nothing(self) -> None:
        running = self.serve(ECHO, ADMIN_KEYS=ADMIN_KEYS, RATE_LIMIT_RPM=60, RATE_LIMIT_IP_RPM=60)
        self.assertEqual(set(told(running.post()).values()), {None})

    def test_without_limits_there_are_none(self) -> None:
        running = self.serve(ECHO)
        for headers in ([], self.make(running)):
            self.assertEqual(set(told(running.post(headers=headers)).values()), {None})

    def test_in_the_other_error_format_too(self) -> None:
        running = self.serve(ECHO, ERROR_FORMAT="openai", RATE_LIMIT_IP_RPM=1)
        running.post()
        answer = running.post()
        error = answer.json()["error"]
        self.assertEqual(
            (answer.status, error["code"], error["type"]), (429, "rate_limit_exceeded", "rate_limit_error")
        )
        self.assertEqual(error["limit"], "address requests per minute")

    def test_shrunk_limits_are_seen_in_headers_and_metrics(self) -> None:
        running = self.serve(ECHO)
        key = self.make(running, rpm=100, priority="low")
        guard = running.app.guard
        running.app.guard.adaptive.tick(0.0, None, None)
        self.assertTrue(guard.adaptive.tick(1.0, 60.0, None))
        guard.limiter.set_factors(guard.adaptive.factors())
        self.assertEqual(told(running.post(headers=key))["limit-requests"], 50)
        self.assertEqual(running.metrics()['gateway_limit_factor{priority="normal"}'], 1.0)
        self.assertLess(running.metrics()['gateway_limit_factor{priority="low"}'], 0.9)


class ManyTest(LimitsTest):
    """Many threads against one key; the clock stands still, so that what may pass is known exactly."""

    def storm(self, threads: int, each: int, ask_once: Any) -> list[Any]:
        """What `ask_once(client, number)` gave to each thread, `each` times on a connection of its own."""
        results: list[Any] = []
        barrier = threading.Barrier(threads)

        def run(number: int, client: RawClient) -> None:
            barrier.wait()
            for _ in range(each):
                results.append(ask_once(client, number))

        clients = [self.enter(self.gateway.connect()) for _ in range(threads)]
        workers = [threading.Thread(target=run, args=pair) for pair in enumerate(clients)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.assertEqual(len(results), threads * each)
        return results

    def statuses(self, key: Iterable[Header], body: Any, threads: int = 50, each: int = 4) -> Counter[int]:
        return Counter(self.storm(threads, each, lambda client, _: client.post(body, headers=key).status))

    def test_50_threads_never_get_more_than_the_limit_and_all_get_on_after_it(self) -> None:
        self.gateway = self.serve(ECHO)
        clock = self.freeze(self.gateway)
        key = self.make(self.gateway, rpm=60, tpm=2_000)
        body = ask("x" * 40, max_tokens=10)  # 10 reserved for the prompt and 10 for the answer
        self.assertEqual(self.statuses(key, body)[200], 6)  # the burst of the requests
        served: list[int] = []

        def persist(client: RawClient, number: int) -> int:
            tries = 0
            while client.post(body, headers=key).status != 200:
                tries += 1
                with turn:
                    clock.now_s += 0.02  # 50 threads: about one request's worth a round
            served.append(number)
            return tries

        turn = threading.Lock()
        began_s = clock.now_s
        self.storm(50, 1, persist)
        self.assertEqual(sorted(served), list(range(50)))  # nobody starves
        self.assertGreaterEqual(clock.now_s - began_s, 50 - 6)
        self.assert_idle(self.gateway)

    def test_tokens_hold_under_concurrency(self) -> None:
        self.gateway = self.serve(ECHO, RATE_LIMIT_TOKEN_BURST=0.1)
        self.freeze(self.gateway)
        key = self.make(self.gateway, tpm=2_000)
        # 200 tokens may pass at once. Each takes 60 first and what it really takes, 20 or so, in the end.
        used: list[int] = []

        def once(client: RawClient, number: int) -> int:
            answer = client.post(ask("x" * 40, max_tokens=50), headers=key)
            if answer.status == 200:
                used.append(answer.json()["usage"]["total_tokens"])
            return answer.status

        found = Counter(self.storm(50, 4, once))
        self.assertEqual(set(found), {200, 429})
        self.assertLessEqual(sum(used), 200)
        self.assertGreaterEqual(found[200], 3)
        self.assert_idle(self.gateway)

    def test_no_more_than_so_many_at_once_under_a_storm(self) -> None:
        engine = self.engine("slow", delay=0.01)
        self.gateway = self.serve({"m": {"engines": [engine.url]}})
        key = self.make(self.gateway, concurrency=3)
        peak = 0
        lock = threading.Lock()
        inside = 0
        run = self.gateway.app.factory.run

        def counted(call: Any) -> Any:
            nonlocal inside, peak
            with lock:
                inside += 1
                peak = max(peak, inside)
            try:
                return run(call)
            finally:
                with lock:
                    inside -= 1

        self.gateway.app.factory.run = counted  # type: ignore[method-assign]
        found = self.statuses(key, ask(model="m"), threads=20, each=5)
        self.assertEqual(set(found), {200, 429})
        self.assertLessEqual(peak, 3)
        self.assert_idle(self.gateway)

    def test_after_a_storm_of_everything_nothing_is_held(self) -> None:
        good, bad = self.engine(model="m"), self.engine("error", status=500)
        hanging, cut = self.engine("hang"), self.engine("drop_mid_stream", after=1)
        fleet = {
            name: {"engines": [engine.url], "fallbacks": []}
            for name, engine in (("m", good), ("bad", bad), ("hang", hanging), ("cut", cut))
        }
        self.gateway = self.serve(fleet, WORKERS=4, QUEUE_SIZE=4, QUEUE_TIMEOUT=0.2, REQUEST_TIMEOUT=0.3)
        key = self.make(self.gateway, concurrency=12, tpm=1_000_000, rpm=100_000)
        bodies = [
            ask(model="m"),
            ask(model="m", stream=True, max_tokens=50),
            ask(model="bad", max_tokens=50),
            ask(model="hang", max_tokens=50),
            ask(model="cut", stream=True),
            ask(model="m", temperature=9),
            ask(model="m", max_tokens=10_000_000),
        ]

        def once(client: RawClient, number: int) -> int:
            body = bodies[number % len(bodies)]
            if number % 5 == 4:  # sends and leaves
                with self.gateway.connect() as other:
                    other.request("POST", CHAT, body, key)
                return 0
            return self.gateway.post(body, headers=key).status  # some answers end their connection

        found = Counter(self.storm(28, 4, once))
        self.assertTrue({0, 200, 400} <= set(found), found)
        self.assert_idle(self.gateway)
        scope = self.key_scopes(self.gateway)["alice"]
        self.assertEqual(sum(mark.open_count for mark in scope.tokens._marks), 0)
        hanging.control("ok")
        self.freeze(self.gateway).now_s += 60
        statuses = self.statuses(key, ask(model="m"), threads=4, each=5)
        self.assertEqual(statuses, Counter({200: 20}))


if __name__ == "__main__":
    unittest.main()
