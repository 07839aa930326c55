"""`python main.py`: serves, or runs one of the commands that `--help` lists. All of it is in gateway/cli.py."""

if __name__ == "__main__":
    try:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `run` handles it: no traceback
    except KeyboardInterrupt:
        raise SystemExit(130)  # noqa: B904 (an old Python reads this)

    from gateway.cli import run

    run()
