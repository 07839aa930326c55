"""What one value of the configuration may be, and how a value that cannot work is told.

Owns the checks behind the specs and the engines file, and the taking apart of engines' URLs. No state, no lock, no I/O.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Callable, NamedTuple, Optional, Union

ECHO_URL = "echo:"
DEFAULT_PORT_BY_SCHEME = {"http": 80, "https": 443}

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

# A check yields one text for each fault, made to be appended to the path of the value it looked at:
# `: must be ...` or, for a member, `[2]: must be ...`.
Check = Callable[[object], Iterator[str]]


def quoted(value: object) -> str:
    """A value as a fault shows it: as JSON, pure ASCII, at most 100 characters."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = ascii(value)
    return text if len(text) <= 100 else text[:97] + "..."


def fits(value: str, pattern: str) -> bool:
    """Whether a value, in its exact case, is what a pattern with `*`, `?`, `[abc]` means. Raises nothing."""
    try:
        return fnmatchcase(value, pattern)
    except re.error:  # `[b-a]`, up to Python 3.10; later ones find nothing in that range
        return False


def step(path: str, key: str) -> str:
    """The JSON path of a member: `path.key`, or `path["key"]` where a dot would mislead."""
    if re.fullmatch("[A-Za-z0-9_-]+", key):
        return f"{path}.{key}" if path else key
    return f"{path}[{quoted(key)}]"


def member(key: object) -> str:
    """What a check puts behind the path of an object to name one of its members."""
    return step("-", key)[1:] if isinstance(key, str) else f"[{quoted(key)}]"


class EngineAddress(NamedTuple):
    """The parts of an engine's URL: `host` without brackets, `base_path` without a last slash."""

    scheme: str
    host: str
    port: int
    base_path: str


_URL = re.compile(r"(https?)://(\[[^\]/]*\]|[^:/\[\]]*)(?::([^/]*))?(/.*)?", re.I | re.A)
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# Labels as the idna codec wants them: socket.getaddrinfo raises UnicodeError for any other.
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*)+")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NO_BASES = ("/chat/completions", "/messages")  # addresses of one endpoint, as providers' documents show them, too
_API_VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(-preview)?|preview|latest")


def parse_engine_url(url: str) -> EngineAddress:
    """Take an engine's URL apart; without a path it gets `/v1`, and `echo:` has no host (port 0).

    Raises ValueError saying what is wrong. The text never repeats a user name, password or query.
    """
    if url == ECHO_URL:
        return EngineAddress("echo", "", 0, "")
    shown = f"not {quoted(url)}"
    if "?" in url:
        raise ValueError("must not hold a query")
    if "#" in url:
        raise ValueError('must not hold a # (the engine\'s own name of the model is its key "model")')
    if "@" in url:  # anywhere: a password may hold a slash
        raise ValueError("must not hold a user name or password (see api_key_env; %40 is an @)")
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(f"must be http://host[:port][/prefix], https://... or echo:, {shown}")
    scheme, host, port_text, path = match.groups()
    scheme, host = scheme.lower(), host.lower().strip("[]")
    if not is_host(host) or (":" in host) != (match[2][:1] == "["):
        raise ValueError(f"must have a host name or an IP address, {shown}")
    port = DEFAULT_PORT_BY_SCHEME[scheme]
    if port_text is not None:
        if not re.fullmatch("[0-9]{1,5}", port_text) or not 1 <= int(port_text) <= 65535:
            # What is no number may be a password, cut from its @ where ENGINES is cut.
            raise ValueError(f"must have a port from 1 to 65535{f', {shown}' if port_text.isdecimal() else ''}")
        port = int(port_text)
    if path and not _PATH.fullmatch(path):
        raise ValueError(f"must have other characters in its path %-encoded, {shown}")
    base_path = (path or "").rstrip("/") or "/v1"
    for end in _NO_BASES:
        if base_path.endswith(end):
            raise ValueError(f"must end before {end}, which is added to it, {shown}")
    return EngineAddress(scheme, host, port, base_path)


def has_path(url: str) -> bool:
    """Whether there is more to an engine's URL than who is asked."""
    match = _URL.fullmatch(url)
    return match is None or bool((match[4] or "").rstrip("/"))


def is_host(text: str) -> bool:
    """Whether `text` is a host name, an IPv4 address, or an IPv6 address (no brackets, no zone)."""
    if ":" in text or re.fullmatch("[0-9.]+", text):
        try:
            ipaddress.ip_address(text)
        except ValueError:
            return False
        return "%" not in text  # a zone would have to be encoded in URLs and in the Host header
    return len(text) <= 253 and _HOST_NAME.fullmatch(text) is not None


def parse_address(text: str) -> Optional[Address]:
    """An IP address, and an IPv4 one that is written as IPv6 (RFC 4291, 2.5.5.2) as itself; None: it is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_port(value: object) -> bool:
    """Whether this is the number of a port that can be connected to."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535


def is_header_value(text: str) -> bool:
    """Whether `text` may be sent as a header's value: ASCII without control characters, and not blank."""
    return re.fullmatch("[ -~]+", text) is not None and not text.isspace()


def bracketed(host: str) -> str:
    """The host as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def url(value: object) -> Iterator[str]:
    """Check the URL of an engine, as `parse_engine_url` takes it."""
    try:
        parse_engine_url(value if isinstance(value, str) else "")
    except ValueError as fault:
        yield f": {fault}"


def name(value: object) -> Iterator[str]:
    """Check a name that goes into headers, metrics and log lines: ASCII, nothing invisible."""
    if not isinstance(value, str) or not re.fullmatch("[!-~]{1,256}", value):
        yield f": must be 1 to 256 printable ASCII characters without spaces, not {quoted(value)}"


def region(value: object) -> Iterator[str]:
    """Check the name of a region: a place, or what data may not leave."""
    if not isinstance(value, str) or not re.fullmatch("[A-Za-z0-9._-]{1,64}", value):
        yield f": must be 1 to 64 letters, digits, dots, underscores and hyphens, not {quoted(value)}"


def text(value: object) -> Iterator[str]:
    """Check a name that only ever stands in JSON."""
    if not isinstance(value, str) or not 1 <= len(value) <= 256 or not value.isprintable():
        yield f": must be a text of 1 to 256 printable characters, not {quoted(value)}"


def names(value: object) -> Iterator[str]:
    """Check a tuple of names, all different."""
    if not isinstance(value, tuple):
        yield f": must be a list of names, not {quoted(value)}"
        return
    for index, member in enumerate(value):
        yield from (f"[{index}]{fault}" for fault in name(member))
        if member in value[:index]:
            yield f"[{index}]: {quoted(member)} is named twice"


def several_of(values: tuple[str, ...]) -> Check:
    """Make a check for a tuple of at least one of `values`."""

    def check(value: object) -> Iterator[str]:
        if not isinstance(value, tuple) or not value:
            yield f": must be a list of at least one, not {quoted(value)}"
            return
        for index, member in enumerate(value):
            if member not in values:
                yield f"[{index}]: {quoted(member)} is none of {', '.join(values)}"

    return check


def integer(lowest: int, highest: int) -> Check:
    """Make a check for an integer of that range, ends included."""

    def check(value: object) -> Iterator[str]:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not lowest <= value <= highest:  # type: ignore[operator]
            yield f": must be an integer from {lowest} to {highest}, not {quoted(value)}"

    return check


def one_of(choices: Sequence[str]) -> Check:
    """Make a check for one of some words."""

    def check(value: object) -> Iterator[str]:
        if not isinstance(value, str) or value not in choices:
            yield f": must be one of {', '.join(choices)}, not {quoted(value)}"

    return check


def instance(kind: type) -> Check:
    """Make a check for a value that is never made of JSON alone."""

    def check(value: object) -> Iterator[str]:
        if not isinstance(value, kind):
            yield f": must be a {kind.__name__}, not {quoted(value)}"

    return check


def optional(check: Check) -> Check:
    """Make a check that lets None pass."""
    return lambda value: iter(()) if value is None else check(value)


def env_name(value: object) -> Iterator[str]:
    """Check the name of an environment variable."""
    if not isinstance(value, str) or not _ENV_NAME.fullmatch(value):
        # Not shown: who misread the field has put the key itself here.
        yield ": must be the name of an environment variable"


def path(value: object) -> Iterator[str]:
    """Check a path of URLs."""
    if not isinstance(value, str) or not _PATH.fullmatch(value):
        yield f": must be a path such as /health, not {quoted(value)}"


def api_version(value: object) -> Iterator[str]:
    """Check what Azure calls the version of an API."""
    if not isinstance(value, str) or not _API_VERSION.fullmatch(value):
        yield f": must be a version such as 2024-10-21, not {quoted(value)}"


def boolean(value: object) -> Iterator[str]:
    """Check for true or false."""
    if not isinstance(value, bool):
        yield f": must be true or false, not {quoted(value)}"


def number(lowest: float, highest: float) -> Check:
    """Make a check for a number of that range, ends included."""

    def check(value: object) -> Iterator[str]:
        counts = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not counts or not lowest <= value <= highest:  # type: ignore[operator]
            yield f": must be a number from {lowest:g} to {highest:g}, not {quoted(value)}"

    return check


def price(value: object) -> Iterator[str]:
    """Check a pair of prices: of a million tokens of the prompt, and of the answer."""
    pair = value if isinstance(value, tuple) else ()
    if len(pair) != 2 or any(True for amount in pair for _ in number(0, 1_000_000)(amount)):
        yield ': must be {"input": 0.59, "output": 0.79}, in USD per million tokens'


def hedge_after(value: object) -> Iterator[str]:
    """Check milliseconds, or the word for what 95 % of the answers take."""
    if value != "p95" and list(number(1, 3_600_000)(value)):
        yield f': must be milliseconds from 1 to 3600000 or "p95", not {quoted(value)}'
