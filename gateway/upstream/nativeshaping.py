"""A request for an engine's own `/v1/responses`, with what its model's requests lack, have by default or always.

That is said in chat's words (`gateway/routing/params.py`), which have other names and places here. Pure functions.
"""

from __future__ import annotations

from typing import Any

from gateway.routing.params import Params
from gateway.upstream.fieldtypes import Request

_PLACES: dict[str, tuple[str, ...]] = {
    "max_tokens": ("max_output_tokens",),
    "max_completion_tokens": ("max_output_tokens",),
    "reasoning_effort": ("reasoning", "effort"),
    "verbosity": ("text", "verbosity"),
    "response_format": ("text", "format"),
}
_UNKNOWN = frozenset(
    (
        *("stop", "seed", "n", "logprobs", "logit_bias", "presence_penalty", "frequency_penalty", "functions"),
        *("function_call", "modalities", "audio", "prediction", "web_search_options"),
    )
)
"""What only chat has: an engine would refuse a request for it."""


def natively_shaped(request: Request, params: Params) -> Request:
    """The request as `params` have it; the same object where that changes nothing. What has no meaning here is not
    added."""
    changed = request
    out = {_place(name) for name in (*params.strip, *params.force)}
    for place in out:
        changed = _without(changed, place)
    for name, value in params.defaults.items():
        place = _place(name)
        if place not in out and _value(changed, place) is None and name not in _UNKNOWN:
            changed = _with(changed, place, _said(name, value))
    for name, value in params.force.items():
        if name not in _UNKNOWN:
            changed = _with(changed, _place(name), _said(name, value))
    return changed


def _place(name: str) -> tuple[str, ...]:
    return _PLACES.get(name.casefold(), (name,))


def _value(request: Request, place: tuple[str, ...]) -> Any:
    value: Any = request
    for name in place:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _without(request: Request, place: tuple[str, ...]) -> Request:
    """Without a member, however its last name is spelled: some engines do not look at the case."""
    first, *rest = place
    if not rest:
        names = [name for name in request if name.casefold() == first.casefold()]
        return {name: value for name, value in request.items() if name not in names} if names else request
    inner = request.get(first)
    if not isinstance(inner, dict):
        return request
    changed = _without(inner, tuple(rest))
    return request if changed is inner else {**request, first: changed}


def _with(request: Request, place: tuple[str, ...], value: Any) -> Request:
    first, *rest = place
    inner = request.get(first)
    if rest:
        value = _with(inner if isinstance(inner, dict) else {}, tuple(rest), value)
    return {**request, first: value}


def _said(name: str, value: Any) -> Any:
    """A value of chat's as it stands here: functions, and the choice of one, have a form of their own."""
    if name == "tools" and isinstance(value, list):
        return [_function(tool) for tool in value]
    return _function(value) if name == "tool_choice" else value


def _function(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, dict) else None
    return {"type": "function", **function} if isinstance(function, dict) else tool
