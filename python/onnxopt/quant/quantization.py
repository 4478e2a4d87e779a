"""Quantizing a model: simplify it, see what its activations are, write or fuse the integers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxopt import ir
from onnxopt.errors import OptionError
from onnxopt.passes.base import Options
from onnxopt.pipeline import PassManager
from onnxopt.quant import ranges, samples
from onnxopt.quant.observe import observe
from onnxopt.quant.placement import Placement, place

FORMATS = ("fused", "qdq")
METHODS = (*ranges.ESTIMATORS, "auto")
MIN_OPSET = 13
"""The opset from which on weights have a scale per channel."""

WRITE = ("write_qdq", "eliminate_common_subexpressions", "eliminate_dead_code")


@dataclasses.dataclass(slots=True)
class Quantization:
    """What was done: nodes that multiply integers, by op; bytes of weights before and after; how near the outputs come.

    `sqnr` is the ratio of signal to quantization noise of each float output over the samples, in dB; empty without samples.
    """

    format: str
    quantized: dict[str, int]
    bytes_before: int
    bytes_after: int
    samples: int = 0
    sqnr: dict[str, float] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)


def quantize(
    model: Any,
    output: str | Path | None = None,
    *,
    calibration: samples.Source | None = None,
    format: str = "fused",
    method: str = "mse",
    target: str = "cpu",
    dims: Mapping[str, int | tuple[int, int]] | None = None,
    external_data: str | None = None,
    tick: Callable[[str], object] = lambda _: None,
    report: Callable[[Quantization], None] | None = None,
) -> Any:
    """Turn a float32 model into one that multiplies 8-bit integers, and return it as the kind it was given.

    Args:
        model: a path, an `onnx.ModelProto`, an `onnx_ir.Model` (quantized in place) or an `onnx_graphsurgeon.Graph`.
        output: where to write the result; see `onnxopt.optimize`.
        calibration: samples of the inputs: a folder of .npz or .npy files, an iterable of dicts of arrays, or a function that returns one.
            Convolutions, and everything of the format "qdq", need them; products in the format "fused" do not, since their kernel
            measures each row.
        format: "fused": products become QGemm and the rest is optimized for `target`; "qdq": standard QuantizeLinear and
            DequantizeLinear, for any engine.
        method: how ranges of activations are chosen: "minmax", "percentile", "mse", "entropy", or "auto", the one with the least error.
        target: see `onnxopt.optimize`; for the format "fused".
        dims: fixes or bounds named dims.
        external_data: how `output` holds its weights, see `onnxopt.ir.save`.
        tick: called with a sentence as calibration goes on.
        report: called with the `Quantization`.

    Raises:
        ModelError: the model cannot be read or is malformed.
        OptionError: an unknown format, method or target.
        CalibrationError: samples are missing or do not fit the model, or a tensor is not finite for one.
    """
    _check(format, method, calibration)
    original = ir.load_copy(model) if calibration is not None else None
    kept: list[samples.Sample] = []
    loaded = ir.load(model)
    result = Quantization(format, {}, ir.weight_bytes(loaded), 0)
    opset = loaded.graph.opset_imports.get("", MIN_OPSET)
    options = Options(dims=dict(dims or {}), opset=MIN_OPSET if opset < MIN_OPSET else None)
    PassManager("generic", options=options).run(loaded)
    placement = _placement(loaded, options, products=format == "qdq")
    if calibration is not None:
        limits = _calibrate(loaded, placement, calibration, method, tick, result, kept)
        writing = dataclasses.replace(options, opset=None, ranges=limits)
        PassManager("generic", WRITE, options=writing).run(loaded)
    elif placement.nodes:
        result.warnings.append(f"{len(placement.nodes)} convolutions stay in float: there are no calibration samples.")
    result.quantized = _count_kinds(placement) if calibration is not None else {}
    if format == "fused":
        fused = PassManager(target, options=dataclasses.replace(options, opset=None, quantize_products=True)).run(
            loaded
        )
        made = fused.ops_after.get("ai.onnxopt::QGemm", 0)
        result.quantized |= {"QGemm": made} if made else {}
    result.bytes_after = ir.weight_bytes(loaded)
    if calibration is not None and original is not None:
        result.sqnr = measure(original, loaded, kept)
    if report is not None:
        report(result)
    if output is not None:
        ir.save(loaded, output, external_data=external_data)
        return Path(output)
    return ir.as_kind_of(model, loaded)


def _check(format: str, method: str, calibration: samples.Source | None) -> None:
    if format not in FORMATS:
        raise OptionError(f"There is no format '{format}'. The formats are: {', '.join(FORMATS)}.")
    if method not in METHODS:
        raise OptionError(f"There is no method '{method}' for ranges. The methods are: {', '.join(METHODS)}.")
    if format == "qdq" and calibration is None:
        raise OptionError("The format 'qdq' needs calibration samples.")


def _placement(model: ir.Model, options: Options, *, products: bool) -> Placement:
    shapes = ir.ShapeEnv(model, options.dims)
    return place(model, shapes, products=products)


def _calibrate(
    model: ir.Model,
    placement: Placement,
    calibration: samples.Source,
    method: str,
    tick: Callable[[str], object],
    result: Quantization,
    kept: list[samples.Sample],
) -> dict[str, ranges.Range]:
    """The ranges of the activations; the first samples are `kept`, since an iterator gives them once."""

    def counted() -> Iterator[dict[str, np.ndarray]]:
        for sample in samples.read(calibration, model):
            result.samples += 1
            if len(kept) < MEASURED_SAMPLES:
                kept.append(sample)
            yield sample

    histograms = observe(model, placement.observed, counted(), tick)
    empty = [name for name, histogram in histograms.items() if histogram.seen == 0]
    result.warnings += [f"'{name}' has no element in any sample." for name in empty]
    return {name: ranges.estimate(one, method) for name, one in histograms.items() if one.seen}


def _count_kinds(placement: Placement) -> dict[str, int]:
    kinds = [node.op_type for node in placement.nodes]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


MEASURED_SAMPLES = 8
"""Samples on which the outputs of both models are compared."""


def measure(original: ir.Model, quantized: ir.Model, given: Iterable[samples.Sample]) -> dict[str, float]:
    """The ratio of signal to quantization noise of every float output over samples, in dB."""
    from onnxopt.runtime.library import session

    names = [str(value.name) for value in original.graph.outputs]
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    sessions = [session(one, library=library) for one, library in ((original, False), (quantized, True))]
    for sample in given:
        expected, found = (one.run(None, sample) for one in sessions)
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            if getattr(one, "dtype", np.dtype(object)).kind == "f":
                signal[index] += np.square(one, dtype=np.float64).sum()
                noise[index] += np.square(one.astype(np.float64) - other).sum()
    return {
        name: 10 * math.log10(s / n) if n > 0 and s > 0 else math.inf
        for name, s, n in zip(names, signal, noise, strict=True)
        if s > 0
    }
