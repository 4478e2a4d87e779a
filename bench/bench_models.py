"""Latency of models: onnxruntime at ORT_ENABLE_ALL, OpenVINO, and onnxopt, in turn, medians of ratios, two threads on each side.

    python bench/bench_models.py MODEL.onnx ... [--threads 2] [--json out.json] [--chart out.svg]

Sizes of dynamic dims are in cases.toml. OpenVINO runs with its latency hint in float32; where it is not installed, or cannot load a model,
its column is empty. Outputs of onnxopt's model are compared with the original's before anything is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pygal
from pygal.style import CleanStyle

import onnxopt
from onnxopt import ir
from onnxopt.runtime.bench import compare
from onnxopt.runtime.verify import draw_inputs

HERE = Path(__file__).resolve().parent
CASES = tomllib.loads((HERE / "cases.toml").read_text())
LARGEST_ERROR = 1e-3
"""Of the largest magnitude of an output."""

Case = dict[str, Any]


def openvino(model: Path, inputs: dict[str, np.ndarray], threads: int) -> Callable[[], object] | None:
    """A call of the model in OpenVINO, or None."""
    try:
        import openvino as ov

        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
        request.infer(inputs)
    except Exception as reason:  # it raises plain RuntimeErrors for what it cannot load
        print(f"{model.stem}: no OpenVINO ({str(reason).splitlines()[0][:80]})")
        return None
    return lambda: request.infer(inputs)


def largest_error(expected: list[np.ndarray], actual: list[np.ndarray]) -> float:
    """The largest difference, relative to the largest magnitude of its output; infinite where a number is not finite, since such outputs
    hide every difference."""
    worst = 0.0
    for one, other in zip(expected, actual, strict=True):
        if not (np.isfinite(one).all() and np.isfinite(other).all()):
            return math.inf
        scale = max(float(np.abs(one).max(initial=0)), 1e-6)
        worst = max(worst, float(np.abs(one.astype(np.float64) - other).max(initial=0)) / scale)
    return worst


def make_inputs(model: Path, case: dict[str, Any]) -> dict[str, np.ndarray]:
    dims = {name: size for name, size in case.items() if name != "inputs"}
    inputs = draw_inputs(ir.load(model), dims, np.random.default_rng(0), 1)
    return inputs | {name: np.array(value, inputs[name].dtype) for name, value in case.get("inputs", {}).items()}


def measure(model: Path, optimized: Path, case: dict[str, Any], threads: int, rounds: int) -> Case:
    inputs = make_inputs(model, case)
    theirs = onnxopt.session(model, threads=threads, library=False)
    ours = onnxopt.session(optimized, threads=threads)
    exact = onnxopt.session(model, threads=threads, library=False, optimize=False)
    error = largest_error(exact.run(None, inputs), ours.run(None, inputs))
    del exact
    if error > LARGEST_ERROR:
        raise SystemExit(f"{model}: outputs differ by {error:.1e}")
    contenders = [
        ("onnxopt", lambda: ours.run(None, inputs)),
        ("onnxruntime", lambda: theirs.run(None, inputs)),
    ]
    peer = openvino(model, inputs, threads)
    if peer is not None:
        contenders.append(("OpenVINO", peer))
    found = compare(contenders, rounds)
    return {
        "ms": {one.name: round(one.median_ms, 4) for one in found},
        "times_as_fast": {one.name: round(1 / one.speedup, 3) for one in found[1:]},
        "error": error,
    }


def run(model: Path, threads: int, rounds: int) -> dict[str, Case]:
    """The results of all cases of a model, by their names."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        onnxopt.optimize(model, optimized)
        for label, case in CASES.get(model.stem, {"": {}}).items():
            name = f"{model.stem} {label}".strip()
            results[name] = found = measure(model, optimized, case, threads, rounds)
            times = "  ".join(f"{peer} {ms:9.3f} ms" for peer, ms in found["ms"].items())
            ratios = "  ".join(f"{ratio:.2f} x {peer}" for peer, ratio in found["times_as_fast"].items())
            print(f"{name:22s} {times}   {ratios}   error {found['error']:.0e}", flush=True)
    return results


def geometric_mean(numbers: list[float]) -> float:
    return math.exp(sum(map(math.log, numbers)) / len(numbers))


def describe_machine(threads: int) -> dict[str, str]:
    versions = {"onnxruntime": onnxruntime.__version__}
    try:
        import openvino as ov

        versions["openvino"] = ov.__version__.split("-")[0]
    except ImportError:
        pass
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    commit = subprocess.run(["git", "-C", HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "machine": f"{names[0] if names else platform.machine()}, {len(names)} cores",
        "kernels": onnxopt.runtime.library.native().max_isa(),
        "threads": str(threads),
        "commit": commit.stdout.strip(),
        **versions,
    }


def chart(results: dict[str, Case], machine: dict[str, str]) -> bytes:
    """Bars of speed relative to onnxruntime."""
    style = CleanStyle(font_family="system-ui, sans-serif", colors=("#2563eb", "#9aa5b1"))
    bars = pygal.HorizontalBar(
        title=f"Speed relative to onnxruntime {machine['onnxruntime']} (1.0), {machine['machine']}",
        style=style,
        js=[],
        width=860,
        height=120 + 30 * len(results),
        print_values=True,
        formatter=lambda x: f"{x:.2f}",
        show_y_guides=False,
    )
    names = list(results)[::-1]  # the first one is drawn at the bottom
    bars.x_labels = names
    bars.uuid = "latency"
    bars.add("onnxopt", [results[name]["times_as_fast"]["onnxruntime"] for name in names])
    relative = [results[name]["times_as_fast"] for name in names]
    bars.add("OpenVINO", [one["onnxruntime"] / one["OpenVINO"] if "OpenVINO" in one else None for one in relative])
    return bytes(bars.render(pretty_print=True, disable_xml_declaration=True).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chart", type=Path)
    options = parser.parse_args()
    machine = describe_machine(options.threads)
    results: dict[str, Case] = {}
    for model in options.models:
        results.update(run(model, options.threads, options.rounds))
    for peer in ("onnxruntime", "OpenVINO"):
        ratios = [one["times_as_fast"][peer] for one in results.values() if peer in one["times_as_fast"]]
        if ratios:
            print(f"geometric mean over {len(ratios)}: {geometric_mean(ratios):.2f} x {peer}")
    if options.json:
        options.json.write_text(json.dumps({**machine, "models": results}, indent=2) + "\n")
    if options.chart:
        options.chart.write_bytes(chart(results, machine))


if __name__ == "__main__":
    main()
