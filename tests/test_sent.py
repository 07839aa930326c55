"""A request whose connection takes it by and by: nobody blocks, and what the engine says of it is read."""

from __future__ import annotations

import math
import select
import socket
import unittest

from gateway.routing.specs import EngineSpec
from gateway.upstream.attempt import Attempt, EngineFault
from gateway.upstream.client import EngineClient
from gateway.upstream.connections import DONTWAIT, Connection
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.sent import Sent
from tests.scripted import EngineSide
from tests.support import TIMEOUT_S, SocketTest, eventually

REFUSAL = b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfull"


@unittest.skipUnless(DONTWAIT, "nothing is sent without waiting here")
class SentTest(SocketTest):
    def sending(self) -> tuple[Sent, EngineSide]:
        """A request of which the connection has taken a part, and the engine nothing."""
        listener = self.enter(socket.create_server(("127.0.0.1", 0)))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ours = self.enter(socket.create_connection(listener.getsockname()))
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        engine, _ = listener.accept()
        self.enter(engine)
        spec = EngineSpec(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        sent = Sent(Connection(ours), Endpoint(spec, {}, 1.0), "/chat", Attempt(math.inf), b"x" * 8_000_000)
        sent.send()
        self.assertTrue(0 < len(sent.unsent) < 8_000_000)
        return sent, EngineSide(engine)

    def test_the_rest_goes_when_there_is_room(self) -> None:
        sent, side = self.sending()
        self.assertFalse(sent.receive())
        taken = 0
        while taken < 8_000_000:
            self.assertTrue(select.select([side.sock], [], [], TIMEOUT_S)[0])
            taken += len(side.sock.recv(1 << 20))
            self.assertFalse(sent.receive())
        self.assertEqual((taken, sent.unsent), (8_000_000, b""))

    def test_an_engine_that_refuses_before_it_has_all_is_heard(self) -> None:
        sent, side = self.sending()
        side.send(REFUSAL)
        side.close()  # with something unread, which is a reset
        eventually(sent.receive)
        with self.assertRaises(EngineFault) as caught:
            EngineClient().answer(sent)
        self.assertEqual((caught.exception.outcome.kind, caught.exception.outcome.status), ("rejected", 413))

    def test_an_engine_that_leaves_before_it_has_all_has_reset(self) -> None:
        sent, side = self.sending()
        side.reset()
        select.select([sent.connection.sock], [], [], TIMEOUT_S)
        self.assertTrue(sent.receive())
        with self.assertRaises(EngineFault) as caught:
            EngineClient().answer(sent)
        self.assertEqual(caught.exception.outcome.kind, "reset")


if __name__ == "__main__":
    unittest.main()
