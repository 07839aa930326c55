"""Who starts the processes of a program, watches them from outside and ends them.

    judge      has the tests and what is expected; never runs anything of the program: see `judge.py`
    nursery    its child, forked before the judge has read what is expected; forks a process for each run, and kills it
    program    the nursery's child: has one socket to the judge, its standard streams, and nothing else

No process outlives its judge: each dies with its parent, and the nursery kills what has lost its own.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
import threading
import traceback
import types
from typing import NoReturn, Optional

from gateway.verify.harness.candidate import Program, described, flush  # in the sandbox this file stands before
from gateway.verify.harness.node import NODE_PROGRAM  # in the sandbox this file stands before
from gateway.verify.harness.wire import Lines  # in the sandbox this file stands before

CHANNEL = 3  # a program's descriptor of its socket
NODE_MEMORY_MB = 128
SEARCHED = "/usr/local/bin:/usr/bin:/bin"
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36


def prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)


def nurse(control: socket.socket, judge: int, code: str, secret: bytes) -> NoReturn:
    """Be the nursery: start and end processes as told. Never returns."""
    try:
        die_with(judge)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        wipe(secret)
        atexit._clear()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        close_from(CHANNEL, control.fileno())
        # Descriptors on the way count for all jobs of a user, who may not have more than a process may have open: if
        # the limit were a program's, one that leaves many on the way would keep every nursery from starting another.
        open_files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):  # macOS says that there is no limit, and refuses it
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        requests = Lines(control.fileno())
        while True:
            request = requests.receive()
            if request[0] == "start":
                start(control, request[1], code, open_files)
            elif request[0] == "end":
                control.sendall(str(end(request[1])).encode())
            else:
                end(None)
                break
    except BaseException:
        pass
    finally:
        os._exit(0)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent, `parent`, has ended."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def wipe(secret: bytes) -> None:
    """Overwrite a text in this process's memory. On CPython: elsewhere objects have no lasting address."""
    if len(secret) > 1 and sys.implementation.name == "cpython":
        ctypes.memset(id(secret) + bytes.__basicsize__ - 1, 0, len(secret))


def close_from(low: int, kept: int = -1) -> None:
    """Close all descriptors from `low` on, but `kept`."""
    limit = os.sysconf("SC_OPEN_MAX")
    if limit > 4096 and os.path.isdir("/proc/self/fd"):  # noqa: PTH112 - pathlib is not worth its loading here
        limit = max(map(int, os.listdir("/proc/self/fd"))) + 1  # noqa: PTH208
    os.closerange(low, kept if kept >= low else limit)
    if kept >= low:
        os.closerange(kept + 1, limit)


def start(control: socket.socket, kind: str, code: str, open_files: int) -> None:
    ours, theirs = socket.socketpair()
    (in_r, in_w), (out_r, out_w), (err_r, err_w) = os.pipe(), os.pipe(), os.pipe()
    try:
        nursery, pid = os.getpid(), os.fork()
        if pid == 0:
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
            become(nursery, kind, code, theirs.fileno(), in_r, out_w, err_w)
        socket.send_fds(control, [str(pid).encode()], [ours.fileno(), in_w, out_r, err_r])
    except OSError as error:
        control.sendall(str(error).encode())
    finally:
        ours.close()
        theirs.close()
        for fd in (in_r, in_w, out_r, out_w, err_r, err_w):
            os.close(fd)


def end(pid: Optional[int]) -> int:
    """Kill a process, its group, and everything else that has become the nursery's child; the first one's status."""
    status = -signal.SIGKILL
    if pid is not None:
        for kill in (os.killpg, os.kill):
            try:
                kill(pid, signal.SIGKILL)
            except OSError:
                pass
        status = status_of(os.waitpid(pid, 0)[1])
    for _ in range(1000):  # who has left the group; new ones may come while these are killed
        children = children_here()
        if not children:
            break
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            except OSError:
                pass
    return status


def children_here() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def status_of(wait_status: int) -> int:
    return os.WEXITSTATUS(wait_status) if os.WIFEXITED(wait_status) else -os.WTERMSIG(wait_status)


# --- in a program's process


def become(nursery: int, kind: str, code: str, channel: int, in_r: int, out_w: int, err_w: int) -> NoReturn:
    """Be a program's process. Never returns."""
    try:
        os.setpgid(0, 0)  # not a session: the sandbox allows none
        die_with(nursery)
        for fd, wanted in ((in_r, 0), (out_w, 1), (err_w, 2)):
            os.dup2(fd, wanted)
        if channel != CHANNEL:
            os.dup2(channel, CHANNEL)
        os.set_inheritable(CHANNEL, kind == "javascript calls")
        close_from(CHANNEL + 1)
        if kind in ("calls", "script"):
            for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
                stream = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
                setattr(sys, name, stream)
                setattr(sys, f"__{name}__", stream)
            (run_script if kind == "script" else run_calls)(code)
        for name in ("SIGPIPE", "SIGXFSZ"):  # which Python ignores
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        argv = command(kind, code)
        os.execve(argv[0], argv, dict(os.environ))
    except BaseException as error:
        os.write(2, described(error).encode("utf-8", "replace"))
    finally:
        os._exit(126)


def command(kind: str, code: str) -> list[str]:
    """What runs or checks a program of another language: the program as a file in the current directory."""
    language, _, what = kind.partition(" ")
    if kind == "javascript calls":
        return [
            found("node"),
            f"--max-old-space-size={NODE_MEMORY_MB}",
            "-e",
            f"(() => {{{NODE_PROGRAM}}})();",
        ]  # names of its own
    module = any(line.startswith(("import ", "import{", "export ")) for line in code.splitlines())
    name = "main.sh" if language == "bash" else "main.mjs" if module else "main.js"
    with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(code)
    if language == "bash":
        return [found("bash"), *(["-n"] if what == "check" else []), name]
    return [found("node"), "--check" if what == "check" else f"--max-old-space-size={NODE_MEMORY_MB}", name]


def found(name: str) -> str:
    for directory in f"{SEARCHED}:{os.environ.get('PATH', '')}".split(":"):
        if os.access(f"{directory}/{name}", os.X_OK):
            return f"{directory}/{name}"
    raise FileNotFoundError(f"there is no {name} here")


def run_calls(code: str) -> NoReturn:
    try:
        Program(code, Lines(CHANNEL)).serve()
    finally:
        os._exit(0)


def run_script(code: str) -> NoReturn:
    """Be a Python whose main module is `code`; the judge is told only whether it can be compiled."""
    status = 1
    try:
        main = types.ModuleType("__main__")
        main.__dict__["__file__"] = "main.py"
        sys.modules["__main__"], sys.argv = main, ["main.py"]
        try:
            compiled = compile(code, "main.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
            Lines(CHANNEL).send(["failed", "syntax", described(error)])
            os._exit(1)
        Lines(CHANNEL).send(["loaded", [], []])
        os.close(CHANNEL)
        try:
            exec(compiled, main.__dict__)
            status = 0
        except SystemExit as error:
            status = exit_status(error)
        except BaseException as error:
            traceback.print_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
        atexit._run_exitfuncs()
        flush()
    finally:
        os._exit(status & 255)


def exit_status(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1
