"""A request's head: every refusal of contract 10, and what an accepted one says."""

from __future__ import annotations

import random
import unittest

from gateway.errors import HttpError
from gateway.server.parsing import KNOWN_BYTES, KNOWN_HEADS, RequestHead, parse_head


def block(*lines: str, start: str = "POST /v1/chat/completions HTTP/1.1", host: str = "Host: gateway") -> bytes:
    return "\r\n".join(line for line in (start, host, *lines) if line).encode("latin-1")


class ParsingTest(unittest.TestCase):
    def refused(self, data: bytes) -> tuple[int, str]:
        with self.assertRaises(HttpError) as caught:
            parse_head(data)
        error = caught.exception
        self.assertTrue(error.message)
        error.message.encode("ascii")
        return error.status, error.code

    def assert_bad(self, data: bytes) -> None:
        self.assertEqual(self.refused(data), (400, "bad_request"))


class AcceptedTest(ParsingTest):
    def test_a_usual_request_says_what_it_is(self) -> None:
        head = parse_head(block("Content-Type: application/json", "Content-Length: 12", "X-Tag:  a b\t"))
        self.assertEqual((head.method, head.path, head.query), ("POST", "/v1/chat/completions", ""))
        self.assertTrue(head.version_1_1 and head.keep_alive)
        self.assertFalse(head.chunked or head.expects_continue)
        self.assertEqual(head.content_length, 12)
        self.assertEqual(head.headers[b"x-tag"], b"a b")
        self.assertEqual(head.text(b"content-type"), "application/json")
        self.assertEqual(head.text(b"absent"), "")

    def test_header_names_are_found_in_any_case_and_values_stay_as_sent(self) -> None:
        head = parse_head(block("X-ReQuest-ID: AbC=", "X-Odd: caf\xe9"))
        self.assertEqual(head.headers[b"x-request-id"], b"AbC=")
        self.assertEqual(head.text(b"x-odd"), "caf\xe9")

    def test_no_length_and_length_zero_are_told_apart(self) -> None:
        self.assertIsNone(parse_head(block()).content_length)
        self.assertEqual(parse_head(block("Content-Length: 0")).content_length, 0)

    def test_path_and_query_are_split_at_the_first_question_mark(self) -> None:
        head = parse_head(block(start="GET /metrics?a=b?c&d=/x HTTP/1.1"))
        self.assertEqual((head.path, head.query), ("/metrics", "a=b?c&d=/x"))

    def test_absolute_targets_are_read_as_their_path(self) -> None:
        cases = {
            "http://other/v1/models": ("/v1/models", ""),
            "HTTPS://other:8443/v1/models?x=1": ("/v1/models", "x=1"),
            "http://other": ("/", ""),
            "http://other?x=1": ("/", "x=1"),
            "http://other?x=/v1/models": ("/", "x=/v1/models"),
        }
        for target, expected in cases.items():
            with self.subTest(target=target):
                head = parse_head(block(start=f"GET {target} HTTP/1.1"))
                self.assertEqual((head.path, head.query), expected)

    def test_repeated_fields_are_joined_and_remembered(self) -> None:
        head = parse_head(block("Accept: a", "X-API-Key: k1", "accept: b", "X-Api-Key: k2"))
        self.assertEqual(head.headers[b"accept"], b"a, b")
        self.assertEqual(head.repeated, {b"accept", b"x-api-key"})

    def test_keep_alive_follows_version_and_connection_header(self) -> None:
        cases = [("1.1", "", True), ("1.1", "close", False), ("1.1", "Keep-Alive", True), ("1.1", "TE, Close", False)]
        cases += [("1.0", "", False), ("1.0", "keep-alive", True), ("1.0", "close", False)]
        for version, option, kept in cases:
            with self.subTest(version=version, option=option):
                line = f"Connection: {option}" if option else ""
                self.assertIs(parse_head(block(line, start=f"GET / HTTP/{version}")).keep_alive, kept)

    def test_chunked_and_expect_are_seen_in_any_case(self) -> None:
        head = parse_head(block("Transfer-Encoding: Chunked", "Expect: 100-Continue"))
        self.assertTrue(head.chunked and head.expects_continue)
        self.assertIsNone(head.content_length)

    def test_the_same_length_twice_is_one_length(self) -> None:
        self.assertEqual(parse_head(block("Content-Length: 5", "Content-Length: 5")).content_length, 5)

    def test_http_1_0_needs_no_host(self) -> None:
        self.assertFalse(parse_head(b"GET / HTTP/1.0").version_1_1)

    def test_hosts_of_every_kind_pass(self) -> None:
        for host in ("a", "a.b-c_d:8080", "127.0.0.1:80", "[::1]", "[::1]:8080", "[fe80::1]:", ""):
            with self.subTest(host=host):
                parse_head(block(host=f"Host: {host}"))


class RefusedTest(ParsingTest):
    def test_malformed_request_lines(self) -> None:
        starts = ["", "GET", "GET /", "GET / HTTP", "GET / HTTP/1.1 ", " GET / HTTP/1.1", "GET  / HTTP/1.1"]
        starts += ["GET /  HTTP/1.1", "GET\t/\tHTTP/1.1", "GET / http/1.1", "GET / HTTP/1,1", "GET / HTTP/11"]
        starts += ["G(T / HTTP/1.1", "GET /a b HTTP/1.1", "GET /\x7f HTTP/1.1", "GET /\xe9 HTTP/1.1"]
        starts += ["GET v1 HTTP/1.1", "GET ?x HTTP/1.1", "GET ftp://a/b HTTP/1.1", "GET http:///b HTTP/1.1"]
        starts += ["CONNECT a:443 HTTP/1.1"]
        for start in starts:
            with self.subTest(start=start):
                self.assert_bad((start + "\r\nHost: a").encode("latin-1"))

    def test_other_versions(self) -> None:
        for version in ("2.0", "0.9", "3.0", "1.2", "1.9"):
            with self.subTest(version=version):
                data = block(start=f"GET / HTTP/{version}")
                self.assertEqual(self.refused(data), (505, "http_version_not_supported"))

    def test_both_length_headers(self) -> None:
        self.assert_bad(block("Content-Length: 5", "Transfer-Encoding: chunked"))
        self.assert_bad(block("Transfer-Encoding: chunked", "Content-Length: 5"))
        self.assert_bad(block("Transfer-Encoding: gzip", "Content-Length: 5"))

    def test_repeated_differing_lengths(self) -> None:
        self.assert_bad(block("Content-Length: 5", "Content-Length: 6"))
        self.assert_bad(block("Content-Length: 5", "content-length: 05"))
        self.assert_bad(block("Content-Length: 5", "Content-Length: 5, 6"))
        self.assert_bad(block("Content-Length: 5", "Content-Length:"))

    def test_lengths_that_are_not_plain_numbers(self) -> None:
        values = ["+5", "-5", "5 5", "0x5", "5_0", "5.0", "", "a", "5,5", "5;5", "\xb2", "1e3", "9" * 19, "9" * 400]
        for value in values:
            with self.subTest(value=value):
                self.assert_bad(block(f"Content-Length: {value}"))

    def test_obsolete_line_folding(self) -> None:
        self.assert_bad(block("X-A: b", " c"))
        self.assert_bad(block("X-A: b", "\tc: d"))
        self.assert_bad(block(" X-A: b", host=""))

    def test_spaces_before_a_colon(self) -> None:
        self.assert_bad(block("Content-Length : 5"))
        self.assert_bad(block("X-A\t: b"))
        self.assert_bad(block(host="Host : a"))

    def test_names_that_are_not_tokens(self) -> None:
        for line in (": b", "X A: b", "X\x00A: b", "X-\xe9: b", "X[1]: b", "(X): b", "no colon", "X\x7f: b"):
            with self.subTest(line=line):
                self.assert_bad(block(line))

    def test_control_characters_anywhere(self) -> None:
        for character in "\x00\x01\x08\x0b\x0c\x0e\x1f\x7f\r\n":
            with self.subTest(character=character):
                self.assert_bad(block(f"X-A: b{character}c"))
                self.assert_bad(block(f"X-A: b{character}"))
                self.assert_bad(block(f"X{character}A: b"))
                self.assert_bad(block(start=f"GET /{character}x HTTP/1.1"))
                self.assert_bad(block(start=f"GET / HTTP/1.1{character}"))

    def test_a_missing_repeated_or_malformed_host(self) -> None:
        self.assert_bad(block(host=""))
        self.assert_bad(block("Host: gateway"))
        self.assert_bad(block("hOST: other"))
        for host in ("a b", "a/b", "user@a", "a:b", "a:123456", "[::1", "::1", "a\\b", "<a>", "a\xe9"):
            with self.subTest(host=host):
                self.assert_bad(block(host=f"Host: {host}"))

    def test_a_malformed_host_in_http_1_0(self) -> None:
        self.assert_bad(block(start="GET / HTTP/1.0", host="Host: a/b"))

    def test_unknown_transfer_codings(self) -> None:
        for coding in ("gzip", "identity", "chunked, gzip", "gzip, chunked", "chunked, chunked", "x chunked", ""):
            with self.subTest(coding=coding):
                self.assertEqual(self.refused(block(f"Transfer-Encoding: {coding}")), (501, "not_implemented"))
        twice = block("Transfer-Encoding: chunked", "Transfer-Encoding: chunked")
        self.assertEqual(self.refused(twice), (501, "not_implemented"))

    def test_a_transfer_coding_in_http_1_0(self) -> None:
        self.assert_bad(block("Transfer-Encoding: chunked", start="POST / HTTP/1.0"))

    def test_a_refusal_names_the_header_and_never_its_value(self) -> None:
        with self.assertRaises(HttpError) as caught:
            parse_head(block("Authorization: Bearer s3cret\x01", "X: y"))
        self.assertIn("Authorization", caught.exception.message)
        self.assertNotIn("s3cret", caught.exception.message)


class KnownTest(ParsingTest):
    def test_equal_heads_are_parsed_once_and_large_ones_are_not_kept(self) -> None:
        head = b"GET /%b HTTP/1.1\r\nHost: x"
        self.assertIs(parse_head(head % b"known"), parse_head(head % b"known"))
        large = head % (b"l" * KNOWN_BYTES)
        self.assertIsNot(parse_head(large), parse_head(large))

    def test_only_so_many_are_kept(self) -> None:
        head = b"GET /%d HTTP/1.1\r\nHost: x"
        first = parse_head(head % 0)
        for number in range(KNOWN_HEADS + 1):
            parse_head(head % number)
        self.assertIsNot(parse_head(head % 0), first)

    def test_what_is_refused_is_refused_again(self) -> None:
        for _ in range(2):
            with self.assertRaises(HttpError):
                parse_head(b"GET / HTTP/1.1")


class PropertyTest(ParsingTest):
    def test_mutated_heads_are_refused_or_read_but_never_crash(self) -> None:
        rng = random.Random(12)
        base = block("Content-Type: application/json", "Content-Length: 12", "Connection: keep-alive", "X-A: b c")
        alphabet = b"\x00\t\n\r ,:;/?[]\x7f\x80\xff059aZ"
        read = 0
        for _ in range(20_000):
            data = bytearray(base)
            for _ in range(rng.randrange(1, 4)):
                at = rng.randrange(len(data))
                how = rng.randrange(3)
                if how == 0:
                    data[at] = rng.choice(alphabet)
                elif how == 1:
                    data.insert(at, rng.choice(alphabet))
                else:
                    del data[at : at + rng.randrange(1, 5)]
            try:
                head = parse_head(bytes(data))
            except HttpError as error:
                self.assertIn(error.status, (400, 501, 505))
                continue
            read += 1
            self.check_read(head)
        self.assertGreater(read, 1000)

    def check_read(self, head: RequestHead) -> None:
        self.assertTrue(head.path.startswith("/") or head.path == "*", head.path)
        self.assertFalse(head.chunked and head.content_length is not None)
        for name, value in head.headers.items():
            self.assertEqual(name, name.lower())
            self.assertNotRegex(name, rb"[\x00-\x20\x7f-\xff:]")
            self.assertNotRegex(value, rb"[\x00-\x08\x0a-\x1f\x7f]")
            self.assertEqual(value, value.strip(b" \t"))


if __name__ == "__main__":
    unittest.main()
