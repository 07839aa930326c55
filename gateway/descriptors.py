"""How many descriptors the process may have: as many as the system lets it.

Owns nothing: the limit is the system's.
"""

from __future__ import annotations

from typing import Callable

OWN_DESCRIPTORS = 256  # the listening sockets, the database, pipes, kept connections to engines
# What systems usually allow a process at most, should there be no limit, or one of a billion: what is started from here
# inherits it, and some programs close every descriptor that there may be, one by one.
DESCRIPTORS_MAX = 1_048_576


def raise_limit(workers: int, max_connections: int, log: Callable[..., None]) -> None:
    """Allow as many descriptors as the system lets us, and `log` it where clients' connections cannot have them all.

    A client's connection takes one, and one more while an engine works for it: the requests of all workers are counted,
    streams, which need no worker, are not (each takes a second one; that can be known only when they come).
    """
    try:
        import resource
    except ImportError:
        return
    own = workers + OWN_DESCRIPTORS
    wanted = max_connections + own
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    most = max(DESCRIPTORS_MAX, 2 * max_connections + own)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    allowed, refused, asked = soft, most + 1, most
    while asked > allowed:  # macOS lets a process have less than its hard limit says, and nobody knows how much
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (asked, hard))
            allowed = asked
        except (OSError, ValueError):
            refused = asked
        asked = (allowed + refused) // 2
    if allowed < wanted:
        log(
            "warning",
            "few_descriptors",
            allowed=allowed,
            wanted=wanted,
            max_connections=max_connections,
            possible_connections=max(0, allowed - own),
            message="raise the limit of open files (ulimit -Hn, LimitNOFILE) to `wanted`, or lower MAX_CONNECTIONS",
        )
