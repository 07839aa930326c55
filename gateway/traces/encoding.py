"""Values of OTLP in JSON: attributes, times, what sends; the protobuf mapping, with ids in hex.

Pure functions. 64-bit integers are texts, enumerations numbers.
https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

import gateway
from gateway.telemetry.logs import quoted

Json = dict[str, object]
_LARGE = 1 << 63
_NO_NUMBERS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
TEXT_CHARS = 4096  # of an attribute's text, but for what LOG_BODIES adds


def text_of(value: str, most: int = TEXT_CHARS) -> str:
    """A text as others can read it: not too long, and without the halves of surrogate pairs, which no UTF-8 has."""
    cut = value if len(value) <= most else value[:most] + "…"
    return cut if cut.isascii() else cut.encode("utf-8", "replace").decode()


def value_of(value: object, most: int = TEXT_CHARS) -> Json:
    """An AnyValue."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": double_of(value)}
    if isinstance(value, (list, tuple)):
        return {"arrayValue": {"values": [value_of(one, most) for one in value]}}
    return {"stringValue": text_of(value if isinstance(value, str) else str(value), most)}


def double_of(value: float) -> object:
    """A double; JSON has no number for three of them."""
    return float(value) if math.isfinite(value) else _NO_NUMBERS[str(float(value))]


def attributes_of(*groups: Mapping[str, object], most: int = TEXT_CHARS) -> list[Json]:
    """Attributes; those that are None are left out."""
    return [
        {"key": key, "value": value_of(value, most)}
        for group in groups
        for key, value in group.items()
        if value is not None
    ]


def attribute_texts(values: Mapping[str, object], most: int = TEXT_CHARS) -> list[str]:
    """The same as JSON each, which is made for every span: a third of the time that dicts and json.dumps take."""
    return [
        f'{{"key":{quoted(key)},"value":{_value_text(value, most)}}}'
        for key, value in values.items()
        if value is not None
    ]


def _value_text(value: object, most: int) -> str:
    kind = type(value)
    if kind is str:
        assert isinstance(value, str)
        return f'{{"stringValue":{quoted(value if len(value) <= most and value.isascii() else text_of(value, most))}}}'
    if kind is int and -_LARGE < value < _LARGE:  # type: ignore[operator]
        return f'{{"intValue":"{value}"}}'
    return json.dumps(value_of(value, most))


def nanos(unix_s: float) -> str:
    """A moment."""
    return str(round(unix_s * 1e9))


def resource_of(service_name: str, instance_id: str) -> Json:
    """What sends."""
    return {
        "attributes": attributes_of(
            {
                "service.name": service_name,
                "service.version": gateway.__version__,
                "service.instance.id": instance_id,
                "telemetry.sdk.name": "inference-gateway",
                "telemetry.sdk.language": "python",
                "telemetry.sdk.version": gateway.__version__,
            }
        )
    }


def request_of(what: str, items: Iterable[str], resource: Json) -> bytes:
    """The body of an export of Spans or Metrics, each as JSON."""
    scope = json.dumps({"name": "gateway", "version": gateway.__version__})
    return (
        f'{{"resource{what}":[{{"resource":{json.dumps(resource)},"scope{what}":'
        f'[{{"scope":{scope},"{what.lower()}":[{",".join(items)}]}}]}}]}}'
    ).encode()
