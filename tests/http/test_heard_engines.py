"""What one process of a gateway finds out about engines, and what the others make of it."""

from __future__ import annotations

import unittest
from typing import Any, Optional

from gateway.agreeing.engines import EngineWords
from gateway.inference import InferenceFactory
from gateway.processes.bus import Alone, Bus
from gateway.routing.engine import Engine, ListedModel
from gateway.routing.retry import CANCELLED, OK, Outcome
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec, model_from
from gateway.routing.standing import StateChange
from tests.wires import Wires

URL_A, URL_B = "http://127.0.0.1:9/a", "http://127.0.0.1:9/b"
FLEET = FleetSpec((ModelSpec("m", (EngineSpec(URL_A, id="a"), EngineSpec(URL_B, id="b"))),))
REFUSED = Outcome("refused", "connection refused")
BROKEN = Outcome("error", "it answered 500", status=500)
RESTS = Outcome("rate_limited", "it answered 429", status=429, retry_after_s=20.0)
KEYLESS = Outcome("unauthorized", "it answered 401", status=401)


class Process:
    """One process: its factory, which asks nobody, and what it says of its engines."""

    def __init__(self, case: unittest.TestCase, bus: Bus, fleet: FleetSpec = FLEET) -> None:
        self.bus = bus
        self.changes: list[StateChange] = []
        self.words = EngineWords(bus)
        self.factory = InferenceFactory(
            fleet, health_interval_s=0.0, on_change=self.changes.append, peers=self.words, retry_attempts=0
        )
        case.addCleanup(self.factory.close)
        self.words.bind(self.factory)
        bus.start()
        self.words.learn()

    def engine(self, name: str) -> Engine:
        return next(engine for engine in self.factory.router.pools["m"].engines if engine.id == name)

    def request(self, name: str, outcome: Outcome, times: int = 1) -> None:
        """So many requests end like this at an engine."""
        pool = self.factory.router.pools["m"]
        others = [engine for engine in pool.engines if engine.id != name]
        for _ in range(times):
            lease = pool.acquire((), b"", avoid=others)
            if lease is None or lease.engine.id != name:
                if lease is not None:
                    pool.settle(lease, CANCELLED, 0.1)
                lease = pool.acquire_last_resort(others)
            assert lease is not None
            change = pool.settle(lease, outcome, 0.1)
            if change is not None:
                self.factory.asker._attempts._on_change(change)

    def states(self) -> dict[str, str]:
        return {engine.id: engine.state for engine in self.factory.engines()}


class EngineWordsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.wires = Wires(count=3)

    def process(self, slot: Optional[int] = None, fleet: FleetSpec = FLEET) -> Process:
        return Process(self, self.wires.bus(slot), fleet)

    def three(self) -> list[Process]:
        return [self.process() for _ in range(3)]

    def assert_all(self, processes: list[Process], **states: str) -> None:
        for process in processes:
            self.assertEqual(process.states(), {"a": "up", "b": "up", **states}, process.bus.slot)

    def told(self, topic: str) -> list[Any]:
        return [what for _, said, what in self.wires.told if said == topic]

    def test_an_engine_that_a_request_has_shown_to_be_out_is_out_everywhere_by_one_message(self) -> None:
        for outcome, times, state in ((REFUSED, 1, "down"), (BROKEN, 5, "open"), (RESTS, 1, "resting")):
            with self.subTest(state=state):
                self.wires = Wires(count=3)
                processes = self.three()
                processes[1].request("a", outcome, times)
                self.assert_all(processes, a=state)
                self.assertEqual(self.wires.topics(), ["state"])
                self.assertEqual([len(process.changes) for process in processes], [0, 1, 0], "who has found it says so")
                last = [process.engine("a").last_error for process in processes]
                self.assertEqual(set(last), {outcome.message})

    def test_an_engine_that_is_asked_with_a_bad_key_is_misconfigured_everywhere(self) -> None:
        processes = self.three()
        processes[2].request("b", KEYLESS)
        self.assert_all(processes, b="misconfigured")

    def test_how_long_it_is_out_is_told(self) -> None:
        processes = self.three()
        processes[0].request("a", RESTS)
        processes[0].request("b", BROKEN, 5)
        mine, theirs = (
            [process.engine("a").out_until_s, process.engine("b").breaker.until_s] for process in processes[:2]
        )
        for one, other in zip(mine, theirs):
            self.assertAlmostEqual(one, other, delta=1.0)

    def test_an_engine_that_is_well_again_is_so_everywhere(self) -> None:
        processes = self.three()
        processes[0].request("a", REFUSED)
        processes[0].request("b", BROKEN, 5)
        self.assert_all(processes, a="down", b="open")
        processes[1].request("b", OK)  # as the last that there is
        processes[2].request("a", OK)
        self.assert_all(processes)
        self.assertEqual(self.wires.topics(), ["state"] * 4)

    def test_requests_that_change_nothing_tell_nothing(self) -> None:
        processes = self.three()
        processes[0].request("a", OK, 50)
        processes[0].request("a", BROKEN, 2)
        self.assertEqual(self.wires.told, [])

    def test_two_that_find_the_same_out_at_once_do_not_answer_each_other(self) -> None:
        first, second = self.process(), self.process()
        for process in (first, second):
            process.bus.tell = lambda topic, what, own=process.bus: self.wires.told.append((own.slot, topic, what))  # type: ignore[method-assign,misc]
        first.request("a", BROKEN, 5)
        second.request("a", BROKEN, 5)
        told, self.wires.told = self.wires.told, []
        for slot, _, what in told:
            other = (second, first)[slot]
            other.factory.hearing.state(*what)
        self.assertEqual(len(told), 2)
        self.assertEqual(self.wires.told, [])
        self.assert_all([first, second], a="open")

    def test_a_failed_trial_in_one_process_keeps_the_others_away(self) -> None:
        processes = self.three()
        processes[0].request("a", BROKEN, 5)
        breaker = processes[1].engine("a").breaker
        before_s = breaker.until_s
        processes[2].engine("a").breaker.until_s = 0.0
        processes[2].request("a", BROKEN)
        self.assertGreater(breaker.until_s, before_s)
        self.assert_all(processes, a="open")

    # --- the leader's ------------------------------------------------------------------------------------------------

    def test_one_process_leads(self) -> None:
        self.assertEqual([process.words.leads for process in self.three()], [True, False, False])
        self.assertTrue(EngineWords(Alone()).leads)

    def test_a_probe_counts_as_if_each_had_made_it(self) -> None:
        processes = self.three()
        leader = processes[0]
        for error in (None, "no answer", "no answer"):
            pool = leader.factory.router.pools["m"]
            pool.record_probe(leader.engine("a"), error, 2, 1)
            leader.words.probed(leader.engine("a"), error)
        self.assert_all(processes, a="down")
        self.assertEqual([process.engine("a").last_error for process in processes], ["no answer"] * 3)
        leader.words.probed(leader.engine("a"), None)
        self.assertEqual([process.states()["a"] for process in processes], ["down", "up", "up"])

    def test_models_that_an_engine_lists_are_offered_everywhere(self) -> None:
        spec = model_from("*", [EngineSpec(URL_A, id="a")])
        fleet = FleetSpec((ModelSpec("m", (EngineSpec(URL_B, id="b"),)),), groups=(spec,))
        processes = [self.process(fleet=fleet) for _ in range(2)]
        source = next(iter(processes[0].factory.router.sources.values())).engines[0]
        source.listed = (ListedModel("one", 4096), ListedModel("two"))
        processes[0].factory._offered.relist(source)
        processes[0].words.listed(source)
        for process in (*processes, self.process(fleet=fleet)):
            self.assertEqual(sorted(process.factory.router.pools), ["m", "one", "two"], process.bus.slot)
            self.assertEqual(process.factory.router.pools["one"].spec.max_model_len, 4096)
        processes[0].words.listed(source)  # nothing new: nothing happens

    # --- operators ---------------------------------------------------------------------------------------------------

    def test_an_operators_word_to_one_is_a_word_to_all(self) -> None:
        processes = self.three()
        processes[1].factory.set_draining("a", True, "m")
        processes[1].words.drain("a", True, "m")
        processes[1].factory.set_weight("b", 7, None)
        processes[1].words.weigh("b", 7, None)
        self.assert_all(processes, a="draining")
        self.assertEqual([process.engine("b").weight for process in processes], [7] * 3)
        processes[2].factory.set_draining("a", False, None)
        processes[2].words.drain("a", False, None)
        self.assert_all(processes)
        self.assertEqual(self.wires.topics(), ["drain", "weight", "drain"])
        self.assertEqual([len(process.changes) for process in processes], [0, 1, 1])

    def test_an_engine_that_is_not_known_here_is_passed_over(self) -> None:
        one = self.process()
        other = self.process(fleet=FleetSpec((ModelSpec("n", (EngineSpec(URL_A, id="x"),)),)))
        other.factory.set_draining("x", True)
        other.words.drain("x", True, None)
        other.words.probed(other.factory.router.pools["n"].engines[0], "gone")
        self.wires.buses[1].tell("state", ["n", "x", URL_A, "down", 0.0, None])
        self.wires.buses[1].tell("list", ["n", "x", URL_A, [["y", None]]])
        self.assert_all([one])

    # --- a new process -----------------------------------------------------------------------------------------------

    def test_a_new_process_knows_what_the_others_know(self) -> None:
        processes = self.three()[:2]
        self.wires.end(self.wires.buses[2])
        processes[1].request("a", RESTS)
        processes[1].request("b", BROKEN, 5)
        processes[0].factory.set_weight("a", 5)
        processes[0].words.weigh("a", 5, None)
        new = self.process(slot=2)
        self.assert_all([*processes, new], a="resting", b="open")
        self.assertEqual((new.engine("a").weight, new.engine("b").weight), (5, 1))
        self.assertAlmostEqual(new.engine("a").out_until_s, processes[1].engine("a").out_until_s, delta=1.0)
        self.assertEqual(new.engine("b").last_error, "it answered 500")
        self.assertEqual(new.changes, [])

    def test_a_new_process_believes_the_leader_and_another_if_that_does_not_answer(self) -> None:
        leader, other = self.process(), self.process()
        for process, state in ((leader, "down"), (other, "resting")):
            process.factory.router.pools["m"].hear("a", state, 60.0)
        self.wires.buses.reverse()  # the leader's answer is the last
        self.assertEqual(self.process(slot=2).states()["a"], "down")
        leader.bus.silent = self.wires.buses[-1].silent = True  # type: ignore[attr-defined]
        self.assertEqual(self.process(slot=3).states()["a"], "resting")

    def test_a_new_process_takes_off_how_long_the_answer_has_taken(self) -> None:
        one = self.process()
        one.request("a", RESTS)
        one.request("b", BROKEN, 5)
        one.bus.on("standings", lambda what, slot: {**(told := one.words._asked(what, slot)), "at_s": told["at_s"] - 2})
        new = self.process()
        for mine, theirs in (
            (new.engine("a").out_until_s, one.engine("a").out_until_s),
            (new.engine("b").breaker.until_s, one.engine("b").breaker.until_s),
        ):
            self.assertAlmostEqual(mine, theirs - 2, delta=1.0)

    def test_an_engine_that_is_drained_stays_so_when_the_process_that_was_told_is_gone(self) -> None:
        processes = self.three()
        processes[0].factory.set_draining("a", True)
        processes[0].words.drain("a", True, None)
        self.wires.end(self.wires.buses[0])
        self.assert_all([processes[1], self.process(slot=0)], a="draining")

    def test_weights_of_the_file_are_not_told_as_an_operators(self) -> None:
        self.process(
            fleet=FleetSpec((ModelSpec("m", (EngineSpec(URL_A, id="a", weight=9), EngineSpec(URL_B, id="b"))),))
        )
        self.assertEqual(self.process().engine("a").weight, 1)

    def test_after_a_reload_nobody_learns_what_it_has_forgotten(self) -> None:
        one, other = self.process(), self.process()
        one.factory.set_weight("a", 5)
        one.words.weigh("a", 5, None)
        one.request("b", RESTS)
        other.factory.reload(FLEET)
        other.words.learn(lists_only=True)
        self.assertEqual(other.engine("a").weight, 1)
        fleet = FleetSpec((ModelSpec("m", (EngineSpec(URL_A, id="a", api_key_env="KEY"), EngineSpec(URL_B, id="b"))),))
        both = [self.process(slot=slot, fleet=fleet) for slot in (3, 4)]
        both[0].request("a", KEYLESS)
        self.assertEqual([process.states()["a"] for process in both], ["misconfigured"] * 2)
        for process in both:
            process.factory.reload(fleet, {"KEY": "right"})
            process.words.learn(lists_only=True)
        self.assert_all(both, b="resting")

    def test_a_new_process_which_may_have_another_key_or_file_learns_neither(self) -> None:
        one = self.process()
        one.request("a", KEYLESS)
        one.factory.set_weight("b", 7)
        fleet = FleetSpec((ModelSpec("m", (EngineSpec(URL_A, id="a"), EngineSpec(URL_B, id="b", weight=3))),))
        new = self.process(fleet=fleet)
        self.assert_all([new])
        self.assertEqual(new.engine("b").weight, 3)

    def test_what_is_in_flight_elsewhere_is_asked_for(self) -> None:
        processes = self.three()
        for process in processes[1:]:
            process.factory.router.pools["m"].acquire((), b"", avoid=[process.engine("b")])
        self.assertEqual(processes[0].words.in_flight(), {("m", "a"): 2})
        self.assertEqual(processes[1].words.in_flight(), {("m", "a"): 1})

    def test_a_process_by_itself_tells_and_asks_nobody(self) -> None:
        alone = Process(self, Alone())
        alone.request("a", REFUSED)
        alone.words.drain("a", True, None)
        self.assertFalse(alone.words.shares)
        self.assertEqual(alone.words.in_flight(), {})


if __name__ == "__main__":
    unittest.main()
