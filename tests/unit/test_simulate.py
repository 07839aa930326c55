"""The simulator by behaviour: the shipped classes see what they would see, nothing is lost, and every strategy gets the
same requests."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import platform
import re
import sqlite3
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from gateway.limits.quotas import KeyLimits, RateLimits
from gateway.routing.specs import STRATEGIES
from gateway.tools.loadtest.durations import duration_s
from gateway.tools.simulate.arrivals import arrivals, trace
from gateway.tools.simulate.command import main
from gateway.tools.simulate.distributions import Zipf, distribution, mixed, number
from gateway.tools.simulate.draws import rows
from gateway.tools.simulate.faults import faults
from gateway.tools.simulate.request import Attempt, Request
from gateway.tools.simulate.scenario import Fleet, Rules, Scenario, Work
from gateway.tools.simulate.simulator import Run, simulate
from gateway.tools.simulate.virtual import MODEL, STANDBY

BASE = Scenario(
    fleet=Fleet(engines=8, slots=4),
    arrivals=arrivals("poisson:50/s"),
    work=Work(service=distribution("exponential:300ms", duration_s)),
    duration_s=20.0,
    seed=5,
)


def work(text: str, **more: Any) -> Work:
    return Work(service=distribution(text, duration_s), **more)


class SimulatedTest(unittest.TestCase):
    def run_of(self, scenario: Scenario, strategy: str = "round_robin") -> Run:
        """A run in which nothing was lost and nothing is held at its end."""
        run = simulate(scenario, strategy)
        found = run.measures
        self.assertEqual(run.unanswered, 0)
        self.assertEqual(found.arrived, found.answered + sum(found.failures.values()))
        for machines in run.machines.values():
            self.assertEqual([(one.load, one.running) for one in machines if one.load or one.running], [])
        for gateway in run.gateways:
            for pool in gateway.route:
                self.assertEqual([engine.in_flight for engine in pool.engines if engine.in_flight], [])
                self.assertEqual(pool.waiting, 0)
        return run

    def test_every_strategy_gets_the_same_requests(self) -> None:
        seen = []
        for strategy in STRATEGIES:
            found = self.run_of(replace(BASE, fleet=Fleet(engines=8, slots=1000)), strategy).measures
            seen.append((found.arrived, found.latency.total, found.first_token.total))
        self.assertEqual(len(set(seen)), 1, seen)  # without waits, it is all in the requests
        self.assertGreater(seen[0][0], 800)

    def test_the_same_seed_gives_the_same_again_and_another_one_does_not(self) -> None:
        def figures(seed: int) -> tuple[int, int, int]:
            hit = replace(BASE, seed=seed, faults=faults("kill:2@5s-9s error:2,0.5@3s"))
            found = self.run_of(hit, "power_of_two").measures
            return found.answered, found.latency.total, found.retries

        self.assertEqual(figures(5), figures(5))
        self.assertNotEqual(figures(5), figures(6))

    def test_an_engine_that_is_killed_costs_retries_and_no_request(self) -> None:
        for strategy in STRATEGIES:
            run = self.run_of(replace(BASE, faults=faults("kill:2@5s-15s")), strategy)
            self.assertEqual(dict(run.measures.failures), {}, strategy)
            self.assertGreater(run.measures.retried, 0)
            self.assertEqual(run.measures.moments[60].out, 2)  # in the middle
            self.assertEqual(run.measures.moments[-1].out, 0)

    def test_a_fleet_that_is_dead_answers_with_errors_at_once_and_comes_back(self) -> None:
        found = self.run_of(replace(BASE, faults=faults("kill:100%@5s-10s"))).measures
        self.assertEqual(set(found.failures), {"backend_unavailable"})
        self.assertGreater(found.failures["backend_unavailable"], 100)
        self.assertEqual(found.moments[-1].failed, 0)

    def test_what_hangs_behind_a_partition_is_asked_elsewhere(self) -> None:
        hit = replace(BASE, faults=faults("partition:2@5s-60s"), duration_s=30.0)
        found = self.run_of(hit, "least_connections").measures
        self.assertEqual(dict(found.failures), {})
        # Two probes, 2 s each, a second apart, and up to five until the first: then it leaves.
        self.assertLess(found.latency.largest / 1e9, 20.0)
        self.assertGreater(found.latency.largest / 1e9, 2.0)

    def test_an_engine_that_answers_errors_is_left_alone_by_its_breaker(self) -> None:
        run = self.run_of(replace(BASE, faults=faults("error:1,1@0s"), duration_s=60.0))
        self.assertEqual(dict(run.measures.failures), {})
        broken = next(machine for machine in run.machines[MODEL] if machine.error_share)
        self.assertEqual(broken.served, 0)
        # Round robin would have sent it an eighth of 3000.
        self.assertLess(run.measures.retries, 120)

    def test_an_engine_that_is_rate_limited_rests(self) -> None:
        run = self.run_of(replace(BASE, faults=faults("limited:1,1@0s"), duration_s=30.0))
        self.assertEqual(dict(run.measures.failures), {})
        self.assertLess(run.measures.retries, 45)  # one a second, which it asks for, and those under way then

    def test_a_slow_engine_gets_less_by_least_connections(self) -> None:
        hit = replace(BASE, faults=faults("slow:1,10@0s"), arrivals=arrivals("poisson:80/s"))
        turns = self.run_of(hit, "round_robin")
        least = self.run_of(hit, "least_connections")
        slow = [one.slowness > 1 for one in turns.machines[MODEL]].index(True)
        self.assertLess(least.machines[MODEL][slow].served, turns.machines[MODEL][slow].served / 2)
        self.assertLess(least.measures.latency.mean or 0.0, turns.measures.latency.mean or 0.0)

    def test_hedges_shorten_the_tail_that_hiccups_make_and_keep_their_share(self) -> None:
        scenario = replace(BASE, work=work("constant:100ms", hiccup=(0.02, 30.0)), duration_s=60.0)
        plain = self.run_of(scenario, "power_of_two").measures
        rules = Rules(hedge_after_ms=300, hedge_ratio=0.05)
        hedged = self.run_of(replace(scenario, rules=rules), "power_of_two").measures
        self.assertEqual(plain.hedged, 0)
        self.assertGreater(hedged.hedges_won, 10)
        self.assertLessEqual(hedged.hedged, 0.06 * hedged.arrived)
        self.assertLess(hedged.latency.percentiles([99])[0] or 0, (plain.latency.percentiles([99])[0] or 0) / 3)

    def test_workers_and_their_queue_bound_what_is_inside(self) -> None:
        rules = Rules(workers=5, queue_size=3)
        found = self.run_of(replace(BASE, rules=rules)).measures
        # 15 Erlang on 5 + 3 places: Erlang's loss formula has M/M/5/8 refuse 67 %.
        self.assertAlmostEqual(found.failures["overloaded"] / found.arrived, 0.67, delta=0.04)

    def test_who_waits_for_a_worker_for_too_long_is_told_so(self) -> None:
        rules = Rules(workers=1, queue_size=50, queue_timeout_s=2.0)
        scenario = replace(BASE, rules=rules, work=work("constant:3s"), arrivals=arrivals("constant:2/s"))
        failures = self.run_of(scenario).measures.failures
        self.assertGreater(failures["queue_timeout"] + failures["overloaded"], 25)

    def test_many_jobs_that_fail_at_once_do_not_nest(self) -> None:
        rules = Rules(workers=1, queue_size=100_000, queue_timeout_s=300.0, retry_attempts=1)
        scenario = replace(BASE, rules=rules, arrivals=arrivals("poisson:500/s"), faults=faults("kill:100%@5s"))
        self.run_of(replace(scenario, work=work("constant:6s")))

    def test_a_limit_of_all_requests_lets_as_many_pass_as_it_says(self) -> None:
        rules = Rules(everybody=RateLimits(rpm=600))
        found = self.run_of(replace(BASE, rules=rules, duration_s=60.0)).measures
        self.assertAlmostEqual(found.answered, 60 + 600, delta=1)  # a tenth at once, and the minute's

    def test_a_key_has_its_concurrency(self) -> None:
        rules = Rules(key_limits=KeyLimits(concurrency=2), keys=3)
        found = self.run_of(replace(BASE, rules=rules)).measures
        # Three M/M/2/2 with 5 Erlang each: Erlang's loss formula has 67.6 % refused.
        self.assertAlmostEqual(found.failures["rate_limit_exceeded"] / found.arrived, 0.676, delta=0.04)

    def test_a_prefix_finds_its_cache_by_prefix_affinity(self) -> None:
        scenario = replace(BASE, fleet=Fleet(engines=8, slots=4, cache=5), work=work("constant:100ms", prefixes=100))
        hits = {name: self.run_of(scenario, name).machines[MODEL] for name in ("round_robin", "prefix_affinity")}
        counts = {name: sum(machine.hits for machine in machines) for name, machines in hits.items()}
        self.assertGreater(counts["prefix_affinity"], 1.5 * counts["round_robin"])

    def test_a_stream_gives_its_worker_back_with_its_first_event(self) -> None:
        streams = replace(BASE, work=work("constant:1s", stream_share=1.0, first_share=0.1), rules=Rules(workers=8))
        found = self.run_of(replace(streams, arrivals=arrivals("constant:30/s"))).measures
        self.assertEqual(dict(found.failures), {})  # 3 wait for a first event on average, 30 are open
        self.assertAlmostEqual((found.first_token.mean or 0) / 1e9, 0.1, delta=0.01)
        self.assertAlmostEqual((found.latency.mean or 0) / 1e9, 1.0, delta=0.05)

    def test_a_stream_that_breaks_is_told_and_counted(self) -> None:
        streams = replace(BASE, work=work("constant:1s", stream_share=1.0), faults=faults("kill:2@5s"))
        self.assertEqual(set(self.run_of(streams).measures.failures), {"stream_broken"})

    def test_another_model_stands_in(self) -> None:
        scenario = replace(BASE, standby=Fleet(engines=4, slots=8), faults=faults("kill:100%@5s"))
        run = self.run_of(scenario)
        self.assertEqual(dict(run.measures.failures), {})
        self.assertEqual(run.measures.fallbacks, sum(machine.served for machine in run.machines[STANDBY]))
        self.assertGreater(run.measures.fallbacks, 500)

    def test_a_batch_survives_all_that_befalls_it(self) -> None:
        told = "kill:2@3s-6s partition:2@4s-9s slow:3,2@5s-10s flap:1,1s@2s-12s error:2,0.3@1s limited:1,0.5@2s"
        fleet = Fleet(engines=10, slots=16, batching=0.1, max_concurrency=12)
        rules = Rules(hedge_after_ms=500, workers=150)
        scenario = replace(BASE, fleet=fleet, faults=faults(told), rules=rules, work=work("exponential:300ms"))
        for share in (0.0, 0.5):
            scenario = replace(scenario, work=work("exponential:300ms", stream_share=share))
            for strategy in STRATEGIES:
                found = self.run_of(scenario, strategy).measures
                self.assertLess(sum(found.failures.values()), 0.03 * found.arrived, (strategy, found.failures))

    def test_gateways_that_do_not_know_of_each_other_balance_worse(self) -> None:
        scenario = replace(BASE, arrivals=arrivals("poisson:85/s"), duration_s=60.0)
        one = self.run_of(scenario, "least_connections").measures
        eight = self.run_of(replace(scenario, gateways=8), "least_connections").measures
        self.assertEqual(one.arrived, eight.arrived)
        self.assertGreater(eight.waited.mean or 0.0, 1.5 * (one.waited.mean or 0.0))

    def test_gateways_that_go_round_do_not_meet_at_every_engine(self) -> None:
        work_s = work("exponential:300ms")
        scenario = replace(
            BASE, fleet=Fleet(200, slots=4), arrivals=arrivals("poisson:2000/s"), work=work_s, duration_s=5.0
        )
        one = self.run_of(scenario).measures
        many = self.run_of(replace(scenario, gateways=16)).measures
        self.assertLess(many.waited.mean or 0.0, 4 * (one.waited.mean or 0.0))

    def test_a_retry_budget_keeps_a_sick_fleet_from_being_hammered(self) -> None:
        rules = Rules(retry_attempts=10, breaker=BASE.rules.breaker._replace(min_requests=1_000_000))
        scenario = replace(BASE, rules=rules, faults=faults("error:100%,0.9@0s"), duration_s=60.0)
        found = self.run_of(scenario).measures
        self.assertLess(found.retries, 0.25 * found.arrived)
        self.assertGreater(found.retries, 0.15 * found.arrived)

    @unittest.skipUnless(platform.python_implementation() == "CPython", "a collector decides when they are gone")
    def test_a_run_remembers_no_request(self) -> None:
        hit = replace(BASE, faults=faults("kill:2@3s-6s error:2,0.3@5s"), rules=Rules(hedge_after_ms=300))
        run = simulate(hit, "latency")
        gc.collect()
        self.assertEqual([one for one in gc.get_objects() if isinstance(one, (Request, Attempt))], [])
        self.assertGreater(run.measures.answered, 500)


class ChanceTest(unittest.TestCase):
    def test_laws_have_the_mean_that_they_say(self) -> None:
        for text in ("constant:2", "exponential:2", "lognormal:2,0.5", "gamma:2,3", "uniform:1,4", "3"):
            law = distribution(text, number)
            chance = Random(1)
            mean = sum(law.draw(chance) for _ in range(40_000)) / 40_000
            self.assertAlmostEqual(mean / law.mean, 1.0, delta=0.02, msg=text)

    def test_arrivals_have_the_rate_that_they_say(self) -> None:
        for text in (
            "poisson:90/s",
            "constant:90/s",
            "ramp:10/s,190/s",
            "diurnal:20/s,200/s,50s",
            "burst:50/s,300/s,2s,1s",
        ):
            known = arrivals(text)
            times = list(known.times(Random(2), 300.0))
            self.assertEqual(times, sorted(times))
            self.assertLess(times[-1], 300.0)
            self.assertAlmostEqual(len(times) / 300 / known.mean_rate(300.0), 1.0, delta=0.06, msg=text)

    def test_a_trace_begins_with_its_first_time(self) -> None:
        known = trace("t", [100.0, 101.5, 103.0])
        self.assertEqual(list(known.times(Random(1), 2.0)), [0.0, 1.5])
        self.assertAlmostEqual(known.mean_rate(2.0), 2 / 3)

    def test_the_popular_come_more_often(self) -> None:
        values = Zipf(10, 1.0).values(Random(1))
        drawn = [next(values) for _ in range(20_000)]
        self.assertAlmostEqual(drawn.count(0) / drawn.count(9), 10.0, delta=1.5)

    def test_what_is_mixed_is_spread_evenly(self) -> None:
        drawn = [mixed(7, n, 0, 1) for n in range(20_000)]
        self.assertAlmostEqual(sum(drawn) / len(drawn), 0.5, delta=0.01)
        self.assertAlmostEqual(sum(one < 0.1 for one in drawn) / len(drawn), 0.1, delta=0.01)
        self.assertNotEqual(mixed(7, 1, 0, 1), mixed(7, 1, 1, 1))

    def test_a_request_needs_the_same_whatever_else_is_asked_for(self) -> None:
        plain = list(rows(BASE, 0.0))
        keys = list(rows(replace(BASE, rules=Rules(keys=9), gateways=3), 0.0))
        self.assertEqual([row[:6] for row in plain], [row[:6] for row in keys])
        self.assertEqual({row[7] for row in keys}, set(range(9)))

    def test_tokens_make_the_time_where_each_has_its_own(self) -> None:
        tokens = Work(service=None, first=distribution("200ms", duration_s), per_token=distribution("10ms", duration_s))
        for row in list(rows(replace(BASE, work=tokens), 0.0))[:50]:
            self.assertAlmostEqual(row[2], 0.2 + 0.01 * (row[5] - 1))
            self.assertEqual(row[3], 0.2)

    def test_faults_are_read_and_hit_the_same_engines_each_time(self) -> None:
        (fault,) = faults("kill:20%@60s-2m")
        self.assertEqual((fault.kind, fault.share, fault.begin_s, fault.end_s), ("kill", 0.2, 60.0, 120.0))
        self.assertEqual(len(set(fault.hits(50, 1))), 10)
        self.assertEqual(fault.hits(50, 1), fault.hits(50, 1))
        self.assertEqual(len(faults("slow:3,4x@1s; error:1,50%@2s flap:2,500ms@3s-9s")), 3)
        for wrong in (
            "kill:1",
            "melt:1@2s",
            "kill:1,2@3s",
            "slow:1@3s",
            "kill:1@5s-4s",
            "error:1,2@1s",
            "kill:101%@1s",
        ):
            with self.assertRaises(ValueError, msg=wrong):
                faults(wrong)


class CommandTest(unittest.TestCase):
    def said(self, *argv: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(argv, "simulate")
        return status, out.getvalue(), err.getvalue()

    def test_it_tells_by_table_json_and_page(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            told, shown = Path(folder) / "r.json", Path(folder) / "r.html"
            arguments = "--engines 5 -s all --arrivals poisson:40/s --duration 10 --faults kill:1@3s --price 1,2"
            files = ("--json", str(told), "--html", str(shown), "--hedge-after", "p95")
            status, out, err = self.said(*arguments.split(), "--prefixes", "20,1", "--cache", "4", *files)
            self.assertEqual((status, err), (0, ""))
            result = json.loads(told.read_text("utf-8"))
            page = shown.read_text("utf-8")
        self.assertEqual([one["strategy"] for one in result["strategies"]], list(STRATEGIES))
        for one in result["strategies"]:
            self.assertIn(one["strategy"], out)
            self.assertIn(one["strategy"], page)
            self.assertGreater(one["latency"]["p99_ms"], one["latency"]["p50_ms"])
            self.assertGreater(one["cost_usd"], 0)
            self.assertEqual(len(one["timeline"]), 120)
        self.assertEqual(len({one["requests"] for one in result["strategies"]}), 1)
        self.assertNotIn("<script", page)
        charts = re.findall("<h3>([^<]*)</h3>", page)
        compared = ("Latency p50", "Latency p95", "Latency p99", "First token p50", "First token p95", "Utilisation")
        self.assertLessEqual({*compared, "Imbalance", "Retried", "Hedged", "Cache hits", "Cost"}, set(charts))
        self.assertEqual(page.count('<li class="blue"><span>round_robin</span>'), charts.index("p50"))
        self.assertIn("p95", charts)  # over time, as the others

    def test_what_cannot_be_is_said_with_its_name(self) -> None:
        for argument, word in (
            ("--strategy=fastest", "least_connections"),
            ("--arrivals=often", "poisson:RATE"),
            ("--service=lognormal:1", "MEDIAN,SIGMA"),
            ("--faults=kill:11@1s", "11 engines"),
            ("--engines=0", "whole number"),
            ("--warmup=60", "--warmup"),
            ("--from=/nowhere/at/all", "--from"),
            ("--json=/nowhere/at/all/x", "--json"),
            ("--arrivals=trace:/nowhere", "/nowhere"),
            ("--limit=rps:3", "rpm:N"),
        ):
            status, out, err = self.said(argument)
            self.assertEqual((status, out), (2, ""), argument)
            self.assertIn(word, err, argument)

    def test_help_names_the_laws(self) -> None:
        status, out, _ = self.said("--help")
        self.assertEqual(status, 0)
        for word in ("lognormal:MEDIAN,SIGMA", "burst:", "KIND:WHO"):
            self.assertIn(word, out)
        self.assertIn("'kill:20%@20s-40s'", out)  # may be pasted

    def test_a_log_of_decisions_gives_arrivals_and_service(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "decisions.jsonl"
            lines: list[dict[str, Any]] = [{"op": "start", "seed": 1}]
            for index in range(400):
                lines.append({"op": "acquire", "tried": [], "now_s": 50 + index * 0.05})
                lines.append({"op": "settle", "outcome": "ok", "duration_s": 0.2, "held_s": 0.25})
                lines.append({"op": "settle", "outcome": "error", "duration_s": 9.0, "held_s": 9.0})
            log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"op": "acq', "utf-8")
            status, out, err = self.said("--from", str(log), "--duration", "20", "--warmup", "0", "--json", "-")
            log.rename(f"{log}.0")
            self.assertIn("decisions.jsonl.0", self.said("--from", str(log))[2])
        self.assertEqual(status, 0, err)
        (one,) = json.loads(out)["strategies"]
        self.assertEqual(one["requests"], 400)
        self.assertAlmostEqual(one["latency"]["p50_ms"], 250, delta=2)

    def test_a_ledger_gives_arrivals_and_service(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.db"
            connection = sqlite3.connect(path)
            connection.execute(
                "CREATE TABLE ledger (ts_unix_s REAL, prompt_tokens INT, completion_tokens INT, latency_s REAL,"
                " status INT, error TEXT)"
            )
            good = [(1e9 + index * 0.1 + 0.3, 10, 20, 0.3, 200, None) for index in range(300)]
            connection.executemany("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)", good)
            connection.execute("INSERT INTO ledger VALUES (1e9, 1, 1, 50.0, 502, 'backend_error')")
            connection.commit()
            connection.close()
            status, out, err = self.said("--from", str(path), "--duration", "20", "--warmup", "0", "--json", "-")
            self.assertEqual(status, 0, err)
            (one,) = json.loads(out)["strategies"]
            self.assertAlmostEqual(one["requests"], 200, delta=1)
            self.assertAlmostEqual(one["latency"]["p99_ms"], 300, delta=3)
            other = Path(folder) / "other.txt"
            other.write_text("hello\n", "utf-8")
            self.assertEqual(self.said("--from", str(other))[0], 2)


if __name__ == "__main__":
    unittest.main()
