"""Trace context, by the cases of the W3C's own test suite (w3c/trace-context, folder test), and what is sampled."""

from __future__ import annotations

import random
import re
import threading
import unittest
import uuid
from unittest import mock

from gateway.server.headers import new_request_id
from gateway.telemetry.events import Trace
from gateway.traces import context

TRACE = "12345678901234567890123456789012"
SPAN = "1234567890123456"
GOOD = f"00-{TRACE}-{SPAN}-01"
LINE = re.compile("traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-(0[0-3])\r\n(?:tracestate: ([ -~]+)\r\n)?")


def heard(*headers: tuple[str, str]) -> tuple[dict[bytes, bytes], frozenset[bytes]]:
    """Headers as the gateway keeps them: names in lower case, repeated ones joined."""
    kept: dict[bytes, bytes] = {}
    repeated = set()
    for name, value in headers:
        key, text = name.lower().encode(), value.encode("latin-1").strip(b" \t")
        if key in kept:
            repeated.add(key)
            text = kept[key] + b", " + text
        kept[key] = text
    return kept, frozenset(repeated)


def begun(*headers: tuple[str, str], sampler: str = "parentbased_always_on", ratio: float = 1.0) -> Trace:
    return context.beginner(sampler, ratio, True)(*heard(*headers), new_request_id())


def told(trace: Trace) -> tuple[str, str, int, str]:
    """What an engine reads: trace id, span id, flags, state."""
    match = LINE.fullmatch(context.lines_for(trace, context.new_span_id()))
    assert match is not None
    return match[1], match[2], int(match[3], 16), match[4] or ""


class Traceparent(unittest.TestCase):
    def assert_taken(self, value: str) -> None:
        trace = begun(("traceparent", value))
        self.assertEqual((trace.trace_id, trace.parent_id), (TRACE, SPAN), value)
        trace_id, span_id, _, _ = told(trace)
        self.assertEqual(trace_id, TRACE)
        self.assertNotIn(span_id, (SPAN, trace.span_id), "an attempt has a span of its own")

    def assert_begun_anew(self, *headers: tuple[str, str]) -> None:
        trace = begun(*headers)
        self.assertRegex(trace.trace_id, "[0-9a-f]{32}")
        self.assertNotIn(TRACE[:31], trace.trace_id)
        self.assertNotEqual(trace.trace_id, "0" * 32)
        self.assertEqual((trace.parent_id, trace.state), ("", ""))

    def test_what_no_caller_has_begun_is_begun_here(self) -> None:
        self.assert_begun_anew()
        self.assert_begun_anew(("tracestate", "foo=1"))
        self.assert_begun_anew(("trace-parent", GOOD))
        self.assert_begun_anew(("trace.parent", GOOD))

    def test_a_caller_s_trace_goes_on_however_the_header_is_written(self) -> None:
        self.assert_taken(GOOD)
        for value in (f" {GOOD}", f"\t{GOOD}", f"{GOOD} ", f"{GOOD}\t", f"\t {GOOD} \t"):
            self.assert_taken(value)
        for name in ("TraceParent", "TrAcEpArEnT", "TRACEPARENT"):
            self.assertEqual(begun((name, GOOD)).trace_id, TRACE)

    def test_two_of_them_are_none(self) -> None:
        self.assert_begun_anew(("traceparent", f"00-{TRACE[:-1]}1-{SPAN}-01"), ("traceparent", GOOD))
        self.assert_begun_anew(("traceparent", GOOD), ("traceparent", GOOD))
        self.assert_begun_anew(("traceparent", f"cc-{TRACE}-{SPAN}-01-a"), ("traceparent", GOOD))

    def test_of_a_later_version_what_is_known_is_read(self) -> None:
        for version in ("01", "cc", "fe"):
            for rest in ("", "-", "-what-the-future-will-be-like", "-.what"):
                self.assert_taken(f"{version}-{TRACE}-{SPAN}-01{rest}")
            for rest in (".", ".what", "0"):
                self.assert_begun_anew(("traceparent", f"{version}-{TRACE}-{SPAN}-01{rest}"))
        self.assertEqual(context.lines_for(begun(("traceparent", f"cc-{TRACE}-{SPAN}-ff-x")), SPAN)[13:15], "00")

    def test_what_is_malformed_counts_for_nothing(self) -> None:
        for value in (
            *(f"00-{TRACE}-{SPAN}-01{rest}" for rest in (".", "-", "-what", "-00", "0")),
            f"ff-{TRACE}-{SPAN}-01",
            *(f"{version}-{TRACE}-{SPAN}-01" for version in (".0", "0.", "000", "0000", "0", "", "0G", "CC", "+0")),
            *(f"00-{trace}-{SPAN}-01" for trace in ("0" * 32, "." + TRACE[1:], TRACE[:-1] + ".", TRACE + "3")),
            *(f"00-{trace}-{SPAN}-01" for trace in (TRACE[:-1], "", TRACE[:-1] + "A")),
            *(f"00-{TRACE}-{span}-01" for span in ("0" * 16, "." + SPAN[1:], SPAN[:-1] + ".", SPAN + "7", SPAN[:-1])),
            *(f"00-{TRACE}-{span}-01" for span in ("", SPAN[:-1] + "A")),
            *(f"00-{TRACE}-{SPAN}-{flags}" for flags in (".0", "0.", "001", "1", "", "0A")),
            f"00{TRACE}{SPAN}01",
            f"{GOOD},{GOOD}",
            f"{GOOD}\xa0",
            "",
        ):
            self.assert_begun_anew(("traceparent", value))

    def test_of_the_flags_those_two_are_passed_on_that_have_a_meaning(self) -> None:
        for flags in range(256):
            trace = begun(("traceparent", f"00-{TRACE}-{SPAN}-{flags:02x}"))
            self.assertEqual(told(trace)[2], flags & 3)
        self.assertEqual(told(begun())[2], 3, "what the gateway begins is random, and sampled")

    def test_each_request_has_a_span_of_its_own(self) -> None:
        traces = [begun(("traceparent", GOOD)) for _ in range(100)]
        self.assertEqual(len({trace.span_id for trace in traces} | {SPAN}), 101)
        self.assertEqual(len({begun().trace_id for _ in range(100)}), 100)
        whole = begun(("traceparent", GOOD))
        part = context.part_of(whole)
        self.assertEqual((part.trace_id, part.parent_id), (TRACE, whole.span_id))
        self.assertNotEqual(part.span_id, whole.span_id)

    def test_the_id_that_the_gateway_gives_a_request_is_the_trace_s(self) -> None:
        request_id = new_request_id()
        begin = context.beginner("always_on", 1.0, True)
        self.assertEqual(begin({}, frozenset(), request_id).trace_id, uuid.UUID(request_id).hex)
        theirs = str(uuid.uuid4())
        for name in (b"x-request-id", b"request-id"):
            trace = begin({name: theirs.encode()}, frozenset(), theirs)
            self.assertNotEqual(trace.trace_id, uuid.UUID(theirs).hex, "a caller may use it twice")

    def test_without_propagators_a_caller_says_nothing_and_engines_are_told_nothing(self) -> None:
        trace = context.beginner("always_on", 1.0, False)(*heard(("traceparent", GOOD)), new_request_id())
        self.assertNotEqual(trace.trace_id, TRACE)
        self.assertFalse(trace.told)


class Tracestate(unittest.TestCase):
    def state(self, *values: str) -> str:
        """What is passed on of these header lines."""
        trace = begun(("traceparent", GOOD), *(("tracestate", value) for value in values))
        self.assertEqual(trace.trace_id, TRACE, "it has no say in that")
        self.assertEqual(told(trace)[3], trace.state)
        return trace.state

    def test_it_is_passed_on_in_its_order(self) -> None:
        self.assertEqual(self.state("foo=1,bar=2"), "foo=1,bar=2")
        self.assertEqual(self.state("foo=1,bar=2", "rojo=1,congo=2", "baz=3"), "foo=1,bar=2,rojo=1,congo=2,baz=3")
        self.assertEqual(self.state("foo=1,foo=2"), "foo=1,foo=2")

    def test_space_around_members_and_empty_ones_are_no_fault(self) -> None:
        for value in (
            "foo=1 \t , \t bar=2, \t baz=3",
            "foo=1\t \t,\t \tbar=2,\t \tbaz=3",
            "\t foo=1,,bar=2, ,baz=3 \t,",
        ):
            self.assertEqual(self.state(value), "foo=1,bar=2,baz=3")
        self.assertEqual(self.state("foo=1", ""), "foo=1")
        self.assertEqual(self.state("", "foo=1"), "foo=1")
        self.assertEqual(self.state(""), "")
        self.assertNotIn("tracestate", context.lines_for(begun(("traceparent", GOOD), ("tracestate", "")), SPAN))

    def test_all_characters_that_are_allowed(self) -> None:
        key = "abcdefghijklmnopqrstuvwxyz0123456789_-*/"
        value = "".join(map(chr, (*range(0x20, 0x2C), *range(0x2D, 0x3D), *range(0x3E, 0x7F))))
        for name in (key, f"{key}@a-z0-9_-*/", "0a", "foo@", "foo@@bar", "foo@bar@baz"):
            self.assertEqual(self.state(f"{name}={value},bar=2"), f"{name}={value},bar=2")

    def test_one_fault_costs_all_of_it(self) -> None:
        for value in (
            *("foo =1", "FOO=1", "foo.bar=1", "@foo=1,bar=2", "_foo=1", "=1", "foo", "foo=1,bar"),
            *("foo=bar=baz", "foo=,bar=3", "foo=\x7f", "foo=a\xe9", "foo=a\tb"),
        ):
            self.assertEqual(self.state(value), "", value)

    def test_32_members_are_passed_on_and_33_are_not(self) -> None:
        members = [f"bar{number:02}={number:02}" for number in range(1, 34)]
        groups = [",".join(members[first : first + 10]) for first in range(0, 32, 10)]
        self.assertEqual(self.state(*groups[:3], ",".join(members[30:32])), ",".join(members[:32]))
        self.assertEqual(self.state(*groups[:3], ",".join(members[30:33])), "")

    def test_keys_and_values_have_256_characters_at_most(self) -> None:
        for key in ("z" * 256, "t" * 241 + "@" + "v" * 14, "t" * 242 + "@v", "t@" + "v" * 15):
            self.assertEqual(self.state("foo=1", f"{key}=1"), f"foo=1,{key}=1")
        self.assertEqual(self.state("foo=1", "z" * 257 + "=1"), "")
        self.assertEqual(self.state(f"foo={'1' * 256}"), f"foo={'1' * 256}")
        self.assertEqual(self.state(f"foo={'1' * 257}"), "")

    def test_of_a_long_one_the_long_members_are_left_out_then_the_last(self) -> None:
        long = f"long={'x' * 130}"
        short = [f"k{number:02}={'y' * 20}" for number in range(20)]
        state = self.state(",".join([long, *short]))
        self.assertLessEqual(len(state), 512)
        self.assertEqual(state, ",".join(short[:20])[: len(state)])
        self.assertNotIn("long", state)
        self.assertEqual(self.state(f"a={'x' * 250},b={'y' * 250},c=3"), f"a={'x' * 250},b={'y' * 250},c=3")
        self.assertEqual(self.state(f"a={'x' * 250},b={'y' * 250},c={'z' * 9}"), f"a={'x' * 250},c={'z' * 9}")


class Sampling(unittest.TestCase):
    def sampled(self, sampler: str, ratio: float, *headers: tuple[str, str]) -> bool:
        return begun(*headers, sampler=sampler, ratio=ratio).sampled

    def test_always_and_never(self) -> None:
        for flags in ("00", "01"):
            caller = ("traceparent", f"00-{TRACE}-{SPAN}-{flags}")
            self.assertTrue(self.sampled("always_on", 0.0, caller))
            self.assertFalse(self.sampled("always_off", 1.0, caller))
        self.assertTrue(self.sampled("always_on", 0.0))
        self.assertFalse(self.sampled("always_off", 1.0))

    def test_where_the_caller_decides_its_flag_counts(self) -> None:
        for kind in ("always_on", "always_off", "traceidratio"):
            for ratio in (0.0, 1.0):
                for flags, sampled in (("00", False), ("01", True), ("02", False), ("03", True)):
                    caller = ("traceparent", f"00-{TRACE}-{SPAN}-{flags}")
                    self.assertEqual(self.sampled(f"parentbased_{kind}", ratio, caller), sampled)
        self.assertFalse(self.sampled("parentbased_always_off", 1.0))
        self.assertTrue(self.sampled("parentbased_traceidratio", 1.0))
        self.assertFalse(self.sampled("parentbased_traceidratio", 0.0))

    def test_a_share_is_that_share_of_the_ids_that_the_gateway_makes(self) -> None:
        for ratio, least, most in ((0.01, 130, 275), (0.1, 1800, 2200), (0.5, 9700, 10300), (0.99, 19700, 19900)):
            begin = context.beginner("traceidratio", ratio, True)
            count = sum(begin({}, frozenset(), new_request_id()).sampled for _ in range(20_000))
            self.assertTrue(least < count < most, f"{ratio}: {count} of 20000")

    def test_whoever_is_sampled_at_a_share_is_so_at_a_larger_one(self) -> None:
        source = random.Random(7)
        ids = [f"{source.getrandbits(128):032x}" for _ in range(3000)]
        before: set[str] = set()
        for ratio in (0.0, 1e-9, 0.001, 0.01, 0.1, 1 / 3, 0.5, 0.9, 1.0):
            sampled = {one for one in ids if context.is_sampled(one, "", ratio)}
            self.assertLessEqual(before, sampled)
            before = sampled
        self.assertEqual(len(before), 3000)

    def test_the_last_56_bits_decide_and_nothing_else(self) -> None:
        # Half of all: what is at or above 0x80000000000000 (the table of the specification).
        for last, sampled in (("80000000000000", True), ("7fffffffffffff", False), ("f" * 14, True), ("0" * 14, False)):
            for first in ("0" * 17 + "1", "f" * 18):
                self.assertEqual(context.is_sampled(first + last, "", 0.5), sampled)
        self.assertEqual(context.rejected_below(0.01), "fd70a3d70a3d70")
        for nothing in (0.0, 1e-18):
            self.assertFalse(context.is_sampled("f" * 32, "", nothing))
        self.assertTrue(context.is_sampled("0" * 32, "", 1.0))

    def test_randomness_that_a_caller_has_named_counts_instead(self) -> None:
        low, high = f"{'1' * 18}{'0' * 14}", "f" * 32
        for state in ("ot=rv:ffffffffffffff", "a=1,ot=th:8;rv:ffffffffffffff", "ot=rv:ffffffffffffff;th:8,b=2"):
            self.assertTrue(context.is_sampled(low, state, 0.01), state)
        self.assertFalse(context.is_sampled(high, "ot=rv:00000000000000", 0.5))
        for state in ("ot=rv:fff", "ot=rv:FFFFFFFFFFFFFF", "not=rv:ffffffffffffff", "ot=xrv:ffffffffffffff", "ot=th:0"):
            self.assertFalse(context.is_sampled(low, state, 0.5), state)
        caller = ("traceparent", f"00-{low}-{SPAN}-00")
        self.assertTrue(self.sampled("traceidratio", 0.1, caller, ("tracestate", "ot=rv:ffffffffffffff")))


class Ids(unittest.TestCase):
    def test_no_id_is_all_zero(self) -> None:
        class Nothing(random.Random):
            def randbytes(self, n: int) -> bytes:
                return bytes(n - 9) + b"\1" + bytes(8)  # one id, and zeros

        with mock.patch.object(context, "_random", Nothing()), mock.patch.object(context, "_ids", []):
            self.assertEqual([context.new_span_id() for _ in range(3)], ["0" * 15 + "1"] * 3)

    def test_ids_are_made_by_several_threads_without_one_that_comes_twice(self) -> None:
        made: list[list[str]] = [[] for _ in range(4)]

        def make(into: list[str]) -> None:
            into.extend(context.new_span_id() for _ in range(5000))

        threads = [threading.Thread(target=make, args=(into,), name="ids") for into in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ids = [one for into in made for one in into]
        self.assertEqual(len(set(ids)), 20_000)
        self.assertTrue(all(re.fullmatch("[0-9a-f]{16}", one) for one in ids))


if __name__ == "__main__":
    unittest.main()
