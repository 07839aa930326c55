"""What a page of somebody else's may have made a browser send, and what has come through a proxy.

A browser on this machine, or inside the network, reaches what its user's pages cannot reach themselves. Two rules keep
them out, before anything else of a request is looked at:

* the name that was asked for (`Host`) must be one of this gateway's: else a page whose own name suddenly means
  127.0.0.1 (DNS rebinding) is of one origin with the gateway, and reads all that needs no key;
* what does something, and comes from a page of another origin, needs that origin in CORS_ORIGINS: a form or a "simple"
  request is sent without asking first, whatever it holds.

Browsers say both themselves, and no page can change it. Who is no browser may say what it likes: it needs no page for
what it does. Owns the names that have passed, a set whose single operations are atomic; reads heads, changes nothing.
"""

from __future__ import annotations

from typing import Optional

from gateway.asked import Head
from gateway.errors import RequestRefused
from gateway.routing.checks import Address, parse_address
from gateway.settings import Settings

KNOWN_NAMES = 256
PROBED = ("/healthz", "/readyz")
"""Probes may ask for them by any name: they do nothing, and tell nothing but that something is served here."""
_HARMLESS = ("GET", "HEAD", "OPTIONS")
HELD = "/api/v1/live"
"""An answer to this takes one of few places, for as long as the page is open that has asked for it."""
_FORWARDED = (b"x-forwarded-for", b"forwarded", b"x-real-ip", b"via", b"x-forwarded-host", b"x-forwarded-proto")
_DEFAULT_PORT = {b"http": b":80", b"https": b":443"}


class BrowserRules:
    """Refuses what only a browser that was misled would send. Thread-safe, never waits."""

    def __init__(self, settings: Settings) -> None:
        self._on_loopback = settings.on_loopback
        self._names_count = self._on_loopback or bool(settings.allowed_hosts)
        self._allowed = frozenset(_canonical(name)[0] for name in (settings.host, *settings.allowed_hosts))
        self._origins = settings.cors_origins
        # Without a name: HTTP/1.0, or a target that has none; browsers always send one.
        self._known: set[Optional[bytes]] = {None, b""}

    def check(self, head: Head) -> None:
        """Raise `misdirected_request` for another's name, `forbidden` for what another origin's page would do."""
        headers = head.headers
        host = headers.get(b"host")
        if self._names_count and host not in self._known:
            assert host is not None
            self._check_name(head, host)
        if (b"origin" in headers or b"sec-fetch-site" in headers) and _acts(head) and self._is_foreign(head):
            raise RequestRefused(
                "forbidden", "pages of this origin may not use the gateway: it is not one of CORS_ORIGINS"
            )

    def _check_name(self, head: Head, host: bytes) -> None:
        name = _name_in(host)
        canonical, address = _canonical(name)
        known = canonical in self._allowed or canonical == "localhost" or canonical.endswith(".localhost")
        if not known and address is not None:
            # An address is no name that could be made to mean something else; on loopback only its own are asked for.
            known = address.is_loopback or not self._on_loopback
        if known:
            if len(self._known) < KNOWN_NAMES:
                self._known.add(host)
        elif head.path not in PROBED or head.method not in _HARMLESS:
            raise RequestRefused(
                "misdirected_request",
                f"{name[:100]} is no name of this gateway; if it is to be, add it to ALLOWED_HOSTS",
            )

    def _is_foreign(self, head: Head) -> bool:
        """Return whether a page of another origin is behind a request, and that origin is not allowed to be."""
        site = head.headers.get(b"sec-fetch-site")
        if site == b"same-origin":
            return False  # also where a proxy has put another name into Host
        origin = head.headers.get(b"origin")
        if self._origins == ("*",) or (origin is not None and origin.decode("latin-1") in self._origins):
            return False
        if site not in (None, b"none"):
            return True  # `same-site` too: another port of this machine is another's page
        return origin is not None and not _is_own(origin, head.headers.get(b"host"))


def is_forwarded(head: Head) -> bool:
    """Whether a proxy says that it passes on somebody else's request: then loopback is not where it comes from."""
    headers = head.headers
    return any(name in headers for name in _FORWARDED)


def _acts(head: Head) -> bool:
    """Return whether a request does something, or holds it; what administrators look at is audited, and nobody else's
    business."""
    own = head.path == HELD or head.path.startswith("/admin/")
    return head.method not in _HARMLESS or (own and head.method != "OPTIONS")


def _name_in(host: bytes) -> str:
    """A Host header without its port, which may be a tunnel's or a container's and says nothing."""
    text = host.decode("latin-1")
    return text[1 : text.index("]")] if text.startswith("[") else text.partition(":")[0]


def _canonical(name: str) -> tuple[str, Optional[Address]]:
    """A name as it is compared, and the address that it is, if it is one."""
    text = name.lower()
    address = parse_address(text)
    return text.removesuffix(".") if address is None else str(address), address


def _is_own(origin: bytes, host: Optional[bytes]) -> bool:
    scheme, _, authority = origin.lower().partition(b"://")
    port = _DEFAULT_PORT.get(scheme)
    if port is None or not host:
        return False
    return authority.removesuffix(port) == host.lower().removesuffix(port)
