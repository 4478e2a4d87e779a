"""Quantizing a model: what is asked for, checked, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from onnxopt import ir
from onnxopt.errors import OptionError
from onnxopt.quant import ranges, samples
from onnxopt.quant.blocks import WeightFormat
from onnxopt.quant.budget import Budget, Metric
from onnxopt.quant.job import Job, Task
from onnxopt.quant.result import Quantization
from onnxopt.runtime.target import Target

FORMATS = ("fused", "qdq")
ROUNDINGS = ("nearest", "adaptive")
METHODS = (*ranges.ESTIMATORS, "auto")


def quantize(
    model: Any,
    output: str | Path | None = None,
    *,
    calibration: samples.Source | None = None,
    format: str = "fused",
    method: str = "mse",
    target: Target | str = "cpu",
    smooth: bool = True,
    bias_correction: bool = True,
    rounding: str = "nearest",
    keep: Iterable[str] = (),
    max_drop: str | float | None = None,
    metric: Metric | None = None,
    weights: str | None = None,
    block: int | None = None,
    dims: Mapping[str, int | tuple[int, int]] | None = None,
    external_data: str | None = None,
    tick: Callable[..., object] = lambda *_: None,
    report: Callable[[Quantization], None] | None = None,
) -> Any:
    """Turn a float32 model into one that multiplies 8-bit integers, and return it as the kind it was given.

    With `weights`, activations stay in float and the weights of products alone become integers, for what waits for memory: products of
    few rows. No samples are needed; where there are some, they measure the result.

    Args:
        model: a path, an `onnx.ModelProto`, an `onnx_ir.Model` (quantized in place) or an `onnx_graphsurgeon.Graph`.
        output: where to write the result; see `onnxopt.optimize`.
        calibration: samples of the inputs: a folder of .npz or .npy files, an iterable of dicts of arrays, or a function that returns one.
            Convolutions, and everything of the format "qdq", need them; products in the format "fused" do not, since their kernel
            measures each row. Where they take more than seconds, what was observed is kept in a file `.calibration` beside `output`, so
            that a run that was stopped goes on, and one of the same model and samples does not observe them again (not of iterators).
        format: "fused": products become QGemm and the rest is optimized for `target`; "qdq": standard QuantizeLinear and
            DequantizeLinear, for any engine.
        method: how ranges of activations are chosen: "minmax", "percentile", "mse", "entropy", or "auto", the one with the least error.
        target: see `onnxopt.optimize`; for the format "fused".
        smooth: move scales of channels from activations into the weights they are multiplied with, where that lowers the error of layers on
            calibration samples (SmoothQuant, and equalization across layers).
        rounding: of weights: "nearest", or "adaptive", for the least error of results on calibration samples (GPTQ), which takes longer.
        bias_correction: add to each layer's bias what rounding takes from its results on average over calibration samples.
        keep: names of convolutions and products that stay in float.
        max_drop: how much worse than the float model the result may be: "0.5%" of its metric, a difference, or "30dB" of signal to noise
            in the outputs. Layers stay in float until it is good enough, as few operations as a search finds; what was measured is kept
            in a journal beside `output`, so that a search that was stopped goes on.
        metric: says how good a model is, given an onnxruntime session; higher is better. Without it, the cosine between the outputs of
            both models over some samples.
        weights: "int8" or "int4": the weights of products alone become integers.
        block: of these, how many rows share the scale of a column: a power of two of at least 16; without it, 32 of int4 and all of int8.
        dims: fixes or bounds named dims.
        external_data: how `output` holds its weights, see `onnxopt.ir.save`.
        tick: called with a sentence as calibration and search go on; of steps whose number is known, with those done and all as well.
        report: called with the `Quantization`.

    Raises:
        ModelError: the model cannot be read or is malformed.
        OptionError: an unknown format, method, target or type of weights, a block or budget of another form, or a node to keep that is
            none that can be quantized.
        CalibrationError: samples are missing or do not fit the model, or a tensor is not finite for one.
        MetricError: the metric fails, or gives no number.
    """
    _check(format, method, rounding, calibration, weights, block)
    if isinstance(keep, str):
        raise OptionError(f"The nodes to keep, '{keep}', are one text; expected a list of names.")
    budget = _budget(max_drop, metric, calibration)
    original = ir.load_copy(model) if calibration is not None else None
    loaded = ir.load(model)
    if output is not None:
        ir.check_output(output, loaded)
    task = Task(format, Target.named(target), dict(dims or {}), frozenset(keep), tick)
    if weights is None:
        job = Job(loaded, task, smooth=smooth, bias_correction=bias_correction, adaptive=rounding == "adaptive")
    else:
        job = _weight_job(loaded, task, weights, block)
    if calibration is not None:
        job.calibrate(calibration, method, _beside(output, "calibration"))
    chosen = job.keep
    if original is not None and budget is not None:
        chosen = job.search(original, budget, metric, _beside(output, "journal"))
    job.finish(chosen)
    if original is not None:
        job.measure(original)
    if report is not None:
        report(job.result)
    if output is not None:
        ir.save(loaded, output, external_data=external_data)
        return Path(output)
    return ir.as_kind_of(model, loaded)


def _weight_job(model: ir.Model, task: Task, weights: str, block: int | None) -> Job:
    from onnxopt.quant.weight_only import WeightJob

    return WeightJob(model, task, WeightFormat.of(weights, block))


def _beside(output: str | Path | None, what: str) -> Path | None:
    """The file that keeps what was measured for an output."""
    return None if output is None else Path(output).with_name(f"{Path(output).name}.{what}")


def _check(
    format: str,
    method: str,
    rounding: str,
    calibration: samples.Source | None,
    weights: str | None,
    block: int | None,
) -> None:
    if format not in FORMATS:
        raise OptionError(f"There is no format '{format}'. The formats are: {', '.join(FORMATS)}.")
    if method not in METHODS:
        raise OptionError(f"There is no method '{method}' for ranges. The methods are: {', '.join(METHODS)}.")
    if rounding not in ROUNDINGS:
        raise OptionError(f"There is no rounding '{rounding}'. The roundings are: {', '.join(ROUNDINGS)}.")
    if rounding == "adaptive" and weights is not None:
        raise OptionError(
            "Weights that alone become integers are rounded to the nearest ones; adaptive rounding is for layers of bytes."
        )
    if rounding == "adaptive" and calibration is None:
        raise OptionError("Adaptive rounding needs calibration samples.")
    if weights is not None:
        WeightFormat.of(weights, block)
    elif block is not None:
        raise OptionError("A block of rows needs the type of weights that it is for (weights).")
    elif format == "qdq" and calibration is None:
        raise OptionError("The format 'qdq' needs calibration samples.")


def _budget(max_drop: str | float | None, metric: Metric | None, calibration: samples.Source | None) -> Budget | None:
    if max_drop is None:
        if metric is not None:
            raise OptionError("A metric needs the greatest drop that is allowed (max_drop).")
        return None
    budget = Budget.parse(max_drop)
    if calibration is None:
        raise OptionError("A greatest drop needs calibration samples: layers are compared on them.")
    if metric is not None and budget.unit == "dB":
        raise OptionError(
            "A greatest drop in dB is one of the outputs; a metric of your own takes a percentage or a difference."
        )
    return budget
