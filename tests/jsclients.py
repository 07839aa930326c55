"""What the tests of clients for JavaScript share: a program that asks with one, and what it and the engines have seen.

A class of tests starts one process of node, which asks everything; each of its tests reads what came of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import unittest
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.mock.server import MockEngine
from tests.clients import KEY, LACKED, OPENAI, serving
from tests.support import RunningGateway, mock_engine

NODE = shutil.which("node")
LIMIT_S = 60
CITY = ["name", "inhabitants"]
"""The fields of what `fits` and its like ask for."""


def folder_of(variable: str) -> Path:
    """Where the packages are that this variable names the folder of."""
    return Path(os.environ.get(variable, "")) / "node_modules"


def ask(script: Path, variable: str, wanted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How these requests have ended that a program has asked one after another, with packages of that folder."""
    assert NODE is not None
    done = subprocess.run(
        (NODE, str(script)),
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        env={variable: os.environ[variable], "PATH": os.environ.get("PATH", "")},
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert isinstance(told, list)
    return told


class JsCase(unittest.TestCase):
    """A gateway with a key, and models whose engines answer (`m`), break streams off (`b`), are silent (`h`), or are so
    in the middle of a stream (`s`)."""

    script: Path
    folder: str
    dialect = OPENAI
    engines: dict[str, MockEngine]
    told: dict[str, dict[str, Any]]
    """How each of the `wanted` requests has ended."""

    @classmethod
    def wanted(cls, gateway: RunningGateway) -> dict[str, dict[str, Any]]:
        """What is to be asked, by names."""
        raise NotImplementedError

    @classmethod
    def setUpClass(cls) -> None:
        stack = contextlib.ExitStack()
        cls.addClassCleanup(stack.close)
        cls.engines = {
            model: stack.enter_context(mock_engine(model, behaviour, lacks=LACKED[cls.dialect]))
            for model, behaviour in (("m", "ok"), ("b", "drop_mid_stream"), ("h", "hang"), ("s", "hang_mid_stream"))
        }
        urls = {model: engine.url for model, engine in cls.engines.items()}
        gateway = serving(stack, urls, cls.dialect, RETRY_ATTEMPTS="1")
        wanted = cls.wanted(gateway)
        told = ask(cls.script, cls.folder, [{"name": name, "key": KEY, **one} for name, one in wanted.items()])
        cls.told = dict(zip(wanted, told))

    def got(self, name: str) -> dict[str, Any]:
        """What came of a request that has not failed."""
        told = self.told[name]
        self.assertNotIn("error", told)
        return told

    def sent(self, name: str) -> list[dict[str, Any]]:
        """What the engines have got of a request."""
        requests = [one for engine in self.engines.values() for one in engine.requests]
        return [one for one in requests if one["headers"].get("x-request-id") == name]

    def assert_left(self, model: str, times: int) -> None:
        """So many callers have left this model's engine before their answer."""
        self.assertTrue(self.engines[model].wait_for_cancelled(times, timeout_s=5))
        self.assertTrue(self.engines[model].wait_for_idle(timeout_s=5))
