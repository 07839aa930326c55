"""Several processes behind one address: all serve, the dead are replaced, and clients do not notice a restart."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
from collections import Counter
from pathlib import Path
from typing import Any

from gateway.processes.child import Inherited, child_of
from gateway.processes.listening import listen
from gateway.processes.parent import processes_of
from tests.support import (
    CHAT,
    HI,
    ROOT,
    TIMEOUT_S,
    GatewayProcess,
    SocketTest,
    children_of,
    engines,
    eventually,
    gateway_process,
    mock_engine,
    run_main,
)

LONG_S = 3 * TIMEOUT_S  # several starts of an interpreter, on a machine with other things to do
BODY = json.dumps(HI).encode()
ELSEWHERE = """
from gateway.processes import listening

listening.SPREADS = False  # as where there is no SO_REUSEPORT, or macOS's

from gateway.cli import run

run()
"""
IMPATIENT = """
from gateway.processes import supervision

supervision.ASK_EVERY_S, supervision.QUIET_ASKS, supervision.HUNG_ASKS = 0.2, 4, 12

from gateway.cli import run

run()
"""
HEADERS = {"Content-Type": "application/json"}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def is_stopped(pid: int) -> bool:
    """Whether all threads of a process have come to a halt."""
    stats = [path.read_text("utf-8", "replace") for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(") ")[2][0] == "T" for stat in stats)


class SlowlyHealthy(http.server.BaseHTTPRequestHandler):
    """An engine of which it takes half a second to know that it is well."""

    def do_GET(self) -> None:
        time.sleep(0.5)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class Load:
    """Clients that ask without a pause, `kept` on connections that they keep, the rest on a new one each time."""

    def __init__(self, port: int, kept: int, new: int, method: str = "POST", path: str = CHAT) -> None:
        self.port = port
        self._request = (method, path, BODY, HEADERS) if method == "POST" else (method, path)
        self.served: Counter[str] = Counter()
        self.failed: list[str] = []
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number < kept,), name="test-client", daemon=True)
            for number in range(kept + new)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, keeps: bool) -> None:
        connection = None
        while not self._ending.is_set():
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
                connection.request(*self._request)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    self.failed.append(f"{answer.status}: {body[:200]!r}")
                self.served["kept" if keeps else "new"] += 1
            except Exception as error:
                self.failed.append(repr(error))
                connection = None
            if connection is not None and not keeps:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def more(self, count: int = 50) -> None:
        """Wait until so many more requests of each kind have been answered."""
        before = Counter(self.served)
        eventually(lambda: all(self.served[kind] >= before[kind] + count for kind in before), LONG_S)

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)


@unittest.skipUnless(sys.platform.startswith("linux"), "counts processes as Linux shows them")
class ProcessesCase(SocketTest):
    def start(self, count: int = 2, **options: Any) -> GatewayProcess:
        """A gateway of so many processes, all serving."""
        children: set[int] = set()
        # When the parent has been killed, at the end: nobody may be left behind.
        self.addCleanup(lambda: eventually(lambda: not any(map(is_alive, children)), LONG_S))
        process: GatewayProcess = self.enter(gateway_process(PROCESSES=count, **options))
        self.addCleanup(lambda: children.update(children_of(process.process.pid)))
        self.wait_for_started(process, count)
        return process

    def events(self, process: GatewayProcess, event: str) -> list[dict[str, Any]]:
        return [line for line in process.log_lines() if line["event"] == event]

    def wait_for(self, process: GatewayProcess, event: str, count: int = 1) -> list[dict[str, Any]]:
        return eventually(lambda: len(found := self.events(process, event)) >= count and found, LONG_S)

    def wait_for_started(self, process: GatewayProcess, count: int) -> None:
        self.wait_for(process, "started", count)

    def wait_until_all_accept(self, process: GatewayProcess, count: int = 2) -> None:
        """Ask until each has served a request that was sent after this call."""
        before = len(self.events(process, "request"))

        def have_served() -> bool:
            for _ in range(10):
                self.assertEqual(process.ask("POST", CHAT, HI).status, 200)
            return {line["process"] for line in self.events(process, "request")[before:]} == set(range(count))

        eventually(have_served, LONG_S)

    def child(self, process: GatewayProcess, slot: int = 0) -> int:
        """The process that has had a slot the longest: children are started in the order of their slots."""
        return sorted(children_of(process.process.pid))[slot]

    def load(self, process: GatewayProcess, kept: int = 4, new: int = 4) -> Load:
        load = Load(process.port, kept, new)
        self.addCleanup(load.end)
        eventually(lambda: len(load.served) == (kept > 0) + (new > 0))
        return load


class ProcessesTest(ProcessesCase):
    # --- starting

    def test_all_serve_one_address_and_what_is_printed_is_printed_once(self) -> None:
        process = self.start(3)

        def who_served() -> set[int]:
            for _ in range(30):
                self.assertEqual(process.ask("POST", CHAT, HI).status, 200)
            return {line["process"] for line in self.events(process, "request")}

        eventually(lambda: who_served() == {0, 1, 2})
        self.assertEqual(process.stdout.count("inference gateway at"), 1)
        eventually(lambda: "no engine configured" in process.stdout)
        self.assertEqual(process.stdout.count("no engine configured"), 1)
        urls = {line["url"] for line in self.events(process, "started")}
        self.assertEqual(urls, {f"http://127.0.0.1:{process.port}"})
        self.assertEqual(len(children_of(process.process.pid)), 3)
        self.assertNotIn("Traceback", process.stderr)

    def test_one_process_has_no_parent_and_names_none(self) -> None:
        process = self.enter(gateway_process(PROCESSES=1))
        self.assertEqual(process.ask("POST", CHAT, HI).status, 200)
        self.assertEqual(children_of(process.process.pid), [])
        self.assertNotIn('"process"', process.stderr)

    def test_0_is_one_for_each_processor(self) -> None:
        count = processes_of(0)
        process = self.enter(gateway_process(PROCESSES=0))
        self.wait_for_started(process, count)
        eventually(lambda: len(children_of(process.process.pid)) == (count if count > 1 else 0))

    def test_wrong_settings_and_files_end_it_before_anything_serves_and_are_told_once(self) -> None:
        for variables, status in (
            ({"WORKERS": "many"}, 2),
            ({"ENGINES_FILE": "nope.json"}, 2),
            ({"SCHEMAS_DIR": "nope"}, 2),
        ):
            with self.subTest(**variables):
                found, stdout, stderr = run_main({"PROCESSES": 2, **variables})
                self.assertEqual((found, stdout), (status, ""), stderr)
                (name,) = variables
                self.assertEqual(stderr.count(f"error: {name}"), 1, stderr)

    def test_a_busy_port_is_said_in_one_line_also_when_it_is_another_such_gateways(self) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            ports = [sock.getsockname()[1], self.start().port]
            for port in ports:
                status, stdout, stderr = run_main({"PORT": port, "PROCESSES": 2})
                self.assertEqual((status, stdout), (1, ""))
                (line,) = stderr.splitlines()
                self.assertIn(f"PORT: cannot listen on 127.0.0.1:{port}", line)

    def test_what_is_no_parent_is_not_believed(self) -> None:
        status, stdout, stderr = run_main({"INFERENCE_GATEWAY_PROCESS": "1"})
        self.assertEqual((status, stdout), (2, ""))
        self.assertIn("INFERENCE_GATEWAY_PROCESS", stderr)
        self.assertNotIn("Traceback", stderr)

    # --- dying

    def test_a_child_that_is_killed_is_missed_by_nobody_but_its_own_clients(self) -> None:
        process = self.start()
        load = self.load(process, kept=0, new=6)
        killed = self.child(process)
        os.kill(killed, signal.SIGKILL)
        (died,) = self.wait_for(process, "process_died")
        self.assertEqual((died["slot"], died["signal"], died["restart_in_s"]), (0, 9, 1.0))
        self.assertNotIn("process", died)
        load.more()
        own = list(load.failed)
        self.assertLessEqual(len(own), 6)  # each client may have been its
        self.assertEqual([fault for fault in own if "Refused" in fault or "timed out" in fault], [])
        self.wait_for_started(process, 3)
        load.more()
        load.end()
        self.assertEqual(load.failed, own, "nobody after that")
        self.assertEqual(len(children_of(process.process.pid)), 2)

    def test_others_serve_who_comes_to_one_that_cannot_be_restarted(self) -> None:
        process = self.start(files={".env": "LOG_LEVEL=info\n"})
        self.wait_until_all_accept(process)
        (process.directory / ".env").write_text("LOG_LEVEL=loud\n", "utf-8")
        os.kill(self.child(process, 1), signal.SIGKILL)
        died = self.wait_for(process, "process_died", 3)
        self.assertEqual([line.get("status") for line in died], [None, 2, 2])
        self.assertEqual([line["restart_in_s"] for line in died], [1.0, 2.0, 4.0])
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(process.connect(5.0)) for _ in range(40)]  # half of them on its socket
            for client in clients:
                self.assertEqual(client.post().status, 200)
        (process.directory / ".env").write_text("LOG_LEVEL=info\n", "utf-8")
        self.wait_for_started(process, 3)
        self.wait_until_all_accept(process)

    def test_a_child_that_hangs_is_stood_in_for_and_then_replaced(self) -> None:
        process = self.start(program=["impatient.py"], files={"impatient.py": IMPATIENT}, PYTHONPATH=ROOT)
        self.wait_until_all_accept(process)
        hung = self.child(process)
        os.kill(hung, signal.SIGSTOP)
        eventually(lambda: is_stopped(hung))  # until then it may accept a client
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(process.connect(LONG_S)) for _ in range(40)]  # half of them on its socket
            for client in clients:
                self.assertEqual(client.post().status, 200)
        (killed,) = self.wait_for(process, "process_killed")
        self.assertEqual((killed["slot"], killed["late"]), (0, "answer"))
        (died,) = self.wait_for(process, "process_died")
        self.assertEqual((died["slot"], died["signal"]), (0, 9))
        self.wait_for_started(process, 3)
        self.wait_until_all_accept(process)
        self.assertEqual(len(children_of(process.process.pid)), 2)

    def test_a_parent_without_a_descriptor_left_starts_nobody_until_there_is_one(self) -> None:
        import resource

        process = self.start()
        parent = process.process.pid
        limits = resource.prlimit(parent, resource.RLIMIT_NOFILE)
        resource.prlimit(parent, resource.RLIMIT_NOFILE, (3, limits[1]))
        os.kill(children_of(parent)[0], signal.SIGKILL)
        self.wait_for(process, "process_not_started")
        self.assertEqual(process.ask("POST", CHAT, HI).status, 200)
        resource.prlimit(parent, resource.RLIMIT_NOFILE, limits)
        self.wait_for_started(process, 3)
        self.assertEqual(process.ask("POST", CHAT, HI).status, 200)

    def test_children_drain_and_end_when_their_parent_has_died(self) -> None:
        engine = self.enter(mock_engine())
        gate = engine.hold_after(1)
        self.addCleanup(gate.release)
        process = self.start(ENGINES=engines(_13b=engine.url))
        children = children_of(process.process.pid)
        client = self.enter(process.connect())
        client.request("POST", CHAT, {**HI, "stream": True})
        client.read_head()
        client.read_event()
        self.assertTrue(gate.wait_for_held(1, TIMEOUT_S))
        process.signal(signal.SIGKILL)
        process.wait()
        self.wait_for(process, "draining", 2)
        gate.release()
        self.assertEqual(client.read_events()[-1], "data: [DONE]")
        eventually(lambda: not any(map(is_alive, children)), LONG_S)
        with self.assertRaises(OSError):
            process.connect()
        self.assertEqual(len(self.events(process, "stopped")), 2)

    # --- signals

    def held_stream(self, process: GatewayProcess, gate: Any) -> Any:
        client = self.enter(process.connect())
        client.request("POST", CHAT, {**HI, "stream": True}, [("X-Request-ID", "held")])
        client.read_head()
        client.read_event()
        self.assertTrue(gate.wait_for_held(1, TIMEOUT_S))
        return client

    def test_a_signal_to_all_processes_drains_once_and_what_is_under_way_ends_well(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number):
                engine = self.enter(mock_engine())
                gate = engine.hold_after(1)
                self.addCleanup(gate.release)
                process = self.start(ENGINES=engines(_13b=engine.url))
                stream = self.held_stream(process, gate)
                # As a terminal does, and systemd.
                for pid in (process.process.pid, *children_of(process.process.pid)):
                    os.kill(pid, number)
                self.wait_for(process, "draining", 2)
                eventually(lambda process=process: len(children_of(process.process.pid)) == 1, LONG_S)
                refused = process.ask("POST", CHAT, HI)  # whichever socket it comes to
                self.assertEqual((refused.status, refused.error), (503, "draining"))
                gate.release()
                self.assertEqual(stream.read_events()[-1], "data: [DONE]")
                self.assertEqual(process.wait(), 0)
                (line,) = [x for x in process.log_lines() if x.get("request_id") == "held"]
                self.assertEqual((line["status"], line["error"]), (200, None))
                self.assertNotIn("Traceback", process.stderr)

    def test_sigusr2_to_a_child_and_to_a_gateway_of_one_process_ends_nobody(self) -> None:
        process = self.start()
        children = children_of(process.process.pid)
        for pid in children:
            os.kill(pid, signal.SIGUSR2)
        process.signal(signal.SIGHUP)
        self.wait_for(process, "reloaded", 2)
        self.assertEqual(sorted(children_of(process.process.pid)), sorted(children))
        alone: GatewayProcess = self.enter(gateway_process(PROCESSES=1))
        alone.signal(signal.SIGUSR2)
        self.wait_for(alone, "rolling_restart_stopped")
        self.assertEqual(alone.ask("POST", CHAT, HI).status, 200)

    def test_a_second_signal_ends_at_once(self) -> None:
        engine = self.enter(mock_engine())
        gate = engine.hold_after(1)
        self.addCleanup(gate.release)
        process = self.start(ENGINES=engines(_13b=engine.url), DRAIN_TIMEOUT=300)
        stream = self.held_stream(process, gate)
        process.signal(signal.SIGTERM)
        self.wait_for(process, "draining", 2)
        process.signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)
        *_, last = stream.read_events()
        self.assertEqual(json.loads(last[len("data: ") :])["error"], "draining")

    def test_a_third_signal_kills_who_hangs(self) -> None:
        process = self.start()
        hung = self.child(process)
        os.kill(hung, signal.SIGSTOP)
        for _ in range(2):
            process.signal(signal.SIGTERM)
            self.wait_for(process, "stopped")  # the other one's
        eventually(lambda: len(children_of(process.process.pid)) == 1)
        self.assertIsNone(process.process.poll())
        process.signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 1)
        eventually(lambda: not is_alive(hung))

    def test_sighup_has_all_read_their_engines_again(self) -> None:
        def fleet(*names: str) -> str:
            return json.dumps({"models": {name: {"engines": ["echo:"]} for name in names}})

        process = self.start(3, ENGINES_FILE="engines.json", files={"engines.json": fleet("a")})
        (process.directory / "engines.json").write_text(fleet("a", "b"), "utf-8")
        process.signal(signal.SIGHUP)
        self.assertEqual({line["process"] for line in self.wait_for(process, "reloaded", 3)}, {0, 1, 2})
        for _ in range(20):
            listed = process.ask("GET", "/v1/models").json()["data"]
            self.assertEqual([model["id"] for model in listed], ["a", "b"])

    # --- rolling

    def test_a_rolling_restart_under_load_fails_nobody(self) -> None:
        process = self.start()
        before = set(children_of(process.process.pid))
        idle = self.enter(process.connect())
        self.assertEqual(idle.ask("GET", "/readyz").status, 200)
        load = self.load(process)
        process.signal(signal.SIGUSR2)
        self.wait_for(process, "rolling_restart_done")
        self.wait_for(process, "handing_over", 2)
        load.more()
        ready = idle.ask("GET", "/readyz")  # a balancer's, whose connection is the old process's
        self.assertEqual((ready.status, ready.json()["status"], ready.header("connection")), (200, "ready", "close"))
        idle.assert_closed()
        load.more()
        eventually(lambda: before.isdisjoint(children_of(process.process.pid)), LONG_S)
        load.more()
        load.end()
        self.assertEqual(load.failed, [])
        self.assertEqual(len(children_of(process.process.pid)), 2)
        self.assertEqual(process.stdout.count("inference gateway at"), 1)
        process.signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)

    def test_where_the_system_does_not_spread_connections_all_accept_on_one_socket(self) -> None:
        self.assertEqual(self.listening(self.start()), 2)
        process = self.start(program=["elsewhere.py"], files={"elsewhere.py": ELSEWHERE}, PYTHONPATH=ROOT)
        self.assertEqual(self.listening(process), 1)
        load = self.load(process)
        self.wait_until_all_accept(process)
        process.signal(signal.SIGUSR2)
        self.wait_for(process, "rolling_restart_done")
        load.more()
        load.end()
        self.assertEqual(load.failed, [])
        self.assertEqual(self.listening(process), 1)

    def listening(self, process: GatewayProcess) -> int:
        """How many sockets listen at its port."""
        lines = Path("/proc/net/tcp").read_text("ascii").splitlines()
        return sum(f":{process.port:04X} 00000000:0000 0A" in line for line in lines)

    def test_an_idle_connection_is_kept_as_long_as_ever_and_then_the_old_process_ends(self) -> None:
        process = self.start(KEEPALIVE_TIMEOUT=1)
        before = set(children_of(process.process.pid))
        idle = self.enter(process.connect())
        self.assertEqual(idle.ask("GET", "/healthz").status, 200)
        process.signal(signal.SIGUSR2)
        self.wait_for(process, "rolling_restart_done")
        idle.assert_closed()
        eventually(lambda: before.isdisjoint(children_of(process.process.pid)), LONG_S)

    def test_it_stays_ready_though_the_new_processes_know_nothing_of_the_engines_yet(self) -> None:
        engine = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowlyHealthy)
        threading.Thread(target=engine.serve_forever, name="test-engine", daemon=True).start()
        self.addCleanup(engine.server_close)
        self.addCleanup(engine.shutdown)
        url = f"http://127.0.0.1:{engine.server_port}/v1"
        fleet = json.dumps({"models": {"13b": {"discover": {"file": "list.json"}}}})
        discovered = {"ENGINES_FILE": "engines.json", "files": {"engines.json": fleet, "list.json": json.dumps([url])}}
        for options in ({"ENGINES": engines(_13b=url)}, discovered):
            with self.subTest(options=options):
                process = self.start(HEALTH_INTERVAL=60, HEALTH_TIMEOUT=5, **options)
                eventually(lambda process=process: process.ask("GET", "/readyz").status == 200)
                load = Load(process.port, 2, 2, "GET", "/readyz")
                self.addCleanup(load.end)
                process.signal(signal.SIGUSR2)
                self.wait_for(process, "rolling_restart_done")
                load.more()
                load.end()
                self.assertEqual(load.failed, [])

    def test_a_stream_goes_on_in_the_old_process(self) -> None:
        engine = self.enter(mock_engine())
        gate = engine.hold_after(1)
        self.addCleanup(gate.release)
        process = self.start(ENGINES=engines(_13b=engine.url))
        stream = self.held_stream(process, gate)
        process.signal(signal.SIGUSR2)
        self.wait_for(process, "rolling_restart_done")
        gate.release()
        self.assertEqual(stream.read_events()[-1], "data: [DONE]")

    def test_new_settings_that_are_wrong_leave_the_old_processes_serving(self) -> None:
        process = self.start(files={".env": "LOG_LEVEL=info\n"})
        before = set(children_of(process.process.pid))
        load = self.load(process)
        (process.directory / ".env").write_text("LOG_LEVEL=loud\n", "utf-8")
        process.signal(signal.SIGUSR2)
        (line,) = self.wait_for(process, "rolling_restart_stopped")
        self.assertEqual((line["slot"], line["level"]), (0, "error"))
        self.assertIn("error: LOG_LEVEL", process.stderr)
        load.more()
        self.assertEqual(set(children_of(process.process.pid)), before)
        (process.directory / ".env").write_text("LOG_LEVEL=info\n", "utf-8")
        process.signal(signal.SIGUSR2)
        self.wait_for(process, "rolling_restart_done")
        load.more()
        load.end()
        self.assertEqual(load.failed, [])

    def test_a_signal_to_all_that_meets_a_child_before_it_can_handle_any_does_not_end_it(self) -> None:
        all_four = """
import os, signal
if "INFERENCE_GATEWAY_PROCESS" in os.environ:
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2"):
        os.kill(os.getpid(), getattr(signal, name))
"""
        process = self.start(environment={"PYTHONPATH": "."}, files={"sitecustomize.py": all_four})
        self.assertEqual(process.ask("POST", CHAT, HI).status, 200)
        self.assertEqual(self.events(process, "process_died"), [])

    # --- what they share

    def test_the_ledger_has_every_request_of_all_once(self) -> None:
        process = self.start(LEDGER="on", STATE_DB="gateway.db", CACHE="on", CACHE_DB="cache.db")
        asked = 0

        def both_have_served() -> bool:
            nonlocal asked
            for _ in range(20):
                self.assertEqual(process.ask("POST", CHAT, HI).status, 200)
                asked += 1
            return {line["process"] for line in self.events(process, "request")} == {0, 1}

        eventually(both_have_served)
        process.signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)
        import sqlite3

        with contextlib.closing(sqlite3.connect(process.directory / "gateway.db")) as connection:
            self.assertEqual(connection.execute("SELECT count(*) FROM ledger").fetchone(), (asked,))
        self.assertEqual([line for line in process.log_lines() if line["level"] == "error"], [])

    def test_each_writes_decisions_of_its_own(self) -> None:
        process = self.start(DECISION_LOG="d.jsonl")
        for _ in range(40):
            process.ask("POST", CHAT, HI)
        process.signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)
        names = sorted(path.name for path in process.directory.glob("d.jsonl*"))
        self.assertEqual(names, ["d.jsonl.0", "d.jsonl.1"])
        for name in names:
            first = json.loads((process.directory / name).read_text("utf-8").splitlines()[0])
            self.assertEqual(first["op"], "start")


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from gateway.processes.output import Lock, SharedStream
stream = SharedStream(sys.stderr, Lock(int(sys.argv[2])))
for _ in range(60):
    stream.write((sys.argv[3] * 30_000 + "\\n") + sys.argv[3] + "\\n")
"""


@unittest.skipUnless(os.name == "posix", "hands descriptors on")
class InheritedTest(unittest.TestCase):
    def test_sockets_that_a_child_takes_do_not_block_others_and_go_no_further(self) -> None:
        sockets = listen("127.0.0.1", 0, 2)
        link, other = socket.socketpair()
        link.setblocking(False)
        taken = [os.dup(one.fileno()) for one in (*sockets, link)]
        for descriptor in taken:
            os.set_inheritable(descriptor, True)
        child = child_of(Inherited(1, 2, tuple(taken[:-1]), taken[-1], None, False).text())
        self.assertEqual([os.get_blocking(descriptor) for descriptor in taken], [False] * len(taken))
        self.assertEqual([os.get_inheritable(descriptor) for descriptor in taken], [False] * len(taken))
        self.assertEqual((child.bus.slot, child.bus.count), (1, 2))
        self.assertIsNone(socket.getdefaulttimeout())
        child.bus.close(1.0)
        for one in (*child.sockets, *sockets, link, other):
            one.close()

    def test_what_no_parent_has_written_is_refused(self) -> None:
        for text in ("", "{}", "[]", "nonsense", '{"slot": 0}', Inherited(0, 2, (9999,), 9998, None, True).text()):
            with self.subTest(text=text), self.assertRaisesRegex(ValueError, "INFERENCE_GATEWAY_PROCESS"):
                child_of(text)


@unittest.skipUnless(os.name == "posix", "locks as POSIX has them")
class OutputTest(unittest.TestCase):
    def test_lines_of_several_processes_are_never_torn_however_long(self) -> None:
        from gateway.processes.output import new_lock

        lock = new_lock()
        assert lock is not None
        self.addCleanup(os.close, lock)
        reader, writer = os.pipe()
        with open(reader, "rb") as pipe:
            processes = [
                subprocess.Popen([sys.executable, "-c", WRITER, ROOT, str(lock), name], stderr=writer, pass_fds=[lock])
                for name in "abc"
            ]
            os.close(writer)
            lines = pipe.read().decode().splitlines()
        self.assertEqual([process.wait(TIMEOUT_S) for process in processes], [0, 0, 0])
        self.assertEqual(
            Counter((line[0], len(line)) for line in lines if len(set(line)) == 1),
            Counter({(name, size): 60 for name in "abc" for size in (1, 30_000)}),
        )
        self.assertEqual(len(lines), 360)


if __name__ == "__main__":
    unittest.main()
