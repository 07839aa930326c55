"""`python -m gateway`: what `python main.py` does in a checkout."""

if __name__ == "__main__":
    try:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `run` handles it: no traceback
    except KeyboardInterrupt:
        raise SystemExit(130)  # noqa: B904 (an old Python reads this)

    from gateway.cli import run

    run()
