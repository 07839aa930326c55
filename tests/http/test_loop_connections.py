"""Connections on the loop, which have a thread only while something must block, and what clients see of it: nothing.

Most of it holds where there is no epoll as well (test_without_epoll).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import struct
import threading
import time
import unittest
from collections.abc import Iterator
from typing import Any
from unittest import mock

from gateway.server.connection import READ_AHEAD_BYTES, State
from gateway.threads import SPARE_THREADS
from tests.access import b64
from tests.onloop import OnLoopTest, client_threads, completion
from tests.resilience import ask
from tests.support import CHAT, HI, TIMEOUT_S, RawClient, RunningGateway, eventually, gateway, request_bytes

WHOLE = request_bytes("POST", CHAT, ask())
HEAD_BYTES = WHOLE.index(b"\r\n\r\n") + 4
HAS_EPOLL = hasattr(select, "epoll")
REAL_START = threading.Thread.start


def reset(client: RawClient) -> None:
    """Leave with a reset."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@contextlib.contextmanager
def never_look() -> Iterator[None]:
    """A client that has closed its sending side is not taken for one that has left, however long its answer takes."""
    with mock.patch("gateway.server.connection.LOOK_S", 60.0):
        yield


def narrow(running: RunningGateway) -> RawClient:
    """A client that has room for a few thousand bytes of what it has not read."""

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(timeout)
        sock.connect(address)
        return sock

    running.app.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # inherited
    with mock.patch.object(socket, "create_connection", connect):
        return running.connect()


@unittest.skipUnless(HAS_EPOLL, "needs epoll")
class Idle(OnLoopTest):
    def test_a_hundred_idle_connections_hold_no_thread_each(self) -> None:
        before = client_threads()
        running = self.serve({"m": {"engines": [self.engine().url]}})
        clients = [self.enter(running.connect()) for _ in range(100)]
        for client in clients:
            client.request("POST", CHAT, ask())
        for client in clients:
            self.assertEqual(client.read_response().status, 200)
        for client in clients:
            client.request("GET", "/healthz")
        for client in clients:
            self.assertEqual(client.read_response().status, 200)
        eventually(lambda: len(client_threads() - before) <= SPARE_THREADS)
        self.assertEqual(running.app.server.connections, 100)
        for client in clients:
            self.assertEqual(client.post(ask()).status, 200)

    def test_the_usual_request_needs_no_thread(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        self.assertEqual(running.post(ask()).status, 200)  # now there is a connection to the engine
        with running.connect() as fresh, self.no_thread(running):
            for _ in range(3):
                self.assertEqual(fresh.post(ask()).status, 200)
            self.assertEqual(fresh.post({"messages": []}).status, 400)

    def test_connections_that_nobody_has_sent_anything_on_hold_no_thread(self) -> None:
        running = self.enter(gateway())
        with self.no_thread(running):
            clients = [self.enter(running.connect()) for _ in range(50)]
            self.wait_for_connections(running, 50)
            for client in clients:
                client.close()
            self.wait_for_connections(running, 0)

    def test_a_connection_goes_to_and_fro_between_the_loop_and_threads(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        with running.connect() as client:
            for _ in range(5):
                self.assertEqual(client.post(ask()).status, 200)
                self.assertEqual(client.ask("GET", "/healthz").status, 200)
                self.assertEqual(client.post(ask(stream=True)).status, 200)
                self.assertEqual(client.post({}).status, 400)
                self.assertEqual(client.post(ask("x" * 100_000)).status, 200)

    def test_the_echo_engine_answers(self) -> None:
        running = self.enter(gateway())
        with running.connect() as client:
            for text in ("one", "two", "three"):
                response = client.post({"messages": [{"role": "user", "content": text}]})
                self.assertEqual(response.json()["choices"][0]["message"]["content"], f"Echo: {text}")

    def test_a_stopped_gateway_leaves_no_thread_behind(self) -> None:
        before = set(threading.enumerate())
        with gateway() as running:
            self.assertEqual(running.post().status, 200)
            self.assertTrue(client_threads() - before)
        eventually(lambda: not client_threads() - before, 3.0)


class Segments(OnLoopTest):
    """A request is the same however it is cut."""

    def setUp(self) -> None:
        super().setUp()
        self.running = self.serve({"m": {"engines": [self.engine().url]}})
        self.assertEqual(self.running.post(ask()).status, 200)

    def test_a_request_in_several_segments_is_served_and_needs_no_thread(self) -> None:
        cuts = {
            "head and body": [HEAD_BYTES],
            "within the head": [10, HEAD_BYTES - 2],
            "within the body": [HEAD_BYTES + 1, len(WHOLE) - 1],
            "byte by byte": list(range(1, len(WHOLE))),
        }
        for name, places in cuts.items():
            for used in (False, True):
                with self.subTest(name, used=used), self.running.connect() as client, self.no_thread(self.running):
                    if used:
                        self.assertEqual(client.post(ask()).status, 200)
                    for start, end in zip([0, *places], [*places, len(WHOLE)]):
                        client.send(WHOLE[start:end])
                        if len(places) < 10 or start % 16 == 0:
                            self.settle(self.running)
                    self.assertEqual(client.read_response().status, 200)
                    client.assert_quiet()

    def test_two_requests_in_one_segment(self) -> None:
        both = b"".join(request_bytes("POST", CHAT, ask(text)) for text in ("one", "two"))
        with self.running.connect() as client:
            for _ in range(2):
                client.send(both)
                for text in ("one", "two"):
                    answer = client.read_response().json()
                    self.assertTrue(answer["choices"][0]["message"]["content"].endswith(f": {text}"), answer)
            client.assert_quiet()

    def test_a_request_and_a_part_of_the_next(self) -> None:
        for cut in (1, HEAD_BYTES, HEAD_BYTES + 5):
            with self.subTest(cut=cut), self.running.connect() as client:
                client.send(WHOLE + WHOLE[:cut])
                self.assertEqual(client.read_response().status, 200)
                client.send(WHOLE[cut:])
                self.assertEqual(client.read_response().status, 200)

    def test_a_client_that_closes_its_sending_side_behind_its_request_is_answered_and_then_closed(self) -> None:
        for parts in ([WHOLE], [WHOLE[:HEAD_BYTES], WHOLE[HEAD_BYTES:]]):
            for used in (False, True):
                with self.subTest(parts=len(parts), used=used), self.running.connect() as client:
                    if used:
                        self.assertEqual(client.post(ask()).status, 200)
                    for part in parts[:-1]:
                        client.send(part)
                        self.settle(self.running)
                    with self.hold_loop(self.running):
                        client.send(parts[-1])
                        client.sock.shutdown(socket.SHUT_WR)
                    self.assertEqual(client.read_response().status, 200)
                    client.assert_closed()
        self.wait_for_connections(self.running, 0)

    def test_a_client_that_closes_its_sending_side_behind_a_refused_request_is_told_and_then_closed(self) -> None:
        with self.running.connect() as client:
            with self.hold_loop(self.running):
                client.send(request_bytes("POST", CHAT, {"messages": []}))
                client.sock.shutdown(socket.SHUT_WR)
            self.assertEqual(client.read_response().status, 400)
            client.assert_closed()
        self.wait_for_connections(self.running, 0)

    def test_a_client_that_leaves_inside_its_request_is_forgotten(self) -> None:
        for data in (WHOLE[:5], WHOLE[:HEAD_BYTES], WHOLE[:-1]):
            for end in ("close", "reset"):
                client = self.running.connect()
                client.send(data)
                self.settle(self.running)
                client.close() if end == "close" else reset(client)
        self.wait_for_connections(self.running, 0)
        self.assertEqual(self.running.post(ask()).status, 200)


class Refusals(OnLoopTest):
    """What is refused by its head alone is refused as soon as the head is there."""

    def head(self, *lines: str, length: int = 5_000) -> bytes:
        fields = "".join(f"{line}\r\n" for line in lines)
        return f"POST {CHAT} HTTP/1.1\r\nHost: g\r\nContent-Length: {length}\r\n{fields}\r\n".encode()

    def assert_refused(self, client: RawClient, status: int, code: str) -> None:
        response = client.read_response()
        self.assertEqual((response.status, response.error), (status, code))
        self.assertEqual(response.header("connection"), "close")

    def test_too_large_a_head_is_431_though_all_of_the_request_is_there(self) -> None:
        running = self.enter(gateway())
        body = json.dumps(HI).encode()
        with running.connect() as client:
            client.send(self.head("X-A: " + "x" * 40_000, length=len(body)) + body)
            self.assert_refused(client, 431, "headers_too_large")

    def test_a_wrong_key_is_refused_before_the_body_has_come(self) -> None:
        running = self.enter(gateway(API_KEYS="sk-alice-0123456789abcdef"))
        with running.connect(timeout_s=3.0) as client:
            client.send(self.head("Authorization: Bearer sk-wrong"))
            self.assert_refused(client, 401, "unauthorized")

    def test_a_body_announced_too_large_is_refused_before_it_has_come(self) -> None:
        running = self.enter(gateway(MAX_BODY_BYTES=1_000))
        with running.connect(timeout_s=3.0) as client:
            client.send(self.head())
            self.assert_refused(client, 413, "body_too_large")

    def test_what_a_refused_client_still_sends_is_not_answered_with_a_reset(self) -> None:
        running = self.enter(gateway(MAX_BODY_BYTES=1_000))
        with running.connect() as client:
            client.send(self.head() + b"x" * 5_000)
            self.assert_refused(client, 413, "body_too_large")
            client.assert_closed()  # for writing
            for _ in range(3):
                client.send(b"x")
                self.settle(running)
        self.wait_for_connections(running, 0)

    def test_a_media_type_other_than_json_is_refused_before_the_body_has_come(self) -> None:
        running = self.enter(gateway())
        with running.connect(timeout_s=3.0) as client:
            client.send(self.head("Content-Type: text/plain"))
            self.assert_refused(client, 415, "unsupported_media_type")


class Order(OnLoopTest):
    """What a client sends while its request is under way has its turn afterwards."""

    def test_a_second_request_is_answered_after_the_first(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running)
        side = self.kept(running, engine, client)
        for _ in range(2):
            client.request("POST", CHAT, ask("one"))
            self.assertEqual(side.read_request().json["messages"][0]["content"], "one")
            client.request("POST", CHAT, ask("two"))
            self.settle(running)
            client.assert_quiet()
            side.answer(completion("1"))
            self.assert_says(client, "1")
            self.assertEqual(side.read_request().json["messages"][0]["content"], "two")
            side.answer(completion("2"))
            self.assert_says(client, "2")
            client.assert_quiet()

    def test_so_it_is_on_a_fresh_connection_to_the_engine(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running, ask("one"))
        side = engine.take()
        client.request("POST", CHAT, ask("two"))
        self.settle(running)
        side.answer(completion("1"))
        self.assert_says(client, "1")
        side.read_request().answer(completion("2"))
        self.assert_says(client, "2")

    def test_a_third_request_that_comes_while_a_large_answer_is_written(self) -> None:
        running, engine = self.one_engine()
        client = self.enter(narrow(running))
        client.send(WHOLE + WHOLE)
        side = engine.take()
        text = "x" * 1_000_000
        side.answer(completion(text))
        server = running.app.server
        eventually(lambda: [one.state for one in list(server._open.values())] == [State.WRITING])
        client.send(WHOLE)
        self.settle(running)
        self.assert_says(client, text)
        for text in ("2", "3"):
            side.read_request().answer(completion(text))
            self.assert_says(client, text)

    def test_more_than_is_read_ahead_is_served_though_that_ends_with_a_request(self) -> None:
        size = 4096
        whole = request_bytes("POST", CHAT, ask("x" * 3000))
        whole = request_bytes("POST", CHAT, ask("x" * (3000 + size - len(whole))))
        self.assertEqual(READ_AHEAD_BYTES % len(whole), 0)
        running, engine = self.one_engine()
        client = self.begin(running)
        side = self.kept(running, engine, client)
        client.send(WHOLE)
        side.read_request()
        count = READ_AHEAD_BYTES // size + 4
        with self.hold_loop(running):
            client.send(whole * count)
        self.settle(running)
        for number in range(1 + count):
            side.answer(completion(str(number)))
            self.assert_says(client, str(number))
            if number < count:
                side.read_request()

    def test_a_second_request_in_parts_around_the_first_answer(self) -> None:
        for cut in (1, HEAD_BYTES, len(WHOLE) - 1):
            with self.subTest(cut=cut):
                running, engine = self.one_engine()
                client = self.begin(running)
                side = self.kept(running, engine, client)
                client.send(WHOLE)
                side.read_request()
                client.send(WHOLE[:cut])
                self.settle(running)
                side.answer(completion("1"))
                self.assert_says(client, "1")
                self.settle(running)
                client.send(WHOLE[cut:])
                side.read_request().answer(completion("2"))
                self.assert_says(client, "2")

    def test_a_client_that_closes_its_sending_side_behind_a_second_request_is_closed_after_it(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running)
        side = self.kept(running, engine, client)
        with never_look():
            client.send(WHOLE)
            side.read_request()
            client.send(WHOLE)
            client.sock.shutdown(socket.SHUT_WR)
            self.settle(running)
            side.answer(completion("1"))
            self.assert_says(client, "1")
            side.read_request().answer(completion("2"))
            self.assert_says(client, "2")
            client.timeout_s = 3.0
            client.assert_closed()

    def test_nothing_comes_behind_an_answer_that_closes_the_connection(self) -> None:
        running, engine = self.one_engine()
        side = self.kept(running, engine)
        client = self.begin(running, headers=[("Connection", "close")])
        side.read_request()
        client.send(WHOLE)
        self.settle(running)
        side.answer(completion("last"))
        self.assert_says(client, "last")
        self.assertEqual(client.wait_until_ended(), b"")
        self.assertEqual(running.app.factory.engines()[0].in_flight, 0)


class Leaving(OnLoopTest):
    def leave(self, how: str, client: RawClient) -> None:
        if how == "reset":
            reset(client)
        elif how == "shutdown":
            client.sock.shutdown(socket.SHUT_WR)
        else:
            if how == "close behind more":
                client.send(WHOLE[:7])
            client.close()

    def test_a_client_that_leaves_frees_its_place_and_the_engine_s_connection(self) -> None:
        under_way = {}
        for how in ("close", "reset", "shutdown", "close behind more"):
            running, engine = self.one_engine(WORKERS=1)
            first = self.begin(running)
            side = self.kept(running, engine, first)
            client = self.begin(running, headers=[("X-Request-ID", "left")])
            under_way[how] = running, engine, side.read_request(), client, first
        for how, (_, _, _, client, _) in under_way.items():
            self.leave(how, client)
        for how, (running, engine, side, _, first) in under_way.items():
            with self.subTest(how):
                self.assertTrue(side.wait_until_left(5.0))
                line = running.request_line("left")
                self.assertEqual((line["status"], line["error"]), (499, "client_closed_request"))
                self.assert_nothing_held(running)
                first.request("POST", CHAT, ask())
                engine.take().answer(completion())
                self.assert_says(first, "fine")
                self.assertEqual(self.states(running), ["up"])
                self.wait_for_connections(running, 1)

    def test_a_client_whose_request_and_end_come_in_one_go_is_seen_to_leave(self) -> None:
        running, engine = self.one_engine()
        client = self.enter(running.connect())
        self.wait_for_connections(running, 1)
        self.settle(running)
        with self.hold_loop(running):
            client.send(WHOLE)
            client.close()
        self.assertTrue(engine.take().wait_until_left())
        self.wait_for_connections(running, 0)

    def test_what_a_client_that_has_left_had_sent_behind_its_request_is_not_served(self) -> None:
        running, _ = self.one_engine()
        routes = running.app.server.context.routes
        answer = routes.answer
        served: list[object] = []
        left = threading.Event()

        def answered(*arguments: Any) -> Any:
            served.append(None)
            left.wait(TIMEOUT_S)
            return answer(*arguments)

        with mock.patch.object(routes, "answer", answered):
            client = self.enter(running.connect())
            client.send(request_bytes("GET", "/healthz") * 100)
            eventually(lambda: served)
            reset(client)
            left.set()
            self.wait_for_connections(running, 0)
        self.assertLess(len(served), 4)  # the first write may have gone out before the reset was seen


@unittest.skipUnless(HAS_EPOLL, "needs epoll")
class Ended(OnLoopTest):
    def test_a_connection_that_has_ended_takes_no_other_with_it(self) -> None:
        """Its number may be another's while it still has a turn on the loop."""
        self.enter(never_look())
        for _ in range(4):  # who comes first in a turn of the loop, the system says
            running, engine = self.one_engine()
            ended = self.begin(running)
            side = self.kept(running, engine, ended)
            ended.send(WHOLE)
            side.read_request()
            ended.sock.shutdown(socket.SHUT_WR)  # so it has a turn when it has its answer
            self.settle(running)
            (number,) = [sock.fileno() for sock in list(running.app.server._open)]
            while True:  # the lowest number that is free is the next one given
                filler = os.dup(side.sock.fileno())
                self.addCleanup(os.close, filler)
                if filler > number:
                    break
            with self.hold_loop(running):
                side.answer(completion())
                reset(ended)
                other = self.enter(running.connect(timeout_s=3.0))
            self.settle(running)
            other.send(WHOLE)
            self.assertTrue(select.select([side.sock], [], [], 3.0)[0], "nobody reads what the other one has sent")
            side.read_request().answer(completion("other"))
            self.assert_says(other, "other")


class Crowd(OnLoopTest):
    def test_clients_that_come_together_are_all_served_up_to_the_limit(self) -> None:
        running, _ = self.one_engine(MAX_CONNECTIONS=30)
        for round in range(3):
            with self.subTest(round=round):
                with self.hold_loop(running):
                    clients = [self.enter(running.connect()) for _ in range(40)]
                    for client in clients:
                        client.request("GET", "/healthz")
                statuses = [client.read_response().status for client in clients]
                self.assertEqual((statuses.count(200), statuses.count(503)), (30, 10))
                for client in clients:
                    client.close()
                self.wait_for_connections(running, 0)
                for _ in range(3):  # one at a time
                    self.assertEqual(running.get("/healthz").status, 200)
                self.wait_for_connections(running, 0)


class TimeLimits(OnLoopTest):
    def test_silence_inside_a_request_is_408(self) -> None:
        running = self.enter(gateway(CLIENT_TIMEOUT="0.3", KEEPALIVE_TIMEOUT="60"))
        clients = []
        for data in (WHOLE[:1], WHOLE[: HEAD_BYTES - 1], WHOLE[:HEAD_BYTES], WHOLE[:-1]):
            for used in (False, True):
                client = self.enter(running.connect())
                if used:
                    self.assertEqual(client.post().status, 200)
                client.send(data)
                clients.append(client)
        for client in clients:
            self.assert_error(client.read_response(), 408, "request_timeout")
            client.wait_until_ended()
        self.wait_for_connections(running, 0)

    def test_an_idle_connection_is_closed_without_a_word(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}}, KEEPALIVE_TIMEOUT="0.3")
        self.assertEqual(running.post(ask()).status, 200)
        fresh, kept, answered = (self.enter(running.connect()) for _ in range(3))
        self.assertEqual(answered.ask("GET", "/healthz").status, 200)
        self.assertEqual(kept.post(ask()).status, 200)
        for client in (fresh, kept, answered):
            client.assert_closed()
        self.wait_for_connections(running, 0)


class Accepting(OnLoopTest):
    def test_beyond_max_connections_clients_are_refused_until_one_leaves(self) -> None:
        running = self.enter(gateway(MAX_CONNECTIONS=1))
        first = self.enter(running.connect())
        self.wait_for_connections(running, 1)
        with running.connect() as refused:
            self.assert_error(refused.read_response(), 503, "overloaded")
            refused.assert_closed()
        self.assertEqual(first.post().status, 200)
        first.close()
        self.wait_for_connections(running, 0)
        self.assertEqual(running.post().status, 200)

    def test_without_descriptors_accepting_pauses_with_one_log_line_and_goes_on(self) -> None:
        running = self.enter(gateway())
        listener, accept = running.app.server.socket, socket.socket.accept
        faults: list[BaseException] = [OSError(errno.EMFILE, "Too many open files")] * 2

        def exhausted(sock: socket.socket) -> Any:
            if sock is listener and faults:
                raise faults.pop()
            return accept(sock)

        with mock.patch.object(socket.socket, "accept", exhausted):
            self.assertEqual(running.post().status, 200)
            self.assertEqual(running.post().status, 200)
        self.assertEqual(faults, [])
        eventually(lambda: [line for line in running.log_lines() if line["event"] == "accept_failed"])
        lines = [line for line in running.log_lines() if line["event"] == "accept_failed"]
        self.assertEqual([line["reason"] for line in lines], ["Too many open files"])

    def test_accepting_does_not_spin_while_there_are_no_descriptors(self) -> None:
        running = self.enter(gateway())
        listener, accept = running.app.server.socket, socket.socket.accept
        calls = []

        def exhausted(sock: socket.socket) -> Any:
            if sock is not listener:
                return accept(sock)
            calls.append(time.monotonic())
            raise OSError(errno.EMFILE, "Too many open files")

        with running.connect() as client:
            self.assertEqual(client.post().status, 200)
            with mock.patch.object(socket.socket, "accept", exhausted), running.connect() as late:
                eventually(lambda: len(calls) >= 3)
                self.assertEqual(client.post().status, 200)  # who is in is served
                self.assertTrue(all(b - a >= 0.09 for a, b in zip(calls, calls[1:])), calls)
                late.request("POST", CHAT, HI)
            running.get("/healthz")


class Draining(OnLoopTest):
    def test_a_drain_with_idle_connections_ends_at_once_and_closes_them(self) -> None:
        running = self.enter(gateway())
        clients = [self.enter(running.connect()) for _ in range(20)]
        for index, client in enumerate(clients):
            if index % 2:
                self.assertEqual(client.post().status, 200)
        self.wait_for_connections(running, 20)
        running.stop(None)
        self.assertEqual(running.app.server.connections, 0)
        for client in clients:
            client.assert_closed()
        self.assertNotIn("internal_error", running.log.getvalue())

    def test_a_drain_waits_for_the_answer_under_way_which_closes_its_connection(self) -> None:
        running, engine = self.one_engine()
        idle = self.begin(running)
        side = self.kept(running, engine, idle)
        client = self.begin(running)
        side.read_request()
        stopper = threading.Thread(target=running.stop, args=(None,), name="stopper")
        stopper.start()
        try:
            eventually(lambda: running.app.pipeline.draining)
            self.assert_error(idle.post(ask()), 503, "draining")
            idle.wait_until_ended()
        finally:
            side.answer(completion("last"))
            stopper.join()
        self.assert_says(client, "last")
        client.assert_closed()


class Queue(OnLoopTest):
    """One worker, more requests."""

    def wait_for_depth(self, running: RunningGateway, count: int) -> None:
        """Wait until so many requests wait for a worker."""
        eventually(lambda: running.app.workers.depth == count)

    def test_queued_requests_are_answered_in_turn(self) -> None:
        running, engine = self.one_engine(WORKERS=1)
        first = self.begin(running)
        side = self.kept(running, engine, first)
        first.request("POST", CHAT, ask("0"))
        side.read_request()
        clients = [first]
        for index in range(1, 5):
            headers = [("Connection", "close")] if index == 3 else []
            clients.append(self.begin(running, ask(str(index)), headers))
            self.wait_for_depth(running, index)
        for index, client in enumerate(clients):
            self.assertEqual(side.json["messages"][0]["content"], str(index))
            side.answer(completion(str(index)))
            self.assert_says(client, str(index))
            if index < 4:
                side.read_request()
        clients[3].assert_closed()
        del clients[3]
        for client in clients:  # the others stay
            client.request("POST", CHAT, ask())
            side.read_request().answer(completion())
            self.assert_says(client, "fine")
        eventually(lambda: running.app.workers.busy == 0)

    def test_who_waits_too_long_is_told(self) -> None:
        running, engine = self.one_engine(WORKERS=1, QUEUE_TIMEOUT="0.2")
        side = self.kept(running, engine)
        first = self.begin(running)
        side.read_request()
        self.assert_error(self.begin(running).read_response(), 503, "queue_timeout")
        side.answer(completion())
        self.assert_says(first, "fine")

    def test_without_a_thread_for_a_worker_the_loop_does_not_do_its_work(self) -> None:
        running, engine = self.one_engine(WORKERS=1)
        side = self.kept(running, engine)
        first = self.begin(running)
        side.read_request()
        second = self.begin(running, ask("second"))
        self.wait_for_depth(running, 1)

        def no_worker(thread: threading.Thread) -> None:
            if thread.name.startswith("worker"):
                raise RuntimeError("can't start new thread")
            REAL_START(thread)

        with mock.patch.object(threading.Thread, "start", no_worker):
            side.answer(completion())
            self.assert_says(first, "fine")
            side.read_request()  # the second's
            with running.connect(timeout_s=3.0) as other:
                try:
                    self.assertEqual(other.ask("GET", "/healthz").status, 200)
                finally:
                    side.answer(completion("second"))
            self.assert_says(second, "second")


class Slow(OnLoopTest):
    def test_a_hung_engine_is_504_at_its_deadline_and_delays_nobody(self) -> None:
        hung = self.scripted()
        models = {"m": {"engines": [hung.url]}, "good": {"engines": [self.engine(model="good").url]}}
        running = self.serve(models, REQUEST_TIMEOUT="0.8", FALLBACK="off", RETRY_ATTEMPTS=1)
        side = self.kept(running, hung)
        self.assertEqual(running.post(ask(model="good")).status, 200)
        waiting = self.begin(running)
        side.read_request()
        with running.connect() as client:
            for _ in range(20):
                self.assertEqual(client.post(ask(model="good")).status, 200)
            self.assertEqual(client.ask("GET", "/healthz").status, 200)
        response = waiting.read_response()
        self.assert_error(response, 504, "gateway_timeout")
        self.assertTrue(side.wait_until_left())
        waiting.assert_quiet()  # and its connection goes on
        self.assert_nothing_held(running)

    def test_a_large_answer_to_a_slow_client_is_complete_and_delays_nobody(self) -> None:
        good = self.engine(model="good")
        for size in (50_000, 2_000_000):  # the first is begun on the loop's thread, the other comes through a thread
            with self.subTest(size=size):
                slow_engine = self.scripted()
                models = {"m": {"engines": [slow_engine.url]}, "good": {"engines": [good.url]}}
                running = self.serve(models)
                side = self.kept(running, slow_engine)
                slow = self.enter(narrow(running))
                text = "".join(map(str, range(size)))[:size]
                slow.request("POST", CHAT, ask(), [("X-Request-ID", "slow")])
                side.read_request().answer(completion(text))
                with running.connect() as other:
                    for _ in range(5):
                        self.assertEqual(other.post(ask(model="good")).status, 200)
                self.assertEqual(running.request_lines("slow"), [])  # the most of it is still to be sent
                self.assert_says(slow, text)
                self.assertEqual(running.request_line("slow")["status"], 200)
                slow.request("POST", CHAT, ask())
                side.read_request().answer(completion())
                self.assert_says(slow, "fine")

    def test_a_client_that_takes_nothing_of_its_stream_is_cut_off_and_keeps_no_connection(self) -> None:
        running, engine = self.one_engine(STREAM_IDLE_TIMEOUT="0.2")
        client = self.enter(narrow(running))
        client.request("POST", CHAT, ask(stream=True))
        side = engine.take()
        side.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        event = b'data: {"choices": [{"index": 0, "delta": {"content": "%b"}}]}\n\n' % (b"x" * 60_000)

        def flood() -> None:
            with contextlib.suppress(OSError):
                while True:
                    side.send(b"%x\r\n%b\r\n" % (len(event), event))

        flooding = threading.Thread(target=flood, name="flood")
        flooding.start()
        self.wait_for_connections(running, 0)
        flooding.join(TIMEOUT_S)
        self.assertFalse(flooding.is_alive())

    def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(self) -> None:
        running, engine = self.one_engine(CLIENT_TIMEOUT="0.3")
        side = self.kept(running, engine)
        slow = self.enter(narrow(running))
        slow.request("POST", CHAT, ask(), [("X-Request-ID", "slow")])
        side.read_request().answer(completion("x" * 50_000))
        self.assertEqual(running.request_line("slow")["status"], 499)
        self.wait_for_connections(running, 1)
        self.assert_nothing_held(running)


def unknown_token() -> str:
    """A token that only an identity provider's keys can tell of."""
    parts = ({"alg": "RS256", "kid": "one"}, {"sub": "tina", "exp": int(time.time()) + 60})
    return ".".join([*(b64(json.dumps(part).encode()) for part in parts), b64(b"signature")])


class KeySets(OnLoopTest):
    def test_who_waits_for_the_keys_of_an_identity_provider_delays_nobody(self) -> None:
        provider = self.scripted()
        # The waiting is what this is about, not the signatures: it goes without the extra packages.
        self.enter(mock.patch("gateway.keys.jwks._implementation"))
        key = ("X-API-Key", "sk-alice-0123456789abcdef")
        running = self.serve(
            {"m": {"engines": [self.engine().url]}},
            JWT_JWKS=provider.url.replace("/v1", "/keys"),
            JWT_ALGORITHM="RS256",
            API_KEYS=f"alice:{key[1]}",
        )
        side = provider.accept()  # it will say nothing
        self.assertEqual(running.post(ask(), headers=[key]).status, 200)
        waiting = self.begin(running, headers=[("Authorization", f"Bearer {unknown_token()}")])
        self.settle(running)
        with running.connect() as client:
            for _ in range(3):
                self.assertEqual(client.post(ask(), headers=[key]).status, 200)
            waiting.assert_quiet()
        side.close()
        self.assert_error(waiting.read_response(), 401, "unauthorized")

    def test_who_waits_for_keys_before_its_body_is_read_is_ended_with_the_gateway(self) -> None:
        running, _ = self.one_engine()
        self.enter(mock.patch.object(running.app.guard, "may_wait", lambda headers: True))
        self.enter(mock.patch.object(running.app.guard, "reads_keys", True))
        client = self.enter(running.connect())
        client.send(WHOLE[:HEAD_BYTES])
        server = running.app.server
        eventually(lambda: [one.state for one in list(server._open.values())] == [State.HELD])
        running.stop()
        self.assertEqual(server.connections, 0)


if __name__ == "__main__":
    unittest.main()
