"""The command line: serve (default), check, mock, keys, usage, replay. Signals are handled here and nowhere else."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from gateway import __version__
from gateway.app import Gateway
from gateway.configuration import ConfigurationError
from gateway.policy.starting import faults_of_named, roles_of
from gateway.policy.statefile import StateDbError, holds_keys
from gateway.settings import Settings, describe, load, reload

EXIT_CONFIGURATION = 2
DOTENV = Path(".env")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command; returns the exit status: 0 well, 1 failed, 2 configured wrongly."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["mock"]:
        from gateway.mock import main as mock_main

        return mock_main(arguments[1:])
    if arguments[:1] == ["replay"]:
        from gateway.tools.replay import main as replay_main

        return replay_main(arguments[1:])
    if arguments[:1] in (["keys"], ["usage"]):
        return _state_command(arguments[0], arguments[1:])
    parser = argparse.ArgumentParser(
        prog="main.py", description="One OpenAI-style address in front of many inference engines."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("serve", help="serve (what happens without a command)")
    commands.add_parser("check", help="check settings and engines file, say what would run")
    commands.add_parser("replay", help="repeat recorded decisions, name the first that differs", add_help=False)
    commands.add_parser("mock", help="run one mock engine", add_help=False)
    commands.add_parser("keys", help="create, list, show, revoke, rotate keys", add_help=False)
    commands.add_parser("usage", help="sums of the ledger", add_help=False)
    command = parser.parse_args(arguments).command or "serve"
    try:
        settings = load(os.environ, DOTENV, faults_of_named)
    except ConfigurationError as error:
        return _misconfigured(error.faults)
    if command == "check":
        return _check(settings)
    return serve(settings)


def _check(settings: Settings) -> int:
    """Say what would run: loading has found what would not."""
    try:
        state_keys = holds_keys(settings.state_db)
    except StateDbError as error:  # it was good a moment ago
        return _misconfigured([f"STATE_DB: {error}"])
    print(describe(settings, state_keys=state_keys))
    return 0


def _state_command(command: str, arguments: list[str]) -> int:
    """`keys` and `usage`: they work on STATE_DB, whether or not a gateway is running."""
    from gateway.policy.keyscommand import keys_command, state_db_at
    from gateway.telemetry.usage import usage_command

    try:
        # The first key is made before anybody could be recognised: an address that others can reach is no fault here.
        settings = load({**os.environ, "AUTH": "off"}, DOTENV)
        roles = roles_of(settings)
        open_db = state_db_at(settings.state_db)
        if command == "usage":
            return usage_command(arguments, open_db)
        reserved = [key.name for key in settings.api_keys]
        return keys_command(arguments, open_db, roles=tuple(roles), reserved=reserved)
    except ConfigurationError as error:
        return _misconfigured(error.faults)
    except StateDbError as error:
        return _misconfigured([str(error)])


def _misconfigured(faults: Sequence[str]) -> int:
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return EXIT_CONFIGURATION


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; a second one ends the drain. SIGHUP reads the engines file again."""
    signals = _Signals()
    try:
        gateway = Gateway(settings)
    except ConfigurationError as error:
        return _misconfigured(error.faults)
    except StateDbError as error:
        return _misconfigured([f"STATE_DB: {error}"])
    except OSError as error:
        reason = error.strerror or error
        print(f"error: cannot listen on {settings.host}:{settings.port}: {reason}", file=sys.stderr)
        return 1
    _raise_descriptor_limit(gateway)
    _settle_memory()
    gateway.start()
    print(f"inference gateway at {gateway.url}", flush=True)
    while True:
        number = signals.wait()
        if number == getattr(signal, "SIGHUP", None):
            _reload(gateway)
        elif number in (signal.SIGINT, signal.SIGTERM):
            break
    return _drain(gateway, signals)


def _raise_descriptor_limit(gateway: Gateway) -> None:
    """Allow as many descriptors as connections need (a client's and an engine's each), where the system lets us."""
    try:
        import resource
    except ImportError:
        return
    wanted = 2 * gateway.settings.max_connections + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):
        allowed = soft
    if allowed < wanted:
        gateway.telemetry.log("warning", "few_descriptors", allowed=allowed, wanted=wanted)


def _settle_memory() -> None:
    """What has been loaded stays for good: the collector need not look at it again, nor so often (5 % CPU a
    request)."""
    if hasattr(gc, "freeze"):
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)


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
