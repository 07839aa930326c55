"""The process that becomes the job, and what a level puts around it: part two of `inside.py`.

It limits itself for good before it looks at foreign code, and says so ("ready") only when all of it has worked.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import ctypes
import json
import linecache
import math
import os
import resource
import signal
import sys
import threading
import traceback
import types
from collections.abc import Sequence
from typing import Any, Callable, NoReturn, Optional

from gateway.verify.sandbox.kernel import (
    NICE,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    Filter,
    become,
    check,
    close_except,
    drop_capabilities,
    filter_program,
    libc,
    prctl,
)

PATH = "/usr/local/bin:/usr/bin:/bin"
M_ARENA_MAX = -8
WARM_UP = "class A(list):\n def f(s): return [str(i) for i in s]\nprint(A((1, 2)).f(), flush=True)"

Report = Callable[[bytes], None]
Harness = Callable[[str, bytes, Report], None]


class Walls:
    """What a level puts around a job beside limits. These put up nothing: the jail stands already, or there is none."""

    own_pids = False  # whether the keeper's end is the end of all its descendants
    own_count = False  # whether RLIMIT_NPROC counts this job's processes only
    own_cgroup = False  # whether what the kernel kills in its control group for memory is this job's
    own_network = False  # whether all sockets that the keeper can count are this job's
    folders: Sequence[str] = ()  # where it may make any number of files, as far as the mounts are concerned
    must_filter = False  # whether a machine without a filter for its calls is refused
    parked = False  # whether it is worth to warm up while no job waits

    def __init__(self, work: str = "/work", uid: Optional[int] = None, sockets: bool = True) -> None:
        self.work, self.uid = work, uid  # the job's directory; whom the worker becomes
        program = filter_program(sockets)
        self.filter = None if program is None else Filter(program)  # of its calls; None: no table of this machine's
        self.harness_by_name: dict[str, Harness] = {}  # loaded before

    def before_keeper(self) -> None:
        """In the supervisor, before the keeper is forked."""

    def supervisor(self) -> None:
        """In the supervisor, once it has forked the keeper."""

    def before_worker(self) -> None:
        """In the keeper, before the worker is forked."""

    def keeper(self) -> None:
        """In the keeper, once it has forked the worker."""

    def worker(self) -> None:
        """In the worker, first of all."""
        if self.uid is not None:
            become(self.uid)


class Ends:
    """The pipes between the three processes: of each the end that reads and the end that writes."""

    def __init__(self) -> None:
        (self.job_r, self.job_w), (self.status_r, self.status_w) = os.pipe(), os.pipe()
        (self.out_r, self.out_w), (self.err_r, self.err_w) = os.pipe(), os.pipe()
        self.report_r, self.report_w = os.pipe()


def work(ends: Ends, ready_w: int, walls: Walls) -> NoReturn:
    """Become the job. What fails before is told by `ready_w`, and nothing runs. Never returns."""
    try:
        os.close(ends.status_w)
        walls.worker()
        drop_capabilities()
        check(prctl(PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
        settle(walls)
        main = prepare_python()
        if walls.parked:  # the faults of copy on write are taken now
            exec(compile(WARM_UP, "main.py", "exec", dont_inherit=True), {})
        header = json.loads(read_line(ends.job_r))
        code, source, payload = (read_exactly(ends.job_r, header[part]) for part in ("code", "source", "payload"))
        os.close(ends.job_r)
        harness = find_harness(header["harness"], source, walls)
        argv = [] if harness or header["language"] == "python" else command(header["language"], code, header["limits"])
        os.dup2(ends.out_w, 1), os.dup2(ends.err_w, 2)
        if not harness:
            become_stdin(payload)
        limit(header["limits"], header["language"], walls, harness is not None)
        os.write(ready_w, json.dumps(header["limits"]).encode())
    except BaseException as error:
        os.write(ready_w, json.dumps({"reason": "setup", "error": f"{type(error).__name__}: {error}"}).encode())
        os._exit(1)
    try:
        close_except({ends.report_w} if harness else ())
        prctl(PR_SET_DUMPABLE, 0 if harness else 1)  # only what may be looked into can be measured exactly
        if harness:
            run(lambda: harness(code.decode(), payload, Reporter(ends.report_w)))
        if argv:
            os.execve(argv[0], argv, dict(os.environ))
        sys.path.insert(0, walls.work)
        run(lambda: run_python(code.decode(), main))
    finally:
        os._exit(1)


def settle(walls: Walls) -> None:
    os.setpgid(0, 0)
    with contextlib.suppress(OSError):
        os.nice(NICE)  # nobody else of the jail is: who watches must get its turn, however many processes there are
    os.chdir(walls.work)
    os.umask(0o022)
    os.environ.clear()
    os.environ.update(PATH=PATH, HOME=walls.work, TMPDIR=walls.work, LANG="C.UTF-8")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")  # where memory is short for all, jobs go first
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    with contextlib.suppress(AttributeError):
        libc.mallopt(M_ARENA_MAX, 2)  # each thread's own 64 MiB of address space would be its limit's end


def read_line(fd: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(fd, 1) or b"\n"
    return line


def read_exactly(fd: int, count: int) -> bytes:
    """So many bytes, of which this process keeps no other copy: what a harness wipes out is gone."""
    buffer, got = ctypes.create_string_buffer(count + 1), 0
    while got < count:
        some = check(libc.read(fd, ctypes.byref(buffer, got), ctypes.c_size_t(count - got)), "read")
        if not some:
            raise OSError("the job is cut short")
        got += some
    data = ctypes.string_at(buffer, count)
    ctypes.memset(buffer, 0, count)
    return data


def find_harness(name: str, source: bytes, walls: Walls) -> Optional[Harness]:
    if not name:
        return None
    if source:
        return load_harness(name, source.decode())
    return walls.harness_by_name[name]


def load_harness(name: str, source: str) -> Harness:
    module = types.ModuleType(name)
    exec(compile(source, f"{name}.py", "exec", dont_inherit=True), module.__dict__)
    harness: Harness = module.__dict__["harness_main"]
    return harness


class Reporter:
    """What a harness calls with its report, or with one report after another: the last whole one counts."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, report: bytes) -> None:
        view = memoryview(len(report).to_bytes(8, "big") + report)
        while view:
            view = view[os.write(self._fd, view) :]


def command(language: str, code: bytes, limits: dict[str, Any]) -> list[str]:
    """The program as a file in the work directory, and the command that runs it there."""
    if language == "javascript":
        lines = code.splitlines()
        name = "main.mjs" if any(line.startswith((b"import ", b"import{", b"export ")) for line in lines) else "main.js"
        argv = [find_program("node"), f"--max-old-space-size={limits['memory_bytes'] >> 21}", name]
    elif language == "bash":
        argv = [find_program("bash"), "main.sh"]
    else:
        raise ValueError(f"no way to run {language!r}")
    with open(argv[-1], "wb") as file:
        file.write(code)
    for name in ("SIGPIPE", "SIGXFSZ"):  # which Python ignores
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    return argv


def find_program(name: str) -> str:
    for directory in PATH.split(":"):
        if os.access(f"{directory}/{name}", os.X_OK):
            return f"{directory}/{name}"
    raise FileNotFoundError(f"there is no {name} here")


def become_stdin(payload: bytes) -> None:
    if payload:  # a file without a name: it may be longer than a pipe holds
        with open(".stdin", "wb") as file:
            file.write(payload)
        with open(".stdin", "rb") as file:
            os.dup2(file.fileno(), 0)
        os.unlink(".stdin")  # noqa: PTH108 - pathlib is not worth its loading here


def limit(limits: dict[str, Any], language: str, walls: Walls, harness: bool) -> None:
    """Every limit that a process can have, and the filter of its calls: from here on it cannot go back.

    But a harness may have more files open, if it wants: it is to take that right from the programs that it runs.
    """
    with open("/proc/self/statm", "rb") as file:
        held_bytes = int(file.read().split()[0]) * resource.getpagesize()
    tasks = limits["processes"] + (0 if walls.own_count else tasks_of_user() - 1)
    cpu_s = math.ceil(limits["cpu_s"])
    both = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        12: 0,  # RLIMIT_MSGQUEUE
        resource.RLIMIT_FSIZE: limits["disk_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_NPROC: tasks,
        resource.RLIMIT_AS: max(limits["memory_bytes"], held_bytes + limits["memory_bytes"] // 2),
    }
    if language == "javascript":  # V8 reserves gigabytes of address space, of which it uses little
        del both[resource.RLIMIT_AS]
    if walls.filter is None and walls.must_filter:
        raise OSError(f"no filter for the system calls of {os.uname().machine}")
    for which, value in both.items():
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, hard if harness and which == resource.RLIMIT_NOFILE else value))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    if walls.filter is not None:
        walls.filter.install()


def tasks_of_user() -> int:
    """Threads that this user has already, here: RLIMIT_NPROC counts them too."""
    count = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == os.getuid():
                    count += sum(1 for _ in os.scandir(f"/proc/{entry.name}/task"))
            except OSError:
                pass
    return count


def prepare_python() -> types.ModuleType:
    """Make this process look like a Python that has just begun with a main.py; the module is its main."""
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        errors = "backslashreplace" if name == "stderr" else "surrogateescape"
        line = -1 if fd < 2 else 1
        stream = open(fd, mode, encoding="utf-8", errors=errors, closefd=False, buffering=line)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # which are site's, and there is no site
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __file__="main.py")
    sys.modules["__main__"] = main
    sys.argv = ["main.py"]
    return main


def run_python(text: str, main: types.ModuleType) -> None:
    linecache.cache["main.py"] = (len(text), None, text.splitlines(True), "main.py")
    exec(compile(text, "main.py", "exec", dont_inherit=True), main.__dict__)


def run(function: Callable[[], None]) -> NoReturn:
    """End this process as a Python ends whose main module is `function`."""
    status = 0
    try:
        function()
    except SystemExit as error:
        if isinstance(error.code, int) or error.code is None:
            status = error.code or 0
        else:
            print(error.code, file=sys.stderr)
            status = 1
    except BaseException as error:
        own = error.__traceback__  # three frames are ours
        for _ in range(3):
            own = own.tb_next if own is not None and own.tb_next is not None else own
        traceback.print_exception(type(error), error, own)
        status = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status & 255)
