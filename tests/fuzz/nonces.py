"""Requests with a nonce each over four engines that misbehave at random: nobody may ever see another's.

Three processes: the gateway, the engines (`nonceengines.py`, which says what they do), and this one with the
clients: many conversations at a time on kept connections, plain and streamed, small and large, some of which leave.
Rules:

* no response holds another's nonce, in its head or its body (but for requests that the engines found undecidable,
  which are counted by themselves: see `nonceengines.py`)
* each ends: 200 with its own nonce whole, an error of contract 7, or for a stream an error event; a response that
  may be read in one way only; no 500, nothing late
* the gateway has no exception in its log, and nothing in flight at the end

For a part of the run the gateway is as it is; for most of it `trusting.py`.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

from tests.fuzz.engine import text_of
from tests.fuzz.finding import Report
from tests.fuzz.nonceengines import NONCE
from tests.fuzz.talk import Answer, Await, End, Talk, Talks
from tests.support import MAIN, ROOT, GatewayProcess, eventually, gateway_process

ENGINES = 4
AT_ONCE = 40
BETWEEN_RESTS = 600  # requests; then all are let end, and engines say on idle connections what nobody asked for
PER_CONNECTION = 30  # requests at most
UNCHANGED_SHARE = 0.15  # of the requests go to a gateway that is as it is
TRUSTING = ("-m", "tests.fuzz.trusting")
ERRORS = frozenset((400, 404, 413, 422, 429, 502, 503, 504))
ANSWER_S = 40.0
LINE_S = 30.0  # of the engines' process, for what takes it two seconds
SETTINGS: dict[str, object] = {
    "BREAKER_MIN_REQUESTS": 1_000_000,
    "REQUEST_TIMEOUT": 20,
    "RETRY_ATTEMPTS": 3,
    "CONNECT_TIMEOUT": 10,
    "LOG_FORMAT": "json",
    "LOG_LEVEL": "warning",
    "RATE_LIMIT_TARGET_WAIT": 0,
    "RATE_LIMIT_TARGET_ERRORS": 0,
    "ENGINES_FILE": "engines.json",
    "PYTHONPATH": ROOT,
}


def run(report: Report, requests: int, seconds_at_most: float = 3600.0) -> None:
    """Ask so many requests."""
    end_s = time.monotonic() + seconds_at_most
    unchanged = int(requests * UNCHANGED_SHARE)
    for number, (count, trusting) in enumerate(((unchanged, False), (requests - unchanged, True))):
        if count:
            Run(report, report.seed * 10 + number).run(count, trusting, end_s)


class Run:
    """One gateway, its engines, and the requests to it."""

    def __init__(self, report: Report, seed: int) -> None:
        self._report = report
        self._seed = seed
        self._asked = 0  # requests
        self._foreign: list[tuple[bytes, str]] = []  # the request's nonce, and what it got

    def run(self, count: int, trusting: bool, end_s: float) -> None:
        """Ask `count` requests, or fewer when `end_s` comes first."""
        report = self._report
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            certificate = make_certificate(directory)
            if certificate is None:
                report.note("no openssl: all engines speak plainly")
            with _engines(self._seed, certificate, directory) as engines:
                files = {"engines.json": json.dumps({"models": {"m": {"engines": engines.urls}}})}
                variables = {"SSL_CERT_FILE": certificate[0]} if certificate else {}
                program = TRUSTING if trusting else MAIN
                with gateway_process({**SETTINGS, **variables}, program=program, files=files) as gateway:
                    began_s = time.monotonic()
                    while self._asked < count and time.monotonic() < end_s:
                        some = min(count - self._asked, BETWEEN_RESTS)
                        Talks(AT_ONCE).run(self._talks(gateway.port, some))
                        engines.rest()
                    report.count("seconds asking", round(time.monotonic() - began_s))
                    self._look_at(gateway)
                told = engines.end()
            trails = (directory / "engines.stderr").read_text("utf-8", "replace").splitlines()
        for kind, number in told["kinds"].items():
            report.count(f"engines: {kind}", number)
        undecidable = set(told["undecidable"])
        for nonce, what in self._foreign:
            if nonce.decode() in undecidable:
                report.count("undecidable requests that got another's answer")
            else:
                report.found("own answer", nonce.decode(), what, "\n".join(trail_of(trails, nonce.decode())))

    def _look_at(self, gateway: GatewayProcess) -> None:
        def in_flight() -> int:
            models = gateway.ask("GET", "/health").json()["models"]
            return sum(engine["in_flight"] for model in models.values() for engine in model["engines"])

        try:
            eventually(lambda: in_flight() == 0, 30.0)
        except AssertionError:
            self._report.found("every exchange ends", "-", f"{in_flight()} in flight at the engines")
        for line in gateway.log_lines():
            if line["event"] == "internal_error":
                self._report.note(f"an exception in the log: {line['traceback'].strip().splitlines()[-1][:160]}")

    def _talks(self, port: int, count: int) -> Iterator[tuple[int, Talk]]:
        rng = random.Random(f"{self._seed}/{self._asked}")
        begun = 0
        while begun < count:
            some = min(count - begun, rng.randint(1, PER_CONNECTION))
            begun += some
            yield port, self._connection(random.Random(rng.getrandbits(64)), some)

    def _connection(self, rng: random.Random, count: int) -> Talk:
        """A client's connection, kept as long as the gateway keeps it; what is left is asked on the next."""
        for _ in range(count):
            nonce = f"n-{rng.getrandbits(48):012x}".encode()
            stream = rng.random() < 0.4
            yield request(rng, nonce, stream)
            self._asked += 1
            self._report.count("requests")
            if rng.random() < 0.005:
                self._report.count("clients that left")
                return
            got = yield Await(due_s=ANSWER_S)
            self._judge(nonce, stream, got)
            if isinstance(got, End) or not got.whole or got.header(b"connection") == b"close":
                return

    def _judge(self, nonce: bytes, stream: bool, got: Any) -> None:
        report = self._report
        if isinstance(got, End):
            report.found("each ends", nonce.decode(), f"the client got {got}"[:600])
            return
        seen = b"\n".join((got.body, *(value for _, value in got.headers)))
        foreign = set(NONCE.findall(seen)) - {nonce}
        if foreign:
            self._foreign.append((nonce, f"{sorted(foreign)[:3]} in {got}"[:900]))
            report.count("foreign")
            return
        kind = outcome(nonce, got)
        report.count(f"{'stream' if stream else 'plain'}: {kind}")
        if kind.startswith("bad"):
            report.found("each ends", nonce.decode(), f"{kind}: {got}"[:900])


def outcome(nonce: bytes, got: Answer) -> str:
    """What a client got, in a word or two; beginning with "bad" where that may not be."""
    if got.header(b"x-request-id") != nonce:
        return f"bad id {got.header(b'x-request-id')!r}"
    if got.header(b"content-type").startswith(b"text/event-stream"):
        text = b"".join(re.findall(rb'"content": ?"([^"]*)"', got.body))
        if got.body.rstrip().endswith(b"data: [DONE]"):
            return "200" if text == text_of(nonce).encode() and got.whole else "bad stream"
        last = got.body.rstrip().rpartition(b"\n")[2]
        return "error event" if last.startswith(b'data: {"error"') else "bad end of a stream"
    if not got.whole:
        return "bad: cut short"
    try:
        body = json.loads(got.body)
        if got.status == 200:
            own = body["choices"][0]["message"]["content"] == text_of(nonce)
            return "200" if own and body["id"] == nonce.decode() else "bad answer"
        return f"{got.status} {body['error']}" if got.status in ERRORS else f"bad status {got.status}"
    except (ValueError, KeyError, IndexError, TypeError):
        return "bad body"


def request(rng: random.Random, nonce: bytes, stream: bool) -> bytes:
    """A chat request with its nonce as id and text; now and then a large one."""
    text = nonce.decode() + "x" * rng.choice((0,) * 60 + (3_000, 60_000, 65_536, 200_000))
    more = {"stream_options": {"include_usage": True}} if rng.random() < 0.1 else {}
    message = {"role": "user", "content": text}
    body = json.dumps({"model": "m", "stream": stream, "messages": [message], **more}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-ID: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (nonce, len(body)) + body


def trail_of(lines: Sequence[str], nonce: str) -> list[str]:
    """What the engines did on the connections where a nonce was asked, up to then."""
    found = []
    for number, line in enumerate(lines):
        if nonce in line:
            connection = line.split(" ")[1]
            before = [other for other in lines[: number + 1] if other.split(" ")[1:2] == [connection]]
            found += before[-5:]
    return found


# --- the processes --------------------------------------------------------------------------------------------------


class Engines:
    """The engines' process."""

    def __init__(self, process: subprocess.Popen[str], urls: list[str]) -> None:
        self._process = process
        self.urls = urls

    def rest(self) -> None:
        """No request is under way: let engines send what nobody asked for."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line_of(self._process)

    def end(self) -> Any:
        """Let it end; returns what it did."""
        out, _ = self._process.communicate("", timeout=60.0)
        return json.loads(out.splitlines()[-1])


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that it prints, the only one so far."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], LINE_S)[0], f"the engines have said nothing within {LINE_S:g} s"
    return process.stdout.readline()


@contextlib.contextmanager
def _engines(seed: int, certificate: Optional[tuple[str, str]], directory: Path) -> Iterator[Engines]:
    command = [sys.executable, "-m", "tests.fuzz.nonceengines", str(seed), str(ENGINES), *(certificate or ())]
    with open(directory / "engines.stderr", "wb") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        ports = json.loads(line_of(process))
        schemes = ["http"] * (len(ports) - 1) + ["https" if certificate else "http"]
        yield Engines(process, [f"{scheme}://127.0.0.1:{port}/v1" for scheme, port in zip(schemes, ports)])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(20.0)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def make_certificate(directory: Path) -> Optional[tuple[str, str]]:
    """A certificate of this machine and its key; None without the openssl command."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return None
    certificate, key = str(directory / "cert.pem"), str(directory / "key.pem")
    command = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = subprocess.run([openssl, *command.split(), *names], stderr=subprocess.DEVNULL, check=False)
    return None if made.returncode else (certificate, key)
