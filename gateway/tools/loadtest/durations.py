"""Times and rates as they are typed and told: `90s`, `1m30s`, `250ms`; `12.3 ms`. Pure."""

from __future__ import annotations

import re
from typing import Optional

NS = 1_000_000_000
_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h)")
_LONGEST_S = 7 * 86400.0


def duration_s(text: str) -> float:
    """Seconds of a text such as 90s, 1m30s, 250ms; a number alone means seconds. Raises ValueError."""
    text = text.strip()
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text):
        found = float(text)
    elif re.fullmatch(rf"(?:{_PART.pattern})+", text):
        found = sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))
    else:
        raise ValueError(f"must be a time such as 90s, 1m30s or 250ms, not {text!r}")
    if found > _LONGEST_S:
        raise ValueError(f"must be a week at most, not {text!r}")
    return found


def positive_s(text: str) -> float:
    """As `duration_s`, of more than nothing."""
    found = duration_s(text)
    if not found:
        raise ValueError("must be more than 0")
    return found


def rate(text: str) -> float:
    """Requests a second of a text such as 100, 2.5, 120/m. Raises ValueError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(?:/(s|m|h))?", text.strip())
    if found is None:
        raise ValueError(f"must be requests a second, as in 100 or 2.5, or 120/m, not {text!r}")
    per_s = float(found[1]) / _UNIT_S[found[2] or "s"]
    if per_s > 1e6:
        raise ValueError(f"must be a million a second at most, not {text!r}")
    return per_s


def shown_ns(value_ns: Optional[float]) -> str:
    """A duration for people, to three digits: `812 µs`, `12.3 ms`, `1.05 s`, `2 m 05 s`; `–` for none."""
    if value_ns is None:
        return "–"
    for unit_ns, name in ((1e3, "µs"), (1e6, "ms"), (1e9, "s")):
        shown = value_ns / unit_ns
        if shown < (999.5 if name != "s" else 119.5):
            return f"{three_digits(shown)} {name}"
    minutes, seconds = divmod(round(value_ns / NS), 60)
    return f"{minutes} m {seconds:02} s"


def counted(value: float) -> str:
    """A whole number for people: 12 500."""
    return f"{value:,.0f}".replace(",", " ")


def three_digits(value: float) -> str:
    """A number to three digits: 0.12, 1.23, 12.3, 123, 1 234."""
    if value >= 999.5:
        return counted(value)
    if value >= 99.95:
        return f"{value:.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if value else "0"


def tick_ms(value_ms: float) -> str:
    """Milliseconds at an axis, where values are round: `10 ms`, `2.5 s`."""
    for unit_ms, name in ((1e-3, "µs"), (1.0, "ms")):
        if value_ms / unit_ms < 999.5:
            return f"{value_ms / unit_ms:.3g} {name}" if value_ms else "0"
    return f"{value_ms / 1000:g} s"


def tick(value: float) -> str:
    """A number at an axis: `0.5`, `400`, `12 500`."""
    return counted(value) if value >= 1000 else f"{value:.3g}"


def shown_bytes(count: float) -> str:
    """A size for people."""
    for name in ("B", "kB", "MB", "GB"):
        if count < 999.5 or name == "GB":
            break
        count /= 1000
    return f"{three_digits(count) if name != 'B' else round(count)} {name}"
