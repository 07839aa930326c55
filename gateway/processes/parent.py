"""The parent of several processes that serve one address: it starts them, watches over them, and serves nothing.

`Parent` owns the listening sockets, the children, the links with them and its own lines of the log. It is one thread
and one loop; what it decides is `supervision.py`, and nothing in it waits for a child, or for who reads the log.
Children are started as the parent was, by the same command: so each has fresh code and settings, and none is a copy of
a process with threads.
"""

from __future__ import annotations

import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional, TextIO

from gateway.clock import unix_s
from gateway.ending import EXIT_INTERRUPTED
from gateway.limits.sharedtable import ENVIRONMENT as LIMITS
from gateway.limits.sharedtable import SharedTable
from gateway.processes.child import HAND_OVER, Inherited
from gateway.processes.links import Links
from gateway.processes.output import Lock, new_lock
from gateway.processes.supervision import Action, Ask, End, Kill, Log, Order, Place, Start, Supervision
from gateway.program import CHILD_VARIABLE, shows_colours
from gateway.signals import hold, release
from gateway.telemetry.events import LogRecord
from gateway.telemetry.logs import LEVELS, format_json
from gateway.telemetry.merging import fold
from gateway.telemetry.textlines import TextLines, look_of

if TYPE_CHECKING:
    from gateway.settings import Settings
    from gateway.signals import Signals

LOOK_S = 1.0  # how late a death may be seen of which no signal has told
DEATH_S = 2.0  # from the end of a child's link to its own
WAITING_LINES = 1_000
LINES_RETRY_S = 0.1
DRAINING = "\rdraining; Ctrl-C again ends at once\n"  # over the ^C that the terminal has shown


def processes_of(wanted: int) -> int:
    """How many processes PROCESSES means: 0 is one for each processor that this one may use."""
    if wanted:
        return wanted
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def own_command() -> list[str]:
    """What started this process, to be started again."""
    python = sys.executable or "python3"
    original = getattr(sys, "orig_argv", None)  # 3.10
    if original:
        return [python, *original[1:]]
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return [python, *flags, "-m", path.parent.name, *sys.argv[1:]]
    return [python, *flags, *sys.argv]


def supervise(settings: Settings, signals: Signals, sockets: Sequence[socket.socket], count: int) -> int:
    """Have `count` processes serve on `sockets` until they have ended; returns the exit status. `signals` serve."""
    descriptor = new_lock()
    colours = shows_colours(sys.stderr, os.environ)
    lines = Lines(sys.stderr, settings.log_format, settings.log_level, Lock(descriptor), colours)
    drain_s = settings.drain_timeout_s
    plan = Supervision(count, settings.drain_delay_s + drain_s, settings.keepalive_timeout_s + drain_s)
    return Parent(own_command(), os.environ, sockets, count, plan, signals, lines, descriptor).run()


class Lines:
    """The parent's lines of the log, on a stream that children write to, too. Never waits for who reads it: what is not
    taken is kept, up to a limit, and tried again."""

    def __init__(self, stream: TextIO, log_format: str, level: str, lock: Lock, colours: bool) -> None:
        if log_format == "auto":
            log_format = "text" if stream.isatty() else "json"
        self._format = TextLines(look_of(stream, colours)) if log_format == "text" else format_json
        self._least = LEVELS[level]
        self._stream = stream
        self._lock = lock
        self.waiting: deque[str] = deque(maxlen=WAITING_LINES)

    def log(self, level: str, event: str, **fields: object) -> None:
        """Write a line, now or later."""
        if LEVELS[level] >= self._least:
            self.waiting.append(self._format(LogRecord(unix_s(), level, event, fields)) + "\n")
            self.flush()

    def say(self, text: str) -> None:
        """Print a line for somebody at a terminal."""
        if self._stream.isatty():
            self.waiting.append(text)
            self.flush()

    def flush(self) -> None:
        """Write what is waited with, as far as it is taken at once."""
        while self.waiting and self._takes() and self._lock.take(0.0):
            try:
                self._stream.write(self.waiting.popleft())
                self._stream.flush()
            except (OSError, ValueError):
                pass  # closed, or the disk is full: the line is lost
            finally:
                self._lock.give()

    def _takes(self) -> bool:
        try:
            poll = select.poll()
            poll.register(self._stream.fileno(), select.POLLOUT)
            return bool(poll.poll(0))  # a pipe: there is room for a line of up to 4 KiB
        except (OSError, ValueError):
            return True


class Parent:
    """Runs one child for each slot until all have ended. For the main thread."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        sockets: Sequence[socket.socket],
        count: int,
        plan: Supervision,
        signals: Signals,
        lines: Lines,
        lock: Optional[int],
    ) -> None:
        self._command = list(command)
        self._environ = dict(environ)
        self._sockets = sockets
        self._count = count
        self._plan = plan
        self._signals = signals
        self._lines = lines
        self._lock = lock
        self._table = SharedTable.create(count)  # what limits have let pass: it outlives each child
        self._links = Links(fold, lines.log, self._ready, self._plan.answered, self._lost)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._places: dict[int, Place] = {}
        self._silent: dict[int, float] = {}  # have closed their links, and are to die by then
        self._status: Optional[int] = None

    def run(self) -> int:
        """Serve until all is over; returns the exit status."""
        self._signals.handle("SIGCHLD")
        self._links.selector.register(self._signals, selectors.EVENT_READ)
        try:
            self._do(self._plan.begin(time.monotonic()))
            while self._status is None:
                self._turn()
            return self._status
        finally:
            self._links.close()  # should there be children still, they see that nobody is there, and drain
            for listening in self._sockets:
                listening.close()
            os.close(self._table)

    def _turn(self) -> None:
        wait_s = min(LOOK_S, max(0.0, self._plan.due_s() - time.monotonic()))
        if self._lines.waiting:
            wait_s = min(wait_s, LINES_RETRY_S)
        for key, events in self._links.selector.select(wait_s):
            if key.fileobj is not self._signals:
                self._links.ready(key, events)
        for number in self._signals.take():
            self._handle(number)
        for child, process in list(self._processes.items()):
            status = process.poll()
            if status is not None:
                self._ended(child, status)
        now_s = time.monotonic()
        for child in [child for child, due_s in self._silent.items() if due_s <= now_s]:
            del self._silent[child]
            self._do(self._plan.lost(child, now_s))
        if self._plan.due_s() <= now_s:
            self._do(self._plan.due(now_s))
        self._tell_places()
        self._links.report(now_s)
        self._lines.flush()

    def _handle(self, number: int) -> None:
        now_s = time.monotonic()
        if number in (signal.SIGINT, signal.SIGTERM):
            self._lines.say(DRAINING)
            self._do(self._plan.end(now_s, EXIT_INTERRUPTED if number == signal.SIGINT else 0))
        elif number == signal.SIGHUP:
            self._do(self._plan.reload())
        elif number == HAND_OVER:
            self._do(self._plan.roll(now_s))

    def _ready(self, child: int) -> None:
        self._do(self._plan.ready(child, time.monotonic()))
        self._tell_places()

    def _lost(self, child: int, closed: bool) -> None:
        if closed:
            self._silent[child] = time.monotonic() + DEATH_S
        else:
            self._do(self._plan.lost(child, time.monotonic()))

    def _ended(self, child: int, status: int) -> None:
        self._links.gone(child)  # what it had said is heard before
        self._processes.pop(child, None)
        self._places.pop(child, None)
        self._silent.pop(child, None)
        self._do(self._plan.died(child, status, time.monotonic()))

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self._start(action)
            elif isinstance(action, Order):
                self._links.order(action.child, action.what)
            elif isinstance(action, Ask):
                self._links.ask(action.child)
            elif isinstance(action, Kill):
                if action.child in self._processes:
                    self._processes[action.child].kill()
            elif isinstance(action, Log):
                self._lines.log(action.level, action.event, **action.fields)
            elif isinstance(action, End):
                self._status = action.status

    def _tell_places(self) -> None:
        for child, place in self._plan.places().items():
            if self._places.get(child, Place(False, ())) != place:
                self._places[child] = place
                self._links.roster(child, place.leader, place.accept)

    def _start(self, start: Start) -> None:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            self._not_started(start, error)
            return
        inherited = Inherited(
            start.slot,
            self._count,
            tuple(listening.fileno() for listening in self._sockets),
            theirs.fileno(),
            self._lock,
            start.announce,
        )
        environ = {**self._environ, CHILD_VARIABLE: inherited.text(), LIMITS: str(self._table)}
        held = hold()  # a terminal's Ctrl-C may come before the child can leave it to its parent
        try:
            with theirs:
                process = subprocess.Popen(self._command, env=environ, pass_fds=(*inherited.descriptors(), self._table))
        except OSError as error:
            ours.close()
            self._not_started(start, error)
            return
        finally:
            release(held)
        self._processes[start.child] = process
        self._links.add(start.child, start.slot, ours)

    def _not_started(self, start: Start, error: OSError) -> None:
        """There is no process, memory or descriptor left: as if it had died at once."""
        self._lines.log("error", "process_not_started", slot=start.slot, reason=error.strerror or str(error))
        self._do(self._plan.died(start.child, 1, time.monotonic()))
