"""What a client would rather have, by `Accept` and `Accept-Encoding` (RFC 9110, 12.4 and 12.5). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

HEADER_CHARS = 1000
"""A longer one is not looked at: browsers send some 200, a Prometheus some 300, and anybody may send 32 000."""
_HTML, _JSON = ("text/html", "text/*", "*/*"), ("application/json", "application/*", "*/*")
_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def preferences(header: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """What the header names, in lower case, each with its parameters and how much it is wanted: 1 most, 0 not at all.

    A weight that is none counts as 0. Quoted commas and semicolons are not understood: nothing asked for here has any.
    A header that is longer than HEADER_CHARS names nothing.
    """
    if len(header) > HEADER_CHARS:
        return
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


def wants_html(accept: str) -> bool:
    """Whether HTML is preferred to JSON. Who takes either alike, as `*/*` does, gets JSON; where both are as good, who
    names HTML and not JSON, as browsers do, is one for HTML."""
    qualities: dict[str, float] = {}
    for name, _, weight in preferences(accept):
        qualities[name] = max(weight, qualities.get(name, 0.0))
    html, html_vague = _quality(qualities, _HTML)
    json, json_vague = _quality(qualities, _JSON)
    return html > json or (html == json > 0.0 and html_vague < json_vague)


def _quality(qualities: Mapping[str, float], ranges: tuple[str, ...]) -> tuple[float, int]:
    """How good a type is for the client, and how vaguely the range names it that says so."""
    for vague, name in enumerate(ranges):
        if name in qualities:
            return qualities[name], vague
    return 0.0, len(ranges)
