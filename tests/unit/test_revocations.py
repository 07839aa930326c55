"""Keys revoked at one gateway and refused at all: what is published, heard, and published again; without Redis."""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from typing import Any, Optional, cast

from gateway.errors import RequestRefused
from gateway.keys.auth import Authenticator
from gateway.keys.record import KeyRecord, name_digest, secret_digest
from gateway.settingvalues import ApiKey
from gateway.shared.line import Job
from gateway.shared.revocations import BATCH_MAX, Revocations


class Key:
    """What is looked at of a record."""

    def __init__(self, name: str, revoked: bool) -> None:
        self.name = name
        self.revoked_unix_s = 1.0 if revoked else None


def table_of(*keys: Key) -> Mapping[bytes, KeyRecord]:
    return {key.name.encode(): cast(KeyRecord, key) for key in keys}


class RevocationsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.table: Optional[Mapping[bytes, KeyRecord]] = None
        self.revocations = Revocations(lambda: self.table)

    def beat(self) -> tuple[Optional[Job], Job, tuple[Any, ...]]:
        """What is to be published, the reading, and what it asks for."""
        jobs = self.revocations.beat()
        return (jobs[0] if len(jobs) == 2 else None), jobs[-1], jobs[-1].command(False)[5:]

    def hear(self, job: Optional[Job], reply: Any) -> None:
        assert job is not None and job.heard is not None
        job.heard(reply)

    def digests(self, job: Optional[Job]) -> set[bytes]:
        assert job is not None
        return set(job.command(False)[7:])

    def test_what_is_revoked_here_is_published_until_redis_has_it(self) -> None:
        self.assertIsNone(self.beat()[0])
        self.table = table_of(Key("alice", True), Key("bob", False))
        expected = {b"alice", name_digest("alice")}
        publishing, _, _ = self.beat()
        self.assertEqual(self.digests(publishing), expected)
        self.hear(publishing, None)
        publishing, _, _ = self.beat()
        self.assertEqual(self.digests(publishing), expected)
        self.hear(publishing, 1)
        self.assertIsNone(self.beat()[0])
        self.assertEqual(self.revocations.refused, expected)

    def test_what_others_have_revoked_is_refused_and_read_on_from_there(self) -> None:
        _, reading, asked = self.beat()
        self.assertEqual(asked, (0, BATCH_MAX))
        self.hear(reading, [3, 2, [b"a", b"b"]])
        publishing, reading, asked = self.beat()
        self.assertEqual((publishing, asked), (None, (2, BATCH_MAX)))
        self.hear(reading, None)
        self.hear(reading, [b"x"])
        self.hear(reading, [3, 3, [b"c"]])
        self.assertEqual(self.revocations.refused, {b"a", b"b", b"c"})

    def test_redis_emptied_gets_all_that_is_known_again(self) -> None:
        _, reading, _ = self.beat()
        self.hear(reading, [2, 2, [b"a", b"b"]])
        _, reading, _ = self.beat()
        self.hear(reading, [0, 2, []])
        publishing, _, asked = self.beat()
        self.assertEqual((self.digests(publishing), asked), ({b"a", b"b"}, (0, BATCH_MAX)))
        self.assertEqual(self.revocations.refused, {b"a", b"b"})

    def test_a_refused_key_is_not_let_in_wherever_it_stands(self) -> None:
        digest = secret_digest("sk-alice-1234")
        authenticator = Authenticator([ApiKey("alice", digest, "user")])
        headers = (b"Bearer sk-alice-1234", None, frozenset[bytes]())
        self.assertEqual(authenticator.identify(*headers).name, "alice")
        authenticator.refused = self.revocations.refused
        self.assertEqual(authenticator.identify(*headers).name, "alice")
        self.revocations.refused.add(digest)
        with self.assertRaises(RequestRefused) as caught:
            authenticator.identify(*headers)
        self.assertEqual(caught.exception.code, "unauthorized")


if __name__ == "__main__":
    unittest.main()
