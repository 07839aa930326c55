"""Jobs in jails: levels that keep a program apart from everything else, and what runs inside them."""

from __future__ import annotations
