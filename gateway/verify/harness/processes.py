"""The judge's end of a program's processes: messages, what they print, their time, their end.

Every wait has a limit of processor time and one of the clock. Nothing that a process sends or prints, or that it does
to who watches it, does more than end the run.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from typing import Any, Optional

from gateway.verify.harness.candidate import flush  # in the sandbox this file stands before
from gateway.verify.harness.nursery import PR_SET_DUMPABLE, nurse, prctl  # in the sandbox likewise
from gateway.verify.harness.wire import Lines, line_of  # in the sandbox likewise

ECHO_BYTES = 24_000  # of what programs print in all: more is dropped
PRINTED_BYTES_MAX = 1 << 20  # of one run whose output is compared: more ends it
NURSERY_S = 3.0  # for an answer of the nursery, which never waits for a program
WALL_FACTOR, WALL_SLACK_S = 2.0, 0.25  # wall time given for CPU time: the machine has other work too


class Late(Exception):
    """The time is over. The process may still run: end it."""


class Ended(Exception):
    """The process is gone, or no longer speaks; `args[0]` says how."""


class Nursery:
    """The judge's end of the nursery. Used by one thread."""

    def __init__(self, code: str, secret: bytes = b"") -> None:
        """Fork it. `secret` is wiped out in it, so that no program can find it in what it inherits."""
        flush()
        prctl(PR_SET_DUMPABLE, 0)  # nobody but root opens this process's memory or descriptors
        self._control, theirs = socket.socketpair()
        judge, self._pid = os.getpid(), os.fork()
        if self._pid == 0:
            nurse(theirs, judge, code, secret)
        theirs.close()
        self._control.settimeout(NURSERY_S)
        self._echo_left, self._lost = ECHO_BYTES, False

    def start(self, kind: str, stdin: bytes = b"") -> Process:
        """Start a process: kind "calls" or "script" of Python, or see `command`. Raises Ended."""
        said, fds = self._ask(["start", kind], 4)
        if len(fds) != 4:
            raise Ended(f"no process could be started: {said}")
        return Process(self, int(said), fds, stdin)

    def end(self, pid: int) -> int:
        """Kill the process and all its group; how it had ended before, or -9. Raises Ended."""
        return int(self._ask(["end", pid], 0)[0])

    def _ask(self, request: list[Any], fds: int) -> tuple[str, list[int]]:
        try:
            self._control.sendall(json.dumps(request).encode() + b"\n")
            said, received, _, _ = socket.recv_fds(self._control, 1000, fds)
        except OSError:
            said = b""
        if not said:
            self._lost = True
            raise Ended("it has ended the process that watches it")
        return said.decode(), list(received)

    def echo(self, fd: int, data: bytes) -> None:
        """Write what a program printed to the judge's own stream, as far as there is room."""
        data = data[: self._echo_left]
        self._echo_left -= len(data)
        if data:
            try:
                os.write(fd, data)
            except OSError:
                self._echo_left = 0

    def close(self) -> None:
        """End the nursery and everything that it has started."""
        try:
            if not self._lost:
                self._control.sendall(b'["close"]\n')
                self._control.recv(1)
        except OSError:
            pass
        self._control.close()
        try:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        except OSError:
            pass


class Process:
    """A program's process, as the judge has it: messages, printed text, time, its end. Used by one thread."""

    def __init__(self, nursery: Nursery, pid: int, fds: list[int], stdin: bytes) -> None:
        self.printed = {1: bytearray(), 2: bytearray()}  # stdout and stderr
        self._nursery, self._pid, self._stdin = nursery, pid, stdin
        channel, self._stdin_w, out_r, err_r = fds
        self._lines, self._unsent = Lines(channel), bytearray()
        self._stream_by_fd = {out_r: 1, err_r: 2}
        self._open, self._poll = set(fds), select.poll()
        for fd in fds:
            os.set_blocking(fd, False)
        for fd in (channel, out_r, err_r):
            self._poll.register(fd, select.POLLIN)
        self._poll.register(self._stdin_w, select.POLLOUT)
        self._status: Optional[int] = None  # once it has ended
        self._started_s, self._cpu_s = time.monotonic(), 0.0

    def cpu_s(self) -> float:
        """Processor seconds that it has used; where that cannot be known, seconds of the clock."""
        if self._status is None:
            try:
                self._cpu_s = time.clock_gettime((~self._pid << 3) | 2)  # clock_getcpuclockid(3), on Linux
            except (OSError, OverflowError, AttributeError):
                self._cpu_s = time.monotonic() - self._started_s
        return self._cpu_s

    def send(self, message: list[Any]) -> None:
        """Have a message written while this waits for the answer."""
        self._unsent += line_of(message)
        self._poll.modify(self._lines.fd, select.POLLIN | select.POLLOUT)
        self._write_message()

    def receive(self, cpu_s: float, until_s: float) -> list[Any]:
        """The next message. Raises Late after `cpu_s` of its time or at `until_s` of the clock, Ended, Garbled."""
        message = self._lines.next()
        started_s = self.cpu_s() if message is None else 0.0
        while message is None:
            if self._lines.fd not in self._open:
                raise Ended(self.how_ended())
            self._pump(started_s + cpu_s, until_s)
            message = self._lines.next()
        return message

    def finish(self, cpu_s: float, until_s: float) -> int:
        """Wait until it has closed its output; its exit status. Raises Late, also when it has printed too much: then
        there is more than PRINTED_BYTES_MAX of it."""
        started_s = self.cpu_s()
        try:
            while self._open & set(self._stream_by_fd):
                self._pump(started_s + cpu_s, until_s)
                if max(map(len, self.printed.values())) > PRINTED_BYTES_MAX:
                    raise Late
        except Late:
            if self.end() == -signal.SIGKILL:
                raise
        return self.end()

    def end(self) -> int:
        """Kill what is left of it; how it had ended before, or -9. A second time: the same."""
        if self._status is None:
            self.cpu_s()
            self._status = -signal.SIGKILL
            try:
                self._status = self._nursery.end(self._pid)
            finally:  # not before: a program that cannot print any more ends by itself
                for fd in self._open:
                    os.close(fd)
                self._open.clear()
        return self._status

    def how_ended(self) -> str:
        status = self.end()
        if status >= 0:
            return f"it ended with status {status}"
        name = signal.Signals(-status).name if -status in list(signal.Signals) else str(-status)
        return f"it was ended by signal {name}"

    def _pump(self, cpu_until_s: float, until_s: float) -> None:
        """Move what can be moved, waiting for something at most until the time is over."""
        wait_s = min(until_s - time.monotonic(), cpu_until_s - self.cpu_s())
        if wait_s <= 0:
            raise Late
        for fd, _ in self._poll.poll(int(wait_s * 1000) + 1):
            if fd == self._stdin_w:
                self._write_stdin()
            elif fd == self._lines.fd:
                self._write_message()
                self._fill()
            else:
                self._read_printed(fd)

    def _fill(self) -> None:
        try:
            if not self._lines.fill():
                self._close(self._lines.fd)
        except BlockingIOError:
            pass
        except OSError:
            self._close(self._lines.fd)

    def _write_message(self) -> None:
        if self._unsent:
            try:
                del self._unsent[: os.write(self._lines.fd, self._unsent)]
            except BlockingIOError:
                return
            except OSError:
                self._unsent.clear()  # the end is seen when it is read from
        if not self._unsent and self._lines.fd in self._open:
            self._poll.modify(self._lines.fd, select.POLLIN)

    def _write_stdin(self) -> None:
        try:
            self._stdin = self._stdin[os.write(self._stdin_w, self._stdin[:65536]) :] if self._stdin else b""
        except BlockingIOError:
            return
        except OSError:
            self._stdin = b""  # it has closed it
        if not self._stdin:
            self._close(self._stdin_w)

    def _read_printed(self, fd: int) -> None:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        if not data:
            self._close(fd)
            return
        stream = self._stream_by_fd[fd]
        self._nursery.echo(stream, data)
        if len(self.printed[stream]) <= PRINTED_BYTES_MAX:
            self.printed[stream] += data

    def _close(self, fd: int) -> None:
        if fd in self._open:
            self._poll.unregister(fd)
            self._open.discard(fd)
            os.close(fd)
