"""Messages of DNS as bytes (RFC 1035, 2782, 3596, 6891): a question made, an answer read.

Pure functions. What comes is a stranger's: every length is checked, a name is bounded, and a compression pointer leads
only backwards, so that none leads in a circle.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Sequence
from typing import NamedTuple, Optional, Union

A, CNAME, SOA, AAAA, SRV, OPT = 1, 5, 6, 28, 33, 41
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
RCODES = {1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}

NAME_MAX_BYTES = 255
LABEL_MAX_BYTES = 63
POINTERS_MAX = 127  # in one name: as many as it may have labels
LINKS_MAX = 16  # of a chain of CNAMEs in one answer
UDP_BYTES = 1232  # that may come in one datagram: what no path splits (DNS flag day 2020)
TTL_MAX_S = 7 * 86_400
_HEADER = struct.Struct(">HHHHHH")
_FIXED = struct.Struct(">HHIH")

Name = tuple[bytes, ...]
"""Labels in lower case: case does not count in names."""


class MalformedMessage(ValueError):
    """The bytes are no message of DNS."""


class SrvData(NamedTuple):
    """What an SRV record says; `target` is "" where the service is said not to be there."""

    priority: int
    weight: int
    port: int
    target: str


class Record(NamedTuple):
    """One record that matters here: `data` is an address, a CNAME's name, an SrvData, or the seconds of an SOA."""

    name: Name
    kind: int
    ttl_s: int
    data: Union[str, Name, SrvData, int]


class Message(NamedTuple):
    """An answer. `question`: as it was spelt; None: there is none, or more than one."""

    id: int
    is_answer: bool
    truncated: bool
    authoritative: bool
    recursive: bool
    rcode: int
    question: Optional[tuple[bytes, int, int]]
    answers: tuple[Record, ...]
    negative_ttl_s: Optional[int]


class Answer(NamedTuple):
    """What an answer says of one name and kind: the data of its records, for `ttl_s` seconds (None: it does not say);
    without any, `alias` is the name to ask for instead ("": none)."""

    data: tuple[Union[str, SrvData], ...]
    ttl_s: Optional[int]
    alias: str


def labels_of(name: str) -> Name:
    """The labels of a name, with or without the last dot. Raises ValueError for one that cannot be asked for."""
    labels = tuple(label.encode("ascii") for label in name.removesuffix(".").split("."))
    whole = sum(len(label) + 1 for label in labels) + 1
    if not all(1 <= len(label) <= LABEL_MAX_BYTES for label in labels) or whole > NAME_MAX_BYTES:
        raise ValueError(f"{name[:100]!r} is no name that can be looked up")
    return labels


def wire_name(labels: Sequence[bytes]) -> bytes:
    """A name as it goes into a message, in its own spelling."""
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def query(id: int, name: bytes, kind: int, edns: bool = True) -> bytes:
    """A question for the records of one kind of a name (as `wire_name` has it), with recursion desired."""
    head = _HEADER.pack(id, 0x0100, 1, 0, 0, int(edns))
    extra = b"\0" + struct.pack(">HHIH", OPT, UDP_BYTES, 0, 0) if edns else b""
    return head + name + struct.pack(">HH", kind, IN) + extra


def parse(data: bytes) -> Message:
    """Read a message. Raises MalformedMessage."""
    try:
        return _parse(data)
    except (IndexError, struct.error) as error:
        raise MalformedMessage("it ends too early") from error


def _parse(data: bytes) -> Message:
    id, flags, questions, answers, authorities, additional = _HEADER.unpack_from(data)
    at = _HEADER.size
    question: Optional[tuple[bytes, int, int]] = None
    for _ in range(questions):
        labels, at = _name(data, at)
        kind, klass = struct.unpack_from(">HH", data, at)
        at += 4
        question = (wire_name(labels), kind, klass) if questions == 1 else None
    if flags & 0x0200:  # truncated: what is there is not looked at
        return Message(id, bool(flags & 0x8000), True, False, False, flags & 15, question, (), None)
    found: list[Record] = []
    negative: list[int] = []
    rcode = flags & 15
    for place in range(answers + authorities + additional):
        record, extended, at = _record(data, at)
        rcode |= extended
        if record is None:
            continue
        if place < answers and record.kind != SOA:
            found.append(record)
        elif answers <= place < answers + authorities and record.kind == SOA:
            assert isinstance(record.data, int)
            negative.append(min(record.ttl_s, record.data))
    return Message(
        *(id, bool(flags & 0x8000), False, bool(flags & 0x0400), bool(flags & 0x0080), rcode, question),
        answers=tuple(found),
        negative_ttl_s=min(negative, default=None),
    )


def _record(data: bytes, at: int) -> tuple[Optional[Record], int, int]:
    """A record (None: one of another kind), the upper bits of the message's rcode, and where the next begins."""
    labels, at = _name(data, at)
    kind, klass, ttl_s, length = _FIXED.unpack_from(data, at)
    at += _FIXED.size
    end = at + length
    if end > len(data):
        raise MalformedMessage("a record is longer than the message")
    if kind == OPT:
        return None, (ttl_s >> 24) << 4, end
    if klass != IN:
        return None, 0, end
    name = tuple(label.lower() for label in labels)
    ttl_s = 0 if ttl_s & 0x8000_0000 else min(ttl_s, TTL_MAX_S)  # RFC 2181, section 8
    value = _value(data, kind, at, end)
    return (None if value is None else Record(name, kind, ttl_s, value)), 0, end


def _value(data: bytes, kind: int, at: int, end: int) -> Union[str, Name, SrvData, int, None]:
    if kind == A:
        if end - at != 4:
            raise MalformedMessage("an A record has not 4 bytes")
        return str(ipaddress.IPv4Address(data[at:end]))
    if kind == AAAA:
        if end - at != 16:
            raise MalformedMessage("an AAAA record has not 16 bytes")
        return str(ipaddress.IPv6Address(data[at:end]))
    if kind == CNAME:
        labels, after = _name(data, at)
        _refuse_overlong(after, end)
        return tuple(label.lower() for label in labels)
    if kind == SRV:
        priority, weight, port = struct.unpack_from(">HHH", data, at)
        labels, after = _name(data, at + 6)
        _refuse_overlong(after, end)
        return SrvData(priority, weight, port, text_of(labels))
    if kind == SOA:
        _, after = _name(data, at)
        _, after = _name(data, after)
        _refuse_overlong(after + 20, end)
        (minimum,) = struct.unpack_from(">I", data, after + 16)
        return int(minimum)
    return None


def _refuse_overlong(after: int, end: int) -> None:
    if after > end:
        raise MalformedMessage("a record's data is longer than the record")


def _name(data: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    """The labels of a name, and where what follows it begins."""
    labels: list[bytes] = []
    size = 1
    after: Optional[int] = None  # behind the first pointer
    lowest = at
    pointers = 0
    while True:
        length = data[at]
        if length >= 0xC0:
            pointers += 1
            target = (length & 0x3F) << 8 | data[at + 1]
            if after is None:
                after = at + 2
            if target >= lowest or pointers > POINTERS_MAX:
                raise MalformedMessage("a compression pointer does not lead back")
            at = lowest = target
            continue
        if length > LABEL_MAX_BYTES:
            raise MalformedMessage("a label of an unknown kind")
        at += 1
        if length == 0:
            return tuple(labels), at if after is None else after
        label = data[at : at + length]
        if len(label) < length:
            raise MalformedMessage("it ends within a name")
        size += length + 1
        if size > NAME_MAX_BYTES:
            raise MalformedMessage("a name is longer than 255 bytes")
        labels.append(label)
        at += length


def text_of(labels: Sequence[bytes]) -> str:
    """A name as text, without the last dot. A label that no host has makes it one that no host has, either."""
    plain = all(re.fullmatch(rb"[A-Za-z0-9_-]+", label) for label in labels)
    return ".".join(label.decode("latin-1") for label in labels).lower() if plain else "?"


def answer_to(message: Message, name: Name, kind: int) -> Answer:
    """What a message answers to the question for a name's records of one kind, along its chain of CNAMEs. Raises
    MalformedMessage for a chain without an end."""
    aliases = {record.name: record for record in message.answers if record.kind == CNAME}
    here = tuple(label.lower() for label in name)
    ttl_s: Optional[int] = None
    for _ in range(LINKS_MAX):
        records = [record for record in message.answers if record.kind == kind and record.name == here]
        link = aliases.get(here)
        ttls = [record.ttl_s for record in records] or ([link.ttl_s] if link is not None else [])
        ttl_s = min([*ttls, *([] if ttl_s is None else [ttl_s])], default=None)
        if records:
            data = tuple(record.data for record in records if isinstance(record.data, (str, SrvData)))
            return Answer(data, ttl_s, "")
        if link is None:
            moved = here != tuple(label.lower() for label in name)
            return Answer((), ttl_s, text_of(here) if moved else "")
        assert isinstance(link.data, tuple) and not isinstance(link.data, SrvData)
        here = link.data
    raise MalformedMessage(f"a chain of more than {LINKS_MAX} aliases")
