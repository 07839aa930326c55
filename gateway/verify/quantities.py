"""Numbers as people and models write them: their value, exactly, and the unit behind or before them.

Pure functions over short pieces of text, in bounded time. Units are named alike ("km", "kilometres") but never
converted: who answers in another unit has given another answer. A point is a decimal point; where a comma can only be
one, so is that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple, Optional

from gateway.reuse.wordlists import words

PIECE_CHARS = 300
"""No number that is looked for is longer, with all that is around it."""


class Quantity(NamedTuple):
    """A number and its unit."""

    value: Fraction
    unit: str
    """"": none."""


_UNIT_NAMES = {
    "%": "% percent pct",
    "USD": "$ us$ usd dollar dollars",
    "EUR": "€ eur euro euros",
    "GBP": "£ gbp pounds_sterling",
    "JPY": "¥ jpy yen",
    "INR": "₹ inr rupee rupees",
    "cent": "¢ cent cents",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "inch": "in inch inches",
    "foot": "ft foot feet",
    "mile": "mi mile miles",
    "g": "g gram grams gramme grammes",
    "kg": "kg kilogram kilograms kilo kilos",
    "lb": "lb lbs pound pounds",
    "s": "s sec secs second seconds",
    "ms": "ms millisecond milliseconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "l": "l liter liters litre litres",
    "ml": "ml milliliter milliliters millilitre millilitres",
    "degree": "° deg degree degrees",
    "C": "°c celsius",
    "F": "°f fahrenheit",
    "km/h": "km/h kph kmh",
    "mile/h": "mph mi/h",
    "m/s": "m/s",
    "m/s^2": "m/s^2",
    "m^2": "m^2 sqm",
    "cm^2": "cm^2",
    "km^2": "km^2",
    "m^3": "m^3",
    "cm^3": "cm^3 cc",
}
_UNITS = {name.replace("_", " "): unit for unit, names in _UNIT_NAMES.items() for name in names.split()}
_PHRASES = {
    "per cent": "%",
    "us dollars": "USD",
    "degrees celsius": "C",
    "degrees fahrenheit": "F",
    "° c": "C",
    "° f": "F",
    "square meters": "m^2",
    "square metres": "m^2",
    "square centimeters": "cm^2",
    "cubic meters": "m^3",
    "miles per hour": "mile/h",
    "kilometers per hour": "km/h",
    "kilometres per hour": "km/h",
    "meters per second": "m/s",
    "metres per second": "m/s",
}
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SPELLED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_WORDS = {word: number for number, word in enumerate(_SPELLED)}
_HALVES = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "⅕": "1/5", "⅛": "1/8"}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_NUMBER = re.compile(
    r"""(?P<sign>[-+]\s?)?(?P<money>(?:US)?\$|[€£¥₹])?\s?(?P<inner>-)?
    (?: (?P<english>\d{1,3}(?:[,'\ ]\d{3}){1,20}(?![\d])(?:\.\d{1,60})?)
      | (?P<german>\d{1,3}(?:\.\d{3}){1,20},\d{1,60}|\d{1,3}(?:\.\d{3}){2,20}(?!\d))
      | (?P<plain>\d{1,60}(?:\.\d{1,60})?|\.\d{1,60})(?!\d)
    )
    (?: (?P<comma>,\d{1,2}(?!\d)|,\d{4,60})
      | \ ?/\ ?(?P<over>\d{1,60})
      | \ (?P<top>\d{1,9})/(?P<bottom>\d{1,9})
      | (?:\ ?[×x*]\ ?10\^?\ ?\(?(?P<power>[-+]?\d{1,3})\)?|[eE](?P<exponent>[-+]?\d{1,3}))
    )?(?![\d/]|[.,]\d|:\d|\^)""",
    re.VERBOSE,
)
_POWER_OF_TEN = re.compile(r"(-?)10\^\(?(-?\d{1,3})\)?(?!\d)")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|operatorname|mbox|textit)\s*\{([^{}]{0,200})\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]{0,100})\}\s*\{([^{}]{0,100})\}")
_BRACED = re.compile(r"\^\{([^{}]{0,50})\}")
_REPLACED = (
    *((r"\times", "×"), (r"\cdot", "×"), (r"\%", "%"), (r"\$", "$"), ("{,}", ","), (r"\,", " "), (r"\!", "")),
    *((r"\;", " "), (r"\:", " "), (r"\ ", " "), (r"\left", ""), (r"\right", ""), (r"^\circ", "°"), (r"\(", "")),
    *((r"\)", ""), (r"\[", ""), (r"\]", ""), ("−", "-"), ("–", "-"), ("‑", "-"), ("\xa0", " "), ("\u202f", " ")),
    *(("\u2009", " "), ("’", "'"), ("²", "^2"), ("³", "^3"), ("**", ""), ("__", ""), ("`", "")),
)
# Behind one of these words, a number is no answer by itself.
_VOID = words(
    "or and to more less fewer than not if but plus minus times divided of x a an the is are was by with most least"
    " other between step option because"
)
_FILLER = re.compile(r"\s+(?:in total|in all|total|altogether|overall|exactly)$|^(?:in total|in all|altogether)$")
_BEFORE = re.compile(r"^(?:[A-Za-z]\w{0,20}\s*=\s*|=\s*|[≈~]\s*|(?:exactly|approximately|about|around|roughly)\s+)")
_COUNTED = re.compile(r"[a-z][a-z'-]{0,30}(?: [a-z][a-z'-]{0,30}){0,2}")
_UNIT_NEXT = re.compile(r"\s?(%|°\s?[CF]?|¢|€|£|¥|₹|[A-Za-z]{1,20}(?:/[a-z]{1,4})?(?:\^[23])?)")


def plain(piece: str) -> str:
    """The piece without the marks of LaTeX and Markdown, in signs that a keyboard has; cut at `PIECE_CHARS`."""
    piece = piece[:PIECE_CHARS].replace(r"^{\circ}", "°")
    for _ in range(3):  # as deep as they are nested
        piece = _FRACTION.sub(r"\1/\2", _WRAPPED.sub(r" \1 ", _BRACED.sub(r"^\1", piece)))
    if "\\$" not in piece and piece.count("$") >= 2:
        piece = piece.replace("$", "")
    for old, new in _REPLACED:
        piece = piece.replace(old, new)
    for sign, fraction in _HALVES.items():
        piece = piece.replace(sign, f" {fraction}")
    raised = re.sub(r"10([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]{1,4})", r"10^\1", piece).translate(_RAISED)
    return " ".join(raised.split())


def quantity_of(piece: str) -> Optional[Quantity]:
    """The quantity that all of a piece (made `plain`) is; None: it is something else, or more than that.

    What is counted is a unit too: "42 apples" has the unit "apple".
    """
    piece = piece.strip().rstrip(".!;,").rstrip()
    for _ in range(2):
        piece = _BEFORE.sub("", piece)
    if piece.lower() in _WORDS:
        return Quantity(Fraction(_WORDS[piece.lower()]), "")
    power = _POWER_OF_TEN.match(piece)
    found = _NUMBER.match(piece)
    if power:
        value: Optional[Fraction] = Fraction(10) ** int(power[2]) * (-1 if power[1] else 1)
        money, rest = "", piece[power.end() :]
    elif found:
        value, money, rest = _value(found), found["money"] or "", piece[found.end() :]
    else:
        return None
    if value is None:
        return None
    scale, rest = _scale(rest.strip())
    unit = _unit(rest)
    if unit is None or (money and unit not in ("", _UNITS[money.lower()])):
        return None
    return Quantity(value * scale, _UNITS[money.lower()] if money else unit)


def quantities_in(piece: str) -> Iterator[Quantity]:
    """All quantities in a piece (made `plain`); a unit only where it is a known one."""
    for found in _NUMBER.finditer(piece):
        value = _value(found)
        if value is not None:
            scale, rest = _scale(piece[found.end() :].lstrip(" "))
            unit = _UNIT_NEXT.match(rest)
            name = _UNITS.get(unit[1].lower(), "") if unit else ""
            yield Quantity(value * scale, _UNITS[found["money"].lower()] if found["money"] else name)


def is_unit(name: str) -> bool:
    """Whether that is a unit that is known, and not what is counted."""
    return name in _UNIT_NAMES


def _value(found: re.Match[str]) -> Optional[Fraction]:
    digits = found["plain"]
    if found["english"]:
        digits = re.sub("[,' ]", "", found["english"])
    elif found["german"]:
        digits = found["german"].replace(".", "").replace(",", ".")
    if found["comma"]:
        if "." in digits or found["english"]:
            return None
        digits += "." + found["comma"][1:]
    value = Fraction(digits if digits[0] != "." else "0" + digits)
    if found["over"]:
        if not int(found["over"]):
            return None
        value /= int(found["over"])
    if found["top"]:
        if not int(found["bottom"]):
            return None
        value += Fraction(int(found["top"]), int(found["bottom"]))
    value *= Fraction(10) ** int(found["power"] or found["exponent"] or 0)
    return -value if "-" in (found["sign"] or "") + (found["inner"] or "") else value


def _scale(rest: str) -> tuple[int, str]:
    word, _, behind = rest.partition(" ")
    power = _SCALES.get(word.lower())
    return (1, rest) if power is None else (10**power, behind)


def _unit(rest: str) -> Optional[str]:
    """The unit that all behind a number is; None: it is something else."""
    rest = _FILLER.sub("", rest.strip()).strip()
    if rest.startswith("(") and rest.endswith(")"):
        rest = rest[1:-1].strip()
    small = rest.lower()
    known = _PHRASES.get(small) or _UNITS.get(small)
    if not small or known:
        return known or ""
    if not _COUNTED.fullmatch(rest) or not _VOID.isdisjoint(rest.split()):
        return None
    return rest[:-1] if rest.endswith("s") and not rest.endswith("ss") else rest
