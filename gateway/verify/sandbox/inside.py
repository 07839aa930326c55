"""What runs inside every level: a supervisor that holds the channel, a keeper that watches, a worker that runs the job.

Four files that are one program, `kernel.py`, `worker.py`, `watching.py` and this one; `texts.py` joins them. They need
the standard library alone; the gateway never imports them. Run as `python -I -S -B -c TEXT serve ARGUMENTS`, the
program serves one job by its stdin and stdout; the zygote has the same text in front of its own. On Linux only.

    supervisor   reads the job from the channel and answers there; moves what the job writes, with caps; kills
    keeper       its child: starts the worker, watches memory, CPU and processes, says how the worker ended
    worker       the keeper's child: limits itself for good, then becomes the job: the only one to run foreign code

The supervisor and the keeper never parse what the job wrote. The nonce, which makes an answer an answer, is read when
the worker exists already, so it is not in the job's memory, nor is the channel among its descriptors. A level adds
what it has by `Walls`. Whatever fails on the way is an answer with reason "setup", or none: never a success.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any, NoReturn, Optional

from gateway.verify.sandbox.kernel import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    close_except,
    prctl,
    stand_back,
)
from gateway.verify.sandbox.watching import Kept, descendants, processor_s, tell, watch
from gateway.verify.sandbox.worker import Ends, Walls, work

READ_BYTES = 1 << 18
LOOK_S = 0.05  # how often the supervisor sees to it that the keeper watches
NONCE_BYTES = 32


def supervise(channel_in: int, channel_out: int, walls: Walls) -> bool:
    """Run the one job that comes by `channel_in` and answer by `channel_out`; returns when all of it is dead, with
    whether it has answered: else the gateway has gone."""
    ends = Ends()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    walls.before_keeper()
    keeper = os.fork()
    if keeper == 0:
        keep(ends, walls)
    descent = Descent(keeper, walls)
    close_except({channel_in, channel_out, ends.job_w, ends.status_r, ends.out_r, ends.err_r, ends.report_r})
    walls.supervisor()
    prctl(PR_SET_DUMPABLE, 0)
    try:
        received = receive(channel_in)
        if received is not None:
            limits, job, nonce = received
            pump = Pump(ends, channel_in, limits, descent)
            started_s = time.monotonic()
            hand_over(ends.job_w, job)
            pump.run(started_s + limits["wall_s"])
            if not pump.gone:
                answer(channel_out, pump.answer(nonce, time.monotonic() - started_s))
                close_except(())  # the channel's end tells that this was all
                return True
        return False
    finally:
        descent.end()


def receive(fd: int) -> Optional[tuple[dict[str, Any], bytes, str]]:
    """The job's limits, the job as the worker gets it, the nonce; None when the gateway has gone."""
    data, whole = bytearray(), 0
    while not whole or len(data) < whole:
        chunk = os.read(fd, READ_BYTES)
        if not chunk:
            return None
        data += chunk
        end = data.find(b"\n") + 1
        if not whole and end:
            header = json.loads(data[:end])
            whole = end + header["code"] + header["source"] + header["payload"] + NONCE_BYTES
    return header["limits"], bytes(data[: whole - NONCE_BYTES]), data[whole - NONCE_BYTES : whole].decode()


def hand_over(fd: int, job: bytes) -> None:
    try:
        with open(fd, "wb") as file:
            file.write(job)
    except OSError:
        pass  # the worker has died before, which the keeper tells


def answer(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Descent:
    """The keeper and all that descends from it."""

    def __init__(self, keeper: int, walls: Walls) -> None:
        self._keeper: Optional[int] = keeper  # None: it is dead, and has been waited for
        self._own_pids = walls.own_pids
        self._ended = False

    def is_watched(self) -> bool:
        """Whether the keeper has never been stopped. A job of the same user can do that to it wherever it is not the
        first process of a namespace, and could then take what memory it wants."""
        if self._keeper is not None:
            pid, status = os.waitpid(self._keeper, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if pid and (os.WIFSTOPPED(status) or os.WIFCONTINUED(status)):
                return False
            if pid:  # it has ended, which its pipe tells too
                self._keeper = None
        return True

    def end(self) -> None:
        """Kill all of them and wait until they are dead; nothing if they are."""
        if self._ended:
            return
        self._ended = True
        if self._keeper is not None:
            os.kill(self._keeper, signal.SIGKILL)
        if not self._own_pids:
            self._end_one_by_one()
        elif self._keeper is not None:
            os.waitpid(self._keeper, 0)
        self._keeper = None

    def _end_one_by_one(self) -> None:
        while True:  # who has lost its parent is a child of this process, a subreaper
            for pid in descendants(os.getpid()):
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return


class Pump:
    """Moves what the job writes into memory, with caps; ends the job when it has had its time or written too much."""

    def __init__(self, ends: Ends, channel: int, limits: dict[str, Any], descent: Descent) -> None:
        self.gone = False  # the gateway
        self._ends, self._channel, self._descent = ends, channel, descent
        self._cap_by_fd = {ends.out_r: limits["output_bytes"], ends.err_r: limits["output_bytes"]}
        self._cap_by_fd.update({ends.report_r: limits["report_bytes"], ends.status_r: 1 << 16})
        self._data_by_fd = {fd: bytearray() for fd in self._cap_by_fd}
        self._reason = ""
        self._ended = self._truncated = self._unwatched = False

    def run(self, deadline_s: float) -> None:
        poll, left = select.poll(), set(self._cap_by_fd)
        for fd in left:
            poll.register(fd, select.POLLIN)
        poll.register(self._channel, 0)  # POLLHUP: the gateway has gone
        while left:
            wait_s = max(0.0, min(deadline_s - time.monotonic(), LOOK_S))
            ready = poll.poll(None if self._ended else int(wait_s * 1000) + 1)
            if not self._ended and time.monotonic() >= deadline_s:
                self._over("wall")
            elif not self._ended and not self._descent.is_watched():
                self._unwatched = True
                self._over("")
            for fd, _ in ready:
                chunk = os.read(fd, 1 << 16) if fd in left else b""
                if chunk:
                    self._take(fd, chunk)
                    continue
                poll.unregister(fd)
                left.discard(fd)
                self.gone = self.gone or fd == self._channel
                if fd in (self._channel, self._ends.status_r):  # nobody waits for it any more; the job has ended
                    self._over("")

    def _take(self, fd: int, chunk: bytes) -> None:
        room = self._cap_by_fd[fd] - len(self._data_by_fd[fd])
        self._data_by_fd[fd] += chunk[:room]
        if len(chunk) > room:
            self._truncated = True
            self._over("output")

    def _over(self, reason: str) -> None:
        self._reason = self._reason or reason
        if not self._ended:
            self._ended = True
            self._descent.end()

    def answer(self, nonce: str, wall_s: float) -> bytes:
        said = [json.loads(line) for line in bytes(self._data_by_fd[self._ends.status_r]).splitlines()]
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        head: dict[str, Any] = {"reason": "setup", "exit_code": None, "error": None, "cpu_s": processor_s(usage)}
        head["memory_bytes"] = usage.ru_maxrss << 10
        begun = said[-1:] == [{}]  # it was told that the job had begun, and nothing more
        if (begun or self._unwatched) and not self._reason:
            head.update(
                reason="signal", exit_code=-signal.SIGKILL, error="what watched the program was killed or stopped"
            )
        for one in said:
            head.update(one)
        if self._reason and head["error"] is None:
            head.update(reason=self._reason, exit_code=None)
        out, err = self._data_by_fd[self._ends.out_r], self._data_by_fd[self._ends.err_r]
        report = last_report(bytes(self._data_by_fd[self._ends.report_r]))
        head.update(nonce=nonce, wall_s=wall_s, truncated=self._truncated, stdout=len(out), stderr=len(err))
        head["report"] = len(report)
        return json.dumps(head).encode() + b"\n" + out + err + report


def last_report(data: bytes) -> bytes:
    """The last of the reports that came whole: each is its length in 8 bytes, then its text."""
    found, at = b"", 0
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 8], "big")
        if end > len(data):
            break
        found, at = data[at + 8 : end], end
    return found


def keep(ends: Ends, walls: Walls) -> NoReturn:
    """Start the worker, watch it, and say how it ended: in the pipe, one JSON object a line. Never returns."""
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        close_except({ends.job_r, ends.out_w, ends.err_w, ends.report_w, ends.status_w})
        os.setpgid(0, 0)  # no session of its own: see `stand_back`
        walls.before_worker()
        kept = Kept(walls)
        prctl(PR_SET_DUMPABLE, 0)
        ready_r, ready_w = os.pipe()
        worker = os.fork()
        if worker == 0:
            work(ends, ready_w, walls)
        walls.keeper()
        prctl(PR_SET_DUMPABLE, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user has cleared it
        close_except({ends.status_w, ready_r})
        said = watch(worker, ready_r, ends.status_w, kept)
    except BaseException as error:
        said = {"reason": "setup", "error": f"{type(error).__name__}: {error}"}
    try:
        tell(ends.status_w, said)
    finally:
        os._exit(0)


def take_stdio() -> tuple[int, int]:
    """Become a supervisor that is spoken to by stdin and stdout; gives the channel, which no job inherits there."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stand_back()
    channel = os.dup(0), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return channel


def serve_stdio(arguments: dict[str, Any]) -> None:
    """Serve the one job that comes by stdin. `arguments`: "work", the job's directory, empty; "uid", whom the worker
    becomes (null: nobody else); "sockets", whether it may make any; "remove", whether to remove the directory if the
    gateway has gone, which else does it."""
    channel_in, channel_out = take_stdio()
    walls = Walls(arguments["work"], arguments.get("uid"), arguments.get("sockets", True))
    if not supervise(channel_in, channel_out, walls) and arguments.get("remove"):
        import shutil

        shutil.rmtree(walls.work, ignore_errors=True)


if __name__ == "__main__" and sys.argv[1:2] == ["serve"]:
    serve_stdio(json.loads(sys.argv[2]))
