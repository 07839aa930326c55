"""When two prompts are the same question in other words: equal forms of their texts, and nothing but that.

Owns the normal form: which case, punctuation, politeness, article and contraction says nothing. Sure beats often:
whatever is not known to be harmless stays as it is, so a form may miss a near duplicate and must never join two
questions. Every rule names what it sets aside: closed lists (`wordlists.py`), and only where their words are used, not
mentioned. Has no lock, as it keeps nothing. Never looks at a conversation, a model or a setting, and calls nothing but
its own rules.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from gateway.reuse import wordlists as lists

LONGEST_CHARS = 4000


class _Pieces(NamedTuple):
    """A text in parts."""

    tokens: list[str]
    payload: str
    """What is kept to the letter, from the first sign of code, data or a list on."""
    quoted: bool


def form(text: str) -> Optional[str]:
    """What texts of the same question have in common; None where nothing may be shared by wording."""
    if len(text) > LONGEST_CHARS or lists.ODD.search(text):
        return None
    text = text.strip("\n") if "\n" in text.strip() else text.strip()
    spoken = frozenset(lists.WORD_ONLY.findall(text.lower()))
    signs = not spoken.isdisjoint(lists.SIGNS)
    pieces = _pieces(text, signs)
    strict = signs or pieces.quoted or bool(pieces.payload) or _is_about_words(spoken, pieces.tokens)
    if (strict or lists.GAP.search(text)) and ("  " in text or (text[:1] == " ")):
        return "=" + text
    tokens, ending = _end_apart(pieces)
    tokens = _lowered(tokens, strict, bool(pieces.payload), not spoken.isdisjoint(lists.CODING))
    tokens = _expanded(tokens, strict)
    tokens, polite = _without_politeness(tokens, strict, bool(pieces.payload))
    tokens = _without_articles(tokens)
    if not pieces.payload:
        tokens, ending = _without_thanks(tokens, ending, strict)
        ending = _ending(tokens, ending, polite, strict, signs)
        if all(token in lists.FUNCTION or not any(map(str.isalnum, token)) for token in tokens):
            return None
    return "\x1f".join([*_sum(tokens), ending, pieces.payload])


def _pieces(text: str, signs: bool) -> _Pieces:
    """Words, signs and quotes of the text's first line, up to the first piece that is not plainly prose."""
    first = text.partition("\n")[0]
    tokens: list[str] = []
    quoted = False
    for found in lists.PIECE.finditer(first):
        quote, chunk = found["quote"], found["chunk"]
        if quote:
            quoted = True
            tokens.append(quote if signs else _plainly_quoted(quote))
            tokens.extend(filter(None, [found["after"]]))
        elif lists.RISKY.search(chunk) or (lists.ENDING.fullmatch(chunk) and tokens and not _may_end(tokens)):
            return _Pieces(tokens, text[found.start() :], quoted)
        else:
            tokens.extend(_chunk(chunk))
    return _Pieces(tokens, text[len(first) :], quoted)


def _may_end(tokens: list[str]) -> bool:
    """Whether a lone sign behind the words ends a question, and is not what the question is about."""
    known = len(tokens) > 2 and tokens[0].lower() in lists.WH and tokens[1] in lists.BE | {"does"}
    return known and len(tokens[-1]) > 2 and tokens[-1].isalpha() and tokens[-1].lower() not in lists.FUNCTION


def _plainly_quoted(quote: str) -> str:
    """The quote in straight marks: which marks were typed says nothing, all between them does."""
    plain = {"“": '"', "‘": "'"}.get(quote[0])
    return quote if plain is None else plain + quote[1:-1] + plain


def _chunk(chunk: str) -> list[str]:
    """A word and the signs behind it; anything else in one piece."""
    word = lists.WORD.fullmatch(chunk)
    if word is None:
        return [chunk]
    return [word[1].replace("’", "'"), word[2]] if word[2] else [word[1].replace("’", "'")]


def _is_about_words(spoken: frozenset[str], tokens: list[str]) -> bool:
    """Whether the text may mention words, and not only use them."""
    if not spoken.isdisjoint(lists.MENTIONS):
        return True
    small = [token.lower() for token in tokens]
    for index, token in enumerate(small):
        before = small[max(0, index - 2) : index]
        if token == "write" and before and before[-1] not in ("please", "kindly") and before[0] not in ("can", "could"):
            return True
        if token == "fix" and before[-1:] not in (["i"], ["we"]):
            return True
    return False


def _end_apart(pieces: _Pieces) -> tuple[list[str], str]:
    """The last sign of a text without payload on its own, where it is no part of the last piece."""
    tokens = list(pieces.tokens)
    if pieces.payload or not tokens:
        return tokens, ""
    last = tokens.pop()
    if lists.ENDING.fullmatch(last):
        return (tokens, last) if tokens else ([last], "")
    bare = last.rstrip("?")
    if bare != last and lists.SOLID.fullmatch(bare):
        return [*tokens, bare], last[len(bare) :]
    return [*tokens, last], ""


def _lowered(tokens: list[str], strict: bool, payload: bool, coding: bool) -> list[str]:
    """Small letters where capitals say nothing: as a sentence begins, in known names, in a text of capitals only."""
    letters = [token for token in tokens if token.isalpha()]
    shouted = not strict and len(letters) > 2 and all(map(str.isupper, letters))
    lowered: list[str] = []
    for index, token in enumerate(tokens):
        small = token.lower()
        opening = index == 0 or (not strict and bool(lists.ENDING.fullmatch(tokens[index - 1])))
        capital = token[:1].isupper() and token[1:] == small[1:]
        after = tokens[index + 1] if index + 1 < len(tokens) else ""
        if token == small:
            pass
        elif shouted:
            token = small if small in lists.SHOUTED or (len(small) > 7 and small.isalpha()) else token
        elif (capital and opening and _opens(small, after, payload)) or (
            not strict and (_is_name(tokens, index, capital, coding) or _is_speaker(tokens, index))
        ):
            token = small
        lowered.append(token)
    return lowered


def _opens(small: str, after: str, payload: bool) -> bool:
    """Whether the word is one whose capital comes from its place alone."""
    if payload:
        return small in lists.OPENING_PAYLOAD or small in lists.OPENING_CONTRACTIONS
    if small in lists.SYMBOLS and after in lists.BE:
        return False
    if small in ("will", "it"):
        return after in lists.PRONOUNS if small == "will" else after in lists.BE
    return small in lists.OPENING or small in lists.OPENING_CONTRACTIONS or small in lists.CONTRACTIONS


def _is_name(tokens: list[str], index: int, capital: bool, coding: bool) -> bool:
    """Whether the word is a name in any case."""
    token = tokens[index]
    if token in lists.ACRONYMS or token == "JavaScript":
        return True
    if not capital:
        return False
    if token == "Python":
        # The language beside a word of its own, or where the article that the animal needs is missing.
        return coding or (index == 2 and len(tokens) == 3 and tokens[0].lower() == "what")
    before = tokens[index - 1] if index else ""
    after = tokens[index + 1] if index + 1 < len(tokens) else ""
    if before in ("of", "in", "from") and (token == "Japan" or (index > 1 and tokens[index - 2] in lists.STATES)):
        return True
    return token.lower() in lists.NAMES or (token, after) in lists.PAIRS or (before, token) in lists.PAIRS


def _is_speaker(tokens: list[str], index: int) -> bool:
    """Whether "I" is whoever speaks, and no numeral, variable or letter."""
    token = tokens[index]
    if token in ("I'm", "I've", "I'll", "I'd"):
        return True
    after = tokens[index + 1] if index + 1 < len(tokens) else ""
    before = tokens[index - 1].lower() if index else ""
    return (
        token == "I" and len(after) > 1 and after.islower() and (after in lists.OWN_VERBS or before in lists.FAMILIAR)
    )


def _expanded(tokens: list[str], strict: bool) -> list[str]:
    """Contractions in full, where they are used."""
    whole: list[str] = []
    for index, token in enumerate(tokens):
        before = tokens[index - 1].lower() if index else ""
        after = tokens[index + 1] if index + 1 < len(tokens) else ""
        # With a capital too, behind a greeting; "WHO's" is another word.
        small = token[:1].lower() + token[1:]
        if after and small in lists.OPENING_CONTRACTIONS and _begins(tokens[:index], strict):
            whole.extend(lists.OPENING_CONTRACTIONS[small])
        elif strict or not after.isalpha() or after in lists.AFTER_MENTION or before in lists.BEFORE_MENTION:
            whole.append(token)
        else:
            whole.extend(lists.CONTRACTIONS.get(token, (token,)))
    return whole


def _begins(before: list[str], strict: bool) -> bool:
    """Whether a question may begin behind these words."""
    if strict or not before:
        return not before
    greeted = before[0] in lists.GREETINGS and len(before) < 4 and before[-1] in lists.GREETINGS | {"there", ","}
    return bool(lists.ENDING.fullmatch(before[-1])) or before[-1] == "me" or greeted


def _asks_directly(tokens: list[str]) -> bool:
    """Whether the words are a question by their order, whatever sign ends them."""
    if len(tokens) < 3:
        return False
    first, second, third = tokens[:3]
    if first in lists.WH and second in lists.BE:
        # No questions: "What is done is done", "Who is not with me is against me".
        whole = first not in ("who", "what") or lists.FINITE.isdisjoint(tokens[2:])
        return (
            whole and not third.endswith("ed") and (third not in lists.UNASKED or (first == "why" and third == "not"))
        )
    if first in lists.WH and second in ("do", "does", "did"):
        return (third != "not" or first == "why") and (first not in ("who", "what") or lists.BE.isdisjoint(tokens[2:]))
    if first == "how":
        if second in ("far", "long", "old", "tall", "deep", "fast", "often"):
            return third in lists.AUX
        if second in ("to", "many", "much"):
            return third not in lists.PRONOUNS
    if first == "who":
        return second in ("invented", "wrote", "discovered", "painted", "founded", "directed", "composed")
    if first == "what":
        return (second == "causes" and lists.FINITE.isdisjoint(tokens)) or (
            second in lists.ASKED_FOR and third in lists.AUX
        )
    if first == "which":
        return second not in lists.AUX and not second.endswith("s") and not lists.FINITE.isdisjoint(tokens)
    return first in lists.WH and second in lists.AUX and third in lists.PRONOUNS | {"the", "a", "my"}


def _asks_yes_or_no(tokens: list[str]) -> bool:
    """Whether the words are such a question by their order."""
    if len(tokens) < 4:
        return False
    if tokens[0] in ("is", "are", "does", "did"):
        return tokens[1] != "not"
    if "," in tokens:
        return False
    if tokens[0] == "can" and lists.FINITE.isdisjoint(tokens[1:]):
        return True
    return tokens[0] in ("do", "can", "could", "would", "was", "will") and tokens[1] in lists.PRONOUNS


def _without_greeting(tokens: list[str]) -> list[str]:
    """The words without the greeting before a question or an order."""
    if not tokens or tokens[0] not in lists.GREETINGS:
        return tokens
    start = 2 if tokens[1:2] == ["there"] else 1
    start += len(tokens) > start and tokens[start] in (",", "!", ".")
    rest = tokens[start:]
    asks = _asks_directly(rest) or (len(rest) > 1 and rest[0] in {"please", "can", "could"} | lists.ASKING - {"name"})
    return rest if asks else tokens


def _without_politeness(tokens: list[str], strict: bool, payload: bool) -> tuple[list[str], bool]:
    """The words without what is only polite before a question or an order, and whether that was a question."""
    tokens = tokens if strict else _without_greeting(tokens)
    polite = False
    if tokens[:1] and tokens[0] in ("pls", "plz", "kindly"):
        tokens = ["please", *tokens[1:]]
    if tokens[:1] == ["please"] and tokens[1:3] in (["can", "you"], ["could", "you"]):
        tokens = [*tokens[1:3], "please", *tokens[3:]]
    if tokens[1:2] == ["you"] and tokens[0] in ("can", "could", "would", "will"):
        rest = tokens[2:]
        if rest[:1] and rest[0] in ("please", "kindly") and rest[1:] and rest[1] in lists.ORDERING:
            tokens, polite = rest[1:], True
        elif not payload and tokens[0] in ("can", "could") and _is_order(rest):
            tokens, polite = rest, True
    elif tokens[:1] == ["please"]:
        rest = tokens[2:] if tokens[1:2] == [","] else tokens[1:]
        if _asks_directly(rest) or (len(rest) > 1 and rest[0] in lists.ORDERING):
            tokens = rest
    return _plainly_asked(tokens), polite and not strict


def _plainly_asked(tokens: list[str]) -> list[str]:
    """The words with the simplest of the beginnings that mean the same."""
    for knowing in lists.KNOWING:
        length = knowing.count(" ") + 1
        if " ".join(tokens[:length]) == knowing and _asks_directly(tokens[length:]):
            return tokens[length:]
    if tokens[:2] == ["write", "me"] and tokens[2:3] in (["a"], ["an"]):
        return ["write", *tokens[2:]]
    if tokens[:2] == ["what", "colour"] and tokens[2:3] in (["is"], ["are"]):
        return ["what", "color", *tokens[2:]]
    return [lists.SPELLINGS.get(tokens[0], tokens[0]), *tokens[1:]] if tokens else tokens


def _is_order(rest: list[str]) -> bool:
    """Whether "can you" before these words asks for them, and not whether one can."""
    verb, then, last = [*rest, "", "", ""][:3]
    if then == "me":
        if verb == "write":
            return last in ("a", "an") and _is_writing(rest[3:6])
        if verb == "give":
            return " ".join(rest[2:4]) in lists.EXAMPLES
        return verb == "help" or (verb in ("tell", "show") and last in lists.WH | {"about"} and rest[3:4] != ["i"])
    if verb == "explain" and then not in ("the", "this"):
        # "Explain jokes": what one is able to do. One thing, of some length: what one is asked to do.
        several = then.endswith("s") and not then.endswith(("sis", "ss", "us"))
        return then in lists.WH or (len(then) > 6 and then.islower() and not several and not then.endswith("thing"))
    known = ("explain", "describe", "summarize", "summarise", "define", "list", "name", "compare")
    return verb in known and then in ("the", "this")


def _is_writing(words: list[str]) -> bool:
    """Whether the words, behind an article, are those of something to write."""
    return next((word for word in words if word not in lists.MANNERS), "") in lists.KINDS


def _without_articles(tokens: list[str]) -> list[str]:
    """The words without the articles that could not be others: "the capital of", "the largest", "write a poem"."""
    kept: list[str] = []
    for index, token in enumerate(tokens):
        before = tokens[index - 1] if index else "is"
        if token == "the" and (before in lists.BE or before in lists.ASKING or before == "me"):
            noun, link, then = [*tokens[index + 1 : index + 4], "", "", ""][:3]
            most = noun in lists.SUPERLATIVES and link.islower() and link not in lists.FUNCTION
            if then and (most or lists.THING_OF.get(noun) == link):
                continue
        elif token in ("a", "an") and index == 1 and before in ("write", "create", "generate", "compose", "draft"):
            if _is_writing(tokens[2:5]):
                continue
        kept.append(token)
    return kept


def _without_thanks(tokens: list[str], ending: str, strict: bool) -> tuple[list[str], str]:
    """The text without the thanks behind it; the sign that ended the question comes back."""
    if strict or not (_asks_directly(tokens) or (tokens and tokens[0] in lists.ASKING)):
        return tokens, ending
    for said in lists.SAID_AFTER:
        thanks = said.split()
        rest = tokens[: -len(thanks)]
        if tokens[-len(thanks) :] != thanks or len(rest) < 2:
            continue
        if lists.ENDING.fullmatch(rest[-1]) and said != "please":
            return rest[:-1], rest[-1]
        comma = rest[-1] == ","
        last = rest[-2] if comma else rest[-1]
        if not last.islower() or last in lists.FUNCTION or last == "pretty" or rest.count(",") > comma:
            continue
        if comma and len(rest) > 2:
            return rest[:-1], ending
        if not comma and said == "please" and rest[0] == "explain":
            return rest, ending
    return tokens, ending


def _ending(tokens: list[str], ending: str, polite: bool, strict: bool, signs: bool) -> str:
    """The sign at the end as far as it says something: nothing after a question that its words make one."""
    starts = [index + 1 for index, token in enumerate(tokens) if lists.ENDING.fullmatch(token)]
    last = tokens[max(starts, default=0) :]
    if signs or not ending or not last:
        return ending
    solid = len(last[-1]) > 2 and last[-1].isalpha() and not last[-1].isupper()
    # A factorial, an abbreviation, or a sentence to be gone on with.
    if not solid and ending.strip("?"):
        return ending
    if "." in ending and (len(ending) > 1 or last[-1] in lists.FUNCTION or last[-1].lower() in lists.ABBREVIATED):
        return ending
    if (
        (_asks_directly(last) and "." not in ending)
        or (polite and not starts)
        or (_asks_yes_or_no(last) and not ending.strip("?"))
    ):
        return ""
    if strict:
        return ending
    if (last[0] in lists.ASKING and "?" not in ending) or (ending == "." and not _asks_directly(last)):
        return ""
    return ending[:1] if len(set(ending)) == 1 else ending


def _sum(tokens: list[str]) -> list[str]:
    """The tokens; a sum of whole numbers that is all that is asked for without its spaces."""
    found = lists.SUM.fullmatch(" ".join(tokens)) if len(tokens) > 1 else None
    return [found[1], found[2].replace(" ", "")] if found else tokens
