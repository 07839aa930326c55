"""The kernel's calls that Python does not have, for what runs inside the levels: part one of `inside.py`.

Needs the standard library alone, on Linux. Raises OSError for a step of a jail's building that fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple, Optional

NOBODY = 65534
NICE = 10  # a tenth of what others get: enough to go on where engines keep all processors busy
CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 1, 4, 22, 24, 36
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 38, 47
SYS_CLOSE_RANGE, SYS_PIDFD_OPEN, SYS_CLONE3 = 436, 434, 435  # the same on every machine

libc = ctypes.CDLL(None, use_errno=True)


def check(status: int, what: str) -> int:
    """`status` of a C call; raises OSError naming `what` when it failed: a jail that is not whole is not used."""
    if status < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return status


def prctl(option: int, *arguments: int) -> int:
    return int(libc.prctl(option, *[ctypes.c_ulong(one) for one in (*arguments, 0, 0, 0, 0)[:4]]))


def syscall(number: int, *arguments: Any) -> int:
    converted = [one if isinstance(one, bytes) else ctypes.c_long(one) for one in arguments]
    return int(libc.syscall(ctypes.c_long(number), *converted))


def close_except(kept: Iterable[int]) -> None:
    """Close every descriptor above 2 but those `kept`."""
    low = 3
    for fd in [*sorted(kept), None]:
        high = 0x7FFFFFFF if fd is None else fd - 1
        if high >= low and syscall(SYS_CLOSE_RANGE, low, high, 0) < 0:  # before Linux 5.9
            os.closerange(low, min(high, resource.getrlimit(resource.RLIMIT_NOFILE)[0]) + 1)
        low = 0 if fd is None else fd + 1


def drop_capabilities() -> None:
    prctl(PR_CAP_AMBIENT, 4)
    for capability in range(64):
        prctl(PR_CAPBSET_DROP, capability)
    check(libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)), "capset")


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def stand_back() -> None:
    """Have this session get little of the processors while others want them, where the kernel shares them among
    sessions (sched_autogroup). Elsewhere, and within the session, it is the job that is nice: see `settle`.

    A new session would begin anew, so jobs may not make any.
    """
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "wb", buffering=0) as file:
        file.write(b"%d" % NICE)


def new_user_namespace(inner_uid: int) -> None:
    """Go into a user namespace of one user, this one, who is `inner_uid` there."""
    uid, gid = os.geteuid(), os.getegid()
    check(libc.unshare(CLONE_NEWUSER), "unshare(CLONE_NEWUSER)")
    prctl(PR_SET_DUMPABLE, 1)  # after a change of user /proc/self is root's
    maps = (("setgroups", "deny"), ("uid_map", f"{inner_uid} {uid} 1"), ("gid_map", f"{inner_uid} {gid} 1"))
    for name, text in maps:
        with open(f"/proc/self/{name}", "wb", buffering=0) as file:
            file.write(text.encode())


# Name, number on x86_64, on aarch64 (-: there is none): what no job needs, and where kernels have been broken before.
# The last two lines have what makes the kernel keep memory that nobody counts.
DENIED = """
    setsid 112 157,
    ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272, mount 165 40, umount2 166 39,
    pivot_root 155 41, chroot 161 51, unshare 272 97, setns 308 268, keyctl 250 219, add_key 248 217,
    request_key 249 218, bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, fanotify_init 300 262,
    kexec_load 246 104, kexec_file_load 320 294, init_module 175 105, reboot 169 142, finit_module 313 273,
    delete_module 176 106, swapon 167 224, swapoff 168 225, acct 163 89, quotactl 179 60, syslog 103 116,
    personality 135 92, name_to_handle_at 303 264, open_by_handle_at 304 265, memfd_create 319 279, shmget 29 194,
    msgget 68 186, semget 64 190, mq_open 240 180, set_mempolicy 238 237, migrate_pages 256 238, move_pages 279 239,
    mbind 237 235, iopl 172 -, ioperm 173 -, modify_ldt 154 -, uselib 134 -, io_uring_setup 425 425,
    io_uring_enter 426 426, io_uring_register 427 427, open_tree 428 428, move_mount 429 429, fsopen 430 430,
    fsconfig 431 431, fsmount 432 432, fspick 433 433, pidfd_getfd 438 438, process_madvise 440 440,
    mount_setattr 442 442, quotactl_fd 443 443, memfd_secret 447 447, setpriority 141 140, ioprio_set 251 30,
    sched_setscheduler 144 119, sched_setparam 142 118, sched_setattr 314 274, sched_setaffinity 203 122,
    vmsplice 278 75, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, inotify_init 253 -, inotify_init1 294 26,
    landlock_create_ruleset 444 444, seccomp 317 277
"""
FIRST_UNKNOWN = 452  # newer calls: ENOSYS, for which libraries have another way
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH
CLONE = (56, 220)
NEW_NAMESPACES = 0x7E020080  # CLONE_NEW*
AF_UNIX = 1  # there is no network for others to reach, and AF_VSOCK and the like may lead out of a namespace


class Rule(NamedTuple):
    """Which calls are allowed or refused for the values of one argument, of which the lower half counts."""

    call: tuple[int, int]  # its number on x86_64, on aarch64
    argument: int
    values: tuple[int, ...]
    allowed: bool  # these and no others; else these are refused


def rules(sockets: bool) -> tuple[Rule, ...]:
    """What is judged by an argument. Without `sockets` there are only pairs, as event loops need them."""
    return (
        Rule((41, 198), 0, (AF_UNIX,) if sockets else (), True),  # socket
        Rule((53, 199), 0, (AF_UNIX,), True),  # socketpair
        Rule((54, 208), 2, (7, 26), False),  # setsockopt: SO_SNDBUF, SO_ATTACH_FILTER, which the kernel keeps
        Rule((302, 261), 0, (0,), True),  # prlimit64: its own
        Rule((16, 29), 1, (0x5412, 0x541C), False),  # ioctl: TIOCSTI, TIOCLINUX, a terminal's input
    )


def filter_program(sockets: bool) -> Optional[bytes]:
    """A BPF program that refuses DENIED, new namespaces and what `rules` refuse; None where there is no table of the
    machine's calls."""
    machine = MACHINES.get(os.uname().machine)
    if machine is None or struct.calcsize("P") != 8:
        return None
    column, architecture = machine
    program: list[bytes] = []

    def add(*instructions: tuple[int, ...]) -> None:  # code, value, how many to skip if it is so, and if not
        for code, value, *skips in instructions:
            program.append(struct.pack("HBBI", code, *(skips or (0, 0)), value))

    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allowed, denied, missing, killed = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x80000000
    add((load, 4), (equal, architecture, 1, 0), (answer, killed))
    add((load, 0), (at_least, 1 << 30, 0, 1), (answer, killed))  # x32: other numbers for the same calls
    add((at_least, FIRST_UNKNOWN, 0, 1), (answer, missing))
    for row in DENIED.replace("\n", " ").split(","):
        number = row.split()[1 + column]
        if number != "-":
            add((equal, int(number), 0, 1), (answer, denied))
    add((equal, SYS_CLONE3, 0, 1), (answer, missing))  # its flags cannot be read here; libc falls back to clone
    add((equal, CLONE[column], 0, 4), (load, 16))  # the first argument's lower half
    add((any_bit, NEW_NAMESPACES, 0, 1), (answer, denied), (answer, allowed))
    for rule in rules(sockets):
        count = len(rule.values)
        add((equal, rule.call[column], 0, 3 + count), (load, 16 + 8 * rule.argument))
        for index, value in enumerate(rule.values):
            add((equal, value, count - index, 0))
        others, these = (denied, allowed) if rule.allowed else (allowed, denied)
        add((answer, others), (answer, these))
    add((answer, allowed))
    return b"".join(program)


class Filter:
    """A BPF program in memory, ready to be installed: making it takes longer than a job has."""

    def __init__(self, program: bytes) -> None:
        self._code = ctypes.create_string_buffer(program, len(program))
        header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(self._code))
        self._header = ctypes.create_string_buffer(header, len(header))

    def install(self) -> None:
        """Have the kernel judge this process's calls, and its children's, by the program for ever."""
        check(prctl(PR_SET_SECCOMP, 2, ctypes.addressof(self._header)), "seccomp")
