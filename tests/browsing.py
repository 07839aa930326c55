"""A real browser for tests: Debian's Chromium without a window, driven by selenium; and who answers what it asks for.

`Browser` owns one Chromium with a profile of its own, and what it has noted: its console and the requests it made.
`BrowserTest` gives each test a clean tab, and fails it for anything said in the console that the test has not announced
in `said`, and for any request to another host than the gateways'. Not thread safe. Every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import select
import shutil
import tempfile
import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked, delta
from tests.support import TIMEOUT_S, eventually

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SELENIUM = "selenium" if importlib.util.find_spec("selenium") else None
MISSING = [
    name for name, found in (("chromium", CHROMIUM), ("chromedriver", DRIVER), ("selenium", SELENIUM)) if found is None
]
REQUIRED = os.environ.get("REQUIRE_BROWSER") == "1"
AXE = Path(os.environ.get("AXE_JS", "")) / "node_modules/axe-core/axe.min.js"
AXE_REQUIRED = os.environ.get("REQUIRE_AXE") == "1"
needs_browser = unittest.skipIf(bool(MISSING), f"{', '.join(MISSING)} missing")
needs_axe = unittest.skipUnless(AXE.is_file(), "axe-core is not in the folder AXE_JS")

_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
)
DESKTOP, PHONE = (1280, 900), (360, 740)
LIGHT, DARK = "light", "dark"
_SCRIPT_TIMEOUT_S = 30

# Violations as lines that say which element breaks what.
_RUN_AXE = """
const done = arguments[arguments.length - 1];
const wrong = (node) => [...node.any, ...node.all, ...node.none].map((check) => check.message).join("; ");
axe.run(document, {resultTypes: ["violations"]}).then(
  (told) => done(told.violations.filter((one) => ["serious", "critical"].includes(one.impact)).flatMap((one) =>
    one.nodes.map((node) => `${one.id} (${one.impact}): ${node.target.join(" ")}: ${wrong(node)}`))),
  (error) => done([String(error)]));
"""

# What reaches beyond the page, and is not in a box that scrolls or hides it.
_WIDE = """
const most = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth <= most) return [];
const clipped = (node) => node !== null &&
  (/auto|scroll|hidden|clip/.test(getComputedStyle(node).overflowX) || clipped(node.parentElement));
const out = [...document.body.querySelectorAll("*")].filter((node) =>
  node.getBoundingClientRect().right > most + 0.5 && !clipped(node.parentElement));
return [`${document.documentElement.scrollWidth} of ${most} px`, ...out.map((node) =>
  `${node.tagName} ${node.getAttribute("class")} ${node.id}`)];
"""

# Notes whatever comes to have the focus, and whether that can be seen; `_TABBED` tells of it, and of what never had it.
_WATCH_FOCUS = """
window.focused = new Set();
window.unseen = [];
window.nameOf = (node) => {
  const said = node.textContent.trim().slice(0, 30);
  return `${node.tagName.toLowerCase()}#${node.id}.${node.getAttribute("class")} ${said}`;
};
document.addEventListener("focusin", ({target}) => {
  focused.add(target);
  const style = getComputedStyle(target);
  const box = target.getBoundingClientRect();
  const seen = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  const ring = (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0) || style.boxShadow !== "none";
  if (!seen || !ring) unseen.push(`${seen ? "no ring" : "out of sight"}: ${nameOf(target)}`);
});
"""
_NATIVE = "a[href], button, input, select, textarea, summary"
_TABBABLE = f"{_NATIVE}, [tabindex]:not([tabindex='-1'])"
_ROVING = ".requests-table *"  # one of them is in the Tab order, the arrow keys move between them
_TABBED = """
const list = [...document.querySelectorAll(arguments[0])].filter((node) => !node.disabled &&
  (node.tabIndex >= 0 || !node.matches(arguments[1])) &&
  node.checkVisibility({visibilityProperty: true}) && node.getClientRects().length > 0);
return [list.length, list.filter((node) => !focused.has(node)).map(nameOf), unseen];
"""


class Browser:
    """One Chromium. `quit` ends it."""

    def __init__(self) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        self._profile = tempfile.mkdtemp(prefix="browser-")
        for flag in (*_FLAGS.split(), f"--user-data-dir={self._profile}", "--window-size=1280,900"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        options.set_capability("unhandledPromptBehavior", "ignore")  # a dialog fails whatever the test does next
        self.driver: Any = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
        self.driver.set_script_timeout(_SCRIPT_TIMEOUT_S)
        self._axe = AXE.read_text("utf-8") if AXE.is_file() else ""

    def quit(self) -> None:
        """End it, and forget its profile."""
        with contextlib.suppress(Exception):
            self.driver.quit()
        shutil.rmtree(self._profile, ignore_errors=True)

    # --- where it is, how it looks ---

    def show(self, url: str) -> None:
        """Go to an address, as if it had been typed."""
        self.driver.get(url)

    def look(self, scheme: str = LIGHT, size: tuple[int, int] = DESKTOP, scale: float = 1) -> None:
        """Emulate who prefers light or dark, and a screen of so many CSS pixels; a phone's where it is as narrow."""
        width, height = size
        mobile = width < 500
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    # --- what is there ---

    def js(self, script: str, *arguments: Any) -> Any:
        """What the body of a function returns in the page."""
        return self.driver.execute_script(script, *arguments)

    def until(self, expression: str, *arguments: Any, timeout_s: float = TIMEOUT_S) -> Any:
        """Wait until an expression in the page is true (`arguments` are its own), and return it. AssertionError after
        `timeout_s`, with what the page shows."""
        try:
            return eventually(lambda: self.js(f"return {expression}", *arguments), timeout_s)
        except AssertionError:
            shown = str(self.js("return document.body.innerText"))
            raise AssertionError(f"{expression} {arguments} has not become true; the page shows:\n{shown}") from None

    def wait_for(self, css: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until an element is there and seen."""
        self.until("document.querySelector(arguments[0])?.checkVisibility()", css, timeout_s=timeout_s)

    def wait_for_text(self, css: str, text: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until the first such element has this in its text."""
        expression = "(document.querySelector(arguments[0])?.textContent ?? '').includes(arguments[1])"
        self.until(expression, css, text, timeout_s=timeout_s)

    def count(self, css: str) -> int:
        """How many such elements there are."""
        return int(self.js("return document.querySelectorAll(arguments[0]).length", css))

    def text(self, css: str) -> str:
        """The text of the first such element. AssertionError: there is none."""
        found = self.js("return document.querySelector(arguments[0])?.textContent ?? null", css)
        assert found is not None, f"there is no {css}"
        return str(found)

    def attributes(self, css: str, name: str) -> list[Optional[str]]:
        """What all such elements have as this attribute."""
        script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.getAttribute(arguments[1]))"
        return list(self.js(script, css, name))

    def computed(self, css: str, name: str) -> str:
        """A property of the first such element as it is drawn. AssertionError: there is none."""
        self.wait_for(css)
        script = "return getComputedStyle(document.querySelector(arguments[0])).getPropertyValue(arguments[1])"
        return str(self.js(script, css, name))

    # --- what a person does ---

    def click(self, css: str) -> None:
        """Click the first such element, once it can be; it must not be covered by another."""
        self.until(
            "(() => { const node = document.querySelector(arguments[0]); return node && !node.disabled; })()", css
        )
        self.driver.find_element("css selector", css).click()

    def fill(self, css: str, text: str) -> None:
        """Write into a field, in place of what it has."""
        self.wait_for(css)
        field = self.driver.find_element("css selector", css)
        field.clear()
        field.send_keys(text)

    def press(self, *keys: str) -> None:
        """Press keys where the focus is; the modifiers among them are held until the last one."""
        from selenium.webdriver.common.action_chains import ActionChains

        actions = ActionChains(self.driver, duration=0)
        for key in keys[:-1]:
            actions.key_down(key)
        actions.send_keys(keys[-1])
        for key in keys[:-1]:
            actions.key_up(key)
        actions.perform()

    def tab_through(self) -> tuple[int, list[str], list[str]]:
        """Press Tab from the page's start to its end. How many things can have the focus; those that the key has not
        come to; those of which it could not be seen that they had it."""
        from selenium.webdriver.common.action_chains import ActionChains

        self.js(_WATCH_FOCUS)
        self.js("document.activeElement.blur(); window.scrollTo(0, 0); return null")
        wanted = int(self.js(_TABBED, _TABBABLE, _ROVING)[0])
        ActionChains(self.driver, duration=0).send_keys("\ue004" * (wanted + 4)).perform()
        count, missed, unseen = self.js(_TABBED, _TABBABLE, _ROVING)
        return int(count), list(missed), list(unseen)

    # --- what is said of it ---

    def faults(self) -> list[str]:
        """What axe-core finds serious or critical in the page as it stands."""
        if not self.js("return typeof axe === 'object'"):
            self.js(self._axe)
        return list(self.driver.execute_async_script(_RUN_AXE))

    def wide(self) -> list[str]:
        """What goes beyond the page's right edge; empty: nothing does."""
        return list(self.js(_WIDE))

    def said(self) -> list[str]:
        """What has come into the console at SEVERE since this was asked last: errors, and what the policy forbids."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "ERROR")]

    def hosts(self) -> set[str]:
        """The hosts, with their ports, that something was asked of since this was asked last."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                params = message["params"]
                url = urlsplit(params.get("url") or params["request"]["url"])
                if url.scheme in ("http", "https", "ws", "wss", "ftp"):
                    found.add(url.netloc)
        return found


class BrowserTest(unittest.TestCase):
    """A test with a clean tab. `browser` is the module's."""

    browser: Browser
    hosts: set[str]
    """Who may be asked."""
    said: tuple[str, ...] = ()
    """Patterns of what may be said in the console: that a request was refused, where the test has it refused."""

    def setUp(self) -> None:
        self.browser.show("about:blank")
        self.browser.look()
        self.browser.said()
        self.browser.hosts()
        self.addCleanup(self._look_back)

    def _look_back(self) -> None:
        said = [text for text in self.browser.said() if not any(re.search(one, text) for one in self.said)]
        asked = self.browser.hosts()
        self.browser.js(
            "if (location.protocol === 'http:') { sessionStorage.clear(); localStorage.clear(); } return null"
        )
        self.browser.show("about:blank")
        self.assertEqual(said, [], "in the browser's console")
        self.assertLessEqual(asked, self.hosts, "asked for something elsewhere")

    def assert_text_only(self) -> None:
        """Nothing that a model, an engine or a file has said was taken for HTML: no element, no script's trace."""
        self.assertIsNone(self.browser.js("return window.taken ?? null"), "a script of somebody else's has run")
        strange = self.browser.js("return document.querySelectorAll('main img, main script, main iframe').length")
        self.assertEqual(strange, 0)


class TellingEngine(ScriptedEngine):
    """An engine that says what a test has it say, on new connections and on those that were kept."""

    def __enter__(self) -> TellingEngine:
        return self

    def next_request(self) -> EngineSide:
        """Wait for the next request."""
        kept = {side.sock: side for side in self._sides if side.sock.fileno() >= 0}
        while True:
            ready = select.select([self._listener, *kept], [], [], TIMEOUT_S)[0]
            assert ready, "no request has come"
            if self._listener in ready:
                return self.take()
            try:
                return kept.pop(ready[0]).read_request()
            except (AssertionError, OSError):
                continue  # that connection had been left

    def begin(self, *texts: str) -> EngineSide:
        """Begin a stream for the next request, with these pieces."""
        side = self.next_request()
        side.send(STREAM_HEAD)
        for text in texts:
            go_on(side, text)
        return side

    def answer(self, text: str) -> EngineSide:
        """Answer the next request with a text, as a stream where it wants one."""
        side = self.next_request()
        if side.json.get("stream"):
            side.send(STREAM_HEAD)
            go_on(side, text)
            finish(side)
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
            whole = {"id": "e-1", "object": "chat.completion", "choices": [choice], "usage": usage}
            side.answer(json.dumps(whole).encode())
        return side

    def refuse(self, message: str, status: str = "400 Bad Request") -> EngineSide:
        """Answer the next request with an error."""
        side = self.next_request()
        error = {"error": {"message": message, "type": "invalid_request_error", "code": None, "param": None}}
        side.answer(json.dumps(error).encode(), status=status)
        return side


def go_on(side: EngineSide, text: str) -> None:
    """Send one more piece of a stream."""
    side.send(chunked(delta(text)))


def finish(side: EngineSide, usage: Optional[Mapping[str, int]] = None) -> None:
    """End a stream well, with its usage if there is one."""
    side.send(chunked(delta("", "stop")))
    if usage is not None:
        side.send(chunked(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"))
    side.send(chunked(DONE) + b"0\r\n\r\n")
