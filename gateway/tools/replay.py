"""`python main.py replay decisions.jsonl`: the recorded calls once more, through the same classes.

Builds the pools that the file's first line describes, with its seed, feeds them every call at its recorded time, and
reports the first decision that comes out differently. Reads one file; touches nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Callable, Optional

from gateway.routing.breaker import BreakerPolicy
from gateway.routing.checks import ECHO_URL
from gateway.routing.engine import Engine
from gateway.routing.line import Lease, Waiter
from gateway.routing.pool import ModelPool
from gateway.routing.retry import Outcome
from gateway.routing.router import Router
from gateway.routing.sources import DiscoverSpec, FileSource
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec, model_from

_DISCOVERED = DiscoverSpec(FileSource("-"))  # stands for whatever said where engines are, of which there may be none
_STRANGER = Engine(EngineSpec("echo:"), "")  # stands for an engine that is not the model's


class ReplayError(ValueError):
    """The file is no decision log, or cannot be replayed."""


# What values that nobody recorded lead to.
_UNUSABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class _Replay:
    """The pools, and the places and waiting requests that the recorded calls hold."""

    def __init__(self, first: dict[str, Any]) -> None:
        self._now_s = 0.0
        self.out: Optional[dict[str, Any]] = None
        self._leases: dict[tuple[str, str, int, Optional[int]], deque[Lease]] = {}
        self._waiters: dict[tuple[str, int], Waiter] = {}
        self.router = Router(
            fleet_from(first["models"], first.get("lists") is True),
            strategy=first["strategy"],
            fallback=first["fallback"],
            rng=Random(int(first["seed"])),
            clock=lambda: self._now_s,
            breaker=BreakerPolicy(*map(float, first["breaker"])),  # type: ignore[arg-type]  # a count may be 5.0
            recorder=self._recorded,
            region=first.get("region"),
            scattered=first.get("scattered") is True,
        )
        self._calls: dict[str, Callable[[ModelPool, dict[str, Any]], None]] = {
            "acquire": self._acquire,
            "last_resort": self._last_resort,
            "join": self._join,
            "leave": self._leave,
            "serve": self._serve,
            "answered": self._answered,
            "settle": self._settle,
            "probe": self._probe,
            "retry": lambda pool, line: void(pool.take_retry()),
            "reconfigure": self._reconfigure,
            "drain": self._drain,
            "hint": self._hint,
            "hear": self._hear,
            "weight": lambda pool, line: pool.set_weight(line["engine"], line["weight"]),
        }

    def _recorded(self, record: dict[str, Any]) -> None:
        self.out = record

    def step(self, line: dict[str, Any]) -> dict[str, Any]:
        """Make one recorded call; returns the record of what came of it now."""
        if line["op"] == "add":
            self._add(line)
            return line
        pool = self.router.pools[line["model"]]
        self._now_s = line["now_s"]
        self.out = None
        self._calls[line["op"]](pool, line)
        if self.out is None:
            raise ReplayError(f"the call {line['op']} decided nothing")
        record: dict[str, Any] = json.loads(json.dumps(self.out))
        return record

    def _add(self, line: dict[str, Any]) -> None:
        spec = model_from_json(line["model"], line["spec"])
        # Not through `reload`, which would reconfigure the other models too: that has records of its own.
        self.router.pools[spec.name] = self.router.new_pool(spec)
        # Of a former model of that name nothing more was recorded after its end.
        self._leases = {key: held for key, held in self._leases.items() if key[0] != spec.name}
        self._waiters = {key: waiter for key, waiter in self._waiters.items() if key[0] != spec.name}

    def _reconfigure(self, pool: ModelPool, line: dict[str, Any]) -> None:
        spec = model_from_json(pool.name, line["spec"])
        how = (line.get("forget", ()), line.get("keep_weights", False), line.get("unproven", False))
        pool.reconfigure(spec, line["strategy"], *how)
        self._served(pool)

    def _drain(self, pool: ModelPool, line: dict[str, Any]) -> None:
        pool.set_draining(line["engine"], line["draining"])
        self._served(pool)

    def _hint(self, pool: ModelPool, line: dict[str, Any]) -> None:
        pool.hint(line["engine"], line["left_s"])
        self._served(pool)

    def _hear(self, pool: ModelPool, line: dict[str, Any]) -> None:
        pool.hear(line["engine"], line["state"], line["left_s"])
        self._served(pool)

    def _keep(self, pool: ModelPool, lease: Optional[Lease]) -> None:
        if lease is not None:
            key = (pool.name, lease.engine.id, lease.ticket, lease.counted)
            self._leases.setdefault(key, deque()).append(lease)

    def _acquire(self, pool: ModelPool, line: dict[str, Any]) -> None:
        tried, avoid = _engines(pool, line["tried"]), _engines(pool, line.get("avoid", ()))
        self._keep(pool, pool.acquire(tried, bytes.fromhex(line["affinity"]), avoid, line.get("residency", "")))

    def _last_resort(self, pool: ModelPool, line: dict[str, Any]) -> None:
        self._keep(pool, pool.acquire_last_resort(_engines(pool, line["tried"]), line.get("residency", "")))

    def _join(self, pool: ModelPool, line: dict[str, Any]) -> None:
        waiter = pool.join_line(line["priority"], b"", line.get("residency", ""))
        if waiter is not None:
            self._waiters[pool.name, waiter.number] = waiter
        self._served(pool)

    def _leave(self, pool: ModelPool, line: dict[str, Any]) -> None:
        waiter = self._waiters.pop((pool.name, line["waiter"]), None)
        if waiter is None:
            raise ReplayError(f"nobody waits as number {line['waiter']}")
        pool.leave_line(waiter)

    def _serve(self, pool: ModelPool, line: dict[str, Any]) -> None:
        pool.serve_line()
        self._served(pool)

    def _settle(self, pool: ModelPool, line: dict[str, Any]) -> None:
        lease = self._held(pool, line)
        outcome = Outcome(line["outcome"], retry_after_s=line["retry_after_s"])
        pool.settle(lease, outcome, line["duration_s"], line["held_s"], line.get("doubted", False))
        self._served(pool)

    def _answered(self, pool: ModelPool, line: dict[str, Any]) -> None:
        lease = self._held(pool, line)
        pool.answered(lease, line["duration_s"])
        self._keep(pool, lease)
        self._served(pool)

    def _held(self, pool: ModelPool, line: dict[str, Any]) -> Lease:
        """Take out a place that a call is about: any of those with the same ticket that are counted alike."""
        leases = self._leases.get((pool.name, line["engine"], line["ticket"], line.get("counted")))
        if not leases:
            raise ReplayError(f"no place is held on {line['engine']} with ticket {line['ticket']}")
        # After a reload an engine and its successor of the same name may both hold places.
        removed = line["out"][0] == "removed"
        forgotten = line.get("forgotten", False)
        own = [lease for lease in leases if lease.engine.removed == removed] or leases
        lease = next((lease for lease in own if (lease.ticket < lease.engine.since_ticket) == forgotten), own[0])
        leases.remove(lease)
        return lease

    def _probe(self, pool: ModelPool, line: dict[str, Any]) -> None:
        engine = _engines(pool, [line["engine"]])[0]
        pool.record_probe(engine, line["error"], line["fails"], line["passes"])
        self._served(pool)

    def _served(self, pool: ModelPool) -> None:
        """Places that were handed to waiting requests are held from now on."""
        for (name, _), waiter in self._waiters.items():
            if name == pool.name and waiter.ready.is_set() and waiter.lease is not None:
                self._keep(pool, waiter.lease)
                waiter.ready.clear()


def void(value: object) -> None:
    """Drop a value."""


def _engines(pool: ModelPool, ids: Sequence[Optional[str]]) -> list[Engine]:
    known = {engine.id: engine for engine in pool.engines}
    return [_STRANGER if i is None else known[i] for i in ids]


def fleet_from(models: dict[str, Any], lists: bool = False) -> FleetSpec:
    """The fleet that a log's first line describes; where engines list more, `lists`, it may have no model at first.
    Raises ValueError."""
    specs = tuple(model_from_json(name, model) for name, model in models.items())
    return FleetSpec(specs, groups=(model_from("-", [ECHO_URL]),) if lists else ())


def model_from_json(name: str, model: dict[str, Any]) -> ModelSpec:
    """The model that a record describes. Raises ValueError, KeyError, TypeError."""
    return ModelSpec(
        name,
        tuple(EngineSpec(**engine) for engine in model["engines"]),
        strategy=model["strategy"],
        hedge_ratio=model["hedge_ratio"],
        hedge_after_ms=model["hedge_after_ms"],
        discover=_DISCOVERED if model.get("discovered") else None,
    )


def lines_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The file's lines with their numbers; a last line that was cut off is left out. Raises ReplayError and
    OSError."""
    first = Path(f"{path}.0")
    if not path.exists() and first.exists():
        raise ReplayError(f"there is none; each of several processes has written its own, the first {first.name}")
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                if text.endswith("\n"):
                    raise ReplayError(f"line {number} is not JSON") from None
                return
            if not isinstance(line, dict) or "op" not in line:
                raise ReplayError(f"line {number} is no decision")
            yield number, line


def replay(path: Path) -> tuple[int, Optional[str]]:
    """Replay a file: the number of decisions that came out the same, and the first difference, or None.

    Raises ReplayError and OSError.
    """
    run: Optional[_Replay] = None
    count = 0
    for number, line in lines_of(path):
        if run is None:
            if line["op"] != "start":
                raise ReplayError("the first line does not say what was started")
            try:
                run = _Replay(line)
            except _UNUSABLE as error:
                raise ReplayError(f"line 1: {error!r}") from error
            continue
        try:
            now = run.step(line)
        except _UNUSABLE as error:
            return count, f"line {number}: {line['op']} of {line.get('model')}: cannot be repeated ({error!r})"
        if now != line:
            keys = [key for key in line if now.get(key) != line[key]]
            what = ", ".join(f"{key}: recorded {line[key]!r}, now {now.get(key)!r}" for key in keys)
            return count, f"line {number}: {line['op']} of {line['model']}: {what}"
        count += 1
    if run is None:
        raise ReplayError("the file is empty")
    return count, None


def main(argv: Sequence[str], prog: str = "replay") -> int:
    """The command, called as `prog`; returns the exit status: 0 no difference, 1 a difference, 2 not a decision log."""
    parser = argparse.ArgumentParser(prog=prog, description="Repeat recorded decisions.")
    parser.add_argument("file", type=Path, help="what DECISION_LOG wrote")
    path = parser.parse_args(argv).file
    try:
        count, difference = replay(path)
    except (ReplayError, OSError) as error:
        print(f"error: {path}: {error}", file=sys.stderr)
        return 2
    if difference is not None:
        print(f"after {count} equal decisions, {difference}")
        return 1
    print(f"0 differences in {count}")
    return 0
