"""Which words the rules of `wording.py` know, each list closed: what opens a question, is a name, mentions a word.

Owns the lists, and the patterns by which a text is taken apart: a word that is missing from a list costs a near
duplicate, one too many could join two questions. Pure values, never changed once they are made, so there is no lock.
Holds no rule, looks at no text, reads no setting.
"""

from __future__ import annotations

import re


def words(text: str) -> frozenset[str]:
    """A closed list."""
    return frozenset(text.split())


WH = words("what who where when why how which whose")
BE = words("is are was were")
AUX = BE | words("do does did can could should would will has have")
PRONOUNS = words("i you we they he she it there this that these")
ASKING = words(
    "explain describe tell give list show write translate summarize define help provide create generate compare name"
    " calculate convert suggest outline compose draft solve compute analyze discuss rewrite fix recommend identify"
)
# Spelled both ways as the verb that asks; elsewhere the spelling may be what is asked about.
SPELLINGS = {"summarise": "summarize", "analyse": "analyze"}
ORDERING = ASKING | SPELLINGS.keys()
# What begins a sentence with a capital only because it begins it: none of them is a name.
OPENING_ONLY = words(
    "please kindly hi hello hey thanks thank the an i my if in on at for from with there these those this that some you"
    " we they find make design implement summarise analyse whats dont isnt doesnt didnt pls plz imagine"
)
OPENING = WH | (AUX - {"will"}) | ASKING | OPENING_ONLY
# Of these, only what cannot begin a line of code or data.
OPENING_PAYLOAD = WH | words("please can could explain translate summarize rewrite write describe")
# Chemical symbols too, where they are what the sentence is about.
SYMBOLS = words("in at on if i for")
# Names that are no other word in lower case, nor the name of anything else.
NAMES = words(
    "france germany italy spain portugal india canada australia brazil mexico egypt russia sweden norway finland"
    " denmark ireland poland austria belgium netherlands switzerland argentina kenya nigeria ethiopia indonesia"
    " thailand vietnam ukraine iran iraq israel pakistan england scotland korea europe asia africa antarctica paris"
    " london rome berlin madrid tokyo beijing vienna amsterdam brussels dublin lisbon oslo stockholm prague budapest"
    " french german spanish italian japanese russian arabic hindi portuguese korean swedish norwegian monday tuesday"
    " wednesday thursday friday saturday january february september october november december christmas halloween"
    " shakespeare einstein mozart beethoven linux kubernetes javascript"
)
ACRONYMS = words("HTML CSS SQL PDF DNA RNA NASA USA PHP")
PLACES = "New York,New Zealand,United States,United Kingdom,South Africa,South Korea,North Korea,San Francisco"
PAIRS = {tuple(pair.split()) for pair in f"{PLACES},Los Angeles,Sri Lanka,Albert Einstein,Eiffel Tower".split(",")}
# In a text of capitals only: words that no acronym looks like. Longer ones need no list.
SHOUTED_TOO = words(
    "capital largest biggest highest tallest longest difference between of to and or not world country ocean planet"
    " people during about into through meaning history programming language president invented wrote work best your"
)
SHOUTED = ((OPENING | NAMES) - words("who can have i give show help name find make")) | SHOUTED_TOO
# Whoever says one of these may ask about wording, writing or signs themselves: then nearly all of it counts.
MENTIONS = words(
    "word words spell spelled spelt spelling letter letters mean means phrase phrases contraction contractions grammar"
    " grammatical grammatically pronounce pronounced pronunciation capitalize capitalized capitalise capitalised"
    " uppercase lowercase case rhyme rhymes synonym synonyms antonym translate translated translation say says said"
    " saying sentence sentences syllable syllables apostrophe abbreviation acronym stand stands typo proofread"
    " correct correctly incorrect wrong rewrite rephrase paraphrase edit title titled entitled called named repeat"
    " echo output print prints verbatim exactly text typed type written writing term terms verb noun adverb adjective"
    " pronoun prefix suffix etymology spaces space whitespace indentation tab tabs split join count reverse anagram"
    " palindrome token tokens tokenize unicode ascii encode encoded decode hash length parse convert sort formal"
    " informal polite politely rude tone reply respond answer line lyrics song idiom slogan plural singular quote"
)
# And these, about signs and code: then even the last sign of the text counts.
SIGNS = words(
    "regex regexp regular glob wildcard pattern punctuation operator operators symbol symbols character characters"
    " mark marks string strings quotes quotation curly smart straight typographic dash hyphen period comma unicode"
    " syntax valid echo print prints bash shell parse parser literal factorial notation emoji emoticon sign"
)
THING_OF = {
    **dict.fromkeys(words("capital population definition meaning purpose author president currency history GDP"), "of"),
    **dict.fromkeys(words("symptoms benefits causes effects role advantages disadvantages height"), "of"),
    **dict.fromkeys(words("difference differences distance"), "between"),
    "formula": "for",
    "best": "way",
    **dict.fromkeys(("boiling", "melting"), "point"),
    "square": "root",
}
SUPERLATIVES = words("largest smallest biggest tallest longest highest deepest fastest oldest heaviest")
KINDS = words("poem haiku sonnet limerick function script program story essay letter email paragraph song summary list")
MANNERS = words("short brief simple long funny detailed quick small python javascript formal")
FAMILIAR = words("do did can could should would will have am")
OWN_VERBS = words("am have need want would should could can will do did think like know feel get got use was")
FUNCTION_TOO = words(
    "the a an of to in on at by for from with and or not no yes please kindly thanks thank hi hello hey me my your his"
    " her its our us them him so then well ok okay if but as be am been more again that those here just now tell"
    " explain give show help go continue sure"
)
FUNCTION = WH | AUX | PRONOUNS | FUNCTION_TOO
CONTRACTIONS: dict[str, tuple[str, ...]] = {
    **{f"{pronoun}'re": (pronoun, "are") for pronoun in ("you", "we", "they")},
    **{f"{pronoun}'ve": (pronoun, "have") for pronoun in ("i", "you", "we", "they")},
    **{f"{pronoun}'ll": (pronoun, "will") for pronoun in ("i", "you", "we", "they", "it")},
    **{f"{verb}n't": (verb, "not") for verb in AUX - {"can", "will"} | {"had", "must", "need"}},
    **{f"{verb}nt": (verb, "not") for verb in ("do", "does", "did", "is")},
}
CONTRACTIONS.update({"can't": ("cannot",), "won't": ("will", "not"), "i'm": ("i", "am"), "it's": ("it", "is")})
OPENING_CONTRACTIONS = {f"{wh}'s": (wh, "is") for wh in ("what", "who", "where", "when", "how", "there", "that")}
OPENING_CONTRACTIONS["whats"] = ("what", "is")
# Beside these, a contraction may be what is spoken of.
BEFORE_MENTION = words("use using write between of or and vs versus with is are as for to the a about not but like")
AFTER_MENTION = words("or and vs versus instead right proper proof ok okay in is are as")
CODING = words("code coding programming program function dictionary script loop tuple pandas django developer")
STATES = words("capital president currency")

GREETINGS = words("hi hello hey")
KNOWING = ("tell me", "i would like to know", "i want to know", "i'd like to know")
SAID_AFTER = ("thanks in advance", "thank you", "thanks", "please")
EXAMPLES = ("an example", "some examples", "some tips", "some ideas", "some advice", "a list", "a summary")
ABBREVIATED = words("fig art sun sat mar dec jan")
FINITE = AUX | words("must may might shall cannot")
ASKED_FOR = words("color colour year time language country kind type")
UNASKED = words("not done more right good true left past clear said")

PIECE = re.compile(
    r"""(?P<quote>"[^"“”]*"|“[^"“”]*”|'[^'‘’]*'|‘[^'‘’]*’|«[^«»]*»|`[^`]*`)(?P<after>[,.!?]*)(?=\s|$)|(?P<chunk>\S+)"""
)
WORD = re.compile(r"([A-Za-z]+(?:['’-][A-Za-z]+)*)([,.!?]*)")
RISKY = re.compile(r"""["“”„«»‹›`{}\[\]<>=\\|~^;]|^['‘’]|['‘’:：]$|```""")
WORD_ONLY = re.compile(r"[a-z]+")
ENDING = re.compile(r"[.!?]+")
SOLID = re.compile(r"[0-9]+(?:[.,+*/-][0-9]+)*%?|[A-Za-z]+(?:\+\+|#|\)|[0-9]+)|[A-Za-z_]{3,}|[^\W\d_]{2,}")
ODD = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffd"
    r"\ud800-\udfff\u212a\u2126\u212b]"
)
GAP = re.compile(r"\b\w  |  \w\b|[^\w\s,.?!]  |  [^\w\s]")
SUM = re.compile(r"(what is|calculate|compute) ([0-9]+(?: ?[+*] ?[0-9]+)+)")
