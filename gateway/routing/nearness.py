"""Whether an engine is near: on this machine, or in a private network.

What was meant for a model whose engines are all near is not to leave for others by itself. Owns what a host's name and
what an address tells; what addresses a name has comes in as a function. No state, no lock, no I/O.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Callable, Optional

from gateway.routing.checks import parse_address
from gateway.routing.specs import EngineSpec

IsNear = Callable[[str], Optional[bool]]
"""Whether a host is near; None: that is not known yet. Never blocks, raises nothing."""

_NETWORKS = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("127.0.0.0/8", "::1/128", "0.0.0.0/32", "::/128"),  # this machine, which is what 0.0.0.0 leads to
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),  # RFC 1918, RFC 4193
        *("169.254.0.0/16", "fe80::/10"),  # link-local: RFC 3927, RFC 4291
        "100.64.0.0/10",  # RFC 6598: what providers, and VPNs among one's own machines, number their side with
    )
)

# What no public name ends with: reserved (RFC 6761, 6762, 8375), or given to nobody for its use in private networks.
_PRIVATE = re.compile(
    r".*\.(?:localhost|local|lan|internal|home\.arpa|test|svc|localdomain|intranet|corp|home|private)\.?"
)
_NUMBER = re.compile(r"0x[0-9a-f]*", re.I)  # an address as C writes it: it has no dot, and may be anybody's


def is_near_address(text: str) -> bool:
    """Whether an IP address is this machine's or a private network's; a zone behind it (`%eth0`) says nothing."""
    address = parse_address(text.partition("%")[0])
    return address is not None and any(address in network for network in _NETWORKS)


def is_near_host(host: str) -> Optional[bool]:
    """Whether a host is near as far as its name tells: always for an address, else only where that is a yes."""
    if parse_address(host) is not None:
        return is_near_address(host)
    name = host.lower()
    if "." not in name:  # a container's name, or a host's in the search domain
        return None if _NUMBER.fullmatch(name) else True
    return True if _PRIVATE.fullmatch("." + name) else None


def are_near(engines: Sequence[EngineSpec], is_near: IsNear) -> Optional[bool]:
    """Whether all of a model's engines are near; None: none is known not to be, but not all are known."""
    verdicts = {True if engine.is_echo else is_near(engine.host) for engine in engines}
    return False if False in verdicts else None if None in verdicts else True
