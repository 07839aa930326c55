"""Recorded decisions come out the same when they are repeated, and what was changed in the file is found."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import threading
import unittest
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Callable, Optional

from gateway.configuration import ConfigurationError
from gateway.routing.breaker import BreakerPolicy
from gateway.routing.engine import Engine
from gateway.routing.line import Lease, Waiter
from gateway.routing.pool import ModelPool
from gateway.routing.retry import Outcome
from gateway.routing.router import Router
from gateway.routing.specs import STRATEGIES, EngineSpec, FleetSpec, ModelSpec
from gateway.routing.tries import Step, Tries
from gateway.settings import Settings
from gateway.telemetry.events import OUTCOMES
from gateway.tools import decisionlog
from gateway.tools.decisionlog import DecisionLog, header, refuse_unwritable
from gateway.tools.replay import main, replay
from tests.support import TIMEOUT_S, eventually, load_settings

SERVERS = 5


def engine(number: int, rng: Random) -> EngineSpec:
    """An engine on one of a few servers, so that several models share them and ids come again after a reload."""
    return EngineSpec(
        f"http://127.0.0.1:{9000 + number}/v1",
        weight=rng.choice((1, 1, 2, 3)),
        max_concurrency=rng.choice((None, 1, 2, 3)),
    )


def model(name: str, strategy: Optional[str], rng: Random) -> ModelSpec:
    servers = sorted(rng.sample(range(SERVERS), rng.randint(1, 4)))
    hedge_after_ms = rng.choice((None, 50, "p95"))
    engines = tuple(engine(number, rng) for number in servers)
    return ModelSpec(name, engines, strategy=strategy, hedge_after_ms=hedge_after_ms)


def placed(spec: ModelSpec) -> ModelSpec:
    """The model with engines in regions."""
    regions = ("eu-west", "us", "eu-north", None, "eu-west")
    return replace(spec, engines=tuple(replace(e, region=regions[e.port % SERVERS]) for e in spec.engines))


class Asking:
    """One request under way: it holds a place, or waits in a line for one."""

    def __init__(self, tries: Tries, pool: ModelPool, lease: Optional[Lease], waiter: Optional[Waiter]) -> None:
        self.tries = tries
        self.pool = pool
        self.lease = lease
        self.waiter = waiter


class Turmoil:
    """Random requests, outcomes, probes, drains, reloads and looks at one router, on a clock of its own."""

    def __init__(self, settings: Settings, seed: int, record: Callable[[dict[str, Any]], None], reloads: bool) -> None:
        self.rng = Random(seed)
        self.now_s = self.rng.uniform(0.0, 100_000.0)
        self.router = Router(
            settings.fleet,
            strategy=settings.strategy,
            fallback=settings.fallback,
            rng=Random(seed),
            clock=lambda: self.now_s,
            breaker=BreakerPolicy(
                settings.breaker_window_s,
                settings.breaker_min_requests,
                settings.breaker_failure_ratio,
                settings.breaker_open_s,
                settings.breaker_max_open_s,
            ),
            recorder=record,
            region=settings.region,
            scattered=settings.has_peers,
        )
        self.regional = settings.region is not None
        self.reloads = reloads
        self.asking: list[Asking] = []
        self.faulty: dict[str, float] = {}
        self.known: list[tuple[ModelPool, Engine]] = []  # also those that a reload has removed
        self.refresh()

    def refresh(self) -> None:
        for pool in self.router.pools.values():
            self.known.extend((pool, e) for e in pool.engines if (pool, e) not in self.known)

    def run(self, steps: int) -> None:
        actions = (
            *(self.ask,) * 12,
            *(self.end,) * 12,
            *(self.probe,) * 3,
            *(self.look,) * 3,
            *(self.serve,) * 2,
            *(self.first_event,) * 3,
            self.hedge,
            self.leave,
            self.drain,
            self.weigh,
            self.hint,
            self.weather,
        )
        for _ in range(steps):
            self.now_s += self.rng.choice((0.0, 0.001, 0.02, 0.3)) * self.rng.random()
            if self.rng.random() < 0.01:
                self.now_s += self.rng.choice((1.0, 5.0, 30.0))
            if self.reloads and self.rng.random() < 0.01:
                self.reload()
            self.rng.choice(actions)()

    def ask(self) -> None:
        route = self.router.route(self.rng.choice(list(self.router.pools)), self.rng.random() < 0.8)
        affinity = b"session-%d" % self.rng.randrange(20) if self.rng.random() < 0.8 else b""
        priority = self.rng.choice(("high", "normal", "low"))
        avoid = tuple(self.rng.sample(route[0].engines, 1)) if self.rng.random() < 0.1 else ()
        residency = self.rng.choice(("", "eu", "eu-west", "us")) if self.regional else ""
        tries = Tries(route, 3, affinity, priority, self.router.jitter, avoid, residency=residency)
        self.follow(tries, tries.next())

    def follow(self, tries: Tries, step: Optional[Step]) -> None:
        if step is not None:
            self.asking.append(Asking(tries, step.pool, step.lease, step.waiter))

    def outcome(self, engine_id: str) -> Outcome:
        if self.rng.random() >= self.faulty.get(engine_id, 0.1):
            return Outcome("ok")
        kind = self.rng.choice(sorted(OUTCOMES))
        return Outcome(kind, "it failed", None, self.rng.choice((None, 0.0, 0.5, 7.0)))

    def end(self) -> None:
        """A request's place comes free, or one in a line learns that it has been handed one."""
        if not self.asking:
            return
        one = self.asking.pop(self.rng.randrange(len(self.asking)))
        if one.waiter is not None:
            if not one.waiter.ready.is_set():
                self.asking.append(one)
                return
            one.lease = one.pool.leave_line(one.waiter)
            if one.lease is None:  # no engine is left to wait for
                self.follow(one.tries, one.tries.next())
                return
            one.tries.granted(one.pool, one.lease)
            one.waiter = None
        assert one.lease is not None
        outcome = self.outcome(one.lease.engine.id)
        took_s = self.rng.random() * 3
        doubted = outcome.kind == "unauthorized" and self.rng.random() < 0.5
        one.pool.settle(one.lease, outcome, took_s, took_s * 2 if self.rng.random() < 0.5 else None, doubted)
        if outcome.kind not in ("ok", "rejected", "cancelled"):
            one.tries.failed(outcome)
            self.follow(one.tries, one.tries.next())

    def first_event(self) -> None:
        """A stream begins: its place stays taken until it ends."""
        holding = [one for one in self.asking if one.lease is not None and one.lease.counted is None]
        if holding:
            one = self.rng.choice(holding)
            assert one.lease is not None
            one.pool.answered(one.lease, self.rng.random())

    def hedge(self) -> None:
        holding = [one for one in self.asking if one.lease is not None]
        if holding:
            one = self.rng.choice(holding)
            one.pool.hedge_after_s()
            if one.pool.take_hedge():
                self.follow(one.tries, one.tries.hedge())

    def leave(self) -> None:
        waiting = [one for one in self.asking if one.waiter is not None]
        if waiting:
            one = self.rng.choice(waiting)
            assert one.waiter is not None
            lease = one.pool.leave_line(one.waiter)
            if lease is not None:
                one.pool.settle(lease, Outcome("cancelled"), 0.0)
            self.asking.remove(one)

    def probe(self) -> None:
        pool, known = self.rng.choice(self.known)
        error = "answered 503" if self.rng.random() < self.faulty.get(known.id, 0.05) else None
        pool.record_probe(known, error, 2, 1, 1)

    def drain(self) -> None:
        pool = self.rng.choice(list(self.router.pools.values()))
        pool.set_draining(self.rng.choice(pool.engines).id, self.rng.random() < 0.3)

    def hint(self) -> None:
        pool = self.rng.choice(list(self.router.pools.values()))
        pool.hint(self.rng.choice(pool.engines).id, self.rng.random() * 10)

    def weigh(self) -> None:
        pool = self.rng.choice(list(self.router.pools.values()))
        pool.set_weight(self.rng.choice(pool.engines).id, self.rng.choice((1, 2, 3, 7)))

    def look(self) -> None:
        """What readiness checks, metrics and waiting requests ask; it must change nothing."""
        for pool in self.router.pools.values():
            pool.any_available()
            pool.all_full()
            pool.predicted_wait_s()
            pool.shortest_rest_s()
            pool.last_resort_wait_s(())
            pool.snapshot()
            pool.due_for_probe(1.0)

    def serve(self) -> None:
        """Those who wait look themselves, now and then."""
        for pool in self.router.pools.values():
            pool.serve_line()

    def weather(self) -> None:
        """Some servers fail more, others less."""
        self.faulty[f"127.0.0.1:{9000 + self.rng.randrange(SERVERS)}"] = self.rng.choice((0.0, 0.1, 0.9))

    def with_keys(self, spec: ModelSpec) -> ModelSpec:
        """The model with engines that are asked otherwise: with other keys, by another name."""
        if self.rng.random() < 0.5:
            return spec
        key, name = self.rng.choice((None, "KEY", "OTHER")), self.rng.choice((None, "named"))
        return replace(spec, engines=tuple(replace(e, api_key_env=key, model=name) for e in spec.engines))

    def reload(self) -> None:
        models = []
        for spec in self.router.fleet.models:
            if self.rng.random() < 0.3:
                continue
            again = spec if self.rng.random() < 0.5 else model(spec.name, self.rng.choice(STRATEGIES), self.rng)
            models.append(again)
        missing = {f"m{i}" for i in range(7)} - {spec.name for spec in models}
        models += [model(name, None, self.rng) for name in sorted(missing) if self.rng.random() < 0.4]
        if models:
            models = [self.with_keys(placed(spec) if self.regional else spec) for spec in models]
            renewed: tuple[str, ...] = self.rng.choice(((), ("KEY",)))
            self.router.reload(FleetSpec(tuple(models)), renewed, self.rng.random() < 0.5)
            self.refresh()


class ReplayCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "decisions.jsonl"
        self.logged: list[tuple[str, str]] = []

    def settings(self, fleet: FleetSpec, **variables: object) -> Settings:
        """Settings with that fleet, through an engines file as users write it."""
        models = {
            spec.name: {
                "strategy": spec.strategy or "round_robin",
                "hedge_ratio": spec.hedge_ratio,
                **({} if spec.hedge_after_ms is None else {"hedge_after_ms": spec.hedge_after_ms}),
                "engines": [
                    {
                        "url": e.url,
                        "weight": e.weight,
                        **({"max_concurrency": e.max_concurrency} if e.max_concurrency else {}),
                        **({} if e.region is None else {"region": e.region}),
                    }
                    for e in spec.engines
                ],
            }
            for spec in fleet.models
        }
        file = self.path.with_name("engines.json")
        file.write_text(json.dumps({"models": models}), encoding="utf-8")
        return load_settings({"ENGINES_FILE": file, **variables})

    def log(self, level: str, event: str, **fields: object) -> None:
        self.logged.append((level, event))

    def record(self, seed: int, steps: int, reloads: bool = False, **variables: object) -> list[dict[str, Any]]:
        """Let a turmoil pass and write its decisions to the file, as the gateway does; returns them."""
        rng = Random(seed)
        models = [model(f"m{i}", strategy, rng) for i, strategy in enumerate(STRATEGIES)]
        fleet = FleetSpec(tuple(placed(spec) if "REGION" in variables else spec for spec in models))
        settings = self.settings(fleet, BREAKER_MIN_REQUESTS=3, BREAKER_OPEN_SECONDS=2, **variables)
        written = DecisionLog(self.path, header(settings, seed), self.log)
        written.start()
        self.addCleanup(written.close, TIMEOUT_S)
        turmoil = Turmoil(settings, seed, written.record, reloads)
        turmoil.run(steps)
        written.close(TIMEOUT_S)
        self.assertEqual(self.logged, [])
        return self.lines()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def write(self, lines: list[dict[str, Any]]) -> None:
        self.path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def command(self) -> tuple[int, str]:
        """What the command returns and prints."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            status = main([str(self.path)])
        return status, out.getvalue()


class SameTest(ReplayCase):
    def test_thousands_of_decisions_come_out_the_same(self) -> None:
        lines = self.record(1, 6000)
        self.assertGreater(len(lines), 6000)
        seen = {line["op"] for line in lines}
        self.assertEqual(
            seen - {"serve"},  # rare: see below
            {"start", "acquire", "answered", "settle", "join", "leave", "last_resort", "probe", "retry"}
            | {"drain", "hint", "weight"},
        )
        states = {candidate[1] for line in lines if line["op"] == "acquire" for candidate in line["candidates"]}
        self.assertEqual(states, {"up", "down", "resting", "misconfigured", "open", "half_open", "draining"})
        self.assertTrue(
            [line for line in lines if line["op"] == "settle" and line["out"][1]], "nobody was handed a place"
        )
        self.assertEqual(self.command(), (0, f"0 differences in {len(lines) - 1}\n"))

    def test_so_they_do_for_many_fleets(self) -> None:
        for seed in range(10, 22):
            with self.subTest(seed=seed):
                lines = self.record(seed, 500)
                self.assertEqual(replay(self.path), (len(lines) - 1, None))

    def test_so_they_do_when_engines_and_models_come_and_go_under_load(self) -> None:
        seen = set()
        for seed in range(30, 50):
            with self.subTest(seed=seed):
                lines = self.record(seed, 600, reloads=True)
                seen |= {line["op"] for line in lines} | {key for line in lines for key in line}
                self.assertEqual(replay(self.path), (len(lines) - 1, None))
        self.assertLessEqual({"reconfigure", "add", "forget", "keep_weights", "avoid", "doubted", "counted"}, seen)

    def test_so_they_do_with_other_settings(self) -> None:
        for number, variables in enumerate(
            (
                {"FALLBACK": "off", "STRATEGY": "latency"},
                {"FALLBACK": "configured", "BREAKER_FAILURE_RATIO": "1"},
                {"BREAKER_WINDOW": "0.5", "BREAKER_MAX_OPEN_SECONDS": "3"},
            )
        ):
            with self.subTest(variables=variables):
                lines = self.record(60 + number, 500, reloads=True, **variables)
                self.assertEqual(replay(self.path), (len(lines) - 1, None))

    def test_so_they_do_with_regions_and_what_must_stay_in_one(self) -> None:
        seen = set()
        for seed in range(70, 90):
            with self.subTest(seed=seed):
                lines = self.record(seed, 600, reloads=True, REGION=("eu-west", "eu", "us", "ap")[seed % 4])
                seen |= {(line["op"], line["residency"]) for line in lines if line.get("residency")}
                self.assertEqual(replay(self.path), (len(lines) - 1, None))
        self.assertLessEqual({("acquire", "eu"), ("join", "us"), ("last_resort", "eu-west")}, seen)

    def test_so_they_do_where_several_processes_go_round_from_places_of_their_own(self) -> None:
        for seed in range(90, 96):
            with self.subTest(seed=seed):
                lines = self.record(seed, 600, reloads=True, PROCESSES="4", **({"REGION": "eu"} if seed % 2 else {}))
                self.assertEqual(replay(self.path), (len(lines) - 1, None))
        self.write([{**lines[0], "scattered": False}, *lines[1:]])
        self.assertEqual(self.command()[0], 1)

    def test_another_region_is_found(self) -> None:
        lines = self.record(70, 600, REGION="eu-west")
        self.write([{**lines[0], "region": "us"}, *lines[1:]])
        self.assertEqual(self.command()[0], 1)

    def test_so_does_a_place_that_a_waiting_request_finds_itself(self) -> None:
        specs = tuple(EngineSpec(f"http://127.0.0.1:{9000 + i}/v1", max_concurrency=1) for i in range(3))
        settings = self.settings(FleetSpec((ModelSpec("a", specs, strategy="random"),)))
        now_s = 5.0
        lines = [header(settings, 1)]
        router = Router(settings.fleet, rng=Random(1), clock=lambda: now_s, recorder=lines.append)
        pool = router.pools["a"]
        held = [pool.acquire((), b"") for _ in range(3)]
        for lease in held[:2]:
            assert lease is not None
            pool.settle(lease, Outcome("rate_limited", retry_after_s=2.0), 0.1)
        waiters = [pool.join_line("normal", b"") for _ in range(3)]
        now_s += 2.0
        pool.serve_line()
        for waiter in waiters[:2]:
            assert waiter is not None and waiter.lease is not None
            pool.leave_line(waiter)
            pool.settle(waiter.lease, Outcome("ok"), 0.1)
        self.assertEqual([line["out"] for line in lines if line["op"] == "serve"], [[1, 2]])
        self.write(lines)
        self.assertEqual(replay(self.path), (len(lines) - 1, None))

    def test_a_server_of_two_models_is_not_mistaken_for_one_engine(self) -> None:
        # A fallback asks the second model's engine on the server where the first model's has failed.
        shared = tuple(EngineSpec(f"http://127.0.0.1:{9000 + i}/v1") for i in range(4))
        settings = self.settings(FleetSpec((ModelSpec("a", shared), ModelSpec("b", shared, strategy="random"))))
        for seed in range(20):
            lines = [header(settings, seed)]
            router = Router(settings.fleet, rng=Random(seed), clock=lambda: 5.0, recorder=lines.append)
            tries = Tries(router.route("a"), 2, b"")
            for _ in range(4):
                step = tries.next()
                assert step is not None and step.lease is not None
                step.pool.settle(step.lease, Outcome("error", "x"), 0.1)
                tries.failed(Outcome("error", "x"))
            self.write(lines)
            self.assertEqual(replay(self.path), (len(lines) - 1, None))


class DifferentTest(ReplayCase):
    def test_one_changed_weight_is_found_where_it_matters_first(self) -> None:
        lines = self.record(2, 3000)
        start, calls = lines[0], lines[1:]
        changed = next(name for name, spec in start["models"].items() if spec["strategy"] == "random")
        engines = start["models"][changed]["engines"]
        self.assertGreater(len(engines), 1)
        engines[0]["weight"] += 5
        self.write(lines)
        status, text = self.command()
        self.assertEqual(status, 1)
        self.assertIn(f"acquire of {changed}: ", text)
        self.assertRegex(text, r"out: recorded '127\.0\.0\.1:\d+', now '127\.0\.0\.1:\d+'")
        number = int(text.split("line ")[1].split(":")[0])
        self.assertEqual(calls[number - 2]["model"], changed)
        self.write(lines[: number - 1])  # everything before it is the same
        self.assertEqual(self.command(), (0, f"0 differences in {number - 2}\n"))

    def test_another_seed_another_order_or_another_outcome_is_found(self) -> None:
        lines = self.record(3, 2000)

        def first(op: str, out: Callable[[Any], bool]) -> int:
            return next(i for i, line in enumerate(lines) if line["op"] == op and out(line["out"]))

        chosen = first("acquire", lambda out: out is not None)
        ended = first("settle", lambda out: out[0] == "down")
        cases: dict[str, Callable[[list[dict[str, Any]]], object]] = {
            "seed": lambda copy: copy[0].update(seed=4),
            "breaker": lambda copy: copy[0].update(breaker=[30.0, 1, 0.01, 2.0, 60.0]),
            "choice": lambda copy: copy[chosen].update(out="127.0.0.1:1"),
            "nothing chosen": lambda copy: copy[chosen].update(out=None),
            "candidates": lambda copy: copy[chosen]["candidates"][0].__setitem__(2, 99),
            "outcome": lambda copy: copy[ended].update(outcome="ok", verdict="good"),
            "verdict": lambda copy: copy[ended].update(verdict="good"),
            "a line is missing": lambda copy: copy.pop(chosen),
        }
        for name, change in cases.items():
            with self.subTest(changed=name):
                copy = json.loads(json.dumps(lines))
                change(copy)
                self.write(copy)
                status, text = self.command()
                self.assertEqual(status, 1, text)
                self.assertRegex(text, r"^after \d+ equal decisions, line \d+: ")

    def test_lines_that_cannot_be_repeated_are_named(self) -> None:
        lines = self.record(5, 300)
        calls = {(line["op"], line.get("verdict")): i for i, line in enumerate(lines) if "counted" not in line}
        chosen, settled, probed = calls["acquire", None], calls["settle", "good"], calls["probe", None]
        weighed = calls["weight", None]
        reconfigure = {"op": "reconfigure", "model": "m0", "now_s": lines[-1]["now_s"], "strategy": "random", "out": []}
        broken: dict[str, Callable[[list[dict[str, Any]]], object]] = {
            "unknown call": lambda copy: copy[chosen].update(op="guess"),
            "unknown model": lambda copy: copy[chosen].update(model="nobody"),
            "no time": lambda copy: copy[chosen].pop("now_s"),
            "affinity": lambda copy: copy[chosen].update(affinity="not hex"),
            "place": lambda copy: copy[settled].update(ticket=99),
            "engine": lambda copy: copy[probed].update(engine="nowhere:1"),
            "types": lambda copy: copy[settled].update(duration_s="long"),
            "list for a name": lambda copy: copy[chosen].update(model=["m0"]),
            "weight": lambda copy: copy.append(
                {**reconfigure, "spec": {**copy[0]["models"]["m0"], "engines": [{"url": "http://a", "weight": 0}]}}
            ),
            "spec": lambda copy: copy.append({**reconfigure, "spec": None}),
            "weight of an engine": lambda copy: copy[weighed].update(weight=0),
        }
        for name, change in broken.items():
            with self.subTest(broken=name):
                copy = json.loads(json.dumps(lines))
                change(copy)
                self.write(copy)
                status, text = self.command()
                self.assertEqual(status, 1, text)
                self.assertRegex(text, r"line \d+: .*cannot be repeated")


class FileTest(ReplayCase):
    def test_a_last_line_that_was_cut_off_is_left_out(self) -> None:
        lines = self.record(6, 300)
        whole = self.path.read_bytes()
        last = len(whole.splitlines(keepends=True)[-1])
        for cut in (1, 2, last // 2, last - 1):
            with self.subTest(cut=cut):
                self.path.write_bytes(whole[:-cut])
                expected = len(lines) - 1 - (cut > 1)  # without its newline alone it is complete
                self.assertEqual(self.command(), (0, f"0 differences in {expected}\n"))

    def test_a_broken_line_in_the_middle_is_no_decision_log(self) -> None:
        self.record(6, 300)
        text = self.path.read_text(encoding="utf-8").splitlines()
        text[5] = text[5][:-3]
        self.path.write_text("\n".join(text) + "\n", encoding="utf-8")
        status, said = self.command()
        self.assertEqual(status, 2)
        self.assertIn("line 6 is not JSON", said)

    def test_what_is_no_decision_log_is_said_in_one_line(self) -> None:
        start = json.dumps({"op": "start", "seed": 1})
        for content in (
            b"",
            b"\n",
            b"hello\n",
            b"[]\n",
            b"1\n",
            b'{"event": "request"}\n',
            b'{"op": "acquire", "model": "m"}\n',
            start.encode() + b"\n",
            b'{"op": "start", "models": 5, "strategy": "x", "fallback": "off", "seed": 1, "breaker": []}\n',
            b'{"op": ["start"]}\n',
            b"\x89PNG\r\n\x1a\n\x00\xff\xfe",
            b"\xff\xfe\n" * 3,
            b"[" * 100_000 + b"\n",
            b"9" * 10_000 + b"\n",
        ):
            with self.subTest(content=content[:40]):
                self.path.write_bytes(content)
                status, said = self.command()
                self.assertEqual(status, 2, said)
                self.assertEqual(len(said.splitlines()), 1, said)
                self.assertTrue(said.startswith(f"error: {self.path}: "), said)

    def test_a_header_that_cannot_be_is_no_decision_log(self) -> None:
        lines = self.record(7, 50)
        for name, value in (
            ("models", {}),
            ("models", None),
            ("models", {"m0": {"engines": []}}),
            ("seed", None),
            ("seed", "x"),
            ("strategy", "fastest"),
            ("breaker", ["a", "b"]),
            ("breaker", 5),
            ("breaker", [0, 5, 0.5, 5, 60, 70]),
        ):
            with self.subTest(name=name, value=value):
                copy = json.loads(json.dumps(lines))
                copy[0][name] = value
                if name == "strategy":
                    copy[0]["models"]["m0"]["strategy"] = None  # which leaves it to the default
                self.write(copy)
                status, said = self.command()
                self.assertEqual((status, len(said.splitlines())), (2, 1), said)

    def test_a_file_that_is_not_there_is_said_in_one_line(self) -> None:
        for path in (self.path, self.path.parent):
            self.path = path
            status, said = self.command()
            self.assertEqual((status, len(said.splitlines())), (2, 1), said)

    def test_where_each_process_has_a_file_of_its_own_the_first_is_named(self) -> None:
        first = Path(f"{self.path}.0")
        first.write_text("{}\n", "utf-8")
        status, said = self.command()
        self.assertEqual((status, len(said.splitlines())), (2, 1), said)
        self.assertIn(first.name, said)


class WrittenTest(ReplayCase):
    """The decision log as a file."""

    def written(self) -> DecisionLog:
        return DecisionLog(self.path, {"op": "start"}, self.log)

    def test_lines_appear_while_it_is_open_and_its_thread_ends_with_it(self) -> None:
        log = self.written()
        log.start()
        self.addCleanup(log.close, TIMEOUT_S)
        log.record({"op": "x", "n": 1})
        eventually(lambda: len(self.lines()) == 2)
        log.record({"op": "x", "n": 2})
        log.close(TIMEOUT_S)
        self.assertEqual([line.get("n") for line in self.lines()], [None, 1, 2])
        self.assertNotIn("decisions", [thread.name for thread in threading.enumerate()])

    def test_records_of_many_threads_are_all_there_each_threads_in_order(self) -> None:
        log = self.written()
        log.start()

        def work(name: int) -> None:
            for number in range(500):
                log.record({"op": "x", "thread": name, "n": number})

        threads = [threading.Thread(target=work, args=(i,), name=f"recorder-{i}") for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        log.close(TIMEOUT_S)
        lines = self.lines()[1:]
        self.assertEqual(len(lines), 3000)
        for name in range(6):
            self.assertEqual([line["n"] for line in lines if line["thread"] == name], list(range(500)))

    def test_a_file_that_cannot_be_made_is_said_at_the_start(self) -> None:
        self.path = self.path.parent / "no folder" / "d.jsonl"
        log = self.written()
        with self.assertRaises(ConfigurationError) as caught:
            log.start()
        (fault,) = caught.exception.faults
        self.assertTrue(fault.startswith(f"DECISION_LOG: {self.path}: cannot be written: "), fault)
        log.close(TIMEOUT_S)

    def unwritable(self) -> list[Path]:
        """Paths at which there can be no file to write, whoever asks."""
        folder = self.path.parent
        (folder / "a file").write_text("", "utf-8")
        return [
            folder,
            folder / "no folder" / "d.jsonl",
            folder / "a file" / "d.jsonl",
            folder / ("x" * 300),
            folder / "a\0b",
        ]

    def test_what_cannot_be_written_is_seen_without_writing(self) -> None:
        for path in self.unwritable():
            with self.subTest(path=path):
                with self.assertRaises(ConfigurationError) as caught:
                    DecisionLog(path, {"op": "start"}, self.log).start()
                with self.assertRaises(ConfigurationError) as foreseen:
                    refuse_unwritable(path)
                if os.name == "posix":  # Windows has other words for opening a directory
                    self.assertEqual(foreseen.exception.faults, caught.exception.faults)

    @unittest.skipIf(not hasattr(os, "geteuid") or os.geteuid() == 0, "needs a user whom permissions hold back")
    def test_a_folder_or_file_that_may_not_be_written_is_seen_too(self) -> None:
        self.path.write_text("kept\n", "utf-8")
        self.path.chmod(0o400)
        folder = self.path.parent / "folder"
        folder.mkdir(0o500)
        for path in (self.path, folder / "d.jsonl"):
            with self.assertRaisesRegex(ConfigurationError, "Permission denied"):
                refuse_unwritable(path)

    def test_looking_makes_no_file_and_empties_none(self) -> None:
        refuse_unwritable(self.path)
        self.assertFalse(self.path.exists())
        self.path.write_text("kept\n", "utf-8")
        refuse_unwritable(self.path)
        self.assertEqual(self.path.read_text("utf-8"), "kept\n")

    def test_more_records_than_memory_may_hold_are_dropped_and_said_once(self) -> None:
        before, decisionlog.WAITING_MAX = decisionlog.WAITING_MAX, 10
        self.addCleanup(setattr, decisionlog, "WAITING_MAX", before)
        log = self.written()
        for number in range(100):
            log.record({"op": "x", "n": number})
        self.assertEqual(self.logged, [("error", "decision_log_incomplete")])
        log.start()
        log.close(TIMEOUT_S)
        self.assertEqual([line.get("n") for line in self.lines()], [None, *range(9)])


if __name__ == "__main__":
    unittest.main()
