"""The pictures of README and docs, made of the running product: a gateway, nine engines, some load, a browser.

    python -m tests.screenshots [--out docs/images] [--seconds 240] [--only live,phone]

Needs chromium, chromedriver and selenium as the tests of the console do; with Pillow the pictures are made small. The
engines are of this process: they answer what a model might, as fast as it might, and are slow, fail and stop when the
script has them. Everything else is real. Nothing is left behind but the pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Optional

from tests.browsing import DARK, LIGHT, MISSING, Browser
from tests.support import CHAT, ROOT, GatewayProcess, gateway_process

WIDE, TALL, PHONE = (1440, 1000), (1440, 1240), (390, 844)
ADMIN = "an-admin-key-of-the-pictures"
COLOURS = 255
LLAMA, QWEN, MISTRAL = "llama-3.3-70b", "qwen2.5-32b", "mistral-small-24b"
SPEEDS = {LLAMA: (0.28, 42.0), QWEN: (0.17, 71.0), MISTRAL: (0.12, 96.0)}
"""Seconds until the first token, tokens a second."""
PRICES = {LLAMA: (0.59, 0.79), QWEN: (0.35, 0.40), MISTRAL: (0.10, 0.30)}
WEIGHTS = {LLAMA: 5, QWEN: 3, MISTRAL: 4}
ENGINES = {
    LLAMA: ("h100-a", "h100-b", "h100-c"),
    QWEN: ("l40s-a", "l40s-b", "l40s-c"),
    MISTRAL: ("l4-a", "l4-b", "l4-c"),
}
SLOW, STOPPED, DRAINED, FLAKY = "l40s-b", "h100-c", "l4-c", "h100-b"
QUESTION = "Why does a gateway need a circuit breaker for each engine?"
SAID = {
    LLAMA: (
        "An engine that has gone bad rarely says so. It accepts connections, and answers late or not at all. "
        "Without a breaker every request routed there waits for the whole timeout before it is tried elsewhere.\n\n"
        "A circuit breaker counts what happens at one engine. While requests succeed it is closed. After "
        "enough failures in a row it opens: the engine is left out at once, and its share goes to the others. After a "
        "pause it is half open and lets a single request through; if that one is answered, the engine is back.\n\n"
        "There has to be one for each engine, since failures are rarely shared: one host runs out of memory while its "
        "neighbours are fine. A breaker for the whole model would take three good engines out with the bad one."
    ),
    QWEN: (
        "In short: so that one broken engine cannot make everybody wait.\n\n"
        "1. Fail fast. An open breaker turns a 30 s timeout into a decision of microseconds.\n"
        "2. Give it air. An overloaded engine recovers sooner when nobody asks it.\n"
        "3. Find out by itself. Half open, one request tries the engine, so that it comes back without anybody's help."
        "\n\nIt is kept for each engine, because engines fail one at a time. The router reads its state before it "
        "chooses, so a client never sees an engine that is known to be out; a retry or another model stands in."
    ),
}
TASK = """Write a Python function is_leap(year) that says whether a year is a leap year.

is_leap(2000) == True
is_leap(1900) == False"""
SHOWN = "\n\nyears = range(1896, 1913)\nprint(list(filter(is_leap, years)))"
PROGRAMS = {
    LLAMA: "def is_leap(year):\n    if year % 100 == 0:\n        return year % 400 == 0\n    return year % 4 == 0",
    QWEN: "from calendar import monthrange\n\n"
    "def is_leap(year):\n    days = monthrange(year, 2)[1]\n    return days == 29",
    MISTRAL: "def is_leap(year):\n    return year % 4 == 0",
}
LEADS = {
    LLAMA: "A year is a leap year if it is divisible by 4, but not by 100 unless by 400.",
    QWEN: "The calendar knows how long February is:",
    MISTRAL: "Every fourth year is a leap year:",
}
PROMPTS = (
    *(
        "Summarise this ticket in one sentence.",
        "Translate to French: the train is late.",
        "Name five uses of a queue.",
    ),
    *("Write a haiku about latency.", "Explain backpressure to a manager.", "Classify the mood of this review."),
)
SENTENCES = (
    "The queue drains while every engine answers in its own time, and the slow ones are left alone for a while. ",
    "What comes first is served first, unless its owner has asked for more than its share. ",
    "A retry costs little as long as nothing has been said to the client. ",
)


def answer_to(model: str, prompt: str, chance: random.Random) -> str:
    """What a model says to a prompt."""
    if "is_leap" in prompt:
        return f"{LEADS[model]}\n\n```python\n{PROGRAMS[model]}{SHOWN}\n```\n"
    if prompt.startswith(QUESTION[:20]):
        return SAID.get(model, SAID[QWEN])
    return "".join(chance.choices(SENTENCES, k=chance.randrange(1, 6)))


class Engine:
    """One engine: a server of this process, on a port that it keeps. Its conduct may be changed from any thread."""

    def __init__(self, model: str, name: str) -> None:
        self.model, self.name = model, name
        self.slowness = 1.0
        self.error_ratio = 0.0
        self.port = 0
        self._server: Optional[ThreadingHTTPServer] = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Listen."""
        engine = self

        class Handler(_Handler):
            of = engine

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name=f"engine-{self.name}", daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Handler(BaseHTTPRequestHandler):
    of: Engine
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):  # who asked may have given up
            self._send(200, {"object": "list", "data": [{"id": self.of.model, "object": "model"}], "status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chance = random.Random()
        if chance.random() < self.of.error_ratio:
            self._send(503, {"error": {"message": "CUDA out of memory", "type": "server_error"}})
            return
        prompt = body["messages"][-1]["content"]
        text = answer_to(self.of.model, prompt, chance)
        pieces = [piece + " " for piece in text.split(" ")]
        first_s, rate = SPEEDS[self.of.model]
        first_s *= self.of.slowness * chance.lognormvariate(0, 0.35)
        if prompt == QUESTION:
            rate /= 2  # it is to be seen while it comes
        each_s = self.of.slowness / rate * chance.lognormvariate(0, 0.1)
        usage = {"prompt_tokens": 8 + len(prompt) // 4, "completion_tokens": len(pieces)}
        usage["total_tokens"] = sum(usage.values())
        time.sleep(first_s)
        with contextlib.suppress(OSError):
            if body.get("stream"):
                self._stream(pieces, each_s, usage)
            else:
                time.sleep(each_s * len(pieces))
                message = {"role": "assistant", "content": text}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                self._send(200, {"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage})

    def _stream(self, pieces: list[str], each_s: float, usage: dict[str, int]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for piece in pieces:
            self._event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            time.sleep(each_s)
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, value: object) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def _send(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Load:
    """Callers with keys of their own, until it is left: a context manager. Counts nothing; the gateway does."""

    CALLERS = {"web-app": 10, "support-bot": 5, "research": 3}

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway
        self.wrong = 0.01  # the share of requests that are refused for what they ask
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Load:
        limits = {
            "web-app": {"rpm": 6000, "budget_usd": 50},
            "support-bot": {"tpm": 900_000},
            "research": {"budget_usd": 5},
        }
        for name, count in self.CALLERS.items():
            body = {"name": name, "role": "user", **limits[name]}
            made = self._gateway.ask("POST", "/admin/keys", body, [("Authorization", f"Bearer {ADMIN}")])
            assert made.status == 201, made.body
            for number in range(count):
                arguments = (made.json()["key"], random.Random(f"{name}-{number}"))
                self._threads.append(threading.Thread(target=self._run, args=arguments, name=f"{name}-{number}"))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, key: str, chance: random.Random) -> None:
        while not self._over.is_set():
            model = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            prompt = chance.choice(PROMPTS)
            if chance.random() < 0.75:  # most are asked once only
                prompt += f" ({chance.randrange(10**9)})"
            body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
            if chance.random() < 0.5:
                body.update(stream=True, stream_options={"include_usage": True})
            if chance.random() < self.wrong:
                body["temperature"] = 9
            with contextlib.suppress(AssertionError, OSError), self._gateway.connect(timeout_s=60) as client:
                client.request("POST", CHAT, body, [("Authorization", f"Bearer {key}")])
                if "stream" in body and client.read_head().status == 200:
                    client.read_events()
                elif "stream" not in body:
                    client.read_response()
            self._over.wait(chance.expovariate(1.5))


class Photographer:
    """Opens the console's pages and keeps what is seen."""

    def __init__(self, browser: Browser, gateway: GatewayProcess, out: Path) -> None:
        self._browser, self._gateway, self._out = browser, gateway, out

    def open(self, page: str, scheme: str, size: tuple[int, int], scale: float = 1) -> None:
        """Open a page of the console, signed in."""
        browser = self._browser
        browser.look(scheme, size, scale)
        browser.show("about:blank")
        browser.show(f"{self._gateway.url}/#{page}")
        if not browser.js("return sessionStorage.getItem('console-key')"):
            browser.wait_for("#sign-in-dialog[open]")
            browser.click("#sign-in-remember")
            browser.fill("#sign-in-key", ADMIN)
            browser.click("#sign-in-submit")
        browser.wait_for(f"#page-{page} h1")

    def keep(self, name: str, whole: Optional[str] = None) -> None:
        """Keep what is seen, or the whole of one element, as a picture of that name."""
        path = self._out / f"{name}.png"
        if whole is None:
            self._browser.driver.save_screenshot(str(path))
        else:
            self._browser.driver.find_element("css selector", whole).screenshot(str(path))
        make_small(path)
        print(f"{path} {path.stat().st_size} bytes", flush=True)

    def live(self) -> None:
        for scheme in (DARK, LIGHT):
            self.open("live", scheme, TALL)
            self._browser.until("document.querySelectorAll('#requests-table tr[data-request]').length > 20")
            self._browser.until("document.querySelector('#live[data-feed=open]')")
            time.sleep(3)  # some ticks, so that sparklines are drawn
            self.keep(f"console-live-{scheme}")

    def requests(self) -> None:
        browser = self._browser
        self.open("live", DARK, (1440, 900))
        browser.until("document.querySelectorAll('#requests-table tr[data-request]').length > 20")
        browser.press("p")  # what is read stands still
        self.keep("console-requests", "#live-requests")

    def phone(self) -> None:
        self.open("live", DARK, PHONE, 2)
        self._browser.until("document.querySelectorAll('#live .engine').length === 9")
        time.sleep(3)
        self.keep("console-phone")

    def playground(self) -> None:
        browser = self._browser
        self.open("playground", LIGHT, WIDE)
        for box in browser.driver.find_elements("css selector", "#play-models input"):
            if box.is_selected() != (box.get_attribute("data-model") in (LLAMA, QWEN)):
                box.click()
        browser.fill("#play-prompt", QUESTION)
        browser.click("#play-send")
        texts = "[...document.querySelectorAll('article[data-model] .said[data-part=text]')]"
        lengths = f"{texts}.map((node) => node.textContent.length)"
        browser.until(f"Math.min(...{lengths}) > 300", timeout_s=60)
        self.keep("console-playground")
        browser.until("document.querySelectorAll('article[data-state=done]').length === 2", timeout_s=60)

    def verify(self) -> None:
        browser = self._browser
        self.open("verify", LIGHT, (1440, 900))
        browser.fill("#verify-prompt", TASK)
        browser.click("#verify-run")
        browser.wait_for("#verify-verdict", timeout_s=90)
        browser.js("window.scrollTo(0, 0); return null")
        self.keep("console-verify")

    def admin(self) -> None:
        self.open("admin", DARK, TALL)
        self._browser.wait_for("#admin-keys tr[data-key]")
        time.sleep(2)
        self.keep("console-admin")

    def loadtest(self, directory: Path) -> None:
        """The report of a load test of this gateway, if it has one."""
        report = directory / "report.html"
        command = [sys.executable, "main.py", "loadtest", self._gateway.url, "--key", ADMIN, "--html", str(report)]
        command += ["-m", QWEN, "--ramp", "1:12:20s", "--stream", "--unique"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        if not report.exists():
            print(f"no load test: {done.stderr.strip().splitlines()[-1:]}")
            return
        self._browser.look(LIGHT, TALL)
        self._browser.show(report.as_uri())
        time.sleep(1)
        self.keep("loadtest")


def make_small(path: Path) -> None:
    """Reduce a picture to as many colours as it needs; without Pillow it stays as it is."""
    try:
        from PIL import Image
    except ImportError:
        return
    with Image.open(path) as image:
        flat = image.convert("RGB")
    flat.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)


@contextlib.contextmanager
def running(directory: Path) -> Iterator[tuple[GatewayProcess, dict[str, Engine]]]:
    """A gateway and its engines."""
    engines = {name: Engine(model, name) for model, names in ENGINES.items() for name in names}
    models = {
        model: {
            "engines": [{"url": engines[name].url, "id": name, "max_concurrency": 8} for name in names],
            "price": dict(zip(("input", "output"), PRICES[model])),
        }
        for model, names in ENGINES.items()
    }
    (directory / "engines.json").write_text(json.dumps({"models": models}), "utf-8")
    settings = {
        "ENGINES_FILE": directory / "engines.json",
        "STATE_DB": directory / "gateway.db",
        "ADMIN_KEYS": f"operator:{ADMIN}",
        "CACHE": "on",
        "HEALTH_INTERVAL": "2",
        "SLO_AVAILABILITY": "0.99",
        "SLO_LATENCY_MS": "6000",
        "SLOW_MS": "5000",
        "SANDBOX": "process",
        "SANDBOX_MIN": "process",
    }
    try:
        with gateway_process(settings) as gateway:
            yield gateway, engines
    finally:
        for engine in engines.values():
            engine.stop()


def live_through(seconds: float, load: Load, gateway: GatewayProcess, engines: dict[str, Engine]) -> None:
    """Let time pass, in which one engine fails now and then, one is slow for a while, one stops, one is drained."""
    engines[FLAKY].error_ratio = 0.06
    time.sleep(0.25 * seconds)
    engines[SLOW].slowness = 4.0
    load.wrong = 0.08
    time.sleep(0.25 * seconds)
    engines[SLOW].slowness = 1.0
    load.wrong = 0.01
    engines[STOPPED].stop()
    time.sleep(0.4 * seconds)
    gateway.ask("POST", f"/admin/engines/{DRAINED}/drain", None, [("Authorization", f"Bearer {ADMIN}")])
    time.sleep(0.1 * seconds)


def main() -> None:
    """Make the pictures that are wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder (default: docs/images)")
    parser.add_argument("--seconds", type=float, default=240, help="how long there is load before (default: 240)")
    parser.add_argument(
        "--only", default="live,requests,playground,verify,admin,phone,loadtest", help="which, with commas"
    )
    options = parser.parse_args()
    if MISSING:
        parser.error(f"{', '.join(MISSING)} missing")
    wanted = options.only.split(",")
    options.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gateway, engines = stack.enter_context(running(directory))
        browser = Browser()
        stack.callback(browser.quit)
        photographer = Photographer(browser, gateway, options.out)
        with Load(gateway) as load:
            live_through(options.seconds, load, gateway, engines)
            for name in ("live", "requests", "phone", "admin", "playground", "verify"):
                if name in wanted:
                    getattr(photographer, name)()
        if "loadtest" in wanted:
            photographer.loadtest(directory)


if __name__ == "__main__":
    main()
