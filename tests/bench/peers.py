"""The gateways that are measured: ours and its peers, how each is found and started.

Owns no process: `find()` answers with a `Gateway` or with the reason why there is none, and
`Gateway.launch()` says what to run. Found by environment first, then PATH:

    gateway   this checkout's main.py, under the Python named by --python (more than one allowed)
    haproxy   haproxy in PATH
    sglang    BENCH_SGLANG_PYTHON (a Python that has sglang_router), else the running Python
    portkey   BENCH_PORTKEY (a command), else npx when the package is installed; never downloaded
    litellm   BENCH_LITELLM (a command), else litellm in PATH
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Callable, NamedTuple

from tests.ports import free_port

from . import payloads
from .processes import open_files_limit

NAMES = ("gateway", "haproxy", "sglang", "portkey", "litellm")
REPOSITORY = Path(__file__).resolve().parents[2]
_AUTHORIZATION = {"Authorization": f"Bearer {payloads.API_KEY}"}
_PROBE_TIMEOUT_S = 60.0


class Launch(NamedTuple):
    """What to run for one gateway: `env` is all it gets, `headers` what its clients send."""

    argv: list[str]
    env: dict[str, str]
    headers: dict[str, str]


Plan = Callable[[int, list[int], Path], Launch]


class Gateway(NamedTuple):
    """A gateway that can be measured.

    `plan(port, engine_ports, run_dir)` prepares its files in `run_dir`, its working directory, and
    returns what to run. `warmup_s` is how long it is loaded before a measurement.
    """

    name: str
    version: str
    ready_timeout_s: float
    plan: Plan
    warmup_s: float = 1.0


class Missing(NamedTuple):
    """A gateway that is not there, and why."""

    name: str
    reason: str


def find(name: str, pythons: list[str]) -> list[Gateway | Missing]:
    """Returns what there is to measure under `name`, one of NAMES.

    One entry, except for the gateway itself: one per interpreter in `pythons`.
    """
    if name == "gateway":
        return [_find_gateway(python, len(pythons) > 1) for python in pythons]
    finder = {
        "haproxy": _find_haproxy,
        "sglang": _find_sglang,
        "portkey": _find_portkey,
        "litellm": _find_litellm,
    }[name]
    return [finder()]


def plain_env(**extra: str) -> dict[str, str]:
    """Returns an environment without the caller's settings, keys and proxies, plus `extra`."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
    return {**kept, **extra}


def _find_gateway(python: str, several: bool) -> Gateway | Missing:
    name = f"gateway@{Path(python).name}" if several else "gateway"
    # The interpreter itself: a version switcher's shim would count at start-up.
    real = _output([python, "-c", "import sys; print(sys.executable)"])
    if not real:
        return Missing(name, f"{python} cannot be run")
    if not (REPOSITORY / "main.py").exists():
        return Missing(name, "main.py not found")

    def plan(port: int, engine_ports: list[int], _run_dir: Path) -> Launch:
        urls = ",".join(f"http://127.0.0.1:{engine}/v1" for engine in engine_ports)
        # Every feature on: a key, health probes, metrics, and the log line as JSON.
        env = plain_env(
            HOST="127.0.0.1",
            PORT=str(port),
            ENGINES=f"{payloads.MODEL}={urls}",
            API_KEYS=f"bench:{payloads.API_KEY}",
            LOG_LEVEL="info",
            LOG_FORMAT="json",
        )
        return Launch([real, str(REPOSITORY / "main.py")], env, _AUTHORIZATION)

    code = "import platform as p; print(p.python_implementation(), p.python_version())"
    version = _output([real, "-c", code])
    # A tracing compiler needs seconds of load before it has compiled what load needs.
    return Gateway(name, version, 20.0, plan, 6.0 if "PyPy" in version else 1.0)


def _find_haproxy() -> Gateway | Missing:
    haproxy = shutil.which("haproxy")
    if haproxy is None:
        return Missing("haproxy", "haproxy not found in PATH")

    def plan(port: int, engine_ports: list[int], run_dir: Path) -> Launch:
        config = run_dir / "haproxy.cfg"
        servers = "\n".join(f"  server e{index} 127.0.0.1:{engine} check" for index, engine in enumerate(engine_ports))
        # HAProxy refuses to start when it may not open two files per connection, and some.
        maxconn = open_files_limit() // 2 - 200
        config.write_text(_HAPROXY_CONFIG.format(port=port, servers=servers, maxconn=maxconn))
        return Launch([haproxy, "-db", "-f", str(config)], plain_env(), _AUTHORIZATION)

    return Gateway("haproxy", _version([haproxy, "-v"]), 10.0, plan)


# Tunnels nothing, buffers nothing: what a careful operator would put in front of engines.
_HAPROXY_CONFIG = """\
global
  maxconn {maxconn}
defaults
  mode http
  option http-no-delay
  option httpchk GET /health
  timeout connect 5s
  timeout client 75s
  timeout server 75s
frontend clients
  bind 127.0.0.1:{port}
  default_backend engines
backend engines
  balance roundrobin
  http-reuse always
{servers}
"""


def _find_sglang() -> Gateway | Missing:
    python = os.environ.get("BENCH_SGLANG_PYTHON", sys.executable)
    code = "import importlib.metadata as m; print('sglang-router', m.version('sglang-router'))"
    version = _output([python, "-c", code])
    if not version:
        return Missing("sglang", f"no sglang-router under {python} (set BENCH_SGLANG_PYTHON)")

    def plan(port: int, engine_ports: list[int], run_dir: Path) -> Launch:
        urls = [f"http://127.0.0.1:{engine}" for engine in engine_ports]
        argv = [python, "-m", "sglang_router.launch_router", "--worker-urls", *urls]
        argv += ["--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
        argv += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
        return Launch(argv, plain_env(), _AUTHORIZATION)

    return Gateway("sglang", version, 60.0, plan)


def _find_portkey() -> Gateway | Missing:
    command = shlex.split(os.environ.get("BENCH_PORTKEY", "")) or _portkey_through_npx()
    if not command or shutil.which(command[0]) is None:
        return Missing("portkey", "no @portkey-ai/gateway installed (set BENCH_PORTKEY)")

    def plan(port: int, engine_ports: list[int], run_dir: Path) -> Launch:
        targets = [
            {
                "provider": "openai",
                "custom_host": f"http://127.0.0.1:{engine}/v1",
                "api_key": "none",
            }
            for engine in engine_ports
        ]
        mode = {"mode": "loadbalance" if len(targets) > 1 else "single"}
        config = json.dumps({"strategy": mode, "targets": targets}, separators=(",", ":"))
        headers = {**_AUTHORIZATION, "x-portkey-config": config}
        preload = run_dir / "loopback.cjs"
        preload.write_text(_LISTEN_ON_LOOPBACK)
        env = plain_env(NODE_OPTIONS=f"--require {preload}")
        return Launch([*command, f"--port={port}", "--headless"], env, headers)

    return Gateway("portkey", _portkey_version(command), 60.0, plan)


# Portkey has no option for its address and would listen on all of them.
_LISTEN_ON_LOOPBACK = """\
const net = require("net");
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (first, ...rest) {
  if (typeof first === "object" && first !== null && first.port) first.host = "127.0.0.1";
  else if (typeof first === "number" || /^\\d+$/.test(first)) {
    if (typeof rest[0] === "string") rest.shift();
    rest = ["127.0.0.1", ...rest.filter((one) => one !== undefined)];
  }
  return listen.call(this, first, ...rest);
};
"""


def _portkey_through_npx() -> list[str]:
    # The script itself rather than npx: npx stays resident and would count in the memory.
    if shutil.which("npx") is None or shutil.which("node") is None:
        return []
    where = ["npx", "--no-install", "-p", "@portkey-ai/gateway", "-c", "command -v gateway"]
    script = _output(where)
    return ["node", str(Path(script).resolve())] if script.startswith("/") else []


def _portkey_version(command: list[str]) -> str:
    for word in command:
        package = Path(word).resolve().parent.parent / "package.json"
        if package.is_file():
            version = json.loads(package.read_text()).get("version", "unknown version")
            return f"Portkey {version}, node {_output(['node', '--version'])}"
    return "Portkey (unknown version)"


def _find_litellm() -> Gateway | Missing:
    command = shlex.split(os.environ.get("BENCH_LITELLM", "litellm"))
    if not command or shutil.which(command[0]) is None:
        return Missing("litellm", "litellm not found in PATH (set BENCH_LITELLM)")
    offline = plain_env(LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_TELEMETRY="False")

    def plan(port: int, engine_ports: list[int], run_dir: Path) -> Launch:
        config = run_dir / "litellm.yaml"
        models = [
            {
                "model_name": payloads.MODEL,
                "litellm_params": {
                    "model": f"openai/{payloads.MODEL}",
                    "api_base": f"http://127.0.0.1:{engine}/v1",
                    "api_key": "none",
                },
            }
            for engine in engine_ports
        ]
        settings = {"master_key": payloads.API_KEY}
        # JSON is YAML.
        config.write_text(json.dumps({"model_list": models, "general_settings": settings}))
        argv = [*command, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        return Launch(argv, offline, _AUTHORIZATION)

    return Gateway("litellm", _version([*command, "--version"], offline), 180.0, plan)


def _version(argv: list[str], env: Mapping[str, str] | None = None) -> str:
    """Returns the first line of the output that holds a version number, shortened."""
    for line in _output(argv, env, all_lines=True).splitlines():
        if re.search(r"\d+\.\d+", line):
            return line.split(" - ")[0].split(" 20")[0].strip()
    return "unknown version"


def _output(argv: list[str], env: Mapping[str, str] | None = None, all_lines: bool = False) -> str:
    """Returns what a short command prints ('' when it fails); its last line unless `all_lines`."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, env=env, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = done.stdout.strip().splitlines()
    return done.stdout if all_lines else (lines[-1] if lines else "")
