"""Which function is asked for, and what its parameters are: from the prompt, else from what candidates define.

Runs inside the sandbox. Texts are parsed where they are Python, and searched where they are not.
"""

from __future__ import annotations

import ast
import itertools
import re
from typing import NamedTuple, Optional

from gateway.verify.harness.literals import closing  # in the sandbox this file stands before

_DEF = re.compile(r"(?<![\w.])(?:def|function)\s+(\w+)\s*\(")
_ARROW = re.compile(r"(?:const|let|var)\s+(\w+)\s*=\s*(?:async\s*)?(?:function\s*\w*\s*)?\(")
_NAMED = re.compile(
    r"(?:function|method|procedure)\s+(?:called\s+|named\s+)?[`'\"]?([A-Za-z_]\w*)[`'\"]?\s*(?=[(`'\" ,.:]|$)", re.I
)
_QUOTED_CALL = re.compile(r"(?:`|\b)([A-Za-z_]\w*)\(([\w\s,:\[\]=*.]*)\)")
_NO_NAMES = frozenset(
    {"that", "which", "to", "for", "called", "named", "in", "with", "and", "or", "is", "the", "a", "an", "of", "takes"}
    | {"returns", "return", "should", "int", "str", "list", "it", "as", "using", "whose", "from", "must", "when"}
)


class Signature(NamedTuple):
    """A function: its name, the names of its parameters, and what is said of their types ("" when nothing is)."""

    name: str
    params: tuple[str, ...]
    types: tuple[str, ...]
    required: int = 0


def defined_in(source: str) -> dict[str, Signature]:
    """Returns the functions that a program defines at its top level, and the methods of its class `Solution`, in order;
    of a text that is not Python, those that look like definitions (JavaScript's among them).
    """
    tree = parsed(source)
    if tree is None:
        return _defined_in_text(source)
    found = {}
    body: list[ast.stmt] = []
    for node in tree.body:
        body += node.body if isinstance(node, ast.ClassDef) and node.name == "Solution" else [node]
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found[node.name] = _signature(node.name, node.args)
        elif (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Lambda)
            and isinstance(node.targets[0], ast.Name)
        ):
            found[node.targets[0].id] = _signature(node.targets[0].id, node.value.args)
    return found


def parsed(source: str) -> Optional[ast.Module]:
    """Returns the syntax tree, of a text that is Python; also of one that ends with a function's head and docstring."""
    for attempt in (source, source.rstrip() + "\n    pass\n"):
        try:
            return ast.parse(attempt)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None


def asked_for(prompt: str, given: Optional[str], candidates: list[str]) -> Optional[Signature]:
    """Returns the function the prompt asks for, by the name `given`, by the prompt's own words, or by what most
    candidates define; None when there is none. Where candidates exist, most of them decide on its parameters.
    """
    by_candidate = [defined_in(source) for source in candidates]
    in_prompt = _defined_in_text(prompt)
    name = given or _named_in(prompt, in_prompt, by_candidate) or _most_defined(by_candidate)
    if name is None:
        return None
    tree = parsed(prompt)
    whole = defined_in(prompt).get(name) if tree is not None else None
    known = whole or in_prompt.get(name)
    if known is not None:
        return known
    votes = [functions[name] for functions in by_candidate if name in functions]
    if not votes:
        return _called_as(prompt, name)
    arity = max((len(vote.params) for vote in votes), key=lambda size: sum(len(vote.params) == size for vote in votes))
    return next(vote for vote in votes if len(vote.params) == arity)


def _signature(name: str, args: ast.arguments) -> Signature:
    every = [*args.posonlyargs, *args.args]
    if every and every[0].arg == "self":
        every = every[1:]
    types = tuple(_written(arg.annotation) for arg in every)
    return Signature(name, tuple(arg.arg for arg in every), types, max(0, len(every) - len(args.defaults)))


def _some(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    return list(itertools.islice(pattern.finditer(text), 200))


def _written(annotation: Optional[ast.expr]) -> str:
    try:
        return "" if annotation is None else ast.unparse(annotation)
    except RecursionError:
        return ""


def _defined_in_text(text: str) -> dict[str, Signature]:
    found = {}
    for match in sorted([*_some(_DEF, text), *_some(_ARROW, text)], key=lambda match: match.start()):
        end = closing(text, match.end() - 1)
        if end is None:
            continue
        inside = text[match.end() : end - 1]
        try:
            head = ast.parse(f"def f({inside}): pass").body[0]
        except (SyntaxError, ValueError):
            head = None
        if isinstance(head, ast.FunctionDef):
            found[match.group(1)] = _signature(match.group(1), head.args)
        else:
            params = tuple(word for word in re.findall(r"(?:^|,)\s*(\w+)", inside) if word != "self")
            found[match.group(1)] = Signature(match.group(1), params, ("",) * len(params), len(params))
    return found


def _named_in(prompt: str, in_prompt: dict[str, Signature], by_candidate: list[dict[str, Signature]]) -> Optional[str]:
    """The last definition in the prompt whose body is missing, else a name its words give that a candidate defines."""
    tree = parsed(prompt)
    if tree is not None:
        heads = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        for node in reversed(heads):
            if all(isinstance(part, (ast.Expr, ast.Pass)) for part in node.body):
                return node.name
        if heads:
            return heads[-1].name
    names = [*reversed(list(in_prompt))]
    names += [match.group(1) for match in (*_some(_NAMED, prompt), *_some(_QUOTED_CALL, prompt))]
    names = [name for name in names if name.lower() not in _NO_NAMES]
    defined = {name for functions in by_candidate for name in functions}
    for name in names:
        if name in defined:
            return name
    return names[0] if names and not defined else None


def _most_defined(by_candidate: list[dict[str, Signature]]) -> Optional[str]:
    """Names count once per candidate; among equals the one a program defines last, which is seldom a helper."""
    votes: dict[tuple[str, int], int] = {}
    last: dict[tuple[str, int], int] = {}
    for functions in by_candidate:
        for place, function in enumerate(functions.values()):
            if function.name == "main" or function.name.startswith(("_", "test")):
                continue
            kind = (function.name, len(function.params))
            votes[kind] = votes.get(kind, 0) + 1
            last[kind] = max(last.get(kind, 0), place)
    if not votes:
        return None
    return max(votes, key=lambda kind: (votes[kind], last[kind], kind))[0]


def _called_as(prompt: str, name: str) -> Optional[Signature]:
    for match in _QUOTED_CALL.finditer(prompt):
        params = tuple(word for word in re.findall(r"(?:^|,)\s*([A-Za-z_]\w*)", match.group(2)) if word != "self")
        if match.group(1) == name and params:
            return Signature(name, params, ("",) * len(params), len(params))
    return Signature(name, (), (), 0)
