"""Keys and tokens at the door: which headers carry one, who is recognised, what it is worth, and what is never told."""

from __future__ import annotations

import hashlib
import tempfile
import unittest
from pathlib import Path
from typing import Any, Optional

from gateway.errors import RequestRefused
from gateway.keys.auth import ANYONE, Authenticator, Identity
from gateway.keys.jwt import TokenVerifier
from gateway.keys.record import name_digest, secret_digest
from gateway.keys.roles import DEFAULT_ROLES
from gateway.keys.store import KeyStore
from gateway.limits.limiter import KeyLimits
from gateway.settingvalues import ApiKey
from gateway.state.database import StateDb
from tests.access import SECRET, token

NOTHING: frozenset[bytes] = frozenset()
NOON = 1_800_000_000.0


def key(name: str, secret: str, role: str = "user") -> ApiKey:
    return ApiKey(name, hashlib.sha256(secret.encode()).digest(), role)


class AuthTest(unittest.TestCase):
    def setUp(self) -> None:
        self.door = Authenticator([key("alice", "k-alice"), key("root", "k-root", "admin")])

    def identify(
        self,
        authorization: Optional[bytes] = None,
        x_api_key: Optional[bytes] = None,
        repeated: frozenset[bytes] = NOTHING,
    ) -> Identity:
        return self.door.identify(authorization, x_api_key, repeated)

    def refusal(
        self,
        authorization: Optional[bytes] = None,
        x_api_key: Optional[bytes] = None,
        repeated: frozenset[bytes] = NOTHING,
    ) -> RequestRefused:
        with self.assertRaises(RequestRefused) as caught:
            self.identify(authorization, x_api_key, repeated)
        error = caught.exception
        self.assertEqual((error.code, error.status), ("unauthorized", 401))
        self.assertIn(("WWW-Authenticate", "Bearer"), error.headers)
        return error


class SettingsKeysTest(AuthTest):
    def test_each_of_the_three_headers_carries_a_key(self) -> None:
        alice = Identity("alice", "user", DEFAULT_ROLES["user"], is_key=True)
        for authorization in (b"Bearer k-alice", b"Api-Key k-alice", b"bearer k-alice", b"API-KEY  k-alice "):
            with self.subTest(authorization=authorization):
                self.assertEqual(self.identify(authorization), alice)
        self.assertEqual(self.identify(None, b"k-alice"), alice)

    def test_a_key_has_its_role(self) -> None:
        root = Identity("root", "admin", DEFAULT_ROLES["admin"], is_key=True)
        self.assertEqual(self.identify(b"Bearer k-root"), root)

    def test_a_missing_key_is_refused(self) -> None:
        for authorization in (None, b"", b"Bearer", b"Bearer ", b"Basic azphbGljZQ==", b"k-alice", b"Bearerk-alice"):
            with self.subTest(authorization=authorization):
                self.refusal(authorization)
        self.refusal(None, b"")

    def test_a_wrong_key_is_refused(self) -> None:
        for guess in (b"k-alic", b"k-alice2", b"K-ALICE", b"k-alice,k-alice", b"k alice", b"\xff", b"x" * 100_000):
            with self.subTest(guess=guess[:10]):
                self.refusal(b"Bearer " + guess)
                self.refusal(None, guess)

    def test_a_keys_digest_does_not_open_the_door(self) -> None:
        digest = hashlib.sha256(b"k-alice")
        self.refusal(b"Bearer " + digest.hexdigest().encode())
        self.refusal(None, digest.digest())

    def test_a_header_sent_twice_is_refused_whatever_it_holds(self) -> None:
        self.refusal(b"Bearer k-alice, Bearer k-alice", None, frozenset((b"authorization",)))
        self.refusal(None, b"k-alice", frozenset((b"x-api-key",)))
        self.assertEqual(self.identify(b"Bearer k-alice", None, frozenset((b"accept",))).name, "alice")

    def test_a_good_key_beside_a_wrong_one_does_not_help(self) -> None:
        for authorization, x_api_key in (
            (b"Bearer wrong", b"k-alice"),
            (b"Bearer k-alice", b"wrong"),
            (b"Api-Key k-alice", b"k-root"),
            (b"Bearer k-alice", b"k-alice2"),
        ):
            with self.subTest(authorization=authorization, x_api_key=x_api_key):
                self.refusal(authorization, x_api_key)

    def test_the_same_key_in_both_headers_is_one_key(self) -> None:
        for authorization in (b"Bearer k-alice", b"api-key k-alice "):
            self.assertEqual(self.identify(authorization, b"k-alice").name, "alice")

    def test_an_authorization_of_another_scheme_is_no_key_and_spoils_none(self) -> None:
        others = (b"", b"Basic azphbGljZQ==", b'Digest username="alice"', b"Bearer", b"Bearer ", b"k-root", b"basic")
        for authorization in others:
            with self.subTest(authorization=authorization):
                self.assertEqual(self.identify(authorization, b"k-alice").name, "alice")
                self.refusal(authorization, b"wrong")
                self.refusal(authorization, b"")
        self.assertEqual(self.identify(b"Bearer k-alice", b"").name, "alice")
        self.refusal(b"Basic eA==", b"k-alice", frozenset((b"authorization",)))

    def test_a_refusal_repeats_nothing_that_was_sent(self) -> None:
        for error in (self.refusal(b"Bearer s3cret-guess"), self.refusal(None, b"s3cret-guess")):
            self.assertNotIn("s3cret", f"{error.message} {error.headers} {error.details} {error.param}")

    def test_without_keys_everybody_is_let_in(self) -> None:
        self.assertTrue(self.door.required)
        self.door = Authenticator([])
        self.assertFalse(self.door.required)
        for authorization in (None, b"Bearer whatever", b"Basic x"):
            self.assertEqual(self.identify(authorization, b"x", frozenset((b"x-api-key",))), ANYONE)
        self.assertIsNone(ANYONE.name)

    def test_switched_off_everybody_is_let_in_although_there_are_keys(self) -> None:
        self.door = Authenticator([key("alice", "k-alice")], enabled=False)
        self.assertFalse(self.door.required)
        self.assertEqual(self.identify(b"Bearer wrong"), ANYONE)

    def test_keys_of_the_settings_have_the_default_limits(self) -> None:
        self.door = Authenticator([key("alice", "k-alice")], default_limits=KeyLimits(60, 1000, 2))
        self.assertEqual(self.identify(b"Bearer k-alice").limits, KeyLimits(60, 1000, 2))

    def test_a_role_that_does_not_exist_may_do_nothing(self) -> None:
        self.door = Authenticator([key("alice", "k-alice", "gone")])
        identity = self.identify(b"Bearer k-alice")
        for permission in ("infer", "metrics", "admin"):
            with self.assertRaises(RequestRefused) as caught:
                identity.require(permission)
            self.assertEqual((caught.exception.code, caught.exception.status), ("forbidden", 403))
            self.assertIn(permission, caught.exception.message)


class StoreTest(AuthTest):
    """With a state database and a secret for tokens, at noon."""

    def setUp(self) -> None:
        self.now_s = NOON
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "gateway.db"
        db = StateDb(self.path)
        self.addCleanup(db.close)
        self.store = KeyStore(db, self.clock)
        self.door = self.a_door()

    def clock(self) -> float:
        return self.now_s

    def a_door(self, keys: tuple[ApiKey, ...] = (), **options: Any) -> Authenticator:
        verifier = TokenVerifier(SECRET.encode(), clock=self.clock)
        door = Authenticator(keys, verifier=verifier, clock=self.clock, monotonic=self.clock, **options)
        door.store = self.store
        return door

    def bearer(self, secret: str) -> bytes:
        return f"Bearer {secret}".encode()

    def token_of(self, secret: str) -> str:
        return self.door.exchange(self.identify(self.bearer(secret)))[0]


class StoredKeysTest(StoreTest):
    def test_a_key_brings_all_that_was_said_of_it(self) -> None:
        _, secret = self.store.create(
            "alice",
            "viewer",
            models=("13b*",),
            rpm=1,
            tpm=2,
            concurrency=3,
            budget_usd=4.5,
            budget_period="day",
            expires_s=60,
            priority="low",
        )
        self.assertEqual(
            self.identify(self.bearer(secret)),
            Identity(
                "alice",
                "viewer",
                DEFAULT_ROLES["viewer"],
                ("13b*",),
                KeyLimits(1, 2, 3),
                4.5,
                "day",
                "low",
                True,
                NOON + 60,
            ),
        )

    def test_limits_that_a_key_does_not_have_are_the_default_ones(self) -> None:
        self.door = self.a_door(default_limits=KeyLimits(10, 20, 30))
        _, secret = self.store.create("alice", tpm=5)
        self.assertEqual(self.identify(self.bearer(secret)).limits, KeyLimits(10, 5, 30))

    def test_expired_revoked_and_rotated_keys_are_refused_from_the_next_request_on(self) -> None:
        _, expiring = self.store.create("expiring", expires_s=60)
        _, revoked = self.store.create("revoked")
        _, rotated = self.store.create("rotated")
        for secret in (expiring, revoked, rotated):
            self.assertTrue(self.identify(self.bearer(secret)).is_key)
        self.store.revoke("revoked")
        _, new = self.store.rotate("rotated", grace_s=30)
        self.refusal(self.bearer(revoked))
        self.assertEqual(self.identify(self.bearer(rotated)).name, "rotated")
        self.now_s += 30
        self.refusal(self.bearer(rotated))
        self.assertEqual(self.identify(self.bearer(new)).name, "rotated")
        self.now_s += 30
        self.refusal(self.bearer(expiring))

    def test_a_changed_record_is_seen_although_the_key_was_known(self) -> None:
        _, secret = self.store.create("alice", expires_s=60)
        self.assertEqual(self.identify(self.bearer(secret)).key_expires_unix_s, NOON + 60)
        _, new = self.store.rotate("alice", 60, expires_s=90)
        self.assertEqual(self.identify(self.bearer(secret)).key_expires_unix_s, NOON + 90)
        self.assertEqual(self.identify(self.bearer(new)).key_expires_unix_s, NOON + 90)

    def test_revoking_the_last_key_does_not_open_the_door(self) -> None:
        self.door = Authenticator()
        self.door.store = self.store
        self.assertFalse(self.door.required)
        self.store.create("alice")
        self.assertTrue(self.door.required)
        self.store.revoke("alice")
        self.assertTrue(self.door.required)

    def test_an_exchanged_token_is_worth_what_its_key_is_worth_now(self) -> None:
        _, secret = self.store.create("alice", models=("13b",), rpm=5, concurrency=2, budget_usd=3, priority="high")
        issued = self.bearer(self.token_of(secret))
        by_token = self.identify(issued)
        self.assertEqual(by_token, self.identify(self.bearer(secret))._replace(is_key=False))
        self.assertEqual(self.identify(issued), by_token)
        self.store.rotate("alice", 0)
        self.assertEqual(self.identify(issued).name, "alice")
        self.store.revoke("alice")
        self.refusal(issued)

    def test_a_token_ends_with_its_key_that_another_gateway_has_revoked(self) -> None:
        _, secret = self.store.create("alice")
        issued = self.bearer(self.token_of(secret))
        elsewhere = self.a_door()
        elsewhere.store = None  # it knows the key by its tokens alone
        for door, digest in ((self.door, secret_digest(secret)), (elsewhere, name_digest("alice"))):
            self.door = door
            self.assertEqual(self.identify(issued).name, "alice")
            door.refused = {digest}
            self.refusal(issued)

    def test_an_exchanged_token_ends_with_its_key(self) -> None:
        _, secret = self.store.create("alice", expires_s=60)
        issued, good_for_s = self.door.exchange(self.identify(self.bearer(secret)))
        self.assertEqual(good_for_s, 60)
        self.assertEqual(self.identify(self.bearer(issued)).name, "alice")
        self.now_s += 60
        self.refusal(self.bearer(issued))

    def test_a_key_in_its_last_second_is_refused_not_an_error(self) -> None:
        _, secret = self.store.create("alice", expires_s=60.4)
        self.now_s += 60.2
        identity = self.identify(self.bearer(secret))
        with self.assertRaises(RequestRefused) as caught:
            self.door.exchange(identity)
        self.assertEqual(caught.exception.code, "unauthorized")

    def test_a_token_for_a_key_of_the_settings_is_not_one_for_a_stored_key_of_that_name(self) -> None:
        self.store.create("alice", "admin")  # made before the settings had that name
        self.door = self.a_door((key("alice", "k-alice"),))
        identity = self.identify(self.bearer(self.token_of("k-alice")))
        self.assertEqual((identity.name, identity.role), ("alice", "user"))
        self.assertFalse(identity.rights.allows("admin"))

    def test_only_a_key_can_be_exchanged(self) -> None:
        _, secret = self.store.create("alice")
        by_token = self.identify(self.bearer(self.token_of(secret)))
        foreign = self.identify(self.bearer(token(exp=NOON + 60)))
        for identity in (by_token, foreign, ANYONE):
            with self.assertRaises(RequestRefused) as caught:
                self.door.exchange(identity)
            self.assertEqual(caught.exception.code, "forbidden")

    def test_without_a_secret_there_are_no_tokens(self) -> None:
        self.door = Authenticator([key("alice", "k-alice")])
        with self.assertRaises(RequestRefused) as caught:
            self.door.exchange(self.identify(b"Bearer k-alice"))
        self.assertEqual(caught.exception.code, "not_found")


class TokenTest(StoreTest):
    def test_the_claims_are_honoured(self) -> None:
        self.door = self.a_door(default_limits=KeyLimits(10, 20, 30))
        claims: dict[str, Any] = {"sub": "tina", "role": "viewer", "models": ["7b"], "rpm": 3, "exp": NOON + 60}
        self.assertEqual(
            self.identify(self.bearer(token(**claims))),
            Identity("tina", "viewer", DEFAULT_ROLES["viewer"], ("7b",), KeyLimits(3, 20, 30)),
        )

    def test_a_token_that_was_accepted_ends_at_its_time_and_the_leeway(self) -> None:
        good = self.bearer(token(exp=NOON + 60))
        for later_s in (0, 59, 89):
            self.now_s = NOON + later_s
            self.assertEqual(self.identify(good).name, "tina")
        self.now_s = NOON + 90
        self.refusal(good)

    def test_a_signing_key_that_was_withdrawn_counts_for_no_more_than_a_minute(self) -> None:
        class Withdrawn:
            algorithm = "HS256"
            good = True

            def check(self, key_id: Optional[str], signed: bytes, signature: bytes) -> bool:
                return self.good

        keys = Withdrawn()
        self.door = Authenticator(
            verifier=TokenVerifier(keys, clock=self.clock), clock=self.clock, monotonic=self.clock
        )
        good = self.bearer(token(exp=NOON + 86_400))
        self.assertEqual(self.identify(good).name, "tina")
        keys.good = False
        self.now_s += 61
        self.refusal(good)

    def test_the_same_token_is_verified_once_not_each_time(self) -> None:
        calls: list[bytes] = []

        class Counting:
            algorithm = "HS256"

            def check(self, key_id: Optional[str], signed: bytes, signature: bytes) -> bool:
                calls.append(signed)
                return True

        self.door = Authenticator(
            verifier=TokenVerifier(Counting(), clock=self.clock), clock=self.clock, monotonic=self.clock
        )
        for _ in range(5):
            self.identify(self.bearer(token(exp=NOON + 60)))
        self.assertEqual(len(calls), 1)

    def test_many_tokens_take_bounded_memory(self) -> None:
        for number in range(5_000):
            self.identify(self.bearer(token(sub=f"u{number}", exp=NOON + 60)))
        self.assertLessEqual(len(self.door._by_token), 4_096)

    def test_a_refused_token_is_not_repeated(self) -> None:
        bad = token("another-secret-of-at-least-32-bytes", exp=NOON + 60)
        error = self.refusal(self.bearer(bad))
        for piece in bad.split("."):
            self.assertNotIn(piece, f"{error.message} {error.headers} {error.details}")


if __name__ == "__main__":
    unittest.main()
