"""What the tests of official clients share: a gateway to ask, with a key, and engines that say what is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import json
import re
import tempfile
import unittest
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable
from unittest import mock

from gateway.mock.server import MockEngine
from tests.scripted import ScriptedEngine
from tests.support import TIMEOUT_S, RunningGateway, eventually, gateway, mock_engine

KEY = "open-sesame"
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CLOCK = {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}
ASKS_BOTH = "call get_weather and get_time"  # a mock engine calls the tools that it reads the names of
CALLED_WEATHER = ["call get_weather", "get_weather: of get_weather"]
CALLED_TIME = ["call get_time", "get_time: of get_time"]
ROUNDS = [ASKS_BOTH, *CALLED_WEATHER, *CALLED_TIME]
"""The turns of a conversation in which one tool is called after the other, as `turns_of` gives them."""
OPENAI, ANTHROPIC = "openai", "anthropic"
LACKED = {OPENAI: "messages,responses", ANTHROPIC: "chat/completions,completions,embeddings,responses"}
"""What an engine that speaks a dialect alone does not serve."""


def missing(*packages: str) -> bool:
    """Whether one of these is not installed."""
    return any(importlib.util.find_spec(package) is None for package in packages)


def serving(
    stack: contextlib.ExitStack,
    urls: Mapping[str, str],
    dialect: str = OPENAI,
    endpoints: Sequence[str] = (),
    **variables: object,
) -> RunningGateway:
    """A gateway with a key and models of one engine each, by their names, until the stack ends. `endpoints`: what the
    engines are said to serve; empty: what is usual in their dialect."""
    said = {"dialect": dialect, **({"endpoints": list(endpoints)} if endpoints else {})}
    models = {name: {"engines": [{"url": url, **said}]} for name, url in urls.items()}
    path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "engines.json"
    path.write_text(json.dumps({"models": models}), "utf-8")
    return stack.enter_context(
        gateway(ENGINES_FILE=path, API_KEYS=f"alice:{KEY}", FALLBACK="off", REQUEST_TIMEOUT="5", **variables)
    )


def turns_of(sent: Mapping[str, Any]) -> list[str]:
    """The conversation in a request that an engine has got, in whichever dialect: what was said, `call NAME` for a
    call and `NAME: RESULT` for a result, whose call has to come before it."""
    body = sent["body"]
    return list(_turns(body["input"] if sent["path"] == "/v1/responses" else body["messages"], {}))


def _turns(parts: Any, names: dict[str, str]) -> Iterator[str]:
    """The turns in a text or in messages, items or blocks; `names` are those of the calls so far, by their ids."""
    if isinstance(parts, str):
        parts = [{"text": parts}] if parts else []
    for part in parts or ():
        kind = part.get("type")
        if kind in ("tool_result", "function_call_output") or part.get("role") == "tool":
            called = part.get("tool_use_id") or part.get("call_id") or part["tool_call_id"]
            yield f"{names[called]}: {''.join(_turns(part.get('output', part.get('content')), names))}"
            continue
        if "text" in part:
            yield part["text"]
        else:
            yield from _turns(part.get("content"), names)
        for call in [part] if kind in ("tool_use", "function_call") else part.get("tool_calls", ()):
            name = names[call.get("call_id") or call["id"]] = call.get("function", call)["name"]
            yield f"call {name}"


def schema_of(sent: Mapping[str, Any]) -> Any:
    """The schema that an engine is to keep to, in a request that it has got in whichever dialect."""
    body = sent["body"]
    if sent["path"] == "/v1/responses":
        return body["text"]["format"]["schema"]
    if sent["path"] == "/v1/messages":
        if "output_config" not in body:  # it knows strict schemas only, and is told of others
            return json.loads(re.findall(r"\{.*\}", body["system"][-1]["text"])[0])
        return body["output_config"]["format"]["schema"]
    return body["response_format"]["json_schema"]["schema"]


class ClientCase(unittest.TestCase):
    """A gateway with a model `m`, authentication on. `package` is what is tested, imported when a test begins;
    `dialect` what the engines speak."""

    package: str
    dialect = OPENAI
    endpoints: Sequence[str] = ()
    """What the engines say they serve; empty: they lack what is not of their dialect."""
    models = ("m",)
    """The first is that of `engine`."""

    def setUp(self) -> None:
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        lacks = "" if self.endpoints else LACKED[self.dialect]
        engines = [self.stack.enter_context(mock_engine(name, lacks=lacks)) for name in self.models]
        self.engine: MockEngine = engines[0]
        self.scripted: ScriptedEngine = self.stack.enter_context(ScriptedEngine())
        self.gateway = serving(
            self.stack,
            {**{name: engine.url for name, engine in zip(self.models, engines)}, "s": self.scripted.url},
            self.dialect,
            self.endpoints,
            RETRY_ATTEMPTS="1",
            BREAKER_THRESHOLD="1000",
        )
        self.sdk: Any = importlib.import_module(self.package)

    def break_streams(self) -> None:
        """From now on, the engine's streams break off after some events."""
        self.engine.control("drop_mid_stream", after=2)

    def turns_sent(self) -> list[str]:
        """The conversation that the engine was asked with last."""
        return turns_of(self.engine.requests[-1])

    def system_sent(self) -> Any:
        """The texts of the system prompt that the engine was asked with last."""
        sent = self.engine.requests[-1]
        body = sent["body"]
        if sent["path"] == "/v1/responses":
            return [body["instructions"]]
        if sent["path"] == "/v1/messages":
            return [block["text"] for block in body.get("system", ())]
        return [message["content"] for message in body["messages"] if message["role"] == "system"]

    def schema_sent(self) -> Any:
        """The schema that the engine was asked to keep to last."""
        return schema_of(self.engine.requests[-1])

    def assert_left(self, times: int = 1) -> None:
        """The engine has seen so many callers leave, and nothing is under way any more."""
        self.assertTrue(self.engine.wait_for_cancelled(times, timeout_s=5))
        eventually(lambda: self.gateway.app.pipeline.in_flight == 0)

    def check_leaving(self, streamed: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        """Who leaves a stream after its first event ends it at the engine."""
        gate = self.engine.hold_after(2)
        self.addCleanup(gate.release)
        with streamed() as stream:
            next(iter(stream))
        self.assert_left()

    def check_cancelling(
        self,
        opened: contextlib.AbstractAsyncContextManager[Any],
        whole: Callable[[Any], Awaitable[Any]],
        streamed: Callable[[Any], AsyncIterator[Any]],
    ) -> None:
        """A task that is cancelled before its answer comes, or in the middle of a stream, and a stream that is not read
        any further, each end the request at the engine. What is `opened` is given to those that ask."""

        async def read(chunks: AsyncIterator[Any], begun: asyncio.Event) -> None:
            async for _ in chunks:
                begun.set()

        async def cancel(asking: Awaitable[Any], begun: Awaitable[Any]) -> None:
            task = asyncio.ensure_future(asking)
            waits = asyncio.ensure_future(begun)
            await asyncio.wait((task, waits), timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            self.assertEqual((task.done() and task.result(), waits.done()), (False, True))
            while not task.done():  # before Python 3.12, asyncio.wait_for may swallow one of these
                task.cancel()
                await asyncio.wait((task,), timeout=0.1)
            self.assertTrue(task.cancelled(), task)

        async def check() -> None:
            async with opened as client:
                self.engine.control("hang")
                await cancel(whole(client), asyncio.to_thread(self.engine.wait_for_requests, 1, TIMEOUT_S))
                await asyncio.to_thread(self.assert_left, 1)
                self.engine.control("hang_mid_stream")
                begun = asyncio.Event()
                await cancel(read(streamed(client), begun), begun.wait())
                await asyncio.to_thread(self.assert_left, 2)
                async for _ in streamed(client):
                    break
                await asyncio.to_thread(self.assert_left, 3)

        # Who has left while an engine is asked is not looked for at once.
        often = (mock.patch(f"gateway.server.{name}", 0.02) for name in ("connection.LOOK_S", "server.SWEEP_S"))
        with contextlib.ExitStack() as stack:
            for patch in often:
                stack.enter_context(patch)
            asyncio.run(check())
