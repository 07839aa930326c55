"""A few cases of every fuzzer in tests/fuzz, always the same; and that the fuzzers see what they are there to see."""

from __future__ import annotations

import random
import socket
import sys
import unittest
from typing import Callable, Union
from unittest import mock

from gateway.server import parsing
from gateway.server.reader import Refusal, Request, RequestReader
from gateway.upstream import sse
from gateway.upstream.framing import ChunkedBody
from tests.fuzz import bodies, cuts, heads, nonces, reading, reference, streams, talk, wire
from tests.fuzz.__main__ import FUZZERS
from tests.fuzz.checks import heads_read_by
from tests.fuzz.finding import Report, numbers, rng_of
from tests.fuzz.talk import Answer, Malformed, take_response
from tests.thorough import thorough

CASES = 25
SEED = 1
REQUESTS = 500


@thorough
class ShortTest(unittest.TestCase):
    def assert_holds(self, report: Report) -> None:
        self.assertEqual([finding.rule for finding in report.findings], [], "\n".join(report.lines()))

    def tried(self, name: str) -> Report:
        """A fuzzer's first cases, in which everything has to hold."""
        report = Report(name, SEED)
        FUZZERS[name](report, iter(range(CASES)))
        self.assert_holds(report)
        self.assertEqual(report.counts["cases"], CASES)
        return report

    def test_heads_of_requests(self) -> None:
        self.tried("heads")

    def test_chunked_bodies_of_requests(self) -> None:
        self.tried("bodies")

    def test_event_streams_of_engines(self) -> None:
        self.assertGreater(self.tried("streams").counts["status 200"], CASES)

    def test_answers_of_engines(self) -> None:
        self.assertGreater(self.tried("answers").counts["status 200"], CASES)

    def test_json_requests_by_path(self) -> None:
        self.tried("fields")

    @unittest.skipUnless(sys.platform == "linux", "the engines' process is written for Linux")
    def test_nonces_over_engines_that_misbehave(self) -> None:
        report = Report("nonces", SEED)
        nonces.run(report, REQUESTS)
        self.assertGreater(report.counts["plain: 200"], REQUESTS // 5)
        self.assertGreater(report.counts["engines: surplus"], 0)
        self.assert_holds(report)


class SeenTest(unittest.TestCase):
    """What is broken on purpose is found."""

    def rules(self, name: str, pure: Callable[[Report, int], None], cases: int) -> set[str]:
        """The rules that a fuzzer's cases without a socket find broken."""
        report = Report(name, SEED)
        for number in range(cases):
            pure(report, number)
        return {finding.rule for finding in report.findings}

    def test_a_head_that_another_parser_reads_differently(self) -> None:
        def lenient(head: parsing.RequestHead) -> None:
            head.headers.pop(b"transfer-encoding", None)

        with heads_read_by("_read_framing", lenient):
            self.assertIn("two readings", self.rules("heads", heads.pure, 600))

    def test_an_exception_that_is_no_refusal(self) -> None:
        with heads_read_by("_read_fields", mock.Mock(side_effect=KeyError("x"))):
            self.assertIn("nothing but HttpError", self.rules("heads", heads.pure, 20))

    def test_a_chunked_body_whose_end_depends_on_the_segments(self) -> None:
        class Forgetful(ChunkedBody):
            def feed(self, data: bytes) -> bytes:
                return super().feed(data.replace(b";", b"") if data.endswith(b"\r\n") else data)

        with mock.patch.object(bodies, "ChunkedBody", Forgetful):
            self.assertIn("same verdict", self.rules("bodies", bodies.pure, 200))

    def test_a_reader_whose_requests_depend_on_the_segments(self) -> None:
        class Forgetful(RequestReader):
            __slots__ = ()

            def feed(self, data: bytes) -> Union[Request, Refusal, None]:
                return super().feed(data[:-1] if data.endswith(b"\r\n\r") else data)

        with mock.patch.object(reading, "RequestReader", Forgetful):
            for name, pure in (("heads", heads.pure), ("bodies", bodies.pure)):
                self.assertIn("same events", self.rules(name, pure, 50), name)

    def test_a_stream_that_loses_a_line_at_a_cut(self) -> None:
        class Lossy(sse.EventStream):
            def feed(self, data: bytes) -> bytes:
                return super().feed(data[1:] if data.startswith(b"\n") else data)

        with mock.patch.object(streams, "EventStream", Lossy):
            self.assertIn("same verdict", self.rules("streams", streams.pure, 50))

    def test_a_500_and_a_verdict_that_depends_on_the_segments(self) -> None:
        case = wire.Case(1, b"")
        good, bad = (wire.Outcome(((status, ""),), "kept") for status in (200, 500))
        runs = [(wire.Run(case, "loop", [b""], 0), outcome) for outcome in (good, bad)]
        self.assertEqual(
            {rule for rule, _ in wire.faults(case, SEED, runs, False)} & {"no 500", "same verdict"},
            {"no 500", "same verdict"},
        )

    def test_another_requests_nonce(self) -> None:
        own, other = b"n-000000000001", b"n-000000000002"
        run = nonces.Run(report := Report("nonces", SEED), SEED)
        for nonce in (own, other):
            body = b'{"id": "%b", "choices": [{"message": {"content": "yours is %b"}}]}' % (own, nonce)
            run._judge(own, False, Answer(200, ((b"x-request-id", own),), body))
        self.assertEqual((report.counts["plain: 200"], report.counts["foreign"], report.findings), (1, 1, []))


class ToolTest(unittest.TestCase):
    def test_a_case_is_made_again_by_its_seed_and_number(self) -> None:
        self.assertEqual(heads.make(rng_of("heads", 3, 7), "n"), heads.make(rng_of("heads", 3, 7), "n"))
        self.assertNotEqual(heads.make(rng_of("heads", 3, 7), "n"), heads.make(rng_of("heads", 4, 7), "n"))
        self.assertEqual(list(numbers(60.0, 7)), [7])
        self.assertEqual(list(numbers(0.0)), [0])

    def test_a_report_says_how_to_see_a_finding_again(self) -> None:
        report = Report("nonces", 3)
        report.found("own answer", 7, "x")
        report.found("own answer", "n-000000000001", "x")
        again = [line.strip() for line in report.lines() if "again:" in line]
        usual = "again: python -m tests.fuzz nonces --seed 3"
        self.assertEqual(again, [f"{usual} --case 7", usual])

    def test_segments_hold_all_of_the_bytes(self) -> None:
        rng = random.Random(SEED)
        data = bytes(range(256)) * 5
        for way in (
            cuts.every(data),
            cuts.some(data, rng),
            cuts.around(data, (b"\r\n", b"\n"), rng),
            cuts.at(data, []),
        ):
            self.assertEqual(b"".join(way), data)

    def test_the_reference_says_where_requests_end(self) -> None:
        def verdicts(data: bytes) -> list[str]:
            return [reading.verdict for reading in reference.read_all(data)]

        start = b"POST / HTTP/1.1\r\nHost: a\r\n"
        chunked = start + b"Transfer-Encoding: chunked\r\n\r\n"
        self.assertEqual(verdicts(2 * (start + b"Content-Length: 2\r\n\r\nab")), ["taken", "taken"])
        self.assertEqual(verdicts(start + b"Content-Length: 2\r\n\r\na"), ["more"])
        self.assertEqual(verdicts(chunked + b"1;x=y\r\na\r\n0\r\nX: y\r\n\r\n" + start + b"\r\n"), ["taken", "taken"])
        for bad in (
            b"0x1\r\na\r\n",
            b"+1\r\n",
            b"1\na",
            b"1\r\nab\r\n",
            b"0\r\nGET / HTTP/1.1\r\n\r\n",
            b"0\r\n X: y\r\n\r\n",
        ):
            self.assertEqual(verdicts(chunked + bad), ["refused"], bad)
        for bad in (b"Content-Length: +2\r\n", b"X : y\r\n", b" X: y\r\n", b"X: a\rb\r\n", b"Host: b\r\n"):
            self.assertEqual(verdicts(start + bad + b"\r\n"), ["refused"], bad)

    def test_a_conversation_with_a_server_that_reads_nothing_ends(self) -> None:
        heard: list[object] = []

        def talking() -> talk.Talk:
            yield bytes(64 << 20)
            heard.append((yield talk.Await(due_s=0.1)))

        with socket.create_server(("127.0.0.1", 0)) as listener, mock.patch.object(talk, "SEND_S", 0.1):
            talk.Talks().run(iter([(listener.getsockname()[1], talking())]))
        self.assertEqual(heard, [talk.End("late")])

    def test_a_response_is_read_in_one_way_only(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
        self.assertEqual(
            take_response(head + b"abc", "GET", False), (Answer(200, ((b"content-length", b"2"),), b"ab"), b"c")
        )
        self.assertIsNone(take_response(head + b"a", "GET", False))
        for bad in (
            b"HTTP/1.1 200 OK\r\n\r\n",
            head.replace(b"2\r", b"2\r\nContent-Length: 2\r"),
            b"HTTP/1.1 200 OK\n\n\r\n\r\n",
        ):
            with self.assertRaises(Malformed, msg=bad):
                take_response(bad, "GET", True)


if __name__ == "__main__":
    unittest.main()
