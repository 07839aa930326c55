"""`/openapi.json` and `/docs` over a socket: whatever they describe is there, whatever is there they describe, and what
is answered fits."""

from __future__ import annotations

import re
import threading
from typing import Any
from unittest import mock

from gateway.api import own
from gateway.api.document import OPERATIONS, Documents, documents
from gateway.api.operation import Operation
from tests.access import ADMIN_KEYS, AS_ROOT, AccessTest, ask, bearer
from tests.fitting import compiled
from tests.support import CHAT, COMPLETIONS, EMBEDDINGS, Response, RunningGateway, eventually, gateway

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def filled(path: str) -> str:
    """A path with something in its places."""
    return re.sub(r"\{\w+\}", "nobody", path)


class RoutesTest(AccessTest):
    def setUp(self) -> None:
        super().setUp()
        self.gateway = self.serve(ADMIN_KEYS=ADMIN_KEYS)

    def send(self, operation: Operation, *headers: tuple[str, str]) -> Response:
        body = b"{}" if operation.body is not None else None
        method = "HEAD" if operation is own.LIVE else operation.method  # which has an end
        return self.gateway.ask(method, filled(operation.path), body, headers)

    def test_whatever_is_described_answers(self) -> None:
        for operation in OPERATIONS:
            with self.subTest(operation.name):
                answer = self.send(operation, AS_ROOT)
                self.assertNotEqual(answer.status, 405)
                self.assertNotIn("there is no /", answer.body.decode())

    def test_whatever_is_routed_is_described(self) -> None:
        routed = self.gateway.get("/", [AS_ROOT]).json()["endpoints"]
        described: dict[str, str] = {}
        for path, item in self.gateway.get("/openapi.json").json()["paths"].items():
            described[path] = ", ".join(sorted(map(str.upper, item)))
        self.assertEqual({path: ", ".join(sorted(m.split(", "))) for path, m in routed.items()}, described)

    def test_another_method_is_refused_with_those_that_are_described(self) -> None:
        methods: dict[str, set[str]] = {}
        for operation in OPERATIONS:
            methods.setdefault(operation.path, set()).add(operation.method)
        for path, described in methods.items():
            for method in METHODS:
                if method not in described:
                    with self.subTest(path, method=method):
                        answer = self.gateway.ask(method, filled(path), b"{}", [AS_ROOT])
                        self.assertEqual(answer.status, 405)
                        allowed = set((answer.header("allow") or "").split(", "))
                        self.assertEqual(allowed - {"HEAD", "OPTIONS"}, described)

    def test_whoever_shows_no_key_is_told_so_where_the_document_says_so(self) -> None:
        paths = self.gateway.get("/openapi.json").json()["paths"]
        for operation in OPERATIONS:
            security = paths[operation.path][operation.method.lower()]["security"]
            with self.subTest(operation.name):
                answer = self.send(operation)
                self.assertEqual(answer.status == 401, bool(security) and {} not in security)

    def test_whoever_may_not_is_told_so_where_the_document_says_so(self) -> None:
        headers = self.make(self.gateway, "viewer", role="viewer")
        for operation in OPERATIONS:
            if operation.path != "/metrics":
                with self.subTest(operation.name):
                    answer = self.send(operation, *headers)
                    self.assertEqual(answer.status == 403, operation.permission not in (None, "", "metrics"))


class DocumentsTest(AccessTest):
    def test_both_are_open_and_known_by_their_tags(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS, HOST="127.0.0.1")
        for path, kind in (("/openapi.json", "application/json"), ("/docs", "text/html; charset=utf-8")):
            with self.subTest(path):
                answer = running.get(path)
                self.assertEqual((answer.status, answer.header("content-type")), (200, kind))
                tag = answer.header("etag") or ""
                self.assertRegex(tag, r'\A"[0-9a-f]{16}"\Z')
                for known in (tag, f'W/{tag}, "x"', "*"):
                    with running.connect() as client:
                        unchanged = client.ask("GET", path, None, [("If-None-Match", known)])
                        self.assertEqual((unchanged.status, unchanged.body, unchanged.header("etag")), (304, b"", tag))
                        self.assertIsNone(unchanged.header("content-length"))
                        self.assertEqual(client.ask("GET", "/healthz").status, 200)
                self.assertEqual(running.get(path, [("If-None-Match", '"x"')]).status, 200)

    def test_they_are_made_on_a_thread_and_for_who_asks(self) -> None:
        makers: list[str] = []

        def made(needs_key: bool, metrics_open: bool) -> Documents:
            makers.append(threading.current_thread().name.partition("-")[0])
            return documents(needs_key, metrics_open)

        with mock.patch("gateway.server.documentpages.documents", made), gateway() as running:
            self.assertEqual(makers, [])
            for path in (own.DOCS.path, own.DOCUMENT.path, own.DOCS.path):
                self.assertEqual(running.get(path).status, 200)
            self.assertEqual(makers, ["aside"] * 3)

    def test_the_page_says_what_it_may_do(self) -> None:
        answer = self.serve().get("/docs")
        policy = answer.header("content-security-policy") or ""
        self.assertIn("default-src 'none'", policy)
        self.assertEqual(answer.header("x-content-type-options"), "nosniff")

    def test_a_gateway_without_keys_asks_for_none_until_there_is_one(self) -> None:
        running = self.serve()

        def security() -> Any:
            return running.get("/openapi.json").json()["paths"][CHAT]["post"]["security"]

        self.assertEqual(security(), [])
        running.app.guard.store.create("alice")
        eventually(security)
        self.assertEqual(security(), [{"bearer": ["infer"]}, {"key": ["infer"]}])


class AnswersTest(AccessTest):
    """What is answered fits what the document says of it."""

    def setUp(self) -> None:
        super().setUp()
        engines = {"13b": {"engines": [self.engine(model="13b").url]}, "7b": {"engines": [self.engine(model="7b").url]}}
        self.running: RunningGateway = self.serve(
            engines, ADMIN_KEYS=ADMIN_KEYS, JWT_SECRET="s" * 32, CACHE="on", SANDBOX="off", LEDGER="on"
        )
        self.document = self.running.get("/openapi.json").json()

    def check(self, method: str, path: str, body: Any = None, target: str = "", **options: Any) -> Any:
        """Ask, and hold the answer against the document."""
        answer = self.running.ask(method, target or path, body, options.get("headers", [AS_ROOT]))
        operation = self.document["paths"][path][method.lower()]
        self.assertEqual(answer.status, options.get("status", answer.status), answer.body)
        response = operation["responses"][str(answer.status)]
        if "$ref" in response:
            response = self.document["components"]["responses"][response["$ref"].rpartition("/")[2]]
        kind = (answer.header("content-type") or "").partition(";")[0]
        schema = response["content"][kind]["schema"]
        if kind != "application/json":
            return answer.body
        self.assertEqual(compiled(schema, self.document["components"]["schemas"]).check(answer.json()), [], answer.body)
        if answer.status >= 400 and "error" in answer.json():
            code = answer.json()["error"]
            self.assertIn(code if isinstance(code, str) else code["code"], response["x-codes"])
        return answer.json()

    def test_of_engines(self) -> None:
        self.check("POST", CHAT, ask(), status=200)
        self.check("POST", CHAT, ask(stream=True), status=200)
        self.check("POST", CHAT, ask(n=0), status=400)
        self.check("POST", CHAT, ask(model="nope"), status=404)
        self.check("POST", CHAT, ask(n=0), status=400, headers=[AS_ROOT, ("X-Stainless-Lang", "python")])
        self.check("POST", CHAT, ask(), status=401, headers=())
        self.check("POST", COMPLETIONS, {"prompt": "a"}, status=200)
        self.check("POST", EMBEDDINGS, {"input": ["a", "b"]}, status=200)
        self.check("POST", "/query", {"query": "What is AI?"}, status=200)
        told = self.check("POST", "/api/v1/inference", {"prompt": "What is AI?"}, status=200)
        self.assertEqual(len(told["model_responses"]), 2)

    def test_of_the_gateway_itself(self) -> None:
        for path in ("/", "/healthz", "/readyz", "/health", "/api/v1/health", "/v1/models", "/api/v1/models"):
            self.check("GET", path, status=200)
        self.check("GET", "/metrics", status=200)
        self.check("GET", "/docs", status=200)
        self.check("GET", "/v1/models/{id}", target="/v1/models/13b", status=200)
        self.check("GET", "/v1/models/{id}", target="/v1/models/nope", status=404)
        self.running.app.pipeline.draining = True
        self.check("GET", "/readyz", status=503)
        self.check("POST", CHAT, ask(), status=503)

    def test_of_administrators(self) -> None:
        self.check("POST", "/admin/keys", {"name": "alice", "rpm": 60, "expires": "90d"}, status=201)
        self.check("POST", "/admin/keys", {"name": "alice"}, status=400)
        rotate = {"target": "/admin/keys/alice/rotate", "status": 200}
        secret = self.check("POST", "/admin/keys/{name}/rotate", {"grace": "1m"}, **rotate)["key"]
        self.check("POST", "/auth/token", headers=bearer(secret), status=200)
        self.check("GET", "/admin/keys", status=200)
        self.check("DELETE", "/admin/keys/{name}", target="/admin/keys/alice", status=200)
        self.check("DELETE", "/admin/keys/{name}", target="/admin/keys/nobody", status=404)
        for name in ("drain", "enable"):
            engine = self.running.get("/health", [AS_ROOT]).json()["models"]["13b"]["engines"][0]["id"]
            path = f"/admin/engines/{{id}}/{name}"
            self.check("POST", path, target=f"/admin/engines/{engine}/{name}", status=200)
            self.check("GET", "/health", status=200)
        weigh = {"target": f"/admin/engines/{engine}/weight"}
        self.check("POST", "/admin/engines/{id}/weight", {"weight": 2}, **weigh, status=200)
        self.check("POST", "/admin/engines/{id}/weight", {"weight": 0}, **weigh, status=400)
        self.check("POST", "/admin/engines/{id}/weight", {"weight": 2}, target="/admin/engines/x/weight", status=404)
        self.check("GET", "/api/v1/cache/stats", status=200)
        self.check("POST", "/api/v1/cache/clear", {"model": "13b"}, status=200)
        self.check("POST", "/api/v1/cache/clear", {"model": 1}, status=400)

    def test_of_the_ledger(self) -> None:
        self.running.post(ask(), headers=[AS_ROOT])
        by = "/admin/usage?by=key,model,engine,status,error,day,hour"
        eventually(lambda: self.check("GET", "/admin/usage", target=by, status=200)["rows"])
        self.assertTrue(self.check("GET", "/admin/usage", target=f"{by}&format=csv", status=200))
        self.check("GET", "/admin/usage", target="/admin/usage?by=nothing", status=400)
