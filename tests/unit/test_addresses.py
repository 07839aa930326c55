"""IPv4 addresses written as IPv6 are IPv4 addresses: as networks of proxies, as peers, in limits and in the log."""

from __future__ import annotations

import ipaddress
import unittest

from gateway.limits.addresses import address_group, client_address, unmapped
from gateway.settings import is_loopback
from gateway.settingvalues import networks


class MappedTest(unittest.TestCase):
    def test_networks_of_mapped_addresses_are_those_of_ipv4(self) -> None:
        for text, same in (
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:127.0.0.1", "127.0.0.1"),
            ("::FFFF:7f00:1/128", "127.0.0.1/32"),
            ("0:0:0:0:0:ffff:c0a8:0/112", "192.168.0.0/16"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("fd00::/8", "fd00::/8"),
            ("::1", "::1"),
        ):
            with self.subTest(text=text):
                self.assertEqual(networks(text), (ipaddress.ip_network(same),))

    def test_a_network_wider_than_ipv4_holds_no_ipv4(self) -> None:
        for text in ("::/0", "::fffe:0:0/95", "::/64"):
            self.assertEqual(client_address("::ffff:10.0.0.1", "1.1.1.1", networks(text)), "10.0.0.1")
            self.assertEqual(client_address("10.0.0.1", "1.1.1.1", networks(text)), "10.0.0.1")
        self.assertEqual(client_address("2001:db8::1", "1.1.1.1", networks("::/0")), "1.1.1.1")

    def test_a_mapped_network_with_bits_behind_its_mask_is_refused_as_any_other(self) -> None:
        with self.assertRaisesRegex(ValueError, "/104 has host bits"):
            networks("::ffff:10.0.0.1/104")

    def test_a_peer_is_trusted_however_it_and_its_network_are_written(self) -> None:
        for trusted in ("10.0.0.0/8", "::ffff:10.0.0.0/104", "fd00::/8, ::ffff:a00:0/104"):
            for peer in ("10.1.2.3", "::ffff:10.1.2.3", "::ffff:a01:203"):
                with self.subTest(trusted=trusted, peer=peer):
                    self.assertEqual(client_address(peer, "1.1.1.1", networks(trusted)), "1.1.1.1")
                    self.assertEqual(client_address(peer, "::ffff:1.1.1.1", networks(trusted)), "1.1.1.1")
                    self.assertEqual(client_address(peer, "1.1.1.1, ::ffff:10.9.9.9", networks(trusted)), "1.1.1.1")

    def test_a_peer_that_is_not_trusted_is_told_as_ipv4(self) -> None:
        for trusted in ("", "192.0.2.0/24"):
            self.assertEqual(client_address("::ffff:10.1.2.3", "1.1.1.1", networks(trusted)), "10.1.2.3")

    def test_only_mapped_addresses_change(self) -> None:
        for address in (
            "1.2.3.4",
            "::1",
            "2001:db8::1",
            "fe80::1%eth0",
            "::ffff:0:1",
            "::ffff:nonsense",
            "",
            "::1.2.3.4",
        ):
            self.assertEqual(unmapped(address), address if address != "::ffff:0:1" else "0.0.0.1")
        self.assertEqual(unmapped("::ffff:127.0.0.1"), "127.0.0.1")
        self.assertEqual(address_group("::ffff:7f00:1"), address_group("127.0.0.1"))

    def test_a_mapped_loopback_address_is_on_loopback(self) -> None:
        self.assertTrue(is_loopback("::ffff:127.0.0.1"))
        self.assertFalse(is_loopback("::ffff:0.0.0.0"))
        self.assertFalse(is_loopback("::ffff:10.0.0.1"))


if __name__ == "__main__":
    unittest.main()
