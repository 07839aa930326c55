"""Engines by DNS: an engine for each address of a name, or for each target of a service (RFC 2782).

Each asker belongs to the thread that asks, but for `cancel`.
"""

from __future__ import annotations

import threading
from typing import Optional

from gateway.discovery import message
from gateway.discovery.answers import Answer, DiscoveryError, in_order
from gateway.discovery.client import DnsClient, Records
from gateway.discovery.message import SrvData
from gateway.routing.checks import is_host, parse_address
from gateway.routing.found import Found
from gateway.routing.sources import DnsSource, SrvSource, split_host_port

_KINDS = {"ipv4": message.A, "ipv6": message.AAAA}


class DnsAsker:
    """Asks for the addresses of a name. What could not be had of one family is as it was last."""

    def __init__(self, source: DnsSource, client: Optional[DnsClient] = None) -> None:
        self._host, self._port = split_host_port(source.name)
        self._kinds = [_KINDS[source.family]] if source.family else [message.A, message.AAAA]
        self._ended = threading.Event()
        self._client = client or DnsClient(self._ended.is_set)
        self._last: dict[int, Records] = {}

    def ask(self) -> Answer:
        """See `Asker`."""
        if parse_address(self._host) is not None:
            return Answer([Found(self._host, self._port)])
        failure: Optional[DiscoveryError] = None
        fresh: list[Records] = []
        for kind in self._kinds:
            try:
                self._last[kind] = self._client.look_up(self._host, kind)
                fresh.append(self._last[kind])
            except DiscoveryError as error:
                failure = error
        known = [self._last[kind] for kind in self._kinds if kind in self._last]
        addresses = [address for records in known for address in records.data if isinstance(address, str)]
        if failure is not None and not any(records.data for records in fresh):
            raise failure
        ttls = [records.ttl_s for records in fresh if records.ttl_s is not None and (records.data or not addresses)]
        found = in_order(Found(address, self._port) for address in addresses)
        return Answer(found, min(ttls, default=None), doubtful=True)

    def cancel(self) -> None:
        """See `Asker`."""
        self._ended.set()


class SrvAsker:
    """Asks for the targets of a service. They keep their names, which certificates have, and the addresses of which
    are looked up like those of any engine."""

    def __init__(self, source: SrvSource, client: Optional[DnsClient] = None) -> None:
        self._name = source.name
        self._ended = threading.Event()
        self._client = client or DnsClient(self._ended.is_set)

    def ask(self) -> Answer:
        """See `Asker`."""
        records = self._client.look_up(self._name, message.SRV)
        targets = [one for one in records.data if isinstance(one, SrvData)]
        return Answer(found_in(targets), records.ttl_s, doubtful=True)

    def cancel(self) -> None:
        """See `Asker`."""
        self._ended.set()


def found_in(records: list[SrvData]) -> list[Found]:
    """The engines of SRV records. A weight of 0 among others is the smallest there is; all 0 say nothing."""
    weighed = any(record.weight for record in records)
    found: list[Found] = []
    for record in sorted(records, key=lambda record: (record.priority, record.target, record.port, -record.weight)):
        if is_host(record.target or "?") and record.port:  # the root as target: the service is not there
            own = {"weight": max(1, record.weight)} if weighed else {}
            found.append(Found(record.target, record.port, {**own, "priority": record.priority}))
    return found
