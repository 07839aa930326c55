"""Connecting: several addresses, one deadline, and whoever gives up is heard of, also while TLS shakes hands."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import threading
import time
import unittest
from collections.abc import Iterator
from typing import Callable, Optional
from unittest import mock

from gateway.steps import drive
from gateway.upstream.attempt import Attempt, EngineFault
from gateway.upstream.connecting import hands_shaken, opened
from gateway.upstream.connection import Connection
from gateway.upstream.connections import ConnectionPool
from gateway.upstream.resolver import Address, Resolver, in_order
from tests.naming import Names, deaf, entry
from tests.ports import free_port
from tests.support import TIMEOUT_S, SocketTest, eventually

CAN_HANG = hasattr(socket, "MSG_DONTWAIT")
HAS_IPV6 = False
with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
    HAS_IPV6 = True


def never() -> bool:
    return False


def soon() -> float:
    return time.monotonic() + TIMEOUT_S


def shake(sock: socket.socket, tls: ssl.SSLContext, host: str, deadline_s: float, ended: Callable[[], bool]) -> None:
    """Talk TLS on a socket."""
    sock.setblocking(False)
    connection = Connection(sock)
    try:
        drive(hands_shaken(connection, tls, host, deadline_s, ended))
    except BaseException:
        connection.close()
        raise


def addresses(*hosts: str) -> tuple[Address, ...]:
    return in_order([entry(host) for host in hosts])


def has_address(host: str) -> bool:
    """Whether this machine has that address (127.0.0.2, say, which not all have)."""
    try:
        socket.create_server((host, 0)).close()
    except OSError:
        return False
    return True


several = unittest.skipUnless(CAN_HANG and has_address("127.0.0.2"), "this machine has one loopback address")


class OpenTest(SocketTest):
    def listener(self, host: str = "127.0.0.1", port: int = 0) -> tuple[socket.socket, int]:
        listener = self.enter(socket.create_server((host, port)))
        return listener, listener.getsockname()[1]

    def open(self, port: int, *hosts: str, ended: Callable[[], bool] = never, deadline_s: float = 0.0) -> str:
        """The host that the connection goes to; what was left under way has been closed."""
        connection = drive(opened(addresses(*hosts), port, deadline_s or soon(), ended))
        assert connection.address is not None
        with connection.sock as sock:
            self.assertEqual(sock.getpeername()[0], connection.address[1][0])
            return str(connection.address[1][0])

    def test_one_address_that_listens(self) -> None:
        _, port = self.listener()
        self.assertEqual(self.open(port, "127.0.0.1"), "127.0.0.1")

    @several
    def test_the_next_is_tried_as_soon_as_one_has_failed(self) -> None:
        _, port = self.listener(port=free_port("127.0.0.1", "127.0.0.2", "127.0.0.3"))
        with mock.patch("gateway.upstream.connecting.ATTEMPT_DELAY_S", 3600.0):
            self.assertEqual(self.open(port, "127.0.0.2", "127.0.0.3", "127.0.0.1"), "127.0.0.1")

    @unittest.skipUnless(HAS_IPV6, "this machine has no IPv6")
    def test_localhost_is_found_whichever_family_listens(self) -> None:
        _, port = self.listener(port=free_port("127.0.0.1", "::1"))
        self.assertEqual(self.open(port, "::1", "127.0.0.1"), "127.0.0.1")
        port = free_port("127.0.0.1", "::1")
        self.enter(socket.create_server(("::1", port), family=socket.AF_INET6))
        self.assertEqual(self.open(port, "127.0.0.1", "::1"), "::1")

    @several
    def test_the_next_is_tried_beside_one_that_takes_long(self) -> None:
        with deaf("127.0.0.2", free_port("127.0.0.1", "127.0.0.2")) as port:
            self.listener("127.0.0.1", port)
            self.assertEqual(self.open(port, "127.0.0.2", "127.0.0.1"), "127.0.0.1")

    @several
    def test_what_takes_long_may_win_when_the_others_fail(self) -> None:
        port = free_port("127.0.0.2", "127.0.0.3")
        listener = self.enter(socket.create_server(("127.0.0.2", port), backlog=0))
        fillers = [self.enter(socket.socket()) for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        refused = threading.Event()
        real = socket.socket.connect_ex

        def connect_ex(sock: socket.socket, address: object) -> int:
            code = real(sock, address)  # type: ignore[arg-type]
            if address == ("127.0.0.3", port):
                refused.set()
            return code

        def make_room() -> None:
            refused.wait(TIMEOUT_S)
            for filler in fillers:
                filler.close()
            listener.settimeout(TIMEOUT_S)
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=make_room, name="room")
        thread.start()
        self.addCleanup(thread.join, TIMEOUT_S)
        self.addCleanup(listener.close)
        self.addCleanup(lambda: listener.shutdown(socket.SHUT_RDWR))
        with mock.patch.object(socket.socket, "connect_ex", connect_ex):
            self.assertEqual(self.open(port, "127.0.0.2", "127.0.0.3"), "127.0.0.2")

    def test_all_refuse(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            with self.assertRaises(ConnectionRefusedError):
                self.open(bound.getsockname()[1], "127.0.0.1")

    def test_a_refusal_says_more_than_a_family_that_is_not_there(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
            for hosts in (("127.0.0.1", "::1"), ("::1", "127.0.0.1")):
                with self.without(socket.AF_INET6, errno.EAFNOSUPPORT), self.assertRaises(ConnectionRefusedError):
                    self.open(port, *hosts)

    def test_what_this_machine_lacks_says_most(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
            for hosts in (("127.0.0.1", "::1"), ("::1", "127.0.0.1")):
                with self.without(socket.AF_INET6, errno.EMFILE), self.assertRaises(OSError) as raised:
                    self.open(port, *hosts)
                self.assertEqual(raised.exception.errno, errno.EMFILE)

    def test_a_port_that_this_machine_has_none_left_of_is_told_from_an_address_without_a_way(self) -> None:
        class Portless(socket.socket):
            def connect_ex(self, address: object) -> int:
                return errno.EADDRNOTAVAIL

        for host, code in (("127.0.0.1", errno.ENOBUFS), ("255.255.255.255", errno.EADDRNOTAVAIL)):
            with self.subTest(host), mock.patch("gateway.upstream.connecting.socket.socket", Portless):
                with self.assertRaises(OSError) as raised:
                    self.open(9, host)
                self.assertEqual(raised.exception.errno, code)

    @contextlib.contextmanager
    def without(self, lacking: int, code: int) -> Iterator[None]:
        real = socket.socket

        def make(family: int, kind: int) -> socket.socket:
            if family == lacking:
                raise OSError(code, "lacking")
            return real(family, kind)

        with mock.patch("gateway.upstream.connecting.socket.socket", make):
            yield

    @several
    def test_all_addresses_share_one_deadline_and_nothing_stays_open(self) -> None:
        made: list[socket.socket] = []
        real = socket.socket

        def make(family: int, kind: int) -> socket.socket:
            made.append(real(family, kind))
            return made[-1]

        port = free_port("127.0.0.1", "127.0.0.2")
        with deaf("127.0.0.2", port), deaf("127.0.0.1", port):
            with mock.patch("gateway.upstream.connecting.socket.socket", make):
                with mock.patch("gateway.upstream.connecting.ATTEMPT_DELAY_S", 0.0):
                    with self.assertRaises(socket.timeout):
                        self.open(port, "127.0.0.2", "127.0.0.1", deadline_s=time.monotonic() + 0.05)
        self.assertEqual([sock.fileno() for sock in made], [-1, -1])

    @unittest.skipUnless(CAN_HANG, "a full queue refuses here")
    def test_who_gives_up_is_heard(self) -> None:
        looks = iter((False, False, True))
        deadline_s = soon()
        with deaf() as port, self.assertRaises(socket.timeout):
            self.open(port, "127.0.0.1", ended=lambda: next(looks), deadline_s=deadline_s)
        self.assertLess(time.monotonic(), deadline_s)


class HandshakeTest(SocketTest):
    def pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        ours.setblocking(False)
        return ours, theirs

    def test_a_server_that_drips_does_not_outlast_the_deadline(self) -> None:
        ours, theirs = self.pair()
        over = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                theirs.sendall(b"\x16\x03\x03\x40\x00")
                while not over.wait(0.01):
                    theirs.sendall(b"\x02")

        thread = threading.Thread(target=drip, name="drip")
        thread.start()
        self.addCleanup(thread.join, TIMEOUT_S)
        self.addCleanup(over.set)
        with self.assertRaises(socket.timeout):
            shake(ours, ssl.create_default_context(), "engine.test", time.monotonic() + 0.1, never)

    def test_who_gives_up_is_heard(self) -> None:
        ours, theirs = self.pair()
        ended = threading.Event()

        def hear() -> None:
            theirs.recv(1)  # the client's hello
            ended.set()

        thread = threading.Thread(target=hear, name="hear")
        thread.start()
        self.addCleanup(thread.join, TIMEOUT_S)
        deadline_s = soon()
        with self.assertRaises(socket.timeout):
            shake(ours, ssl.create_default_context(), "engine.test", deadline_s, ended.is_set)
        self.assertLess(time.monotonic(), deadline_s)

    def test_a_server_that_speaks_something_else_is_a_fault_of_tls(self) -> None:
        ours, theirs = self.pair()
        theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with self.assertRaises(ssl.SSLError):
            shake(ours, ssl.create_default_context(), "engine.test", soon(), never)


class PoolTest(SocketTest):
    """A pool whose host is a name."""

    def setUp(self) -> None:
        self.names = Names(engine_test=["127.0.0.1"])
        self.resolver = Resolver(30.0, getaddrinfo=self.names)
        self.addCleanup(self.resolver.close)
        self.addCleanup(self.names.release)
        self.listener = self.enter(socket.create_server(("127.0.0.1", 0)))
        self.port = self.listener.getsockname()[1]

    def pool(self, tls: Optional[ssl.SSLContext] = None) -> ConnectionPool:
        pool = ConnectionPool("engine.test", self.port, tls, TIMEOUT_S, self.resolver)
        self.addCleanup(pool.close)
        return pool

    def move(self, *hosts: str) -> None:
        """Let the name have other addresses."""
        self.names.answers["engine.test"] = list(hosts)
        self.resolver.keep([])
        self.resolver.keep(["engine.test"])
        eventually(lambda: self.resolver.known("engine.test"))

    def test_a_numeric_host_asks_nobody(self) -> None:
        pool = ConnectionPool("127.0.0.1", self.port, None, TIMEOUT_S, self.resolver)
        connection = drive(pool.connect(TIMEOUT_S))
        self.assertIsNone(connection.address)
        connection.close()
        self.assertEqual(self.resolver._names, {})

    def test_idle_connections_to_addresses_that_are_gone_are_closed_and_others_kept(self) -> None:
        pool = self.pool()
        idle = [drive(pool.connect(TIMEOUT_S)) for _ in range(3)]
        in_use = drive(pool.connect(TIMEOUT_S))
        for connection in idle:
            pool.give(connection)
        self.move("127.0.0.1", "10.0.0.1")
        pool.let_go()
        self.assertEqual(len(pool), 3)
        self.assertIs(pool.take(), idle[-1])
        pool.give(idle[-1])
        self.move("10.0.0.1")
        pool.let_go()
        self.assertEqual([connection.sock.fileno() for connection in idle], [-1] * 3)
        self.assertGreaterEqual(in_use.sock.fileno(), 0)
        pool.give(in_use)
        self.assertEqual((len(pool), in_use.sock.fileno()), (0, -1))

    def test_a_pool_closed_while_it_lets_go_keeps_nothing(self) -> None:
        pool = self.pool()
        connection = drive(pool.connect(TIMEOUT_S))
        pool.give(connection)
        with mock.patch.object(self.resolver, "holds", lambda host, address: pool.close() or True):
            pool.let_go()
        self.assertEqual((len(pool), connection.sock.fileno()), (0, -1))

    def test_when_nobody_answers_the_name_is_looked_up_again(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            now_s = [1000.0]
            self.resolver = Resolver(30.0, getaddrinfo=self.names, clock=lambda: now_s[0])
            self.addCleanup(self.resolver.close)
            self.port = bound.getsockname()[1]
            pool = self.pool()
            for times in (1, 2):
                with self.assertRaises(ConnectionRefusedError):
                    drive(pool.connect(TIMEOUT_S))
                self.names.wait_for("engine.test", times)
                eventually(lambda: not self.resolver._under_way)
                now_s[0] += 2.0

    def test_the_look_up_counts_towards_the_timeout(self) -> None:
        self.names.hold("engine.test")
        with self.assertRaises(socket.timeout):
            drive(self.pool().connect(0.05))


class AttemptTest(unittest.TestCase):
    def test_connecting_leaves_half_of_the_time_for_another_engine(self) -> None:
        for left_s, timeout_s, most_s in ((2.0, 5.0, 1.0), (60.0, 5.0, 5.0), (float("inf"), 5.0, 5.0)):
            before_s = time.monotonic()
            deadline_s = before_s + left_s
            attempt = Attempt(deadline_s)
            attempt.connecting(timeout_s)
            self.assertLessEqual(attempt.deadline_s - time.monotonic(), most_s)
            self.assertGreaterEqual(attempt.deadline_s, before_s + most_s)
            attempt.connected()
            self.assertEqual(attempt.deadline_s, deadline_s)

    def test_an_attempt_that_expires_while_it_connects_failed_to_connect(self) -> None:
        attempt = Attempt(time.monotonic() + 60)
        attempt.connecting(5.0)
        attempt.expire()
        failure = attempt.failure()
        assert isinstance(failure, EngineFault)
        self.assertEqual(failure.outcome.kind, "connect_timeout")


if __name__ == "__main__":
    unittest.main()
