"""Keys in use: the admin API, the command line beside a running gateway, tokens for keys, roles, and models."""

from __future__ import annotations

import base64
import json
import os
import re
import time
import unittest
from typing import Any, Optional
from unittest import mock

from gateway.configuration import ConfigurationError
from gateway.state.database import StateDb
from tests.access import ADMIN_KEYS, AS_ROOT, ROOT, SECRET, AccessTest, ask, bearer, token
from tests.support import CHAT, Header, Response, RunningGateway, dead_url, eventually, gateway_process

KEY = re.compile(r"igw_[A-Za-z0-9_-]{43}")
WITHIN_S = 3.0  # a change is promised within 1 s; this machine may be busy


class AdminTest(AccessTest):
    def setUp(self) -> None:
        super().setUp()
        self.gateway = self.serve(ADMIN_KEYS=ADMIN_KEYS, API_KEYS="settings:sk-settings", JWT_SECRET=SECRET)

    def admin(self, method: str, path: str, body: Any = None) -> Response:
        return self.gateway.ask(method, path, body, [AS_ROOT])

    def create(self, **fields: Any) -> dict[str, Any]:
        response = self.admin("POST", "/admin/keys", fields)
        self.assertEqual(response.status, 201, response.body)
        answer: dict[str, Any] = response.json()
        return answer

    def names(self) -> list[str]:
        return [key["name"] for key in self.admin("GET", "/admin/keys").json()["keys"]]

    def status_with(self, secret: str) -> int:
        return self.gateway.post(headers=bearer(secret)).status


class AdminApiTest(AdminTest):
    def test_a_key_is_made_used_listed_and_revoked(self) -> None:
        self.assertEqual(self.admin("GET", "/admin/keys").json(), {"keys": []})
        before = int(time.time())
        made = self.admin(
            "POST",
            "/admin/keys",
            {
                "name": "alice",
                "role": "user",
                "models": ["echo", "13b*"],
                "rpm": 600,
                "tpm": 20_000,
                "concurrency": 4,
                "budget_usd": 5,
                "budget_period": "day",
                "expires": "90d",
                "priority": "high",
            },
        )
        self.assertEqual((made.status, made.header("cache-control")), (201, "no-store"))
        answer = made.json()
        self.assertRegex(answer.pop("key"), f"^{KEY.pattern}$")
        self.assertAlmostEqual(answer["expires"], before + 90 * 86_400, delta=5)
        listed = self.admin("GET", "/admin/keys").json()["keys"]
        self.assertEqual(listed, [answer])
        self.assertEqual(
            {name: answer[name] for name in ("name", "role", "models", "rpm", "tpm", "concurrency", "budget_usd")},
            {
                "name": "alice",
                "role": "user",
                "models": ["echo", "13b*"],
                "rpm": 600,
                "tpm": 20_000,
                "concurrency": 4,
                "budget_usd": 5,
            },
        )
        secret = made.json()["key"]
        self.assertEqual(self.status_with(secret), 200)
        revoked = self.admin("DELETE", "/admin/keys/alice")
        self.assertEqual((revoked.status, revoked.json()["state"]), (200, "revoked"))
        self.assertEqual(self.status_with(secret), 401)
        self.assertEqual([key["state"] for key in self.admin("GET", "/admin/keys").json()["keys"]], ["revoked"])

    def test_the_secret_is_told_once_and_kept_nowhere(self) -> None:
        secrets = [self.create(name="alice")["key"], self.create(name="bob")["key"]]
        secrets.append(self.admin("POST", "/admin/keys/bob/rotate").json()["key"])
        for secret in secrets:
            self.assertEqual(self.status_with(secret), 200)
        self.gateway.ask("POST", "/auth/token", None, bearer(secrets[0]))
        told = [self.admin("GET", path).body for path in ("/admin/keys", "/admin/usage", "/metrics", "/health")]
        kept = b"".join(path.read_bytes() for path in self.directory.iterdir())
        eventually(lambda: len(self.gateway.request_lines()) >= 9)
        log = self.gateway.log.getvalue()
        for secret in secrets:
            raw = secret.encode()
            for form in (raw, base64.b64encode(raw), raw.hex().encode()):
                self.assertNotIn(form, b"".join(told))
                self.assertNotIn(form, kept)
                self.assertNotIn(form.decode(), log)

    def test_rotating_gives_the_old_key_a_grace(self) -> None:
        old = self.create(name="alice")["key"]
        rotated = self.admin("POST", "/admin/keys/alice/rotate")
        self.assertEqual((rotated.status, rotated.header("cache-control")), (200, "no-store"))
        self.assertAlmostEqual(rotated.json()["previous_key_until"], time.time() + 3_600, delta=60)
        newer = rotated.json()["key"]
        self.assertEqual((self.status_with(old), self.status_with(newer)), (200, 200))
        newer_still = self.admin("POST", "/admin/keys/alice/rotate", {"grace": "1m"}).json()["key"]
        self.assertEqual([self.status_with(key) for key in (old, newer, newer_still)], [200] * 3)
        newest = self.admin("POST", "/admin/keys/alice/rotate", {"grace": "0s", "expires": "1d"}).json()
        self.assertAlmostEqual(newest["expires"], time.time() + 86_400, delta=60)
        self.assertEqual([self.status_with(key) for key in (old, newer, newest["key"])], [401, 401, 200])

    def test_what_cannot_be_is_named_and_changes_nothing(self) -> None:
        self.create(name="alice")
        for method, path, body, status, word in (
            ("POST", "/admin/keys", {}, 400, "name"),
            ("POST", "/admin/keys", {"name": "a b"}, 400, "name"),
            ("POST", "/admin/keys", {"name": "bob", "role": "wizard"}, 400, "wizard"),
            ("POST", "/admin/keys", {"name": "bob", "rpm": 0}, 400, "rpm"),
            ("POST", "/admin/keys", {"name": "bob", "tpm": "many"}, 400, "tpm"),
            ("POST", "/admin/keys", {"name": "bob", "models": "13b"}, 400, "models"),
            ("POST", "/admin/keys", {"name": "bob", "expires": "soon"}, 400, "expires"),
            ("POST", "/admin/keys", {"name": "bob", "budget": 5}, 400, "budget"),
            ("POST", "/admin/keys", {"name": "bob", "key": "of-my-own"}, 400, "key"),
            ("POST", "/admin/keys", [], 400, "object"),
            ("POST", "/admin/keys", b"not json", 400, "JSON"),
            ("POST", "/admin/keys", {"name": "alice"}, 400, "alice"),
            ("POST", "/admin/keys", {"name": "settings"}, 400, "settings"),
            ("DELETE", "/admin/keys/nobody", None, 404, "nobody"),
            ("POST", "/admin/keys/nobody/rotate", None, 404, "nobody"),
            ("POST", "/admin/keys/alice/rotate", {"grace": "long"}, 400, "grace"),
            ("POST", "/admin/keys/alice/rotate", {"grace": 5}, 400, "grace"),
            ("POST", "/admin/keys/alice/rotate", {"expires": "0s"}, 400, "expires"),
            ("POST", "/admin/keys/alice/rotate", {"grce": "1s"}, 400, "grce"),
            ("POST", "/admin/keys/alice/rotate", [1], 400, "object"),
            ("POST", "/admin/keys/alice/rotate", b"[", 400, "JSON"),
        ):
            with self.subTest(path=path, body=body):
                response = self.admin(method, path, body)
                self.assertEqual(response.status, status, response.body)
                self.assertIn(word, response.json()["message"])
        self.assertEqual(self.names(), ["alice"])
        self.assertIsNone(self.admin("GET", "/admin/keys").json()["keys"][0]["previous_key_until"])

    def test_a_taken_name_has_a_code_of_its_own(self) -> None:
        self.create(name="alice")
        self.admin("DELETE", "/admin/keys/alice")
        for name in ("alice", "settings"):
            answer = self.admin("POST", "/admin/keys", {"name": name})
            self.assert_error(answer, 400, "key_exists")
            self.assertEqual(answer.json()["param"], "name")

    def test_methods(self) -> None:
        for method, path, allowed in (
            ("PUT", "/admin/keys", "GET, HEAD, POST, OPTIONS"),
            ("GET", "/admin/keys/alice", "DELETE, OPTIONS"),
            ("POST", "/admin/usage", "GET, HEAD, OPTIONS"),
            ("GET", "/auth/token", "POST, OPTIONS"),
        ):
            with self.subTest(path):
                response = self.admin(method, path)
                self.assertEqual((response.status, response.error), (405, "method_not_allowed"))
                self.assertEqual(response.header("allow"), allowed)
        head, full = self.admin("HEAD", "/admin/keys"), self.admin("GET", "/admin/keys")
        self.assertEqual((head.status, head.header("content-length")), (200, full.header("content-length")))
        for path in ("/admin", "/admin/", "/admin/nothing", "/admin/keys/a/b", "/auth/tokens"):
            self.assertEqual(self.admin("GET", path).status, 404)

    def test_names_are_percent_encoded_in_paths(self) -> None:
        self.create(name="team+a@b.example")
        self.assertEqual(self.admin("DELETE", "/admin/keys/team%2Ba%40b.example").status, 200)

    def test_every_action_is_one_audit_line(self) -> None:
        self.create(name="alice", role="viewer")
        self.admin("POST", "/admin/keys/alice/rotate")
        self.admin("DELETE", "/admin/keys/alice")
        self.admin("GET", "/admin/keys")
        self.admin("GET", "/admin/usage?by=key")
        self.admin("POST", "/admin/engines/echo/drain")
        self.admin("POST", "/admin/engines/echo/enable")
        self.admin("POST", "/admin/engines/echo/weight", {"weight": 3})
        self.admin("POST", "/auth/token")
        eventually(lambda: len(self.audit(self.gateway, "admin")) == 9)
        lines = self.audit(self.gateway, "admin")
        self.assertEqual((lines[-2]["weight"], lines[-2]["models"]), (3, lines[-3]["models"]))
        self.assertEqual(
            [(line["key"], line["action"], line.get("name") or line.get("engine")) for line in lines],
            [
                ("root", "create_key", "alice"),
                ("root", "rotate_key", "alice"),
                ("root", "revoke_key", "alice"),
                ("root", "list_keys", None),
                ("root", "usage", None),
                ("root", "drain_engine", "echo"),
                ("root", "enable_engine", "echo"),
                ("root", "weigh_engine", "echo"),
                ("root", "token", None),
            ],
        )

    def test_actions_that_failed_and_who_may_not_act_are_audited_too(self) -> None:
        secret = self.create(name="alice")["key"]
        self.admin("POST", "/admin/keys", {"name": "alice"})
        self.admin("POST", "/admin/keys", {"name": "sk-secret in the wrong place"})
        self.admin("POST", "/admin/keys", b"[")
        self.admin("DELETE", "/admin/keys/nobody")
        self.admin("POST", "/admin/keys/nobody/rotate")
        self.admin("POST", "/admin/keys/alice/rotate", {"grace": "long"})
        self.admin("POST", "/admin/engines/gone/drain")
        self.admin("POST", "/admin/engines/gone/weight", {"weight": 2})
        self.admin("POST", "/admin/engines/echo/weight", {"weight": "sk-secret in the wrong place"})
        self.admin("GET", "/admin/usage?by=colour")
        eventually(lambda: len(self.audit(self.gateway, "admin")) == 11)
        failed = self.audit(self.gateway, "admin")[1:]
        self.assertNotIn("in the wrong place", json.dumps(failed))
        self.assertEqual({(line["level"], line["key"]) for line in failed}, {("warning", "root")})
        self.assertEqual(
            [(line["action"], line.get("name") or line.get("engine"), line["error"]) for line in failed],
            [
                ("create_key", "alice", "key_exists"),
                ("create_key", None, "invalid_body"),
                ("create_key", None, "invalid_json"),
                ("revoke_key", "nobody", "not_found"),
                ("rotate_key", "nobody", "not_found"),
                ("rotate_key", "alice", "invalid_body"),
                ("drain_engine", "gone", "not_found"),
                ("weigh_engine", "gone", "not_found"),
                ("weigh_engine", "echo", "invalid_body"),
                ("usage", None, "invalid_body"),
            ],
        )
        for method, path in (("GET", "/admin/keys"), ("POST", "/admin/engines/echo/drain"), ("GET", "/admin/usage")):
            answer = self.gateway.ask(method, path, None, bearer(secret))
            self.assert_error(answer, 403, "forbidden")
        self.gateway.get("/admin/keys", [AS_ROOT, ("Origin", "http://elsewhere.example")])
        eventually(lambda: len(self.audit(self.gateway, "permission_refused")) >= 3)
        lines = self.audit(self.gateway, "permission_refused")
        # Three a second for each address; the clock may have passed into the next second.
        self.assertIn(len(lines), (3, 4))
        told = [(line["level"], line["key"], line["method"], line["path"], line["client"]) for line in lines]
        self.assertEqual(told[0], ("warning", "alice", "GET", "/admin/keys", "127.0.0.1"))
        self.assertIn("permission admin", lines[0]["reason"])
        self.assertNotIn(secret, self.gateway.log.getvalue())
        self.assertNotIn("wrong place", self.gateway.log.getvalue())

    def test_requests_count_under_the_keys_name(self) -> None:
        secret = self.create(name="alice")["key"]
        line = self.gateway.request_line(self.gateway.post(headers=bearer(secret)).request_id)
        self.assertEqual((line["key"], line["status"]), ("alice", 200))
        self.gateway.wait_for_metric('gateway_requests_total{path="/admin/keys",model="",status="201"}', 1)


class TokenTest(AdminTest):
    def exchange(self, headers: list[Header]) -> Response:
        return self.gateway.ask("POST", "/auth/token", None, headers)

    def test_a_key_is_exchanged_for_a_token_of_an_hour_at_most(self) -> None:
        for secret in (self.create(name="alice", models=["echo"])["key"], "sk-settings", ROOT):
            response = self.exchange(bearer(secret))
            self.assertEqual((response.status, response.header("cache-control")), (200, "no-store"))
            answer = response.json()
            self.assertEqual((answer["token_type"], answer["expires_in"]), ("Bearer", 3_600))
            self.assertEqual(self.status_with(answer["token"]), 200)
            self.assertEqual(answer["access_token"], answer["token"])
        short = self.exchange(bearer(self.create(name="short", expires="10m")["key"])).json()
        self.assertLessEqual(short["expires_in"], 600)

    def test_the_token_has_the_rights_and_the_name_of_its_key(self) -> None:
        secret = self.create(name="alice", models=["13b"])["key"]
        issued = self.exchange(bearer(secret)).json()["token"]
        self.assertEqual(self.gateway.post(headers=bearer(issued)).status, 403)
        root = self.exchange([AS_ROOT]).json()["token"]
        self.assertEqual(self.gateway.get("/admin/keys", bearer(root)).status, 200)
        answer = self.gateway.post(headers=bearer(root))
        self.assertEqual(self.gateway.request_line(answer.request_id)["key"], "root")

    def test_it_ends_with_its_key(self) -> None:
        secret = self.create(name="alice")["key"]
        issued = self.exchange(bearer(secret)).json()["token"]
        self.assertEqual(self.status_with(issued), 200)
        self.admin("DELETE", "/admin/keys/alice")
        self.assertEqual(self.status_with(issued), 401)

    def test_a_token_is_not_exchanged_for_another(self) -> None:
        issued = self.exchange(bearer("sk-settings")).json()["token"]
        for text in (issued, token()):
            self.assertEqual(self.exchange(bearer(text)).status, 403)

    def test_default_limits_of_nothing_make_tokens_that_work(self) -> None:
        running = self.serve(API_KEYS="bob:sk-bob", JWT_SECRET=SECRET, RATE_LIMIT_RPM=0, RATE_LIMIT_TPM=1_000_000)
        issued = running.ask("POST", "/auth/token", None, bearer("sk-bob")).json()["token"]
        self.assertEqual(running.post(headers=bearer(issued)).status, 200)

    def test_foreign_tokens_of_the_same_secret_are_accepted_as_they_say(self) -> None:
        self.assertEqual(self.status_with(token(sub="tina", models=["echo"])), 200)
        self.assertEqual(self.status_with(token(sub="tina", models=["13b"])), 403)
        self.assertEqual(self.gateway.get("/admin/keys", bearer(token(role="admin"))).status, 200)

    def test_without_a_secret_there_is_nothing_to_exchange_for(self) -> None:
        running = self.serve(API_KEYS="bob:sk-bob")
        self.assertEqual(running.ask("POST", "/auth/token", None, bearer("sk-bob")).status, 404)


class RolesTest(AccessTest):
    def test_a_viewer_may_read_metrics_and_nothing_else(self) -> None:
        running = self.serve(HOST="0.0.0.0", ADMIN_KEYS=ADMIN_KEYS, API_KEYS="user:sk-user")
        viewer = self.make(running, "viewer", role="viewer")
        self.assertEqual(running.get("/metrics", viewer).status, 200)
        self.assertEqual(running.get("/metrics", [AS_ROOT]).status, 200)
        self.assertEqual(running.get("/metrics").status, 401)
        refused = running.get("/metrics", bearer("sk-user"))
        self.assertEqual((refused.status, refused.error), (403, "forbidden"))
        self.assertIn("metrics", refused.json()["message"])
        self.assertEqual(running.post(headers=viewer).status, 403)

    def test_metrics_are_open_on_loopback_or_when_switched_off(self) -> None:
        self.assertEqual(self.serve(ADMIN_KEYS=ADMIN_KEYS).get("/metrics").status, 200)
        opened = self.serve(ADMIN_KEYS=ADMIN_KEYS, HOST="0.0.0.0", METRICS_AUTH="off")
        self.assertEqual((opened.get("/metrics").status, opened.get("/health").status), (200, 401))

    def test_roles_of_a_file_join_the_default_ones(self) -> None:
        roles = self.file(
            "roles.json",
            {
                "small": {"permissions": ["infer"], "models": ["7b*"]},
                "ops": {"permissions": ["metrics", "admin"]},
                "user": {"permissions": ["infer"], "may_set_priority": True},
            },
        )
        fleet = {name: {"engines": ["echo:"]} for name in ("7b-chat", "13b")}
        running = self.serve(fleet, ROLES_FILE=roles, ADMIN_KEYS=ADMIN_KEYS)
        small = self.make(running, "small", role="small")
        ops = self.make(running, "ops", role="ops")
        self.assertEqual(running.post(ask(model="7b-chat"), headers=small).status, 200)
        self.assertEqual(running.post(ask(model="13b"), headers=small).status, 403)
        self.assertEqual(running.get("/admin/keys", ops).status, 200)
        self.assertEqual(running.post(headers=ops).status, 403)
        self.assertEqual(self.make(running, "viewer", role="viewer")[0][0], "Authorization")
        status, _, stderr = self.cli("keys", "create", "--name", "sam", "--role", "small", ROLES_FILE=roles)
        self.assertEqual(status, 0, stderr)

    def test_a_faulty_file_of_roles_stops_the_start_and_the_check(self) -> None:
        roles = self.file("roles.json", {"small": {"permissions": ["fly"]}})
        for arguments in ((), ("check",), ("keys", "list")):
            with self.subTest(arguments):
                run = self.cli if arguments else self.process
                status, _, stderr = run(*arguments, ROLES_FILE=roles)
                self.assertEqual(status, 2)
                self.assertIn("ROLES_FILE", stderr)
                self.assertIn("small.permissions", stderr)
                self.assertNotIn("Traceback", stderr)

    def test_only_a_role_that_may_sets_the_priority(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS)
        seen: list[str] = []
        submit = running.app.workers.submit

        def noted(job: Any) -> bool:
            seen.append(job.priority)
            return submit(job)

        wanted = ("X-Gateway-Priority", "high")
        with mock.patch.object(running.app.workers, "submit", noted):
            running.post(headers=[AS_ROOT, wanted])
            running.post(headers=[*self.make(running, "low", priority="low"), wanted])
            running.post(headers=[*self.make(running, "plain"), wanted])
        self.assertEqual(seen, ["high", "low", "normal"])


class ModelsTest(AccessTest):
    def test_patterns_of_the_key_and_aliases(self) -> None:
        fleet = {
            "13b": {"engines": ["echo:"], "aliases": ["chat"]},
            "7b-a": {"engines": ["echo:"]},
            "7b-b": {"engines": ["echo:"]},
        }
        running = self.serve(fleet)
        key = self.make(running, models=("13b", "7b-[a]"))
        for model, status in (("13b", 200), ("chat", 200), ("7b-a", 200), ("7b-b", 403), (None, 200), ("7B-A", 404)):
            with self.subTest(model):
                self.assertEqual(running.post(ask(model=model), headers=key).status, status)
        forbidden = running.post(ask(model="7b-b"), headers=key)
        self.assertEqual((forbidden.error, forbidden.json()["param"]), ("forbidden", "model"))

    def test_the_default_model_is_no_way_around(self) -> None:
        running = self.serve({"13b": {"engines": ["echo:"]}, "7b": {"engines": ["echo:"]}})
        key = self.make(running, models=("7b",))
        self.assertEqual(running.post(ask(), headers=key).status, 403)

    def test_nothing_falls_back_to_a_model_that_the_key_does_not_have(self) -> None:
        forbidden, allowed = self.engine(model="13b"), self.engine(model="7b")
        fleet = {
            "70b": {"engines": [dead_url()], "fallbacks": ["13b", "7b"]},
            "13b": {"engines": [forbidden.url]},
            "7b": {"engines": [allowed.url]},
        }
        running = self.serve(fleet)
        both = self.make(running, "both", models=("70b", "7b"))
        answer = running.post(ask(model="70b"), headers=both)
        self.assertEqual((answer.status, answer.header("x-gateway-fallback")), (200, "70b->7b"))
        alone = self.make(running, "alone", models=("70b",))
        for body in (ask(model="70b"), ask(model="70b", stream=True)):
            answer = running.post(body, headers=alone)
            self.assertEqual((answer.status, answer.error), (502, "backend_unavailable"))
        self.assertEqual(forbidden.stats()["requests"], 0)

    def test_a_larger_context_is_not_a_way_to_a_forbidden_model(self) -> None:
        large = self.engine(model="large")
        fleet = {
            "small": {"engines": ["echo:"], "max_model_len": 10, "context_fallbacks": ["large"]},
            "large": {"engines": [large.url]},
        }
        running = self.serve(fleet)
        text = "word " * 50
        self.assertEqual(running.post(ask(text, "small"), headers=self.make(running, "all")).status, 200)
        asked = large.stats()["requests"]
        answer = running.post(ask(text, "small"), headers=self.make(running, "narrow", models=("small",)))
        self.assertEqual((answer.status, answer.error), (403, "forbidden"))
        self.assertEqual(large.stats()["requests"], asked)

    def test_one_engine_for_every_name_is_judged_by_the_name_asked_for(self) -> None:
        engine = self.engine()
        running = self.serve(BACKEND_URL=engine.url)
        key = self.make(running, models=("13b*",))
        self.assertEqual(running.post(ask(model="13b-chat"), headers=key).status, 200)
        self.assertEqual(running.post(ask(model="70b"), headers=key).status, 403)
        self.assertEqual(engine.stats()["requests"], 1)


class CommandLineTest(AccessTest):
    """`python main.py keys` beside a gateway that runs as a process of its own."""

    def keys(self, *arguments: str, **variables: object) -> str:
        status, stdout, stderr = self.cli("keys", *arguments, **variables)
        self.assertEqual(status, 0, stderr)
        return stdout

    def secret_in(self, text: str) -> str:
        found = KEY.search(text)
        assert found is not None, text
        return found[0]

    def until(self, url: Any, secret: Optional[str], status: int) -> None:
        headers = [] if secret is None else bearer(secret)
        eventually(lambda: url.ask("POST", CHAT, ask(), headers).status == status, WITHIN_S)

    def test_keys_come_and_go_while_a_gateway_runs(self) -> None:
        process = self.enter(gateway_process(STATE_DB=self.db))
        self.assertEqual(process.ask("POST", CHAT, ask()).status, 200)
        self.assertFalse(self.db.exists())
        made = ("keys", "create", "--name", "alice", "--rpm", "6000", "--expires", "90d")
        secret = self.secret_in(self.process(*made)[1])
        self.until(process, None, 401)
        self.until(process, secret, 200)
        new = self.secret_in(self.keys("rotate", "alice", "--grace", "1h"))
        self.until(process, new, 200)
        self.until(process, secret, 200)
        listed = self.keys("list")
        self.assertIn("alice", listed)
        self.assertNotIn("igw_", listed)
        self.assertIn("6000", self.keys("show", "alice"))
        self.keys("revoke", "alice")
        self.until(process, new, 401)
        self.until(process, secret, 401)
        self.assertNotIn(secret, process.stderr + process.stdout)

    def test_the_first_key_can_be_made_before_anybody_could_be_recognised(self) -> None:
        exposed: dict[str, Any] = {"HOST": "0.0.0.0"}
        status, _, stderr = self.process(**exposed)
        self.assertEqual(status, 2)
        self.assertIn("HOST", stderr)
        secret = self.secret_in(self.keys("create", "--name", "alice", **exposed))
        process = self.enter(gateway_process(STATE_DB=self.db, **exposed))
        self.until(process, None, 401)
        self.until(process, secret, 200)

    def test_a_database_with_only_a_ledger_does_not_expose_the_gateway(self) -> None:
        self.serve(LEDGER="on").stop()
        self.assertTrue(self.db.exists())
        with self.assertRaises(ConfigurationError) as caught:
            self.serve(HOST="0.0.0.0")
        self.assertIn("HOST", caught.exception.faults[0])

    def test_check_says_whether_the_database_turns_authentication_on(self) -> None:
        off, on = "authentication: off (no key configured)", "authentication: on, keys of the state database"
        self.assertIn(off, self.cli("check")[1])
        self.assertFalse(self.db.exists())
        StateDb(self.db).close()  # as a ledger leaves it
        self.assertIn(off, self.cli("check")[1])
        status, stdout, stderr = self.cli("check", HOST="0.0.0.0")
        self.assertEqual((status, stdout), (2, ""))
        self.assertIn("HOST: ", stderr)
        self.keys("create", "--name", "alice")
        self.assertIn(on, self.cli("check")[1])
        self.assertIn(on, self.cli("check", HOST="0.0.0.0")[1])
        self.assertIn("authentication: off (AUTH=off)", self.cli("check", AUTH="off")[1])
        self.keys("revoke", "alice")
        self.assertIn(on, self.cli("check")[1])  # nobody comes in with a revoked key, nor without one

    def test_check_finds_that_a_database_could_not_be_made_and_makes_nothing(self) -> None:
        (self.directory / "file").touch()
        for name, reason in (("nope/x.db", "No such file"), ("file/x.db", "Not a directory"), ("y" * 300, "too long")):
            path = self.directory / name
            for arguments in ((), ("check",)):
                with self.subTest(name[:9], arguments=arguments):
                    run = self.cli if arguments else self.process
                    status, _, stderr = run(*arguments, STATE_DB=path, LEDGER="on")
                    self.assertEqual(status, 2)
                    self.assertIn(f"error: STATE_DB: {path}: ", stderr)
                    self.assertIn(reason, stderr)
        self.assertEqual(self.cli("check", STATE_DB=self.directory / "nope" / "x.db")[0], 0)  # none is to be made
        self.assertEqual(self.cli("check", LEDGER="on")[0], 0)
        self.assertEqual([path.name for path in self.directory.iterdir()], ["file"])

    def test_a_path_that_cannot_be_looked_at_is_exit_2(self) -> None:
        path = self.directory / ("x" * 300)
        for arguments in (("check",), ("keys", "list"), ("usage",)):
            with self.subTest(arguments):
                status, stdout, stderr = self.cli(*arguments, STATE_DB=path)
                self.assertEqual((status, stdout), (2, ""))
                self.assertIn(str(path), stderr)
                self.assertNotIn("Traceback", stderr)

    def test_a_database_that_cannot_be_opened_is_exit_2(self) -> None:
        self.db.write_bytes(b"this is not a database " * 100)
        for arguments in ((), ("check",), ("keys", "list"), ("keys", "create", "--name", "a"), ("usage",)):
            with self.subTest(arguments):
                status, stdout, stderr = (self.cli if arguments else self.process)(*arguments)
                self.assertEqual(status, 2, stderr)
                self.assertIn(str(self.db), stderr)
                self.assertNotIn("Traceback", stderr)
                self.assertEqual(stdout, "")

    def test_names_of_the_settings_are_taken(self) -> None:
        status, _, stderr = self.cli("keys", "create", "--name", "root", ADMIN_KEYS=ADMIN_KEYS)
        self.assertEqual(status, 1)
        self.assertIn("root", stderr)
        self.assertNotIn(ROOT, stderr)

    def test_json_is_for_programs(self) -> None:
        made = json.loads(self.keys("create", "--name", "alice", "--models", "13b,7b*", "--json"))
        self.assertEqual((made["name"], made["models"]), ("alice", ["13b", "7b*"]))
        self.assertRegex(made["key"], KEY.pattern)
        if os.name == "posix":
            self.assertEqual(self.db.stat().st_mode & 0o077, 0)


class LaterTest(AccessTest):
    """The state database goes wrong under a running gateway."""

    def running(self) -> tuple[RunningGateway, list[Header]]:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS)
        return running, self.make(running, budget_usd=5.0)

    @unittest.skipUnless(os.name == "posix", "an open file cannot be deleted here")
    def test_a_database_that_is_gone_fails_no_request(self) -> None:
        running, key = self.running()
        for path in self.directory.glob("gateway.db*"):
            path.unlink()
        for _ in range(3):
            self.assertEqual(running.post(headers=key).status, 200)
        self.assertEqual(running.post(headers=bearer("wrong")).status, 401)
        answer = running.get("/admin/keys", [AS_ROOT])
        self.assertEqual((answer.status, answer.error), (500, "internal_error"))
        self.assertNotIn(str(self.db), answer.body.decode())
        running.app.guard.tick()
        self.assertEqual(running.post(headers=key).status, 200)


if __name__ == "__main__":
    unittest.main()
