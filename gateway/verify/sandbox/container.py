"""Level "container": every job in a container of its own, made by docker or podman from an image that is there already.

Nothing of the machine is mounted in it and no image is ever pulled; the supervisor and the harness come in as text. A
container is ended by its name, which tells whose it is: one that a dead gateway has left is removed when the level is
first tried. Without a service that keeps to cgroups, limits of memory, processes and CPU are the supervisor's alone.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import shlex
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from gateway.verify.sandbox.jails import CommandJail, CommandLevel, first_bytes, python_arguments
from gateway.verify.sandbox.job import Limits

NAME_PREFIX = "gateway-sandbox"
COMMANDS = ("docker", "podman")
ANSWER_TIMEOUT_S = 15.0  # for the container command to say something
PATIENCE_S = 2.0  # for a container to end by itself
OWN_PROCESSES = 8  # the supervisor's and the threads of its interpreter, beside the job's
OWN_MEMORY_BYTES = 64 << 20
CEILING = Limits()
NOBODY = "65534:65534"
SEEN = ("PATH", "HOME", "XDG_RUNTIME_DIR", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "CONTAINER_HOST", "TMPDIR")


def environment() -> dict[str, str]:
    """What the container command is given of ours: no key of any engine."""
    return {name: os.environ[name] for name in SEEN if name in os.environ}


def ask(command: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the container command to its end. Raises OSError or subprocess.SubprocessError when that cannot be."""
    return subprocess.run(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        encoding="utf-8",
        errors="replace",
        timeout=ANSWER_TIMEOUT_S,
        start_new_session=True,
    )


def owner() -> str:
    """This machine and its space of process ids, so that nobody's containers are taken for a dead process's of ours."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


class Engine:
    """A container command, and what it is known to do."""

    def __init__(self, command: Sequence[str], image: str) -> None:
        self._command = tuple(command)
        self._image = image
        self._podman = False
        self.cgroups = True  # False: it cannot limit memory, processes and CPU here
        self._prefix = f"{NAME_PREFIX}-{owner()}-"

    def why_not(self) -> Optional[str]:
        """None: the command works and the image is there; else what is wrong."""
        try:
            self._podman = "podman" in ask(self._command, "--version").stdout.lower()
            inspected = ask(self._command, "image", "inspect", "--format", "{{.Id}}", self._image)
        except (OSError, subprocess.SubprocessError) as error:
            return f"{self._command[0]}: {error}"
        if inspected.returncode:
            said = inspected.stderr.strip().splitlines()
            return f"{self._command[0]}: no image {self._image} ({said[-1] if said else 'it does not say why'})"
        return None

    def start(self, first: bytes, limits: Limits) -> CommandJail:
        """Start a container. Raises OSError when there is not even the command."""
        name = f"{self._prefix}{os.getpid()}-{secrets.token_hex(4)}"
        return CommandJail(
            self.command_line(name, limits), first, environment(), PATIENCE_S, functools.partial(self.remove, name)
        )

    def command_line(self, name: str, limits: Limits) -> list[str]:
        """What runs the supervisor in a container of that name."""
        options = [
            *("--rm", "--interactive", "--pull", "never", "--name", name, "--hostname", "sandbox", "--user", NOBODY),
            *("--network", "none", "--ipc", "private", "--shm-size", "1m", "--read-only", "--cap-drop", "ALL"),
            *("--security-opt", "no-new-privileges", "--log-driver", "none", "--stop-signal", "KILL"),
            *("--ulimit", "core=0:0", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=512:512"),
            *(
                "--tmpfs",
                f"/work:rw,nosuid,nodev,mode=1777,size={limits.disk_bytes}",
                "--workdir",
                "/work",
            ),
            *("--entrypoint", "python3"),
        ]
        if self._podman:  # which would show the names of hosts that this machine knows, and lets /tmp grow
            options += ["--no-hosts", "--read-only-tmpfs=false"]
        if self.cgroups:
            memory = str(limits.memory_bytes + limits.disk_bytes + OWN_MEMORY_BYTES)
            options += ["--memory", memory, "--memory-swap", memory, "--cpus", "1"]
            options += ["--pids-limit", str(limits.processes + OWN_PROCESSES)]
        return [*self._command, "run", *options, self._image, *python_arguments(own_interpreter=False, as_root=False)]

    def remove(self, *names: str) -> None:
        """End containers, by force, and leave nothing of them."""
        try:
            ask(self._command, "rm", "--force", *names)
        except (OSError, subprocess.SubprocessError):
            pass

    def remove_leftovers(self) -> None:
        """Remove what gateways of this machine have left that are dead."""
        try:
            listed = ask(self._command, "ps", "--all", "--filter", f"name={self._prefix}", "--format", "{{.Names}}")
        except (OSError, subprocess.SubprocessError):
            return
        left = [name for name in listed.stdout.split() if self._is_left(name)]
        if left:
            self.remove(*left)

    def _is_left(self, name: str) -> bool:
        pid = name[len(self._prefix) :].split("-")[0]
        if not name.startswith(self._prefix) or not pid.isdigit() or os.name == "nt":  # where 0 is a signal
            return False
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except OSError:  # somebody else's, and alive
            pass
        return False


class Container(CommandLevel):
    """Containers of docker or podman, made from `image`; `spare` of them wait for jobs. Thread-safe.

    `runtime` is the command with its arguments, as in a shell; "" for docker or podman, whichever has the image.
    `limits` are the most that a job may ask for.
    """

    name = "container"

    def __init__(
        self,
        source_by_harness: Mapping[str, str],
        runtime: str = "",
        image: str = "",
        limits: Limits = CEILING,
        spare: int = 2,
    ) -> None:
        super().__init__(source_by_harness, spare, threads=4)
        self._commands = [shlex.split(runtime)] if runtime else [[name] for name in COMMANDS if shutil.which(name)]
        self._image = image
        self._limits = limits
        self._engine: Optional[Engine] = None

    def probe(self) -> Optional[str]:
        """None when a job has run in a container, else why not. Without an image nothing is started."""
        if not self._image:
            return "no image is named"
        if not self._commands:
            return "neither docker nor podman is in PATH"
        whys = []
        for command in self._commands:
            why = self._why_not(Engine(command, self._image))
            if why is None:
                return None
            whys.append(why)
        return "; ".join(whys)

    def _why_not(self, engine: Engine) -> Optional[str]:
        why = engine.why_not()
        if why is not None:
            return why
        engine.remove_leftovers()
        self._engine = engine
        why = self._why_no_job_runs()
        if why is not None:  # perhaps it cannot limit what the supervisor limits, too
            engine.cgroups = False
            why = self._why_no_job_runs()
        return why

    def _start(self) -> CommandJail:
        engine = self._engine
        if engine is None:
            raise OSError("no container command works")
        return engine.start(first_bytes(own_interpreter=False), self._limits)
