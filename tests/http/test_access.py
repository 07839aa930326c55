"""Every way in: which credentials are refused, with which status, and that an engine hears of none of them."""

from __future__ import annotations

import json
import time
import unittest
from typing import Any, NamedTuple, Optional

from gateway.keys.store import KeyStore
from gateway.state.database import StateDb
from tests.access import ADMIN_KEYS, AS_ROOT, ROOT, SECRET, AccessTest, ask, b64, bearer, token
from tests.support import CHAT, COMPLETIONS, EMBEDDINGS, Header, RunningGateway, eventually

try:
    from jwt.algorithms import has_crypto as HAS_EXTRA
except ImportError:
    HAS_EXTRA = False

ALICE = "sk-alice-0123456789abcdef"
ISSUER, AUDIENCE = "https://idp.example", "gateway"
UNAUTHORIZED, FORBIDDEN = (401, "unauthorized"), (403, "forbidden")


class Way(NamedTuple):
    """One way in that must stay shut: what is sent, and what becomes of it."""

    name: str
    headers: list[Header]
    verdict: tuple[int, str] = UNAUTHORIZED
    query: str = ""
    body: Optional[dict[str, Any]] = None


def good(**claims: Any) -> str:
    """A token that the gateway of these tests accepts, but for what `claims` say."""
    return token(**{"iss": ISSUER, "aud": AUDIENCE, **claims})


def unsigned(alg: object) -> str:
    payload = good().split(".")[1]
    return f"{b64(json.dumps({'alg': alg, 'typ': 'JWT'}).encode())}.{payload}."


def tampered(**claims: Any) -> str:
    """A good token whose payload was replaced."""
    head, _, signature = good().split(".")
    return f"{head}.{good(**claims).split('.')[1]}.{signature}"


def flipped(text: str) -> str:
    """Another signature of the same length."""
    head, dot, signature = text.rpartition(".")
    return f"{head}{dot}{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"


class WaysInTest(AccessTest):
    def setUp(self) -> None:
        super().setUp()
        self.mock = self.engine()
        self.gateway = self.serve(
            {"m": {"engines": [self.mock.url]}, "other": {"engines": [self.mock.url]}},
            API_KEYS=f"settings:{ALICE}",
            ADMIN_KEYS=ADMIN_KEYS,
            JWT_SECRET=SECRET,
            JWT_ISSUER=ISSUER,
            JWT_AUDIENCE=AUDIENCE,
            LEDGER="on",
        )

    def shut(self, way: Way, path: str = CHAT) -> None:
        response = self.gateway.post(way.body or ask(model="m"), path + way.query, way.headers)
        self.assertEqual((response.status, response.error), way.verdict, way.name)
        if way.verdict == UNAUTHORIZED:
            self.assertEqual(response.header("www-authenticate"), "Bearer")
        self.assertEqual(response.json()["request_id"], response.request_id)
        for _, value in way.headers:
            for secret in value.split(" ")[-1].split("."):
                if len(secret) > 12:
                    self.assertNotIn(secret.encode("latin-1"), response.body)

    def assert_no_engine_was_asked(self) -> None:
        self.assertEqual(self.mock.stats()["requests"], 0)

    def test_credentials_of_the_wrong_shape(self) -> None:
        basic = "Basic " + b64(f"alice:{ALICE}".encode())
        for way in (
            Way("no header", []),
            Way("an empty header", [("Authorization", "")]),
            Way("the scheme alone", [("Authorization", "Bearer")]),
            Way("a wrong scheme", [("Authorization", f"Token {ALICE}")]),
            Way("basic", [("Authorization", basic)]),
            Way("digest", [("Authorization", f'Digest username="alice", response="{ALICE}"')]),
            Way("no scheme", [("Authorization", ALICE)]),
            Way("a wrong key", bearer("sk-wrong-0123456789abcdef")),
            Way("a key that begins well", bearer(ALICE[:-1])),
            Way("a key with more behind it", bearer(ALICE + "0")),
            Way("two keys in one header", bearer(f"{ALICE}, {ALICE}")),
            Way("a key in quotes", bearer(f'"{ALICE}"')),
            Way("a name for a key", bearer("settings")),
            Way("name and key", bearer(f"settings:{ALICE}")),
            Way("two Authorization headers", bearer(ALICE) * 2),
            Way("two Authorization headers, one wrong", [*bearer("wrong"), *bearer(ALICE)]),
            Way("two X-API-Key headers", [("X-API-Key", ALICE)] * 2),
            Way("a wrong key beside a good one", [*bearer("wrong"), ("X-API-Key", ALICE)]),
            Way("another scheme beside a wrong key", [("Authorization", basic), ("X-API-Key", "wrong")]),
            Way("a good key beside a wrong one", [*bearer(ALICE), ("X-API-Key", "wrong")]),
            Way("a cookie", [("Cookie", f"api_key={ALICE}; Authorization=Bearer {ALICE}")]),
            Way("a proxy's header", [("Proxy-Authorization", f"Bearer {ALICE}")]),
            Way("a word that says it has been checked", [("X-Authenticated", "true"), ("X-Forwarded-User", "root")]),
            *(
                Way(f"the query's {name}", [], query=f"?{name}={ALICE}")
                for name in ("key", "api_key", "api-key", "access_token", "token", "Authorization")
            ),
            Way("the body", [], body=ask(model="m", api_key=ALICE, Authorization=f"Bearer {ALICE}")),
        ):
            with self.subTest(way.name):
                self.shut(way)
        self.assert_no_engine_was_asked()

    def test_jwt(self) -> None:
        now = int(time.time())
        for name, text in (
            ("expired", good(exp=now - 31)),
            ("expired long ago", good(exp=1)),
            ("without an end", good(exp=None)),
            ("its end is a text", good(exp=str(now + 60))),
            ("not yet valid", good(nbf=now + 3_600)),
            ("issued in the future", good(iat=now + 3_600)),
            ("wrong audience", good(aud="another")),
            ("no audience", good(aud=None)),
            ("wrong issuer", good(iss="https://evil.example")),
            ("no issuer", good(iss=None)),
            ("no subject", good(sub=None)),
            ("another secret", token("x" * 32, iss=ISSUER, aud=AUDIENCE)),
            ("an empty secret", token("", iss=ISSUER, aud=AUDIENCE)),
            ("another algorithm, well signed", token(header={"alg": "HS512"}, iss=ISSUER, aud=AUDIENCE)),
            ("a public key's algorithm", token(header={"alg": "RS256"}, iss=ISSUER, aud=AUDIENCE)),
            ("an algorithm in lower case", token(header={"alg": "hs256"}, iss=ISSUER, aud=AUDIENCE)),
            ("a critical extension", token(header={"crit": ["b64"], "b64": False}, iss=ISSUER, aud=AUDIENCE)),
            ("a key set of its own", token("x" * 32, {"jku": "https://evil.example/keys"}, iss=ISSUER, aud=AUDIENCE)),
            ("none", unsigned("none")),
            ("None", unsigned("None")),
            ("NONE", unsigned("NONE")),
            ("no algorithm", unsigned(None)),
            ("a list of algorithms", unsigned(["HS256"])),
            ("none with a signature", unsigned("none") + good().rpartition(".")[2]),
            ("no signature", good().rpartition(".")[0] + "."),
            ("two parts", good().rpartition(".")[0]),
            ("four parts", good() + ".e30"),
            ("a flipped signature", flipped(good())),
            ("padded", good() + "=="),
            ("a tampered subject", tampered(sub="root")),
            ("a tampered role", tampered(role="admin")),
            ("a tampered end", tampered(exp=now + 999_999)),
            ("an impossible role", good(role="admin\n")),
            ("models that are no list", good(models=7)),
            ("a huge token", good(junk="x" * 9_000)),
            ("a huge token of nothing", "x" * 20_000),
            ("a huge token of dots", "." * 20_000),
        ):
            with self.subTest(name):
                self.shut(Way(name, bearer(text)))
                self.shut(Way(name, [("X-API-Key", text)]))
        self.assert_no_engine_was_asked()
        self.assertEqual(self.gateway.post(ask(model="m"), headers=bearer(good())).status, 200)

    def test_a_header_too_large_to_be_read_is_refused_as_http(self) -> None:
        self.shut(Way("larger than all headers may be", bearer("x" * 40_000), (431, "headers_too_large")))
        self.assert_no_engine_was_asked()

    def test_keys_that_were_good(self) -> None:
        running = self.gateway
        expired = self.secret(running, "expired")
        revoked = self.secret(running, "revoked")
        rotated = self.secret(running, "rotated")
        exchanged = running.ask("POST", "/auth/token", None, bearer(revoked)).json()["token"]
        guard = running.app.guard
        assert guard.db is not None
        guard.db.write_now(lambda db: db.execute("UPDATE keys SET expires_unix_s = 1 WHERE name = 'expired'"))
        guard.store.refresh()
        running.ask("DELETE", "/admin/keys/revoked", None, [AS_ROOT])
        running.ask("POST", "/admin/keys/rotated/rotate", {"grace": "0s"}, [AS_ROOT])
        for name, secret in (
            ("expired", expired),
            ("revoked just now", revoked),
            ("rotated without grace", rotated),
            ("a token of a revoked key", exchanged),
        ):
            with self.subTest(name):
                self.shut(Way(name, bearer(secret)))
        self.assert_no_engine_was_asked()

    def test_a_key_revoked_elsewhere_a_second_ago(self) -> None:
        secret = self.secret(self.gateway)
        with self.gateway.connect() as client:
            self.assertEqual(client.post(ask(model="m"), headers=bearer(secret)).status, 200)
            with StateDb(self.db) as db:
                KeyStore(db).revoke("alice")
            revoked_s = time.monotonic()
            eventually(lambda: client.post(ask(model="m"), headers=bearer(secret)).status == 401)
            self.assertLess(time.monotonic() - revoked_s, 3.0)  # 1 s is promised; this machine may be busy
            asked = self.mock.stats()["requests"]
            for _ in range(5):
                self.assertEqual(client.post(ask(model="m"), headers=bearer(secret)).status, 401)
            self.assertEqual(self.mock.stats()["requests"], asked)

    def test_what_a_caller_may_not_do_is_403_and_named(self) -> None:
        running = self.gateway
        viewer = self.make(running, "viewer", role="viewer")
        narrow = self.make(running, "narrow", models=("other",))
        for way, named in (
            (Way("a viewer", viewer, FORBIDDEN), "infer"),
            (Way("a viewer by token", bearer(good(role="viewer")), FORBIDDEN), "infer"),
            (Way("a role that does not exist", bearer(good(role="wizard")), FORBIDDEN), "infer"),
            (Way("a model that the key does not have", narrow, FORBIDDEN), "m"),
            (Way("a model that the token does not have", bearer(good(models=["other"])), FORBIDDEN), "m"),
        ):
            for path in (CHAT, COMPLETIONS, EMBEDDINGS):
                with self.subTest(way.name, path=path):
                    if path != CHAT and named == "m":
                        continue
                    self.shut(way, path)
            message = running.post(ask(model="m"), headers=way.headers).json()["message"]
            self.assertIn(f" {named}", message)
        for headers in (bearer(ALICE), bearer(good()), viewer):
            for method, path in (
                ("GET", "/admin/keys"),
                ("POST", "/admin/keys"),
                ("DELETE", "/admin/keys/viewer"),
                ("POST", "/admin/keys/viewer/rotate"),
                ("GET", "/admin/usage"),
                ("POST", "/admin/engines/e/drain"),
                ("POST", "/admin/engines/e/weight"),
            ):
                with self.subTest(path=path, method=method):
                    response = running.ask(method, path, {"name": "eve"} if method == "POST" else None, headers)
                    self.assertEqual((response.status, response.error), FORBIDDEN)
                    self.assertIn("admin", response.json()["message"])
        self.assertEqual(sorted(record.name for record in running.app.guard.store.list()), ["narrow", "viewer"])
        self.assert_no_engine_was_asked()

    def test_every_path_but_the_open_ones_takes_a_key(self) -> None:
        for method, path in (
            ("POST", CHAT),
            ("POST", COMPLETIONS),
            ("POST", EMBEDDINGS),
            ("GET", "/"),
            ("GET", "/health"),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/m"),
            ("GET", "/admin/keys"),
            ("HEAD", "/admin/keys"),
            ("POST", "/admin/keys"),
            ("DELETE", "/admin/keys/settings"),
            ("POST", "/admin/keys/settings/rotate"),
            ("GET", "/admin/usage"),
            ("POST", "/admin/engines/e/drain"),
            ("POST", "/admin/engines/e/weight"),
            ("POST", "/auth/token"),
        ):
            with self.subTest(method=method, path=path):
                for headers in ([], bearer("wrong"), bearer(ALICE) * 2):
                    response = self.gateway.ask(method, path, None, headers)
                    self.assertEqual(response.status, 401)
        self.assert_no_engine_was_asked()

    def test_refused_requests_are_told_to_the_log_but_not_to_the_ledger(self) -> None:
        for _ in range(20):
            self.shut(Way("wrong", bearer("sk-guess-fedcba9876543210")))
        self.shut(Way("viewer", bearer(good(role="viewer", sub="vera")), FORBIDDEN))
        guard = self.gateway.app.guard
        assert guard.db is not None
        db = guard.db
        rows = eventually(lambda: db.read("SELECT key, status FROM ledger"))
        self.assertEqual(rows, [("vera", 403)])
        audited = self.audit(self.gateway, "authentication_refused")
        seconds = {line["ts"][:19] for line in audited}
        self.assertTrue(audited)
        self.assertLessEqual(len(audited), 3 * (len(seconds) + 1))
        for line in audited:
            self.assertEqual((line["level"], line["client"]), ("warning", "127.0.0.1"))
        self.assertNotIn("sk-guess", self.gateway.log.getvalue())

    def test_no_secret_is_ever_in_the_log(self) -> None:
        running = self.gateway
        secret = self.secret(running)
        issued = running.ask("POST", "/auth/token", None, bearer(secret)).json()["token"]
        for text in (ALICE, ROOT, secret, issued, good(), flipped(good())):
            running.post(ask(model="m"), headers=bearer(text))
            running.post(ask(model="m"), CHAT + f"?key={text}")
            running.get("/admin/usage?by=key", bearer(text))
        eventually(lambda: len(running.request_lines()) >= 19)
        log = running.log.getvalue()
        for text in (ALICE, ROOT, secret, issued.split(".")[2], SECRET):
            self.assertNotIn(text, log)


class CrossSiteTest(AccessTest):
    def test_preflights_of_the_admin_paths_are_answered_without_a_key(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS, CORS_ORIGINS="https://console.example")
        origin = ("Origin", "https://console.example")
        for path, methods in (
            ("/admin/keys", "GET, HEAD, POST, OPTIONS"),
            ("/admin/keys/alice", "DELETE, OPTIONS"),
            ("/admin/usage", "GET, HEAD, OPTIONS"),
            ("/auth/token", "POST, OPTIONS"),
        ):
            with self.subTest(path):
                response = running.ask("OPTIONS", path, None, [origin, ("Access-Control-Request-Method", "DELETE")])
                self.assertEqual((response.status, response.header("allow")), (204, methods))
                self.assertEqual(response.header("access-control-allow-methods"), methods)
        self.assertEqual(running.ask("OPTIONS", "/admin/nothing", None, [origin]).status, 404)
        exposed = running.post(headers=[AS_ROOT, origin]).header("access-control-expose-headers") or ""
        for name in ("x-ratelimit-remaining-requests", "X-Gateway-Cost-Usd", "Retry-After"):
            self.assertIn(name, exposed)


@unittest.skipUnless(HAS_EXTRA, "needs PyJWT and cryptography")
class KeySetTest(AccessTest):
    """Tokens of an identity provider, by its public keys."""

    def serve_with_keys(self) -> tuple[RunningGateway, Any, bytes]:
        import jwt
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(65_537, 2_048)
        public = key.public_key()
        jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(public))
        path = self.file("keys.json", {"keys": [{**jwk, "kid": "one", "use": "sig"}]})
        pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return self.serve(JWT_JWKS=path, JWT_ALGORITHM="RS256"), key, pem

    def test_alg_confusion_is_refused_and_the_providers_token_is_not(self) -> None:
        import jwt

        running, key, pem = self.serve_with_keys()
        claims = {"sub": "tina", "exp": int(time.time()) + 60}
        honest = jwt.encode(claims, key, "RS256", {"kid": "one"})
        self.assertEqual(running.post(headers=bearer(honest)).status, 200)
        confused = token(pem.decode(), {"alg": "HS256", "kid": "one"})
        self.assertEqual(running.post(headers=bearer(confused)).status, 401)
        relabelled = token(pem.decode(), {"alg": "RS256", "kid": "one"})
        self.assertEqual(running.post(headers=bearer(relabelled)).status, 401)
        self.assertEqual(running.ask("POST", "/auth/token", None, bearer(honest)).status, 404)


class ProcessTest(AccessTest):
    def test_key_sets_without_the_extra_are_exit_2_and_name_it(self) -> None:
        keys = self.file("keys.json", {"keys": []})
        for arguments in ((), ("check",)):
            status, _, stderr = (self.cli if arguments else self.process)(
                *arguments, JWT_JWKS=keys, JWT_ALGORITHM="RS256"
            )
            self.assertEqual(status, 2, stderr)
            self.assertIn("JWT_JWKS: ", stderr)
            if not HAS_EXTRA:
                self.assertIn("pip install '.[jwt]'", stderr)
            self.assertNotIn("Traceback", stderr)


if __name__ == "__main__":
    unittest.main()
