"""Providers over sockets: what they are asked, with which key, and that no redirect takes it elsewhere."""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from gateway import settings as gateway_settings
from gateway.routing import specs
from gateway.routing.providers import PROVIDERS
from gateway.upstream.call import CHAT, Call
from tests.naming_engine import NamingEngine, listing
from tests.support import EMBEDDINGS, HI, TIMEOUT_S, RunningGateway, SocketTest, eventually, gateway

SECRET = "gsk-hunter2"


class ProviderTest(SocketTest):
    def engine(self, *names: str) -> NamingEngine:
        return self.enter(NamingEngine(*names))

    def provider(self, name: str, url: str) -> None:
        """Have the provider's own address be that of an engine here, to which its key goes in the clear."""
        preset = PROVIDERS[name]._replace(url=url)
        self.enter(mock.patch.dict(specs.PROVIDERS, {name: preset}))
        self.enter(mock.patch.object(type(preset), "may_have_key", lambda self, address: True))

    def serve(self, **variables: object) -> RunningGateway:
        running = self.enter(gateway(HEALTH_INTERVAL=60, **variables))
        self.assertTrue(running.app.factory.wait_probed(TIMEOUT_S))
        return running

    def serve_file(self, models: Any, **variables: object) -> RunningGateway:
        folder = self.enter(tempfile.TemporaryDirectory())
        path = Path(folder, "engines.json")
        path.write_text(json.dumps({"models": models}), "utf-8")
        return self.serve(ENGINES_FILE=path, **variables)


class KeyAloneTest(ProviderTest):
    def setUp(self) -> None:
        self.groq = self.engine("llama", "qwen/32b")
        self.provider("groq", self.groq.url)

    def test_what_it_lists_is_offered_behind_its_name(self) -> None:
        running = self.serve(GROQ_API_KEY=SECRET)
        entries = running.get("/v1/models").json()["data"]
        self.assertEqual([entry["id"] for entry in entries], ["groq/llama", "groq/qwen/32b"])
        answer = running.post({**HI, "model": "groq/qwen/32b"})
        self.assertEqual((answer.status, answer.json()["model"]), (200, "groq/qwen/32b"))
        self.assertEqual(answer.header("x-gateway-model"), "groq/qwen/32b")
        _, headers, body = self.groq.requests[-1]
        self.assertEqual((headers["Authorization"], body["model"]), (f"Bearer {SECRET}", "qwen/32b"))
        keys = [headers.get("Authorization") for headers in self.groq.asked]
        self.assertEqual(keys, [None, f"Bearer {SECRET}"])  # a probe, and then for the list
        self.assertNotIn(SECRET, running.log.getvalue())

    def test_the_start_does_not_wait_for_the_list_nor_does_a_request(self) -> None:
        self.groq.gate.clear()
        running = self.enter(gateway(HEALTH_INTERVAL=60, HEALTH_TIMEOUT=20, GROQ_API_KEY=SECRET))
        self.assertEqual(running.post({**HI, "model": "groq/llama"}).status, 200)
        self.assertEqual(running.get("/v1/models").json()["data"], [])
        self.groq.gate.set()
        eventually(lambda: running.get("/v1/models").json()["data"])

    def test_the_provider_says_what_it_does_not_have(self) -> None:
        answer = self.serve(GROQ_API_KEY=SECRET).post({**HI, "model": "groq/other"})
        self.assertEqual((answer.status, answer.error), (404, "backend_rejected"))
        self.assertEqual(self.groq.models, ["other"])

    def test_a_name_without_the_prefix_is_none(self) -> None:
        running = self.serve(GROQ_API_KEY=SECRET)
        for body in ({**HI, "model": "llama"}, {**HI, "model": "groq/"}, {**HI, "model": "groq"}, HI):
            with self.subTest(body):
                answer = running.post(body)
                self.assertEqual((answer.status, answer.error), (404, "model_not_found"))
                self.assertIn("groq/…", answer.json()["message"])
        self.assertEqual(self.groq.models, [])

    def test_a_default_is_for_requests_that_name_none(self) -> None:
        running = self.serve(GROQ_API_KEY=SECRET, DEFAULT_MODEL="groq/llama")
        self.assertEqual(running.post().json()["model"], "groq/llama")

    def test_models_are_told_apart_where_answers_are_kept(self) -> None:
        running = self.serve(GROQ_API_KEY=SECRET, CACHE="on")
        for name in ("groq/llama", "groq/qwen/32b", "groq/llama"):
            self.assertEqual(running.post({**HI, "model": name, "temperature": 0}).json()["model"], name)
        self.assertEqual(self.groq.models, ["llama", "qwen/32b"])

    def test_keys_may_be_for_some_of_its_models(self) -> None:
        running = self.serve(GROQ_API_KEY=SECRET, ADMIN_KEYS="root:r00t-r00t-r00t", STATE_DB=self.state_db())
        admin = (("Authorization", "Bearer r00t-r00t-r00t"),)
        made = running.ask("POST", "/admin/keys", {"name": "a", "models": ["groq/llama"]}, admin)
        self.assertEqual(made.status, 201, made.body)
        key = (("Authorization", f"Bearer {made.json()['key']}"),)
        self.assertEqual(running.post({**HI, "model": "groq/llama"}, headers=key).status, 200)
        refused = running.post({**HI, "model": "groq/qwen/32b"}, headers=key)
        self.assertEqual((refused.status, refused.error), (403, "forbidden"))
        listed = running.get("/v1/models", key).json()["data"]
        self.assertEqual([entry["id"] for entry in listed], ["groq/llama"])

    def state_db(self) -> Path:
        return Path(self.enter(tempfile.TemporaryDirectory()), "gateway.db")

    def test_a_list_that_fails_keeps_the_last(self) -> None:
        running = self.serve(GROQ_API_KEY=SECRET)
        engine = running.app.factory.router.pools["groq"].engines[0]
        lists = running.app.factory._health._lists
        self.groq.listed = b"<html>"
        lists.ask(engine, TIMEOUT_S)
        self.groq.listed, self.groq.status = listing("x"), 500
        lists.ask(engine, TIMEOUT_S)
        self.assertEqual([one.id for one in running.app.factory.router.listed()], ["groq/llama", "groq/qwen/32b"])
        self.groq.status = 200
        lists.ask(engine, TIMEOUT_S)
        self.assertEqual([one.id for one in running.app.factory.router.listed()], ["groq/x"])


class OtherwiseTest(SocketTest):
    def test_with_engines_a_key_in_the_environment_offers_nothing(self) -> None:
        engine = self.enter(NamingEngine("m"))
        running = self.enter(gateway(ENGINES=f"m={engine.url}", GROQ_API_KEY=SECRET))
        self.assertEqual([entry["id"] for entry in running.get("/v1/models").json()["data"]], ["m"])
        self.assertEqual(running.app.settings.engine_keys, {})

    def test_without_a_key_echo_answers(self) -> None:
        settings = gateway_settings.load({"GROQ_API_KEY": " ", "AZURE_OPENAI_API_KEY": SECRET}, None)
        self.assertTrue(settings.fleet.models[0].engines[0].is_echo)


class RedirectTest(ProviderTest):
    def test_no_redirect_is_followed_and_none_carries_a_key(self) -> None:
        thief, groq = self.engine("llama"), self.engine("llama")
        groq.moved = f"{thief.url}/chat/completions"
        self.provider("groq", groq.url)
        models = {"m": {"engines": [{"provider": "groq", "model": "llama"}]}}
        running = self.serve_file(models, RETRY_ATTEMPTS=1, GROQ_API_KEY=SECRET)
        for body in (HI, {**HI, "stream": True}):
            answer = running.post({**body, "model": "m"})
            self.assertEqual((answer.status, answer.error), (502, "backend_error"))
        self.assertEqual(len(groq.requests), 2)
        self.assertEqual(groq.requests[0][1]["Authorization"], f"Bearer {SECRET}")
        self.assertEqual((thief.requests, thief.asked), ([], []))
        self.assertNotIn(SECRET, running.log.getvalue() + answer.body.decode())

    def test_nor_for_the_list_of_models(self) -> None:
        thief, groq = self.engine("llama"), self.engine("llama")
        groq.moved = f"{thief.url}/models"
        self.provider("groq", groq.url)
        running = self.serve(GROQ_API_KEY=SECRET)
        eventually(lambda: groq.asked)
        self.assertEqual(running.get("/v1/models").json()["data"], [])
        self.assertEqual((thief.requests, thief.asked), ([], []))


class WireTest(ProviderTest):
    def test_another_host_gets_no_key_unless_that_is_said(self) -> None:
        engine = self.engine("x")
        for extra, expected in (({}, None), ({"api_key_env": "GROQ_API_KEY"}, f"Bearer {SECRET}")):
            with self.subTest(extra):
                entry = {"provider": "groq", "url": engine.url, "model": "x", **extra}
                running = self.serve_file({"m": {"engines": [entry]}}, GROQ_API_KEY=SECRET)
                self.assertEqual(running.post({**HI, "model": "m"}).status, 200)
                self.assertEqual(engine.requests[-1][1].get("Authorization"), expected)

    def test_an_engine_that_speaks_anthropics_dialect_is_asked_at_its_path(self) -> None:
        engine = self.engine("x")
        entry = {"provider": "anthropic", "url": engine.url, "api_key_env": "MY_KEY", "model": "x"}
        running = self.serve_file({"m": {"engines": [entry]}}, MY_KEY=SECRET)
        running.post({**HI, "model": "m"})
        path, headers, _ = engine.requests[-1]
        self.assertEqual((path, headers["x-api-key"]), ("/v1/messages", SECRET))
        self.assertEqual(headers["anthropic-version"], "2023-06-01")
        self.assertNotIn("Authorization", headers)

    def test_azures_deployments_get_their_version(self) -> None:
        engine = self.engine("x")
        url = engine.url.replace("/v1", "/openai/deployments/x")
        entry = {"provider": "azure", "url": url, "api_key_env": "MY_KEY", "model": "x"}
        running = self.serve_file({"m": {"engines": [entry]}}, MY_KEY=SECRET)
        self.assertEqual(running.post({**HI, "model": "m"}).status, 200)
        path, headers, _ = engine.requests[-1]
        self.assertEqual(path, "/openai/deployments/x/chat/completions?api-version=2024-10-21")
        self.assertEqual(headers["api-key"], SECRET)

    def test_a_fallback_is_asked_where_a_provider_asks_for_a_pause(self) -> None:
        gemini, groq = self.engine("g"), self.engine("llama")
        gemini.status_of_posts = 429
        models = {
            "gemini": {"engines": [{"provider": "gemini", "url": gemini.url, "model": "g"}], "fallbacks": ["llama"]},
            "llama": {"engines": [{"provider": "groq", "url": groq.url}]},
        }
        answer = self.serve_file(models, FALLBACK="configured").post({**HI, "model": "gemini"})
        self.assertEqual((answer.status, answer.header("x-gateway-model")), (200, "llama"))
        self.assertEqual((gemini.models, groq.models), (["g"], ["llama"]))


class ShapedTest(ProviderTest):
    def test_engines_get_what_their_model_says(self) -> None:
        engine = self.engine("m")
        model = {
            "engines": [engine.url],
            "strip": ["temperature"],
            "defaults": {"max_tokens": 9},
            "force": {"top_k": 1},
        }
        running = self.serve_file({"m": model})
        self.assertEqual(running.post({**HI, "model": "m", "temperature": 1, "top_k": 5}).status, 200)
        self.assertEqual(engine.requests[-1][2], {**HI, "model": "m", "max_tokens": 9, "top_k": 1})
        running.post({"input": "x", "model": "m"}, EMBEDDINGS)
        self.assertEqual(engine.requests[-1][2], {"input": "x", "model": "m", "top_k": 1})

    def test_a_fallback_gets_what_the_client_said_as_its_own_model_has_it(self) -> None:
        one, two = self.engine(), self.engine("two")
        one.status_of_posts = 503
        models = {
            "one": {"engines": [one.url], "strip": ["temperature"], "force": {"seed": 1}, "fallbacks": ["two"]},
            "two": {"engines": [two.url], "defaults": {"max_tokens": 5}},
        }
        running = self.serve_file(models, RETRY_ATTEMPTS=1)
        self.assertEqual(running.post({**HI, "model": "one", "temperature": 1}).status, 200)
        self.assertEqual(one.requests[0][2], {**HI, "model": "one", "seed": 1})
        self.assertEqual(two.requests[0][2], {**HI, "model": "two", "temperature": 1, "max_tokens": 5})

    def test_limits_go_by_what_is_sent(self) -> None:
        engine = self.engine("m")
        model = {"engines": [engine.url], "max_model_len": 100, "force": {"max_tokens": 10}}
        running = self.serve_file({"m": model})
        self.assertEqual(running.post({**HI, "model": "m", "max_tokens": 1000}).status, 200)
        model["defaults"], model["force"] = {"max_tokens": 1000}, {}
        refused = self.serve_file({"m": model}).post({**HI, "model": "m"})
        self.assertEqual((refused.status, refused.error), (400, "context_too_long"))

    def test_the_library_goes_by_it_too(self) -> None:
        running = self.serve_file({"m": {"engines": ["echo:"], "force": {"max_tokens": 2}}})
        call = Call(CHAT, {**HI, "model": "m", "max_tokens": 1000})
        running.app.factory.run(call)
        self.assertEqual(call.request["max_tokens"], 2)

    def test_what_is_forced_to_be_the_same_is_kept(self) -> None:
        engine = self.engine("m")
        running = self.serve_file({"m": {"engines": [engine.url], "force": {"temperature": 0}}}, CACHE="on")
        for temperature in (1, 0.5, 2):
            self.assertEqual(running.post({**HI, "model": "m", "temperature": temperature}).status, 200)
        self.assertEqual(len(engine.requests), 1)


class SplitTest(ProviderTest):
    def setUp(self) -> None:
        self.a, self.b = self.engine("a"), self.engine("b")
        self.models: dict[str, Any] = {name: {"engines": [e.url]} for name, e in (("a", self.a), ("b", self.b))}

    def test_the_same_session_always_gets_the_same_model(self) -> None:
        running = self.serve_file({**self.models, "m": {"split": {"a": 1, "b": 1}}})
        chosen = []
        for number in range(12):
            session = (("X-Session-ID", f"s{number}"),)
            first, again = (running.post({**HI, "model": "m"}, headers=session) for _ in range(2))
            self.assertEqual(first.header("x-gateway-model"), again.header("x-gateway-model"))
            chosen.append(first.header("x-gateway-model"))
        self.assertEqual(set(chosen), {"a", "b"})
        self.assertEqual(running.request_line(again.request_id)["split"], "m")

    def test_a_key_does_without_a_session(self) -> None:
        models = {**self.models, "m": {"split": {"a": 1, "b": 1}}}
        running = self.serve_file(models, API_KEYS="alice:alice-alice-alice,bob:bob-bob-bob-bob")
        for key in ("alice-alice-alice", "bob-bob-bob-bob"):
            header = (("Authorization", f"Bearer {key}"),)
            answers = [running.post({**HI, "model": "m"}, headers=header) for _ in range(6)]
            self.assertEqual(len({answer.header("x-gateway-model") for answer in answers}), 1)

    def test_a_chain_goes_on_where_the_first_cannot_answer(self) -> None:
        self.a.status_of_posts = 503
        running = self.serve_file({**self.models, "m": {"chain": ["a", "b"]}}, FALLBACK="configured", RETRY_ATTEMPTS=1)
        answer = running.post({**HI, "model": "m"})
        self.assertEqual((answer.status, answer.header("x-gateway-fallback")), (200, "a->b"))
        self.assertEqual(running.post({**HI, "model": "a"}).status, 502)

    def test_a_chain_begins_where_there_is_a_model(self) -> None:
        group = {"models": "auto", "engines": [self.engine().url]}
        models = {**self.models, "local": group, "m": {"chain": ["later", "b"]}, "n": {"chain": ["later"]}}
        running = self.serve_file(models)
        self.assertEqual(running.post({**HI, "model": "m"}).header("x-gateway-model"), "b")
        for body, headers in (({**HI, "model": "n"}, ()), ({**HI, "model": "m"}, (("X-Gateway-Fallback", "off"),))):
            answer = running.post(body, headers=headers)
            self.assertEqual((answer.status, answer.error), (502, "backend_unavailable"))

    def test_its_parameters_come_before_the_models_own(self) -> None:
        self.models["a"]["strip"] = ["top_k"]
        split = {"split": {"a": 1}, "force": {"temperature": 0, "top_k": 3}}
        running = self.serve_file({**self.models, "m": split})
        self.assertEqual(running.post({**HI, "model": "m"}).status, 200)
        self.assertEqual(self.a.requests[-1][2], {**HI, "model": "a", "temperature": 0})

    def test_it_is_listed_with_its_members(self) -> None:
        running = self.serve_file({**self.models, "m": {"split": {"a": 9, "b": 1}, "aliases": ["x"]}})
        entries = {entry["id"]: entry for entry in running.get("/v1/models").json()["data"]}
        self.assertEqual(set(entries), {"a", "b", "m", "x"})
        self.assertEqual((entries["m"]["members"], entries["m"]["available"]), (["a", "b"], True))

    def test_who_may_use_it_may_use_what_it_leads_to(self) -> None:
        db = Path(self.enter(tempfile.TemporaryDirectory()), "gateway.db")
        models = {**self.models, "m": {"chain": ["a", "b"]}}
        running = self.serve_file(models, ADMIN_KEYS="root:r00t-r00t-r00t", STATE_DB=db)
        admin = (("Authorization", "Bearer r00t-r00t-r00t"),)
        made = running.ask("POST", "/admin/keys", {"name": "k", "models": ["m"]}, admin)
        key = (("Authorization", f"Bearer {made.json()['key']}"),)
        self.assertEqual(running.post({**HI, "model": "m"}, headers=key).status, 200)
        self.assertEqual(running.post({**HI, "model": "a"}, headers=key).status, 403)
        made = running.ask("POST", "/admin/keys", {"name": "o", "models": ["a", "b"]}, admin)
        key = (("Authorization", f"Bearer {made.json()['key']}"),)
        self.assertEqual(running.post({**HI, "model": "m"}, headers=key).status, 403)

    def test_the_library_goes_by_it_too(self) -> None:
        running = self.serve_file({**self.models, "m": {"chain": ["b"]}})
        self.assertEqual(running.app.factory.generate("hi", "m"), "hi")
        self.assertEqual(self.b.models, ["b"])


class ListedTest(ProviderTest):
    def group(self, *engines: NamingEngine, **more: Any) -> dict[str, Any]:
        return {"models": "auto", "engines": [engine.url for engine in engines], **more}

    def names(self, running: RunningGateway) -> list[str]:
        return [entry["id"] for entry in running.get("/v1/models").json()["data"]]

    def test_models_come_and_go_as_engines_list_them(self) -> None:
        one, two = self.engine("x", "y"), self.engine("y", "z")
        running = self.enter(gateway(HEALTH_INTERVAL=0.05, ENGINES_FILE=self.file({"local": self.group(one, two)})))
        eventually(lambda: self.names(running) == ["x", "y", "z"])
        self.assertEqual(running.post({**HI, "model": "y"}).status, 200)
        health = running.get("/health").json()["models"]
        self.assertEqual([len(health[name]["engines"]) for name in ("x", "y", "z")], [1, 2, 1])
        one.serve("w")
        eventually(lambda: self.names(running) == ["w", "y", "z"])
        self.assertEqual(running.post({**HI, "model": "x"}).status, 404)
        self.assertEqual(running.post({**HI, "model": "w"}).status, 200)
        lines = eventually(lambda: [line for line in running.log_lines() if line.get("models") == ["w", "y", "z"]])
        self.assertEqual(lines[0]["event"], "models")

    def test_a_list_that_fails_keeps_the_last_and_an_empty_one_does_not(self) -> None:
        engine = self.engine("x")
        running = self.enter(gateway(HEALTH_INTERVAL=0.05, ENGINES_FILE=self.file({"local": self.group(engine)})))
        eventually(lambda: self.names(running) == ["x"])
        for listed, status in ((b"<html>", 200), (None, 404), (listing("y"), 500)):
            engine.listed, engine.status = listed, status
            engine.asked.clear()
            eventually(lambda: len(engine.asked) > 1)  # the first of two has been taken in
            self.assertEqual(self.names(running), ["x"])
        engine.serve()
        engine.status = 200
        eventually(lambda: self.names(running) == [])

    def test_an_engine_that_goes_is_out_for_all_its_models(self) -> None:
        engine = NamingEngine("x", "y")
        path = self.file({"local": self.group(engine)})
        running = self.enter(gateway(HEALTH_INTERVAL=0.05, ENGINES_FILE=path))
        eventually(lambda: self.names(running) == ["x", "y"])
        engine.close()
        eventually(lambda: running.get("/health").json()["status"] == "down")
        self.assertEqual(self.names(running), ["x", "y"])
        states = [e.state for e in running.app.factory.engines()]
        self.assertEqual(states, ["down", "down"])

    def test_its_probes_do_not_grow_with_its_models(self) -> None:
        names = [f"m{number}" for number in range(50)]
        engine = self.engine(*names)
        running = self.serve_file({"local": self.group(engine)})
        self.assertEqual(self.names(running), names)
        pools = running.app.factory.router.pools.values()
        self.assertTrue(all(engine.answered for pool in pools for engine in pool.engines))
        probed = [pool.name for pool in running.app.factory._offered.probed_pools()]
        self.assertEqual(probed, ["local"])
        specs_of_all = {engine.spec for pool in pools for engine in pool.engines}
        self.assertEqual(len(specs_of_all), 1)  # nor do its connections, which go by that

    def test_what_was_configured_goes_before(self) -> None:
        engine, own = self.engine("x", "y"), self.engine("own")
        models = {"x": {"engines": [{"url": own.url, "model": "own"}]}, "local": self.group(engine)}
        running = self.serve_file(models)
        self.assertEqual(self.names(running), ["x", "y"])
        self.assertEqual(running.post({**HI, "model": "x"}).status, 200)
        self.assertEqual(own.models, ["own"])

    def test_a_reload_keeps_what_engines_that_stay_have_listed(self) -> None:
        engine = self.engine("x")
        path = self.file({"local": self.group(engine)})
        running = self.serve(ENGINES_FILE=path)
        engine.gate.clear()
        path.write_text(json.dumps({"models": {"local": self.group(engine, tpm=100_000), "e": {"engines": ["echo:"]}}}))
        running.app.reload(gateway_settings.reload(running.app.settings, {}, None))
        self.assertEqual(self.names(running), ["e", "x"])
        self.assertEqual(running.app.factory.router.pools["x"].spec.tpm, 100_000)

    def file(self, models: Any) -> Path:
        path = Path(self.enter(tempfile.TemporaryDirectory()), "engines.json")
        path.write_text(json.dumps({"models": models}), "utf-8")
        return path


if __name__ == "__main__":
    unittest.main()
