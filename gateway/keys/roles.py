"""What a role may do: permissions, models, and the two privileges of priority and skipping the cache.

Owns the closed set of permissions, the default roles, and the reading of ROLES_FILE. No state, no lock. It decides
nothing about a request: whoever serves it asks a Role.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gateway.configuration import ConfigurationError, JsonObject, duplicate_faults, read_json
from gateway.routing.checks import fits, quoted, step

PERMISSIONS: tuple[str, ...] = ("infer", "verify", "batch", "metrics", "admin")
PRIVILEGES = ("may_set_priority", "may_skip_cache")
NAME_PATTERN = "[A-Za-z0-9._@+-]{1,64}"
MODEL_PATTERN = "[!-+.-~-]{1,256}"  # what a model's name may have, without the comma that separates patterns


@dataclass(frozen=True)
class Role:
    """What its holders may do. `models`: patterns as in `model_allowed`; () allows every model.

    Listing the models needs no permission, only to be known.
    """

    name: str
    permissions: frozenset[str]
    models: tuple[str, ...] = ()
    may_set_priority: bool = False
    may_skip_cache: bool = False

    def allows(self, permission: str) -> bool:
        """Whether its holders have that permission."""
        return permission in self.permissions

    def allows_model(self, *names: str) -> bool:
        """Whether its holders may ask the model of these names; a key's own patterns may forbid it all the same."""
        return model_allowed(self.models, *names)


DEFAULT_ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "admin": Role("admin", frozenset(PERMISSIONS), may_set_priority=True, may_skip_cache=True),
        "user": Role("user", frozenset({"infer", "verify", "batch"})),
        "viewer": Role("viewer", frozenset({"metrics"})),
    }
)


def model_allowed(patterns: tuple[str, ...], *names: str) -> bool:
    """Whether one of a model's names (its own and its aliases) is, in its exact case, one of the patterns with `*`,
    `?`, `[abc]`; () allows all."""
    # Most lists are plain names: looked up before any is taken for a pattern.
    if not patterns or any(name in patterns for name in names):
        return True
    return any(fits(name, pattern) for pattern in patterns for name in names)


def load_roles(path: Path) -> Mapping[str, Role]:
    """Read ROLES_FILE: `{"name": {"permissions": ["infer"], "models": ["13b*"], "may_set_priority": true}}`.

    Its roles join the default ones; one of the same name replaces the default. Only `permissions` must be given. Raises
    ConfigurationError naming every fault by its JSON path.
    """
    document = read_json(path)
    faults: list[str] = []
    roles = dict(DEFAULT_ROLES)
    if not isinstance(document, JsonObject) or not document:
        faults.append(f"the file: must be an object with at least one role, not {quoted(document)}")
    else:
        faults.extend(duplicate_faults(document, ""))
        for name, members in document.items():
            here = step("", name)
            noted_before = len(faults)
            faults.extend(_role_faults(here, name, members))
            if isinstance(members, JsonObject) and len(faults) == noted_before:
                roles[name] = _role(name, members)
    if faults:
        raise ConfigurationError(faults)
    return MappingProxyType(roles)


def _role(name: str, members: Mapping[str, Any]) -> Role:
    return Role(
        name,
        frozenset(members["permissions"]),
        tuple(members.get("models", ())),
        members.get("may_set_priority", False),
        members.get("may_skip_cache", False),
    )


def _role_faults(here: str, name: str, members: object) -> Iterator[str]:
    if not re.fullmatch(NAME_PATTERN, name):
        yield f"{here}: the name must be 1 to 64 of A-Z a-z 0-9 . _ @ + -"
    if not isinstance(members, JsonObject):
        yield f"{here}: must be an object, not {quoted(members)}"
        return
    yield from duplicate_faults(members, here)
    if "permissions" not in members:
        yield f"{here}.permissions: is missing"
    for key, value in members.items():
        path = step(here, key)
        if key == "permissions":
            yield from _list_faults(path, value, "|".join(PERMISSIONS), f"one of {', '.join(PERMISSIONS)}")
        elif key == "models":
            yield from _list_faults(path, value, MODEL_PATTERN, "a model's name or a pattern such as 13b*")
            if value == []:
                yield f"{path}: must name at least one pattern; leave the key out to allow every model"
        elif key not in PRIVILEGES:
            yield f"{path}: is not a known key; known here: permissions, models, {', '.join(PRIVILEGES)}"
        elif not isinstance(value, bool):
            yield f"{path}: must be true or false, not {quoted(value)}"


def _list_faults(path: str, value: object, pattern: str, kind: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{path}: must be a list, not {quoted(value)}"
        return
    for index, member in enumerate(value):
        if not isinstance(member, str) or not re.fullmatch(pattern, member):
            yield f"{path}[{index}]: must be {kind}, not {quoted(member)}"
        elif member in value[:index]:
            yield f"{path}[{index}]: {quoted(member)} is named twice"
