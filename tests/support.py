"""What the socket tests share: a gateway in this process or its own, a strict client, waiting on conditions.

Owns no state but the ports of dead engines. Every wait has a deadline and ends as soon as its condition holds; nothing
here sleeps to let something else happen. Ports are always taken from the system.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, TypeVar, Union

from gateway import settings as gateway_settings
from gateway.app import Gateway
from gateway.mock.server import MockEngine
from gateway.processes.bus import Bus
from gateway.server import metricspage
from gateway.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
MAIN = (str(ROOT / "main.py"),)
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
HOSTS = "gateway,g,x"  # what tests write for a Host, as if it were the gateway's name
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi there"}]}
TIMEOUT_S = 20.0  # for what takes milliseconds, on a machine with other things to do; less than any default
POLL_S = 0.005
# CPython without its lock (3.13t): what another thread has let go of is freed later, and freed memory kept for longer.
FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()

# Who collects the garbage of thousands of tests while it makes one text of metrics takes all of that time at once, and
# who asks next would get the same text.
metricspage.RENDERED_AT_ONCE_S = 60.0

T = TypeVar("T")
Header = tuple[str, str]


# --- waiting -------------------------------------------------------------------------------------------------------


def eventually(condition: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
    """Look at `condition` until it is true and return what it gave; AssertionError after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"not within {timeout_s:g} s; last seen: {value!r}")
        time.sleep(POLL_S)


def thread_names() -> Counter[str]:
    return Counter(thread.name for thread in threading.enumerate())


def assert_no_more_threads(before: Counter[str]) -> None:
    """No name has more threads than it had `before`, at last: one of a timer may take another's place just now. (Others
    may have ended: they can be another test's.)"""
    eventually(lambda: not thread_names() - before)


class SocketTest(unittest.TestCase):
    """A test that opens gateways, engines and connections, and closes them in the opposite order."""

    def enter(self, manager: contextlib.AbstractContextManager[T]) -> T:
        """Enter a context manager until the test has ended (unittest's own enterContext needs 3.11)."""
        value = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return value


# --- engines -------------------------------------------------------------------------------------------------------


def dead_url() -> str:
    """The URL of an engine that is not there. Nobody else gets its port, which is bound and never listened on."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    atexit.register(sock.close)
    return f"http://127.0.0.1:{sock.getsockname()[1]}/v1"


def mock_engine(model: str = "13b", behaviour: str = "ok", **options: Any) -> MockEngine:
    """A mock engine, listening; a context manager that closes it."""
    return MockEngine(model=model, behaviour=behaviour, **options).start()


# --- the gateway in this process -----------------------------------------------------------------------------------


def load_settings(environment: Mapping[str, object]) -> Settings:
    """Settings from variables alone: port 0, no probes and no database unless they say otherwise, no `.env`."""
    nowhere = str(Path(tempfile.gettempdir()) / f"no-such-folder-{os.getpid()}" / "gateway.db")
    texts = {"PORT": "0", "HEALTH_INTERVAL": "0", "STATE_DB": nowhere, "ALLOWED_HOSTS": HOSTS}
    texts.update((name, str(value)) for name, value in environment.items())
    return gateway_settings.load(texts, None)


class RunningGateway:
    """A gateway that serves in this process; `app` is the Gateway, `log` what it has written."""

    def __init__(self, app: Gateway, log: io.StringIO) -> None:
        self.app = app
        self.log = log
        self.host, self.port = app.address
        self.url = app.url

    def connect(self, timeout_s: float = TIMEOUT_S) -> RawClient:
        """A new connection; a context manager."""
        return RawClient(self.port, timeout_s=timeout_s)

    def ask(self, method: str, target: str, body: Any = None, headers: Iterable[Header] = ()) -> Response:
        """One request on a connection of its own. `body`: bytes as they are, anything else as JSON, None: none."""
        with self.connect() as client:
            return client.ask(method, target, body, headers)

    def post(self, body: Any = None, path: str = CHAT, headers: Iterable[Header] = ()) -> Response:
        """An inference request on a connection of its own."""
        return self.ask("POST", path, HI if body is None else body, headers)

    def get(self, target: str, headers: Iterable[Header] = ()) -> Response:
        """A GET on a connection of its own."""
        return self.ask("GET", target, None, headers)

    def log_lines(self) -> list[dict[str, Any]]:
        """Every log line written so far, parsed."""
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def request_lines(self, request_id: Optional[str] = None) -> list[dict[str, Any]]:
        """The log lines of finished requests written so far, or of that one."""
        lines = [line for line in self.log_lines() if line["event"] == "request"]
        return lines if request_id is None else [line for line in lines if line["request_id"] == request_id]

    def request_line(self, request_id: str) -> dict[str, Any]:
        """The log line of a request, as soon as it is there."""
        return eventually(lambda: self.request_lines(request_id))[0]

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels, as printed."""
        return parse_metrics(self.get("/metrics").body)

    def wait_for_metric(self, sample: str, at_least: float, timeout_s: float = TIMEOUT_S) -> float:
        """Wait until a sample has reached a value; returns the value."""

        def reached() -> Optional[float]:
            value = self.metrics().get(sample)
            return value if value is not None and value >= at_least else None

        value = eventually(reached, timeout_s)
        assert value is not None
        return value

    def stop(self, drain_timeout_s: Optional[float] = 0) -> None:
        """Stop at once (None: drain as configured). May be called again."""
        self.app.stop(drain_timeout_s)


@contextlib.contextmanager
def gateway(
    environment: Optional[Mapping[str, object]] = None, *, bus: Optional[Bus] = None, **variables: object
) -> Iterator[RunningGateway]:
    """A gateway serving in this process, e.g. `gateway(ENGINES=f"13b={engine.url}", WORKERS=1)`; with a `bus`, one of
    several that are one."""
    log = io.StringIO()
    settings = load_settings({**(environment or {}), **variables})
    running = RunningGateway(Gateway(settings, log, bus).start(), log)
    try:
        yield running
    finally:
        running.stop()


def engines(**urls_by_model: Union[str, Iterable[str]]) -> str:
    """The value of ENGINES: model names (an underscore in front is dropped: `_13b=`) and their URLs."""
    parts = []
    for name, urls in urls_by_model.items():
        parts.append(f"{name.lstrip('_')}={urls if isinstance(urls, str) else ','.join(urls)}")
    return ";".join(parts)


def parse_metrics(text: bytes) -> dict[str, float]:
    """The samples of Prometheus text: `name{labels}` as printed, to value."""
    samples: dict[str, float] = {}
    for line in text.decode().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            samples[name] = float(value)
    return samples


# --- the client ----------------------------------------------------------------------------------------------------


class Response(NamedTuple):
    """One response as it came; header names in lower case, in order, repeated ones kept."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> Optional[str]:
        """The only header of that name, or None; AssertionError when it is repeated."""
        found = [value for key, value in self.headers if key == name.lower()]
        assert len(found) <= 1, f"{name} came {len(found)} times"
        return found[0] if found else None

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def request_id(self) -> str:
        """The X-Request-ID header."""
        value = self.header("x-request-id")
        assert value is not None, self.headers
        return value

    @property
    def error(self) -> Optional[str]:
        """The error's code, in either error format; None when the body is no error."""
        error = self.json().get("error")
        return error["code"] if isinstance(error, dict) else error


class Closed(AssertionError):
    """The gateway closed the connection where a response, or the rest of one, was due."""


def request_bytes(
    method: str,
    target: str,
    body: Any = None,
    headers: Iterable[Header] = (),
    *,
    version: str = "HTTP/1.1",
    host: Optional[str] = "gateway",
) -> bytes:
    """A request as bytes. `body`: bytes as they are, anything else as JSON, None: none; `host` None: no Host."""
    lines = [f"{method} {target} {version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    payload = b""
    if body is not None:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + payload


class RawClient:
    """One connection to a gateway: sends any bytes, reads responses strictly, never longer than `timeout_s` each.

    Whatever a careful client could not read unambiguously fails with AssertionError: bare line feeds, both or repeated
    lengths, bytes behind a response that nobody asked for (see `assert_quiet`).
    """

    def __init__(self, port: int, host: str = "127.0.0.1", timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self.sock = socket.create_connection((host, port), timeout=timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._body: Optional[str] = None  # how the body under way is framed: chunked, close; None: it is over
        self._text = b""  # decoded body of a stream, not yet taken as events

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave. May be called again."""
        self.sock.close()

    # --- sending

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def request(self, method: str, target: str, body: Any = None, headers: Iterable[Header] = ()) -> None:
        """Send a well-formed HTTP/1.1 request."""
        self.send(request_bytes(method, target, body, headers))

    def ask(self, method: str, target: str, body: Any = None, headers: Iterable[Header] = ()) -> Response:
        """Send a request and read its response."""
        self.request(method, target, body, headers)
        return self.read_response(method)

    def post(self, body: Any = None, path: str = CHAT, headers: Iterable[Header] = ()) -> Response:
        """Send an inference request and read its response."""
        return self.ask("POST", path, HI if body is None else body, headers)

    # --- reading

    def read_response(self, method: str = "GET") -> Response:
        """The next response, complete. `method` is the request's (HEAD: no body). Raises Closed."""
        head = self.read_head(method)
        deadline_s = time.monotonic() + self.timeout_s
        length = head.header("content-length")
        if self._body is None:
            body = b""
        elif self._body == "length":
            body = self._take(int(length or "0"), deadline_s)
            self._body = None
        else:
            parts = []
            while True:
                part = self._body_part(deadline_s)
                if not part:
                    break
                parts.append(part)
            body = b"".join(parts)
        return Response(head.status, head.headers, body)

    def read_head(self, method: str = "GET") -> Response:
        """The head of the next response, with an empty body; events follow through `read_event`."""
        assert self._body is None, "the body of the response before has not been read"
        block = self._take_until(b"\r\n\r\n", time.monotonic() + self.timeout_s)
        status, headers = _parse_head(block)
        response = Response(status, headers, b"")
        coding, length = response.header("transfer-encoding"), response.header("content-length")
        assert coding is None or length is None, "both Content-Length and Transfer-Encoding"
        bodiless = status in (204, 304) or status < 200
        assert not (bodiless and status != 304 and (coding or length)), f"{status} with a length"
        self._text = b""
        if method == "HEAD" or bodiless:
            self._body = None
        elif coding is not None:
            assert coding == "chunked", coding
            self._body = "chunked"
        elif length is not None:
            assert re.fullmatch("[0-9]+", length), length
            self._body = "length"
        else:
            assert response.header("connection") == "close", "neither a length nor a closing connection"
            self._body = "close"
        if self._body == "length":
            self._left = int(length or "0")
        return response

    def read_event(self, mark: bytes = b"\n\n") -> Optional[str]:
        """The next event of the stream without its blank line, e.g. `data: [DONE]`; None when the body has ended.

        `mark` is what ends an event. Raises Closed when the connection ends before the body does.
        """
        deadline_s = time.monotonic() + self.timeout_s
        while True:
            end = self._text.find(mark)
            if end >= 0:
                event, self._text = self._text[:end], self._text[end + len(mark) :]
                return event.decode()
            part = b"" if self._body is None else self._event_part(deadline_s)
            if not part:
                assert not self._text, f"the stream ended inside an event: {self._text!r}"
                return None
            self._text += part

    def read_events(self, mark: bytes = b"\n\n") -> list[str]:
        """All events that are left, until the body has ended."""
        events = []
        while True:
            event = self.read_event(mark)
            if event is None:
                return events
            events.append(event)

    def _event_part(self, deadline_s: float) -> bytes:
        if self._body == "length":
            part = self._take(self._left, deadline_s)
            self._body = None
            return part
        return self._body_part(deadline_s)

    def _body_part(self, deadline_s: float) -> bytes:
        """One chunk, or what has arrived of a body that ends with the connection; b"" at its end."""
        if self._body == "close":
            data, self._buffer = self._buffer, b""
            data = data or self._receive(deadline_s)
            if not data:
                self._body = None
            return data
        line = self._take_until(b"\r\n", deadline_s)
        assert re.fullmatch(rb"[0-9a-fA-F]+", line), f"chunk size {line!r}"
        part = self._take(int(line, 16), deadline_s)
        assert self._take(2, deadline_s) == b"\r\n", "a chunk longer than it said"
        if not part:
            self._body = None
        return part

    def _receive(self, deadline_s: float) -> bytes:
        """More bytes; b"" when the connection has ended. AssertionError when the deadline passes first."""
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise AssertionError(f"nothing within {self.timeout_s:g} s; so far {self._buffer[:500]!r}")
        self.sock.settimeout(left_s)
        try:
            return self.sock.recv(65536)
        except socket.timeout:
            raise AssertionError(f"nothing within {self.timeout_s:g} s; so far {self._buffer[:500]!r}") from None

    def _more(self, deadline_s: float) -> None:
        try:
            data = self._receive(deadline_s)
        except ConnectionError as error:
            raise Closed(f"{error}; so far {self._buffer[:500]!r}") from error
        if not data:
            raise Closed(f"closed; so far {self._buffer[:500]!r}")
        self._buffer += data

    def _take(self, size: int, deadline_s: float) -> bytes:
        while len(self._buffer) < size:
            self._more(deadline_s)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _take_until(self, mark: bytes, deadline_s: float) -> bytes:
        while True:
            end = self._buffer.find(mark)
            if end >= 0:
                data, self._buffer = self._buffer[:end], self._buffer[end + len(mark) :]
                return data
            self._more(deadline_s)

    # --- the end

    def assert_closed(self) -> None:
        """The gateway closes the connection in good order (no reset) and has sent nothing more."""
        deadline_s = time.monotonic() + self.timeout_s
        assert self._buffer == b"", f"unasked: {self._buffer[:500]!r}"
        data = self._receive(deadline_s)
        assert data == b"", f"unasked: {data[:500]!r}"

    def wait_until_ended(self) -> bytes:
        """Read on until the connection has ended, be it by a reset; returns what still came."""
        deadline_s = time.monotonic() + self.timeout_s
        with contextlib.suppress(ConnectionError):
            while True:
                data = self._receive(deadline_s)
                if not data:
                    break
                self._buffer += data
        data, self._buffer = self._buffer, b""
        return data

    def assert_quiet(self) -> None:
        """Nothing has arrived that was not read."""
        assert self._buffer == b"", f"unasked: {self._buffer[:500]!r}"
        self.sock.settimeout(0)
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        raise AssertionError(f"unasked: {data[:500]!r}" if data else "the connection has been closed")


def _parse_head(block: bytes) -> tuple[int, tuple[tuple[str, str], ...]]:
    lines = block.split(b"\r\n")
    first = re.fullmatch(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ([\t\x20-\x7e]*)", lines[0])
    assert first is not None, f"status line {lines[0]!r}"
    headers = []
    for line in lines[1:]:
        field = re.fullmatch(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): *([\t\x20-\x7e\x80-\xff]*)", line)
        assert field is not None, f"header line {line!r}"
        headers.append((field[1].decode().lower(), field[2].decode("latin-1").strip()))
    return int(first[1]), tuple(headers)


def chunk_of(event: str) -> dict[str, Any]:
    """The JSON object in an event."""
    assert event.startswith("data: "), event
    chunk = json.loads(event[len("data: ") :])
    assert isinstance(chunk, dict), event
    return chunk


def content_of(events: Iterable[str]) -> str:
    """The text in the events of a streamed chat answer."""
    chunks = [chunk_of(event) for event in events if event != "data: [DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


# --- the gateway as a process --------------------------------------------------------------------------------------


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            _, _, rest = stat.read_text("utf-8", "replace").rpartition(") ")
            state, parent = rest.split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(stat.parent.name))
    return found


class GatewayProcess:
    """`python main.py`, running; `directory` is its working directory, empty but for what the test puts there."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self.process = process
        self.directory = directory
        self.port = 0

    def serving_pids(self) -> list[int]:
        """The processes that serve: itself, or its children where it is the parent of several."""
        return [self.process.pid]

    @property
    def stdout(self) -> str:
        """What it has printed to stdout so far."""
        return (self.directory / "stdout").read_text("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """What it has printed to stderr so far."""
        return (self.directory / "stderr").read_text("utf-8", "replace")

    @property
    def url(self) -> str:
        """Where it listens, as it printed it."""
        return f"http://127.0.0.1:{self.port}"

    def wait_for_url(self, timeout_s: float = 2 * TIMEOUT_S) -> None:
        """Wait until it listens. AssertionError when it ends before."""

        def printed() -> Optional[re.Match[str]]:
            found = re.search(r"http://[^ \n]*:([0-9]+)\b[^\n]*\n", self.stdout)
            assert found or self.process.poll() is None, f"ended with {self.process.returncode}: {self.stderr}"
            return found

        found = eventually(printed, timeout_s)
        assert found is not None
        self.port = int(found[1])

    def connect(self, timeout_s: float = TIMEOUT_S) -> RawClient:
        """A new connection; a context manager."""
        return RawClient(self.port, timeout_s=timeout_s)

    def ask(self, method: str, target: str, body: Any = None, headers: Iterable[Header] = ()) -> Response:
        """One request on a connection of its own."""
        with self.connect() as client:
            return client.ask(method, target, body, headers)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 2 * TIMEOUT_S) -> int:
        """Wait for its end, before which it may have to start; returns its exit status."""
        return self.process.wait(timeout_s)

    def log_lines(self) -> list[dict[str, Any]]:
        """Every whole JSON line on stderr so far."""
        text = self.stderr
        whole = text[: text.rfind("\n") + 1]  # it may be in the middle of writing one
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


def process_environment(environment: Mapping[str, object]) -> dict[str, str]:
    """The variables a gateway process gets: its own, and what Python needs to run on this system."""
    kept = ("PATH", "HOME", "SYSTEMROOT", "TEMP", "TMP", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    base = {name: os.environ[name] for name in kept if name in os.environ}
    texts = {name: os_text(str(value)) for name, value in environment.items()}
    return {**base, **locale_wanted(), "PYTHONDONTWRITEBYTECODE": "1", **texts}


def locale_wanted() -> dict[str, str]:
    """The variables without which a process of this Python could not run a file whose path is not ASCII: of PyPy where
    there is no locale; else none."""
    try:
        os.fsencode("\u017c")
    except UnicodeEncodeError:
        return {"LC_ALL": "C.UTF-8"}
    return {}


def os_text(text: str) -> str:
    """A file's name, or a variable's value, as this Python hands it to the system in UTF-8, whatever the locale."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


@contextlib.contextmanager
def gateway_process(
    environment: Optional[Mapping[str, object]] = None,
    *arguments: str,
    files: Optional[Mapping[str, str]] = None,
    wait: bool = True,
    program: Sequence[str] = MAIN,
    descriptors: Sequence[int] = (),
    **variables: object,
) -> Iterator[GatewayProcess]:
    """`python main.py [arguments]` on a free port, in a directory with only `files` (name to text); killed at the end.

    With `wait` it listens when this gives it; without, it may end on its own (a refused start, a command). It inherits
    the `descriptors`.
    """
    settings = {"PORT": "0", "HEALTH_INTERVAL": "0", "ALLOWED_HOSTS": HOSTS, **(environment or {}), **variables}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for file_name, text in (files or {}).items():
            (directory / file_name).write_text(text, "utf-8")
        with open(directory / "stdout", "wb") as stdout, open(directory / "stderr", "wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, *program, *arguments],
                cwd=name,
                env=process_environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=descriptors,
            )
        running = GatewayProcess(process, directory)
        try:
            if wait:
                running.wait_for_url()
            yield running
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(TIMEOUT_S)


def run_main(environment: Mapping[str, object], *arguments: str, **options: Any) -> tuple[int, str, str]:
    """Run `python main.py` to its end; returns exit status, stdout and stderr."""
    with gateway_process(environment, *arguments, wait=False, **options) as process:
        status = process.wait()
        return status, process.stdout, process.stderr


HAS_SIGHUP = hasattr(signal, "SIGHUP")
