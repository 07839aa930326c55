"""The processes of a fleet in a lab: gateways behind HAProxy, Redis, mock engines, each at an address of its own.

`Fleet` owns them all and kills them at its end. A node's process is begun, ended and stopped by one thread at a time.
Every wait is bounded.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from tests.chaos.lab import Lab, Node
from tests.programs import program
from tests.proxies import HAPROXY_FILE, haproxy_environment
from tests.support import (
    ROOT,
    TIMEOUT_S,
    GatewayProcess,
    RawClient,
    children_of,
    eventually,
    parse_metrics,
    process_environment,
)

GATEWAYS, ENGINES = 3, 6
PORT, ENGINE_PORT, REDIS_PORT, METRICS_PORT = 8080, 8000, 6379, 8404
MODEL, LIMITED = "free", "limited"
KEY, ADMIN_KEY = "chaos-key-of-a-client", "chaos-key-of-an-admin"
RPM = 1200  # of the model `limited`
BURST = 0.02
DRAIN_DELAY_S = 3.0  # longer than HAProxy takes to see /readyz
DRAIN_S = 40.0
START_S = 40.0
ENGINE = ("--model", "m", "--delay", "0.05", "--gap", "0.005")
# Each write reaches the file: what has been taken of a limit outlives SIGKILL.
REDIS = ("--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "yes", "--appendfsync", "always")


class Program:
    """One program on one node, started again and again; what it says is appended to one file."""

    def __init__(
        self,
        node: Node,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        port: int,
        processes: int = 1,
    ) -> None:
        self.node = node
        self._children = processes if processes > 1 else 0
        self.log = log
        self._port = port
        self._command = node.command(*command)
        self._environment = dict(environment)
        self._process: Optional[subprocess.Popen[bytes]] = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that was started last."""
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start it; `wait` tells when it listens."""
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.log.parent,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it takes connections, and has all its children. Its cable has to be in."""

        def listens() -> bool:
            assert self.process.poll() is None, f"{self.node.name} has ended: {self.said()[-2000:]}"
            with contextlib.suppress(OSError):
                socket.create_connection((self.node.address, self._port), timeout=1.0).close()
                return True
            return False

        eventually(listens, START_S)
        eventually(lambda: len(self.children()) >= self._children, START_S)

    def said(self) -> str:
        """What all its processes have said."""
        return self.log.read_text("utf-8", "replace")

    def children(self) -> list[int]:
        """The processes that it has started."""
        return children_of(self.process.pid)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def signal_all(self, number: int) -> None:
        """Send it and its children a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL, also to what is stopped, and to its children. May be called again."""
        if self._process is not None:
            self.signal_all(signal.SIGKILL)
            self._process.wait(TIMEOUT_S)


class NodeGateway(GatewayProcess):
    """A gateway on a node, as the observers of this package know one. `port` and its address are the node's."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.process, program.log.parent)
        self.port = PORT
        self._program = program

    def serving_pids(self) -> list[int]:
        """Its children; itself where it has none."""
        return self._program.children() or super().serving_pids()

    def connect(self, timeout_s: float = TIMEOUT_S) -> RawClient:
        """A new connection; a context manager."""
        return RawClient(PORT, self._program.node.address, timeout_s)

    def ask(self, method: str, target: str, body: Any = None, headers: Any = ()) -> Any:
        """One request with the administrator's key."""
        with self.connect() as client:
            return client.ask(method, target, body, [("X-API-Key", ADMIN_KEY), *headers])

    @property
    def stderr(self) -> str:
        """What all processes of this node have said."""
        return self._program.said()


class Fleet:
    """Three gateways behind HAProxy, one Redis, six engines. A context manager."""

    def __init__(self, lab: Lab, folder: Path, environment: Optional[Mapping[str, object]] = None) -> None:
        self.lab = lab
        self.folder = folder
        self.processes = int(str((environment or {}).get("PROCESSES", 1)))
        """Of each gateway."""
        nodes = lab.nodes
        plain = process_environment({})
        self.engines = [
            self._program(
                nodes[f"engine{number}"],
                (sys.executable, "-m", "gateway.mock", "--host", "0.0.0.0", "--port", str(ENGINE_PORT), *ENGINE),
                {**plain, "PYTHONPATH": str(ROOT)},
                ENGINE_PORT,
            )
            for number in range(1, ENGINES + 1)
        ]
        redis_folder = folder / "redis-data"
        redis_folder.mkdir()
        self.redis = self._program(
            nodes["redis"],
            (str(program("redis-server")), "--port", str(REDIS_PORT), "--dir", str(redis_folder), *REDIS),
            plain,
            REDIS_PORT,
        )
        self.gateways = [
            self._program(
                nodes[f"gateway{number}"],
                [sys.executable, str(ROOT / "main.py")],
                self._settings(environment),
                PORT,
                self.processes,
            )
            for number in range(1, GATEWAYS + 1)
        ]
        addresses = [f"{gateway.node.address}:{PORT}" for gateway in self.gateways]
        self.haproxy = self._program(
            nodes["haproxy"],
            [str(program("haproxy")), "-db", "-f", str(HAPROXY_FILE)],
            haproxy_environment(addresses, f"0.0.0.0:{PORT}", f"0.0.0.0:{METRICS_PORT}"),
            PORT,
        )
        self._all = [*self.engines, self.redis, *self.gateways, self.haproxy]

    def _program(
        self, node: Node, command: Sequence[str], environment: Mapping[str, str], port: int, processes: int = 1
    ) -> Program:
        folder = self.folder / node.name
        folder.mkdir()
        return Program(node, command, environment, folder / "stderr", port, processes)

    def _settings(self, environment: Optional[Mapping[str, object]]) -> dict[str, str]:
        engines = [{"url": f"http://{engine.node.address}:{ENGINE_PORT}/v1", "model": "m"} for engine in self.engines]
        models = {MODEL: {"engines": engines}, LIMITED: {"engines": engines, "rpm": RPM}}
        file = self.folder / "engines.json"
        file.write_text(json.dumps({"models": models}), "utf-8")
        settings: dict[str, object] = {
            "HOST": "0.0.0.0",
            "PORT": PORT,
            "ENGINES_FILE": file,
            "API_KEYS": f"client:{KEY}",
            "ADMIN_KEYS": f"admin:{ADMIN_KEY}",
            "TRUSTED_PROXIES": self.lab.nodes["haproxy"].address,
            "REDIS_URL": f"redis://{self.lab.nodes['redis'].address}:{REDIS_PORT}/0",
            "CACHE": "on",
            "RATE_LIMIT_BURST": BURST,
            "HEALTH_INTERVAL": 1,
            "HEALTH_TIMEOUT": 1,
            "CONNECT_TIMEOUT": 1,
            "BREAKER_MAX_OPEN_SECONDS": 5,
            "DRAIN_DELAY": DRAIN_DELAY_S,
            "FALLBACK": "off",
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "warning",
            "CONSOLE": "off",
            **(environment or {}),
        }
        return process_environment(settings)

    def __enter__(self) -> Fleet:
        try:
            for node in self._all:
                node.start()
            for node in self._all:
                node.wait()
            eventually(self.whole, START_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for node in self._all:
            node.kill()

    # --- what it says of itself

    @property
    def address(self) -> str:
        """Where clients ask."""
        return self.haproxy.node.address

    def observed(self) -> list[NodeGateway]:
        """The gateways' processes of now."""
        return [NodeGateway(gateway) for gateway in self.gateways]

    def whole(self) -> bool:
        """Whether HAProxy has every gateway and every gateway has every engine in."""
        try:
            return len(self.servers_up()) == GATEWAYS and all(map(self._has_all, self.observed()))
        except (OSError, AssertionError):
            return False

    def _has_all(self, gateway: NodeGateway) -> bool:
        models = gateway.ask("GET", "/health").json()["models"]
        return all(engine["state"] == "up" for model in models.values() for engine in model["engines"])

    def servers_up(self) -> list[str]:
        """The gateways that HAProxy sends to."""
        status = "haproxy_server_status{"
        return [name for name, value in self._front().items() if name.startswith(status) and value and '"UP"' in name]

    def front_descriptors(self) -> int:
        """How many descriptors HAProxy has open but for connections to gateways that it keeps for a while."""
        idle = "haproxy_server_idle_connections_current{"
        kept = sum(int(value) for name, value in self._front().items() if name.startswith(idle))
        return sum(1 for _ in Path(f"/proc/{self.haproxy.process.pid}/fd").iterdir()) - kept

    def _front(self) -> dict[str, float]:
        with RawClient(METRICS_PORT, self.address) as client:
            return parse_metrics(client.ask("GET", "/metrics").body)


def largest_mb(gateways: Sequence[GatewayProcess]) -> float:
    """The memory of the process that serves and holds the most, in MB."""
    return max(resident_mb(pid) for gateway in gateways for pid in gateway.serving_pids())


def resident_mb(pid: int) -> float:
    """The memory that a process holds, in MB."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def freeze(node: Program) -> None:
    """SIGSTOP: connections are accepted for it by the system, and nothing is answered."""
    node.signal_all(signal.SIGSTOP)


def thaw(node: Program) -> None:
    """SIGCONT."""
    node.signal_all(signal.SIGCONT)
