"""Level "namespaces", inside: a process that has seen no foreign code and forks one jail after another.

Behind the files of `inside.py` in one text; the gateway never imports it.

    launcher     gateway's child: goes into namespaces of its own, forks the zygote, waits for it
    zygote       pid 1 there, in a root of its own that cannot be written to; forks a supervisor for each descriptor
                 that comes by the control socket, and leaves when that ends: the kernel then kills all there is
    supervisor, keeper, worker   see `inside.py`: the keeper is pid 1 of the job's own namespaces

A job is nobody, in a user namespace of its own and without any capability. It sees system directories for reading,
its own work directory, its own /proc and a few devices; no other process, no network.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import resource
import shutil
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import NoReturn, Optional

from gateway.verify.sandbox.inside import supervise
from gateway.verify.sandbox.kernel import (
    NOBODY,
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    become,
    check,
    close_except,
    drop_capabilities,
    libc,
    new_user_namespace,
    prctl,
    stand_back,
    syscall,
)
from gateway.verify.sandbox.worker import Walls, load_harness

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 1 << 17, 1 << 25, 1 << 26, 1 << 27
CLONE_NEWPID, CLONE_NEWNET = 1 << 29, 1 << 30
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SYS_MOUNT_SETATTR = 442
PRELOADED = """
    abc array ast base64 bisect calendar cmath collections contextlib copy dataclasses datetime decimal enum fractions
    functools hashlib heapq io itertools json math numbers operator pprint queue random re statistics string struct
    textwrap time types typing unicodedata
"""
SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
DEVICES = ("null", "zero", "full", "random", "urandom")
LINKS = {
    "/tmp": "/work",
    "/dev/shm": "/work",
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}
ETC = {
    "passwd": "nobody:x:65534:65534::/work:/bin/false\n",
    "group": "nogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n",
}


def launch(control: int, harnesses: dict[str, str], disk_bytes: int, inodes: int) -> None:
    """Start the zygote, which listens to the descriptor `control`, and wait for its end. Says there, as JSON, how the
    start went: {"error": ..., "proc": how /proc could be mounted}."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python's own handler would make pid 1 one that can be killed inside
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    close_except({control})
    os.chdir("/")
    try:
        root = _is_real_root()
        if not root:
            new_user_namespace(0)
        flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
        check(libc.unshare(flags), "unshare(mount, pid, network, ipc and uts namespaces)")
        zygote = os.fork()
        if zygote == 0:
            serve(control, harnesses, Cell(root, disk_bytes, inodes))
    except BaseException as error:
        os.write(control, json.dumps({"error": _said(error)}).encode())
        os._exit(1)
    os.close(control)
    os.waitpid(zygote, 0)


def _is_real_root() -> bool:
    """Whether this is a root that can become nobody: the one of a container without privileges cannot."""
    with open("/proc/self/uid_map", "rb") as file:
        ranges = [[int(field) for field in line.split()] for line in file]
    return os.geteuid() == 0 and any(first <= NOBODY < first + count for first, _, count in ranges)


def _said(error: BaseException) -> str:
    return str(error.args[1] if isinstance(error, OSError) and len(error.args) > 1 else error) or type(error).__name__


class Cell(Walls):
    """What this level puts around a job: namespaces of its own below the zygote's, and nobody's rights there."""

    own_pids = own_count = own_network = must_filter = parked = True

    def __init__(self, root: bool, disk_bytes: int, inodes: int) -> None:
        super().__init__()
        self._root = root
        owner = NOBODY if root else 0
        self._work_options = f"size={disk_bytes},nr_inodes={inodes},mode=700,uid={owner},gid={owner}"

    def before_keeper(self) -> None:
        flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
        check(libc.unshare(flags), "unshare(a job's namespaces)")
        if self._root:  # else the supervisor, once it is nobody, could not kill a keeper that is root still
            os.setresuid(NOBODY, 0, 0)

    def supervisor(self) -> None:
        self._lose_root()
        drop_capabilities()

    def before_worker(self) -> None:
        mount("none", self.work, "tmpfs", MS_NOSUID | MS_NODEV, self._work_options)
        mount_proc()

    def keeper(self) -> None:
        self._lose_root()
        drop_capabilities()

    def worker(self) -> None:
        self._lose_root()
        new_user_namespace(NOBODY)  # with its own count of processes, and no power over what is mounted

    def _lose_root(self) -> None:
        if self._root:
            become(NOBODY)


def serve(control: int, harnesses: dict[str, str], cell: Cell) -> NoReturn:
    """Be the zygote. Never returns."""
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        stand_back()
        socket.sethostname("sandbox")
        proc = build_root()
        for name in PRELOADED.split():
            __import__(name)
        for name, source in harnesses.items():
            cell.harness_by_name[name] = load_harness(name, source)
        with contextlib.suppress(ChildProcessError):
            os.wait4(-1, os.WNOHANG)  # for which PyPy loads a module
        prctl(PR_SET_DUMPABLE, 0)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for supervisors
        getattr(gc, "freeze", gc.collect)()  # PyPy has no freeze
        connection = socket.socket(fileno=control)
        connection.send(json.dumps({"error": None, "proc": proc}).encode())
        while True:
            _, received, _, _ = socket.recv_fds(connection, 16, 1)
            if not received:
                os._exit(0)  # the gateway has gone
            _begin(received[0], cell)
    except BaseException as error:
        os.write(control, json.dumps({"error": _said(error)}).encode())
    finally:
        os._exit(1)


def _begin(channel: int, cell: Cell) -> None:
    try:
        pid = os.fork()
    except OSError:
        pid = -1  # the gateway sees its channel end without an answer
    if pid == 0:
        try:
            close_except({channel})
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # which keeper and worker inherit
            supervise(channel, channel, cell)
        finally:
            os._exit(0)
    os.close(channel)


# --- the zygote's root -----------------------------------------------------------------------------------------------


def mount(source: Optional[str], target: str, kind: Optional[str], flags: int, data: Optional[str] = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    status = libc.mount(texts[0], texts[1], texts[2], flags, texts[3])
    check(status, f"mount({source or kind} on {target})")


def build_root() -> str:
    """Go into a root of one's own, small so that each job's copy of the mount table is cheap; how /proc is mounted."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("none", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=4m,mode=755")
    Path("/tmp/old").mkdir()
    check(syscall(SYS_PIVOT_ROOT[os.uname().machine], b"/tmp", b"/tmp/old"), "pivot_root")
    os.chdir("/")
    for path in _system_paths():
        Path(path).mkdir(parents=True, exist_ok=True)
        bind(f"/old{path}", path, MS_RDONLY | MS_NOSUID | MS_NODEV)
    for path in ("/etc", "/dev", "/proc", "/work"):
        Path(path).mkdir(parents=True, exist_ok=True)
    for path, target in LINKS.items():
        Path(path).symlink_to(target)
    for name in DEVICES:
        with open(f"/dev/{name}", "wb"):
            pass
        bind(f"/old/dev/{name}", f"/dev/{name}", MS_NOSUID | MS_NOEXEC)
    for name, text in ETC.items():
        with open(f"/etc/{name}", "w", encoding="ascii") as file:
            file.write(text)
    if Path("/old/etc/ld.so.cache").exists():  # where programs find libraries that are not the system's
        shutil.copyfile("/old/etc/ld.so.cache", "/etc/ld.so.cache")
    how = mount_proc()
    check(libc.umount2(b"/old", MNT_DETACH), "umount(the old root)")
    Path("/old").rmdir()
    mount(None, "/", None, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, "mode=755")
    return how


def _system_paths() -> list[str]:
    """The system's directories and the interpreter's; never / itself. Makes the links that some of them are."""
    paths = ["/usr"]
    for path in SYSTEM:
        outside = Path(f"/old{path}")
        if outside.is_symlink():
            Path(path).symlink_to(os.readlink(outside))  # noqa: PTH115 - as it stands
        elif outside.is_dir():
            paths.append(path)
    home = os.path.realpath(f"/old{sys.base_prefix}")[len("/old") :]
    if home.strip("/") and not any(f"{home}/".startswith(f"{path}/") for path in paths):
        paths.append(home)
        if home != sys.base_prefix:
            paths.append(sys.base_prefix)
    return paths


def bind(source: str, target: str, flags: int) -> None:
    mount(source, target, None, MS_BIND | MS_REC)
    attributes = struct.pack("QQQQ", flags, 0, 0, 0)  # MOUNT_ATTR_* are as MS_* for these
    if syscall(SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, attributes, len(attributes)) < 0:
        kept = os.statvfs(target).f_flag & 0x40E  # before Linux 5.12: not for what is mounted below
        mount(None, target, None, MS_BIND | MS_REMOUNT | flags | kept)


def mount_proc() -> str:
    for data in ("subset=pid", None):  # before Linux 5.8: all of it
        try:
            mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, data)
            return data or "full"
        except OSError as error:
            if error.errno == errno.EPERM:
                text = "/proc cannot be mounted: parts of it are hidden here, as in a container"
                raise OSError(errno.EPERM, text) from error
            last = error
    raise last
