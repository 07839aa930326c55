"""Where a program is that tests run."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Optional


def program(name: str) -> Optional[str]:
    """Its path: beside the interpreter, in PATH or in root's folders. None: it is not there."""
    places = (str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin")
    return shutil.which(name, path=os.pathsep.join(places))
