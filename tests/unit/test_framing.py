"""An engine's answer as bytes: heads, bodies by length, by chunks and until the end, however they are cut up."""

from __future__ import annotations

import random
import unittest
from typing import Callable

from gateway.upstream.framing import (
    BodyDecoder,
    ChunkedBody,
    CloseBody,
    FramingError,
    LengthBody,
    TrailersTooLarge,
    body_decoder,
    parse_response_head,
)


def pieces(data: bytes, rng: random.Random) -> list[bytes]:
    """`data` cut at random places."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)])]


def decoded(decoder: BodyDecoder, parts: list[bytes]) -> bytes:
    """The payload of `parts`, fed in turn until the body is complete."""
    out = []
    for part in parts:
        if decoder.complete:
            break
        if part:
            out.append(decoder.feed(part))
    return b"".join(out)


def chunked(payload: bytes, rng: random.Random) -> bytes:
    """`payload` in chunks of random sizes, written in every way that is allowed."""
    wire = b""
    while payload:
        size = rng.randrange(1, min(len(payload), 300) + 1)
        digits = rng.choice(("%x", "%X", "%05x", "00%X")) % size
        extension = rng.choice(("", "", ";a", ";a=b", '; x="q;1"', " ;y"))
        wire += f"{digits}{extension}\r\n".encode() + payload[:size] + b"\r\n"
        payload = payload[size:]
    trailers = rng.choice((b"", b"", b"X-Sum: 1\r\n", b"A: b\r\nC: d\r\n"))
    return wire + rng.choice((b"0", b"000", b"0;end")) + b"\r\n" + trailers + b"\r\n"


# What is no header line, in a head or behind a body.
ODD_LINES = [
    b"no colon",
    b": no name",
    b" folded: x",
    b"\tfolded",
    b"X : y",
    b"X\t: y",
    b"X\0: y",
    b"X: a\0b",
    b"X: a\rb",
]
ODD_LINES += [
    b"X: a\nb",
    b"X: a\x7fb",
    b"X: a\x01b",
    b"X\x80: y",
    b"X@: y",
    b"X y: z",
    b"GET /evil HTTP/1.1",
    b"X: y\r",
]


class HeadTest(unittest.TestCase):
    def test_status_and_headers_are_read(self) -> None:
        head = parse_response_head(b"HTTP/1.1 404 Not Found\r\nContent-Type:  text/plain \r\nX-A:b:c")
        self.assertEqual(head.status, 404)
        self.assertEqual(head.headers[b"content-type"], b"text/plain")
        self.assertEqual(head.headers[b"x-a"], b"b:c")

    def test_a_reason_may_be_empty_or_missing(self) -> None:
        self.assertEqual(parse_response_head(b"HTTP/1.1 200 \r\nA: b").status, 200)
        self.assertEqual(parse_response_head(b"HTTP/1.1 200\r\nA: b").status, 200)

    def test_keep_alive_follows_version_and_connection_header(self) -> None:
        cases = [(b"1.1", b"", True), (b"1.1", b"close", False), (b"1.1", b"Keep-Alive", True)]
        cases += [(b"1.0", b"", False), (b"1.0", b"Keep-Alive", True), (b"1.1", b"foo, Close", False)]
        for version, option, kept in cases:
            with self.subTest(version=version, option=option):
                line = b"\r\nConnection: " + option if option else b""
                self.assertIs(parse_response_head(b"HTTP/%b 200 OK%b" % (version, line)).keep_alive, kept)

    def test_what_is_not_http_is_refused(self) -> None:
        heads = [b"", b"HTTP/1.1", b"HTTP/1.1 ok", b"HTTP/1.1 20", b"HTTP/1.1 2000 OK", b"HTTP/2 200 OK", b"ICY 200 OK"]
        heads += [b"<html>", b"\x16\x03\x01", b"HTTP/1.1 200 OK\r\nno colon", b"HTTP/1.1 200 OK\r\nA: b\r\n folded"]
        heads += [b"HTTP/1.x 200 OK", b"HTTP/1.2 200 OK", b"HTTP/1.1  200 OK", b"HTTP/1.1 200\tOK", b"http/1.1 200 OK"]
        heads += [b"HTTP/1.1 200 O\0K", b"HTTP/1.1 200 O\rK", b"HTTP/1.1 200 O\nK", b"HTTP/1.1 200 O\x7fK"]
        for block in heads:
            with self.subTest(block=block), self.assertRaises(FramingError):
                parse_response_head(block)

    def test_statuses_that_there_cannot_be_are_refused(self) -> None:
        for status in ("000", "099", "600", "999", "20", "2000", "-20", "+20", "2 0", "2\xb2\xb2", "\xb2\xb2\xb2"):
            with self.subTest(status=status), self.assertRaises(FramingError):
                parse_response_head(f"HTTP/1.1 {status} OK".encode("latin-1"))
        for status in (100, 199, 200, 299, 599):
            self.assertEqual(parse_response_head(b"HTTP/1.1 %d X" % status).status, status)

    def test_header_lines_that_two_parsers_might_read_differently_are_refused(self) -> None:
        for line in ODD_LINES:
            for block in (line, b"A: b\r\n" + line, line + b"\r\nA: b"):
                with self.subTest(block=block), self.assertRaises(FramingError):
                    parse_response_head(b"HTTP/1.1 200 OK\r\n" + block)

    def test_whatever_says_close_closes(self) -> None:
        for options in ((b"close", b"keep-alive"), (b"keep-alive", b"close"), (b"keep-alive, close",)):
            lines = b"".join(b"\r\nConnection: " + option for option in options)
            with self.subTest(options=options):
                self.assertFalse(parse_response_head(b"HTTP/1.1 200 OK" + lines).keep_alive)

    def test_nothing_comes_behind_an_answer_whose_end_is_a_matter_of_opinion(self) -> None:
        both = b"\r\nTransfer-Encoding: chunked\r\nContent-Length: 5"
        self.assertFalse(parse_response_head(b"HTTP/1.1 200 OK" + both).keep_alive)
        old = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked"
        self.assertFalse(parse_response_head(old).keep_alive)
        with self.assertRaises(FramingError):
            parse_response_head(b"HTTP/1.1 200 OK" + b"\r\nTransfer-Encoding: chunked" * 2)

    def test_two_lengths_that_differ_are_refused(self) -> None:
        with self.assertRaises(FramingError):
            parse_response_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 6")
        head = parse_response_head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5")
        self.assertEqual(head.headers[b"content-length"], b"5")


class ChoiceTest(unittest.TestCase):
    def decoder(self, *lines: bytes, status: int = 200) -> BodyDecoder:
        return body_decoder(parse_response_head(b"\r\n".join((b"HTTP/1.1 %d X" % status, *lines))))

    def test_the_head_decides_how_the_body_is_framed(self) -> None:
        self.assertIsInstance(self.decoder(b"Content-Length: 5"), LengthBody)
        self.assertIsInstance(self.decoder(b"Transfer-Encoding: Chunked"), ChunkedBody)
        self.assertIsInstance(self.decoder(b"Content-Length: 5", b"Transfer-Encoding: chunked"), ChunkedBody)
        self.assertIsInstance(self.decoder(), CloseBody)

    def test_answers_without_a_body_are_complete_at_once(self) -> None:
        for status in (204, 304):
            self.assertTrue(self.decoder(status=status).complete)
        self.assertTrue(self.decoder(b"Content-Length: 0").complete)

    def test_lengths_and_codings_that_cannot_be_trusted_are_refused(self) -> None:
        for value in (b"-1", b"+5", b"5 5", b"0x5", b"5,5", b"", b"9" * 19):
            with self.subTest(length=value), self.assertRaises(FramingError):
                self.decoder(b"Content-Length: " + value)
        for value in (b"gzip", b"gzip, chunked", b"chunked, chunked", b""):
            with self.subTest(coding=value), self.assertRaises(FramingError):
                self.decoder(b"Transfer-Encoding: " + value)


class LengthTest(unittest.TestCase):
    def test_any_cut_gives_the_same_payload(self) -> None:
        rng = random.Random(31)
        for _ in range(200):
            payload = rng.getrandbits(8 * 64).to_bytes(64, "big")[: rng.randrange(1, 65)]
            decoder = LengthBody(len(payload))
            self.assertEqual(decoded(decoder, pieces(payload, rng)), payload)
            self.assertTrue(decoder.complete and decoder.reusable and decoder.end())

    def test_a_body_cut_short_is_not_complete(self) -> None:
        decoder = LengthBody(10)
        self.assertEqual(decoder.feed(b"123456789"), b"123456789")
        self.assertFalse(decoder.complete)
        self.assertFalse(decoder.end())

    def test_what_follows_the_body_is_kept_apart(self) -> None:
        decoder = LengthBody(3)
        self.assertEqual(decoder.feed(b"abcHTTP"), b"abc")
        self.assertEqual(decoder.rest, b"HTTP")
        self.assertTrue(decoder.complete)
        self.assertFalse(decoder.reusable)


class CloseTest(unittest.TestCase):
    def test_the_end_of_the_connection_ends_the_body(self) -> None:
        decoder = CloseBody()
        self.assertEqual(decoder.feed(b"ab") + decoder.feed(b"c"), b"abc")
        self.assertFalse(decoder.complete)
        self.assertTrue(decoder.end())
        self.assertTrue(decoder.complete)
        self.assertFalse(decoder.reusable)


class ChunkedTest(unittest.TestCase):
    def outcome(self, parts: list[bytes]) -> tuple[object, ...]:
        """Everything a caller can see of a body fed like this."""
        decoder = ChunkedBody()
        out = b""
        consumed = 0
        try:
            for part in parts:
                if decoder.complete:
                    break
                consumed += len(part)
                out += decoder.feed(part)
        except FramingError as error:
            return "refused", str(error)
        return "read", out, decoder.complete, consumed - len(decoder.rest)

    def assert_same_however_fed(self, wire: bytes) -> tuple[object, ...]:
        whole = self.outcome([wire])
        rng = random.Random(len(wire))
        ways: list[Callable[[], list[bytes]]] = [lambda: [bytes((byte,)) for byte in wire]]
        ways += [lambda: pieces(wire, rng)] * 4
        for way in ways:
            fed = self.outcome(way())
            self.assertEqual(fed[0], whole[0], wire)
            if whole[0] == "read":
                self.assertEqual(fed, whole, wire)
        return whole

    def test_whole_byte_by_byte_and_in_any_pieces_is_the_same(self) -> None:
        rng = random.Random(32)
        for _ in range(150):
            payload = bytes(rng.choices(b"\r\n0;abc\x00\xff", k=rng.randrange(500)))
            wire = chunked(payload, rng)
            result = self.assert_same_however_fed(wire)
            self.assertEqual(result, ("read", payload, True, len(wire)))

    def test_damaged_bodies_are_the_same_however_fed(self) -> None:
        rng = random.Random(33)
        refused = 0
        for _ in range(400):
            wire = bytearray(chunked(bytes(rng.choices(b"ab\r\n", k=30)), rng))
            at = rng.randrange(len(wire))
            if rng.random() < 0.5:
                wire[at] = rng.choice(b"\r\n 0;xg-\x00")
            else:
                del wire[at]
            refused += self.assert_same_however_fed(bytes(wire))[0] == "refused"
        self.assertGreater(refused, 50)

    def test_what_follows_the_body_is_kept_apart(self) -> None:
        decoder = ChunkedBody()
        self.assertEqual(decoder.feed(b"3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1"), b"abc")
        self.assertTrue(decoder.complete)
        self.assertEqual(decoder.rest, b"GET / HTTP/1.1")
        self.assertFalse(decoder.reusable)

    def test_a_body_that_just_ends_leaves_the_connection_usable(self) -> None:
        decoder = ChunkedBody()
        decoder.feed(b"3\r\nabc\r\n0\r\n\r\n")
        self.assertTrue(decoder.complete and decoder.reusable and decoder.end())

    def test_a_cut_body_is_never_complete(self) -> None:
        wire = b"3\r\nabc\r\n0\r\nX: y\r\n\r\n"
        for size in range(len(wire)):
            decoder = ChunkedBody()
            decoder.feed(wire[:size])
            self.assertFalse(decoder.complete, wire[:size])
            self.assertFalse(decoder.end())

    def test_sizes_that_two_parsers_might_read_differently_are_refused(self) -> None:
        sizes = [b"", b" 3", b"3 ", b"+3", b"-3", b"0x3", b"0X3", b"3_0", b"g", b"3.0", b"\t3", b"3\t", b"3\x00"]
        sizes += [b"3\r", b" 3;a", b"0x3;a", b";a", b"3;a\rb", b"3;a\x00b", b"3 x;a", b"f" * 17, b"0" * 5000 + b"3"]
        for size in sizes:
            with self.subTest(size=size[:20]):
                result = self.assert_same_however_fed(size + b"\r\nabc\r\n0\r\n\r\n")
                self.assertEqual(result[0], "refused")

    def test_white_space_behind_a_size_is_read_from_engines_only(self) -> None:
        body = b"%b\r\nabc\r\n%b\r\n\r\n"
        for pad in (b" ", b"\t", b"  \t ", b" ;a", b" ; a=b ", b";a  ", b" " * 4000):
            wire = body % (b"3" + pad, b"0" + pad)
            for at in range(0, len(wire) + 1, 1 if len(wire) < 100 else 997):
                decoder = body_decoder(parse_response_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"))
                with self.subTest(pad=pad[:9], at=at):
                    self.assertEqual(decoder.feed(wire[:at]) + decoder.feed(wire[at:]), b"abc")
                    self.assertTrue(decoder.complete and decoder.reusable)
            if not pad.count(b";"):
                with self.assertRaises(FramingError):
                    ChunkedBody().feed(wire)
        for size in (b" 3", b"3 x", b"3 3", b"3 \x0b", b"3\xa0", b"+3 ", b"0x3 ", b" ", b"3" + b" " * 4097):
            with self.subTest(size=size[:9]), self.assertRaises(FramingError):
                ChunkedBody(padded=True).feed(body % (size, b"0"))

    def test_sizes_have_1_to_16_hexadecimal_digits_also_when_a_chunk_comes_alone(self) -> None:
        for size in (b"0x3", b"0X3", b"0o3", b"+3", b"3_0", b"3L", b"\xb3", b"0" * 16 + b"3"):
            for data in (b"abc", b"a" * 0x30):
                with self.subTest(size=size), self.assertRaises(FramingError):
                    ChunkedBody().feed(size + b"\r\n" + data + b"\r\n")
        for size in (b"3", b"03", b"0" * 15 + b"3"):
            self.assertEqual(ChunkedBody().feed(size + b"\r\nabc\r\n"), b"abc")
        self.assertEqual(ChunkedBody().feed(b"aB\r\n" + b"a" * 0xAB + b"\r\n"), b"a" * 0xAB)

    def test_what_is_no_header_line_is_no_trailer_either(self) -> None:
        for line in ODD_LINES:
            for trailers in (line, b"A: b\r\n" + line, line + b"\r\nA: b"):
                with self.subTest(trailers=trailers):
                    result = self.assert_same_however_fed(b"3\r\nabc\r\n0\r\n" + trailers + b"\r\n\r\n")
                    self.assertEqual(result[0], "refused")

    def test_trailers_have_the_room_of_a_head(self) -> None:
        for size, fits in ((97, True), (98, False)):
            wire = b"0\r\nA: b\r\nX: " + b"y" * (size - 12) + b"\r\n\r\n"
            for parts in ([wire], [bytes((byte,)) for byte in wire]):
                decoder = ChunkedBody(trailers_max_bytes=97)
                if fits:
                    decoded(decoder, parts)
                    self.assertTrue(decoder.complete and not decoder.rest)
                else:
                    with self.assertRaises(TrailersTooLarge):
                        decoded(decoder, parts)

    def test_line_ends_must_be_cr_lf(self) -> None:
        for wire in (b"3\nabc\r\n0\r\n\r\n", b"3\r\nabc\n0\r\n\r\n", b"3\r\nabc\r\n0\n\n", b"3\r\nabc\r\n0\r\n\n"):
            with self.subTest(wire=wire):
                self.assertEqual(self.assert_same_however_fed(wire)[0], "refused")

    def test_a_chunk_longer_than_it_said_is_refused(self) -> None:
        self.assertEqual(self.assert_same_however_fed(b"3\r\nabcd\r\n0\r\n\r\n")[0], "refused")

    def test_endless_lines_and_endless_trailers_are_refused(self) -> None:
        for wire in (b"3;" + b"a" * 100_000, b"3;" + b"a" * 10_000 + b"\r\nabc\r\n", b"0\r\n" + b"A: b\r\n" * 20_000):
            with self.subTest(wire=wire[:10]):
                self.assertEqual(self.assert_same_however_fed(wire)[0], "refused")


if __name__ == "__main__":
    unittest.main()
