"""What the processes of one gateway tell each other: a child's end of it.

`Bus` owns its socket to the parent, which routes the frames (`switchboard.py`), and the thread "bus", which alone reads
and writes that socket. `_lock` guards what is to be sent; it is never held across I/O or a handler. Who waits for
answers is kept by `Questions`. `Alone` is the same thing where there is one process: it starts no thread and tells
nobody.

Nothing here waits for another process but `ask`, which has a limit. What cannot be sent in time is dropped and counted:
who listens must be able to do without a word.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Callable, Optional

from gateway.processes.frames import Frame, FrameError, Outbox, Unpacker, pack
from gateway.processes.questions import Questions

RECV_BYTES = 262_144
READS_MAX = 16  # before handlers and writing have their turn
WAIT_MAX_S = 60.0
ASK_S = 1.0
"""That others are waited for, unless somebody says otherwise."""
LATE_S = 0.25
"""That the parent has to say what those have left who do not answer."""
Handler = Callable[[Any, int], Any]


def _ignore(*_what: object) -> None:
    pass


class Bus:
    """One process's link with the others.

    `on`, `on_leader` and the callbacks are for before `start`; the rest is thread-safe. `slot` is this process's number
    in 0..count-1; while it is replaced, two processes have the same one. `crashed` is called with what a handler has
    raised. `on_order` gets what the parent wants: "drain", "hurry", "reload", "hand_over", or "orphaned", when there is
    no parent any more; `on_accept` the slots whose listening sockets this process is to accept on beside its own.
    `on_round` is called when the parent asks whether the process goes round: `goes_round` is the answer, from whatever
    thread it depends on. Who gives none is killed after a while.
    """

    def __init__(self, link: Optional[socket.socket], slot: int, count: int) -> None:
        self.slot = slot
        self.count = count
        self.crashed: Callable[[BaseException], None] = _ignore
        self.on_order: Callable[[str], None] = _ignore
        self.on_accept: Callable[[Sequence[int]], None] = _ignore
        self.on_round: Callable[[], None] = _ignore
        self._link = link
        self._leader = False
        self._handlers: dict[str, Handler] = {}
        self._leader_callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._outbox = Outbox()
        self._unsendable = 0
        self._questions = Questions()
        self._over = False  # the link: nobody hears anything any more
        self._closing_s: Optional[float] = None
        self._unpacker = Unpacker()
        self._thread: Optional[threading.Thread] = None

    @property
    def leader(self) -> bool:
        """Whether this is the process of the lowest slot that is ready; exactly one is, as far as the parent knows."""
        return self._leader

    @property
    def dropped(self) -> int:
        """Frames that were dropped since the start."""
        return self._outbox.dropped + self._unsendable

    def on(self, topic: str, handler: Handler) -> None:
        """Have `handler(what, slot)` called with what another process tells or asks, on the thread "bus": it must not
        block. What it returns is the answer to `ask`; None is none."""
        self._handlers[topic] = handler

    def on_leader(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when this process becomes the leader, on the thread "bus": it must not block. Not
        where it is so from the start (`Alone`)."""
        self._leader_callbacks.append(callback)

    def tell(self, topic: str, what: Any) -> None:
        """Tell all others. Never blocks; beyond what is kept for a parent that does not take it, dropped and counted.
        Raises TypeError and ValueError for what JSON has no words for."""
        self._send("tell", json.dumps(what).encode(), t=topic)

    def keep(self, topic: str, what: Any) -> None:
        """Leave a snapshot with the parent, in place of the one before. When this process has ended the parent adds it
        to those of others that have, and gives the sum to whoever asks for `topic`. As `tell` else."""
        self._send("keep", json.dumps(what).encode(), t=topic)

    def ask(self, topic: str, what: Any = None, timeout_s: float = ASK_S) -> list[Any]:
        """The answers of all others that come within `timeout_s`, and what the dead have left with the parent, in no
        order. Blocks until all have answered: not for loops, nor for the thread "bus" (RuntimeError)."""
        return self._ask(topic, what, timeout_s, left_too=False)[0]

    def survey(self, topic: str, what: Any = None, timeout_s: float = ASK_S) -> tuple[list[Any], int]:
        """As `ask`; of those who do not answer what they have left (`keep`), and how many they are. LATE_S longer."""
        return self._ask(topic, what, timeout_s, left_too=True)

    def _ask(self, topic: str, what: Any, timeout_s: float, left_too: bool) -> tuple[list[Any], int]:
        if threading.current_thread() is self._thread:
            raise RuntimeError("a handler must not ask: the answers come on its own thread")
        body = json.dumps(what).encode()
        question = self._questions.begin()  # before the look: who ends the bus behind that finds it
        with self._lock:
            over = self._over or self._thread is None
        if over:
            return self._questions.end(question, 0)
        self._send("ask", body, t=topic, n=question.number)
        if not question.done.wait(timeout_s) and left_too:
            self._send("late", n=question.number)
            question.late.wait(LATE_S)
        return self._questions.end(question, self.count - 1)

    def ready(self) -> None:
        """Say that this process serves."""
        self._send("ready", must=True)

    def goes_round(self) -> None:
        """Answer the parent. Never blocks."""
        self._send("round", must=True)

    def start(self) -> None:
        """Join: from now on handlers are called."""
        assert self._link is not None
        self._link.setblocking(False)
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        self._send("hello", must=True)
        self._thread = threading.Thread(target=self._run, name="bus", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Send what is to be sent, at most so long, and end. May be called again, and without `start`."""
        with self._lock:
            self._closing_s = time.monotonic() + timeout_s
        thread = self._thread
        if thread is not None:
            self._wake()
            thread.join(timeout_s + 1.0)
        elif self._link is not None:
            self._link.close()

    def _send(self, kind: str, body: bytes = b"", must: bool = False, **head: Any) -> None:
        try:
            frame = pack(kind, body, **head)
        except FrameError:
            with self._lock:
                self._unsendable += 1
            return
        with self._lock:
            if self._over:
                return
            first = not self._outbox
            self._outbox.put(frame, must)
        # Who puts the first one wakes the thread; it looks again behind each frame that it has sent.
        if first and self._thread is not None:
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is about to wake up; closed: it has ended
            self._waker.send(b"\0")

    # --- on the thread "bus" ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        link = self._link
        assert link is not None
        selector = selectors.DefaultSelector()
        selector.register(self._wakeup, selectors.EVENT_READ)
        selector.register(link, selectors.EVENT_READ)
        orphaned = False
        try:
            while True:
                with self._lock:
                    sending, closing_s = bool(self._outbox), self._closing_s
                timeout_s = WAIT_MAX_S
                if closing_s is not None:
                    timeout_s = closing_s - time.monotonic()
                    if not sending or timeout_s <= 0:
                        break
                selector.modify(link, selectors.EVENT_READ | (selectors.EVENT_WRITE if sending else 0))
                ready = [key.fileobj for key, _ in selector.select(timeout_s)]
                if self._wakeup in ready:
                    with contextlib.suppress(OSError):
                        self._wakeup.recv(4096)
                if link in ready and not (self._read(link) and self._write(link)):
                    orphaned = True
                    break
        except Exception as error:  # a bus that has died silently would be a process that knows nothing
            orphaned = True
            self.crashed(error)
        finally:
            self._end(selector, link)
        if orphaned:
            self.on_order("orphaned")

    def _end(self, selector: selectors.BaseSelector, link: socket.socket) -> None:
        with self._lock:
            self._over = True
            self._leader = False
            self._outbox.clear()
        self._questions.over()
        selector.close()
        link.close()
        self._wakeup.close()
        self._waker.close()

    def _read(self, link: socket.socket) -> bool:
        for _ in range(READS_MAX):
            try:
                data = link.recv(RECV_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            for frame in self._unpacker.feed(data):
                self._take(frame)
        return True

    def _write(self, link: socket.socket) -> bool:
        while True:
            with self._lock:
                if not self._outbox:
                    return True
                data = self._outbox.first()
            try:
                size = link.send(data)
            except BlockingIOError:
                return True
            except OSError:
                return False
            with self._lock:
                self._outbox.sent(size)

    def _take(self, frame: Frame) -> None:
        try:
            _TAKES[frame.kind](self, frame)
        except Exception as error:  # a handler's fault, or another process's: no reason to hear nothing more
            self.crashed(error)

    def _told(self, frame: Frame) -> None:
        handler = self._handlers.get(frame.text("t"))
        if handler is not None:
            handler(json.loads(frame.body), frame.number("s"))

    def _asked(self, frame: Frame) -> None:
        body = b""
        try:
            handler = self._handlers.get(frame.text("t"))
            answer = None if handler is None else handler(json.loads(frame.body), frame.number("s"))
            if answer is not None:
                body = json.dumps(answer).encode()
        finally:  # else the others would be waited for in vain
            self._send("answer", body, a=frame.number("a"), n=frame.number("n"))

    def _answered(self, frame: Frame) -> None:
        self._questions.answered(frame.number("n"), [json.loads(frame.body)] if frame.body else [])

    def _due(self, frame: Frame) -> None:
        self._questions.due(frame.number("n"), frame.number("c"))

    def _late(self, frame: Frame) -> None:
        self._questions.late(frame.number("n"), frame.number("c"))

    def _roster(self, frame: Frame) -> None:
        was, self._leader = self._leader, bool(frame.head.get("leader"))
        self.on_accept(json.loads(frame.body))
        if self._leader and not was:
            for callback in self._leader_callbacks:
                callback()

    def _ordered(self, frame: Frame) -> None:
        self.on_order(frame.text("o"))


_TAKES: dict[str, Callable[[Bus, Frame], None]] = {
    "tell": Bus._told,
    "ask": Bus._asked,
    "answer": Bus._answered,
    "due": Bus._due,
    "late": Bus._late,
    "roster": Bus._roster,
    "order": Bus._ordered,
    "round": lambda bus, _: bus.on_round(),
}


class Alone(Bus):
    """There is one process: it leads, and has nobody to tell anything."""

    def __init__(self) -> None:
        super().__init__(None, 0, 1)
        self._leader = True

    def tell(self, topic: str, what: Any) -> None:
        """Nobody hears it."""

    def keep(self, topic: str, what: Any) -> None:
        """Nobody asks for it."""

    def ask(self, topic: str, what: Any = None, timeout_s: float = ASK_S) -> list[Any]:
        """Nobody answers."""
        return []

    def survey(self, topic: str, what: Any = None, timeout_s: float = ASK_S) -> tuple[list[Any], int]:
        """Nobody answers, nor should anybody have."""
        return [], 0

    def ready(self) -> None:
        """Nobody waits for it."""

    def start(self) -> None:
        """There is nothing to start."""

    def close(self, timeout_s: float) -> None:
        """There is nothing to end."""
