"""What only administrators may do over HTTP: keys, engines, usage. And the exchange of a key for a token.

Owns nothing. Every action is audited: one log line with who did what, or tried to and why not, never with a secret.
"""

from __future__ import annotations

import contextlib
import json
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple, Optional

from gateway.api import managing
from gateway.api.operation import Operation
from gateway.asked import Asked
from gateway.errors import GatewayError, RequestRefused
from gateway.keys.auth import Identity
from gateway.keys.record import KeyRefused, arguments_of, is_name, parse_duration, to_public
from gateway.keys.store import KeyExists, KeyUnknown
from gateway.pipeline import Pipeline
from gateway.routing.specs import ENGINE_CHECKS
from gateway.server.cachepages import CachePages, checked
from gateway.server.everybody import Everybody
from gateway.server.exchange import Exchange
from gateway.server.parsing import RequestHead
from gateway.server.schemapages import SchemaPages
from gateway.state.database import StateDbError
from gateway.telemetry.usage import parse_usage_query, usage_csv, usage_rows
from gateway.validation import parse_json

ReadBody = Callable[[], bytes]
NAME_CHARS = 200
PATH_CHARS = 500
"""What is logged of a name or a path that is not known to exist."""


class Reply(NamedTuple):
    """A complete answer: status, headers, body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def json_reply(value: Any, status: int = 200, *headers: tuple[str, str]) -> Reply:
    """A JSON answer."""
    body = json.dumps(value, separators=(",", ":")).encode() + b"\n"
    return Reply(status, (("Content-Type", "application/json"), *headers), body)


Action = Callable[[RequestHead, Identity, "re.Match[str]", ReadBody], Reply]


class _Row:
    """A path, `{…}` standing for any one part of it, and what it does, by method."""

    def __init__(self, path: str) -> None:
        self.pattern = re.compile(re.sub(r"\{\w+\}", "([^/]+)", path))
        self.actions: dict[str, tuple[Operation, Action]] = {}


class Admin:
    """Answers below `/admin/` and at `/auth/token`. Thread-safe; calls may wait for the state database."""

    def __init__(self, pipeline: Pipeline, pages: CachePages, everybody: Everybody) -> None:
        self._pipeline = pipeline
        self._pages = pages
        self._everybody = everybody
        self._schemas = SchemaPages(pipeline.schemas, pipeline.telemetry)
        self._guard = pipeline.guard
        actions: tuple[tuple[Operation, Action], ...] = (
            (managing.TOKEN, self._token),
            (managing.LIST_KEYS, self._list_keys),
            (managing.CREATE_KEY, self._create_key),
            (managing.REVOKE_KEY, self._revoke_key),
            (managing.ROTATE_KEY, self._rotate_key),
            (managing.USAGE, self._usage),
            (managing.DRAIN_ENGINE, self._engine),
            (managing.ENABLE_ENGINE, self._engine),
            (managing.WEIGH_ENGINE, self._weight),
            (managing.CACHE_STATS, self._cache_stats),
            (managing.CLEAR_CACHE, self._clear_cache),
            (managing.LIST_SCHEMAS, self._list_schemas),
            (managing.SCHEMA, self._schema),
            (managing.KEEP_SCHEMA, self._keep_schema),
            (managing.FORGET_SCHEMA, self._forget_schema),
        )
        self._table: dict[str, _Row] = {}
        for operation, action in actions:
            row = self._table.setdefault(operation.path, _Row(operation.path))
            row.actions[operation.method] = operation, action

    def answer(self, exchange: Exchange, head: RequestHead, read_body: ReadBody) -> Optional[Reply]:
        """The answer, or None when the path is nothing of this. Raises GatewayError."""
        for row in self._table.values():
            match = row.pattern.fullmatch(head.path)
            if match is None:
                continue
            found = row.actions.get("GET" if head.method == "HEAD" else head.method)
            if found is None:
                allowed = _allowed(row)
                raise RequestRefused(
                    "method_not_allowed", f"{head.path[:200]} takes {allowed}", headers=(("Allow", allowed),)
                )
            operation, action = found
            identity = self._admitted(exchange, head, operation)
            try:
                return action(head, identity, match, read_body)
            except StateDbError as error:
                self._pipeline.telemetry.log("error", "state_db", message=str(error))
                raise GatewayError("internal_error", "the state database cannot be used; see the log") from error
        return None

    def _admitted(self, exchange: Exchange, head: RequestHead, operation: Operation) -> Identity:
        """Who is asking, and may. Raises `unauthorized` and `forbidden`, both audited."""
        identity: Optional[Identity] = None
        try:
            identity = self._pipeline.identify(head.headers, head.repeated, exchange.client_address)
            exchange.identity = identity
            if operation.permission:
                identity.require(operation.permission)
            return identity
        except RequestRefused as error:
            if error.code == "forbidden":
                self.audit_refusal(exchange, error, None if identity is None else identity.name)
            raise

    def audit_refusal(self, asked: Asked, error: RequestRefused, key: Optional[str]) -> None:
        """Say who was refused what, if it was something of this. `key` None: not known."""
        head = asked.head
        if self.methods(head.path) is None:
            return
        self._guard.audit_refusal(
            "permission_refused",
            asked.client_address,
            key=key,
            method=head.method,
            path=head.path[:PATH_CHARS],
            reason=error.message,
        )

    def methods(self, path: str) -> Optional[str]:
        """The methods that a path takes, as in `Allow`; None when it is nothing of this."""
        return next((_allowed(row) for row in self._table.values() if row.pattern.fullmatch(path)), None)

    def operations(self) -> Iterator[Operation]:
        """All that is answered here."""
        return (operation for row in self._table.values() for operation, _ in row.actions.values())

    @contextlib.contextmanager
    def _audited(self, identity: Identity, action: str, **fields: object) -> Iterator[dict[str, object]]:
        """Log the action when it has ended, well or with an error's code; it may add to the fields meanwhile."""
        level, told = "info", dict(fields)
        try:
            yield told
        except BaseException as error:
            level = "warning"
            told["error"] = error.code if isinstance(error, GatewayError) else "internal_error"
            raise
        finally:
            self._pipeline.telemetry.log(level, "admin", key=identity.name, action=action, **told)

    def _token(self, head: RequestHead, identity: Identity, match: re.Match[str], read_body: ReadBody) -> Reply:
        with self._audited(identity, "token") as told:
            token, expires_in_s = self._guard.authenticator.exchange(identity)
            told["expires_in_s"] = expires_in_s
        # `access_token` is OAuth's name for it (RFC 6749, 5.1), which clients made for that look for.
        answer = {"token": token, "access_token": token, "token_type": "Bearer", "expires_in": expires_in_s}
        return json_reply(answer, 200, ("Cache-Control", "no-store"))

    def _list_keys(self, head: RequestHead, identity: Identity, match: re.Match[str], read_body: ReadBody) -> Reply:
        with self._audited(identity, "list_keys"):
            store = self._guard.authenticator.store
            records = () if store is None else store.list()
        return json_reply({"keys": [to_public(record) for record in records]})

    def _parse(self, body: bytes) -> dict[str, Any]:
        return parse_json(body, self._pipeline.settings.max_json_values)

    def _create_key(self, head: RequestHead, identity: Identity, match: re.Match[str], read_body: ReadBody) -> Reply:
        with self._audited(identity, "create_key") as told, _KeyRefusals():
            arguments = arguments_of(self._parse(read_body()))
            if is_name(arguments["name"]):  # else it may be anything, a secret in the wrong place too
                told["name"] = arguments["name"]
            record, secret = self._guard.store.create(**arguments)
            told["role"] = record.role
        self._everybody.keys_changed()
        answer = {**to_public(record), "key": secret}
        return json_reply(answer, 201, ("Cache-Control", "no-store"))

    def _revoke_key(self, head: RequestHead, identity: Identity, match: re.Match[str], read_body: ReadBody) -> Reply:
        name = urllib.parse.unquote(match[1])
        with self._audited(identity, "revoke_key", name=name[:NAME_CHARS]), _KeyRefusals():
            record = self._guard.store.revoke(name)
        self._everybody.keys_changed()
        self._pages.forget_key(record.name)  # who gets a key of that name one day is another
        return json_reply(to_public(record))

    def _rotate_key(self, head: RequestHead, identity: Identity, match: re.Match[str], read_body: ReadBody) -> Reply:
        name = urllib.parse.unquote(match[1])
        with self._audited(identity, "rotate_key", name=name[:NAME_CHARS]), _KeyRefusals():
            wanted = self._parse(read_body() or b"{}") if head.content_length or head.chunked else {}
            spans = _spans(wanted, grace="1h", expires=None)
            record, secret = self._guard.store.rotate(name, spans["grace"] or 0.0, spans["expires"])
        self._everybody.keys_changed()
        return json_reply({**to_public(record), "key": secret}, 200, ("Cache-Control", "no-store"))

    def _usage(self, head: RequestHead, identity: Identity, match: re.Match[str], read_body: ReadBody) -> Reply:
        with self._audited(identity, "usage", query=head.query[:PATH_CHARS]):
            try:
                query = parse_usage_query(head.query)
            except ValueError as error:
                raise RequestRefused("invalid_body", str(error)) from None
            db = self._guard.db
            rows = [] if db is None else usage_rows(db, query.by, query.from_unix_s, query.to_unix_s)
        if query.format == "csv":
            body = usage_csv(rows, query.by).encode()
            return Reply(200, (("Content-Type", "text/csv; charset=utf-8"),), body)
        return json_reply({"rows": rows})

    def _engine(self, head: RequestHead, identity: Identity, match: re.Match[str], read_body: ReadBody) -> Reply:
        """Drain or enable an engine; `?model=` where its id is one of several models'."""
        engine_id, model = _engine_of(head, match)
        what = head.path.rpartition("/")[2]
        draining = what == "drain"
        with self._audited(identity, f"{what}_engine", engine=engine_id[:NAME_CHARS]) as told:
            models = self._pipeline.factory.set_draining(engine_id, draining, model)
            told["models"] = _found(models, engine_id)
            self._everybody.drained(engine_id, draining, model)
        return json_reply({"engine": engine_id, "draining": draining, "models": models})

    def _weight(self, head: RequestHead, identity: Identity, match: re.Match[str], read_body: ReadBody) -> Reply:
        """Give an engine another weight, until the engines file is reloaded."""
        engine_id, model = _engine_of(head, match)
        with self._audited(identity, "weigh_engine", engine=engine_id[:NAME_CHARS]) as told:
            weight = told["weight"] = _weight_in(self._parse(read_body()))
            models = self._pipeline.factory.set_weight(engine_id, weight, model)
            told["models"] = _found(models, engine_id)
            self._everybody.weighed(engine_id, weight, model)
        return json_reply({"engine": engine_id, "weight": weight, "models": models})

    def _cache_stats(self, head: RequestHead, identity: Identity, match: re.Match[str], read_body: ReadBody) -> Reply:
        return json_reply(self._pages.stats())

    def _clear_cache(self, head: RequestHead, identity: Identity, match: re.Match[str], read_body: ReadBody) -> Reply:
        with self._audited(identity, "clear_cache") as told:
            wanted = self._parse(read_body() or b"{}") if head.content_length or head.chunked else {}
            told.update({"of_key" if name == "key" else name: value for name, value in checked(wanted).items()})
            model = wanted.get("model")
            if type(model) is str:  # by whatever name
                wanted["model"] = self._pipeline.factory.router.counted_names().get(model, model)
            told["cleared"] = cleared = self._pages.clear(wanted)
        return json_reply({"cleared": cleared})

    def _list_schemas(self, head: RequestHead, identity: Identity, match: re.Match[str], read_body: ReadBody) -> Reply:
        return json_reply(self._schemas.list())

    def _schema(self, head: RequestHead, identity: Identity, match: re.Match[str], read_body: ReadBody) -> Reply:
        return json_reply(self._schemas.find(urllib.parse.unquote(match[1])))

    def _keep_schema(self, head: RequestHead, identity: Identity, match: re.Match[str], read_body: ReadBody) -> Reply:
        name = urllib.parse.unquote(match[1])
        with self._audited(identity, "keep_schema", name=name[:NAME_CHARS]):
            told, is_new = self._schemas.put(name, self._parse(read_body()))
        self._everybody.schemas_changed()
        return json_reply(told, 201 if is_new else 200)

    def _forget_schema(self, head: RequestHead, identity: Identity, match: re.Match[str], read_body: ReadBody) -> Reply:
        name = urllib.parse.unquote(match[1])
        with self._audited(identity, "forget_schema", name=name[:NAME_CHARS]):
            told = self._schemas.delete(name)
        self._everybody.schemas_changed()
        return json_reply(told)


def _allowed(row: _Row) -> str:
    methods = [name for method in row.actions for name in ((method, "HEAD") if method == "GET" else (method,))]
    return ", ".join((*methods, "OPTIONS"))


def _engine_of(head: RequestHead, match: re.Match[str]) -> tuple[str, Optional[str]]:
    """An engine's id, and the model in whose list it is meant; None: in all of them."""
    return urllib.parse.unquote(match[1]), urllib.parse.parse_qs(head.query).get("model", [None])[0]


def _found(models: list[str], engine_id: str) -> list[str]:
    if not models:
        raise RequestRefused("not_found", f"there is no engine {engine_id[:200]}")
    return models


def _weight_in(wanted: dict[str, Any]) -> int:
    """The weight in a body such as {"weight": 2}. Raises RequestRefused, which names every fault."""
    faults = [f"{name[:40]}: is not known; known: weight" for name in wanted if name != "weight"]
    if "weight" in wanted:
        faults += [f"weight{fault}" for fault in ENGINE_CHECKS["weight"](wanted["weight"])]
    else:
        faults.append("weight: is missing")
    if faults:
        raise RequestRefused("invalid_body", "; ".join(faults), param="weight")
    weight: int = wanted["weight"]
    return weight


def _spans(wanted: dict[str, Any], **defaults: Optional[str]) -> dict[str, Optional[float]]:
    """Seconds by name, of a body such as {"grace": "1h"}; null counts as absent. Raises KeyRefused."""
    faults = [f"{name[:40]}: is not known; known: {', '.join(defaults)}" for name in wanted if name not in defaults]
    spans: dict[str, Optional[float]] = {}
    for name, default in defaults.items():
        text = default if wanted.get(name) is None else wanted[name]
        try:
            spans[name] = None if text is None else parse_duration(text)
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise KeyRefused(*faults)
    return spans


class _KeyRefusals:
    """Turns what the key store refuses into answers."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: Optional[BaseException], trace: object) -> None:
        if isinstance(error, KeyUnknown):
            raise RequestRefused("not_found", str(error)) from error
        if isinstance(error, KeyExists):
            raise RequestRefused("key_exists", str(error), param="name") from error
        if isinstance(error, KeyRefused):
            raise RequestRefused("invalid_body", str(error)) from error
