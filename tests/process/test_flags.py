"""Flags of the command line go before the environment and `.env`, and faults name them."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import unittest
from types import SimpleNamespace
from typing import Any

from gateway import announcing
from gateway.configuration import ConfigurationError
from gateway.settings import as_given, load
from tests.support import HAS_SIGHUP, SocketTest, dead_url, eventually, gateway_process, run_main


def models(*names: str) -> str:
    """An engines file with echo models of these names."""
    return json.dumps({"models": {name: {"engines": ["echo:"]} for name in names}})


class LoadTest(unittest.TestCase):
    def names(self, environ: dict[str, str], flags: dict[str, str]) -> list[str]:
        return [model.name for model in load(environ, None, flags=flags).fleet.models]

    def faults(self, environ: dict[str, str], flags: dict[str, str]) -> list[str]:
        with self.assertRaises(ConfigurationError) as caught:
            load(environ, None, flags=flags)
        return as_given(caught.exception.faults, flags)

    def test_a_flag_goes_before_the_environment(self) -> None:
        settings = load({"PORT": "1", "HOST": "::1", "WORKERS": "7"}, None, flags={"PORT": "2"})
        self.assertEqual((settings.port, settings.host, settings.workers), (2, "::1", 7))
        self.assertEqual(settings.flags, {"PORT"})

    def test_engines_that_were_typed_shadow_every_other_source(self) -> None:
        others = {"BACKEND_URL": "nonsense", "ENGINES": "a=echo:", "ENGINES_FILE": "nope.json"}
        settings = load(others, None, flags={"BACKEND_URL": "http://127.0.0.1:9"})
        self.assertEqual([e.url for m in settings.fleet.models for e in m.engines], ["http://127.0.0.1:9/v1"])
        self.assertIsNone(settings.engines_file)
        self.assertEqual(self.faults(others, {"ENGINES_FILE": "gone.json"})[0].partition(":")[0], "--engines-file")

    def test_another_flag_shadows_no_engines(self) -> None:
        self.assertEqual(self.names({"ENGINES": "a=echo:"}, {"PORT": "2"}), ["a"])

    def test_a_fault_names_the_flag_and_others_their_variable(self) -> None:
        faults = self.faults({"WORKERS": "many", "HOST": "bad host"}, {"PORT": "x", "BACKEND_URL": "ftp://x"})
        named = {fault.partition(": ")[0] for fault in faults}
        self.assertEqual(named, {"WORKERS", "HOST", "--port", "--backend-url"})
        (fault,) = self.faults({}, {"HOST": "0.0.0.0"})
        self.assertTrue(fault.startswith("--host: others can reach 0.0.0.0"), fault)


class ListenTest(unittest.TestCase):
    def said(self, number: int, *flags: str) -> str:
        settings: Any = SimpleNamespace(host="127.0.0.1", port=9, flags=frozenset(flags))
        return announcing.cannot_listen(settings, OSError(number, os.strerror(number)))

    def test_what_cannot_be_listened_on_is_said_with_what_to_change(self) -> None:
        for number, advice in (
            (errno.EACCES, "--port or PORT"),
            (errno.EADDRINUSE, "--port or PORT"),
            (errno.EADDRNOTAVAIL, "--host or HOST"),
        ):
            said = self.said(number)
            self.assertTrue(said.startswith(f"HOST, PORT: cannot listen on 127.0.0.1:9: {os.strerror(number)}"), said)
            self.assertIn(advice, said)
        self.assertTrue(self.said(errno.EACCES, "PORT").startswith("HOST, --port: cannot listen"))


class CommandTest(SocketTest):
    def test_check_shows_what_was_typed_before_or_after_it(self) -> None:
        environment = {"PORT": "1", "ENGINES": "a=echo:"}
        files = {"mine.json": models("b"), ".env": "HOST=::1\nENGINES_FILE=other.json\n"}
        typed = ("--host", "127.0.0.2", "--port=9", "--engines-file", "mine.json")
        for arguments in (("check", *typed), (*typed, "check"), (*typed[:2], "check", *typed[2:])):
            with self.subTest(arguments=arguments):
                status, stdout, stderr = run_main(environment, *arguments, files=files)
                self.assertEqual((status, stderr), (0, ""))
                self.assertIn("http://127.0.0.2:9\n", stdout)
                self.assertIn("model b", stdout)
                self.assertNotIn("model a", stdout)

    def test_faults_name_the_flags_in_every_command_that_has_them(self) -> None:
        for command in ((), ("serve",), ("check",)):
            with self.subTest(command=command):
                status, stdout, stderr = run_main({"WORKERS": "x"}, *command, "--port", "x", "--engines-file", "nope")
                self.assertEqual((status, stdout), (2, ""))
                named = [line.split(": ")[1] for line in stderr.splitlines()]
                self.assertEqual(sorted(named), ["--engines-file", "--port", "WORKERS"])

    def test_what_cannot_be_meant_is_refused(self) -> None:
        for arguments, part in (
            (("--port", "1", "--port", "2"), "--port: is given more than once"),
            (("--port", "1", "check", "--port", "2"), "--port: is given more than once"),
            (("--backend-url", "http://x", "--engines-file", "f"), "not allowed with"),
            (("--backend-url", ""), "--backend-url: must not be empty"),
            (("check", "--frob"), "--frob"),
            (("--por=1",), "--por"),
            (("--prot", "9"), "unrecognized arguments: --prot"),
            (("frob",), "no command 'frob'; there are: serve, check,"),
            (("--port", "1", "keys", "list"), "the command keys has flags of its own"),
            (("serve", "check"), "check"),
        ):
            with self.subTest(arguments=arguments):
                status, stdout, stderr = run_main({}, *arguments)
                self.assertEqual((status, stdout), (2, ""))
                self.assertTrue(stderr.startswith("usage: "), stderr)
                self.assertIn(part, stderr.splitlines()[-1])

    def test_a_gateway_serves_what_was_typed(self) -> None:
        environment = {"PORT": "nonsense", "ENGINES": "a=nonsense"}
        process = self.enter(
            gateway_process(environment, "--port", "0", "--engines-file", "m.json", files={"m.json": models("b")})
        )
        self.assertEqual([m["id"] for m in process.ask("GET", "/v1/models").json()["data"]], ["b"])

    def test_one_engine_can_be_typed(self) -> None:
        status, stdout, _ = run_main({"ENGINES": "a=echo:"}, "check", "--backend-url", dead_url())
        self.assertEqual(status, 0)
        self.assertIn("every model name is served by", stdout)

    @unittest.skipUnless(HAS_SIGHUP, "no SIGHUP")
    def test_sighup_reads_the_file_that_was_typed_again_and_names_the_flag(self) -> None:
        files = {"m.json": models("b"), "other.json": models("c")}
        process = self.enter(gateway_process({"ENGINES_FILE": "other.json"}, "--engines-file", "m.json", files=files))
        (process.directory / "m.json").write_text(models("d"))
        process.signal(signal.SIGHUP)
        eventually(lambda: any(line.get("models") == ["d"] for line in process.log_lines()))
        (process.directory / "m.json").write_text("{")
        process.signal(signal.SIGHUP)
        line = eventually(lambda: [x for x in process.log_lines() if x["event"] == "reload_failed"])[0]
        self.assertTrue(line["faults"][0].startswith("--engines-file: m.json: "), line)

    def test_a_busy_port_names_what_to_change(self) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            port = sock.getsockname()[1]
            status, stdout, stderr = run_main({}, "--port", str(port))
        self.assertEqual((status, stdout), (1, ""))
        (line,) = stderr.splitlines()
        self.assertIn(f"--port: cannot listen on 127.0.0.1:{port}: ", line)
        self.assertIn("--port or PORT", line)

    def test_help_tells_flags_commands_and_where_settings_come_from(self) -> None:
        status, stdout, _ = run_main({}, "--help")
        self.assertEqual(status, 0)
        for part in ("--host", "--port", "--engines-file", "--backend-url", ".env", "environment", "replay", "usage"):
            self.assertIn(part, stdout)


if __name__ == "__main__":
    unittest.main()
