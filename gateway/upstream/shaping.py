"""A request as a model's engines get it: without what they must not get, with what they get by default or always.

Pure functions. `gateway/routing/params.py` has what may be said of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from gateway.routing.params import Params
from gateway.routing.providers import RESPONSES
from gateway.upstream.fields import BY_PATH
from gateway.upstream.fieldtypes import CHAT, Request
from gateway.upstream.nativeshaping import natively_shaped

_EITHER = BY_PATH["/chat/completions"].asked  # two names of one thing: who says one has said it


def shaped(path: str, request: Request, params: Optional[Params]) -> Request:
    """The request as `params` have it (None: as it is); the same object where that changes nothing.

    Fields that mean nothing on a path are not added there: no temperature to embeddings. A default is for who has not
    said it (null says nothing); of the two names of a limit of tokens, either says it, and a forced one replaces both.
    What is passed on stays as it is, but for Responses.
    """
    if params is None:
        return request
    if BY_PATH[path].passes:
        return natively_shaped(request, params) if path == RESPONSES else request
    force = {name: value for name, value in params.force.items() if _is_for(path, name)}
    out = params.strip.union(*(_same(name) for name in force))
    changed = {name: value for name, value in request.items() if name.casefold() not in out}
    for name, value in params.defaults.items():
        said = any(changed.get(same) is not None for same in _same(name))
        if not said and name.casefold() not in out and _is_for(path, name):
            changed[name] = value
    changed.update(force)
    same = len(changed) == len(request) and all(changed.get(name) is value for name, value in request.items())
    return request if same else changed


def _same(name: str) -> tuple[str, ...]:
    return _EITHER if name in _EITHER else (name.casefold(),)


def _is_for(path: str, name: str) -> bool:
    return name not in CHAT or name in BY_PATH[path].optional


def value_faults(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names of fields, with what is wrong with the values that they are to have."""
    faults: list[tuple[str, str]] = []
    for name, value in values.items():
        if name not in CHAT and name.casefold() in CHAT:
            faults.append((name, f"is spelled {name.casefold()}"))
        elif name in CHAT and value is not None:
            fault = CHAT[name].check(value)
            if name in _EITHER and value == -1:
                fault = "", "must not be -1: it stands for no limit"
            if fault is not None:
                faults.append((name, fault[1]))
    return faults
