"""The engine behind every gateway: one nginx that answers at once, or a small server of our own.

Owns nginx's configuration, in a directory of the run. JSON ports answer a chat completion without
delay; the stream port sends 50 events a second through Debian's echo module
(libnginx-mod-http-echo). Whatever is missing is replaced by `pure_upstream.py`, which costs more
CPU of its own (never the gateway's) and so lowers requests per second, not the CPU figures.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.ports import free_port

from . import payloads, processes
from .client import wait_until_answering

_ECHO_MODULE = "ngx_http_echo_module.so"
_MODULE_DIRS = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/local/nginx/modules")
_START_TIMEOUT_S = 10.0

_CONFIG = """\
{load_module}
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile {open_files};
pid {dir}/nginx.pid;
error_log {dir}/nginx-error.log error;
events {{ worker_connections {connections}; multi_accept on; }}
http {{
  access_log off;
  default_type application/json;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
  uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
{servers}
}}
"""

_SERVER = """\
  server {{
{listens}
    location = /health {{ return 200 '{{"status":"ok"}}'; }}
    location = /v1/models {{ return 200 '{models}'; }}
    location / {{ return 200 '{{}}'; }}
    location = {path} {{
{answer}
    }}
  }}
"""


class Upstream(NamedTuple):
    """The running engines: `json_ports` (any number of them behind one server), `stream_port`,
    the root process that answers them, and what it is, for the report."""

    json_ports: list[int]
    stream_port: int
    json_pid: int
    stream_pid: int
    version: str


def start(run_dir: Path, json_ports: int, stream_s: float) -> Upstream:
    """Starts the upstream and returns once it answers.

    `json_ports` is how many ports answer JSON (at least 1), `stream_s` the length of one stream in
    seconds. Raises BenchError when it does not come up.
    """
    ports = [free_port() for _ in range(json_ports)]
    stream_port = free_port()
    events = round(stream_s * payloads.EVENTS_PER_S)
    nginx, echo = shutil.which("nginx"), _echo_module()
    if nginx is None:
        child = _start_pure(run_dir, ports, [stream_port], events)
        upstream = Upstream(ports, stream_port, child.pid, child.pid, "own (nginx not found)")
    elif echo is None:
        child = _start_nginx(nginx, run_dir, None, [_json_server(ports)])
        streamer = _start_pure(run_dir, [], [stream_port], events)
        version = f"{_nginx_version(nginx)}, streams from its own (echo module not found)"
        upstream = Upstream(ports, stream_port, child.pid, streamer.pid, version)
    else:
        servers = [_json_server(ports), _stream_server(stream_port, events)]
        child = _start_nginx(nginx, run_dir, echo, servers)
        version = f"{_nginx_version(nginx)} with echo module"
        upstream = Upstream(ports, stream_port, child.pid, child.pid, version)
    for port in [*ports, stream_port]:
        wait_until_answering(child, port, "/health", _START_TIMEOUT_S)
    return upstream


def start_answering(run_dir: Path, answer: bytes) -> tuple[int, int] | None:
    """Starts an nginx that answers chat requests with `answer`; returns its port and process, None without nginx.

    `run_dir` is its own. Raises BenchError when it does not come up.
    """
    nginx = shutil.which("nginx")
    if nginx is None or b"$" in answer:
        return None
    port = free_port()
    child = _start_nginx(nginx, run_dir, None, [_server([port], f"      return 200 {_quoted(answer)};")])
    wait_until_answering(child, port, "/health", _START_TIMEOUT_S)
    return port, child.pid


def _start_nginx(nginx: str, run_dir: Path, echo: Path | None, servers: list[str]) -> processes.Child:
    config = run_dir / "nginx.conf"
    config.write_text(
        _CONFIG.format(
            load_module=f"load_module {echo};" if echo else "",
            user="user root;" if os.geteuid() == 0 else "",
            dir=run_dir,
            open_files=processes.open_files_limit(),
            connections=processes.open_files_limit() - 100,
            servers="\n".join(servers),
        )
    )
    log = run_dir / "nginx.log"
    argv = [nginx, "-p", str(run_dir), "-e", str(log), "-c", str(config)]
    return processes.start("nginx", argv, log)


def _json_server(ports: list[int]) -> str:
    answer = f"      return 200 {_quoted(payloads.chat_answer())};"
    return _server(ports, answer)


def _stream_server(port: int, events: int) -> str:
    content, end = payloads.stream_events(events)
    lines = ["      default_type text/event-stream;", "      add_header Cache-Control no-cache;"]
    for event in content:
        lines.append(f"      echo {_quoted(event[:-1])}; echo_flush;")
        lines.append(f"      echo_sleep {payloads.EVENT_GAP_S};")
    # The client that opened a stream waits for nothing after [DONE]: the last ones leave as one.
    lines.append(f"      echo {_quoted(b''.join(end)[:-1])}; echo_flush;")
    return _server([port], "\n".join(lines))


def _server(ports: list[int], answer: str) -> str:
    listens = "\n".join(f"    listen 127.0.0.1:{port} backlog=4096;" for port in ports)
    models = payloads.models_answer().decode()
    return _SERVER.format(listens=listens, models=models, path=payloads.CHAT_PATH, answer=answer)


def _quoted(text: bytes) -> str:
    """Returns `text` as a token of nginx's configuration (which has no escape for a dollar)."""
    assert b"$" not in text
    escaped = text.decode().replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _start_pure(run_dir: Path, json_ports: list[int], stream_ports: list[int], events: int) -> processes.Child:
    argv = [sys.executable, "-m", "tests.bench.pure_upstream", "--events", str(events)]
    for option, ports in (("--json", json_ports), ("--stream", stream_ports)):
        for port in ports:
            argv += [option, str(port)]
    repository = Path(__file__).resolve().parents[2]
    return processes.start("upstream", argv, run_dir / "upstream.log", cwd=repository)


def _echo_module() -> Path | None:
    candidates = [Path(folder) / _ECHO_MODULE for folder in _MODULE_DIRS]
    return next((path for path in candidates if path.exists()), None)


def _nginx_version(nginx: str) -> str:
    banner = subprocess.run([nginx, "-v"], capture_output=True, text=True, timeout=10).stderr
    found = re.search(r"nginx/\S+", banner)
    return found.group() if found else "nginx (unknown version)"
