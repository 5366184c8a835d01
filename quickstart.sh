#!/usr/bin/env bash
# Install SAGE into .venv and run its main job: engines, gateway, two pipelines, two client calls, a table.
# Options go to `sage quickstart`: --model NAME, --engine vllm, --docs DIR, --keep.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
tools/setup "${SAGE_EXTRAS:-cpu}"
exec .venv/bin/sage quickstart "$@"
