"""The house's order, read from the source: imports point down, and what is pure stays pure."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
import sysconfig
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, NamedTuple

ROOT = Path(__file__).resolve().parents[2]

# From top to bottom: a module may import from its own row or a lower one. The longest matching prefix counts.
ROWS: tuple[tuple[str, ...], ...] = (
    ("main", "inference", "gateway.__main__"),
    ("gateway.cli",),
    ("gateway.serving",),
    ("gateway.processes",),
    ("gateway.app", "gateway.tools", "gateway.mock"),
    ("gateway.agreeing.joining",),
    ("gateway.observing", "gateway.gauging", "gateway.showing", "gateway.draining"),
    ("gateway.agreeing",),
    ("gateway.traces",),
    ("gateway.announcing",),
    ("gateway.describing",),
    ("gateway.server",),
    ("gateway.api",),
    ("gateway.pipeline", "gateway.asking", "gateway.calling", "gateway.bodies", "gateway.labels"),
    ("gateway.verify",),
    ("gateway.reuse",),
    ("gateway.admitting",),
    ("gateway.asked",),
    (
        "gateway.account",
        "gateway.workers",
        "gateway.validation",
        "gateway.telling",
        "gateway.fitting",
        "gateway.nativefit",
    ),
    ("gateway.guard",),
    ("gateway.settingfiles",),
    ("gateway.keys", "gateway.alerts", "gateway.reuse.answerschema", "gateway.shared"),
    ("gateway.limits",),
    ("gateway.state", "gateway.reuse.stored"),
    (
        "gateway.settings",
        "gateway.dotenv",
        "gateway.fleet",
        "gateway.fleetdiscover",
        "gateway.fleetkeys",
        "gateway.fleetlines",
        "gateway.tools.decisionlog",
        "gateway.inference",
    ),
    ("gateway.settingvalues",),
    ("gateway.configuration",),
    (
        "gateway.offered",
        "gateway.discovery",
        "gateway.hearing",
        "gateway.dispatch",
        "gateway.waiting",
        "gateway.attempts",
        "gateway.engines",
        "gateway.completing",
    ),
    ("gateway.hedging", "gateway.rescue"),
    ("gateway.upstream", "gateway.tools.replay", "gateway.verify.sandbox"),
    ("gateway.routing",),
    (
        *("gateway.clock", "gateway.errors", "gateway.deadlines", "gateway.jsontext", "gateway.steps"),
        *("gateway.telemetry", "gateway.threads", "gateway.uploads", "gateway.dialects", "gateway.schemas"),
        *("gateway.posting", "gateway.traces.context"),
    ),
    (
        "gateway.ending",
        "gateway.program",
        "gateway",
        "gateway.processes.bus",
        "gateway.processes.frames",
        "gateway.processes.questions",
    ),
)
RANK_BY_PREFIX = {prefix: rank for rank, row in enumerate(ROWS) for prefix in row}
OWN = ("main", "inference", "gateway")
# What a Python that is too old reads before it is told so: no syntax of a later one there.
READ_FIRST = ("main", "inference", "gateway", "gateway.__main__")
EVENTS = "gateway.telemetry.events"  # only shapes: anybody may use them
ENDING = "gateway.ending"  # how any process of ours ends, the mock engine's too
# The guard owns the ledger, as the app owns the metrics.
TELEMETRY_USERS = (
    "gateway.cli",
    "gateway.serving",
    "gateway.processes.parent",
    "gateway.app",
    "gateway.agreeing",
    "gateway.gauging",
    "gateway.observing",
    "gateway.showing",
    "gateway.api",
    "gateway.server",
    "gateway.pipeline",
    "gateway.guard",
    "gateway.telemetry",
    "gateway.traces",
)

# Pure or sans-I/O: bytes, values and time come in as arguments.
PURE = (
    "gateway.alerts.anomaly",
    "gateway.alerts.defaults",
    "gateway.alerts.measuring",
    "gateway.alerts.messages",
    "gateway.alerts.rules",
    "gateway.alerts.states",
    "gateway.api",
    "gateway.dialects",
    "gateway.discovery.message",
    "gateway.discovery.names",
    "gateway.discovery.slices",
    "gateway.errors",
    "gateway.jsonbounds",
    "gateway.jsontext",
    "gateway.processes.frames",
    "gateway.processes.supervision",
    "gateway.processes.switchboard",
    "gateway.reuse.batching",
    "gateway.reuse.flights",
    "gateway.reuse.keeping",
    "gateway.reuse.likeness",
    "gateway.reuse.planes",
    "gateway.reuse.splitting",
    "gateway.reuse.store",
    "gateway.reuse.stored",
    "gateway.reuse.vectors",
    "gateway.reuse.wording",
    "gateway.reuse.wordlists",
    "gateway.routing",
    "gateway.schemas.applicators",
    "gateway.schemas.assertions",
    "gateway.schemas.charsets",
    "gateway.schemas.document",
    "gateway.schemas.equality",
    "gateway.schemas.faults",
    "gateway.schemas.formats",
    "gateway.schemas.node",
    "gateway.schemas.part",
    "gateway.schemas.patterns",
    "gateway.schemas.patternsyntax",
    "gateway.schemas.reading",
    "gateway.schemas.relaxed",
    "gateway.schemas.schema",
    "gateway.schemas.tools",
    "gateway.server.parsing",
    "gateway.server.reader",
    "gateway.telemetry.events",
    "gateway.tools.loadtest.arrivals",
    "gateway.tools.loadtest.charts",
    "gateway.tools.loadtest.durations",
    "gateway.tools.loadtest.events",
    "gateway.tools.loadtest.exchange",
    "gateway.tools.loadtest.histogram",
    "gateway.tools.loadtest.measures",
    "gateway.tools.loadtest.page",
    "gateway.tools.loadtest.requests",
    "gateway.tools.loadtest.result",
    "gateway.tools.loadtest.schedule",
    "gateway.tools.loadtest.style",
    "gateway.tools.loadtest.table",
    "gateway.tools.loadtest.thresholds",
    "gateway.tools.simulate.arrivals",
    "gateway.tools.simulate.distributions",
    "gateway.tools.simulate.draws",
    "gateway.tools.simulate.events",
    "gateway.tools.simulate.faults",
    "gateway.tools.simulate.measures",
    "gateway.tools.simulate.page",
    "gateway.tools.simulate.result",
    "gateway.tools.simulate.scenario",
    "gateway.tools.simulate.table",
    "gateway.traces.context",
    "gateway.traces.encoding",
    "gateway.traces.spans",
    "gateway.upstream.answers",
    "gateway.upstream.echo",
    "gateway.upstream.fields",
    "gateway.upstream.fieldtypes",
    "gateway.upstream.framing",
    "gateway.upstream.kept",
    "gateway.upstream.skim",
    "gateway.upstream.sse",
    "gateway.validation",
    "gateway.verify.blocks",
    "gateway.verify.consensus",
    "gateway.verify.finals",
    "gateway.verify.judging",
    "gateway.verify.languages",
    "gateway.verify.programs",
    "gateway.verify.quantities",
    "gateway.verify.question",
)
IO_MODULES = {"asyncio", "http", "multiprocessing", "os", "requests", "select", "selectors", "signal", "socket"}
IO_MODULES |= {"socketserver", "ssl", "subprocess", "urllib", "tempfile", "pathlib", "io"}

# Who may touch a socket: imports what opens, waits for or names one, or uses one that it was handed. The mock engine,
# which stands for another's process, is left out here and below.
SOCKET_MODULES = (
    "http.client",
    "http.server",
    "select",
    "selectors",
    "socket",
    "socketserver",
    "ssl",
    "urllib.request",
)
SOCKET_NAMES = {"getpeername", "recv", "recv_into", "sendall", "sendmsg", "setblocking", "setsockopt", "sock"}
SOCKET_USERS = (
    "gateway.app",
    "gateway.discovery.client",
    "gateway.discovery.kubernetes",
    "gateway.discovery.web",
    "gateway.keys.jwks",
    "gateway.limits.addresses",
    "gateway.observing",
    "gateway.posting",
    "gateway.processes.bus",
    "gateway.processes.child",
    "gateway.processes.links",
    "gateway.processes.listening",
    "gateway.processes.parent",
    "gateway.server.clientside",
    "gateway.server.connection",
    "gateway.server.flow",
    "gateway.server.loop",
    "gateway.server.receiving",
    "gateway.server.relay",
    "gateway.server.relayed",
    "gateway.server.server",
    "gateway.server.sharing",
    "gateway.server.task",
    "gateway.server.underway",
    "gateway.server.unsent",
    "gateway.server.uploading",
    "gateway.server.wakeup",
    "gateway.signals",
    "gateway.steps",
    "gateway.tools.asking",
    "gateway.tools.loadtest.connections",
    "gateway.tools.loadtest.loop",
    "gateway.tools.loadtest.preflight",
    "gateway.tools.warming",
    "gateway.traces.delivery",
    "gateway.upstream.attempt",
    "gateway.upstream.client",
    "gateway.upstream.connecting",
    "gateway.upstream.connection",
    "gateway.upstream.connections",
    "gateway.upstream.conversation",
    "gateway.upstream.endpoint",
    "gateway.upstream.listing",
    "gateway.upstream.prober",
    "gateway.upstream.resolver",
    "gateway.upstream.shortage",
    "gateway.upstream.stream",
    "gateway.verify.harness.nursery",
    "gateway.verify.harness.processes",
    "gateway.verify.sandbox.channel",
    "gateway.verify.sandbox.container",
    "gateway.verify.sandbox.inside",
    "gateway.verify.sandbox.jails",
    "gateway.verify.sandbox.namespaces",
    "gateway.verify.sandbox.process",
    "gateway.verify.sandbox.watching",
    "gateway.verify.sandbox.zygote",
)
THREAD_MAKERS = {
    "ProcessPoolExecutor",
    "Thread",
    "ThreadPoolExecutor",
    "ThreadingHTTPServer",
    "Timer",
    "start_new_thread",
}
THREAD_STARTERS = (
    "gateway.agreeing.agreement",
    "gateway.alerts.alerting",
    "gateway.alerts.sending",
    "gateway.deadlines",
    "gateway.discovery.watch",
    "gateway.ending",
    "gateway.guard",
    "gateway.hedging",
    "gateway.keys.jwks",
    "gateway.processes.bus",
    "gateway.reuse.answerfile",
    "gateway.reuse.redisstore",
    "gateway.server.loop",
    "gateway.server.relayed",
    "gateway.server.server",
    "gateway.serving",
    "gateway.shared.line",
    "gateway.signals",
    "gateway.state.database",
    "gateway.telemetry.liveticker",
    "gateway.telemetry.observe",
    "gateway.threads",
    "gateway.tools.decisionlog",
    "gateway.tools.discover",
    "gateway.tools.loadtest.progress",
    "gateway.tools.warming",
    "gateway.traces.exporter",
    "gateway.traces.figures",
    "gateway.upstream.prober",
    "gateway.upstream.resolver",
)


class Import(NamedTuple):
    """One import: who, what (a module's dotted name, as far as it can be told), which names of it, and where."""

    importer: str
    module: str
    names: tuple[str, ...]
    line: int
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.module}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def project_files() -> list[Path]:
    return [ROOT / "main.py", ROOT / "inference.py", *sorted((ROOT / "gateway").rglob("*.py"))]


MODULES = {module_name(path): path for path in project_files()}


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def imports_of(name: str, source: str, package: bool = False) -> Iterator[Import]:
    """Every import in a module, those inside functions included; `from a import b` names a.b where that is a module."""
    tree = ast.parse(source)
    typing_only: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            typing_only.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, (), node.lineno, node in typing_only)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")[: len(name.split(".")) - node.level + (1 if package else 0)]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                module = full if full in MODULES else base
                yield Import(name, module, (alias.name,), node.lineno, node in typing_only)


@functools.cache
def all_imports() -> list[Import]:
    return [
        found
        for name, path in MODULES.items()
        for found in imports_of(name, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    ]


def touches_a_socket(name: str, source: str) -> bool:
    if any(within(found.module, *SOCKET_MODULES) for found in imports_of(name, source)):
        return True
    return any(isinstance(node, ast.Attribute) and node.attr in SOCKET_NAMES for node in ast.walk(ast.parse(source)))


def starts_a_thread(name: str, source: str) -> bool:
    for node in ast.walk(ast.parse(source)):
        used = [node.func] if isinstance(node, ast.Call) else node.bases if isinstance(node, ast.ClassDef) else []
        if any(getattr(one, "attr", getattr(one, "id", None)) in THREAD_MAKERS for one in used):
            return True
    return False


def rank(module: str) -> int:
    while module not in RANK_BY_PREFIX:
        module = module.rpartition(".")[0]
    return RANK_BY_PREFIX[module]


def is_own(module: str) -> bool:
    return within(module, *OWN)


def points_up(found: Import) -> bool:
    if not is_own(found.module) or found.module == EVENTS:
        return False
    return rank(found.module) < rank(found.importer)


class OrderTest(unittest.TestCase):
    imports: list[Import]

    @classmethod
    def setUpClass(cls) -> None:
        cls.imports = all_imports()

    def assert_none(self, faults: list[Import], rule: str) -> None:
        self.assertEqual([str(fault) for fault in faults], [], rule)

    def test_the_walk_sees_the_project(self) -> None:
        self.assertGreater(len(MODULES), 30)
        seen = {(found.importer, found.module) for found in self.imports}
        self.assertIn(("gateway.app", "gateway.inference"), seen)
        self.assertIn(
            ("gateway.completing", "gateway.upstream.answers"), seen
        )  # `from gateway.upstream import answers`

    def test_imports_point_down(self) -> None:
        self.assert_none([i for i in self.imports if points_up(i)], "an import that points up")

    def test_telemetry_is_used_at_the_top_only_but_for_its_shapes(self) -> None:
        users = [i for i in self.imports if within(i.module, "gateway.telemetry") and i.module != EVENTS]
        self.assert_none([i for i in users if not within(i.importer, *TELEMETRY_USERS)], "telemetry is for the top")

    def test_telemetry_knows_nothing_of_the_rest(self) -> None:
        own = [i for i in self.imports if within(i.importer, "gateway.telemetry") and is_own(i.module)]
        allowed = ("gateway.telemetry", "gateway.errors", "gateway.clock")
        self.assert_none([i for i in own if not within(i.module, *allowed)], "telemetry turns events into numbers")

    def test_what_is_telemetrys_is_imported_from_where_it_is_made(self) -> None:
        borrowed = {(i.importer, name) for i in self.imports for name in i.names}
        users = [i for i in self.imports if within(i.module, "gateway.telemetry")]
        faults = [i for i in users if any((i.module, name) in borrowed for name in i.names)]
        self.assert_none(faults, "a module does not hand on what it has imported itself")

    def test_the_mock_engine_and_the_gateway_do_not_know_each_other(self) -> None:
        for i in self.imports:
            if within(i.importer, "gateway.mock") and is_own(i.module):
                self.assertTrue(within(i.module, "gateway.mock") or i.module == ENDING, str(i))
            if within(i.module, "gateway.mock"):
                self.assertTrue(within(i.importer, "gateway.mock", "gateway.tools", "gateway.cli"), str(i))

    def test_the_parent_of_several_processes_loads_nothing_of_what_serves(self) -> None:
        loaded = {"gateway.processes.parent"}
        while more := {i.module for i in self.imports if i.importer in loaded and not i.typing_only} - loaded:
            loaded |= more
        self.assertIn("gateway.processes.links", loaded)
        serving = ("gateway.app", "gateway.inference", "gateway.pipeline", "gateway.server", "gateway.upstream")
        self.assertEqual([module for module in sorted(loaded) if within(module, *serving)], [])

    def test_the_library_and_what_is_below_it_read_no_settings(self) -> None:
        below = ("inference", "gateway.inference", "gateway.dispatch", "gateway.upstream", "gateway.routing")
        names = ("settings", "settingvalues", "configuration", "dotenv", "fleet")
        settings = [f"gateway.{name}" for name in names]
        faults = [i for i in self.imports if within(i.importer, *below) and within(i.module, *settings)]
        self.assert_none(faults, "settings come in as arguments")

    def test_routing_and_the_sans_io_modules_do_no_io(self) -> None:
        faults = [i for i in self.imports if within(i.importer, *PURE) and i.module.partition(".")[0] in IO_MODULES]
        self.assert_none(faults, "no I/O here")

    def test_routing_starts_no_thread_and_no_timer(self) -> None:
        for name, path in MODULES.items():
            if within(name, "gateway.routing"):
                source = path.read_text(encoding="utf-8")
                for node in ast.walk(ast.parse(source)):
                    if isinstance(node, ast.Attribute):
                        self.assertNotIn(node.attr, ("Thread", "Timer", "environ", "sleep"), f"{name}:{node.lineno}")
        named = [i for i in self.imports if within(i.importer, "gateway.routing") and i.module == "threading"]
        for found in named:
            self.assertFalse({"Thread", "Timer"} & set(found.names), str(found))

    def test_routing_knows_nothing_of_upstream_and_server(self) -> None:
        own = [i for i in self.imports if within(i.importer, "gateway.routing") and is_own(i.module)]
        faults = [i for i in own if not within(i.module, "gateway.routing", "gateway.errors", EVENTS)]
        self.assert_none(faults, "routing decides, others act")

    def test_replay_repeats_decisions_with_routing_alone(self) -> None:
        own = [i for i in self.imports if within(i.importer, "gateway.tools.replay") and is_own(i.module)]
        self.assertTrue(own)
        faults = [i for i in own if not within(i.module, "gateway.routing")]
        self.assert_none(faults, "what decided must be all that decides again")

    def test_only_the_server_package_and_the_mock_engine_use_http_server(self) -> None:
        users = [i for i in self.imports if within(i.module, "http.server", "socketserver")]
        self.assertTrue(users)
        self.assert_none([i for i in users if not within(i.importer, "gateway.server", "gateway.mock")], "theirs")

    def test_who_may_touch_a_socket_is_named(self) -> None:
        self.assert_named(SOCKET_USERS, touches_a_socket)

    def test_who_may_start_a_thread_is_named(self) -> None:
        self.assert_named(THREAD_STARTERS, starts_a_thread)

    def assert_named(self, named: tuple[str, ...], does: Callable[[str, str], bool]) -> None:
        others = {name: path for name, path in MODULES.items() if not within(name, "gateway.mock")}
        found = sorted(name for name, path in others.items() if does(name, path.read_text(encoding="utf-8")))
        self.assertEqual(found, list(named))

    def test_no_module_imports_itself_through_others(self) -> None:
        graph: dict[str, set[str]] = {name: set() for name in MODULES}
        for i in self.imports:
            if i.module in MODULES and i.module != i.importer:
                graph[i.importer].add(i.module)
        done: set[str] = set()

        def visit(name: str, above: tuple[str, ...]) -> None:
            self.assertNotIn(name, above, " -> ".join((*above, name)))
            if name not in done:
                for below in sorted(graph[name]):
                    visit(below, (*above, name))
                done.add(name)

        for name in sorted(graph):
            visit(name, ())

    def test_every_imported_module_of_the_project_exists(self) -> None:
        faults = [i for i in self.imports if is_own(i.module) and i.module not in MODULES]
        self.assert_none(faults, "no such module")


class BarePythonTest(unittest.TestCase):
    def in_standard_library(self, name: str) -> bool:
        if name in sys.builtin_module_names or name in getattr(sys, "stdlib_module_names", ()):
            return True
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return False
        if spec is None:
            return False
        if spec.origin in ("built-in", "frozen"):
            return True
        origin = Path(spec.origin or "").resolve()
        homes = {Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib")}
        return "site-packages" not in origin.parts and any(home in origin.parents for home in homes)

    def test_nothing_but_the_standard_library_is_needed(self) -> None:
        found_in = {found.module.partition(".")[0]: found for found in all_imports()}
        for top, found in found_in.items():
            if top not in (*OWN, "dotenv"):
                self.assertTrue(self.in_standard_library(top), str(found))

    def test_python_dotenv_is_optional(self) -> None:
        users = [i for i in all_imports() if within(i.module, "dotenv")]
        for found in users:
            tree = ast.parse(MODULES[found.importer].read_text(encoding="utf-8"))
            guarded = [
                inner.lineno
                for node in ast.walk(tree)
                if isinstance(node, ast.Try)
                for statement in node.body
                for inner in ast.walk(statement)
                if isinstance(inner, (ast.Import, ast.ImportFrom))
            ]
            self.assertIn(found.line, guarded, str(found))

    def test_a_package_that_is_run_imports_nothing_before_its_main_handles_ctrl_c(self) -> None:
        run = [name.rpartition(".")[0] for name in MODULES if name.endswith(".__main__")]
        self.assertEqual(sorted(run), ["gateway", "gateway.mock"])
        for found in all_imports():
            self.assertFalse(found.importer in run and found.module != "sys", str(found))

    def test_modules_open_with_a_docstring_and_postponed_annotations(self) -> None:
        # The second is what lets annotations of a later Python be read by 3.9.
        for name, path in MODULES.items():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            self.assertTrue(ast.get_docstring(tree), f"{name} has no docstring")
            if any(not isinstance(node, ast.Assign) for node in tree.body[1:]) and name not in READ_FIRST:
                future = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
                self.assertTrue(future, f"{name} has no `from __future__ import annotations`")


class RuleTest(unittest.TestCase):
    """The rules themselves, on imports that break them."""

    def up(self, importer: str, source: str) -> bool:
        return any(points_up(found) for found in imports_of(importer, source))

    def test_arrows_that_point_up_are_seen_however_they_are_written(self) -> None:
        for importer, source in (
            ("gateway.routing.pool", "import gateway.upstream.client"),
            ("gateway.routing.pool", "from gateway.upstream import client"),
            ("gateway.routing.pool", "def f():\n    from ..upstream.client import ask"),
            ("gateway.upstream.client", "from gateway.inference import Call"),
            ("gateway.upstream.stream", "from gateway.dispatch import Answer"),
            ("gateway.dispatch", "from gateway.inference import InferenceFactory"),
            ("gateway.routing.pool", "from gateway.tools.decisionlog import DecisionLog"),
            ("gateway.tools.replay", "import gateway.dispatch"),
            ("gateway.workers", "from gateway import pipeline"),
            ("gateway.pipeline", "from gateway.server.exchange import Exchange"),
            ("gateway.server.exchange", "import gateway.cli"),
            ("gateway.errors", "from gateway.routing.retry import Outcome"),
            ("gateway.inference", "import gateway.validation"),
        ):
            with self.subTest(importer=importer, source=source):
                self.assertTrue(self.up(importer, source))

    def test_arrows_that_point_down_or_sideways_are_allowed(self) -> None:
        for importer, source in (
            ("gateway.cli", "from gateway.app import Gateway"),
            ("gateway.server.exchange", "from gateway.upstream.framing import ChunkedBody"),
            ("gateway.server.exchange", "from gateway.server import responses"),
            ("gateway.inference", "from gateway.dispatch import Asker"),
            ("gateway.dispatch", "from gateway.upstream.client import EngineClient"),
            ("gateway.app", "from gateway.tools.decisionlog import DecisionLog"),
            ("gateway.tools.replay", "from gateway.routing.pool import ModelPool"),
            ("gateway.inference", "from gateway.telemetry.events import AttemptRecord"),
            ("gateway.routing.pool", "from .engine import Engine"),
            ("gateway.routing.pool", "import threading, json"),
        ):
            with self.subTest(importer=importer, source=source):
                self.assertFalse(self.up(importer, source))

    def test_sockets_and_threads_are_seen_however_they_are_written(self) -> None:
        for source in ("import ssl", "def f():\n    from socket import create_server", "stream.sock", "one.recv(9)"):
            self.assertTrue(touches_a_socket("gateway.x", source), source)
        for source in ("import json", "from http import HTTPStatus", "steps.send(True)"):
            self.assertFalse(touches_a_socket("gateway.x", source), source)
        for source in ("threading.Timer(1, f)", "Thread(target=f)", "class One(threading.Thread): pass"):
            self.assertTrue(starts_a_thread("gateway.x", source), source)
        for source in ("thread: Optional[threading.Thread]", "set[Thread]()", "threading.Lock()"):
            self.assertFalse(starts_a_thread("gateway.x", source), source)


if __name__ == "__main__":
    unittest.main()
