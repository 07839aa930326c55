"""Tokens: every way in that must stay shut, the gateway's own tokens, and key sets of identity providers."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import tempfile
import threading
import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from gateway.configuration import ConfigurationError
from gateway.keys.jwks import KeySet, MissingExtra
from gateway.keys.jwt import HMAC_DIGESTS, TOKEN_MAX_BYTES, TokenRefused, TokenVerifier
from tests.support import TIMEOUT_S, dead_url, eventually

try:
    from jwt.algorithms import has_crypto as HAS_EXTRA
except ImportError:
    HAS_EXTRA = False

NOON = 1_800_000_000.0
SECRET = b"an-example-secret-of-32-bytes-xx"


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def part(members: Any) -> str:
    return b64(members if isinstance(members, bytes) else json.dumps(members).encode())


def signed(header: Any, payload: Any, secret: bytes = SECRET, digest: str = "sha256") -> str:
    """A token made by hand, whatever its header says: `header` and `payload` as JSON, bytes as they are."""
    text = f"{part(header)}.{part(payload)}"
    return f"{text}.{b64(hmac.new(secret, text.encode(), getattr(hashlib, digest)).digest())}"


HS256 = {"alg": "HS256", "typ": "JWT"}
GOOD = {"sub": "alice", "iss": "https://idp.example", "aud": "gateway", "exp": NOON + 60}


def without(claim: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != claim}


class TokensTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = NOON

    def verifier(self, secret: Any = SECRET, algorithm: str = "HS256", **options: Any) -> TokenVerifier:
        options = {"issuer": "https://idp.example", "audience": "gateway", **options}
        return TokenVerifier(secret, algorithm, clock=lambda: self.now_s, **options)

    def refusal(self, token: Any, verifier: Optional[TokenVerifier] = None) -> str:
        with self.assertRaises(TokenRefused) as caught:
            (verifier or self.verifier()).verify(token)
        text = str(caught.exception)
        for piece in (token if isinstance(token, str) else token.decode("latin-1")).split("."):
            if len(piece) > 8:
                self.assertNotIn(piece, text)
        return text


class VerifyTest(TokensTest):
    def test_a_good_token_gives_its_claims(self) -> None:
        for algorithm, digest in HMAC_DIGESTS.items():
            with self.subTest(algorithm):
                token = signed({"alg": algorithm}, GOOD, digest=digest)
                verifier = self.verifier(algorithm=algorithm)
                self.assertEqual(verifier.verify(token), GOOD)
                self.assertEqual(verifier.verify(token.encode()), GOOD)

    def test_the_example_of_rfc_7515_is_understood(self) -> None:
        secret = base64.urlsafe_b64decode(
            "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow=="
        )
        token = (
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9"
            ".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
            ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
        )
        verifier = TokenVerifier(secret, issuer="joe", clock=lambda: 1_300_819_000.0)
        self.assertEqual(verifier.verify(token)["http://example.com/is_root"], True)

    def test_headers_that_are_refused(self) -> None:
        cases: tuple[tuple[Any, str], ...] = (
            ({"alg": "none"}, "algorithm"),
            ({"alg": "None"}, "algorithm"),
            ({"alg": "hs256"}, "algorithm"),
            ({"alg": "HS384"}, "algorithm"),
            ({"alg": "RS256"}, "algorithm"),
            ({"alg": ["HS256"]}, "algorithm"),
            ({"alg": None}, "algorithm"),
            ({}, "algorithm"),
            ({**HS256, "crit": ["b64"], "b64": False}, "critical"),
            ({**HS256, "crit": []}, "critical"),
            ({**HS256, "kid": 7}, "kid"),
            ([], "header is not an object"),
            ("HS256", "header is not an object"),
            (b'{"alg": "HS256", "alg": "HS256"}', "twice"),
            (b'{"alg": "none", "alg": "HS256"}', "twice"),
            (b'{"alg": "HS256"', "header is not JSON"),
            (b'{"alg": "HS256"} x', "header is not JSON"),
            (b'\xff{"alg": "HS256"}', "header is not JSON"),
            ('{"alg": "HS256"}'.encode("utf-16"), "header is not JSON"),
            (b'{"alg": "HS256", "x": NaN}', "header is not JSON"),
        )
        for header, words in cases:
            with self.subTest(header):
                self.assertIn(words, self.refusal(signed(header, GOOD)))
        for kind in ({"typ": "at+jwt"}, {"typ": None}, {"jku": "https://evil.example/keys"}, {"kid": "any"}):
            with self.subTest(kind):
                self.assertEqual(self.verifier().verify(signed({**HS256, **kind}, GOOD)), GOOD)

    def test_an_unsigned_token_is_refused_however_it_is_written(self) -> None:
        for header in ({"alg": "none"}, HS256):
            text = f"{part(header)}.{part(GOOD)}"
            for token in (text, text + ".", text + ".AA", text + "." + b64(bytes(32)), text + ".."):
                with self.subTest(header=header, token=token[-4:]):
                    self.refusal(token)

    def test_a_tampered_token_is_refused(self) -> None:
        header, payload, signature = signed(HS256, GOOD).split(".")
        other = part({**GOOD, "sub": "mallory"})
        for token in (
            f"{header}.{other}.{signature}",
            f"{part({'alg': 'HS256'})}.{payload}.{signature}",
            f"{header}.{payload}.{signature[:-4]}",
            f"{header}.{payload}.{b64(bytes(64))}",
            signed(HS256, GOOD, b"another-secret-that-is-32-bytes-x"),
            signed(HS256, GOOD, digest="sha512"),
        ):
            with self.subTest(token):
                self.assertIn("the signature is wrong", self.refusal(token))
        raw = base64.urlsafe_b64decode(signature + "=")
        for position in range(len(raw)):
            flipped = raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]
            self.assertIn("the signature is wrong", self.refusal(f"{header}.{payload}.{b64(flipped)}"))

    def test_only_one_spelling_of_a_token_is_accepted(self) -> None:
        token = signed(HS256, GOOD)
        header, payload, signature = token.split(".")
        self.assertEqual(len(signature), 43)
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        unread_bits = signature[:-1] + alphabet[alphabet.index(signature[-1]) ^ 1]
        for spelled in (
            f"{header}.{payload}.{unread_bits}",
            f"{header}.{payload}.{signature}=",
            f"{header}=.{payload}.{signature}",
            f"{header}.{payload}.{signature}\n",
            f" {token}",
            f"{token} ",
            f"{header}.{payload} .{signature}",
            f"{header}.{payload}.{signature}\x00",
            f"{header}.{payload}.{signature}.",
            f".{token}",
            f"{header}.{payload}.{signature}.{signature}",
            f"{header}..{signature}",
            f"{header}.{payload}",
            f"{header[:-1]}.{payload}.{signature}",
            f"{header}.{payload}.{signature[:-2]}",
            token.replace(".", ". "),
            token + "é",
            "",
            ".",
            "..",
            "igw_nothing",
        ):
            with self.subTest(spelled):
                self.refusal(spelled)
        # Standard base64 has other characters for the same bits.
        awkward = signed(HS256, {**GOOD, "sub": "???>>>~~~"})
        if "-" in awkward or "_" in awkward:
            self.refusal(awkward.replace("-", "+").replace("_", "/"))

    def test_a_huge_token_is_refused_unread(self) -> None:
        room = TOKEN_MAX_BYTES - len(signed(HS256, {**GOOD, "x": ""}))
        fits = signed(HS256, {**GOOD, "x": "x" * (room * 3 // 4 - 3)})
        self.assertLessEqual(len(fits), TOKEN_MAX_BYTES)
        self.assertEqual(self.verifier().verify(fits)["sub"], "alice")
        for token in (signed(HS256, {**GOOD, "x": "x" * 7000}), "." * 10_000_000, "a" * 8193):
            self.assertIn("8 KiB", self.refusal(token))

    def test_payloads_that_are_no_claims(self) -> None:
        cases: tuple[tuple[Any, str], ...] = (
            (b"", "three parts"),
            (b"{", "payload is not JSON"),
            (b"[]", "payload is not an object"),
            (b"null", "payload is not an object"),
            (b'"alice"', "payload is not an object"),
            (b'{"sub": "a", "sub": "b", "exp": 1800000060}', "twice"),
            (b'{"x": {"y": 1, "y": 2}, "exp": 1800000060}', "twice"),
            (b'{"exp": Infinity}', "payload is not JSON"),
            (b'{"exp": ' + b"9" * 5000 + b"}", ""),
            (b"[" * 5000, "payload is not"),
        )
        for payload, words in cases:
            with self.subTest(payload[:20]):
                self.assertIn(words, self.refusal(signed(HS256, payload)))

    def test_times(self) -> None:
        cases: tuple[tuple[dict[str, Any], Optional[str]], ...] = (
            ({"exp": NOON - 29}, None),
            ({"exp": NOON - 30}, "it has expired"),
            ({"exp": NOON - 1000}, "it has expired"),
            ({"exp": int(NOON) + 1}, None),
            ({"exp": NOON + 0.5}, None),
            ({"exp": None}, "exp is not a time"),
            ({"exp": str(NOON + 60)}, "exp is not a time"),
            ({"exp": True}, "exp is not a time"),
            ({"exp": [NOON]}, "exp is not a time"),
            ({"exp": 10**400}, "exp is not a time"),
            ({"exp": 0}, "it has expired"),
            ({"exp": -1}, "it has expired"),
            ({"nbf": NOON + 30}, None),
            ({"nbf": NOON + 31}, "it is not valid yet (nbf)"),
            ({"nbf": None}, "nbf is not a time"),
            ({"iat": NOON + 30}, None),
            ({"iat": NOON + 31}, "it is not valid yet (iat)"),
            ({"iat": "now"}, "iat is not a time"),
        )
        for claims, words in cases:
            with self.subTest(claims):
                token = signed(HS256, {**GOOD, **claims})
                if words is None:
                    self.verifier().verify(token)
                else:
                    self.assertEqual(self.refusal(token), words)
        self.assertEqual(self.refusal(signed(HS256, without("exp"))), "exp is missing")
        huge = json.dumps(GOOD).replace("1800000060.0", "1e999").encode()
        self.assertEqual(self.refusal(signed(HS256, huge)), "exp is not a time")
        strict = self.verifier(leeway_s=0)
        self.assertEqual(self.refusal(signed(HS256, {**GOOD, "exp": NOON}), strict), "it has expired")

    def test_a_token_that_was_good_expires(self) -> None:
        token = signed(HS256, GOOD)
        for self.now_s in (NOON, NOON + 89.9):
            self.verifier().verify(token)
        self.now_s = NOON + 90
        self.assertEqual(self.refusal(token), "it has expired")

    def test_issuers_and_audiences(self) -> None:
        issuer, audience = "the issuer is not the configured one", "the audience is not the configured one"
        cases: tuple[tuple[dict[str, Any], dict[str, Any], Optional[str]], ...] = (
            (without("iss"), {}, issuer),
            ({**GOOD, "iss": "https://idp.example/"}, {}, issuer),
            ({**GOOD, "iss": "HTTPS://idp.example"}, {}, issuer),
            ({**GOOD, "iss": ["https://idp.example"]}, {}, issuer),
            ({**GOOD, "iss": "anybody"}, {"issuer": None}, None),
            (without("aud"), {}, audience),
            ({**GOOD, "aud": "other"}, {}, audience),
            ({**GOOD, "aud": "gateway2"}, {}, audience),
            ({**GOOD, "aud": ["other", "gateway"]}, {}, None),
            ({**GOOD, "aud": ["other"]}, {}, audience),
            ({**GOOD, "aud": []}, {}, audience),
            ({**GOOD, "aud": None}, {}, audience),
            ({**GOOD, "aud": {"gateway": 1}}, {}, "aud is neither a string nor a list of strings"),
            ({**GOOD, "aud": ["gateway", 7]}, {}, "aud is neither a string nor a list of strings"),
            (without("aud"), {"audience": None}, None),
            (GOOD, {"audience": None}, audience),
            ({**GOOD, "aud": [None]}, {"audience": None}, "aud is neither a string nor a list of strings"),
        )
        for claims, options, words in cases:
            with self.subTest(claims=claims, **options):
                verifier, token = self.verifier(**options), signed(HS256, claims)
                if words is None:
                    verifier.verify(token)
                elif claims.get("aud", 0) is None and options:
                    self.refusal(token, verifier)
                else:
                    self.assertEqual(self.refusal(token, verifier), words)

    def test_an_aud_of_null_is_no_audience(self) -> None:
        self.refusal(signed(HS256, {**GOOD, "aud": None}), self.verifier(audience=None))

    def test_secrets_that_cannot_be(self) -> None:
        for secret, algorithm, words in (
            (b"", "HS256", "at least 32 bytes, not 0"),
            (b"x" * 31, "HS512", "at least 32 bytes, not 31"),
            (b"-----BEGIN PUBLIC KEY-----\n" + b"A" * 64, "HS256", "key file"),
            (b"ssh-ed25519 " + b"A" * 64, "HS256", "key file"),
            (SECRET, "none", "must be one of HS256, HS384, HS512"),
            (SECRET, "RS256", "must be one of HS256, HS384, HS512"),
        ):
            with self.subTest(secret=secret[:12], algorithm=algorithm), self.assertRaisesRegex(ValueError, words):
                TokenVerifier(secret, algorithm)


class BearerTest(TokensTest):
    def identify(self, claims: Mapping[str, Any]) -> Any:
        return self.verifier().identify(signed(HS256, claims))

    def test_the_claims_that_are_honoured(self) -> None:
        bearer = self.identify({**GOOD, "role": "batcher", "models": ["13b", "7b*"], "rpm": 60, "tpm": 20_000})
        self.assertEqual(bearer, ("alice", "batcher", ("13b", "7b*"), 60, 20_000, NOON + 60, False))
        self.assertEqual(self.identify({**GOOD, "models": "13b,7b"}).models, ("13b", "7b"))
        self.assertEqual(self.identify(GOOD), ("alice", "user", (), None, None, NOON + 60, False))

    def test_claims_of_the_wrong_shape_are_refused(self) -> None:
        cases: tuple[dict[str, Any], ...] = (
            {"sub": None},
            {"sub": ""},
            {"sub": 7},
            {"sub": "a b"},
            {"sub": "a\n"},
            {"sub": "a\x00"},
            {"sub": "ü"},
            {"sub": "a" * 257},
            {"role": None},
            {"role": ""},
            {"role": ["admin"]},
            {"role": "ad min"},
            {"models": []},
            {"models": None},
            {"models": ""},
            {"models": [7]},
            {"models": ["13b", ""]},
            {"models": {"13b": 1}},
            {"models": ["m"] * 101},
            {"rpm": 0},
            {"rpm": -1},
            {"rpm": "60"},
            {"rpm": 1.5},
            {"rpm": True},
            {"tpm": 10**12},
        )
        for claims in cases:
            with self.subTest(claims), self.assertRaises(TokenRefused):
                self.identify({**GOOD, **claims})
        with self.assertRaisesRegex(TokenRefused, "sub is missing"):
            self.identify(without("sub"))


class IssueTest(TokensTest):
    def test_an_issued_token_speaks_for_its_key(self) -> None:
        verifier = self.verifier()
        token, good_for_s = verifier.issue("alice", "user", models=("13b",), rpm=60, tpm=100)
        self.assertEqual(good_for_s, 3600)
        self.assertEqual(verifier.identify(token), ("alice", "user", ("13b",), 60, 100, NOON + 3600, True))
        claims = verifier.verify(token)
        self.assertEqual((claims["iss"], claims["aud"], claims["iat"]), ("https://idp.example", "gateway", NOON))
        self.assertNotEqual(verifier.issue("alice", "user")[0], verifier.issue("alice", "user")[0])

    def test_without_limits_and_configured_names_there_are_no_such_claims(self) -> None:
        verifier = self.verifier(issuer=None, audience=None)
        claims = verifier.verify(verifier.issue("alice", "user")[0])
        self.assertEqual(set(claims), {"sub", "role", "igw", "iat", "exp", "jti"})

    def test_it_lives_an_hour_at_most_and_no_longer_than_its_key(self) -> None:
        verifier = self.verifier()
        for ttl_s in (0, -1, 3601, float("nan")):
            with self.subTest(ttl_s), self.assertRaisesRegex(ValueError, "ttl_s must be 1 to 3600"):
                verifier.issue("alice", "user", ttl_s=ttl_s)
        self.assertEqual(verifier.issue("alice", "user", ttl_s=60)[1], 60)
        self.assertEqual(verifier.issue("alice", "user", key_expires_unix_s=NOON + 10)[1], 10)
        with self.assertRaisesRegex(ValueError, "has expired"):
            verifier.issue("alice", "user", key_expires_unix_s=NOON)

    def test_it_is_refused_by_those_with_another_secret_or_algorithm(self) -> None:
        token, _ = self.verifier().issue("alice", "user")
        self.assertEqual(self.refusal(token, self.verifier(SECRET[::-1])), "the signature is wrong")
        self.assertIn("algorithm", self.refusal(token, self.verifier(algorithm="HS512")))

    @unittest.skipUnless(HAS_EXTRA, "PyJWT and cryptography are not installed: pip install pyjwt[crypto]")
    def test_pyjwt_reads_what_is_issued_and_writes_what_is_read(self) -> None:
        import jwt

        verifier = TokenVerifier(SECRET, issuer="i", audience="a")
        token, _ = verifier.issue("alice", "user")
        claims = jwt.decode(token, SECRET, algorithms=["HS256"], issuer="i", audience="a")
        self.assertEqual(claims["sub"], "alice")
        self.assertEqual(verifier.verify(jwt.encode(claims, SECRET, "HS256")), claims)


class MissingExtraTest(unittest.TestCase):
    def test_without_the_extra_the_fault_names_it(self) -> None:
        with mock.patch.dict("sys.modules", {"jwt": None, "jwt.algorithms": None}):
            for algorithm in ("RS256", "ES256", "EdDSA"):
                with self.subTest(algorithm), self.assertRaises(MissingExtra) as caught:
                    KeySet("https://idp.example/keys", algorithm)
                self.assertIsInstance(caught.exception, ConfigurationError)
                self.assertIn("pip install '.[jwt]'", caught.exception.faults[0])

    def test_other_algorithms_are_refused(self) -> None:
        for algorithm in ("none", "HS256", "RS1", ""):
            with self.subTest(algorithm), self.assertRaisesRegex(ConfigurationError, "one of RS256, ES256, EdDSA"):
                KeySet("https://idp.example/keys", algorithm)


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

        def when_it_has_ended() -> Optional[threading.Thread]:
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
        with mock.patch.object(keys._reading, "join") as join:
            self.refusal(self.token("ES256", key), verifier)
        join.assert_called_once_with(0.0)
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
