"""`--fail-if 'p99>500ms'`: what is asked of a result, read, and judged. Pure."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

from gateway.tools.loadtest.durations import duration_s

PERCENTS = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99)
STATISTICS = ("min", "mean", "max", *(f"p{one:g}" for one in PERCENTS))
# Prefix of a time, and which of the result's tables it is from: without one, of the latency that counts in this loop.
TABLES = {"": "latency", "response_": "response", "service_": "service", "ttft_": "ttft", "tpot_": "tpot"}
SHARES = ("errors", "refused", "failed", "late")  # a count, or with % a share of all
RATES = ("rate", "tokens")  # a second
_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_TEXT = re.compile(r"\s*([a-z_]+(?:[0-9]+(?:\.[0-9]+)?)?)\s*(>=|<=|>|<)\s*(\S.*?)\s*")


class Threshold(NamedTuple):
    """When a result fails: when what it has as `metric` stands so to `limit` (seconds, a second, a count or a
    share)."""

    text: str
    metric: str
    comparison: str
    limit: float
    share: bool = False

    def judged(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """The value it has in a result, and whether that fails; so it does where nothing was measured."""
        value = self._value(result)
        failed = value is None or bool(_OPERATORS[self.comparison](value, self.limit))
        return {"rule": self.text, "value": value, "failed": failed}

    def _value(self, result: Mapping[str, Any]) -> Optional[float]:
        requests = result["requests"]
        if self.metric in RATES:
            found: float = result["rates"]["requests_per_s" if self.metric == "rate" else "output_tokens_per_s"]
            return found
        if self.metric in SHARES:
            count: int = result["generator"]["late"] if self.metric == "late" else requests[self.metric]
            if not self.share:
                return count
            return count / requests["finished"] if requests["finished"] else None
        prefix, _, name = self.metric.rpartition("_")
        table = TABLES[prefix + "_" if prefix else ""]
        if table == "latency":
            table = "response" if result["times"]["response"] is not None else "service"
        times = result["times"][table]
        value: Optional[float] = times[member_ms(name)] if times is not None else None
        return None if value is None else value / 1000


def member_ms(statistic: str) -> str:
    """What a statistic's member of the result is called."""
    return f"{statistic.replace('.', '_')}_ms"


def threshold(text: str) -> Threshold:
    """Read one. Raises ValueError, which says what it must be."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError(f"must be a metric, > or <, and a limit, as in p99>500ms or errors>1%, not {text!r}")
    metric, comparison, limit = found.groups()
    if metric in SHARES or metric in RATES:
        number = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(%|/s)?", limit)
        allowed = (None, "%") if metric in SHARES else (None, "/s")
        if number is None or number[2] not in allowed:
            wanted = "a count or a share, as in 10 or 1%" if metric in SHARES else "a number a second, as in 100"
            raise ValueError(f"{metric} has {wanted}, not {limit!r}")
        share = number[2] == "%"
        return Threshold(text.strip(), metric, comparison, float(number[1]) / (100 if share else 1), share)
    prefix, _, name = metric.rpartition("_")
    if (prefix + "_" if prefix else "") not in TABLES or name not in STATISTICS:
        known = [*(f"{prefix}{name}" for prefix in TABLES for name in ("p99",)), *SHARES, *RATES]
        raise ValueError(
            f"there is no {metric!r}; there are {', '.join(known)}, and {', '.join(STATISTICS)} where those have p99"
        )
    if re.fullmatch(r"[0-9.]+", limit):
        raise ValueError(f"{metric} has a time with its unit, as in 500ms, not {limit!r}")
    return Threshold(text.strip(), metric, comparison, duration_s(limit))
