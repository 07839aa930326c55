#!/usr/bin/env bash
# Mock engines for three models, each its own process; Ctrl-C ends them all.
#
#   ./mock.sh [N]     N engines per model, 1 to 100 (default 3)
#
# PYTHON     the interpreter (default python3)
# BASE_PORT  the first port (default 8000): 70b from there, 13b ten ports higher, 7b another ten;
#            with more than ten engines per model, the models' ports follow each other directly
set -u
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1

PYTHON=${PYTHON:-python3}
BASE_PORT=${BASE_PORT:-8000}
MODELS=(70b 13b 7b)
START_TURNS=150 # of a tenth of a second

fail() {
    echo "mock.sh: $2" >&2
    exit "$1"
}

[ $# -le 1 ] || fail 2 "usage: ./mock.sh [engines per model]"
N=${1-3}
[[ $N =~ ^[1-9][0-9]{0,2}$ ]] && [ "$N" -le 100 ] ||
    fail 2 "the number of engines per model must be a whole number from 1 to 100, not '$N'"
STRIDE=$((N <= 10 ? 10 : N))
[[ $BASE_PORT =~ ^[1-9][0-9]{0,4}$ ]] && [ $((BASE_PORT + 2 * STRIDE + N - 1)) -le 65535 ] ||
    fail 2 "BASE_PORT must be a port number with room for the engines up to 65535, not '$BASE_PORT'"
command -v "$PYTHON" >/dev/null || fail 1 "there is no '$PYTHON'; set PYTHON to a Python 3.9 or later"
"$PYTHON" -c 'import gateway' || exit 1 # says it when that one is too old

LOGS=$(mktemp -d) || fail 1 "cannot make a directory for the engines' start messages"

# jobs -pr knows the children that still run, so a number that the system has given to somebody
# else meanwhile is never signalled.
end_all() {
    trap '' INT TERM
    local running
    for _ in $(seq 50); do
        running=$(jobs -pr)
        [ -n "$running" ] || break
        # shellcheck disable=SC2086
        kill -TERM $running 2>/dev/null
        sleep 0.1
    done
    # shellcheck disable=SC2046
    [ -z "$(jobs -pr)" ] || kill -KILL $(jobs -pr) 2>/dev/null
    rm -rf "$LOGS"
}
trap end_all EXIT
trap 'exit 0' INT TERM

PIDS=() NAMES=() ENGINES=""
for index in "${!MODELS[@]}"; do
    model=${MODELS[$index]} urls=""
    for ((engine = 0; engine < N; engine++)); do
        port=$((BASE_PORT + index * STRIDE + engine))
        "$PYTHON" main.py mock --port "$port" --model "$model" >"$LOGS/$port" 2>&1 &
        PIDS+=("$!") NAMES+=("$model $port")
        urls+="${urls:+,}http://127.0.0.1:$port/v1"
    done
    ENGINES+="${ENGINES:+;}$model=$urls"
done

for index in "${!PIDS[@]}"; do
    read -r model port <<<"${NAMES[$index]}"
    for ((turn = 0; ; turn++)); do
        grep -q "^mock engine .* at http" "$LOGS/$port" && break
        if ! kill -0 "${PIDS[$index]}" 2>/dev/null; then
            cat "$LOGS/$port" >&2
            fail 1 "the $model engine on port $port did not start (see above)"
        fi
        [ "$turn" -lt "$START_TURNS" ] || fail 1 "the $model engine on port $port is not ready in time"
        sleep 0.1
    done
done

echo "$((${#MODELS[@]} * N)) mock engines run; Ctrl-C ends them all. For the gateway, as a setting or in .env:"
echo "ENGINES='$ENGINES'"
wait
