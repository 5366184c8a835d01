#!/usr/bin/env bash
# One command per chore; pre-commit and CI call the same ones. Alone it lists them. Several run in turn:
# `./manage.sh lint test`. One chore with arguments: `./manage.sh test packages/sage-cli -k help`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export PATH="$PWD/.venv/bin:$PATH"
MYPYPATH=$(echo packages/*/src | tr ' ' ':')
export MYPYPATH

setup()     { tools/setup cpu,dev; }                                      # make or refresh .venv
clients()   { setup && tools/clients; }                                   # the clients of the contract tests, in their own environments
test()      { clients && python -m pytest "$@"; }                         # all tests, or those named
lint()      { setup && tools/lint "$@"; }                                 # ruff, mypy, layers, sizes, namespace, …
format()    { setup && ruff check --fix . && ruff format .; }             # rewrite what can be
layers()    { setup && sage-dev layers; }                                 # import contracts
audit()     { setup && tools/audit; }                                     # known vulnerabilities of the locked versions
lock()      { setup && python tools/lock "$@"; }                          # resolve and pin all dependencies again
build()     { setup && sage-dev build "$@"; }                             # wheels of all packages into dist/
test-vllm() { setup && tools/test_vllm.sh "$@"; }                         # engines and gateway on vLLM, in its own environment
sim()       { setup && python -m sage.middleware.control_plane.simulator.soak "$@"; }  # random simulated runs, invariants checked
crash()     { setup && python -m sage.kernel.testing.crash "$@"; }        # runs killed at random moments, and gone on with
chaos()     { setup && python -m sage.benchmark.resilience chaos "$@"; }  # faults, kills and storms on the real gateway process
soak()      { setup && python -m sage.benchmark.resilience soak "$@"; }   # mixed load on it for an hour; memory stays
fuzz()      { setup && tools/fuzz.sh "$@"; }                              # wrong requests on it, by schema and by bytes
clean()     { rm -rf .venv .venv-fuzz dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis; }  # what was made here

recipes() { sed -nE 's/^([a-z-]+)\(\) +\{ .*\} +# (.*)$/\1\t\2/p' manage.sh; }
is_recipe() { recipes | cut -f1 | grep -qx -- "$1"; }

if [ $# -eq 0 ]; then
  echo "usage: ./manage.sh RECIPE [ARGUMENTS] | RECIPE RECIPE …"
  recipes | while IFS=$'\t' read -r name text; do printf '  %-10s %s\n' "$name" "$text"; done
  exit 0
fi
if ! is_recipe "$1"; then
  echo "error: there is no recipe $1; there are: $(recipes | cut -f1 | paste -sd' ')" >&2
  exit 2
fi
if [ $# -gt 1 ] && is_recipe "$2"; then
  for recipe in "$@"; do "$recipe"; done
else
  "$@"
fi
