"""Literals that a prompt and the candidates' programs contain: what their authors thought worth a case of its own.

Runs inside the sandbox. Numbers that programs compare with are given with their neighbours: a boundary that is off
by one shows there and nowhere else.
"""

from __future__ import annotations

import ast
import itertools
import re
from typing import Union

from gateway.verify.harness.literals import NoValue, take, value_of_node  # in the sandbox this file stands before
from gateway.verify.harness.signatures import parsed

INT_MAX = 10**6
TEXT_CHARS_MAX_MINED = 60
POOL_MAX = 60
MATCHES_MAX = 300
_QUOTED = re.compile(r"\"([^\"\n]{1,40})\"|'([^'\n]{1,40})'|`([^`\n]{1,40})`")
_NUMBERS = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\w)")
_CONTAINER = re.compile(r"[\[({]")


class Pool:
    """Distinct values in the order they were met: `ints`, `floats`, `texts`, and whole `containers`; `bounds` are the
    ints that programs compare with or divide by, `coded` the texts that stand in programs. Not thread-safe.
    """

    def __init__(self) -> None:
        self.ints: list[int] = []
        self.floats: list[float] = []
        self.texts: list[str] = []
        self.containers: list[object] = []
        self.bounds: list[int] = []
        self.coded: list[str] = []

    def add(self, value: object) -> None:
        if isinstance(value, bool) or value is None:
            return
        if isinstance(value, int) and abs(value) <= INT_MAX:
            _append(self.ints, value)
        elif isinstance(value, float) and abs(value) <= INT_MAX:
            _append(self.floats, value)
        elif isinstance(value, str) and len(value) <= TEXT_CHARS_MAX_MINED:
            _append(self.texts, value)
        elif isinstance(value, (list, dict, tuple, set)) and value and len(repr(value)) <= 400:
            _append(self.containers, value)


def mined(prompt: str, sources: list[str]) -> Pool:
    """Returns what `prompt` and the programs `sources` contain."""
    pool = Pool()
    for source in sources:
        tree = parsed(source)
        if tree is None:
            _from_text(source, pool)
        else:
            _from_tree(tree, pool)
    _from_text(prompt, pool)
    return pool


def _append(values: list, value: Union[int, float, str, object]) -> None:  # type: ignore[type-arg]
    if len(values) < POOL_MAX and value not in values:
        values.append(value)


def _from_tree(tree: ast.Module, pool: Pool) -> None:
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in prose:
            pool.add(node.value)
            if isinstance(node.value, str) and len(node.value) <= TEXT_CHARS_MAX_MINED:
                _append(pool.coded, node.value)
        elif isinstance(node, (ast.List, ast.Tuple, ast.Set, ast.Dict)):
            try:
                pool.add(value_of_node(node))
            except (NoValue, RecursionError):
                pass
        beside: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            beside = [node.left, *node.comparators]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mod, ast.FloorDiv)):
            beside = [node.right]
        for part in beside:
            if isinstance(part, ast.Constant) and type(part.value) is int and abs(part.value) <= INT_MAX:
                _append(pool.bounds, part.value)


def _from_text(text: str, pool: Pool) -> None:
    for match in _QUOTED.finditer(text):
        pool.add(next(group for group in match.groups() if group))
    for match in _NUMBERS.finditer(text):
        taken = take(match.group())
        if taken is not None:
            pool.add(taken.value)
    for match in itertools.islice(_CONTAINER.finditer(text), MATCHES_MAX):
        taken = take(text, match.start())
        if taken is not None and isinstance(taken.value, (list, dict)):
            pool.add(taken.value)
