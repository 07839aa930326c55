"""What a client would rather have: OpenMetrics or text, packed or not, HTML or JSON."""

from __future__ import annotations

import unittest

from gateway.server.negotiating import preferences, takes_gzip, wants_html, wants_openmetrics

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=1.0.0;"
    "q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


class NegotiatingTest(unittest.TestCase):
    def test_openmetrics_only_for_who_names_it_and_wants_it_most(self) -> None:
        for accept, wanted in (
            (PROMETHEUS_2, True),
            (PROMETHEUS_3, True),
            ("application/openmetrics-text; version=1.0.0", True),
            ("application/openmetrics-text", True),
            ('Application/OpenMetrics-Text ; Version="1.0.0" ; Q=0.1', True),
            ("application/openmetrics-text;q=0.5, text/plain;q=0.5", True),
            ("", False),
            ("*/*", False),
            ("application/*", False),
            ("text/html,application/xhtml+xml,*/*;q=0.8", False),
            ("application/openmetrics-text;version=0.0.1", False),
            ("application/openmetrics-text;version=2.0.0, */*;q=0.1", False),
            ("application/openmetrics-text;q=0", False),
            ("application/openmetrics-text;q=0.5, text/plain", False),
            ("application/openmetrics-text;q=0.5, text/*;q=0.6", False),
            ("application/openmetrics-text;q=0.5, */*;q=0.6", False),
            ("application/openmetrics-text;q=nonsense", False),
            ("application/openmetrics-text;q=9", False),
            (",;=,;;q=,", False),
            ("application/openmetrics-text" + ",a/b" * 1000, False),
        ):
            self.assertEqual(wants_openmetrics(accept), wanted, accept)

    def test_gzip_for_who_takes_it(self) -> None:
        for accepted, taken in (
            ("gzip", True),
            ("deflate, GZIP;q=0.5", True),
            ("*", True),
            ("br, *;q=0.1", True),
            ("", False),
            ("identity", False),
            ("gzip;q=0", False),
            ("gzip;q=0.000, *", False),
            ("*;q=0", False),
            ("x-gzip", False),
            ("gzip" + ",a" * 1000, False),
        ):
            self.assertEqual(takes_gzip(accepted), taken, accepted)

    def test_who_prefers_html_gets_it_and_nobody_else(self) -> None:
        for accept in (
            *(BROWSER, "text/html", "TEXT/HTML", "text/html;charset=utf-8", "text/html, */*", "text/*, */*;q=0.1"),
            *(
                "application/json;q=0.5, text/html;q=0.6",
                "text/html;q=0.001, application/json;q=0",
                "text/html;q=1.000",
            ),
        ):
            self.assertTrue(wants_html(accept), accept)
        for accept in (
            *("", "*/*", "application/json", "application/json, text/html", "application/json, text/plain, */*"),
            *("text/html;q=0", "text/html;q=0, */*", "text/html;q=0.5, */*", "text/html;q=0.5, application/json;q=0.6"),
            *(
                "text/plain",
                "xtext/html",
                "text/htmlx",
                "text/html;q=nan",
                "text/html;q=2",
                "text/html;q=-1",
                ",;q=",
                ";",
                "text/html" + ",a/b" * 1000,
            ),
        ):
            self.assertFalse(wants_html(accept), accept)

    def test_preferences(self) -> None:
        self.assertEqual(
            list(preferences("A/B; c=D; Q=0.25, , e;q=1.000, f;q=0.1234")),
            [("a/b", {"c": "d"}, 0.25), ("e", {}, 1.0), ("f", {}, 0.0)],
        )


class LongTest(unittest.TestCase):
    """Anybody may send 32 000 characters, and the loop's thread would look at them for 60 ms."""

    def test_what_is_longer_than_anybodys_says_nothing(self) -> None:
        long = "a," * 10_000
        self.assertEqual(list(preferences(long)), [])
        self.assertFalse(wants_openmetrics(f"application/openmetrics-text,{long}"))
        self.assertFalse(takes_gzip(f"gzip,{long}"))
        self.assertTrue(takes_gzip(f"{'a, ' * 300}gzip"))


if __name__ == "__main__":
    unittest.main()
