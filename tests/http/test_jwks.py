"""The keys of an identity provider, read over HTTP."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from gateway.configuration import ConfigurationError
from gateway.keys.jwks import KeySet
from gateway.keys.jwt import TokenRefused, TokenVerifier
from tests.support import TIMEOUT_S, dead_url, eventually
from tests.unit.test_jwt import GOOD, HAS_EXTRA, HS256, SECRET, TokensTest, b64, part, signed


class Provider:
    """An identity provider on a port of its own: serves `body` at every path, counts, and may be held."""

    def __init__(self) -> None:
        self.body = b""
        self.status = 200
        self.requests = 0
        self.gate = threading.Event()
        self.gate.set()
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.requests += 1
                provider.gate.wait(TIMEOUT_S)
                self.send_response(provider.status)
                if provider.status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(provider.body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the gateway may have given up waiting
                    self.wfile.write(provider.body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/keys?client=c0ffee"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="identity-provider")
        self._thread.start()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@unittest.skipUnless(HAS_EXTRA, "PyJWT and cryptography are not installed: pip install pyjwt[crypto]")
class KeySetTest(TokensTest):
    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "keys.json"
        self.monotonic_s = 1000.0
        self.messages: list[str] = []

    def private_key(self, algorithm: str, bits: int = 2048) -> Any:
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

        if algorithm == "RS256":
            return rsa.generate_private_key(65_537, bits)
        return ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()

    def jwk(self, algorithm: str, key: Any, key_id: Optional[str] = "k1", **members: Any) -> dict[str, Any]:
        from jwt.algorithms import get_default_algorithms

        public = json.loads(get_default_algorithms()[algorithm].to_jwk(key.public_key()))
        public.pop("key_ops", None)
        if algorithm == "ES256":  # older packages leave out zeros at the front, which readers want
            for name in ("x", "y"):
                public[name] = b64(base64.urlsafe_b64decode(public[name] + "==").rjust(32, b"\0"))
        return {**public, **({} if key_id is None else {"kid": key_id}), **members}

    def token(self, algorithm: str, key: Any, key_id: Optional[str] = "k1", claims: Any = GOOD) -> str:
        import jwt

        return jwt.encode(dict(claims), key, algorithm, headers={} if key_id is None else {"kid": key_id})

    def key_set(self, source: str, algorithm: str = "ES256", **options: Any) -> KeySet:
        keys = KeySet(source, algorithm, self.messages.append, clock=lambda: self.monotonic_s, **options)
        self.addCleanup(keys.close)
        return keys

    def from_file(self, *members: Any, algorithm: str = "ES256") -> TokenVerifier:
        self.path.write_text(json.dumps({"keys": members}))
        return self.verifier(self.key_set(str(self.path), algorithm))

    def provider(self, *members: Any) -> Provider:
        provider = Provider()
        self.addCleanup(provider.close)
        provider.body = json.dumps({"keys": members}).encode()
        return provider

    def test_each_algorithm_accepts_its_own_tokens_only(self) -> None:
        for algorithm in ("RS256", "ES256", "EdDSA"):
            with self.subTest(algorithm):
                key, other = self.private_key(algorithm), self.private_key(algorithm)
                verifier = self.from_file(self.jwk(algorithm, key), algorithm=algorithm)
                token = self.token(algorithm, key)
                self.assertEqual(verifier.verify(token), GOOD)
                self.assertEqual(verifier.verify(self.token(algorithm, key, None)), GOOD)
                header, _, signature = token.split(".")
                for bad in (
                    self.token(algorithm, other),
                    f"{header}.{part({**GOOD, 'sub': 'mallory'})}.{signature}",
                    f"{header}.{part(GOOD)}.{signature[:-8]}",
                    f"{header}.{part(GOOD)}.AA",
                ):
                    self.assertIn("the signature is", self.refusal(bad, verifier))
                self.assertFalse(verifier.can_issue)
                with self.assertRaises(ValueError):
                    verifier.issue("alice", "user")

    def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(self) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        key = self.private_key("RS256")
        verifier = self.from_file(self.jwk("RS256", key), algorithm="RS256")
        public = key.public_key()
        for secret in (
            public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).strip(),
            public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            public.public_bytes(Encoding.PEM, PublicFormat.PKCS1),
            json.dumps(self.jwk("RS256", key)).encode(),
        ):
            for header in (HS256, {"alg": "RS256"}, {"alg": "RS256", "kid": "k1"}, {**HS256, "kid": "k1"}):
                with self.subTest(header=header, secret=secret[:30]):
                    self.refusal(signed(header, GOOD, secret), verifier)
        self.assertIn("algorithm", self.refusal(f"{part({'alg': 'none'})}.{part(GOOD)}.AA", verifier))

    def test_the_key_of_the_tokens_id_is_taken(self) -> None:
        keys = [self.private_key("ES256") for _ in range(2)]
        verifier = self.from_file(self.jwk("ES256", keys[0], "k0"), self.jwk("ES256", keys[1], "k1"))
        self.assertEqual(verifier.verify(self.token("ES256", keys[0], "k0")), GOOD)
        self.assertEqual(verifier.verify(self.token("ES256", keys[1], "k1")), GOOD)
        for key_id in ("k0", "k2", None):
            with self.subTest(key_id):
                self.assertIn("signature is wrong", self.refusal(self.token("ES256", keys[1], key_id), verifier))

    def test_keys_for_something_else_are_not_used(self) -> None:
        key = self.private_key("ES256")
        for members in ({"use": "enc"}, {"alg": "ES384"}, {"key_ops": ["sign"]}, {"crv": "P-384"}, {"x": "AA"}):
            with self.subTest(members), self.assertRaisesRegex(ConfigurationError, "no usable key for ES256"):
                self.from_file(self.jwk("ES256", key, **members))
        with self.assertRaisesRegex(ConfigurationError, "no usable key for RS256"):
            self.from_file({"kty": "oct", "k": b64(SECRET), "kid": "k1"}, algorithm="RS256")
        weak = self.private_key("RS256", 1024)
        with self.assertRaisesRegex(ConfigurationError, "no usable key for RS256"):
            self.from_file(self.jwk("RS256", weak), algorithm="RS256")
        verifier = self.from_file({"kty": "new"}, 7, self.jwk("ES256", key, use="sig", alg="ES256", key_ops=["verify"]))
        self.assertEqual(verifier.verify(self.token("ES256", key)), GOOD)

    def test_files_and_urls_that_cannot_be(self) -> None:
        for content, words in (
            (b"", "it is not JSON"),
            (b"\xff", "it is not JSON"),
            (b"[]", "not a JSON Web Key Set"),
            (b'{"keys": {}}', "not a JSON Web Key Set"),
            (b'{"keys": []}', "no usable key"),
            (b" " * (1 << 20) + b"{}", "larger than 1 MiB"),
        ):
            self.path.write_bytes(content)
            with self.subTest(content[:20]), self.assertRaisesRegex(ConfigurationError, words):
                self.key_set(str(self.path))
        self.path.unlink()
        with self.assertRaisesRegex(ConfigurationError, "No such file"):
            self.key_set(str(self.path))
        for url in (
            "ftp://idp.example/keys",
            "http://",
            "https://u:p@idp.example/",
            "http://a b/",
            "file:///etc/passwd",
        ):
            with self.subTest(url), self.assertRaisesRegex(ConfigurationError, "must be a file, or an http"):
                self.key_set(url)

    def test_a_file_is_read_again_after_five_minutes(self) -> None:
        old, new = self.private_key("ES256"), self.private_key("ES256")
        verifier = self.from_file(self.jwk("ES256", old))
        self.path.write_text(json.dumps({"keys": [self.jwk("ES256", new)]}))
        token = self.token("ES256", new)
        self.refusal(token, verifier)
        self.monotonic_s += 301
        self.refusal(token, verifier)  # this one began the reading, and did not wait for it
        eventually(lambda: self.accepted(verifier, token))

    def accepted(self, verifier: TokenVerifier, token: str) -> bool:
        try:
            return bool(verifier.verify(token))
        except TokenRefused:
            return False

    def test_a_set_is_fetched_once_and_kept(self) -> None:
        key = self.private_key("ES256")
        provider = self.provider(self.jwk("ES256", key))
        verifier = self.verifier(self.key_set(provider.url))
        for _ in range(20):
            self.assertEqual(verifier.verify(self.token("ES256", key)), GOOD)
        self.assertEqual(provider.requests, 1)
        self.assertEqual(self.messages, [])

    def test_an_unknown_key_id_fetches_again_but_at_most_every_30_s(self) -> None:
        old, new = self.private_key("ES256"), self.private_key("ES256")
        provider = self.provider(self.jwk("ES256", old, "old"))
        verifier = self.verifier(self.key_set(provider.url))
        verifier.verify(self.token("ES256", old, "old"))
        provider.body = json.dumps({"keys": [self.jwk("ES256", new, "new")]}).encode()
        for number in range(10):
            self.refusal(self.token("ES256", new, f"guess-{number}"), verifier)
        self.refusal(self.token("ES256", new, "new"), verifier)
        self.assertEqual(provider.requests, 1)
        self.monotonic_s += 30
        self.assertEqual(verifier.verify(self.token("ES256", new, "new")), GOOD)
        self.refusal(self.token("ES256", old, "old"), verifier)
        self.assertEqual(provider.requests, 2)

    def test_known_keys_do_not_wait_while_the_set_is_fetched_again(self) -> None:
        key = self.private_key("ES256")
        provider = self.provider(self.jwk("ES256", key))
        keys = self.key_set(provider.url)
        verifier = self.verifier(keys)
        token = self.token("ES256", key)
        verifier.verify(token)
        eventually(lambda: keys._reading is None)  # it has its keys a moment before it has ended
        self.monotonic_s += 301
        provider.gate.clear()
        self.assertEqual(verifier.verify(token), GOOD)
        eventually(lambda: provider.requests == 2)
        self.assertEqual(verifier.verify(token), GOOD)
        provider.gate.set()

    def test_a_fetch_that_ends_while_a_token_is_looked_at_counts(self) -> None:
        key = self.private_key("ES256")
        provider = self.provider(self.jwk("ES256", key))
        provider.gate.clear()
        keys = self.key_set(provider.url)
        read_again = keys._read_again

        def when_it_has_ended() -> Optional[threading.Event]:
            provider.gate.set()
            eventually(lambda: keys._reading is None)
            return read_again()

        with mock.patch.object(keys, "_read_again", when_it_has_ended):
            self.assertEqual(self.verifier(keys).verify(self.token("ES256", key)), GOOD)

    def test_a_fetch_that_has_had_its_time_is_not_waited_for(self) -> None:
        key = self.private_key("ES256")
        provider = self.provider(self.jwk("ES256", key))
        provider.gate.clear()
        keys = self.key_set(provider.url, timeout_s=TIMEOUT_S)
        verifier = self.verifier(keys)
        eventually(lambda: provider.requests == 1)
        self.monotonic_s += TIMEOUT_S
        assert keys._reading is not None
        with mock.patch.object(keys._reading, "wait") as wait:
            self.refusal(self.token("ES256", key), verifier)
        wait.assert_called_once_with(0.0)
        provider.gate.set()
        eventually(lambda: self.accepted(verifier, self.token("ES256", key)))

    def test_those_with_an_unknown_key_wait_for_one_fetch_together(self) -> None:
        key = self.private_key("ES256")
        provider = self.provider(self.jwk("ES256", key))
        provider.gate.clear()
        verifier = self.verifier(self.key_set(provider.url))
        token, accepted = self.token("ES256", key), []
        threads = [
            threading.Thread(target=lambda: accepted.append(self.accepted(verifier, token)), daemon=True)
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: provider.requests == 1)
        provider.gate.set()
        for thread in threads:
            thread.join(TIMEOUT_S)
        self.assertEqual(accepted, [True] * 4)
        self.assertEqual(provider.requests, 1)

    def test_a_provider_that_fails_leaves_the_keys_and_is_reported(self) -> None:
        key = self.private_key("ES256")
        provider = self.provider(self.jwk("ES256", key))
        good = provider.body
        verifier = self.verifier(self.key_set(provider.url))
        token = self.token("ES256", key)
        verifier.verify(token)
        faults = (
            (500, good),
            (404, good),
            (302, good),
            (200, b"<html>"),
            (200, b'{"keys": []}'),
            (200, b" " * (2 << 20)),
        )
        for status, body in faults:
            with self.subTest(status=status, body=body[:10]):
                provider.status, provider.body = status, body
                self.monotonic_s += 601
                seen = len(self.messages)
                self.assertEqual(verifier.verify(token), GOOD)  # older than ten minutes: it waited for the fetch
                eventually(lambda: len(self.messages) > seen)  # noqa: B023
        self.assertEqual(provider.requests, 7)
        self.assertIn("HTTP Error 500", self.messages[0])
        self.assertNotIn("c0ffee", "".join(self.messages))

    def test_a_provider_that_is_not_there_refuses_and_recovers(self) -> None:
        verifier = self.verifier(self.key_set(dead_url()))
        token = self.token("ES256", self.private_key("ES256"))
        self.refusal(token, verifier)
        eventually(lambda: self.messages)
        self.assertIn("refused", self.messages[0])

    def test_a_provider_that_never_answers_costs_a_bounded_wait(self) -> None:
        provider = self.provider()
        provider.gate.clear()
        verifier = self.verifier(self.key_set(provider.url, timeout_s=0.05))
        self.refusal(self.token("ES256", self.private_key("ES256")), verifier)
        eventually(lambda: self.messages)
        self.assertIn("timed out", self.messages[0])


if __name__ == "__main__":
    unittest.main()
