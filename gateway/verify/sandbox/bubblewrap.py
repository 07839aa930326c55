"""Level "bubblewrap": every job in a jail of its own that `bwrap` makes, out of namespaces of the kernel.

In the jail are /usr and the interpreter that the gateway runs on, both read-only, and an empty work folder of limited
size; no network, no other processes, no environment. Root makes the jail as root, and the job is nobody's; anybody else
needs user namespaces for it. What limits a job inside is the supervisor's.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from gateway.verify.sandbox.jails import CommandJail, CommandLevel, first_bytes, python_arguments
from gateway.verify.sandbox.job import Limits
from gateway.verify.sandbox.process import NOBODY, is_real_root

# What root's supervisor needs of root's rights: to make the job nobody's, to kill it, to see what memory it uses.
KEPT = ("CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_SYS_PTRACE")
# Without --die-with-parent: a bwrap that is killed while it sets up leaves a child that waits for ever. What ends
# a jail is the end of its socket, which the gateway's death is, too.
ISOLATE = (
    *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
    *("--as-pid-1", "--new-session", "--hostname", "sandbox", "--clearenv", "--cap-drop", "ALL"),
)
# Links into /usr, or folders beside it.
TOP_FOLDERS = tuple(map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")))
# What programs of /usr need of the system's settings: where libraries are, and which of several programs a name means.
SETTINGS = ("/etc/ld.so.cache", "/etc/alternatives")
SHARED_BYTES = 1 << 20
PATIENCE_S = 5.0  # for a jail to end by itself, before it is killed
DISK_BYTES = Limits().disk_bytes


def interpreter() -> Path:
    """The interpreter itself, not the link to it in a virtual environment."""
    return Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()


def command_line(bwrap: str, disk_bytes: int, as_root: bool) -> list[str]:
    """What starts a jail with a work folder of `disk_bytes`."""
    command = [bwrap, *ISOLATE, "--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin", "--setenv", "HOME", "/work"]
    if as_root:
        command += [word for capability in KEPT for word in ("--cap-add", capability)]
    else:
        command += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    command += _open_folder("/etc")
    for path in _bound():
        for folder in reversed(list(path.parents)[:-1]):
            command += _open_folder(str(folder))
        command += ["--ro-bind", str(path), str(path)]
    for folder in filter(Path.is_symlink, TOP_FOLDERS):
        command += ["--symlink", str(folder.readlink()), str(folder)]
    for setting in SETTINGS:
        command += ["--ro-bind-try", setting, setting]
    command += ["--proc", "/proc", "--dev", "/dev"]
    command += ["--perms", "1777", "--size", str(disk_bytes), "--tmpfs", "/work", "--symlink", "/work", "/tmp"]
    command += ["--perms", "1777", "--size", str(SHARED_BYTES), "--tmpfs", "/dev/shm"]  # for semaphores
    # Folders that bwrap makes are its user's, and of no limited size.
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/work"]
    return [*command, "--", str(interpreter()), *python_arguments(own_interpreter=True, as_root=as_root)]


def _open_folder(path: str) -> list[str]:
    """A folder that anybody may look into: those that bwrap makes by itself are its user's alone."""
    return ["--perms", "0755", "--dir", path]


def _bound() -> list[Path]:
    """What is seen of the machine: its programs, the interpreter and its library. An interpreter whose prefix is the
    root itself must have them in a folder of programs, or the jail does not work."""
    paths = [Path("/usr"), *(folder for folder in TOP_FOLDERS if folder.is_dir() and not folder.is_symlink())]
    for path in (Path(sys.base_prefix).resolve(), Path(sys.base_exec_prefix).resolve(), interpreter()):
        if path != path.parent and not any(path == other or other in path.parents for other in paths):
            paths.append(path)
    return paths


class Bubblewrap(CommandLevel):
    """Jails made by `bwrap`, each with a work folder of `disk_bytes`; `spare` of them wait for jobs. Thread-safe."""

    name = "bubblewrap"

    def __init__(self, source_by_harness: Mapping[str, str], disk_bytes: int = DISK_BYTES, spare: int = 2) -> None:
        super().__init__(source_by_harness, spare)
        self._as_root = is_real_root()
        self._disk_bytes = disk_bytes

    def probe(self) -> Optional[str]:
        """None when a job has run in a jail, else why not."""
        if shutil.which("bwrap") is None:
            return "bwrap is not in PATH"
        return self._why_no_job_runs()

    def _start(self) -> CommandJail:
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise FileNotFoundError("bwrap is not in PATH")
        command = command_line(bwrap, self._disk_bytes, self._as_root)
        return CommandJail(command, first_bytes(own_interpreter=True), {}, PATIENCE_S)
