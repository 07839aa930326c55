"""What is said of a path that does not exist: which one was meant, and which there are. No state that changes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Optional

from gateway.errors import RequestRefused

PATH_CHARS = 200  # of a path that somebody has made up
_OWN_AREAS = ("/admin/", "/auth/")
_KEPT_RESPONSE = re.compile("/responses/[^/]")
_NOT_KEPT_HERE = (
    ": of responses only POST /v1/responses is served, which goes on with one that its engine keeps"
    " (previous_response_id); it can be neither fetched nor deleted here."
)


class LostPaths:
    """Tells by what there is: paths in which `{…}` stands for anything. Thread-safe."""

    def __init__(self, known: Iterable[str]) -> None:
        names = tuple(known)
        self._own = ", ".join(name for name in names if name.startswith(_OWN_AREAS))
        self._others = ", ".join(name for name in names if not name.startswith(_OWN_AREAS))
        ends = {re.sub("^/v1(?=/)", "", name): name for name in names if name != "/"}
        self._ends = [(_ending(end), ends[end]) for end in sorted(ends, key=len, reverse=True)]

    def not_found(self, path: str) -> RequestRefused:
        """The error of a request for `path`, which does not exist. Administrators' paths are named for such a one."""
        shown = path if len(path) <= PATH_CHARS else f"{path[:PATH_CHARS]}…"
        meant = self.meant_by(path)
        there_are = self._own if (meant or path).startswith(_OWN_AREAS) else self._others
        if _KEPT_RESPONSE.search(shown):
            hint = _NOT_KEPT_HERE
        else:
            hint = "." if meant is None else f"; did you mean {meant}?"
        return RequestRefused("not_found", f"there is no {shown}{hint} There are: {there_are}")

    def meant_by(self, path: str) -> Optional[str]:
        """The path that `path` ends with, if that one's /v1, case, and doubled and last slashes do not count."""
        if len(path) > PATH_CHARS:
            return None
        folded = re.sub("/+", "/", path.lower()).rstrip("/")
        return next((name for ending, name in self._ends if ending.search(folded)), None)


def _ending(end: str) -> re.Pattern[str]:
    return re.compile(".+".join(map(re.escape, re.split(r"\{\w+\}", end))) + r"\Z")
