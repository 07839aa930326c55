"""`python main.py cache warm|stats|clear`: the cache of a running gateway from the command line, over its HTTP API.

Owns the arguments, the connections (one a thread) and what is printed. `Warming._lock` guards its questions and counts;
it is held neither while anything is asked nor while anything is printed. The key is never printed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, TextIO

from gateway.keys.record import parse_duration
from gateway.tools.asking import KEY_VARIABLE, Address, Answer, Connection, Unusable, UsageError, checked_key
from gateway.tools.prompts import Question, questions_in

FAILED, CONFIGURED_WRONGLY, INTERRUPTED = 1, 2, 130
FAILURES_MAX = 20  # that are named
TERMINAL_S, ELSEWHERE_S = 0.2, 5.0  # between two looks at the progress
PAUSE_S, PAUSE_MAX_S = 0.5, 8.0  # before a 503 that names no time is tried again
LEAVE_S = 1.0  # for threads whose connections have been closed
ADMIN_S = 30.0  # for stats and clear


def cache_command(
    argv: Sequence[str], default_url: Callable[[], str], key: Optional[str] = None, prog: str = "cache"
) -> int:
    """Run one `cache` command; returns the exit status: 0 well, 1 failed, 2 said wrongly, 130 ended by Ctrl-C.

    `default_url` is asked where no --url was given; what it raises goes through. `key` None: none is sent.
    """
    try:
        arguments = _parser(prog).parse_args(argv)
    except SystemExit as error:  # argparse has said what is wrong, or helped
        return CONFIGURED_WRONGLY if error.code else 0
    try:
        gateway = Address.of(default_url() if arguments.url is None else arguments.url, checked_key(key))
        run: Callable[[argparse.Namespace, Address], int] = arguments.run
        return run(arguments, gateway)
    except UsageError as error:
        _say(*error.faults)
        return CONFIGURED_WRONGLY
    except Unusable as error:
        _say(str(error))
        return FAILED


def _say(*texts: str) -> None:
    for text in texts:
        print(f"error: {text}", file=sys.stderr)


# --- warming ---------------------------------------------------------------------------------------------------------


class Warming:
    """Asks every question once, from several threads, and counts what came of it."""

    def __init__(self, questions: Sequence[Question], gateway: Address, timeout_s: float) -> None:
        self.total = len(questions)
        self.counts = dict.fromkeys(("hits", "misses", "not kept", "failed"), 0)
        self.failures: list[str] = []
        self.unusable: Optional[str] = None
        self._gateway = gateway
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._questions = iter(questions)
        self._stopped = threading.Event()
        self._connections: list[Connection] = []
        self._threads: list[threading.Thread] = []
        self._began_s = time.monotonic()

    def start(self, concurrency: int) -> None:
        """Begin, with so many threads at most. Raises Unusable when the system gives none."""
        for number in range(1, min(concurrency, self.total) + 1):
            connection = Connection(self._gateway)
            thread = threading.Thread(target=self._work, args=(connection,), name=f"warm-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if not self._threads:
                    raise Unusable(f"cannot start a thread: {error}") from error
                return
            self._connections.append(connection)
            self._threads.append(thread)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end, or so long; returns whether it has come."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """End before all has been asked."""
        self._stopped.set()
        for connection in self._connections:
            connection.abort()
        self.wait(LEAVE_S)

    def told(self) -> str:
        """How far it is."""
        with self._lock:
            counts = dict(self.counts)
        done, spent_s = sum(counts.values()), time.monotonic() - self._began_s
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        return f"{done}/{self.total}: {listed}, {done / max(spent_s, 1e-6):.1f}/s"

    def _work(self, connection: Connection) -> None:
        with contextlib.closing(connection):
            self._ask_all(connection)

    def _ask_all(self, connection: Connection) -> None:
        while not self._stopped.is_set():
            with self._lock:
                question = next(self._questions, None)
            if question is None:
                return
            result, reason = "failed", ""
            try:
                result, reason = self._ask(connection, question)
            except Unusable as error:
                with self._lock:
                    self.unusable = self.unusable or str(error)
                self._stopped.set()
                return
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            if self._stopped.is_set() and result == "failed":
                return  # it was broken off
            with self._lock:
                self.counts[result] += 1
                if result == "failed" and len(self.failures) < FAILURES_MAX:
                    self.failures.append(f"{question.place}: {reason}")

    def _ask(self, connection: Connection, question: Question) -> tuple[str, str]:
        """What came of it, and why; what a gateway or an engine has no place for now is tried again."""
        deadline_s = time.monotonic() + self._timeout_s
        for attempt in itertools.count():
            left_s = deadline_s - time.monotonic()
            headers = {"X-Gateway-Cache": "on"}
            answer = connection.ask("POST", question.path, question.body, left_s, **headers)
            if answer.status == 200:
                return self._result_of(answer), ""
            pause_s = _pause_s(answer, attempt)
            if pause_s is None or time.monotonic() + pause_s >= deadline_s or self._stopped.wait(pause_s):
                return "failed", answer.error()
        raise AssertionError

    def _result_of(self, answer: Answer) -> str:
        cache = answer.headers.get("X-Gateway-Cache")
        if cache is None:
            raise Unusable(f"CACHE=on is not set at {self._gateway.url}: what it answers is not kept")
        return {"hit": "hits", "near": "hits", "miss": "misses"}.get(cache, "not kept")


def _pause_s(answer: Answer, attempt: int) -> Optional[float]:
    """How long to wait before it is asked again; None: it is in vain."""
    told = answer.headers.get("Retry-After", "")
    if answer.status in (429, 503) and told.isascii() and told.isdigit():
        return float(told)
    return float(min(PAUSE_MAX_S, PAUSE_S * 2 ** min(attempt, 9))) if answer.status == 503 else None


class Progress:
    """Tells how far it is: on a terminal one line, written again and again; elsewhere a line now and then."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self.every_s = TERMINAL_S if self._terminal else ELSEWHERE_S

    def show(self, text: str) -> None:
        """Tell it."""
        self._stream.write(f"\r{text}\x1b[K" if self._terminal else f"{text}\n")
        self._stream.flush()

    def end(self) -> None:
        """Make place for other lines."""
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


@contextlib.contextmanager
def _ctrl_c() -> Iterator[list[bool]]:
    """Has something in it once Ctrl-C was pressed; a second one ends the process at once."""
    pressed: list[bool] = []

    def press(number: int, frame: object) -> None:
        if pressed:
            os._exit(INTERRUPTED)
        pressed.append(True)

    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _warm(arguments: argparse.Namespace, gateway: Address) -> int:
    warming = Warming(questions_in(arguments.file, arguments.model), gateway, arguments.timeout)
    progress = Progress(sys.stderr)
    with _ctrl_c() as interrupted:
        warming.start(arguments.concurrency)
        show_at_s = time.monotonic()
        while not warming.wait(TERMINAL_S) and not interrupted and warming.unusable is None:
            if time.monotonic() >= show_at_s:
                progress.show(warming.told())
                show_at_s = time.monotonic() + progress.every_s
        warming.stop()
        progress.end()
    for failure in warming.failures:
        print(f"failed: {failure}", file=sys.stderr)
    if warming.unusable is None or any(warming.counts.values()):
        print(warming.told())
    if warming.unusable is not None:
        raise Unusable(warming.unusable)
    return INTERRUPTED if interrupted else FAILED if warming.counts["failed"] else 0


# --- the cache's figures, and clearing it ----------------------------------------------------------------------------


def _stats(arguments: argparse.Namespace, gateway: Address) -> int:
    figures = _told(gateway, "GET", "/api/v1/cache/stats", None)
    width = max(map(len, figures), default=0)
    for name, figure in figures.items():
        print(f"{name.ljust(width)}  {figure}")
    return 0


def _clear(arguments: argparse.Namespace, gateway: Address) -> int:
    wanted = {"model": arguments.model, "key": arguments.key, "older_than_s": arguments.older_than}
    body = json.dumps({name: value for name, value in wanted.items() if value is not None}).encode()
    print(f"cleared {_told(gateway, 'POST', '/api/v1/cache/clear', body).get('cleared')}")
    return 0


def _told(gateway: Address, method: str, path: str, body: Optional[bytes]) -> dict[str, Any]:
    """The object that the gateway answers with. Raises Unusable."""
    try:
        with contextlib.closing(Connection(gateway)) as connection:
            answer = connection.ask(method, path, body, ADMIN_S)
        told = json.loads(answer.body) if answer.status == 200 else None
    except (OSError, http.client.HTTPException) as error:
        raise Unusable(f"the gateway at {gateway.url} broke off: {error or type(error).__name__}") from error
    except (ValueError, RecursionError):
        told = None
    if type(told) is not dict:
        raise Unusable(f"the gateway at {gateway.url} answers {answer.error()}")
    return told


# --- the arguments ---------------------------------------------------------------------------------------------------

_LINES = """A line of the file is {"prompt": "..."} or a JSON string, asked as a chat with temperature 0; or a
whole request with messages, prompt (and max_tokens, say), input or query; "path" names the path where that does not
tell it."""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Fill, see and clear the cache of a running gateway.",
        epilog=f"The key to ask with is read from the environment: {KEY_VARIABLE}.",
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    warm = commands.add_parser("warm", help="ask what is in a file, so that the answers are kept", epilog=_LINES)
    warm.add_argument("file", metavar="FILE", type=Path, help="JSONL: one prompt, or one request, a line")
    warm.add_argument("--model", help="for lines that name none")
    warm.add_argument("--concurrency", metavar="N", type=_concurrency, default=8, help="requests at once (default: 8)")
    warm.add_argument("--timeout", metavar="S", type=_seconds, default=120.0, help="seconds a request (default: 120)")
    stats = commands.add_parser("stats", help="what the cache holds, and has saved")
    clear = commands.add_parser("clear", help="drop answers: all, or those of which all that is given is true")
    clear.add_argument("--model", help="of this model")
    clear.add_argument("--key", metavar="NAME", help="of the key of this name")
    clear.add_argument("--older-than", metavar="TIME", type=_duration, help="that are older, as in 1h")
    for command, run in ((warm, _warm), (stats, _stats), (clear, _clear)):
        command.add_argument("--url", help="the gateway (default: by HOST and PORT, http://127.0.0.1:8080)")
        command.set_defaults(run=run)
    return parser


def _concurrency(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= 256:
        return int(text)
    raise argparse.ArgumentTypeError("must be a whole number from 1 to 256")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError("must be a number of seconds, more than 0 and at most 86400")
    return value


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
