"""Collectors that are away, slow or hostile: no request waits for one, memory is bounded, what is lost is counted."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional
from unittest import mock

from gateway import posting
from gateway.posting import Poster, in_words
from gateway.server import report
from gateway.traces import delivery, exporter
from tests.collector import Answer, Collector, needs_otel
from tests.resilience import ResilienceTest, ask
from tests.support import CHAT, RunningGateway, eventually, thread_names

OPENSSL = shutil.which("openssl")
DROPPED, EXPORTED = "gateway_spans_dropped_total", "gateway_spans_exported_total"


@contextlib.contextmanager
def saying(said: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A listener that does with each connection what a test says, on a thread of its own: its URL, and the first bytes
    that came on each."""
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            connections.append(connection)
            threading.Thread(target=one, args=(connection,), name="collector", daemon=True).start()

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            heard.append(connection.recv(65_536))
            said(connection)

    thread = threading.Thread(target=serve, name="collector", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in connections:
            connection.close()
        thread.join(5)


class CollectorsTest(ResilienceTest):
    def sending(self, url: str, **variables: object) -> RunningGateway:
        """A gateway that sends at once what it has, to a collector there."""
        self.enter(
            mock.patch.object(report, "QUEUED_S", math.inf)
        )  # on a busy machine any request may wait for a worker
        self.enter(mock.patch.object(exporter, "INTERVAL_S", 0.01))
        self.enter(mock.patch.object(delivery, "FIRST_PAUSE_S", 0.01))
        return self.serve(
            {"m": {"engines": [self.engine().url]}}, OTEL_EXPORTER_OTLP_ENDPOINT=url, RETRY_ATTEMPTS=1, **variables
        )

    def told(self, running: RunningGateway) -> list[str]:
        """What the log has said of the collector."""
        return [line["message"] for line in running.log_lines() if line["event"] == "otlp"]

    def ask_all(self, running: RunningGateway, count: int) -> None:
        """So many requests, one after the other; each is answered."""
        with running.connect() as client:
            for _ in range(count):
                self.assertEqual(client.post(ask()).status, 200)

    def metric(self, running: RunningGateway, name: str) -> float:
        return running.metrics()[name]


class Gate(CollectorsTest):
    def test_no_request_waits_for_a_collector_that_holds_its_answer(self) -> None:
        collector = self.enter(Collector())
        collector.gate.clear()
        running = self.sending(collector.url)
        self.ask_all(running, 1)
        self.assertTrue(collector.wait_for_posts(1))
        self.ask_all(running, 300)
        eventually(lambda: len(running.request_lines()) == 301)
        self.assertEqual(collector.posts, 1, "it is still held, and nobody has waited")
        self.assertEqual((self.metric(running, EXPORTED), self.metric(running, DROPPED)), (0, 0))
        collector.gate.set()
        running.wait_for_metric(EXPORTED, 602)
        spans = [
            span
            for sent in collector.sent()
            for scope in sent.body["resourceSpans"]
            for span in scope["scopeSpans"][0]["spans"]
        ]
        self.assertEqual(len({span["spanId"] for span in spans}), 602)
        self.assertEqual(self.metric(running, DROPPED), 0)

    def test_what_has_no_room_is_dropped_and_counted_and_the_first_are_kept(self) -> None:
        collector = self.enter(Collector())
        collector.gate.clear()
        self.enter(mock.patch.object(exporter, "QUEUE_MAX_BYTES", 50 * (exporter.EVENT_BYTES + exporter.PART_BYTES)))
        running = self.sending(collector.url)
        self.ask_all(running, 1)
        self.assertTrue(collector.wait_for_posts(1))
        self.ask_all(running, 200)
        running.wait_for_metric(DROPPED, 300)
        (spans,) = (part for part in running.app.observing.observers if isinstance(part, exporter.SpanExporter))
        self.assertEqual(len(spans._queue), 50)
        collector.gate.set()
        running.wait_for_metric(EXPORTED, 102)
        self.ask_all(running, 1)
        running.wait_for_metric(EXPORTED, 104)
        self.assertEqual(self.metric(running, DROPPED), 300)

    def test_what_waits_at_the_end_is_sent_before_it(self) -> None:
        collector = self.enter(Collector())
        running = self.serve({"m": {"engines": [self.engine().url]}}, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        self.ask_all(running, 3)
        self.assertEqual(collector.posts, 0)
        running.stop()
        self.assertEqual(collector.posts, 1)

    def test_the_end_waits_no_longer_than_it_may_for_a_collector_that_says_nothing(self) -> None:
        collector = self.enter(Collector())
        collector.gate.clear()
        before = thread_names()
        running = self.sending(collector.url)
        self.ask_all(running, 1)
        self.assertTrue(collector.wait_for_posts(1))
        with mock.patch("gateway.app.END_TIMEOUT_S", 0.2):
            began_s = time.monotonic()
            running.stop()
            self.assertLess(time.monotonic() - began_s, 5.0, "its answer would be waited for ten")
        eventually(lambda: thread_names()["traces"] <= before["traces"], 5.0)  # it is still held
        (line,) = self.told(running)
        self.assertIn("takes no spans: it has not answered in time;", line)

    def test_without_an_endpoint_there_is_no_thread_and_no_metric(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        modules = [type(part).__module__ for part in running.app.observing.observers]
        self.assertEqual([name for name in modules if name.startswith("gateway.traces")], [])
        self.assertNotIn(EXPORTED, running.metrics())


class Faulty(CollectorsTest):
    def answering(self, *answers: Answer) -> tuple[Collector, RunningGateway]:
        """A collector that gives these answers, the last one from then on."""
        collector = self.enter(Collector(lambda number: answers[min(number, len(answers)) - 1]))
        return collector, self.sending(collector.url)

    def test_what_is_to_be_tried_again_is_and_what_is_not_is_dropped(self) -> None:
        for status, tries in ((429, 2), (502, 2), (503, 2), (504, 2), (400, 1), (404, 1), (500, 1), (307, 1)):
            with self.subTest(status=status):
                more = {"Location": "http://127.0.0.1:9/"} if status == 307 else {}
                collector, running = self.answering((status, more, b"no"), (200, {}, b"{}"))
                self.ask_all(running, 1)
                running.wait_for_metric(EXPORTED if tries == 2 else DROPPED, 2)
                self.assertEqual(collector.posts, tries)
                self.ask_all(running, 1)
                running.wait_for_metric(EXPORTED, 4 if tries == 2 else 2)

    def test_retry_after_is_waited_for(self) -> None:
        collector, running = self.answering((503, {"Retry-After": "0"}, b""), (200, {}, b""))
        with mock.patch.object(delivery, "FIRST_PAUSE_S", 1000.0):
            self.ask_all(running, 1)
            running.wait_for_metric(EXPORTED, 2)
        self.assertEqual(collector.posts, 2)

    def test_one_that_fails_is_told_of_once_and_once_that_it_is_back(self) -> None:
        self.enter(mock.patch.object(delivery, "TELL_S", 0.0))
        answers: list[int] = [500]
        collector = self.enter(Collector(lambda number: (answers[0], {}, b"")))
        running = self.sending(collector.url)
        for count in range(1, 6):
            self.ask_all(running, 1)
            running.wait_for_metric(DROPPED, 2 * count)
        answers[0] = 200
        for count in range(1, 4):
            self.ask_all(running, 1)
            running.wait_for_metric(EXPORTED, 2 * count)
        eventually(lambda: len(self.told(running)) == 2)
        self.assertEqual(
            self.told(running),
            [
                f"{collector.url}/v1/traces takes no spans: it answers 500; they are dropped until it does",
                f"{collector.url}/v1/traces takes spans again",
            ],
        )

    def test_one_that_is_not_there_is_tried_again_and_then_left(self) -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            running = self.sending(f"http://127.0.0.1:{nobody.getsockname()[1]}")
            self.ask_all(running, 1)
            running.wait_for_metric(DROPPED, 2)
            eventually(lambda: self.told(running))
            (line,) = self.told(running)
            self.assertIn("takes no spans: Connection refused", line)

    def test_spans_that_it_has_rejected_are_counted(self) -> None:
        said = b'{"partialSuccess": {"rejectedSpans": "1", "errorMessage": "too old"}}'
        _, running = self.answering((200, {}, said))
        self.ask_all(running, 1)
        running.wait_for_metric(DROPPED, 1)
        running.wait_for_metric(EXPORTED, 1)
        eventually(lambda: self.told(running))
        self.assertIn("has rejected 1 spans: too old", self.told(running)[0])

    def test_no_secret_is_shown_and_headers_are_sent(self) -> None:
        collector, running = self.answering((403, {}, b""))
        running.stop()
        running = self.serve(
            {"m": {"engines": [self.engine().url]}},
            OTEL_EXPORTER_OTLP_ENDPOINT=f"{collector.url}/base/hidden/?token=hidden",
            OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20hidden,x-team=a",
        )
        self.ask_all(running, 1)
        running.stop()
        self.assertEqual(len(self.told(running)), 1)
        self.assertNotIn("hidden", running.log.getvalue())

    def test_what_is_sent_is_gzip_of_json_with_the_headers_that_are_set(self) -> None:
        collector = self.enter(Collector())
        running = self.sending(f"{collector.url}/base/?token=x", OTEL_EXPORTER_OTLP_HEADERS="x-team=a%20b")
        self.ask_all(running, 1)
        running.wait_for_metric(EXPORTED, 2)
        (sent,) = collector.sent("/base/v1/traces?token=x")
        self.assertEqual(sent.headers["content-type"], "application/json")
        self.assertEqual((sent.headers["x-team"], sent.headers["content-encoding"]), ("a b", "gzip"))
        self.assertNotIn("traceparent", sent.headers, "exports are not traced")


class Hostile(CollectorsTest):
    def assert_survived(self, said: Callable[[socket.socket], None], what: Optional[str]) -> None:
        """A gateway whose collector says that serves on, drops its spans (None: has them taken), and ends."""
        self.enter(mock.patch.object(delivery, "TIMEOUT_S", 0.3))
        self.enter(mock.patch.object(delivery, "TRIES", 2))
        with saying(said) as (url, heard):
            running = self.sending(url)
            self.ask_all(running, 1)
            eventually(lambda: heard)
            self.ask_all(running, 20)
            if what is None:
                running.wait_for_metric(EXPORTED, 42)
            else:
                running.wait_for_metric(DROPPED, 2)
                eventually(lambda: self.told(running))
                self.assertIn(what, self.told(running)[0])
            running.stop()

    def test_one_that_takes_and_never_answers(self) -> None:
        held = threading.Event()
        self.addCleanup(held.set)
        self.assert_survived(lambda connection: held.wait(30) and None, "it has not answered in time")

    def test_one_whose_head_never_ends(self) -> None:
        def drip(connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while True:
                connection.sendall(b"x-more: 1\r\n" * 1000)

        self.assert_survived(drip, "its answer is none of HTTP")

    def test_one_whose_head_comes_a_byte_at_a_time(self) -> None:
        def drip(connection: socket.socket) -> None:
            for byte in b"HTTP/1.1 200 OK\r\nx-more: " + 1000 * b"y":
                connection.sendall(bytes((byte,)))
                time.sleep(0.02)  # the point is that it takes long

        self.assert_survived(drip, "it has not answered in time")

    def test_one_that_says_for_ever_that_it_goes_on(self) -> None:
        def go_on(connection: socket.socket) -> None:
            while True:
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

        self.assert_survived(go_on, "its answer is none of HTTP")

    def test_one_whose_body_never_ends(self) -> None:
        def pour(connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
            while True:
                connection.sendall(b" " * 65_536)

        self.assert_survived(pour, None)

    def test_one_that_says_garbage_resets_or_closes(self) -> None:
        def reset(connection: socket.socket) -> None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        for said, what in (
            (
                lambda connection: connection.sendall(b"\x00\x16\x03 garbage\r\n\r\n") or connection.close(),
                "none of HTTP",
            ),
            (reset, "Connection reset"),
            (lambda connection: connection.close(), ""),
            (
                lambda connection: (
                    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n")
                    or connection.close()
                ),
                "none of HTTP",
            ),
        ):
            with self.subTest(what=what):
                self.assert_survived(said, what)

    def test_one_that_names_no_time_in_its_retry_after_is_tried_again_as_without(self) -> None:
        self.enter(mock.patch.object(delivery, "FIRST_PAUSE_S", 0.01))
        for told in (b"\xb2", b". Jan , Tue", b"-1", b"Mon, 99 Foo 99999 99:99:99 +9999999", b"9" * 5000):
            with self.subTest(told=told[:20]):
                answer = b"HTTP/1.1 503 No\r\nRetry-After: %b\r\nContent-Length: 0\r\n\r\n" % told
                self.assert_survived(lambda connection, answer=answer: connection.sendall(answer), "answers 503")  # type: ignore[misc]

    def test_answers_that_are_no_sense_count_as_taken(self) -> None:
        for body in (b"[", b"[]", b'{"partialSuccess": 7}', b'{"partialSuccess": {"rejectedSpans": "x"}}', b"[" * 5000):
            with self.subTest(body=body[:20]):
                answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
                self.assert_survived(lambda connection, answer=answer: connection.sendall(answer), None)  # type: ignore[misc]


class Addresses(unittest.TestCase):
    def test_all_addresses_of_a_name_have_the_time_of_one_post_together(self) -> None:
        now_s, tried = 0.0, []

        class Silent:
            """A socket of whose other side nothing is heard."""

            def settimeout(self, timeout_s: float) -> None:
                self.timeout_s = timeout_s

            def connect(self, address: object) -> None:
                nonlocal now_s
                now_s += 0.75 * self.timeout_s if not tried else self.timeout_s
                tried.append(address)
                raise socket.timeout

            def close(self) -> None:
                pass

        addresses = [("127.0.0.1", port) for port in range(1, 9)]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
        sockets = mock.Mock(wraps=socket, getaddrinfo=lambda *_, **__: found, socket=lambda *_: Silent())
        sockets.timeout, sockets.SOCK_STREAM = socket.timeout, socket.SOCK_STREAM
        poster = Poster("http://localhost:1", "/v1/traces", {}, packs=True)
        clock = mock.Mock(monotonic=lambda: now_s)
        with mock.patch.object(posting, "socket", sockets), mock.patch.object(posting, "time", clock):
            with self.assertRaises(OSError) as caught:
                poster.post(b"{}", 0.4)
        self.assertEqual(tried, addresses)
        self.assertLess(now_s, 0.42)  # of each by itself it would be 3
        self.assertEqual(in_words(caught.exception), "it has not answered in time")


@unittest.skipUnless(OPENSSL, "the openssl command is missing: no certificate for the collector")
class Tls(CollectorsTest):
    def test_a_collector_is_sent_something_only_if_its_certificate_is_trusted(self) -> None:
        directory = Path(self.enter(tempfile.TemporaryDirectory()))
        key, certificate = directory / "key.pem", directory / "cert.pem"
        command = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
        names = ["-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run([OPENSSL or "", *command.split(), *names], stderr=subprocess.DEVNULL, check=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(certificate), str(key))
        collector = self.enter(Collector(tls=context))
        self.enter(mock.patch.object(delivery, "TRIES", 2))
        running = self.sending(collector.url)
        self.ask_all(running, 1)
        running.wait_for_metric(DROPPED, 2)
        eventually(lambda: self.told(running))
        self.assertIn("TLS fails (CERTIFICATE_VERIFY_FAILED)", self.told(running)[0])
        self.assertEqual(collector.posts, 0)
        running.stop()
        with mock.patch.dict(os.environ, {"SSL_CERT_FILE": str(certificate)}):
            running = self.sending(collector.url)
            self.ask_all(running, 1)
            running.wait_for_metric(EXPORTED, 2)
        self.assertEqual(collector.posts, 1)

    def test_no_proxy_of_the_environment_is_asked(self) -> None:
        collector = self.enter(Collector())
        proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:1")
        with mock.patch.dict(os.environ, {**proxies, "no_proxy": ""}):
            running = self.sending(collector.url)
            self.ask_all(running, 1)
            running.wait_for_metric(EXPORTED, 2)


@needs_otel
class Metrics(CollectorsTest):
    def test_the_registry_is_sent_as_metrics_of_the_protocol(self) -> None:
        collector = self.enter(Collector())
        running = self.sending(
            collector.url, OTEL_METRICS_EXPORTER="otlp", OTEL_TRACES_EXPORTER="none", OTEL_METRIC_EXPORT_INTERVAL=100
        )
        self.ask_all(running, 3)
        scraped = running.metrics()
        self.assertTrue(collector.wait_for_posts(2))
        running.stop()
        self.assertEqual(collector.sent("/v1/traces"), [])
        by_name = {metric.name: metric for metric in collector.metrics()}
        requests = by_name["gateway_requests_total"]
        (point,) = (one for one in requests.sum.data_points if _labels(one)["path"] == CHAT)
        self.assertEqual((point.as_double, requests.sum.is_monotonic), (3, True))
        self.assertEqual(requests.sum.aggregation_temporality, 2)
        self.assertLess(point.start_time_unix_nano, point.time_unix_nano)
        self.assertEqual(_labels(point), {"path": CHAT, "model": "m", "status": "200"})
        duration = by_name["gateway_request_duration_seconds"]
        (spread,) = (one for one in duration.histogram.data_points if _labels(one)["path"] == CHAT)
        self.assertEqual((spread.count, sum(spread.bucket_counts), duration.unit), (3, 3, "s"))
        self.assertEqual(len(spread.bucket_counts), len(spread.explicit_bounds) + 1)
        self.assertTrue(spread.exemplars and len(spread.exemplars[0].trace_id) == 16)
        self.assertEqual(by_name["gateway_engine_up"].gauge.data_points[0].as_double, 1)
        theirs = by_name["gen_ai.server.request.duration"]
        self.assertEqual(_labels(theirs.histogram.data_points[0])["gen_ai.request.model"], "m")
        self.assertEqual(theirs.unit, "s")
        names = {sample.partition("{")[0] for sample in scraped}
        for name in by_name:
            if not name.startswith("gen_ai."):
                self.assertTrue(names & {name, f"{name}_count"}, name)


def _labels(point: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in point.attributes}


if __name__ == "__main__":
    unittest.main()
