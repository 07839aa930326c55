"""Budgets that hold for all gateways together, whatever databases they have: spent and reserved in Redis.

`SharedBudgets` owns what this gateway has reserved, and what it has spent that Redis has not heard of yet, by the name
of the sum in Redis (`{igw}:b:<key>:<period>`, a hash: `spent`, and `r:<gateway>`, what each gateway has reserved). Its
lock guards these; it is never held while the line or the local `Budgets` are called. Each gateway goes on keeping its
own sums (`limits/budgets.py`, in its database), which learn of the others' spending with every answer and every KEEP_S.

What a gateway has reserved counts as long as it is one of the gateways, and is set right every KEEP_S. Where Redis has
forgotten what was spent, it is told again what the gateways knew. **Without Redis** `closed` refuses what costs
something, and with `local` what a key spends here counts as often as there are gateways, beyond what was last known of
all: so together they stay within what was left.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import threading
from typing import Any, Callable, Optional, Union

from gateway.errors import GatewayError
from gateway.limits.budgets import Budgets, Period
from gateway.shared.line import BEAT_S, RETRY_S, Job, Line
from gateway.shared.scopes import PEERS
from gateway.shared.scripts import CLOCK, Script
from gateway.steps import Flag, Flagged, Steps

KEEP_S = 3.0
PAST_S = 86_400.0
"""For so long a sum is kept beyond its period: clocks differ, and requests end late."""
_REPLY = struct.Struct(">2d")
SPENT, TAKEN = "spent", "taken"
# KEYS: a budget's sum, the gateways. ARGV: (the time), the budget, the cost, what is spent at least, the seconds for
# which the sum is kept; the field of who reserves. Replies whether it passes, and what is spent.
_RESERVE = """
local spent = tonumber(redis.call('HGET', KEYS[1], 'spent') or '0') or 0
if a[4] > spent then
  spent = a[4]
  redis.call('HSET', KEYS[1], 'spent', string.format('%.17g', spent))
end
local reserved, passes = 0, 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if string.sub(all[i], 1, 2) == 'r:' then
    if all[i] == ARGV[2] or redis.call('ZSCORE', KEYS[2], string.sub(all[i], 3)) then
      reserved = reserved + math.max(tonumber(all[i + 1]) or 0, 0)
    else
      redis.call('HDEL', KEYS[1], all[i])
    end
  end
end
if spent + reserved < a[2] then
  passes = 1
  redis.call('HINCRBYFLOAT', KEYS[1], ARGV[2], string.format('%.17g', a[3]))
end
redis.call('EXPIRE', KEYS[1], math.ceil(a[5]))
return struct.pack('>dd', passes, spent)
"""

# KEYS: a budget's sum. ARGV: (the time), what is spent, what is no longer reserved, the seconds for which the sum is
# kept; the field of who has reserved.
_SPEND = """
if a[2] > 0 then
  redis.call('HINCRBYFLOAT', KEYS[1], 'spent', string.format('%.17g', a[2]))
  redis.call('EXPIRE', KEYS[1], math.ceil(a[4]))
end
local reserved = tonumber(redis.call('HGET', KEYS[1], ARGV[2]) or '0') or 0
if a[3] > 0 and reserved > 0 then
  local left = reserved - a[3]
  if left > 1e-12 then
    redis.call('HSET', KEYS[1], ARGV[2], string.format('%.17g', left))
  else
    redis.call('HDEL', KEYS[1], ARGV[2])
  end
end
"""

# KEYS: a budget's sum. ARGV: (the time), what the gateway has reserved, what is spent at least; its field; the seconds
# for which a sum that was forgotten is kept. Replies what is spent.
_KEEP = """
local spent = tonumber(redis.call('HGET', KEYS[1], 'spent') or '0') or 0
if a[3] > spent then
  spent = a[3]
  redis.call('HSET', KEYS[1], 'spent', string.format('%.17g', spent))
end
if a[2] > 0 then
  redis.call('HSET', KEYS[1], ARGV[2], string.format('%.17g', a[2]))
else
  redis.call('HDEL', KEYS[1], ARGV[2])
end
if redis.call('TTL', KEYS[1]) == -1 then redis.call('EXPIRE', KEYS[1], ARGV[3]) end
return struct.pack('>d', spent)
"""

RESERVE = Script(CLOCK + _RESERVE)
SPEND = Script(CLOCK + _SPEND)
KEEP = Script(CLOCK + _KEEP)


class _Sum:
    """What this gateway knows of one sum in Redis. Guarded by the lock of its budgets."""

    __slots__ = ("idle", "key", "known_usd", "name", "period", "reserved_usd", "told_usd", "unsent_usd")

    def __init__(self, name: bytes, key: str, period: Period, known_usd: float) -> None:
        self.known_usd = known_usd  # that Redis has heard of as far as is known here, and so what it must not forget
        self.name = name
        self.key = key
        self.period = period
        self.reserved_usd = 0.0  # as Redis has it
        self.unsent_usd = 0.0  # spent here, and not known to have come to Redis
        self.told_usd = 0.0  # what all had spent, as last heard
        self.idle = False


class SharedBudgets:
    """Reserves and spends of the budgets of all gateways. Thread-safe.

    `name`: this gateway's. `peers`: how many there are. `budgets` gives the local ones. `fail`, `timeout_s`: as of the
    limits.
    """

    def __init__(
        self,
        line: Line,
        name: bytes,
        peers: Callable[[], int],
        budgets: Callable[[], Budgets],
        fail: str,
        timeout_s: float,
    ) -> None:
        self._line = line
        self.field = b"r:" + name
        """What this gateway's reservations are named."""
        self._peers = peers
        self._budgets = budgets
        self._fail = fail
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._sums: dict[bytes, _Sum] = {}
        self._keep_in_s = KEEP_S  # of the thread shared alone

    def reserve(self, key: str, budget_usd: float, cost_usd: float, now_unix_s: float) -> Steps[Union[Reserved, str]]:
        """Keep back what a request may cost of its key's budget, which the local budgets have let pass.

        Else SPENT, or TAKEN: what is left may be taken by requests in flight. Raises `limits_unavailable`.
        """
        one = self._sum(key, now_unix_s)
        if one is None:  # it has none any more
            return SPENT
        reserved = Reserved(self, one, budget_usd, cost_usd, now_unix_s)
        if self._line.ask(Job(reserved.command, reserved.hear, asks=True)):
            try:
                yield Flagged(reserved.flag, self._timeout_s)
            except BaseException:
                reserved.release()
                raise
            if reserved.outcome is not None:
                return reserved if reserved.outcome == "" else reserved.outcome
            reserved.release()  # if it comes late
        if self._fail == "closed":
            message = "the budget that applies to this request cannot be looked up now"
            raise GatewayError("limits_unavailable", message, retry_after_s=RETRY_S)
        spent_usd = self._budgets().spent_usd(key)
        with self._lock:
            told_usd = one.told_usd
        if told_usd + max(spent_usd - told_usd, 0.0) * self._peers() >= budget_usd:
            return SPENT
        return reserved

    def spend(self, key: str, cost_usd: float, now_unix_s: float) -> None:
        """Add to what a key has spent; before the local budgets hear of it, or it would be added twice."""
        if not cost_usd > 0.0:
            return
        one = self._sum(key, now_unix_s)
        if one is None:
            return
        with self._lock:
            one.unsent_usd += cost_usd
        ttl_s = _ttl_s(one.period, now_unix_s)
        packed = struct.pack(">4d", 0.0, cost_usd, 0.0, ttl_s)
        self._line.tell(
            Job(
                functools.partial(_spending, one.name, packed, self.field),
                functools.partial(self._sent, one, cost_usd),
            )
        )

    def _sum(self, key: str, now_unix_s: float) -> Optional[_Sum]:
        period = self._budgets().period(key, now_unix_s)
        if period is None:
            return None
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        name = b"{igw}:b:%s:%d" % (digest.encode(), period.start_unix_s)
        one = self._sums.get(name) or _Sum(name, key, period, self._budgets().spent_usd(key))
        with self._lock:
            one = self._sums.setdefault(name, one)
            one.idle = False
        return one

    def _sent(self, one: _Sum, cost_usd: float, reply: Any) -> None:
        with self._lock:
            one.unsent_usd = max(one.unsent_usd - cost_usd, 0.0)
            one.known_usd += cost_usd  # it may have been lost on the way

    def floor_usd(self, one: _Sum) -> float:
        """What has been spent at least, as far as this gateway knows and Redis has been told. On the thread shared.

        Not what the local budgets know: where processes have one database, those have read there what others have
        spent and have yet to tell Redis, which would count it twice.
        """
        with self._lock:
            return one.known_usd

    def learn(self, one: _Sum, spent_usd: float) -> None:
        """All have spent so much, of what Redis has heard. On the thread shared."""
        with self._lock:
            one.known_usd = max(one.known_usd, spent_usd)
            one.told_usd = known_usd = max(spent_usd + one.unsent_usd, 0.0)
        self._budgets().learn(one.key, one.period.start_unix_s, known_usd)

    def release(self, reserved: Reserved) -> None:
        """Tell Redis that a reservation is over."""
        packed = struct.pack(">4d", 0.0, 0.0, reserved.cost_usd, 0.0)
        command = functools.partial(_spending, reserved.sum.name, packed, self.field)
        self._line.tell(Job(command, lambda reply: self.add(reserved.sum, -reserved.cost_usd)))

    def add(self, one: _Sum, cost_usd: float) -> None:
        """Note what Redis has as reserved by this gateway. On the thread shared."""
        with self._lock:
            left_usd = one.reserved_usd + cost_usd
            one.reserved_usd = left_usd if left_usd > 1e-12 else 0.0
            one.idle = False  # it is set right once more

    def beat(self) -> list[Job]:
        """What is to be done every BEAT_S: now and then what is reserved is set right, and what is spent is learnt."""
        self._keep_in_s -= BEAT_S
        if self._keep_in_s > 0:
            return []
        return self.come_back()

    def come_back(self) -> list[Job]:
        """The same at once, now that Redis can be asked again."""
        self._keep_in_s = KEEP_S
        with self._lock:
            for name, one in list(self._sums.items()):
                if one.idle and not one.reserved_usd and not one.unsent_usd:
                    del self._sums[name]
                one.idle = True
            sums = list(self._sums.values())
        return [Job(functools.partial(self._keeping, one), functools.partial(self._kept, one)) for one in sums]

    def _keeping(self, one: _Sum, whole: bool) -> Any:
        with self._lock:
            packed = struct.pack(">3d", 0.0, one.reserved_usd, one.known_usd)
        return KEEP.command((one.name,), (packed, self.field, int(PAST_S)), whole)

    def _kept(self, one: _Sum, reply: Any) -> None:
        if isinstance(reply, bytes) and len(reply) == 8:
            self.learn(one, struct.unpack(">d", reply)[0])


class Reserved:
    """What one request may cost, kept back of its key's budget in Redis. `flag` is set when Redis has answered."""

    __slots__ = ("_budgets", "_held", "_over", "budget_usd", "cost_usd", "flag", "now_unix_s", "outcome", "sum")

    def __init__(
        self, budgets: SharedBudgets, one: _Sum, budget_usd: float, cost_usd: float, now_unix_s: float
    ) -> None:
        self._budgets = budgets
        self.sum = one
        self.budget_usd = budget_usd
        self.cost_usd = cost_usd
        self.now_unix_s = now_unix_s
        self.flag = Flag()
        self.outcome: Optional[str] = None
        """"": it is reserved; else why not; None: Redis has not said."""
        self._held = False  # in Redis
        self._over = False

    def command(self, whole: bool) -> Any:
        """Ask."""
        floor_usd = self._budgets.floor_usd(self.sum)
        ttl_s = _ttl_s(self.sum.period, self.now_unix_s)
        packed = struct.pack(">5d", 0.0, self.budget_usd, self.cost_usd, floor_usd, ttl_s)
        return RESERVE.command((self.sum.name, PEERS), (packed, self._budgets.field), whole)

    def hear(self, reply: Any) -> None:
        """The reply, on the thread shared; None: there is none."""
        if isinstance(reply, bytes) and len(reply) == _REPLY.size:
            passes, spent_usd = _REPLY.unpack(reply)
            self._budgets.learn(self.sum, spent_usd)
            if passes:
                self._budgets.add(self.sum, self.cost_usd)
            with self._budgets._lock:
                self._held = bool(passes)
                late = self._held and self._over
                self.outcome = "" if passes else SPENT if spent_usd >= self.budget_usd else TAKEN
            if late:
                self._budgets.release(self)
        self.flag.set()

    def release(self) -> None:
        """Give it back, once the cost is spent or there is none. Only the first call counts."""
        with self._budgets._lock:
            held, self._over = self._held and not self._over, True
        if held:
            self._budgets.release(self)


def _spending(name: bytes, packed: bytes, field: bytes, whole: bool) -> Any:
    return SPEND.command((name,), (packed, field), whole)


def _ttl_s(period: Period, now_unix_s: float) -> float:
    return max(period.end_unix_s - now_unix_s, 0.0) + PAST_S
