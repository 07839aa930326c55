"""What the settings say of the sandbox, put together."""

from __future__ import annotations

from pathlib import Path

from gateway.settings import Settings
from gateway.verify.sandbox.job import Limits
from gateway.verify.sandbox.sandbox import Sandbox
from gateway.verify.sandbox.texts import harness_sources

HARNESSES = Path(__file__).parent / "harness"


def sandbox_of(settings: Settings) -> Sandbox:
    """The sandbox; nothing is started before the first program runs, or `describe` is asked."""
    timeout_s = settings.sandbox_timeout_s
    return Sandbox(
        settings.sandbox,
        settings.sandbox_min,
        settings.sandbox_runtime,
        settings.sandbox_image,
        settings.sandbox_concurrency,
        harness_sources(HARNESSES),
        Limits(wall_s=timeout_s, cpu_s=timeout_s, memory_bytes=settings.sandbox_memory_mb << 20),
    )
