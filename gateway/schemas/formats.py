"""What texts have the formats that `format` names, as their own standards define them.

Pure. Every expression here is one that Python's `re` matches in time linear in the text: no repetition within one that
could share its characters with it.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Callable, Optional

from gateway.schemas.patternsyntax import PatternFaulty, PatternUnsupported, parse


class _Expression:
    """One of `re`'s, compiled when it is first used: all together take 40 ms, and most gateways need few."""

    __slots__ = ("_compiled", "_flags", "_text")

    def __init__(self, text: str, flags: int = 0) -> None:
        self._text = text
        self._flags = flags
        self._compiled: Optional[re.Pattern[str]] = None

    def fullmatch(self, text: str) -> Optional[re.Match[str]]:
        """As `re.Pattern.fullmatch`."""
        compiled = self._compiled
        if compiled is None:
            compiled = self._compiled = re.compile(self._text, self._flags)
        return compiled.fullmatch(text)


_DATE = _Expression(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
_TIME = _Expression(
    r"([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9]|60)(?:\.[0-9]+)?(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
_DURATION = _Expression(
    r"P(?:[0-9]+W|(?=[0-9]|T[0-9])(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)?"
    r"(?:T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))?)"
)
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

_LABEL = _Expression(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")
_IPV4 = _Expression(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:\.(?!$)|$)){4}")
_UUID = _Expression(r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}")
# RFC 5322's atext; RFC 6531 adds what is not ASCII.
_ATEXT = r"-A-Za-z0-9!#$%&'*+/=?^_`{|}~"
_LOCAL = _Expression(rf'[{_ATEXT}]+(?:\.[{_ATEXT}]+)*|"[ !#-\[\]-~]*(?:\\[ -~][ !#-\[\]-~]*)*"')
_IDN_LOCAL = _Expression(
    rf'[{_ATEXT}\x80-\U0010ffff]+(?:\.[{_ATEXT}\x80-\U0010ffff]+)*|"(?:[ !#-\[\]-\U0010ffff]|\\.)*"'
)
_IDN_LABEL = _Expression(r"[A-Za-z0-9\x80-\U0010ffff](?:[A-Za-z0-9\x80-\U0010ffff-]*[A-Za-z0-9\x80-\U0010ffff])?")

_POINTER = _Expression(r"(?:/[^~]*(?:~[01][^~]*)*)?")
_RELATIVE_POINTER = _Expression(r"(?:0|[1-9][0-9]*)(?:[+-][1-9][0-9]*)?(?:#|(?:/[^~]*(?:~[01][^~]*)*)?)")

# RFC 3986; RFC 3987's characters beyond ASCII stand where unreserved ones may, private ones in the query alone.
_UCS = r"\xa0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef\U00010000-\U000efffd"
_SCHEME = _Expression(r"[A-Za-z][A-Za-z0-9+.-]*")
_REFERENCE = _Expression(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_AUTHORITY = _Expression(r"(?:([^@]*)@)?(\[[^\[\]]*\]|[^:@\[\]]*)(?::[0-9]*)?")
_IP_FUTURE = _Expression(r"[vV][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+")

_VARIABLE = r"(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})+(?:\.(?:[A-Za-z0-9_]|%[0-9A-Fa-f]{2})+)*(?:\*|:[1-9][0-9]{0,3})?"
_TEMPLATE = _Expression(
    rf"(?:[^\x00-\x20\"%<>\\^`{{|}}\x7f]|%[0-9A-Fa-f]{{2}}|\{{[+#./;?&=,!@|]?{_VARIABLE}(?:,{_VARIABLE})*\}})*"
)


class _Resource:
    """URIs, or with `beyond` IRIs: which characters their parts may have."""

    def __init__(self, beyond: str, private: str) -> None:
        self._user = _class(":", beyond)
        self._host = _class("", beyond)
        self._path = _class(":@/", beyond)
        self._query = _class(":@/?", beyond + private)
        self._fragment = _class(":@/?", beyond)

    def is_reference(self, text: str) -> bool:
        """Whether it is one, or one relative to another."""
        found = _REFERENCE.fullmatch(text)
        if found is None:
            return False
        scheme, authority, path, query, fragment = found.groups()
        if scheme is not None and _SCHEME.fullmatch(scheme) is None:
            return False
        if authority is not None and not self._is_authority(authority):
            return False
        parts = ((self._path, path), (self._query, query), (self._fragment, fragment))
        return all(part is None or allowed.fullmatch(part) is not None for allowed, part in parts)

    def is_absolute(self, text: str) -> bool:
        """Whether it is one with a scheme."""
        found = _REFERENCE.fullmatch(text)
        return found is not None and found[1] is not None and self.is_reference(text)

    def _is_authority(self, text: str) -> bool:
        found = _AUTHORITY.fullmatch(text)
        if found is None or (found[1] is not None and self._user.fullmatch(found[1]) is None):
            return False
        host: str = found[2]
        if host.startswith("["):
            return is_ipv6(host[1:-1]) or _IP_FUTURE.fullmatch(host[1:-1]) is not None
        return self._host.fullmatch(host) is not None


def _class(also: str, beyond: str) -> _Expression:
    allowed = rf"[A-Za-z0-9._~!$&'()*+,;={also}{beyond}-]*"
    return _Expression(rf"{allowed}(?:%[0-9A-Fa-f]{{2}}{allowed})*")


_URI = _Resource("", "")
_IRI = _Resource(_UCS, r"\ue000-\uf8ff\U000f0000-\U0010fffd")


def is_date(text: str) -> bool:
    """RFC 3339 full-date."""
    found = _DATE.fullmatch(text)
    if found is None:
        return False
    year, month, day = (int(part) for part in found.groups())
    if not 1 <= month <= 12:
        return False
    is_leap_day = month == 2 and day == 29 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 1 <= day <= _DAYS[month - 1] or is_leap_day


def is_time(text: str) -> bool:
    """RFC 3339 full-time; a leap second stands only where UTC has one."""
    found = _TIME.fullmatch(text)
    if found is None:
        return False
    hour, minute, second = int(found[1]), int(found[2]), int(found[3])
    offset_minutes = int(found[5]) * 60 + int(found[6]) if found[4] else 0
    utc_minutes = hour * 60 + minute + (offset_minutes if found[4] == "-" else -offset_minutes)
    return second < 60 or utc_minutes % 1440 == 1439


def is_date_time(text: str) -> bool:
    """RFC 3339 date-time."""
    return text[10:11] in ("T", "t") and is_date(text[:10]) and is_time(text[11:])


def is_duration(text: str) -> bool:
    """RFC 3339 appendix A."""
    return _DURATION.fullmatch(text) is not None


def is_hostname(text: str) -> bool:
    """RFC 1123. What an A-label (`xn--…`) stands for is not looked at."""
    return len(text) <= 253 and all(
        len(label) <= 63 and _LABEL.fullmatch(label) and (label[2:4] != "--" or label[:2].lower() == "xn")
        for label in text.split(".")
    )


def is_email(text: str) -> bool:
    """RFC 5321 Mailbox."""
    local, at, domain = text.rpartition("@")
    return bool(at) and _LOCAL.fullmatch(local) is not None and (is_hostname(domain) or _is_literal(domain))


def is_idn_email(text: str) -> bool:
    """RFC 6531 Mailbox; of a label beyond ASCII only its form is looked at."""
    local, at, domain = text.rpartition("@")
    if not at or _IDN_LOCAL.fullmatch(local) is None:
        return False
    return _is_literal(domain) or all(_IDN_LABEL.fullmatch(label) for label in domain.split("."))


def _is_literal(domain: str) -> bool:
    if not (domain.startswith("[") and domain.endswith("]")):
        return False
    inner = domain[1:-1]
    return is_ipv6(inner[5:]) if inner[:5].lower() == "ipv6:" else is_ipv4(inner)


def is_ipv4(text: str) -> bool:
    """RFC 2673's dotted quad, without leading zeros."""
    return len(text) <= 15 and _IPV4.fullmatch(text) is not None


def is_ipv6(text: str) -> bool:
    """RFC 4291, without a zone."""
    if len(text) > 45 or not text.isascii() or "%" in text:
        return False
    last = text.rpartition(":")[2]
    if "." in last and not is_ipv4(last):
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def is_uuid(text: str) -> bool:
    """RFC 4122, of any version."""
    return len(text) == 36 and _UUID.fullmatch(text) is not None


def is_regex(text: str) -> bool:
    """ECMA-262, whether it can be matched here or not."""
    try:
        parse(text)
    except PatternFaulty:
        return False
    except PatternUnsupported:
        pass
    return True


def is_json_pointer(text: str) -> bool:
    """RFC 6901."""
    return _POINTER.fullmatch(text) is not None


def is_relative_json_pointer(text: str) -> bool:
    """Relative JSON Pointers, draft 01."""
    return _RELATIVE_POINTER.fullmatch(text) is not None


def is_uri_template(text: str) -> bool:
    """RFC 6570."""
    return _TEMPLATE.fullmatch(text) is not None


FORMATS: dict[str, Callable[[str], bool]] = {
    "date": is_date,
    "date-time": is_date_time,
    "duration": is_duration,
    "email": is_email,
    "hostname": is_hostname,
    "idn-email": is_idn_email,
    "ipv4": is_ipv4,
    "ipv6": is_ipv6,
    "iri": _IRI.is_absolute,
    "iri-reference": _IRI.is_reference,
    "json-pointer": is_json_pointer,
    "regex": is_regex,
    "relative-json-pointer": is_relative_json_pointer,
    "time": is_time,
    "uri": _URI.is_absolute,
    "uri-reference": _URI.is_reference,
    "uri-template": is_uri_template,
    "uuid": is_uuid,
    **dict.fromkeys(("uuid1", "uuid3", "uuid4", "uuid5", "uuid6", "uuid7", "uuid8"), is_uuid),  # pydantic's
}

HINTS = frozenset(
    (
        *("int32", "int64", "float", "double", "decimal", "byte", "binary", "base64", "base64url", "password"),
        *("path", "file-path", "directory-path", "json-string", "html", "markdown", "commonmark"),
    )
)
"""Formats that OpenAPI's registry and generators of schemas write beside a type: taken, and not looked at."""
