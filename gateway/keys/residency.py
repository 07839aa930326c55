"""Where a request's data must stay: what its key says, and what the request says itself.

Pure. Who may have it is decided where engines are chosen (`routing/regions.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gateway.errors import RequestRefused
from gateway.routing import checks
from gateway.routing.regions import within

RESIDENCY_HEADER = b"x-gateway-residency"


def residency_of(headers: Mapping[bytes, bytes], repeated: Collection[bytes], of_key: str) -> str:
    """The region that a request must not leave; "": it may. `of_key`: what its key says.

    Both must hold, so the narrower one counts. Raises `invalid_residency`, and `residency_conflict` where none lies
    within the other.
    """
    value = headers.get(RESIDENCY_HEADER)
    if value is None:
        return of_key
    if RESIDENCY_HEADER in repeated:
        raise RequestRefused("invalid_residency", "X-Gateway-Residency is sent twice")
    said = value.decode("latin-1").strip().lower()
    for fault in checks.region(said):
        raise RequestRefused("invalid_residency", f"X-Gateway-Residency{fault}")
    if within(said, of_key):
        return said
    if within(of_key, said):
        return of_key
    raise RequestRefused(
        "residency_conflict", f"the request must stay in {said}, but what this key asks must stay in {of_key}"
    )
