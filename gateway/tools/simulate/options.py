"""The command line of the simulator: what may be said, and the scenario that it makes. Reads the files named there."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from gateway.limits.prices import Price
from gateway.limits.quotas import KeyLimits, RateLimits
from gateway.routing.specs import STRATEGIES
from gateway.tools.arguments import option, parser_of, share, whole
from gateway.tools.asking import UsageError
from gateway.tools.loadtest.durations import duration_s, positive_s
from gateway.tools.simulate.arrivals import GRAMMAR as ARRIVALS_GRAMMAR
from gateway.tools.simulate.arrivals import Arrivals, arrivals, trace
from gateway.tools.simulate.distributions import GRAMMAR, Distribution, distribution, empirical, number
from gateway.tools.simulate.faults import GRAMMAR as FAULTS_GRAMMAR
from gateway.tools.simulate.faults import Fault, faults
from gateway.tools.simulate.recorded import Recorded, recorded
from gateway.tools.simulate.scenario import Fleet, Rules, Scenario, Work

_DESCRIPTION = """What a fleet would do: the gateway's own routing, retries, breakers, health checks, hedges, queues and
limits, run in virtual time over simulated engines, once for each strategy, with the same requests and faults."""
_EPILOG = f"""laws:     {GRAMMAR}
arrivals: {ARRIVALS_GRAMMAR}
faults:   {FAULTS_GRAMMAR}
times are 300ms, 10s or 5m, rates 2000/s or 90/m

examples:
  {{prog}} --engines 1000 --strategy all --arrivals poisson:2000/s --service lognormal:300ms,0.6 --duration 60
  {{prog}} --engines 20 --slots 4 --arrivals poisson:150/s --faults 'kill:20%@20s-40s' --html report.html
  {{prog}} --engines 8 --from decisions.jsonl --strategy least_connections,latency

exit status: 0 well, 2 wrong arguments"""


class Options(NamedTuple):
    """What was asked."""

    scenario: Scenario
    strategies: tuple[str, ...]
    json_file: Optional[str]
    html_file: Optional[Path]
    quiet: bool


def law_of_time(text: str) -> Distribution:
    """A law of durations. Raises ValueError."""
    return distribution(text, duration_s)


def _law_of_numbers(text: str) -> Distribution:
    return distribution(text, number)


def _strategies(text: str) -> tuple[str, ...]:
    names = STRATEGIES if text.strip() == "all" else tuple(part.strip() for part in text.split(","))
    unknown = [name for name in names if name not in STRATEGIES]
    if unknown:
        raise ValueError(f"there is no strategy {unknown[0]!r}; there are: {', '.join(STRATEGIES)}, all")
    return tuple(dict.fromkeys(names))


def _hedge(text: str) -> Union[float, str]:
    return "p95" if text.strip() == "p95" else positive_s(text) * 1000


def _hiccup(text: str) -> tuple[float, float]:
    part, _, factor = text.partition(",")
    return share(part), number(factor)


def _zipf(text: str) -> tuple[int, float]:
    count, _, exponent = text.partition(",")
    return whole(1, 1_000_000)(count), number(exponent or "1")


def _price(text: str) -> Price:
    first, _, second = text.partition(",")
    return Price(number(first), number(second))


def _limits(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, amount = part.strip().partition(":")
        if name not in ("rpm", "tpm", "concurrency"):
            raise ValueError(f"must be rpm:N, tpm:N or concurrency:N, with commas between them, not {text!r}")
        found[name] = whole(1, 1_000_000_000)(amount)
    return found


def _rate_limits(text: str) -> RateLimits:
    found = _limits(text)
    if "concurrency" in found:
        raise ValueError("only a key has a limit of concurrency")
    return RateLimits(**found)


def _key_limits(text: str) -> KeyLimits:
    return KeyLimits(**_limits(text))


def parser(prog: str) -> argparse.ArgumentParser:
    """What may be said."""
    known = parser_of(prog, "[options]", _DESCRIPTION, _EPILOG)
    fleet, work, rules = Fleet(), Work(), Rules()
    engines = known.add_argument_group("engines")
    option(engines, "-e --engines", "N", "how many (default 10)", whole(1, 100_000), 10)
    slots = "requests that one works on at once; more wait there (default 8)"
    option(engines, "--slots", "N", slots, whole(1, 100_000), fleet.slots)
    option(engines, "--max-concurrency", "N", "as in the engines file: more wait in the gateway", whole(1, 1_000_000))
    batching = "an engine's slots share a batch: with b in it each goes on at 1 / (1 + X (b - 1)); 0: they do not"
    option(engines, "--batching", "X", batching, number, 0.0)
    option(engines, "--speeds", "LAW", "of each engine's speed (default 1)", _law_of_numbers, fleet.speed)
    option(engines, "--cache", "N", "prefixes that an engine remembers (default 0)", whole(0, 1_000_000), 0)
    saves = "of the time to the first token, for a prefix that it remembers (default 0.8)"
    option(engines, "--hit-saves", "SHARE", saves, share, fleet.hit_saves)
    option(engines, "--standby", "N", "engines of a second model that stands in for the first", whole(1, 100_000))
    option(engines, "--faults", "FAULTS", "what befalls them, with blanks between: see below", faults, ())

    load = known.add_argument_group("requests")
    option(load, "-a --arrivals", "ARRIVALS", "default poisson:100/s", _arrivals)
    option(load, "--service", "LAW", "time an engine takes for a whole answer (default exponential:300ms)", law_of_time)
    first = "LAW of the time to the first token instead; the others take --per-token each"
    option(load, "--first-token", "LAW", first, law_of_time)
    option(load, "--per-token", "LAW", "with --first-token (default 10ms)", law_of_time, work.per_token)
    shared = "of --service, until the first token (default 0.2)"
    option(load, "--first-share", "SHARE", shared, share, work.first_share)
    option(load, "--prompt-tokens", "LAW", "default lognormal:300,0.8", _law_of_numbers, work.prompt_tokens)
    option(load, "--output-tokens", "LAW", "default lognormal:120,0.8", _law_of_numbers, work.output_tokens)
    option(load, "--stream", "SHARE", "of requests that are streams (default 0)", share, 0.0)
    option(load, "--prefixes", "N[,ZIPF]", "shared beginnings of prompts, the popular ones first", _zipf, (0, 1.0))
    option(load, "--hiccup", "SHARE,FACTOR", "of tries that take so many times as long", _hiccup, (0.0, 1.0))
    source = "take service times and arrivals from a log of decisions or a state database, where not given here"
    option(load, "--from", "FILE", source, Path)

    gateway = known.add_argument_group("gateway")
    strategies = "with commas between them, or all (default round_robin)"
    option(gateway, "-s --strategy", "NAMES", strategies, _strategies, ("round_robin",))
    option(gateway, "--gateways", "N", "each with its own view of the engines (default 1)", whole(1, 1000), 1)
    option(gateway, "--workers", "N", "0: as many as are needed (the default)", whole(0, 1_000_000), rules.workers)
    option(gateway, "--queue-size", "N", "default 1024", whole(1, 10_000_000), rules.queue_size)
    option(gateway, "--queue-timeout", "TIME", "default 30s", positive_s, rules.queue_timeout_s)
    option(gateway, "--request-timeout", "TIME", "default 60s", positive_s, rules.request_timeout_s)
    option(gateway, "--retry-attempts", "N", "tries of a model (default 3)", whole(1, 100), rules.retry_attempts)
    option(gateway, "--hedge-after", "TIME", "ask a second engine after so long, or p95", _hedge)
    option(gateway, "--hedge-ratio", "SHARE", "of requests at most (default 0.1)", share, rules.hedge_ratio)
    option(gateway, "--health-interval", "TIME", "default 5s; 0: no probes", duration_s, rules.health_interval_s)
    option(gateway, "--limit", "LIMITS", "of all requests: rpm:N,tpm:N", _rate_limits, rules.everybody)
    option(gateway, "--key-limit", "LIMITS", "of each key: rpm:N,tpm:N,concurrency:N", _key_limits, rules.key_limits)
    option(gateway, "--keys", "N", "that requests come with, each as often (default 1)", whole(1, 1_000_000), 1)
    option(gateway, "--overhead", "TIME", "what the gateway adds to each answer (default 0)", duration_s, 0.0)

    run = known.add_argument_group("run")
    option(run, "-d --duration", "TIME", "default 60s", positive_s, 60.0)
    option(run, "--warmup", "TIME", "from the start, not counted (default a tenth of --duration)", duration_s)
    option(run, "--price", "IN,OUT", "USD per million tokens of prompts and of answers", _price, Price(0.0, 0.0))
    option(run, "--seed", "N", "the same again (default 1)", whole(0, 2**31 - 1), 1)
    option(run, "--json", "FILE", "the result as JSON; -: to stdout", str)
    option(run, "--html", "FILE", "a page with charts", Path)
    run.add_argument("-q", "--quiet", action="store_true", help="do not say how far it is")
    return known


def _arrivals(text: str) -> Arrivals:
    if not text.startswith("trace:"):
        return arrivals(text)
    path = Path(text[len("trace:") :])
    try:
        with path.open(encoding="utf-8") as file:
            return trace(text, [float(line) for line in file if line.strip()])
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}; a line is a time in seconds") from error


def options_of(argv: Sequence[str], prog: str) -> Options:
    """What the arguments ask. Raises UsageError, and SystemExit as argparse does."""
    typed = parser(prog).parse_args(list(argv))
    try:
        seen = None if typed.__dict__["from"] is None else recorded(typed.__dict__["from"])
    except (OSError, ValueError) as error:
        raise UsageError(f"--from: {typed.__dict__['from']}: {_why(error)}") from error
    if typed.service is not None and typed.first_token is not None:
        raise UsageError("--service and --first-token exclude each other")
    warmup_s = typed.duration / 10 if typed.warmup is None else typed.warmup
    if warmup_s >= typed.duration:
        raise UsageError("--warmup: must be less than --duration")
    if typed.hiccup[0] and typed.hiccup[1] <= 0:
        raise UsageError("--hiccup: must be SHARE,FACTOR, as in 1%,10")
    scenario = Scenario(
        fleet=_fleet(typed, typed.engines),
        standby=None if typed.standby is None else _fleet(typed, typed.standby),
        arrivals=_come(typed.arrivals, seen),
        work=_work(typed, seen),
        rules=_rules(typed),
        faults=typed.faults,
        gateways=typed.gateways,
        duration_s=typed.duration,
        warmup_s=warmup_s,
        overhead_s=typed.overhead,
        price=typed.price,
        seed=typed.seed,
        config=_told(typed, warmup_s),
    )
    _check_hits(scenario)
    return Options(scenario, typed.strategy, typed.json, typed.html, typed.quiet)


def _why(error: Exception) -> str:
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)


def _check_hits(scenario: Scenario) -> None:
    for fault in scenario.faults:
        if fault.engines > scenario.fleet.engines:
            raise UsageError(f"--faults: there are not {fault.engines} engines: {fault.text}")


def _come(given: Optional[Arrivals], seen: Optional[Recorded]) -> Arrivals:
    if given is not None:
        return given
    if seen is not None:
        return trace(f"as in {seen.name}", seen.arrivals_s)
    return arrivals("poisson:100/s")


def _fleet(typed: argparse.Namespace, engines: int) -> Fleet:
    return Fleet(
        engines, typed.slots, typed.max_concurrency, typed.batching, typed.speeds, typed.cache, typed.hit_saves
    )


def _work(typed: argparse.Namespace, seen: Optional[Recorded]) -> Work:
    service = typed.service
    if service is None and seen is not None and typed.first_token is None:
        service = empirical(f"as in {seen.name}", seen.service_s)
    given: dict[str, Any] = {}
    if typed.first_token is not None:
        given.update(service=None, first=typed.first_token)
    elif service is not None:
        given.update(service=service)
    return Work(
        first_share=typed.first_share,
        per_token=typed.per_token,
        prompt_tokens=typed.prompt_tokens,
        output_tokens=typed.output_tokens,
        stream_share=typed.stream,
        hiccup=typed.hiccup,
        prefixes=typed.prefixes[0],
        zipf=typed.prefixes[1],
        **given,
    )


def _rules(typed: argparse.Namespace) -> Rules:
    return Rules(
        workers=typed.workers,
        queue_size=typed.queue_size,
        queue_timeout_s=typed.queue_timeout,
        request_timeout_s=typed.request_timeout,
        first_token_timeout_s=typed.request_timeout,
        retry_attempts=typed.retry_attempts,
        hedge_after_ms=typed.hedge_after,
        hedge_ratio=typed.hedge_ratio,
        health_interval_s=typed.health_interval,
        everybody=typed.limit,
        key_limits=typed.key_limit,
        keys=typed.keys,
    )


def _told(typed: argparse.Namespace, warmup_s: float) -> dict[str, str]:
    """What was asked, as it is told: of what has a name of its own, that name."""
    told: dict[str, str] = {}
    for name, value in vars(typed).items():
        if name in ("json", "html", "quiet") or value is None:
            continue
        if isinstance(value, (Arrivals, Distribution)):
            text = value.text
        elif isinstance(value, tuple) and value and isinstance(value[0], Fault):
            text = " ".join(fault.text for fault in value)
        elif isinstance(value, tuple) and hasattr(value, "_asdict"):
            text = ", ".join(f"{key} {one:g}" for key, one in value._asdict().items() if one) or "none"
        elif isinstance(value, tuple):
            text = ",".join(map(str, value)) or "none"
        else:
            text = str(value)
        told[name] = text
    told["warmup"] = f"{warmup_s:g}"
    return told
