"""The schemas of the OpenAPI document, compiled by the product's own checker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gateway.schemas.schema import Schema, compile_schema


def compiled(schema: Any, components: Mapping[str, Any]) -> Schema:
    """A schema of the document, whose components are `components`."""
    whole = json.dumps({**schema, "$defs": components})
    return compile_schema(json.loads(whole.replace('"#/components/schemas/', '"#/$defs/')))
