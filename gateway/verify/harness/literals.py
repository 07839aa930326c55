"""Plain values in a text: reading them where they stand, and writing them as a Python literal.

Runs inside the sandbox. Nothing is evaluated: a value is built from the syntax tree of constants, containers and a
little arithmetic on them, with bounds on each. JavaScript's `true`, `null` and `{a: 1}` are understood too.
"""

from __future__ import annotations

import ast
import re
from typing import Callable, NamedTuple, Optional

LITERAL_CHARS_MAX = 4000
_ITEMS_MAX = 2000
_INT_BITS_MAX = 4096
_CONSTANTS = {"true": True, "false": False, "null": None, "none": None, "undefined": None, "True": True, "False": False}
_NUMBER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w(\[])")
_WORD = re.compile(r"(?:true|false|none|null|undefined)(?![\w(])", re.I)
_BARE_KEY = re.compile(r"([{,]\s*)([A-Za-z_$][\w$]*)(\s*:)")
_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Pow: "**", ast.Div: "/"}


class NoValue(Exception):
    """The text at hand is not a plain value."""


class Taken(NamedTuple):
    """A literal at the start of a text: its value and where it ends."""

    value: object
    end: int


def closing(text: str, start: int) -> Optional[int]:
    """Returns the index just behind the bracket that closes the one at `start`; None when there is none near."""
    depth, quote, index = 0, "", start
    stop = min(len(text), start + LITERAL_CHARS_MAX)
    while index < stop:
        char = text[index]
        if quote:
            if char == "\\":
                index += 1
            elif char == quote or char == "\n":  # no string goes over a line's end: an apostrophe was taken for a quote
                quote = ""
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth <= 0:
                return index + 1 if depth == 0 else None
        index += 1
    return None


def take(text: str, start: int = 0) -> Optional[Taken]:
    """Returns the literal that stands at `start` (blanks before it are skipped), or None when none does."""
    while start < len(text) and text[start] in " \t":
        start += 1
    if start >= len(text):
        return None
    if text[start] in "([{":
        end = closing(text, start)
    elif text[start] in "\"'":
        found = re.compile(r"(?s)\"\"\".*?\"\"\"|'''.*?'''|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'").match(
            text, start
        )
        end = found.end() if found else None
    else:
        found = _WORD.match(text, start) or _NUMBER.match(text, start)
        end = found.end() if found else None
        if found and found.group()[-1] == ".":
            end = found.end() - 1  # the full stop of a sentence
    if end is None or end - start > LITERAL_CHARS_MAX:
        return None
    try:
        return Taken(value_in(text[start:end]), end)
    except NoValue:
        return None


def value_in(text: str) -> object:
    """Returns the value that `text` as a whole writes. Raises NoValue."""
    text = text.strip()
    for attempt in (text, _BARE_KEY.sub(r'\1"\2"\3', text)):
        try:
            return value_of_node(ast.parse(attempt, mode="eval").body)
        except (NoValue, SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    raise NoValue


def value_of_node(node: ast.AST) -> object:
    """Returns the plain value that a syntax tree's node writes. Raises NoValue."""
    if isinstance(node, ast.Constant):
        if node.value is Ellipsis:
            raise NoValue
        return node.value
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return _container(node)
    if isinstance(node, ast.Dict):
        if any(key is None for key in node.keys):
            raise NoValue
        pairs = [(value_of_node(k), value_of_node(v)) for k, v in zip(node.keys, node.values) if k is not None]
        return _hashed(lambda: dict(pairs))
    if isinstance(node, ast.UnaryOp):
        return _unary(node)
    if isinstance(node, ast.BinOp):
        return _arithmetic(node)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _made_by_call(node.func.id, [value_of_node(arg) for arg in node.args])
    raise NoValue


def _container(node: ast.AST) -> object:
    values = [value_of_node(element) for element in node.elts]  # type: ignore[attr-defined]
    if isinstance(node, ast.List):
        return values
    if isinstance(node, ast.Tuple):
        return tuple(values)
    return _hashed(lambda: set(values))


def _hashed(make: Callable[[], object]) -> object:
    try:
        return make()
    except TypeError:
        raise NoValue from None


def _unary(node: ast.UnaryOp) -> object:
    value = value_of_node(node.operand)
    if isinstance(value, (int, float)) and isinstance(node.op, (ast.USub, ast.UAdd)):
        return -value if isinstance(node.op, ast.USub) else value
    raise NoValue


def _arithmetic(node: ast.BinOp) -> object:
    sign = _BINARY.get(type(node.op))
    left, right = value_of_node(node.left), value_of_node(node.right)
    if sign == "*" and isinstance(right, int) and isinstance(left, (str, list, tuple)):
        if len(left) * max(right, 0) > _ITEMS_MAX or any(isinstance(part, (list, tuple)) for part in left):
            raise NoValue  # (of lists of lists a short text could make a gigabyte)
        return left * right
    if sign == "+" and type(left) is type(right) and isinstance(left, (str, list, tuple)):
        return left + right  # type: ignore[operator]
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return _number(sign, left, right)
    raise NoValue


def _number(sign: Optional[str], left: float, right: float) -> object:
    try:
        if sign == "+":
            return left + right
        if sign == "-":
            return left - right
        if sign == "*" and (isinstance(left, float) or left.bit_length() < _INT_BITS_MAX):
            return left * right
        if sign == "/":
            return left / right
        if sign == "**" and abs(right) <= 64 and (isinstance(left, float) or left.bit_length() <= 64):
            return left**right
    except (ArithmeticError, ValueError):
        pass
    raise NoValue


def _made_by_call(name: str, values: list[object]) -> object:
    if name in ("set", "frozenset", "list", "tuple", "dict") and len(values) <= 1:
        maker = {"set": set, "frozenset": set, "list": list, "tuple": tuple, "dict": dict}[name]
        if not values:
            return maker()
        if isinstance(values[0], (list, tuple, set, dict, str)):
            return _hashed(lambda: maker(values[0]))
    if name == "float" and len(values) == 1 and isinstance(values[0], (str, int)):
        try:
            return float(values[0])
        except (ValueError, OverflowError):
            raise NoValue from None
    raise NoValue


def literal_text(value: object) -> str:
    """Returns `value` as a text from which `ast.literal_eval` makes it again. Raises NoValue (nan, other types)."""
    kind = type(value)
    if value is None or kind in (bool, str, bytes):
        return repr(value)
    if kind is int:
        if value.bit_length() > _INT_BITS_MAX:  # type: ignore[attr-defined]
            raise NoValue
        return str(value)
    if kind is float:
        if value != value:
            raise NoValue
        return repr(value).replace("inf", "1e999")
    if kind is list:
        return "[" + ", ".join(map(literal_text, value)) + "]"  # type: ignore[call-overload]
    if kind is tuple:
        return "(" + "".join(literal_text(part) + ", " for part in value) + ")"  # type: ignore[attr-defined]
    if kind is set:
        return "{" + ", ".join(sorted(map(literal_text, value))) + "}" if value else "set()"  # type: ignore[call-overload]
    if kind is dict:
        pairs = (f"{literal_text(k)}: {literal_text(v)}" for k, v in value.items())  # type: ignore[attr-defined]
        return "{" + ", ".join(pairs) + "}"
    raise NoValue
