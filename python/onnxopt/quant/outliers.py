"""Products that one range for their operand costs too much: a few large elements leave few of the 256 steps to all others.

What norms and activations of trained transformers make has such elements, in a few channels and tokens. Scales of channels can be moved where
constants take them (`migration.py`); elsewhere such a product is better left in float, which engines other than ours do not do row by row.
T. Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale" (2022), for what these elements are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxopt import ir
from onnxopt.quant.ranges import Range
from onnxopt.quant.samples import Sample
from onnxopt.quant.stepwise import Step, Walk, relative_error, rounded_to, weights_as
from onnxopt.quant.weights import QuantizedMatrix

MOST_NOISE = 0.001
"""Of a result's energy, that rounding operand and weights may make: the noise of a model's dozens of layers adds up."""

TINY = np.finfo(np.float64).tiny


def too_coarse(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    tried: Mapping[str, Sequence[Range]],
    matrices: Mapping[str, QuantizedMatrix],
    samples: Sequence[Sample],
) -> tuple[dict[str, Range], dict[str, float]]:
    """The range of each operand with the least error of the products that read it, and the noise in those that are too coarse with it.

    Args:
        nodes: products of the model, in order.
        tried: ranges of their operands; those without any are left out.
        matrices: the integers of their weights, by the product's name; those without them are left out too.

    Raises:
        CalibrationError: a part of the model cannot be run by itself.
    """
    errors: dict[str, np.ndarray] = {}
    noise: dict[ir.Node, list[float]] = {}

    def finish(step: Step) -> tuple[list[np.ndarray], list[np.ndarray]]:
        name, wanted = _operand(step.node), step.outputs()
        if all(np.isfinite(one).all() for one in wanted):
            weights = weights_as(step.node, matrices[ir.node_name(step.node)].floats())
            found = [step.computed([rounded_to(x, limits) for x in step.floats], weights) for limits in tried[name]]
            noise[step.node] = [relative_error(wanted, one) for one in found]
            errors[name] = errors.get(name, 0.0) + np.array([error_of_rows(wanted, one) for one in found])
        return wanted, []

    looked_at = [node for node in nodes if ir.node_name(node) in matrices and tried.get(_operand(node))]
    if looked_at:
        for _ in Walk(model, looked_at, [], {}, samples, rounded=False).steps(finish):
            pass
    best = {name: int(np.argmin(one)) for name, one in errors.items()}
    least = {ir.node_name(node): ratios[best[_operand(node)]] for node, ratios in noise.items()}
    return (
        {name: tried[name][index] for name, index in best.items()},
        {name: one for name, one in least.items() if one > MOST_NOISE},
    )


def _operand(node: ir.Node) -> str:
    return "" if node.inputs[0] is None else str(node.inputs[0].name)


def error_of_rows(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """The mean over rows of the error's part of the energy: a token that is clipped counts as much as any other, however few there are."""
    parts = [
        np.square(a - b, dtype=np.float64).sum(axis=-1) / np.maximum(np.square(a, dtype=np.float64).sum(axis=-1), TINY)
        for a, b in zip(wanted, found, strict=True)
    ]
    return float(np.mean(np.concatenate([one.reshape(-1) for one in parts]))) if parts else 0.0
