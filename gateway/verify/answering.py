"""What is told of a verification: the object beside an answer, the answer of `/api/v1/inference`, the log line.

Pure functions; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, Optional

from gateway.clock import unix_s
from gateway.verify.consensus import Decision
from gateway.verify.execution import Runs
from gateway.verify.harness.keys import is_error
from gateway.verify.panel import Voice
from gateway.verify.sandbox.job import Run
from gateway.verify.sandbox.sandbox import UNAVAILABLE
from gateway.verify.verification import Verdict, described

ABSTAINED = "abstained"
UNFINISHED = "unfinished"


def verification_of(verdict: Verdict, strategy: Optional[str] = None) -> dict[str, Any]:
    """The `verification` object. `strategy` overrides the decision's."""
    decision = verdict.decision
    names = [voice.member.model for voice in verdict.voices]
    ran = [judged for judged in verdict.judged.values() if not judged.unavailable and not judged.is_judges_fault]
    worked = [
        j for j in ran if j.error is None and (j.passed is None or j.passed == j.total) and _gave_something(j.keys)
    ]
    details: dict[str, Any] = {
        "members": [_member(voice) for voice in verdict.voices],
        "chosen": None if decision.chosen is None or strategy == ABSTAINED else names[decision.chosen],
        **decision.details,
    }
    if verdict.inputs is not None:
        details["entry_point"] = verdict.inputs.entry_point
    for key, is_judges_fault in (("failures", False), ("not_judged", True)):
        told = [(i, j.error) for i, j in verdict.judged.items() if j.error and j.is_judges_fault is is_judges_fault]
        if told:
            details[key] = {names[index]: error for index, error in told}
    if verdict.unavailable:
        details["error"] = UNAVAILABLE
    return {
        "verified": decision.verified,
        "consensus": has_consensus(verdict),
        "agreement": round(decision.agreement, 4),
        "successful_executions": len(worked),
        "total_executions": len(ran),
        "synthesis_strategy": strategy or decision.strategy,
        "groups": [[names[index] for index in group] for group in decision.groups],
        "details": details,
    }


def has_consensus(verdict: Verdict) -> bool:
    """Whether a strict majority of all members agrees, or a program passes the tests."""
    return verdict.decision.agrees or verdict.decision.strategy == "tests_passed"


def _gave_something(keys: Optional[tuple[str, ...]]) -> bool:
    return not keys or not all(map(is_error, keys))


def _member(voice: Voice) -> dict[str, Any]:
    shown: dict[str, Any] = {"model": voice.member.model, "latency": round(voice.latency_s, 4)}
    if voice.member.family != voice.member.model:
        shown["family"] = voice.member.family
    if voice.error is not None:
        shown["error"] = voice.error.code
    if voice.healed:
        shown["healed"] = True
    return shown


def response_of(verdict: Verdict, request_id: str, total_s: float, execute: bool) -> dict[str, Any]:
    """The answer of `POST /api/v1/inference`."""
    chosen = verdict.decision.chosen
    return {
        "request_id": request_id,
        "model_responses": [_response(verdict, voice, execute) for voice in verdict.voices],
        "verification": verification_of(verdict),
        "selected_response": None if chosen is None else verdict.voices[chosen].text,
        "total_latency": round(total_s, 4),
        "timestamp": moment(),
    }


def _response(verdict: Verdict, voice: Voice, execute: bool) -> dict[str, Any]:
    reading = verdict.readings.get(voice.index)
    blocks = () if reading is None else reading.blocks
    runs: list[dict[str, Any]] = []
    if execute and reading is not None and reading.program is not None:
        run = verdict.shown.get(voice.index)
        runs = [_run(run) if run is not None else _not_run("it did not end in time")]
    return {
        "model_name": voice.member.model,
        "provider": None if voice.call is None else voice.call.engine_id,
        "text": voice.text,
        "code_blocks": [block._asdict() for block in blocks],
        "execution_results": runs,
        "latency": round(voice.latency_s, 4),
        "timestamp": moment(),
        "error": None if voice.error is None else described(voice.error),
        "healed": voice.healed,
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "success": run.reason == "exit" and run.exit_code == 0,
        "exit_code": run.exit_code,
        "stdout": _text(run.stdout),
        "stderr": _text(run.stderr),
        "execution_time": round(run.seconds, 4),
        "error": run.error if run.error is not None else None if run.reason == "exit" else run.reason,
        "isolation": run.isolation or None,
        "truncated": run.truncated,
    }


def _not_run(why: str) -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(("exit_code", "stdout", "stderr", "isolation"))
    return {"success": False, **nothing, "execution_time": 0.0, "error": why, "truncated": False}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def noted(
    decision: Optional[Decision], voices: Sequence[Voice], runs: Runs, strategy: Optional[str] = None
) -> dict[str, Any]:
    """What the log line says of it, and the metrics count. `decision` None: it has ended before there was one."""
    return {
        "result": strategy or (UNFINISHED if decision is None else decision.strategy),
        "verified": decision is not None and decision.verified,
        "agreement": None if decision is None else round(decision.agreement, 4),
        "members": len(voices),
        "answered": sum(voice.text is not None for voice in voices),
        "healed": sum(voice.healed for voice in voices),
        "runs": [[note.isolation, note.result, round(note.seconds, 4)] for note in runs.notes],
    }


def moment() -> str:
    """Now, as ISO 8601 in UTC."""
    return datetime.fromtimestamp(unix_s(), timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
