"""Latency of models before and after, in turn, medians of ratios: onnxruntime at ORT_ENABLE_ALL on both sides, two threads.

python bench/bench_models.py MODEL.onnx ... [--dim NAME=SIZE] [--threads 2] [--json out.json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import onnxopt
from onnxopt.cli import parse_dims
from onnxopt.runtime.bench import compare_models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--dim", action="append")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "optimized.onnx"
            onnxopt.optimize(model, output)
            found = compare_models(
                [model, output], threads=options.threads, rounds=options.rounds, dims=parse_dims(options.dim)
            )
        before, after = found
        print(
            f"{model.stem:14s} {before.median_ms:9.3f} ms -> {after.median_ms:9.3f} ms   {after.speedup:.2f} x",
            flush=True,
        )
        results[model.stem] = [dataclasses.asdict(one) for one in found]
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
