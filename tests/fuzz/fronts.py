"""Odd requests through real HAProxy and nginx: the gateway never sees more requests than the front has sent.

What is told apart here, and why it can fail: a front and the gateway each decide from the same bytes where a
request ends. If the gateway ended one earlier, the rest of its body, which the client wrote, would be read as a
request that the front never judged, on a connection that it shares among clients. So the oracle is the front's own
account: HAProxy and nginx write a line for every request, saying whether they sent it to the gateway (a server's
name, an upstream address; one line for each: they are told never to send twice). Against it stand the gateway's
lines, one for each request that it read or refused. Rules:

* in all, the gateway has no more lines than the front has requests sent (what it could not read counts as a
  request)
* `GET /smuggled-<id>`, hidden in bodies, is in the gateway's lines no more often than in the front's as sent
* no client gets the nonce of another

It fails for a gateway that ignores `Transfer-Encoding` (tests/process/test_fuzz_fronts.py breaks one so and sees it
found), that ends a chunk elsewhere, or that takes `Transfer_Encoding`, which both fronts pass on, for a coding. What
they refuse or rewrite themselves (`xchunked`, both lengths) never comes so far; heads.py and bodies.py try that
directly.

HAProxy is run as it comes, with `http-server-close`, and with what it calls accept-invalid-http-request; nginx with
and without buffering of requests, passing on header names that it would drop. All keep few connections to the
gateway, for all clients.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from tests.fuzz import frontcorpus
from tests.fuzz.checks import Watched, watched
from tests.fuzz.finding import Report, rng_of, shown
from tests.fuzz.talk import PAUSE, Collect, Talk, Talks
from tests.programs import program
from tests.support import eventually

AT_ONCE = 48
BATCH = 250  # cases between two looks at the accounts
SETTLE_S = 3.0
EXAMPLES = 3
MARK = "/mark-"
NONCE = re.compile(rb"case-[0-9a-f]{12}")
SMUGGLED = re.compile(r"/smuggled-[0-9]+")
REQUIRED = "REQUIRE_FRONTS"

HAPROXY = """
global
    maxconn 2000
    nbthread 1
    log stdout format raw local0
defaults
    mode http
    log global
    log-format "R|%s|%HM|%ST|%HU"
    retries 0
    timeout connect 5s
    timeout client 1s
    timeout server 10s
    timeout http-request 1s
    timeout http-keep-alive 1s
{options}
frontend front
    bind 127.0.0.1:{port}
{front_options}
    default_backend gateway
backend gateway
    http-reuse always
    server gateway 127.0.0.1:{gateway} maxconn 6
"""
NGINX = """
daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/error.log crit;
events {{ worker_connections 1024; }}
http {{
    log_format odd 'R|$upstream_addr|$request_method|$status|$request_uri';
    access_log {directory}/access.log odd;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    client_header_timeout 1s; client_body_timeout 1s; keepalive_timeout 2s; send_timeout 5s; lingering_timeout 1s;
    upstream gateway {{ server 127.0.0.1:{gateway}; keepalive 6; }}
    server {{
        listen 127.0.0.1:{port};
        merge_slashes off;
{options}
        location / {{
            proxy_pass http://gateway;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream off;
            proxy_read_timeout 10s;
{location}
        }}
    }}
}}
"""
ODD_NAMES = "        ignore_invalid_headers off; underscores_in_headers on;"


class Front(NamedTuple):
    """A front and how it is set. `template`, with `parts` put in, is its configuration."""

    name: str
    program: str
    template: str
    parts: dict[str, str]


FRONTS = (
    Front("haproxy", "haproxy", HAPROXY, {"options": "", "front_options": ""}),
    Front(
        "haproxy, server-close", "haproxy", HAPROXY, {"options": "    option http-server-close", "front_options": ""}
    ),
    Front(
        "haproxy, lenient",
        "haproxy",
        HAPROXY,
        {"options": "", "front_options": "    option accept-invalid-http-request"},
    ),
    Front("nginx", "nginx", NGINX, {"options": ODD_NAMES, "location": "            proxy_request_buffering on;"}),
    Front(
        "nginx, unbuffered",
        "nginx",
        NGINX,
        {"options": ODD_NAMES, "location": "            proxy_request_buffering off;"},
    ),
)


def missing() -> list[str]:
    """The programs that are not installed."""
    return sorted({front.program for front in FRONTS if program(front.program) is None})


def run(report: Report, cases: int, case: Optional[int] = None, fronts: Sequence[Front] = FRONTS) -> None:
    """Send `cases` cases, or only `case`, through every front that is installed. With REQUIRE_FRONTS=1 a missing one is
    a finding."""
    lacking = missing()
    if lacking and os.environ.get(REQUIRED) == "1":
        report.found("installed", "-", f"{REQUIRED}=1, but {', '.join(lacking)} is missing")
    for name in lacking:
        report.note(f"{name} is not installed: nothing was tried through it")
    numbers = range(cases) if case is None else [case]
    for front in fronts:
        if program(front.program) is not None:
            Through(report, front).run(numbers)


class Through:
    """One front in front of one gateway."""

    def __init__(self, report: Report, front: Front) -> None:
        self._report = report
        self._front = front
        self._seen: list[str] = []  # the path of every request that the gateway has read; - : could not read
        self._issued: set[bytes] = set()
        self._gateway: Watched
        self._marks = 0
        self._marked: list[str] = []
        self._known = 0  # requests that the gateway has read too many, as has been told
        self._told: set[str] = set()

    def run(self, numbers: Sequence[int]) -> None:
        """Send these cases."""
        settings = {"LOG_LEVEL": "debug", "CLIENT_TIMEOUT": 3, "KEEPALIVE_TIMEOUT": 30}
        with tempfile.TemporaryDirectory() as name:
            with watched(self._report, settings, on_request=self._on_request) as gateway:
                self._gateway = gateway
                with _serving(self._front, gateway.port, Path(name)) as (port, account):
                    for start in range(0, len(numbers), BATCH):
                        batch = numbers[start : start + BATCH]
                        Talks(AT_ONCE).run((port, self._talk(number)) for number in batch)
                        self._report.count(f"cases through {self._front.name}", len(batch))
                        if not self._settled(account):
                            self._look_at_each(port, batch, account)
                            break
                    self._report.count(f"read from {self._front.name}", len(self._seen))
                    self._report.count(f"sent by {self._front.name}", len(account()))

    def _on_request(self, line: dict[str, Any]) -> None:
        path = str(line["path"])
        (self._marked if path.startswith(MARK) else self._seen).append(path)

    def _settled(self, account: Account) -> bool:
        """Whether the accounts agree, at the latest when the last lines have been written."""
        end_s = time.monotonic() + SETTLE_S
        while self._gateway.app.pipeline.in_flight and time.monotonic() < end_s:
            time.sleep(0.01)
        self._mark()
        while self._excess(account):
            if time.monotonic() > end_s:
                return False
            time.sleep(0.02)
        return True

    def _mark(self) -> None:
        """Wait until everything that the gateway has done so far stands in its log: a line is written in its turn."""
        self._marks += 1
        mark = f"{MARK}{self._marks}"
        with socket.create_connection(("127.0.0.1", self._gateway.port), timeout=SETTLE_S) as sock:
            sock.sendall(f"GET {mark} HTTP/1.0\r\n\r\n".encode())
            while sock.recv(65536):
                pass
        eventually(lambda: mark in self._marked)

    def _excess(self, account: Account) -> str:
        """What the gateway has seen and the front has not sent, from the beginning; empty when all is well."""
        read = list(self._seen)  # first: the front may have sent more since, and not the other way round
        sent = account()
        if len(read) > len(sent) + self._known:
            return f"the front sent {len(sent)}, the gateway read {len(read)}; last {read[-6:]}, sent last {sent[-3:]}"
        new = {path: number for path, number in never_sent(read, sent).items() if path not in self._told}
        return f"never sent: {new}" if new else ""

    def _forget(self, account: Account) -> None:
        """What there is now has been told."""
        read, sent = list(self._seen), account()
        self._known = max(0, len(read) - len(sent))
        self._told |= set(never_sent(read, sent))

    def _look_at_each(self, port: int, batch: Sequence[int], account: Account) -> None:
        """The accounts differ: by which case?"""
        first = self._excess(account)
        self._forget(account)
        found = 0
        for number in batch:
            Talks(1).run(iter([(port, self._talk(number))]))
            if not self._settled(account):
                self._tell(number, self._excess(account))
                self._forget(account)
                found += 1
                if found == EXAMPLES:
                    return
        if not found:
            self._tell(batch[0], f"only among the {len(batch)} cases from this one on: {first}")

    def _tell(self, number: int, what: str) -> None:
        _, segments = self._made(number)
        self._report.found(
            "no request that the front did not send", number, f"{self._front.name}: {what}", shown(segments)
        )

    def _made(self, number: int) -> tuple[bytes, list[bytes]]:
        """A case's nonce and its segments."""
        nonce = f"case-{rng_of('nonce', self._report.seed, number).getrandbits(48):012x}"
        self._issued.add(nonce.encode())
        return nonce.encode(), frontcorpus.case(rng_of("fronts", self._report.seed, number), number, nonce)

    def _talk(self, number: int) -> Talk:
        nonce, segments = self._made(number)
        for segment in segments:
            yield segment
            yield PAUSE
        got = yield Collect()
        for status in re.findall(rb"HTTP/1\.[01] ([0-9]{3}) ", got):
            self._report.count(f"status {status.decode()}")
        if b"HTTP/1.1 500" in got:
            self._report.found("no 500", number, f"{got[:300]!r}", shown(segments))
        foreign = self._issued.intersection(NONCE.findall(got)) - {nonce}
        if foreign:
            self._report.found("own answer", number, f"{self._front.name}: {foreign} in {got[:600]!r}", shown(segments))


def never_sent(read: Sequence[str], sent: Sequence[str]) -> Counter[str]:
    """The hidden requests that the gateway has read more often than the front has sent them."""
    return Counter(SMUGGLED.findall(" ".join(read))) - Counter(SMUGGLED.findall(" ".join(sent)))


# --- the fronts' processes ------------------------------------------------------------------------------------------


class Account:
    """What a front says it has sent to the gateway, from its log."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> list[str]:
        """The target of every request sent so far. One that was sent twice is there twice."""
        found = []
        for line in self._path.read_text("latin-1").splitlines():
            parts = line.split("|", 4)
            if len(parts) == 5 and parts[0] == "R" and parts[1] not in ("-", "", "<NOSRV>"):
                found += [parts[4]] * (parts[1].count(",") + 1)
        return found


@contextlib.contextmanager
def _serving(front: Front, gateway_port: int, directory: Path) -> Iterator[tuple[int, Account]]:
    """The front, listening; gives its port and its account."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    configuration = directory / "front.conf"
    text = front.template.format(port=port, gateway=gateway_port, directory=directory, **front.parts)
    configuration.write_text(text, "ascii")
    executable = program(front.program) or front.program
    arguments = ["-db", "-f"] if front.program == "haproxy" else ["-p", str(directory), "-c"]
    # One thread, appending: of two lines written at once one would be lost, and count as not sent.
    with open(directory / "stdout", "ab") as stdout, open(directory / "stderr", "ab") as stderr:
        process = subprocess.Popen([executable, *arguments, str(configuration)], stdout=stdout, stderr=stderr)
    try:
        _wait_for(port, process, directory)
        log = directory / ("stdout" if front.program == "haproxy" else "access.log")
        yield port, Account(log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5.0)


def _wait_for(port: int, process: subprocess.Popen[bytes], directory: Path) -> None:
    end_s = time.monotonic() + 15.0
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5.0).close()
            return
        except OSError:
            said = (directory / "stderr").read_text("utf-8", "replace")
            assert process.poll() is None and time.monotonic() < end_s, f"the front did not start: {said[-2000:]}"
            time.sleep(0.02)
