"""Where a request comes from, as far as limits are concerned.

Which of the addresses that a request names is believed, and which addresses count as one. Owns no state and no lock.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Optional, Union

from gateway.routing.checks import Address, Network, parse_address

MAPPED_PREFIX = bytes(10) + b"\xff\xff"
HOPS_MAX = 32


def unmapped(address: str) -> str:
    """An IPv4 address that is written as IPv6 (RFC 4291, 2.5.5.2), as a socket that listens to both tells it, as
    itself; anything else as it is. 0.1 us."""
    if not address.startswith("::ffff:"):
        return address
    parsed = _parse(address)
    return address if parsed is None else str(parsed)


def client_address(peer: str, forwarded_for: Optional[str], trusted: Sequence[Network]) -> str:
    """The address that counts: `peer`, or whom trusted proxies say they speak for. IPv4 addresses are never mapped.

    `trusted` is as `settingvalues.networks` reads it: the networks of IPv4 addresses are not mapped either.

    `forwarded_for` is the X-Forwarded-For header (several joined with commas) or None. Each proxy appends whom it heard
    from, so the list is read from its end and only as long as trusted proxies are speaking: the first hop that is not
    one of them is the client, and what stands before it is only what that client claims.
    """
    peer = unmapped(peer)
    if not trusted or not forwarded_for or not _is_trusted(_parse(peer), trusted):
        return peer
    believed = peer
    for hop in reversed(forwarded_for.rsplit(",", HOPS_MAX)):
        address = _parse(_without_port(hop.strip()))
        if address is None:
            break  # not an address, e.g. "unknown": who sent it is the last one known
        believed = str(address)
        if not _is_trusted(address, trusted):
            break
    return believed


def address_group(address: str) -> Union[str, bytes]:
    """What one client's addresses have in common: an IPv4 address itself, the first 64 bits of an IPv6 address.

    A household or a rented server is given at least a /64, out of which it may use any address.
    """
    if ":" not in address:
        return address[:64]
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except (OSError, ValueError):
        return address[:64]
    if packed.startswith(MAPPED_PREFIX):
        return ".".join(map(str, packed[12:]))
    return packed[:8]


def _parse(text: str) -> Optional[Address]:
    return parse_address(text.partition("%")[0])


def _is_trusted(address: Optional[Address], trusted: Sequence[Network]) -> bool:
    return address is not None and any(address in network for network in trusted)


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
