"""The two ways to a verification: `POST /api/v1/inference`, and a model made of others behind `/v1/chat/completions`.

Steps of `pipeline.serve`. `Verify` owns the sandbox and holds no lock of its own; it asks no engine but by the `begin`
that it is given.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Optional

from gateway.asked import Asked
from gateway.errors import GatewayError, RequestRefused
from gateway.inference import Answer, Call
from gateway.reuse import keeping
from gateway.routing.router import Router
from gateway.routing.virtual import VirtualSpec
from gateway.settings import Settings
from gateway.steps import ASIDE, Steps
from gateway.telemetry.events import Mark
from gateway.upstream.answers import Usage, unix_now
from gateway.upstream.call import CHAT
from gateway.upstream.fields import BY_PATH
from gateway.upstream.nonfinite import dump_with_nulls
from gateway.verify import answering, question
from gateway.verify.building import sandbox_of
from gateway.verify.consensus import Decision
from gateway.verify.execution import Runs
from gateway.verify.panel import LARGE_BYTES, Begin, MakeCall, Member, Message, Panel
from gateway.verify.question import Ceilings, Question, RunLimits
from gateway.verify.verification import Verdict, Verification

ID_CHARS = 120  # of a request's id before the number of its part
NOT_PASSED_ON = ("model", "stream", "stream_options", "n")
PROMPT_CHARS = 200_000
RUNS_TOLD_MAX = 64


class Verify:
    """Answers what is to be verified. Thread-safe."""

    def __init__(self, settings: Settings, router: Router, begin: Begin) -> None:
        self._router = router
        self._begin = begin
        self.sandbox = sandbox_of(settings)
        self._ceilings = Ceilings(settings.sandbox_timeout_s, settings.sandbox_memory_mb << 20)
        self._timeout_s = settings.verify_timeout_s
        self._heal_attempts = settings.heal_attempts

    def close(self, timeout_s: float) -> None:
        """Kill what runs, and end the sandbox."""
        self.sandbox.close(timeout_s)

    # --- /api/v1/inference -----------------------------------------------------------------------------------------

    def infer(self, asked: Asked, request: dict[str, Any], known: Sequence[str]) -> Steps[Answer]:
        """The answers of all models of a request, compared. `known`: the models that its caller may use, those made of
        others among them. Raises GatewayError."""
        optional = BY_PATH[CHAT].optional

        def check(key: str, value: object) -> Optional[tuple[str, str]]:
            return optional[key](value)

        options = question.check_fields(request, check)
        prompt = question.check_prompt(request)
        mine = [name for name in known if self._router.virtual(name) is None]
        mine = [name for name in mine if self._router.is_within(name, asked.residency)]  # of those that are not named
        names = question.check_models(request, mine)
        if self._router.fleet.by_engines and request.get("models") is None:
            names = [self._router.unnamed() or name for name in names]  # there is one, which serves every name
        entry_point = question.check_entry_point(request)
        tests = question.check_tests(request, entry_point)
        members = self._members(names, known)
        messages = [{"role": "user", "content": prompt}]
        if request.get("system"):
            messages.insert(0, {"role": "system", "content": request["system"]})
        asks = Question(
            prompt,
            members,
            len(members),
            1,
            question.check_execution_config(request, self._ceilings),
            tuple(messages),
            tests.sources,
            tests.pairs,
            question.check_inputs(request),
            entry_point,
            question.check_flag(request, "execute_code", True),
            question.check_flag(request, "verify", True),
            show_runs=True,
        )
        call = asked.call = Call(CHAT, {"messages": messages, **options}, request_id=asked.request_id)
        call.priority = asked.priority = asked.identity.priority if asked.identity is not None else call.priority
        return self._infer(asked, call, asks)

    def _infer(self, asked: Asked, call: Call, asks: Question) -> Steps[Answer]:
        verdict, _ = yield from self._verified(asked, call, asks)
        chosen = verdict.decision.chosen
        call.served_model = None if chosen is None else verdict.voices[chosen].member.model
        yield from _aside_if_large(verdict)
        total_s = time.monotonic() - asked.accepted_s
        response = answering.response_of(verdict, asked.request_id, total_s, asks.execute)
        return Answer(dump_with_nulls(response), NOTHING)

    def _members(self, names: Sequence[str], known: Sequence[str]) -> tuple[Member, ...]:
        """The models of these names, each once. Raises `model_not_found`, `forbidden`, `invalid_models`."""
        router = self._router
        families = router.fleet.family_by_model()
        members: dict[str, Member] = {}
        for index, name in enumerate(names):
            if router.fleet.by_engines:
                members.setdefault(name, Member(name, name))
                continue
            where = f"models[{index}]"
            virtual = router.virtual(name)
            model = self._routed(name, known, where) if virtual is None else virtual.name
            if model not in known:
                raise RequestRefused("forbidden", f"the model {name[:200]} is not allowed for this key", param=where)
            if virtual is not None:
                raise RequestRefused("invalid_models", f"{where}: {name!r} is made of others", param=where)
            if model in members:
                text = f"{where}: {name!r} is in the list already: one model has one voice"
                raise RequestRefused("invalid_models", text, param=where)
            members[model] = Member(model, families[model])
        if not members:
            raise RequestRefused("forbidden", "this key may use no model", param="models")
        return tuple(members.values())

    def _routed(self, name: str, known: Sequence[str], where: str) -> str:
        """The model of a name that stands at `where` in the request."""
        try:
            return self._router.route(name, may_use=known.__contains__)[0].name
        except RequestRefused as error:
            raise RequestRefused(error.code, error.message, param=where) from None

    # --- a model made of others ------------------------------------------------------------------------------------

    def agree(self, asked: Asked, call: Call, virtual: VirtualSpec) -> Steps[Answer]:
        """The completion on which the members of a model agree, whole or as a stream. Raises GatewayError."""
        if call.choices() != 1:
            raise RequestRefused("invalid_n", f"n must be 1: {virtual.name} gives one answer", param="n")
        call.served_model = virtual.name
        names = self._router.fleet.model_by_name()
        families = self._router.fleet.family_by_model()
        there = [name for name in virtual.members if name in names and self._router.is_within(name, asked.residency)]
        if not there and asked.residency:
            text = f"no engine of what {virtual.name} is made of is in the region {asked.residency}"
            raise RequestRefused("residency_not_served", text, param="model")
        members = tuple(Member(names[name], families[names[name]]) for name in there)
        prompt = prompt_of(call.request["messages"])
        limits = RunLimits(self._ceilings.timeout_s, self._ceilings.memory_bytes, 1.0)
        named = names.get(virtual.judge or "")
        judge = None if named is None else Member(named, families[named])
        asks = Question(
            prompt,
            members,
            virtual.start or len(members),
            virtual.min_families,
            limits,
            tuple(call.request["messages"]),
            judge=judge,
        )
        return self._agree(asked, call, asks, virtual)

    def _agree(self, asked: Asked, call: Call, asks: Question, virtual: VirtualSpec) -> Steps[Answer]:
        verdict, calls = yield from self._verified(asked, call, asks, virtual.fallback)
        verification = answering.verification_of(verdict)
        chosen = verdict.decision.chosen
        assert chosen is not None  # somebody has answered
        yield from _aside_if_large(verdict)
        answer = verdict.voices[chosen].answer
        assert answer is not None and answer.parsed is not None
        body = {
            **answer.parsed,
            "id": asked.request_id,
            "object": "chat.completion",
            "created": answer.parsed.get("created") or unix_now(),
            "model": virtual.name,
            "choices": answer.parsed["choices"][:1],
            "usage": _usage_of(calls),
        }
        if not call.stream:
            return Answer(dump_with_nulls({**body, "verification": verification}), NOTHING)
        lines = keeping.as_events(dump_with_nulls(body), CHAT, call.wants_usage(), {"verification": verification})
        return Answer(lines, NOTHING)

    # --- both ------------------------------------------------------------------------------------------------------

    def _verified(
        self, asked: Asked, call: Call, asks: Question, fallback: str = ""
    ) -> Steps[tuple[Verdict, list[Call]]]:
        """The verdict, and all that members were asked. `fallback`: what to do without agreement; "": say so."""
        began_s = time.monotonic()
        panel = Panel(asked, self._begin, _caller(asked, call, asks.judge), began_s + self._timeout_s)
        verification = Verification(panel, asks, self.sandbox, self._heal_attempts)
        try:
            verdict = yield from verification.run()
        except BaseException:  # it is told how far it has come, whatever ends it
            asked.verification = answering.noted(None, panel.voices, verification.runs)
            raise
        finally:
            call.engine_s = time.monotonic() - began_s
            asked.marks += (*verification.marks, *_run_marks(verification.runs))
            call.attempts = sum(part.attempts for part in panel.calls)
        if fallback == "best":
            verdict = verdict._replace(decision=_with_an_answer(verdict))
        abstained = fallback == "abstain" and not answering.has_consensus(verdict)
        strategy = answering.ABSTAINED if abstained else None
        asked.verification = answering.noted(verdict.decision, verdict.voices, verification.runs, strategy)
        if abstained:
            told = answering.verification_of(verdict, strategy)
            text = "the models do not agree, and none of their answers is given"
            raise GatewayError("no_consensus", text, details={"verification": told})
        return verdict, panel.calls


NOTHING = Usage(0, 0, False)
"""What the request itself has used; its parts are charged by themselves."""


def _run_marks(runs: Runs) -> list[Mark]:
    """What is told of the programs that have run, but for the last of very many."""
    marks: list[Mark] = []
    for note in runs.notes[:RUNS_TOLD_MAX]:
        told = {"language": note.language, "harness": note.harness, "isolation": note.isolation, "result": note.result}
        marks.append(Mark("sandbox", note.began_s, note.seconds, told))
    return marks


def _caller(asked: Asked, call: Call, judge: Optional[Member]) -> MakeCall:
    request = {key: value for key, value in call.request.items() if key not in NOT_PASSED_ON}

    def make(member: Member, number: int, messages: Sequence[Message]) -> Call:
        options = {"temperature": 0} if member is judge else request
        part = Call(
            CHAT,
            {**options, "model": member.model, "messages": list(messages)},
            request_id=f"{asked.request_id[:ID_CHARS]}.{number}",
            session=call.session,
            allow_fallback=False,  # to another model, which would have two voices then
            priority=call.priority,
        )
        part.caller = call.caller
        if member is not judge:
            part.shape = call.shape
        return part

    return make


def _aside_if_large(verdict: Verdict) -> Steps[None]:
    """To a thread, where making an answer of all that was said takes a while."""
    if sum(len(voice.text) for voice in verdict.voices if voice.text is not None) > LARGE_BYTES:
        yield ASIDE


def _with_an_answer(verdict: Verdict) -> Decision:
    """The decision; where no program even ran, the first that has answered is as good as any."""
    decision = verdict.decision
    if decision.chosen is not None:
        return decision
    first = next(voice.index for voice in verdict.voices if voice.text is not None)
    return decision._replace(chosen=first, strategy="best_available")


def _usage_of(calls: Sequence[Call]) -> dict[str, int]:
    """The tokens of all members."""
    used = [call.usage for call in calls if call.usage is not None]
    prompt_tokens = sum(usage.prompt_tokens for usage in used)
    completion_tokens = sum(usage.completion_tokens for usage in used)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def prompt_of(messages: Sequence[dict[str, Any]]) -> str:
    """What users have said: examples may stand in it."""
    texts: list[str] = []
    for message in messages:
        if message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            texts += [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "\n\n".join(texts)[-PROMPT_CHARS:]
