"""Odd requests through real HAProxy and nginx, a few of them: see tests/fuzz/fronts.py.

Skipped where one is missing; with REQUIRE_FRONTS=1 that is a failure.
"""

from __future__ import annotations

import os
import sys
import unittest

from gateway.server import parsing
from tests.fuzz import fronts
from tests.fuzz.checks import heads_read_by
from tests.fuzz.finding import Report

MISSING = fronts.missing()
CASES = 150


class RequiredTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get(fronts.REQUIRED) == "1", "REQUIRE_FRONTS=1 is not set")
    def test_the_fronts_are_here(self) -> None:
        self.assertEqual(MISSING, [], "REQUIRE_FRONTS=1, but these are missing")


@unittest.skipIf(MISSING, f"not installed: {', '.join(MISSING)}")
@unittest.skipUnless(sys.platform == "linux", "the fronts are tried on Linux")
class FrontsTest(unittest.TestCase):
    def test_the_gateway_sees_no_more_requests_than_the_front_has_sent(self) -> None:
        report = Report("fronts", 1)
        fronts.run(report, CASES)
        self.assertEqual([finding.rule for finding in report.findings], [], "\n".join(report.lines()))
        for front in fronts.FRONTS:
            self.assertGreater(report.counts[f"read from {front.name}"], CASES // 3)

    def test_a_gateway_that_ignores_transfer_encoding_is_found(self) -> None:
        read_framing = parsing._read_framing

        def ignore(head: parsing.RequestHead) -> None:
            head.headers.pop(b"transfer-encoding", None)
            read_framing(head)

        report = Report("fronts", 1)
        with heads_read_by("_read_framing", ignore):
            fronts.run(report, CASES, fronts=fronts.FRONTS[:1])
        self.assertIn("no request that the front did not send", {finding.rule for finding in report.findings})


if __name__ == "__main__":
    unittest.main()
