"""Tokens: every way in that must stay shut, the gateway's own tokens, and key sets of identity providers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import unittest
from collections.abc import Mapping
from typing import Any, Optional
from unittest import mock

from gateway.configuration import ConfigurationError
from gateway.keys.jwks import KeySet, MissingExtra
from gateway.keys.jwt import HMAC_DIGESTS, TOKEN_MAX_BYTES, TokenRefused, TokenVerifier

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
        self.assertEqual(bearer, ("alice", "batcher", ("13b", "7b*"), 60, 20_000, NOON + 60, False, ""))
        self.assertEqual(self.identify({**GOOD, "models": "13b,7b"}).models, ("13b", "7b"))
        self.assertEqual(self.identify(GOOD), ("alice", "user", (), None, None, NOON + 60, False, ""))

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
        self.assertEqual(verifier.identify(token), ("alice", "user", ("13b",), 60, 100, NOON + 3600, True, ""))
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


if __name__ == "__main__":
    unittest.main()
