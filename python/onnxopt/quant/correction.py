"""Correcting layers one after the other: weights are rounded for the least error of results, and the mean error that is left goes into the bias.

M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.2, in its empirical form, layer after layer;
A. Finkelstein et al., "Fighting Quantization Bias With Bias" (2019).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxopt import ir
from onnxopt.quant.layers import matrix_of
from onnxopt.quant.placement import CONVOLUTIONS
from onnxopt.quant.ranges import Range
from onnxopt.quant.rounding import adapt, hessian
from onnxopt.quant.samples import Sample
from onnxopt.quant.stepwise import Step, Walk, along_channels, bias_of, channel_axis, has_bias
from onnxopt.quant.weights import QuantizedMatrix, coarse_enough, unit_of_sums, whole_bias


def correct(
    model: ir.Model,
    layers: Sequence[ir.Node],
    everywhere: Sequence[ir.Value],
    ranges: Mapping[str, Range],
    matrices: Mapping[str, QuantizedMatrix],
    samples: Sequence[Sample],
    *,
    dynamic: frozenset[str] = frozenset(),
    biases: bool = True,
    adaptive: bool = False,
    tick: Callable[..., object] = lambda *_: None,
) -> dict[str, QuantizedMatrix]:
    """The matrices with what each column's results lack on average, measured with all layers before corrected.

    Args:
        layers, everywhere, ranges, dynamic: see `Walk`.
        biases: whether biases are corrected.
        adaptive: whether weights are rounded anew, see `onnxopt.quant.rounding`.
        matrices: the integers of the layers' weights, by the layer's name.
        samples: on which errors are measured. A column is corrected by less the more its error varies from sample to sample.

    Raises:
        CalibrationError: a part of the model cannot be run by itself.
    """
    corrected = dict(matrices)

    def finish(step: Step) -> tuple[list[np.ndarray], list[np.ndarray]]:
        name, wanted = ir.node_name(step.node), step.outputs()
        matrix, bias = matrices[name], bias_of(step.node)
        own = np.zeros(len(matrix.scales)) if bias is None else bias.astype(np.float64)
        floats = matrix_of(step.node)
        if _has_whole_bias(step):
            matrix = QuantizedMatrix(*coarse_enough(floats, matrix.array, matrix.scales, own, step.scale))  # type: ignore[arg-type]
        second = hessian(step.node, step.rounded) if adaptive else None
        if second is not None:
            matrix = QuantizedMatrix(adapt(floats, matrix.array, matrix.scales, second), matrix.scales)
        sums = step.sums(matrix)
        lacking = None
        if biases and (bias is not None or step.node.op_type not in CONVOLUTIONS or not has_bias(step.node)):
            lacking = mean_error(wanted, _with_bias(step, sums, matrix, own), channel_axis(step.node))
        corrected[name] = dataclasses.replace(matrix, correction=lacking)
        return wanted, _with_bias(step, sums, matrix, own if lacking is None else own + lacking)

    walk = Walk(model, layers, everywhere, ranges, samples, dynamic=dynamic)
    for done, _ in enumerate(walk.steps(finish), start=1):
        tick(f"correcting layer {done} of {len(layers)}", done, len(layers))
    return corrected


def _has_whole_bias(step: Step) -> bool:
    known = bias_of(step.node) is not None or not has_bias(step.node)
    return step.scale is not None and step.node.op_type in CONVOLUTIONS and known


def _with_bias(step: Step, sums: list[np.ndarray], matrix: QuantizedMatrix, bias: np.ndarray) -> list[np.ndarray]:
    """A layer's results: a convolution's bias is rounded to whole steps of its sums."""
    if _has_whole_bias(step):
        unit = unit_of_sums(step.scale, matrix.scales)  # type: ignore[arg-type]
        bias = whole_bias(bias, unit) * unit.astype(np.float64)
    return [one + along_channels(step.node, bias.astype(np.float32), one.ndim) for one in sums]


def mean_error(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """What is lacking on average along all axes but one, float32; shrunk as far as it may be chance.

    The mean of each sample is one observation. Their mean is multiplied by the part of its square that their spread does not explain (the positive part of
    W. James and C. Stein, "Estimation with Quadratic Loss", 1961, with one column at a time).
    """
    rows = np.stack([_channel_means(a.astype(np.float64) - b, axis) for a, b in zip(wanted, found, strict=True)])
    mean = rows.mean(axis=0)
    if len(rows) < 2:
        return np.asarray(mean, np.float32)
    chance = rows.var(axis=0, ddof=1) / len(rows)
    kept = np.maximum(1 - chance / np.maximum(np.square(mean), np.finfo(np.float64).tiny), 0)
    return np.asarray(mean * kept, np.float32)


def _channel_means(array: np.ndarray, axis: int) -> np.ndarray:
    moved = np.moveaxis(array, axis, -1)
    rows = moved.reshape(-1, moved.shape[-1])
    return np.asarray(rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[-1]))
