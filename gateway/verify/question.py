"""What a verification is about: what is asked, of whom, and by what answers are judged.

Owns the shapes, and how a request of `POST /api/v1/inference` becomes one of them. Pure; nothing is asked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

from gateway.errors import RequestRefused
from gateway.upstream.fieldtypes import COMPLETION
from gateway.verify.panel import Member

TESTS_MAX = 200
INPUTS_MAX = 200
TEXT_MAX = 200_000  # characters of all tests, or of all inputs
MODELS_MAX = 32
NUMBER_MAX = 1_000_000_000  # of seconds or processors; the ceilings say what is given of it
_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]{0,99}")
_MEMORY = re.compile(r"([0-9]{1,9})\s*([kmg]?)i?b?", re.IGNORECASE)
_UNIT_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
FIELDS = (
    *("prompt", "models", "execute_code", "verify", "temperature", "max_tokens", "execution_config"),
    *("tests", "inputs", "entry_point", "metadata", "system"),
)


class Ceilings(NamedTuple):
    """What a request may ask for at most, of one run."""

    timeout_s: float
    memory_bytes: int


class RunLimits(NamedTuple):
    """What one run may take. `cpu_share`: of one processor, over the whole time."""

    timeout_s: float
    memory_bytes: int
    cpu_share: float


class Question(NamedTuple):
    """What is to be verified."""

    prompt: str
    """What the client asks, as far as examples may stand in it."""
    members: tuple[Member, ...]
    start: int
    """So many are asked first."""
    min_families: int
    limits: RunLimits
    messages: tuple[dict[str, Any], ...]
    """What the members are asked."""
    tests: tuple[str, ...] = ()
    """Programs that assert something."""
    pairs: tuple[dict[str, str], ...] = ()
    """What a program reads, and what it must print."""
    inputs: tuple[list[Any], ...] = ()
    """Arguments of calls."""
    entry_point: Optional[str] = None
    execute: bool = True
    """Whether programs are run at all."""
    verify: bool = True
    """Whether the answers are compared."""
    judge: Optional[Member] = None
    """Who is asked which answers without code say the same."""
    show_runs: bool = False
    """Whether each program is also run by itself, for what it prints."""


def check_prompt(request: dict[str, Any]) -> str:
    """The text to be asked. Raises `invalid_prompt`."""
    prompt = request.get("prompt")
    if type(prompt) is not str or not prompt.strip():
        raise RequestRefused("invalid_prompt", "prompt must be a text that is not empty", param="prompt")
    return prompt


def check_models(request: dict[str, Any], known: Sequence[str]) -> list[str]:
    """The names of the models to ask, as given; all those `known` by default. Raises `invalid_models`."""
    names = request.get("models")
    if names is None:
        return list(known[:MODELS_MAX])
    if type(names) is not list or not 1 <= len(names) <= MODELS_MAX or not all(type(n) is str and n for n in names):
        text = f"models must be a list of 1 to {MODELS_MAX} names"
        raise RequestRefused("invalid_models", text, param="models")
    return names


def check_flag(request: dict[str, Any], key: str, default: bool) -> bool:
    """A value that is true or false. Raises `invalid_body`."""
    value = request.get(key)
    if value is None:
        return default
    if type(value) is not bool:
        raise RequestRefused("invalid_body", f"{key} must be true or false", param=key)
    return value


def check_entry_point(request: dict[str, Any]) -> Optional[str]:
    """The function that the programs are to define. Raises `invalid_body`."""
    name = request.get("entry_point")
    if name is not None and (type(name) is not str or _NAME.fullmatch(name) is None):
        raise RequestRefused("invalid_body", "entry_point must be the name of a function", param="entry_point")
    return name


def check_inputs(request: dict[str, Any]) -> tuple[list[Any], ...]:
    """The arguments of calls, a list for each. Raises `invalid_inputs`."""
    inputs = request.get("inputs")
    if inputs is None:
        return ()
    if type(inputs) is not list or len(inputs) > INPUTS_MAX:
        text = f"inputs must be a list of at most {INPUTS_MAX} lists of arguments"
        raise RequestRefused("invalid_inputs", text, param="inputs")
    for index, arguments in enumerate(inputs):
        if type(arguments) is not list:
            where = f"inputs[{index}]"
            raise RequestRefused("invalid_inputs", f"{where} must be a list of arguments", param=where)
    if len(json.dumps(inputs)) > TEXT_MAX:
        raise RequestRefused("invalid_inputs", f"inputs are longer than {TEXT_MAX} characters", param="inputs")
    return tuple(inputs)


class Tests(NamedTuple):
    """What a program must do: pass these, and print that."""

    sources: tuple[str, ...]
    pairs: tuple[dict[str, str], ...]


def check_tests(request: dict[str, Any], entry_point: Optional[str]) -> Tests:
    """The tests: programs that assert something, and pairs of input and output. Raises `invalid_tests`.

    A pair whose input is a text is what the program reads and prints, unless a function is named; any other is a call:
    a list gives its arguments, anything else its only one.
    """
    given = request.get("tests")
    if given is None:
        return Tests((), ())
    items = [given] if type(given) is str else given
    if type(items) is not list or not 1 <= len(items) <= TESTS_MAX:
        text = f"tests must be a text, or a list of 1 to {TESTS_MAX} texts and pairs of input and output"
        raise RequestRefused("invalid_tests", text, param="tests")
    sources: list[str] = []
    pairs: list[dict[str, str]] = []
    for index, item in enumerate(items):
        where = f"tests[{index}]"
        if type(item) is str and item.strip():
            sources.append(item)
        elif type(item) is dict and item.keys() == {"input", "output"}:
            if type(item["input"]) is str and type(item["output"]) is str and entry_point is None:
                pairs.append(item)
            elif entry_point is not None:
                sources.append(_call_test(item, entry_point))
            else:
                text = f"{where}: input and output must be texts where no entry_point is named"
                raise RequestRefused("invalid_tests", text, param=where)
        else:
            text = f'{where} must be a text that asserts something, or {{"input": …, "output": …}}'
            raise RequestRefused("invalid_tests", text, param=where)
    if sum(map(len, sources)) + sum(len(p["input"]) + len(p["output"]) for p in pairs) > TEXT_MAX:
        raise RequestRefused("invalid_tests", f"tests are longer than {TEXT_MAX} characters", param="tests")
    return Tests(tuple(sources), tuple(pairs))


def _call_test(pair: dict[str, Any], entry_point: str) -> str:
    given = pair["input"]
    arguments = given if type(given) is list else [given]
    # JSON's values have the same text in Python, as `repr` writes it.
    return f"assert {entry_point}({', '.join(map(repr, arguments))}) == {pair['output']!r}"


def check_execution_config(request: dict[str, Any], ceilings: Ceilings) -> RunLimits:
    """What one run may take: what is asked for, within the ceilings. Raises `invalid_execution_config`."""
    config = request.get("execution_config")
    if config is None:
        config = {}
    if type(config) is not dict:
        _refuse("execution_config", "must be an object")
    for key in config:
        if key not in ("timeout", "memory_limit", "cpu_limit", "network_disabled"):
            _refuse(
                f"execution_config.{key[:40]}", "is not known; timeout, memory_limit, cpu_limit, network_disabled are"
            )
    timeout_s = _number(config, "timeout", ceilings.timeout_s, 0.1)
    cpu_share = _number(config, "cpu_limit", 1.0, 0.01)
    network_disabled = config.get("network_disabled")
    if network_disabled is not None and network_disabled is not True:
        _refuse("execution_config.network_disabled", "must be true: programs never have a network")
    memory = config.get("memory_limit")
    memory_bytes = ceilings.memory_bytes if memory is None else _memory_bytes(memory)
    return RunLimits(min(timeout_s, ceilings.timeout_s), min(memory_bytes, ceilings.memory_bytes), min(cpu_share, 1.0))


def _number(config: dict[str, Any], key: str, default: float, least: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not least <= value <= NUMBER_MAX:
        _refuse(f"execution_config.{key}", f"must be a number from {least:g} to {NUMBER_MAX}")
    return float(value)


def _memory_bytes(value: object) -> int:
    match = _MEMORY.fullmatch(value.strip()) if type(value) is str else None
    size = value if type(value) is int else 0 if match is None else int(match[1]) * _UNIT_BYTES[match[2].lower()]
    if not 1 << 20 <= size < 1 << 60:
        text = 'must be a size from 1 MiB to below 1 EiB: a number of bytes, or a text such as "256m"'
        _refuse("execution_config.memory_limit", text)
    return size


def _refuse(where: str, text: str) -> Any:
    raise RequestRefused("invalid_execution_config", f"{where} {text}", param=where)


def check_fields(request: dict[str, Any], check: Callable[[str, object], Optional[tuple[str, str]]]) -> dict[str, Any]:
    """The fields that the members are asked with, beside the prompt. `check` says what is wrong with one, as a code and
    a text. Raises RequestRefused."""
    for key in request:
        if key not in FIELDS:
            known = ", ".join(FIELDS)
            raise RequestRefused("invalid_body", f"{key[:40]} is not known; known: {known}", param=key[:40])
    if request.get("metadata") is not None and type(request["metadata"]) is not dict:
        raise RequestRefused("invalid_body", "metadata must be an object", param="metadata")
    if request.get("system") is not None and type(request["system"]) is not str:
        raise RequestRefused("invalid_body", "system must be a text", param="system")
    options: dict[str, Any] = {"temperature": 0.7, "max_tokens": 2048}
    for key in options:
        value = request.get(key)
        if value is not None:
            fault = check(key, value)
            if fault is not None:
                raise RequestRefused(fault[0], f"{key} {fault[1]}", param=key)
            options[key] = value
    return options


def request_schema() -> dict[str, Any]:
    """What a request may hold, in JSON Schema; one that this refuses is refused by the checks, too."""
    flag = {"type": ["boolean", "null"]}
    text = {"type": "string", "pattern": r"\S"}
    pair = {
        "type": "object",
        "required": ["input", "output"],
        "properties": {"input": {}, "output": {}},
        "additionalProperties": False,
    }
    tests = {"type": "array", "items": {"anyOf": [text, pair]}, "minItems": 1, "maxItems": TESTS_MAX}
    names = {"type": ["array", "null"], "items": {"type": "string", "minLength": 1}}
    config = {
        "timeout": {"type": ["number", "null"], "minimum": 0.1, "maximum": NUMBER_MAX},
        "cpu_limit": {"type": ["number", "null"], "minimum": 0.01, "maximum": NUMBER_MAX},
        "memory_limit": {
            "description": 'Bytes, or a text such as "256m".',
            "anyOf": [
                {"type": "integer", "minimum": 1 << 20, "exclusiveMaximum": 1 << 60},
                {"type": "string", "pattern": r"^\s*[0-9]{1,9}\s*[kmgKMG]?[iI]?[bB]?\s*$"},
                {"type": "null"},
            ],
        },
        "network_disabled": {"enum": [True, None]},
    }
    fields = {
        "prompt": {"description": "What the models are asked.", **text},
        "models": {"description": "Which; by default all.", **names, "minItems": 1, "maxItems": MODELS_MAX},
        "execute_code": {"description": "Whether programs are run; true by default.", **flag},
        "verify": {"description": "Whether answers are compared; true by default.", **flag},
        "temperature": COMPLETION["temperature"].schema,
        "max_tokens": COMPLETION["max_tokens"].schema,
        "execution_config": {
            "description": "What one run may take, within the gateway's own limits.",
            "type": ["object", "null"],
            "properties": config,
            "additionalProperties": False,
        },
        "tests": {
            "description": "Programs that assert something, or pairs of input and output.",
            "anyOf": [text, tests, {"type": "null"}],
        },
        "inputs": {
            "description": "Arguments of calls of `entry_point`, a list for each.",
            "type": ["array", "null"],
            "items": {"type": "array"},
            "maxItems": INPUTS_MAX,
        },
        "entry_point": {
            "description": "The function that the programs are to define.",
            "type": ["string", "null"],
            "pattern": f"^{_NAME.pattern}$",
        },
        "metadata": {"description": "Whatever the caller likes.", "type": ["object", "null"]},
        "system": {"description": "A message of the system before the prompt.", "type": ["string", "null"]},
    }
    return {"type": "object", "required": ["prompt"], "properties": fields, "additionalProperties": False}
