"""An answer without code: its final answer in a form that others can be compared to, and which answers are the same.

Sure beats often: what is not plainly a number, a choice, a yes or no, a date, JSON or what the answer itself calls its
answer has no final form, and is compared by its words (`wording.form`), where only what is known to be harmless may
differ. Pure functions in bounded time; no lock, as nothing is kept. Knows nothing of questions, models or votes.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, Optional

from gateway import jsonbounds
from gateway.jsontext import utf8
from gateway.reuse import wording
from gateway.verify.blocks import code_blocks, without_thinking
from gateway.verify.quantities import PIECE_CHARS, Quantity, is_unit, plain, quantities_in, quantity_of

JSON_CHARS_MAX = 256 * 1024
JSON_VALUES_MAX = 10_000
JSON_DEPTH_MAX = 50
TAIL_CHARS = 4000
"""A final answer is looked for in so much of a text's end."""


class Final(NamedTuple):
    """What an answer comes down to. Two that are equal are the same answer."""

    kind: str
    """"number", "choice", "boolean", "date", "json", "expression" (of LaTeX), "text"."""
    value: str
    """Normalised; of a number an exact fraction."""
    unit: str = ""
    """Of a number: what it is of; "" where the answer does not say."""


_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_MONTH = "|".join([*_MONTHS, *(f"{month[:3]}\\.?" for month in _MONTHS), "sept\\.?"])
_DATES = (
    re.compile(r"(?P<y>\d{4})-(?P<m>\d{2})-(?P<d>\d{2})"),
    re.compile(rf"(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<m>{_MONTH}),? (?P<y>\d{{4}})", re.IGNORECASE),
    re.compile(rf"(?P<m>{_MONTH}) (?P<d>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<y>\d{{4}})", re.IGNORECASE),
)
_CHOICES = (
    re.compile(r"(?:(?:option|choice|answer)\s+)?[(\[]?([A-H])[)\]]?[.:]?"),
    re.compile(r"(?:option|choice)\s+[(\[]?([A-Ha-h])[)\]]?(?:[.:,)]?\s.*)?", re.IGNORECASE),
    re.compile(r"[(\[]([A-Ha-h])[)\]](?:[.:,]?\s.*)?"),
    re.compile(r"([A-H])(?:\)|:)\s.*"),
    re.compile(r"([a-h])\)(?:\s.*)?"),
)
_CHOICES_STATED = (re.compile(r"([A-H])(?:\.| -)\s.*"), re.compile(r"([a-h])[.)]?"))
_SEVERAL = re.compile(r"\(?[A-H]\)?(?:\s*(?:,|and|&|,\s*and)\s*\(?[A-H]\)?){1,7}")
_OTHER_CHOICE = re.compile(r"^[ \t*]*(?:\(?[A-H][.):]|[A-H]\))\s", re.MULTILINE)
_YES_NO = re.compile(r"(yes|no|true|false)(?=$|[,.;:!]|\s[-–—])(?!\.\s?\d)(?![,;]? (?:but|and no)\b)", re.IGNORECASE)
_STATED = re.compile(
    r"(?:^|\b(?:the|my|our|final|correct|right|best))[ \t*_#]*(?:final|correct|right|best)?[ \t]?\banswers?\b"
    r"(?:[ \t](?:to|of|for)\b[^.:\n]{1,80}?)?[ \t*_]{0,6}"
    r"(?:(?:is|are|would be|should be|must be)\b|[:=])[ \t]*:?(?=(?P<rest>[^\n]*))",
    re.IGNORECASE | re.MULTILINE,
)
_HASHED = re.compile(r"^####[ \t]*(\S[^\n]*)$", re.MULTILINE)
_SUMMED = re.compile(r"[=≈]([^=≈]{1,80})$")
_SEVERAL_VALUES = re.compile(r"\bor\b|±|\\pm\b", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"[.!?…)\n][\s*_]{0,9}(?:(?:oh|no|but|hmm),? )?"
    r"(?:wait|actually|correction|scratch that|on second thought|my mistake)\b",
    re.IGNORECASE,
)
_CONCLUDED = re.compile(r"(?:so|therefore|thus|hence|in total|in conclusion|total|altogether)\b[,:]?\s", re.IGNORECASE)
_DOUBTED = re.compile(
    r"\b(?:not|no|never|neither|nor|or|if|least|most|more|less|fewer|between|about|option|step|first|each|\w+n't)\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<=[\w,;:]\s)[A-Z][a-z]")
_SENTENCE_END = re.compile(r"[.!?]\s+(?=[A-Z(])")
_EXPLAINED = re.compile(r",?\s(?:because|since|as|so|which|where|due to)\s|\s\((?=[a-z])|;\s|\s[—–]\s|\. ")
_ONLY_ITEM = re.compile(r"\A[-*+•] +(?=\S[^\n]*\Z)")
# One sentence that says of one thing how much it is, and nothing else.
_SAID = re.compile(
    r"(?:the|its?|their|there|that|this)\b(?P<of>[a-z' -]{0,100}?) (?:is|are|was|were|equals) (?P<rest>[^\n]+)", re.I
)
_BOLD = re.compile(r"(?<![\w*])\*\*(?=\S)([^*\n]{1,300})(?<=\S)\*\*(?![\w*])")


def final_of(text: str) -> Optional[Final]:
    """The final answer that a text gives, or None where it has none that can be told beyond doubt.

    JSON first (all of the text, or its one block), then what stands in a box, behind "####", or is called the answer;
    then all of a text that is short, or how much it says that something is; a yes or no that it begins with; at last
    the number that its last sentence draws as a conclusion, where that is the only one in it and nobody is named.
    """
    text = _bare(text)
    if not text:
        return None
    found = _json(text)
    if found is not None:
        return found
    tail = text[-TAIL_CHARS:]
    for rule in (_boxed, _hashed, _stated):
        found = rule(tail)
        if found is not None:
            return found
    taken_back = _TAKEN_BACK.search(text[:TAIL_CHARS])
    if len(text) <= PIECE_CHARS and "\n" not in text and not taken_back:
        found = _classified(text, stated=False) or _said(text)
        if found is not None:
            return found
    return (None if taken_back else _opening(text)) or _concluded(tail)


def same(a: str, b: str) -> bool:
    """Whether two texts give the same answer, in whatever company: their keys are equal, so it is transitive.

    Of empty texts, never. What is `same` is always in one group of `groups_of`.
    """
    key = _key(a)
    return key is not None and key == _key(b)


def groups_of(texts: list[Optional[str]]) -> list[list[int]]:
    """The indexes of the texts, those that give the same answer together; the largest group first, of equal ones the
    one that begins first.

    None, and a text without anything in it (but thinking), is in no group. A number without a unit joins the same
    number with one, where all that give that number and a unit give the same unit: that depends on all the texts, not
    on their order.
    """
    keys = [None if text is None else _key(text) for text in texts]
    units: dict[str, set[str]] = {}
    for key in keys:
        if key is not None and key.kind == "number" and key.unit:
            units.setdefault(key.value, set()).add(key.unit)
    groups: dict[Final, list[int]] = {}
    for index, key in enumerate(keys):
        if key is None:
            continue
        if key.kind == "number" and not key.unit and len(units.get(key.value, ())) == 1:
            key = key._replace(unit=next(iter(units[key.value])))
        groups.setdefault(key, []).append(index)
    return sorted(groups.values(), key=lambda group: (-len(group), group[0]))


def _key(text: str) -> Optional[Final]:
    """The final answer; else the words; else, where nothing may be left out, all of the text."""
    found = final_of(text)
    if found is not None:
        return found
    bare = _bare(text)
    return (_worded(bare) or Final("whole", bare)) if bare else None


def _bare(text: str) -> str:
    """The answer without what was thought, and without the mark of a list of one item: "- 5" is no negative number."""
    return _ONLY_ITEM.sub("", without_thinking(text).strip())


def _worded(text: str) -> Optional[Final]:
    form = wording.form(_BOLD.sub(r"\1", text)) if len(text) <= wording.LONGEST_CHARS else None
    return None if form is None else Final("text", form)


def _json(text: str) -> Optional[Final]:
    """Objects and lists only: one value alone is read as any other answer."""
    if len(text) > JSON_CHARS_MAX:
        return None
    if text[0] not in "[{":
        blocks = code_blocks(text) if "```" in text or "~~~" in text else []
        if len(blocks) != 1 or blocks[0].language not in ("json", ""):
            return None
        text = blocks[0].code.strip()
    if text[:1] not in ("[", "{"):
        return None
    if jsonbounds.passed(utf8(text), JSON_VALUES_MAX, JSON_DEPTH_MAX):
        return None
    try:
        value = json.loads(
            text, parse_float=_Number, parse_int=_Number, parse_constant=_refused, object_pairs_hook=_object
        )
    except (ValueError, RecursionError):
        return None
    return Final("json", _canonical(value))


class _Number(str):
    """A number of JSON as it is written."""


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is nothing of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("a name is there twice")
    return named


def _canonical(value: Any) -> str:
    """The value with sorted names, and numbers by what they are worth."""
    if isinstance(value, _Number):
        quantity = quantity_of(value) if len(value) <= 60 else None
        return str(value) if quantity is None else str(quantity.value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{_canonical(value[name])}" for name in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_canonical, value)) + "]"
    return json.dumps(value)


def _boxed(tail: str) -> Optional[Final]:
    """What stands in the last box."""
    start = max(tail.rfind(r"\boxed{"), tail.rfind(r"\fbox{"))
    if start < 0:
        return None
    start = end = tail.index("{", start) + 1
    depth = 1
    while depth and end < len(tail):
        depth += {"{": 1, "}": -1}.get(tail[end], 0)
        end += 1
    if depth:
        return None
    inner = tail[start : end - 1]
    found = _classified(inner, stated=True)
    if found is not None or len(inner) > PIECE_CHARS:
        return found
    words = plain(inner)
    if re.fullmatch(r"[A-Za-z][A-Za-z' .-]*", words):
        return _worded(words)
    return Final("expression", re.sub(r"\s|\\left|\\right", "", words)) if words else None


def _hashed(tail: str) -> Optional[Final]:
    found = _HASHED.findall(tail)
    return _classified(found[-1], stated=False) if found else None


def _stated(tail: str) -> Optional[Final]:
    """What the text itself calls its answer: behind the last "the answer is", or in the line below."""
    found = list(_STATED.finditer(tail))
    if not found:
        return None
    if _TAKEN_BACK.search(tail, found[-1].end()):
        return None
    piece = found[-1]["rest"].strip()
    if not piece.strip("*_ "):
        piece = next((line for line in tail[found[-1].end("rest") :].split("\n") if line.strip()), "")
    final = _classified(piece, stated=True)
    if final is not None or len(piece) > PIECE_CHARS:
        return final
    words = _SENTENCE_END.split(plain(piece))[0].rstrip(".!")
    return _worded(words) if words and not _DOUBTED.search(words) else None


def _classified(piece: str, *, stated: bool) -> Optional[Final]:
    """The value that a piece is, be it with an explanation behind it. `stated`: it is called the answer, so that a
    letter is a choice and no name."""
    if len(piece) > 2 * PIECE_CHARS:
        piece = piece[: 2 * PIECE_CHARS]
    whole = plain(piece).strip("*_ ")
    short = _EXPLAINED.split(whole, maxsplit=1)[0] if stated else whole
    for words in dict.fromkeys((whole, short)):
        found = _choice(words, stated) or _boolean(words) or _date(words) or _number(quantity_of(words))
        if found is not None:
            return found
    return None


def _number(quantity: Optional[Quantity]) -> Optional[Final]:
    return None if quantity is None else Final("number", str(quantity.value), quantity.unit)


def _choice(words: str, stated: bool) -> Optional[Final]:
    if _SEVERAL.fullmatch(words.rstrip(".")):
        return Final("choice", ",".join(sorted(set(re.findall("[A-H]", words)))))
    for pattern in (*_CHOICES, *_CHOICES_STATED) if stated else _CHOICES:
        found = pattern.fullmatch(words)
        if found:
            return Final("choice", found[1].upper())
    return None


def _boolean(words: str) -> Optional[Final]:
    found = _YES_NO.match(words)
    return Final("boolean", "yes" if found[1].lower() in ("yes", "true") else "no") if found else None


def _date(words: str) -> Optional[Final]:
    for pattern in _DATES:
        found = pattern.fullmatch(words.rstrip("."))
        if found:
            month = found["m"].lower()
            number = int(month) if month.isdigit() else 1 + [name[:3] for name in _MONTHS].index(month[:3])
            if 1 <= number <= 12 and 1 <= int(found["d"]) <= 31:
                return Final("date", f"{found['y']}-{number:02}-{int(found['d']):02}")
    return None


def _said(text: str) -> Optional[Final]:
    """The number, with a unit that is known, that a text of one sentence says something is."""
    found = _SAID.fullmatch(plain(text))
    if found is None or _DOUBTED.search(found["of"]):
        return None
    quantity = quantity_of(found["rest"])
    return _number(quantity) if quantity is not None and is_unit(quantity.unit) else None


def _opening(text: str) -> Optional[Final]:
    """The yes, no or choice that a text begins with, and goes on to explain."""
    first = plain(text.split("\n", 1)[0])
    found = _boolean(first)
    if found is None and len(_OTHER_CHOICE.findall(text[:TAIL_CHARS])) <= 1:
        found = _choice(first, stated=False)
    return found


def _concluded(tail: str) -> Optional[Final]:
    """The number that the last sentence ends on behind "=", or draws as a conclusion."""
    last = plain(tail.rstrip().rsplit("\n", 1)[-1][-PIECE_CHARS:])
    sentence = _SENTENCE_END.split(last)[-1].rstrip(".! ")
    summed = _SUMMED.search(sentence)
    if summed and not _SEVERAL_VALUES.search(sentence):
        return _number(quantity_of(summed[1]))
    if not _CONCLUDED.match(sentence) or _DOUBTED.search(sentence) or _NAME.search(sentence):
        return None
    found = list(quantities_in(sentence))
    return _number(found[0]) if len(found) == 1 else None
