"""What an engine says it serves: `GET {base}/models`.

What comes is a stranger's: its time, size, number and names are bounded, no redirect is followed, and what cannot be
used lists nothing. `ModelLists` decides whom to ask and when, and keeps the answer with the engine. It holds no lock:
an engine is asked by one thread at a time, and its list is replaced whole.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from typing import Any, Callable, Optional

from gateway.errors import GatewayError
from gateway.posting import Bounded
from gateway.routing import checks
from gateway.routing.engine import Engine, ListedModel
from gateway.routing.specs import EngineSpec
from gateway.steps import drive
from gateway.upstream.connecting import client_tls
from gateway.upstream.connections import ConnectionPool
from gateway.upstream.resolver import Resolver

LIST_MAX_BYTES = 4 << 20
HEARD_MAX_BYTES = 8 << 20  # with heads, interim answers and what frames chunks: their number is bounded nowhere else
LIST_MAX_MODELS = 1000
REMOTE_INTERVAL_S = 120.0  # between two looks at somebody else's list
TOKENS_MAX = 1_000_000_000  # of a context, as in the engines file
DIGITS_MAX = 18  # of a whole number: longer ones take some Pythons seconds
# What says nothing about the list: not now, or not with this key.
_NOT_NOW = frozenset((401, 403, 408, 425, 429))


class ModelLists:
    """Asks engines for their models. Thread-safe.

    `wanted` tells of which engines that is of use. `is_only` of those whose models go by other names where they list
    none; any other engine keeps its last list until it gives another one. `told` is called with one whose list is
    another.
    """

    def __init__(
        self,
        wanted: Callable[[Engine], bool],
        secrets: Callable[[], Mapping[str, str]],
        resolver: Optional[Resolver] = None,
        is_only: Callable[[Engine], bool] = lambda engine: True,
        told: Callable[[Engine], None] = lambda engine: None,
    ) -> None:
        self.wanted = wanted
        self._secrets = secrets
        self._resolver = resolver
        self._is_only = is_only
        self._told = told

    def due(self, engine: Engine, interval_s: float) -> bool:
        """Return whether to ask it now: once in `interval_s` seconds; 0: until it has said something. A provider is not
        asked more often than it has to be."""
        if not self.wanted(engine):
            return False
        since_s = time.monotonic() - engine.list_asked_s
        if engine.spec.preset.remote and since_s <= REMOTE_INTERVAL_S:
            return False
        if not interval_s:
            return engine.listed is None
        return since_s > interval_s / 2  # looks are an interval apart, and none of them on time

    def ask(self, engine: Engine, timeout_s: float) -> None:
        """Ask it; it keeps its last list when it cannot be asked now."""
        engine.list_asked_s = time.monotonic()
        spec = engine.spec
        secret = self._secrets().get(spec.api_key_env, "").strip() if spec.api_key_env else ""
        otherwise = () if self._is_only(engine) else None
        listed = ask_models(spec, secret, timeout_s, self._resolver, otherwise)
        if listed is not None and listed != engine.listed:
            engine.listed = listed
            self._told(engine)


def ask_models(
    spec: EngineSpec,
    secret: str,
    timeout_s: float,
    resolver: Optional[Resolver] = None,
    otherwise: Optional[tuple[ListedModel, ...]] = (),
) -> Optional[tuple[ListedModel, ...]]:
    """The models that the engine lists, in its order; `otherwise` when it says anything else; None: it cannot be asked
    now.

    `secret` is its key ("": none). `timeout_s` covers it all, however slowly bytes come. Raises nothing.
    """
    try:
        answer = ask_json(spec, spec.list_target(), secret, timeout_s, resolver)
    except NotNow:
        return None
    data = answer.get("data") if isinstance(answer, dict) else answer
    return models_in(data, spec.preset.list_prefix) if isinstance(data, list) else otherwise


class NotNow(Exception):
    """Nothing can be learned now: nobody answers, or not for this key."""


def ask_json(spec: EngineSpec, target: str, secret: str, timeout_s: float, resolver: Optional[Resolver] = None) -> Any:
    """What an engine's server answers to a GET, of JSON; None when it says anything else. Raises NotNow."""
    deadline_s = time.monotonic() + timeout_s
    try:
        tls = client_tls() if spec.scheme == "https" else None
        connection = drive(ConnectionPool(spec.host, spec.port, tls, timeout_s, resolver).connect(timeout_s))
        try:
            connection.sock.settimeout(max(0.001, deadline_s - time.monotonic()))
            connection.sock.sendall(_request(spec, target, secret))
            heard = Bounded(connection.sock, deadline_s, HEARD_MAX_BYTES, cuts=False)
            return _read(http.client.HTTPResponse(heard))  # type: ignore[arg-type]
        finally:
            connection.close()
    except (OSError, GatewayError, http.client.IncompleteRead) as error:
        raise NotNow from error
    except (http.client.HTTPException, ValueError, RecursionError):
        return None


def _request(spec: EngineSpec, target: str, secret: str) -> bytes:
    usual = checks.DEFAULT_PORT_BY_SCHEME[spec.scheme] == spec.port
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {checks.bracketed(spec.host)}{'' if usual else f':{spec.port}'}",
        "User-Agent: inference-gateway",
        "Accept: application/json",
        "Accept-Encoding: identity",
        "Connection: close",
        *spec.header_lines(secret),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def _read(response: http.client.HTTPResponse) -> Any:
    """What stands in an answer. Raises NotNow, and what HTTPResponse and the JSON reader raise."""
    response.begin()
    if response.status >= 500 or response.status in _NOT_NOW:
        raise NotNow
    if response.status != 200:
        return None
    body = response.read(LIST_MAX_BYTES + 1)
    if len(body) > LIST_MAX_BYTES:
        return None
    if response.length:  # that are missing
        raise NotNow
    return json.loads(body.decode("utf-8-sig"), parse_int=_whole)


def _whole(digits: str) -> int:
    return int(digits) if len(digits) <= DIGITS_MAX else -1


def models_in(data: list[Any], prefix: str = "") -> tuple[ListedModel, ...]:
    """The models of a list as OpenAI's has them, as far as they can be named; `prefix` is no part of a name."""
    found: dict[str, ListedModel] = {}
    for entry in data[:LIST_MAX_MODELS]:
        name = entry.get("id") if isinstance(entry, dict) else None
        name = name.removeprefix(prefix) if isinstance(name, str) else None
        if name is not None and not any(True for _ in checks.name(name)):
            found.setdefault(name, ListedModel(name, _tokens(entry.get("max_model_len"))))
    return tuple(found.values())


def _tokens(value: object) -> Optional[int]:
    fits = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= TOKENS_MAX
    return value if fits else None  # type: ignore[return-value]
