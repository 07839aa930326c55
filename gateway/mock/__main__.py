"""`python -m gateway.mock`: one mock engine, as `python main.py mock`."""

from __future__ import annotations

import sys

from gateway.mock.server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
