"""`python main.py`: serves, or runs one of the commands that `--help` lists. All of it is in gateway/cli.py."""

import sys

from gateway.cli import run

if __name__ == "__main__":
    sys.exit(run())
