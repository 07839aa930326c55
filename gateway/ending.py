"""How the process of a command ends: Ctrl-C, and a reader that has left, are nobody's fault and print no traceback.

Anything may import this. No state, no lock; `within` has a thread for each call.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, NoReturn

EXIT_INTERRUPTED = 130  # as a shell tells SIGINT
EXIT_UNREAD = 141  # as a shell tells SIGPIPE, of which Unix tools die; here it would kill who writes to a closed socket
OUTPUT_S = 1.0  # how long a line that nobody reads is waited for
_UNWRITABLE = (errno.ENOSPC, errno.EBADF, errno.EIO)


def run_to_end(command: Callable[[], int], printing: bool) -> NoReturn:
    """Run a command, and end the process with the exit status that it returns (or raises, as argparse does).

    Ctrl-C ends it at once, whatever it is doing. When what it prints cannot be written the status tells it: 141 without
    a word when the reader has left, else 1 and the reason (a full disk; with `printing`, which says that what it is for
    is what it prints, a stdout that is closed). The interpreter's own end would tell a traceback of either.
    """
    open_missing(os.O_RDONLY if printing else os.O_RDWR)
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(EXIT_INTERRUPTED))
    try:
        try:
            status = command()
        except SystemExit as error:
            status = int(error.code or 0)
        sys.stdout.flush()
    except BrokenPipeError:
        status = EXIT_UNREAD
    except Exception as error:
        status = 1
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            print(f"error: cannot write to stdout: {error.strerror}", file=sys.stderr)
        else:
            sys.excepthook(type(error), error, error.__traceback__)
    try:
        sys.stderr.flush()  # PyPy keeps what has been printed there
    except OSError:
        pass
    os._exit(status)


def open_missing(stdout_mode: int) -> None:
    """Open what is closed of descriptors 0, 1 and 2: a client's socket would get the number, and what is printed.

    With `stdout_mode` O_RDONLY, printing to a stdout that was closed fails as it does where there is none.
    """
    if os.name == "posix":
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:
                # Takes the lowest number that is free: this one.
                os.open(os.devnull, stdout_mode if number == 1 else os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            file = number if os.name == "posix" else os.devnull
            setattr(sys, name, open(file, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)


def within(limit_s: float, write: Callable[[], object], name: str = "output") -> None:
    """Write on a thread of its own, and wait for that so long: nobody may read it, and nothing is to wait for that."""
    import threading

    def attempt() -> None:
        try:
            write()
        except (OSError, ValueError):
            pass  # closed, or full

    thread = threading.Thread(target=attempt, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the system gives no more threads, and that is no reason to end
        return
    thread.join(limit_s)
