"""What has been saved, counted from the events of finished requests."""

from __future__ import annotations

import unittest
from typing import Optional

from gateway.reuse.counts import ReuseCounts
from gateway.telemetry.events import RequestEvent


def event(extra: Optional[dict[str, object]] = None) -> RequestEvent:
    return RequestEvent(1.0, "r", "POST", "/v1/chat/completions", 200, None, 0.1, extra=extra)


class CountsTest(unittest.TestCase):
    def test_nothing_at_first(self) -> None:
        counts = ReuseCounts()
        counts.observe([])
        self.assertEqual(counts.by_result, {"hit": 0, "near": 0, "miss": 0, "bypass": 0})
        self.assertEqual((counts.saved_tokens, counts.saved_usd), (0, 0.0))

    def test_each_result_by_its_name(self) -> None:
        counts = ReuseCounts()
        counts.observe([event({"cache": result}) for result in ("hit", "near", "hit", "miss", "bypass")])
        counts.observe([event({"cache": "hit", "coalesced": True})])
        self.assertEqual(counts.by_result, {"hit": 3, "near": 1, "miss": 1, "bypass": 1})

    def test_requests_that_are_not_for_the_cache_do_not_count(self) -> None:
        counts = ReuseCounts()
        counts.observe([event(), event({}), event({"batch": 5}), event({"saved_tokens": 9, "saved_usd": 1.0})])
        self.assertEqual(sum(counts.by_result.values()), 0)
        self.assertEqual((counts.saved_tokens, counts.saved_usd), (0, 0.0))

    def test_what_hits_have_saved_is_summed(self) -> None:
        counts = ReuseCounts()
        counts.observe([event({"cache": "hit", "saved_tokens": 12, "saved_usd": 0.25}), event({"cache": "miss"})])
        counts.observe([event({"cache": "near", "saved_tokens": 30, "saved_usd": 0.5}), event({"cache": "hit"})])
        self.assertEqual((counts.saved_tokens, counts.saved_usd), (42, 0.75))

    def test_what_is_no_figure_is_left_out(self) -> None:
        counts = ReuseCounts()
        counts.observe([event({"cache": "hit", "saved_tokens": None, "saved_usd": None})])
        counts.observe([event({"cache": "hit", "saved_tokens": "12", "saved_usd": "1"})])
        self.assertEqual((counts.by_result["hit"], counts.saved_tokens, counts.saved_usd), (2, 0, 0.0))

    def test_counts_of_two_are_their_own(self) -> None:
        one, other = ReuseCounts(), ReuseCounts()
        one.observe([event({"cache": "hit"})])
        self.assertEqual(other.by_result["hit"], 0)


if __name__ == "__main__":
    unittest.main()
