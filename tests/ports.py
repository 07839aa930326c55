"""Ports that are chosen by their number: for tests, benches and faults, in any of their processes.

Owns which have been chosen in this process; choosing is one atomic step. Listens on none.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

# Below what systems give to connections and to port 0 (Linux: from 32768): nobody gets one by chance before it is
# listened on, between two that do, or while who did is dead. A hundredth for each process, as tests run in several.
_PORTS = range(20_000 + os.getpid() % 100, 32_000, 100)
_next_port = itertools.cycle(_PORTS)


def free_port(*hosts: str) -> int:
    """A port that is free at all these addresses (none: 127.0.0.1); the same one again only after all others.

    Thread-safe. Raises OSError when none is free.
    """
    for port in itertools.islice(_next_port, len(_PORTS)):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for host in hosts or ("127.0.0.1",):
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                stack.enter_context(socket.create_server((host, port), family=family))
            return port
    raise OSError(f"no port from {_PORTS.start} to {_PORTS.stop} is free at {hosts}")
