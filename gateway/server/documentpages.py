"""The API's description as it is sent: `/openapi.json` and `/docs`.

Made when somebody asks for one of them, and once more when the first key appears while the gateway runs. Owns nothing
else.
"""

from __future__ import annotations

from typing import Optional

from gateway.api import own
from gateway.api.document import Documents, documents
from gateway.api.page import PAGE_POLICY
from gateway.keys.auth import Authenticator, Identity
from gateway.server.admin import Reply
from gateway.server.parsing import RequestHead

MADE = (own.DOCUMENT.path, own.DOCS.path)
"""What is asked for there is made for the first who does, which is for a thread."""
Headers = tuple[tuple[str, str], ...]
JSON: Headers = (("Content-Type", "application/json"),)
PAGE: Headers = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Content-Security-Policy", PAGE_POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)


class DocumentPages:
    """Answers at both paths. Thread-safe. `metrics_open`: whether `/metrics` needs no key where others do."""

    def __init__(self, authenticator: Authenticator, metrics_open: bool) -> None:
        self._authenticator = authenticator
        self._metrics_open = metrics_open

    def _made(self) -> Documents:
        return documents(self._authenticator.required, self._metrics_open)

    def document(self, head: RequestHead, identity: Optional[Identity]) -> Reply:
        """The document in JSON."""
        made = self._made()
        return unless_known(head, made.document_tag, JSON, made.document)

    def page(self, head: RequestHead, identity: Optional[Identity]) -> Reply:
        """The page."""
        made = self._made()
        return unless_known(head, made.page_tag, PAGE, made.page)


def unless_known(head: RequestHead, tag: str, headers: Headers, body: bytes, always: Headers = ()) -> Reply:
    """The answer; 304 for who has it already (RFC 9110, 13.1.2). `always`: headers of both."""
    kept: Headers = (("ETag", tag), ("Cache-Control", "no-cache"), *always)
    known = [one.strip() for one in (head.text(b"if-none-match") or "").split(",")]
    if "*" in known or tag in known or f"W/{tag}" in known:
        return Reply(304, kept, b"")
    return Reply(200, (*headers, *kept), body)
