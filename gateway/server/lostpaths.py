"""What is said of a path that does not exist: which one was meant, and which there are. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Optional

from gateway.errors import RequestRefused

PATH_CHARS = 200  # of a path that somebody has made up
_OWN_AREAS = ("/admin/", "/auth/")


def not_found(path: str, known: Collection[str]) -> RequestRefused:
    """The error of a request for `path`, which is none of those `known` (`{…}` in them stands for anything).

    Administrators' paths are told to who asks for one.
    """
    shown = path if len(path) <= PATH_CHARS else f"{path[:PATH_CHARS]}…"
    meant = meant_by(path, known)
    among_own = (meant or path).startswith(_OWN_AREAS)
    there_are = ", ".join(name for name in known if name.startswith(_OWN_AREAS) == among_own)
    question = "" if meant is None else f"; did you mean {meant}?"
    return RequestRefused("not_found", f"there is no {shown}{question or '.'} There are: {there_are}")


def meant_by(path: str, known: Collection[str]) -> Optional[str]:
    """The known path that `path` ends with, if the known one's /v1, case, and doubled and last slashes do not count."""
    if len(path) > PATH_CHARS:
        return None
    folded = re.sub("/+", "/", path.lower()).rstrip("/")
    ends = {re.sub("^/v1(?=/)", "", name): name for name in known}
    found = [end for end in ends if end != "/" and _ends_with(folded, end)]
    return ends[max(found, key=len)] if found else None


def _ends_with(path: str, end: str) -> bool:
    """Whether a path ends with a known one."""
    pattern = ".+".join(map(re.escape, re.split(r"\{\w+\}", end)))
    return re.search(pattern + r"\Z", path) is not None
