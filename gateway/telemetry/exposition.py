"""Metrics as text, in Prometheus' format 0.0.4 and in OpenMetrics 1.0, and the shapes that both are written from.

No state, no lock, no I/O: snapshots in, bytes out.
Formats: https://prometheus.io/docs/instrumenting/exposition_formats/ and the OpenMetrics specification, version 1.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Union

UNITS = ("seconds", "bytes")
"""What OpenMetrics is told as a unit where a name ends with it."""


class Exemplar(NamedTuple):
    """An observation by which a bucket can be looked into: whose it was."""

    value: float
    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""
    unix_s: float


class Distribution(NamedTuple):
    """What a histogram has counted."""

    bounds: tuple[float, ...]
    """Upper bounds of all buckets but the last, ascending."""
    counts: tuple[int, ...]
    """Of each bucket by itself, of the last (+Inf) too: one more than bounds."""
    sum: float
    exemplars: tuple[Union[Exemplar, None], ...] = ()
    """The last of each bucket, None where there is none; (): there is none at all."""


class Family(NamedTuple):
    """A metric with all its series."""

    name: str
    """As in the text format: a counter's ends with `_total`."""
    kind: str
    """counter, gauge or histogram."""
    help: str
    label_names: tuple[str, ...]
    series: Sequence[tuple[tuple[str, ...], Union[float, Distribution]]]
    """Label values with a number, of a histogram with a Distribution."""
    merge: str = ""
    """How several processes' values of a gauge become one (`merging.RULES`)."""


def text(families: Iterable[Family]) -> bytes:
    """Format 0.0.4."""
    parts: list[str] = []
    for family in families:
        help_text = family.help.replace("\\", "\\\\").replace("\n", "\\n")
        parts.append(f"# HELP {family.name} {help_text}\n# TYPE {family.name} {family.kind}\n")
        _write_series(parts, family, canonical=False)
    return _encoded(parts)


def openmetrics(families: Iterable[Family]) -> bytes:
    """OpenMetrics 1.0: bounds are written as floats, counters are declared without `_total`, buckets have exemplars."""
    parts: list[str] = []
    for family in families:
        name = family.name[: -len("_total")] if family.kind == "counter" else family.name
        parts.append(f"# TYPE {name} {family.kind}\n")
        unit = name.rpartition("_")[2]
        if unit in UNITS:
            parts.append(f"# UNIT {name} {unit}\n")
        parts.append(f"# HELP {name} {_escaped(family.help)}\n")
        _write_series(parts, family, canonical=True)
    parts.append("# EOF\n")
    return _encoded(parts)


def _encoded(parts: list[str]) -> bytes:
    # A lone surrogate in a configured name must not cost the whole scrape.
    return "".join(parts).encode("utf-8", "replace")


def _write_series(parts: list[str], family: Family, canonical: bool) -> None:
    name = family.name
    for values, found in family.series:
        pairs = ",".join([f'{n}="{_escaped(v)}"' for n, v in zip(family.label_names, values)])
        if isinstance(found, Distribution):
            _write_distribution(parts, name, pairs, found, canonical)
        else:
            parts.append(f"{name}{{{pairs}}} {_number(found)}\n" if pairs else f"{name} {_number(found)}\n")


def _write_distribution(parts: list[str], name: str, pairs: str, found: Distribution, canonical: bool) -> None:
    start = f"{name}_bucket{{{pairs}{',' if pairs else ''}le="
    exemplars = found.exemplars if canonical else ()
    total = 0
    for place, (bound, total) in enumerate(zip(_bounds(found.bounds, canonical), accumulate(found.counts))):
        exemplar = exemplars[place] if exemplars else None
        parts.append(f"{start}{bound} {total}{'' if exemplar is None else _exemplar(exemplar)}\n")
    braces = f"{{{pairs}}}" if pairs else ""
    parts.append(f"{name}_sum{braces} {_number(found.sum)}\n{name}_count{braces} {total}\n")


@lru_cache(maxsize=128)
def _bounds(bounds: tuple[float, ...], canonical: bool) -> tuple[str, ...]:
    shown = repr if canonical else _number
    return (*(f'"{shown(float(bound))}"}}' for bound in bounds), '"+Inf"}')


def _exemplar(exemplar: Exemplar) -> str:
    value, trace_id, span_id, unix_s = exemplar
    return f' # {{trace_id="{_escaped(trace_id)}",span_id="{_escaped(span_id)}"}} {_number(value)} {unix_s:.3f}'


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))  # also True and False
    if math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
