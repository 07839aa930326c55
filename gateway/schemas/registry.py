"""Schemas by name: the files of a folder, each a schema, `<name>.json`.

Owns the folder's files and a snapshot of what they hold, which is replaced whole: reading it needs no lock. The lock
puts changes one behind the other, and so is held while a file is written: else two changes of one name could end with
one in the file and the other in the snapshot. Only administrators wait for it, never a request that uses a schema.
A file is written beside its place, synced and moved there: whoever reads finds the old one or the new one. What another
process changes is never looked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gateway import jsonbounds
from gateway.jsontext import read_strictly
from gateway.schemas.document import DEPTH_MAX, VALUES_MAX
from gateway.schemas.faults import SchemaRefused
from gateway.schemas.schema import Schema, compile_schema

SCHEMA_BYTES_MAX = 1 << 20
"""Of one schema's file."""
SCHEMAS_MAX = 1000

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SUFFIX = ".json"


class RegistryError(Exception):
    """The folder, or a file in it, cannot be used. `faults` name each file and the reason."""

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class NameRefused(RegistryError):
    """That is no name for a schema, or there is no place for another one."""


class SchemaUnknown(RegistryError):
    """There is no schema of that name."""


class SchemaRegistry:
    """The schemas in a folder. Thread-safe. Reads all of them at once: raises RegistryError naming every fault."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._schemas: Mapping[str, Schema] = MappingProxyType(_load(folder))

    def schemas(self) -> Mapping[str, Schema]:
        """Every schema by its name: an immutable snapshot. Takes no lock."""
        return self._schemas

    def find(self, name: str) -> Schema:
        """The schema of that name. Takes no lock. Raises SchemaUnknown."""
        found = self._schemas.get(name)
        if found is None:
            raise _unknown(name)
        return found

    def reload(self) -> None:
        """Read the folder again: another process has changed it. Raises RegistryError, with nothing changed."""
        with self._lock:
            self._schemas = MappingProxyType(_load(self._folder))

    def put(self, name: str, document: Any) -> bool:
        """Keep a schema under a name, in the place of one that has it; True when it is a new one.

        Returns when it is on the disk. Raises NameRefused, SchemaRefused, RegistryError when it cannot be written.
        """
        if _NAME.fullmatch(name) is None:
            raise NameRefused(f"a schema's name has 1 to 64 of the characters A-Z a-z 0-9 _ -, not {name[:80]!r}")
        schema = compile_schema(document)
        data = json.dumps(document, indent=2).encode() + b"\n"
        if len(data) > SCHEMA_BYTES_MAX:
            raise SchemaRefused("$", f"the schema has more than {SCHEMA_BYTES_MAX} bytes")
        with self._lock:
            is_new = name not in self._schemas
            if is_new and len(self._schemas) >= SCHEMAS_MAX:
                raise NameRefused(f"there are {SCHEMAS_MAX} schemas already")
            with _naming(self._folder / f"{name}{_SUFFIX}", "written") as path:
                _replace(path, data)
            self._schemas = MappingProxyType({**self._schemas, name: schema})
        return is_new

    def delete(self, name: str) -> None:
        """Forget a schema. Returns when it is gone from the disk. Raises SchemaUnknown, RegistryError."""
        with self._lock:
            if name not in self._schemas:
                raise _unknown(name)
            with _naming(self._folder / f"{name}{_SUFFIX}", "deleted") as path:
                path.unlink(missing_ok=True)
                _sync(self._folder)
            self._schemas = MappingProxyType({other: one for other, one in self._schemas.items() if other != name})


def _unknown(name: str) -> SchemaUnknown:
    return SchemaUnknown(f"there is no schema named {name[:80]!r}")


def _load(folder: Path) -> dict[str, Schema]:
    with _naming(folder, "read"):
        paths = sorted(path for path in folder.iterdir() if path.suffix == _SUFFIX and not path.name.startswith("."))
    schemas: dict[str, Schema] = {}
    faults: list[str] = []
    if len(paths) > SCHEMAS_MAX:
        faults.append(f"{folder}: holds more than {SCHEMAS_MAX} schemas")
    for path in paths[:SCHEMAS_MAX]:
        try:
            schemas[path.stem] = _read(path)
        except RegistryError as error:
            faults.extend(error.faults)
    if faults:
        raise RegistryError(*faults)
    return schemas


def _read(path: Path) -> Schema:
    if _NAME.fullmatch(path.stem) is None:
        raise RegistryError(f"{path}: a schema's name has 1 to 64 of the characters A-Z a-z 0-9 _ -")
    with _naming(path, "read"):
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise RegistryError(f"{path}: is not a file")
        with path.open("rb") as file:
            data = file.read(SCHEMA_BYTES_MAX + 1)
    if len(data) > SCHEMA_BYTES_MAX:
        raise RegistryError(f"{path}: has more than {SCHEMA_BYTES_MAX} bytes")
    try:
        passed = jsonbounds.passed(data, VALUES_MAX, DEPTH_MAX)
        if passed is not None:
            raise ValueError(f"it holds too many values or nests them too deep ({passed})")
        return compile_schema(read_strictly(data.decode("utf-8")))
    except SchemaRefused as error:
        raise RegistryError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{path}: is not JSON: {error}") from None


def _replace(path: Path, data: bytes) -> None:
    """Have a file hold `data`, or stay as it is. Raises OSError."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Have the disk know the folder's names. Raises OSError."""
    if os.name == "nt":  # which opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _naming(path: Path, done: str) -> Iterator[Path]:
    """Make an OSError within a RegistryError that names the path."""
    try:
        yield path
    except OSError as error:
        raise RegistryError(f"{path}: cannot be {done}: {error.strerror or error}") from error
