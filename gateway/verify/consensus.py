"""Which of several members' answers to give, and whether what was run bears it out.

Pure: results in, a `Decision` out; nothing is run, parsed or waited for here. A candidate is known by what its program
returned on each input (its vector of keys), or by how many of the tests given it has passed. What a program looks like,
and how a member described it, counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

from gateway.verify.harness.keys import comparable, is_denial, is_error, is_unseen, matches

NEAR_TIER = 2  # inputs up to this tier are such as the task is about
EXAMPLE_TIER = 0
DISSENT_FORGIVEN_FROM = 5  # members
AGREEING_MIN = 2  # one alone agrees with nobody


class Candidate(NamedTuple):
    """What is known of one member's program: its results, one per input; None when it gave no code, or could not be
    run. `family` is the family of the member's model."""

    member: int
    family: str
    keys: Optional[tuple[str, ...]]


class Tested(NamedTuple):
    """How many of the tests given one member's program has passed."""

    member: int
    family: str
    passes: int


class Inputs(NamedTuple):
    """The inputs all candidates were run on: each one's tier, and the key an example expects of it (None: unknown)."""

    tiers: tuple[int, ...]
    expected: tuple[Optional[str], ...]


class Decision(NamedTuple):
    """The answer to give.

    `chosen` is a member; None when no candidate ran. `strategy` is one of tests_passed, consensus, majority,
    best_available, abstained and no_code. `agreement` is the chosen group's share of all members. `groups` are members
    that behave alike, largest first. `details` are numbers for people.
    """

    chosen: Optional[int]
    verified: bool
    strategy: str
    agreement: float
    groups: list[list[int]]
    details: dict[str, object]

    @property
    def agrees(self) -> bool:
        """Whether a strict majority of all members says the same."""
        return self.strategy in ("consensus", "majority")


def decide(candidates: Sequence[Candidate], inputs: Inputs, members: int, min_families: int = 1) -> Decision:
    """Returns the decision on programs.

    `members` is how many were asked, those that failed or gave no code included: a majority is one of all of them.
    `min_families`: a group with members of fewer model families is chosen only where no other counts, and is never
    verified. Every `keys` has one entry per input. Thread-safe.
    """
    alive = [candidate for candidate in candidates if _runs(candidate)]
    if not alive:
        # A program that raises everywhere agrees with all others that do, about nothing.
        return Decision(None, False, "abstained", 0.0, [], {"inputs": len(inputs.tiers), "survivors": 0})
    examples = [index for index, expected in enumerate(inputs.expected) if expected is not None]
    passed = {candidate.member: _examples_passed(candidate, inputs, examples) for candidate in alive}
    best = max(passed.values())
    # Examples choose softly: where none passes all (a prompt's example may be wrong), those that pass most go on.
    survivors = [candidate for candidate in alive if passed[candidate.member] == best]
    groups = _groups(survivors, range(len(inputs.tiers)))
    chosen, tie = _largest(_counting(groups, min_families), survivors, alive, inputs)
    dissent = _dissent(chosen[0], survivors, inputs)
    near = _up_to(inputs, NEAR_TIER)
    unseen = sum(map(is_unseen, _vector(chosen[0], near)))
    beside = _vector(chosen[0], [index for index in near if inputs.expected[index] is None])
    families = len({candidate.family for candidate in chosen})
    majority = 2 * len(chosen) > members and families >= min_families
    verified = (
        majority  # (which a tie leaves to nobody)
        and len(chosen) >= AGREEING_MIN
        and best == len(examples)  # something was executed that could have failed, and nothing did
        and any(not is_denial(inputs.expected[index] or "") for index in examples)  # (what is not 5 is hardly a demand)
        and not (beside and all(map(is_error, beside)))  # (that agrees with whatever else fails there)
        and not unseen  # (whether those results are the same, nobody knows)
        and dissent <= (1 if members >= DISSENT_FORGIVEN_FROM else 0)
    )
    details: dict[str, object] = {
        "examples": len(examples),
        "examples_passed": best,
        "inputs": len(inputs.tiers),
        "survivors": len(survivors),
        "dissent": dissent,
        "unseen": unseen,
        "families": families,
        "tie": tie,
    }
    strategy = "consensus" if verified else "majority" if majority else "best_available"
    return _decision(chosen, verified, strategy, members, _with_others(groups, chosen), details)


def decide_texts(
    groups: Sequence[Sequence[int]], families: Sequence[str], members: int, min_families: int = 1
) -> Decision:
    """Returns the decision on answers without code.

    `groups` are members whose answers say the same; `families` is each member's model family. Never verified, however
    many agree: nothing was executed that could have failed. Strategy: majority (of all members, and of at least
    `min_families` families), best_available, or no_code when nobody answered. Thread-safe.
    """
    ordered = sorted((sorted(group) for group in groups if group), key=lambda group: (-len(group), group[0]))
    if not ordered:
        return Decision(None, False, "no_code", 0.0, [], {"families": 0, "tie": False})
    chosen = ordered[0]
    tie = len(ordered) > 1 and len(ordered[1]) == len(chosen)
    several = len({families[member] for member in chosen})
    majority = 2 * len(chosen) > members and several >= min_families
    strategy = "majority" if majority else "best_available"
    details: dict[str, object] = {"families": several, "tie": tie}
    return Decision(chosen[0], False, strategy, len(chosen) / max(1, members), ordered, details)


def uncompared(answered: Sequence[int]) -> Decision:
    """Returns the decision where answers are not to be compared: that of the first member, with whom nobody is said to
    agree. Thread-safe."""
    if not answered:
        return decide_texts([], [], 0)
    return Decision(min(answered), False, "best_available", 0.0, [], {})


def decide_tested(tested: Sequence[Tested], total: int, members: int, min_families: int = 1) -> Decision:
    """Returns the decision by `total` tests of the client's. They decide alone: a program that passes all of them is
    verified, and agreement with it is no condition. Programs that fail agree with nobody. Thread-safe."""
    ordered = sorted(tested, key=lambda one: (-one.passes, one.member))
    passing = [one for one in ordered if one.passes >= total > 0]
    details: dict[str, object] = {"passed": len(passing), "tests": total}
    if not ordered:
        return Decision(None, False, "abstained", 0.0, [], details)
    if not passing:
        alone = [[one.member] for one in ordered]
        return Decision(ordered[0].member, False, "best_available", 1 / max(1, members), alone, details)
    families = len({one.family for one in passing})
    details["families"] = families
    enough = families >= min_families
    strategy = "tests_passed" if enough else "best_available"
    group = [one.member for one in passing]
    return Decision(group[0], enough, strategy, len(group) / max(1, members), [group], details)


def _runs(candidate: Candidate) -> bool:
    return candidate.keys is not None and not all(map(is_error, candidate.keys))


def _examples_passed(candidate: Candidate, inputs: Inputs, examples: Sequence[int]) -> int:
    keys = candidate.keys or ()
    return sum(matches(keys[index], inputs.expected[index] or "") for index in examples)


def _vector(candidate: Candidate, indices: Sequence[int]) -> tuple[str, ...]:
    keys = candidate.keys or ()
    return tuple(comparable(keys[index]) for index in indices)


def _groups(candidates: Sequence[Candidate], indices: Sequence[int]) -> list[list[Candidate]]:
    """Candidates that gave the same on all of these inputs; largest first, then in the members' order."""
    by_vector: dict[tuple[str, ...], list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.member):
        by_vector.setdefault(_vector(candidate, indices), []).append(candidate)
    return sorted(by_vector.values(), key=lambda group: (-len(group), group[0].member))


def _counting(groups: list[list[Candidate]], min_families: int) -> list[list[Candidate]]:
    """The groups that members of enough families agree in; all of them, where there is none: models of one family
    share their mistakes, and a large group of them is one voice.
    """
    enough = [group for group in groups if len({candidate.family for candidate in group}) >= min_families]
    return enough or groups


def _largest(
    groups: list[list[Candidate]], survivors: Sequence[Candidate], alive: Sequence[Candidate], inputs: Inputs
) -> tuple[list[Candidate], bool]:
    """The largest group, and whether there was a tie for it.

    A tie falls to agreement near the domain, where more members may be found behind one of the groups, then to that
    on the examples' inputs, then to the group whose single results the others that ran share most often: mistakes
    seldom hit the same inputs, so what is right lies in the middle. At last the members' order decides, which is the
    order of the client's trust.
    """
    tied = [group for group in groups if len(group) == len(groups[0])]
    if len(tied) == 1:
        return groups[0], False
    for tier in (NEAR_TIER, EXAMPLE_TIER):
        wider = _groups(survivors, _up_to(inputs, tier))
        if len(wider) == 1 or len(wider[0]) == len(wider[1]):
            continue
        inside = [group for group in tied if group[0] in wider[0]]
        if inside:
            tied = inside
            break
    return max(tied, key=lambda group: (_shared_results(group, alive, inputs), -group[0].member)), True


def _shared_results(group: list[Candidate], alive: Sequence[Candidate], inputs: Inputs) -> int:
    """How many results of others, near the domain, are this group's; exceptions are no result."""
    near = _up_to(inputs, NEAR_TIER)
    mine = _vector(group[0], near)
    others = [_vector(candidate, near) for candidate in alive if candidate not in group]
    return sum(key == other[index] and not is_error(key) for other in others for index, key in enumerate(mine))


def _up_to(inputs: Inputs, tier: int) -> list[int]:
    return [index for index, of_input in enumerate(inputs.tiers) if of_input <= tier]


def _dissent(chosen: Candidate, survivors: Sequence[Candidate], inputs: Inputs) -> int:
    """How many that pass the examples do something else near the domain: each of them may be the one that is right.

    Elsewhere right programs differ too: nobody said what they should do there.
    """
    near = _up_to(inputs, NEAR_TIER)
    vector = _vector(chosen, near)
    return sum(_vector(candidate, near) != vector for candidate in survivors)


def _with_others(groups: list[list[Candidate]], chosen: list[Candidate]) -> list[list[Candidate]]:
    return [chosen, *(group for group in groups if group is not chosen)]


def _decision(
    chosen: list[Candidate],
    verified: bool,
    strategy: str,
    members: int,
    groups: list[list[Candidate]],
    details: dict[str, object],
) -> Decision:
    shown = [[candidate.member for candidate in group] for group in groups]
    return Decision(chosen[0].member, verified, strategy, len(chosen) / max(1, members), shown, details)
