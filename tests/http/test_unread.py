"""Large answers to clients that do not read them: one copy of each, no thread, and an end."""

from __future__ import annotations

import re
import select
import socket
import sys
import unittest
from typing import Any, Optional

from gateway.server.connection import State
from gateway.server.unsent import TAKEN_BYTES
from tests.http.test_loop_connections import narrow
from tests.http.test_without_epoll import WithoutEpoll
from tests.onloop import OnLoopTest, completion
from tests.resilience import ask, fleet
from tests.scripted import EngineSide
from tests.support import CHAT, RawClient, RunningGateway, eventually, gateway_process, request_bytes

MIB = 1 << 20
FIRST = 3  # clients, until the allocator has what it keeps for the work on an answer
CLIENTS = 8
ANSWER_MIB = 16
HAS_EPOLL = hasattr(select, "epoll")


class FullOnce:
    """A socket that has no room for what is written first."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._full = True

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._sock

    def __hash__(self) -> int:
        return hash(self._sock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes) -> int:
        if self._full:
            self._full = False
            raise BlockingIOError
        return self._sock.send(data)


class CutOff(OnLoopTest):
    def begin_large(
        self, size: int = 4 * MIB, **variables: object
    ) -> tuple[RunningGateway, RawClient, str, EngineSide]:
        """A client whose answer of that size is on its way, and is not being read."""
        running, engine = self.one_engine(**variables)
        side = self.kept(running, engine)
        client = self.enter(narrow(running))
        client.request("POST", CHAT, ask(), [("X-Request-ID", "large")])
        text = "".join(map(str, range(100_000))) * (size // 488_890 + 1)
        side.read_request().answer(completion(text[:size]))
        return running, client, text[:size], side

    def test_who_takes_nothing_is_cut_off_and_counted(self) -> None:
        for size in (300_000, 4 * MIB):
            with self.subTest(size=size):
                running, client, _, _ = self.begin_large(size, CLIENT_TIMEOUT="0.3", WORKERS=1)
                line = running.request_line("large")
                self.assertEqual((line["status"], line["error"]), (499, "client_closed_request"))
                client.wait_until_ended()
                self.wait_for_connections(running, 1)
                self.assert_nothing_held(running)
                eventually(lambda running=running: running.app.workers.busy == 0)

    def test_who_reads_late_gets_all_of_it_and_the_connection_goes_on(self) -> None:
        for size in (300_000, 4 * MIB):
            running, client, text, side = self.begin_large(size)
            eventually(lambda client=client: select.select([client.sock], [], [], 0)[0])
            self.assertEqual(running.request_lines("large"), [])
            self.assert_says(client, text)
            client.request("POST", CHAT, ask())
            side.read_request().answer(completion())
            self.assert_says(client, "fine")

    def test_who_leaves_is_forgotten(self) -> None:
        running, client, _, _ = self.begin_large(WORKERS=1)
        eventually(lambda: select.select([client.sock], [], [], 0)[0])
        client.close()
        self.assertEqual(running.request_line("large")["error"], "client_closed_request")
        self.wait_for_connections(running, 1)
        eventually(lambda: running.app.workers.busy == 0)

    def test_the_time_begins_anew_with_each_mebibyte_and_not_with_less(self) -> None:
        running, client, _, _ = self.begin_large()
        connection = self.writing(running)
        self.wait_until_stuck(connection)
        begun_s = connection.deadline_s
        for _ in range(20):
            client.sock.recv(1000)
            self.wait_until_stuck(connection)
        self.assertEqual(connection.deadline_s, begun_s)
        taken = 0
        while connection.deadline_s == begun_s:
            taken += len(client.sock.recv(65_536))
        # What the system keeps comes before that which the gateway sees taken.
        self.assertGreater(taken, TAKEN_BYTES // 2)
        self.assertLess(taken, 2 * TAKEN_BYTES)
        self.assertGreater(connection.deadline_s, begun_s)

    def writing(self, running: RunningGateway) -> Any:
        """The connection of the client that does not read."""
        server = running.app.server

        def found() -> Optional[Any]:
            return next((one for one in list(server._open.values()) if one.state is State.WRITING), None)

        return eventually(found)

    def wait_until_stuck(self, connection: Any) -> None:
        """Until the client has room for nothing more."""
        eventually(lambda: not select.select([], [connection.sock], [], 0)[1])

    def test_a_second_request_waits_for_the_end_of_the_first_answer(self) -> None:
        _, client, text, side = self.begin_large(4 * MIB)
        client.request("GET", "/healthz")
        client.request("POST", CHAT, ask())
        eventually(lambda: select.select([client.sock], [], [], 0)[0])
        self.assert_says(client, text)
        self.assertEqual(client.read_response().status, 200)
        side.read_request().answer(completion())
        self.assert_says(client, "fine")

    def test_a_large_answer_that_closes_its_connection_is_complete(self) -> None:
        running, engine = self.one_engine()
        side = self.kept(running, engine)
        client = self.enter(narrow(running))
        client.request("POST", CHAT, ask(), [("Connection", "close")])
        text = "x" * (4 * MIB)
        side.read_request().answer(completion(text))
        eventually(lambda: select.select([client.sock], [], [], 0)[0])
        client.send(request_bytes("GET", "/healthz"))  # void
        self.assert_says(client, text)
        client.assert_closed()
        self.wait_for_connections(running, 1)


@unittest.skipUnless(HAS_EPOLL, "needs epoll")
class Threads(OnLoopTest):
    def test_clients_that_do_not_read_hold_no_thread_each(self) -> None:
        running, engine = self.one_engine()
        clients, sides = [], []
        for _ in range(5):
            clients.append(self.begin(running))
            sides.append(engine.take())
        for side in sides:
            side.answer(completion("x" * (12 * MIB)))
        eventually(lambda: self.unsent(running) == 5)
        self.assertEqual(running.app.workers.busy, 5)  # there are not more such answers than places
        eventually(lambda: running.app.workers._threads._idle == len(running.app.workers._threads._threads))
        for client in clients:
            self.assert_says(client, "x" * (12 * MIB))
        eventually(lambda: running.app.workers.busy == 0)

    def test_who_waited_too_long_and_cannot_be_told_at_once_is_told_when_it_can_be(self) -> None:
        running, engine = self.one_engine(WORKERS=1, QUEUE_TIMEOUT="1")
        self.begin(running)
        engine.take()
        for sent in (b"", b"GET / HTTP/1.1\r\n"):  # behind the request that waits
            client = self.enter(running.connect())
            client.request("POST", CHAT, ask(), [("X-Request-ID", "queued")])
            client.send(sent)
            connection = eventually(lambda: self.queued(running))
            connection.sock = FullOnce(connection.sock)
            response = client.read_response()
            self.assertEqual((response.status, response.json()["error"]), (503, "queue_timeout"))
            client.assert_closed()
        eventually(lambda: len(running.request_lines("queued")) == 2)
        self.wait_for_connections(running, 1)

    def queued(self, running: RunningGateway) -> Optional[Any]:
        """The connection whose request waits for a worker."""
        connections: list[Any] = list(running.app.server._open.values())
        for connection in connections:
            request = connection._request
            if request is not None and request.exchange.queued:
                return connection
        return None

    def unsent(self, running: RunningGateway) -> int:
        return sum(c._unsent is not None for c in list(running.app.server._open.values()))


@unittest.skipUnless(sys.platform.startswith("linux"), "reads the resident memory from /proc")
@unittest.skipUnless(sys.implementation.name == "cpython", "what is not used any more is not freed at once")
class Memory(OnLoopTest):
    def test_an_answer_that_is_not_read_is_held_once(self) -> None:
        engine = self.scripted()
        models = fleet({"m": {"engines": [engine.url]}})
        # One arena, or what the allocator keeps of each thread's work is as much as what is looked for here.
        variables = {"ENGINES_FILE": "engines.json", "LOG_LEVEL": "error", "MALLOC_ARENA_MAX": 1}
        process = self.enter(gateway_process(variables, files={"engines.json": models}))

        def resident_bytes() -> int:
            with open(f"/proc/{process.process.pid}/status") as file:
                found = re.search(r"VmRSS:\s+(\d+) kB", file.read())
            assert found is not None
            return int(found[1]) * 1024

        warm = self.enter(process.connect())
        body = completion("x" * (ANSWER_MIB * MIB))
        warm.request("POST", CHAT, ask())
        side = engine.take()
        side.answer(body)
        self.assertEqual(warm.read_response().status, 200)
        rest = 0
        for number in range(FIRST + CLIENTS):
            if number == FIRST:
                rest = resident_bytes()
            client = self.enter(process.connect())
            client.request("POST", CHAT, ask())
            side.read_request().answer(body)
            eventually(lambda client=client: select.select([client.sock], [], [], 0)[0])
        total = CLIENTS * len(body)
        eventually(lambda: resident_bytes() < rest + 1.3 * total)
        self.assertGreater(resident_bytes(), rest + 0.5 * total)  # else they are not held, and this tells nothing


class CutOffWithoutEpoll(WithoutEpoll, CutOff):
    pass


del WithoutEpoll

if __name__ == "__main__":
    unittest.main()
