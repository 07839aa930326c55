"""`"discover"` of a model in the engines file: from JSON to a source, with its faults.

Owns the keys of every kind of source, one row each. What a value may be is decided by the checks of
routing/sources.py. No state, no lock, no I/O: nobody is asked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

from gateway.configuration import JsonObject
from gateway.fleetkeys import BAD, Bad, Key, as_is, as_tuple, fields_of
from gateway.routing import checks
from gateway.routing.checks import DEFAULT_PORT_BY_SCHEME, Check, quoted
from gateway.routing.found import refuse_template, sample_of
from gateway.routing.sources import (
    CONSUL_CHECKS,
    DISCOVER_CHECKS,
    DNS_CHECKS,
    FILE_CHECKS,
    KUBERNETES_CHECKS,
    SRV_CHECKS,
    ConsulSource,
    DiscoverSpec,
    DnsSource,
    FileSource,
    KubernetesSource,
    Source,
    SrvSource,
)
from gateway.routing.specs import ENGINE_CHECKS, EngineSpec


def as_kubernetes(value: object, path: str, faults: list[str]) -> object:
    """Take {"namespace": ..., "selector": ..., "port": ...}."""
    fields = fields_of(value, path, KUBERNETES_KEYS, KUBERNETES_CHECKS, faults)
    return BAD if fields is None else KubernetesSource(**fields)


def as_consul(value: object, path: str, faults: list[str]) -> object:
    """Take {"url": ..., "service": ..., "tags": [...], "datacenter": ...}."""
    fields = fields_of(value, path, CONSUL_KEYS, CONSUL_CHECKS, faults)
    return BAD if fields is None else ConsulSource(**fields)


KUBERNETES_KEYS = (
    Key("namespace", as_is, "namespace"),
    Key("selector", as_is, "selector", required=True),
    Key("port", as_is, "port"),
)
CONSUL_KEYS = (
    Key("url", as_is, "url", required=True),
    Key("service", as_is, "service", required=True),
    Key("tags", as_tuple, "tags"),
    Key("datacenter", as_is, "datacenter"),
)
SOURCE_KEYS: Mapping[str, tuple[Key, ...]] = {
    "dns": (Key("dns", as_is, "name"), Key("family", as_is, "family")),
    "srv": (Key("srv", as_is, "name"),),
    "kubernetes": (Key("kubernetes", as_kubernetes, "source"),),
    "consul": (Key("consul", as_consul, "source"),),
    "file": (Key("file", as_is, "path"),),
}
_OF_ADDRESSES = (Key("scheme", as_is, "scheme"), Key("path", as_is, "path"))
_SOURCE_BY_KIND: Mapping[str, Callable[..., Source]] = {"dns": DnsSource, "srv": SrvSource, "file": FileSource}
_SOURCE_CHECKS: Mapping[str, Mapping[str, Check]] = {
    "dns": {**DNS_CHECKS, **DISCOVER_CHECKS},
    "srv": {**SRV_CHECKS, **DISCOVER_CHECKS},
    "kubernetes": DISCOVER_CHECKS,
    "consul": DISCOVER_CHECKS,
    "file": {**FILE_CHECKS, **DISCOVER_CHECKS},
}
_TEMPLATE_CHECKS: Mapping[str, Check] = {
    **ENGINE_CHECKS,
    "scheme": checks.one_of(tuple(DEFAULT_PORT_BY_SCHEME)),
    "path": checks.path,
}


def with_discover(keys: Sequence[Key], value: object, engine_keys: Sequence[Key]) -> Sequence[Key]:
    """The keys of a model, or of one whose engines are discovered; `engine_keys` are those of an engine."""
    if not isinstance(value, JsonObject) or "discover" not in value:
        return keys
    template_keys = [row for row in engine_keys if row.key not in ("url", "id")]

    def parse(value: object, path: str, faults: list[str]) -> object:
        return _discover(value, path, template_keys, faults)

    both = [Key("engines", _both, "engines")] if "engines" in value else []
    return [Key("discover", parse, "discover", required=True), *both, *(row for row in keys if row.key != "engines")]


def of_group(fields: Mapping[str, Any], path: str) -> Iterator[tuple[str, EngineSpec]]:
    """The engines of a group with their paths; where they are discovered, one as they will be."""
    discover, engines = fields.get("discover"), fields.get("engines")
    if isinstance(discover, DiscoverSpec):
        yield f"{path}.discover.template", sample_of(discover)
    for index, engine in enumerate(engines if isinstance(engines, tuple) else ()):
        yield f"{path}.engines[{index}]", engine


def _both(value: object, path: str, faults: list[str]) -> object:
    return _fault(f"{path}: a model has engines or discover, not both", faults)


def _discover(value: object, path: str, template_keys: Sequence[Key], faults: list[str]) -> object:
    """Take an object with one source, how often it is asked, and what its engines have in common."""
    if not isinstance(value, JsonObject):
        return _fault(f"{path}: must be an object, not {quoted(value)}", faults)
    kinds = [kind for kind in SOURCE_KEYS if kind in value]
    if len(kinds) != 1:
        named = " and ".join(kinds) or "none"
        return _fault(f"{path}: must have one of {', '.join(SOURCE_KEYS)}, not {named}", faults)
    (kind,) = kinds
    in_template = (*template_keys, *(_OF_ADDRESSES if kind != "file" else ()))  # a file has whole URLs

    def template(value: object, path: str, faults: list[str]) -> object:
        fields = fields_of(value, path, in_template, _TEMPLATE_CHECKS, faults)
        return BAD if fields is None else fields

    keys = (*SOURCE_KEYS[kind], Key("interval", as_is, "interval_s"), Key("template", template, "template"))
    fields = fields_of(value, path, keys, _SOURCE_CHECKS[kind], faults)
    if fields is None:
        return BAD
    more = {key: fields.pop(key) for key in ("interval_s", "template") if key in fields}
    discover = DiscoverSpec(fields.get("source") or _SOURCE_BY_KIND[kind](**fields), **more)
    try:
        refuse_template(discover)
    except ValueError as error:
        return _fault(f"{path}.template: {error}", faults)
    return discover


def _fault(text: str, faults: list[str]) -> Bad:
    faults.append(text)
    return BAD
