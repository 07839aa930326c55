"""Active health checks: `tick()` probes what is due, a threading.Timer re-arms it.

Owns the timer and, during a tick, one short-lived thread per probe, so that a hung engine delays nobody else's probe;
it repeats one that has failed while requests wait at that engine, so that they soon know whether to move. Of many, so
many are asked at once, each thread going on with one that is left. `_lock` guards the timer, the probes under way and
those that are to follow. When the first round has ended is told by firstround.py, what a result means is decided in
routing/pool.py.

Behind a good probe, or instead of one where traffic vouches for the engine, it is asked for its models (`listing.py`).
"""

from __future__ import annotations

import functools
import math
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from typing import Callable, Optional

from gateway.errors import EngineFailed
from gateway.routing.engine import Engine
from gateway.routing.pool import ModelPool
from gateway.routing.specs import EngineSpec
from gateway.routing.standing import StateChange
from gateway.steps import drive
from gateway.upstream.connecting import client_tls
from gateway.upstream.connections import ConnectionPool
from gateway.upstream.firstround import FirstRound
from gateway.upstream.listing import ModelLists
from gateway.upstream.peers import Peers
from gateway.upstream.resolver import Resolver
from gateway.upstream.shortage import Shortage, in_connecting

MAX_PROBES_AT_ONCE = 64
SILENT_ROUNDS = 3  # of probes of which nothing is heard, until another process probes than the one that should
AGAIN_S = 1.0  # until a failed probe is repeated where requests wait
FAILS_UNANSWERED = 1  # failed probes that take out an engine that has never answered anything
HOUSEKEEPING_S = 5.0  # between two ticks, without probes
ROUND_GRACE_S = 0.5  # for what the first round takes beside the probes' own time limits
CLOSE_S = 5.0  # for probes to end when all ends: HEALTH_TIMEOUT may be hours, and nothing is lost with their threads
STATUS_LINE_MAX_BYTES = 4096


def probe(spec: EngineSpec, timeout_s: float, resolver: Optional[Resolver] = None) -> Optional[str]:
    """GET the engine's health path (default `/health` at the server's root). None when it is well, else what is wrong.
    Raises Shortage when the engine could not be asked for want of something here.

    Any answer below 500 is a live server: many have no health path and say 404. `timeout_s` covers the whole probe, so
    neither a name that is not found nor an engine that sends a byte now and then can hold one up. `resolver` None: the
    engine's name is looked up anew.
    """
    deadline_s = time.monotonic() + timeout_s
    try:
        tls = client_tls() if spec.scheme == "https" else None
        connection = drive(ConnectionPool(spec.host, spec.port, tls, timeout_s, resolver).connect(timeout_s))
        try:
            status = _ask_health(connection.sock, spec, deadline_s)
        finally:
            connection.close()
    except EngineFailed as error:
        raise Shortage from error
    except OSError as error:
        if in_connecting(error):
            raise Shortage from error
        return _what_is_wrong(error, timeout_s)
    return None if status < 500 else f"health check answered {status}"


def _what_is_wrong(error: OSError, timeout_s: float) -> str:
    if isinstance(error, socket.timeout):
        return f"health check failed: no answer within {timeout_s:g} s"
    if isinstance(error, ssl.SSLError):
        return f"health check: TLS failed: {error.reason}"
    return f"health check failed: {error.strerror or error}"


def _ask_health(sock: socket.socket, spec: EngineSpec, deadline_s: float) -> int:
    host = f"[{spec.host}]" if ":" in spec.host else spec.host
    request = (
        f"GET {spec.health_path or '/health'} HTTP/1.1\r\nHost: {host}:{spec.port}\r\n"
        "User-Agent: inference-gateway-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    sock.settimeout(max(0.001, deadline_s - time.monotonic()))
    sock.sendall(request.encode("latin-1"))
    line = b""
    while b"\n" not in line and len(line) < STATUS_LINE_MAX_BYTES:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise socket.timeout
        sock.settimeout(left_s)  # a socket's own timeout is per read
        data = sock.recv(STATUS_LINE_MAX_BYTES)
        if not data:
            break
        line += data
    found = re.match(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r\n]", line)
    if found is None:
        raise OSError("no HTTP answer" if line else "the connection was closed without an answer")
    return int(found[1])


def _in_doubt(engine: Engine, elsewhere: bool) -> bool:
    """Return whether requests wait at an engine whose last probe has failed, and that is not out for it. `elsewhere`:
    they may, in another process."""
    return bool(engine.fails and (elsewhere or engine.in_flight) and not (engine.down or engine.removed))


class HealthChecker:
    """Probes engines every `interval_s` seconds (0 = never) from `start` until `close`. Thread-safe.

    `followers` are an engine's other selves, which are not probed: what is found out of it goes for them, too. While it
    is `pending` which engines there are at the start, the first round is not over.
    Of several processes one probes, or another when that one hangs, and `peers` hear what it finds out (`hear`);
    traffic vouches for no engine then, as another process may have none.
    """

    def __init__(
        self,
        pools: Callable[[], Iterable[ModelPool]],
        on_change: Callable[[StateChange], None],
        *,
        interval_s: float,
        timeout_s: float,
        fails: int,
        passes: int,
        housekeeping: Callable[[], None],
        probe: Callable[[EngineSpec, float], Optional[str]] = probe,
        lists: Optional[ModelLists] = None,
        followers: Callable[[Engine], Iterable[tuple[ModelPool, Engine]]] = lambda engine: (),
        pending: Callable[[], bool] = lambda: False,
        peers: Optional[Peers] = None,
    ) -> None:
        self._pools = pools
        self._on_change = on_change
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._fails = fails
        self._passes = passes
        self._housekeeping = housekeeping
        self._probe = probe
        self._followers = followers
        self._pending = pending
        self._peers = Peers() if peers is None else peers
        self._lists = lists or ModelLists(lambda engine: False, dict)
        self._lock = threading.Lock()
        self._timer: Optional[threading.Timer] = None
        self._closed = False
        self._ending = threading.Event()
        self._under_way: dict[Engine, threading.Thread] = {}
        self._heard_s = time.monotonic()  # since when another process has told of no probe; written by any thread
        self._to_follow: dict[Engine, Callable[[], None]] = {}  # due, while as many as may be are under way
        self._first = FirstRound((), 0.0)

    def start(self) -> None:
        """Probe now and then every interval."""
        engines, limit_s = self._first_engines()
        self._first = FirstRound(engines, limit_s, self._lists.wanted, self._pending)
        self._arm(0.0)

    def joined(self) -> None:
        """There may be engines that nothing is known of: probe them now, in the first round if that is not over, or
        take over what the process knows that probes."""
        self._first.add(*self._first_engines())
        self._peers.joined()
        self.tick()

    def _first_engines(self) -> tuple[list[Engine], float]:
        """The engines of the first round, and how long it may take."""
        engines = [engine for pool in self._pools() for engine in pool.engines if not engine.spec.is_echo]
        listing = [engine for engine in engines if self._lists.wanted(engine)]
        if self._interval_s <= 0:
            engines = listing
        turns = math.ceil(len(engines) / MAX_PROBES_AT_ONCE) + math.ceil(len(listing) / MAX_PROBES_AT_ONCE)
        return engines, turns * self._timeout_s + ROUND_GRACE_S

    def probed(self) -> bool:
        """Whether the first round of probes has ended; at once without probes, and for engines that need none."""
        return self._first.over()

    def wait_probed(self, timeout_s: float) -> bool:
        """Wait for that, at most `timeout_s` seconds; returns whether it is so. False when closed before."""
        return self._first.wait(timeout_s, self._ending)

    def _arm(self, delay_s: float) -> None:
        """Raises RuntimeError when the system gives no more threads."""
        with self._lock:
            if self._closed:
                return
            timer = threading.Timer(delay_s, self._fire)
            timer.name = "health"
            timer.daemon = True
            timer.start()  # under the lock, so that close() never joins a timer that has not started
            self._timer = timer

    def _fire(self) -> None:
        try:
            self.tick()
        finally:
            self._rearm(self._interval_s if self._interval_s > 0 else HOUSEKEEPING_S)

    def _rearm(self, delay_s: float) -> None:
        while not self._ending.is_set():
            try:
                self._arm(delay_s)
                return
            except RuntimeError:  # no thread for the next tick: this one waits until there is
                self._ending.wait(delay_s)

    def tick(self) -> None:
        """Start a probe of every engine that is due and not being probed; does not wait for them."""
        self._housekeeping()
        if not self._peers.leads and not self._none_probes():
            return
        fresh_s = 0.0 if self._peers.shares else self._interval_s
        for pool in self._pools():
            due = pool.due_for_probe(fresh_s) if self._interval_s > 0 else ()
            for engine in due:
                self._begin(engine, functools.partial(self._run_probe, pool, engine))
            for engine in pool.engines:
                if self._lists.due(engine, self._interval_s) and engine not in due:
                    self._begin(engine, functools.partial(self._ask_models, engine))

    def _none_probes(self) -> bool:
        """Whether the process that should probe has told of none for so long that it must hang. What this one tells
        then is heard by the others, so it is hardly more than one that takes its place."""
        silent_s = time.monotonic() - self._heard_s
        return self._interval_s > 0 and silent_s > SILENT_ROUNDS * self._interval_s + self._timeout_s

    def _begin(self, engine: Engine, ask: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._run, args=(engine, ask), name=f"probe-{engine.id}", daemon=True)
        with self._lock:
            if self._closed or engine in self._under_way:
                return
            if len(self._under_way) >= MAX_PROBES_AT_ONCE:
                self._to_follow[engine] = ask
                return
            self._under_way[engine] = thread
            try:
                thread.start()  # under the lock, as the timer is
            except RuntimeError:  # the system gives no more threads: a later tick gets to it
                del self._under_way[engine]

    def _run(self, engine: Engine, ask: Callable[[], None]) -> None:
        try:
            ask()
        except Shortage:
            pass  # nothing has been learned
        finally:
            self._first.done(engine)
            self._over(engine)

    def _run_probe(self, pool: ModelPool, engine: Engine) -> None:
        while True:
            error = self._probe(engine.spec, self._timeout_s)
            change = self._record(pool, engine, error)
            if change is not None:
                self._on_change(change)
            if error is None:
                self._ask_models(engine)
            self._peers.probed(engine, error)
            same = [engine, *self._record_followers(engine, error)]
            # What waits there moves once it is out: that is to be known sooner than an interval later.
            if not self._any_in_doubt(same) or self._ending.wait(min(AGAIN_S, self._interval_s)):
                return
            if not self._any_in_doubt(same):
                return

    def _record(self, pool: ModelPool, engine: Engine, error: Optional[str]) -> Optional[StateChange]:
        return pool.record_probe(engine, error, self._fails, self._passes, FAILS_UNANSWERED)

    def _record_followers(self, engine: Engine, error: Optional[str]) -> list[Engine]:
        """What was found out of an engine goes for those that it has just listed, too; returns them."""
        same = []
        for pool, other in self._followers(engine):
            self._record(pool, other, error)
            same.append(other)
        self._first.done(engine)
        return same

    def _any_in_doubt(self, engines: Iterable[Engine]) -> bool:
        return any(_in_doubt(engine, self._peers.shares) for engine in engines)

    def hear(self, pool: ModelPool, engine: Engine, error: Optional[str]) -> None:
        """Another process has probed an engine, and told of it: it counts as if it had been probed here."""
        self._heard_s = time.monotonic()
        self._record(pool, engine, error)
        self._record_followers(engine, error)

    def known(self, engine: Engine) -> None:
        """Another process has told how an engine is: nobody need wait for a probe of it."""
        self._first.done(engine)

    def _ask_models(self, engine: Engine) -> None:
        if self._lists.due(engine, self._interval_s) and not self._ending.is_set():
            self._lists.ask(engine, self._timeout_s)
            if engine.listed is not None:
                self._peers.listed(engine)

    def _over(self, engine: Engine) -> None:
        """The probe of `engine` is over: one that is left, if any, begins."""
        following: Optional[tuple[Engine, Callable[[], None]]] = None
        with self._lock:
            del self._under_way[engine]
            while self._to_follow and (following is None or following[0].removed):
                following = next(iter(self._to_follow.items()))
                del self._to_follow[following[0]]
        if following is not None:
            self._begin(*following)

    def close(self) -> None:
        """Stop; waits for probes under way, which have their own time limit, CLOSE_S seconds at most for them all."""
        with self._lock:
            self._closed = True
            self._ending.set()
            timer = self._timer
            probes = list(self._under_way.values())
        deadline_s = time.monotonic() + CLOSE_S
        if timer is not None:
            timer.cancel()
            timer.join(CLOSE_S)
        for thread in probes:
            thread.join(max(0.0, deadline_s - time.monotonic()))
