"""The requests of a run, and all that chance has for them: the same for each strategy, whatever becomes of them. Pure.

Each column has a generator of its own, and each request takes one value of each, in the order of arrival (common random
numbers): what two strategies do differently is not hidden behind what they happened to draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, repeat
from random import Random

from gateway.tools.simulate.distributions import BLOCK, Zipf
from gateway.tools.simulate.scenario import Scenario

Row = tuple[int, float, float, float, int, int, bytes, int, int, bool]
"""Its number, when it comes, what it needs (seconds, and until the first token), tokens of prompt and answer, prefix
(b"": none), the number of its key, of its gateway, and whether it is a stream."""


def rows(scenario: Scenario, begin_s: float) -> Iterator[Row]:
    """The requests, as they come, from `begin_s` on."""
    seed, work, rules = scenario.seed, scenario.work, scenario.rules

    def chance(column: str) -> Random:
        return Random(f"{seed} {column}")

    prompts = map(int, work.prompt_tokens.values(chance("prompt")))
    outputs = (max(1, int(tokens)) for tokens in work.output_tokens.values(chance("output")))
    prefixes: Iterator[bytes] = repeat(b"")
    if work.prefixes:
        names = [b"prefix %d" % rank for rank in range(work.prefixes)]
        prefixes = map(names.__getitem__, Zipf(work.prefixes, work.zipf).values(chance("prefix")))
    streams: Iterator[bool] = repeat(work.stream_share >= 1)
    if 0 < work.stream_share < 1:
        streams = (drawn < work.stream_share for drawn in _uniform(chance("stream")))
    times = (begin_s + at_s for at_s in scenario.arrivals.times(chance("arrivals"), scenario.duration_s))
    keys = _below(rules.keys, chance("key"))
    gateways = _below(scenario.gateways, chance("gateway"))
    if work.service is not None:
        share = work.first_share
        for number, at_s, need_s, prompt, output, prefix, key, gateway, stream in zip(
            count(), times, work.service.values(chance("service")), prompts, outputs, prefixes, keys, gateways, streams
        ):
            yield number, at_s, need_s, need_s * share, prompt, output, prefix, key, gateway, stream
        return
    firsts, pers = work.first.values(chance("first")), work.per_token.values(chance("per token"))
    for number, at_s, first_s, per_s, prompt, output, prefix, key, gateway, stream in zip(
        count(), times, firsts, pers, prompts, outputs, prefixes, keys, gateways, streams
    ):
        yield number, at_s, first_s + per_s * (output - 1), first_s, prompt, output, prefix, key, gateway, stream


def mean_need_s(scenario: Scenario) -> float:
    """What a request needs on average."""
    work = scenario.work
    if work.service is not None:
        mean = work.service.mean
    else:
        mean = work.first.mean + work.per_token.mean * max(0.0, work.output_tokens.mean - 1)
    share, factor = work.hiccup
    return mean * (1 + share * (factor - 1))


def _uniform(chance: Random) -> Iterator[float]:
    draw = chance.random
    while True:
        yield from [draw() for _ in range(BLOCK)]


def _below(count_of: int, chance: Random) -> Iterator[int]:
    return repeat(0) if count_of == 1 else (int(drawn * count_of) for drawn in _uniform(chance))
