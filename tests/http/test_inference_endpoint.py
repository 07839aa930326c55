"""`POST /api/v1/inference` over real sockets: several models asked at once, and what is told of them."""

from __future__ import annotations

import json
import threading
import unittest
from typing import Any

from gateway.verify.sandbox.job import Job, Run
from tests.onloop import asked_threads
from tests.panels import code
from tests.support import (
    RunningGateway,
    assert_no_more_threads,
    dead_url,
    eventually,
    gateway,
    mock_engine,
    thread_names,
)
from tests.verified import INFERENCE, PROMPT, VerifiedTest, adds_one, answer

RIGHT, WRONG = code("return x + 1"), code("return x")
USER = [("Authorization", "Bearer sk-u")]
KEYS = {"API_KEYS": "u:sk-u", "ADMIN_KEYS": "root:sk-r"}


class ShapeTest(VerifiedTest):
    def test_the_answer_is_that_of_the_contract_field_by_field(self) -> None:
        running = self.several()
        self.jail(running)
        client = self.infer(running, headers=[("X-Request-ID", "my-1")], metadata={"a": 1})
        sides = self.take()
        for name in "ab":
            answer(sides[name], RIGHT)
        self.assertTrue(sides["c"].wait_until_left())
        response = client.read_response()
        self.assertEqual(response.status, 200, response.body)
        self.assertEqual(response.header("content-type"), "application/json")
        self.assertEqual(response.header("x-gateway-model"), "a")
        told = response.json()
        self.assertEqual(
            sorted(told),
            ["model_responses", "request_id", "selected_response", "timestamp", "total_latency", "verification"],
        )
        self.assertEqual((told["request_id"], response.request_id, told["selected_response"]), ("my-1", "my-1", RIGHT))
        self.assertGreater(told["total_latency"], 0)
        self.assertRegex(told["timestamp"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        first, second, third = told["model_responses"]
        self.assertGreater(first.pop("latency"), 0)
        self.assertRegex(first.pop("timestamp"), "Z$")
        self.assertEqual(
            first,
            {
                "model_name": "a",
                "provider": "engine-a",
                "text": RIGHT,
                "code_blocks": [
                    {"language": "python", "code": "def f(x):\n    return x + 1", "line_start": 4, "line_end": 5}
                ],
                "execution_results": [
                    {
                        "success": True,
                        "exit_code": 0,
                        "stdout": "printed\n",
                        "stderr": "",
                        "execution_time": 0.01,
                        "error": None,
                        "isolation": "namespaces",
                        "truncated": False,
                    }
                ],
                "error": None,
                "healed": False,
            },
        )
        self.assertEqual((second["model_name"], second["text"]), ("b", RIGHT))
        self.assertEqual((third["text"], third["code_blocks"], third["execution_results"]), (None, [], []))
        self.assertEqual(third["error"]["error"], "client_closed_request")
        verification = told["verification"]
        details = verification.pop("details")
        self.assertEqual(
            verification,
            {
                "verified": True,
                "consensus": True,
                "agreement": 0.6667,
                "successful_executions": 2,
                "total_executions": 2,
                "synthesis_strategy": "consensus",
                "groups": [["a", "b"]],
            },
        )
        self.assertEqual((details["chosen"], details["entry_point"]), ("a", "f"))

    def test_members_are_asked_what_the_request_says(self) -> None:
        running = self.several("ab")
        client = self.infer(running, system="Be brief.", temperature=0.1, max_tokens=50)
        sides = self.take("ab")
        for name, side in sides.items():
            self.assertEqual(
                side.json,
                {
                    "model": name,
                    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}],
                    "temperature": 0.1,
                    "max_tokens": 50,
                },
            )
            answer(side, "42")
        self.assertEqual(client.read_response().status, 200)

    def test_without_options_they_are_asked_with_the_contracts(self) -> None:
        running = self.several("ab")
        client = self.infer(running)
        sides = self.say({"a": "42", "b": "42"})
        self.assertEqual((sides["a"].json["temperature"], sides["a"].json["max_tokens"]), (0.7, 2048))
        self.assertEqual(client.read_response().json()["verification"]["synthesis_strategy"], "majority")

    def test_only_those_named_are_asked_in_that_order_and_by_their_aliases(self) -> None:
        running = self.several(own={"a": {"aliases": ["first"]}})
        client = self.infer(running, models=["c", "first"])
        self.say({"c": "42", "a": "42"})
        told = client.read_response().json()
        self.assertEqual([m["model_name"] for m in told["model_responses"]], ["c", "a"])
        self.assert_untouched("b")

    def test_a_model_made_of_others_is_no_member(self) -> None:
        running = self.several("ab", virtual={"v": {"members": ["a", "b"]}})
        response = self.refused(running, models=["a", "v"])
        self.assert_error(response, 400, "invalid_models")
        self.assertEqual(response.json()["param"], "models[1]")
        client = self.infer(running)
        self.say({"a": "42", "b": "42"})
        self.assertEqual(len(client.read_response().json()["model_responses"]), 2)

    def test_where_one_engine_serves_every_name_the_names_are_the_members(self) -> None:
        engine = self.enter(mock_engine("x"))
        running = self.enter(gateway(BACKEND_URL=engine.url, SANDBOX="off"))
        told = running.post({"prompt": "hi", "models": ["x", "x"]}, INFERENCE).json()
        self.assertEqual([m["model_name"] for m in told["model_responses"]], ["x"])
        self.assertEqual(engine.requests[-1]["body"]["model"], "x")

    def test_there_a_key_gets_answers_of_the_names_that_it_may_use(self) -> None:
        engine = self.enter(mock_engine("x"))
        running = self.enter(gateway(BACKEND_URL=engine.url, SANDBOX="off", STATE_DB=self.state_db(), **KEYS))
        secret = running.app.guard.store.create("one", models=("x",))[1]
        headers = [("Authorization", f"Bearer {secret}")]
        told = running.post({"prompt": "hi", "models": ["x", "y"]}, INFERENCE, headers).json()
        errors = [m["error"] and m["error"]["error"] for m in told["model_responses"]]
        self.assertEqual(errors, [None, "forbidden"])
        self.assertEqual([request["body"]["model"] for request in engine.requests], ["x"])
        answer = running.post({"prompt": "hi", "models": ["y"]}, INFERENCE, headers)
        self.assert_error(answer, 403, "forbidden")

    def test_there_and_unnamed_the_model_is_the_one_that_is_meant_elsewhere(self) -> None:
        engine = self.enter(mock_engine("x"))
        running = self.enter(gateway(BACKEND_URL=engine.url, SANDBOX="off", DEFAULT_MODEL="x"))
        told = running.post({"prompt": "hi"}, INFERENCE).json()
        self.assertEqual(engine.requests[-1]["body"]["model"], "x")
        self.assertEqual([m["model_name"] for m in told["model_responses"]], ["x"])

    def test_with_nothing_configured_it_echoes(self) -> None:
        running = self.enter(gateway(SANDBOX="off"))
        told = running.post({"prompt": "hi"}, INFERENCE).json()
        self.assertIn("hi", told["selected_response"])

    def test_a_key_may_not_be_told_of_what_it_may_not_use(self) -> None:
        running = self.several("ab", STATE_DB=self.state_db(), **KEYS)
        secret = running.app.guard.store.create("one", models=("a",))[1]
        headers = [("Authorization", f"Bearer {secret}")]
        response = self.refused(running, headers, models=["z"])
        self.assert_error(response, 404, "model_not_found")
        self.assertIn("known: a", response.json()["message"])
        self.assertNotIn("b", response.json()["message"].partition("known:")[2])

    def test_names_of_two_for_one_model_are_refused(self) -> None:
        running = self.several("ab", own={"a": {"aliases": ["first"]}})
        response = self.refused(running, models=["a", "b", "first"])
        self.assert_error(response, 400, "invalid_models")
        self.assertEqual(response.json()["param"], "models[2]")


class RefusedTest(VerifiedTest):
    def test_each_field_has_its_error(self) -> None:
        running = self.several("ab")
        cases: list[tuple[dict[str, Any], str, str]] = [
            ({"prompt": " "}, "invalid_prompt", "prompt"),
            ({"prompt": 5}, "invalid_prompt", "prompt"),
            ({"models": []}, "invalid_models", "models"),
            ({"models": "a"}, "invalid_models", "models"),
            ({"temperature": 3}, "invalid_temperature", "temperature"),
            ({"max_tokens": 0}, "invalid_max_tokens", "max_tokens"),
            ({"tests": 5}, "invalid_tests", "tests"),
            ({"tests": ["assert 1", {"input": 1}]}, "invalid_tests", "tests[1]"),
            ({"inputs": [1]}, "invalid_inputs", "inputs[0]"),
            ({"entry_point": "f()"}, "invalid_body", "entry_point"),
            ({"execution_config": {"timeout": 0}}, "invalid_execution_config", "execution_config.timeout"),
            ({"execution_config": []}, "invalid_execution_config", "execution_config"),
            ({"execute_code": "no"}, "invalid_body", "execute_code"),
            ({"verify": 1}, "invalid_body", "verify"),
            ({"metadata": []}, "invalid_body", "metadata"),
            ({"system": 5}, "invalid_body", "system"),
            ({"stream": True}, "invalid_body", "stream"),
        ]
        for fields, expected, param in cases:
            with self.subTest(fields):
                response = self.refused(running, **fields)
                self.assert_error(response, 400, expected)
                self.assertEqual(response.json()["param"], param)
        response = self.refused(running, models=["a", "zzz"])
        self.assert_error(response, 404, "model_not_found")
        self.assertEqual(response.json()["param"], "models[1]")
        self.assert_untouched("a", "b")

    def test_what_is_no_object_is_refused_as_everywhere(self) -> None:
        running = self.several("ab")
        for body, expected in ((b"[]", "invalid_body"), (b"{", "invalid_json"), (b"", "invalid_json")):
            self.assertEqual(running.post(body, INFERENCE).error, expected)
        self.assertEqual(running.get(INFERENCE).status, 405)
        self.assertEqual(running.ask("OPTIONS", INFERENCE).status, 204)

    def test_it_needs_the_permission(self) -> None:
        roles = self.enter_file({"asker": {"permissions": ["infer"]}})
        running = self.several("ab", STATE_DB=self.state_db(), ROLES_FILE=roles, **KEYS)
        self.assertEqual(self.refused(running).status, 401)
        secret = running.app.guard.store.create("one", role="asker")[1]
        headers = [("Authorization", f"Bearer {secret}")]
        response = self.refused(running, headers)
        self.assert_error(response, 403, "forbidden")
        self.assertIn("verify", response.json()["message"])
        self.assert_untouched("a", "b")
        for secret in ("sk-u", "sk-r"):
            client = self.infer(running, [("Authorization", f"Bearer {secret}")])
            self.say({"a": "42", "b": "42"})
            self.assertEqual(client.read_response().status, 200)

    def enter_file(self, document: Any) -> Any:
        path = self.state_db().with_name("roles.json")
        path.write_text(json.dumps(document), "utf-8")
        return path

    def test_a_key_asks_the_models_that_it_may_use(self) -> None:
        running = self.several(STATE_DB=self.state_db(), **KEYS)
        secret = running.app.guard.store.create("one", models=("a", "b"))[1]
        headers = [("Authorization", f"Bearer {secret}")]
        client = self.infer(running, headers)
        self.say({"a": "42", "b": "42"})
        self.assertEqual(len(client.read_response().json()["model_responses"]), 2)
        self.assert_untouched("c")
        response = self.refused(running, headers, models=["a", "c"])
        self.assert_error(response, 403, "forbidden")
        self.assertEqual(response.json()["param"], "models[1]")

    def test_a_model_made_of_others_that_a_key_may_not_use_is_refused_as_any_other(self) -> None:
        running = self.several("abc", virtual={"v": {"members": ["a", "b"]}}, STATE_DB=self.state_db(), **KEYS)
        secret = running.app.guard.store.create("one", models=("a", "b"))[1]
        headers = [("Authorization", f"Bearer {secret}")]
        told = []
        for name in ("v", "c"):
            response = self.refused(running, headers, models=["a", name])
            self.assert_error(response, 403, "forbidden")
            told.append({**response.json(), "request_id": ""})
        self.assertEqual(told[0]["message"].replace(" v ", " c "), told[1]["message"])
        self.assertEqual({**told[0], "message": ""}, {**told[1], "message": ""})
        response = self.refused(running, headers, models=["a", "z"])
        self.assert_error(response, 404, "model_not_found")
        self.assertTrue(response.json()["message"].endswith("; known: a, b"), response.json())

    def test_who_may_use_the_model_made_of_others_alone_asks_nobody_here(self) -> None:
        running = self.several("ab", virtual={"v": {"members": ["a", "b"]}}, STATE_DB=self.state_db(), **KEYS)
        secret = running.app.guard.store.create("one", models=("v",))[1]
        headers = [("Authorization", f"Bearer {secret}")]
        self.assert_error(self.refused(running, headers), 403, "forbidden")
        self.assert_error(self.refused(running, headers, models=["v"]), 400, "invalid_models")

    def test_a_key_that_may_use_none_is_told(self) -> None:
        running = self.several("ab", STATE_DB=self.state_db(), **KEYS)
        secret = running.app.guard.store.create("one", models=("zzz",))[1]
        response = self.refused(running, [("Authorization", f"Bearer {secret}")])
        self.assert_error(response, 403, "forbidden")


class WaitingTest(VerifiedTest):
    def test_a_member_that_is_slow_is_cut_off_and_the_others_answer(self) -> None:
        running = self.several("ab", VERIFY_TIMEOUT=0.5)
        client = self.infer(running)
        sides = self.take("ab")
        answer(sides["a"], "42")
        told = client.read_response().json()
        self.assertTrue(sides["b"].wait_until_left())
        self.assertEqual(told["model_responses"][1]["error"]["error"], "gateway_timeout")
        self.assertGreaterEqual(told["model_responses"][1]["latency"], 0.49)
        self.assertEqual((told["selected_response"], told["verification"]["consensus"]), ("42", False))
        line = self.parts(running, told["request_id"], 2)[1]
        self.assertEqual((line["model"], line["status"]), ("b", 499))

    def test_nobody_is_waited_for_once_a_strict_majority_agrees(self) -> None:
        running = self.several("abcde")
        client = self.infer(running, headers=[("X-Request-ID", "five")])
        sides = self.take("abcde")
        for name in "ac":
            answer(sides[name], "42")
        self.parts(running, "five", 2)
        answer(sides["e"], "42")
        told = client.read_response().json()  # though two engines never answer
        for name in "bd":
            self.assertTrue(sides[name].wait_until_left())
        self.assertEqual(told["verification"]["groups"], [["a", "c", "e"]])
        self.assertEqual(told["verification"]["agreement"], 0.6)

    def test_a_member_that_fails_is_one_of_the_answers(self) -> None:
        running = self.several()
        client = self.infer(running)
        self.say({"a": None, "b": "42", "c": "42"})
        response = client.read_response()
        told = response.json()
        self.assertEqual(response.status, 200)
        failed = told["model_responses"][0]
        self.assertEqual((failed["text"], failed["error"]["error"]), (None, "backend_error"))
        self.assertEqual(told["selected_response"], "42")
        self.assertEqual(told["verification"]["details"]["members"][0]["error"], "backend_error")

    def test_when_all_fail_each_members_error_is_told(self) -> None:
        running = self.several("ab")
        client = self.infer(running)
        sides = self.take("ab")
        sides["a"].close()
        answer(sides["b"], None)
        response = client.read_response()
        self.assert_error(response, 503, "no_model_answered")
        details = response.json()["details"]
        self.assertEqual(sorted(details), ["a", "b"])
        self.assertEqual([details[name]["error"] for name in "ab"], ["backend_unavailable", "backend_error"])
        self.assertTrue(all(error["message"] for error in details.values()))

    def test_a_member_fails_over_to_another_engine_of_its_own(self) -> None:
        self.by_name = {name: self.scripted() for name in "ab"}
        spare = self.scripted()
        models = self.models()
        models["a"]["engines"].append({"url": spare.url, "id": "spare"})
        running = self.serve(models, SANDBOX="off", RETRY_ATTEMPTS=2)
        client = self.infer(running)
        sides = self.take("ab")
        sides["a"].close()
        answer(spare.take(), "42")
        answer(sides["b"], "42")
        told = client.read_response().json()
        self.assertEqual([m["provider"] for m in told["model_responses"]], ["spare", "engine-b"])
        self.assertEqual([line["attempts"] for line in self.parts(running, told["request_id"], 2)], [2, 1])
        self.assertEqual(running.request_line(told["request_id"])["attempts"], 3)
        self.assert_idle(running)

    def test_members_are_balanced_over_their_engines(self) -> None:
        self.by_name = {"a": self.scripted()}
        spare = self.scripted()
        models = self.models()
        models["a"]["engines"].append({"url": spare.url, "id": "spare"})
        running = self.serve(models, SANDBOX="off")
        clients = [self.infer(running), self.infer(running)]
        for engine in (self.by_name["a"], spare):
            answer(engine.take(), "42")
        providers = [client.read_response().json()["model_responses"][0]["provider"] for client in clients]
        self.assertEqual(sorted(providers), ["engine-a", "spare"])
        self.assert_idle(running)

    def test_no_member_is_answered_for_by_another_model(self) -> None:
        own = {"a": {"engines": [dead_url()], "fallbacks": ["b"]}}
        running = self.several("ab", FALLBACK="any", RETRY_ATTEMPTS=3, own=own)
        client = self.infer(running)
        self.say({"b": "42"})
        told = client.read_response().json()
        self.assertEqual([m["text"] for m in told["model_responses"]], [None, "42"])
        self.assert_untouched("b")

    def test_a_body_that_is_read_on_a_thread_is_answered_likewise(self) -> None:
        running = self.several("ab")
        client = self.infer(running, prompt="x" * 100_000)
        self.say({"a": "42", "b": "42"})
        self.assertEqual(client.read_response().status, 200)

    def test_waiting_takes_no_thread(self) -> None:
        running = self.several()
        count = 20
        before = thread_names()
        with asked_threads(running) as asked:
            clients = [self.infer(running) for _ in range(count)]
            sides = [side for _ in range(count) for side in self.take().values()]
            eventually(lambda: running.app.pipeline.in_flight == 4 * count)
            assert_no_more_threads(before)
            self.assertEqual(asked(), 0)
            for side in sides:
                answer(side, "42")
            self.assertEqual([client.read_response().status for client in clients], [200] * count)
            self.assertEqual(asked(), 0)
        assert_no_more_threads(before)

    def test_a_place_is_taken_by_each_member_and_none_by_who_waits_for_them(self) -> None:
        running = self.several("ab", WORKERS=1)
        client = self.infer(running)
        answer(self.by_name["a"].take(), "42")
        answer(self.by_name["b"].take(), "42")
        self.assertEqual(client.read_response().json()["verification"]["agreement"], 1.0)

    def test_a_member_that_gets_no_place_in_time_fails(self) -> None:
        running = self.several("ab", WORKERS=1, QUEUE_TIMEOUT=0.3)
        client = self.infer(running)
        side = self.by_name["a"].take()
        lines = self.failed_parts(running, 1)
        self.assertEqual((lines[0]["model"], lines[0]["error"], lines[0]["status"]), ("b", "queue_timeout", 503))
        answer(side, "42")
        told = client.read_response().json()
        self.assertEqual([m["text"] for m in told["model_responses"]], ["42", None])
        self.assertEqual(told["model_responses"][1]["error"]["error"], "queue_timeout")
        self.assert_untouched("b")

    def test_a_member_that_finds_the_queue_full_fails_at_once(self) -> None:
        running = self.several(WORKERS=1, QUEUE_SIZE=1)
        client = self.infer(running)
        side = self.by_name["a"].take()
        self.assertEqual([line["error"] for line in self.failed_parts(running, 1)], ["overloaded"])
        answer(side, "42")
        self.say({"b": "42"})
        told = client.read_response().json()
        self.assertEqual([m["text"] for m in told["model_responses"]], ["42", "42", None])

    def failed_parts(self, running: RunningGateway, count: int) -> list[dict[str, Any]]:
        """The log lines of parts that have failed, as soon as there are so many."""

        def found() -> list[dict[str, Any]]:
            lines = [line for line in running.request_lines() if line.get("part_of") and line.get("error")]
            return lines if len(lines) == count else []

        return eventually(found)

    def test_a_connection_serves_the_next_request(self) -> None:
        running = self.several("ab")
        client = self.infer(running)
        sides = self.say({"a": "42", "b": "42"})
        self.assertEqual(client.read_response().status, 200)
        client.request("POST", INFERENCE, {"prompt": "again"})
        for side in sides.values():
            answer(side.read_request(), "43")
        self.assertEqual(client.read_response().json()["selected_response"], "43")
        client.assert_quiet()


class RunningTest(VerifiedTest):
    def test_without_a_sandbox_it_is_said_and_words_decide(self) -> None:
        running = self.several("ab")
        client = self.infer(running)
        self.say({"a": RIGHT, "b": RIGHT})
        told = client.read_response().json()
        self.assertEqual(
            [m["execution_results"][0]["error"] for m in told["model_responses"]], ["isolation_unavailable"] * 2
        )
        verification = told["verification"]
        self.assertEqual((verification["verified"], verification["synthesis_strategy"]), (False, "majority"))
        self.assertEqual(verification["details"]["error"], "isolation_unavailable")
        self.assertEqual(verification["total_executions"], 0)

    def test_nothing_is_run_that_is_not_to_be(self) -> None:
        running = self.several("ab")
        jail = self.jail(running)
        client = self.infer(running, execute_code=False)
        self.say({"a": RIGHT, "b": RIGHT})
        told = client.read_response().json()
        self.assertEqual([m["execution_results"] for m in told["model_responses"]], [[], []])
        self.assertEqual(jail.tickets, [])

    def test_what_is_not_compared_is_run_and_all_are_waited_for(self) -> None:
        running = self.several()
        self.jail(running)
        client = self.infer(running, verify=False)
        self.say({"a": RIGHT, "b": RIGHT, "c": "no code"})
        told = client.read_response().json()
        self.assertEqual([len(m["execution_results"]) for m in told["model_responses"]], [1, 1, 0])
        self.assertFalse(told["verification"]["verified"])

    def test_a_program_that_fails_goes_back_to_who_wrote_it(self) -> None:
        running = self.several("ab", HEAL_ATTEMPTS=1)
        self.jail(running)
        client = self.infer(running)
        sides = self.say({"a": RIGHT, "b": WRONG})
        again = sides["b"].read_request().json["messages"]
        self.assertEqual([m["role"] for m in again], ["user", "assistant", "user"])
        answer(sides["b"], RIGHT)
        told = client.read_response().json()
        self.assertEqual([m["healed"] for m in told["model_responses"]], [False, True])
        self.assertEqual((told["verification"]["verified"], told["verification"]["agreement"]), (True, 1.0))
        lines = self.parts(running, told["request_id"], 3)
        self.assertEqual([line["model"] for line in lines], ["a", "b", "b"])

    def test_tests_of_the_client_decide(self) -> None:
        running = self.several("ab", HEAL_ATTEMPTS=0)

        def run(job: Job) -> Run:
            if job.harness != "judge":
                return adds_one(job)
            self.assertEqual(json.loads(job.payload)["tests"], ["assert f(1) == 2"])
            good = "x + 1" in job.code
            failures = [] if good else [{"index": 0, "text": "no"}]
            report = {"error": None, "keys": [], "passed": int(good), "total": 1, "failures": failures}
            return adds_one(job)._replace(report=json.dumps(report).encode())

        self.jail(running, run)
        client = self.infer(running, tests="assert f(1) == 2")
        self.say({"a": WRONG, "b": RIGHT})
        told = client.read_response().json()
        self.assertEqual(told["selected_response"], RIGHT)
        verification = told["verification"]
        self.assertEqual((verification["synthesis_strategy"], verification["verified"]), ("tests_passed", True))
        self.assertEqual((verification["successful_executions"], verification["total_executions"]), (1, 2))


class LeavingTest(VerifiedTest):
    def test_when_the_client_leaves_all_members_are_left(self) -> None:
        running = self.several()
        client = self.infer(running, headers=[("X-Request-ID", "gone")])
        sides = self.take()
        answer(sides["a"], "42")
        client.close()
        for name in "bc":
            self.assertTrue(sides[name].wait_until_left())
        line = running.request_line("gone")
        self.assertEqual(line["status"], 499)
        noted = line["verification"]
        self.assertEqual((noted["result"], noted["members"], noted["answered"]), ("unfinished", 3, 1))
        running.wait_for_metric('gateway_verifications_total{result="unfinished"}', 1)
        self.assertNotIn("gateway_verification_agreement_count", [k for k, v in running.metrics().items() if v])
        self.parts(running, "gone", 3)
        self.assert_idle(running)

    def test_one_that_leaves_while_members_queue_leaves_no_member(self) -> None:
        running = self.several("ab", WORKERS=1)
        client = self.infer(running)
        side = self.by_name["a"].take()
        eventually(lambda: running.app.pipeline.in_flight == 3)
        client.close()
        self.assertTrue(side.wait_until_left())
        self.assert_idle(running)
        self.assert_untouched("b")

    def test_members_that_queue_behind_others_give_up_when_the_client_leaves(self) -> None:
        running = self.several(WORKERS=1)
        blocker = self.begin(running, {"model": "c", "messages": [{"role": "user", "content": "first"}]})
        side = self.by_name["c"].take()
        client = self.infer(running, models=["a", "b"], headers=[("X-Request-ID", "gone")])
        eventually(lambda: running.app.pipeline.in_flight == 4)
        client.close()
        eventually(lambda: running.app.pipeline.in_flight == 1)
        self.assertEqual([line["status"] for line in self.parts(running, "gone", 2)], [499, 499])
        answer(side, "42")
        self.assertEqual(blocker.read_response().status, 200)
        self.assert_untouched("a", "b")

    def test_members_whose_answers_others_wait_for_too_go_on(self) -> None:
        running = self.several("ab")
        first = self.infer(running, headers=[("X-Request-ID", "first")], temperature=0)
        sides = self.take("ab")
        second = self.infer(running, temperature=0)
        flights = running.app.pipeline.reuse.flights
        eventually(lambda: sum(len(flight.followers) for flight in list(flights._by_key.values())) == 2)
        first.close()
        self.assertEqual(running.request_line("first")["status"], 499)
        for side in sides.values():
            answer(side, "42")
        told = second.read_response().json()
        self.assertEqual([m["text"] for m in told["model_responses"]], ["42", "42"])
        self.assert_untouched("a", "b")
        lines = self.parts(running, told["request_id"], 2)
        self.assertEqual([line["coalesced"] for line in lines], [True, True])

    def test_what_runs_is_killed_when_the_client_leaves(self) -> None:
        running = self.several("ab")
        jail = self.jail(running, lambda job: None if job.harness == "judge" else adds_one(job))
        client = self.infer(running)
        self.say({"a": RIGHT, "b": WRONG})
        eventually(lambda: len(jail.of("judge")) == 2)
        client.close()
        eventually(lambda: all(ticket.cancelled for ticket in jail.of("judge")))
        self.assert_idle(running)

    def test_the_end_of_the_gateway_cuts_all_of_it_off(self) -> None:
        running = self.several("ab")
        client = self.infer(running, headers=[("X-Request-ID", "cut")])
        self.take("ab")
        running.stop(0)
        self.assert_error(client.read_response(), 503, "draining")
        line = running.request_line("cut")
        self.assertEqual((line["status"], line["error"]), (503, "draining"))
        parts = self.parts(running, "cut", 2)
        self.assertEqual([(part["status"], part["error"]) for part in parts], [(503, "draining")] * 2)

    def test_while_it_drains_what_is_under_way_goes_on_and_nothing_new_comes(self) -> None:
        running = self.several("ab", DRAIN_TIMEOUT=20, VERIFY_TIMEOUT=20)
        kept = self.enter(running.connect())
        self.assertEqual(kept.ask("GET", "/healthz").status, 200)
        client = self.infer(running)
        sides = self.take("ab")
        stopping = threading.Thread(target=running.stop, args=(None,), daemon=True)
        stopping.start()
        eventually(lambda: running.app.pipeline.draining)
        for side in sides.values():
            answer(side, "42")
        response = client.read_response()
        self.assertEqual(response.status, 200, response.body)
        stopping.join(20)
        self.assertFalse(stopping.is_alive())


class LimitsTest(VerifiedTest):
    def with_key(self, names: str = "abc", **fields: Any) -> tuple[Any, list[tuple[str, str]]]:
        running = self.several(names, STATE_DB=self.state_db(), RATE_LIMIT_BURST=1, **KEYS)
        secret = running.app.guard.store.create("one", **fields)[1]
        return running, [("Authorization", f"Bearer {secret}")]

    def test_each_member_counts_as_a_request(self) -> None:
        running, headers = self.with_key(rpm=2)
        client = self.infer(running, headers)
        self.say({"a": "42", "b": "42"})
        told = client.read_response().json()
        self.assertEqual(
            [m["error"] and m["error"]["error"] for m in told["model_responses"]], [None, None, "rate_limit_exceeded"]
        )
        self.assert_untouched("c")

    def test_where_its_limit_refuses_all_the_caller_is_told_that(self) -> None:
        running, headers = self.with_key("ab", rpm=2)
        client = self.infer(running, headers)
        self.say({"a": "42", "b": "42"})
        self.assertEqual(client.read_response().status, 200)
        response = self.refused(running, headers)
        self.assert_error(response, 429, "rate_limit_exceeded")
        self.assertIsNotNone(response.header("retry-after"))
        self.assert_untouched("a", "b")

    def test_each_members_tokens_count(self) -> None:
        running, headers = self.with_key("ab", tpm=100)
        client = self.infer(running, headers, max_tokens=60)
        self.say({"a": "42"})
        told = client.read_response().json()
        self.assertEqual(told["model_responses"][1]["error"]["error"], "rate_limit_exceeded")

    def test_each_member_is_one_of_those_at_once(self) -> None:
        running, headers = self.with_key(concurrency=2)
        client = self.infer(running, headers)
        self.say({"a": "42", "b": "42"})
        told = client.read_response().json()
        self.assertEqual(told["model_responses"][2]["error"]["error"], "rate_limit_exceeded")
        client = self.infer(running, headers)  # their slots are free again
        self.say({"a": "42", "b": "42"})
        self.assertEqual(client.read_response().status, 200)

    def test_each_member_is_paid_for(self) -> None:
        running, headers = self.with_key("ab", budget_usd=0.025)
        client = self.infer(running, headers, max_tokens=3, prompt="hi")
        self.say({"a": "42", "b": "42"})
        told = client.read_response()
        self.assertEqual(told.status, 200)
        lines = self.parts(running, told.request_id, 2)
        self.assertEqual([line["cost_usd"] for line in lines], [0.013, 0.013])
        self.assertEqual([line["key"] for line in lines], ["one", "one"])
        response = self.refused(running, headers, prompt="hi")
        self.assert_error(response, 429, "budget_exceeded")

    def test_a_member_that_is_cut_off_gives_back_what_it_had_reserved(self) -> None:
        running, headers = self.with_key(concurrency=3)
        client = self.infer(running, headers)
        sides = self.take()
        answer(sides["a"], "42")
        answer(sides["b"], "42")
        self.assertEqual(client.read_response().status, 200)
        self.assertTrue(sides["c"].wait_until_left())
        keys = running.app.guard.limiter._keys
        eventually(lambda: not any(scope.in_flight for scope in {**keys._old, **keys._young}.values()))


class CountedTest(VerifiedTest):
    def test_parts_are_no_requests_but_their_tokens_attempts_and_costs_count(self) -> None:
        running = self.several("ab")
        self.jail(running)
        client = self.infer(running)
        self.say({"a": RIGHT, "b": RIGHT})
        response = client.read_response()
        line = running.request_line(response.request_id)
        noted = line["verification"]
        self.assertEqual((noted["result"], noted["verified"], noted["agreement"]), ("consensus", True, 1.0))
        self.assertEqual((noted["members"], noted["answered"], noted["healed"]), (2, 2, 0))
        self.assertEqual(
            [run[:2] for run in noted["runs"]], [["namespaces", "ok"]] * 3
        )  # made, judged once, shown once
        self.assertEqual((line["path"], line["model"], line["attempts"]), (INFERENCE, "a", 2))
        parts = self.parts(running, response.request_id, 2)
        self.assertEqual([part["request_id"] for part in parts], [f"{response.request_id}.{n}" for n in (1, 2)])
        self.assertEqual([(part["model"], part["prompt_tokens"]) for part in parts], [("a", 10), ("b", 10)])
        metrics = running.metrics()
        requests = {name: value for name, value in metrics.items() if name.startswith("gateway_requests_total")}
        self.assertEqual(sum(requests.values()), 1.0, requests)
        self.assertIn(INFERENCE, next(iter(requests)))
        for name in "ab":
            self.assertEqual(metrics[f'gateway_tokens_total{{model="{name}",kind="completion"}}'], 3)
            sample = f'gateway_engine_requests_total{{model="{name}",engine="engine-{name}",outcome="ok"}}'
            self.assertEqual(metrics[sample], 1)
        self.assertEqual(metrics['gateway_verifications_total{result="consensus"}'], 1)
        self.assertEqual(metrics["gateway_verification_agreement_count"], 1)
        self.assertEqual(metrics["gateway_verification_agreement_sum"], 1)
        self.assertEqual(metrics['gateway_sandbox_runs_total{isolation="namespaces",result="ok"}'], 3)
        self.assertEqual(metrics['gateway_sandbox_seconds_count{isolation="namespaces"}'], 3)

    def test_what_could_not_be_run_is_counted_as_that(self) -> None:
        running = self.several("ab")
        client = self.infer(running)
        self.say({"a": RIGHT, "b": RIGHT})
        client.read_response()
        sample = 'gateway_sandbox_runs_total{isolation="none",result="isolation_unavailable"}'
        self.assertGreaterEqual(running.wait_for_metric(sample, 1), 1)

    def test_an_id_of_the_client_is_shortened_for_parts(self) -> None:
        running = self.several("ab")
        client = self.infer(running, headers=[("X-Request-ID", "x" * 128)])
        self.say({"a": "42", "b": "42"})
        response = client.read_response()
        self.assertEqual(response.request_id, "x" * 128)
        ids = [part["request_id"] for part in self.parts(running, response.request_id, 2)]
        self.assertEqual(ids, ["x" * 120 + ".1", "x" * 120 + ".2"])

    def test_equal_members_share_a_call_and_a_kept_answer_as_any_request_does(self) -> None:
        running = self.several("ab", CACHE="on")
        for turn in range(2):
            client = self.infer(running, temperature=0)
            if not turn:
                self.say({"a": "42", "b": "42"})
            told = client.read_response().json()
            self.assertEqual(told["selected_response"], "42")
        self.assertEqual([m["provider"] for m in told["model_responses"]], [None, None])
        self.assertEqual([p.get("cache") for p in self.parts(running, told["request_id"], 2)], ["hit", "hit"])


class BesideTest(VerifiedTest):
    def test_models_and_health_are_served_beside_it(self) -> None:
        running = self.several("ab", virtual={"v": {"members": ["a", "b"]}}, own={"a": {"family": "llama"}})
        for path in ("/v1/models", "/api/v1/models"):
            data = running.get(path).json()["data"]
            self.assertEqual([entry["id"] for entry in data], ["a", "b", "v"])
            self.assertEqual((data[0]["family"], "family" in data[1]), ("llama", False))
            self.assertEqual((data[2]["members"], data[2]["available"]), (["a", "b"], True))
        self.assertEqual(running.get("/v1/models/v").json()["id"], "v")
        self.assertEqual(running.get("/api/v1/health").json(), running.get("/health").json())
        self.assertEqual(running.ask("POST", "/api/v1/models", {}).status, 405)
        index = running.get("/").json()["endpoints"]
        self.assertEqual((index[INFERENCE], index["/api/v1/models"], index["/api/v1/health"]), ("POST", "GET", "GET"))

    def test_they_need_a_key_where_others_do(self) -> None:
        running = self.several("ab", **KEYS)
        for path in ("/api/v1/models", "/api/v1/health"):
            self.assertEqual(running.get(path).status, 401, path)
            self.assertEqual(running.get(path, USER).status, 200, path)


if __name__ == "__main__":
    unittest.main()
