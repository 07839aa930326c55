"""Engines on this machine: who is recognised as what, and that what is printed is an engines file."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from gateway.fleet import load_engines_file
from gateway.routing.specs import EngineSpec
from gateway.tools import discover
from gateway.tools.discover import USUAL_PORTS, Found, discover_command, engine_at, look
from tests.naming_engine import NamingEngine
from tests.support import TIMEOUT_S, SocketTest, dead_url, gateway

PROG = "python main.py discover"


class DiscoverTest(SocketTest):
    def setUp(self) -> None:
        self.enter(mock.patch.dict(discover.USUAL_PORTS, clear=True))

    def engine(self, *names: str, owner: str = "somebody") -> NamingEngine:
        engine = self.enter(NamingEngine(*names))
        assert isinstance(engine.listed, dict)
        for entry in engine.listed["data"]:
            entry["owned_by"] = owner
        return engine

    def run_command(self, *arguments: str) -> tuple[int, Any, str]:
        """Exit status, what stdout has as JSON, and stderr."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(err):
            status = discover_command([*arguments, "--timeout", "20"], PROG, out)
        return status, json.loads(out.getvalue()), err.getvalue()

    def test_servers_are_known_by_what_they_say_of_their_models(self) -> None:
        for owner, kind in (
            ("library", "ollama"),
            ("llamacpp", "llamacpp"),
            ("vllm", "vllm"),
            ("sglang", "sglang"),
            ("organization_owner", "lmstudio"),
            ("me", ""),
        ):
            with self.subTest(owner):
                engine = self.engine("m", "n", owner=owner)
                self.assertEqual(engine_at(engine.port, TIMEOUT_S), Found(kind, engine.url, ("m", "n")))

    def test_a_server_without_a_list_is_no_engine(self) -> None:
        engine = self.engine()
        for listed in (b"<html>", None, {"data": "x"}, {}):
            engine.listed = listed
            self.assertIsNone(engine_at(engine.port, TIMEOUT_S))

    def test_one_that_has_no_model_yet_is_one(self) -> None:
        engine = self.engine()
        engine.listed = {"object": "list", "data": None}  # as Ollama has it
        self.assertEqual(engine_at(engine.port, TIMEOUT_S), Found("", engine.url, ()))

    def test_a_gateway_is_no_engine(self) -> None:
        running = self.enter(gateway(ALLOWED_HOSTS=""))
        self.assertIsNone(engine_at(running.port, TIMEOUT_S))

    def test_all_are_asked_at_once(self) -> None:
        engines = [self.engine(f"m{number}") for number in range(3)]
        for engine in engines:
            engine.gate.clear()
        found: list[Found] = []
        ports = [engine.port for engine in engines]
        thread = threading.Thread(target=lambda: found.extend(look([*ports, ports[0]], TIMEOUT_S)), name="looking")
        thread.start()
        for engine in reversed(engines):  # the last one first: nobody waits for the one before
            engine.gate.set()
        thread.join(TIMEOUT_S)
        self.assertEqual([one.url for one in found], [engine.url for engine in engines])

    def test_what_is_printed_is_an_engines_file(self) -> None:
        vllm, other = self.engine("q", owner="vllm"), self.engine("o")
        status, printed, said = self.run_command("--port", str(vllm.port), "--port", str(other.port))
        engines = [{"provider": "vllm", "url": vllm.url}, other.url]
        self.assertEqual((status, printed), (0, {"models": {"local": {"models": "auto", "engines": engines}}}))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "engines.json")
            path.write_text(json.dumps(printed), "utf-8")
            group = load_engines_file(path).groups[0]
        self.assertEqual(group.engines, (EngineSpec(vllm.url, provider="vllm"), EngineSpec(other.url)))
        lines = said.splitlines()
        self.assertEqual(lines[0], f"vllm at {vllm.url}: q")
        ports = f"--port {vllm.port} --port {other.port}"
        asked = f"{PROG} {ports} --timeout 20"  # as it was typed: with less, the engines might not be found again
        self.assertEqual(lines[-1], f"{asked} > engines.json && python main.py --engines-file engines.json")

    def test_an_engine_at_its_usual_port_needs_no_address(self) -> None:
        self.assertEqual(Found("ollama", "http://127.0.0.1:11434/v1", ()).entry(), {"provider": "ollama"})

    def test_nothing_is_json_too_and_a_status(self) -> None:
        port = dead_url().split(":")[2].partition("/")[0]
        status, printed, said = self.run_command("--port", port)
        self.assertEqual((status, printed), (1, {"models": {}}))
        self.assertIn("--port", said)
        self.assertIn("--timeout", said)

    def test_a_port_that_is_none_is_refused(self) -> None:
        for port in ("0", "65536", "x", ""):
            with self.subTest(port), contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit) as end:
                discover_command(["--port", port], PROG, io.StringIO())
            self.assertEqual(end.exception.code, 2)


class PortsTest(unittest.TestCase):
    def test_the_usual_ports_are_those_of_the_contract(self) -> None:
        expected = {11434: "ollama", 8080: "llamacpp", 1234: "lmstudio", 8000: "vllm", 30000: "sglang"}
        self.assertEqual(USUAL_PORTS, expected)


if __name__ == "__main__":
    unittest.main()
