"""How answers and vectors stand in Redis: names, commands, and what is believed of a reply.

`igw:a:<key>` is an answer behind a fixed head, by which `clear` chooses without reading bodies; `igw:n:<near>` the key
of the answer put last with that `near`; `igw:v` a stream of the vectors. No name holds a scope's or a model's. Made for
one server, or its primary: a cluster would not have the names of one look-up in one place.

Pure values, but for `remove`, which asks Redis. No state, no lock.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Optional

from gateway.reuse.stored import Chosen, Stored, decode, encode
from gateway.shared.redislink import Command, Link

VECTORS = b"igw:v"
VECTORS_MAX = 20_000
SCAN_COUNT = 500

_ENTRY = b"igw:a:"
_NEAR = b"igw:n:"
_MAGIC = b"igw1"
_HEAD = struct.Struct(">4s8s8sd")  # _MAGIC, the digests of scope and model, stored_unix_s
# MGET, unlike GET, has no error for what is no string. The last name is the pointer's.
_SCRIPT = b"""local function get(name) return redis.call('MGET', name)[1] end
for i = 1, #KEYS - 1 do
  local value = get(KEYS[i])
  if value then return value end
end
local key = get(KEYS[#KEYS])
return key and get(ARGV[1] .. key)"""
_SCRIPT_SHA = hashlib.sha1(_SCRIPT).hexdigest().encode()  # how Redis names it


class Asked(NamedTuple):
    """What a look-up is for: the first of `keys`, else what was put last with `near` (b"": not that)."""

    keys: tuple[bytes, ...]
    near: bytes

    def command(self, whole_script: bool = False) -> Command:
        """Ask Redis; by the script's digest, or with the whole script, which Redis then knows."""
        names = [_ENTRY + key.hex().encode() for key in self.keys]
        if not self.near:
            return (b"MGET", *names)
        names.append(_NEAR + self.near.hex().encode())
        script = (b"EVAL", _SCRIPT) if whole_script else (b"EVALSHA", _SCRIPT_SHA)
        return (*script, len(names), *names, _ENTRY)

    def found_in(self, reply: object) -> Optional[Stored]:
        """The answer in a reply. None for garbage, another version's, or what was not asked for: anybody may have
        written there."""
        for value in reply if isinstance(reply, list) else (reply,):
            if not isinstance(value, bytes) or value[:4] != _MAGIC:
                continue
            stored = _decode(value[_HEAD.size :])
            if stored is not None and (stored.key in self.keys or (self.near and stored.near == self.near)):
                return stored
        return None


class Doomed(NamedTuple):
    """What is chosen to be removed, as the heads of answers tell it; None: whatever it is."""

    model: Optional[bytes]
    scope: Optional[bytes]
    until_unix_s: Optional[float]

    @classmethod
    def of(cls, chosen: Chosen) -> Doomed:
        """The heads of what is chosen."""
        return cls(
            None if chosen.model is None else digest(chosen.model),
            None if chosen.scope is None else digest(chosen.scope),
            None if chosen.older_than_s is None else chosen.now_unix_s - chosen.older_than_s,
        )

    def has(self, head: object) -> bool:
        """Whether an answer with this head is one of them. What has none is not known to be."""
        if not isinstance(head, bytes) or len(head) < _HEAD.size or head[:4] != _MAGIC:
            return False
        _, scope, model, stored_unix_s = _HEAD.unpack(head)
        return (
            self.scope in (None, scope)
            and self.model in (None, model)
            and (self.until_unix_s is None or stored_unix_s <= self.until_unix_s)
        )


def digest(name: str) -> bytes:
    """What stands for a model's or a scope's name."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def size_of(stored: Stored) -> int:
    """About how many bytes it takes."""
    return len(stored.body) + 2 * len(stored.vector) + 512


def putting(stored: Stored, ttl_ms: int, origin: bytes) -> Iterator[Command]:
    """Keep an answer for `ttl_ms`, with its pointer and its vector. `origin` says which gateway the vector is from."""
    head = _HEAD.pack(_MAGIC, digest(stored.scope), digest(stored.model), stored.stored_unix_s)
    yield (b"SET", _ENTRY + stored.key.hex().encode(), head + encode(stored), b"PX", ttl_ms)
    if stored.near:
        yield (b"SET", _NEAR + stored.near.hex().encode(), stored.key.hex(), b"PX", ttl_ms)
    if stored.vector:
        record = encode(stored._replace(body=b""))
        yield (b"XADD", VECTORS, b"MAXLEN", b"~", VECTORS_MAX, b"*", origin, record)
        yield (b"PEXPIRE", VECTORS, ttl_ms)  # gateways that are no more leave nothing behind


def news_after(record_id: bytes, most: int) -> Command:
    """Read the vectors put after a record."""
    return (b"XREAD", b"COUNT", most, b"STREAMS", VECTORS, record_id)


def news_in(reply: Any, origin: bytes) -> Iterator[tuple[bytes, Optional[Stored]]]:
    """Each record's id, and what was put, `body` empty; None for one of this `origin`, or that cannot be read."""
    for record_id, fields in reply[0][1] if reply else ():
        stored = _decode(fields[1]) if fields and fields[0] != origin else None
        yield record_id, stored if stored is not None and stored.vector else None


def remove(link: Link, chosen: Doomed, until_s: float) -> Iterator[int]:
    """Remove what is chosen, and yield after each step how many answers went. All: pointers and vectors go, too.

    Raises what the link does, an error that Redis replies, and TimeoutError at `until_s` (of time.monotonic).
    """
    everything = chosen == (None, None, None)
    cursor: Any = b"0"
    while True:
        pattern = b"igw:[an]:*" if everything else _ENTRY + b"*"
        [[cursor, names]] = _ask(link, [(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", SCAN_COUNT)])
        doomed = names
        if not everything:
            heads = list(link.talk([(b"GETRANGE", name, 0, _HEAD.size - 1) for name in names]))
            doomed = [name for name, head in zip(names, heads) if chosen.has(head)]
        pointers = [name for name in doomed if name.startswith(_NEAR)]
        answers = [name for name in doomed if not name.startswith(_NEAR)]
        _ask(link, [(b"UNLINK", *pointers)] if pointers else [])
        yield sum(_ask(link, [(b"UNLINK", *answers)] if answers else []))
        if cursor == b"0":
            break
        if time.monotonic() >= until_s:
            raise TimeoutError("the time was over")
    if everything:  # trimmed, not removed: so what comes is numbered on from here
        _ask(link, [(b"XTRIM", VECTORS, b"MAXLEN", 0)])


def _decode(value: bytes) -> Optional[Stored]:
    try:
        return decode(value)
    except Exception:  # whatever anybody may have written: it must not look like a failure of Redis
        return None


def _ask(link: Link, commands: Sequence[Command]) -> list[Any]:
    replies = list(link.talk(commands)) if commands else []
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
