"""EndpointSlices of Kubernetes (discovery.k8s.io/v1) as engines.

Pure functions of what the API server has said. An endpoint is in when it is ready, where nobody has said that it is not
(as the API has it: unknown counts as ready); where none is, those that still serve while they end, as kube-proxy does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Optional, Union

from gateway.discovery.answers import DiscoveryError, in_order
from gateway.routing.checks import is_host, is_port
from gateway.routing.found import Found


class Endpoint(NamedTuple):
    """One address and port, and how it is."""

    host: str
    port: int
    ready: bool
    serving: bool


def found_in(slices: Iterable[Any], port: Union[int, str, None]) -> list[Found]:
    """The engines of some slices, in the order of their addresses. One without the port that is meant is passed over.
    Raises DiscoveryError when none that has endpoints has it."""
    endpoints: dict[tuple[str, int], Endpoint] = {}
    failure: Optional[DiscoveryError] = None
    fitting = False
    for piece in slices:
        try:
            own = list(_endpoints(piece, port))
        except DiscoveryError as error:
            failure = error
            continue
        fitting = fitting or bool(own)
        endpoints.update(((one.host, one.port), one) for one in own)
    if failure is not None and not fitting:
        raise failure
    those = [one for one in endpoints.values() if one.ready]
    those = those or [one for one in endpoints.values() if one.serving]
    return in_order(Found(one.host, one.port) for one in those)


def _endpoints(piece: Any, port: Union[int, str, None]) -> Iterator[Endpoint]:
    if not isinstance(piece, dict):
        return
    endpoints = [one for one in _items(piece, "endpoints") if isinstance(one, dict)]
    if not endpoints:
        return
    number = _port_of(piece, port)
    for one in endpoints:
        conditions = one.get("conditions")
        conditions = conditions if isinstance(conditions, dict) else {}
        ready = conditions.get("ready") is not False
        serving = conditions.get("serving")
        serving = ready if serving is None else serving is True
        addresses = _items(one, "addresses")
        host = addresses[0] if addresses else None  # what more there might be means nothing (so the API's documents)
        if isinstance(host, str) and is_host(host):
            yield Endpoint(host.lower(), number, ready, serving)


def _port_of(piece: Mapping[str, Any], wanted: Union[int, str, None]) -> int:
    """The number of the port that is meant. Raises DiscoveryError."""
    if isinstance(wanted, int):
        return wanted
    ports = [one for one in _items(piece, "ports") if isinstance(one, dict) and one.get("protocol", "TCP") == "TCP"]
    numbers = {one.get("name") or "": one["port"] for one in ports if is_port(one.get("port"))}
    if wanted is not None and wanted in numbers:
        return int(numbers[wanted])
    if wanted is None and len(numbers) == 1:
        return int(next(iter(numbers.values())))
    known = sorted(numbers.items())[:8]
    names = ", ".join(f"{str(name)[:40] or 'without a name'} ({number})" for name, number in known)
    which = f"no port {wanted}" if wanted is not None else "not one port"
    raise DiscoveryError(f'{_name_of(piece)} has {which}, but {names or "none"}: say which with "port"')


def _name_of(piece: Mapping[str, Any]) -> str:
    metadata = piece.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"the EndpointSlice {str(name)[:100]}" if name else "an EndpointSlice"


def _items(holder: Mapping[str, Any], key: str) -> list[Any]:
    value = holder.get(key)
    return value if isinstance(value, list) else []
