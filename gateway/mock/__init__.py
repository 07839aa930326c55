"""The mock engine: what stands behind the gateway in tests, demonstrations and load tests."""

from __future__ import annotations

from gateway.mock.behaviours import BehaviourError
from gateway.mock.gate import Gate
from gateway.mock.server import MockEngine, main

__all__ = ["BehaviourError", "Gate", "MockEngine", "main"]
