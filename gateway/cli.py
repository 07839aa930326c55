"""The command line: serve (default), check, discover, mock, keys, usage, cache, replay, loadtest, simulate, advise.

Nothing is imported before the signals are handled but what that takes: the rest takes a tenth of a second and more, in
which a SIGHUP would end the process and a Ctrl-C print a traceback. And the process of a gateway ends by `os._exit`,
when all has been closed in order: the interpreter's own way waits for stdout and stderr, which somebody may hold open
and never read.
"""

from __future__ import annotations

import os
import sys

from gateway.ending import OUTPUT_S, open_missing, run_to_end, within
from gateway.program import CHILD_VARIABLE, DOTENV, program
from gateway.signals import Signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn, Optional

    from gateway.settings import Settings

_TELLING = {"-h", "--help", "--version"}  # never a flag's value: argparse takes none that begins with a dash


def run() -> NoReturn:
    """The command as a process of its own: `main` with the signals handled from its first moment on."""
    command = _command(sys.argv[1:])
    # What is to be printed must not be lost in silence.
    printing = command not in ("serve", "mock") or not _TELLING.isdisjoint(sys.argv)
    if printing or command == "mock":
        run_to_end(main, printing)
    open_missing(os.O_RDWR)
    inherited = os.environ.pop(CHILD_VARIABLE, None)
    signals = Signals(child=inherited is not None)
    if os.name == "posix":
        signals.watch_start()
    try:
        status = main(signals=signals, inherited=inherited)
    except Exception as error:
        status = 1
        sys.stderr = sys.__stderr__ or sys.stderr
        what = (type(error), error, error.__traceback__)
        within(OUTPUT_S, lambda: sys.__excepthook__(*what))
    within(OUTPUT_S, _flush)
    os._exit(status)


def _command(arguments: Sequence[str]) -> str:
    """The command, as `main` will find it: the first word that is neither a flag nor a flag's value."""
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            return word
        if "=" not in word:
            next(words, None)
    return "serve"


def _flush() -> None:
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()


def main(
    argv: Optional[Sequence[str]] = None, signals: Optional[Signals] = None, inherited: Optional[str] = None
) -> int:
    """Run a command; returns the exit status: 0 well, 1 failed, 2 configured wrongly.

    `signals`: those that are handled already, for `serve`; `inherited`: what the parent of several processes has handed
    to this one.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    from pathlib import Path

    if arguments[:1] in (["mock"], ["replay"], ["loadtest"], ["simulate"], ["advise"]):
        if arguments[0] == "mock":
            from gateway.mock.server import main as command_main
        elif arguments[0] == "replay":
            from gateway.tools.replay import main as command_main
        elif arguments[0] == "simulate":
            from gateway.tools.simulate.command import main as command_main
        elif arguments[0] == "advise":
            from gateway.tools.advise.command import main as command_main
        else:
            from gateway.tools.loadtest.command import main as command_main
        return command_main(arguments[1:], f"{program()} {arguments[0]}")
    if arguments[:1] == ["discover"]:
        from gateway.tools.discover import discover_command

        return discover_command(arguments[1:], f"{program()} discover")
    if arguments[:1] in (["keys"], ["usage"]):
        return _state_command(arguments[0], arguments[1:])
    if arguments[:1] == ["cache"]:
        return _cache_command(arguments[1:])
    command, flags = _parse(arguments)
    from gateway.configuration import ConfigurationError
    from gateway.serving import misconfigured, serve
    from gateway.settingfiles import faults_of_named
    from gateway.settings import load

    try:
        settings = load(os.environ, Path(DOTENV), faults_of_named, flags)
    except ConfigurationError as error:
        return misconfigured(error.faults, flags, error.warnings)
    return _check(settings) if command == "check" else serve(settings, signals, inherited)


_COMMANDS = {
    "serve": "serve (what happens without a command)",
    "check": "check settings and engines file, say what would run",
    "discover": "look for engines on this machine, print an engines file",
    "keys": "create, list, show, revoke, rotate keys",
    "usage": "sums of the ledger",
    "cache": "warm, show, clear the cache of a running gateway",
    "replay": "repeat recorded decisions, name the first that differs",
    "loadtest": "ask a gateway, or any OpenAI-style server, as many would, and measure",
    "simulate": "what a fleet would do under load and faults, by each strategy",
    "advise": "how many engines keep a promise of latency, by what was seen",
    "mock": "run one mock engine",
}
_DESCRIPTION = """One OpenAI-style address in front of many inference engines.

commands:
{commands}

`{program} COMMAND --help` says more of the last nine.
"""
_EPILOG = """The flags are for `serve` and `check`. All settings come from the environment, then from .env in the
current folder, by their names, as in PORT=9000; a flag goes before both, and one that names engines
before BACKEND_URL, ENGINES and ENGINES_FILE alike. `python -m gateway.settings env` lists all settings.
"""


def _parse(arguments: list[str]) -> tuple[str, dict[str, str]]:
    """The command, `serve` or `check`, and the settings that were typed, by name. Raises what argparse does."""
    import argparse

    from gateway import __version__
    from gateway.settings import flag_of

    class Once(argparse.Action):
        def __call__(self, parser: object, namespace: object, value: object, flag: object = None) -> None:
            if getattr(namespace, self.dest) is not None:
                raise argparse.ArgumentError(self, "is given more than once")
            setattr(namespace, self.dest, value)

    def text(typed: str) -> str:
        if not typed.strip():
            raise argparse.ArgumentTypeError("must not be empty")
        return typed.strip()

    commands = "\n".join(f"  {name:<10}{what}" for name, what in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog=program(),
        description=_DESCRIPTION.format(commands=commands, program=program()),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", default="serve", metavar="COMMAND", help="see above")
    parser.add_argument("--version", action="version", version=__version__)
    engines = parser.add_mutually_exclusive_group()
    for owner, name, metavar, what in (
        (parser, "HOST", "ADDRESS", "address to listen on (default: 127.0.0.1)"),
        (parser, "PORT", "N", "port to listen on; 0 takes any free one (default: 8080)"),
        (engines, "ENGINES_FILE", "FILE", "JSON file with models and engines"),
        (engines, "BACKEND_URL", "URL", "one engine for every model name"),
    ):
        owner.add_argument(flag_of(name), dest=name, metavar=metavar, type=text, action=Once, help=what)
    # Flags before the command, too: plain parsing takes a command that may be missing for missing when a flag comes.
    known, rest = parser.parse_known_intermixed_args(arguments)
    command = vars(known).pop("command")
    if command in _COMMANDS and command not in ("serve", "check"):
        parser.error(f"the command {command} has flags of its own, and stands before them")
    if rest:  # before the command: it may be the value of a flag that is none
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if command not in _COMMANDS:
        parser.error(f"there is no command {command!r}; there are: {', '.join(_COMMANDS)}")
    return command, {name: value for name, value in vars(known).items() if value is not None}


def _check(settings: Settings) -> int:
    """Say what would run: loading has found what would not."""
    from gateway.announcing import LOOK_S, PATIENCE_S, describe, look, sandbox_lines, write
    from gateway.app import new_factory
    from gateway.serving import misconfigured
    from gateway.state.file import StateDbError, holds_keys

    try:
        state_keys = holds_keys(settings.state_db)
    except StateDbError as error:  # it was good a moment ago
        return misconfigured([f"STATE_DB: {error}"])
    factory = new_factory(settings)
    try:
        if not look(factory, PATIENCE_S):
            if sys.stderr.isatty():
                print(f"waiting for engines, at most {LOOK_S:g} s ...", file=sys.stderr, flush=True)
            look(factory, LOOK_S)
        found = factory.discoveries.states()
        text = describe(settings, factory.router, sandbox_lines(settings), state_keys=state_keys, discovered=found)
        write(sys.stdout, text + "\n")
    finally:
        within(OUTPUT_S, factory.close)  # a probe may take as long as HEALTH_TIMEOUT allows
    return 0


def _state_command(command: str, arguments: list[str]) -> int:
    """`keys` and `usage`: they work on STATE_DB, whether or not a gateway is running."""
    from pathlib import Path

    from gateway.configuration import ConfigurationError
    from gateway.keys.command import keys_command, state_db_at
    from gateway.serving import misconfigured
    from gateway.settingfiles import roles_of
    from gateway.settings import load
    from gateway.state.file import StateDbError
    from gateway.telemetry.usage import usage_command

    try:
        # The first key is made before anybody could be recognised: an address that others can reach is no fault here.
        settings = load({**os.environ, "AUTH": "off"}, Path(DOTENV))
        roles = roles_of(settings)
        open_db = state_db_at(settings.state_db)
        if command == "usage":
            return usage_command(arguments, open_db, f"{program()} usage")
        reserved = [key.name for key in settings.api_keys]
        prog = f"{program()} keys"
        return keys_command(arguments, open_db, prog, roles=tuple(roles), reserved=reserved)
    except ConfigurationError as error:
        return misconfigured(error.faults)
    except StateDbError as error:
        return misconfigured([str(error)])


def _cache_command(arguments: list[str]) -> int:
    """`cache`: it asks a gateway that is running, here or elsewhere."""
    from pathlib import Path

    from gateway.configuration import ConfigurationError
    from gateway.serving import misconfigured
    from gateway.settings import load
    from gateway.tools.asking import KEY_VARIABLE, url_of
    from gateway.tools.warming import cache_command

    def default_url() -> str:
        settings = load({**os.environ, "AUTH": "off"}, Path(DOTENV))
        return url_of(settings.host, settings.port)

    try:
        return cache_command(arguments, default_url, os.environ.get(KEY_VARIABLE), f"{program()} cache")
    except ConfigurationError as error:
        return misconfigured(error.faults)
