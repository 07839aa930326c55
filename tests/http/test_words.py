"""What an engine says of an error reaches the caller: its message, and its own code, type and param."""

from __future__ import annotations

import json
import unittest
from typing import Any, Optional
from unittest import mock

from gateway.errors import RequestRefused
from gateway.upstream.words import DETAIL_MAX_CHARS, MESSAGE_MAX_CHARS
from inference import EngineSpec, InferenceFactory
from tests.http.test_without_epoll import WithoutEpoll
from tests.onloop import OnLoopTest
from tests.resilience import ask
from tests.scripted import STREAM_HEAD, EngineSide, chunked, delta
from tests.support import CHAT, COMPLETIONS, EMBEDDINGS, Response, RunningGateway, chunk_of, content_of, gateway
from tests.unit.test_words import FASTAPI, FOUND, LENGTH, OPENAI, ROLE, SHAPES

SECRET = "sk-of-the-gateway-1234"


class Words(OnLoopTest):
    def told(
        self,
        body: Any,
        status: str = "400 Bad Request",
        request: Optional[dict[str, Any]] = None,
        path: str = CHAT,
        extra: str = "",
        **variables: object,
    ) -> Response:
        """What the client is told when one engine answers so."""
        running, engine = self.one_engine(**{"ERROR_FORMAT": "simple", **variables})
        client = self.enter(running.connect())
        client.request("POST", path, request or ask())
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{extra}\r\n"
        engine.take().send(head.encode() + data)
        return client.read_response()

    def test_a_rejection_carries_message_and_details_whatever_is_asked(self) -> None:
        for path, request in (
            (CHAT, ask()),
            (CHAT, ask(stream=True)),
            (COMPLETIONS, {"prompt": "hi"}),
            (COMPLETIONS, {"prompt": "hi", "stream": True}),
            (EMBEDDINGS, {"input": "hi"}),
        ):
            with self.subTest(path=path, request=request):
                response = self.told({"error": OPENAI}, request=request, path=path)
                self.assert_error(response, 400, "backend_rejected")
                body = response.json()
                self.assertEqual((body["message"], body["details"], body["param"]), (LENGTH, FOUND, None))
                self.assertEqual(body["request_id"], response.request_id)
                response = self.told({"error": OPENAI}, request=request, path=path, ERROR_FORMAT="openai")
                self.assertEqual(response.status, 400)
                error = {"message": LENGTH, **FOUND, "gateway_code": "backend_rejected"}
                self.assertEqual(response.json(), {"error": error, "request_id": response.request_id})

    def test_every_shape(self) -> None:
        running, engine = self.one_engine(ERROR_FORMAT="simple")
        side: Optional[EngineSide] = None
        client = self.enter(running.connect())
        for value, message, details in SHAPES:
            with self.subTest(value=value):
                client.request("POST", CHAT, ask())
                side = engine.take() if side is None else side.read_request()
                side.answer(json.dumps(value).encode(), status="422 X")
                response = client.read_response()
                self.assert_error(response, 422, "backend_rejected")
                body = response.json()
                self.assertEqual(body["message"], message or "the engine answered 422")
                self.assertEqual(body.get("details", {}), details)

    def test_plain_text_pages_and_what_is_cut_off(self) -> None:
        for body, message in (
            (b"no room for that", "no room for that"),
            (b"<html><title>413 Too Large</title>", "413 Too Large"),
            (b"", "the engine answered 400"),
            # The name of a status says nothing, and would pass for the gateway's own word on the path or the model.
            (b'{"detail": "Bad Request"}', "the engine answered 400: Bad Request"),
            (json.dumps({"detail": [{**FASTAPI[0], "input": "x" * 90_000}]}).encode(), "Field required"),
        ):
            response = self.told(body)
            self.assert_error(response, 400, "backend_rejected")
            self.assertEqual(response.json()["message"], message)
            self.assertNotIn("details", response.json())

    def test_what_has_come_before_the_connection_broke(self) -> None:
        running, engine = self.one_engine(ERROR_FORMAT="simple")
        client = self.begin(running)
        side = engine.take()
        side.send(b"HTTP/1.1 400 X\r\nContent-Length: 900\r\n\r\n" + json.dumps({"detail": FASTAPI}).encode())
        side.close()
        response = client.read_response()
        self.assert_error(response, 400, "backend_rejected")
        self.assertEqual(response.json()["message"], ROLE)

    def test_without_words_the_code_is_the_gateways(self) -> None:
        response = self.told(b"", ERROR_FORMAT="openai")
        error = response.json()["error"]
        self.assertEqual(
            (error["code"], error["type"], error["param"]), ("backend_rejected", "invalid_request_error", None)
        )
        self.assertEqual(error["gateway_code"], "backend_rejected")

    def test_the_gateways_own_errors_have_neither(self) -> None:
        with gateway(ERROR_FORMAT="openai") as running:
            self.assertEqual(set(running.post({"messages": []}).json()["error"]), {"message", "type", "param", "code"})

    def test_failures_and_pauses_carry_them_beside_the_gateways_code(self) -> None:
        quota = {"message": "You exceeded your quota", "type": "insufficient_quota", "code": "insufficient_quota"}
        details = {"type": "insufficient_quota", "code": "insufficient_quota"}
        for status, code, began in (
            ("429 X", "backend_rate_limited", "every engine of the model asks for a pause: "),
            ("500 X", "backend_error", "the engine answered 500: "),
            ("200 OK", "backend_error", "the engine reported an error: "),
        ):
            with self.subTest(status=status):
                response = self.told({"error": quota}, status)
                body = response.json()
                self.assertEqual((body["error"], body["details"]), (code, details))
                self.assertEqual(body["message"], began + "You exceeded your quota")
                error = self.told({"error": quota}, status, ERROR_FORMAT="openai").json()["error"]
                self.assertEqual((error["code"], error["details"]), (code, details))
                self.assertNotIn("gateway_code", error)
        self.assertEqual(self.told(b"", "429 X").json()["message"], "every engine of the model asks for a pause")

    def test_an_engine_that_refuses_the_gateways_key_is_not_quoted(self) -> None:
        for status in ("401 X", "403 X"):
            response = self.told(
                {"error": {"message": f"Incorrect API key: {SECRET}", "code": "invalid_api_key"}}, status
            )
            self.assert_error(response, 502, "backend_error")
            self.assertNotIn("invalid_api_key", str(response.body))
            self.assertNotIn(SECRET, str(response.body))

    def keyed(self) -> tuple[RunningGateway, Any]:
        """A gateway with a key for its one engine."""
        engine = self.scripted()
        self.enter(mock.patch.dict("os.environ", {"KEY_OF_M": SECRET}))
        models = {"m": {"engines": [{"url": engine.url, "api_key_env": "KEY_OF_M"}]}}
        return self.serve(models, ERROR_FORMAT="simple", RETRY_ATTEMPTS=1, KEY_OF_M=SECRET), engine

    def test_the_gateways_key_for_an_engine_reaches_nobody(self) -> None:
        for status, stream in (("400", False), ("429", False), ("500", True), ("200", False), ("200", True)):
            with self.subTest(status=status, stream=stream):
                running, engine = self.keyed()
                client = self.begin(running, ask(stream=stream))
                side = engine.take()
                self.assertIn(SECRET.encode(), side.head)
                error = {"message": f"not with {SECRET}!", "code": SECRET}
                side.answer(json.dumps({"error": error}).encode(), status=f"{status} X")
                response = client.read_response()
                self.assertGreaterEqual(response.status, 400)
                self.assertIn("not with ***!", response.json()["message"])
                self.assertEqual(response.json()["details"], {"code": "***"})
                running.request_line(response.request_id)
                told = response.body.decode() + running.log.getvalue() + running.get("/health").body.decode()
                self.assertNotIn(SECRET, told)

    def test_nor_does_the_begin_of_it_where_a_message_is_cut(self) -> None:
        for key, chars in (("message", MESSAGE_MAX_CHARS), ("code", DETAIL_MAX_CHARS)):
            running, engine = self.keyed()
            client = self.begin(running)
            text = "x" * (chars - 12) + SECRET
            engine.take().answer(json.dumps({"error": {"message": "m", key: text}}).encode(), status="400 X")
            response = client.read_response()
            self.assert_error(response, 400, "backend_rejected")
            self.assertIn(b"xxx***", response.body)
            running.request_line(response.request_id)
            self.assertNotIn(SECRET[:12], response.body.decode() + running.log.getvalue())

    def test_an_error_inside_a_stream_carries_them_too(self) -> None:
        error = b'data: {"error": {"message": "no memory with %b", "type": "oom", "code": 7}}\n\n' % SECRET.encode()
        for begun in (False, True):
            with self.subTest(begun=begun):
                running, engine = self.keyed()
                client = self.begin(running, ask(stream=True))
                side = engine.take()
                side.send(STREAM_HEAD + chunked(delta("a") if begun else b": soon\n\n"))
                if begun:
                    self.assertEqual(client.read_head().status, 200)
                    self.assertEqual(content_of([client.read_event() or ""]), "a")
                side.send(chunked(error))
                body = chunk_of(client.read_event() or "") if begun else client.read_response().json()
                self.assertEqual(body["error"], "backend_error")
                self.assertIn("no memory with ***", body["message"])
                self.assertEqual(body["details"], {"code": 7, "type": "oom"})


class WordsWithoutEpoll(WithoutEpoll, Words):
    pass


class LibraryTest(OnLoopTest):
    def test_the_library_raises_them(self) -> None:
        engine = self.engine()
        engine.control("error", status=422)
        with InferenceFactory({"m": [EngineSpec(engine.url)]}, health_interval_s=0) as factory:
            for stream in (False, True):
                with self.assertRaises(RequestRefused) as caught:
                    messages = [{"role": "user", "content": "hi"}]
                    list(factory.stream(messages)) if stream else factory.chat(messages)
                self.assertEqual((caught.exception.code, caught.exception.status), ("backend_rejected", 422))
                self.assertTrue(caught.exception.engine)


if __name__ == "__main__":
    unittest.main()
