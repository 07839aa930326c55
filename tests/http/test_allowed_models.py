"""Which models a key, a role or a token may use, by any of their names: in requests, in lists, in what 404 says."""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from typing import Any, Optional

from tests.access import ADMIN_KEYS, AS_ROOT, SECRET, AccessTest, ask, bearer, token
from tests.support import TIMEOUT_S, Header, RunningGateway, dead_url, load_settings

ECHO = ["echo:"]
FLEET: dict[str, Any] = {
    "13b": {"engines": ECHO, "aliases": ["default-chat", "old-13b"]},
    "7b": {"engines": ECHO, "aliases": ["small"]},
    "70b": {"engines": ECHO},
}


class AllowedTest(AccessTest):
    def allowed(self, running: RunningGateway, headers: list[Header], *names: Optional[str]) -> list[int]:
        """The statuses of requests for these models."""
        return [running.post(ask(model=name), headers=headers).status for name in names]

    def listed(self, running: RunningGateway, headers: list[Header]) -> list[str]:
        return [entry["id"] for entry in running.get("/v1/models", headers).json()["data"]]

    def reload(self, running: RunningGateway, fleet: Mapping[str, Any]) -> None:
        path = self.file("engines.json", {"models": fleet})
        running.app.reload(load_settings({"ENGINES_FILE": path}))


class AliasTest(AllowedTest):
    def test_a_key_that_names_an_alias_may_use_the_model_by_all_its_names(self) -> None:
        running = self.serve(FLEET)
        for number, models in enumerate((("default-chat",), ("default-*",), ("13b",), ("old-13b", "gone"))):
            with self.subTest(models=models):
                key = self.make(running, f"k{number}", models=models)
                asked = self.allowed(running, key, "13b", "default-chat", "old-13b", None, "7b", "small", "70b")
                self.assertEqual(asked, [200, 200, 200, 200, 403, 403, 403])
                self.assertEqual(self.listed(running, key), ["13b", "default-chat", "old-13b"])

    def test_roles_and_tokens_may_name_aliases_too(self) -> None:
        roles = self.file("roles.json", {"chat": {"permissions": ["infer"], "models": ["default-chat", "small"]}})
        running = self.serve(FLEET, ROLES_FILE=roles, JWT_SECRET=SECRET, ADMIN_KEYS=ADMIN_KEYS)
        by_role = self.make(running, "of-role", role="chat")
        self.assertEqual(self.allowed(running, by_role, "13b", "7b", "70b"), [200, 200, 403])
        both = self.make(running, "of-both", role="chat", models=("old-13b", "70b"))
        self.assertEqual(self.allowed(running, both, "13b", "7b", "70b"), [200, 403, 403])
        by_token = bearer(token(models=["small"]))
        self.assertEqual(self.allowed(running, by_token, "7b", "small", "13b"), [200, 200, 403])
        self.assertEqual(self.listed(running, by_token), ["7b", "small"])
        exchanged = bearer(running.ask("POST", "/auth/token", {}, both).json()["token"])
        self.assertEqual(self.allowed(running, exchanged, "default-chat", "7b"), [200, 403])

    def test_a_refusal_names_the_model_as_it_was_asked_for(self) -> None:
        running = self.serve(FLEET)
        key = self.make(running, models=("7b",))
        refused = running.post(ask(model="default-chat"), headers=key)
        self.assert_error(refused, 403, "forbidden")
        self.assertIn("default-chat", refused.json()["message"])
        self.assertNotIn("13b", refused.json()["message"])

    def test_keys_outlive_a_renaming_and_follow_an_alias_at_each_reload(self) -> None:
        running = self.serve({"13b": {"engines": ECHO}, "7b": {"engines": ECHO}})
        key = self.make(running, models=("13b",))
        self.assertEqual(self.allowed(running, key, "13b", "7b"), [200, 403])
        self.reload(running, {"llama-13b": {"engines": ECHO, "aliases": ["13b"]}, "7b": {"engines": ECHO}})
        self.assertEqual(self.allowed(running, key, "13b", "llama-13b", "7b"), [200, 200, 403])
        self.assertEqual(self.listed(running, key), ["llama-13b", "13b"])
        self.reload(running, {"llama-13b": {"engines": ECHO}, "7b": {"engines": ECHO, "aliases": ["13b"]}})
        self.assertEqual(self.allowed(running, key, "13b", "7b", "llama-13b"), [200, 200, 403])
        self.reload(running, {"llama-13b": {"engines": ECHO}, "7b": {"engines": ECHO}})
        self.assertEqual(self.allowed(running, key, "13b", "7b", "llama-13b"), [404, 403, 403])
        self.assertEqual(self.listed(running, key), [])

    def test_nothing_falls_back_to_a_model_of_which_no_name_is_allowed(self) -> None:
        forbidden, allowed = self.engine(model="13b"), self.engine(model="7b")
        fleet = {
            "70b": {"engines": [dead_url()], "fallbacks": ["13b", "7b"], "aliases": ["large"]},
            "13b": {"engines": [forbidden.url], "aliases": ["default-chat"]},
            "7b": {"engines": [allowed.url], "aliases": ["small"]},
        }
        running = self.serve(fleet)
        answer = running.post(ask(model="large"), headers=self.make(running, "both", models=("large", "small")))
        self.assertEqual((answer.status, answer.header("x-gateway-fallback")), (200, "70b->7b"))
        alone = self.make(running, "alone", models=("large",))
        for body in (ask(model="70b"), ask(model="70b", stream=True)):
            self.assert_error(running.post(body, headers=alone), 502, "backend_unavailable")
        self.assertEqual(forbidden.stats()["requests"], 0)

    def test_a_larger_context_is_asked_by_its_alias_only_where_that_is_allowed(self) -> None:
        fleet = {
            "short": {"engines": ECHO, "max_model_len": 10, "context_fallbacks": ["long"]},
            "long": {"engines": ECHO, "aliases": ["big"]},
        }
        running = self.serve(fleet)
        text = "word " * 50
        narrow = self.make(running, "narrow", models=("short",))
        self.assert_error(running.post(ask(text, "short"), headers=narrow), 403, "forbidden")
        wide = self.make(running, "wide", models=("short", "big"))
        self.assertEqual(running.post(ask(text, "short"), headers=wide).header("x-gateway-model"), "long")


class ListTest(AllowedTest):
    def test_a_model_that_the_caller_may_not_use_does_not_exist_for_it(self) -> None:
        running = self.serve(FLEET)
        key = self.make(running, models=("7b",))
        for name in ("13b", "default-chat", "70b", "nope"):
            with self.subTest(name):
                answer = running.get(f"/v1/models/{name}", key)
                self.assert_error(answer, 404, "model_not_found")
                self.assertEqual(answer.json()["message"], f"the model {name!r} does not exist")
        for name in ("7b", "small"):
            self.assertEqual(running.get(f"/v1/models/{name}", key).json()["id"], name)

    def test_who_may_use_all_sees_all(self) -> None:
        running = self.serve(FLEET, ADMIN_KEYS=ADMIN_KEYS)
        everything = ["13b", "7b", "70b", "default-chat", "old-13b", "small"]
        self.assertEqual(self.listed(running, [AS_ROOT]), everything)
        self.assertEqual(self.listed(running, self.make(running)), everything)
        self.assertEqual(running.ask("HEAD", "/v1/models", None, [AS_ROOT]).status, 200)
        self.assertEqual(running.get("/v1/models").status, 401)

    def test_an_unknown_model_is_answered_with_those_that_the_caller_may_use(self) -> None:
        running = self.serve(FLEET, ADMIN_KEYS=ADMIN_KEYS)
        for headers, known in (
            ([AS_ROOT], "13b, 70b, 7b"),
            (self.make(running, "some", models=("default-chat", "70b")), "13b, 70b"),
            (self.make(running, "one", models=("small",)), "7b"),
            (self.make(running, "none", models=("gone",)), "none to this key"),
        ):
            for body in (ask(model="nope"), ask(model="nope", stream=True)):
                with self.subTest(known=known):
                    answer = running.post(body, headers=headers)
                    self.assert_error(answer, 404, "model_not_found")
                    self.assertEqual(answer.json()["message"], f"the model 'nope' does not exist; known: {known}")

    def test_the_index_still_names_the_paths(self) -> None:
        endpoints = self.serve(FLEET).get("/").json()["endpoints"]
        self.assertEqual((endpoints["/v1/models"], endpoints["/v1/models/{id}"]), ("GET", "GET"))

    def test_other_methods_of_the_list_are_refused_as_before(self) -> None:
        running = self.serve(FLEET)
        for path in ("/v1/models", "/v1/models/13b"):
            answer = running.ask("POST", path, {})
            self.assertEqual((answer.status, answer.header("allow")), (405, "GET, HEAD, OPTIONS"))


class WildcardTest(AllowedTest):
    def test_one_engine_for_every_name_goes_by_the_name_asked_for(self) -> None:
        running = self.serve(BACKEND_URL=self.engine().url, ADMIN_KEYS=ADMIN_KEYS)
        key = self.make(running, models=("gpt-*",))
        self.assertEqual(
            self.allowed(running, key, "gpt-4", "gpt-", "llama", "default", None), [200, 200, 403, 403, 403]
        )
        self.assertTrue(running.app.factory.wait_probed(TIMEOUT_S))
        self.assertEqual(self.listed(running, key), [])
        self.assertEqual(running.get("/v1/models/m", key).status, 404)
        self.assertEqual(self.listed(running, [AS_ROOT]), ["m"])
        self.assertEqual(self.listed(running, self.make(running, "of-m", models=("m",))), ["m"])
        self.assertEqual(self.listed(running, self.make(running, "of-default", models=("default",))), [])
        self.assertEqual(self.allowed(running, [AS_ROOT], "anything", None), [200, 200])


if __name__ == "__main__":
    unittest.main()
