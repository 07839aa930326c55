"""A variable's text to the setting's value, or the fault that says what the text must be.

Owns the parsers behind the table of settings, and `ApiKey`, what is known of a client's key: its digest, never the key
itself, and no fault shows one. No state, no lock, no I/O; never looks at the environment.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable
from urllib.parse import unquote, urlsplit

from gateway.configuration import ConfigurationError
from gateway.routing import checks
from gateway.routing.checks import Network, is_host, quoted

# Takes a variable's text (unset: its default, which is "" where it has none); raises ValueError, or ConfigurationError
# for several faults, saying what the value must be.
Parser = Callable[[str], Any]

DAY_S = 86_400.0
DAY_MS = 86_400_000
SECRET_ALGORITHMS = ("HS256", "HS384", "HS512")
KEY_SET_ALGORITHMS = ("RS256", "ES256", "EdDSA")
_SAMPLERS = ("always_on", "always_off", "traceidratio")
SAMPLERS = (*_SAMPLERS, *(f"parentbased_{name}" for name in _SAMPLERS))


def file_path(text: str) -> Path:
    """Parse the path of a file."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # PyPy without a locale: file names are ASCII to it, and other bytes it must be told
        text = os.fsdecode(text.encode())
    return Path(text)


def integer(lowest: int, highest: int) -> Parser:
    """Parse a whole number of that range, ends included."""

    def parse(text: str) -> int:
        # Digits only: int() would also take "1_000", " 7" and digits of other scripts.
        if re.fullmatch("[0-9]{1,18}", text) and lowest <= int(text) <= highest:
            return int(text)
        raise ValueError(f"must be an integer from {lowest} to {highest}, not {quoted(text)}")

    return parse


def processes(text: str) -> int:
    """Parse a number of processes that serve one address; 0 is one for each processor."""
    count: int = integer(0, 256)(text)
    if count != 1 and os.name != "posix":
        raise ValueError(f"must be 1: on {os.name} nothing hands a listening socket on, so one process serves")
    return count


def seconds(lowest_s: float, highest_s: float, *, zero_is_off: bool = False) -> Parser:
    """Parse a finite number of seconds of that range; with `zero_is_off` also 0."""
    allowed = f"a number of seconds from {lowest_s:g} to {highest_s:.10g}"
    if zero_is_off:
        allowed += ", or 0 for off"

    def parse(text: str) -> float:
        if re.fullmatch(r"[0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18}", text):
            value_s = float(text)
            if lowest_s <= value_s <= highest_s or (zero_is_off and value_s == 0):
                return value_s
        raise ValueError(f"must be {allowed}, not {quoted(text)}")

    return parse


def ratio(text: str) -> float:
    """Parse a share from above 0 to 1."""
    if re.fullmatch(r"[0-9]{0,3}(\.[0-9]{0,18})?", text) and re.search("[0-9]", text) and 0 < float(text) <= 1:
        return float(text)
    raise ValueError(f"must be a number above 0 and at most 1, not {quoted(text)}")


def share(text: str) -> float:
    """Parse a share from 0 to 1."""
    if re.fullmatch(r"0+(\.0*)?", text):
        return 0.0
    try:
        return ratio(text)
    except ValueError:
        raise ValueError(f"must be a number from 0 to 1, not {quoted(text)}") from None


def jwt_secret(text: str) -> bytes:
    """Parse the secret of tokens; no fault shows it."""
    try:
        secret = text.encode("utf-8", "surrogateescape")  # bytes of the environment that are no UTF-8, as they are
    except UnicodeEncodeError:  # whose text would show a part of it
        raise ValueError("must be text or bytes, without lone surrogates") from None
    if len(secret) < 32:
        raise ValueError(f"must have at least 32 bytes, not {len(secret)}")
    if secret.lstrip().startswith((b"-----BEGIN", b"ssh-", b"ecdsa-")):
        raise ValueError("is a public or private key; everybody may know the former")
    return secret


def jwt_algorithm(text: str) -> str:
    """Parse the name of a signature algorithm, in its exact case."""
    known = (*SECRET_ALGORITHMS, *KEY_SET_ALGORITHMS)
    if text not in known:
        raise ValueError(f"must be one of {', '.join(known)}, not {quoted(text)}")
    return text


def networks(text: str) -> tuple[Network, ...]:
    """Parse a comma list of addresses and networks; those of IPv4 written as IPv6 are those of IPv4.

    A wider one such as `::/0` holds IPv6 addresses alone: nobody who writes it thinks of all of IPv4.
    """
    found: list[Network] = []
    for part in (part.strip() for part in text.split(",") if part.strip()):
        try:
            found.append(_unmapped(ipaddress.ip_network(part)))
        except ValueError as error:
            raise ValueError(f"must be addresses and networks such as 10.0.0.0/8: {error}") from None
    return tuple(found)


def _unmapped(network: Network) -> Network:
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def choice(*choices: str) -> Parser:
    """Parse one of some words, in any case."""

    def parse(text: str) -> str:
        if text.lower() in choices:
            return text.lower()
        raise ValueError(f"must be one of {', '.join(choices)}, not {quoted(text)}")

    return parse


def flag(text: str) -> bool:
    """Parse on or off, under their usual names."""
    word = text.lower()
    if word in ("on", "true", "yes", "1"):
        return True
    if word in ("off", "false", "no", "0"):
        return False
    raise ValueError(f"must be on or off, not {quoted(text)}")


def optional(parse: Parser) -> Parser:
    """Parse what is there; an unset variable is None."""
    return lambda text: parse(text) if text else None


def host(text: str) -> str:
    """Parse a host name or an IP address, IPv6 with or without brackets."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not is_host(bare):
        raise ValueError(f"must be a host name or an IP address, not {quoted(text)}")
    return bare


def hosts(text: str) -> tuple[str, ...]:
    """Parse a comma list of host names and addresses, without ports; names in lower case."""
    return tuple(host(part.strip()).lower() for part in text.split(",")) if text else ()


def model_name(text: str) -> str:
    """Parse the name of a model."""
    for fault in checks.name(text):
        raise ValueError(fault[2:])
    return text


def region_name(text: str) -> str:
    """Parse the name of a region, whose case does not count."""
    for fault in checks.region(text):
        raise ValueError(fault[2:])
    return text.lower()


def origins(text: str) -> tuple[str, ...]:
    """Parse `*` or a comma list of origins of web pages."""
    found = tuple(part.strip() for part in text.split(",")) if text else ()
    for origin in found:
        if origin != "*" and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[!-.0-~]+", origin):
            raise ValueError(f"must be * or origins such as https://a.example, not {quoted(text)}")
    if "*" in found and len(found) > 1:
        raise ValueError("must be either * or a list of origins, not both")
    return found


def http_url(text: str) -> str:
    """Parse an address of http or https, whose path and query may be secrets: no fault shows it."""
    fault = "must be an address such as http://127.0.0.1:9000"
    if re.fullmatch("[!-~]+", text) is None:
        raise ValueError(f"{fault}, without spaces")
    try:
        parts = urlsplit(text)
        port = parts.port  # raises for what is none
    except ValueError:
        raise ValueError(fault) from None
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(fault)
    if not is_host(parts.hostname):
        raise ValueError(f"{fault}: its host is none")
    if parts.username is not None or parts.fragment:
        raise ValueError(f"{fault}, without a user and without #")
    return text


def header_pairs(text: str) -> Mapping[str, str]:
    """Parse `name=value` pairs parted by commas, values percent-encoded, as OpenTelemetry has them (W3C Baggage's
    form); names in lower case. No fault shows a value.

    https://opentelemetry.io/docs/specs/otel/protocol/exporter/#specifying-headers-via-environment-variables
    """
    pairs: dict[str, str] = {}
    for place, part in enumerate(filter(None, (part.strip() for part in text.split(","))), 1):
        name, equals, value = part.partition("=")
        name, value = name.strip().lower(), unquote(value.strip(), errors="replace")
        if not equals or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]+", name) or not checks.is_header_value(value):
            raise ValueError(f"must be name=value pairs parted by commas; number {place} is none")
        if name in ("content-length", "transfer-encoding", "host", "connection"):
            raise ValueError(f"{name} is no header to be set")
        pairs[name] = value
    return MappingProxyType(pairs)


def trace_context(text: str) -> bool:
    """Parse OpenTelemetry's list of propagators to whether W3C's trace context is one of them. `baggage` is allowed, as
    their usual list has it, and says nothing here."""
    names = {name.strip().lower() for name in text.split(",")}
    if names == {"none"} or names <= {"tracecontext", "baggage"}:
        return "tracecontext" in names
    raise ValueError(f"must be of tracecontext and baggage (which is never passed on), or none, not {quoted(text)}")


def objective(text: str) -> float:
    """Parse a share from above 0 to below 1, of which something is to be left over."""
    try:
        value = ratio(text)
    except ValueError as error:
        raise ValueError(f"{error}: 0.999 is 99.9 %") from None
    if value == 1:
        raise ValueError("must be below 1: 0.999, say")
    return value


@dataclass(frozen=True)
class ApiKey:
    """A client's key as the gateway knows it: `digest` is the SHA-256 of the key."""

    name: str
    digest: bytes = field(repr=False)
    role: str


def api_keys(role: str) -> Parser:
    """Parse a comma list of `name:key` or `key` (named by its digest). No fault shows an entry."""

    def parse(text: str) -> tuple[ApiKey, ...]:
        keys: list[ApiKey] = []
        faults: list[str] = []
        for number, entry in enumerate(text.split(",") if text else (), 1):
            try:
                keys.append(_api_key(entry.strip(), role))
            except ValueError as error:
                faults.append(f"entry {number}: {error}")
        if faults:
            raise ConfigurationError(faults)
        return tuple(keys)

    return parse


def _api_key(entry: str, role: str) -> ApiKey:
    name, colon, key = entry.partition(":")
    if not colon:
        name, key = "", entry
    if not re.fullmatch("[!-~]{1,8192}", key):  # what can arrive in a header
        raise ValueError("the key must be 1 to 8192 printable ASCII characters without spaces")
    digest = hashlib.sha256(key.encode("ascii")).digest()
    if not colon:
        name = "key-" + digest.hex()[:8]
    if not re.fullmatch("[A-Za-z0-9._@+-]{1,64}", name):
        raise ValueError("the name before : must be 1 to 64 of A-Z a-z 0-9 . _ @ + -")
    return ApiKey(name, digest, role)
