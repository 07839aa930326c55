"""What a request's body is said to be, where it has to be JSON. Pure.

`curl -d` says that it is a form, whatever it is, and Ollama's own documents ask it so, with JSON. At Ollama's paths
that counts as nothing said, and what has no label is read as JSON. Not where a browser may have sent it: a page can
have one send this label to any address without asking first, and JSON must not be sent that way (see
`server/browsers.py`). Browsers say `Origin` with every POST, and no page can change that.
"""

from __future__ import annotations

from gateway.asked import Head
from gateway.dialects.bypath import ENDPOINTS, OLLAMA
from gateway.errors import RequestRefused

_JSON = b"application/json"
_FORM = b"application/x-www-form-urlencoded"
_BROWSERS_SAY = (b"origin", b"sec-fetch-site")
_OLLAMAS = frozenset(path for path, endpoint in ENDPOINTS.items() if endpoint.error_format == OLLAMA)


def check_media_type(head: Head) -> None:
    """Raise `unsupported_media_type` for a body that is not said to be plain JSON."""
    refuse_compressed(head)
    headers = head.headers
    kind = headers.get(b"content-type", _JSON)
    media = kind.partition(b";")[0].strip().lower()
    if media == _JSON or media.endswith(b"+json"):
        return
    if kind == _FORM and head.path in _OLLAMAS and not any(name in headers for name in _BROWSERS_SAY):
        return
    raise RequestRefused("unsupported_media_type", "send JSON with Content-Type: application/json")


def refuse_compressed(head: Head) -> None:
    """Raise `unsupported_media_type` for a body that is said to be compressed."""
    if head.headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RequestRefused("unsupported_media_type", "compressed bodies are not supported")
