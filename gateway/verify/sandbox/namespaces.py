"""Level "namespaces": Linux namespaces without any other program, by a zygote that forks jails in advance.

`NamespacesLevel` owns the zygote and the jails that wait for a job, and starts another zygote when one has died.
`_lock` guards which zygote there is, the waiting jails and whether the level is closed; `_starting`, under which
`_lock` may be taken, lets one thread at a time start a zygote. The gateway's end is the end of the control socket,
and so of the zygote and of all jails.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, Optional

from gateway.verify.sandbox.channel import Channel, proved
from gateway.verify.sandbox.job import Limits
from gateway.verify.sandbox.texts import inside_text

START_S = 20.0
END_S = 10.0
PARKED = 2
INODES = 2048
# The zygote's text comes by stdin, since its arguments are what everybody sees.
BOOT = (
    "import json, sys; c = json.load(sys.stdin.buffer); n = {'__name__': 'zygote'}; "
    "exec(compile(c.pop('program'), 'zygote', 'exec'), n); n['launch'](**c)"
)
PROOF = """
import os
said = dict(line.split(":", 1) for line in open("/proc/self/status"))
assert said["NoNewPrivs"].strip() == "1", "new privileges are possible"
assert said["Seccomp"].strip() == "2", "system calls are not filtered"
assert int(said["CapEff"], 16) == int(said["CapBnd"], 16) == 0, "there are capabilities"
assert os.getuid() == 65534, "it is not nobody"
assert {int(name) for name in os.listdir("/proc") if name.isdigit()} == {1, os.getpid()}, "others are seen"
assert all(line.split(":")[0].strip() == "lo" for line in list(open("/proc/self/net/dev"))[2:]), "there is a network"
print("ok")
"""


class _Zygote:
    """One launcher and its zygote. Raises OSError, with what it said, when it could not be started."""

    def __init__(self, python: str, settings: dict[str, Any]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [python, "-I", "-S", "-B", "-c", BOOT],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                    env={},
                )
                settings = {**settings, "control": theirs.fileno()}
        except OSError:
            self._control.close()
            raise
        try:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
                stdin.write(json.dumps(settings).encode())
            self._control.settimeout(START_S)
            said = json.loads(self._control.recv(1 << 16) or b'{"error": "the zygote has died"}')
            if said["error"]:
                raise OSError(said["error"])
        except (OSError, ValueError):
            self.end()
            raise

    def request(self) -> socket.socket:
        """The gateway's end of a new jail, which gets ready by itself; raises OSError when the zygote has gone."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"job"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def end(self) -> None:
        self._control.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # and the zygote with it
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)


class NamespacesLevel:
    """See `Level`. `source_by_harness`: the harnesses by name; `parked`: jails kept ready; `disk_bytes`: the size of
    every job's work directory. The zygote is started by the first call that needs it, or by `start`."""

    name = "namespaces"

    def __init__(
        self,
        source_by_harness: Mapping[str, str],
        parked: int = PARKED,
        disk_bytes: int = Limits().disk_bytes,
        python: str = sys.executable,
    ) -> None:
        self._settings = {"harnesses": dict(source_by_harness), "disk_bytes": disk_bytes, "inodes": INODES}
        self._python, self._most_parked = python, parked
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._zygote: Optional[_Zygote] = None
        self._parked: deque[socket.socket] = deque()
        self._closed = False

    def probe(self) -> Optional[str]:
        if not sys.platform.startswith("linux"):
            return "namespaces are Linux's"
        try:
            self.start()
        except OSError as error:
            return str(error)
        return proved(self.open, PROOF)

    def start(self) -> None:
        """Start the zygote, if there is none, and park jails; raises OSError when there can be none."""
        self._living(None)
        self.refill()

    def open(self) -> Channel:
        while True:
            with self._lock:
                sock = self._parked.popleft() if self._parked else None
            if sock is None:
                return self._channel(self._request())
            if _alive(sock):
                return self._channel(sock)
            sock.close()

    def refill(self) -> None:
        while True:
            with self._lock:
                if self._closed or len(self._parked) >= self._most_parked:
                    return
            try:
                sock = self._request()
            except OSError:
                return  # whoever opens a jail is told
            with self._lock:
                if not self._closed:
                    self._parked.append(sock)
                    continue
            sock.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            zygote, self._zygote = self._zygote, None
            parked, self._parked = self._parked, deque()
        for sock in parked:
            sock.close()
        if zygote is not None:
            zygote.end()

    def _channel(self, sock: socket.socket) -> Channel:
        return Channel(sock, self.name, {}, lambda: None)  # the supervisor sees the channel's end

    def _request(self) -> socket.socket:
        zygote = self._living(None)
        try:
            return zygote.request()
        except OSError:
            return self._living(zygote).request()

    def _living(self, dead: Optional[_Zygote]) -> _Zygote:
        """The zygote, a new one if there is none but `dead`."""
        with self._starting:
            with self._lock:
                if self._closed:
                    raise OSError("the level namespaces is closed")
                zygote = self._zygote
            if zygote is not None and zygote is not dead:
                return zygote
            if zygote is not None:
                zygote.end()
            started = _Zygote(self._python, {**self._settings, "program": inside_text("zygote.py")})
            with self._lock:
                closed = self._closed
                self._zygote = None if closed else started
            if closed:
                started.end()
                raise OSError("the level namespaces is closed")
            return started


def _alive(sock: socket.socket) -> bool:
    """Whether a jail that waits for a job is there still: it has nothing to say before."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)
