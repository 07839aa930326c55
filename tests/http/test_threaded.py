"""Without epoll, the loop waits by `selectors`: what matters most of the other tests, on that."""

from __future__ import annotations

import contextlib
import select
import unittest
from unittest import mock

from tests.http import (
    test_addresses,
    test_allowed_models,
    test_chat,
    test_engine_answers,
    test_error_format,
    test_failover,
    test_loop_connections,
    test_replays,
    test_rescue,
    test_shortage,
    test_sse,
    test_stream_ends,
    test_stream_kinds,
    test_streams,
    test_surplus,
)
from tests.http import test_names as names
from tests.http import test_unforeseen as unforeseen
from tests.http import test_wire as wire
from tests.support import RunningGateway, eventually, gateway


class Threaded(unittest.TestCase):
    """Comes first among the bases of a test: its gateways do without epoll."""

    @classmethod
    def setUpClass(cls) -> None:
        patcher = mock.patch("gateway.server.loop.HAS_EPOLL", False)
        patcher.start()
        cls.addClassCleanup(patcher.stop)
        super().setUpClass()


class Server(Threaded):
    def test_this_is_the_loop_without_epoll(self) -> None:
        with gateway() as running:
            self.assertNotIsInstance(running.app.server.loop._poller, getattr(select, "epoll", ()))
            self.assertEqual(running.post().status, 200)


class Bound(unittest.TestCase):
    """Where a system waits for few sockets at a time, as many clients are taken, whatever MAX_CONNECTIONS says."""

    def setUp(self) -> None:
        patcher = mock.patch("gateway.server.server.CONNECTIONS_MAX", 3)
        patcher.start()
        self.addCleanup(patcher.stop)

    def told(self, running: RunningGateway) -> list[tuple[int, int]]:
        running.request_line(running.post().request_id)  # what was logged before is there by then
        lines = [line for line in running.log_lines() if line["event"] == "few_connections"]
        return [(line["possible_connections"], line["max_connections"]) for line in lines]

    def test_one_more_is_refused_until_another_leaves(self) -> None:
        with gateway() as running, contextlib.ExitStack() as clients:
            first, *_ = kept = [clients.enter_context(running.connect()) for _ in range(3)]
            for client in kept:
                self.assertEqual(client.ask("GET", "/healthz").status, 200)
            with running.connect() as refused:
                answer = refused.read_response()
                self.assertEqual((answer.status, answer.error), (503, "overloaded"))
            first.close()
            eventually(lambda: running.app.server.connections < 3)
            self.assertEqual(self.told(running), [(3, 10_000)])

    def test_a_lower_limit_of_the_settings_holds_without_a_word(self) -> None:
        with gateway(MAX_CONNECTIONS=1) as running:
            with running.connect() as client:
                self.assertEqual(client.ask("GET", "/healthz").status, 200)
                with running.connect() as refused:
                    self.assertEqual(refused.read_response().status, 503)
            eventually(lambda: running.app.server.connections == 0)
            self.assertEqual(self.told(running), [])


class Addresses(Threaded, test_addresses.BothFamiliesTest):
    pass


class AllowedModels(Threaded, test_allowed_models.AliasTest):
    pass


class ErrorFormat(Threaded, test_error_format.Errors):
    pass


class ChatAnswers(Threaded, test_chat.Answers):
    pass


class GoodEnds(Threaded, test_stream_ends.GoodEndTest):
    pass


class AskedForStreams(Threaded, test_stream_kinds.AskedTest):
    pass


class UnaskedStreams(Threaded, test_stream_kinds.NotAskedTest):
    pass


class WireVersions(Threaded, wire.Versions):
    pass


class WireBodies(Threaded, wire.Bodies):
    pass


class WireRefused400(Threaded, wire.Refused400):
    pass


class WirePipelining(Threaded, wire.Pipelining):
    pass


class WireConnections(Threaded, wire.Connections):
    pass


class Rescues(Threaded, test_rescue.RescueTest):
    pass


class UnforeseenAttempts(Threaded, unforeseen.UnforeseenTest):
    pass


class UnforeseenEnds(Threaded, unforeseen.EndsTest):
    pass


class StreamsLive(Threaded, test_streams.LiveTest):
    pass


class NamesHang(Threaded, names.HangTest):
    pass


class NamesChange(Threaded, names.ChangeTest):
    pass


class FailoverKeptConnections(Threaded, test_failover.KeptConnectionTest):
    pass


class EngineAnswers(Threaded, test_engine_answers.Answers):
    pass


class EngineKeptConnections(Threaded, test_engine_answers.KeptConnections):
    pass


class EngineSurplus(Threaded, test_surplus.Surplus):
    pass


class EngineSurplusIdle(Threaded, test_surplus.Idle):
    pass


class EngineReplays(Threaded, test_replays.Replays):
    pass


class EngineShortages(Threaded, test_shortage.Shortages):
    pass


class Segments(Threaded, test_loop_connections.Segments):
    pass


class Refusals(Threaded, test_loop_connections.Refusals):
    pass


class Order(Threaded, test_loop_connections.Order):
    pass


class Leaving(Threaded, test_loop_connections.Leaving):
    pass


class TimeLimits(Threaded, test_loop_connections.TimeLimits):
    pass


class Draining(Threaded, test_loop_connections.Draining):
    pass


class Queue(Threaded, test_loop_connections.Queue):
    pass


class SseReasons(Threaded, test_sse.ReasonTest):
    pass


class SseChoices(Threaded, test_sse.ChoicesTest):
    pass


class SseLines(Threaded, test_sse.LinesTest):
    pass


class SseUsage(Threaded, test_sse.UsageTest):
    pass


if __name__ == "__main__":
    unittest.main()
