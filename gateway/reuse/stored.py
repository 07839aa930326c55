"""One answer as it is kept (in memory, in the SQLite file, in Redis), and how answers are chosen to be dropped.

Pure values. A `Stored` never changes; who has it may keep it.
"""

from __future__ import annotations

import json
from typing import NamedTuple, Optional

KEY_BYTES = 16  # of a digest: two among a thousand million requests are alike with a probability of 1e-21
_VERSION = 1


class Stored(NamedTuple):
    """A complete answer with what is needed to give it again. `b""`, `""`: there is none."""

    key: bytes
    """The digest of the request, its scope included."""
    scope: str
    """Whose it is: a key's name; "" with CACHE_SCOPE=global, or where there are no keys."""
    model: str
    """The configured model that has answered."""
    path: str
    """The engine's path: `/chat/completions`."""
    body: bytes
    """JSON, as the first client got it (never a stream)."""
    request_id: str
    """The `id` in it."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    """What asking for it has cost."""
    stored_unix_s: float
    near: bytes = b""
    """The digest of what a near duplicate has in common with it, by the guard of words."""
    group: bytes = b""
    """The digest of all but the last words asked: only within it is a vector compared."""
    vector: bytes = b""
    """The embedding of what was asked, little-endian float32, of length 1."""

    @property
    def tokens(self) -> int:
        """What a hit saves."""
        return self.prompt_tokens + self.completion_tokens


class Chosen(NamedTuple):
    """Answers that are dropped: those of which all of this is true (None: of any)."""

    now_unix_s: float
    model: Optional[str] = None
    scope: Optional[str] = None
    older_than_s: Optional[float] = None

    @property
    def everything(self) -> bool:
        """Whether it is all of them."""
        return self.model is None and self.scope is None and self.older_than_s is None

    def takes(self, stored: Stored) -> bool:
        """Whether one is among them."""
        age_s = self.now_unix_s - stored.stored_unix_s
        return (
            self.model in (None, stored.model)
            and self.scope in (None, stored.scope)
            and (self.older_than_s is None or age_s > self.older_than_s)
        )


def encode(stored: Stored) -> bytes:
    """As one value for a file or another process: a line of JSON, then body and vector."""
    head = [
        *(_VERSION, stored.key.hex(), stored.scope, stored.model, stored.path, stored.request_id),
        *(stored.prompt_tokens, stored.completion_tokens, stored.cost_usd, stored.stored_unix_s),
        *(stored.near.hex(), stored.group.hex(), len(stored.body)),
    ]
    return b"%b\n%b%b" % (json.dumps(head, separators=(",", ":")).encode(), stored.body, stored.vector)


def decode(value: bytes) -> Optional[Stored]:
    """What `encode` has made; None for what it has not, or another version of it has."""
    head, _, rest = value.partition(b"\n")
    try:
        version, key, scope, model, path, request_id, *figures, near, group, size = json.loads(head)
        prompt, completion, cost, at_s = figures
        if version != _VERSION or len(rest) < size:
            return None
        return Stored(
            *(bytes.fromhex(key), str(scope), str(model), str(path), rest[:size], str(request_id)),
            *(int(prompt), int(completion), float(cost), float(at_s)),
            *(bytes.fromhex(near), bytes.fromhex(group), rest[size:]),
        )
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
