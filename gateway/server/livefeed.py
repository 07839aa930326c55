"""The console's feed, `GET /api/v1/live`: who watches, and what of it each has not taken yet.

`LiveFeed` owns those who watch. All of it is for the relay's thread, which has their clients' writing sides from
`begin` on, but for `Watching.begin` (the loop's) and what `Watchers` names, which any thread may call. Its lock guards
the number of places that are taken.

What a second has brought is made once, and its bytes are everybody's. One of them is written to a client at a time: who
has not taken it when the next comes does without that, and gets a history instead when it has; who has not taken it
within TAKE_S is closed. So a client that reads nothing delays nobody, and holds one event and the kernel's buffer.
A feed is no request of inference: it has no worker's place, is in nobody's way when the gateway ends, and what is
reported of it when it has ended is how long its beginning took, and apart from that how long it was open.
"""

from __future__ import annotations

import functools
import json
import math
import threading
import time
from typing import Callable, Optional, Union

from gateway.errors import GatewayError
from gateway.keys.auth import Identity
from gateway.pipeline import Pipeline, shutting_down
from gateway.server import responses
from gateway.server.exchange import Exchange
from gateway.server.headers import cors_headers
from gateway.server.parsing import RequestHead
from gateway.server.relay import Relay
from gateway.telemetry.liveticker import LiveTicker

WATCHERS_MAX = 200
TAKE_S = 30.0
"""An event, a history as well, is to be taken within this."""
BUFFER_BYTES = 131_072
"""Of what one has been sent that the kernel is asked to keep: it would take megabytes for who reads nothing."""
CHECK_TICKS = 5
"""How often it is seen again whether who watches still may."""
UNSURE_CHECKS = 12
"""So often in a row it may not be known, because an identity provider's keys do not come."""
END_S = 1.0
PERMISSION = "metrics"
_LINES = b"Content-Type: text/event-stream\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\n"
_END_OF_CHUNKS = b"0\r\n\r\n"


class LiveFeed:
    """All who watch."""

    def __init__(self, pipeline: Pipeline, relay: Relay, ticker: LiveTicker) -> None:
        self.pipeline = pipeline
        self.relay = relay
        self._ticker = ticker
        self._watchers: dict[Watcher, None] = {}
        self._wished = False  # a history, by somebody
        self._ended: Optional[GatewayError] = None
        self._told = threading.Event()  # that the gateway stops, all of them
        self._lock = threading.Lock()
        self._places = 0
        ticker.watchers = self

    def open(self, head: RequestHead, identity: Optional[Identity]) -> Watching:
        """The answer to who asks for the feed, and may. Raises `draining`."""
        if self.pipeline.draining:
            raise shutting_down()
        return Watching(self)

    def take_place(self) -> None:
        """Count one more. Raises `overloaded` when there are as many as may be."""
        with self._lock:
            if self._places >= WATCHERS_MAX:
                message = f"{WATCHERS_MAX} consoles are watching already"
                raise GatewayError("overloaded", message, retry_after_s=10.0)
            self._places += 1

    def give_place_back(self) -> None:
        """Count one less."""
        with self._lock:
            self._places -= 1

    def wish(self) -> None:
        """Somebody needs a history."""
        self._wished = True
        self._ticker.wake()

    # --- for the ticker --------------------------------------------------------------------------------------------

    @property
    def any(self) -> bool:
        """See `Watchers`."""
        return self._places > 0

    def take_wish(self) -> bool:
        """See `Watchers`. Who wishes while this is reset is among those who wait by then, so that the history which is
        made now is given to it, too."""
        if not self._wished:
            return False
        self._wished = False
        return True

    def publish(self, tick: bytes, history: bytes, anew: bool) -> None:
        """See `Watchers`."""
        events = _Chunk(tick), _Chunk(history)
        self.relay.call_soon(functools.partial(self._publish, *events, anew))

    def end(self) -> None:
        """End all feeds at once, and those that are on their way: the gateway stops. Waits END_S at most until all have
        been told."""
        self.relay.call_soon(self._end_all)
        self._told.wait(END_S)

    # --- the relay's thread ----------------------------------------------------------------------------------------

    def add(self, watcher: Watcher) -> None:
        """One more watches, unless it is too late for that."""
        self._watchers[watcher] = None
        if self._ended is not None:
            watcher.end(self._ended)
        else:
            self.wish()

    def drop(self, watcher: Watcher) -> None:
        """One watches no more, or never has. Called once for each."""
        self._watchers.pop(watcher, None)
        self.give_place_back()

    def _publish(self, tick: _Chunk, history: _Chunk, anew: bool) -> None:
        now_s = time.monotonic()
        for watcher in list(self._watchers):
            watcher.guarded(functools.partial(watcher.give, tick, history, anew, now_s))
            if tick.data or anew:
                watcher.guarded(watcher.check)

    def _end_all(self) -> None:
        self._ended = shutting_down()
        for watcher in list(self._watchers):
            watcher.guarded(functools.partial(watcher.end, self._ended))
        self._told.set()


class _Chunk:
    """An event as its connection carries it: as a chunk, of which the middle is for HTTP/1.0."""

    __slots__ = ("bare", "data")

    def __init__(self, event: bytes) -> None:
        if not event:
            self.data: bytes = event
            self.bare = memoryview(event)
            return
        size = b"%x\r\n" % len(event)
        self.data = b"%b%b\r\n" % (size, event)
        self.bare = memoryview(self.data)[len(size) : -2]


class Watching:
    """The answer to one request for the feed, until it has begun."""

    def __init__(self, feed: LiveFeed) -> None:
        self._feed = feed

    def begin(self, exchange: Exchange) -> None:
        """Write the head, and pass the client on to the relay. Raises nothing. For the loop's thread."""
        feed = self._feed
        try:
            if exchange.head.method == "HEAD":
                self._answer_head(exchange)
                return
            feed.take_place()
        except GatewayError as error:
            exchange.fail(error)
            return
        exchange.feed_began_s = time.monotonic()
        exchange.status = 200
        exchange.client.set_deadline(math.inf)
        watcher = Watcher(feed, exchange)
        exchange.on_cancel = lambda: feed.relay.call_soon(watcher.gone)  # first: see `Relay.take`
        feed.relay.call_soon(lambda: watcher.guarded(watcher.begin))

    def _answer_head(self, exchange: Exchange) -> None:
        exchange.status = 200
        sent = exchange.client.send_last(exchange, _head_of(exchange, b""), exchange.keep_alive)
        if sent is not None:
            exchange.written(sent)


def _head_of(exchange: Exchange, framing: bytes) -> bytes:
    close = b"" if exchange.keep_alive else b"Connection: close\r\n"
    own = b"X-Request-ID: %b\r\n" % exchange.request_id.encode("latin-1")
    cors = cors_headers(exchange.head, exchange.pipeline.settings.cors_origins)
    return responses.head(200, b"%b%b%b%b%b\r\n" % (_LINES, own, cors, framing, close))


class Watcher:
    """One client that watches. For the relay's thread."""

    __slots__ = ("_exchange", "_feed", "_unsent", "_unsent_since_s", "_unsure", "_until_check", "_waits", "over")

    def __init__(self, feed: LiveFeed, exchange: Exchange) -> None:
        self._feed = feed
        self._exchange = exchange
        self._unsent: Union[bytes, memoryview] = b""
        self._unsent_since_s = 0.0
        self._waits = True  # for a history
        self._until_check = CHECK_TICKS
        self._unsure = 0  # checks in a row that have not told whether it may watch
        self.over = False

    def guarded(self, step: Callable[[], None]) -> None:
        """Run one step; whatever goes wrong ends this feed and no other."""
        try:
            step()
        except Exception as error:
            self._feed.relay.on_error(error)
            self.gone()

    def begin(self) -> None:
        """Send the head; a history comes as soon as it is made."""
        if self.over:
            return
        exchange = self._exchange
        framing = b"Transfer-Encoding: chunked\r\n"
        if not exchange.head.version_1_1:
            exchange.keep_alive = False  # the feed ends where the connection does
            framing = b""
        exchange.client.limit_buffer(BUFFER_BYTES)
        self._send(_head_of(exchange, framing), time.monotonic())
        if not self.over:
            self._feed.add(self)

    def give(self, tick: _Chunk, history: _Chunk, anew: bool, now_s: float) -> None:
        """Send what is new, or do without if what was sent before has not been taken."""
        if self.over:
            return
        if self._unsent:
            self._waits = True
            if now_s - self._unsent_since_s > TAKE_S:
                self.end(GatewayError("overloaded", "the console has not kept up with the feed"))
            return
        if anew:
            self._waits = True
        chunk = history if self._waits else tick
        if chunk.data:
            self._waits = False
            self._send(chunk.data if self._exchange.head.version_1_1 else chunk.bare, now_s)

    def check(self) -> None:
        """End the feed if its key is not valid any more, or may not watch any more; each time when that is due. Waits
        for nothing."""
        self._until_check -= 1
        if self.over or self._until_check > 0:
            return
        self._until_check = CHECK_TICKS
        pipeline, head = self._feed.pipeline, self._exchange.head
        self._unsure = self._unsure + 1 if pipeline.guard.may_wait(head.headers) else 0
        try:
            if not self._unsure or self._unsure > UNSURE_CHECKS:
                pipeline.known(head).require(PERMISSION)
        except GatewayError as error:
            self.end(error)

    def _send(self, data: Union[bytes, memoryview], now_s: float) -> None:
        client = self._exchange.client
        try:
            sent = client.send_now(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.gone()
            return
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._unsent_since_s = now_s
            self._feed.relay.loop.watch(client.fileno(), self._ready, writing=True)

    def _ready(self, events: int) -> None:
        self.guarded(self._flush)

    def _flush(self) -> None:
        """The client takes more of what it was sent."""
        if self.over:
            return
        try:
            sent = self._exchange.client.send_now(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self.gone()
            return
        rest = memoryview(self._unsent)[sent:]
        if rest:
            self._unsent = rest
            return
        self._stop_writing()
        if self._waits:
            self._feed.wish()

    def _stop_writing(self) -> None:
        if self._unsent:
            self._unsent = b""
            self._feed.relay.loop.unwatch(self._exchange.client.fileno())

    def end(self, error: GatewayError) -> None:
        """Tell why there is no more, and end the feed; where that is not taken at once, without a word."""
        if self.over:
            return
        exchange = self._exchange
        exchange.error = None if error.code == "draining" else error.code
        said = json.dumps({"code": error.code, "message": error.message}, separators=(",", ":"))
        last = _Chunk(f"event: end\ndata: {said}\n\n".encode())
        data = last.data + _END_OF_CHUNKS if exchange.head.version_1_1 else bytes(last.bare)
        if exchange.pipeline.draining:
            exchange.keep_alive = False
        complete = False
        if not self._unsent:
            exchange.client.before_last(exchange, exchange.keep_alive)
            try:
                complete = exchange.client.send_now(data) == len(data)
            except OSError:  # also one that takes nothing now
                pass
        self._close(complete)

    def gone(self) -> None:
        """The client has left."""
        self._close(False)

    def _close(self, complete: bool) -> None:
        if self.over:
            return
        self.over = True
        exchange = self._exchange
        exchange.on_cancel = None
        self._stop_writing()
        if not complete:
            exchange.keep_alive = False
        if not exchange.keep_alive:
            exchange.client.shut_writing()
        self._feed.drop(self)
        exchange.conclude(exchange.error, exchange.status)
        exchange.client.stream_over()
