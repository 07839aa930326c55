"""What tests of connections on the loop share: waiting for the loop, holding it, counting the threads it asks for.

Owns no state of its own.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Callable, Optional
from unittest import mock

from gateway.server.server import GatewayServer
from tests.resilience import ResilienceTest
from tests.scripted import EngineSide, ScriptedEngine
from tests.support import TIMEOUT_S, RawClient, RunningGateway, eventually

THREAD_NAMES = ("aside", "worker")


def completion(text: str = "fine") -> bytes:
    """The body of an engine's good answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def client_threads() -> set[threading.Thread]:
    """Threads that requests are passed to, of whichever gateway."""
    return {thread for thread in threading.enumerate() if thread.name in THREAD_NAMES}


class OnLoopTest(ResilienceTest):
    """A test of a gateway in front of engines that do what the test says."""

    def one_engine(self, **variables: object) -> tuple[RunningGateway, ScriptedEngine]:
        """A gateway in front of one engine."""
        engine = self.scripted()
        return self.serve({"m": {"engines": [engine.url]}}, RETRY_ATTEMPTS=1, **variables), engine

    def kept(self, running: RunningGateway, engine: ScriptedEngine, client: Optional[RawClient] = None) -> EngineSide:
        """The engine's end of a connection that the gateway keeps: one request has been answered on it."""
        client = client or self.begin(running)
        side = engine.take()
        side.answer(completion("kept"))
        self.assert_says(client, "kept")
        return side

    def assert_says(self, client: RawClient, text: str, attempts: int = 1) -> None:
        """The next response is the engine's answer with that text."""
        response = client.read_response()
        self.assertEqual(response.status, 200, response.body[:500])
        self.assertEqual(response.json()["choices"][0]["message"]["content"], text)
        self.assertEqual(response.header("x-gateway-attempts"), str(attempts))

    def settle(self, running: RunningGateway) -> None:
        """Wait until the loop has seen to everything that has happened before."""
        for _ in range(2):  # the first may be reported in one go with what came before it
            with holding(running.app.server):
                pass

    @contextlib.contextmanager
    def hold_loop(self, running: RunningGateway) -> Iterator[None]:
        """Nothing is served on the loop's thread; what happens meanwhile is reported to it in one go."""
        with holding(running.app.server):
            yield

    @contextlib.contextmanager
    def no_thread(self, running: RunningGateway) -> Iterator[None]:
        """What happens in here is served on the loop's thread alone."""
        with asked_threads(running) as asked:
            yield
        self.assertEqual(asked(), 0, "a thread was asked for")

    def wait_for_connections(self, running: RunningGateway, count: int) -> None:
        """Wait until the gateway has so many open connections of clients."""
        eventually(lambda: running.app.server.connections == count)


@contextlib.contextmanager
def asked_threads(running: RunningGateway) -> Iterator[Callable[[], int]]:
    """Gives a function that tells how often a thread has been asked for."""
    threads = (running.app.server.threads, running.app.workers._threads)
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(mock.patch.object(each, "run", wraps=each.run)) for each in threads]
        yield lambda: sum(run.call_count for run in runs)


@contextlib.contextmanager
def holding(server: GatewayServer) -> Iterator[None]:
    """Keep the loop's thread busy."""
    far, near = socket.socketpair()
    held, go = threading.Event(), threading.Event()

    def hold(events: int) -> None:
        server.loop.unwatch(near.fileno())
        held.set()
        go.wait(TIMEOUT_S)

    with far, near:
        far.send(b"x")
        server.loop.soon(lambda events: server.loop.watch(near.fileno(), hold))
        assert held.wait(TIMEOUT_S), "the loop's thread is stuck"
        try:
            yield
        finally:
            go.set()
