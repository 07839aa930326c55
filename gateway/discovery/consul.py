"""Engines by Consul: the instances of a service that pass their checks, by blocking queries.

A query that names the index of the last answer waits at Consul until there is another one, or for an interval. As
Consul's documents have it: an index that is not above 0, or that goes back, begins anew. A `ConsulAsker` belongs to the
thread that asks, but for `cancel`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Callable
from urllib.parse import quote, urlencode, urlsplit

from gateway.discovery.answers import ASK_S, Answer, DiscoveryError, in_order
from gateway.discovery.web import Getter
from gateway.routing.checks import is_header_value, is_host, is_port
from gateway.routing.found import Found
from gateway.routing.sources import CONSUL_TOKEN, ConsulSource
from gateway.upstream.connecting import client_tls

DEFAULT_PORT_BY_SCHEME = {"http": 8500, "https": 8501}
WAIT_SHARE = 1 / 16  # of the time to wait that Consul adds at random, so that not all ask at once


class ConsulAsker:
    """Asks for a service's instances. `wait_s` is how long one query waits for a change; `secrets` gives the token by
    its variable's name."""

    def __init__(self, source: ConsulSource, wait_s: float, secrets: Callable[[], Mapping[str, str]]) -> None:
        self._source = source
        self._wait_s = wait_s
        self._secrets = secrets
        self._index = 0
        parts = urlsplit(source.url)
        assert parts.hostname is not None  # the source has been checked
        port = parts.port or DEFAULT_PORT_BY_SCHEME[parts.scheme]
        self._getter = Getter(parts.hostname, port, client_tls if parts.scheme == "https" else None)

    def ask(self) -> Answer:
        """See `Asker`. It waits for a change only when it has had an answer."""
        token = self._secrets().get(CONSUL_TOKEN, "").strip()
        if token and not is_header_value(token):
            raise DiscoveryError(f"{CONSUL_TOKEN} holds no token")
        query: list[tuple[str, str]] = [("passing", "1")]
        timeout_s = ASK_S
        if self._index:
            query += [("index", str(self._index)), ("wait", f"{self._wait_s * 1000:.0f}ms")]
            timeout_s += self._wait_s * (1 + WAIT_SHARE)
        query += [("tag", tag) for tag in self._source.tags]
        if self._source.datacenter is not None:
            query.append(("dc", self._source.datacenter))
        target = f"/v1/health/service/{quote(self._source.service, safe='')}?{urlencode(query)}"
        before, self._index = self._index, 0  # after a failure the next one waits for nothing
        said = self._getter.get(target, {"X-Consul-Token": token} if token else {}, timeout_s)
        if not isinstance(said.body, list):
            raise DiscoveryError(f"{self._getter.shown} has answered no list")
        index = said.headers.get("x-consul-index", "")
        number = int(index) if re.fullmatch("[0-9]{1,20}", index) else 0
        self._index = 0 if number < before else number
        return Answer(found_in(said.body), again_s=0.0 if self._index else None)

    def cancel(self) -> None:
        """See `Asker`."""
        self._getter.cancel()


def found_in(entries: list[Any]) -> list[Found]:
    """The engines of an answer, in the order of their addresses: where the service is, or its node where it does not
    say; what cannot be one is left out."""
    found: dict[tuple[str, int], Found] = {}
    for entry in entries:
        service, node = (_part(entry, key) for key in ("Service", "Node"))
        host = service.get("Address") or node.get("Address")
        port = service.get("Port", 0)
        if not isinstance(host, str) or not is_host(host) or not is_port(port):
            continue
        weight = _part(service, "Weights").get("Passing")
        weighed = type(weight) is int and 1 <= weight <= 65535
        found[host.lower(), port] = Found(host.lower(), port, {"weight": weight} if weighed else {})
    return in_order(found.values())


def _part(holder: Any, key: str) -> Mapping[str, Any]:
    value = holder.get(key) if isinstance(holder, dict) else None
    return value if isinstance(value, dict) else {}
