"""The command line: serve (default), check, mock. Signals are handled here and nowhere else."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from gateway import __version__
from gateway.app import Gateway
from gateway.fleet import ConfigurationError
from gateway.settings import Settings, describe, load, reload

EXIT_CONFIGURATION = 2
DOTENV = Path(".env")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command; returns the exit status: 0 well, 1 failed, 2 configured wrongly."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["mock"]:
        from gateway.mock import main as mock_main

        return mock_main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="main.py", description="One OpenAI-style address in front of many inference engines."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("serve", help="serve (what happens without a command)")
    commands.add_parser("check", help="check settings and engines file, say what would run")
    commands.add_parser("mock", help="run one mock engine", add_help=False)
    command = parser.parse_args(arguments).command or "serve"
    try:
        settings = load(os.environ, DOTENV)
    except ConfigurationError as error:
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        return EXIT_CONFIGURATION
    if command == "check":
        print(describe(settings))
        return 0
    return serve(settings)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; a second one ends the drain. SIGHUP reads the engines file again."""
    signals = _Signals()
    try:
        gateway = Gateway(settings)
    except OSError as error:
        reason = error.strerror or error
        print(f"error: cannot listen on {settings.host}:{settings.port}: {reason}", file=sys.stderr)
        return 1
    gateway.start()
    print(f"inference gateway at {gateway.url}", flush=True)
    while True:
        number = signals.wait()
        if number == getattr(signal, "SIGHUP", None):
            _reload(gateway)
        elif number in (signal.SIGINT, signal.SIGTERM):
            break
    return _drain(gateway, signals)


def _drain(gateway: Gateway, signals: _Signals) -> int:
    import threading

    stopper = threading.Thread(target=gateway.stop, name="stop")
    stopper.start()
    while stopper.is_alive():
        if signals.wait(0.05) in (signal.SIGINT, signal.SIGTERM):
            gateway.hurry()
            break
    stopper.join()
    return 0


def _reload(gateway: Gateway) -> None:
    try:
        settings = reload(gateway.settings, os.environ, DOTENV)
    except ConfigurationError as error:
        gateway.telemetry.log("error", "reload_failed", faults=list(error.faults))
    else:
        gateway.reload(settings)


class _Signals:
    """Signals as bytes on a socket: handlers that set an Event can deadlock with the thread that waits for it."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        signal.set_wakeup_fd(self._sender.fileno())
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None:
                signal.signal(number, lambda *_: None)

    def wait(self, timeout_s: float = 3600.0) -> Optional[int]:
        """The next signal's number, or None after `timeout_s`."""
        self._receiver.settimeout(timeout_s)
        try:
            data = self._receiver.recv(1)
        except (socket.timeout, InterruptedError):
            return None
        return data[0] if data else None


if __name__ == "__main__":
    sys.exit(main())
