"""The models that there are, as Anthropic's clients read them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone

from gateway.dialects.dialect import Json


def model_of(name: str, unix_s: float) -> Json:
    """The answer to `GET /v1/models/{id}`: a name, and since when there is such a model (seconds since 1970)."""
    created_at = datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": name, "display_name": name, "created_at": created_at}


def models_of(models: Iterable[tuple[str, float]]) -> Json:
    """The answer to `GET /v1/models`, of such models. All on one page."""
    told = [model_of(name, unix_s) for name, unix_s in models]
    return {
        "data": told,
        "has_more": False,
        "first_id": told[0]["id"] if told else None,
        "last_id": told[-1]["id"] if told else None,
    }
