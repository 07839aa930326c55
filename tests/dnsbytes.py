"""Answers of DNS as bytes, right ones and wrong ones, for the tests of discovery."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence

from gateway.discovery.message import AAAA, CNAME, SOA, SRV, A, labels_of, wire_name


def name_bytes(text: str) -> bytes:
    return wire_name(labels_of(text)) if text else b"\0"


def record(name: bytes, kind: int, ttl_s: int, data: bytes, klass: int = 1) -> bytes:
    return name + struct.pack(">HHIH", kind, klass, ttl_s, len(data)) + data


def answer(
    name: str,
    kind: int,
    records: Sequence[bytes],
    flags: int = 0x8180,
    id: int = 1,
    authority: Sequence[bytes] = (),
    more: Sequence[bytes] = (),
) -> bytes:
    head = struct.pack(">HHHHHH", id, flags, 1, len(records), len(authority), len(more))
    return head + name_bytes(name) + struct.pack(">HH", kind, 1) + b"".join([*records, *authority, *more])


def a(name: str, address: str, ttl_s: int = 60) -> bytes:
    packed = ipaddress.ip_address(address).packed
    return record(name_bytes(name), A if len(packed) == 4 else AAAA, ttl_s, packed)


def cname(name: str, target: str, ttl_s: int = 60) -> bytes:
    return record(name_bytes(name), CNAME, ttl_s, name_bytes(target))


def srv(name: str, target: str, port: int, priority: int = 0, weight: int = 0, ttl_s: int = 60) -> bytes:
    return record(name_bytes(name), SRV, ttl_s, struct.pack(">HHH", priority, weight, port) + name_bytes(target))


def soa(zone: str, ttl_s: int, minimum_s: int) -> bytes:
    data = name_bytes(f"ns.{zone}") + name_bytes(f"admin.{zone}") + struct.pack(">IIIII", 1, 2, 3, 4, minimum_s)
    return record(name_bytes(zone), SOA, ttl_s, data)
