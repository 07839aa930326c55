"""Many verifications at once, a third of the programs hostile: is every one answered, what is left, who else feels it.

    python -m tests.bench.verifying [--verifications 200] [--rate 200] [--seconds 8] [--turns 3] [--engine-ms 0]

Starts an engine that answers as three models (two of them write a right program, the third a hostile one), and a
gateway in front of it. First all verifications are sent at once: each has to be answered, by the right program, and
afterwards no process, no zombie and no more memory may be left. Then ordinary requests are sent at a fixed rate, by
turns alone, beside hostile verifications that never pause, and beside two plain busy loops of the lowest priority, than
which no sandbox could do better on this machine: what each does to their 99th percentile. The last line says whether
all of it held; how much the percentile moved is printed, and judged by whoever reads it.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from tests.ports import free_port

from . import client, paced, processes
from .processes import BenchError, Child

ROOT = Path(__file__).resolve().parents[2]
RIGHT = "def add(a, b):\n    return a + b"
ORDINARY = "hi #0"
HOSTILE = (
    "while True: pass",
    "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "a = []\nwhile True: a.append(bytearray(1 << 20))",
    "import sys\nwhile True: sys.stdout.write('y' * 65536)",
    "import os\nos._exit(0)",
    "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(1, signal.SIGKILL)",
    "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass\ndef add(a, b): return a - b",
    "import socket\nsocket.create_connection(('1.1.1.1', 80), 9)\ndef add(a, b): return 0",
    "def add(a, b):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "n = 0\nwhile True:\n    open('f%d' % n, 'wb').write(b'x' * (1 << 20)); n += 1",
    "class Liar(int):\n    def __eq__(self, other): return True\ndef add(a, b): return Liar(7)",
    "import sys\nsys.setrecursionlimit(10 ** 9)\ndef add(a, b): return add(a, b)",
)
PROMPT = "Write add(a, b), which gives the sum.\n>>> add(1, 2)\n3\n>>> add(-4, 9)\n5\n# {}"
ANSWER_S = 300.0
LOOP = """
import contextlib, os
os.nice(19)
with contextlib.suppress(OSError, AttributeError):
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
with contextlib.suppress(OSError):
    open("/proc/self/autogroup", "w").write("19")
while True:
    pass
"""


# --- the engine ----------------------------------------------------------------------------------------------------


def program_of(request: dict[str, Any]) -> str:
    """What a model writes: the third one something hostile, by the number in the prompt."""
    if request["model"] != "c":
        return RIGHT
    number = int(request["messages"][0]["content"].rpartition("#")[2])
    return HOSTILE[number % len(HOSTILE)]


async def answer(engine_ms: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection; ordinary ones after so many milliseconds."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(lengths[0][15:])) if lengths else b"{}"
            request = json.loads(body)
            if lengths and request["messages"][0]["content"] == ORDINARY:
                await asyncio.sleep(engine_ms / 1000)
            message = {"role": "assistant", "content": f"```python\n{program_of(request)}\n```"} if lengths else {}
            usage = {"prompt_tokens": 20, "completion_tokens": 20, "total_tokens": 40}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            said = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "data": []}
            data = json.dumps({**said, "usage": usage}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data))
            writer.write(data)
            await writer.drain()
    except (asyncio.IncompleteReadError, OSError):
        writer.close()


async def serve(port: int, engine_ms: int) -> None:
    """Be the engine."""
    server = await asyncio.start_server(functools.partial(answer, engine_ms), "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


# --- what is measured ----------------------------------------------------------------------------------------------


def verify(port: int, number: int) -> dict[str, Any]:
    """One verification. Raises BenchError when it is not answered as it has to be."""
    body = json.dumps({"prompt": PROMPT.format(number), "execution_config": {"timeout": 2}}).encode()
    url = f"http://127.0.0.1:{port}/api/v1/inference"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
            answered: dict[str, Any] = json.load(response)
    except OSError as error:
        raise BenchError(f"verification {number}: {error}") from error
    if "a + b" not in (answered["selected_response"] or ""):
        raise BenchError(f"verification {number} chose {answered['verification']}")
    return answered


def all_at_once(port: int, count: int) -> list[dict[str, Any]]:
    """So many verifications at once. Raises BenchError when one of them fails."""
    answers: list[dict[str, Any]] = []
    faults: list[BenchError] = []

    def one(number: int) -> None:
        try:
            answers.append(verify(port, number))
        except BenchError as error:
            faults.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise BenchError(f"{len(faults)} of {count} failed, the first: {faults[0]}")
    return answers


def descendants(pid: int) -> list[tuple[int, str]]:
    """Every process that stems from `pid`, with its state."""
    children: dict[int, list[tuple[int, str]]] = {}
    for path in Path("/proc").iterdir():
        name = path.name
        if name.isdigit():
            try:
                stat = (path / "stat").read_text()
            except OSError:
                continue
            state, parent = stat.rpartition(")")[2].split()[:2]
            children.setdefault(int(parent), []).append((int(name), state))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += [child for child, _ in below]
    return found


def rss_mb(pid: int) -> float:
    """Memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def bodies() -> Iterator[bytes]:
    """Ordinary requests."""
    body = json.dumps({"model": "a", "messages": [{"role": "user", "content": ORDINARY}]}).encode()
    return itertools.repeat(body)


def p99_ms(port: int, rate: int, seconds: float, engine_ms: int) -> float:
    """The 99th percentile of ordinary requests at a fixed rate."""
    connections = 16 + 2 * rate * engine_ms // 1000
    return paced.run(port, {}, bodies(), rate, connections, seconds).p99_us / 1000


def beside(measured: Callable[[], float], port: int, streams: int) -> tuple[float, int]:
    """The same beside verifications that never pause, and how many of those there were."""
    stop = threading.Event()
    done = itertools.count()
    faults: list[BenchError] = []

    def go_on(start: int) -> None:
        number = start
        while not stop.is_set():
            try:
                verify(port, number)
            except BenchError as error:
                faults.append(error)
                return
            number += streams
            next(done)

    threads = [threading.Thread(target=go_on, args=(start,)) for start in range(streams)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1.0)  # until all of them are under way: what is measured is the load, not its beginning
        p99 = measured()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if faults:
        raise faults[0]
    return p99, next(done)


def beside_loops(measured: Callable[[], float]) -> float:
    """The same beside two busy loops that run only when nobody else wants the processor."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP], start_new_session=True) for _ in range(2)]
    try:
        time.sleep(0.5)
        return measured()
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def start_gateway(engine_port: int, work: Path) -> tuple[Child, int]:
    """A gateway with three models at that engine."""
    port = free_port()
    engines = {"engines": [f"http://127.0.0.1:{engine_port}/v1"]}
    file = work / "engines.json"
    file.write_text(json.dumps({"models": dict.fromkeys("abc", engines)}))
    environment = {**os.environ, "ENGINES_FILE": str(file), "PORT": str(port), "LOG_LEVEL": "error"}
    gateway = processes.start("gateway", [sys.executable, str(ROOT / "main.py")], work / "log", environment, work)
    client.wait_until_answering(gateway, port, "/readyz", 20.0)
    return gateway, port


def settled(pid: int, wanted: int) -> list[tuple[int, str]]:
    """The descendants, when there are no more than wanted, or after 10 s."""
    deadline_s = time.monotonic() + 10.0
    while len(descendants(pid)) > wanted and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return descendants(pid)


def measure(args: argparse.Namespace, work: Path) -> bool:
    """All of it; whether it held."""
    engine_port = free_port()
    own = [sys.executable, "-m", "tests.bench.verifying", "--engine", str(engine_port)]
    own += ["--engine-ms", str(args.engine_ms)]
    engine = processes.start("engine", own, work / "engine.log", cwd=ROOT)
    client.wait_until_answering(engine, engine_port, "/", 20.0)
    gateway, port = start_gateway(engine_port, work)
    for number in range(12):  # the sandbox is started, and every kind of program has been seen
        verify(port, number)
    before = len(settled(gateway.pid, 0))  # after the 10 s, what it keeps ready is
    before_mb = rss_mb(gateway.pid)
    began_s = time.monotonic()
    answers = all_at_once(port, args.verifications)
    took_s = time.monotonic() - began_s
    after_mb = rss_mb(gateway.pid)
    again = all_at_once(port, args.verifications)
    last_mb = rss_mb(gateway.pid)
    left = settled(gateway.pid, before)
    zombies = sum(state == "Z" for _, state in left)
    levels = {run["isolation"] for a in answers for m in a["model_responses"] for run in m["execution_results"]}
    verified = sum(a["verification"]["verified"] for a in answers + again)
    print(f"{args.verifications} at once, twice: all answered with the right program, {verified} of them verified")
    print(f"isolation {', '.join(map(str, levels))}; {took_s:.1f} s, {args.verifications / took_s:.1f} verifications/s")
    print(
        f"memory of the gateway: {before_mb:.1f} MiB before, {after_mb:.1f} after, {last_mb:.1f} after the second time"
    )
    print(f"processes left: {len(left) - before} (zombies: {zombies})")
    alone, loaded, idle = [], [], []
    measured = functools.partial(p99_ms, port, args.rate, args.seconds, args.engine_ms)
    for turn in range(args.turns):
        alone.append(measured())
        p99, count = beside(measured, port, args.streams)
        loaded.append(p99)
        idle.append(beside_loops(measured))
        figures = f"{alone[-1]:.2f} ms alone, {p99:.2f} beside {count} verifications, {idle[-1]:.2f} beside idle loops"
        print(f"turn {turn + 1}: p99 at {args.rate}/s {figures}")
    ratios = [statistics.median(b / a for a, b in zip(alone, others)) for others in (loaded, idle)]
    print("p99 of other traffic as a part of what it is alone, medians of turns:")
    print(f"{ratios[0]:.2f} beside hostile verifications, {ratios[1]:.2f} beside two busy loops of the lowest priority")
    return len(left) <= before and not zombies and last_mb < after_mb * 1.1 + 4


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--verifications", type=int, default=200)
    parser.add_argument("--rate", type=int, default=200, help="ordinary requests a second")
    parser.add_argument("--engine-ms", type=int, default=0, help="that the engine takes for an ordinary request")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn")
    parser.add_argument("--streams", type=int, default=4, help="verifications under way beside them")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    if args.engine:
        asyncio.run(serve(args.engine, args.engine_ms))
        return 0
    processes.install_cleanup()
    processes.open_files_limit()
    with tempfile.TemporaryDirectory() as folder:
        try:
            held = measure(args, Path(folder))
        except BenchError as error:
            print(f"verifying: {error}", file=sys.stderr)
            held = False
        finally:
            processes.stop_all()
    print("held" if held else "NOT held")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
