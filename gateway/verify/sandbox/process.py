"""Level "process": a job in a process of its own with limits, and nothing else around it. That is no isolation.

It sees what its user sees, and can signal that user's processes. Where the gateway is root the job is not: it runs as
nobody, on an interpreter that nobody may read. `_lock` guards the open jails.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from gateway.verify.sandbox.channel import Channel, proved
from gateway.verify.sandbox.texts import inside_command

NOBODY = 65534
END_S = 10.0  # for a supervisor that was told to end, before it is killed
PROOF = "print('ok')"


class ProcessLevel:
    """See `Level`. `source_by_harness`: the harnesses by name."""

    name = "process"

    def __init__(self, source_by_harness: Mapping[str, str]) -> None:
        self._source_by_harness = source_by_harness
        self._root = is_real_root()
        self._lock = threading.Lock()
        self._jails: set[Channel] = set()
        self._closed = False

    def probe(self) -> Optional[str]:
        if not sys.platform.startswith("linux"):
            return "limits of processes are only known on Linux"
        if self._python() is None:
            return "the gateway is root, and no other user may read a Python that its programs could run on"
        return proved(self.open, PROOF)

    def open(self) -> Channel:
        python = self._python()
        if python is None or self._closed:
            raise OSError("there are no jails of the level process")
        work = Path(tempfile.mkdtemp(prefix="gateway-job-"))
        ours, theirs = socket.socketpair()
        try:
            if self._root:
                os.chown(work, NOBODY, NOBODY)
            uid = NOBODY if self._root else None
            command = inside_command(python, str(work), uid=uid, sockets=False, remove=True)
            end, quiet = theirs.fileno(), subprocess.DEVNULL
            process = subprocess.Popen(command, stdin=end, stdout=end, stderr=quiet, cwd="/", env={})
        except BaseException:
            ours.close()
            _remove(work)
            raise
        finally:
            theirs.close()
        jail = Channel(ours, self.name, self._source_by_harness, lambda: self._end(jail, process, work))
        with self._lock:
            self._jails.add(jail)
            closed = self._closed
        if closed:
            jail.close()
        return jail

    def refill(self) -> None:
        pass

    def close(self) -> None:
        with self._lock:
            self._closed = True
            jails = list(self._jails)
        for jail in jails:
            jail.close()

    def _end(self, jail: Channel, process: subprocess.Popen[bytes], work: Path) -> None:
        try:
            process.wait(END_S)  # it has seen the channel's end, and kills what it has started
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
        _remove(work)
        with self._lock:
            self._jails.discard(jail)

    def _python(self) -> Optional[str]:
        candidates = (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3")
        return next((one for one in candidates if not self._root or _open_to_all(one)), None)


def is_real_root() -> bool:
    """Whether this is root that can become nobody: that of a user namespace with no more users is an ordinary user."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return False
    try:
        lines = Path("/proc/self/uid_map").read_text().splitlines()
        ranges = [[int(field) for field in line.split()] for line in lines]
    except (OSError, ValueError):
        return False
    return any(first <= NOBODY < first + count for first, _, count in ranges)


def _open_to_all(executable: str) -> bool:
    """Whether every user may run it, as far as the modes of the directories on its way tell."""
    try:
        path = Path(executable).resolve(strict=True)
        return all(one.stat().st_mode & stat.S_IXOTH for one in (path, *path.parents))
    except OSError:
        return False


def _remove(work: Path) -> None:
    """Remove a directory whose owner may have taken away everybody's right to look into it."""
    for path, directories, _ in os.walk(work):
        for name in directories:
            try:
                os.chmod(f"{path}/{name}", 0o700, follow_symlinks=False)  # noqa: PTH101
            except (OSError, NotImplementedError):
                pass
    shutil.rmtree(work, ignore_errors=True)
