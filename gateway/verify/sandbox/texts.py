"""The texts of what runs inside: files of one program joined, since a container gets a program as one text.

Each part imports names of the parts before it by `from gateway.… import …`, for who reads or tests it; joined, those
names are there already, and these lines go.
"""

from __future__ import annotations

import base64
import functools
import json
import marshal
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OWN_IMPORT = re.compile(r"^from (?:gateway\.[\w.]+|__future__) import (?:\([^)]*\))?[^\n]*\n", re.MULTILINE)
_NEEDED = re.compile(r"^from gateway\.verify\.harness\.(\w+) import ", re.MULTILINE)
_HARNESS = re.compile(r"^def harness_main\(", re.MULTILINE)
_HERE = Path(__file__).parent
_RUN_COMPILED = "import binascii, marshal, sys; exec(marshal.loads(binascii.a2b_base64(sys.argv.pop(1))))"
_PARTS = ("kernel.py", "worker.py", "watching.py", "inside.py")


def join(*parts: str) -> str:
    """One program of several files' texts, each of which may import only from those before it and the standard
    library."""
    return "from __future__ import annotations\n" + "\n".join(_OWN_IMPORT.sub("", part) for part in parts)


@functools.cache
def inside_text(*further: str) -> str:
    """What supervises and runs one job inside a jail; with the files `further` of this folder behind it."""
    return join(*[(_HERE / name).read_text(encoding="utf-8") for name in (*_PARTS, *further)])


@functools.cache
def _compiled() -> str:
    """The same, compiled by and for this very interpreter: a third of a start's time is not spent then."""
    code = compile(inside_text(), "inside", "exec", dont_inherit=True, optimize=2)
    return base64.b64encode(marshal.dumps(code)).decode()


def inside_command(python: str, work: str, **arguments: Any) -> list[str]:
    """The command that serves one job by its stdin and stdout, on the Python `python` (of 3.9 or later, inside).

    `work` is the job's directory: it exists, is empty and may be written to. `arguments`: see `serve_stdio`. Where
    `python` is `sys.executable`, it must be the same one inside.
    """
    said = ["serve", json.dumps({"work": work, **arguments})]
    flags = ["-I", "-S", "-B", "-c"]
    if python == sys.executable:
        return [python, *flags, _RUN_COMPILED, _compiled(), *said]
    return [python, *flags, inside_text(), *said]


def harness_sources(directory: Path) -> Mapping[str, str]:
    """The harnesses in `directory` by name: each file with a `harness_main`, behind the files that it needs."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(directory.glob("*.py"))}

    def in_order(name: str, found: list[str]) -> list[str]:
        if name not in found:
            for needed in _NEEDED.findall(texts[name]):
                in_order(needed, found)
            found.append(name)
        return found

    harnesses = [name for name, text in texts.items() if _HARNESS.search(text)]
    return {name: join(*[texts[part] for part in in_order(name, [])]) for name in harnesses}
