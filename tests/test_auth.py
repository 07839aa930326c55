"""Keys at the door: which headers carry one, who is recognised, and what is never told."""

from __future__ import annotations

import hashlib
import unittest
from typing import Optional

from gateway.errors import RequestRefused
from gateway.policy.auth import ANYONE, Authenticator, Identity
from gateway.settings import ApiKey

NOTHING: frozenset[bytes] = frozenset()


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

    def test_each_of_the_three_headers_carries_a_key(self) -> None:
        alice = Identity("alice", "user")
        for authorization in (b"Bearer k-alice", b"Api-Key k-alice", b"bearer k-alice", b"API-KEY  k-alice "):
            with self.subTest(authorization=authorization):
                self.assertEqual(self.identify(authorization), alice)
        self.assertEqual(self.identify(None, b"k-alice"), alice)

    def test_a_key_has_its_role(self) -> None:
        self.assertEqual(self.identify(b"Bearer k-root"), Identity("root", "admin"))

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
        self.refusal(b"Bearer wrong", b"k-alice")

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


if __name__ == "__main__":
    unittest.main()
