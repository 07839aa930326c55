"""Engine processes that are told to misbehave, stopped, killed and started again at the same address.

Owns the processes; used from one thread at a time, so there is no lock. Every wait is bounded.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Optional

from tests.ports import free_port
from tests.support import ROOT, TIMEOUT_S, eventually


class EngineProcess:
    """`python -m gateway.mock` at one address, in the behaviour last asked for, also after a restart."""

    def __init__(self, model: str, delay_s: float, gap_s: float) -> None:
        self.model = model
        self.port = free_port()
        self._usual = {"delay": delay_s, "gap": gap_s}
        self._process: Optional[subprocess.Popen[bytes]] = None

    @property
    def url(self) -> str:
        """Its address for an engines file."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def id(self) -> str:
        """The engine's id in the gateway."""
        return f"127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether the process has been started and not killed."""
        return self._process is not None

    def start(self) -> None:
        """Start it, well-behaved; `wait` tells when it listens."""
        command = [sys.executable, "-m", "gateway.mock", "--port", str(self.port), "--model", self.model]
        for name, value in self._usual.items():
            command += [f"--{name}", str(value)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)

    def wait(self) -> None:
        """Wait until it listens: it prints one line then."""
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the engine at {self.port} ended with {self._process.wait(TIMEOUT_S)}"

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up, the system closes or resets its connections. May be called again."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM: it closes its listener and every connection, in the middle of answers too."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(TIMEOUT_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(TIMEOUT_S)
            assert process.stdout is not None
            process.stdout.close()

    def stop(self) -> None:
        """SIGSTOP: the system still accepts connections for it, and nothing is ever answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def behave(self, behaviour: str, **options: Any) -> None:
        """Change the behaviour; delays and gaps stay as they were unless they are named."""
        self._control("POST", json.dumps({"behaviour": behaviour, **self._usual, **options}).encode())

    def stats(self) -> dict[str, Any]:
        """Its own counts: requests, in_flight, cancelled."""
        return self._control("GET", None)

    def _control(self, method: str, body: Optional[bytes]) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request(method, "/control", body)
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200, text
            found: dict[str, Any] = json.loads(text)
            return found

    def heal(self) -> None:
        """Well and well-behaved again, whatever was done to it; waits for that."""
        if not self.alive:
            self.start()
            self.wait()
            return
        self.go_on()

        def told() -> bool:
            try:
                self.behave("ok")
            except OSError:  # it still refuses connections
                return False
            return True

        eventually(told)


@contextlib.contextmanager
def running(models: tuple[str, ...], per_model: int, delay_s: float, gap_s: float) -> Iterator[list[EngineProcess]]:
    """So many engines of each model, listening; killed at the end."""
    engines = [EngineProcess(model, delay_s, gap_s) for model in models for _ in range(per_model)]
    try:
        for engine in engines:
            engine.start()
        for engine in engines:
            engine.wait()
        yield engines
    finally:
        for engine in engines:
            engine.kill()
