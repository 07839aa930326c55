"""The gateway's end of a jail: one job out, one answer in, for all levels alike.

A `Channel` owns the socket to the supervisor in the jail, and with it the jail. An answer counts only when it came
whole, with the nonce that was sent, and in time; whatever else happens is a Run with reason "setup". The lock guards
whether a job is under way and whether the channel is closed; it is not held while anything is sent, received or ended:
who closes while a job runs shuts the socket down, and the thread that runs the job closes it.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, Callable, Optional

from gateway.verify.sandbox.job import LANGUAGES, Job, Run

# Beyond a job's wall time: for the jail to stand (a container's files may be copied first, on a disk that has other
# work) and for what it holds to die.
GRACE_S = 20.0
HEAD_BYTES = 1 << 16
READ_BYTES = 1 << 18
REASONS = ("exit", "signal", "wall", "cpu", "memory", "processes", "output", "setup")


class Channel:
    """One jail of the level `isolation`, reached by `sock`.

    `source_by_harness` has the harnesses that the jail has not; `end` is called once, when the channel is closed, and
    ends what the jail consists of.
    """

    def __init__(
        self, sock: socket.socket, isolation: str, source_by_harness: Mapping[str, str], end: Callable[[], None]
    ) -> None:
        self._sock, self._isolation, self._source_by_harness, self._end = sock, isolation, source_by_harness, end
        self._lock = threading.Lock()
        self._running = self._used = self._closed = False

    def run(self, job: Job) -> Run:
        """Run `job` here, once; see `Jail`."""
        started_s = time.monotonic()
        with self._lock:
            refused = self._closed or self._used
            self._running = self._used = True
        try:
            if refused:
                raise OSError("the jail has been used or closed")
            head, body = self._exchange(job, started_s + job.limits.wall_s + GRACE_S)
            return self._run_of(head, body, time.monotonic() - started_s)
        except (OSError, ValueError) as error:
            return failed(self._isolation, str(error) or type(error).__name__, time.monotonic() - started_s)
        finally:
            if not refused:
                with self._lock:
                    self._running = False
                    self._sock.close()

    def close(self) -> None:
        """See `Jail`."""
        with self._lock:
            first, self._closed = not self._closed, True
            if first and not self._running:
                self._sock.close()
        if first:
            try:
                self._sock.shutdown(socket.SHUT_RDWR)  # whoever waits for the answer wakes up
            except OSError:
                pass
            self._end()

    def _exchange(self, job: Job, deadline_s: float) -> tuple[dict[str, Any], bytes]:
        nonce = secrets.token_hex(16)
        self._within(deadline_s)
        self._sock.sendall(_request(job, self._source_by_harness, nonce))
        most_bytes = HEAD_BYTES + 2 * job.limits.output_bytes + job.limits.report_bytes
        data = bytearray()
        while True:
            self._within(deadline_s)
            chunk = self._sock.recv(READ_BYTES)
            if not chunk:
                break
            data += chunk
            if len(data) > most_bytes:
                raise ValueError("the jail has answered too much")
        if not data:
            raise OSError("the jail has ended without an answer")
        line, _, body = bytes(data).partition(b"\n")
        head = json.loads(line)
        said = str(head.get("nonce")) if isinstance(head, dict) else ""
        if not hmac.compare_digest(said.encode("utf-8", "replace"), nonce.encode()):
            raise ValueError("the answer is not the supervisor's")
        return head, body

    def _within(self, deadline_s: float) -> None:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise OSError("the jail has not answered in time")
        self._sock.settimeout(left_s)

    def _run_of(self, head: dict[str, Any], body: bytes, seconds: float) -> Run:
        reason, code, error = head.get("reason", ""), head.get("exit_code"), head.get("error")
        lengths: list[Any] = [head.get(part) for part in ("stdout", "stderr", "report")]
        known = reason in REASONS and (code is None or isinstance(code, int)) and isinstance(error, (str, type(None)))
        if not known or not all(isinstance(length, int) and length >= 0 for length in lengths):
            raise ValueError("the answer cannot be understood")
        if sum(lengths) != len(body):
            raise ValueError("the answer has not come whole")
        out, err = lengths[0], lengths[0] + lengths[1]
        truncated = bool(head.get("truncated"))
        parts = (body[:out], body[out:err], truncated, body[err:])
        return Run(reason, code, *parts, seconds, self._isolation, error)


def _request(job: Job, source_by_harness: Mapping[str, str], nonce: str) -> bytes:
    if job.language not in LANGUAGES:
        raise ValueError(f"no way to run {job.language!r}")
    code = job.code.encode("utf-8", "replace")
    source = source_by_harness.get(job.harness, "").encode()
    head: dict[str, Any] = {"language": job.language, "harness": job.harness, "limits": job.limits._asdict()}
    head.update(code=len(code), source=len(source), payload=len(job.payload))
    return b"".join((json.dumps(head).encode(), b"\n", code, source, job.payload, nonce.encode()))


def failed(isolation: str, error: str, seconds: float = 0.0) -> Run:
    """A Run of which nothing is to be believed, because of `error`."""
    return Run("setup", None, b"", b"", False, b"", seconds, isolation, error)


def proof(jail: Channel, python: str) -> Optional[str]:
    """Why `jail` does not do what it is for, as a job that looks around tells; None when it does."""
    run = jail.run(Job("python", python))
    if run.reason == "exit" and run.exit_code == 0 and run.stdout == b"ok\n":
        return None
    return run.error or (run.stderr or run.stdout).decode("utf-8", "replace").strip()[-300:] or run.reason


def proved(open_jail: Callable[[], Channel], python: str) -> Optional[str]:
    """Why jails do not do what they are for, as `proof`, by one that is opened for it."""
    try:
        jail = open_jail()
    except OSError as error:
        return str(error)
    try:
        return proof(jail, python)
    finally:
        jail.close()
