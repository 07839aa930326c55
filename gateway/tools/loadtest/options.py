"""The command line of the load test: what may be said, and the plan that it makes. Reads `os.environ` for the key."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import SystemRandom
from typing import Any, Optional

from gateway.tools.arguments import option, parser_of, share, whole
from gateway.tools.asking import UsageError, checked_key
from gateway.tools.loadtest.durations import duration_s, positive_s, rate
from gateway.tools.loadtest.plan import (
    CALLERS,
    DURATION_S,
    OPEN_CONNECTIONS,
    Plan,
    base_of,
    path_and_kind,
    stages_of,
)
from gateway.tools.loadtest.prompts import PATH_BY_KIND, Span
from gateway.tools.loadtest.thresholds import threshold

KEY_VARIABLES = ("LOADTEST_KEY", "GATEWAY_API_KEY", "OPENAI_API_KEY")
_OWN_HEADERS = ("content-length", "transfer-encoding", "connection", "expect")
_FIELD = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t \x21-\x7e\x80-\xff]*)")
_DESCRIPTION = """Load for a gateway or any OpenAI-style server, and how it bears it.

Without --rate, --ramp or --stage it is a closed loop: so many callers, each of whom waits for an answer before asking
again. With one of them it is an open loop: requests are sent at their times, and latency counts from those."""
_EPILOG = """examples:
  {prog} http://127.0.0.1:8080 -c 32 --duration 30s
  {prog} http://127.0.0.1:8080 --rate 200 --arrivals poisson --stream=0.5 --html report.html
  {prog} http://127.0.0.1:8080 --ramp 10:500:60s --fail-if 'p99>500ms' --fail-if 'errors>1%'

exit status: 0 well, 1 a --fail-if failed or the server is not there, 2 wrong arguments"""


def _share(text: str) -> float:
    try:
        return share(text)
    except ValueError as error:
        raise ValueError(f"{error}{'; write --stream=1 before a URL' if '://' in text else ''}") from None


def _span(text: str) -> Span:
    found = re.fullmatch(r"([0-9]{1,7})(?:-([0-9]{1,7}))?", text.strip())
    span = Span(int(found[1]), int(found[2] or found[1])) if found else Span(0, 0)
    if not 1 <= span.least <= span.most <= 1_000_000:
        raise ValueError(f"must be a number of tokens, as in 200, or a range, as in 100-500, not {text!r}")
    return span


def _model(text: str) -> tuple[str, float]:
    name, sign, weight = text.rpartition("=")
    if not sign:
        name, weight = text, "1"
    if not name.strip() or not re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", weight) or not float(weight):
        raise ValueError(f"must be a name, or a name and its weight, as in small=3, not {text!r}")
    return name.strip(), float(weight)


def _header(text: str) -> tuple[str, str]:
    found = _FIELD.fullmatch(text)
    if found is None:
        raise ValueError("must be a name, a colon and a value, as in 'X-Team: blue'")  # it may hold a secret
    if found[1].lower() in _OWN_HEADERS:
        raise ValueError(f"{found[1]} is the load test's own")
    return found[1], found[2].strip()


def _param(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise ValueError(f"must be a name and a value, as in temperature=0, not {text!r}")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def _think(text: str) -> tuple[float, float]:
    least, _, most = text.partition("-")
    pair = duration_s(least), duration_s(most or least)
    if pair[0] > pair[1]:
        raise ValueError(f"must be a time or a range of times, as in 1s-3s, not {text!r}")
    return pair


def _ramp(text: str) -> tuple[Optional[float], float, float]:
    parts = text.split(":")
    if len(parts) != 3:
        raise ValueError(f"must be FROM:TO:TIME, as in 10:500:60s, not {text!r}")
    return rate(parts[0]), rate(parts[1]), positive_s(parts[2])


def _stage(text: str) -> tuple[Optional[float], float, float]:
    parts = text.split(":")
    if len(parts) != 2:
        raise ValueError(f"must be TIME:RATE, as in 30s:100, not {text!r}")
    return None, rate(parts[1]), positive_s(parts[0])


def parser(prog: str) -> argparse.ArgumentParser:
    """What may be said."""
    known = parser_of(prog, "[options] URL", _DESCRIPTION, _EPILOG)
    known.add_argument("url", metavar="URL", help="the server's base, as in http://127.0.0.1:8080")
    load = known.add_argument_group("how much")
    callers = f"closed loop: callers (default {CALLERS}); open: connections at most ({OPEN_CONNECTIONS})"
    option(load, "-c --connections", "N", callers, whole(1, 100_000))
    option(load, "--think", "TIME", "closed loop: pause of a caller before asking again: 500ms, 1s-3s", _think)
    option(load, "-r --rate", "R", "open loop: requests a second: 100, 2.5, 90/m", rate)
    load.add_argument("--arrivals", choices=("constant", "poisson"), help="open loop: evenly (default), or by chance")
    ramp = "open loop: from one rate to another, as in 10:500:60s; may be repeated"
    option(load, "--ramp", "FROM:TO:TIME", ramp, _ramp, all_as="segments")
    stage = "open loop: from the rate before to this one, as in 30s:100; may be repeated"
    option(load, "--stage", "TIME:RATE", stage, _stage, all_as="segments")
    duration = f"how long (default {DURATION_S:g}s, with --requests until they are done)"
    option(load, "-d --duration", "TIME", duration, positive_s)
    option(load, "-n --requests", "N", "so many requests at most, all told", whole(1, 10**9))
    option(load, "--warmup", "TIME", "time before, in which nothing counts", duration_s, default=0.0)

    what = known.add_argument_group("what is asked")
    model = "may be repeated for a mix (default: the first that the server lists)"
    option(what, "-m --model", "NAME[=WEIGHT]", model, _model, all_as="models")
    what.add_argument("--kind", choices=tuple(PATH_BY_KIND), help="default: as --path says, or chat")
    option(what, "--path", "PATH", "another than the kind's own")
    texts = what.add_mutually_exclusive_group()
    option(texts, "--prompt", "TEXT", "what to ask")
    option(texts, "--prompts", "FILE", "what to ask, by chance: JSON lines, or a text a line", Path)
    option(texts, "--prompt-tokens", "N[-M]", "made-up prompts of about so many tokens", _span)
    prefix = "about so many made-up tokens before each prompt, always the same"
    option(what, "--shared-prefix", "N", prefix, whole(1, 1_000_000), default=0)
    unique = "each prompt begins with a mark of its own: no cache knows it"
    what.add_argument("--unique", action="store_true", help=unique)
    option(what, "--max-tokens", "N[-M]", "as the request's max_tokens", _span)
    stream = "ask for streams, or for this share of them: --stream=0.5"
    option(what, "--stream", "SHARE", stream, _share, default=0.0, nargs="?", const=1.0)
    usage = "do not ask for usage in streams: count their events"
    what.add_argument("--no-stream-usage", action="store_true", help=usage)
    param = "another member of each request, in JSON or a text: temperature=0"
    option(what, "-p --param", "NAME=VALUE", param, _param, all_as="params")
    option(what, "-H --header", "'NAME: VALUE'", "may be repeated", _header, all_as="headers")
    key = f"sent as Bearer; better in {', '.join(KEY_VARIABLES)}, since others see a command line"
    option(what, "--key", "KEY", key)
    option(what, "--seed", "N", "the same requests at the same times again", whole(0, 2**31 - 1))

    how = known.add_argument_group("how")
    option(how, "--timeout", "TIME", "for an answer (default 60s)", positive_s, default=60.0)
    option(how, "--connect-timeout", "TIME", "default 5s", positive_s, default=5.0)
    how.add_argument("--no-keepalive", action="store_true", help="a connection for each request")
    interval = "closed loop: count what a caller meant to ask so often would have seen, too"
    option(how, "--expected-interval", "TIME", interval, positive_s, default=0.0)
    how.add_argument("--insecure", action="store_true", help="take any certificate")
    option(how, "--cacert", "FILE", "certificates to trust instead of the system's", Path)

    told = known.add_argument_group("what is told")
    told.add_argument("--json", dest="json_file", metavar="FILE", help="everything, for programs; - is stdout")
    told.add_argument("--html", dest="html_file", type=Path, metavar="FILE", help="one page with charts")
    option(told, "--title", "TEXT", "of the page", default="")
    rule = "exit status 1 when it holds: 'p99>500ms', 'ttft_p95>2s', 'errors>1%', 'rate<100', 'tokens<50'"
    option(told, "--fail-if", "RULE", rule, threshold, all_as="thresholds")
    told.add_argument("-q", "--quiet", action="store_true", help="no progress")
    return known


def plan_of(argv: Sequence[str], prog: str, environment: Mapping[str, str] = os.environ) -> Plan:
    """The plan that a command line makes. Raises SystemExit as argparse does, having told what is wrong."""
    known = parser(prog)
    options = known.parse_args(argv)
    try:
        return _plan(options, environment)
    except UsageError as error:
        known.error(str(error))


def _plan(options: argparse.Namespace, environment: Mapping[str, str]) -> Plan:
    base = base_of(options.url)
    path, kind = path_and_kind(options.path, options.kind)
    segments = options.segments or []
    open_loop = options.rate is not None or bool(segments)
    for given, name, why in (
        (open_loop and options.think, "--think", "callers who think are a closed loop's; take --rate away"),
        (open_loop and options.expected_interval, "--expected-interval", "an open loop needs no correction"),
        (not open_loop and options.arrivals, "--arrivals", "needs --rate, --ramp or --stage"),
        (kind == "embeddings" and options.stream, "--stream", "embeddings have no streams"),
        (kind == "embeddings" and options.max_tokens, "--max-tokens", "embeddings have none"),
        (options.cacert and not base.secure, "--cacert", "is for an https:// URL"),
        (options.insecure and not base.secure, "--insecure", "is for an https:// URL"),
    ):
        if given:
            raise UsageError(f"{name}: {why}")
    duration, limit = options.duration, options.requests
    if duration is None and limit is None and not segments:
        duration = DURATION_S
    stages = stages_of(options.rate, segments, duration, limit, options.warmup) if open_loop else ()
    if segments and duration is None:
        duration = sum(stage.duration_s for stage in stages) - options.warmup
    key, key_from = _key(options.key, environment)
    return Plan(
        base=base,
        kind=kind,
        path=path,
        models=tuple(options.models or ()),
        connections=options.connections or (OPEN_CONNECTIONS if open_loop else CALLERS),
        duration_s=duration,
        limit=limit,
        warmup_s=options.warmup,
        stages=stages,
        poisson=options.arrivals == "poisson",
        think_s=options.think or (0.0, 0.0),
        expected_s=options.expected_interval,
        seed=SystemRandom().randrange(2**31) if options.seed is None else options.seed,
        timeout_s=options.timeout,
        connect_s=options.connect_timeout,
        keepalive=not options.no_keepalive,
        prompt=options.prompt,
        prompts=options.prompts,
        prompt_tokens=options.prompt_tokens,
        shared_prefix=options.shared_prefix,
        unique=options.unique,
        max_tokens=options.max_tokens,
        stream_share=options.stream,
        stream_usage=not options.no_stream_usage,
        params=dict(options.params or ()),
        headers=tuple(options.headers or ()),
        key=key,
        key_from=key_from,
        insecure=options.insecure,
        ca_file=options.cacert,
        thresholds=tuple(options.thresholds or ()),
        json_file=options.json_file,
        html_file=options.html_file,
        title=options.title,
        quiet=options.quiet,
    )


def _key(typed: Optional[str], environment: Mapping[str, str]) -> tuple[Optional[str], str]:
    """The key, and where it is from. Raises UsageError, which does not show it."""
    given = {name: environment.get(name) for name in KEY_VARIABLES} if typed is None else {"--key": typed}
    for name, text in given.items():
        key = checked_key(text, name)
        if key is not None:
            return key, name
    if typed is not None:
        raise UsageError("--key: must not be empty")
    return None, ""
