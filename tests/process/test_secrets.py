"""No secret anywhere: a gateway process with keys of its own and of its engines, used well and badly, then grepped."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import signal
import unittest

from tests.support import (
    CHAT,
    HAS_SIGHUP,
    HI,
    SocketTest,
    dead_url,
    eventually,
    gateway_process,
    mock_engine,
    request_bytes,
    run_main,
)

USER_KEY = "sk-user-3f9a7c1e5b2d4860"
UNNAMED_KEY = "sk-unnamed-77aa55cc33ee11ff"
ADMIN_KEY = "sk-admin-0a1b2c3d4e5f6789"
ENGINE_KEY = "gsk-engine-9e8d7c6b5a493827"
WRONG_KEY = "sk-guess-1122334455667788"
PASSWORD = "hunter2-in-an-address"
SECRETS = (USER_KEY, UNNAMED_KEY, ADMIN_KEY, ENGINE_KEY, WRONG_KEY)


def forms_of(secret: str) -> list[str]:
    """A secret as it could slip out: plain, encoded, and by its digest."""
    raw = secret.encode()
    return [secret, base64.b64encode(raw).decode(), raw.hex(), hashlib.sha256(raw).hexdigest()]


class Secrets(SocketTest):
    def assert_clean(self, text: str, where: str) -> None:
        for secret in SECRETS:
            for form in forms_of(secret):
                self.assertNotIn(form, text, f"in {where}")

    def test_a_gateway_process_prints_and_answers_no_secret(self) -> None:
        engine = self.enter(mock_engine())
        refusing = self.enter(mock_engine(behaviour="unauthorized"))
        rejecting = self.enter(mock_engine(behaviour="bad_request"))

        def engines(url: str) -> dict[str, object]:
            return {"engines": [{"url": url, "api_key_env": "ENGINE_KEY"}], "fallbacks": []}

        fleet = {
            "models": {
                "13b": engines(engine.url),
                "refusing": engines(refusing.url),
                "rejecting": engines(rejecting.url),
                "dead": engines(dead_url()),
            }
        }
        environment = {
            "API_KEYS": f"alice:{USER_KEY},{UNNAMED_KEY}",
            "ADMIN_KEYS": f"root:{ADMIN_KEY}",
            "ENGINES_FILE": "engines.json",
            "LOG_LEVEL": "debug",
            "HEALTH_INTERVAL": "0.05",
        }
        files = {"engines.json": json.dumps(fleet), ".env": f"ENGINE_KEY={ENGINE_KEY}\n"}
        process = self.enter(gateway_process(environment, files=files))
        answers: list[bytes] = []

        def ask(method: str, target: str, body: object = None, *headers: tuple[str, str]) -> int:
            response = process.ask(method, target, body, headers)
            answers.append(repr(response.headers).encode() + response.body)
            return response.status

        def bearer(key: str) -> tuple[str, str]:
            return ("Authorization", f"Bearer {key}")

        for key in (USER_KEY, UNNAMED_KEY, ADMIN_KEY):
            self.assertEqual(ask("POST", CHAT, HI, bearer(key)), 200)
            self.assertEqual(ask("POST", CHAT, {**HI, "stream": True}, ("X-API-Key", key)), 200)
            for path in ("/health", "/v1/models", "/metrics", "/"):
                self.assertEqual(ask("GET", path, None, ("Authorization", f"Api-Key {key}")), 200)
        for model, status in (("refusing", 502), ("rejecting", 400), ("dead", 502), ("nope", 404)):
            self.assertEqual(ask("POST", CHAT, {**HI, "model": model}, bearer(USER_KEY)), status)
        # The engine's key has really been used, or its absence would prove nothing.
        seen = [request["headers"].get("authorization") for request in engine.requests]
        self.assertEqual(set(seen), {f"Bearer {ENGINE_KEY}"})

        for wrong in (
            bearer(WRONG_KEY),
            ("X-API-Key", WRONG_KEY),
            ("Authorization", f"Basic {WRONG_KEY}"),
            ("Authorization", WRONG_KEY),
            bearer(USER_KEY + "x"),
            bearer(f"{USER_KEY} {USER_KEY}"),
            ("Authorization", USER_KEY),
        ):
            self.assertEqual(ask("POST", CHAT, HI, wrong), 401)
        self.assertEqual(ask("POST", CHAT, b"{", bearer(USER_KEY)), 400)
        self.assertEqual(ask("POST", CHAT, {**HI, "temperature": 9}, bearer(USER_KEY)), 400)
        self.assertEqual(ask("POST", f"{CHAT}?key={USER_KEY}", HI), 401)
        self.assertEqual(ask("GET", f"/nope?key={USER_KEY}", None, bearer(USER_KEY)), 404)
        for line in (
            f"Authorization : Bearer {USER_KEY}",
            f"Authorization: Bearer {USER_KEY}\x01",
            f"X-API-Key {USER_KEY}",
            f"Host: {USER_KEY} x",
            f"Content-Length: {USER_KEY}",
            f"Transfer-Encoding: {USER_KEY}",
        ):
            with process.connect() as client:
                client.send(f"POST {CHAT} HTTP/1.1\r\nHost: g\r\n{line}\r\n\r\n".encode())
                answers.append(client.read_response().body)
        with contextlib.suppress(OSError), process.connect() as client:  # a client that leaves mid-stream
            client.request("POST", CHAT, {**HI, "stream": True}, [bearer(USER_KEY)])
            client.read_head()
        with process.connect() as client:
            client.send(request_bytes("POST", CHAT, HI, [bearer(USER_KEY)])[:-3])
        self.assertEqual(ask("GET", "/metrics", None, bearer(ADMIN_KEY)), 200)
        self.assertEqual(ask("GET", "/health", None, bearer(ADMIN_KEY)), 200)
        if HAS_SIGHUP:
            (process.directory / "engines.json").write_text(f'{{"models": "{ENGINE_KEY}"', "utf-8")
            process.signal(signal.SIGHUP)
            eventually(lambda: any(line["event"] == "reload_failed" for line in process.log_lines()))
        process.signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)
        printed = process.stdout + process.stderr
        self.assertIn('"alice"', printed)
        self.assertIn('"root"', printed)
        self.assertIn("refusing", printed)
        self.assert_clean(printed, "what the process printed")
        for answer in answers:
            self.assert_clean(answer.decode("latin-1"), "an answer")

    def test_check_prints_no_secret(self) -> None:
        fleet = {"models": {"13b": {"engines": [{"url": dead_url(), "api_key_env": "ENGINE_KEY"}]}}}
        status, stdout, stderr = run_main(
            {
                "API_KEYS": f"alice:{USER_KEY},{UNNAMED_KEY}",
                "ADMIN_KEYS": ADMIN_KEY,
                "ENGINE_KEY": ENGINE_KEY,
                "ENGINES_FILE": "engines.json",
            },
            "check",
            files={"engines.json": json.dumps(fleet)},
        )
        self.assertEqual(status, 0, stderr)
        self.assertIn("ENGINE_KEY", stdout)
        self.assert_clean(stdout + stderr, "check")

    def test_faults_show_no_secret(self) -> None:
        for variables in (
            {"API_KEYS": f"{USER_KEY}:alice smith"},
            {"API_KEYS": f"a b:{USER_KEY}"},
            {"API_KEYS": f"alice:{USER_KEY},alice:{UNNAMED_KEY}"},
            {"API_KEYS": f"alice:{USER_KEY},bob:{USER_KEY}", "ADMIN_KEYS": f"{ADMIN_KEY} x"},
            {"API_KEYS": f"alice:{USER_KEY}\t", "PORT": "x", "ADMIN_KEYS": f"é:{ADMIN_KEY}"},
            {"BACKEND_URL": f"http://user:{PASSWORD}@127.0.0.1:1"},
            {"ENGINES": f"13b=http://user:{PASSWORD}@127.0.0.1:1/v1"},
            {"ENGINES": f"http://user:{PASSWORD}@127.0.0.1:1/v1"},
        ):
            with self.subTest(variables=sorted(variables)):
                status, stdout, stderr = run_main({"WORKERS": "0", **variables}, "check")
                self.assertEqual(status, 2)
                self.assertIn("WORKERS", stderr)
                self.assert_clean(stdout + stderr, "the faults")
                self.assertNotIn(PASSWORD, stdout + stderr)


if __name__ == "__main__":
    unittest.main()
