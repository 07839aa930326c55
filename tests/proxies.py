"""HAProxy and nginx as docs/deploy has them, running in front of gateways on this machine.

Owns their processes; only addresses are put in, by name or by text that must be there. Every wait is bounded.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import unittest
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.ports import free_port
from tests.programs import program
from tests.support import ROOT, TIMEOUT_S, eventually

HAPROXY_FILE = ROOT / "docs" / "deploy" / "haproxy" / "haproxy.cfg"
NGINX_FILE = ROOT / "docs" / "deploy" / "nginx" / "inference-gateway.conf"
_NGINX = """
daemon off;
pid {folder}/pid;
error_log {folder}/log warn;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/gateway.conf;
}}
"""


def needed(variable: str, *programs: str) -> None:
    """Skip a class without these programs; with `variable`=1 that is a failure."""
    missing = [name for name in programs if program(name) is None]
    if missing:
        if os.environ.get(variable) == "1":
            raise AssertionError(f"{variable}=1, but {', '.join(missing)} is missing")
        raise unittest.SkipTest(f"{', '.join(missing)} is missing")


def haproxy_environment(gateways: Sequence[str], listen: str, metrics: str) -> dict[str, str]:
    """The variables that docs/deploy/haproxy/haproxy.cfg reads."""
    names = {f"GATEWAY_{number}": address for number, address in enumerate(gateways, 1)}
    return {"PATH": os.environ.get("PATH", ""), "LISTEN": listen, "METRICS": metrics, **names}


def nginx_text(gateways: Sequence[str], listen: str) -> str:
    """docs/deploy/nginx/inference-gateway.conf with these addresses: two gateways."""
    text = NGINX_FILE.read_text("utf-8")
    for before, after in (("listen 8080;", f"listen {listen};"), *zip(("10.0.0.11:8080", "10.0.0.12:8080"), gateways)):
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


@contextlib.contextmanager
def haproxy(gateway_ports: Sequence[int]) -> Iterator[int]:
    """HAProxy in front of these; gives its port once every gateway counts as up."""
    port, metrics = free_port(), free_port()
    gateways = [f"127.0.0.1:{number}" for number in gateway_ports]
    environment = haproxy_environment(gateways, f"127.0.0.1:{port}", f"127.0.0.1:{metrics}")
    with tempfile.TemporaryDirectory() as folder:
        with _running([str(program("haproxy")), "-db", "-f", str(HAPROXY_FILE)], environment, port, Path(folder)):
            yield port


@contextlib.contextmanager
def nginx(gateway_ports: Sequence[int]) -> Iterator[int]:
    """nginx in front of two; gives its port."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # its workers are another user
        text = nginx_text([f"127.0.0.1:{number}" for number in gateway_ports], f"127.0.0.1:{port}")
        (folder / "gateway.conf").write_text(text, "utf-8")
        (folder / "nginx.conf").write_text(_NGINX.format(folder=folder), "utf-8")
        command = [str(program("nginx")), "-p", name, "-e", f"{name}/log", "-c", f"{name}/nginx.conf"]
        with _running(command, {"PATH": os.environ.get("PATH", "")}, port, folder):
            yield port


@contextlib.contextmanager
def _running(command: Sequence[str], environment: Mapping[str, str], port: int, folder: Path) -> Iterator[None]:
    with open(folder / "said", "wb") as said:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    def listens() -> bool:
        assert process.poll() is None, (folder / "said").read_text("utf-8", "replace")[-2000:]
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S).close()
            return True
        return False

    try:
        eventually(listens)
        yield
    finally:
        process.terminate()
        try:
            process.wait(TIMEOUT_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(TIMEOUT_S)
