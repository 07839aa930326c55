"""Advice: the smallest fleet that keeps the promise, and why."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import unittest
from pathlib import Path
from random import Random

from gateway.tools.advise.command import main
from gateway.tools.advise.sizing import Advice, Ask, advise, busiest, seen_in
from gateway.tools.simulate.recorded import Recorded

RATE, MEAN_S = 20.0, 0.2


def record(count: int = 3000) -> Recorded:
    """An M/M/... of 20/s, 200 ms each."""
    chance = Random(1)
    at_s, times = 0.0, []
    for _ in range(count):
        at_s += chance.expovariate(RATE)
        times.append(at_s)
    return Recorded("seen", [chance.expovariate(1 / MEAN_S) for _ in range(count)], times)


class AdviseTest(unittest.TestCase):
    advice: Advice

    @classmethod
    def setUpClass(cls) -> None:
        cls.ask = Ask(slo_s=0.8, headroom=1.0, slots=1, requests=3000)
        cls.advice = advise(record(), cls.ask)

    ask: Ask

    def test_one_engine_fewer_would_not_keep_the_promise(self) -> None:
        assert self.advice.engines is not None
        kept = {tried.engines: tried.keeps(self.ask) for tried in self.advice.tried}
        self.assertTrue(kept[self.advice.engines])
        self.assertFalse(kept[self.advice.engines - 1])
        # 4 Erlang need more than 4 engines of one slot, and p95 of the service alone is 0.6 s.
        self.assertIn(self.advice.engines, range(5, 10))

    def test_the_limit_is_what_the_fleet_bears_and_workers_hold_what_is_inside(self) -> None:
        self.assertGreaterEqual(self.advice.rate, self.advice.seen.busy_rate)
        self.assertAlmostEqual(self.advice.rpm, self.advice.rate * 60, delta=1)
        self.assertIn(self.advice.workers, range(8, 25))

    def test_a_promise_that_an_engine_alone_breaks_has_no_number(self) -> None:
        self.assertIsNone(advise(record(), Ask(slo_s=0.3)).engines)

    def test_more_headroom_takes_more_engines(self) -> None:
        more = advise(record(), self.ask._replace(headroom=2.0)).engines
        assert more is not None and self.advice.engines is not None
        self.assertGreater(more, self.advice.engines)

    def test_the_busiest_minute_counts(self) -> None:
        quiet = [float(second) for second in range(600)]
        busy = [300 + step / 10 for step in range(600)]
        self.assertAlmostEqual(busiest(quiet + busy, 60.0), 11.0, delta=0.1)
        seen = seen_in(Recorded("x", [0.1, 0.2], quiet + busy), 95.0)
        self.assertGreater(seen.busy_rate, 4 * seen.mean_rate)
        self.assertEqual(busiest([1.0, 2.0], 60.0), 0.0)


class CommandTest(unittest.TestCase):
    def said(self, *argv: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(argv, "advise", {"STATE_DB": "/nowhere/at/all.db"}, 2000)
        return status, out.getvalue(), err.getvalue()

    def test_what_is_out_of_bounds_is_told_with_the_bounds_in_full(self) -> None:
        for flag, wrong, bounds in (("--slo-ms", "0", "1 to 86400000"), ("--seed", "1e99", "0 to 2147483647")):
            status, _, err = self.said("--slo-ms", "500", "--from", "ledger", flag, wrong)
            self.assertEqual(status, 2)
            self.assertIn(f"{flag}: must be", err)
            self.assertIn(f"from {bounds}, not '{wrong}'", err)

    def test_it_says_what_and_why(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "decisions.jsonl"
            seen = record(400)
            lines = [{"op": "acquire", "tried": [], "now_s": at_s} for at_s in seen.arrivals_s]
            more = [{"op": "settle", "outcome": "ok", "duration_s": value} for value in seen.service_s]
            log.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *more]), "utf-8")
            argv = ("--from", str(log), "--slots", "4", "--slo-ms")
            status, out, err = self.said(*argv, "1500")
            self.assertEqual((status, err), (0, ""))
            for word in ("engines", "WORKERS", "QUEUE_SIZE", "RATE_LIMIT_GLOBAL_RPM", "assumed"):
                self.assertIn(word, out)
            told = json.loads(self.said(*argv, "1500", "--json")[1])
            self.assertGreaterEqual(told["engines"], 1)
            status, out, _ = self.said(*argv, "5")
            self.assertEqual(status, 1)
            self.assertIn("No number of engines", out)
            out = self.said("--from", str(log), "--slots", "100", "--slo-ms", "5000")[1]
            self.assertRegex(out, r"\nengines +1, of 100 slots")
            self.assertNotIn("with fewer", out)

    def test_what_cannot_be_is_said_with_its_name(self) -> None:
        for argv, word in (
            (("--slo-ms", "500"), "--from"),
            (("--slo-ms", "0", "--from", "x"), "--slo-ms"),
            (("--slo-ms", "500", "--from", "/nowhere/x"), "/nowhere/x"),
            (("--slo-ms", "500", "--from", "ledger"), "LEDGER=on"),
        ):
            status, out, err = self.said(*argv)
            self.assertEqual((status, out), (2, ""))
            self.assertIn(word, err)


if __name__ == "__main__":
    unittest.main()
