"""DNS for discovery: messages as bytes, hostile ones included, and what the system's files say of names."""

from __future__ import annotations

import random
import struct
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any, Optional, Union

from gateway.discovery import message
from gateway.discovery.answers import Answer, DiscoveryError
from gateway.discovery.client import DnsClient, Records
from gateway.discovery.dns import DnsAsker, SrvAsker, found_in
from gateway.discovery.message import (
    AAAA,
    SOA,
    SRV,
    A,
    MalformedMessage,
    SrvData,
    answer_to,
    labels_of,
    parse,
    query,
    wire_name,
)
from gateway.discovery.names import ResolvConf, addresses_in_hosts, names_to_ask, parse_resolv_conf
from gateway.routing.sources import DnsSource, SrvSource, split_host_port
from tests.dnsbytes import a, answer, cname, name_bytes, record

REAL = {  # what dnsmasq 2.90 has said
    "engines.test 1": bytes.fromhex(
        "00018580000100020000000107656e67696e657304746573740000010001c00c000100010000000700047f00"
        "0002c00c000100010000000700047f00000300002904d0000000000000"
    ),
    "engines.test 28": bytes.fromhex(
        "00018580000100010000000107656e67696e6573047465737400001c0001c00c001c0001000000070010fd00"
        "000000000000000000000000000100002904d0000000000000"
    ),
    "alias.test 1": bytes.fromhex(
        "00018580000100030000000105616c69617304746573740000010001c00c0005000100000007000e07656e67"
        "696e6573047465737400c028000100010000000700047f000002c028000100010000000700047f0000030000"
        "2904d0000000000000"
    ),
    "_http._tcp.engines.test 33": bytes.fromhex(
        "000185800001000300000002055f68747470045f74637007656e67696e657304746573740000210001c00c00"
        "210001000000070012001400001f43057370617265047465737400c00c00210001000000070010000a00281f"
        "420374776f047465737400c00c00210001000000070010000a003c1f41036f6e65047465737400c075000100"
        "010000000700047f00000400002904d0000000000000"
    ),
    "nothing.test 1": bytes.fromhex(
        "000181830001000000000001076e6f7468696e670474657374000001000100002904d0000000000000"
    ),
    "one.test 28": bytes.fromhex("000181800001000000000001036f6e65047465737400001c000100002904d0000000000000"),
}
FUZZ_S = 1.5


class MessageTest(unittest.TestCase):
    def said(self, data: bytes, name: str, kind: int = A) -> message.Answer:
        return answer_to(parse(data), labels_of(name), kind)

    def test_what_a_real_server_says_is_read(self) -> None:
        for key, expected in {
            "engines.test 1": ("127.0.0.2", "127.0.0.3"),
            "engines.test 28": ("fd00::1",),
            "alias.test 1": ("127.0.0.2", "127.0.0.3"),
            "_http._tcp.engines.test 33": (
                SrvData(20, 0, 8003, "spare.test"),
                SrvData(10, 40, 8002, "two.test"),
                SrvData(10, 60, 8001, "one.test"),
            ),
            "nothing.test 1": (),
            "one.test 28": (),
        }.items():
            with self.subTest(key):
                name, kind = key.split()
                said = self.said(REAL[key], name, int(kind))
                self.assertEqual((said.data, said.ttl_s), (expected, 7 if expected else None))
        self.assertEqual(parse(REAL["nothing.test 1"]).rcode, message.NXDOMAIN)

    def test_a_question_is_as_rfc_1035_has_it_and_offers_larger_datagrams(self) -> None:
        asked = query(0x1234, wire_name((b"eNgines", b"test")), SRV)
        plain = "1234 0100 0001 0000 0000 0001 07 654e67696e6573 04 74657374 00 0021 0001"
        self.assertEqual(asked, bytes.fromhex(plain + "00 0029 04d0 00000000 0000"))
        bare = query(0x1234, wire_name((b"a",)), A, edns=False)
        self.assertEqual(bare, bytes.fromhex("1234 0100 0001 0000 0000 0000 01 61 00 0001 0001"))

    def test_names_that_cannot_be_asked_for_are_refused(self) -> None:
        for name in ("", ".", "a..b", "a" * 64, ".".join(["a" * 60] * 5)):
            with self.subTest(name), self.assertRaises(ValueError):
                labels_of(name)
        self.assertEqual(labels_of("a.b."), (b"a", b"b"))

    def test_a_chain_of_aliases_leads_to_addresses_and_lives_as_long_as_its_shortest_link(self) -> None:
        data = answer(
            "a.test", A, [cname("a.test", "b.test", 9), cname("B.TEST", "c.test", 5), a("c.TEST", "10.0.0.1")]
        )
        self.assertEqual(self.said(data, "A.test"), message.Answer(("10.0.0.1",), 5, ""))

    def test_a_chain_without_its_end_names_whom_to_ask_next(self) -> None:
        said = self.said(answer("a.test", A, [cname("a.test", "b.test", 9)]), "a.test")
        self.assertEqual(said, message.Answer((), 9, "b.test"))

    def test_a_circle_of_aliases_is_malformed(self) -> None:
        data = answer("a.test", A, [cname("a.test", "b.test"), cname("b.test", "a.test")])
        with self.assertRaisesRegex(MalformedMessage, "chain"):
            self.said(data, "a.test")

    def test_records_of_others_are_not_taken(self) -> None:
        data = answer(
            "a.test", A, [a("evil.test", "10.6.6.6"), a("a.test", "10.0.0.1")], more=[a("a.test", "10.6.6.6")]
        )
        self.assertEqual(self.said(data, "a.test").data, ("10.0.0.1",))
        other_class = record(name_bytes("a.test"), A, 60, b"\x0a\0\0\1", klass=3)
        self.assertEqual(self.said(answer("a.test", A, [other_class]), "a.test").data, ())

    def test_a_time_to_live_beyond_31_bits_is_none_at_all(self) -> None:
        self.assertEqual(self.said(answer("a.test", A, [a("a.test", "10.0.0.1", 0x8000_0001)]), "a.test").ttl_s, 0)
        longest = self.said(answer("a.test", A, [a("a.test", "10.0.0.1", 0x7FFF_FFFF)]), "a.test").ttl_s
        self.assertEqual(longest, message.TTL_MAX_S)

    def test_what_is_not_there_is_so_for_as_long_as_the_zone_says(self) -> None:
        soa = name_bytes("ns.test") + name_bytes("x.test") + struct.pack(">IIIII", 1, 2, 3, 4, 30)
        data = answer("a.test", A, [], 0x8183, authority=[record(name_bytes("test"), SOA, 90, soa)])
        self.assertEqual((parse(data).rcode, parse(data).negative_ttl_s), (message.NXDOMAIN, 30))

    def test_an_extended_rcode_counts(self) -> None:
        opt = b"\0" + struct.pack(">HHIH", message.OPT, 1232, 1 << 24, 0)
        self.assertEqual(parse(answer("a.test", A, [], more=[opt])).rcode, 16)

    def test_compressed_names_are_followed_backwards_only(self) -> None:
        whole = answer("a.test", A, [record(b"\xc0\x0c", A, 60, b"\x0a\0\0\1")])
        self.assertEqual(self.said(whole, "a.test").data, ("10.0.0.1",))
        for pointer in (b"\xc0\x18", b"\xc0\x19", b"\xff\xff"):  # to itself, forwards, beyond the end
            with self.subTest(pointer), self.assertRaises(MalformedMessage):
                parse(answer("a.test", A, [record(pointer, A, 60, b"\x0a\0\0\1")]))

    def test_two_pointers_that_lead_to_each_other_are_malformed(self) -> None:
        head = struct.pack(">HHHHHH", 1, 0x8180, 2, 0, 0, 0)
        with self.assertRaisesRegex(MalformedMessage, "pointer"):
            parse(head + b"\xc0\x10\0\1\0\1" + b"\xc0\x0c\0\1\0\1")

    def test_a_long_way_of_pointers_takes_no_time(self) -> None:
        # Each name of it leads through all that came before.
        data = struct.pack(">HHHHHH", 1, 0x8180, 0, 4000, 0, 0)
        data += record(b"\1a\0", 99, 0, b"\0\0" + b"".join(b"\xc0" + bytes([n]) for n in range(12, 250, 2)))
        with self.assertRaises(MalformedMessage):
            began_s = time.monotonic()
            parse(data + record(b"\xc0\xf0", 99, 0, b"") * 3999)
        self.assertLess(time.monotonic() - began_s, 2.0)

    def test_names_longer_than_255_bytes_are_malformed(self) -> None:
        long = b"".join(b"\x3f" + b"x" * 63 for _ in range(4)) + b"\0"
        with self.assertRaisesRegex(MalformedMessage, "255"):
            parse(answer("a.test", A, [record(long, A, 1, b"\x0a\0\0\1")]))

    def test_lengths_that_are_wrong_are_malformed(self) -> None:
        name = name_bytes("a.test")
        bad: dict[str, bytes] = {
            "empty": b"",
            "half a head": b"\0" * 11,
            "no question": struct.pack(">HHHHHH", 1, 0x8180, 1, 0, 0, 0),
            "fewer records than are said": answer("a.test", A, [])[:6] + b"\0\1" + answer("a.test", A, [])[8:],
            "an address of 3 bytes": answer("a.test", A, [record(name, A, 1, b"\x0a\0\0")]),
            "one of 15": answer("a.test", AAAA, [record(name, AAAA, 1, b"\0" * 15)]),
            "data beyond the end": answer("a.test", A, [name + struct.pack(">HHIH", A, 1, 1, 500) + b"\0"]),
            "a service of 5 bytes": answer("a.test", SRV, [record(name, SRV, 1, b"\0" * 5)]),
            "a target beyond its record": answer("a.test", SRV, [record(name, SRV, 1, b"\0" * 6), a("b.t", "1.1.1.1")]),
            "a label of an unknown kind": answer("a.test", A, [record(b"\x80a\0", A, 1, b"\0" * 4)]),
        }  # fmt: skip
        for what, data in bad.items():
            with self.subTest(what), self.assertRaises(MalformedMessage):
                parse(data)

    def test_a_truncated_answer_is_known_as_such_whatever_follows(self) -> None:
        said = parse(answer("a.test", A, [b"\xff\xff"], 0x8380))
        self.assertTrue(said.truncated)

    def test_bytes_that_were_changed_never_do_more_than_be_malformed(self) -> None:
        """For a while: flipped, cut, doubled and spliced real answers."""
        rng = random.Random(16)
        seeds = list(REAL.values())
        until_s = time.monotonic() + FUZZ_S
        read = 0
        while time.monotonic() < until_s:
            for _ in range(200):
                data = bytearray(rng.choice(seeds))
                for _ in range(rng.randint(1, 6)):
                    at = rng.randrange(len(data)) if data else 0
                    how = rng.randrange(5)
                    if how == 0 and data:
                        data[at] = rng.choice((0, 0xC0, 0xFF, 0x3F, rng.randrange(256)))
                    elif how == 1:
                        del data[at:]
                    elif how == 2:
                        data[at:at] = data[at : at + rng.randrange(40)]
                    elif how == 3:
                        other = rng.choice(seeds)
                        data[at:] = other[rng.randrange(len(other)) :]
                    else:
                        data[at : at + 2] = struct.pack(">H", rng.choice((0xC00C, 0xC000 + at % 0x3FFF, 0xFFFF, 0)))
                try:
                    said = parse(bytes(data))
                    for name, kind in (("engines.test", A), ("_http._tcp.engines.test", SRV), ("alias.test", A)):
                        answer_to(said, labels_of(name), kind)
                    read += 1
                except MalformedMessage:
                    pass
        self.assertGreater(read, 100)  # else nothing but heads was looked at


class NamesTest(unittest.TestCase):
    def test_resolv_conf_is_read_as_its_manual_has_it(self) -> None:
        conf = parse_resolv_conf(
            "# by somebody\nnameserver 10.0.0.10 ; the first\nnameserver fe80::1%eth0\nnameserver name.is.none\n"
            "nameserver [127.0.0.1]:5353\ndomain x.test\nsearch ns.svc.cluster.local svc.cluster.local.\n"
            "options ndots:5 timeout:2 attempts:99 rotate use-vc edns0 timeout:x\n\n"
        )
        servers = (("10.0.0.10", 53), ("fe80::1%eth0", 53), ("127.0.0.1", 5353))
        search = ("ns.svc.cluster.local", "svc.cluster.local")
        self.assertEqual(conf, ResolvConf(servers, search, 5, 2, 5, True, True))

    def test_without_servers_this_machine_is_asked(self) -> None:
        self.assertEqual(parse_resolv_conf("nameserver\noptions\n").servers, (("127.0.0.1", 53),))

    def test_names_with_enough_dots_are_first_asked_for_as_they_are(self) -> None:
        conf = ResolvConf(search=("x.test", "y.test"), ndots=2)
        self.assertEqual(list(names_to_ask("a.b.c", conf)), ["a.b.c", "a.b.c.x.test", "a.b.c.y.test"])
        self.assertEqual(list(names_to_ask("a.b", conf)), ["a.b.x.test", "a.b.y.test", "a.b"])
        self.assertEqual(list(names_to_ask("a.b.", conf)), ["a.b"])

    def test_a_dot_behind_the_name_of_a_source_spares_the_search(self) -> None:
        host, port = split_host_port("Engines.test.:8000")
        self.assertEqual((list(names_to_ask(host, ResolvConf(search=("x.test",)))), port), (["engines.test"], 8000))

    def test_hosts_goes_by_whole_names_in_any_case(self) -> None:
        text = (
            "127.0.0.1 localhost\n10.0.0.1\tengines Engines.test # engines.two\n"
            "10.0.0.1 ENGINES\nfe80::1%lo engines\nx engines\n"
        )
        self.assertEqual(addresses_in_hosts(text, "engines."), ["10.0.0.1", "fe80::1"])
        self.assertEqual(addresses_in_hosts(text, "engines.two"), [])


class ClientFilesTest(unittest.TestCase):
    def test_hosts_goes_before_any_server(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            hosts, conf = Path(folder, "hosts"), Path(folder, "resolv.conf")
            hosts.write_text("10.0.0.1 engines\nfd00::1 engines\n")
            conf.write_text("nameserver 192.0.2.1\n")
            client = DnsClient(resolv_conf=conf, hosts=hosts)
            self.assertEqual(client.look_up("engines", A), Records(("10.0.0.1",), None))
            self.assertEqual(client.look_up("engines", AAAA), Records(("fd00::1",), None))

    def test_without_resolv_conf_services_cannot_be_asked_for(self) -> None:
        with self.assertRaisesRegex(DiscoveryError, "SRV"):
            DnsClient(resolv_conf=Path("/nowhere/resolv.conf")).look_up("_http._tcp.x.test", SRV)


class Played:
    """Stands in for a client: what each kind of record is, or why it cannot be had."""

    def __init__(self, **by_kind: Union[Records, Exception]) -> None:
        self.by_kind = by_kind

    def look_up(self, name: str, kind: int) -> Records:
        said = self.by_kind[{A: "a", AAAA: "aaaa", SRV: "srv"}[kind]]
        if isinstance(said, Exception):
            raise said
        return said


class AskerTest(unittest.TestCase):
    def asker(self, family: Optional[str] = None, **by_kind: Union[Records, Exception]) -> tuple[DnsAsker, Played]:
        played: Any = Played(**by_kind)
        return DnsAsker(DnsSource("engines.test:8000", family), played), played

    def hosts(self, said: Answer) -> list[str]:
        return [one.host for one in said.found]

    def test_each_address_is_an_engine_in_the_order_of_addresses_until_the_first_record_ends(self) -> None:
        asker, _ = self.asker(a=Records(("10.0.0.9", "10.0.0.10", "10.0.0.2"), 30), aaaa=Records(("fd00::1",), 20))
        said = asker.ask()
        self.assertEqual(self.hosts(said), ["10.0.0.2", "10.0.0.9", "10.0.0.10", "fd00::1"])
        self.assertEqual((said.again_s, {one.port for one in said.found}), (20, {8000}))

    def test_one_family_is_enough_when_the_other_is_not_there(self) -> None:
        asker, _ = self.asker(a=Records(("10.0.0.1",), 30), aaaa=Records((), 1))
        self.assertEqual((self.hosts(asker.ask()), asker.ask().again_s), (["10.0.0.1"], 30))

    def test_only_one_family_is_asked_for_where_that_is_said(self) -> None:
        asker, _ = self.asker("ipv6", aaaa=Records(("fd00::1",), 20))
        self.assertEqual(self.hosts(asker.ask()), ["fd00::1"])

    def test_a_family_that_cannot_be_had_is_as_it_was(self) -> None:
        asker, played = self.asker(a=Records(("10.0.0.1",), 30), aaaa=Records(("fd00::1",), 20))
        asker.ask()
        played.by_kind["aaaa"] = DiscoveryError("SERVFAIL")
        played.by_kind["a"] = Records(("10.0.0.2",), 30)
        self.assertEqual(self.hosts(asker.ask()), ["10.0.0.2", "fd00::1"])

    def test_a_failure_beside_nothing_is_a_failure(self) -> None:
        asker, _ = self.asker(a=Records((), 5), aaaa=DiscoveryError("SERVFAIL"))
        with self.assertRaises(DiscoveryError):
            asker.ask()

    def test_an_address_needs_no_look_up(self) -> None:
        self.assertEqual(self.hosts(DnsAsker(DnsSource("[FD00::1]:80")).ask()), ["fd00::1"])

    def test_a_service_has_weights_and_priorities(self) -> None:
        records = (SrvData(10, 60, 8001, "b.test"), SrvData(20, 0, 8003, "c.test"), SrvData(10, 40, 8002, "a.test"))
        played: Any = Played(srv=Records(records, 7))
        said = SrvAsker(SrvSource("_http._tcp.x.test"), played).ask()
        self.assertEqual(
            [(one.host, one.port, dict(one.own)) for one in said.found],
            [
                ("a.test", 8002, {"weight": 40, "priority": 10}),
                ("b.test", 8001, {"weight": 60, "priority": 10}),
                ("c.test", 8003, {"weight": 1, "priority": 20}),
            ],
        )
        self.assertEqual(said.again_s, 7)

    def test_a_service_that_is_said_not_to_be_there_has_no_engines(self) -> None:
        records = [SrvData(0, 0, 0, ""), SrvData(0, 0, 80, ""), SrvData(0, 0, 0, "a.test"), SrvData(0, 0, 80, "?")]
        self.assertEqual(found_in(records), [])
        self.assertEqual(dict(found_in([SrvData(0, 0, 80, "a.test")])[0].own), {"priority": 0})
