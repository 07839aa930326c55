"""How the process of a command ends: Ctrl-C, and a reader that has left, are nobody's fault and print no traceback.

Anything may import this. No state, no lock.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, NoReturn

EXIT_INTERRUPTED = 130  # as a shell tells SIGINT
EXIT_UNREAD = 141  # as a shell tells SIGPIPE, of which Unix tools die; here it would kill who writes to a closed socket


def run_to_end(command: Callable[[], int]) -> NoReturn:
    """Run a command, and end the process with the exit status that it returns (or raises, as argparse does).

    Ctrl-C ends it at once, whatever it is doing. When what it has printed cannot be written the status tells it: 141
    without a word when the reader has left, else 1 and the reason (a full disk, a stdout that is closed).
    """
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(EXIT_INTERRUPTED))
    try:
        status = command()
    except SystemExit as error:
        status = int(error.code or 0)
    except BrokenPipeError:
        status = EXIT_UNREAD
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    end(status)


def end(status: int) -> NoReturn:
    """End the process, when what it has printed is written. The interpreter's own way would tell a traceback of that,
    and run code of ours that Ctrl-C could interrupt."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = EXIT_UNREAD
    except OSError as error:
        print(f"error: cannot write to stdout: {error.strerror or error}", file=sys.stderr)
        status = status or 1
    os._exit(status)
