"""A network of its own on this machine: nodes, each in a network namespace, on one bridge; cables that can be cut.

`Lab` owns the namespaces, the cables and the bridge, and takes them away at its end, also when it could not be built
whole. Linux and root only, with iproute2 and `unshare`d networks; `missing` says what is lacking. Used from several
threads: each call is one run of `ip`, and two threads do not touch the same cable or route.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Optional

from tests.programs import program

IP_S = 30.0
REQUIRED = "REQUIRE_NETNS"


def missing(*programs: str) -> Optional[str]:
    """Why there can be no lab here with these programs in it; None: there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces take root"
    lacking = [name for name in ("ip", *programs) if program(name) is None]
    if lacking:
        return f"{', '.join(lacking)} is missing"
    name = f"igw{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
        try:
            # A cable as well: some containers may have namespaces and no devices.
            _ip("-n", name, "link", "add", "cable", "type", "veth", "peer", "name", "plug")
        finally:
            _ip("netns", "delete", name)
    except subprocess.CalledProcessError as error:
        return f"no network namespace can be made here: {(error.stderr or '').strip()}"
    return None


class Node:
    """One machine of the lab: a namespace with one address."""

    def __init__(self, name: str, number: int, address: str) -> None:
        self.name = name
        self.address = address
        self.namespace = f"igw{os.getpid()}-{name}"
        self.cable = f"ig{os.getpid() % 1_000_000}.{number}"  # a device's name has 15 characters at most

    def command(self, *words: str) -> list[str]:
        """The command that runs these words there: `ip` becomes the program itself, so that its pid is that one's."""
        return [str(program("ip")), "netns", "exec", self.namespace, *words]


class Lab:
    """The bridge, which this process has an address on, and its nodes. A context manager.

    The addresses are of 198.18.0.0/15, which RFC 2544 keeps for tests of networks.
    """

    def __init__(self, names: Sequence[str]) -> None:
        third = _free_network()
        self.address = f"198.18.{third}.1"
        self._bridge = f"igb{os.getpid() % 10_000_000}"
        self.nodes = {
            name: Node(name, number, f"198.18.{third}.{number}") for number, name in enumerate(names, start=2)
        }

    def __enter__(self) -> Lab:
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("address", "add", f"{self.address}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for node in self.nodes.values():
                inside = ("-n", node.namespace)
                _ip("netns", "add", node.namespace)
                _ip("link", "add", node.cable, "type", "veth", "peer", "name", "eth0", "netns", node.namespace)
                _ip("link", "set", node.cable, "master", self._bridge, "up")
                _ip(*inside, "address", "add", f"{node.address}/24", "dev", "eth0")
                _ip(*inside, "link", "set", "eth0", "up")
                _ip(*inside, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for node in self.nodes.values():
            # The cable first: a socket that lingers keeps a deleted namespace, and the cable in it, for a while.
            _ip("link", "delete", node.cable, check=False)
            _ip("netns", "delete", node.namespace, check=False)
        _ip("link", "delete", self._bridge, check=False)

    def cut(self, node: Node) -> None:
        """Take its cable out: nothing it sends or is sent arrives, and nobody is told."""
        _ip("link", "set", node.cable, "down")

    def mend(self, node: Node) -> None:
        """Put the cable back. May be called when it is in."""
        _ip("link", "set", node.cable, "up")

    def part(self, one: Node, other: Node) -> None:
        """Cut these two from each other alone: what `other` sends to `one` is dropped without a word, answers too."""
        _ip("-n", other.namespace, "route", "replace", "blackhole", f"{one.address}/32")

    def join(self, one: Node, other: Node) -> None:
        """Undo `part`. May be called without."""
        _ip("-n", other.namespace, "route", "delete", "blackhole", f"{one.address}/32", check=False)


def _free_network() -> int:
    """The third number of a network that no device of this machine is in."""
    done = _ip("-4", "-oneline", "address")
    taken = set(re.findall(r" 198\.18\.([0-9]+)\.", done))
    numbers = [(os.getpid() + step) % 250 for step in range(250)]
    return next(number for number in numbers if str(number) not in taken)


def _ip(*arguments: str, check: bool = True) -> str:
    command = [str(program("ip")), *arguments]
    done = subprocess.run(command, check=check, capture_output=True, text=True, timeout=IP_S, stdin=subprocess.DEVNULL)
    return done.stdout
