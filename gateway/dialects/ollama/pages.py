"""What Ollama's clients ask about models and the server: /api/tags, /api/show, /api/ps, /api/version.

Pure functions. Of a model as Ollama has it, a file on its disk, engines tell nothing: sizes are 0, and a digest is one
of the name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple, Optional

from gateway.dialects.dialect import Json
from gateway.dialects.ollama.times import date_of

VERSION = "0.33.0"
"""The version of Ollama whose API this is: clients ask before they use what an old one does not have."""

_NEVER = "9999-12-31T23:59:59Z"


class Model(NamedTuple):
    """What is known of a model."""

    name: str
    created_unix_s: float = 0.0
    context_tokens: Optional[int] = None
    capabilities: tuple[str, ...] = ()
    """In Ollama's words: completion, tools, insert, vision, embedding, thinking."""
    family: str = "unknown"


def version() -> Json:
    """GET /api/version."""
    return {"version": VERSION}


def tags(models: Iterable[Model]) -> Json:
    """GET /api/tags."""
    return {
        "models": [
            {
                **_named(model),
                "modified_at": date_of(model.created_unix_s),
                "capabilities": list(model.capabilities),
            }
            for model in models
        ]
    }


def running(models: Iterable[Model]) -> Json:
    """GET /api/ps: of these, all are loaded as far as a client can tell."""
    return {
        "models": [
            {
                **_named(model),
                "expires_at": _NEVER,
                "size_vram": 0,
                "context_length": model.context_tokens or 0,
            }
            for model in models
        ]
    }


def show(model: Model) -> Json:
    """POST /api/show."""
    about: Json = {"general.architecture": model.family, "general.basename": model.name}
    if model.context_tokens is not None:
        about[f"{model.family}.context_length"] = model.context_tokens
    return {
        "modelfile": f"FROM {model.name}",
        "parameters": "",
        "template": "",
        "details": _details(model),
        "model_info": about,
        "capabilities": list(model.capabilities),
        "modified_at": date_of(model.created_unix_s),
    }


def _named(model: Model) -> Json:
    digest = hashlib.sha256(model.name.encode("utf-8", "replace")).hexdigest()
    return {"name": model.name, "model": model.name, "size": 0, "digest": digest, "details": _details(model)}


def _details(model: Model) -> Json:
    return {
        "parent_model": "",
        "format": "",
        "family": model.family,
        "families": [model.family],
        "parameter_size": "",
        "quantization_level": "",
    }
