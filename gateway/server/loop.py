"""One thread that waits for many sockets at once.

`Loop` owns what the system waits with and its thread; a descriptor's target is a function that is called there when the
socket is ready, and that must not block. There is a loop for clients and engines, and one for relayed streams.

Where the system has epoll, a socket that is waited for again and again is registered once and reported at each arrival
(edge-triggered), so that no later wait costs a call of the system. Elsewhere `selectors` does the same with one call
more.
"""

from __future__ import annotations

import contextlib
import heapq
import select
import selectors
import threading
import time
from collections import deque
from typing import Callable

from gateway.server.wakeup import Wakeup

HAS_EPOLL = hasattr(select, "epoll")
# Where there is no epoll, this can still be imported.
_READABLE = getattr(select, "EPOLLIN", 1)
_WRITABLE = getattr(select, "EPOLLOUT", 4)
HUNG_UP = getattr(select, "EPOLLRDHUP", 0x2000)  # PyPy 3.9 does not name it
_EACH = getattr(select, "EPOLLET", 1 << 31)
_ALL = _READABLE | _WRITABLE | HUNG_UP | _EACH
EVENTS_MAX = 256  # at once
WAIT_MAX_S = 1.0
TOGETHER = 8
# select() waits for 1 024 descriptors (Windows: 512), and each client may need one for its engine, too.
CONNECTIONS_MAX = 200 if isinstance(selectors.DefaultSelector(), selectors.SelectSelector) else 1 << 30

Target = Callable[[int], None]  # gets the events that epoll reports, 0 = none


def nothing() -> None:
    """No turn is over."""


class Loop:
    """Calls the targets of sockets that are ready. `soon`, `unwatch` and `forget` are thread-safe; all else is for its
    own thread, or before `start`.

    `after_turn` is called when all that were ready have been, before it waits for more. With `turn_s`, so many seconds
    pass from one turn to the next at least, unless TOGETHER sockets are ready; nothing is to be added then, for an edge
    may be lost.
    """

    def __init__(
        self,
        name: str,
        on_error: Callable[[BaseException], None],
        after_turn: Callable[[], None] = nothing,
        turn_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._poller = select.epoll() if HAS_EPOLL else _Selecting()
        self.each_once = not HAS_EPOLL  # a socket is to be waited for again after each call
        self._on_error = on_error
        self._after_turn = after_turn
        self._turn_s = turn_s
        self._clock = clock
        self.began_s = clock()  # the turn under way; only with `turn_s`
        self._targets: dict[int, Target] = {}
        self._again: list[tuple[Target, int]] = []
        self._later: list[tuple[float, int, Target]] = []
        self._posted: deque[Target] = deque()
        self._closing = False
        self._ended = False
        self._wakeup = Wakeup()
        self.watch(self._wakeup.receiver.fileno(), self._call_posted)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread_id = 0

    def start(self) -> None:
        """Begin to wait."""
        self._thread.start()

    def on_thread(self) -> bool:
        """Return whether the caller runs on the loop's thread."""
        return threading.get_ident() == self._thread_id

    def watch(self, descriptor: int, target: Target, writing: bool = False) -> None:
        """Call `target` as long as the socket is ready (to be read, or to be written to), until `unwatch`."""
        self._targets[descriptor] = target
        self._poller.register(descriptor, _WRITABLE if writing else _READABLE)

    def add(self, descriptor: int) -> None:
        """The socket is to be waited for again and again, until it is closed or `unwatch` is called."""
        if not self.each_once:
            self._poller.register(descriptor, _ALL)

    def wait_for(self, descriptor: int, target: Target, writing: bool = False) -> None:
        """Call `target` when a socket that has been added is ready, at least once, and maybe in vain.

        The caller has just read (or written) as much as there was: what becomes ready after that is an edge, which is
        reported in the next turn at the earliest, since this is the thread that asks for it.
        """
        self._targets[descriptor] = target
        if self.each_once:
            self._poller.modify(descriptor, (_WRITABLE if writing else _READABLE) | _EACH)

    def forget(self, descriptor: int) -> None:
        """Call nothing for this socket until it is waited for again. Also before it is closed: its number may be
        another's then."""
        self._targets.pop(descriptor, None)
        if self.each_once:
            self._poller.unregister(descriptor)

    def unwatch(self, descriptor: int) -> None:
        """Stop watching a socket that stays open."""
        self._targets.pop(descriptor, None)
        with contextlib.suppress(OSError, ValueError):  # it is not watched; the loop has ended
            self._poller.unregister(descriptor)

    def soon(self, target: Target) -> None:
        """Call `target` with 0 on the loop's thread; on this one, now, when the loop has ended. Thread-safe.

        The thread sets `_ended` and then calls what has been posted; this posts and then looks: one of the two sees the
        other, and where both do, `_call_posted` takes a target out once.
        """
        self._posted.append(target)
        self._wakeup.wake()
        if self._ended:
            self._call_posted(0)

    def again(self, target: Target, events: int) -> None:
        """Call `target` with `events` after what has its turn now."""
        self._again.append((target, events))

    def later(self, delay_s: float, target: Target) -> None:
        """Call `target` with 0 after `delay_s` seconds."""
        heapq.heappush(self._later, (time.monotonic() + delay_s, id(target), target))

    def close(self, timeout_s: float) -> None:
        """End the thread; what has been posted is still called."""
        self._closing = True
        self._wakeup.wake()
        if self._thread.ident is None:
            self._end()
        else:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        self._thread_id = threading.get_ident()
        target_of, later = self._targets.get, self._later
        wait = self._wait if self._turn_s else self._poller.poll
        timeout_s = WAIT_MAX_S
        while not self._closing:
            for descriptor, events in wait(timeout_s, EVENTS_MAX):
                target = target_of(descriptor)
                if target is not None:
                    try:
                        target(events)
                    except Exception as error:
                        self._on_error(error)
            try:
                self._after_turn()
            except Exception as error:
                self._on_error(error)
            timeout_s = WAIT_MAX_S
            if later:
                timeout_s = min(later[0][0] - time.monotonic(), WAIT_MAX_S)
            if timeout_s <= 0.0 or self._again:
                timeout_s = self._call_others()
        self._end()

    def _end(self) -> None:
        self._ended = True
        while self._posted:
            self._call_posted(0)
        self._poller.close()
        self._wakeup.close()

    def _wait(self, timeout_s: float, events_max: int) -> list[tuple[int, int]]:
        """Return what is ready; while events come fast, after the pause that lets more be taken together."""
        ready = self._poller.poll(timeout_s, events_max)
        last_s, self.began_s = self.began_s, self._clock()
        early_s = last_s + self._turn_s - self.began_s
        if early_s > 0 and len(ready) < TOGETHER:
            time.sleep(early_s)
            ready = self._poller.poll(0.0, events_max)
            self.began_s = self._clock()  # not before: what is ready has come by then
        return ready

    def _call_posted(self, events: int) -> None:
        self._wakeup.clear()
        for _ in range(len(self._posted)):  # what is posted meanwhile wakes it again: sockets have their turn between
            try:
                target = self._posted.popleft()
            except IndexError:
                return
            try:
                target(0)
            except Exception as error:
                self._on_error(error)

    def _call_others(self) -> float:
        """Call what is to be called without an arrival; returns the seconds until the next of these."""
        calls, self._again = self._again, []
        now_s = time.monotonic()
        while self._later and self._later[0][0] <= now_s:
            calls.append((heapq.heappop(self._later)[2], 0))
        for target, events in calls:
            try:
                target(events)
            except Exception as error:
                self._on_error(error)
        if self._again:
            return 0.0
        return min(max(0.0, self._later[0][0] - now_s), WAIT_MAX_S) if self._later else WAIT_MAX_S


class _Selecting:
    """As much of epoll as the loop needs, over `selectors`: what is waited for once is reported once.

    A socket must be unregistered before it is closed: who is waited for has a target, and `Loop.forget` is called."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._once: set[int] = set()

    def register(self, descriptor: int, events: int) -> None:
        self._selector.register(descriptor, _direction(events))

    def modify(self, descriptor: int, events: int) -> None:
        if descriptor in self._once:
            self._selector.modify(descriptor, _direction(events))
        else:
            self._selector.register(descriptor, _direction(events))
            self._once.add(descriptor)

    def unregister(self, descriptor: int) -> None:
        self._once.discard(descriptor)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(descriptor)

    def poll(self, timeout_s: float, events_max: int) -> list[tuple[int, int]]:
        ready = [(key.fd, _READABLE) for key, _ in self._selector.select(timeout_s)]
        for descriptor, _ in ready:
            if descriptor in self._once:
                self.unregister(descriptor)
        return ready

    def close(self) -> None:
        self._selector.close()


def _direction(events: int) -> int:
    return selectors.EVENT_WRITE if events & _WRITABLE else selectors.EVENT_READ
