"""Follows README and docs in a terminal, as somebody does who pastes one block after another: tests/smoke.sh says how.

A shell runs on a pseudo-terminal: Ctrl-C, jobs and exports are what they are for a user. Before each block it waits for
what the one before has started to say that it is ready, as a reader does. When a file ends, nothing of it may run.
Owns that shell and ends all that it has started.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import importlib.util
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Optional

from tests.readme_examples import (
    CURLRC,
    README,
    ROOT,
    TEXTS,
    Example,
    examples,
    free_prefix,
    is_free,
    moved,
    ports,
    shown_matches,
    without_statuses,
)

# The last line that each of them prints at its start, to a terminal.
READY = re.compile(r"^(?:Ctrl-C to stop$|mock engine .* at http|\d+ mock engines run)", re.MULTILINE)
ADDRESS = re.compile(r"^inference gateway at (http\S+)", re.MULTILINE)
BLOCK_S = 60.0
TESTS_S = 900.0
# A terminal takes 4096 bytes ahead of who reads it.
PASTED_MAX = 3000
_CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")  # colours and the like
_NOTICE = re.compile(r"^\[\d+\][+-]? .*\n", re.MULTILINE)  # what a shell says of its jobs


class Silence(Exception):
    """What was waited for has not come."""


class Terminal:
    """One interactive shell. One thread."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        shell = shutil.which("bash") or "bash"
        self._raw = self._seen = ""  # what was printed since the last `paste`, and that without colours
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ended = 0
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve(shell, ["bash", "--norc", "--noprofile", "--noediting", "-i"], environment)
        self._type("PS1= PS2=; stty -echo\n")
        self.paste("")
        self.end(BLOCK_S)

    def paste(self, code: str) -> None:
        """Type `code`, and forget what has been printed."""
        if len(code.encode()) > PASTED_MAX:
            raise ValueError(f"a block of more than {PASTED_MAX} bytes is not pasted whole")
        self._raw = self._seen = ""
        self._type(code)

    def end(self, limit_s: float) -> tuple[str, int]:
        """Wait until the shell takes commands again: what was printed, and the status of the last command."""
        self._ended += 1
        self._type(f"printf '\\036%d:%d\\036' {self._ended} $?\n")
        ended = self.wait(re.compile(f"\x1e{self._ended}:(\\d+)\x1e"), limit_s)
        return _NOTICE.sub("", self._seen[: ended.start()]), int(ended[1])

    def wait(self, what: re.Pattern[str], limit_s: float, times: int = 1) -> re.Match[str]:
        """Wait until that has been printed so many times since the last `paste`; the last one. Raises Silence."""
        deadline = time.monotonic() + limit_s
        while True:
            found = list(what.finditer(self._seen))
            if len(found) >= times:
                return found[-1]
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._fd], [], [], left)[0]:
                raise Silence(f"waited {limit_s:.0f} s in vain; printed until then:\n{self._seen}")
            try:
                data = os.read(self._fd, 65536)
            except OSError as error:  # Linux tells the end of the shell so
                raise Silence(f"the shell has ended; printed until then:\n{self._seen}") from error
            self._raw += self._decoder.decode(data)
            self._seen = _CODES.sub("", self._raw)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._type("\x03")

    def close(self) -> str:
        """End the shell and all that it has started; what of that was still running, one job a line."""
        try:
            self.paste("jobs -r | sed 's/^/running: /'\n")
            running, _ = self.end(BLOCK_S)
            self._type('for job in $(jobs -p); do kill -KILL -- "-$job"; done; exit\n')
        except (Silence, OSError):
            running = "the shell itself"
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            while os.read(self._fd, 65536):
                pass
        os.close(self._fd)
        os.waitpid(self.pid, 0)
        return running.strip()

    def _type(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self._fd, data) :]


class Way(NamedTuple):
    """How the texts are followed: where, with what environment, and what is moved."""

    folder: Path
    environment: dict[str, str]
    prefix: Optional[int]  # of the ports; None: as they stand
    url: Optional[str] = None  # a gateway that stands for the one on port 8080
    api_key: Optional[str] = None

    @property
    def as_written(self) -> bool:
        return self.prefix is None


class Session:
    """One file's examples in one terminal; counts what became of them."""

    def __init__(self, text: Path, way: Way) -> None:
        self._text = text
        self._way = way
        self._home = Path(way.environment["HOME"])
        self.passed = self.failed = self.skipped = 0
        self._missing: set[str] = set()  # files whose run is skipped

    def __enter__(self) -> Session:
        self._write_curlrc("")
        self._terminal = Terminal(self._way.folder, self._way.environment)
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        running = self._terminal.close()
        if running and error is None:
            self._verdict("FAIL", "its end", f"leaves running:\n{running}")

    def follow(self) -> None:
        """Run every example; what comes after one that never ended makes no sense and is left."""
        stands_in = False  # the gateway at `url` for the one that the text starts
        for example in examples(self._text.read_text("utf-8")):
            name = f"line {example.line}, {' '.join([example.kind, *map(str, example.statuses)])}"
            if (
                self._way.url is not None
                and example.code.strip().endswith("python main.py &")
                and "PORT=" not in example.code
            ):
                stands_in = True
            elif stands_in and example.kind == "end":
                stands_in = False
            elif example.kind == "tests" and not self._way.as_written:
                continue
            else:
                try:
                    problem = self._run(example)
                except Silence as error:
                    self._verdict("FAIL", name, str(error))
                    return
                if problem is None:
                    self._verdict("PASS", name, "as it says")
                elif problem.startswith("skipped"):
                    self._verdict("SKIP", name, problem)
                else:
                    self._verdict("FAIL", name, f"{problem}\n--- the block:\n{example.code}")

    def _run(self, example: Example) -> Optional[str]:
        """Run one; what is wrong, or "skipped" and why, or None."""
        code = self._placed(example)
        if example.kind == "file":
            (self._way.folder / str(example.name)).write_text(code, "utf-8")
            if "from openai" in code and importlib.util.find_spec("openai") is None:
                self._missing.add(str(example.name))
            return None
        if example.kind == "run" and self._missing.intersection(shlex.split(code)):
            return "the openai package is missing" if os.environ.get("REQUIRE_OPENAI") == "1" else "skipped: no openai"
        self._terminal.paste(code)
        if example.kind == "until":
            self._terminal.wait(READY, BLOCK_S)
            address = self._terminal.wait(ADDRESS, BLOCK_S)[1]
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with direct.open(f"{address}/healthz", timeout=BLOCK_S) as answer:
                healthy = answer.status
            self._terminal.interrupt()
            printed, status = self._terminal.end(BLOCK_S)
            return None if (healthy, status) == (200, 0) else f"/healthz: {healthy}, exit {status}:\n{printed}"
        if example.kind == "start":
            self._terminal.wait(READY, BLOCK_S, times=len(re.findall(r" &$", code, re.MULTILINE)))
        printed, status = self._terminal.end(TESTS_S if example.kind == "tests" else BLOCK_S)
        if example.kind == "tests" and status == 0:
            # How many there were, and before it what of them failed at first (TESTS_AGAIN).
            told = re.search(r"^(?:Run again, |Ran ).*", printed, re.MULTILINE | re.DOTALL)
            print(told[0].strip() if told else "no tests were told of")
        answers, statuses = without_statuses(printed)
        if statuses != example.statuses and example.kind == "expect":
            return f"got {statuses}:\n{printed}"
        # A job that is ended by a signal tells so by its status.
        if status != 0 and example.kind != "end":
            return f"exit status {status}:\n{printed}"
        if example.answer is not None and not shown_matches(example.answer, answers):
            return f"--- shown:\n{example.answer}\n--- printed:\n{answers}"
        return None

    def _placed(self, example: Example) -> str:
        """The code for the ports and the gateway that are really asked."""
        code, prefix = example.code, self._way.prefix
        if prefix is None:
            return code
        code = moved(code, lambda port: prefix * 100 + port % 100)
        if self._way.url is not None:
            own = code.replace(f"http://127.0.0.1:{prefix}80/", f"{self._way.url}/")
            key = self._way.api_key
            self._write_curlrc(f'header = "Authorization: Bearer {key}"\n' if key and own != code else "")
            code = own
        return code

    def _write_curlrc(self, more: str) -> None:
        (self._home / ".curlrc").write_text(CURLRC + more, "utf-8")

    def _verdict(self, verdict: str, name: str, what: str) -> None:
        print(
            f"{verdict}  {self._text.relative_to(self._text.parents[self._text.parent.name == 'docs'])} {name}: {what}"
        )
        sys.stdout.flush()
        if verdict == "PASS":
            self.passed += 1
        elif verdict == "FAIL":
            self.failed += 1
        else:
            self.skipped += 1


def _wrappers(folder: Path) -> str:
    """Programs `python` and `python3` that are this interpreter, whatever stands in PATH; PATH with them in front."""
    folder.mkdir()
    for name in ("python", "python3"):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', "utf-8")
        path.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def _elsewhere(work: Path, wanted: set[int], url: Optional[str]) -> Way:
    """In a folder where no `.env` of yours changes what the examples get, on ports that are free."""
    prefix = free_prefix(wanted)
    folder = work / "here"
    folder.mkdir()
    for name in ("main.py", "mock.sh", "inference.py", "gateway"):
        (folder / name).symlink_to(ROOT / name)
    environment = {
        "PATH": _wrappers(work / "bin"),
        "HOME": str(work),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_PROXY": "*",
        "PORT": f"{prefix}80",
        "BASE_PORT": f"{prefix}00",
    }
    return Way(folder, environment, prefix, url, os.environ.get("API_KEY"))


def _cloned(work: Path) -> Way:
    """A fresh clone of what is committed, and an environment with nothing but PATH and HOME (and TESTS_AGAIN and
    TESTS_SKIPPED, for which see `tests/__init__.py`)."""
    home, folder = work / "home", work / "clone"
    home.mkdir()
    if (ROOT / ".git").exists():
        # Whoever owns it: it is the checkout that this file is in.
        (work / ".gitconfig").write_text("[safe]\n\tdirectory = *\n", "utf-8")
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(work)}
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], env=environment, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True
        )
        if changed.stdout:
            print("smoke: what is not committed is not in the clone:")
            print(changed.stdout.decode("utf-8", "replace"))
    else:
        print("smoke: this is no checkout; following a copy of it instead of a clone")
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns("__pycache__", ".env", "gateway.db*"))
    told = {name: value for name, value in os.environ.items() if name in ("TESTS_AGAIN", "TESTS_SKIPPED")}
    return Way(folder, {"PATH": _wrappers(work / "bin"), "HOME": str(home), **told}, None)


def _bring_lo_up() -> None:
    """In a network of its own even this machine cannot be reached at first."""
    get_flags, set_flags, up = 0x8913, 0x8914, 0x1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = fcntl.ioctl(control, get_flags, struct.pack("16sH14s", b"lo", 0, b""))
        flags = struct.unpack("16sH14s", request)[1]
        fcntl.ioctl(control, set_flags, struct.pack("16sH14s", b"lo", flags | up, b""))


def _newcomer(arguments: list[str]) -> int:
    """Follow README in a clone. Returns the exit status."""
    if arguments == ["--alone"]:
        _bring_lo_up()
    elif (
        shutil.which("unshare") and subprocess.run(["unshare", "-n", "true"], stderr=subprocess.DEVNULL).returncode == 0
    ):
        command = ["unshare", "-n", sys.executable, "-m", "tests.smoke", "--newcomer", "--alone"]
        return subprocess.run(command, cwd=ROOT).returncode
    code = "".join(example.code for example in examples(README.read_text("utf-8")))
    busy = sorted(port for port in ports(code) | {8080} if not is_free(port))
    if busy:
        print(f"smoke: README needs ports that are in use here: {', '.join(map(str, busy))}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        way = _cloned(Path(folder))
        return _follow((way.folder / "README.md",), way)


def _follow(texts: tuple[Path, ...], way: Way) -> int:
    passed = failed = skipped = 0
    for text in texts:
        with Session(text, way) as session:
            session.follow()
        passed, failed, skipped = passed + session.passed, failed + session.failed, skipped + session.skipped
    print(f"smoke: {passed} passed, {failed} failed, {skipped} skipped")
    return 0 if passed and not failed else 1


def main(arguments: list[str]) -> int:
    """Run as tests/smoke.sh says; returns its exit status."""
    if shutil.which("curl") is None or shutil.which("bash") is None:
        print("smoke: this needs curl and bash", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if arguments[:1] == ["--newcomer"]:
        return _newcomer(arguments[1:])
    texts = tuple(text for text in TEXTS if text.exists() and examples(text.read_text("utf-8")))
    wanted = {port for text in texts for example in examples(text.read_text("utf-8")) for port in ports(example.code)}
    with tempfile.TemporaryDirectory() as folder:
        way = _elsewhere(Path(folder), wanted | {8080}, arguments[0].rstrip("/") if arguments else None)
        return _follow(texts, way)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
