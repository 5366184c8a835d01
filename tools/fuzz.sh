#!/bin/sh
# Make .venv-fuzz (schemathesis and what it needs, nothing of SAGE) if it is not there, and fuzz the gateway.
set -eu
cd "$(dirname "$0")/.."

lock=requirements/fuzz.txt
want=$(cat "$lock" "$0" | cksum)
if [ "$(cat .venv-fuzz/ready 2>/dev/null)" != "$want" ]; then
    echo "installing schemathesis into .venv-fuzz"
    "${PYTHON:-.venv/bin/python}" -m venv --clear .venv-fuzz
    .venv-fuzz/bin/python -m pip install --quiet --constraint "$lock" schemathesis
    echo "$want" >.venv-fuzz/ready
fi
SAGE_SCHEMATHESIS="$PWD/.venv-fuzz/bin/st" exec .venv/bin/python -m sage.benchmark.resilience fuzz "$@"
