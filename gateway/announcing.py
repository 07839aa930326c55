"""What would run or is running, in lines for people: what `check` prints, and what follows the address at the start.

Owns the wording of both, how much of it there is (never more lines of engines than LINES_MAX), and when it is coloured.
No state, no lock. No text here shows a secret: keys are counted, and variables named.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Callable, TextIO

from gateway.describing import (
    LISTED_MAX,
    called,
    default_mark,
    engine_line,
    fallback_lines,
    listed_names,
    params_lines,
    printable,
    source_lines,
    split_lines,
    state_of,
    virtual_lines,
)
from gateway.discovery.watch import State
from gateway.inference import InferenceFactory
from gateway.program import shows_colours
from gateway.routing.checks import bracketed, parse_address
from gateway.routing.engine import Engine
from gateway.routing.router import Router
from gateway.routing.specs import FleetSpec
from gateway.routing.splits import SplitSpec
from gateway.routing.virtual import VirtualSpec
from gateway.settings import Settings, as_given
from gateway.steps import drive

LINES_MAX = 24  # of models and engines at the start: what a screen shows with the rest
WARNINGS_MAX = 20  # of lines of `.env` that are warned about one by one
SANDBOX_CLOSE_S = 5.0  # for what was tried to end
LOOK_S = 10.0  # how long engines are waited for; those that have not answered by then are said not to have
PATIENCE_S = 1.0  # how long without a word
NO_ENGINE = "no engine configured: answering by echo; set BACKEND_URL, ENGINES or ENGINES_FILE"

Paint = Callable[[str, str], str]
"""Colours a text: "good", "bad" or "dim"."""

# What no shell of Windows takes for an order. They disagree on quoting, and the name may be a stranger's.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._:/@+-]+")

_CODES = {"good": "32", "bad": "31", "dim": "2"}


def plain(text: str, kind: str) -> str:
    """No colour."""
    return text


def coloured(text: str, kind: str) -> str:
    """The text between escape codes."""
    return f"\x1b[{_CODES[kind]}m{text}\x1b[0m"


def paint_for(stream: TextIO, environ: Mapping[str, str]) -> Paint:
    """Colours only where they are seen as such."""
    return coloured if shows_colours(stream, environ) else plain


def write(stream: TextIO, text: str) -> None:
    """Write a text at once; characters that the stream's encoding lacks are escaped. Raises OSError, ValueError."""
    encoding = stream.encoding or "ascii"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def url_of(host: str, port: int) -> str:
    """Where clients on this machine find who listens there; at 0.0.0.0, say, which is every address, at 127.0.0.1."""
    address = parse_address(host)
    if address is not None and address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    return f"http://{bracketed(host)}:{port}"


def look(factory: InferenceFactory, limit_s: float) -> bool:
    """Wait until something is known of every engine, and of where its name leads; at most `limit_s` seconds. Returns
    whether there is nothing more to wait for."""
    deadline_s = time.monotonic() + limit_s
    factory.wait_probed(limit_s)
    client = factory.client
    engines = factory.router.fleet.engines()
    for host in dict.fromkeys(spec.host for _, spec in engines if not spec.is_echo):
        if client.is_near(host) is None:
            try:
                drive(client.resolver.addresses(host, deadline_s))
            except OSError:
                pass  # said with what is not known
    return factory.probed and time.monotonic() < deadline_s


# --- check ---------------------------------------------------------------------------------------------------------


def sandbox_lines(settings: Settings) -> list[str]:
    """Where programs would run, and why not at a better level. May take seconds: a level is known by a job that has run
    there."""
    from gateway.verify.building import sandbox_of

    sandbox = sandbox_of(settings)
    try:
        return sandbox.describe()
    finally:
        sandbox.close(SANDBOX_CLOSE_S)


def describe(
    settings: Settings,
    router: Router,
    sandbox: Iterable[str] = (),
    *,
    state_keys: bool = False,
    discovered: Sequence[State] = (),
) -> str:
    """What would run, for `check`: address, authentication, `.env`, models with their fallbacks and engines.

    `router` is that of a factory that has had a `look`, `sandbox` what `sandbox_lines` says. `state_keys`: whether the
    state database holds keys. `discovered`: the states of the factory's `discoveries`.
    """
    fleet = router.fleet
    address = url_of(settings.host, settings.port)
    lines = [
        f"address: {address}{_listens(settings)}{_processes(settings)}",
        f"authentication: {_describe_access(settings, state_keys)}",
        *_describe_region(settings, router),
        *_describe_dotenv(settings),
        *_describe_cache(settings),
        *_describe_shared(settings),
        *sandbox,
    ]
    if _is_unconfigured(fleet):
        lines.append(NO_ENGINE)
    if fleet.wildcard:
        lines.append(f"every model name is served by {fleet.models[0].name}{listed_names(router)}")
    for model in fleet.models:
        lines.append(f"{called(model, router)}{default_mark(fleet, model)}")
        if model.aliases:
            lines.append(f"  aliases: {', '.join(model.aliases)}")
        lines.append(f"  strategy: {model.strategy or settings.strategy}")
        lines.extend(params_lines(model))
        if not model.prefix:
            lines.extend(fallback_lines(model, settings, router))
        lines.extend(source_lines(model, discovered))
        lines.extend(f"  engine {engine_line(e, settings)}" for e in router.pools[model.name].engines)
    for group in fleet.groups:
        lines.append(f"models of {group.name}: those that its engines list")
        lines.extend(source_lines(group, discovered))
        lines.extend(f"  engine {engine_line(e, settings)}" for e in router.sources[group.name].engines)
    for split in fleet.splits:
        lines.append(f"model {split.label}{default_mark(fleet, split)}")
        lines.extend(split_lines(split))
    for virtual in fleet.virtual:
        lines.append(f"model {virtual.label}{default_mark(fleet, virtual)}")
        lines.extend(virtual_lines(virtual))
    return "\n".join(lines)


def _describe_region(settings: Settings, router: Router) -> Iterator[str]:
    if settings.region is not None:
        there = any(pool.is_within(settings.region) for pool in router.pools.values())
        yield f"region: {settings.region}, {'whose engines come first' if there else 'where no engine is'}"


def _describe_cache(settings: Settings) -> Iterator[str]:
    if not settings.cache:
        return
    parts = [f"{settings.cache_max_bytes / 2**20:g} MiB for {settings.cache_ttl_s:g} s"]
    parts.append("each key its own" if settings.cache_scope == "key" else "all keys together")
    if settings.cache_near:
        bars = ["the guard of words"] if settings.cache_guard else []
        if settings.embeddings_model is not None:
            bars.append(f"a cosine of {settings.cache_similarity:g} by {settings.embeddings_model}")
        parts.append(f"other words by {' and '.join(bars)}")
    if settings.cache_db is not None:
        parts.append(f"in {settings.cache_db}, too")
    if settings.redis_url is not None:
        parts.append("in Redis, too")
    yield f"cache: {', '.join(parts)}"


def _processes(settings: Settings) -> str:
    count = settings.processes or "as many as there are processors"
    return "" if count == 1 else f", served by several processes: {count}"


def _describe_shared(settings: Settings) -> Iterator[str]:
    if settings.redis_url is not None:
        without = "each gateway its share" if settings.shared_fail == "local" else "nothing passes"
        yield f"shared: limits, budgets, revoked keys in Redis; without it {without}"


def _listens(settings: Settings) -> str:
    address = parse_address(settings.host)
    return f" (listening on all addresses: {address})" if address is not None and address.is_unspecified else ""


def _describe_access(settings: Settings, state_keys: bool) -> str:
    if settings.auth == "off":
        return "off (AUTH=off)"
    ways: list[str] = []
    if settings.api_keys:
        count = len(settings.api_keys)
        admins = sum(key.role == "admin" for key in settings.api_keys)
        ways.append(f"{count} {'key' if count == 1 else 'keys'} ({admins} admin)")
    if state_keys:
        ways.append("keys of the state database")
    if settings.jwt_secret or settings.jwt_jwks:
        ways.append("tokens")
    return f"on, {', '.join(ways)}" if ways else "off (no key configured)"


def _describe_dotenv(settings: Settings) -> Iterator[str]:
    if settings.dotenv_path is None:
        return
    yield f"settings also from {shown_path(settings)}"
    yield from (f"warning: {warning}" for warning in dotenv_warnings(settings.dotenv_warnings))


def shown_path(settings: Settings) -> str:
    """The `.env` that was read, without characters that a terminal would take for orders."""
    return printable(str(settings.dotenv_path), "\udc80", "\udcff")


def dotenv_warnings(warnings: Sequence[str]) -> list[str]:
    """What is to be said of lines of `.env`, no more than can be read."""
    left = len(warnings) - WARNINGS_MAX
    return [*warnings[:WARNINGS_MAX], *([f".env: and {left} more such lines"] if left > 0 else [])]


def _is_unconfigured(fleet: FleetSpec) -> bool:
    return fleet.wildcard and fleet.models[0].engines[0].is_echo


# --- the start -----------------------------------------------------------------------------------------------------


def start_lines(
    settings: Settings,
    router: Router,
    url: str,
    *,
    authenticated: bool,
    terminal: bool,
    paint: Paint = plain,
    discovered: Sequence[State] = (),
) -> str:
    """What follows the address, once something is known of the engines: each model with its engines; where `.env` is.

    `authenticated`: clients show a key. `discovered`: the states of the factory's `discoveries`. On a `terminal` there
    is more: where to look, what to paste, how to end it.
    """
    fleet = router.fleet
    lines: list[str] = []
    if settings.dotenv_path is not None:
        lines.append(f"settings also from {shown_path(settings)}")
    if _listens(settings):
        lines.append(f"listening on all addresses ({settings.host})")
    if _is_unconfigured(fleet):
        lines.append(NO_ENGINE)
    else:
        lines += _models(fleet, router, settings, paint, discovered)
    if terminal:
        lines += [
            "",
            *([f"console: {url}/ in a browser"] if settings.console else []),
            f"endpoints: {url}/{' (with a key)' if authenticated else ''}",
            *_to_paste(router, url, authenticated),
            "Ctrl-C to stop",
            "",
        ]
    return "".join(f"{line}\n" for line in lines)


def _models(
    fleet: FleetSpec, router: Router, settings: Settings, paint: Paint, discovered: Sequence[State]
) -> list[str]:
    lines: list[str] = []
    left: list[Engine] = []  # of which there is no line
    without: list[SplitSpec | VirtualSpec] = [*fleet.splits, *fleet.virtual]
    made = [f"model {spec.label}{default_mark(fleet, spec)}" for spec in without[: LINES_MAX // 2]]
    for group in router.sources.values():
        if not any(pool.spec.source == group.name for pool in router.pools.values()):
            lines.append(f"models of {group.name}: none so far")
            lines += source_lines(group.spec, discovered)
            lines += [
                f"  {engine.spec.url} {paint(*state_of(engine, settings))}" for engine in group.engines[:LISTED_MAX]
            ]
    for pool in list(router.pools.values()):
        engines = list(pool.engines)
        room = LINES_MAX - len(made) - len(lines) - 1
        if room < 1:
            left += engines
            continue
        name = f"{called(pool.spec, router)}{default_mark(fleet, pool.spec)}"
        lines.append(f"every model name{listed_names(router)}" if fleet.wildcard else name)
        found = list(source_lines(pool.spec, discovered))
        lines += found
        room -= len(found)
        for engine in engines[:room]:
            text, kind = state_of(engine, settings)
            where = "" if engine.spec.region is None else f" ({engine.spec.region})"
            lines.append(f"  {engine.spec.url}{where} {paint(text, kind)}")
        left += engines[room:]
    if left:
        out = sum(engine.down for engine in left)
        lines.append(f"... and {len(left)} more engines{f', {out} of them not reached' if out else ''}")
    more = len(without) - len(made)
    return [*lines, *made, *([f"... and {more} more models made of others"] if more else [])]


def _to_paste(router: Router, url: str, authenticated: bool) -> list[str]:
    """A request for a shell: one line and its continuation, or for Windows' one line."""
    # One engine for every name may know no other name than its own.
    model = router.unnamed() if router.fleet.by_engines else router.fleet.default_model
    if model is None and not router.fleet.wildcard:  # requests have to name one
        model = next((one.id for one in router.listed()), None)
    quote, joint = (shlex.quote, " \\\n    ") if os.name == "posix" else (_quoted_for_windows, " ")
    if model is None or not (os.name == "posix" or _PLAIN_NAME.fullmatch(model)):
        named = {}  # then it is the same one
    else:
        named = {"model": model}
    body = json.dumps({**named, "messages": [{"role": "user", "content": "hi"}]})
    headers = ["Content-Type: application/json", *(["Authorization: Bearer <key>"] if authenticated else [])]
    words = [f"curl {url}/v1/chat/completions", *[f"-H {quote(header)}" for header in headers], f"-d {quote(body)}"]
    return ["try it:", f"  {joint.join(words)}"]


def _quoted_for_windows(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def draining_line(in_flight: int) -> str:
    """What somebody who has pressed Ctrl-C is to know. It goes over the ^C that the terminal has shown."""
    return f"\rdraining: {in_flight} request{'' if in_flight == 1 else 's'} in flight; Ctrl-C again ends at once\n"


def cannot_listen(settings: Settings, error: OSError) -> str:
    """Why the address cannot be had, and what to do."""
    other_port = "name another port with --port or PORT"
    advice = {
        errno.EADDRINUSE: f"; {other_port}",
        errno.EACCES: f"; ports below 1024 are for privileged users: {other_port}",
        errno.EADDRNOTAVAIL: "; this machine has no such address: name another with --host or HOST",
    }.get(error.errno or 0, "")
    reason = f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}{advice}"
    return as_given([f"HOST, PORT: {reason}"], settings.flags)[0]
