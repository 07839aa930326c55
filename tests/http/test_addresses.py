"""A gateway that listens to IPv4 and IPv6 in one socket: whose address counts."""

from __future__ import annotations

import socket
import unittest

from tests.access import ADMIN_KEYS, AccessTest, bearer
from tests.support import CHAT, HI, RunningGateway, request_bytes


def listens_to_both() -> bool:
    """Whether one socket takes IPv4 and IPv6 here."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
                return False
            sock.bind(("::", 0))
            return True
    except (OSError, AttributeError):
        return False


@unittest.skipUnless(listens_to_both(), "no socket here takes IPv4 and IPv6")
class BothFamiliesTest(AccessTest):
    """A gateway that listens to both, asked over IPv4: its sockets tell the peer as ::ffff:127.0.0.1."""

    def serve_both(self, **variables: object) -> RunningGateway:
        return self.serve(HOST="::", ADMIN_KEYS=ADMIN_KEYS, API_KEYS="alice:sk-alice-0123456789", **variables)

    def clients(self, running: RunningGateway, headers: list[tuple[str, str]]) -> set[str]:
        """Which client the log names: of requests served on the loop, on a thread (chunked), and refused."""
        seen = []
        whole = running.post(headers=[*bearer("sk-alice-0123456789"), *headers])
        with running.connect() as client:
            chunked = [*bearer("sk-alice-0123456789"), *headers, ("Transfer-Encoding", "chunked")]
            client.send(request_bytes("POST", CHAT, None, chunked))
            body = b'{"messages":[{"role":"user","content":"x"}]}'
            client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            seen.append(client.read_response())
        seen += [whole, running.post(HI, headers=[*bearer("wrong"), *headers])]
        self.assertEqual([answer.status for answer in seen], [200, 200, 401])
        return {running.request_line(answer.request_id)["client"] for answer in seen}

    def test_the_peer_is_its_ipv4_address_in_log_and_audit(self) -> None:
        running = self.serve_both()
        self.assertEqual(self.clients(running, []), {"127.0.0.1"})
        self.assertEqual([line["client"] for line in self.audit(running, "authentication_refused")], ["127.0.0.1"])

    def test_the_peer_is_a_trusted_proxy_by_either_name(self) -> None:
        for trusted in ("127.0.0.1", "::ffff:127.0.0.0/104"):
            running = self.serve_both(TRUSTED_PROXIES=trusted)
            self.assertEqual(self.clients(running, [("X-Forwarded-For", "::ffff:203.0.113.7")]), {"203.0.113.7"})
            running.stop()

    def test_both_families_share_the_limit_of_an_address(self) -> None:
        running = self.serve_both(RATE_LIMIT_IP_RPM=20, TRUSTED_PROXIES="127.0.0.1")
        self.freeze(running)
        key = bearer("sk-alice-0123456789")
        statuses = [
            running.post(headers=[*key, ("X-Forwarded-For", address)]).status
            for address in ("203.0.113.7", "::ffff:203.0.113.7", "::ffff:cb00:7107", "203.0.113.7")
        ]
        self.assertEqual(statuses, [200, 200, 429, 429])


if __name__ == "__main__":
    unittest.main()
