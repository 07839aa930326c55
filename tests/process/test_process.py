"""`python main.py` as a process: starting, refusing to start, draining, ending at once, reading its engines again."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any

from gateway.app import Gateway
from gateway.configuration import ConfigurationError
from gateway.mock.server import MockEngine
from tests.support import (
    CHAT,
    HAS_SIGHUP,
    HI,
    GatewayProcess,
    SocketTest,
    dead_url,
    engines,
    eventually,
    gateway_process,
    load_settings,
    mock_engine,
    run_main,
)

POSIX = os.name == "posix"


def fleet(**urls: str) -> str:
    """An engines file: model names (an underscore in front is dropped) and their one engine each."""
    return json.dumps({"models": {name.lstrip("_"): {"engines": [url]} for name, url in urls.items()}})


class Starting(SocketTest):
    def test_with_nothing_configured_it_answers_by_echo(self) -> None:
        process = self.enter(gateway_process())
        answer = process.ask("POST", CHAT, HI).json()
        self.assertEqual(answer["choices"][0]["message"]["content"], "Echo: hi there")
        self.assertIn("127.0.0.1", process.stdout)

    def test_serve_is_what_happens_without_a_command(self) -> None:
        process = self.enter(gateway_process({}, "serve"))
        self.assertEqual(process.ask("GET", "/healthz").status, 200)

    def test_the_log_goes_to_stderr_as_json_lines(self) -> None:
        process = self.enter(gateway_process())
        request_id = process.ask("POST", CHAT, HI).request_id
        line = eventually(lambda: [x for x in process.log_lines() if x.get("request_id") == request_id])[0]
        self.assertEqual(line["event"], "request")
        self.assertNotIn(request_id, process.stdout)

    def test_settings_are_read_from_dotenv(self) -> None:
        process = self.enter(gateway_process(files={".env": "# mine\nERROR_FORMAT=openai\nENGINES='13b=echo:'\n"}))
        self.assertEqual(process.ask("GET", "/nope").json()["error"]["code"], "not_found")
        self.assertEqual([m["id"] for m in process.ask("GET", "/v1/models").json()["data"]], ["13b"])

    def test_help_lists_the_commands(self) -> None:
        status, stdout, _ = run_main({}, "--help")
        self.assertEqual(status, 0)
        for command in ("serve", "check", "discover", "mock", "simulate", "advise"):
            self.assertIn(command, stdout)

    def test_simulate_and_advise_are_commands(self) -> None:
        status, stdout, stderr = run_main({}, "simulate", "--engines", "3", "--duration", "2", "--strategy", "all")
        self.assertEqual((status, stderr), (0, ""))
        self.assertIn("least_connections", stdout)
        status, _, stderr = run_main({}, "advise", "--slo-ms", "500", "--from", "no-such-file")
        self.assertEqual(status, 2)
        self.assertIn("no-such-file", stderr)

    def test_what_discover_prints_can_be_served(self) -> None:
        engine = self.enter(mock_engine("13b"))
        status, stdout, stderr = run_main({}, "discover", "--port", str(engine.port))
        self.assertEqual(status, 0, stderr)
        self.assertIn(f"http://127.0.0.1:{engine.port}/v1", stdout)
        process = self.enter(
            gateway_process({"HEALTH_INTERVAL": 60}, "--engines-file", "engines.json", files={"engines.json": stdout})
        )
        eventually(lambda: process.ask("POST", CHAT, {**HI, "model": "13b"}).status == 200)

    def test_an_unknown_command_is_refused(self) -> None:
        status, _, stderr = run_main({}, "frobnicate")
        self.assertEqual(status, 2)
        self.assertIn("frobnicate", stderr)


class Refusing(SocketTest):
    def test_every_fault_is_named_at_once_and_nothing_serves(self) -> None:
        faulty = {"PORT": "70000", "WORKERS": "many", "STRATEGY": "best", "ENGINES": "13b=ftp://x"}
        for command in ((), ("check",)):
            with self.subTest(command=command):
                status, stdout, stderr = run_main(faulty, *command)
                self.assertEqual(status, 2)
                for name in faulty:
                    self.assertIn(name, stderr)
                self.assertNotIn("Traceback", stderr)
                self.assertEqual(stdout, "")

    def test_faults_of_settings_and_of_the_files_they_name_come_together(self) -> None:
        for faulty in (
            {"PORT": "x", "ROLES_FILE": "nope.json", "DECISION_LOG": "nope/d.jsonl", "STATE_DB": "bad.db"},
            {"ROLES_FILE": "bad.db", "STATE_DB": "bad.db", "DECISION_LOG": "nope/d", "ENGINES_FILE": "nope.json"},
            {"ROLES_FILE": "nope.json", "STATE_DB": "nope/gateway.db", "LEDGER": "on", "HEALTH_FAILS": "0"},
        ):
            for command in ((), ("check",)):
                with self.subTest(command=command, **faulty):
                    status, stdout, stderr = run_main(faulty, *command, files={"bad.db": "no database " * 50})
                    self.assertEqual((status, stdout), (2, ""))
                    named = {line.partition(": ")[2].partition(":")[0] for line in stderr.splitlines()}
                    self.assertEqual(named, set(faulty) - {"LEDGER"}, stderr)

    def test_a_faulty_engines_file_names_every_fault_by_its_path(self) -> None:
        text = json.dumps(
            {
                "models": {
                    "13b": {"engines": [{"url": "nonsense", "wait": 1}], "fallbacks": ["7b"]},
                    "70b": {"engines": [], "strategy": "best"},
                }
            }
        )
        status, _, stderr = run_main({"ENGINES_FILE": "engines.json"}, files={"engines.json": text})
        self.assertEqual(status, 2)
        for part in ("url", "wait", "7b", "strategy", "best", "engines"):
            self.assertIn(part, stderr)
        self.assertNotIn("Traceback", stderr)

    def test_an_address_that_others_can_reach_needs_a_key_or_auth_off(self) -> None:
        status, _, stderr = run_main({"HOST": "0.0.0.0"})
        self.assertEqual(status, 2)
        self.assertIn("HOST", stderr)
        for variables in ({"API_KEYS": "sk-123456"}, {"AUTH": "off"}):
            with gateway_process({"HOST": "0.0.0.0", **variables}) as process:
                self.assertEqual(process.ask("GET", "/healthz").status, 200)

    def test_a_decision_log_that_cannot_be_written_is_named(self) -> None:
        for command in ((), ("check",)):
            with self.subTest(command=command):
                status, stdout, stderr = run_main({"DECISION_LOG": "no-folder/d.jsonl"}, *command)
                self.assertEqual((status, stdout), (2, ""))
                (line,) = [line for line in stderr.splitlines() if not line.startswith("{")]
                self.assertIn("DECISION_LOG: ", line)
                self.assertIn("d.jsonl", line)
                self.assertNotIn("listen", line)

    def test_nothing_stays_open_behind_a_decision_log_that_cannot_be_written(self) -> None:
        directory = Path(self.enter(tempfile.TemporaryDirectory()))
        before = set(threading.enumerate())
        settings = load_settings(
            {"DECISION_LOG": directory, "LEDGER": "on", "STATE_DB": directory / "gateway.db", "PORT": "0"}
        )
        with self.assertRaisesRegex(ConfigurationError, "^DECISION_LOG: "):
            Gateway(settings, io.StringIO())
        left = [thread.name for thread in threading.enumerate() if thread not in before]
        self.assertEqual(left, [])

    def test_a_busy_port_leaves_the_decisions_of_an_earlier_run_alone(self) -> None:
        directory = Path(self.enter(tempfile.TemporaryDirectory()))
        earlier = directory / "d.jsonl"
        earlier.write_text("earlier\n")
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            port = sock.getsockname()[1]
            with self.assertRaises(OSError):
                Gateway(load_settings({"DECISION_LOG": earlier, "PORT": port}), io.StringIO())
        self.assertEqual(earlier.read_text(), "earlier\n")

    def test_a_busy_port_is_said_in_one_line(self) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            port = sock.getsockname()[1]
            status, stdout, stderr = run_main({"PORT": port})
        self.assertEqual(status, 1)
        (line,) = stderr.splitlines()  # no "stopped" either: nothing had started
        self.assertIn(f"PORT: cannot listen on 127.0.0.1:{port}", line)
        self.assertEqual(stdout, "")


class Check(SocketTest):
    def test_it_prints_what_would_run_and_serves_nothing(self) -> None:
        text = json.dumps(
            {
                "default_model": "13b",
                "models": {
                    "70b": {"engines": [{"url": dead_url(), "id": "big"}], "strategy": "least_connections"},
                    "13b": {"engines": ["http://127.0.0.1:8010/v1"], "aliases": ["default-chat"]},
                },
            }
        )
        status, stdout, stderr = run_main(
            {"ENGINES_FILE": "engines.json", "API_KEYS": "alice:sk-123456"}, "check", files={"engines.json": text}
        )
        self.assertEqual((status, stderr), (0, ""))
        for part in ("70b", "13b", "big", "least_connections", "127.0.0.1:8010", "default-chat"):
            self.assertIn(part, stdout)
        self.assertNotIn("sk-123456", stdout)

    def test_it_makes_no_decision_log_and_empties_none(self) -> None:
        with gateway_process({"DECISION_LOG": "new.jsonl"}, "check", wait=False) as process:
            self.assertEqual(process.wait(), 0)
            self.assertFalse((process.directory / "new.jsonl").exists())
        files = {"old.jsonl": "kept\n"}
        with gateway_process({"DECISION_LOG": "old.jsonl"}, "check", wait=False, files=files) as process:
            self.assertEqual(process.wait(), 0)
            self.assertEqual((process.directory / "old.jsonl").read_text("utf-8"), "kept\n")

    def test_a_port_that_is_taken_does_not_matter(self) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            self.assertEqual(run_main({"PORT": sock.getsockname()[1]}, "check")[0], 0)


@unittest.skipUnless(POSIX, "signals as POSIX has them")
class Draining(SocketTest):
    def start(self, **variables: object) -> GatewayProcess:
        self.engine: MockEngine = self.enter(mock_engine())
        self.gate = self.engine.hold_after(1)
        self.addCleanup(self.gate.release)
        return self.enter(gateway_process(ENGINES=engines(_13b=self.engine.url), **variables))

    def open_stream(self, process: GatewayProcess) -> Any:
        """A client whose stream has begun and is held by the engine."""
        client = self.enter(process.connect())
        client.request("POST", CHAT, {**HI, "stream": True}, [("X-Request-ID", "held")])
        self.assertEqual(client.read_head().status, 200)
        self.assertIsNotNone(client.read_event())
        self.assertTrue(self.gate.wait_for_held(1, 5))
        return client

    def wait_until_draining(self, process: GatewayProcess) -> None:
        eventually(lambda: process.ask("GET", "/readyz").status == 503)

    def test_sigterm_lets_what_is_under_way_finish_and_takes_nothing_new(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number):
                process = self.start()
                idle = self.enter(process.connect())
                self.assertEqual(idle.ask("GET", "/healthz").status, 200)
                stream = self.open_stream(process)
                process.signal(number)
                self.wait_until_draining(process)
                alive = process.ask("GET", "/healthz")
                self.assertEqual((alive.status, alive.json()["status"]), (200, "ok"))
                self.assertEqual(alive.header("connection"), "close")
                refused = idle.post()
                self.assertEqual((refused.status, refused.error), (503, "draining"))
                self.assertEqual(refused.header("connection"), "close")
                self.assertRegex(refused.header("retry-after") or "", r"\A[0-9]+\Z")
                idle.assert_closed()
                self.assertEqual(process.ask("POST", CHAT, HI).error, "draining")
                self.assertIsNone(process.process.poll())
                self.gate.release()
                self.assertEqual(stream.read_events()[-1], "data: [DONE]")
                self.assertEqual(process.wait(), 0)
                (line,) = [x for x in process.log_lines() if x.get("request_id") == "held"]
                self.assertEqual((line["status"], line["error"]), (200, None))

    def test_a_request_that_is_no_stream_finishes_too(self) -> None:
        process = self.start()
        self.engine.control("hang")
        client = self.enter(process.connect())
        client.request("POST", CHAT, HI)
        self.assertTrue(self.engine.wait_for_requests(1, 5))
        process.signal(signal.SIGTERM)
        self.wait_until_draining(process)
        self.engine.control("ok")
        response = client.read_response()
        self.assertEqual(response.status, 200)
        self.assertEqual(response.header("connection"), "close")
        client.assert_closed()
        self.assertEqual(process.wait(), 0)

    def assert_cut(self, process: GatewayProcess, stream: Any, request_id: str = "held") -> None:
        """One error event and its end is what the stream got, its connection was closed, and the log says by whom."""
        *_, last = stream.read_events()
        self.assertEqual(json.loads(last[len("data: ") :])["error"], "draining")
        stream.assert_closed()
        self.assert_logged(process, request_id, 200)

    def assert_refused(self, process: GatewayProcess, client: Any, request_id: str) -> None:
        """A request that was no stream yet was answered with 503, and its connection closed."""
        answer = client.read_response()
        self.assertEqual((answer.status, answer.error), (503, "draining"))
        self.assertEqual(answer.header("connection"), "close")
        self.assertRegex(answer.header("retry-after") or "", r"\A[0-9]+\Z")
        self.assertIn(answer.header("x-gateway-attempts"), ("0", "1"))
        self.assertIsNone(answer.header("x-gateway-engine"))
        client.assert_closed()
        self.assert_logged(process, request_id, 503)

    def assert_logged(self, process: GatewayProcess, request_id: str, status: int) -> None:
        (line,) = [x for x in process.log_lines() if x.get("request_id") == request_id]
        self.assertEqual((line["status"], line["error"]), (status, "draining"))

    def test_a_second_signal_ends_at_once_and_tells_every_stream(self) -> None:
        process = self.start(DRAIN_TIMEOUT=300)
        stream = self.open_stream(process)
        process.signal(signal.SIGTERM)
        self.wait_until_draining(process)
        process.signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)
        self.assert_cut(process, stream)
        self.assertTrue(self.engine.wait_for_cancelled(1, 5))
        self.assertNotIn("Traceback", process.stderr)

    def test_a_second_signal_refuses_requests_that_are_no_streams_running_or_queued(self) -> None:
        process = self.start(DRAIN_TIMEOUT=300, WORKERS=1)
        self.engine.control("hang")
        clients = [self.enter(process.connect()) for _ in range(3)]
        for number, client in enumerate(clients):
            client.request("POST", CHAT, {**HI, "stream": number == 2}, [("X-Request-ID", f"cut-{number}")])
            self.assertTrue(self.engine.wait_for_requests(1, 5))
        eventually(lambda: b"gateway_queue_depth 2\n" in process.ask("GET", "/metrics").body)
        process.signal(signal.SIGTERM)
        self.wait_until_draining(process)
        process.signal(signal.SIGINT)
        self.assertEqual(process.wait(), 0)
        for number, client in enumerate(clients):
            self.assert_refused(process, client, f"cut-{number}")
        self.assertTrue(self.engine.wait_for_cancelled(1, 5))
        self.assertNotIn("Traceback", process.stderr)

    def test_a_client_that_left_before_is_not_said_to_be_cut_off(self) -> None:
        process = self.start(DRAIN_TIMEOUT=300)
        stream = self.open_stream(process)
        other = self.enter(process.connect())
        other.request("POST", CHAT, {**HI, "stream": True}, [("X-Request-ID", "left")])
        self.assertTrue(self.gate.wait_for_held(2, 5))
        other.close()
        left = eventually(lambda: [x for x in process.log_lines() if x.get("request_id") == "left"])
        process.signal(signal.SIGTERM)
        self.wait_until_draining(process)
        process.signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)
        self.assertEqual([(x["status"], x["error"]) for x in left], [(499, "client_closed_request")])
        self.assert_cut(process, stream)

    def test_drain_timeout_ends_what_does_not_finish(self) -> None:
        process = self.start(DRAIN_TIMEOUT="0.3")
        stream = self.open_stream(process)
        self.engine.control("hang")
        client = self.enter(process.connect())
        client.request("POST", CHAT, HI, [("X-Request-ID", "hung")])
        self.assertTrue(self.engine.wait_for_requests(2, 5))
        process.signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)
        self.assert_cut(process, stream)
        self.assert_refused(process, client, "hung")

    def test_with_nothing_under_way_it_ends_cleanly_with_idle_clients_connected(self) -> None:
        process = self.start()
        clients = [self.enter(process.connect()) for _ in range(5)]
        for client in clients:
            self.assertEqual(client.ask("GET", "/healthz").status, 200)
        process.signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)
        for client in clients:
            client.wait_until_ended()
        self.assertNotIn("Traceback", process.stderr)


@unittest.skipUnless(HAS_SIGHUP, "SIGHUP")
class Reloading(SocketTest):
    def models_of(self, process: GatewayProcess) -> list[str]:
        return [entry["id"] for entry in process.ask("GET", "/v1/models").json()["data"]]

    def rewrite(self, process: GatewayProcess, text: str) -> None:
        (process.directory / "engines.json").write_text(text, "utf-8")
        process.signal(signal.SIGHUP)

    def test_the_engines_file_is_read_again_and_a_faulty_one_changes_nothing(self) -> None:
        first, second = self.enter(mock_engine()), self.enter(mock_engine())
        process = self.enter(
            gateway_process(ENGINES_FILE="engines.json", files={"engines.json": fleet(_13b=first.url)})
        )
        self.assertEqual(self.models_of(process), ["13b"])
        self.rewrite(process, fleet(_13b=second.url, _7b=first.url))
        eventually(lambda: self.models_of(process) == ["13b", "7b"])
        answer = process.ask("POST", CHAT, {**HI, "model": "13b"})
        self.assertEqual(answer.header("x-gateway-engine"), f"127.0.0.1:{second.port}")
        for number, faulty in enumerate(("{", '{"models": {}}', fleet(_13b="nonsense")), 1):
            self.rewrite(process, faulty)
            failed = eventually(
                lambda wanted=number: (
                    (found := [x for x in process.log_lines() if x["event"] == "reload_failed"])
                    and len(found) >= wanted
                    and found
                )
            )
            self.assertIn("engines.json", json.dumps(failed[-1]))
            self.assertEqual(self.models_of(process), ["13b", "7b"])
        self.assertEqual(process.ask("POST", CHAT, {**HI, "model": "7b"}).status, 200)
        (process.directory / "engines.json").unlink()
        process.signal(signal.SIGHUP)
        eventually(lambda: sum(x["event"] == "reload_failed" for x in process.log_lines()) == 4)
        self.assertEqual(process.ask("POST", CHAT, {**HI, "model": "7b"}).status, 200)
        self.assertIsNone(process.process.poll())

    def test_a_stream_on_an_engine_that_is_taken_out_goes_on(self) -> None:
        first, second = self.enter(mock_engine()), self.enter(mock_engine())
        gate = first.hold_after(1)
        self.addCleanup(gate.release)
        process = self.enter(
            gateway_process(ENGINES_FILE="engines.json", files={"engines.json": fleet(_13b=first.url)})
        )
        with process.connect() as client:
            client.request("POST", CHAT, {**HI, "stream": True})
            client.read_head()
            client.read_event()
            self.assertTrue(gate.wait_for_held(1, 5))
            self.rewrite(process, fleet(new=second.url))
            eventually(lambda: self.models_of(process) == ["new"])
            self.assertEqual(process.ask("POST", CHAT, {**HI, "model": "13b"}).error, "model_not_found")
            gate.release()
            self.assertEqual(client.read_events()[-1], "data: [DONE]")

    def test_without_an_engines_file_sighup_changes_nothing(self) -> None:
        process = self.enter(gateway_process())
        process.signal(signal.SIGHUP)
        eventually(lambda: any(line["event"].startswith("reload") for line in process.log_lines()))
        self.assertEqual(process.ask("POST", CHAT, HI).status, 200)


if __name__ == "__main__":
    unittest.main()
