"""A request to an engine that nobody blocks for.

Owns the connection from the first byte of the request until `EngineClient.answer` takes it over. Used by one thread
at a time; never blocks.
"""

from __future__ import annotations

from typing import Callable, Optional, Union

from gateway.errors import GatewayError
from gateway.upstream.attempt import Attempt, EngineFault, not_connected
from gateway.upstream.connections import DONTWAIT, Connection
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.framing import UNFINISHED_MAX_BYTES
from gateway.upstream.response import RECV_BYTES, EngineResponse, read_head
from gateway.upstream.shortage import is_shortage, overloaded
from gateway.upstream.sniff import EVENTS
from gateway.upstream.stream import EngineStream

AHEAD_MAX_BYTES = 262144  # of an answer, before a thread has to wait for the rest

OpenStream = Callable[[EngineResponse], Optional[EngineStream]]  # None: the answer is no stream, or not yet


class Sent:
    """A request that nobody blocks for yet: sent, or to be sent once its connection is open. For one thread at a time.

    `ready`: the answer's status is 200, and all of it has been received (or what breaks it), or of an event stream the
    first event: going on with it will not block. `stream` is that event stream.
    """

    __slots__ = (
        "_open_stream",
        "attempt",
        "connection",
        "endpoint",
        "fault",
        "path",
        "ready",
        "received",
        "response",
        "size",
        "stream",
        "unsent",
        "wire",
    )

    def __init__(
        self,
        connection: Connection,
        endpoint: Endpoint,
        path: str,
        attempt: Attempt,
        wire: bytes,
        open_stream: Optional[OpenStream] = None,
    ) -> None:
        self.connection = connection
        self.endpoint = endpoint
        self.path = path
        self.attempt = attempt
        self.wire = wire
        self.unsent = wire
        self._open_stream = open_stream
        self.received: Union[bytes, bytearray] = b""  # until the answer's head is complete
        self.size = 0
        self.response: Optional[EngineResponse] = None
        self.stream: Optional[EngineStream] = None
        self.ready = False
        self.fault: Optional[Exception] = None  # an EngineFault, a GatewayError, or what nobody had foreseen

    def send(self) -> None:
        """Send what the connection takes without waiting. Raises OSError."""
        try:
            self.unsent = self.unsent[self.connection.sock.send(self.unsent, DONTWAIT) :]
            self.attempt.connected()
        except BlockingIOError:
            pass

    def receive(self) -> bool:
        """Take what has arrived, without waiting. False: there is more to wait for; True: `EngineClient.answer`."""
        try:
            if self.unsent and not self._sent():
                return False
            while True:  # until nothing is left: an end behind the data may not be told again
                data = self.connection.sock.recv(RECV_BYTES, DONTWAIT)
                if not data or self._add(data):
                    return True
        except BlockingIOError:
            return False
        except (EngineFault, GatewayError) as fault:
            self.fault = fault
        except OSError as error:
            if is_shortage(error):
                self.fault = overloaded(error)
        except Exception as error:  # whatever its answer has brought about: the attempt fails by it, nobody else
            self.fault = error
        return True

    def _sent(self) -> bool:
        """Whether nothing more is to be sent. Raises EngineFault when there is no connection, GatewayError when that is
        the gateway's own fault."""
        try:
            self.send()
        except OSError as error:
            if self.attempt.aborted is None and self.unsent is self.wire:
                raise not_connected(error) from error
            self.unsent = b""  # it has closed; what it said before is still to be read (a 413, say)
        return not self.unsent

    def _add(self, data: bytes) -> bool:
        """Whether no more is to be waited for without blocking."""
        self.size += len(data)
        response = self.response
        if response is not None:
            response.add(data)
        else:
            received = self.received
            if isinstance(received, bytearray):
                looked_at = max(0, len(received) - 3)
                received += data
                if received.find(b"\r\n\r\n", looked_at) < 0:
                    return len(received) > UNFINISHED_MAX_BYTES
                data = bytes(received)
            elif not data.count(b"\r\n\r\n"):
                self.received = bytearray(data)  # added to, part by part, without copies
                return len(data) > UNFINISHED_MAX_BYTES
            self.received = data
            if not data.startswith(b"HTTP/1.1 200"):
                return True
            response = self.response = read_head(data, self.connection, self.endpoint.pool, self.attempt)
        if self._open_stream is None:
            self.ready = response.is_whole()
            if response.kind() == EVENTS:  # which nobody asked for: a thread puts them together
                self.ready = False
                return True
        else:
            if self.stream is None:
                self.stream = self._open_stream(response)
            self.ready = response.is_whole() if self.stream is None else self.stream.begin()
        # What is pending comes from no socket: a thread takes it.
        return self.ready or self.size > AHEAD_MAX_BYTES or response.decoder.pending
