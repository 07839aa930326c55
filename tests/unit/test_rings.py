"""The rings: tests/unit opens no socket and starts no gateway, read from its source."""

from __future__ import annotations

import ast
import unittest
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What opens sockets or starts processes, whole modules and names of others.
MODULES = {
    "asyncio",
    "http.client",
    "http.server",
    "multiprocessing",
    "selectors",
    "socketserver",
    "ssl",
    "urllib.request",
}
MODULES |= {"tests.chaos", "tests.hostile", "tests.http", "tests.naming_engine", "tests.onloop", "tests.process"}
MODULES |= {"tests.resilience", "tests.sdkerrors", "subprocess"}
MODULES |= {
    f"tests.fuzz.{name}"
    for name in (
        "checks",
        "engine",
        "fields",
        "fronts",
        "nonceengines",
        "nonces",
        "talk",
    )
}
NAMES = {
    "gateway.app": {"Gateway"},
    "gateway.inference": {"InferenceFactory"},
    "gateway.mock.server": {"MockEngine"},
    "socket": {"create_connection", "create_server", "fromfd", "socket", "socketpair"},
    "tests.access": {"AccessTest", "ask"},
    "tests.naming": {"deaf"},
    "tests.scripted": {"EngineSide", "ScriptedEngine"},
    "tests.support": {"GatewayProcess", "MAIN", "MockEngine", "RawClient", "RunningGateway", "SocketTest"},
}
NAMES["tests.support"] |= {"dead_url", "gateway", "gateway_process", "mock_engine", "run_main"}
# In each one test runs some lines as a program: a database has several processes, a module prints, bash reads a script.
BESIDE = {"test_budgets", "test_checks", "test_database", "test_keys", "test_settings", "test_validation"}


def faults(source: str) -> Iterator[str]:
    """What a module does that is not for this ring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from (alias.name for module in MODULES if within(alias.name, module))
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if alias.name in NAMES.get(node.module or "", ()) or any(within(full, module) for module in MODULES):
                    yield full
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "socket" and node.attr in NAMES["socket"] and not isinstance(node.ctx, ast.Store):
                yield f"socket.{node.attr}"


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


class UnitTest(unittest.TestCase):
    def test_no_module_of_the_ring_opens_a_socket(self) -> None:
        paths = sorted(HERE.glob("test_*.py"))
        self.assertGreater(len(paths), 20)
        for path in paths:
            found = set(faults(path.read_text("utf-8")))
            if path.stem in BESIDE:
                self.assertIn("subprocess", found, path.name)
                found.discard("subprocess")
            self.assertEqual(found, set(), path.name)

    def test_what_opens_one_is_seen_however_it_is_written(self) -> None:
        for source in (
            "import http.client",
            "from http import server",
            "from tests.support import eventually, gateway",
            "from tests.scripted import ScriptedEngine",
            "import socket\nsocket.create_server(('', 0))",
            "def f():\n    from socket import socketpair",
            "from tests import resilience",
            "import subprocess",
        ):
            self.assertTrue(list(faults(source)), source)
        for source in (
            "from http import HTTPStatus",
            "import socket\nsocket.AF_INET",
            "from tests.support import ROOT",
        ):
            self.assertEqual(list(faults(source)), [], source)


if __name__ == "__main__":
    unittest.main()
