"""A program as a whole: run as a script, with what it reads, for what it prints.

Trusted code, for inside the sandbox: the part of the judge that calls nothing.
"""

from __future__ import annotations

from typing import Optional

from gateway.verify.harness.keys import NO_INPUT, error_key  # in the sandbox this file stands before
from gateway.verify.harness.processes import PRINTED_BYTES_MAX  # in the sandbox this file stands before
from gateway.verify.harness.running import Running  # in the sandbox this file stands before
from gateway.verify.harness.stdio import (  # in the sandbox this file stands before
    normalised,
    printed_key,
    reads_stdin,
    shortened,
)

LATE_RUNS_MAX = 3  # runs that took too long: so do the rest, without trying
RUN_SHARE = 0.25  # of the whole time, that one of several runs may take


class Scripts(Running):
    """One program, and its runs as a whole."""

    def run_all(self, stdins: list[str], keys: list[str]) -> None:
        """Run it with each of these, or once with nothing to read; add the key of each run to `keys`."""
        if self._language != "python":
            self._check()
        if not stdins:
            keys.append(self._key_of_run("", self._total_s))
        late = 0
        for stdin in stdins:
            if late >= LATE_RUNS_MAX or self._over():
                keys.append(error_key("timeout"))
                continue
            keys.append(self._key_of_run(stdin, self._total_s * RUN_SHARE))
            late += keys[-1] == error_key("timeout")

    def _key_of_run(self, stdin: str, most_s: float) -> str:
        status, printed, said = self._run(stdin, most_s)
        if status is None:
            return error_key("output" if flooded(printed) else "timeout")
        if status == 0:
            return printed_key(printed)
        if not stdin and (reads_stdin(self._code) or said.rstrip().rpartition("\n")[2].startswith("EOFError")):
            return error_key(NO_INPUT)
        return error_key(f"status {status}")

    def compare(self, pair: dict[str, str]) -> Optional[str]:
        """Run it with the pair's input: None where it prints the pair's output, else what it did instead."""
        status, printed, said = self._run(str(pair.get("input") or ""), self._total_s)
        if status is None:
            return "it printed too much" if flooded(printed) else "it took too long"
        got, wanted = normalised(printed), normalised(str(pair["output"]))
        if status != 0:
            return f"it ended with status {status}: {said[-300:].strip()}"
        return None if got == wanted else f"it printed {shortened(got)}, not {shortened(wanted)}"

    def _run(self, stdin: str, most_s: float) -> tuple[Optional[int], str, str]:
        """Run the program once: its exit status (None: it took too long), what it printed to stdout and stderr."""
        kind = "script" if self._language == "python" else f"{self._language} script"
        return self._finished(kind, stdin.encode("utf-8", "surrogatepass"), most_s)


def flooded(printed: str) -> bool:
    return len(printed) > PRINTED_BYTES_MAX // 4  # characters, of a run that was ended
