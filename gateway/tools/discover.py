"""Which engines run on this machine: the usual ports are asked what they serve, and an engines file is made of it.

Owns the wording and the threads of one look, one for each port. Nothing is sent but two kinds of GET, without any key.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional, TextIO

from gateway.routing.providers import PROVIDERS
from gateway.routing.specs import EngineSpec
from gateway.upstream.listing import NotNow, ask_json, models_in

TIMEOUT_S = 1.0
GRACE_S = 1.0  # for what a look takes beside the requests' own time limits
SHOWN_MAX = 8  # of an engine's models
NOTHING_FOUND = 1
OWN = "inference-gateway"  # a gateway is no engine
LOCAL = {name: EngineSpec(provider=name) for name, preset in PROVIDERS.items() if not preset.remote}
USUAL_PORTS = {spec.port: name for name, spec in LOCAL.items()}
# What servers call themselves, each in its own list of models.
_KINDS = {
    "library": "ollama",
    "llamacpp": "llamacpp",
    "organization_owner": "lmstudio",
    "vllm": "vllm",
    "sglang": "sglang",
    OWN: OWN,
}


class Found(NamedTuple):
    """An engine; `kind` is one of PROVIDERS, "" where it is some other server with a list of models."""

    kind: str
    url: str
    models: tuple[str, ...]

    def entry(self) -> object:
        """The engine as the engines file has it."""
        if not self.kind:
            return self.url
        return {"provider": self.kind, **({} if LOCAL[self.kind].url == self.url else {"url": self.url})}

    def told(self) -> str:
        """The engine for people."""
        more = len(self.models) - SHOWN_MAX
        names = ", ".join(self.models[:SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
        return f"{self.kind or 'engine'} at {self.url}: {names or 'no model yet'}"


def discover_command(arguments: Sequence[str], prog: str, out: Optional[TextIO] = None) -> int:
    """Print an engines file of what runs here, and on stderr what was found; 1: nothing was."""
    out = sys.stdout if out is None else out
    given = _parser(prog).parse_args(arguments)
    found = look([*USUAL_PORTS, *given.port], given.timeout)
    print(json.dumps({"models": group_of(found)}, indent=2), file=out, flush=True)
    if not found:
        print("no engine answers on this machine; --port names another port, --timeout waits longer", file=sys.stderr)
        return NOTHING_FOUND
    command = prog.rpartition(" ")[0]
    for engine in found:
        print(engine.told(), file=sys.stderr)
    again = " ".join((prog, *map(shlex.quote, arguments)))
    print(f"{again} > engines.json && {command} --engines-file engines.json", file=sys.stderr)
    return 0


def group_of(found: Sequence[Found]) -> dict[str, Any]:
    """The models of an engines file: those that these engines list."""
    return {"local": {"models": "auto", "engines": [engine.entry() for engine in found]}} if found else {}


def look(ports: Sequence[int], timeout_s: float) -> list[Found]:
    """The engines at these ports of this machine, in that order; all are asked at once."""
    found: dict[int, Found] = {}

    def ask(port: int) -> None:
        engine = engine_at(port, timeout_s)
        if engine is not None:
            found[port] = engine

    unique = list(dict.fromkeys(ports))
    threads = [threading.Thread(target=ask, args=(port,), name=f"look-{port}", daemon=True) for port in unique]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * timeout_s + GRACE_S)
    there = dict(found)  # one that is late after all may still come
    return [there[port] for port in unique if port in there]


def engine_at(port: int, timeout_s: float) -> Optional[Found]:
    """The engine at a port of this machine; None: there is none. Blocks for at most twice the time."""
    spec = EngineSpec(f"http://127.0.0.1:{port}/v1")
    try:
        answer = ask_json(spec, spec.list_target(), "", timeout_s)
        data = answer.get("data") if isinstance(answer, dict) else None
        # Ollama has null there while it has no model.
        if not isinstance(data, list) and not (isinstance(answer, dict) and "data" in answer and data is None):
            return None
        kind = _kind_of(spec, data or [], timeout_s)
    except NotNow:
        return None
    return None if kind == OWN else Found(kind, spec.url, tuple(one.id for one in models_in(data or [])))


def _kind_of(spec: EngineSpec, data: list[Any], timeout_s: float) -> str:
    owners = [entry.get("owned_by") for entry in data if isinstance(entry, dict)]
    for owner in owners:
        if isinstance(owner, str) and owner in _KINDS:
            return _KINDS[owner]
    version = ask_json(spec, "/api/version", "", timeout_s)
    return "ollama" if isinstance(version, dict) and isinstance(version.get("version"), str) else ""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Ask the usual ports of this machine for engines, and print an engines file of those that answer.",
        epilog=f"Asked: {', '.join(f'{port} ({name})' for port, name in USUAL_PORTS.items())}. Exit 1: none is there.",
    )
    parser.add_argument("--port", metavar="N", type=_port, action="append", default=[], help="a further port")
    parser.add_argument("--timeout", metavar="S", type=_seconds, default=TIMEOUT_S, help="seconds (default: 1)")
    return parser


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65_535:
        return int(text)
    raise argparse.ArgumentTypeError("must be a port from 1 to 65535")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if 0 < value <= 60:
        return value
    raise argparse.ArgumentTypeError("must be a number of seconds, more than 0 and at most 60")
