#!/usr/bin/env bash
# Install SAGE into .venv and run its main job: engines, gateway, two pipelines, two client calls, a table.
# Options go to `sage quickstart`: --model NAME, --engine vllm, --engine-python PATH, --docs DIR, --keep.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
"$root/tools/setup" "${SAGE_EXTRAS:-cpu}"
# From the caller's folder, where its relative paths mean something; without --docs, our own documents.
exec "$root/.venv/bin/sage" quickstart --own-docs "$root/docs" "$@"
