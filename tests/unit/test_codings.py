"""Compressed bodies of engines, undone however they are cut, a bounded piece at a time."""

from __future__ import annotations

import gzip
import random
import unittest
import zlib
from typing import Callable, Optional

from gateway.upstream.codings import CODINGS_MAX, PIECE_BYTES, CodedBody, CutShort, decoder_of
from gateway.upstream.framing import BodyDecoder, FramingError, LengthBody, parse_response_head
from tests.scripted import chunked

TEXT = bytes(random.Random(7).choices(b'{"content": abcdefgh}\n', k=5_000)) + b"a" * 3 * PIECE_BYTES


def raw_deflate(data: bytes) -> bytes:
    """What some servers call deflate: without the head and the sum around it."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


CODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "identity, gzip ,": gzip.compress,
    "deflate, gzip": lambda data: gzip.compress(zlib.compress(data)),
    "gzip,gzip": lambda data: gzip.compress(gzip.compress(data)),
}


def decoder(coding: str, *lines: str, status: int = 200) -> BodyDecoder:
    """The decoder for an answer with this coding and these further header lines."""
    head = "\r\n".join((f"HTTP/1.1 {status} X", f"Content-Encoding: {coding}", *lines))
    return decoder_of(parse_response_head(head.encode("latin-1")))


def read(body: BodyDecoder, parts: list[bytes], closed: bool = False) -> bytes:
    """All that a body says, read as readers do: first what is pending. Raises FramingError."""
    out = []

    def take(part: bytes) -> None:
        piece = body.feed(part)
        assert len(piece) <= PIECE_BYTES
        out.append(piece)

    for part in parts:
        take(part)
        while body.pending:
            take(b"")
    if closed and not body.end():
        raise CutShort("the connection closed early")
    return b"".join(out)


def cuts(data: bytes, rng: random.Random) -> list[list[bytes]]:
    """`data` as a whole, in bytes, and in random pieces."""
    at = sorted(rng.sample(range(len(data)), min(9, len(data))))
    pieces = [data[start:end] for start, end in zip([0, *at], [*at, len(data)])]
    return [[data], [bytes((byte,)) for byte in data], pieces]


class CodingTest(unittest.TestCase):
    def test_every_coding_is_undone_however_it_is_framed_and_cut(self) -> None:
        rng = random.Random(1)
        for coding, coder in CODERS.items():
            for text in (b"", b"x", TEXT):
                coded = coder(text)
                framings = (
                    ([f"Content-Length: {len(coded)}"], coded, False),
                    (["Transfer-Encoding: chunked"], chunked(coded[:1]) + chunked(coded[1:]) + b"0\r\n\r\n", False),
                    ([], coded, True),
                )
                for lines, wire, closed in framings:
                    for parts in cuts(wire, rng):
                        with self.subTest(coding=coding, lines=lines, parts=len(parts), size=len(text)):
                            body = decoder(coding, *lines)
                            self.assertEqual(read(body, parts, closed), text)
                            self.assertTrue(body.complete)
                            self.assertEqual(body.reusable, not closed)

    def test_what_has_been_flushed_is_given_at_once(self) -> None:
        for wbits, coding in ((31, "gzip"), (15, "deflate"), (-15, "deflate")):
            compressor = zlib.compressobj(wbits=wbits)
            body = decoder(coding, "Transfer-Encoding: chunked")
            for text in (b"one", b"two", b"three"):
                coded = compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)
                self.assertEqual(body.feed(chunked(coded)), text)
                self.assertFalse(body.pending or body.complete or body.between_chunks)
            self.assertEqual(body.feed(chunked(compressor.flush())), b"")
            self.assertFalse(body.complete)
            self.assertEqual(body.feed(b"0\r\n\r\n"), b"")
            self.assertTrue(body.complete and body.reusable)

    def test_no_coding_costs_no_decoder(self) -> None:
        for coding in ("", "identity", " Identity , ", ",", "none", "UTF-8"):
            self.assertIsInstance(decoder(coding, "Content-Length: 3"), LengthBody)
        for body in (decoder("gzip", status=204), decoder("br", "Content-Length: 0"), decoder("gzip", status=304)):
            self.assertTrue(body.complete)

    def test_repeated_headers_are_one_list(self) -> None:
        coded = gzip.compress(zlib.compress(b"abc"))
        body = decoder("deflate", f"Content-Length: {len(coded)}", "Content-Encoding: gzip")
        self.assertEqual(read(body, [coded]), b"abc")

    def test_members_follow_each_other_and_what_is_none_is_dropped(self) -> None:
        members = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two")
        rng = random.Random(2)
        for rest in (b"", b"\0" * 9, b"\x1f", b"\x1fgarbage", b"garbage" * 99, b"\x00\x1f\x8b"):
            coded = members + rest
            for parts in cuts(coded, rng):
                with self.subTest(rest=rest, parts=len(parts)):
                    body = decoder("gzip", f"Content-Length: {len(coded)}")
                    self.assertEqual(read(body, parts), b"one two")
                    self.assertTrue(body.complete and body.reusable)
        body = decoder("deflate", f"Content-Length: {len(zlib.compress(b'a')) + 5}")
        self.assertEqual(read(body, [zlib.compress(b"a") + b"\x78\x9cabc"]), b"a")
        self.assertTrue(body.complete)

    def test_what_is_cut_short_is_never_complete_and_what_came_before_is_given_first(self) -> None:
        for coding, coder in CODERS.items():
            coded = coder(b"some text, " * 9)
            for size in range(1, len(coded)):
                with self.subTest(coding=coding, size=size):
                    body = decoder(coding, f"Content-Length: {size}")
                    with self.assertRaises(CutShort):
                        read(body, [coded[:size]])
                    self.assertFalse(body.complete)
                    with self.assertRaises(CutShort):
                        read(decoder(coding), [coded[:size]], closed=True)
        compressor = zlib.compressobj(wbits=31)
        coded = compressor.compress(b"event") + compressor.flush(zlib.Z_SYNC_FLUSH)
        body = decoder("gzip", f"Content-Length: {len(coded)}")
        self.assertEqual(body.feed(coded), b"event")
        self.assertTrue(body.pending)
        with self.assertRaises(CutShort):
            body.feed(b"")

    def test_what_is_damaged_is_refused(self) -> None:
        coded = bytearray(gzip.compress(b"some text" * 50))
        coded[-6] ^= 1  # of its sum
        for coding, wrong in (
            ("gzip", bytes(coded)),
            ("gzip", b"hello, this is plain"),
            ("gzip", zlib.compress(b"x")),
            ("deflate", zlib.compress(b"x")[:-1] + b"?"),
            ("deflate", b"\xff\xff\xff\xff"),
        ):
            with self.subTest(coding=coding, wrong=wrong[:9]), self.assertRaises(FramingError) as caught:
                read(decoder(coding, f"Content-Length: {len(wrong)}"), [wrong])
            self.assertNotIsInstance(caught.exception, CutShort)

    def test_what_came_before_a_broken_chunk_is_given_first(self) -> None:
        coded = gzip.compress(TEXT)
        body = decoder("gzip", "Transfer-Encoding: chunked")
        got = body.feed(chunked(coded[:-9]) + b"zz\r\n")
        with self.assertRaises(FramingError) as caught:
            while body.pending:
                got += body.feed(b"")
        self.assertGreater(len(got), 3 * PIECE_BYTES - 1_000)
        self.assertEqual(got, TEXT[: len(got)])
        self.assertEqual(caught.exception.payload, b"")

    def test_an_unknown_coding_is_named_once_there_is_a_body(self) -> None:
        for coding, name in (
            ("br", "br"),
            ("gzip, ZSTD", "zstd"),
            ("x" * 99, "x" * 40),
            ("gzip," * 3 + "gzip", "gzip"),
        ):
            body = decoder(coding, "Content-Length: 3")
            with self.assertRaises(FramingError) as caught:
                body.feed(b"abc")
            self.assertIn(f"({name})", str(caught.exception))
        self.assertEqual(CODINGS_MAX, 2)
        body = decoder("br", "Transfer-Encoding: chunked")
        self.assertEqual(body.feed(b"0\r\n\r\n"), b"")
        self.assertTrue(body.complete)

    def test_what_follows_a_body_is_a_surplus(self) -> None:
        coded = gzip.compress(b"abc")
        body = decoder("gzip", f"Content-Length: {len(coded)}")
        self.assertEqual(read(body, [coded + b"HTTP/1.1 200 OK"]), b"abc")
        self.assertTrue(body.surplus and body.complete and not body.reusable)
        self.assertEqual(body.rest, b"HTTP/1.1 200 OK")


class BombTest(unittest.TestCase):
    """However much bytes stand for, a piece is a piece, and nothing is held beside it but what has come."""

    def pieces(self, coding: str, coded: bytes, most: Optional[int] = None) -> tuple[int, int]:
        """Bytes and pieces that come of it, of `most` pieces at most."""
        body = decoder(coding, f"Content-Length: {len(coded)}")
        assert isinstance(body, CodedBody)
        piece = body.feed(coded)
        size, count = len(piece), 1
        while body.pending and count != most:
            piece = body.feed(b"")
            self.assertLessEqual(len(piece), PIECE_BYTES)
            for coding_ in body._codings[1:]:
                self.assertLessEqual(len(coding_.held), PIECE_BYTES)
            size, count = size + len(piece), count + 1
        return size, count

    def test_one_coding(self) -> None:
        size = 16 << 20
        for coding in ("gzip", "deflate"):
            got, count = self.pieces(coding, CODERS[coding](bytes(size)))
            self.assertEqual(got, size)
            self.assertGreaterEqual(count, size // PIECE_BYTES)

    def test_a_coding_in_a_coding(self) -> None:
        coded = gzip.compress(gzip.compress(bytes(64 << 20)))
        self.assertLess(len(coded), 2_000)
        got, _ = self.pieces("gzip, gzip", coded)
        self.assertEqual(got, 64 << 20)

    def test_members_that_stand_for_nothing(self) -> None:
        empty = gzip.compress(b"")
        got, count = self.pieces("gzip", empty * 5_000)
        self.assertEqual(got, 0)
        self.assertGreater(count, 50)
        got, count = self.pieces("gzip, gzip", gzip.compress(empty * 50_000), 200)
        self.assertEqual((got, count), (0, 200))

    def test_a_piece_that_ends_where_a_body_does(self) -> None:
        for size in (PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1):
            for coding, coder in CODERS.items():
                coded = coder(bytes(size))
                body = decoder(coding, f"Content-Length: {len(coded)}")
                self.assertEqual(len(read(body, [coded])), size)
                self.assertTrue(body.complete, coding)


if __name__ == "__main__":
    unittest.main()
