"""`python -m gateway`: what `python main.py` does in a checkout."""

import sys

from gateway.cli import run

if __name__ == "__main__":
    sys.exit(run())
