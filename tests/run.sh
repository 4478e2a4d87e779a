#!/usr/bin/env bash
# Sets everything up on a fresh machine and runs the tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${VIRTUAL_ENV:-}" ] || { [ -d .venv ] || python3 -m venv .venv; . .venv/bin/activate; }
python -m pip install -q ".[cpu,test]"
# One process per core; tests that take long are handed over to whoever is idle.
python -m pytest -q -n auto --dist worksteal "$@"
