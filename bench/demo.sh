#!/usr/bin/env bash
# Sets everything up on a fresh machine, optimizes a trained OCR model, verifies it and prints what was gained.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${VIRTUAL_ENV:-}" ] || { [ -d .venv ] || python3 -m venv .venv; . .venv/bin/activate; }
python -m pip install -q ".[cpu]"
python bench/models.py build/models ppdet
onnxopt optimize build/models/ppdet.onnx -o build/models/ppdet.opt.onnx --verify --report build/models/ppdet.html
onnxopt bench build/models/ppdet.onnx build/models/ppdet.opt.onnx \
  --dim p2o.DynamicDimension.0=1 --dim p2o.DynamicDimension.1=480 --dim p2o.DynamicDimension.2=640
