"""The console's files: the page at `/` for who asks for HTML, and what it loads from `/console/`.

Owns the files, read once, when the first of them is asked for: their names are the only ones there are, so that no path
of a client's comes near the file system. They hold no secret and need no key; what they show is asked for with one.
Thread-safe: the table is replaced whole, and two threads that read at once make the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple, Optional

from gateway.errors import RequestRefused
from gateway.keys.auth import Identity
from gateway.server.admin import Reply
from gateway.server.documentpages import Headers, unless_known
from gateway.server.negotiating import wants_html
from gateway.server.parsing import RequestHead
from gateway.telemetry.logs import CONSOLE_FILES

PAGE = "index.html"
KINDS: Mapping[str, str] = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
"""By what a file's name ends with. Others are not served."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
SAFETY: Headers = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
VARY: Headers = (("Vary", "Accept"),)
"""Of what `/` answers, whichever it is."""


class _File(NamedTuple):
    headers: Headers
    tag: str
    body: bytes


class ConsolePages:
    """Answers for each file. `on` False: there is none, and nothing is read."""

    def __init__(self, on: bool) -> None:
        self.on = on
        self._files: Optional[Mapping[str, _File]] = None

    def must_read(self, head: RequestHead) -> bool:
        """Whether the answer would read the files now, which is for a thread."""
        if self._files is not None or not self.on or head.method not in ("GET", "HEAD"):
            return False
        return head.path.startswith(CONSOLE_FILES) or (head.path == "/" and wants_html(head.text(b"accept")))

    def page(self, head: RequestHead) -> Optional[Reply]:
        """The page, if this client would rather have it than JSON."""
        if not (self.on and wants_html(head.text(b"accept"))):
            return None
        page = self._all().get(PAGE)
        return None if page is None else unless_known(head, page.tag, page.headers, page.body, VARY)

    def file(self, head: RequestHead, identity: Optional[Identity]) -> Reply:
        """One of the files. Raises `not_found`."""
        found = self._all().get(head.path[len(CONSOLE_FILES) :])
        if found is None:
            raise RequestRefused("not_found", "the console has no such file")
        return unless_known(head, found.tag, found.headers, found.body)

    def _all(self) -> Mapping[str, _File]:
        if self._files is None:
            self._files = _read()
        return self._files


def _read() -> Mapping[str, _File]:
    """All files there are, from a folder or an archive."""
    from importlib import resources  # 10 ms, for nobody who opens no console

    folder = resources.files("gateway") / "console"
    files: dict[str, _File] = {}
    for entry in folder.iterdir() if folder.is_dir() else ():
        kind = KINDS.get(entry.name.rpartition(".")[2])
        if kind is not None and entry.is_file():
            body = entry.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            files[entry.name] = _File((("Content-Type", kind), *SAFETY), tag, body)
    return files
