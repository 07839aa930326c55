"""A short `python -m tests.chaos.network`: three gateways behind HAProxy, Redis, six engines in namespaces; faults.

Skipped where there can be no namespaces (root, Linux, iproute2) or programs; with REQUIRE_NETNS=1 that is a failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import unittest

from tests.chaos import lab as labs
from tests.chaos.netfaults import KINDS
from tests.chaos.network import CUT_OFF, excused, missing, most_over, play, summary
from tests.chaos.traffic import Result, tally
from tests.parallel import alone

SECONDS, LONGEST_S = 13.0, 2.5
CLIENTS = 16
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), 0.5)
except ConnectionRefusedError:
    print("refused")
except socket.timeout:
    print("nothing")
except OSError:
    print("dropped")
"""


class NetworkTest(unittest.TestCase):
    def setUp(self) -> None:
        why = missing()
        if why is not None:
            if os.environ.get(labs.REQUIRED) == "1":
                self.fail(f"{labs.REQUIRED}=1, but {why}")
            self.skipTest(why)

    @alone
    def test_what_is_taken_away_costs_no_answer_that_is_not_streamed_and_leaves_nothing_behind(self) -> None:
        outcome = play(SECONDS, CLIENTS, seed=1, most_s=LONGEST_S)
        self.assertEqual(outcome.violations, (), (outcome.examples, summary(outcome)))
        self.assertGreaterEqual(tally(outcome.results, False)["200"], 300)
        self.assertGreaterEqual(tally(outcome.results, True)["complete"], 150)
        happened = {name.partition(":")[0] for name in outcome.faults}
        self.assertEqual(happened, set(KINDS))
        self.assertIn("gateway: killed", outcome.faults)
        refused = sum(result.outcome == "429 rate_limit_exceeded" for result in outcome.limited)
        self.assertGreater(refused, 0, "the limit was never reached: nothing was asserted of it")

    def test_a_cut_cable_and_a_route_that_is_gone_are_silent_and_mended(self) -> None:
        with labs.Lab(("one", "two")) as lab:
            one, two = lab.nodes.values()
            self.assertEqual(self.reached(one, two), "refused")
            lab.part(one, two)
            self.assertEqual((self.reached(one, two), self.reached(two, one)), ("nothing", "dropped"))
            lab.join(one, two)
            lab.cut(one)
            self.assertEqual(self.reached(two, one), "nothing")
            lab.mend(one)
            self.assertEqual(self.reached(one, two), "refused")

    def reached(self, one: labs.Node, other: labs.Node) -> str:
        """What `one` is told when it connects to a port of `other` that nobody listens on."""
        done = subprocess.run(
            one.command(sys.executable, "-c", CONNECT, other.address),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.strip()


class ExcuseTest(unittest.TestCase):
    """What a gateway without its cable answers is its own fault's; what any other says so is not."""

    def outcome(self, text: str, began_s: float, took_s: float) -> str:
        result = Result("chaos-1", False, text, began_s, took_s)
        return excused([result], [(100.0, 110.0)])[0].outcome

    def test_a_502_while_a_cable_is_cut_has_a_name_of_its_own(self) -> None:
        self.assertEqual(self.outcome("502 backend_unavailable", 104.0, 6.5), CUT_OFF)
        self.assertEqual(self.outcome("502 backend_unavailable", 99.9, 1.0), CUT_OFF)

    def test_any_other_stands(self) -> None:
        for text, began_s in (("502 backend_unavailable", 110.5), ("502 backend_unavailable", 90.0), ("lost", 104.0)):
            self.assertEqual(self.outcome(text, began_s, 1.0), text)


class LimitTest(unittest.TestCase):
    """The judge of limits, on times made up."""

    def over(self, times_s: list[float], took_s: float = 0.0) -> float:
        return most_over([(at_s, at_s + took_s) for at_s in times_s], 10.0, 12.0).minute

    def test_what_a_limit_lets_pass_is_not_over_and_a_little_more_is(self) -> None:
        exact = [0.0] * 12 + [number / 10.0 for number in range(1, 3000)]
        self.assertLess(abs(self.over(exact)), 0.01)
        self.assertGreater(self.over([0.0] * 12 + [number / 10.3 for number in range(1, 3000)]), 0.02)

    def test_one_bad_minute_among_good_ones_is_seen(self) -> None:
        quiet = [number / 5.0 for number in range(3000)]
        self.assertLess(self.over(quiet), 0.0)
        self.assertGreater(self.over(sorted([*quiet, *(300.0 + number / 8.0 for number in range(480))])), 0.02)

    def test_what_is_lent_in_a_minute_and_paid_back_in_the_next_is_not_over_as_a_whole(self) -> None:
        lent = sorted([*(number / 12.0 for number in range(720)), *(60.0 + number / 8.0 for number in range(480))])
        over = most_over([(at_s, at_s) for at_s in lent], 10.0, 0.0)
        self.assertGreater(over.minute, 0.15)
        self.assertLess(abs(over.whole), 0.01)

    def test_what_was_under_way_at_a_windows_ends_may_have_passed_outside_of_it(self) -> None:
        late = [number / 10.3 for number in range(1, 3000)]
        self.assertGreater(self.over(late, took_s=0.1), 0.0)
        self.assertLess(self.over(late, took_s=3.0), self.over(late, took_s=0.1))


if __name__ == "__main__":
    unittest.main()
