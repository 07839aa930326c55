"""Child processes of a bench run: started, waited for, and certain to end.

Owns the registry of every process the bench has started. Each child leads its own session (so its
own process group): one signal ends a whole tree, and Ctrl-C in the terminal reaches only the bench,
which then ends the children itself (`atexit`, SIGTERM and SIGHUP included). The registry is used
from the main thread only, so it has no lock. Never waits without a bound.
"""

from __future__ import annotations

import atexit
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_TERM_WAIT_S = 5.0
_KILL_WAIT_S = 5.0

_running: list[Child] = []


class BenchError(Exception):
    """The bench cannot go on (or a gateway cannot be measured); the message says why."""


class Child:
    """One process tree the bench started; `pid` is its root, its session and its group."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.pid = popen.pid
        self.log = log
        self._popen = popen

    def alive(self) -> bool:
        """Tells whether the root process still runs."""
        return self._popen.poll() is None

    def log_tail(self, lines: int = 8) -> str:
        """Returns the last lines the process printed, for an error message."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def stop(self) -> None:
        """Ends the whole tree: SIGTERM, up to 5 s of patience, then SIGKILL. Idempotent."""
        if self not in _running:
            return
        _signal_group(self.pid, signal.SIGTERM)
        if self.wait(_TERM_WAIT_S) is None:
            _signal_group(self.pid, signal.SIGKILL)
            self.wait(_KILL_WAIT_S)
        # The root may be gone while a descendant of its group lingers.
        _signal_group(self.pid, signal.SIGKILL)
        _running.remove(self)

    def wait(self, timeout_s: float) -> int | None:
        """Waits for the root process; returns its exit status, None when it still runs after `timeout_s`."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None


def start(
    name: str,
    argv: Sequence[str],
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Child:
    """Starts `argv` in a session of its own, both outputs appended to `log`; returns at once.

    `env` None means the bench's own environment. Raises BenchError when it cannot be executed.
    """
    try:
        with log.open("ab") as out:
            popen = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )
    except OSError as exc:
        raise BenchError(f"{name}: cannot run {argv[0]}: {exc}") from exc
    child = Child(name, popen, log)
    _running.append(child)
    return child


def stop_all() -> None:
    """Ends every process still running, newest first (gateways before their upstream)."""
    for child in reversed(_running[:]):
        child.stop()


def install_cleanup() -> None:
    """Makes sure that nothing outlives the bench, however it ends short of SIGKILL."""
    atexit.register(stop_all)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))


def open_files_limit() -> int:
    """Raises the soft limit of open files (children inherit it) as far as allowed; returns it."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass
