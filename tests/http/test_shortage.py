"""What the gateway itself runs out of is its own fault: 503 `overloaded`, and no engine is blamed or taken out."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import threading
import unittest
from collections.abc import Iterator
from random import Random
from typing import Any, Callable, Optional
from unittest import mock

from gateway.errors import GatewayError
from gateway.routing.pool import ModelPool
from gateway.routing.specs import EngineSpec, model_from
from gateway.server.task import Task
from gateway.upstream.connection import Connection
from gateway.upstream.connections import ConnectionPool
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.prober import HealthChecker, probe
from gateway.upstream.shortage import Shortage, in_connecting, need_descriptor, reaches
from tests.onloop import OnLoopTest, completion
from tests.resilience import ask
from tests.scripted import STREAM_HEAD, chunked, delta
from tests.support import CHAT, TIMEOUT_S, Response, RunningGateway, eventually

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

OWN = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process gets no more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 16, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(taken[0]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


class Shortages(OnLoopTest):
    def assert_own(self, running: RunningGateway, answer: Response) -> None:
        """It is the gateway's fault, and nothing has been learned about any engine."""
        self.assert_error(answer, 503, "overloaded")
        self.assertEqual(answer.header("retry-after"), "1")
        self.assert_nothing_held(running)
        for engine in running.app.factory.engines():
            self.assertEqual((engine.state, engine.breaker, engine.last_error), ("up", "closed", None))
        self.assertEqual(self.changes(running), [])

    @contextlib.contextmanager
    def connecting(self, fail: Callable[..., Any]) -> Iterator[None]:
        with mock.patch.object(ConnectionPool, "connect", fail):
            yield

    @unittest.skipIf(resource is None, "the system knows no limits")
    def test_no_descriptor_for_an_engine(self) -> None:
        for stream in (False, True):
            # Of its own each time: what the one before closes would give a descriptor back in the middle.
            running = self.serve({"m": {"engines": [self.engine().url]}}, BREAKER_MIN_REQUESTS=1, RETRY_ATTEMPTS=3)
            with self.subTest(stream=stream), running.connect() as client:
                self.assertEqual(client.ask("GET", "/healthz").status, 200)
                with no_descriptors():
                    answer = client.ask("POST", CHAT, ask(**({"stream": True} if stream else {})))
                self.assert_own(running, answer)
                self.assertEqual(client.ask("POST", CHAT, ask()).status, 200)

    def test_whatever_has_run_out_no_engine_is_to_blame(self) -> None:
        for number in OWN:
            with self.subTest(errno.errorcode[number]):
                engines = [self.engine(), self.engine()]
                running = self.serve({"m": {"engines": [engine.url for engine in engines]}})
                with self.connecting(failing(number)):
                    answers = [running.post(ask()) for _ in range(10)]
                for answer in answers:
                    self.assert_own(running, answer)
                self.assertEqual(running.post(ask()).status, 200)
                self.assertEqual([engine.stats()["requests"] for engine in engines].count(0), 1)

    def test_an_engine_s_socket_that_cannot_be_watched_is_no_fault_of_the_engine(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        server = running.app.server
        wait_for = server.loop.wait_for

        def no_more(descriptor: int, target: Callable[[int], None], writing: bool = False) -> None:
            if isinstance(getattr(target, "__self__", None), Task):  # else it is a client's
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            wait_for(descriptor, target, writing)

        for stream in (False, True):
            with self.subTest(stream=stream):
                with mock.patch.object(server.loop, "wait_for", no_more):
                    answer = running.post(ask(**({"stream": True} if stream else {})))
                self.assert_own(running, answer)
        self.assertEqual(running.post(ask()).status, 200)

    def test_what_is_the_engine_s_fault_still_is(self) -> None:
        for number in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH):
            with self.subTest(errno.errorcode[number]):
                running = self.serve({"m": {"engines": [self.engine().url]}})
                with self.connecting(failing(number)):
                    self.assert_error(running.post(ask()), 502, "backend_unavailable")
                self.assertEqual(self.states(running), ["down"])

    def test_a_trial_that_could_not_be_made_leaves_the_breaker_as_it_was(self) -> None:
        engine = self.engine("error")
        running = self.serve({"m": {"engines": [engine.url]}}, RETRY_ATTEMPTS=1)
        eventually(lambda: running.post(ask()) and self.states(running) != ["up"])
        pool = self.pool(running)
        with mock.patch.object(pool, "_clock", lambda: pool.engines[0].breaker.until_s + 1.0):
            running.app.factory.client.endpoint(pool.engines[0].spec).pool.discard_idle()
            with self.connecting(failing(errno.EMFILE)):
                self.assert_error(running.post(ask()), 503, "overloaded")
            engine.control("ok")
            self.assertEqual(running.post(ask()).status, 200)

    def test_who_has_a_connection_already_is_served(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running)
        side = self.kept(running, engine, client)
        with self.connecting(failing(errno.EMFILE)):
            client.request("POST", CHAT, ask())
            side.read_request().answer(completion("served"))
            self.assert_says(client, "served")

    def test_a_hedged_request_has_the_answer_of_the_engine_that_could_be_asked(self) -> None:
        for lacking in (0, 1):
            with self.subTest(lacking=lacking):
                engines = [self.scripted(), self.scripted()]
                table = {"engines": [e.url for e in engines], "hedge_after_ms": 1, "hedge_ratio": 1.0}
                running = self.serve({"m": table}, RETRY_ATTEMPTS=1)
                connect, tried, go = ConnectionPool.connect, threading.Event(), threading.Event()

                def one_cannot(
                    pool: ConnectionPool,
                    timeout_s: float,
                    ended: Callable[[], bool],
                    port: int = engines[lacking].port,
                    connect: Callable[..., Connection] = connect,
                    tried: threading.Event = tried,
                    go: threading.Event = go,
                ) -> Connection:
                    if pool._port != port:
                        return connect(pool, timeout_s, ended)
                    go.wait(TIMEOUT_S)
                    tried.set()
                    raise OSError(errno.EMFILE, "too many")

                errors = io.StringIO()
                with mock.patch.object(ConnectionPool, "connect", one_cannot), contextlib.redirect_stderr(errors):
                    client = self.begin(running)
                    side = engines[1 - lacking].take()
                    go.set()
                    self.assertTrue(tried.wait(TIMEOUT_S))
                    side.answer(completion("served"))
                    self.assert_says(client, "served", attempts=2)
                    self.assert_nothing_held(running)
                self.assertEqual(errors.getvalue(), "")

    def test_a_stream_that_could_go_on_elsewhere_ends_with_an_error_event(self) -> None:
        first, second = self.scripted(), self.scripted()
        table = {"m": {"engines": [{"url": e.url, "resume": True} for e in (first, second)]}}
        running = self.serve(table, RETRY_ATTEMPTS=2)
        client = self.begin(running, ask(stream=True))
        side = first.take()
        side.send(STREAM_HEAD + chunked(delta("one ")))
        self.assertEqual(client.read_head().status, 200)
        self.assertIn("one ", client.read_event() or "")
        with self.connecting(failing(errno.EMFILE)):
            side.close()
            self.assertIn("backend_error", client.read_events()[-1])
        self.assert_nothing_held(running)
        self.assertEqual([engine.last_error for engine in running.app.factory.engines()][1], None)


class Telling(unittest.TestCase):
    """An error and its address: whose fault it is."""

    def test_a_free_port_that_is_missing_is_told_from_an_address_that_cannot_be_reached(self) -> None:
        self.assertTrue(reaches((socket.AF_INET, ("127.0.0.1", 0)), 9))
        # Connecting a UDP socket there is not allowed, and nothing is sent.
        self.assertFalse(reaches((socket.AF_INET, ("255.255.255.255", 0)), 9))

    def test_a_name_that_is_not_known_is_no_shortage(self) -> None:
        self.assertFalse(in_connecting(socket.gaierror(socket.EAI_NONAME, "not known")))
        self.assertTrue(in_connecting(socket.gaierror(socket.EAI_MEMORY, "memory")))

    @unittest.skipIf(resource is None, "the system knows no limits")
    def test_a_name_that_could_not_be_looked_up_for_want_of_a_descriptor_is(self) -> None:
        error = socket.gaierror(socket.EAI_AGAIN, "temporary failure")
        self.assertFalse(in_connecting(error))
        with no_descriptors():
            self.assertTrue(in_connecting(error))

    @unittest.skipIf(resource is None, "the system knows no limits")
    def test_what_tls_is_prepared_with_is_not_prepared_without_a_descriptor(self) -> None:
        spec = EngineSpec("https://127.0.0.1:1/v1")
        with no_descriptors(), self.assertRaises(GatewayError) as caught:
            Endpoint(spec, {}, 1.0)
        self.assertEqual((caught.exception.code, caught.exception.retry_after_s), ("overloaded", 1.0))
        Endpoint(spec, {}, 1.0)


class Probes(unittest.TestCase):
    def pool(self) -> ModelPool:
        return ModelPool(
            model_from("m", [EngineSpec("http://127.0.0.1:1", id="a")]), "round_robin", Random(1), lambda: 0.0
        )

    def checker(self, pool: ModelPool, of: Callable[[EngineSpec, float], Optional[str]]) -> HealthChecker:
        checker = HealthChecker(
            lambda: [pool],
            lambda change: None,
            interval_s=0.001,
            timeout_s=2.0,
            fails=1,
            passes=1,
            housekeeping=lambda: None,
            probe=of,
        )
        self.addCleanup(checker.close)
        return checker

    @unittest.skipIf(resource is None, "the system knows no limits")
    def test_a_probe_without_a_descriptor_says_nothing(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, no_descriptors():
            with self.assertRaises(Shortage):
                probe(EngineSpec(f"http://127.0.0.1:{listener.getsockname()[1]}/v1"), 1.0)

    @unittest.skipIf(resource is None, "the system knows no limits")
    def test_a_probe_that_could_read_no_authorities_blames_no_certificate(self) -> None:
        def none_left() -> None:
            with no_descriptors():
                need_descriptor()

        with socket.create_server(("127.0.0.1", 0)) as listener:
            spec = EngineSpec(f"https://127.0.0.1:{listener.getsockname()[1]}/v1")
            with mock.patch("gateway.upstream.connecting.need_descriptor", none_left), self.assertRaises(Shortage):
                probe(spec, 1.0)

    def test_an_engine_that_could_not_be_probed_stays_what_it_was(self) -> None:
        pool = self.pool()
        asked = threading.Semaphore(0)

        def no_probe(spec: EngineSpec, timeout_s: float) -> Optional[str]:
            asked.release()
            raise Shortage

        checker = self.checker(pool, no_probe)
        with mock.patch.object(threading, "excepthook") as crashed:
            for _ in range(3):
                checker.tick()
                self.assertTrue(asked.acquire(timeout=TIMEOUT_S))
                eventually(lambda: not checker._under_way)
        crashed.assert_not_called()
        engine = pool.engines[0]
        self.assertEqual((engine.state(0.0), engine.fails, engine.last_error), ("up", 0, None))

    def test_probing_goes_on_when_there_are_threads_again(self) -> None:
        probed = threading.Event()

        def good(spec: EngineSpec, timeout_s: float) -> Optional[str]:
            probed.set()
            return None

        checker = self.checker(self.pool(), good)
        start, refused = threading.Thread.start, threading.Semaphore(0)

        def none_left(thread: threading.Thread) -> None:
            if thread.name.startswith(("probe-", "health")) and thread is not checker._timer:
                refused.release()
                raise RuntimeError("can't start new thread")
            start(thread)

        checker.start()
        self.assertTrue(probed.wait(TIMEOUT_S))
        with mock.patch.object(threading.Thread, "start", none_left):
            for _ in range(5):
                self.assertTrue(refused.acquire(timeout=TIMEOUT_S))
        probed.clear()
        self.assertTrue(probed.wait(TIMEOUT_S))


if __name__ == "__main__":
    unittest.main()
