"""Bodies that an engine has compressed, although it was asked not to: gzip and deflate, undone as they come.

A `CodedBody` stands in front of the framing's own decoder, so that who reads a body knows nothing of it. One `feed`
gives `PIECE_BYTES` at most, however much the bytes stand for: what is left is `pending`. Sans-I/O; belongs to one
answer and one thread at a time. What is wrong raises `FramingError`.
"""

from __future__ import annotations

import zlib
from typing import Any, Optional

from gateway.upstream.framing import BodyDecoder, FramingError, ResponseHead, body_decoder

PIECE_BYTES = 65_536
MEMBERS_AT_ONCE = 64  # of a gzip body: one may be 20 bytes that stand for nothing
CODINGS_MAX = 2  # a proxy that compresses what has been compressed; more is no mistake that is made
NAME_MAX_CHARS = 40

_GZIP_BITS, _ZLIB_BITS, _RAW_BITS = 31, 15, -15
_MEMBER = b"\x1f\x8b"
_GZIP, _DEFLATE = (b"gzip", b"x-gzip"), b"deflate"
_NONE = (b"", b"identity", b"none", b"utf-8", b"utf8")  # the last ones by mistake, and seen


class CutShort(FramingError):
    """The framing has ended, what was compressed has not."""

    kind = "truncated"


def decoder_of(head: ResponseHead) -> BodyDecoder:
    """The decoder for an answer with this head. Raises FramingError."""
    framed = body_decoder(head)
    coding = head.headers.get(b"content-encoding")
    if coding is None or framed.complete:  # complete: it has no body, whatever its head says
        return framed
    names = [name for name in (each.strip(b" \t").lower() for each in coding.split(b",")) if name not in _NONE]
    if not names:
        return framed
    unknown = [name for name in names if name not in _GZIP and name != _DEFLATE] or names[CODINGS_MAX:]
    if unknown:
        return UnknownBody(framed, unknown[0].decode("latin-1")[:NAME_MAX_CHARS])
    return CodedBody(framed, [_Coding(name != _DEFLATE) for name in reversed(names)])


class UnknownBody(BodyDecoder):
    """A body in a coding that nobody here knows: not to be read, so that at least its status can be."""

    def __init__(self, framed: BodyDecoder, name: str) -> None:
        self._framed = framed
        self._name = name

    def feed(self, data: bytes) -> bytes:
        try:
            coded = self._framed.feed(data)
        except FramingError as error:
            error.payload = b""  # nobody could read it
            raise
        if coded:
            raise FramingError(f"a content coding that was not asked for, and is not known here ({self._name})")
        self.complete, self.reusable = self._framed.complete, self._framed.reusable
        return b""

    def end(self) -> bool:
        self.complete = self._framed.end()
        self.reusable = False
        return self.complete


class CodedBody(BodyDecoder):
    """A body of which `codings` are to be undone, in this order."""

    def __init__(self, framed: BodyDecoder, codings: list[_Coding]) -> None:
        self._framed = framed
        self._codings = codings
        self._fault: Optional[FramingError] = None  # raised once all that came before it has been given

    def feed(self, data: bytes) -> bytes:
        framed = self._framed
        if data and self._fault is None:
            try:
                coded = framed.feed(data)
            except FramingError as error:
                coded, error.payload = error.payload, b""
                self._fault = error
            self._codings[0].held += coded
            self.reusable, self.surplus, self.rest = framed.reusable, framed.surplus, framed.rest
        payload = self._piece()
        self.pending = any(coding.pending for coding in self._codings)
        if self.pending:
            return payload
        if self._fault is None and framed.complete:
            self.complete = self._ended()
            if not self.complete:
                self._fault = CutShort("a compressed body that was cut short")
        if self._fault is not None:
            if not payload:
                raise self._fault
            self.pending = True
        return payload

    def _piece(self) -> bytes:
        # From the last one that still holds something to give: none of them ever holds more than one piece of another.
        codings = self._codings
        first = max((at for at, coding in enumerate(codings) if coding.pending), default=0)
        piece = b""
        for coding in codings[first:]:
            coding.held += piece
            piece = coding.piece()
        return piece

    def _ended(self) -> bool:
        return all(coding.ended for coding in self._codings)

    def end(self) -> bool:
        self.complete = self._framed.end() and self._ended()
        self.reusable = False
        return self.complete


class _Coding:
    """One coding: `held` is what is still to be read, `pending` = `piece` gives more without more of it."""

    def __init__(self, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._inflate: Any = None  # a zlib object; None: nothing has begun, or what had begun has ended
        self._members = 0
        self._over = False  # whatever comes now is none of it
        self.held = b""
        self.pending = False

    @property
    def ended(self) -> bool:
        """Return whether the body may end here. One without a byte is empty, whatever its coding."""
        return self._inflate is None and (self._members > 0 or not self.held)

    def piece(self) -> bytes:
        """The next `PIECE_BYTES` at most of what `held` stands for. Raises FramingError."""
        out: bytes = b""
        for _ in range(MEMBERS_AT_ONCE):
            if self._inflate is None and not self._begin():
                self.pending = False
                return out
            try:
                part = self._inflate.decompress(self.held, PIECE_BYTES - len(out))
            except zlib.error:
                raise FramingError("a compressed body that is damaged") from None
            out = out + part if out else part
            if not self._inflate.eof:
                self.held = self._inflate.unconsumed_tail
                # With no room left there may be more inside, even if nothing is held.
                self.pending = bool(self.held) or len(out) >= PIECE_BYTES
                return out
            self.held = self._inflate.unused_data
            self._inflate = None
            self._members += 1
            if len(out) >= PIECE_BYTES:
                break
        self.pending = bool(self.held)
        return out

    def _begin(self) -> bool:
        """Return whether there is something to inflate."""
        held = self.held
        if self._over or not held:
            self.held = b""
            return False
        if self._is_gzip:
            if self._members and not held.startswith(_MEMBER):
                self._over = not _MEMBER.startswith(held)  # else its second byte is still to come
                return False
            self._inflate = zlib.decompressobj(_GZIP_BITS)
            return True
        if self._members:
            self._over = True
            self.held = b""
            return False
        if len(held) < 2:
            return False
        # Half of those who say deflate leave its zlib head (RFC 1950, 2.2) out.
        with_head = held[0] & 0x0F == 8 and (held[0] << 8 | held[1]) % 31 == 0
        self._inflate = zlib.decompressobj(_ZLIB_BITS if with_head else _RAW_BITS)
        return True
