"""The metrics of verifications, from what their requests report.

Owns its metrics; what guards them is the registry's lock, which whoever calls `count_locked` holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.telemetry.registry import Registry

AGREEMENT_BUCKETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SANDBOX_BUCKETS_S = (*(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5), *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0))


class VerificationMetrics:
    """How verifications have ended, and the runs that they took."""

    def __init__(self, registry: Registry) -> None:
        self._results = registry.counter(
            "gateway_verifications_total", "Verifications, by how the answer was chosen.", ("result",)
        )
        self._agreement = registry.histogram(
            "gateway_verification_agreement",
            "The share of all members that agrees with the answer.",
            buckets=AGREEMENT_BUCKETS,
        ).labels()
        self._runs = registry.counter(
            "gateway_sandbox_runs_total",
            "Programs run, by what kept them apart and how they ended.",
            ("isolation", "result"),
        )
        self._seconds = registry.histogram(
            "gateway_sandbox_seconds",
            "Duration of programs that were run.",
            ("isolation",),
            buckets=SANDBOX_BUCKETS_S,
        )

    def count_locked(self, noted: Mapping[str, Any]) -> None:
        """Count one verification."""
        self._results.labels_locked(noted["result"]).value += 1
        if noted["agreement"] is not None:
            self._agreement.observe_locked(noted["agreement"])
        for isolation, result, seconds in noted["runs"]:
            isolation = isolation or "none"
            self._runs.labels_locked(isolation, result).value += 1
            self._seconds.labels_locked(isolation).observe_locked(seconds)
