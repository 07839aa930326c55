"""The models that there are, as Anthropic's clients read them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone

from gateway.dialects.dialect import Json


def models_of(models: Iterable[tuple[str, float]]) -> Json:
    """The answer to `GET /v1/models`: names, and since when there are they (seconds since 1970). All on one page."""
    told = [
        {
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        for name, unix_s in models
    ]
    return {
        "data": told,
        "has_more": False,
        "first_id": told[0]["id"] if told else None,
        "last_id": told[-1]["id"] if told else None,
    }
