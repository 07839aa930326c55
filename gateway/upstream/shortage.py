"""What the gateway itself has run out of: descriptors, buffers, memory, free ports. No engine is to blame for that.

Pure but for `in_connecting`, which may look again at an address without sending anything there. Owns no state.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl

from gateway.errors import EngineFailed

_ERRNOS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Shortage(Exception):
    """Nothing could be asked, and so nothing has been learned about the engine."""


def is_shortage(error: OSError) -> bool:
    """Whether an operation on a socket failed for want of something that the gateway itself has run out of.

    (Other numbers than the system's stand in errors of the resolver and of TLS.)
    """
    return error.errno in _ERRNOS and not isinstance(error, (socket.gaierror, ssl.SSLError))


def in_connecting(error: OSError, host: str, port: int) -> bool:
    """Whether a connection to this address could not be opened because something has run out here.

    Two errors say that only sometimes. A name may not be known because the resolver had no descriptor; then there is
    still none to be had. And "cannot assign the address" means that no port is free, or that this machine has no way
    to such an address (IPv6 in many a container): connecting a UDP socket, for which nothing is sent, needs a way too.
    """
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_MEMORY or _no_descriptor()
    if error.errno == errno.EADDRNOTAVAIL:
        return _reaches(host, port)
    return is_shortage(error)


def overloaded(error: OSError) -> EngineFailed:
    """What the client gets."""
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


def _reaches(host: str, port: int) -> bool:
    """Whether this machine has a way to all addresses of the host."""
    try:
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect(address)
    except OSError as error:
        return is_shortage(error)
    return True
