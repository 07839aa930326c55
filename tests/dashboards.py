"""The Grafana dashboard as tests see it: its file, what makes it, its expressions."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from typing import Any

from tests.support import ROOT

FOLDER = ROOT / "docs" / "deploy" / "grafana"
FILE = FOLDER / "inference-gateway.json"


def made() -> Any:
    """What its script makes now."""
    spec = importlib.util.spec_from_file_location("dashboard_make", FOLDER / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.dashboard()


def kept() -> Any:
    """What stands in the file."""
    return json.loads(FILE.read_text("utf-8"))


def expressions(dashboard: Any) -> Iterator[tuple[str, str, str]]:
    """A panel's title, an expression of it, and how its series are called."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]


def as_asked(expression: str) -> str:
    """An expression with all that may be chosen chosen."""
    return re.sub(r"\$(instance|model|engine)", ".*", expression.replace("$__rate_interval", "1m"))
