"""Limits that shrink by what finished requests say, in a whole gateway."""

from __future__ import annotations

import unittest

from tests.access import AccessTest, ask
from tests.support import RunningGateway, eventually


class WholeGatewayTest(AccessTest):
    """With engines that fail one key's requests, on sockets."""

    def ticked(self, running: RunningGateway, requests: int) -> float:
        """The least factor, once that many have been learnt from."""
        guard = running.app.guard
        eventually(lambda: sum(one.seen for one in guard._shares._counts.values()) >= requests)
        guard.clock.now_s += 1.0  # type: ignore[attr-defined]
        guard.tick()
        return min(guard.adaptive.factors().values())

    def serve_still(self) -> RunningGateway:
        """A gateway with a good and a failing model, whose guard ticks when the test says so."""
        fleet = {
            "good": {"engines": ["echo:"]},
            "bad": {"engines": [self.engine("error", model="bad").url], "fallbacks": []},
        }
        running = self.serve(fleet, RETRY_ATTEMPTS=1, RATE_LIMIT_TARGET_ERRORS="0.05")
        keys = {name: self.make(running, name) for name in ("alice", "bob", "carol")}
        running.app.guard._stop.set()  # its thread ends
        thread = running.app.guard._thread
        assert thread is not None
        thread.join(10.0)
        self.freeze(running)
        running.app.guard.tick()
        self.keys = keys
        return running

    def test_one_keys_failures_shrink_nothing_those_of_all_do(self) -> None:
        running = self.serve_still()
        for name in ("bob", "carol"):
            self.assertEqual(running.post(ask(model="good"), headers=self.keys[name]).status, 200)
        for _ in range(20):
            self.assertIn(running.post(ask(model="bad"), headers=self.keys["alice"]).status, (502, 503))
        self.assertEqual(self.ticked(running, 22), 1.0)
        for name in self.keys:
            running.post(ask(model="bad"), headers=self.keys[name])
        self.assertLess(self.ticked(running, 3), 1.0)


if __name__ == "__main__":
    unittest.main()
