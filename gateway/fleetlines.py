"""Fleets that need no file: the one-line forms ENGINES and BACKEND_URL, providers whose keys are set, echo.

What a value may be is decided as for the engines file (fleet.py). No state, no lock, no I/O; the environment comes in.
"""

from __future__ import annotations

import re
from typing import Callable

from gateway.configuration import ConfigurationError, JsonObject
from gateway.fleet import real_model
from gateway.routing.checks import ECHO_URL, step
from gateway.routing.providers import PROVIDERS
from gateway.routing.specs import ENGINE_CHECKS, EngineSpec, FleetSpec, ModelSpec, model_from


def _with_own_name(text: str) -> JsonObject:
    """An engine as it stands in a line: its URL, and behind a # its own name of the model, as it is but for `%2C` and
    `%3B`: commas and semicolons separate others."""
    url, mark, model = (piece.strip() for piece in text.partition("#"))
    if not mark:
        return JsonObject(url=url)
    if "@" in model and any(True for _ in ENGINE_CHECKS["url"](url)):
        return JsonObject(url=f"{url}%23{model}")  # rather a password with a #, of which no fault may show a part
    return JsonObject(url=url, model=re.sub("%2C", ",", re.sub("%3B", ";", model, flags=re.I), flags=re.I))


def parse_engines(text: str) -> FleetSpec:
    """Read `model=url,url;model=url`, each URL with or without `#` and the engine's own name of the model; where that
    is the model's name as well, `url#model` alone will do. Raises ConfigurationError naming every fault."""
    faults: list[str] = []
    models: dict[str, list[JsonObject]] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        name, equals, urls = (piece.strip() for piece in part.partition("="))
        if not equals or not name or "://" in name:
            engines = [_with_own_name(url.strip()) for url in part.split(",") if url.strip()]
            if engines and all("://" in str(engine["url"]) and "model" in engine for engine in engines):
                for engine in engines:
                    models.setdefault(str(engine["model"]), []).append(engine)
                continue
            # Not shown: an address may hold a password.
            faults.append(
                "must be model=url,url;model=url; a part has no model name before its = "
                "(for one engine that serves every name, set BACKEND_URL instead)"
            )
        elif name in models:
            faults.append(f"{step('', name)}: is defined twice")
        else:
            models[name] = [_with_own_name(url.strip()) for url in urls.split(",") if url.strip()]
    specs = [real_model(name, JsonObject(engines=urls), step("", name), faults) for name, urls in models.items()]
    if not specs and not faults:
        faults.append("must name at least one model, as in 13b=http://127.0.0.1:8000/v1")
    if faults:
        raise ConfigurationError(faults)
    return FleetSpec(models=tuple(spec for spec in specs if spec is not None))


def parse_backend_url(text: str) -> FleetSpec:
    """Make the fleet of one engine that serves every model name: under that name, or under the one behind a #. Raises
    ConfigurationError."""
    engine = _with_own_name(text)
    faults = [fault.removeprefix(": ") for fault in ENGINE_CHECKS["url"](engine["url"])]
    faults += [f"the model behind its #{fault}" for fault in ENGINE_CHECKS["model"](engine.get("model"))]
    if faults:
        raise ConfigurationError(faults)
    return FleetSpec((model_from("default", [EngineSpec(**engine)]),), wildcard=True)  # type: ignore[arg-type]


def provider_fleet(is_set: Callable[[str], bool]) -> FleetSpec | None:
    """Make the fleet of the providers whose usual key is set, each model behind its provider's name, as in
    `groq/llama-3.3-70b-versatile`; None: there is no such key. `is_set` tells of a variable."""
    found = [name for name, preset in PROVIDERS.items() if preset.url and preset.key_env and is_set(preset.key_env)]
    specs = [ModelSpec(name, (EngineSpec(provider=name),), fallbacks=(), prefix=f"{name}/") for name in found]
    return FleetSpec(tuple(specs)) if specs else None


def echo_fleet() -> FleetSpec:
    """Make the fleet that serves every model name by echo, for when nothing is configured."""
    return FleetSpec((model_from("echo", [ECHO_URL]),), wildcard=True)
