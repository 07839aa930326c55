"""What a client would rather have, by `Accept` and `Accept-Encoding` (RFC 9110, 12.4 and 12.5). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def preferences(header: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """What the header names, in lower case, each with its parameters and how much it is wanted: 1 most, 0 not at all.

    A weight that is none counts as 0. Quoted commas and semicolons are not understood: nothing asked for here has any.
    """
    for part in header.lower().split(","):
        name, *pairs = (piece.strip() for piece in part.split(";"))
        parameters = {
            key.strip(): value.strip().strip('"') for key, _, value in (pair.partition("=") for pair in pairs)
        }
        weight = parameters.pop("q", "1")
        if name:
            yield name, parameters, float(weight) if _QUALITY.fullmatch(weight) else 0.0


def takes_gzip(accept_encoding: str) -> bool:
    """Whether an answer may be packed by gzip."""
    wanted = {name: weight for name, _, weight in preferences(accept_encoding)}
    return wanted.get("gzip", wanted.get("*", 0.0)) > 0


def wants_openmetrics(accept: str) -> bool:
    """Whether OpenMetrics 1.0 is named, and the text format is not wanted more."""
    best = 0.0
    plain: dict[str, float] = {}
    for name, parameters, weight in preferences(accept):
        if name == "application/openmetrics-text":
            if parameters.get("version", "1.0.0") == "1.0.0":
                best = max(best, weight)
        else:
            plain[name] = max(weight, plain.get(name, 0.0))
    other = plain.get("text/plain", plain.get("text/*", plain.get("*/*", 0.0)))
    return best > 0 and best >= other
