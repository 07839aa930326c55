"""Open streams: one thread moves whole lines from engines' sockets to clients' sockets.

`Relay` owns a loop of its own, every open stream (`relayed.py`) and the connections whose last bytes are due. All of it
is for that loop's thread; other threads reach it by `take`, `close` and `post`, so there is no lock.

Measured: 60 us CPU per event with a blocked thread per stream, 17 with this (docs/PERFORMANCE.md). With one loop for
clients and streams, side by side: as much at 100 streams, 25.6 instead of 21.4 at 500, where the turns of TURN_S count.
"""

from __future__ import annotations

import functools
import time
from typing import Callable

from gateway.reuse.serving import Shared
from gateway.server.exchange import Exchange
from gateway.server.following import Follower
from gateway.server.loop import Loop
from gateway.server.relayed import Relayed
from gateway.server.sharing import Crowd
from gateway.threads import Job, Threads
from gateway.upstream.stream import EngineStream

SWEEP_S = 0.5
# Below 2 000 events a second none waits for its turn; above, one waits 0.5 ms at most and costs less (22 -> 17 us at
# 5 000 a second: waking up costs more than an event).
TURN_S = 0.0005
LINES_MAX_BYTES = 67_108_864  # kept of all shared streams; beyond, those who come cannot join them
JUDGES_MAX = 2  # they only compute: more of them would take the interpreter's lock from the relay more often
DRAIN_S = 1.0  # how long a finished stream's connection gets to end its body, to be kept


class Relay:
    """Relays streams until each has ended. `take`, `post` and `close` are thread-safe.

    `idle_timeout_s`: how long an engine may be silent, and a client take nothing.
    """

    def __init__(
        self,
        idle_timeout_s: float,
        on_error: Callable[[BaseException], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.idle_timeout_s = idle_timeout_s
        self._on_error = on_error
        self._loop = Loop("relay", on_error, turn_s=TURN_S, clock=clock)
        self._streams: dict[Relayed, None] = {}
        self._followers: dict[Follower, None] = {}
        self.lines_bytes = 0  # kept of shared streams
        self.lines_max_bytes = LINES_MAX_BYTES
        self._lingering: dict[EngineStream, float] = {}
        self._closing = False
        self._judges = Threads("judge", JUDGES_MAX)
        self._can_judge = False  # there is a judge
        self._loop.later(SWEEP_S, self._sweep)
        self._loop.start()

    def take(self, exchange: Exchange, stream: EngineStream, unsent: bytes = b"") -> None:
        """Relay `stream` to the exchange's client from now on, behind `unsent`; both are concluded when it ends."""
        relayed = Relayed(exchange, stream, self, self._loop)
        relayed.unsent = unsent

        def cancel() -> None:
            relayed.cancelled = True
            self.post(relayed, functools.partial(self._cancel, relayed))

        exchange.on_cancel = cancel  # first: a client that leaves from now on is told here, one before is seen below
        call = exchange.call
        if call is not None and call.cancelled:
            relayed.cancelled = True  # the client left between the first event and now
        self.post(relayed, functools.partial(self._begin, relayed))

    def share(self, exchange: Exchange, stream: EngineStream, shared: Shared, head: bytes) -> None:
        """Relay `stream` to the exchange's client, whose answer begins with `head`, and to all who follow it."""
        crowd = Crowd(exchange, stream, shared, self, self._loop)
        flow = crowd.flow  # it may be over as soon as its first client has joined
        crowd.join(exchange, head)
        self.post(flow, functools.partial(self._begin_shared, flow))
        shared.flights.opened(shared.flight, crowd)

    @property
    def loop(self) -> Loop:
        """What its thread waits with; for what that thread calls."""
        return self._loop

    def call_soon(self, step: Callable[[], None]) -> None:
        """Have the relay's thread run a step, which raises nothing."""
        self._loop.soon(lambda events: step())

    def add_follower(self, follower: Follower) -> None:
        """Look after the time of one."""
        self._followers[follower] = None

    def drop_follower(self, follower: Follower) -> None:
        """A follower is over."""
        self._followers.pop(follower, None)

    def post(self, relayed: Relayed, step: Callable[[], None]) -> None:
        """Have the relay's thread run a step of a stream; where it has ended, this thread does, and ends the stream."""
        self._loop.soon(functools.partial(self._step, relayed, step))

    def on_error(self, error: BaseException) -> None:
        """Hear of what nobody had foreseen."""
        self._on_error(error)

    def __len__(self) -> int:
        return len(self._streams)

    def close(self, timeout_s: float) -> None:
        """End every stream and the thread."""
        self._closing = True
        self._loop.soon(self._end_all)
        self._loop.close(timeout_s)
        self._judges.close(timeout_s)

    # --- the thread ------------------------------------------------------------------------------------------------

    def _step(self, relayed: Relayed, step: Callable[[], None], events: int) -> None:
        relayed.guarded(step)

    def _begin(self, relayed: Relayed) -> None:
        self._streams[relayed] = None
        if self._closing:
            relayed.cut_short()
        else:
            relayed.begin()

    def _begin_shared(self, flow: Relayed) -> None:
        if flow.over:
            return
        self._streams[flow] = None
        if self._closing:
            flow.cut_short()
        else:
            flow.begin()

    def _cancel(self, relayed: Relayed) -> None:
        if relayed in self._streams and not relayed.away:  # else it is seen when it begins, or comes back
            relayed.cancel()

    def drop(self, relayed: Relayed) -> None:
        """A stream is over."""
        self._streams.pop(relayed, None)

    def judge(self, job: Job) -> None:
        """Have a thread run a job, which raises nothing; where the system gives none, this one does."""
        if not self._can_judge:
            try:
                self._judges.start()
            except RuntimeError:
                job()
                return
            self._can_judge = True
        self._judges.run(job)

    def linger(self, stream: EngineStream) -> None:
        """Wait for the end of a stream's body, for a while."""
        self._lingering[stream] = self._loop.began_s + DRAIN_S
        self._loop.watch(stream.sock.fileno(), functools.partial(self._linger_on, stream))

    def _linger_on(self, stream: EngineStream, events: int) -> None:
        try:
            stream.pull()
        except Exception:  # also what nobody had foreseen: its answer is over, it has only to end well
            self._stop_lingering(stream)
            return
        if stream.drained:
            self._stop_lingering(stream)

    def _stop_lingering(self, stream: EngineStream) -> None:
        if self._lingering.pop(stream, None) is not None:
            self._loop.unwatch(stream.sock.fileno())
            stream.give_back()

    def _sweep(self, events: int) -> None:
        """End what has been silent for too long, an engine or a client that takes nothing, and what is complete."""
        self._loop.later(SWEEP_S, self._sweep)
        now_s = self._loop.began_s
        for relayed in [r for r in self._streams if now_s - r.active_s > self.idle_timeout_s and not r.away]:
            relayed.guarded(relayed.time_out)
        for follower in [f for f in self._followers if f.behind_bytes and now_s - f.active_s > self.idle_timeout_s]:
            follower.gone()
        for relayed in [r for r in self._streams if now_s >= r.end_s]:
            relayed.guarded(relayed.finish_late)
        for stream in [s for s, until_s in self._lingering.items() if now_s > until_s]:
            self._stop_lingering(stream)

    def _end_all(self, events: int) -> None:
        for relayed in list(self._streams):
            relayed.guarded(relayed.cut_short)
        for follower in list(self._followers):
            follower.gone()
        for stream in list(self._lingering):
            self._stop_lingering(stream)
