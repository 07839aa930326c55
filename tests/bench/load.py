"""Closed-loop request load: wrk, one thread, the same chat request over and over.

Owns the Lua script (it sets the request once, so wrk builds its bytes once, and prints the counts
and percentiles as JSON). Every run is bounded: duration plus a margin, then wrk is killed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from . import payloads
from .processes import BenchError

_MARGIN_S = 30.0
_MARK = "BENCH "

_SCRIPT = """\
wrk.method = "POST"
wrk.path = {path}
wrk.body = {body}
{headers}
{request}
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{mark}{{"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,' ..
    '"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect, e.read, e.write, e.timeout, e.status))
end
"""


class LoadResult(NamedTuple):
    """One run of wrk: `errors` counts by kind (`status` is an answer above 399), zeros left out."""

    requests: int
    duration_s: float
    p50_us: int
    p99_us: int
    errors: dict[str, int]


def available() -> bool:
    """Tells whether wrk is installed."""
    return shutil.which("wrk") is not None


def run(
    port: int,
    headers: Mapping[str, str],
    connections: int,
    seconds: float,
    run_dir: Path,
    fresh_connections: bool = False,
    request_lua: str = "",
) -> LoadResult:
    """Drives 127.0.0.1:`port` for `seconds` (rounded up to whole ones) over `connections`.

    `fresh_connections` asks the gateway to close after each answer, so each request opens its own. `request_lua`
    defines `request`, where requests are not all the same.
    Raises BenchError when wrk fails or does not end.
    """
    script = run_dir / "load.lua"
    extra = {"Content-Type": "application/json"}
    if fresh_connections:
        extra["Connection"] = "close"
    script.write_text(_script({**headers, **extra}, request_lua))
    whole_s = max(1, int(-(-seconds // 1)))
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{whole_s}s", "--timeout", "20s"]
    argv += ["-s", str(script), f"http://127.0.0.1:{port}"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=whole_s + _MARGIN_S)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BenchError(f"wrk: {exc}") from exc
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            return _result(json.loads(line[len(_MARK) :]))
    raise BenchError(f"wrk printed no result: {done.stdout[-300:]} {done.stderr[-300:]}")


def _script(headers: Mapping[str, str], request_lua: str) -> str:
    lines = "\n".join(f"wrk.headers[{lua(name)}] = {lua(value)}" for name, value in headers.items())
    body = lua(payloads.chat_request().decode())
    return _SCRIPT.format(path=lua(payloads.CHAT_PATH), body=body, headers=lines, request=request_lua, mark=_MARK)


def lua(text: str) -> str:
    """Returns `text` as a literal of Lua's."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _result(counts: dict[str, int]) -> LoadResult:
    kinds = ("connect", "read", "write", "timeout", "status")
    return LoadResult(
        requests=counts["requests"],
        duration_s=counts["duration_us"] / 1e6,
        p50_us=counts["p50_us"],
        p99_us=counts["p99_us"],
        errors={kind: counts[kind] for kind in kinds if counts[kind]},
    )
