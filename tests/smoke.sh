#!/usr/bin/env bash
# Runs the README's examples as they stand there and checks what they get.
#
#   tests/smoke.sh          starts everything the examples need, on free ports of this machine
#   tests/smoke.sh URL      the same, but the gateway that runs at URL stands for the first one, on port 8080
#
# PYTHON          the interpreter (default python3)
# API_KEY         a key for the gateway at URL, if it asks for one
# REQUIRE_OPENAI  1: without the openai package the run fails; else its example is skipped
#
# Exit status: 0 all as the README says, 1 something is not, 2 it could not begin.
set -u -m # -m: each process started below leads its own group, so that it ends with all its children

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2
PYTHON=$(command -v "${PYTHON:-python3}") || { echo "smoke.sh: there is no ${PYTHON:-python3}" >&2; exit 2; }
URL=${1-}
URL=${URL%/}
READY='^(inference gateway|mock engine .*) at http|mock engines run'
START_TURNS=300 # of a tenth of a second
command -v curl >/dev/null || { echo "smoke.sh: there is no curl" >&2; exit 2; }

WORK=$(mktemp -d) || exit 2
GROUPS_TO_END=()
end_all() {
    trap '' INT TERM
    exec 2>/dev/null # the shell would report each end
    for group in "${GROUPS_TO_END[@]}"; do kill -TERM -- "-$group"; done
    wait
    rm -rf "$WORK"
}
trap end_all EXIT
trap 'exit 1' INT TERM

PREFIX=$(cd "$ROOT" && "$PYTHON" -m tests.readme_examples free) || exit 2
mkdir "$WORK/examples" "$WORK/bin" "$WORK/here" || exit 2
(cd "$ROOT" && "$PYTHON" -m tests.readme_examples "$WORK/examples" "$PREFIX") || exit 2

# The examples say `python`; and they run in a folder where no .env of yours changes what they get.
printf '#!/bin/sh\nexec %q "$@"\n' "$PYTHON" >"$WORK/bin/python"
chmod +x "$WORK/bin/python"
ln -s "$ROOT/main.py" "$ROOT/mock.sh" "$WORK/here/"
cd "$WORK/here" || exit 2

# The status behind each answer, without touching the commands.
printf 'silent\nshow-error\nmax-time = 30\nwrite-out = "\\n%%{http_code}\\n"\n' >"$WORK/.curlrc"
mkdir "$WORK/keyed"
cp "$WORK/.curlrc" "$WORK/keyed/.curlrc"
[ -z "${API_KEY-}" ] || printf 'header = "Authorization: Bearer %s"\n' "$API_KEY" >>"$WORK/keyed/.curlrc"

run_clean() { # file with commands, folder of .curlrc
    env -i PATH="$WORK/bin:$PATH" HOME="$WORK" CURL_HOME="${2-$WORK}" PYTHON="$PYTHON" PYTHONDONTWRITEBYTECODE=1 \
        PYTHONPATH="$ROOT" NO_PROXY='*' PORT="${PREFIX}80" BASE_PORT="${PREFIX}00" bash -u "$1"
}

start() { # file with commands
    local log="$WORK/log.$(basename "$1")"
    run_clean "$1" >"$log" 2>&1 &
    GROUPS_TO_END+=("$!")
    for ((turn = 0; turn < START_TURNS; turn++)); do
        grep -qE "$READY" "$log" && return 0
        kill -0 "$!" 2>/dev/null || break
        sleep 0.1
    done
    cat "$log"
    return 1
}

PASSED=0 FAILED=0 SKIPPED=0
verdict() { # PASS|FAIL|SKIP, example, what it got
    printf '%s  %s  %s\n' "$1" "$2" "$3"
    case $1 in PASS) PASSED=$((PASSED + 1)) ;; FAIL) FAILED=$((FAILED + 1)) ;; *) SKIPPED=$((SKIPPED + 1)) ;; esac
}

ask() { # file with a curl command, name, expected status
    local output status folder="$WORK"
    if [ -n "$URL" ] && grep -q "127.0.0.1:${PREFIX}80/" "$1"; then
        folder="$WORK/keyed"
        sed "s|http://127.0.0.1:${PREFIX}80/|$URL/|g" "$1" >"$1.url" && set -- "$1.url" "$2" "$3"
    fi
    output=$(run_clean "$1" "$folder" 2>&1)
    status=${output##*$'\n'}
    if [ "$status" = "$3" ]; then
        verdict PASS "$2" "got $status"
    else
        verdict FAIL "$2" "got $status, not $3:"
        cat "$1"
        printf '%s\n' "$output"
    fi
}

run_python() { # program, name
    local output
    if grep -q '^from openai' "$1" && ! "$PYTHON" -c 'import openai' 2>/dev/null; then
        [ "${REQUIRE_OPENAI-}" = 1 ] && verdict FAIL "$2" "the openai package is missing" ||
            verdict SKIP "$2" "the openai package is not installed"
        return
    fi
    if output=$(printf 'exec python %q\n' "$1" >"$1.sh" && run_clean "$1.sh" 2>&1); then
        verdict PASS "$2" "ended well"
    else
        verdict FAIL "$2" "did not end well:"
        printf '%s\n' "$output"
    fi
}

for file in "$WORK"/examples/*; do
    name=$(basename "$file")
    name="README ${name#*-}"
    name=${name%.*}
    case $file in
    *-start-line-*)
        if [ -n "$URL" ] && [ "$(cat "$file")" = "python main.py" ]; then
            continue # that is the gateway at URL
        fi
        start "$file" && verdict PASS "$name" "started" || verdict FAIL "$name" "did not start (see above)"
        ;;
    *.py) run_python "$file" "$name" ;;
    *) status=${name#README } && ask "$file" "$name" "${status%%-*}" ;;
    esac
done
echo "smoke: $PASSED passed, $FAILED failed, $SKIPPED skipped"
[ "$FAILED" = 0 ] && [ "$PASSED" -gt 0 ]
