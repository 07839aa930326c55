"""A path that does not exist: the answer says which one was meant, and which there are."""

from __future__ import annotations

import json
import unittest

from gateway.server.lostpaths import PATH_CHARS, LostPaths
from tests.support import CHAT, COMPLETIONS, EMBEDDINGS, SocketTest, gateway

MEANT = {
    CHAT: (
        "/chat/completions", "/v1/v1/chat/completions", "/v1/chat/completions/", "/V1/Chat/Completions",
        "/chat/completions//", "/openai/v1/chat/completions",
        "/api/v1/chat/completions", "/api/chat/completions", "//v1//chat/completions",
        "/openai/deployments/13b/chat/completions",
    ),
    COMPLETIONS: ("/completions", "/v1/v1/completions", "/v1/completions/"),
    EMBEDDINGS: ("/embeddings", "/v1/Embeddings"),
    "/v1/models": ("/models", "/v1/models/", "/v1/v1/models", "/Models"),
    "/v1/models/{id}": ("/models/13b", "/models/Qwen/Qwen2.5-7B", "/v1/v1/models/13b"),
    "/api/v1/models": ("/api/v1/models/", "/v1/api/v1/models"),
    "/api/v1/inference": ("/api/v1/inference/", "/API/v1/inference"),
    "/healthz": ("/v1/healthz", "/healthz/", "/HealthZ"),
    "/health": ("/v1/health", "/health/"),
    "/metrics": ("/v1/metrics", "/metrics/"),
    "/admin/keys": ("/admin/keys/", "/v1/admin/keys"),
    "/admin/keys/{name}/rotate": ("/v1/admin/keys/bob/rotate", "/admin/keys/bob/rotate/"),
}  # fmt: skip


class Answers(SocketTest):
    def setUp(self) -> None:
        self.gateway = self.enter(gateway())
        self.known: dict[str, str] = self.gateway.get("/").json()["endpoints"]

    def message(self, path: str, method: str = "POST") -> str:
        answer = self.gateway.ask(method, path, b"{}")
        self.assertEqual((answer.status, answer.error), (404, "not_found"), path)
        message = answer.json()["message"]
        self.assertIsInstance(message, str)
        return str(message)

    def test_the_path_that_was_meant_is_named(self) -> None:
        for meant, paths in MEANT.items():
            for path in paths:
                with self.subTest(path=path):
                    self.assertTrue(
                        self.message(path).startswith(f"there is no {path}; did you mean {meant}? There are: ")
                    )

    def test_of_a_response_that_is_kept_the_limit_is_named(self) -> None:
        for path in ("/v1/responses/resp_1", "/responses/resp_1/input_items", "/openai/v1/responses/resp_1/cancel"):
            for method in ("GET", "POST", "DELETE"):
                with self.subTest(path=path, method=method):
                    begin = f"there is no {path}: of responses only POST /v1/responses is served, "
                    message = self.message(path, method)
                    self.assertTrue(message.startswith(begin), message)
                    self.assertIn("neither fetched nor deleted", message)
                    self.assertIn("previous_response_id", message)
        for path in ("/v1/responses/", "/v1/responsesx/1", "/v1/xresponses/1"):
            self.assertNotIn("neither fetched", self.message(path))

    def test_where_nothing_is_like_it_nothing_is_guessed(self) -> None:
        for path in (
            "/nope",
            "/v1",
            "/v1/",
            "/v1/chat",
            "//",
            "/chat/completions/x",
            "/v1/xchat/completions2",
            "/healthzz",
        ):
            with self.subTest(path=path):
                self.assertTrue(self.message(path).startswith(f"there is no {path}. There are: "))

    def test_the_paths_that_exist_are_named_all_and_no_others(self) -> None:
        for path in ("/nope", "/chat/completions", "/admin/nope", "/auth/nope", "/v1/admin/keys"):
            with self.subTest(path=path):
                own = "/admin/" in path or "/auth/" in path
                named = self.message(path).partition("There are: ")[2].split(", ")
                wanted = [name for name in self.known if name.startswith(("/admin/", "/auth/")) == own]
                self.assertEqual(sorted(named), sorted(wanted))

    def test_a_known_path_with_a_wrong_method_stays_405(self) -> None:
        for path in (CHAT, COMPLETIONS, EMBEDDINGS):
            self.assertEqual(self.gateway.get(path).status, 405)
        self.assertEqual(self.gateway.ask("POST", "/v1/models", b"{}").status, 405)

    def test_what_is_repeated_of_a_path_is_bounded_and_has_no_query(self) -> None:
        for path in ("/" + "x" * 5_000, "/admin/keys/" * 500 + "rotate", "/" * 5_000 + "models"):
            message = self.message(path)
            self.assertIn(f"there is no {path[:PATH_CHARS]}….", message)
            self.assertLess(len(message), 1_000)
        message = self.message("/chat/completions?key=secret")
        self.assertNotIn("secret", message)
        self.assertIn("/v1/chat/completions?", message)

    def test_head_has_no_body_and_the_connection_goes_on(self) -> None:
        with self.gateway.connect() as client:
            self.assertEqual(client.ask("HEAD", "/models").status, 404)
            self.assertIn("/v1/models", json.loads(client.ask("GET", "/models").body)["message"])


class Meant(unittest.TestCase):
    def test_the_longest_that_fits_is_meant(self) -> None:
        lost = LostPaths(("/", "/v1/completions", "/v1/chat/completions", "/v1/models/{id}"))
        self.assertEqual(lost.meant_by("/x/chat/completions"), "/v1/chat/completions")
        self.assertEqual(lost.meant_by("/models/x/chat/completions"), "/v1/chat/completions")
        self.assertEqual(lost.meant_by("/models/x"), "/v1/models/{id}")
        self.assertIsNone(lost.meant_by("/"))
        self.assertIsNone(lost.meant_by("/models/"))


if __name__ == "__main__":
    unittest.main()
