"""Names of engines to addresses, off the threads of requests.

`Resolver` owns what is known of each name and the threads that look names up: started when there is something to look
up, ended when there is nothing more. `_lock` guards the names, the look-ups that wait and those under way; it is never
held while a name is looked up, a thread is started or anybody is told. A name has one look-up at a time, which all who
want it wait for. An answer is replaced whole, so that `known` and `holds` need no lock. A result is set before its
event, and a thread that ends a look-up takes the next under the lock under which they are appended: none is left over.

A look-up cannot be stopped: getaddrinfo returns when it does. So that some that hang keep no other name waiting, one
that has taken longer than STUCK_S is no longer counted against THREADS, and one that has taken longer than LOST_S no
longer stands for its name, which may have LOOKUPS_PER_NAME of them; LOOKUPS_MAX bounds what all of them hold.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Callable, NamedTuple, Optional

from gateway.steps import Event, Steps

THREADS = 4
STUCK_S = 1.0
LOST_S = 30.0
LOOKUPS_PER_NAME = 3
LOOKUPS_MAX = 64  # under way, stuck and lost ones included: each holds a thread
RETRY_S = 1.0  # after a failure; who asks earlier has the failure at once, or the last good answer
REFRESH_AT = 0.75  # of its time to live an answer is looked up again, while it goes on being used
SLICE_S = 0.05  # how often who waits looks whether it is still wanted to
CLOSE_S = 1.0  # for threads to end, all together

Address = tuple[int, tuple[Any, ...]]
"""A family, and a socket address of it with port 0."""

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class _Answer(NamedTuple):
    addresses: tuple[Address, ...]
    refresh_at_s: float
    until_s: float


class _Name:
    """What is known of one name."""

    __slots__ = ("answer", "failure", "lookup", "retry_at_s")

    def __init__(self) -> None:
        self.answer: Optional[_Answer] = None  # the last good one
        self.failure: Optional[OSError] = None  # of the last look-up
        self.retry_at_s = float("-inf")
        self.lookup: Optional[_LookUp] = None  # that stands for it: waiting or under way


class _LookUp:
    """One look-up; `addresses` or `failure` is set before `done`."""

    __slots__ = ("addresses", "began_s", "done", "failure", "host", "thread")

    def __init__(self, host: str) -> None:
        self.host = host
        self.began_s = 0.0
        self.thread: Optional[threading.Thread] = None
        self.addresses: tuple[Address, ...] = ()
        self.failure: Optional[OSError] = None
        self.done = threading.Event()


class Resolver:
    """Looks names up and keeps the answers for `ttl_s` seconds (0: not at all). Thread-safe.

    `getaddrinfo` None is the socket module's; `clock` gives monotonic seconds, for the ages of answers. `on_change` may
    be set to a function that hears of a name whose addresses are others than before, on the thread that has looked.
    """

    def __init__(
        self,
        ttl_s: float = 30.0,
        *,
        getaddrinfo: Optional[Callable[..., Iterable[Any]]] = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl_s = ttl_s
        self._getaddrinfo = getaddrinfo or socket.getaddrinfo
        self._clock = clock
        self.on_change: Callable[[str], None] = lambda host: None
        self._lock = threading.Lock()
        self._names: dict[str, _Name] = {}
        self._kept: frozenset[str] = frozenset()
        self._waiting: deque[_LookUp] = deque()
        self._under_way: dict[_LookUp, None] = {}
        self._closed = False

    # --- asking ----------------------------------------------------------------------------------------------------

    def known(self, host: str) -> Optional[tuple[Address, ...]]:
        """The addresses of a name, where they are known and not too old; else None. Never blocks."""
        name = self._names.get(host)
        answer = None if name is None else name.answer
        if answer is None or not self._ttl_s or self._clock() >= answer.until_s:
            return None
        return answer.addresses

    def last_known(self, host: str) -> Optional[tuple[Address, ...]]:
        """The addresses that a name had when it was last found, however long ago; None: never. Never blocks."""
        name = self._names.get(host)
        answer = None if name is None else name.answer
        return None if answer is None else answer.addresses

    def holds(self, host: str, address: Address) -> bool:
        """Return whether an address is among those of the name, as far as is known. Never blocks."""
        name = self._names.get(host)
        answer = None if name is None else name.answer
        return answer is None or address in answer.addresses

    def addresses(
        self, host: str, deadline_s: float, ended: Callable[[], bool] = lambda: False
    ) -> Steps[tuple[Address, ...]]:
        """The addresses of a name, in the order in which they are to be tried; waits only while none is known.

        Raises socket.timeout at `deadline_s` (of time.monotonic) and soon after `ended()` has become true, else OSError
        as getaddrinfo does.
        """
        found, lookup = self._ask(host)
        if lookup is not None and found is None:
            yield from self._wait(lookup, deadline_s, ended)
            if lookup.failure is not None:
                raise _again(lookup.failure)
            found = lookup.addresses
        assert found is not None
        return found

    def _wait(self, lookup: _LookUp, deadline_s: float, ended: Callable[[], bool]) -> Steps[None]:
        while True:
            self._staff()  # those before it may be stuck by now
            left_s = deadline_s - time.monotonic()
            if (yield Event(lookup.done, max(0.0, min(left_s, SLICE_S)))):
                return
            if left_s <= 0 or ended():
                raise socket.timeout("timed out")

    def _ask(self, host: str) -> tuple[Optional[tuple[Address, ...]], Optional[_LookUp]]:
        """What is known of a name, and the look-up that has been begun or joined. Raises a failure of lately."""
        with self._lock:
            name = self._names.setdefault(host, _Name())
            now_s = self._clock()
            answer = name.answer if self._ttl_s else None
            if answer is not None and now_s < answer.refresh_at_s:
                return answer.addresses, None
            if self._ttl_s and now_s < name.retry_at_s:
                if answer is not None:
                    return answer.addresses, None
                if name.failure is not None:
                    raise _again(name.failure)
            lookup = self._begin_locked(host, name, now_s)
        self._staff()
        return None if answer is None else answer.addresses, lookup

    # --- keeping ---------------------------------------------------------------------------------------------------

    def keep(self, hosts: Iterable[str]) -> None:
        """Look these names up now and again whenever their answers get old (see `tick`); forget all others."""
        with self._lock:
            self._kept = frozenset(hosts)
            self._names = {host: name for host, name in self._names.items() if host in self._kept}
        self.tick()

    def tick(self) -> None:
        """Begin the look-ups that are due; waits for none of them."""
        if not self._ttl_s:
            return
        with self._lock:
            now_s = self._clock()
            for host in self._kept:
                name = self._names.setdefault(host, _Name())
                if now_s >= name.retry_at_s and (name.answer is None or now_s >= name.answer.refresh_at_s):
                    self._begin_locked(host, name, now_s)
        self._staff()

    def doubt(self, host: str) -> None:
        """Nothing answers at the addresses of a name: look it up again, at most every RETRY_S."""
        with self._lock:
            name = self._names.get(host)
            now_s = self._clock()
            if name is None or not self._ttl_s or now_s < name.retry_at_s:
                return
            self._begin_locked(host, name, now_s)
        self._staff()

    def close(self) -> None:
        """Look nothing up any more; who waits gets an error. Waits CLOSE_S at most: a look-up that hangs is left."""
        with self._lock:
            self._closed = True
            lookups = [*self._waiting, *self._under_way]
            threads = [lookup.thread for lookup in self._under_way]
            self._waiting.clear()
            for lookup in lookups:
                if not lookup.done.is_set():
                    lookup.failure = _closed()
        for lookup in lookups:
            lookup.done.set()
        deadline_s = time.monotonic() + CLOSE_S
        for thread in threads:
            # One that is not alive has not been started yet: it ends at once when it is.
            if thread is not None and thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, deadline_s - time.monotonic()))

    # --- looking up ------------------------------------------------------------------------------------------------

    def _begin_locked(self, host: str, name: _Name, now_s: float) -> _LookUp:
        """The look-up that stands for a name: the one there is, or a new one, which waits for a thread."""
        lookup = name.lookup
        if lookup is None or self._is_lost_locked(lookup, now_s):
            lookup = name.lookup = _LookUp(host)
            if self._closed:
                lookup.failure = _closed()
                lookup.done.set()
            else:
                self._waiting.append(lookup)
        return lookup

    def _is_lost_locked(self, lookup: _LookUp, now_s: float) -> bool:
        if lookup not in self._under_way or now_s - lookup.began_s < LOST_S:
            return False
        return sum(other.host == lookup.host for other in self._under_way) < LOOKUPS_PER_NAME

    def _next_locked(self) -> Optional[_LookUp]:
        """A look-up to be made now, by a thread of its own or by one that has just ended another; None: nothing is."""
        now_s = self._clock()
        busy = sum(now_s - lookup.began_s < STUCK_S for lookup in self._under_way)
        if not self._waiting or busy >= THREADS or len(self._under_way) >= LOOKUPS_MAX:
            return None
        lookup = self._waiting.popleft()
        lookup.began_s = now_s
        self._under_way[lookup] = None
        return lookup

    def _staff(self) -> None:
        """Start threads for what waits. A look-up taken out under the lock is this thread's to have made."""
        while self._waiting:  # an item is seen by its appender at least, which comes here after it
            with self._lock:
                lookup = self._next_locked()
                if lookup is None:
                    return
                lookup.thread = thread = threading.Thread(
                    target=self._run, args=(lookup,), name="resolver", daemon=True
                )
            try:
                thread.start()
            except RuntimeError:  # the system gives no more threads, which is not the engine's fault
                lookup.thread = None
                self._finish(lookup, (), OSError(errno.ENOBUFS, "no thread is left to look up the name"))

    def _run(self, lookup: _LookUp) -> None:
        following: Optional[_LookUp] = lookup
        while following is not None:
            lookup = following
            addresses: tuple[Address, ...] = ()
            failure: Optional[OSError] = None
            try:
                if self._closed:
                    raise _closed()
                addresses = in_order(self._getaddrinfo(lookup.host, None, 0, socket.SOCK_STREAM))
                if not addresses:
                    failure = socket.gaierror(socket.EAI_NONAME, "the name has no address")
            except OSError as error:
                failure = error
            except Exception as error:  # UnicodeError, say: what cannot be looked up has no address
                failure = socket.gaierror(socket.EAI_NONAME, f"the name cannot be looked up: {error}")
            following = self._finish(lookup, addresses, failure)

    def _finish(self, lookup: _LookUp, addresses: tuple[Address, ...], failure: Optional[OSError]) -> Optional[_LookUp]:
        """Take a result over and tell who waits for it; returns what this thread is to look up next."""
        changed = False
        with self._lock:
            self._under_way.pop(lookup, None)
            name = self._names.get(lookup.host)
            if not lookup.done.is_set():  # else it has been closed
                lookup.addresses, lookup.failure = addresses, failure
            if name is not None and name.lookup is lookup:  # else it is lost, or the name is forgotten
                name.lookup = None
                now_s = self._clock()
                name.failure = failure
                name.retry_at_s = now_s + RETRY_S
                if failure is None:
                    before = name.answer
                    refresh_at_s = now_s + REFRESH_AT * self._ttl_s
                    name.retry_at_s = min(name.retry_at_s, refresh_at_s)
                    name.answer = _Answer(addresses, refresh_at_s, now_s + self._ttl_s)
                    changed = before is not None and set(before.addresses) != set(addresses)
            following = None if self._closed else self._next_locked()
            if following is not None:
                following.thread = lookup.thread
        lookup.done.set()
        if changed:
            self.on_change(lookup.host)
        return following


def in_order(found: Iterable[Any]) -> tuple[Address, ...]:
    """Addresses from what getaddrinfo has found, families taking turns from the first on (RFC 8305, section 4)."""
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found if family in _FAMILIES))
    first = [address for address in addresses if address[0] == addresses[0][0]]
    other = [address for address in addresses if address[0] != addresses[0][0]]
    paired = [address for pair in zip(first, other) for address in pair]
    shorter = min(len(first), len(other))
    return (*paired, *first[shorter:], *other[shorter:])


def _again(failure: OSError) -> OSError:
    """A failure to be raised on another thread: one exception raised on several would mix up their tracebacks."""
    return type(failure)(*failure.args)


def _closed() -> OSError:
    return socket.gaierror(socket.EAI_AGAIN, "the gateway is being stopped")
