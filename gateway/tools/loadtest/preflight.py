"""Before the load: is the server there, at which of its addresses, and what models has it. Blocks, each step within a
limit.

Nothing is counted here, so nothing of it is part of what is measured.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from typing import Any, NamedTuple

from gateway.posting import Bounded
from gateway.tools.loadtest.connections import Endpoint, told
from gateway.tools.loadtest.plan import Plan

_LISTED_BYTES = 8 << 20


class Unreachable(Exception):
    """There is nobody to ask, or nothing to ask for; the text is for the user."""


class Found(NamedTuple):
    """Where the server listens, and the models that are asked, with weights; `listed`: how many it lists, 0 where it
    was not asked."""

    endpoint: Endpoint
    models: tuple[tuple[str, float], ...]
    listed: int


def find(plan: Plan) -> Found:
    """Look. Raises Unreachable."""
    endpoint = _reached(plan, _tls(plan))
    if plan.models:
        return Found(endpoint, plan.models, 0)
    names = _listed(plan, endpoint)
    return Found(endpoint, ((names[0], 1.0),), len(names))


def head_of(plan: Plan) -> bytes:
    """The head of every request, up to the length of its body."""
    fields = {"host": ("Host", plan.base.authority), "content-type": ("Content-Type", "application/json")}
    fields["accept"] = ("Accept", "*/*")
    fields["user-agent"] = ("User-Agent", "loadtest")
    if plan.key is not None:
        fields["authorization"] = ("Authorization", f"Bearer {plan.key}")
    lines = {**fields, **{name.lower(): (name, value) for name, value in plan.headers}}
    if not plan.keepalive:
        lines["connection"] = ("Connection", "close")
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.values())
    return f"POST {plan.base.prefix}{plan.path} HTTP/1.1\r\n{text}".encode("latin-1")


def _tls(plan: Plan) -> Any:
    if not plan.base.secure:
        return None
    try:
        context = ssl.create_default_context(cafile=None if plan.ca_file is None else str(plan.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise Unreachable(f"--cacert: {plan.ca_file}: {error.strerror or error}") from error
    if plan.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _reached(plan: Plan, tls: Any) -> Endpoint:
    """The first of the server's addresses at which it takes a connection, and TLS where that is spoken."""
    base = plan.base
    try:
        addresses = socket.getaddrinfo(base.host, base.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"cannot look up {base.host}: {getattr(error, 'strerror', None) or error}") from error
    deadline_s = time.monotonic() + plan.connect_s
    faults = []
    for family, _, _, _, address in addresses:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            break
        try:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.settimeout(left_s)
                sock.connect(address)
                if tls is not None:
                    tls.wrap_socket(sock, server_hostname=base.host).close()
            return Endpoint(family, address, tls, base.host)
        except OSError as error:
            timed_out = isinstance(error, (socket.timeout, TimeoutError))
            text = f"no answer within {plan.connect_s:g} s" if timed_out else _why(error)
            faults.append(f"{address[0]}: {text}" if len(addresses) > 1 else text)
    raise Unreachable(f"cannot reach {base.url}: {'; '.join(dict.fromkeys(faults)) or 'no address'}")


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message} (--cacert FILE, or --insecure)"
    if isinstance(error, ssl.SSLError):
        return f"it speaks no TLS that we do ({error.reason or error})"
    return told(error)


def _listed(plan: Plan, endpoint: Endpoint) -> list[str]:
    base = plan.base
    connection: http.client.HTTPConnection
    if endpoint.tls is None:
        connection = http.client.HTTPConnection(base.host, base.port, timeout=plan.timeout_s)
    else:
        connection = http.client.HTTPSConnection(base.host, base.port, timeout=plan.timeout_s, context=endpoint.tls)
    headers = dict(plan.headers)
    if plan.key is not None and "authorization" not in {name.lower() for name in headers}:
        headers["Authorization"] = f"Bearer {plan.key}"
    where = f"{base.url}/v1/models"
    advice = "name a model with --model"
    try:
        connection.request("GET", f"{base.prefix}/v1/models", headers=headers)
        # Not `connection.getresponse`, which has a limit for each wait and none for them all.
        bounded = Bounded(connection.sock, time.monotonic() + plan.timeout_s, _LISTED_BYTES)
        answer = http.client.HTTPResponse(bounded, method="GET")  # type: ignore[arg-type]
        answer.begin()
        body = answer.read(_LISTED_BYTES)
    except (OSError, http.client.HTTPException, ValueError) as error:  # the last one of a chunk of a negative size
        text = told(error) if isinstance(error, OSError) else type(error).__name__
        raise Unreachable(f"cannot ask {where} for a model: {text}; {advice}") from error
    finally:
        connection.close()
    if answer.status in (401, 403):
        wanted = f"does not take the key from {plan.key_from}" if plan.key else "wants a key (LOADTEST_KEY)"
        raise Unreachable(f"{where} {wanted}: it answers {answer.status}")
    try:
        names = [one["id"] for one in json.loads(body)["data"] if type(one["id"]) is str and one["id"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        names = []
    if answer.status != 200 or not names:
        told_status = f"answers {answer.status}" if answer.status != 200 else "lists no model"
        raise Unreachable(f"{where} {told_status}; {advice}")
    return names
