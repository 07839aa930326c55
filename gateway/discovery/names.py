"""What a system's files say of names: who is asked (resolv.conf(5)), for which names in turn, and hosts(5).

Pure functions of the files' text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import NamedTuple

from gateway.routing.checks import is_host

SERVERS_MAX = 8
SEARCH_MAX = 32
TIMEOUT_MAX_S = 30
ATTEMPTS_MAX = 5
NDOTS_MAX = 15
PORT = 53


class ResolvConf(NamedTuple):
    """Servers as (address, port), in order; domains that names are looked for in; how often and how long one is asked;
    from how many dots on a name is first asked for as it is."""

    servers: tuple[tuple[str, int], ...] = (("127.0.0.1", PORT),)
    search: tuple[str, ...] = ()
    ndots: int = 1
    timeout_s: int = 5
    attempts: int = 2
    rotate: bool = False
    tcp: bool = False


def parse_resolv_conf(text: str) -> ResolvConf:
    """Read resolv.conf; what it does not say, and lines that mean nothing, are as usual. Raises nothing."""
    servers: list[tuple[str, int]] = []
    search: tuple[str, ...] = ()
    numbers = {"ndots": 1, "timeout": 5, "attempts": 2}
    most = {"ndots": NDOTS_MAX, "timeout": TIMEOUT_MAX_S, "attempts": ATTEMPTS_MAX}
    words: set[str] = set()
    for line in text.splitlines():
        key, *values = re.split("[#;]", line, maxsplit=1)[0].split() or [""]
        if key == "nameserver" and values:
            servers += _server(values[0])
        elif key in ("search", "domain"):  # the last one counts
            names = (value.strip(".").lower() for value in values[: SEARCH_MAX if key == "search" else 1])
            search = tuple(name for name in names if name and is_host(name))
        elif key == "options":
            for option in values:
                word, colon, number = option.partition(":")
                if not colon:
                    words.add(word)
                elif word in numbers and re.fullmatch("[0-9]{1,6}", number):
                    numbers[word] = min(int(number), most[word])
    return ResolvConf(
        tuple(servers[:SERVERS_MAX]) or ResolvConf().servers,
        search,
        numbers["ndots"],
        max(1, numbers["timeout"]),
        max(1, numbers["attempts"]),
        "rotate" in words,
        "use-vc" in words,
    )


def _server(text: str) -> Iterator[tuple[str, int]]:
    """A server's address; `[address]:port`, as OpenBSD has it."""
    found = re.fullmatch(r"\[([^\]]+)\]:([0-9]{1,5})", text)
    address, port = (found[1], int(found[2])) if found else (text, PORT)
    try:
        ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return
    if 1 <= port <= 65535:
        yield address, port


def names_to_ask(name: str, conf: ResolvConf) -> Iterator[str]:
    """The names that a name may mean, in the order in which they are asked for."""
    whole = name.removesuffix(".")
    if name.endswith("."):
        yield whole
        return
    searched = [f"{whole}.{domain}" for domain in conf.search]
    as_it_is_first = whole.count(".") >= conf.ndots
    for one in [whole, *searched] if as_it_is_first else [*searched, whole]:
        if len(one) <= 253:
            yield one


def addresses_in_hosts(text: str, name: str) -> list[str]:
    """The addresses that hosts(5) has for a name, in its order."""
    wanted = name.lower().removesuffix(".")
    found: dict[str, None] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        if wanted in (other.lower() for other in names):
            try:
                found[str(ipaddress.ip_address(address.partition("%")[0]))] = None
            except ValueError:
                continue
    return list(found)
