"""`keys create|list|show|revoke|rotate`: the keys from the command line, of a gateway that may be running.

Owns the arguments and how a key is printed. A secret is printed once, by create and rotate, to standard output only. No
state, no lock: the database keeps the processes apart, and a running gateway sees a change within a second.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Optional

from gateway.clock import unix_s
from gateway.keys.record import PRIORITIES
from gateway.keys.roles import DEFAULT_ROLES
from gateway.keys.store import KeyExists, KeyRefused, KeyStore, KeyUnknown, parse_duration, to_public
from gateway.limits.budgets import BUDGET_PERIODS
from gateway.state.database import StateDb, StateDbError
from gateway.state.file import state_file_exists

OpenDb = Callable[[bool], Optional[StateDb]]
"""Opens the state database; makes it only when its argument says so, and gives None when there is none."""

FAILED, CONFIGURED_WRONGLY = 1, 2
_COLUMNS = (
    *("name", "role", "state", "models", "rpm", "tpm", "concurrency", "budget", "priority", "residency"),
    *("created", "expires"),
)


def state_db_at(path: Path) -> OpenDb:
    """What `keys_command` needs to use the database at `path`."""
    return lambda make: StateDb(path) if make or state_file_exists(path) else None


def keys_command(
    argv: Sequence[str],
    open_db: OpenDb,
    prog: str = "keys",
    *,
    roles: Collection[str] = tuple(DEFAULT_ROLES),
    reserved: Collection[str] = (),
) -> int:
    """Run one `keys` command; returns the exit status: 0 well, 1 failed, 2 said wrongly or no usable database.

    `prog` is how it was called, `roles` are those a key may have, `reserved` the names of the keys in the settings.
    """
    try:
        arguments = vars(_parser(prog).parse_args(argv))
    except SystemExit as error:  # argparse has said what is wrong, or helped
        return CONFIGURED_WRONGLY if error.code else 0
    command, as_json = arguments.pop("command"), arguments.pop("json")
    try:
        db = open_db(command == "create")
    except StateDbError as error:
        return _failed(str(error), CONFIGURED_WRONGLY)
    if db is None:
        return _without_db(command, arguments, as_json)
    with db:
        try:
            store = KeyStore(db, roles=roles, reserved=reserved)
            _COMMANDS[command](store, arguments, as_json)
        except (KeyUnknown, KeyExists, StateDbError) as error:
            return _failed(str(error), FAILED)
        except KeyRefused as error:
            return _failed("\nerror: ".join(error.faults), CONFIGURED_WRONGLY)
    return 0


def _failed(text: str, status: int) -> int:
    print(f"error: {text}", file=sys.stderr)
    return status


def _without_db(command: str, arguments: dict[str, Any], as_json: bool) -> int:
    if command != "list":
        return _failed(f'there is no key named "{arguments["name"]}"', FAILED)
    _print_keys([], as_json)
    return 0


# --- the commands ----------------------------------------------------------------------------------------------------


def _create(store: KeyStore, arguments: dict[str, Any], as_json: bool) -> None:
    record, secret = store.create(**arguments)
    _print_key(to_public(record), as_json, secret)


def _rotate(store: KeyStore, arguments: dict[str, Any], as_json: bool) -> None:
    record, secret = store.rotate(**arguments)
    _print_key(to_public(record), as_json, secret)


def _list(store: KeyStore, arguments: dict[str, Any], as_json: bool) -> None:
    now_unix_s = unix_s()
    _print_keys([to_public(record, now_unix_s) for record in store.list()], as_json)


def _show(store: KeyStore, arguments: dict[str, Any], as_json: bool) -> None:
    _print_key(to_public(store.show(arguments["name"])), as_json)


def _revoke(store: KeyStore, arguments: dict[str, Any], as_json: bool) -> None:
    _print_key(to_public(store.revoke(arguments["name"])), as_json)


_COMMANDS: dict[str, Callable[[KeyStore, dict[str, Any], bool], None]] = {
    "create": _create,
    "list": _list,
    "show": _show,
    "revoke": _revoke,
    "rotate": _rotate,
}


# --- what is printed -------------------------------------------------------------------------------------------------


def _print_keys(keys: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"keys": keys}, indent=2))
        return
    if not keys:
        print("there are no keys")
        return
    lines = [_COLUMNS, *(tuple(_cells(key)[column] for column in _COLUMNS) for key in keys)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def _print_key(key: dict[str, Any], as_json: bool, secret: Optional[str] = None) -> None:
    if as_json:
        print(json.dumps(key if secret is None else {**key, "key": secret}, indent=2))
        return
    cells = _cells(key)
    for name in ("revoked", "previous_key_until"):
        if key[name] is not None:
            cells[name.replace("_", " ")] = _time(key[name])
    if secret is not None:
        cells["key"] = secret
    width = max(map(len, cells))
    for name, cell in cells.items():
        print(f"{name.ljust(width)}  {cell}")
    if secret is not None:
        print("Keep the key: it is not shown again.")


def _cells(key: dict[str, Any]) -> dict[str, str]:
    cells = {column: "-" if key.get(column) is None else str(key[column]) for column in _COLUMNS}
    cells["models"] = ",".join(key["models"]) or "all"
    if key["budget_usd"] is not None:
        cells["budget"] = f"{key['budget_usd']:g} USD/{key['budget_period']}"
    cells["created"] = _time(key["created"])
    cells["expires"] = "never" if key["expires"] is None else _time(key["expires"])
    return cells


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")


# --- the arguments ---------------------------------------------------------------------------------------------------


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Make, see and withdraw clients' keys.")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    create = commands.add_parser("create", help="make a key and show its secret, once")
    create.add_argument("--name", required=True, help="its name in logs and usage: A-Z a-z 0-9 . _ @ + -")
    create.add_argument("--role", default="user", help="user, admin, viewer, or a role of ROLES_FILE (default: user)")
    create.add_argument("--models", type=_patterns, default=(), help="names or patterns, as in 13b,7b* (default: all)")
    create.add_argument("--rpm", type=_integer, help="requests per minute")
    create.add_argument("--tpm", type=_integer, help="tokens per minute")
    create.add_argument("--concurrency", type=_integer, help="requests at once")
    create.add_argument("--budget-usd", type=_number, help="US dollars per period")
    create.add_argument("--budget-period", help=f"{', '.join(BUDGET_PERIODS)} (default: month)")
    create.add_argument("--expires", dest="expires_s", type=_duration, help="from now, as in 90d (default: never)")
    create.add_argument("--priority", help=", ".join(PRIORITIES))
    create.add_argument("--residency", help="the region that what it asks must not leave, as in eu (default: none)")
    rotate = commands.add_parser("rotate", help="give a key a new secret and show it, once")
    rotate.add_argument("name", metavar="NAME")
    rotate.add_argument(
        "--grace", dest="grace_s", type=_duration, default=3600.0, help="how long the old one still works (default: 1h)"
    )
    rotate.add_argument("--expires", dest="expires_s", type=_duration, help="from now (default: as it was)")
    listing = commands.add_parser("list", help="every key")
    show = commands.add_parser("show", help="one key")
    show.add_argument("name", metavar="NAME")
    revoke = commands.add_parser("revoke", help="end a key now, for good")
    revoke.add_argument("name", metavar="NAME")
    for command in (create, rotate, listing, show, revoke):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _integer(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
