"""What `curl -d` says of a body: that it is a form, whatever it is. Ollama's own documents ask it so, with JSON.

At Ollama's paths that counts as nothing said, and what has no label is read as JSON. Not where a browser may have sent
it: a page can have one send this label to any address without asking first, and JSON must not be sent that way (see
`browsers.py`). Browsers say `Origin` with every POST, and no page can change that. Pure.
"""

from __future__ import annotations

import copy

from gateway.dialects.bypath import ENDPOINTS, OLLAMA
from gateway.server.parsing import RequestHead

LABEL = b"application/x-www-form-urlencoded"
BROWSERS_SAY = (b"origin", b"sec-fetch-site")
PATHS = frozenset(path for path, endpoint in ENDPOINTS.items() if endpoint.error_format == OLLAMA)


def as_meant(head: RequestHead) -> RequestHead:
    """The same head, or one without the label where that says nothing."""
    headers = head.headers
    if headers.get(b"content-type") != LABEL or head.path not in PATHS or any(name in headers for name in BROWSERS_SAY):
        return head
    meant = copy.copy(head)
    meant.headers = {name: value for name, value in headers.items() if name != b"content-type"}
    return meant
