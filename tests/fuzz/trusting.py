"""`python main.py` that goes on keeping connections to engines that have sent bytes nobody asked for.

A gateway lets such an address have no kept connections for a while, so that hardly any would be kept in a run
against engines that do it all the time. Without that, what is left is the look at each connection before it is
used, which is what such a run is there to try.
"""

from __future__ import annotations

import sys
from unittest import mock

from gateway import cli
from gateway.upstream import connections


def run() -> int:
    """Serve; returns the exit status."""
    with mock.patch.object(connections, "DISTRUST_S", 0.0):
        return cli.main([])


if __name__ == "__main__":
    sys.exit(run())
