"""The console's static files, as they lie beside this one: no build, nothing from elsewhere.

Owns the list of what is served: `index.html` at `/`, the others at `/console/<name>`. What is not in it is not served.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

INDEX = "index.html"
_SCRIPT, _STYLE, _PICTURE = "text/javascript; charset=utf-8", "text/css; charset=utf-8", "image/svg+xml"
_PAGES = ("live", "playground", "verify", "admin")
_PARTS = (
    *("alerts", "api", "app", "chart", "charts", "engines", "feed", "figures", "format", "livestore", "panel"),
    *(
        "admincards",
        "adminkeys",
        "adminusage",
        "answerview",
        "ask",
        "chat",
        "codeview",
        "memberview",
        "playform",
        "snippets",
    ),
    *("usage", "verdict"),
    *("requests", "series", "session", "shortcuts", "sse", "theme", "ui", "waterfall"),
)

FILES: Mapping[str, str] = MappingProxyType(
    {
        INDEX: "text/html; charset=utf-8",
        "style.css": _STYLE,
        "icon.svg": _PICTURE,
        **{f"{name}.js": _SCRIPT for name in (*_PAGES, *_PARTS)},
    }
)
"""Each file's name and its Content-Type."""
