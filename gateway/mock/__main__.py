"""`python -m gateway.mock`: one mock engine, as `python main.py mock`."""

from __future__ import annotations

if __name__ == "__main__":
    try:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `run_to_end` handles it: no traceback
    except KeyboardInterrupt:
        raise SystemExit(130) from None

    import sys

    from gateway.ending import run_to_end
    from gateway.mock.server import main

    run_to_end(lambda: main(sys.argv[1:]), printing=False)
