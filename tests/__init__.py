"""The tests: `python -m unittest` runs them all, several test classes side by side (see `tests.parallel`)."""

import os
import sys

# An old Python must be able to read this file. unittest would make a failed test of an exception.
if sys.version_info < (3, 9):  # noqa: UP036
    this = sys.version.split()[0] + " (" + str(sys.executable) + ")"
    sys.stderr.write("The tests need Python 3.9 or later; this is " + this + "\n")
    sys.stderr.flush()
    os._exit(1)


def interrupted(number, frame):
    """Ctrl-C while no test runs."""
    sys.stderr.write("\nInterrupted.\n")
    sys.stderr.flush()
    os._exit(130)


def load_tests(loader, tests, pattern):
    """What discovery takes instead of walking this folder itself; a module named alone runs as unittest runs it.

    TESTS_ONLY: names of modules, classes or tests, with spaces between; the others are left out. TESTS_SKIPPED: a file
    for such names of what this run skips, one a line. TESTS_AGAIN: how many that fail may run again.
    """
    import platform
    import signal
    from pathlib import Path

    from tests.parallel import ParallelSuite, number_in

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not with -c
        signal.signal(signal.SIGINT, interrupted)  # unittest takes an interrupted import for one that failed
    here = Path(__file__).resolve().parent
    only = os.environ.get("TESTS_ONLY", "").split()
    if only:
        tests.addTests(loader.loadTestsFromNames(only))
    else:
        found = loader.discover(str(here), pattern or "test*.py", str(here.parent))
        if platform.python_implementation() == "PyPy":
            from tests.thorough import without_spared

            found = without_spared(found)
        tests.addTests(found)
    # Not for tests that run tests.
    again = number_in("TESTS_AGAIN", os.environ.pop("TESTS_AGAIN", "")) or 0
    return ParallelSuite([tests], os.environ.pop("TESTS_SKIPPED", None), again)
