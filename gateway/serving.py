"""The command `serve`: one process that serves, or several that do and one that supervises them.

Owns the order of a start and of an end. Each process ends by `os._exit`, when all has been closed in order (`cli.py`).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time

from gateway.ending import OUTPUT_S, within
from gateway.program import DOTENV
from gateway.signals import ENDS, Signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Container, Sequence
    from typing import Callable, Optional, TextIO

    from gateway.app import Gateway
    from gateway.processes.child import Child
    from gateway.settings import Settings

EXIT_CONFIGURATION = 2
JOIN_S = 10.0  # for the first probes of one of several processes
STOP_S = 20.0  # for the parts to end when the drain is over; each has a limit of its own


def misconfigured(faults: Sequence[str], flags: Container[str] = (), warnings: Sequence[str] = ()) -> int:
    """Say what is wrong with the settings; returns the exit status. `flags`: those that the command line gave."""
    from gateway.announcing import dotenv_warnings
    from gateway.settings import as_given

    errors = [f"error: {fault}" for fault in as_given(faults, flags)]
    return failed([*errors, *(f"warning: {text}" for text in dotenv_warnings(warnings))], EXIT_CONFIGURATION)


def failed(lines: Sequence[str], status: int) -> int:
    """Print lines on stderr, unless nobody reads them for a second; returns `status`."""
    stderr = sys.stderr
    within(OUTPUT_S, lambda: print(*lines, sep="\n", file=stderr, flush=True))
    return status


def serve(settings: Settings, signals: Optional[Signals] = None, inherited: Optional[str] = None) -> int:
    """Serve until SIGTERM or SIGINT; a second one ends the drain. SIGHUP reads engines and alerts again.

    With PROCESSES, this process starts others that do so, and supervises them; SIGUSR2 replaces them one by one.
    """
    signals = signals or Signals()
    if inherited is not None:
        from gateway.processes.child import child_of

        try:
            child = child_of(inherited)
        except ValueError as error:
            return misconfigured([str(error)])
        return _serve(settings, signals, child)
    if settings.processes != 1:
        from gateway.processes.parent import processes_of

        count = processes_of(settings.processes)
        if count > 1:
            return _supervise(settings, signals, count)
    return _serve(settings, signals, None)


def _supervise(settings: Settings, signals: Signals, count: int) -> int:
    from gateway.processes.listening import listen
    from gateway.processes.parent import supervise

    try:
        sockets = listen(settings.host, settings.port, count)
    except OSError as error:
        from gateway.announcing import cannot_listen

        return failed([f"error: {cannot_listen(settings, error)}"], 1)
    signals.serve()
    return supervise(settings, signals, sockets, count)


def _serve(settings: Settings, signals: Signals, child: Optional[Child]) -> int:
    """Serve, as one of several processes where it is a `child`."""
    from pathlib import Path

    from gateway.announcing import cannot_listen
    from gateway.app import Gateway, read_again
    from gateway.configuration import ConfigurationError
    from gateway.descriptors import raise_limit
    from gateway.processes.child import HAND_OVER
    from gateway.state.file import StateDbError

    try:
        gateway = Gateway(settings) if child is None else _one_of_several(settings, signals, child)
    except ConfigurationError as error:
        return misconfigured(error.faults, settings.flags)
    except StateDbError as error:
        return misconfigured([f"STATE_DB: {error}"])
    except OSError as error:
        return failed([f"error: {cannot_listen(settings, error)}"], 1)
    raise_limit(settings.workers, settings.max_connections, gateway.telemetry.log)
    _settle_memory()
    signals.serve()  # from here on there may be requests to finish
    gateway.start()
    if child is not None:
        _join(gateway, signals, child)
    if child is None or child.announce:
        stdout = sys.stdout
        within(OUTPUT_S, lambda: print(f"inference gateway at {gateway.url}", file=stdout, flush=True))
        within(0.0, lambda: _announce(gateway, stdout), "start-lines")
    _divert_stderr(gateway)
    while True:
        number = signals.wait()
        if number == getattr(signal, "SIGHUP", None):
            read_again(gateway, os.environ, Path(DOTENV))
        elif number in ENDS:
            break
        elif HAND_OVER and number == HAND_OVER:
            if child is not None:
                return _hand_over(gateway, signals)
            why = "one process alone cannot be replaced while it serves; PROCESSES=2 has several"
            gateway.telemetry.log("error", "rolling_restart_stopped", message=why)
    return _drain(gateway, signals, shows=child is None)


def _join(gateway: Gateway, signals: Signals, child: Child) -> None:
    """Accept clients, beside others that do: not before it is known which engines are there, unless nobody else
    serves, or `/readyz` would say 503 where it has said 200 all the time."""
    deadline_s = time.monotonic() + JOIN_S
    while not (child.announce or gateway.factory.wait_probed(0.05) or signals.any()):
        if time.monotonic() >= deadline_s:
            break
    gateway.server.accept_on(())
    gateway.bus.ready()


def _one_of_several(settings: Settings, signals: Signals, child: Child) -> Gateway:
    from typing import cast

    from gateway.app import Gateway
    from gateway.processes.child import orders_to
    from gateway.processes.output import SharedStream

    child.bus.on_order = orders_to(signals)
    return Gateway(settings, cast("TextIO", SharedStream(sys.stderr, child.lock)), child.bus, child.sockets)


def _announce(gateway: Gateway, stdout: TextIO) -> None:
    """Say what is served, when something is known of the engines; nothing while the gateway is ending."""
    from gateway.announcing import LOOK_S, paint_for, start_lines, write

    gateway.factory.wait_probed(LOOK_S)
    text = start_lines(
        gateway.settings,
        gateway.factory.router,
        gateway.url,
        authenticated=gateway.guard.authenticator.required,
        terminal=stdout.isatty(),
        paint=paint_for(stdout, os.environ),
        discovered=gateway.factory.discoveries.states(),
    )
    if not gateway.pipeline.draining:
        write(stdout, text)


def _divert_stderr(gateway: Gateway) -> None:
    """What others print to stderr (warnings, say) becomes lines of the log: for those nobody waits."""
    import threading

    from gateway.telemetry.diverted import DivertedStream

    sys.stderr = DivertedStream(gateway.telemetry.log)

    def crashed(what: threading.ExceptHookArgs) -> None:
        if what.exc_value is not None:
            gateway.pipeline.internal_error(what.exc_value, "-")

    threading.excepthook = crashed


def _settle_memory() -> None:
    """What has been loaded stays for good: the collector need not look at it again, nor so often (5 % CPU a
    request)."""
    if hasattr(gc, "freeze"):
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)


def _drain(gateway: Gateway, signals: Signals, shows: bool) -> int:
    """Returns the exit status: 0, or 1 when not everything could be ended, or a third signal did not wait for it.

    `shows`: somebody at a terminal is told.
    """
    settings = gateway.settings
    stopper = _on_thread(gateway.stop)
    in_flight = gateway.pipeline.in_flight
    if shows and (in_flight or settings.drain_delay_s):
        within(0.0, lambda: _say_draining(in_flight))
    return _stopped(gateway, signals, stopper, settings.drain_delay_s + settings.drain_timeout_s)


def _hand_over(gateway: Gateway, signals: Signals) -> int:
    """Another process serves in this one's place: end without a client's noticing. Returns as `_drain`."""
    settings = gateway.settings
    stopper = _on_thread(gateway.hand_over)
    deadline_s = time.monotonic() + settings.keepalive_timeout_s + settings.drain_timeout_s + STOP_S
    while stopper.is_alive() and time.monotonic() < deadline_s:
        if signals.wait(0.05) in ENDS:  # all of the gateway ends
            gateway.draining.end_hand_over()
            return _stopped(gateway, signals, stopper, settings.drain_timeout_s)
    return 1 if stopper.is_alive() else 0


def _on_thread(stop: Callable[[], object]) -> threading.Thread:
    import threading

    stopper = threading.Thread(target=stop, name="stop", daemon=True)
    stopper.start()
    return stopper


def _stopped(gateway: Gateway, signals: Signals, stopper: threading.Thread, limit_s: float) -> int:
    deadline_s = time.monotonic() + limit_s + STOP_S
    hurried = False
    while stopper.is_alive() and time.monotonic() < deadline_s:
        if signals.wait(0.05) in ENDS:
            if hurried:
                return 1
            hurried = True
            gateway.hurry()
            deadline_s = time.monotonic() + STOP_S
    return 1 if stopper.is_alive() else 0


def _say_draining(in_flight: int) -> None:
    from gateway.announcing import draining_line, write

    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and stream.isatty():
            write(stream, draining_line(in_flight))
            return
