"""The console's files over a socket: who gets the page at `/`, what else there is, and what there is not."""

from __future__ import annotations

import tempfile
import threading
import unittest
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock

from gateway.server import consolepages
from gateway.telemetry.liveticker import LiveTicker
from tests.access import ADMIN_KEYS, AS_ROOT, AccessTest
from tests.support import Header, Response, RunningGateway, request_bytes

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
AS_BROWSER: Header = ("Accept", BROWSER)
FOLDER = Path(consolepages.__file__).resolve().parents[1] / "console"


class PageTest(AccessTest):
    def page(self, running: RunningGateway, *headers: Header) -> Response:
        return running.get("/", headers or [AS_BROWSER])

    def test_a_browser_gets_the_page_without_a_key_and_others_the_index_with_one(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS)
        page = self.page(running)
        self.assertEqual((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"))
        self.assertEqual(page.body, (FOLDER / "index.html").read_bytes())
        self.assert_error_code(running.get("/"), 401)
        for headers in ([AS_ROOT], [AS_ROOT, ("Accept", "*/*")]):
            answer = running.get("/", headers)
            self.assertEqual((answer.status, answer.header("vary")), (200, "Accept"))
            self.assertIn("/console/{file}", answer.json()["endpoints"])
        self.assertEqual(page.header("vary"), "Accept")

    def assert_error_code(self, answer: Response, status: int) -> None:
        self.assertEqual(answer.status, status)
        self.assertEqual(answer.header("content-type"), "application/json")

    def test_a_page_may_load_from_here_alone_and_is_nobody_elses(self) -> None:
        running = self.serve()
        for answer in (self.page(running), running.get("/console/app.js")):
            policy = dict(
                part.strip().split(" ", 1) for part in (answer.header("content-security-policy") or "").split(";")
            )
            self.assertEqual(policy["default-src"], "'none'")
            for name in ("script-src", "style-src", "connect-src", "font-src"):
                self.assertEqual(policy[name], "'self'")
            for name in ("base-uri", "form-action", "frame-ancestors"):
                self.assertEqual(policy[name], "'none'")
            self.assertEqual(policy["require-trusted-types-for"], "'script'")
            self.assertEqual(answer.header("x-content-type-options"), "nosniff")
            self.assertEqual(answer.header("referrer-policy"), "no-referrer")
            self.assertEqual(answer.header("cross-origin-opener-policy"), "same-origin")
            self.assertEqual(answer.header("cross-origin-resource-policy"), "same-origin")

    def test_every_file_is_there_with_its_kind_and_is_sent_once(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS)
        names = {path.name for path in FOLDER.iterdir() if path.suffix[1:] in consolepages.KINDS}
        self.assertIn("index.html", names)
        for name in sorted(names):
            with self.subTest(name), running.connect() as client:
                answer = client.ask("GET", f"/console/{name}")
                self.assertEqual((answer.status, answer.body), (200, (FOLDER / name).read_bytes()))
                self.assertEqual(answer.header("content-type"), consolepages.KINDS[name.rpartition(".")[2]])
                self.assertEqual(answer.header("cache-control"), "no-cache")
                tag = answer.header("etag") or ""
                for known in (tag, f'"x", W/{tag}', "*"):
                    again = client.ask("GET", f"/console/{name}", None, [("If-None-Match", known)])
                    self.assertEqual((again.status, again.body, again.header("etag")), (304, b"", tag))
                head = client.ask("HEAD", f"/console/{name}")
                self.assertEqual((head.status, head.body), (200, b""))
                self.assertEqual(head.header("content-length"), str(len(answer.body)))

    def test_a_page_that_is_known_is_not_sent_again_but_to_who_wants_json(self) -> None:
        running = self.serve()
        tag = self.page(running).header("etag") or ""
        again = self.page(running, AS_BROWSER, ("If-None-Match", tag))
        self.assertEqual((again.status, again.header("vary")), (304, "Accept"))
        self.assertEqual(self.page(running, ("If-None-Match", tag)).status, 200)
        with running.connect() as client:
            self.assertEqual(client.ask("HEAD", "/", None, [AS_BROWSER]).header("etag"), tag)

    def test_no_path_leads_out_of_the_list(self) -> None:
        running = self.serve()
        for path in (
            *("/console/", "/console/nothing.js", "/console/__init__.py", "/console/../settings.py", "/console/.."),
            *("/console/%2e%2e/settings.py", "/console/..%2fsettings.py", "/console/%2e%2e%2fsettings.py"),
            *("/console/..\\settings.py", "/console/..%5csettings.py", "/console//etc/passwd", "/console/index.html/"),
            *("/console/index.html%00", "/console/index.html%00.js", "/console/./index.html", "/console/INDEX.HTML"),
            *("/console/index.html/../../settings.py", "/console/console/index.html", "/console/%69ndex.html"),
        ):
            with self.subTest(path), running.connect() as client:
                client.send(request_bytes("GET", path))
                answer = client.read_response()
                self.assertIn(answer.status, (400, 404))
                self.assertNotIn(b"import", answer.body)

    def test_nothing_else_is_done_with_a_file(self) -> None:
        running = self.serve()
        for method in ("POST", "PUT", "DELETE"):
            answer = running.ask(method, "/console/index.html", b"")
            self.assertEqual((answer.status, answer.header("allow")), (405, "GET, HEAD, OPTIONS"))
        self.assertEqual(running.ask("OPTIONS", "/console/index.html").status, 204)

    def test_it_is_nobodys_page_by_another_name(self) -> None:
        running = self.serve(ALLOWED_HOSTS="")
        for path in ("/", "/console/app.js", "/api/v1/live"):
            with running.connect() as client:
                client.send(request_bytes("GET", path, None, [AS_BROWSER], host="evil.example"))
                self.assertEqual(client.read_response().status, 421)

    def test_without_a_console_there_is_neither_page_nor_file_nor_feed_nor_thread(self) -> None:
        running = self.serve(CONSOLE="off")
        page = self.page(running)
        self.assertEqual(
            (page.status, page.header("content-type"), page.header("vary")), (200, "application/json", None)
        )
        self.assertNotIn("/console/{file}", page.json()["endpoints"])
        for path in ("/console/index.html", "/api/v1/live"):
            self.assert_error_code(running.get(path), 404)
        self.assertIsNone(running.app.live)
        self.assertNotIn(LiveTicker, map(type, running.app.observing.observers))

    def test_files_are_read_once_and_on_a_thread(self) -> None:
        readers: list[str] = []
        real = consolepages._read

        def read() -> Any:
            readers.append(threading.current_thread().name.partition("-")[0])
            return real()

        with mock.patch("gateway.server.consolepages._read", read):
            running = self.serve()
            self.assertEqual(running.get("/").status, 200)
            self.assertEqual(running.ask("POST", "/console/app.js", b"").status, 405)
            self.assertEqual(readers, [])
            for _ in range(3):
                self.page(running)
                running.get("/console/index.html")
        self.assertEqual(readers, ["aside"])

    def test_a_file_that_cannot_be_read_is_an_error_and_tried_again(self) -> None:
        real = consolepages._read
        read = mock.Mock(side_effect=[OSError(5, "broken disk"), real()])
        with mock.patch("gateway.server.consolepages._read", read):
            running = self.serve()
            self.assertEqual(self.page(running).status, 500)
            self.assertEqual(self.page(running).status, 200)

    def test_an_archive_serves_as_well_as_a_folder_and_a_package_without_files_gives_the_index(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "gateway.zip"
            with zipfile.ZipFile(archive, "w") as packed:
                packed.writestr("gateway/__init__.py", "")
                for path in FOLDER.iterdir():
                    if path.is_file():
                        packed.write(path, f"gateway/console/{path.name}")
            with mock.patch.object(resources, "files", lambda name: zipfile.Path(archive, "gateway/")):
                self.assertEqual(self.page(self.serve()).body, (FOLDER / "index.html").read_bytes())
            with mock.patch.object(resources, "files", lambda name: Path(folder)):
                running = self.serve()
                self.assertEqual(self.page(running).header("content-type"), "application/json")
                self.assertEqual(running.get("/console/index.html").status, 404)


if __name__ == "__main__":
    unittest.main()
