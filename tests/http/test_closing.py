"""The steps of a call, closed at any of their waits: nothing is held for it any more."""

from __future__ import annotations

import unittest
from typing import Any, Optional

from gateway.errors import GatewayError
from gateway.mock.server import MockEngine
from gateway.routing.retry import Outcome
from gateway.routing.specs import FleetSpec, ModelSpec, model_from
from gateway.steps import Opened, Steps
from gateway.upstream.attempt import EngineFault
from gateway.upstream.call import CHAT
from gateway.upstream.stream import EngineStream
from inference import Call, EngineSpec, InferenceFactory
from tests.support import eventually

WAITS_MAX = 25  # a byte at a time, each is like the one before


def stopped(steps: Steps[Any], waits: int) -> bool:
    """Run steps as a loop does, close them at the wait of that number; False: they have ended before."""
    under_way: list[Steps[Any]] = [steps]
    value: Any = None
    failure: Optional[Exception] = None
    while True:
        try:
            now = under_way[-1]
            wait = now.send(value) if failure is None else now.throw(failure)
        except StopIteration as end:
            under_way.pop()
            value, failure = end.value, None
            if under_way:
                continue
            if isinstance(value, EngineStream):
                value.close(Outcome("cancelled"))
            return False
        except (EngineFault, GatewayError) as error:  # a conversation's: the steps that wait for it are told
            under_way.pop()
            if not under_way:
                raise
            failure = error
            continue
        if waits == 0:
            for each in reversed(under_way):
                each.close()
            return True
        waits -= 1
        value = failure = None
        if isinstance(wait, Opened):
            under_way.append(wait.request.converse())
        else:
            value = wait.block()


class ClosingTest(unittest.TestCase):
    def assert_nothing_held(self, factory: InferenceFactory) -> None:
        attempts = factory.asker._attempts

        def watched() -> int:
            return len(attempts.engines._watchdog) - 1  # besides the rescue itself

        def held() -> list[int]:
            in_flight = [engine.in_flight for pool in factory.router.pools.values() for engine in pool.engines]
            return [*in_flight, len(attempts._rescue._waiting), len(attempts._hedges), watched()]

        eventually(lambda: not any(held()))

    def assert_closes(self, model: ModelSpec, stream: bool, **options: Any) -> None:
        with InferenceFactory(FleetSpec((model,)), health_interval_s=0, **options) as factory:
            for waits in range(WAITS_MAX):
                with self.subTest(stream=stream, waits=waits):
                    call = Call(CHAT, {"messages": [{"role": "user", "content": "hi"}], "stream": stream})
                    went_on = stopped(factory.asker.ask(call), waits)
                    self.assert_nothing_held(factory)
                    if not went_on:
                        return

    def engine(self, behaviour: str = "ok", **options: Any) -> str:
        engine = MockEngine(behaviour=behaviour, **options)
        engine.start()
        self.addCleanup(engine.close)
        return engine.url

    def test_a_call_and_a_stream(self) -> None:
        for stream in (False, True):
            self.assert_closes(model_from("m", [self.engine("drip")]), stream)

    def test_a_call_that_is_tried_again(self) -> None:
        for stream in (False, True):
            self.assert_closes(model_from("m", [self.engine("reset"), self.engine()]), stream)

    def test_a_call_that_is_hedged(self) -> None:
        for stream in (False, True):
            urls = [self.engine("slow", delay=0.05) for _ in range(2)]
            engines = tuple(EngineSpec(url) for url in urls)
            model = ModelSpec("m", engines, hedge_after_ms=1, hedge_ratio=1.0)
            self.assert_closes(model, stream)


if __name__ == "__main__":
    unittest.main()
