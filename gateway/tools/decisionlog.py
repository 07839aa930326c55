"""The file of decisions: one JSON line for each, written by a thread of its own, and read again by `replay`.

`DecisionLog` owns the file and the thread "decisions". Pools append under their own locks, so the order of one model's
lines is the order of its decisions; nothing here is locked (a deque's single operations are atomic).
"""

from __future__ import annotations

import errno
import json
import os
import random
import threading
from collections import deque
from pathlib import Path
from typing import Any, Callable, Optional

from gateway.configuration import ConfigurationError
from gateway.routing.decisions import Record, model_json
from gateway.routing.specs import FleetSpec
from gateway.settings import Settings

WRITE_INTERVAL_S = 0.1
WAITING_MAX = 1_000_000


def seed_of(settings: Settings, slot: int) -> int:
    """Of all random decisions of a process; `slot`: its number among several, which would draw alike from one seed."""
    given = settings.routing_seed
    if given is None:
        return random.getrandbits(53)
    return random.Random(f"{given}:{slot}").getrandbits(53) if slot else given


def header(settings: Settings, seed: int) -> Record:
    """The first line: what the decisions depend on besides the requests."""
    return {
        "op": "start",
        "seed": seed,
        "strategy": settings.strategy,
        "fallback": settings.fallback,
        "breaker": [
            settings.breaker_window_s,
            settings.breaker_min_requests,
            settings.breaker_failure_ratio,
            settings.breaker_open_s,
            settings.breaker_max_open_s,
        ],
        "models": fleet_json(settings.fleet),
        **({} if settings.region is None else {"region": settings.region}),
        **({"scattered": True} if settings.has_peers else {}),
        **({"lists": True} if settings.fleet.groups else {}),
    }


def fleet_json(fleet: FleetSpec) -> dict[str, Any]:
    """What of a fleet decisions depend on, as JSON values."""
    return {model.name: model_json(model) for model in fleet.models}


def refuse_unwritable(path: Optional[Path]) -> None:
    """Raise ConfigurationError where a DecisionLog could not be started (None: there is to be none), as far as a look
    can tell; makes and changes nothing."""
    if path is None:
        return
    try:
        exists = _exists(path)
        if exists and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # A link that leads to nothing yet is made where it leads.
        needed = path if exists else path.resolve().parent
        needed.stat()
        if not os.access(needed, os.W_OK if exists else os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error


def _exists(path: Path) -> bool:
    # Not Path.exists: to that, a name that is too long and a loop of links are merely not there.
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _unwritable(path: Path, error: Exception) -> ConfigurationError:
    reason = error.strerror or error if isinstance(error, OSError) else "that is no path"
    return ConfigurationError([f"DECISION_LOG: {path}: cannot be written: {reason}"])


class DecisionLog:
    """Writes records to `path`, a new file each time. `record` is for any thread and never blocks.

    `process`: this one's slot among several, which write a file each, `path` with `.0`, `.1`, … behind it: `replay`
    repeats what one process has decided. It is put in the place of the one before, which that one may still write to.
    """

    def __init__(self, path: Path, first: Record, log: Callable[..., None], process: Optional[int] = None) -> None:
        self._path = path if process is None else path.with_name(f"{path.name}.{process}")
        self._replaces = process is not None
        self._log = log
        self._waiting: deque[Record] = deque([first])
        self._stop = threading.Event()
        self._broken = False
        self._thread: Optional[threading.Thread] = None

    def start(self) -> None:
        """Open the file and start the thread. Raises ConfigurationError naming DECISION_LOG."""
        try:
            if self._replaces:
                self._path.unlink(missing_ok=True)
            self._file = self._path.open("w", encoding="utf-8")
        except (OSError, ValueError) as error:
            raise _unwritable(self._path, error) from error
        self._thread = threading.Thread(target=self._run, name="decisions", daemon=True)
        self._thread.start()

    def record(self, record: Record) -> None:
        """Append a record; beyond a million waiting ones they are lost, which the log says once."""
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append(record)
        elif not self._broken:
            self._broken = True
            self._log("error", "decision_log_incomplete", path=str(self._path))

    def close(self, timeout_s: float) -> None:
        """Write what is left and close the file."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.wait(WRITE_INTERVAL_S):
            self._write()
        self._write()
        self._file.close()

    def _write(self) -> None:
        records = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not records:
            return
        try:
            self._file.write("".join(json.dumps(r, separators=(",", ":")) + "\n" for r in records))
            self._file.flush()
        except OSError as error:
            if not self._broken:
                self._broken = True
                self._log("error", "decision_log_failed", path=str(self._path), reason=error.strerror)
