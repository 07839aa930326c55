"""Programs that are wrong as a programmer's are: one small change in the syntax tree of a right one.

Pure. An edit belongs to an operator (an off-by-one, a dropped branch, a swapped call …); operators take turns, so that
no kind of mistake prevails only because a program has many places for it.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from random import Random
from typing import Any, Callable, Optional

Edit = tuple[str, Callable[[Any], Optional[ast.AST]]]  # an operator, and a change in place or a replacement

_COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_ARITHMETIC: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add, ast.FloorDiv),
    ast.Div: (ast.FloorDiv, ast.Mult),
    ast.FloorDiv: (ast.Div, ast.Mod),
    ast.Mod: (ast.FloorDiv, ast.Mult),
    ast.Pow: (ast.Mult,),
    ast.BitXor: (ast.BitAnd,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
}
_FUNCTIONS = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "sum": "len",
    "sorted": "list",
    "set": "list",
    "abs": "int",
    "round": "int",
    "int": "round",
    "reversed": "list",
}
_METHODS = {
    "upper": "lower",
    "lower": "upper",
    "isupper": "islower",
    "islower": "isupper",
    "startswith": "endswith",
    "endswith": "startswith",
    "isalpha": "isalnum",
    "isdigit": "isalnum",
    "floor": "ceil",
    "ceil": "floor",
    "find": "rfind",
    "swapcase": "lower",
    "lstrip": "strip",
    "rstrip": "strip",
    "strip": "lstrip",
    "keys": "values",
}
_UNWRAPPED = ("abs", "int", "list", "str", "reversed")


def plain(source: str) -> str:
    """Returns `source` without docstrings and comments, as it is written back from its syntax tree."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and len(node.body) > 1 and _is_text(node.body[0]):
            del node.body[0]
    return ast.unparse(tree)


def mutants(source: str, entry_point: str, rng: Random, most: int) -> list[str]:
    """Returns up to `most` different programs, each `source` with one edit in the function `entry_point`."""
    tree = ast.parse(source)
    function = _function(tree, entry_point)
    by_operator: dict[str, list[tuple[int, Callable[[Any], Optional[ast.AST]]]]] = {}
    for index, node in enumerate(ast.walk(function)):
        for operator, change in _edits(node, _names(function)):
            by_operator.setdefault(operator, []).append((index, change))
    for places in by_operator.values():
        rng.shuffle(places)
    made: list[str] = []
    while by_operator and len(made) < most:
        for operator in rng.sample(sorted(by_operator), len(by_operator)):
            text = _edited(tree, entry_point, *by_operator[operator].pop())
            if not by_operator[operator]:
                del by_operator[operator]
            if text is not None and text != source and text not in made:
                made.append(text)
    return made[:most]


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name][-1]


def _names(function: ast.FunctionDef) -> list[str]:
    stored = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return sorted(stored | {arg.arg for arg in function.args.args})


def _edited(tree: ast.Module, name: str, index: int, change: Callable[[Any], Optional[ast.AST]]) -> Optional[str]:
    changed = copy.deepcopy(tree)
    function = _function(changed, name)
    node = list(ast.walk(function))[index]
    try:
        replacement = change(node)
        if isinstance(replacement, ast.AST):
            _Replacing(node, replacement).visit(function)
        ast.fix_missing_locations(changed)
        text = ast.unparse(changed)
        compile(text, "mutant", "exec")
    except (SyntaxError, ValueError, IndexError, AttributeError, TypeError):
        return None
    return text


class _Replacing(ast.NodeTransformer):
    def __init__(self, node: ast.AST, replacement: ast.AST) -> None:
        self._node, self._replacement = node, replacement

    def visit(self, node: ast.AST) -> ast.AST:
        return self._replacement if node is self._node else self.generic_visit(node)


def _edits(node: ast.AST, names: list[str]) -> Iterator[Edit]:
    for kinds, edits in _BY_NODE:
        if isinstance(node, kinds):
            yield from edits(node, names)
    for field in ("body", "orelse"):
        block = getattr(node, field, None)
        if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
            yield from _block_edits(field, block)


def _compare(node: Any, _names: list[str]) -> Iterator[Edit]:
    for index, sign in enumerate(node.ops):
        for other in _COMPARISONS.get(type(sign), ()):
            yield "comparison", lambda n, i=index, o=other: n.ops.__setitem__(i, o())


def _operation(node: Any, _names: list[str]) -> Iterator[Edit]:
    for other in _ARITHMETIC.get(type(node.op), ()):
        yield "arithmetic", lambda n, o=other: setattr(n, "op", o())
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Sub, ast.Div, ast.Mod, ast.FloorDiv, ast.Add)):
        yield "operands swapped", lambda n: ast.BinOp(n.right, n.op, n.left)


def _boolean(node: Any, _names: list[str]) -> Iterator[Edit]:
    other = ast.Or if isinstance(node.op, ast.And) else ast.And
    yield "and or", lambda n: setattr(n, "op", other())
    for index in range(len(node.values)):
        if len(node.values) == 2:
            yield "condition dropped", lambda n, i=index: n.values[1 - i]
        else:
            yield "condition dropped", lambda n, i=index: n.values.__delitem__(i)


def _unary(_node: Any, _names: list[str]) -> Iterator[Edit]:
    yield "sign dropped", lambda n: n.operand


def _constant(node: Any, _names: list[str]) -> Iterator[Edit]:
    value = node.value
    others: list[object] = []
    if isinstance(value, bool):
        others = [not value]
    elif isinstance(value, int):
        yield "off by one", lambda n: setattr(n, "value", value + 1)
        yield "off by one", lambda n: setattr(n, "value", value - 1)
        others = [0] if value not in (0, 1) else []
    elif isinstance(value, float):
        others = [value + 1]
    elif isinstance(value, str):
        others = [value[1:], value[:-1]] if len(value) > 1 else [""] if value else [" "]
    for other in others:
        yield "constant", lambda n, o=other: setattr(n, "value", o)


def _branch(node: Any, _names: list[str]) -> Iterator[Edit]:
    yield "negated", lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
    if isinstance(node, ast.If):
        yield "branch dropped", lambda n: setattr(n, "test", ast.Constant(False))
        yield "branch always", lambda n: setattr(n, "test", ast.Constant(True))
        if node.orelse:
            yield "else dropped", lambda n: setattr(n, "orelse", [])
    elif isinstance(node, ast.IfExp):
        yield "branch dropped", lambda n: n.orelse
        yield "branch always", lambda n: n.body


def _return(node: Any, names: list[str]) -> Iterator[Edit]:
    if node.value is None:
        return
    yield "wrong return", lambda n: setattr(n, "value", ast.Constant(None))
    if isinstance(node.value, ast.Tuple) and len(node.value.elts) == 2:
        yield "wrong return", lambda n: n.value.elts.reverse()
    for name in names:
        if not (isinstance(node.value, ast.Name) and node.value.id == name):
            yield "wrong return", lambda n, m=name: setattr(n, "value", ast.Name(m, ast.Load()))


def _call(node: Any, _names: list[str]) -> Iterator[Edit]:
    if len(node.args) == 2:
        yield "arguments swapped", lambda n: n.args.reverse()
    if node.keywords:
        yield "keyword dropped", lambda n: n.keywords.__delitem__(0)
    if isinstance(node.func, ast.Attribute):
        if node.func.attr in _METHODS:
            yield "other call", lambda n: setattr(n.func, "attr", _METHODS[n.func.attr])
        if not node.args:
            yield "call dropped", lambda n: n.func.value
    elif isinstance(node.func, ast.Name):
        name = node.func.id
        if name in _FUNCTIONS:
            yield "sort dropped" if name in ("sorted", "set") else "other call", _other_function
        if name == "range":
            yield from _range_edits(node)
        if name in _UNWRAPPED and len(node.args) == 1:
            yield "call dropped", lambda n: n.args[0]


def _other_function(node: Any) -> None:
    node.func.id = _FUNCTIONS[node.func.id]
    if node.func.id == "list":
        node.keywords.clear()


def _range_edits(node: Any) -> Iterator[Edit]:
    stop = 0 if len(node.args) == 1 else 1
    for sign in (ast.Add, ast.Sub):
        yield "range", lambda n, s=sign: n.args.__setitem__(stop, ast.BinOp(n.args[stop], s(), ast.Constant(1)))
    if stop:
        yield "range", lambda n: n.args.__setitem__(0, ast.BinOp(n.args[0], ast.Add(), ast.Constant(1)))


def _subscript(node: Any, _names: list[str]) -> Iterator[Edit]:
    parts = []
    if isinstance(node.slice, ast.Slice):
        parts = [part for part in ("lower", "upper") if getattr(node.slice, part) is not None]
        if node.slice.step is not None:
            yield "step dropped", lambda n: setattr(n.slice, "step", None)
    for sign in (ast.Add, ast.Sub):
        for part in parts:
            yield "index", lambda n, p=part, s=sign: setattr(n.slice, p, _shifted(getattr(n.slice, p), s))
        if not isinstance(node.slice, ast.Slice) and isinstance(node.ctx, ast.Load):
            yield "index", lambda n, s=sign: setattr(n, "slice", _shifted(n.slice, s))


def _shifted(node: Any, sign: type) -> ast.AST:
    return ast.BinOp(node, sign(), ast.Constant(1))


def _without_first(node: Any) -> None:
    rest = ast.Slice(ast.Constant(1))
    node.iter = ast.Subscript(ast.Call(ast.Name("list", ast.Load()), [node.iter], []), rest, ast.Load())


def _for(_node: Any, _names: list[str]) -> Iterator[Edit]:
    yield "early exit", lambda n: n.body.append(ast.Break())
    yield "first skipped", _without_first


def _comprehension(node: Any, _names: list[str]) -> Iterator[Edit]:
    for index in range(len(node.ifs)):
        yield "filter dropped", lambda n, i=index: n.ifs.__delitem__(i)
    yield "first skipped", _without_first


def _jump(node: Any, _names: list[str]) -> Iterator[Edit]:
    yield "jump", lambda n: ast.Continue() if isinstance(n, ast.Break) else ast.Break()


def _name(node: Any, names: list[str]) -> Iterator[Edit]:
    if isinstance(node.ctx, ast.Load) and node.id in names and len(names) > 1:
        other = names[(names.index(node.id) + 1) % len(names)]
        yield "wrong name", lambda n: setattr(n, "id", other)


def _block_edits(field: str, block: list[Any]) -> Iterator[Edit]:
    for index, statement in enumerate(block):
        if isinstance(statement, (ast.Expr, ast.AugAssign, ast.Assign, ast.If)) and not _is_text(statement):
            yield "statement dropped", lambda n, i=index: getattr(n, field).__setitem__(i, ast.Pass())
        if isinstance(statement, ast.Return) and index and isinstance(block[index - 1], (ast.For, ast.While)):
            yield "early return", lambda n, i=index: getattr(n, field)[i - 1].body.append(getattr(n, field)[i])


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


_BY_NODE: tuple[tuple[Any, Callable[[Any, list[str]], Iterator[Edit]]], ...] = (
    (ast.Compare, _compare),
    ((ast.BinOp, ast.AugAssign), _operation),
    (ast.BoolOp, _boolean),
    (ast.UnaryOp, _unary),
    (ast.Constant, _constant),
    ((ast.If, ast.While, ast.IfExp), _branch),
    (ast.Return, _return),
    (ast.Call, _call),
    (ast.Subscript, _subscript),
    (ast.For, _for),
    (ast.comprehension, _comprehension),
    ((ast.Break, ast.Continue), _jump),
    (ast.Name, _name),
)
