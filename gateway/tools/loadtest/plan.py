"""What is to be done: everything that the command line has said, checked, as values. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

from gateway.tools.asking import UsageError
from gateway.tools.loadtest.arrivals import Stage
from gateway.tools.loadtest.prompts import PATH_BY_KIND, Span
from gateway.tools.loadtest.thresholds import Threshold

DURATION_S = 10.0  # when nothing says how long
CALLERS, OPEN_CONNECTIONS = 10, 1000


@dataclass(frozen=True)
class Base:
    """Where the server is: what a URL says. `prefix`: of every path; `authority`: as it stands in a Host header."""

    url: str
    secure: bool
    host: str
    port: int
    authority: str
    prefix: str


@dataclass(frozen=True)
class Plan:
    """One run. Times in seconds; `stages` (the warm-up first) are those of an open loop, empty in a closed one;
    `duration_s` and `limit` None: that does not end it."""

    base: Base
    kind: str
    path: str
    models: tuple[tuple[str, float], ...]  # with weights; none: the server is asked for one
    connections: int
    duration_s: Optional[float]
    limit: Optional[int]
    warmup_s: float
    stages: tuple[Stage, ...]
    poisson: bool
    think_s: tuple[float, float]
    expected_s: float
    seed: int
    timeout_s: float
    connect_s: float
    keepalive: bool
    prompt: Optional[str]
    prompts: Optional[Path]
    prompt_tokens: Optional[Span]
    shared_prefix: int
    unique: bool
    max_tokens: Optional[Span]
    stream_share: float
    stream_usage: bool
    params: Mapping[str, Any]
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    key: Optional[str] = field(repr=False)
    key_from: str
    insecure: bool
    ca_file: Optional[Path]
    thresholds: tuple[Threshold, ...]
    json_file: Optional[str]
    html_file: Optional[Path]
    title: str
    quiet: bool

    @property
    def open_loop(self) -> bool:
        """Whether requests come at their times, whatever comes of them."""
        return bool(self.stages)


def base_of(text: str) -> Base:
    """What a server's URL says; it may end with /v1. Raises UsageError."""
    example = "as in http://127.0.0.1:8080"
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, parts.port
        parts.path.encode("ascii")
        authority = parts.netloc.encode("idna" if "[" not in parts.netloc else "ascii").decode()
    except ValueError as error:
        raise UsageError(f"URL: {text!r} is none ({error}); {example}") from error
    if parts.scheme not in ("http", "https") or not host:
        share = " (a share of streams is written --stream=0.5)" if text.replace(".", "").isdigit() else ""
        raise UsageError(f"URL: {text!r} must begin with http:// or https:// and name a host, {example}{share}")
    if parts.username is not None or parts.password is not None:
        raise UsageError("URL: must hold no user and no password; a key comes from LOADTEST_KEY or --header")
    if parts.query or parts.fragment:
        raise UsageError(f"URL: must end before ? and #, {example}")
    if any(not 0x21 <= ord(one) <= 0x7E for one in parts.path):
        raise UsageError(f"URL: its path holds a character that a path cannot, {example}")
    secure = parts.scheme == "https"
    path = parts.path.rstrip("/")
    prefix = path[: -len("/v1")] if path.endswith("/v1") else path
    return Base(
        f"{parts.scheme}://{authority}{prefix}", secure, host, port or (443 if secure else 80), authority, prefix
    )


def path_and_kind(path: Optional[str], kind: Optional[str]) -> tuple[str, str]:
    """Both, of which one may tell the other. Raises UsageError."""
    if path is None:
        kind = kind or "chat"
        return PATH_BY_KIND[kind], kind
    if not path.startswith("/") or any(not 0x21 <= ord(one) <= 0x7E for one in path):
        raise UsageError(f"--path: must begin with / and be ASCII without blanks, not {path!r}")
    if kind is None:
        found = [name for name, known in PATH_BY_KIND.items() if path.partition("?")[0].endswith(known)]
        kind = found[0] if found else "chat"
    return path, kind


def stages_of(
    rate: Optional[float],
    segments: Sequence[tuple[Optional[float], float, float]],
    duration_s: Optional[float],
    limit: Optional[int],
    warmup_s: float,
) -> tuple[Stage, ...]:
    """The stages of an open loop: `rate` first; each segment goes from its first rate (None: from where the one before
    ended, at first `rate` or 0) to its second within its third, seconds; then its last rate until `duration_s` is over.
    Raises UsageError."""
    now = rate or 0.0
    stages = []
    for begin, end, takes_s in segments:
        stages.append(Stage(now if begin is None else begin, end, takes_s))
        now = end
    takes_s = sum(stage.duration_s for stage in stages)
    if not stages:
        stages.append(Stage(now, now, math.inf if duration_s is None else duration_s))
    elif duration_s is not None and duration_s < takes_s:
        raise UsageError(f"--duration: {duration_s:g} s are less than the stages take, {takes_s:g} s")
    elif duration_s is not None and duration_s > takes_s:
        stages.append(Stage(now, now, duration_s - takes_s))
    rates = [one for stage in stages for one in stage[:2]]
    if not any(rates):
        raise UsageError("--rate: must be more than 0")
    if limit is not None and limit < 1:
        raise UsageError("--requests: must be at least 1")
    if warmup_s:
        first = next(one for one in rates if one)
        stages.insert(0, Stage(first, first, warmup_s))
    return tuple(stages)
