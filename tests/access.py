"""What the tests of keys, limits and budgets share: gateways with a state database, keys, tokens, a clock to turn.

Owns no state of its own; every gateway, engine, connection and file is gone when its test has ended.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import io
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from gateway import cli
from gateway.mock.server import MockEngine
from gateway.state.database import StateDb
from tests.support import (
    CHAT,
    Header,
    RawClient,
    Response,
    RunningGateway,
    SocketTest,
    eventually,
    gateway,
    mock_engine,
    run_main,
)

SECRET = "an-example-secret-of-32-bytes-xx"
ROOT = "sk-root-fedcba9876543210"
AS_ROOT: Header = ("Authorization", f"Bearer {ROOT}")
ADMIN_KEYS = f"root:{ROOT}"
HASHES = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}


def bearer(secret: str) -> list[Header]:
    """The headers of a request with that key or token."""
    return [("Authorization", f"Bearer {secret}")]


def ask(text: str = "hi there", model: Optional[str] = None, **options: Any) -> dict[str, Any]:
    """The body of a chat request."""
    named = {} if model is None else {"model": model}
    return {**named, "messages": [{"role": "user", "content": text}], **options}


def b64(raw: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def token(secret: str = SECRET, header: Optional[Mapping[str, Any]] = None, **claims: Any) -> str:
    """A token made by hand, good for a minute unless `claims` say otherwise; None leaves a claim out."""
    header = {"alg": "HS256", "typ": "JWT", **(header or {})}
    wanted = {"sub": "tina", "exp": int(time.time()) + 60, **claims}
    payload = {name: value for name, value in wanted.items() if value is not None}
    text = ".".join(b64(json.dumps(members).encode()) for members in (header, payload))
    make = HASHES.get(header["alg"], hashlib.sha256)
    return f"{text}.{b64(hmac.new(secret.encode(), text.encode(), make).digest())}"


class Clock:
    """Monotonic seconds that only the test moves. Reading and moving are single operations."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class AccessTest(SocketTest):
    """A test of a gateway with a state database in a directory of its own."""

    def setUp(self) -> None:
        self.directory = Path(self.enter(tempfile.TemporaryDirectory()))
        self.db = self.directory / "gateway.db"

    def engine(self, behaviour: str = "ok", model: str = "m", **options: Any) -> MockEngine:
        """A mock engine until the test has ended."""
        return self.enter(mock_engine(model, behaviour, **options))

    def file(self, name: str, document: Any) -> Path:
        """A JSON file."""
        path = self.directory / name
        path.write_text(json.dumps(document), "utf-8")
        return path

    def serve(self, models: Optional[Mapping[str, Any]] = None, **variables: object) -> RunningGateway:
        """A gateway in this process, with these models of the engines file or with echo."""
        settings: dict[str, object] = {"STATE_DB": self.db, **variables}
        if models is not None:
            settings["ENGINES_FILE"] = self.file("engines.json", {"models": models})
        return self.enter(gateway(settings))

    def make(self, running: RunningGateway, name: str = "alice", **fields: Any) -> list[Header]:
        """A new key of that gateway; returns the headers of a request with it."""
        return bearer(self.secret(running, name, **fields))

    def secret(self, running: RunningGateway, name: str = "alice", **fields: Any) -> str:
        """A new key of that gateway; returns the key."""
        return running.app.guard.store.create(name, **fields)[1]

    def freeze(self, running: RunningGateway) -> Clock:
        """Stop the clock of the gateway's limits; the test moves it."""
        clock = Clock(math.ceil(time.monotonic()))  # a whole number, of which sums are exact, and not in the past
        running.app.guard.clock = running.app.guard.limiter.clock = clock
        return clock

    def begin(self, running: RunningGateway, headers: Iterable[Header] = (), **options: Any) -> RawClient:
        """A client whose chat request has been sent; its answer is still to be read."""
        client = self.enter(running.connect())
        client.request("POST", CHAT, ask(**options), headers)
        return client

    def process(self, *arguments: str, **variables: object) -> tuple[int, str, str]:
        """Run `python main.py` with that state database; returns exit status, stdout and stderr."""
        return run_main({"STATE_DB": self.db, **variables}, *arguments)

    def cli(self, *arguments: str, **variables: object) -> tuple[int, str, str]:
        """The same for a command that ends (keys, usage, check), in this process, which takes a tenth of the time."""
        texts = {"STATE_DB": str(self.db), **{name: str(value) for name, value in variables.items()}}
        stdout, stderr = io.StringIO(), io.StringIO()
        with mock.patch.dict(os.environ, texts, clear=True), mock.patch("gateway.cli.DOTENV", self.directory / ".env"):
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                status = cli.main(arguments)
        return status, stdout.getvalue(), stderr.getvalue()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What a query of the state database gives now."""
        with StateDb(self.db) as db:
            return db.read(sql)

    def assert_error(self, answer: Response, status: int, code: str) -> None:
        """The answer is this error."""
        self.assertEqual((answer.status, answer.error), (status, code), answer.body)

    def assert_idle(self, running: RunningGateway) -> None:
        """Nothing is in flight, and nobody holds a concurrency slot or reserved tokens."""
        eventually(lambda: not running.app.pipeline.in_flight)
        scopes = self.key_scopes(running)
        self.assertEqual({name: scope.in_flight for name, scope in scopes.items() if scope.in_flight}, {})

    def key_scopes(self, running: RunningGateway) -> dict[Optional[str], Any]:
        """What the limiter knows of each key."""
        keys = running.app.guard.limiter._keys
        return {**keys._old, **keys._young}

    def audit(self, running: RunningGateway, event: str) -> list[dict[str, Any]]:
        """The log lines of that event so far."""
        return [line for line in running.log_lines() if line["event"] == event]
