"""The shapes of the sandbox: what is to be run, within which limits, and what came of it; and what a level offers.

Only values and protocols; nothing here runs anything.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Protocol

LANGUAGES = ("python", "javascript", "bash")
ORDER = ("container", "bubblewrap", "namespaces", "process")  # the levels, the strongest first


class Limits(NamedTuple):
    """What one job may use; every level enforces all of it, but where it says otherwise."""

    wall_s: float = 5.0
    cpu_s: float = 2.0  # of all its processes together
    memory_bytes: int = 256 << 20  # of all its processes together; address space too, but not of JavaScript's engine
    processes: int = 32
    open_files: int = 64
    output_bytes: int = 65_536  # of stdout and of stderr each; more: killed
    disk_bytes: int = 16 << 20  # a file's size; a level may have fixed the size of the work directory before
    report_bytes: int = 4 << 20


class Job(NamedTuple):
    """A program, or a harness and what it is to look at."""

    language: str  # one of LANGUAGES; of a harness, which is Python, the language of what it looks at
    code: str
    harness: str = ""  # "": `code` is a program and `payload` its stdin
    payload: bytes = b""  # stdin, or the harness's JSON
    limits: Limits = Limits()


class Run(NamedTuple):
    """What came of a job. It has succeeded only with reason "exit" and code 0, and a harness only with a report."""

    reason: str  # "exit", "signal", "wall", "cpu", "memory", "processes", "output", "setup" (nothing ran: see `error`)
    exit_code: Optional[int]  # of the program; negative: minus the signal; None: killed at a limit, or nothing ran
    stdout: bytes
    stderr: bytes
    truncated: bool  # whether stdout, stderr or the report was longer than its limit
    report: bytes  # of a harness, the last whole one; b"": none, and the run failed whatever `exit_code` says
    seconds: float  # wall time as the caller sees it
    isolation: str  # the level's name
    error: Optional[str]


class Jail(Protocol):
    """One jail, good for one job."""

    def run(self, job: Job) -> Run:
        """Run `job` here and wait for it: blocks for its wall limit and 20 s at most. Never raises for what
        happens to the job: that is a Run with reason "setup"."""

    def close(self) -> None:
        """Kill whatever still runs here and leave nothing behind. From any thread, more than once, during `run` too."""


class Level(Protocol):
    """One way of keeping jobs apart from everything else. All methods may be called from any thread."""

    name: str

    def probe(self) -> Optional[str]:
        """None when it can be used, which a job has proved; else a sentence that says why not. May take seconds."""

    def open(self) -> Jail:
        """A jail for one job; raises OSError when there can be none."""

    def refill(self) -> None:
        """Prepare jails, if the level keeps some ready: to be called when a job has ended, not while one waits."""

    def close(self) -> None:
        """End what the level has started, jails included. `open` raises OSError afterwards."""
