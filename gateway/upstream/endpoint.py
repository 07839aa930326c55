"""What is prepared once per engine.

Owns an engine's connections and the parts of its requests that never change; made once, then only read.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from typing import Callable, Optional

from gateway.routing.retry import Outcome
from gateway.routing.specs import EngineSpec
from gateway.upstream.connecting import client_tls
from gateway.upstream.connection import Asked
from gateway.upstream.connections import ConnectionPool, nobody
from gateway.upstream.fields import BY_PATH
from gateway.upstream.framing import chunk
from gateway.upstream.passed import Form
from gateway.upstream.resolver import Resolver
from gateway.upstream.words import details_without, without

_JSON = b"Content-Type: application/json\r\n"


class Endpoint:
    """What is prepared once per engine: connections, request heads, the engine's own name of the model.

    Raises GatewayError when the gateway has run out of what that takes.
    """

    def __init__(
        self,
        spec: EngineSpec,
        secrets: Mapping[str, str],
        connect_timeout_s: float,
        resolver: Optional[Resolver] = None,
        on_surplus: Callable[[Asked], None] = nobody,
    ) -> None:
        self.spec = spec
        # Whether the gateway asks for a stream's usage on its own; False once it has been refused (see `Asker`). Set by
        # any thread, to False only: who has read it before asks once too often.
        self.asks_usage = spec.usage_in_streams
        tls = client_tls() if spec.scheme == "https" else None
        self.pool = ConnectionPool(spec.host, spec.port, tls, connect_timeout_s, resolver, on_surplus)
        self._secret = secrets.get(spec.api_key_env, "").strip() if spec.api_key_env else ""
        self._prepared: dict[str, tuple[bytes, dict[str, object]]] = {}

    def prepare(self, path: str) -> tuple[bytes, dict[str, object]]:
        """The constant part of the head, and the attributes of a urllib Request, for `path`."""
        prepared = self._prepared.get(path)
        if prepared is None:
            spec = self.spec
            host = f"[{spec.host}]" if ":" in spec.host else spec.host
            if spec.port != (443 if spec.scheme == "https" else 80):
                host = f"{host}:{spec.port}"
            target = spec.target(path)
            row = BY_PATH[path]
            lines = [
                f"{row.method} {target} HTTP/1.1",
                f"Host: {host}",
                f"Accept: {'*/*' if row.passes else 'application/json, text/event-stream'}",
                "Accept-Encoding: identity",
                "User-Agent: inference-gateway",
                *spec.header_lines(self._secret),
            ]
            head = "\r\n".join(lines).encode("latin-1") + b"\r\n"
            template = urllib.request.Request(f"{spec.scheme}://{host}{target}", method=row.method)
            prepared = self._prepared[path] = (head, dict(template.__dict__))
        return prepared

    def masked(self, outcome: Outcome) -> Outcome:
        """The outcome as others may read it: an engine may have repeated the key that it was asked with."""
        secret = self._secret
        if not secret:
            return outcome
        details = None if outcome.details is None else details_without(secret, outcome.details)
        return outcome._replace(message=without(secret, outcome.message), details=details)

    def wire(self, path: str, body: bytes, headers: bytes) -> bytes:
        """The bytes of a request with a body of JSON."""
        head = (self._prepared.get(path) or self.prepare(path))[0]
        return b"%b%b%bContent-Length: %d\r\n\r\n%b" % (head, _JSON, headers, len(body), body)

    def wire_of_form(self, path: str, form: Form, model: Optional[str], headers: bytes) -> bytes:
        """The bytes that a request with a form begins with, for an engine that knows the model as `model`."""
        begin, length = form.for_model(model)
        if length is None:
            framing, begin = b"Transfer-Encoding: chunked", chunk(begin)
        else:
            framing = b"Content-Length: %d" % length
        head, kind = self.prepare(path)[0], b"Content-Type: %b" % form.content_type
        return b"%b%b%b\r\n%b\r\n\r\n%b" % (head, headers, kind, framing, begin)

    def wire_of_nothing(self, path: str, headers: bytes) -> bytes:
        """The bytes of a request without a body."""
        return b"%b%b\r\n" % (self.prepare(path)[0], headers)
