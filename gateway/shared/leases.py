"""Single flight across gateways: of identical requests whose answer may be kept, one asks and the others wait for it.

`Leases` owns the leases that this gateway holds; its lock guards them, and is never held while the line is called. A
lease is a name in Redis that is there as long as its holder renews it: for LEASE_S after a gateway has died. Who finds
another's waits without a thread, at most WAIT_S, and looks every LOOK_S whether it is still there. When that says that
the answer is there, it is looked for in the cache; when the lease has ended without one, or the time is over, or Redis
cannot be asked, who waited goes on by itself. So a lease spares calls, and nobody fails by it.

Streams take no part: who wants to see an answer begin is not made to wait for its end.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Callable, Optional, TypeVar, Union

from gateway.errors import ClientGone
from gateway.shared.line import BEAT_S, Job, Line
from gateway.shared.scripts import Script
from gateway.steps import Flag, Flagged, Steps
from gateway.upstream.call import Call

T = TypeVar("T")

LEASE_S = 3.0
RENEW_S = 1.0
WAIT_S = 10.0
LOOK_S = 0.05
DONE_S = 0.5
"""For so long it is said that there is an answer: it may come to the cache a little later than that."""
OWN, ANOTHERS, DONE = 1, 2, 3
# KEYS: a lease. ARGV: by what it is known to be one's own, the milliseconds for which it is taken. Replies 1: it is
# taken now; 2: it is another's; 3: it is over, with an answer.
_TAKE = """
local value = redis.call('GET', KEYS[1])
if not value then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return 1
end
if value == 'done' then return 3 end
return 2
"""

# KEYS: a lease. ARGV: by what it is known to be one's own; for how many milliseconds it is said that there is an
# answer, 0: there is none.
_GIVE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return end
if tonumber(ARGV[2]) > 0 then redis.call('SET', KEYS[1], 'done', 'PX', ARGV[2]) else redis.call('DEL', KEYS[1]) end
"""

TAKE = Script(_TAKE)
GIVE = Script(_GIVE)


class Leases:
    """Takes leases. Thread-safe. `timeout_s` bounds the wait for each reply."""

    def __init__(self, line: Line, timeout_s: float) -> None:
        self.waiting = 0
        """Looks at others' leases that were waited for, ever."""
        self._line = line
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._held: dict[bytes, bytes] = {}  # names, and by what they are known to be our own
        self._renew_in_s = RENEW_S  # of the thread shared alone

    def take(self, call: Call, key: bytes, look: Callable[[], Steps[Optional[T]]]) -> Steps[Union[Lease, T, None]]:
        """A lease for `call`, to be given back; or what `look` finds when another gateway has answered.

        None: neither; the call is to be asked without a lease. Raises ClientGone when its client leaves meanwhile.
        """
        name, token = b"igw:f:" + key.hex().encode(), os.urandom(8)
        until_s = time.monotonic() + WAIT_S
        while True:
            state = yield from self._ask(call, name, token)
            if state == OWN:
                with self._lock:
                    self._held[name] = token
                return Lease(self, name, token)
            if state == DONE:
                found = yield from look()
                if found is not None:
                    return found
            if state is None or time.monotonic() >= until_s:
                return None
            self.waiting += 1
            yield from self._wait(call, Flag(), LOOK_S)

    def _ask(self, call: Call, name: bytes, token: bytes) -> Steps[Optional[int]]:
        """How the lease stands: taken now, if it was nobody's. None: Redis cannot say."""
        flag, states = Flag(), []
        over = threading.Lock()  # held by whichever comes first, the reply or the end of the wait

        def hear(reply: Any) -> None:
            states.append(reply)
            if over.acquire(blocking=False):
                flag.set()
            elif reply == OWN:
                self.give_back(name, token, False)

        milliseconds = int(LEASE_S * 1000)
        if not self._line.ask(Job(lambda whole: TAKE.command((name,), (token, milliseconds), whole), hear, asks=True)):
            return None
        try:
            yield from self._wait(call, flag, self._timeout_s)
        except BaseException:
            if not over.acquire(blocking=False) and states[0] == OWN:
                self.give_back(name, token, False)
            raise
        if over.acquire(blocking=False):
            return None
        state = states[0]
        return state if isinstance(state, int) else None

    def _wait(self, call: Call, flag: Flag, seconds: float) -> Steps[None]:
        call.wakes(flag)
        try:
            yield Flagged(flag, seconds)
        finally:
            call.wakes(None)
        if call.cancelled:
            raise ClientGone()

    def give_back(self, name: bytes, token: bytes, answered: bool) -> None:
        """A lease is held no longer; `answered`: there is an answer, or will be in a moment."""
        with self._lock:
            if self._held.get(name) == token:
                del self._held[name]
        milliseconds = int(DONE_S * 1000) if answered else 0
        self._line.tell(Job(lambda whole: GIVE.command((name,), (token, milliseconds), whole)))

    def beat(self) -> list[Job]:
        """What is to be done every BEAT_S: leases that are held are renewed now and then."""
        self._renew_in_s -= BEAT_S
        if self._renew_in_s > BEAT_S / 2:
            return []
        self._renew_in_s = RENEW_S
        milliseconds = int(LEASE_S * 1000)
        with self._lock:
            names = list(self._held)
        return [_renewal(name, milliseconds) for name in names]


class Lease:
    """A lease that is held. For one thread at a time."""

    __slots__ = ("_leases", "_name", "_token")

    def __init__(self, leases: Leases, name: bytes, token: bytes) -> None:
        self._leases = leases
        self._name = name
        self._token = token

    def give_back(self, answered: bool) -> None:
        """It is over; `answered`: with an answer that is kept."""
        self._leases.give_back(self._name, self._token, answered)


def _renewal(name: bytes, milliseconds: int) -> Job:
    return Job(lambda whole: (b"PEXPIRE", name, milliseconds))
