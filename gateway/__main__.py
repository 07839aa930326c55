"""`python -m gateway`: what `python main.py` does in a checkout."""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `run` handles it: no traceback

    from gateway.cli import run

    run()
