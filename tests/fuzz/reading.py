"""`RequestReader` on a fuzzer's bytes, without a socket.

However they are cut it gives the same requests and refusals, raises nothing, and says the same of where a request ends
as `reference.py` wherever that is sure.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from gateway.server.reader import Request, RequestReader
from tests.fuzz import cuts, reference
from tests.fuzz.finding import Report, shown

HEADER_BYTES, BODY_BYTES = 8192, 1 << 20  # more than most cases have
SMALL = (60, 100, 200, 400)  # and less


class Event(NamedTuple):
    """What was given: a request's body, else why there is none."""

    body: bytes
    code: str = ""
    message: str = ""
    target: str = ""


def check(report: Report, number: int, data: bytes, rng: random.Random) -> None:
    """One case's bytes, cut in many ways, by a reader with room for them and by one without."""
    report.count("streams read")
    ways = [[data], cuts.every(data), *(cuts.some(data, rng, 8) for _ in range(8))]
    ways += [cuts.around(data, (b"\r\n", b"0\r\n"), rng) for _ in range(4)]
    for limits in ((HEADER_BYTES, BODY_BYTES), (rng.choice(SMALL), rng.choice(SMALL))):
        try:
            said = [(way, events(way, limits)) for way in ways]
        except Exception as error:
            report.found("nothing but refusals", number, f"limits {limits}: {error!r}", shown([data]))
            return
        whole = said[0][1]
        for way, other in said:
            if other != whole:
                report.found("same events", number, f"limits {limits}: {whole} whole, {other} cut", shown(way))
                return
        _compare(report, number, data, whole)


def events(segments: Sequence[bytes], limits: tuple[int, int]) -> list[Event]:
    """All that a reader gives for bytes that come like this, and then end."""
    reader = RequestReader(*limits)
    found = []
    for segment in segments:
        given = reader.feed(segment)
        while given is not None:
            found.append(given)
            given = reader.feed(b"")
    ended = None if reader.over else reader.ended()
    if ended is not None:
        found.append(ended)
    return [
        Event(given.body, "", "", given.head.path)
        if isinstance(given, Request)
        else Event(b"", given.error.code, given.error.message, "" if given.head is None else given.head.path)
        for given in found
    ]


def _compare(report: Report, number: int, data: bytes, found: list[Event]) -> None:
    for event, reading in zip(found, reference.read_all(data)):
        if reading.verdict == reference.UNSURE or (event.code and reading.verdict == reference.TAKEN):
            return  # it may be stricter: limits are its own
        taken = not event.code
        if taken != (reading.verdict == reference.TAKEN) or (taken and event.body != reading.body):
            report.found("two readings", number, f"{event}, and the reference says {reading}", shown([data]))
            return
