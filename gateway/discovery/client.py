"""A client of DNS: names to records with their time to live, which getaddrinfo does not tell, nor SRV records at all.

`DnsClient` reads resolv.conf for each look-up, as that changes with the network; between two it keeps what it has found
out of servers. It asks them in order over UDP, and over TCP what does not fit, or was answered to another spelling of
the name than was asked (draft-vixie-dnsext-dns0x20), unless a server has no TCP. A question has a random id, a random
spelling and a port of its own, and only the server that was asked is heard. For one thread at a time; `ended` is looked
at while it waits.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
import time
from pathlib import Path
from typing import Callable, NamedTuple, Optional, Union

from gateway.discovery import message
from gateway.discovery.answers import ASK_S, Cancelled, DiscoveryError
from gateway.discovery.message import MalformedMessage, Message, SrvData
from gateway.discovery.names import ResolvConf, addresses_in_hosts, names_to_ask, parse_resolv_conf

RESOLV_CONF = Path("/etc/resolv.conf")
HOSTS = Path("/etc/hosts")
FILE_MAX_BYTES = 1 << 20
SLICE_S = 0.1  # how often who waits looks whether it is still wanted to
DATAGRAMS_MAX = 64  # that are read while one answer is waited for: all others are forged, or late
ALIASES_MAX = 8  # names that are asked for one after the other, where servers do not follow aliases themselves

_FAMILY = {message.A: socket.AF_INET, message.AAAA: socket.AF_INET6}


class Records(NamedTuple):
    """What a name has; `ttl_s` None: nobody has said for how long. Without data it is known that there is none."""

    data: tuple[Union[str, SrvData], ...]
    ttl_s: Optional[float]


class DnsClient:
    """Looks up records. `resolv_conf` and `hosts` are the system's files (None: those of this machine)."""

    def __init__(
        self,
        ended: Callable[[], bool] = lambda: False,
        resolv_conf: Optional[Path] = None,
        hosts: Optional[Path] = None,
    ) -> None:
        self._ended = ended
        self._resolv_conf = resolv_conf or RESOLV_CONF
        self._hosts = hosts or HOSTS
        self._turn = 0
        self._respelling: set[tuple[str, int]] = set()

    def look_up(self, name: str, kind: int) -> Records:
        """The A, AAAA or SRV records of a name, as far as this system's files lead. Raises DiscoveryError when nobody
        can say, Cancelled."""
        deadline_s = time.monotonic() + ASK_S
        if kind in _FAMILY:
            written = [one for one in addresses_in_hosts(_text(self._hosts) or "", name) if _is_kind(one, kind)]
            if written:
                return Records(tuple(written), None)
        text = _text(self._resolv_conf)
        if text is None:
            return self._by_system(name, kind)
        conf = parse_resolv_conf(text)
        none: Optional[Records] = None
        for one in names_to_ask(name, conf):
            records = self._follow(one, kind, conf, deadline_s)
            if records.data:
                return records
            none = none or records
        if none is None:
            raise DiscoveryError(f"{name} is too long a name")
        return none

    def _by_system(self, name: str, kind: int) -> Records:
        """Without resolv.conf nobody but the system itself knows whom to ask."""
        if kind not in _FAMILY:
            raise DiscoveryError(f"{self._resolv_conf} is not there: nobody can be asked for SRV records")
        try:
            found = socket.getaddrinfo(name, None, _FAMILY[kind], socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
                return Records((), None)
            raise DiscoveryError(f"{name}: {error.strerror}") from error
        except (OSError, UnicodeError) as error:
            raise DiscoveryError(f"{name}: {error}") from error
        return Records(tuple(dict.fromkeys(str(address[0]) for *_, address in found)), None)

    def _follow(self, name: str, kind: int, conf: ResolvConf, deadline_s: float) -> Records:
        """The records of exactly this name, whichever aliases lead there."""
        ttl_s: Optional[float] = None
        for _ in range(ALIASES_MAX):
            try:
                labels = message.labels_of(name)
                said = self._ask_servers(name, labels, kind, conf, deadline_s)
                answer = message.answer_to(said, labels, kind)
            except ValueError as error:
                raise DiscoveryError(f"{name}: {error}") from error
            for other_s in (answer.ttl_s, None if answer.data or answer.alias else said.negative_ttl_s):
                if other_s is not None:
                    ttl_s = other_s if ttl_s is None else min(ttl_s, other_s)
            if answer.data or not answer.alias or said.rcode == message.NXDOMAIN:
                return Records(answer.data, ttl_s)
            name = answer.alias
        raise DiscoveryError(f"{name}: a chain of more than {ALIASES_MAX} aliases")

    # --- servers ---------------------------------------------------------------------------------------------------

    def _ask_servers(self, name: str, labels: message.Name, kind: int, conf: ResolvConf, deadline_s: float) -> Message:
        """The first definitive answer. Raises DiscoveryError with what the last server has said."""
        servers = list(conf.servers)
        if conf.rotate:
            self._turn = (self._turn + 1) % len(servers)
            servers = servers[self._turn :] + servers[: self._turn]
        why = "nobody was asked"
        for _ in range(conf.attempts):
            for server in servers:
                if time.monotonic() >= deadline_s:
                    raise DiscoveryError(f"{name}: no answer within {ASK_S:g} s; at last {why}")
                try:
                    said = self._ask(server, labels, kind, conf, min(deadline_s, time.monotonic() + conf.timeout_s))
                except socket.timeout:
                    why = f"{server[0]} did not answer"
                    continue
                except (OSError, MalformedMessage) as error:
                    why = f"{server[0]}: {getattr(error, 'strerror', None) or error}"
                    continue
                if said.rcode == message.NXDOMAIN or (said.rcode == message.NOERROR and not _is_lame(said)):
                    return said
                why = f"{server[0]} says {message.RCODES.get(said.rcode, said.rcode or 'that others know')}"
        raise DiscoveryError(f"{name}: {why}")

    def _ask(
        self, server: tuple[str, int], labels: message.Name, kind: int, conf: ResolvConf, until_s: float
    ) -> Message:
        """What one server says. Raises OSError, MalformedMessage, Cancelled."""
        spelt = message.wire_name([_spelt(label) for label in labels])
        edns = True
        said = None if conf.tcp else self._by_udp(server, spelt, kind, edns, until_s)
        if said is not None and said.rcode in (message.FORMERR, message.NOTIMP):
            edns = False  # it is older than EDNS
            said = self._by_udp(server, spelt, kind, edns, until_s)
        if said is None or said.truncated or said.question is None:
            return self._by_tcp(server, spelt, kind, edns, until_s)
        if said.question[0] != spelt and server not in self._respelling:
            try:
                return self._by_tcp(server, spelt, kind, edns, until_s)
            except OSError:
                self._respelling.add(server)  # it spells names its own way, and has no TCP
        return said

    def _by_udp(self, server: tuple[str, int], spelt: bytes, kind: int, edns: bool, until_s: float) -> Message:
        id = secrets.randbelow(1 << 16)
        address = _address(server, socket.SOCK_DGRAM)
        with socket.socket(address[0], socket.SOCK_DGRAM) as sock:  # the system gives it a port at random
            sock.connect(address[1])
            sock.send(message.query(id, spelt, kind, edns))
            for _ in range(DATAGRAMS_MAX):
                data = self._received(sock, 65_535, until_s)
                if data[:2] != id.to_bytes(2, "big"):
                    continue
                said = message.parse(data)
                if said.is_answer and _is_to(said, spelt, kind):
                    return said
        raise OSError("too many answers to what was not asked")

    def _by_tcp(self, server: tuple[str, int], spelt: bytes, kind: int, edns: bool, until_s: float) -> Message:
        id = secrets.randbelow(1 << 16)
        address = _address(server, socket.SOCK_STREAM)
        with socket.socket(address[0], socket.SOCK_STREAM) as sock:
            sock.settimeout(max(0.001, until_s - time.monotonic()))
            sock.connect(address[1])
            asked = message.query(id, spelt, kind, edns)
            sock.sendall(len(asked).to_bytes(2, "big") + asked)
            size = int.from_bytes(self._exactly(sock, 2, until_s), "big")
            said = message.parse(self._exactly(sock, size, until_s))
        if said.id != id or not said.is_answer or not _is_to(said, spelt, kind) or said.truncated:
            raise MalformedMessage("an answer to what was not asked")
        return said

    def _exactly(self, sock: socket.socket, count: int, until_s: float) -> bytes:
        data = b""
        while len(data) < count:
            more = self._received(sock, count - len(data), until_s)
            if not more:
                raise OSError("the connection was closed within an answer")
            data += more
        return data

    def _received(self, sock: socket.socket, most: int, until_s: float) -> bytes:
        """What comes next. Raises socket.timeout at `until_s`, OSError, Cancelled."""
        while True:
            if self._ended():
                raise Cancelled("the gateway ends")
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise socket.timeout("timed out")
            sock.settimeout(min(left_s, SLICE_S))
            try:
                return sock.recv(most)
            except socket.timeout:
                continue


def _is_to(said: Message, spelt: bytes, kind: int) -> bool:
    """Whether a message answers this question, in whichever spelling. One that cannot be read may come without it."""
    if said.question is None:
        return said.rcode == message.FORMERR and not said.answers
    name, asked_kind, klass = said.question
    return name.lower() == spelt.lower() and (asked_kind, klass) == (kind, message.IN)


def _is_lame(said: Message) -> bool:
    """Whether a server answers by leading to others: it neither knows nor asks them itself."""
    return not (said.answers or said.authoritative or said.recursive or said.negative_ttl_s is not None)


def _spelt(label: bytes) -> bytes:
    """A label with its letters large or small at random."""
    bits = secrets.randbits(len(label))
    letters = label.lower()
    return bytes(ord(chr(byte).upper()) if bits >> place & 1 else byte for place, byte in enumerate(letters))


def _is_kind(address: str, kind: int) -> bool:
    return (ipaddress.ip_address(address).version == 4) == (kind == message.A)


def _address(server: tuple[str, int], kind: int) -> tuple[int, tuple[object, ...]]:
    """A server's family and socket address; with what is behind a %, the interface. Raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(*server, 0, kind, 0, socket.AI_NUMERICHOST)[0]
    return family, address


def _text(path: Path) -> Optional[str]:
    """What stands in a file of the system; None: it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(FILE_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
