"""What is told of the schemas that are kept, and how they are kept and forgotten.

Owns nothing. Keeping waits for the disk: it is for a thread.
"""

from __future__ import annotations

from typing import Any, Optional

from gateway.errors import GatewayError, RequestRefused
from gateway.schemas.faults import SchemaRefused
from gateway.schemas.registry import NameRefused, RegistryError, SchemaRegistry, SchemaUnknown
from gateway.telemetry.observe import Telemetry


class SchemaPages:
    """Answers at `/admin/schemas`. Thread-safe. `registry` None: no SCHEMAS_DIR. All raise GatewayError."""

    def __init__(self, registry: Optional[SchemaRegistry], telemetry: Telemetry) -> None:
        self._registry = registry
        self._telemetry = telemetry

    def list(self) -> dict[str, object]:
        """All of them, by name."""
        kept = {} if self._registry is None else self._registry.schemas()
        return {"schemas": [_told(name, kept[name].document) for name in sorted(kept)]}

    def find(self, name: str) -> dict[str, object]:
        """One of them."""
        try:
            return _told(name, self._opened().find(name).document)
        except SchemaUnknown as error:
            raise RequestRefused("not_found", str(error)) from error

    def put(self, name: str, document: Any) -> tuple[dict[str, object], bool]:
        """Keep one; whether it is new."""
        registry = self._opened()
        try:
            return _told(name, document), registry.put(name, document)
        except SchemaRefused as error:
            raise RequestRefused("invalid_response_format", str(error), param=error.path[:200]) from error
        except NameRefused as error:
            raise RequestRefused("invalid_body", str(error)) from error
        except RegistryError as error:
            raise self._unwritten(error) from error

    def delete(self, name: str) -> dict[str, object]:
        """Forget one."""
        registry = self._opened()
        try:
            registry.delete(name)
        except SchemaUnknown as error:
            raise RequestRefused("not_found", str(error)) from error
        except RegistryError as error:
            raise self._unwritten(error) from error
        return {"name": name, "deleted": True}

    def _opened(self) -> SchemaRegistry:
        if self._registry is None:
            raise RequestRefused("not_found", "no schemas are kept: SCHEMAS_DIR is not set")
        return self._registry

    def _unwritten(self, error: RegistryError) -> GatewayError:
        self._telemetry.log("error", "schemas", message=str(error))
        return GatewayError("internal_error", "the folder of schemas cannot be written; see the log")


def _told(name: str, document: Any) -> dict[str, object]:
    return {"name": name, "schema": document}
