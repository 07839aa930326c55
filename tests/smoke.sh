#!/usr/bin/env bash
# Runs the examples of README and docs as they stand there, each file in one terminal, and checks what they get.
#
#   tests/smoke.sh             every file with examples, on free ports of this machine
#   tests/smoke.sh URL         the same, but the gateway that runs at URL stands for the one on port 8080
#   tests/smoke.sh --newcomer  README only, as it stands: a fresh clone, an empty environment, the ports that it names,
#                              the tests as well; in a network of its own where the system allows that
#
# PYTHON          the interpreter (default python3)
# API_KEY         a key for the gateway at URL, if it asks for one
# REQUIRE_OPENAI  1: without the openai package the run fails; else its example is skipped
#
# Exit status: 0 all as the texts say, 1 something is not, 2 it could not begin.
set -eu
PYTHON=$(command -v "${PYTHON:-python3}") || { echo "smoke.sh: there is no ${PYTHON:-python3}" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "$PYTHON" -m tests.smoke "$@"
