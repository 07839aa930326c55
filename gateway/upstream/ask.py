"""What is asked of engines, in the words of each.

An `Ask` is the part of a `Call` that its engines hear of. It belongs to the thread that runs the call.
"""

from __future__ import annotations

from typing import Optional

from gateway.routing.params import Params
from gateway.upstream import answers
from gateway.upstream.estimates import tokens_of
from gateway.upstream.fields import BY_PATH, Prompts
from gateway.upstream.fieldtypes import Request
from gateway.upstream.shaping import shaped


class Ask:
    """A request, and what of it each engine gets. (Whoever makes one fills its slots.)"""

    __slots__ = ("_params", "_payloads", "_plain", "_prompts", "body", "path", "request", "rich", "stream")

    path: str
    request: Request
    rich: Optional[Request]
    body: bytes
    stream: bool
    _params: Optional[Params]
    _plain: Optional[tuple[Request, bytes]]
    _payloads: dict[tuple[Optional[str], bool, Optional[Params]], bytes]
    _prompts: Optional[Prompts]

    def change(self, params: Params) -> None:
        """Ask for something else from now on, whatever model answers."""
        self._become(shaped(self.path, self.request, params))
        if self.rich is not None:
            self.rich = shaped(self.path, self.rich, params)

    def put(self, name: str, value: object) -> None:
        """Ask for the same with another value of one member."""
        self._become({**self.request, name: value})
        if self.rich is not None:
            self.rich = {**self.rich, name: value}

    def adapt(self, params: Optional[Params]) -> None:
        """Be what the engines of the model that it asks get, in all that goes by the request; None: as it is."""
        if params is self._params:
            return
        self._plain = self._plain or (self.request, self.body)
        request, body = self._plain
        self._params = params
        self._become(shaped(self.path, request, params), body if params is None else None)

    def _become(self, request: Request, body: Optional[bytes] = None) -> None:
        """Ask for `request` from now on. `body`: its JSON; None: it is made."""
        if request is not self.request:
            self.request = request
            self.body = answers.dump(request) if body is None else body
            self._prompts = None
            self._payloads = {}

    @property
    def richest(self) -> Request:
        """All that is asked, with what only engines of another dialect know."""
        return self.request if self.rich is None else self.rich

    @property
    def unadapted(self) -> Request:
        """What is asked, whatever model answers."""
        return self.request if self._plain is None else self._plain[0]

    @property
    def is_adapted(self) -> bool:
        """Whether the model that it asks has its requests changed."""
        return self._params is not None

    def request_for(self, params: Optional[Params]) -> Request:
        """What the engines of a model with these `params` get."""
        if params is self._params:
            return self.request
        return shaped(self.path, self.unadapted, params)

    def payload(self, model: Optional[str], ask_usage: bool = False, params: Optional[Params] = None) -> bytes:
        """The body to send to an engine that knows the model as `model` (None: leave it as it is).

        `ask_usage`: ask for a stream's usage, which the client has not. `params`: of the engine's model.
        """
        if params is self._params and not ask_usage and (model is None or self.request.get("model") == model):
            return self.body
        key = (model, ask_usage, params)
        payload = self._payloads.get(key)
        if payload is None:
            payload = self._payloads[key] = self._build_payload(model, ask_usage, self.request_for(params))
        return payload

    def _build_payload(self, model: Optional[str], ask_usage: bool, request: Request) -> bytes:
        same = model is None or request.get("model") == model
        if same and request is self.request and "stream_options" not in request:
            # The object is known to be valid and not empty: the key goes in front, the rest stays as it came.
            start = self.body.index(b"{") + 1
            return b'{"stream_options":{"include_usage":true},' + self.body[start:]
        changed = dict(request)
        if model is not None:
            changed["model"] = model
        if ask_usage:
            options = changed.get("stream_options") or {}
            changed["stream_options"] = {**options, "include_usage": True}
        return answers.dump(changed)

    def estimated_tokens(self, params: Optional[Params] = None) -> int:
        """Tokens that the request may take of a model's context: the longest prompt's, estimated, and those asked for
        after it. `params`: of that model."""
        longest = tokens_of(self.prompts().longest)
        return longest + BY_PATH[self.path].answer_tokens(self.request_for(params))

    def wants_usage(self) -> bool:
        """Return whether the client itself asked for a stream's usage event."""
        options = self.request.get("stream_options") if self.stream else None
        return isinstance(options, dict) and options.get("include_usage") is True

    def choices(self) -> int:
        """Return how many choices a complete answer has: `n` for each prompt."""
        return BY_PATH[self.path].choices(self.request)

    def prompt_weight(self) -> int:
        """The weight of the prompt, for estimates (see `estimates.py`); a token number has that of a token."""
        return self.prompts().weight

    def prompts(self) -> Prompts:
        """Return how much engines are given to read, for estimates; looked at once."""
        prompts = self._prompts
        if prompts is None:  # (two threads would find the same)
            prompts = self._prompts = BY_PATH[self.path].prompts(self.request)
        return prompts
