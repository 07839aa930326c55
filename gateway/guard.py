"""The door as a whole: identities, limits, budgets, the state database and what keeps them current.

`Guard` owns the authenticator, the limiter, the budgets, the adaptive limits, the state database (opened when it exists
or is asked for) and the thread "policy", which looks after them twice a second. Its lock guards the counts of the
current interval only; a second one, held while the database is opened, keeps it from being opened twice. A request
meets memory alone: nothing on its way waits for the database.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Callable, Optional

from gateway.clock import JumpWatch, unix_s
from gateway.configuration import ConfigurationError
from gateway.errors import RequestRefused
from gateway.keys.auth import Authenticator, Identity
from gateway.keys.store import REFRESH_INTERVAL_S, KeyStore
from gateway.limits.adaptive import AdaptiveLimits
from gateway.limits.budgets import BudgetWarning
from gateway.limits.limiter import (
    NO_KEY_LIMITS,
    NO_RATE_LIMITS,
    KeyLimits,
    RateLimits,
    Subject,
)
from gateway.limits.prices import Price, TokensAtMost, cost_usd
from gateway.limits.quotas import Bursts, Header
from gateway.limits.sharedtable import SharedTable
from gateway.limits.shares import Shares
from gateway.limits.tablebudgets import budgets_of
from gateway.limits.tablelimiter import limiter_of
from gateway.routing.specs import FleetSpec
from gateway.settingfiles import refuse_to_serve_strangers, roles_of, verifier_of
from gateway.settings import Settings
from gateway.shared.alone import local_bursts
from gateway.shared.state import SharedState
from gateway.state.database import StateDb
from gateway.state.file import state_file_exists
from gateway.telemetry.events import RequestEvent
from gateway.telemetry.ledger import Ledger

REFUSALS_LOGGED_PER_S = 3  # per address
ADDRESSES_LOGGED_MAX = 1000  # per second; a flood from everywhere is not worth more lines

Log = Callable[..., None]


class Guard:
    """Knows who may do what, and how much. Thread-safe. `start` it, `close` it.

    `clock`: the monotonic seconds of limits. `table`: what the gateway's processes share (None: there is one). Raises
    ConfigurationError (roles, key sets, nobody can be recognised where others reach it), StateDbError (a bad database).
    """

    def __init__(
        self,
        settings: Settings,
        log: Log,
        paths: frozenset[str],
        clock: Callable[[], float] = time.monotonic,
        counted_names: Optional[Callable[[], Mapping[str, str]]] = None,
        table: Optional[SharedTable] = None,
    ) -> None:
        self._settings = settings
        self.reads_keys = bool(settings.jwt_jwks)  # from an identity provider: `may_wait` may say so
        self._log = log
        self._paths = paths
        self.clock = clock
        self._roles = roles = roles_of(settings)
        self.authenticator = Authenticator(
            settings.api_keys if settings.auth != "off" else (),
            roles=roles,
            default_limits=KeyLimits(settings.rate_limit_rpm, settings.rate_limit_tpm, settings.rate_limit_concurrency),
            verifier=verifier_of(settings, log),
            enabled=settings.auth != "off",
        )
        everybody = RateLimits(settings.rate_limit_global_rpm, settings.rate_limit_global_tpm)
        bursts = Bursts(settings.rate_limit_burst, settings.rate_limit_token_burst)
        of_processes, own_bursts, url = table, bursts, settings.redis_url
        if url is not None:  # Redis decides for all processes, too
            table, own_bursts = None, local_bursts(bursts)
        self.limiter = limiter_of(table, everybody, settings.rate_limit_ip_rpm, *own_bursts, clock)
        self._new_budgets = partial(budgets_of, table, on_warning=partial(_budget_warning, log))
        self.budgets = self._new_budgets(None)
        self.shared: Optional[SharedState] = None
        if url is not None:
            own = self.authenticator, lambda: self.budgets, clock
            self.shared = SharedState(url, settings, log, self.limiter, everybody, bursts, of_processes, *own)
        self._limits_everybody = bool(any(everybody) or settings.rate_limit_ip_rpm)
        self._counts_tokens_globally = bool(everybody.tpm)
        self.adaptive = AdaptiveLimits(settings.limit_target_wait_s or None, settings.limit_target_errors or None)
        self.db: Optional[StateDb] = None
        self.ledger: Optional[Ledger] = None
        self._counted_names = counted_names or settings.fleet.model_by_name
        self.set_fleet(settings.fleet)
        self._jumps = JumpWatch()
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._shares = Shares()
        self._refused: dict[str, int] = {}
        self._refused_second = 0
        self._stop = threading.Event()
        self._thread: Optional[threading.Thread] = None
        if settings.ledger == "on" or state_file_exists(settings.state_db):
            self.open_db()
        try:
            refuse_to_serve_strangers(settings, self.authenticator.required)
        except ConfigurationError:
            self.close(0.0)
            raise

    def _open_locked(self, path: Path) -> StateDb:
        db = StateDb(path, lambda message: self._log("error", "state_db", message=message))
        try:
            reserved = [key.name for key in self._settings.api_keys]
            store = KeyStore(db, roles=tuple(self._roles), reserved=reserved)
            budgets = self._new_budgets(db)
        except BaseException:
            db.close()
            raise
        if self._settings.ledger != "off":
            self.ledger = Ledger(db, self._paths, known_models=self._counted_names, days=self._settings.ledger_days)
        self.db = db
        self.budgets = budgets
        self.authenticator.store = store  # last: from here on keys are asked for, and what they need is there
        return db

    def open_db(self) -> StateDb:
        """The state database, made now if there is none yet. Raises StateDbError."""
        with self._opening:
            return self.db or self._open_locked(self._settings.state_db)

    @property
    def store(self) -> KeyStore:
        """The keys of the state database, made now if there is none yet. Raises StateDbError."""
        self.open_db()
        assert self.authenticator.store is not None
        return self.authenticator.store

    def set_fleet(self, fleet: FleetSpec) -> None:
        """Take over the models' names, limits and prices."""
        self._model_limits = {m.name: RateLimits(m.rpm, m.tpm) for m in fleet.models if m.rpm or m.tpm}
        self.prices = {m.name: Price(*m.price) for m in fleet.models if m.price is not None}
        self.context_tokens = {m.name: m.max_model_len for m in fleet.models}

    # --- a request ---------------------------------------------------------------------------------------------------

    def may_wait(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether `identify` would have to wait now: for the identity provider's keys, which are read over the network.

        Never waits; has them read where that is due. Asked again, it is False when they have come, or do not come.
        """
        return self.reads_keys and self.authenticator.must_wait(
            headers.get(b"authorization"), headers.get(b"x-api-key")
        )

    def identify(self, headers: Mapping[bytes, bytes], repeated: frozenset[bytes], address: str) -> Identity:
        """Who is asking. Raises `unauthorized`, which is audited."""
        try:
            return self.authenticator.identify(headers.get(b"authorization"), headers.get(b"x-api-key"), repeated)
        except RequestRefused as error:
            self.audit_refusal("authentication_refused", address, reason=error.message)
            raise

    def audit_refusal(self, event: str, address: str, **fields: object) -> None:
        """Log who was turned away; not more than a few lines a second for each address."""
        second = int(self.clock())
        if second != self._refused_second:
            self._refused_second = second
            self._refused = {}
        count = self._refused.get(address, 0)
        if count < REFUSALS_LOGGED_PER_S and len(self._refused) < ADDRESSES_LOGGED_MAX:
            self._refused[address] = count + 1
            self._log("warning", event, client=address, **fields)

    def subject(
        self, identity: Identity, model: str, address: str, estimate: Callable[[], TokensAtMost]
    ) -> Optional[Subject]:
        """Who asks for what; None: no limit applies."""
        limits = identity.limits
        model_limits = self._model_limits.get(model, NO_RATE_LIMITS)
        if limits is NO_KEY_LIMITS and model_limits is NO_RATE_LIMITS and not self._limits_everybody:
            return None
        counts = limits.tpm or model_limits.tpm or self._counts_tokens_globally
        tokens = estimate().asked if counts else 0
        return Subject(identity.name, limits, address, model, model_limits, tokens, identity.priority)

    def limit_headers(self, identity: Identity, model: str, address: str) -> tuple[Header, ...]:
        """What is left of the limits, for the answer to a request that was refused for another reason."""
        model_limits = self._model_limits.get(model, NO_RATE_LIMITS)
        subject = Subject(identity.name, identity.limits, address, model, model_limits, 0, identity.priority)
        if self.shared is not None:
            return self.shared.limits.headers(subject)
        return self.limiter.headers(subject, self.clock())

    def cost(self, model: Optional[str], prompt_tokens: int, completion_tokens: int) -> Optional[float]:
        """What an answer costs in USD; None for a model without a price."""
        price = self.prices.get(model or "")
        return None if price is None else cost_usd(price, prompt_tokens, completion_tokens)

    def spend(self, identity: Optional[Identity], cost: float) -> None:
        """Add to what a key has spent."""
        if identity is not None and identity.budget_usd is not None and identity.name is not None:
            if self.shared is not None:
                self.shared.budgets.spend(identity.name, cost, unix_s())
            self.budgets.spend(identity.name, cost)

    # --- looking after -----------------------------------------------------------------------------------------------

    def observe(self, events: Sequence[RequestEvent]) -> None:
        """Learn from finished requests (an observer of Telemetry)."""
        with self._lock:
            for event in events:
                if event.path in self._paths:
                    self._shares.count(event)
        ledger = self.ledger
        if ledger is not None:
            ledger(events)

    def tick(self) -> None:
        """Look after everything; called by the thread twice a second."""
        jump_s = self._jumps.look()
        if jump_s:  # what is told and billed by the clock wants looking at
            self._log("warning", "clock_jumped", by_s=round(jump_s, 1))
        if self.db is None:
            if state_file_exists(self._settings.state_db):  # the first key has been made
                self.open_db()
        elif self.authenticator.store is not None:
            self.authenticator.store.refresh()
            self.budgets.refresh()
        if self.ledger is not None:
            self.ledger.tick()
        now_s = self.clock()
        with self._lock:
            counts = self._shares.take()
        measured = self._shares.measure(counts, now_s)
        if self.adaptive.tick(now_s, measured.wait_s, measured.error_rate):
            limits = self.limiter if self.shared is None else self.shared.limits
            limits.set_factors(self.adaptive.factors())
        self.limiter.look_after(self._log)

    def start(self) -> None:
        """Start looking after."""
        if self.shared is not None:
            self.shared.start()
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        reported = ""
        while not self._stop.wait(REFRESH_INTERVAL_S):
            try:
                self.tick()
                reported = ""
            except Exception as error:  # a database that cannot be opened just now, say: try again
                text = f"{type(error).__name__}: {error}"
                if text != reported:
                    reported = text
                    self._log("error", "policy", message=text)

    def close(self, timeout_s: float) -> None:
        """Stop, and write down what is left."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self.shared is not None:
            self.shared.close(timeout_s)
        if self.db is not None:
            self.budgets.refresh()
            self.db.close(timeout_s)


def _budget_warning(log: Log, warning: BudgetWarning) -> None:
    log("warning", "budget_warning", **warning._asdict())
