"""Keys that have been revoked at some gateway, known to all of them.

`Revocations` owns the digests that are refused, a set whose single operations are atomic, and what of it Redis is known
to have. But for the set, all of it is for the thread `shared` alone; there is no lock, and nothing waits.

A key is told by the SHA-256 of its secret, so a copy of it in another database, or in another gateway's settings, is
refused as well; a token that was made for a key by the digest of its name. In Redis each has the number at which it
came, so who has read up to a number reads on from there. Where the numbers have gone back (Redis was emptied, or an
older copy is the primary now) everybody who notices puts there what it knows, and reads all of it again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Callable, Optional

from gateway.keys.record import KeyRecord, name_digest
from gateway.shared.line import Job
from gateway.shared.scripts import Script

KEEP_S = 400 * 86_400
"""For so long Redis keeps them after the last one came. A database keeps its own for good."""
BATCH_MAX = 500
KEPT_MAX = 100_000
"""In Redis; beyond, the oldest go."""
_NAMES = (b"{igw}:revoked", b"{igw}:revoked:count")

Table = Mapping[bytes, KeyRecord]
# KEYS: what is revoked, and how many there were. ARGV: the seconds for which that is kept, how many, the digests.
_REVOKE = """
for i = 3, #ARGV do
  if not redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], redis.call('INCR', KEYS[2]), ARGV[i])
  end
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 1
"""

# KEYS: the same. ARGV: the number up to which it is known, how many to read. Replies the last number given, that up to
# which these are, and the digests.
_REVOKED = """
local count = tonumber(redis.call('GET', KEYS[2]) or '0')
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local read_to, digests = tonumber(ARGV[1]), {}
for i = 1, #found, 2 do
  digests[#digests + 1] = found[i]
  read_to = tonumber(found[i + 1])
end
return {count, read_to, digests}
"""

REVOKE = Script(_REVOKE)
REVOKED = Script(_REVOKED)


class Revocations:
    """Publishes the revoked keys of this gateway's database and learns of the others'.

    `table` gives the keys of the database by their digests, an immutable snapshot; None: there is none (yet).
    """

    def __init__(self, table: Callable[[], Optional[Table]]) -> None:
        self.refused: set[bytes] = set()
        """Digests of what is refused; anybody may look into it."""
        self._table = table
        self._seen: Optional[Table] = None
        self._stored: set[bytes] = set()  # what Redis has
        self._read_to = 0

    def beat(self) -> list[Job]:
        """What is to be published and read now."""
        table = self._table()
        if table is not None and table is not self._seen:
            self._seen = table
            for digest, record in table.items():
                if record.revoked_unix_s is not None:
                    self.refused.update((digest, name_digest(record.name)))
        new = [] if len(self._stored) == len(self.refused) else list(self.refused - self._stored)[:BATCH_MAX]
        jobs = [Job(functools.partial(_publishing, new), functools.partial(self._published, new))] if new else []
        return [*jobs, Job(functools.partial(_reading, self._read_to), self._heard)]

    def _published(self, digests: list[bytes], reply: Any) -> None:
        if reply is not None:
            self._stored.update(digests)

    def _heard(self, reply: Any) -> None:
        if not isinstance(reply, list) or len(reply) != 3 or not isinstance(reply[2], list):
            return
        count, read_to, digests = reply
        if count < self._read_to:  # what Redis knew is lost, wholly or in part
            self._stored.clear()
            self._read_to = 0
            return
        self._read_to = read_to
        found = [digest for digest in digests if isinstance(digest, bytes)]
        self.refused.update(found)
        self._stored.update(found)


def _publishing(digests: list[bytes], whole: bool) -> Any:
    return REVOKE.command(_NAMES, (KEEP_S, KEPT_MAX, *digests), whole)


def _reading(read_to: int, whole: bool) -> Any:
    return REVOKED.command(_NAMES, (read_to, BATCH_MAX), whole)
