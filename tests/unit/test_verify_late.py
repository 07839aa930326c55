"""What is loaded late, and the look at the sandbox that tells beforehand where nothing will ever be verified."""

from __future__ import annotations

import queue
import threading
import unittest
from typing import Any, Optional, cast

from gateway.routing.router import Router
from gateway.routing.specs import FleetSpec, model_from
from gateway.routing.virtual import VirtualSpec
from gateway.settings import load
from gateway.verify.late import NAMED_MAX, Late
from gateway.verify.serving import Verify

TIMEOUT_S = 10.0


class FakeSandbox:
    """A sandbox whose level is known when the test says so."""

    def __init__(self, level: Optional[str]) -> None:
        self.tried, self.known = threading.Event(), threading.Event()
        self.closed = False
        self._level = level

    def level(self) -> Optional[str]:
        self.tried.set()
        self.known.wait(TIMEOUT_S)
        return None if self.closed else self._level

    def describe(self) -> list[str]:
        return ["sandbox: nothing is run, no level can be used", "sandbox: not container: no image: sandbox: x"]

    def close(self, timeout_s: float = 0.0) -> None:
        self.closed = True
        self.known.set()


class LateTest(unittest.TestCase):
    def late(self, *virtual: VirtualSpec, sandbox: Optional[FakeSandbox] = None, **variables: str) -> Late:
        fleet = FleetSpec((model_from("a", ["http://a"]), model_from("b", ["http://b"])), virtual=virtual)
        late = Late(load({"STATE_DB": "none.db", **variables}, None), Router(fleet))
        late.begin = cast(Any, None)
        if sandbox is not None:
            verify = Verify(late._settings, late._router, late.begin)
            verify.sandbox = cast(Any, sandbox)
            late._made[""] = verify
        self.addCleanup(late.close, TIMEOUT_S)
        return late

    def told(self, late: Late) -> str:
        """What the look has to say."""
        told: queue.SimpleQueue[str] = queue.SimpleQueue()
        late.look(told.put)
        return told.get(timeout=TIMEOUT_S)

    def test_nothing_is_loaded_and_nothing_tried_without_models_made_of_others(self) -> None:
        late = self.late()
        late.look(lambda message: self.fail(message))
        self.assertEqual((late._made, late._lookers._threads), ({}, set()))

    def test_what_is_switched_off_or_too_weak_is_told_with_the_models(self) -> None:
        virtual = VirtualSpec("v", ("a", "b"))
        start = "no program is run for v, so no answer is verified: "
        self.assertEqual(self.told(self.late(virtual, SANDBOX="off")), f"{start}off, nothing is run")
        told = self.told(self.late(virtual, SANDBOX="process"))
        weak = "process is weaker than namespaces, the least that is demanded"
        self.assertEqual(told, f"{start}nothing is run, no level can be used; {weak}")

    def test_why_no_level_can_be_used_is_told(self) -> None:
        sandbox = FakeSandbox(None)
        sandbox.known.set()
        told = self.told(self.late(VirtualSpec("v", ("a", "b")), sandbox=sandbox))
        self.assertTrue(
            told.endswith(": nothing is run, no level can be used; not container: no image: sandbox: x"), told
        )

    def test_of_many_models_some_are_named(self) -> None:
        told = self.told(self.late(*(VirtualSpec(f"v{i}", ("a", "b")) for i in range(NAMED_MAX + 3)), SANDBOX="off"))
        self.assertIn(f"v{NAMED_MAX - 1} and 3 more, so", told)

    def test_where_programs_can_run_nothing_is_said_and_the_start_waits_for_nothing(self) -> None:
        sandbox = FakeSandbox("namespaces")
        late = self.late(VirtualSpec("v", ("a", "b")), sandbox=sandbox)
        told: list[str] = []
        late.look(told.append)
        self.assertTrue(sandbox.tried.wait(TIMEOUT_S))
        self.assertFalse(sandbox.known.is_set())
        sandbox.known.set()
        late.close(TIMEOUT_S)
        self.assertEqual(told, [])

    def test_the_end_ends_the_look_and_it_says_nothing(self) -> None:
        sandbox = FakeSandbox(None)
        late = self.late(VirtualSpec("v", ("a", "b")), sandbox=sandbox)
        told: list[str] = []
        late.look(told.append)
        self.assertTrue(sandbox.tried.wait(TIMEOUT_S))
        late.close(TIMEOUT_S)
        self.assertTrue(sandbox.closed)
        self.assertEqual(told, [])
        self.assertFalse([thread.name for thread in late._lookers._threads if thread.is_alive()])

    def test_a_look_behind_the_end_tries_nothing(self) -> None:
        sandbox = FakeSandbox("namespaces")
        late = self.late(VirtualSpec("v", ("a", "b")))
        late.close(TIMEOUT_S)
        verify = Verify(late._settings, late._router, late.begin)
        verify.sandbox = cast(Any, sandbox)
        late._made[""] = verify
        late._look(lambda message: self.fail(message))
        self.assertTrue(sandbox.closed)


if __name__ == "__main__":
    unittest.main()
