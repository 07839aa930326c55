"""Where a model's engines are to be found: the `discover` of a model, as configured.

Owns the frozen kinds of sources, which refuse values that cannot work, the checks of their fields (the engines file
uses the same ones), and `DiscoverSpec`, a source with how often it is asked and what its engines have in common. No
lock: nothing here changes after it was made. Nobody is asked here (gateway/discovery/), and nothing read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Union

from gateway.routing import checks
from gateway.routing.checks import Check, is_host, is_port, quoted
from gateway.routing.providers import PROVIDERS

INTERVAL_S = 10.0
FAMILIES = ("ipv4", "ipv6")
CONSUL_TOKEN = "CONSUL_HTTP_TOKEN"
"""The variable that holds Consul's token, as Consul's own tools have it."""

_SRV = re.compile(r"_[A-Za-z0-9-]{1,62}\._(?:tcp|udp)\.(.+)", re.I)
_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_SERVER = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[^:/\[\]?#]+)(?::([0-9]{1,5}))?/?")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9](?:[-a-z0-9]{0,13}[a-z0-9])?")


def split_host_port(text: str) -> tuple[str, int]:
    """Take `host:port` or `[IPv6]:port` apart; the host in lower case. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    numeric = re.fullmatch("[0-9]{1,5}", port) is not None and 1 <= int(port) <= 65535
    if not colon or not numeric or not is_host(host) or (":" in host) != bracketed:
        raise ValueError(f'must be a name with a port, as in "engines.internal:8000", not {quoted(text)}')
    return host.lower(), int(port)


def host_port(value: object) -> Iterator[str]:
    """Check a name with a port."""
    try:
        split_host_port(value if isinstance(value, str) else "")
    except ValueError:
        yield f': must be a name with a port, as in "engines.internal:8000", not {quoted(value)}'


def srv_name(value: object) -> Iterator[str]:
    """Check the name of SRV records (RFC 2782)."""
    found = _SRV.fullmatch(value) if isinstance(value, str) and len(value) <= 253 else None
    if found is None or not is_host(found[1]):
        yield f': must be a name such as "_http._tcp.engines.internal", not {quoted(value)}'


def namespace(value: object) -> Iterator[str]:
    """Check the name of a namespace of Kubernetes."""
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        yield f": must be the name of a namespace, not {quoted(value)}"


def selector(value: object) -> Iterator[str]:
    """Check a label selector as far as it goes into a query; what it means is for Kubernetes to say."""
    if not isinstance(value, str) or not re.fullmatch("[ -~]{1,1024}", value) or value.isspace():
        yield f': must be a label selector such as "app=vllm", not {quoted(value)}'


def port(value: object) -> Iterator[str]:
    """Check the number or the name of a port."""
    if not is_port(value) and not (isinstance(value, str) and _PORT_NAME.fullmatch(value)):
        yield f": must be a port from 1 to 65535 or the name of one, not {quoted(value)}"


def server_url(value: object) -> Iterator[str]:
    """Check the address of a server that is asked for engines."""
    text = value if isinstance(value, str) else ""
    if "@" in text:  # not shown: it may be a password
        yield f": must not hold a user name or password (see {CONSUL_TOKEN})"
        return
    found = _SERVER.fullmatch(text)
    if found is None or not is_host(found[1].strip("[]")) or not 1 <= int(found[2] or 1) <= 65535:
        yield f": must be http://host[:port] or https://host[:port], not {quoted(value)}"


def file_path(value: object) -> Iterator[str]:
    """Check the path of a file."""
    if not isinstance(value, str) or not 1 <= len(value) <= 4096 or "\0" in value:
        yield f": must be the path of a file, not {quoted(value)}"


def tags(value: object) -> Iterator[str]:
    """Check a tuple of tags."""
    if not isinstance(value, tuple) or len(value) > 16:
        yield f": must be a list of at most 16 tags, not {quoted(value)}"
        return
    for index, member in enumerate(value):
        yield from (f"[{index}]{fault}" for fault in checks.text(member))


DNS_CHECKS: Mapping[str, Check] = {
    "name": host_port,
    "family": checks.optional(checks.one_of(FAMILIES)),
}
SRV_CHECKS: Mapping[str, Check] = {"name": srv_name}
KUBERNETES_CHECKS: Mapping[str, Check] = {
    "namespace": checks.optional(namespace),
    "selector": selector,
    "port": checks.optional(port),
}
CONSUL_CHECKS: Mapping[str, Check] = {
    "url": server_url,
    "service": checks.text,
    "tags": tags,
    "datacenter": checks.optional(checks.name),
}
FILE_CHECKS: Mapping[str, Check] = {"path": file_path}
DISCOVER_CHECKS: Mapping[str, Check] = {"interval_s": checks.number(1, 3600)}


@dataclass(frozen=True)
class DnsSource:
    """The A and AAAA records of `name` (`host:port`); only those of one `family`, or of both (None)."""

    name: str
    family: str | None = None
    kind: ClassVar[str] = "dns"

    def __post_init__(self) -> None:
        _refuse(DNS_CHECKS, vars(self))

    def __str__(self) -> str:
        return f"dns {self.name}{f' ({self.family})' if self.family else ''}"


@dataclass(frozen=True)
class SrvSource:
    """The SRV records of `name`."""

    name: str
    kind: ClassVar[str] = "srv"

    def __post_init__(self) -> None:
        _refuse(SRV_CHECKS, vars(self))

    def __str__(self) -> str:
        return f"srv {self.name}"


@dataclass(frozen=True)
class KubernetesSource:
    """The endpoints in the EndpointSlices that a label selector finds in a namespace (None: the gateway's own). `port`
    is a number, or the name of one of theirs; None: the only one that they have."""

    selector: str
    namespace: str | None = None
    port: int | str | None = None
    kind: ClassVar[str] = "kubernetes"

    def __post_init__(self) -> None:
        _refuse(KUBERNETES_CHECKS, vars(self))

    def __str__(self) -> str:
        place = f" in {self.namespace}" if self.namespace else ""
        return f"kubernetes {self.selector}{place}{f', port {self.port}' if self.port else ''}"


@dataclass(frozen=True)
class ConsulSource:
    """The instances of a service that pass their checks in Consul, with all of these tags."""

    url: str
    service: str
    tags: tuple[str, ...] = ()
    datacenter: str | None = None
    kind: ClassVar[str] = "consul"

    def __post_init__(self) -> None:
        _refuse(CONSUL_CHECKS, vars(self))

    def __str__(self) -> str:
        return f"consul {self.service} at {self.url}"


@dataclass(frozen=True)
class FileSource:
    """A file with a JSON list of engines, as the engines file has them."""

    path: str
    kind: ClassVar[str] = "file"

    def __post_init__(self) -> None:
        _refuse(FILE_CHECKS, vars(self))

    def __str__(self) -> str:
        return f"file {self.path}"


Source = Union[DnsSource, SrvSource, KubernetesSource, ConsulSource, FileSource]


@dataclass(frozen=True)
class DiscoverSpec:
    """A source, asked at least every `interval_s` seconds. `template` is what its engines have in common: fields of
    EngineSpec (but for `url` and `id`), and for sources that give addresses `scheme` and `path`."""

    source: Source
    interval_s: float = INTERVAL_S
    template: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _refuse(DISCOVER_CHECKS, vars(self))

    def secret_names(self) -> Iterator[str]:
        """The variables that hold secrets for the source or for its engines."""
        if isinstance(self.source, ConsulSource):
            yield CONSUL_TOKEN
        preset = PROVIDERS.get(self.template.get("provider") or "")
        name = self.template.get("api_key_env") or (preset.key_env if preset else None)
        if name:
            yield name

    def __str__(self) -> str:
        return f"{self.source}, every {self.interval_s:g} s"


def _refuse(check_by_field: Mapping[str, Check], values: Mapping[str, object]) -> None:
    faults = [key + fault for key, check in check_by_field.items() for fault in check(values[key])]
    if faults:
        raise ValueError("; ".join(faults))
