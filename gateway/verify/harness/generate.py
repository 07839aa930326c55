"""The inputs that candidates are run on, from a prompt and what they wrote. No candidate is run here.

Runs inside the sandbox: prompts and programs are parsed here, never in the gateway. Tier 0 is what was asked for: the
prompt's examples and the client's inputs. Tier 1 is what somebody thought worth writing down: calls in the answers,
literals of prompt and programs in the places where they fit. Tier 2 is near-domain fuzz, tier 3 everything else.
Equal arguments give equal inputs.
"""

from __future__ import annotations

import copy
import itertools
import json
import random
import re
from typing import Callable, NamedTuple, Optional

from gateway.verify.harness.domain import Hints, Shape, Wording, guesses  # in the sandbox this file stands before
from gateway.verify.harness.examples import Example, calls_in, examples_in
from gateway.verify.harness.feeds import Feeds
from gateway.verify.harness.fuzz import Fuzz
from gateway.verify.harness.literals import NoValue, literal_text
from gateway.verify.harness.mining import Pool, mined
from gateway.verify.harness.relations import Relations, related
from gateway.verify.harness.signatures import Signature, asked_for
from gateway.verify.harness.stdin import as_stdin, stdin_examples
from gateway.verify.harness.stdio import printed_key, reads_stdin

CALLS_MAX = 30  # calls in answers, and the client's inputs: each
LITERALS_MAX = 50
NEAR_MAX = 100
WILD_MAX = 50
STDINS_MAX = 16  # of a program that reads: each is a process of its own
INPUT_CHARS_MAX = 2000
TEXT_CHARS_READ = 20_000  # of a prompt, a program, an answer: of each the start and the end
_TRIES_PER_INPUT = 12
_ASKS_FOR_FUNCTION = re.compile(r"\b(?:functions?|methods?|def)\b", re.I)

Args = list[object]


class Input(NamedTuple):
    """One call to make: arguments as a Python literal, and of an example what is expected and how it is wrapped.
    Without a function, one run: `args` is what the program reads."""

    tier: int
    args: str
    expected: Optional[str] = None
    wrap: Optional[list[object]] = None


class Generated(NamedTuple):
    """What `generate` found: the function (None: nothing to call), and the inputs, tier by tier."""

    function: Optional[Signature]
    inputs: list[Input]


def generate(
    prompt: str,
    entry_point: Optional[str] = None,
    candidates: Optional[list[str]] = None,
    answers: Optional[list[str]] = None,
    inputs: Optional[list[Args]] = None,
    seed: int = 0,
) -> Generated:
    """Returns the inputs on which to compare `candidates`.

    `entry_point` None: found in the prompt, else in the candidates. `answers` are the whole answers, of which calls
    are taken. `inputs` are the client's, each the arguments of one call. Raises nothing for any text. Thread-safe.
    """
    prompt = _cut(prompt)
    candidates = [_cut(source) for source in candidates or []]
    answers = [_cut(text) for text in answers or []]
    function = asked_for(prompt, entry_point, candidates)
    if entry_point is None and 2 * sum(map(reads_stdin, candidates)) > len(candidates):
        if function is None or _is_part(function, prompt):
            rows = _stdins(prompt, candidates, inputs or [], seed)
            if rows:
                return Generated(None, rows)
    if function is None:
        return Generated(None, [])
    gathered = _Inputs()
    examples = examples_in(prompt, function)
    for example in examples:
        gathered.push(0, example.args, example)
    given = [list(args) for args in (inputs or [])[:CALLS_MAX]]
    for args in given:
        gathered.push(0, args)
    called = [args for text in [*candidates, *answers] for args in calls_in(text, function)][:CALLS_MAX]
    for args in called:
        gathered.push(1, args)
    pool = mined(prompt, candidates)
    known = [example.args for example in examples] + given + called
    rng = random.Random(f"{seed}|{function.name}")
    if known:
        _Filler(prompt, function, known, pool, rng, gathered).fill()
    else:
        guessed = _guessed(function, pool)
        for turn, seeds in enumerate(guessed):
            _Filler(prompt, function, seeds, pool, rng, gathered).fill((turn + 1) / len(guessed))
    return Generated(function, sorted(gathered.inputs, key=_cost))


def _is_part(function: Signature, prompt: str) -> bool:
    """Whether a function of programs that read is only a part of them: the prompt does not ask for one."""
    asked = asked_for(prompt, None, [])
    return not _ASKS_FOR_FUNCTION.search(prompt) and (asked is None or asked.name != function.name)


def _stdins(prompt: str, candidates: list[str], inputs: list[Args], seed: int) -> list[Input]:
    """What programs that read are to be run with; nothing, where no example and no client says what they read."""
    given = {
        example.stdin: None if example.printed is None else printed_key(example.printed)
        for example in stdin_examples(prompt)
    }
    for args in inputs[:STDINS_MAX]:
        if len(args) == 1 and isinstance(args[0], str):
            given.setdefault(as_stdin(args[0]), None)
    rows = [Input(0, stdin, expected) for stdin, expected in given.items()][:STDINS_MAX]
    feeds = Feeds(list(given), prompt, mined(prompt, candidates), candidates, random.Random(seed))
    rows += [Input(2, stdin) for stdin in feeds.more(STDINS_MAX - len(rows))]
    return sorted(rows, key=_cost)


def _cut(text: str) -> str:
    half = TEXT_CHARS_READ // 2
    return text if len(text) <= TEXT_CHARS_READ else f"{text[:half]}\n\n{text[-half:]}"


def _cost(entry: Input) -> tuple[int, int]:
    """Examples first, the wild ones last, and before that by how large the largest number is: what takes too long
    ends a candidate's run, and should end it late.
    """
    if entry.tier == 0:
        return 0, 0
    numbers = (int(digits[:9]) for digits in re.findall(r"\d+", entry.args))
    return (2 if entry.tier == 3 else 1), max(numbers, default=0).bit_length()


def harness_main(code: str, payload: bytes, report: Callable[[bytes], None]) -> None:
    """Reads `payload` (JSON: prompt, entry_point, candidates, answers, inputs, seed) and reports what was generated."""
    asked = json.loads(payload)
    made = generate(
        asked.get("prompt") or code,
        asked.get("entry_point"),
        asked.get("candidates"),
        asked.get("answers"),
        asked.get("inputs"),
        asked.get("seed") or 0,
    )
    rows = [entry._asdict() for entry in made.inputs]
    examples = [row for row in rows if row["expected"] is not None]
    name = made.function.name if made.function else None
    arity = len(made.function.params) if made.function else None
    report(json.dumps({"entry_point": name, "parameters": arity, "examples": examples, "inputs": rows}).encode())


class _Inputs:
    """Inputs gathered so far, each once."""

    def __init__(self) -> None:
        self.inputs: list[Input] = []
        self._known: set[str] = set()

    def push(self, tier: int, args: Args, example: Optional[Example] = None) -> bool:
        try:
            text = literal_text(args)
        except NoValue:
            return False
        wrap = example.wrap if example else None
        identity = text if wrap is None else f"{text} {wrap!r}"
        if identity in self._known or (len(text) > INPUT_CHARS_MAX and tier > 0):
            return False
        self._known.add(identity)
        self.inputs.append(Input(tier, text, example.expected if example else None, wrap))
        return True


class _Filler:
    """Adds inputs like `known` ones, tier by tier, up to each tier's bound."""

    def __init__(
        self, prompt: str, function: Signature, known: list[Args], pool: Pool, rng: random.Random, gathered: _Inputs
    ) -> None:
        size = max(map(len, known))
        self._known = [args for args in known if len(args) == size]
        self._pool, self._rng, self._gathered = pool, rng, gathered
        self._shapes = [Shape() for _ in range(size)]
        for args in self._known:
            for shape, value in zip(self._shapes, args):
                shape.observe(value)
        hints = Hints(prompt)
        for shape in self._shapes:
            _apply(hints, shape)
        self._relations = Relations(self._known, function.params, prompt)
        self._keep_sorted = [hints.sorted and shape.sorted and shape.long_lists > 0 for shape in self._shapes]

    def fill(self, share: float = 1.0) -> None:
        """Fills each tier up to this share of its bound."""
        if not self._shapes:
            self._gathered.push(1, [])
            return
        near, wild = Fuzz(self._pool, self._rng, True), Fuzz(self._pool, self._rng, False)
        if share < 1:
            for args in self._known:
                self._gathered.push(1, args)
        self._times(1, int(LITERALS_MAX * share), self._with_literals)
        for args in self._small()[: int(NEAR_MAX * share) // 3]:
            self._push(2, args)
        corpus = list(self._known)

        def near_one() -> Args:
            args = self._near(near, corpus)
            if len(corpus) < 80:
                corpus.append(args)
            return args

        self._times(2, int(NEAR_MAX * share), near_one)
        wild_before = sum(entry.tier == 3 for entry in self._gathered.inputs)
        for args in self._boundaries()[: max(0, int(WILD_MAX * share) // 2 - wild_before)]:
            self._gathered.push(3, args)
        self._times(3, int(WILD_MAX * share), lambda: self._wild(wild))

    def _times(self, tier: int, most: int, make: Callable[[], Args]) -> None:
        count = sum(entry.tier == tier for entry in self._gathered.inputs)
        for _ in range(most * _TRIES_PER_INPUT):
            if count >= most:
                return
            args = make()
            count += self._push(tier, args) if tier < 3 else self._gathered.push(tier, args)

    def _push(self, tier: int, args: Args) -> bool:
        for index, keep in enumerate(self._keep_sorted):
            value = args[index]
            if keep and isinstance(value, list):
                args[index] = sorted(value, key=lambda part: (str(type(part)), part))
        return self._gathered.push(tier, self._relations.restored(args))

    def _near(self, near: Fuzz, corpus: list[Args]) -> Args:
        rng = self._rng
        if rng.random() < 0.4:
            args = [near.fresh(shape) for shape in self._shapes]
        else:
            args = copy.deepcopy(rng.choice(corpus if rng.random() < 0.5 else self._known))
            for _ in range(rng.choice((1, 1, 2, 3))):
                index = rng.randrange(len(args))
                args[index] = near.varied(args[index], self._shapes[index])
        if len(args) > 1 and rng.random() < 0.4:
            args = related(args, self._shapes, rng)
        return args

    def _wild(self, wild: Fuzz) -> Args:
        rng = self._rng
        args = copy.deepcopy(rng.choice(self._known))
        for _ in range(rng.choice((1, 1, 2, 3))):
            index = rng.randrange(len(args))
            args[index] = wild.varied(args[index], self._shapes[index])
        return args

    def _with_literals(self) -> Args:
        rng = self._rng
        args = copy.deepcopy(rng.choice(self._known))
        places = [index for index in range(len(args)) if rng.random() < 0.6] or [rng.randrange(len(args))]
        for index in places:
            args[index] = self._placed(args[index], self._shapes[index])
        return args

    def _placed(self, value: object, shape: Shape) -> object:
        """A mined literal where one of its type stands; an int with its neighbours, as far as the domain goes."""
        rng, pool = self._rng, self._pool
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int) and pool.ints:
            made = rng.choice(pool.bounds or pool.ints) if rng.random() < 0.5 else rng.choice(pool.ints)
            made += rng.choice((0, 0, 1, -1))
            return made if (made > 0 or shape.negative or (made == 0 and shape.zero)) else value
        if isinstance(value, float) and pool.floats:
            return rng.choice(pool.floats)
        if isinstance(value, str):
            known = [text for text in pool.texts if text or shape.empty]
            if known and shape.chars:
                fitting = [text for text in known if set(text) <= shape.chars or text.isalpha()]
                return rng.choice(fitting or [value])
            return rng.choice(known or [value])
        if isinstance(value, list):
            whole = [item for item in pool.containers if isinstance(item, list)]
            if whole and rng.random() < 0.3 and shape.elements is not None:
                chosen = rng.choice(whole)
                if all(type(part).__name__ in shape.elements.kinds for part in chosen):
                    return copy.deepcopy(chosen)
            elements = shape.elements or shape
            return [self._placed(part, elements) if rng.random() < 0.5 else part for part in value]
        return value

    def _small(self) -> list[Args]:
        """What is tried before anything random: edges inside the domain, then small values one after the other where
        a parameter is a number, is made of few characters, or has numbers in it.
        """
        shapes, first = self._shapes, self._known[0]
        rows: list[Args] = []
        for index, shape in enumerate(shapes):
            wording = Wording(shape, self._pool.coded)
            for edge in _near_edges(first[index], shape):
                if not (
                    isinstance(edge, str) and edge and (wording.words or wording.numeric or not wording.fits(edge))
                ):
                    rows.append([*first[:index], edge, *first[index + 1 :]])
        if len(shapes) == 1 and shapes[0].kinds == ["int"]:
            rows += [[value] for value in range(0 if shapes[0].zero else 1, 34)]
        elif all(shape.kinds == ["int"] for shape in shapes) and len(shapes) <= 3:
            spread = (1, 2, 3, 4, 5, 6, 8, 9) if len(shapes) == 2 else (1, 2, 3, 5)
            grid = itertools.product(*(((0, *spread) if shape.zero else spread) for shape in shapes))
            rows += self._rng.sample([list(row) for row in grid], 30)
        elif len(shapes) == 1 and shapes[0].kinds == ["str"] and 1 < len(shapes[0].chars) <= 3:
            chars = sorted(shapes[0].chars)
            words = ("".join(word) for size in range(1, 5) for word in itertools.product(chars, repeat=size))
            rows += [[word] for word in words if wording.fits(word)]
        elif len(shapes) == 1 and isinstance(first[0], str):
            rows += [[text] for text in _with_bounds(first[0], self._pool)]
        return rows

    def _boundaries(self) -> list[Args]:
        """The values at the edges, one argument at a time, of whatever type stands there."""
        made = []
        for args in self._known[:3]:
            for index, value in enumerate(args):
                for other in _edges(value):
                    made.append([*args[:index], other, *args[index + 1 :]])
        return made


def _apply(hints: Hints, shape: Shape) -> None:
    """A prompt's words widen what its examples show; they never narrow it."""
    shape.zero |= hints.zero
    shape.negative |= hints.negative
    shape.empty |= hints.empty
    if shape.elements is not None:
        shape.elements.zero |= hints.zero
        shape.elements.negative |= hints.negative


def _near_edges(value: object, shape: Shape) -> list[object]:
    """The edges of what `shape` shows."""
    if isinstance(value, (str, list, dict, tuple)):
        edges: list[object] = [type(value)()] if shape.empty else []
        if isinstance(value, (str, list)) and not shape.is_pair():
            edges.append(value[:1])
        return edges
    if isinstance(value, int) and not isinstance(value, bool):
        return [*([0] if shape.zero else []), 1, 2, *([-1, -2] if shape.negative else [])]
    return []


def _with_bounds(text: str, pool: Pool) -> list[str]:
    """A date or the like with one of its numbers at a boundary that programs test."""
    made = []
    for run in re.finditer(r"\d+", text):
        if len(run.group()) < len(text):
            for bound in pool.bounds:
                for number in (bound, bound + 1, bound - 1):
                    if 0 < number < 10 ** len(run.group()):
                        made.append(text[: run.start()] + str(number).zfill(len(run.group())) + text[run.end() :])
    return list(dict.fromkeys(made))


def _edges(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [0, 1, -1, 2, 100]
    if isinstance(value, float):
        return [0.0, 1.0, -1.5]
    if isinstance(value, str):
        return ["", "a", " ", "A", "aa"]
    if isinstance(value, list):
        return [[], value[:1], value + value]
    return [{}] if isinstance(value, dict) else []


def _guessed(function: Signature, pool: Pool) -> list[list[Args]]:
    """Without a known call: by types and names; where they say nothing, all combinations of usual kinds are tried,
    one kind of call at a time (a program raises on the wrong ones, and that says nothing).
    """
    if not function.params:
        return [[[]]]
    lists = [value for value in pool.containers if isinstance(value, list)]
    if len(lists) == len(function.params) > 1 and not any(map(guesses, function.params, function.types)):
        in_order: Args = list(lists)
        return [[in_order]]  # one for each, as the prompt has them
    usual: list[list[object]] = [[3, 10], ["abc", *pool.texts[:3]], [[3, 1, 2], [1, 2, 2, 5]]]
    if any(lists):
        usual += [[value] for value in lists[:4]]
    choices = [[known] if known else usual for known in map(guesses, function.params, function.types)]
    made = []
    for kinds in itertools.islice(itertools.product(*choices), 30):
        made.append([[values[turn % len(values)] for values in kinds] for turn in range(2)])
    return made
