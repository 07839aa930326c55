"""How a job is served in a jail that stands already: the last part of `inside.py` for bubblewrap and containers."""

from __future__ import annotations

import os
from typing import Any

from gateway.verify.sandbox.inside import supervise, take_stdio
from gateway.verify.sandbox.kernel import NOBODY, PR_SET_DUMPABLE, become, check, new_user_namespace, prctl
from gateway.verify.sandbox.worker import Walls


class StandingWalls(Walls):
    """Nothing is put up but what tells the job's processes from others of its user: those of other jails, which cannot
    be seen, but would count. Where that is refused, they do."""

    parked = own_network = own_cgroup = True
    folders = ("/work", "/dev/shm")

    def __init__(self, as_root: bool) -> None:
        super().__init__()
        self._as_root = as_root

    def worker(self) -> None:
        """In the worker, first of all."""
        if self._as_root:
            become(NOBODY)
        try:
            new_user_namespace(NOBODY)
            self.own_count = True
        except OSError:  # as docker's filter of system calls has it
            pass
        check(prctl(PR_SET_DUMPABLE, 1), "dumpable")  # or /proc/self would not be the job's own


def serve_standing(arguments: dict[str, Any]) -> None:
    """Serve the one job that comes by stdin, then end this process. `arguments`: "as_root", whether this is root."""
    try:
        supervise(*take_stdio(), StandingWalls(arguments["as_root"]))
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(0)
