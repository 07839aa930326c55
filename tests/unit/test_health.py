"""Health checks: what is probed when, what a result changes, and that no engine holds up another's probe."""

from __future__ import annotations

import threading
import unittest
from random import Random
from typing import Optional
from unittest import mock

from gateway.routing.breaker import BreakerPolicy
from gateway.routing.engine import Engine
from gateway.routing.line import Lease
from gateway.routing.pool import ModelPool
from gateway.routing.retry import Outcome
from gateway.routing.specs import EngineSpec, model_from
from gateway.routing.standing import StateChange
from gateway.upstream import prober
from gateway.upstream.firstround import FirstRound
from gateway.upstream.listing import ModelLists
from gateway.upstream.peers import Peers
from gateway.upstream.prober import HealthChecker
from tests.support import TIMEOUT_S, eventually

INTERVAL_S = 5.0


class Probes:
    """Stands in for the network: `failing` engines fail, those in `held` answer when released."""

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.held: dict[str, threading.Event] = {}
        self.seen: list[str] = []
        self.timeouts_s: set[float] = set()

    def __call__(self, spec: EngineSpec, timeout_s: float) -> Optional[str]:
        name = spec.id or ""
        self.seen.append(name)
        self.timeouts_s.add(timeout_s)
        if name in self.held:
            assert self.held[name].wait(TIMEOUT_S)  # longer than anybody waits for the round to end without it
        return "health check failed: refused" if name in self.failing else None


class CheckerCase(unittest.TestCase):
    """A checker with time and network played by the test; `tick` is called by hand."""

    def setUp(self) -> None:
        self.now_s = 1000.0
        self.probes = Probes()
        self.changes: list[StateChange] = []
        self.housekept = 0
        self.engine_names = ["a", "b", "c"]
        specs = [EngineSpec(f"http://{name}:1", id=name) for name in self.engine_names]
        self.pool = ModelPool(model_from("m", specs), "round_robin", Random(1), lambda: self.now_s)
        patch = mock.patch.object(prober, "ROUND_GRACE_S", 3600.0)  # so that no round ends for want of anything better
        patch.start()
        self.addCleanup(patch.stop)

    def checker(
        self, fails: int = 2, passes: int = 1, interval_s: float = INTERVAL_S, known: bool = True
    ) -> HealthChecker:
        """`known`: each engine has answered once, long ago."""
        for engine in self.pool.engines if known else ():
            self.pool.record_probe(engine, None, fails, passes)
            engine.passes = 0
        checker = HealthChecker(
            lambda: [self.pool],
            self.changes.append,
            interval_s=interval_s,
            timeout_s=2.0,
            fails=fails,
            passes=passes,
            housekeeping=self._housekeep,
            probe=self.probes,
        )
        self.addCleanup(checker.close)
        return checker

    def _housekeep(self) -> None:
        self.housekept += 1

    def tick(self, checker: HealthChecker, probed: Optional[list[str]] = None) -> None:
        """One round, complete; `probed` are the engines it is to probe (None: all)."""
        self.probes.seen.clear()
        checker.tick()
        expected = self.engine_names if probed is None else probed
        self.wait_for_probes()
        self.assertEqual(sorted(self.probes.seen), sorted(expected))

    def wait_for_probes(self, *of: str) -> None:
        """Until none is under way, or none of those engines."""
        names = {f"probe-{name}" for name in of or self.engine_names}
        eventually(lambda: not [thread for thread in threading.enumerate() if thread.name in names])

    def states(self) -> list[str]:
        return [engine.state for engine in self.pool.snapshot()]

    def engine(self, name: str) -> Engine:
        return next(engine for engine in self.pool.engines if engine.id == name)

    def settle(self, name: str, outcome: Outcome) -> None:
        """Let a request end on that engine."""
        for _ in self.engine_names:
            lease = self.pool.acquire((), b"")
            assert lease is not None
            self.pool.settle(lease, outcome if lease.engine.id == name else Outcome("cancelled"), 0.1)
            if lease.engine.id == name:
                return
        raise AssertionError(f"{name} was not chosen")


class CheckerTest(CheckerCase):
    """What is probed when, and what a result changes."""

    def test_an_engine_is_out_after_as_many_failures_in_a_row_as_configured(self) -> None:
        checker = self.checker(fails=3)
        self.probes.failing = {"b"}
        for expected in ("up", "up", "down", "down"):
            self.tick(checker)
            self.assertEqual(self.states(), ["up", expected, "up"])
        self.assertEqual([(c.engine, c.before, c.after) for c in self.changes], [("b", "up", "down")])
        self.assertIn("refused", self.changes[0].reason)
        self.assertIn("refused", self.pool.snapshot()[1].last_error or "")

    def test_a_good_probe_in_between_starts_the_count_anew(self) -> None:
        checker = self.checker(fails=2)
        for failing in (True, False, True, False, True):
            self.probes.failing = {"b"} if failing else set()
            self.tick(checker)
            self.assertEqual(self.states(), ["up"] * 3)

    def test_an_engine_is_back_after_as_many_good_probes_in_a_row_as_configured(self) -> None:
        checker = self.checker(fails=1, passes=2)
        self.probes.failing = {"b"}
        self.tick(checker)
        self.assertEqual(self.states()[1], "down")
        for failing, expected in ((False, "down"), (True, "down"), (False, "down"), (False, "up")):
            self.probes.failing = {"b"} if failing else set()
            self.tick(checker)
            self.assertEqual(self.states()[1], expected)
        self.assertEqual([c.after for c in self.changes], ["down", "up"])

    def test_balancing_leaves_out_what_is_down(self) -> None:
        checker = self.checker(fails=1)
        self.probes.failing = {"a", "c"}
        self.tick(checker)
        chosen = [self.pool.acquire((), b"") for _ in range(6)]
        self.assertEqual({lease.engine.id for lease in chosen if lease}, {"b"})

    def test_a_fresh_good_answer_spares_the_probe(self) -> None:
        checker = self.checker()
        self.settle("b", Outcome("ok"))
        self.tick(checker, ["a", "c"])
        self.now_s += INTERVAL_S + 1
        self.tick(checker)

    def test_only_a_good_answer_does(self) -> None:
        checker = self.checker()
        for outcome in (Outcome("error", "x"), Outcome("cancelled"), Outcome("timeout", "x")):
            self.settle("b", outcome)
            self.tick(checker)

    def test_an_engine_with_failed_probes_is_probed_although_it_answers(self) -> None:
        checker = self.checker(fails=2)
        self.probes.failing = {"b"}
        self.tick(checker)
        self.pool.engines[1].ok_at_s = self.now_s
        self.pool.engines[0].ok_at_s = self.now_s
        self.tick(checker, ["b", "c"])

    def test_a_refused_request_takes_an_engine_out_and_a_probe_brings_it_back(self) -> None:
        checker = self.checker()
        self.settle("b", Outcome("refused", "cannot connect"))
        self.assertEqual(self.states(), ["up", "down", "up"])
        self.tick(checker)
        self.assertEqual(self.states(), ["up"] * 3)

    def test_a_probe_does_not_end_a_pause_or_a_misconfiguration(self) -> None:
        checker = self.checker()
        self.settle("a", Outcome("rate_limited", "", 429, 30.0))
        self.settle("b", Outcome("unauthorized", "", 401))
        self.tick(checker)
        self.assertEqual(self.states(), ["resting", "misconfigured", "up"])
        self.now_s += 61
        self.assertEqual(self.states(), ["up"] * 3)

    def test_a_hung_probe_delays_nobody_else_s_and_is_not_started_twice(self) -> None:
        checker = self.checker(fails=1)
        self.probes.held["a"] = threading.Event()
        self.probes.failing = {"b"}
        checker.tick()
        eventually(lambda: self.states()[1] == "down")
        self.wait_for_probes("b", "c")
        self.probes.failing = set()
        checker.tick()
        eventually(lambda: self.states()[1] == "up")
        self.assertEqual(self.probes.seen.count("a"), 1)
        self.probes.failing = {"a"}
        self.probes.held["a"].set()
        eventually(lambda: self.states()[0] == "down")

    def take(self, name: str) -> Lease:
        """A place on that engine."""
        lease = self.pool.acquire([engine for engine in self.pool.engines if engine.id != name], b"")
        assert lease is not None
        return lease

    def test_a_failed_probe_is_soon_repeated_where_requests_wait(self) -> None:
        lease = self.take("b")
        self.probes.failing = {"b", "c"}
        with mock.patch.object(prober, "AGAIN_S", 0.0):
            self.checker(fails=3).tick()
            eventually(lambda: self.states() == ["up", "down", "up"])
            self.wait_for_probes()
        self.assertEqual(sorted(self.probes.seen), ["a", "b", "b", "b", "c"])  # nobody waits at c
        self.pool.settle(lease, Outcome("cancelled"), 0.0)

    def test_it_is_not_repeated_once_the_engine_has_answered_or_nobody_waits_any_more(self) -> None:
        for outcome in (Outcome("ok"), Outcome("cancelled")):
            with self.subTest(outcome.kind):
                lease = self.take("b")
                self.now_s += INTERVAL_S
                self.probes.failing = {"b"}
                self.probes.seen.clear()
                checker = self.checker(fails=3)
                pause = mock.Mock()  # in which the request ends

                def wait(delay_s: float, lease: Lease = lease, outcome: Outcome = outcome) -> bool:
                    self.pool.settle(lease, outcome, 0.1)
                    return False

                pause.wait.side_effect = wait
                with mock.patch.object(checker, "_ending", pause):
                    checker.tick()
                    self.wait_for_probes()
                pause.wait.assert_called_once_with(prober.AGAIN_S)
                self.assertEqual(sorted(self.probes.seen), ["a", "b", "c"])
                self.engine("b").fails = 0

    def test_closing_ends_a_pause_before_a_repeated_probe(self) -> None:
        self.take("b")
        self.probes.failing = {"b"}
        checker = self.checker(fails=9, interval_s=60.0)
        with mock.patch.object(prober, "AGAIN_S", 60.0):
            checker.tick()
            eventually(lambda: self.engine("b").fails == 1)
            checker.close()
        self.assertEqual(self.probes.seen.count("b"), 1)

    def test_an_interval_of_zero_probes_nothing_but_keeps_house(self) -> None:
        checker = self.checker(interval_s=0)
        self.tick(checker, [])
        self.assertEqual(self.housekept, 1)

    def test_the_echo_engine_needs_no_probe(self) -> None:
        self.pool = ModelPool(model_from("m", ["echo:"]), "round_robin", Random(1), lambda: self.now_s)
        self.tick(self.checker(), [])

    def test_a_probe_gets_the_time_limit_that_was_configured(self) -> None:
        self.tick(self.checker())
        self.assertEqual(self.probes.timeouts_s, {2.0})

    def test_at_most_so_many_probes_run_at_once_and_the_rest_follows_in_the_same_round(self) -> None:
        self.engine_names = [f"e{number}" for number in range(prober.MAX_PROBES_AT_ONCE + 5)]
        specs = [EngineSpec(f"http://{name}:1", id=name) for name in self.engine_names]
        self.pool = ModelPool(model_from("m", specs), "round_robin", Random(1), lambda: self.now_s)
        gate = threading.Event()
        self.addCleanup(gate.set)
        self.probes.held = dict.fromkeys(self.engine_names, gate)
        checker = self.checker()
        checker.tick()
        eventually(lambda: len(self.probes.seen) == prober.MAX_PROBES_AT_ONCE)
        checker.tick()
        self.assertEqual(len(self.probes.seen), prober.MAX_PROBES_AT_ONCE)
        gate.set()
        eventually(lambda: len(self.probes.seen) == len(self.engine_names))
        self.wait_for_probes()
        self.assertEqual(sorted(self.probes.seen), sorted(self.engine_names))

    def one_under_way(self) -> tuple[HealthChecker, threading.Event]:
        """A checker with the probe of `a` under way, which waits for what is returned; the others are to follow."""
        patch = mock.patch.object(prober, "MAX_PROBES_AT_ONCE", 1)
        patch.start()
        self.addCleanup(patch.stop)
        checker = self.checker()
        gate = self.hold("a")
        checker.tick()
        eventually(lambda: self.probes.seen == ["a"])
        return checker, gate

    def test_what_has_gone_meanwhile_is_not_probed_any_more(self) -> None:
        _, gate = self.one_under_way()
        self.engine("b").removed = True
        gate.set()
        eventually(lambda: self.probes.seen == ["a", "c"])

    def test_closing_does_not_wait_for_a_probe_as_long_as_that_may_take(self) -> None:
        self.probes.held = {name: threading.Event() for name in self.engine_names}
        checker = self.checker()
        checker.tick()
        eventually(lambda: len(self.probes.seen) == 3)
        with mock.patch.object(prober, "CLOSE_S", 0.01):
            checker.close()
        self.assertEqual(len(checker._under_way), 3)
        for event in self.probes.held.values():
            event.set()
        eventually(lambda: not checker._under_way)

    def test_nothing_follows_once_it_is_closed(self) -> None:
        checker, gate = self.one_under_way()
        closing = threading.Thread(target=checker.close, name="closing")
        closing.start()
        eventually(lambda: checker._closed)
        gate.set()
        closing.join(TIMEOUT_S)
        self.wait_for_probes()
        self.assertEqual(self.probes.seen, ["a"])

    def test_an_engine_that_has_never_answered_is_out_after_its_first_failed_probe(self) -> None:
        checker = self.checker(fails=3, passes=2, known=False)
        self.probes.failing = {"b"}
        self.tick(checker)
        self.assertEqual(self.states(), ["up", "down", "up"])
        self.probes.failing = {"a"}  # which has
        for _ in range(2):
            self.tick(checker)
            self.assertEqual(self.states()[0], "up")
        self.tick(checker)
        self.assertEqual(self.states(), ["down", "up", "up"])

    def test_a_good_answer_vouches_for_an_engine_as_a_probe_does(self) -> None:
        checker = self.checker(fails=3, known=False)
        self.settle("b", Outcome("ok"))
        self.now_s += INTERVAL_S
        self.probes.failing = {"b", "c"}
        self.tick(checker)
        self.assertEqual(self.states(), ["up", "up", "down"])

    def test_one_that_is_asked_otherwise_has_never_answered(self) -> None:
        checker = self.checker(fails=3)
        self.engine("b").forget(BreakerPolicy())
        self.probes.failing = {"a", "b"}
        self.tick(checker)
        self.assertEqual(self.states(), ["up", "down", "up"])

    def start(self, checker: HealthChecker) -> None:
        """Start it and wait until its probes have begun."""
        checker.start()
        eventually(lambda: len(self.probes.seen) == min(len(self.engine_names), prober.MAX_PROBES_AT_ONCE))

    def hold(self, *names: str) -> threading.Event:
        """Let the probes of those engines wait for what is returned."""
        gate = threading.Event()
        self.addCleanup(gate.set)
        self.probes.held.update(dict.fromkeys(names, gate))
        return gate

    def test_the_first_round_ends_when_each_engine_has_a_result(self) -> None:
        checker = self.checker(known=False)
        first, second = self.hold("a"), self.hold("b")
        self.probes.failing = {"b"}
        self.start(checker)
        self.assertFalse(checker.wait_probed(0))
        first.set()
        eventually(lambda: self.engine("a").answered)
        self.assertFalse(checker.probed())
        second.set()
        self.assertTrue(checker.wait_probed(TIMEOUT_S))
        self.assertTrue(checker.probed())
        self.assertEqual(self.states(), ["up", "down", "up"])

    def test_more_engines_than_probes_at_once_are_one_round(self) -> None:
        with mock.patch.object(prober, "MAX_PROBES_AT_ONCE", 1):
            checker = self.checker(known=False, interval_s=3600)
            gate = self.hold("b")
            checker.start()
            eventually(lambda: "b" in self.probes.seen)
            self.assertFalse(checker.wait_probed(0))
            gate.set()
            self.assertTrue(checker.wait_probed(TIMEOUT_S))
            self.assertEqual(sorted(self.probes.seen), ["a", "b", "c"])

    def test_a_good_answer_counts_as_a_result(self) -> None:
        checker = self.checker(known=False)
        self.hold("b")
        self.start(checker)
        self.assertFalse(checker.wait_probed(0))
        self.settle("b", Outcome("ok"))
        self.assertTrue(checker.wait_probed(TIMEOUT_S / 2))

    def test_an_engine_that_a_reload_has_removed_is_not_waited_for(self) -> None:
        checker = self.checker(known=False)
        self.hold("b")
        self.start(checker)
        spec = model_from("m", [engine.spec for engine in self.pool.engines if engine.id != "b"])
        self.pool.reconfigure(spec, "round_robin")
        self.assertTrue(checker.wait_probed(TIMEOUT_S / 2))

    def test_an_engine_of_which_nothing_could_be_learned_is_not_waited_for(self) -> None:
        checker = self.checker(known=False)
        checker._probe = mock.Mock(side_effect=prober.Shortage)
        checker.start()
        self.assertTrue(checker.wait_probed(TIMEOUT_S))
        self.assertEqual(self.states(), ["up"] * 3)

    def test_the_first_round_ends_when_all_turns_of_probes_could_have_passed(self) -> None:
        with mock.patch.object(prober.time, "monotonic") as monotonic:
            monotonic.return_value = 0.0
            first = FirstRound(self.pool.engines, 2.0)
            self.assertFalse(first.over())
            monotonic.return_value = 1.99
            self.assertFalse(first.over())
            monotonic.return_value = 2.0
            self.assertTrue(first.over())
        for at_once, turns in ((64, 1), (2, 2), (1, 3)):
            with mock.patch.object(prober, "MAX_PROBES_AT_ONCE", at_once), mock.patch.object(prober, "FirstRound") as r:
                self.checker().start()
                self.assertEqual(r.call_args[0][:2], (list(self.pool.engines), turns * 2.0 + prober.ROUND_GRACE_S))

    def test_without_probes_and_for_echo_there_is_no_round_to_wait_for(self) -> None:
        checker = self.checker(interval_s=0, known=False)
        checker.start()
        self.assertTrue(checker.wait_probed(0))
        self.pool = ModelPool(model_from("m", ["echo:"]), "round_robin", Random(1), lambda: self.now_s)
        checker = self.checker(known=False)
        checker.start()
        self.assertTrue(checker.wait_probed(0))

    def test_closing_ends_the_wait_for_the_first_round(self) -> None:
        checker = self.checker(known=False)
        gate = self.hold("a")
        self.start(checker)
        found: list[bool] = []
        waiting = threading.Thread(target=lambda: found.append(checker.wait_probed(TIMEOUT_S)), name="waiting")
        closing = threading.Thread(target=checker.close, name="closing")
        waiting.start()
        closing.start()
        waiting.join(TIMEOUT_S)
        self.assertEqual(found, [False])
        gate.set()
        closing.join(TIMEOUT_S)

    def test_started_it_probes_at_once_and_again_and_closing_ends_its_threads(self) -> None:
        checker = self.checker(interval_s=0.01)
        checker.start()
        eventually(lambda: self.probes.seen.count("a") >= 3)
        checker.close()
        names = {t.name for t in threading.enumerate()}
        self.assertFalse(names & {"health", "probe-a", "probe-b", "probe-c"})
        seen = len(self.probes.seen)
        checker.tick()
        self.assertEqual(len(self.probes.seen), seen)

    def test_a_failing_callback_ends_neither_the_probes_nor_the_engine(self) -> None:
        calls: list[StateChange] = []

        def on_change(change: StateChange) -> None:
            calls.append(change)
            raise RuntimeError("a full disk")

        hook, threading.excepthook = threading.excepthook, lambda args: None
        self.addCleanup(setattr, threading, "excepthook", hook)
        self.changes = []
        checker = self.checker(fails=1)
        checker._on_change = on_change
        self.probes.failing = {"b"}
        self.tick(checker)
        self.probes.failing = set()
        self.tick(checker)
        self.assertEqual([change.after for change in calls], ["down", "up"])


class AskedModelsTest(CheckerCase):
    """The same checker, before engines that are asked for their models too."""

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[str] = []
        self.asking = threading.Event()  # set: answers come at once
        self.asking.set()
        self.lists = ModelLists(lambda engine: True, dict)
        patch = mock.patch.object(self.lists, "ask", self.ask)
        patch.start()
        self.addCleanup(patch.stop)

    def ask(self, engine: Engine, timeout_s: float) -> None:
        engine.list_asked_s = prober.time.monotonic()
        self.asked.append(engine.id)
        self.assertTrue(self.asking.wait(TIMEOUT_S))
        engine.listed = ()

    def checker(
        self, fails: int = 2, passes: int = 1, interval_s: float = INTERVAL_S, known: bool = True
    ) -> HealthChecker:
        checker = super().checker(fails, passes, interval_s, known)
        checker._lists = self.lists
        return checker

    def test_engines_are_asked_behind_good_probes_alone_and_once_an_interval(self) -> None:
        checker = self.checker(interval_s=3600)
        self.probes.failing = {"b"}
        self.tick(checker)
        self.assertEqual(sorted(self.asked), ["a", "c"])
        self.probes.failing = set()
        self.tick(checker)
        self.assertEqual(sorted(self.asked), ["a", "b", "c"])

    def test_one_for_which_traffic_vouches_is_asked_without_a_probe(self) -> None:
        checker = self.checker(known=False)
        self.settle("b", Outcome("ok"))
        self.tick(checker, ["a", "c"])
        self.assertEqual(sorted(self.asked), ["a", "b", "c"])

    def test_the_round_has_time_for_their_answers_too(self) -> None:
        for at_once, turns in ((64, 2), (1, 6)):
            with mock.patch.object(prober, "MAX_PROBES_AT_ONCE", at_once), mock.patch.object(prober, "FirstRound") as r:
                self.checker().start()
                self.assertEqual(r.call_args[0][1], turns * 2.0 + prober.ROUND_GRACE_S)

    def test_the_round_has_not_ended_before_they_have_answered(self) -> None:
        checker = self.checker(known=False, interval_s=3600)
        self.asking.clear()
        checker.start()
        eventually(lambda: len(self.asked) == 3)
        for name in self.engine_names:  # an answer to a request is not enough
            self.settle(name, Outcome("ok"))
        self.assertEqual(self.states(), ["up"] * 3)
        self.assertFalse(checker.wait_probed(0))
        self.asking.set()
        self.assertTrue(checker.wait_probed(TIMEOUT_S))

    def test_a_reload_asks_new_ones_at_once(self) -> None:
        checker = self.checker(interval_s=3600)
        self.tick(checker)
        self.asked.clear()
        specs = [*(engine.spec for engine in self.pool.engines), EngineSpec("http://d:1", id="d")]
        self.pool.reconfigure(model_from("m", specs), "round_robin")
        for engine in self.pool.engines[:3]:
            engine.ok_at_s = self.now_s
        self.engine_names = ["a", "b", "c", "d"]
        self.tick(checker, ["d"])
        self.assertEqual(self.asked, ["d"])

    def test_without_probes_they_are_asked_until_they_have_answered(self) -> None:
        checker = self.checker(interval_s=0)
        checker.start()
        self.assertTrue(checker.wait_probed(TIMEOUT_S))
        self.wait_for_probes()
        checker.tick()
        self.wait_for_probes()
        self.assertEqual((self.probes.seen, sorted(self.asked)), ([], ["a", "b", "c"]))


class _Peers(Peers):
    """One of two processes: what it tells the other hears, as over their bus."""

    shares = True

    def __init__(self) -> None:
        self.is_leader = True
        self.other: Optional[tuple[HealthChecker, ModelPool]] = None
        self.told: list[tuple[str, Optional[str]]] = []

    @property
    def leads(self) -> bool:
        return self.is_leader

    def probed(self, engine: Engine, error: Optional[str]) -> None:
        self.told.append((engine.id, error))
        if self.other is not None:
            checker, pool = self.other
            checker.hear(pool, next(one for one in pool.engines if one.id == engine.id), error)


class SeveralProcessesTest(CheckerCase):
    """Two processes: the first leads."""

    def setUp(self) -> None:
        super().setUp()
        self.peers = [_Peers(), _Peers()]
        self.peers[1].is_leader = False
        specs = [EngineSpec(f"http://{name}:1", id=name) for name in self.engine_names]
        self.pools = [ModelPool(model_from("m", specs), "round_robin", Random(1), lambda: self.now_s) for _ in range(2)]
        self.heard: list[StateChange] = []
        self.checkers = [
            HealthChecker(
                lambda number=number: [self.pools[number]],  # type: ignore[misc]
                (self.changes, self.heard)[number].append,
                interval_s=INTERVAL_S,
                timeout_s=2.0,
                fails=2,
                passes=1,
                housekeeping=self._housekeep,
                probe=self.probes,
                peers=self.peers[number],
            )
            for number in range(2)
        ]
        for number, checker in enumerate(self.checkers):
            self.addCleanup(checker.close)
            self.peers[number].other = (self.checkers[1 - number], self.pools[1 - number])

    def both(self) -> list[list[str]]:
        return [[engine.state for engine in pool.snapshot()] for pool in self.pools]

    def test_the_leader_alone_probes_and_what_it_finds_out_counts_in_both(self) -> None:
        self.tick(self.checkers[1], probed=[])
        self.probes.failing = {"b"}
        self.tick(self.checkers[0])
        self.assertEqual(self.both(), [["up", "down", "up"]] * 2)
        self.assertEqual(sorted(self.peers[0].told, key=str), [("a", None), ("b", mock.ANY), ("c", None)])
        self.assertEqual(self.peers[1].told, [], "what is heard is not told again")
        self.assertEqual((len(self.changes), self.heard), (1, []), "who has found it out says so")

    def test_traffic_vouches_for_no_engine_which_another_process_may_have_no_traffic_for(self) -> None:
        for engine in self.pools[0].engines:
            engine.ok_at_s = self.now_s
        self.tick(self.checkers[0])

    def test_a_failed_probe_is_repeated_soon_as_requests_may_wait_in_another_process(self) -> None:
        self.tick(self.checkers[0])
        self.probes.failing = {"b"}
        with mock.patch.object(prober, "AGAIN_S", 0.01):
            self.probes.seen.clear()
            self.checkers[0].tick()
            self.wait_for_probes()
        self.assertEqual(self.probes.seen.count("b"), 2)
        self.assertEqual(self.both(), [["up", "down", "up"]] * 2)

    def test_the_next_leader_goes_on_where_the_last_one_was(self) -> None:
        self.probes.failing = {"b"}
        self.tick(self.checkers[0])
        self.peers[0].is_leader, self.peers[1].is_leader = False, True
        self.probes.failing = {"c"}
        self.tick(self.checkers[0], probed=[])
        with mock.patch.object(prober, "AGAIN_S", 0.01):
            self.checkers[1].tick()
            self.wait_for_probes()
        self.assertEqual(self.both(), [["up", "up", "down"]] * 2)
        self.assertEqual(self.housekept, 3)

    def test_where_the_leader_has_told_nothing_for_long_another_probes_until_it_does(self) -> None:
        self.tick(self.checkers[0])
        self.probes.failing = {"b"}
        self.tick(self.checkers[1], probed=[])
        self.checkers[1]._heard_s -= prober.SILENT_ROUNDS * INTERVAL_S + 2.1  # it hangs, and is not dead
        with mock.patch.object(prober, "AGAIN_S", 0.01):
            self.checkers[1].tick()
            self.wait_for_probes()
        self.assertEqual(self.both(), [["up", "down", "up"]] * 2)
        self.tick(self.checkers[0])
        self.tick(self.checkers[1], probed=[])

    def test_who_does_not_probe_waits_for_what_the_leader_tells(self) -> None:
        for checker in self.checkers:
            with mock.patch.object(checker, "_arm"):  # its first tick is the test's
                checker.start()
        self.assertFalse(self.checkers[1].probed())
        self.tick(self.checkers[0])
        self.assertTrue(self.checkers[1].probed())


if __name__ == "__main__":
    unittest.main()
