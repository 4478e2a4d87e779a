"""Latency and error of 8-bit models: `onnxopt quantize` beside onnxruntime's float32 and its own quantization, and OpenVINO with NNCF.

    python bench/bench_quantized.py MODEL.onnx ... [--threads 2] [--samples 32] [--json out.json]

All sides get the same random samples (sizes of dynamic dims are those of cases.toml, the first case of a model whose rows are not many) and
are set up as their documentation says: onnxruntime after its shape inference and pre-processing, at an opset whose weights can have a
scale per channel, static where the model has convolutions, dynamic where it has none; NNCF with its mixed preset and, for models with
attention, its transformer scheme. A peer that is not installed, or fails, has no column. Errors are signal to noise of the first output against float32, in dB.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bench_models import CASES, describe_machine, make_inputs

import onnxopt
from onnxopt.runtime.bench import compare

PER_CHANNEL_OPSET = 13

Sample = dict[str, np.ndarray]
Call = Callable[[], object]


def sample_sets(model: Path, count: int) -> list[Sample]:
    """Samples of the case that comes nearest to 128 rows for models of text, of the only one for others."""
    cases = CASES.get(model.stem, {"": {}})
    label = next((one for one in cases if one.endswith("x 128")), next(iter(cases)))
    first = make_inputs(model, cases[label])
    generator = np.random.default_rng(1)
    return [first, *(redraw(first, generator) for _ in range(count - 1))]


def redraw(sample: Sample, generator: np.random.Generator) -> Sample:
    """A sample of the same sizes: other floats, integers in another order."""
    return {
        name: generator.standard_normal(array.shape).astype(array.dtype)
        if array.dtype.kind == "f"
        else generator.permutation(array.ravel()).reshape(array.shape)
        for name, array in sample.items()
    }


def signal_to_noise(expected: np.ndarray, found: np.ndarray) -> float:
    wanted = expected.astype(np.float64)
    return 10 * math.log10(float((wanted**2).sum()) / max(float(((wanted - found) ** 2).sum()), 1e-30))


def _upgraded(model: Path, folder: Path) -> Path:
    """The model at an opset from which on weights have a scale per channel."""
    proto = onnx.load(model)
    opset = next(one.version for one in proto.opset_import if one.domain in ("", "ai.onnx"))
    if opset >= PER_CHANNEL_OPSET:
        return model
    path = folder / "upgraded.onnx"
    onnx.save(onnx.version_converter.convert_version(proto, PER_CHANNEL_OPSET), path)
    return path


def onnxruntime_quantized(
    model: Path, samples: list[Sample], folder: Path, threads: int, *, static: bool = False
) -> Any:
    """A session of what onnxruntime's scripts make: static where the model has convolutions, or always."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> Sample | None:
            return next(self.left, None)

    prepared, out = folder / "prepared.onnx", folder / "onnxruntime.onnx"
    quant_pre_process(_upgraded(model, folder), prepared, skip_symbolic_shape=True)
    if static or any(node.op_type == "Conv" and node.input for node in onnx.load(prepared).graph.node[:400]):
        quantization.quantize_static(prepared, out, Reader(), per_channel=True)
    else:
        quantization.quantize_dynamic(prepared, out, per_channel=True)
    return onnxopt.session(out, threads=threads, library=False)


def nncf_quantized(model: Path, samples: list[Sample], threads: int) -> Callable[[Sample], np.ndarray]:
    import nncf
    import openvino as ov

    source = ov.Core().read_model(model)
    attends = any(node.get_type_name() == "Softmax" for node in source.get_ops()[:-20])
    kind = nncf.ModelType.TRANSFORMER if attends else None
    made = nncf.quantize(
        source,
        nncf.Dataset(samples),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(samples),
        model_type=kind,
    )
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = ov.Core().compile_model(made, "CPU", config).create_infer_request()
    return lambda sample: next(iter(request.infer(sample).values()))


def peers(model: Path, samples: list[Sample], folder: Path, threads: int) -> dict[str, Callable[[Sample], np.ndarray]]:
    """Calls of the peers' 8-bit models, each giving the first output."""
    found: dict[str, Callable[[Sample], np.ndarray]] = {}
    try:
        session = onnxruntime_quantized(model, samples, folder, threads)
        found["onnxruntime INT8"] = lambda sample: session.run(None, sample)[0]
    except Exception as reason:  # a peer's failure is a result
        print(f"{model.stem}: no onnxruntime INT8 ({str(reason).splitlines()[0][:90]})")
    try:
        found["OpenVINO INT8"] = nncf_quantized(model, samples, threads)
    except Exception as reason:
        print(f"{model.stem}: no OpenVINO INT8 ({str(reason).splitlines()[0][:90]})")
    return found


def measure(model: Path, threads: int, count: int, rounds: int) -> dict[str, Any]:
    samples = sample_sets(model, count)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "quantized.onnx"
        onnxopt.quantize(model, out, calibration=samples)
        ours, floats = onnxopt.session(out, threads=threads), onnxopt.session(model, threads=threads, library=False)
        calls: dict[str, Callable[[Sample], np.ndarray]] = {
            "onnxopt INT8": lambda sample: ours.run(None, sample)[0],
            "onnxruntime float32": lambda sample: floats.run(None, sample)[0],
            **peers(model, samples, Path(folder), threads),
        }
        truth = calls["onnxruntime float32"](samples[0])
        noise = {name: signal_to_noise(truth, call(samples[0])) for name, call in calls.items() if "INT8" in name}
        found = compare([(name, lambda call=call: call(samples[0])) for name, call in calls.items()], rounds)
    return {
        "ms": {one.name: round(one.median_ms, 4) for one in found},
        "times_as_fast": {one.name: round(1 / one.speedup, 3) for one in found[1:]},
        "signal_to_noise_db": {name: round(value, 1) for name, value in noise.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    for model in options.models:
        results[model.stem] = found = measure(model, options.threads, options.samples, options.rounds)
        ratios = "  ".join(f"{ratio:.2f} x {peer}" for peer, ratio in found["times_as_fast"].items())
        noise = "  ".join(f"{name} {value:.0f} dB" for name, value in found["signal_to_noise_db"].items())
        print(f"{model.stem:14s} {found['ms']['onnxopt INT8']:9.3f} ms   {ratios}   {noise}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({**describe_machine(options.threads), "models": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
