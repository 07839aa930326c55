"""What the gateway itself has run out of: descriptors, buffers, memory, free ports. No engine is to blame for that.

Looks only at what the system says: nothing here sends anything or waits. Owns no state.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl

from gateway.errors import EngineFailed
from gateway.upstream.resolver import Address

_ERRNOS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Shortage(Exception):
    """Nothing could be asked, and so nothing has been learned about the engine."""


def is_shortage(error: OSError) -> bool:
    """Return whether an operation on a socket failed for want of something that the gateway itself has run out of.

    (Other numbers than the system's stand in errors of the resolver and of TLS.)
    """
    return error.errno in _ERRNOS and not isinstance(error, (socket.gaierror, ssl.SSLError))


def in_connecting(error: OSError) -> bool:
    """Return whether a connection could not be opened because something has run out here.

    A name may not be known because the resolver had no descriptor; then there is still none to be had.
    """
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_MEMORY or _no_descriptor()
    return is_shortage(error)


def reaches(address: Address, port: int) -> bool:
    """Return whether this machine has a way to an address. Sends nothing, and never waits.

    "Cannot assign the address" means that no port is free, or that there is no such way (IPv6 in many a container):
    connecting a UDP socket, for which nothing is sent, needs a way too.
    """
    family, (host, _, *rest) = address
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((host, port, *rest))
    except OSError as error:
        return is_shortage(error)
    return True


def overloaded(error: OSError) -> EngineFailed:
    """Return what the client is told of a shortage."""
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else "no resources"
    return EngineFailed("overloaded", f"the gateway cannot open a connection: {reason}", retry_after_s=1.0)


def need_descriptor() -> None:
    """Raises GatewayError when there is none left."""
    try:
        socket.socket().close()
    except OSError as error:
        if is_shortage(error):
            raise overloaded(error) from error


def _no_descriptor() -> bool:
    try:
        need_descriptor()
    except EngineFailed:
        return True
    return False
