"""What is looked up of engines before it is told, through the library."""

from __future__ import annotations

import unittest
from unittest import mock

from gateway.announcing import look
from gateway.inference import InferenceFactory
from gateway.routing.specs import FleetSpec, model_from
from tests.naming import Names
from tests.support import TIMEOUT_S


class LookTest(unittest.TestCase):
    def test_names_are_looked_up_also_where_nothing_is_probed_or_kept(self) -> None:
        names = Names(api_cloud_example=["10.0.0.9"])
        names.answers["gone.cloud.example"] = OSError("not found")
        fleet = FleetSpec(
            tuple(model_from(host[0], [f"http://{host}"]) for host in ("gone.cloud.example", "api.cloud.example"))
        )
        for ttl_s in (0.0, 30.0):
            with (
                mock.patch("socket.getaddrinfo", names),
                InferenceFactory(fleet, health_interval_s=0, dns_ttl_s=ttl_s) as factory,
            ):
                self.assertTrue(look(factory, TIMEOUT_S))
                self.assertIs(factory.client.is_near("api.cloud.example"), True)
                self.assertIsNone(factory.client.is_near("gone.cloud.example"))

    def test_it_is_bounded(self) -> None:
        names = Names()
        names.hold("api.cloud.example")
        fleet = FleetSpec((model_from("m", ["http://api.cloud.example"]),))
        with mock.patch("socket.getaddrinfo", names), InferenceFactory(fleet, health_timeout_s=60.0) as factory:
            self.assertFalse(look(factory, 0.05))
            names.release()
        names.hold("api.cloud.example")
        with mock.patch("socket.getaddrinfo", names), InferenceFactory(fleet, health_interval_s=0) as factory:
            self.assertFalse(look(factory, 0.05))
            names.release()


if __name__ == "__main__":
    unittest.main()
