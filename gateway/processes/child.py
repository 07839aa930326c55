"""What a child has inherited from its parent: which of the processes it is, and the descriptors it works with.

Told in one environment variable, which is taken out of the environment before anything else could inherit it. No state.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional

from gateway.processes.bus import Bus
from gateway.processes.output import Lock
from gateway.program import CHILD_VARIABLE

if TYPE_CHECKING:
    from gateway.signals import Signals

HAND_OVER = getattr(signal, "SIGUSR2", 0)


class Inherited(NamedTuple):
    """What the parent hands to a child. `announce`: it prints where the gateway is."""

    slot: int
    processes: int
    sockets: tuple[int, ...]
    bus: int
    lock: Optional[int]
    announce: bool

    def text(self) -> str:
        """As the variable has it."""
        return json.dumps(self._asdict())

    def descriptors(self) -> tuple[int, ...]:
        """All that are to be passed on."""
        return (*self.sockets, self.bus, *(() if self.lock is None else (self.lock,)))


class Child(NamedTuple):
    """What a child makes of it."""

    bus: Bus
    sockets: tuple[socket.socket, ...]
    lock: Lock
    announce: bool


def child_of(text: str) -> Child:
    """What a parent has handed over. Raises ValueError when there is none."""
    try:
        values = json.loads(text)
        inherited = Inherited(**{**values, "sockets": tuple(values["sockets"])})
        for descriptor in inherited.descriptors():
            os.set_inheritable(descriptor, False)  # programs that are started from here have nothing to do with it
        sockets = tuple(map(_socket_at, inherited.sockets))
        bus = Bus(_socket_at(inherited.bus), inherited.slot, inherited.processes)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(f"{CHILD_VARIABLE}: is for processes that the gateway starts itself ({error})") from error
    return Child(bus, sockets, Lock(inherited.lock), inherited.announce)


def _socket_at(descriptor: int) -> socket.socket:
    """The socket behind a descriptor, which never blocks, not for a moment: whether it does is the same for all
    processes, of which others may be about to accept. (PyPy would have it block for a socket without a timeout.)"""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.0)
    try:
        return socket.socket(fileno=descriptor)
    finally:
        socket.setdefaulttimeout(before)


def orders_to(signals: Signals) -> Callable[[str], None]:
    """What carries out the parent's orders, by handing the main thread the signals that mean them. For one thread."""
    number_of = {"drain": signal.SIGTERM, "hurry": signal.SIGTERM, "hand_over": HAND_OVER}
    number_of["reload"] = getattr(signal, "SIGHUP", 0)
    ending = False

    def carry_out(order: str) -> None:
        nonlocal ending
        if order == "orphaned":
            if ending:
                return  # it drains already, and nobody has said that it should hurry
            order = "drain"
        number = number_of.get(order, 0)
        if number:
            ending = ending or order != "reload"
            signals.put(number)

    return carry_out
