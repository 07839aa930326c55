"""What schemathesis' requests are made to name: each time another of the gateway's models; a schema and a region
that are there.

Loaded by schemathesis as its hooks (`conformance.py`), which asks on one thread. A name that it has made up itself
would always be 404; one request in each round keeps it.
"""

from __future__ import annotations

import itertools
from typing import Any

MODELS = ("plain", "anthropic", "native", "shaped", "alias", "split", "chain", "agreed")
SCHEMA = "city"
REGION = "eu"
FILES = ("index.html", "style.css")
ASKING = frozenset(("Inference", "Other dialects", "Passed on"))
"""Tags of operations that models answer."""

_rounds: dict[tuple[str, str], Any] = {}  # each operation's own, so that it gets all names


def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Change what is about to be asked."""
    operation = f"{case.method} {case.path}"
    if ASKING.intersection(context.operation.tags or ()):
        if "X-Gateway-Residency" in (case.headers or ()):
            _name(operation, case.headers, "X-Gateway-Residency", (REGION,) * 3)
        if isinstance(case.query, dict) and "model" in case.query:
            _name(operation, case.query, "model", MODELS)
        if isinstance(case.body, dict):
            _name(operation, case.body, "model", MODELS)
            models = case.body.get("models")
            for number in range(len(models) if isinstance(models, list) else 0):
                _name(operation, models, number, MODELS)
    elif case.path == "/admin/schemas/{name}":
        _name(operation, case.path_parameters, "name", (SCHEMA,))
    elif case.path == "/console/{file}":
        _name(operation, case.path_parameters, "file", FILES)


def _name(operation: str, holder: Any, key: Any, names: tuple[str, ...]) -> None:
    """Put the next of `names` where there is some text or nothing."""
    kept = holder[key] if isinstance(holder, list) else holder.get(key, "")
    if isinstance(kept, str):
        name = next(_rounds.setdefault((operation, str(key)), itertools.cycle((*names, None))))
        if name is not None:
            holder[key] = name


try:
    import schemathesis
except ModuleNotFoundError:
    pass  # the names are for the gateway, too
else:
    schemathesis.hook(before_call)
