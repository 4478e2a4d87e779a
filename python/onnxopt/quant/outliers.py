"""Products that one range for their operand costs too much: a few large elements leave few of the 256 steps to all others.

What norms and activations of trained transformers make has such elements, in a few channels and tokens. Scales of channels can be moved where
constants take them (`migration.py`); elsewhere such a product is better left in float, which engines other than ours do not do row by row.
T. Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale" (2022), for what these elements are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxopt import ir
from onnxopt.quant.layers import matrix_of
from onnxopt.quant.samples import Sample
from onnxopt.quant.stepwise import Step, Walk, relative_error, rounded_to, weights_as
from onnxopt.quant.weights import QuantizedMatrix, quantize_columns

MOST_NOISE = 0.001
"""Of a result's energy, that rounding operand and weights may make: the noise of a model's dozens of layers adds up."""


def too_coarse(
    model: ir.Model, nodes: Sequence[ir.Node], ranges: Mapping[str, tuple[float, float]], samples: Sequence[Sample]
) -> dict[str, float]:
    """The noise in the results of products whose operand is too coarse in 8 bits, by name.

    Args:
        nodes: products of the model, in order.
        ranges: of their operands; those without one are left out.

    Raises:
        CalibrationError: a part of the model cannot be run by itself.
    """
    found: dict[str, float] = {}

    def finish(step: Step) -> tuple[list[np.ndarray], list[np.ndarray]]:
        wanted = step.outputs()
        assert step.node.inputs[0] is not None
        if not all(np.isfinite(one).all() for one in wanted):
            return wanted, []
        limits = ranges[str(step.node.inputs[0].name)]
        weights = weights_as(step.node, QuantizedMatrix(*quantize_columns(matrix_of(step.node))).floats())
        noise = relative_error(wanted, step.computed([rounded_to(one, limits) for one in step.floats], weights))
        if noise > MOST_NOISE:
            found[ir.node_name(step.node)] = noise
        return wanted, []

    looked_at = [node for node in nodes if node.inputs[0] is not None and node.inputs[0].name in ranges]
    if looked_at:
        for _ in Walk(model, looked_at, [], {}, samples, rounded=False).steps(finish):
            pass
    return found
