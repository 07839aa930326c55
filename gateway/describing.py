"""Models and engines in lines for people.

Owns the wording. No state, no lock. No text here shows a secret: variables are named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from gateway.discovery.watch import State
from gateway.routing.checks import quoted
from gateway.routing.engine import Engine
from gateway.routing.router import Router
from gateway.routing.specs import FleetSpec, ModelSpec
from gateway.routing.splits import SplitSpec
from gateway.routing.virtual import VirtualSpec
from gateway.settings import Settings

LISTED_MAX = 8  # of the names that an engine lists
ERROR_CHARS = 200  # of what an engine has said


def called(model: ModelSpec, router: Router) -> str:
    """A model as requests name it; the names that a provider lists."""
    if not model.prefix:
        return f"model {model.name}" if model.source is None else f"model {model.name} (listed by {model.source})"
    return f"models {model.prefix}…{listed_names(router, model.prefix)}"


def default_mark(fleet: FleetSpec, model: ModelSpec | VirtualSpec | SplitSpec) -> str:
    """ " (default)" for the model of requests that name none, else ""."""
    is_default = fleet.default_model in (model.name, *model.aliases)
    return " (default)" if is_default and not fleet.wildcard else ""


def listed_names(router: Router, prefix: str = "") -> str:
    """What engines list whose own names count, as far as it begins with `prefix`."""
    names = [model.id for model in router.listed() if model.id.startswith(prefix)]
    more = len(names) - LISTED_MAX
    shown = ", ".join(names[:LISTED_MAX]) + (f" and {more} more" if more > 0 else "")
    return f"; its engine lists {shown}" if names else ""


def params_lines(spec: ModelSpec | SplitSpec) -> Iterator[str]:
    """What changes the requests of a model."""
    if spec.strip:
        yield f"  without: {', '.join(spec.strip)}"
    if spec.defaults:
        yield f"  unless said: {_shown(spec.defaults)}"
    if spec.force:
        yield f"  always: {_shown(spec.force)}"


def _shown(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {quoted(value)}" for name, value in values.items())


def split_lines(split: SplitSpec) -> Iterator[str]:
    """A model that others answer for."""
    if split.aliases:
        yield f"  aliases: {', '.join(split.aliases)}"
    yield from params_lines(split)
    if split.fallbacks is not None and len(split.shares) > 1:
        yield f"  fallbacks: {', '.join(split.fallbacks) or 'none'}"


def virtual_lines(virtual: VirtualSpec) -> Iterator[str]:
    """A model that is made of others."""
    if virtual.aliases:
        yield f"  aliases: {', '.join(virtual.aliases)}"
    if virtual.start is not None and virtual.start < len(virtual.members):
        yield f"  asked first: {', '.join(virtual.members[: virtual.start])}"
    if virtual.min_families > 1:
        yield f"  of {virtual.min_families} families at least"
    if virtual.judge is not None:
        yield f"  answers without code are compared by {virtual.judge}, where words do not decide"
    yield "  without agreement: " + ("the best answer" if virtual.fallback == "best" else "an error")


def fallback_lines(model: ModelSpec, settings: Settings, router: Router) -> Iterator[str]:
    """What stands in for a model, and what does not, and why."""
    others = router.fallbacks(model.name)
    used = ", ".join(other for other, why_not in others if not why_not)
    yield f"  fallbacks: {used or 'none'}{' (FALLBACK=off)' if settings.fallback == 'off' else ''}"
    yield from (f"    not {other}: {why_not}" for other, why_not in others if why_not)


def source_lines(model: ModelSpec, states: Iterable[State]) -> Iterator[str]:
    """Where the engines of a model are looked for, and what came of it; nothing where they are configured."""
    if model.discover is None:
        return
    state = next((state for state in states if state.model == model.name), None)
    said = "not looked for"
    if state is not None:
        count = f"{state.engines} engine{'' if state.engines == 1 else 's'} found"
        said = "no answer yet" if state.age_s is None else count
        said += f"; {printable(state.error[:ERROR_CHARS])}" if state.error else ""
    yield f"  discovered by {printable(str(model.discover))}: {said}"


def engine_line(engine: Engine, settings: Settings) -> str:
    """One engine with all that was said of it."""
    spec = engine.spec
    parts = [f"{spec.id}: {spec.url}", f"weight {spec.weight}"]
    if spec.region is not None:
        parts.append(f"region {spec.region}")
    if spec.max_concurrency is not None:
        parts.append(f"at most {spec.max_concurrency} at once{_by_each(settings.processes)}")
    if spec.model is not None:
        parts.append(f"model {spec.model}")
    if spec.api_key_env is not None:
        parts.append(f"key from {_variable(spec.api_key_env, settings)}")
    if not spec.is_echo:
        parts.append(state_of(engine, settings)[0])
    return ", ".join(parts)


def _by_each(processes: int) -> str:
    """Whose places an engine's `max_concurrency` is."""
    if processes == 1:
        return ""
    return f" from each of {processes} processes" if processes else " from each process"


def _variable(name: str, settings: Settings) -> str:
    if name in settings.engine_keys:
        return name
    # Who misread `api_key_env` may have put the key itself there, such as gsk_...: names of variables have no small
    # letters.
    return f"{name if name.isupper() else 'a variable'}, which is not set"


def state_of(engine: Engine, settings: Settings) -> tuple[str, str]:
    """Whether an engine has been reached, and its colour."""
    # Without the pool's lock: single fields, which may change a moment later as well.
    if engine.spec.is_echo:
        return "built in", "good"
    if (engine.answered or engine.listed is not None) and not engine.down:
        return "reached", "good"
    if engine.down:
        error = re.sub("^health check( failed)?: ", "", engine.last_error or "no answer")
        what = "not ready" if error.startswith("health check answered") else "not reached"
        return f"{what}: {printable(error[:ERROR_CHARS])}", "bad"  # it may be a stranger's words
    if not settings.health_interval_s:
        return "not probed (HEALTH_INTERVAL=0)", "dim"
    return "no answer yet", "bad"


def printable(text: str, first: str = "", last: str = "") -> str:
    """A text that is no order to a terminal; the characters from `first` to `last` stay as well."""
    return "".join(c if c.isprintable() or first <= c <= last else "?" for c in text)
