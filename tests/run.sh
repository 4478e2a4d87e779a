#!/usr/bin/env bash
# Sets everything up on a fresh machine and runs the tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${VIRTUAL_ENV:-}" ] || { [ -d .venv ] || python3 -m venv .venv; . .venv/bin/activate; }
python -m pip install -q ".[cpu,test]"
python -m pytest -q "$@"
