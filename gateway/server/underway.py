"""One request of a connection while it is under way: its exchange, the task that runs its steps, its worker's place.

For the loop's thread; never blocks.
"""

from __future__ import annotations

import socket
from typing import Any, Callable, NamedTuple, Optional, Protocol, Union

from gateway.errors import ClientGone, GatewayError
from gateway.inference import Answer
from gateway.pipeline import ASKED, Pipeline, shutting_down
from gateway.reuse.flights import Following
from gateway.server.admin import Reply
from gateway.server.door import drops_body, has_body
from gateway.server.exchange import Exchange
from gateway.server.livefeed import Watching
from gateway.server.loop import Loop
from gateway.server.reader import Refusal, Request
from gateway.server.relay import Relay
from gateway.server.routes import Routes
from gateway.server.task import Task
from gateway.settings import Settings
from gateway.threads import Threads
from gateway.upstream.stream import EngineStream


class ServerContext(NamedTuple):
    """The parts of the gateway that a connection needs."""

    settings: Settings
    pipeline: Pipeline
    relay: Relay
    routes: Routes
    log: Callable[..., None]
    spare_time: Callable[[int], None]  # what a thread may do while it waits for so many engines; never blocks


class Server(Protocol):
    """The server, as its connections see it."""

    context: ServerContext
    loop: Loop
    threads: Threads
    engines_asked: int  # in this turn of the loop
    ending: bool  # connections are being ended

    def closed(self, request: socket.socket) -> None:
        """A connection is over."""


class UnderWay(Task):
    """A request from `begin` until `over` is called: it is answered, its answer has begun, or it has none."""

    runs = False  # its steps have begun, and not ended
    _keeps_place = False  # a worker's, until a large answer has been taken

    def __init__(self, exchange: Exchange, server: Server, over: Callable[[], None]) -> None:
        super().__init__(exchange, server.loop, server.threads)
        self.exchange = exchange
        self._server = server
        self._over = over

    def begin(self, event: Union[Request, Refusal]) -> None:
        """Run the steps of what has been read."""
        exchange, server = self.exchange, self._server
        head = exchange.head
        infers = (head.method, head.path) in ASKED
        if isinstance(event, Refusal):
            exchange.fault = event.error
            exchange.keep_alive = False
            if event.head is None:
                exchange.fail(event.error)
                self._over()
                return
        else:
            exchange.body = event.body
            if not event.whole:
                exchange.keep_alive = False
        context = server.context
        steps: Any = context.pipeline.serve(exchange) if infers else context.routes.serve(exchange)
        exchange.resume_work = self.drive
        server.engines_asked += infers
        self.runs = True
        self._steps = steps
        self._run(steps.send, None)

    def _say(self, lines: bytes) -> None:
        self.exchange.say(lines)

    def leave(self) -> None:
        """The client has left."""
        exchange = self.exchange
        if not exchange.answered and not (exchange.queued and not exchange.needed and self._give_up(ClientGone())):
            exchange.cancel()

    def give_up_waiting(self, now_s: float) -> bool:
        """End the wait for a worker's place if that has taken too long; whether it has."""
        exchange, settings = self.exchange, self._server.context.settings
        if not exchange.queued or not (exchange.cut or now_s >= exchange.enqueued_s + settings.queue_timeout_s):
            return False
        exchange.keep_alive = False
        return self._give_up(shutting_down() if exchange.cut else self._server.context.pipeline.queue_timeout())

    def _give_up(self, error: GatewayError) -> bool:
        """Have a request wait no more for a worker's place; False: it has just got one."""
        if not (self.runs and self.exchange.claim()):
            return False
        self._server.context.pipeline.workers.gave_up(self.exchange)
        self.throw(error)
        return True

    def _done(
        self, result: Union[Answer, EngineStream, Following, Reply, Watching, None], error: Optional[Exception]
    ) -> None:
        """The steps have ended."""
        exchange = self.exchange
        self.runs = False
        exchange.resume_work = None  # so that all of it is freed at once
        del self._steps
        exchange.fault = None
        exchange.body = b""
        if not exchange.body_taken and has_body(exchange.head) and not drops_body(exchange.head):
            # Whether or not all of it is there: what becomes of the connection depends on no segment's border.
            exchange.keep_alive = False
        if exchange.upload is not None and not exchange.upload.over:
            exchange.keep_alive = False  # nobody takes the rest
        if error is not None:
            exchange.fail(error)
            error.__traceback__ = None  # whose frames refer to the error
        elif isinstance(result, Reply):
            exchange.reply(*result)
        elif isinstance(result, Watching):
            result.begin(exchange)
        elif result is not None:
            exchange.answer(result)
        if self.has_place:
            if exchange.client.holds_large:  # there are never more large answers than places
                self._keeps_place = True
            else:
                self._server.context.pipeline.workers.leave(exchange)
        self._over()

    def leave_place(self) -> None:
        """Give the worker's place back, if it has one."""
        if self._keeps_place:
            self._keeps_place = False
            self._server.context.pipeline.workers.leave(self.exchange)
