"""Convolutions whose operand gets its range when the model runs: sample by sample, where one range for all of them is too coarse.

What norms make differs from sample to sample: a range that holds the largest elements of one leaves few of the 256 steps to another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.quant.histogram import Histogram
from onnxopt.quant.placement import CONVOLUTIONS
from onnxopt.quant.ranges import estimate
from onnxopt.quant.samples import Sample
from onnxopt.quant.stepwise import Step, Walk, own_range, relative_error, rounded_to

MOST_ERROR = 0.7
"""Of the error with one range: finding ranges takes time, which has to pay."""

LEAST_WORK = 512
"""Multiplications for each element of the operand: where there are fewer, looking at all elements once more is noticed."""


def choose(model: ir.Model, nodes: Sequence[ir.Node], samples: Sequence[Sample], method: str) -> frozenset[str]:
    """The names of convolutions that are nearer to the float model with a range for each sample.

    Args:
        nodes: convolutions whose operand is computed in floats.
        method: how one range for all samples is chosen, see `ranges.estimate`.

    Raises:
        CalibrationError: a part of the model cannot be run by itself.
    """
    chosen: set[str] = set()

    def finish(step: Step) -> tuple[list[np.ndarray], list[np.ndarray]]:
        wanted = step.outputs()
        if _gains(step, wanted, method):
            chosen.add(ir.node_name(step.node))
        return wanted, []

    worked = [node for node in nodes if _work(node) >= LEAST_WORK]
    if worked:
        for _ in Walk(model, worked, [], {}, samples, rounded=False).steps(finish):
            pass
    return frozenset(chosen)


def _work(node: ir.Node) -> int:
    """Multiplications for each element of the operand, at a stride of 1."""
    tensor = ir.constant(node.inputs[1])
    assert tensor is not None and node.op_type in CONVOLUTIONS
    shape = tensor.shape.numpy()
    return int(shape[0] * np.prod(shape[2:]))


def _gains(step: Step, wanted: list[np.ndarray], method: str) -> bool:
    if not all(np.isfinite(one).all() for one in step.floats):
        return False
    tensor, histogram = ir.constant(step.node.inputs[1]), Histogram()
    assert tensor is not None
    for one in step.floats:
        histogram.add(one)
    limits, weights = estimate(histogram, method), np.asarray(tensor.numpy())
    static = step.computed([rounded_to(one, limits) for one in step.floats], weights)
    dynamic = step.computed([rounded_to(one, own_range(one)) for one in step.floats], weights)
    return relative_error(wanted, dynamic) < MOST_ERROR * relative_error(wanted, static)
