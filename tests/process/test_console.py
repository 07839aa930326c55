"""The console in a real browser, before real gateways: what a person sees, does, and must be spared.

Skipped where chromium, chromedriver (Debian's packages chromium and chromium-driver) or selenium is missing; with
REQUIRE_BROWSER=1 that is a failure. axe-core is looked for in the folder AXE_JS (`npm install axe-core`, run there);
REQUIRE_AXE=1 likewise.

One browser and two gateways for all of them. `fleet`: nine mock engines, processes each, of three models; it asks for
no key. `guarded`: three models whose engines say what the test has them say; it asks for keys, and runs programs.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, ClassVar, Optional

from tests.browsing import (
    AXE,
    AXE_REQUIRED,
    DARK,
    DESKTOP,
    LIGHT,
    MISSING,
    PHONE,
    REQUIRED,
    Browser,
    BrowserTest,
    TellingEngine,
    finish,
    go_on,
    needs_browser,
)
from tests.clients import missing
from tests.panels import code
from tests.process.test_nine_engines import MODELS, EngineProcess
from tests.support import CHAT, TIMEOUT_S, GatewayProcess, eventually, gateway_process

USER, ADMIN = "user-key-1", "admin-key-1"
MARKUP = "<script>window.taken = 1</script><img src=x onerror='window.taken = 2'>"
NASTY = f'it\'s "quoted" $HOME `date` \\ {MARKUP}'
FIRST_LOOK: tuple[str, ...] = (
    r"/v1/models - .* the server responded with a status of 401",
)  # whether a key is asked for
REFUSED_CHAT = r"/v1/chat/completions - .*the server responded with a status of [45]\d\d"
REFUSED_401 = r"the server responded with a status of 401"
REFUSED_403 = r"the server responded with a status of 403"
STORED = "{...sessionStorage}, {...localStorage}, document.cookie, location.href, history.state"
CONTROL, ENTER, ESCAPE = "\ue009", "\ue007", "\ue00c"
RIGHT, ALSO_RIGHT, WRONG = code("return x + 1"), code("return sum((x, 1))"), code("return x")
PROGRAM = "```python\ndef f(x):\n    return {}\n\nprint('said', f(1))\n```"
TASK = "Write f(x) that adds one.\n\n>>> f(1)\n2\n"
ALERT = {"name": "EngineDown", "what": "engine_down", "above": 0, "summary": f"{{engine}} is down {MARKUP}"}


class Scene:
    """What the tests share; `begin` once, before them."""

    browser: Browser
    engines: ClassVar[dict[str, EngineProcess]]
    fleet: GatewayProcess
    told: ClassVar[dict[str, TellingEngine]]
    guarded: GatewayProcess
    _stack: contextlib.ExitStack
    _fleet: Optional[contextlib.ExitStack] = None
    _settings: ClassVar[dict[str, object]]

    @classmethod
    def begin(cls) -> None:
        cls._stack = contextlib.ExitStack()
        unittest.addModuleCleanup(cls._stack.close)
        cls.engines = {f"{model}-{number}": EngineProcess(model) for model in MODELS for number in (1, 2, 3)}
        for engine in cls.engines.values():
            cls._stack.callback(engine.kill)
        cls.browser = Browser()
        cls._stack.callback(cls.browser.quit)
        directory = Path(cls._stack.enter_context(tempfile.TemporaryDirectory()))
        for engine in cls.engines.values():
            engine.wait()
        models: dict[str, Any] = {model: {"engines": []} for model in MODELS}
        for name, engine in cls.engines.items():
            models[engine.model]["engines"].append({"url": engine.url, "id": name})
        cls._settings = {
            "ENGINES_FILE": _written(directory / "fleet.json", {"models": models}),
            "HEALTH_INTERVAL": "0.2",
            "ALERTS_FILE": _written(directory / "alerts.json", {"rules": [ALERT]}),
        }
        cls._stack.callback(cls.stop_fleet)
        cls.start_fleet()
        cls.told = {name: cls._stack.enter_context(TellingEngine()) for name in "abc"}
        own = {name: {"engines": [{"url": engine.url, "id": f"engine-{name}"}]} for name, engine in cls.told.items()}
        cls.guarded = cls._stack.enter_context(
            gateway_process(
                ENGINES_FILE=_written(directory / "guarded.json", {"models": own}),
                API_KEYS=f"alice:{USER}",
                ADMIN_KEYS=f"root:{ADMIN}",
                STATE_DB=directory / "gateway.db",
                SANDBOX="process",
                SANDBOX_MIN="process",
                HEAL_ATTEMPTS=0,
                RETRY_ATTEMPTS=1,
                FALLBACK="off",
                CACHE="off",
            )
        )
        BrowserTest.browser = cls.browser
        BrowserTest.hosts = {f"127.0.0.1:{gateway.port}" for gateway in (cls.fleet, cls.guarded)}

    @classmethod
    def start_fleet(cls, port: int = 0) -> None:
        cls._fleet = contextlib.ExitStack()
        cls.fleet = cls._fleet.enter_context(gateway_process(cls._settings, PORT=port))

    @classmethod
    def stop_fleet(cls) -> None:
        if cls._fleet is not None:
            cls._fleet.close()
            cls._fleet = None


def _written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), "utf-8")
    return path


def setUpModule() -> None:
    if not MISSING:
        Scene.begin()


class InstalledTest(unittest.TestCase):
    @unittest.skipUnless(REQUIRED, "REQUIRE_BROWSER=1 is not set")
    def test_browser_driver_and_selenium_are_here(self) -> None:
        self.assertEqual(MISSING, [], "REQUIRE_BROWSER=1, but these are missing")

    @unittest.skipUnless(AXE_REQUIRED, "REQUIRE_AXE=1 is not set")
    def test_axe_is_here(self) -> None:
        self.assertTrue(AXE.is_file(), f"REQUIRE_AXE=1, but there is no {AXE}")


class ConsoleTest(BrowserTest):
    """What the tests of all pages share."""

    said = FIRST_LOOK

    def open(self, page: str = "live", gateway: Optional[GatewayProcess] = None, key: str = "") -> None:
        """Open a page of the console, as who has that key; without a gateway `fleet`'s."""
        self.browser.show(f"{(gateway or Scene.fleet).url}/#{page}")
        if key:
            self.sign_in(key)
        self.browser.wait_for(f"#page-{page} h1")

    def sign_in(self, key: str) -> None:
        """Give a key to the dialog that asks for one."""
        self.browser.wait_for("#sign-in-dialog[open]")
        self.browser.fill("#sign-in-key", key)
        self.browser.press(ENTER)

    def live(self) -> None:
        """Open Live, and wait until it tells of all engines."""
        self.open()
        self.browser.until("document.querySelectorAll('#live .engine').length === 9")

    def go(self, page: str) -> None:
        """Go to another page, by its link."""
        self.browser.click(f"#nav a[data-page={page}]")
        self.browser.wait_for(f"#page-{page} h1")

    def mark(self) -> None:
        """Leave a mark that a reload would wipe away."""
        self.browser.js("window.mark = 1; return null")

    def assert_not_reloaded(self) -> None:
        self.assertEqual(self.browser.js("return window.mark ?? null"), 1, "the page was loaded anew")

    def ask(self, prompt: str, *models: str) -> None:
        """Ask these models in the Playground, and no others."""
        for box in self.browser.driver.find_elements("css selector", "#play-models input"):
            if box.is_selected() != (box.get_attribute("data-model") in models):
                box.click()
        self.browser.fill("#play-prompt", prompt)
        self.browser.press(CONTROL, ENTER)

    def stored(self) -> str:
        """Whatever this page has kept anywhere, where it is and where it was."""
        return str(self.browser.js(f"return JSON.stringify([{STORED}])"))


@needs_browser
class LiveTest(ConsoleTest):
    said = ("net::ERR_",)  # a gateway that has been stopped refuses connections

    def tile(self, name: str) -> str:
        return f'#live .engine[data-engine="{name}"]'

    def wait_for_colour(self, name: str, wanted: str) -> None:
        """Wait until an engine's mark is drawn in red or green: more of that than twice of each other colour."""

        def drawn() -> bool:
            text = self.browser.computed(f"{self.tile(name)} .engine-mark", "color")
            parts = [float(number) for number in text.partition("(")[2].rstrip(")").split(",")[:3]]
            one = parts.pop(("red", "green").index(wanted))
            return one > 1.6 * max(parts)

        eventually(drawn)

    def wait_for_ground(self, name: str, same: bool, before: str) -> None:
        """Wait until an engine's tile has the same ground as before, or another."""
        eventually(lambda: (self.browser.computed(self.tile(name), "background-color") == before) is same)

    def test_it_opens_on_nine_engines_of_three_models_which_are_all_up(self) -> None:
        self.browser.show(f"{Scene.fleet.url}/")
        self.browser.until("document.querySelectorAll('#live .engine').length === 9")
        self.assertEqual(sorted(self.browser.attributes("#live [data-group]", "data-group")), sorted(MODELS))
        self.assertEqual(
            sorted(map(str, self.browser.attributes("#live .engine", "data-engine"))), sorted(Scene.engines)
        )
        self.assertEqual(set(self.browser.attributes("#live .engine", "data-state")), {"up"})
        self.assertEqual(self.browser.text("#live-summary").strip(), "All 9 engines available")
        for name in Scene.engines:
            self.wait_for_colour(name, "green")
        self.assertEqual(self.browser.text("#connection-text"), "Live")

    def test_a_gateway_without_keys_says_so_where_one_could_sign_in(self) -> None:
        self.live()
        self.browser.click("#session")
        self.browser.wait_for("#sign-in-dialog[open]")
        self.assertIn("asks for no key", self.browser.text("#sign-in-reason"))
        self.browser.press(ESCAPE)
        self.browser.until("!document.getElementById('sign-in-dialog').open")

    def test_an_engine_that_stops_turns_red_and_green_again_when_it_is_back_without_a_reload(self) -> None:
        self.live()
        self.mark()
        name, engine = "13b-2", Scene.engines["13b-2"]
        before = self.browser.computed(self.tile(name), "background-color")
        engine.kill()
        try:
            self.browser.wait_for(f'{self.tile(name)}[data-state="down"]')
            self.wait_for_colour(name, "red")
            self.wait_for_ground(name, False, before)
            self.browser.wait_for_text("#live-summary", "8 of 9 engines available")
            self.assertEqual(
                set(self.browser.attributes('#live .engine:not([data-engine="13b-2"])', "data-state")), {"up"}
            )
            self.see_the_alert(name)
        finally:
            engine.start()
            engine.wait()
        self.browser.wait_for(f'{self.tile(name)}[data-state="up"]')
        self.wait_for_colour(name, "green")
        self.wait_for_ground(name, True, before)
        self.assert_not_reloaded()

    def see_the_alert(self, name: str) -> None:
        """An alert tells of the engine, in the words of the alerts' file and with nothing taken for HTML."""
        css = '#live-alerts [data-alert="EngineDown"]'
        self.browser.wait_for_text(css, f"{name} is down {MARKUP}", timeout_s=2 * TIMEOUT_S)
        self.assertEqual(self.browser.attributes(css, "data-state"), ["firing"])
        self.assert_text_only()

    def test_a_request_is_listed_with_its_engine_and_opens_as_a_waterfall(self) -> None:
        self.live()
        body = {"model": "7b", "messages": [{"role": "user", "content": MARKUP}]}
        answer = Scene.fleet.ask("POST", CHAT, body)
        self.assertEqual(answer.status, 200)
        row = f'#requests-table tr[data-request="{answer.request_id}"]'
        self.browser.wait_for(row)
        self.assertIn(str(answer.header("X-Gateway-Engine")), self.browser.text(row))
        self.browser.until("document.querySelector('[data-chart] path.chart-line[d]')")
        self.browser.click(f"{row} button")
        self.browser.wait_for(f'[data-request="{answer.request_id}"] .span-bar')
        self.browser.press(ESCAPE)
        self.browser.until("!document.querySelector('#live .span-bar')?.checkVisibility()")
        self.assert_text_only()

    def test_a_gateway_that_stops_is_told_of_and_one_that_is_back_is_live_again_without_a_reload(self) -> None:
        self.live()
        self.mark()
        port = Scene.fleet.port
        Scene.stop_fleet()
        try:
            self.browser.wait_for('#live[data-stale="true"]')
            self.browser.wait_for_text("#connection-text", "Reconnecting")
            self.browser.wait_for("#live-banner")
            for css in ("#live .page-head", "#live .live-content"):
                self.assertEqual(self.browser.computed(css, "filter"), "grayscale(1)", css)
        finally:
            Scene.start_fleet(port)
        self.browser.wait_for('#live[data-feed="open"][data-stale="false"]', timeout_s=3 * TIMEOUT_S)
        self.browser.wait_for_text("#live-summary", "All 9 engines available")
        self.assertFalse(self.browser.js("return document.getElementById('live-banner').checkVisibility()"))
        self.assert_not_reloaded()


@needs_browser
class PlaygroundTest(ConsoleTest):
    """Each engine says what the test has it say, when the test has it."""

    said = (*FIRST_LOOK, REFUSED_CHAT)  # where a test has the engine refuse

    def setUp(self) -> None:
        super().setUp()
        self.open("playground", Scene.guarded, USER)

    def answer(self, model: str, part: str = "") -> str:
        return f'.turn:last-child article[data-model="{model}"] {part}'.strip()

    def said_by(self, model: str) -> str:
        return self.browser.text(self.answer(model, '[data-part="text"]'))

    def wait_for_state(self, model: str, state: str) -> None:
        self.browser.wait_for(f'.turn:last-child article[data-model="{model}"][data-state="{state}"]')

    def test_an_answer_grows_while_it_comes_and_tells_how_fast_it_came(self) -> None:
        self.ask("Say something", "a")
        side = Scene.told["a"].begin("one ")
        text = self.answer("a", '[data-part="text"]')
        self.browser.until("document.querySelector(arguments[0])?.textContent === 'one '", text)
        self.wait_for_state("a", "streaming")
        for word in ("two ", "three ", "four "):
            before = self.said_by("a")
            go_on(side, word)
            self.browser.until("document.querySelector(arguments[0]).textContent === arguments[1]", text, before + word)
        finish(side, {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6})
        self.wait_for_state("a", "done")
        self.assertEqual(self.said_by("a"), "one two three four ")
        self.assertRegex(self.browser.text(self.answer("a", '[data-measure="ttft"]')), r"^[\d.]+ m?s$")
        self.assertRegex(self.browser.text(self.answer("a", '[data-measure="rate"]')), r"^[\d.]+$")
        self.assertEqual(self.browser.text(self.answer("a", '[data-measure="tokens"]')), "2 / 4")

    def test_stop_keeps_what_has_come_and_the_engine_sees_its_client_leave(self) -> None:
        for stop in ("button", "escape"):
            with self.subTest(stop):
                self.ask("Say something long", "a")
                side = Scene.told["a"].begin("half an ")
                self.browser.wait_for_text(self.answer("a", '[data-part="text"]'), "half an ")
                if stop == "button":
                    self.browser.click("#play-stop-all")
                else:
                    self.browser.press(ESCAPE)
                self.wait_for_state("a", "stopped")
                self.assertTrue(side.wait_until_left(), "the engine goes on for nobody")
                self.assertEqual(self.said_by("a"), "half an ")
                self.assertFalse(self.browser.js("return document.getElementById('play-stop-all').checkVisibility()"))

    def test_what_is_under_way_ends_when_the_page_is_left_and_is_there_when_it_is_come_back_to(self) -> None:
        self.ask("Say something long", "a")
        side = Scene.told["a"].begin("half an ")
        self.browser.wait_for_text(self.answer("a", '[data-part="text"]'), "half an ")
        self.go("verify")
        self.assertTrue(side.wait_until_left(), "the engine goes on for nobody")
        self.go("playground")
        self.wait_for_state("a", "stopped")
        self.assertEqual(self.said_by("a"), "half an ")

    def test_two_models_answer_side_by_side_and_one_of_them_can_be_stopped_alone(self) -> None:
        self.ask("Compare yourselves", "a", "b")
        sides = {name: Scene.told[name].begin(f"I am {name}. ") for name in "ab"}
        for name in sides:
            self.browser.wait_for_text(self.answer(name, '[data-part="text"]'), f"I am {name}. ")
        boxes = self.browser.js(
            "return [...document.querySelectorAll('.turn:last-child article')]"
            ".map((node) => node.getBoundingClientRect().toJSON())"
        )
        self.assertEqual(boxes[0]["top"], boxes[1]["top"])
        self.assertLess(boxes[0]["right"], boxes[1]["left"] + 1)
        self.browser.click('[data-stop="a"]')
        self.wait_for_state("a", "stopped")
        self.assertTrue(sides["a"].wait_until_left())
        go_on(sides["b"], "And I go on.")
        finish(sides["b"])
        self.wait_for_state("b", "done")
        self.assertEqual((self.said_by("a"), self.said_by("b")), ("I am a. ", "I am b. And I go on."))

    def test_the_curl_and_the_python_shown_get_the_same_answer(self) -> None:
        if missing("openai"):
            self.skipTest("openai is not installed")
        self.browser.fill("#play-prompt", NASTY)
        self.browser.click("#play-code summary")
        self.browser.wait_for('#play-code [data-code="python"]')
        environment = {"PATH": os.environ["PATH"], "GATEWAY_API_KEY": USER, "HOME": os.environ.get("HOME", "/")}
        commands = {"curl": ("bash", "-c"), "python": (sys.executable, "-c")}
        for name, command in commands.items():
            with self.subTest(name):
                text = self.browser.text(f'#play-code [data-code="{name}"]')
                self.assertNotIn(USER, text)
                process = subprocess.Popen(
                    (*command, text), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
                side = Scene.told["a"].answer("an answer")
                out, _ = process.communicate(timeout=2 * TIMEOUT_S)
                self.assertEqual(process.returncode, 0, out)
                self.assertIn(b"an answer", out)
                self.assertEqual(side.json["messages"], [{"role": "user", "content": NASTY}])
        self.assert_text_only()

    def test_html_that_a_model_or_an_engine_says_stays_text(self) -> None:
        self.ask(MARKUP, "a")
        Scene.told["a"].answer(MARKUP)
        self.wait_for_state("a", "done")
        self.assertEqual(self.said_by("a"), MARKUP)
        self.assertEqual(self.browser.text(".turn:last-child .asked"), f"You: {MARKUP}")

        self.ask("Refuse this", "a")
        Scene.told["a"].refuse(MARKUP)
        self.wait_for_state("a", "failed")
        self.assertIn(MARKUP, self.browser.text(self.answer("a", ".error-box")))

        self.ask("Break down", "a")
        Scene.told["a"].refuse(MARKUP, "500 Internal Server Error")
        self.wait_for_state("a", "failed")

        self.browser.fill("#play-extra", json.dumps({"model": MARKUP}))
        self.ask("Who are you?", "a")
        self.wait_for_state("a", "failed")
        self.assertIn(MARKUP, self.browser.text(self.answer("a", ".error-box")))
        self.assert_text_only()

        self.browser.click("#session")
        self.sign_in(ADMIN)
        self.go("live")
        self.browser.wait_for('#live .engine[data-engine="engine-a"]')
        self.browser.wait_for_text('#live .engine[data-engine="engine-a"] .engine-error', MARKUP)
        self.assert_text_only()

    def test_what_cannot_be_sent_is_said_where_it_stands(self) -> None:
        self.browser.fill("#play-max_tokens", "many")
        self.ask("Say something", "a")
        self.browser.wait_for_text("#play-max_tokens-fault", "Max tokens must be a number")
        self.assertEqual(self.browser.count(".turn"), 0)


@needs_browser
class VerifyTest(ConsoleTest):
    """Programs are run for real."""

    def verify(self, texts: dict[str, str]) -> None:
        """Have the members answer, and wait for what is made of it."""
        for name, text in texts.items():
            Scene.told[name].answer(text)
        self.browser.wait_for("#verify-verdict", timeout_s=6 * TIMEOUT_S)

    def member(self, name: str, part: str = "") -> str:
        return f'#verify-members [data-member="{name}"] {part}'.strip()

    def test_members_are_shown_with_what_they_printed_who_agrees_and_which_was_chosen(self) -> None:
        self.open("verify", Scene.guarded, USER)
        self.browser.fill("#verify-prompt", TASK)
        self.browser.press(CONTROL, ENTER)
        self.verify(
            {
                "a": PROGRAM.format("2 if x == 1 else x"),
                "b": PROGRAM.format("x + 1"),
                "c": PROGRAM.format(f"x + len('1')  # {MARKUP}"),
            }
        )
        verdict = self.browser.driver.find_element("css selector", "#verify-verdict")
        self.assertEqual(
            (verdict.get_attribute("data-strategy"), verdict.get_attribute("data-verified")), ("majority", "false")
        )
        self.assertIn("2 of 3 members agree (67 %)", verdict.text)
        self.assertIn(verdict.get_attribute("data-chosen"), ("b", "c"))
        letters = [self.browser.attributes(self.member(name), "data-letter") for name in "abc"]
        self.assertEqual(letters, [["B"], ["A"], ["A"]])
        self.assertEqual(self.browser.count('#verify-members [data-chosen="true"]'), 1)
        self.assertEqual(self.browser.text(self.member("a", '[data-part="stdout"]')), "said 2\n")
        self.assertEqual(self.browser.text(self.member("b", '[data-part="stdout"]')), "said 2\n")
        self.assertIn("return x + 1", self.browser.text(self.member("b", '[data-part="code"]')))
        self.assertIn(MARKUP, self.browser.text(self.member("c", '[data-part="code"]')))
        colours = {self.browser.computed(self.member(name, ".group-mark"), "border-top-color") for name in "abc"}
        self.assertEqual(len(colours), 2, "groups are to be told apart by their colours")
        self.assert_text_only()

        self.browser.click("#verify-again")
        self.browser.until("document.querySelector('#verify-again').disabled")
        for name in "abc":
            Scene.told[name].answer(PROGRAM.format("x + 1"))
        self.browser.until(
            "document.querySelector('#verify-verdict').innerText.includes('100 %')",
            timeout_s=6 * TIMEOUT_S,
        )
        self.assertEqual(self.browser.attributes("#verify-verdict", "data-verified"), ["true"])
        self.assertEqual([self.browser.attributes(self.member(name), "data-letter") for name in "abc"], [["A"]] * 3)


@needs_browser
class AccessTest(ConsoleTest):
    """Who may see what, and where a key is kept."""

    said = (REFUSED_401, REFUSED_403)

    def test_a_wrong_key_is_refused_in_words_and_kept_nowhere(self) -> None:
        self.browser.show(f"{Scene.guarded.url}/#admin")
        self.sign_in("wrong-key-1")
        self.browser.wait_for("#sign-in-error")
        self.assertIn("This key is not accepted", self.browser.text("#sign-in-error"))
        self.assertEqual(self.browser.attributes("#sign-in-key", "aria-invalid"), ["true"])
        self.assertTrue(self.browser.js("return document.getElementById('sign-in-dialog').open"))
        self.browser.press(ESCAPE)
        self.assertTrue(
            self.browser.js("return document.getElementById('sign-in-dialog').open"), "nothing is behind it"
        )
        self.assertNotIn("wrong-key-1", self.stored())
        self.browser.wait_for('#main [data-problem="signed-out"]')
        self.assertEqual(self.browser.count(".page"), 0)

    def test_a_user_is_told_which_permission_is_missing_and_an_admin_sees_all(self) -> None:
        self.browser.show(f"{Scene.guarded.url}/#live")
        self.sign_in(USER)
        for page, permission in (("live", "metrics"), ("admin", "admin")):
            with self.subTest(page):
                self.browser.click(f"#nav a[data-page={page}]")
                self.browser.wait_for(f'#page-{page} [data-problem="forbidden"]')
                self.assertIn(f"permission “{permission}”", self.browser.text("#main"))
        self.go("playground")
        self.browser.wait_for("#play-prompt")
        self.browser.click("#session")
        self.sign_in(ADMIN)
        self.go("live")
        self.browser.until("document.querySelectorAll('#live .engine').length === 3")
        self.go("admin")
        self.browser.wait_for("#admin-engines tr[data-engine]")

    def test_a_key_is_kept_as_long_as_was_asked_for_and_forgotten_when_signed_out(self) -> None:
        self.open("playground", Scene.guarded, ADMIN)
        self.browser.wait_for("#play-prompt")
        self.assertNotIn(ADMIN, self.stored())
        self.browser.driver.refresh()
        self.browser.wait_for("#sign-in-dialog[open]")
        self.browser.click("#sign-in-remember")
        self.sign_in(ADMIN)
        self.browser.wait_for("#play-prompt")
        self.assertIn(ADMIN, self.browser.js("return JSON.stringify({...sessionStorage})"))
        self.assertNotIn(
            ADMIN, self.browser.js("return JSON.stringify({...localStorage}) + location.href + document.cookie")
        )
        self.browser.driver.refresh()
        self.browser.wait_for("#play-prompt")
        self.browser.click("#session")
        self.browser.wait_for("#sign-in-dialog[open]")
        self.assertNotIn(ADMIN, self.stored())
        self.assertNotIn(
            ADMIN,
            self.browser.js("return document.documentElement.outerHTML + document.getElementById('sign-in-key').value"),
        )
        self.assertEqual(self.browser.count(".page"), 0)


@needs_browser
class AdminTest(ConsoleTest):
    def asked(self, method: str, path: str, body: Any = None) -> Any:
        return Scene.guarded.ask(method, path, body, [("Authorization", f"Bearer {ADMIN}")]).json()

    def engine(self, name: str) -> dict[str, Any]:
        """What the gateway says of an engine."""
        found: dict[str, Any] = self.asked("GET", "/health")["models"][name[-1]]["engines"][0]
        return found

    def test_an_engine_is_drained_enabled_and_given_another_weight(self) -> None:
        self.open("admin", Scene.guarded, ADMIN)
        row = '#admin-engines tr[data-engine="engine-b"]'
        act = f'{row} button[aria-label$=" engine-b of b"]'
        self.browser.click(act)
        self.browser.click("#confirm-yes")
        self.browser.wait_for(f'{row}[data-state="draining"]')
        self.assertEqual(self.engine("engine-b")["state"], "draining")
        self.browser.click(act)
        self.browser.wait_for(f'{row}[data-state="up"]')
        self.assertEqual(self.engine("engine-b")["state"], "up")

        field = f'{row} input[name="weight"]'
        self.browser.fill(field, "0")
        self.browser.press(ENTER)
        self.browser.wait_for_text(f"{row} .fault", "This must be a whole number")
        self.browser.fill(field, "3")
        self.browser.press(ENTER)
        self.browser.wait_for_text("#toasts", "engine-b of b has the weight 3")
        self.assertEqual(self.engine("engine-b")["weight"], 3)
        self.assertEqual(self.engine("engine-a")["weight"], 1)

    def test_a_key_is_made_shown_once_used_and_revoked(self) -> None:
        self.open("admin", Scene.guarded, ADMIN)
        self.browser.click("#keys-new")
        self.browser.fill("#key-name", "carol")
        self.browser.fill("#key-rpm", "60")
        self.browser.click('#key-create button[type="submit"]')
        self.browser.wait_for("#key-secret")
        secret = self.browser.text("#key-secret")
        self.browser.press(ESCAPE)
        self.assertEqual(self.browser.text("#key-secret"), secret, "Escape must not lose it")
        self.browser.click("#key-secret-done")
        self.browser.wait_for('#admin-keys tr[data-key="carol"][data-state="active"]')
        self.assertNotIn(secret, self.browser.js("return document.documentElement.outerHTML") + self.stored())
        models = Scene.guarded.ask("GET", "/v1/models", None, [("Authorization", f"Bearer {secret}")])
        self.assertEqual(models.status, 200)
        self.browser.click('#admin-keys button[aria-label="Revoke carol"]')
        self.browser.click("#confirm-yes")
        self.browser.until("!document.querySelector('#admin-keys tr[data-key=\"carol\"]')")
        models = Scene.guarded.ask("GET", "/v1/models", None, [("Authorization", f"Bearer {secret}")])
        self.assertEqual(models.status, 401)
        states = {key["name"]: key["state"] for key in self.asked("GET", "/admin/keys")["keys"]}
        self.assertEqual(states, {"carol": "revoked"})


@needs_browser
class LooksTest(ConsoleTest):
    """Each page, with something in it, in light and dark, on a wide screen and on a phone."""

    said = (*FIRST_LOOK, REFUSED_CHAT)

    def assert_sound(self) -> None:
        """Nothing is wider than the screen, axe-core finds nothing serious, Tab comes to everything and shows it."""
        self.assert_looks_sound((LIGHT, DESKTOP), (DARK, DESKTOP), (LIGHT, PHONE))
        count, missed, unseen = self.browser.tab_through()
        self.assertGreater(count, 10)
        self.assertEqual((missed, unseen), ([], []))
        if not AXE.is_file():
            self.skipTest("axe-core is not in the folder AXE_JS")

    def test_live_with_requests_and_an_engine_that_is_out(self) -> None:
        Scene.engines["70b-3"].kill()
        try:
            self.live()
            for model in MODELS:
                Scene.fleet.ask("POST", CHAT, {"model": model, "messages": [{"role": "user", "content": "hi"}]})
            Scene.fleet.ask("POST", CHAT, {"model": "none", "messages": [{"role": "user", "content": "hi"}]})
            self.browser.until("document.querySelectorAll('#requests-table tr[data-request]').length >= 4")
            self.browser.wait_for('.engine[data-state="down"]')
            self.browser.click("#requests-table tr[data-request] button")
            self.assert_sound()
        finally:
            Scene.engines["70b-3"].start()
            Scene.engines["70b-3"].wait()

    def test_playground_with_an_answer_and_an_error(self) -> None:
        self.open("playground", Scene.guarded, USER)
        self.ask("Say something long " * 10, "a", "b")
        Scene.told["a"].answer("An answer of a model, " * 30 + "x" * 300)
        Scene.told["b"].refuse("No " + "way" * 100)
        for name, state in (("a", "done"), ("b", "failed")):
            self.browser.wait_for(f'article[data-model="{name}"][data-state="{state}"]')
        self.browser.click("#play-code summary")
        self.assert_sound()

    def test_verify_with_a_result(self) -> None:
        self.open("verify", Scene.guarded, USER)
        self.browser.fill("#verify-prompt", TASK)
        self.browser.press(CONTROL, ENTER)
        for name, text in (("a", PROGRAM.format("x")), ("b", PROGRAM.format("x + 1")), ("c", "No program.")):
            Scene.told[name].answer(text)
        self.browser.wait_for("#verify-verdict", timeout_s=6 * TIMEOUT_S)
        self.assert_sound()

    def test_admin_with_a_key(self) -> None:
        body = {
            "name": "dave-of-a-department-with-a-long-name",
            "models": ["a", "b*"],
            "rpm": 60,
            "budget_usd": 5,
            "expires": "90d",
        }
        made = Scene.guarded.ask("POST", "/admin/keys", body, [("Authorization", f"Bearer {ADMIN}")])
        self.assertEqual(made.status, 201, made.body)
        self.open("admin", Scene.guarded, ADMIN)
        self.browser.wait_for("#admin-keys tr[data-key]")
        self.assert_sound()

    def test_the_dialogs(self) -> None:
        self.browser.show(f"{Scene.guarded.url}/#admin")
        self.browser.wait_for("#sign-in-dialog[open]")
        self.assert_dialog_sound()
        self.sign_in(ADMIN)
        self.browser.wait_for("#admin-engines tr[data-engine]")
        self.browser.press("?")
        self.browser.wait_for("#help-dialog[open]")
        self.assert_dialog_sound()
        self.browser.press(ESCAPE)
        self.browser.click("#keys-new")
        self.browser.wait_for("#key-create[open]")
        self.assert_dialog_sound()

    def assert_dialog_sound(self) -> None:
        self.assert_looks_sound((LIGHT, DESKTOP), (DARK, PHONE))

    def assert_looks_sound(self, *looks: tuple[str, tuple[int, int]]) -> None:
        for scheme, size in looks:
            with self.subTest(scheme=scheme, size=size):
                self.browser.look(scheme, size)
                self.browser.until("document.documentElement.dataset.theme === arguments[0]", scheme)
                self.assertEqual(self.browser.wide(), [])
                if AXE.is_file():
                    self.assertEqual(self.browser.faults(), [])
        self.browser.look()
