"""Asking one engine for its models: what is taken of an answer, what lists nothing, what is no answer."""

from __future__ import annotations

import json
import threading
import unittest
from typing import Any, Optional

from gateway.routing.engine import Engine, ListedModel
from gateway.routing.specs import EngineSpec
from gateway.upstream import listing
from gateway.upstream.listing import ModelLists, ask_models
from tests.scripted import EngineSide, ScriptedEngine, chunked
from tests.support import TIMEOUT_S, SocketTest, dead_url

Found = Optional[tuple[ListedModel, ...]]


def whole(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """An answer with a length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def listed(*entries: Any) -> bytes:
    """The answer with these entries."""
    return whole(json.dumps({"object": "list", "data": entries}).encode())


def named(*names: str) -> Found:
    return tuple(ListedModel(name) for name in names)


class AskTest(SocketTest):
    def setUp(self) -> None:
        self.engine = self.enter(ScriptedEngine())
        self.head = b""

    def begin(self, secret: str = "", timeout_s: float = TIMEOUT_S, **spec: Any) -> tuple[EngineSide, Any]:
        """Ask; the engine's side, which has the request, and what gives the result."""
        found: list[Found] = []
        engine = EngineSpec(self.engine.url, **spec)
        thread = threading.Thread(target=lambda: found.append(ask_models(engine, secret, timeout_s)), name="asking")
        thread.start()
        side = self.engine.accept()
        self.head = side.sock.recv(65536)

        def end() -> Found:
            thread.join(TIMEOUT_S)
            self.assertEqual(len(found), 1, "it has not ended")
            return found[0]

        return side, end

    def ask(self, answer: bytes, close: bool = True, **options: Any) -> Found:
        side, end = self.begin(**options)
        try:
            side.send(answer)
        except OSError:
            pass  # it has heard enough
        if close:
            side.close()
        found: Found = end()
        return found

    def test_its_models_are_found_in_its_order(self) -> None:
        self.assertEqual(self.ask(listed({"id": "b"}, {"id": "a/B-7b"}, {"id": "llama3.2:latest"}), close=False),
                         named("b", "a/B-7b", "llama3.2:latest"))  # fmt: skip
        self.assertTrue(self.head.startswith(b"GET /v1/models HTTP/1.1\r\n"))
        self.assertNotIn(b"Authorization", self.head)

    def test_it_is_asked_with_its_key_below_its_prefix(self) -> None:
        self.engine.url = self.engine.url.replace("/v1", "/openai/v1")
        self.assertEqual(self.ask(listed({"id": "a"}), secret="s3cret"), named("a"))
        self.assertIn(b"GET /openai/v1/models ", self.head)
        self.assertIn(b"\r\nAuthorization: Bearer s3cret\r\n", self.head)

    def test_the_usual_port_is_not_named(self) -> None:
        for url, host in (("https://api.a", "api.a"), ("http://[::1]:80", "[::1]"), ("https://a:80", "a:80")):
            self.assertIn(f"\r\nHost: {host}\r\n".encode(), listing._request(EngineSpec(url), "/v1/models", ""))

    def test_the_framing_may_be_any(self) -> None:
        body = json.dumps({"data": [{"id": "a"}]}).encode()
        head = b"HTTP/1.1 200 OK\r\n"
        half = len(body) // 2
        chunks = chunked(body[:half]) + chunked(body[half:]) + b"0\r\n\r\n"
        self.assertEqual(self.ask(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, close=False), named("a"))
        self.assertEqual(self.ask(head + b"\r\n" + body), named("a"))
        self.assertEqual(self.ask(b"HTTP/1.0 200 OK\r\n\r\n\xef\xbb\xbf" + body), named("a"))

    def test_a_bare_list_is_one_too(self) -> None:
        self.assertEqual(self.ask(whole(b'[{"id": "a"}]')), named("a"))

    def test_the_context_is_taken_where_it_can_be_one(self) -> None:
        entries = [
            {"id": str(number), "max_model_len": value} for number, value in enumerate((8192, 0, "1", True, 1e3))
        ]
        expected = (ListedModel("0", 8192), *(ListedModel(str(number)) for number in range(1, 5)))
        self.assertEqual(self.ask(listed(*entries)), expected)

    def test_what_is_no_name_is_left_out_and_a_second_one_of_the_same_too(self) -> None:
        names = ("a", "", "b c", "ü", "x" * 257, "a\r\nX: 1", 7, None, "a")
        self.assertEqual(self.ask(listed(*({"id": name} for name in names), "b", [], {"name": "c"})), named("a"))

    def test_so_many_are_taken_at_most(self) -> None:
        found = self.ask(listed(*({"id": f"m{number}"} for number in range(listing.LIST_MAX_MODELS + 5))))
        self.assertEqual(len(found or ()), listing.LIST_MAX_MODELS)

    def test_what_is_no_list_lists_nothing(self) -> None:
        deep = b"[" * 100_000
        cases = {
            "an empty list": listed(),
            "null": whole(b'{"object": "list", "data": null}'),
            "rubbish": whole(b"<html>it works</html>"),
            "no bytes": whole(b""),
            "no text": whole(b"\xff\xfe\x00"),
            "another object": whole(b'{"data": {"id": "a"}}'),
            "a number": whole(b"9" * 10_000),
            "deep": whole(deep),
            "not found": whole(b"404 page not found", "404 Not Found"),
            "no such method": whole(b"", "405 Method Not Allowed"),
            "no HTTP": b"SSH-2.0-x\r\n\r\n",
        }
        for name, answer in cases.items():
            with self.subTest(name):
                self.assertEqual(self.ask(answer), ())

    def test_a_redirect_is_not_followed(self) -> None:
        elsewhere = self.enter(ScriptedEngine())
        redirect = whole(b'{"data": [{"id": "a"}]}', "307 Temporary Redirect", f"Location: {elsewhere.url}/models")
        found = self.ask(redirect, secret="s3cret")
        self.assertEqual(found, ())
        self.assertTrue(elsewhere.nobody_waits())

    def test_what_is_longer_than_any_list_is_not_heard_out(self) -> None:
        size = 16 * listing.LIST_MAX_BYTES
        endless = b"HTTP/1.1 200 OK\r\n\r\n" + b" " * size
        self.assertEqual(self.ask(endless), ())
        self.assertEqual(self.ask(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n" + b" " * size), ())
        self.assertEqual(self.ask(b"HTTP/1.1 200 OK\r\nX: " + b"x" * size), ())

    def test_nor_is_what_goes_on_around_a_body(self) -> None:
        count = 16 * listing.LIST_MAX_BYTES // 50_000
        interim = b"HTTP/1.1 100 Continue\r\nX: " + b"x" * 50_000 + b"\r\n\r\n"
        self.assertEqual(self.ask(interim * count), ())
        chunks = (b"1;" + b"x" * 50_000 + b"\r\n \r\n") * count
        self.assertEqual(self.ask(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks), ())

    def test_what_says_nothing_of_the_list_is_no_answer(self) -> None:
        for status in ("401 Unauthorized", "403 Forbidden", "429 Too Many Requests", "500 Oops", "503 Loading"):
            with self.subTest(status):
                self.assertIsNone(self.ask(whole(b"{}", status)))
        self.assertIsNone(self.ask(b""))
        self.assertIsNone(self.ask(listed({"id": "a"})[:-3]))
        chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b'{"data": []}')
        self.assertIsNone(self.ask(chunks))
        self.assertIsNone(ask_models(EngineSpec(dead_url()), "", TIMEOUT_S))

    def test_the_time_limit_covers_all_of_it(self) -> None:
        self.assertIsNone(self.ask(b"", close=False, timeout_s=0.1))
        side, end = self.begin(timeout_s=0.3)
        stop = threading.Event()

        def trickle() -> None:
            try:
                side.send(b"HTTP/1.1 200 OK\r\n\r\n")
                while not stop.wait(0.02):  # each byte comes in time
                    side.send(b" ")
            except OSError:
                pass

        thread = threading.Thread(target=trickle, name="trickle")
        thread.start()
        self.assertIsNone(end())
        stop.set()
        thread.join(TIMEOUT_S)


class ModelListsTest(SocketTest):
    """Whom to ask, when, and what is kept."""

    def setUp(self) -> None:
        self.lists = ModelLists(lambda engine: True, lambda: {"KEY": " s3cret\n"})

    def test_it_is_due_once_an_interval_and_without_interval_until_it_has_said_something(self) -> None:
        engine = Engine(EngineSpec(dead_url()), "m")
        self.assertTrue(self.lists.due(engine, 3600.0))
        self.lists.ask(engine, TIMEOUT_S)
        self.assertFalse(self.lists.due(engine, 3600.0))
        self.assertIsNone(engine.listed)
        self.assertTrue(self.lists.due(engine, 0))
        engine.listed = ()
        self.assertFalse(self.lists.due(engine, 0))
        self.assertFalse(ModelLists(lambda engine: False, dict).due(Engine(engine.spec, "m"), 0))

    def test_the_last_list_stays_when_it_cannot_be_asked_and_goes_when_it_lists_nothing(self) -> None:
        scripted = self.enter(ScriptedEngine())
        engine = Engine(EngineSpec(scripted.url, api_key_env="KEY"), "m")
        for answer, expected in (
            (listed({"id": "a"}), named("a")),
            (whole(b"", "503 Loading"), named("a")),
            (listed({"id": "b"}), named("b")),
            (b"", named("b")),
            (whole(b"", "404 Not Found"), ()),
        ):
            with self.subTest(answer=answer):
                thread = threading.Thread(target=self.lists.ask, args=(engine, TIMEOUT_S), name="asking")
                thread.start()
                side = scripted.accept()
                self.assertIn(b"Authorization: Bearer s3cret\r\n", side.sock.recv(65536))
                side.send(answer)
                side.close()
                thread.join(TIMEOUT_S)
                self.assertEqual(engine.listed, expected)


if __name__ == "__main__":
    unittest.main()
