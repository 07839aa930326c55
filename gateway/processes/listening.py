"""The listening sockets of several processes at one address.

Where the system spreads connections over sockets that share an address (Linux: SO_REUSEPORT), each slot has one, and no
process is woken for another's; elsewhere all accept on one. Owns nothing: the parent does. No lock.
"""

from __future__ import annotations

import errno
import os
import socket
import sys

BACKLOG = 1024
SPREADS = sys.platform.startswith("linux") and hasattr(socket, "SO_REUSEPORT")  # macOS has it, and spreads nothing


def listen(host: str, port: int, count: int) -> list[socket.socket]:
    """Sockets that listen at an address, `count` or one; port 0: any free one, the same for all. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets: list[socket.socket] = []
    try:
        if SPREADS and port:
            # Another gateway's sockets may allow to be shared, too: its clients must not get half of them here.
            with socket.socket(family) as alone:
                _bind(alone, (host, port))
        for _ in range(count if SPREADS else 1):
            listening = socket.socket(family)
            sockets.append(listening)
            if SPREADS:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _bind(listening, sockets[0].getsockname() if len(sockets) > 1 else (host, port))
        for listening in sockets:
            listening.listen(BACKLOG)
            listening.setblocking(False)  # for all processes
    except BaseException as error:
        for listening in sockets:
            listening.close()
        if isinstance(error, OverflowError):  # as `bind` says of a port that is none
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from error
        raise
    return sockets


def _bind(listening: socket.socket, address: object) -> None:
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(address)  # type: ignore[arg-type]
