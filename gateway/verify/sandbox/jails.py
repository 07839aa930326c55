"""Jails that are made by a command: started before they are needed, each used for one job, then ended.

A `CommandJail` is a process whose standard input and output are one socket, on which the supervisor in it waits for a
job. `Jails` owns those that wait and those in use; its lock guards them and is never held while one is started, spoken
to or ended. A jail is ended by the end of its socket, the gateway's own death too; by force only if it takes its time.
"""

from __future__ import annotations

import functools
import marshal
import os
import queue
import socket
import subprocess
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional, Union

from gateway.threads import Threads
from gateway.verify.sandbox.channel import Channel, proof
from gateway.verify.sandbox.texts import inside_text

START_TIMEOUT_S = 15.0  # for a jail to be started: a busy machine, a slow container engine
END_TIMEOUT_S = 5.0
TAKE_TIMEOUT_S = 60.0  # for a jail to be started behind others that are started and ended
SAID_BYTES = 4096
# What a job finds that is alone and nobody: no network, no other processes, nothing of the machine to write to.
PROOF = """
import os
assert os.getuid() == os.geteuid() == 65534, "the user"
with open("/proc/net/dev") as devices:
    assert {line.split(":")[0].strip() for line in list(devices)[2:]} <= {"lo"}, "the network"
assert sum(name.isdigit() for name in os.listdir("/proc")) < 10, "other processes"
for folder in ("/", "/usr", "/etc", "/dev", "/var/tmp"):
    assert not os.access(folder, os.W_OK), folder
print("ok")
"""

# What the interpreter in the jail is given on its command line: it reads the supervisor's source, or its code when the
# interpreter is our own, from the socket. Nothing has to be readable in the jail that is not there anyway.
_BOOT = """
import marshal, os
os.closerange(3, 4096)
def read(size):
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            os._exit(0)
        data += more
    return data
scope = {{"__name__": "inside"}}
exec({load}(read(int(read(16), 16))), scope)
scope["serve_standing"]({arguments!r})
"""


def python_arguments(own_interpreter: bool, **arguments: Any) -> list[str]:
    """What a Python is to be started with in a jail. `arguments`: see `serve_standing`."""
    load = "marshal.loads" if own_interpreter else "(lambda text: compile(text, 'inside.py', 'exec'))"
    return ["-I", "-S", "-B", "-c", _BOOT.format(load=load, arguments=arguments)]


@functools.cache
def first_bytes(own_interpreter: bool) -> bytes:
    """What that Python reads first, before any job: code for an interpreter that is our own, else text."""
    text = inside_text("standing.py")
    code = marshal.dumps(compile(text, "inside.py", "exec")) if own_interpreter else text.encode()
    return b"%016x" % len(code) + code


class CommandJail:
    """One started command. `remove` ends what killing the command does not end; it may block. Thread-safe."""

    def __init__(
        self,
        command: Sequence[str],
        first: bytes,
        environment: Mapping[str, str],
        patience_s: float = 0.0,
        remove: Optional[Callable[[], None]] = None,
    ) -> None:
        """Start it and send what it reads `first`. Raises OSError when it cannot be started."""
        self._patience_s = patience_s
        self._remove = remove
        self._killed = False
        self.socket, theirs = socket.socketpair()
        try:
            self.socket.settimeout(START_TIMEOUT_S)
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                env=dict(environment),
                cwd="/",
                start_new_session=True,  # what interrupts the gateway from its terminal is not for it
            )
        except BaseException:
            self.socket.close()
            raise
        finally:
            theirs.close()
        try:
            self.socket.sendall(first)
        except OSError as error:
            raise OSError(self.discard() or f"{command[0]}: {error}") from error

    @property
    def alive(self) -> bool:
        """Return whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it without waiting for that. Never blocks; may be called again."""
        self._killed = True
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def end(self) -> str:
        """Wait until nothing is left of it, with force if it takes its time; returns its last line of complaint."""
        if self._patience_s and (self._remove is None or not self._killed):
            self._ended_within(self._patience_s)
        if self.alive and self._remove is not None:
            self._remove()
            # One that still makes its container sees then that its input has ended. Killed before that, it would leave
            # processes that the container engine itself does not know of.
            self._ended_within(START_TIMEOUT_S)
        if self.alive:
            self._process.kill()
            self._ended_within(END_TIMEOUT_S)
            if self._remove is not None:  # what it made after the first removal, and can no longer remove itself
                self._remove()
        self._killed = True
        return self._said()

    def discard(self) -> str:
        """End one that nobody has used."""
        self.kill()
        self.socket.close()
        return self.end()

    def _ended_within(self, timeout_s: float) -> None:
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass

    def _said(self) -> str:
        stream = self._process.stderr
        if stream is None:
            return ""
        with stream:
            os.set_blocking(stream.fileno(), False)
            try:
                said = os.read(stream.fileno(), SAID_BYTES)
            except BlockingIOError:  # somebody else has it, and is silent
                said = b""
        lines = said.decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


class _Waiter:
    """Somebody who waits for a jail to be started. The lock of `Jails` guards `has_gone`."""

    def __init__(self) -> None:
        self.outcome: queue.SimpleQueue[Union[CommandJail, Exception]] = queue.SimpleQueue()
        self.has_gone = False


class Jails:
    """Up to `spare` jails that `start` has made wait for jobs, once there was one. Thread-safe."""

    def __init__(self, name: str, start: Callable[[], CommandJail], spare: int, threads: int = 1) -> None:
        self._name = name
        self._start = start
        self._spare = spare
        self._most_threads = threads
        self._lock = threading.Lock()
        self._threads: Optional[Threads] = None  # None: closed
        self._waiting: list[CommandJail] = []
        self._used: set[CommandJail] = set()
        self._starting = 0

    def open(self) -> None:
        """Let jails be taken. May be called again. Raises RuntimeError when there is no thread for it."""
        with self._lock:
            if self._threads is not None:
                return
            threads = self._threads = Threads(self._name, self._most_threads)
        try:
            threads.start()
        except RuntimeError:
            with self._lock:
                self._threads = None
            raise

    def take(self) -> CommandJail:
        """A jail for one job, to be given to `retire` or `end` after it. Raises OSError when none can be started."""
        with self._lock:
            threads = self._threads
            if threads is None:
                raise OSError("the level is closed")
            waiting = self._waiting.pop(0) if self._waiting else None
            if waiting is not None:
                self._used.add(waiting)
        if waiting is not None and waiting.alive:
            return waiting
        if waiting is not None:  # whatever has ended it may have ended the others
            waiting.socket.close()
            self.retire(waiting)
            return self.take()
        waiter = _Waiter()
        threads.run(functools.partial(self._start_for, waiter))
        try:
            outcome = waiter.outcome.get(timeout=TAKE_TIMEOUT_S)
        except queue.Empty:
            with self._lock:
                waiter.has_gone = True
            try:
                outcome = waiter.outcome.get_nowait()  # it came at the last moment
            except queue.Empty:
                raise OSError("no jail was started in time") from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _start_for(self, waiter: _Waiter) -> None:
        try:
            jail = self._start()
        except Exception as error:
            waiter.outcome.put(error)
            return
        with self._lock:
            closed = self._threads is None
            taken = not closed and not waiter.has_gone
            if taken:
                self._used.add(jail)
                waiter.outcome.put(jail)  # never blocks
        if not taken:
            jail.discard()
        if closed:
            waiter.outcome.put(OSError("the level is closed"))

    def retire(self, jail: CommandJail) -> None:
        """End a jail that was taken, soon: on another thread while the level is open."""
        with self._lock:
            threads = self._threads
        if threads is not None:
            threads.run(functools.partial(self.end, jail))
        else:
            self.end(jail)

    def end(self, jail: CommandJail) -> str:
        """End a jail that was taken and wait for that; returns what it complained of."""
        try:
            return jail.end()
        except Exception:
            traceback.print_exc()
            return ""
        finally:
            with self._lock:
                self._used.discard(jail)

    def refill(self) -> None:
        """Start jails ahead of need, soon, on another thread."""
        with self._lock:
            threads = self._threads
            missing = self._spare - len(self._waiting) - self._starting
            if threads is None or missing <= 0:
                return
            self._starting += missing
        for _ in range(missing):
            threads.run(self._start_ahead)

    def _start_ahead(self) -> None:
        jail = None
        try:
            jail = self._start()
        except Exception:
            pass  # whoever takes the next one is told why
        with self._lock:
            self._starting -= 1
            closed = self._threads is None
            if jail is not None and not closed:
                self._waiting.append(jail)
        if jail is not None and closed:
            jail.discard()

    def close(self) -> None:
        """Kill all and wait until nothing is left of them, for some seconds at most. `open` may follow."""
        with self._lock:
            threads, self._threads = self._threads, None
            waiting, self._waiting = self._waiting, []
            used = list(self._used)
        for jail in (*used, *waiting):
            jail.kill()
        if threads is not None:
            for jail in waiting:  # there are none without threads
                threads.run(jail.discard)  # a command that hangs holds up its own end only
            threads.close(END_TIMEOUT_S)


class CommandLevel:
    """What levels have in common whose jails a command makes. Thread-safe."""

    name = ""

    def __init__(self, source_by_harness: Mapping[str, str], spare: int, threads: int = 1) -> None:
        self._source_by_harness = source_by_harness
        self._jails = Jails(f"sandbox-{self.name}", self._start, spare, threads)

    def _start(self) -> CommandJail:
        """Make a jail. Raises OSError when that fails."""
        raise NotImplementedError

    def open(self) -> Channel:
        """A jail for one job, one that waits if there is one. Closing it never blocks while the level is open. Raises
        OSError when there can be none."""
        jail = self._jails.take()
        return Channel(jail.socket, self.name, self._source_by_harness, functools.partial(self._jails.retire, jail))

    def refill(self) -> None:
        """Have the next jails made ahead of need; does not wait for them."""
        self._jails.refill()

    def close(self) -> None:
        """Kill every jail and wait until nothing is left of them. `probe` opens the level once more."""
        self._jails.close()

    def _why_no_job_runs(self) -> Optional[str]:
        """None when a job has looked around and found what it should; else one line that says what is wrong."""
        jail = None
        try:
            self._jails.open()
            jail = self._jails.take()
            why = proof(Channel(jail.socket, self.name, {}, jail.kill), PROOF)
        except (OSError, RuntimeError) as error:
            return str(error)
        finally:
            said = self._jails.end(jail) if jail is not None else ""
        return why and " ".join(f"{why} {said}".split())
