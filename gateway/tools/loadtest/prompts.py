"""What is asked: a text, texts of a given length, or a file of them. Reads one file; no other I/O, no state.

A made-up text is common short English words, nearly all of one token each in the usual vocabularies: its length in
tokens is an estimate, what a server counts is in its `usage`.
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from gateway.tools.prompts import each_line, object_in

PATH_BY_KIND = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "embeddings": "/v1/embeddings"}
MEMBER_BY_KIND = {"chat": "messages", "completions": "prompt", "embeddings": "input"}
DEFAULT = "Explain in a few sentences why the sky is blue at noon and red in the evening."
POOL = 64  # made-up texts of different lengths, where not each is to be its own
_WORDS = re.findall(
    r"\w+",
    """
the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not
what all were we when your can said there use an each which she do how their if will up other about out many then them
these so some her would make like him into time has look two more write go see number no way could people my than
first water been call who oil its now find long down day did get come made may part over new sound take only little
work know place year live me back give most very after thing our just name good sentence man think say great where
help through much before line right too mean old any same tell boy follow came want show also around form three small
set put end does another well large must big even such because turn here why ask went men read need land different
home us move try kind hand picture again change off play spell air away animal house point page letter mother answer
found study still learn
""",
)


class Span(NamedTuple):
    """A number of tokens, or any from one to another, evenly."""

    least: int
    most: int

    def drawn(self, chance: Random) -> int:
        """One of them."""
        return self.least if self.least == self.most else chance.randint(self.least, self.most)


def words(count: int, chance: Random) -> str:
    """A text of about `count` tokens, without an end."""
    return " ".join(chance.choices(_WORDS, k=count))


def body_of(kind: str, prompt: str, prefix: str = "") -> dict[str, Any]:
    """The members of a request that hold its text; `prefix` goes before it, of a chat as what the system says."""
    if kind == "chat":
        system = [{"role": "system", "content": prefix}] if prefix else []
        return {"messages": [*system, {"role": "user", "content": prompt}]}
    return {MEMBER_BY_KIND[kind]: f"{prefix} {prompt}" if prefix else prompt}


def made_unique(body: dict[str, Any], mark: str) -> dict[str, Any]:
    """The same request with `mark` before all its text, so that no cache, of answers or of prefixes, knows it."""
    if isinstance(body.get("messages"), list) and body["messages"]:
        first, *others = body["messages"]
        content = first.get("content") if type(first) is dict else None
        if type(content) is str:
            return {**body, "messages": [{**first, "content": f"{mark} {content}"}, *others]}
        return {**body, "messages": [{"role": "system", "content": mark}, *body["messages"]]}
    for member in ("prompt", "input"):
        if type(body.get(member)) is str:
            return {**body, member: f"{mark} {body[member]}"}
        if isinstance(body.get(member), list):
            return {**body, member: [f"{mark} {one}" if type(one) is str else one for one in body[member]]}
    return body


def bodies_in(path: Path, kind: str, prefix: str = "") -> list[dict[str, Any]]:
    """The requests in a file: of JSON lines (a text, or an object with `prompt`, `messages` or `input`, and whatever
    else the request is to have), or with one text a line. Raises UsageError with every bad line."""
    as_json = True if path.suffix in (".jsonl", ".ndjson") else None  # None: as the first line looks

    def read(place: str, line: str) -> dict[str, Any]:
        nonlocal as_json
        if as_json is None:
            as_json = line.startswith(("{", '"'))
        return _body_in(line, kind, prefix) if as_json else body_of(kind, line, prefix)

    return each_line(path, read)


def _body_in(line: str, kind: str, prefix: str) -> dict[str, Any]:
    found = object_in(line)
    member = MEMBER_BY_KIND[kind]
    if member in found:
        return found
    text = found.pop("prompt", found.pop("input", None))
    if type(text) is not str or not text.strip():
        raise ValueError(f"needs {member!r}, or a 'prompt' that is a text")
    return {**found, **body_of(kind, text, prefix)}
