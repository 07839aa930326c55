"""The key at the door: which headers carry it, what is open without it, and that an engine never sees a stranger."""

from __future__ import annotations

import json
import unittest

from tests.support import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    HI,
    SocketTest,
    engines,
    gateway,
    mock_engine,
    request_bytes,
)

ALICE = "sk-alice-0123456789abcdef"
ROOT_KEY = "sk-root-fedcba9876543210"
GOOD = ("Authorization", f"Bearer {ALICE}")


class Door(SocketTest):
    def setUp(self) -> None:
        self.engine = self.enter(mock_engine())
        self.gateway = self.enter(
            gateway(ENGINES=engines(_13b=self.engine.url), API_KEYS=f"alice:{ALICE}", ADMIN_KEYS=f"root:{ROOT_KEY}")
        )

    def assert_refused(self, headers: list[tuple[str, str]]) -> None:
        response = self.gateway.post(headers=headers)
        self.assertEqual((response.status, response.error), (401, "unauthorized"))
        self.assertEqual(response.header("www-authenticate"), "Bearer")
        self.assertEqual(response.json()["request_id"], response.request_id)
        self.assertNotIn(ALICE.encode(), response.body)
        self.assertEqual(self.engine.stats()["requests"], 0)

    def test_every_way_of_sending_a_key_is_taken(self) -> None:
        for key in (ALICE, ROOT_KEY):
            for header in (
                ("Authorization", f"Bearer {key}"),
                ("authorization", f"bearer {key}"),
                ("Authorization", f"Api-Key {key}"),
                ("X-API-Key", key),
                ("x-api-key", key),
            ):
                with self.subTest(header=header[0], scheme=header[1][:7]):
                    self.assertEqual(self.gateway.post(headers=[header]).status, 200)

    def test_without_a_key_nothing_is_asked(self) -> None:
        self.assert_refused([])

    def test_a_wrong_key_is_refused(self) -> None:
        for key in ("x", ALICE[:-1], ALICE + "x", ALICE.upper(), "alice", f"alice:{ALICE}", "é" * 5, "x" * 9000):
            with self.subTest(key=key[:40]):
                self.assert_refused([("Authorization", f"Bearer {key}")])
                self.assert_refused([("X-API-Key", key)])

    def test_an_unfit_authorization_is_refused(self) -> None:
        for value in ("", "Bearer", "Bearer ", ALICE, f"Basic {ALICE}", f"Bearer{ALICE}", f"Bearer {ALICE} {ALICE}"):
            with self.subTest(value=value):
                self.assert_refused([("Authorization", value)])

    def test_a_key_sent_twice_is_refused(self) -> None:
        self.assert_refused([GOOD, GOOD])
        self.assert_refused([("X-API-Key", ALICE), ("X-API-Key", "other")])

    def test_a_key_beside_an_authorization_of_another_scheme_counts(self) -> None:
        for value in ("", "Basic dTpw", 'Digest username="u"', "Bearer ", "Negotiate YII="):
            with self.subTest(authorization=value):
                other = ("Authorization", value)
                self.assertEqual(self.gateway.post(headers=[other, ("X-API-Key", ALICE)]).status, 200)
                self.assertEqual(self.gateway.get("/v1/models", [("X-API-Key", ALICE), other]).status, 200)
        for both in ([GOOD, ("X-API-Key", ALICE)], [("X-API-Key", ALICE), ("Authorization", f"Api-Key {ALICE}")]):
            self.assertEqual(self.gateway.post(headers=both).status, 200)

    def test_two_different_keys_are_refused_before_the_body_is_sent(self) -> None:
        for both in (
            [GOOD, ("X-API-Key", ROOT_KEY)],
            [GOOD, ("X-API-Key", "wrong")],
            [("X-API-Key", ALICE), ("Authorization", "Bearer wrong")],
            [("Authorization", "Basic dTpw"), ("X-API-Key", "wrong")],
            [("Authorization", "Basic dTpw"), ("Authorization", "Basic dTpw"), ("X-API-Key", ALICE)],
        ):
            with self.subTest(headers=both), self.gateway.connect() as client:
                self.assert_refused(both)
                client.send(request_bytes("POST", CHAT, None, [("Content-Length", "5000"), *both]))
                self.assertEqual(client.read_response().status, 401)

    def test_a_body_is_waited_for_when_a_key_stands_beside_another_scheme(self) -> None:
        body = json.dumps(HI).encode()
        headers = [("Authorization", "Basic dTpw"), ("X-API-Key", ALICE), ("Content-Length", str(len(body)))]
        with self.gateway.connect() as client:
            client.send(request_bytes("POST", CHAT, None, headers) + body[:5])
            client.send(body[5:])
            self.assertEqual(client.read_response().status, 200)

    def test_a_key_in_the_query_is_no_key(self) -> None:
        response = self.gateway.ask("POST", f"{CHAT}?api_key={ALICE}&key={ALICE}", HI)
        self.assertEqual(response.status, 401)

    def test_every_inference_path_and_what_tells_of_the_fleet_needs_a_key(self) -> None:
        for method, path in (
            ("POST", CHAT),
            ("POST", COMPLETIONS),
            ("POST", EMBEDDINGS),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/13b"),
            ("GET", "/health"),
            ("HEAD", "/v1/models"),
        ):
            with self.subTest(method=method, path=path):
                self.assertEqual(self.gateway.ask(method, path).status, 401)
                if method != "POST":
                    self.assertEqual(self.gateway.ask(method, path, None, [GOOD]).status, 200)

    def test_probes_of_the_process_are_always_open(self) -> None:
        for path in ("/healthz", "/readyz"):
            self.assertEqual(self.gateway.get(path).status, 200)
            self.assertEqual(self.gateway.get(path, [("Authorization", "Bearer wrong")]).status, 200)

    def test_metrics_are_open_on_loopback(self) -> None:
        self.assertEqual(self.gateway.get("/metrics").status, 200)

    def test_the_key_is_judged_before_the_body_is_sent(self) -> None:
        with self.gateway.connect() as client:
            client.send(request_bytes("POST", CHAT, None, [("Content-Length", "1000000")]))
            self.assertEqual(client.read_response().status, 401)
            client.assert_closed()

    def test_a_stranger_is_not_asked_to_continue(self) -> None:
        with self.gateway.connect() as client:
            client.send(request_bytes("POST", CHAT, None, [("Content-Length", "1000"), ("Expect", "100-continue")]))
            self.assertEqual(client.read_response().status, 401)

    def test_the_key_is_judged_before_the_body_is_read(self) -> None:
        self.assertEqual(self.gateway.post(b"not json").status, 401)
        self.assertEqual(self.gateway.post(b"not json", headers=[GOOD]).status, 400)

    def test_the_connection_goes_on_after_a_refusal(self) -> None:
        with self.gateway.connect() as client:
            self.assertEqual(client.post().status, 401)
            self.assertEqual(client.post(headers=[GOOD]).status, 200)
            self.assertEqual(client.post().status, 401)

    def test_the_log_names_the_key_by_its_name(self) -> None:
        named = self.gateway.post(headers=[GOOD]).request_id
        root = self.gateway.post(headers=[("X-API-Key", ROOT_KEY)]).request_id
        nobody = self.gateway.post().request_id
        self.assertEqual(self.gateway.request_line(named)["key"], "alice")
        self.assertEqual(self.gateway.request_line(root)["key"], "root")
        line = self.gateway.request_line(nobody)
        self.assertEqual((line["key"], line["error"], line["status"]), (None, "unauthorized", 401))

    def test_the_clients_key_is_not_sent_to_the_engine(self) -> None:
        self.gateway.post(headers=[GOOD])
        self.gateway.post(headers=[("X-API-Key", ALICE)])
        for request in self.engine.requests:
            self.assertNotIn(ALICE, str(request["headers"]))


class Switch(SocketTest):
    def test_without_keys_everybody_is_let_in(self) -> None:
        running = self.enter(gateway())
        self.assertEqual(running.post().status, 200)
        self.assertEqual(running.post(headers=[("Authorization", "Bearer whatever")]).status, 200)

    def test_an_admin_key_alone_turns_authentication_on(self) -> None:
        running = self.enter(gateway(ADMIN_KEYS=ROOT_KEY))
        self.assertEqual(running.post().status, 401)
        self.assertEqual(running.post(headers=[("X-API-Key", ROOT_KEY)]).status, 200)

    def test_auth_off_lets_everybody_in_although_there_are_keys(self) -> None:
        running = self.enter(gateway(API_KEYS=ALICE, AUTH="off"))
        self.assertEqual(running.post().status, 200)

    def test_an_unnamed_key_is_logged_under_a_name_that_is_not_the_key(self) -> None:
        running = self.enter(gateway(API_KEYS=ALICE))
        line = running.request_line(running.post(headers=[GOOD]).request_id)
        self.assertTrue(line["key"])
        self.assertNotIn(line["key"], ALICE)

    def test_metrics_need_a_key_when_others_can_reach_them(self) -> None:
        running = self.enter(gateway(HOST="0.0.0.0", API_KEYS=f"alice:{ALICE}", ADMIN_KEYS="root:sk-root-0123456789"))
        self.assertEqual(running.get("/metrics").status, 401)
        self.assertEqual(running.get("/metrics", [GOOD]).status, 403)  # the role user has no permission metrics
        self.assertEqual(running.get("/metrics", [("X-API-Key", "sk-root-0123456789")]).status, 200)
        self.assertEqual(running.get("/healthz").status, 200)

    def test_the_openai_error_format_says_the_same(self) -> None:
        running = self.enter(gateway(API_KEYS=ALICE, ERROR_FORMAT="openai"))
        error = running.post().json()["error"]
        self.assertEqual((error["code"], error["type"]), ("unauthorized", "authentication_error"))


if __name__ == "__main__":
    unittest.main()
