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


class WithoutEpoll(unittest.TestCase):
    """Comes first among the bases of a test: its gateways do without epoll."""

    @classmethod
    def setUpClass(cls) -> None:
        patcher = mock.patch("gateway.server.loop.HAS_EPOLL", False)
        patcher.start()
        cls.addClassCleanup(patcher.stop)
        super().setUpClass()


class Server(WithoutEpoll):
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


class Addresses(WithoutEpoll, test_addresses.BothFamiliesTest):
    pass


class AllowedModels(WithoutEpoll, test_allowed_models.AliasTest):
    pass


class ErrorFormat(WithoutEpoll, test_error_format.Errors):
    pass


class ChatAnswers(WithoutEpoll, test_chat.Answers):
    pass


class GoodEnds(WithoutEpoll, test_stream_ends.GoodEndTest):
    pass


class AskedForStreams(WithoutEpoll, test_stream_kinds.AskedTest):
    pass


class UnaskedStreams(WithoutEpoll, test_stream_kinds.NotAskedTest):
    pass


class WireVersions(WithoutEpoll, wire.Versions):
    pass


class WireBodies(WithoutEpoll, wire.Bodies):
    pass


class WireRefused400(WithoutEpoll, wire.Refused400):
    pass


class WirePipelining(WithoutEpoll, wire.Pipelining):
    pass


class WireConnections(WithoutEpoll, wire.Connections):
    pass


class Rescues(WithoutEpoll, test_rescue.RescueTest):
    pass


class UnforeseenAttempts(WithoutEpoll, unforeseen.UnforeseenTest):
    pass


class UnforeseenEnds(WithoutEpoll, unforeseen.EndsTest):
    pass


class StreamsLive(WithoutEpoll, test_streams.LiveTest):
    pass


class NamesHang(WithoutEpoll, names.HangTest):
    pass


class NamesChange(WithoutEpoll, names.ChangeTest):
    pass


class FailoverKeptConnections(WithoutEpoll, test_failover.KeptConnectionTest):
    pass


class EngineAnswers(WithoutEpoll, test_engine_answers.Answers):
    pass


class EngineKeptConnections(WithoutEpoll, test_engine_answers.KeptConnections):
    pass


class EngineSurplus(WithoutEpoll, test_surplus.Surplus):
    pass


class EngineSurplusIdle(WithoutEpoll, test_surplus.Idle):
    pass


class EngineReplays(WithoutEpoll, test_replays.Replays):
    pass


class EngineShortages(WithoutEpoll, test_shortage.Shortages):
    pass


class Segments(WithoutEpoll, test_loop_connections.Segments):
    pass


class Refusals(WithoutEpoll, test_loop_connections.Refusals):
    pass


class Order(WithoutEpoll, test_loop_connections.Order):
    pass


class Leaving(WithoutEpoll, test_loop_connections.Leaving):
    pass


class TimeLimits(WithoutEpoll, test_loop_connections.TimeLimits):
    pass


class Draining(WithoutEpoll, test_loop_connections.Draining):
    pass


class Queue(WithoutEpoll, test_loop_connections.Queue):
    pass


class SseReasons(WithoutEpoll, test_sse.ReasonTest):
    pass


class SseChoices(WithoutEpoll, test_sse.ChoicesTest):
    pass


class SseLines(WithoutEpoll, test_sse.LinesTest):
    pass


class SseUsage(WithoutEpoll, test_sse.UsageTest):
    pass


if __name__ == "__main__":
    unittest.main()
