"""The Inference Gateway: one OpenAI-style address in front of many inference engines."""

import sys

__version__ = "0.1.0"

# Here, because nothing of the gateway is imported before this file. An old Python must be able to read it, and those
# that stand before it: main.py, inference.py, gateway/__main__.py.
if sys.version_info < (3, 9):  # noqa: UP036
    this = sys.version.split()[0] + " (" + str(sys.executable) + ")"
    sys.exit("The gateway needs Python 3.9 or later; this is " + this)
