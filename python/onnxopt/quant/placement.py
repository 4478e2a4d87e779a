"""Where QuantizeLinear and DequantizeLinear go: rules as data.

Tensors between convolutions are bytes for everyone who reads them, residual sums too, so that whole regions stay in 8 bits. Products read
bytes, but what else reads their rows (residual sums, norms) reads floats: there the precision of a transformer lies.
"""

from __future__ import annotations

import dataclasses

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.rewrite.rules import attribute

CONVOLUTIONS, PRODUCTS = ("Conv",), ("MatMul", "Gemm")
IN_PLACE = ("Relu", "Clip")
"""Activations that engines compute before they round a convolution's results."""

MIN_DEPTH, MIN_COLUMNS = 16, 16
"""The least size of a product: below, quantizing takes longer than it saves."""


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """Nodes that are to read bytes, and the activations that become bytes for everyone who reads them."""

    nodes: tuple[ir.Node, ...]
    everywhere: tuple[ir.Value, ...]

    @property
    def observed(self) -> tuple[ir.Value, ...]:
        """All activations whose ranges are needed."""
        read = [node.inputs[0] for node in self.nodes]
        return tuple(dict.fromkeys([*(value for value in read if value is not None), *self.everywhere]))


def place(
    model: ir.Model, shapes: ir.ShapeEnv, *, products: bool = True, keep: frozenset[str] = frozenset()
) -> Placement:
    """Which nodes of the main graph are quantized.

    Args:
        products: MatMul and Gemm with constant weights too, not convolutions alone.
        keep: names of nodes that stay in float.
    """
    kinds = (*CONVOLUTIONS, *PRODUCTS) if products else CONVOLUTIONS
    nodes = [node for node in model.graph if node.op_type in kinds and not node.domain]
    chosen = [node for node in nodes if ir.node_name(node) not in keep and _is_fit(node, shapes)]
    everywhere: dict[ir.Value, None] = {}
    for node in chosen:
        if node.op_type in CONVOLUTIONS:
            everywhere[node.inputs[0]] = None  # type: ignore[index]
            everywhere[_after_activation(node.outputs[0])] = None
    for node in model.graph:
        if node.op_type == "Add" and all(value in everywhere for value in node.inputs):
            everywhere[_after_activation(node.outputs[0])] = None
    return Placement(tuple(chosen), tuple(value for value in everywhere if not value.is_graph_output()))


def _is_fit(node: ir.Node, shapes: ir.ShapeEnv) -> bool:
    x, weights = node.inputs[0], node.inputs[1]
    tensor = None if weights is None else ir.constant(weights)
    if x is None or tensor is None or tensor.dtype is not DataType.FLOAT or shapes.dtype(x) is not DataType.FLOAT:
        return False
    if ir.constant(x) is not None:
        return False
    if node.op_type in CONVOLUTIONS:
        return True
    sizes = tensor.shape.numpy()
    plain = not attribute(node, "transA", 0) and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
    return len(sizes) == 2 and min(sizes) >= min(MIN_DEPTH, MIN_COLUMNS) and plain


def _after_activation(value: ir.Value) -> ir.Value:
    """The result of the activation that alone reads a value, if there is one."""
    users = list(value.uses())
    if len(users) == 1 and users[0][0].op_type in IN_PLACE and not value.is_graph_output():
        return users[0][0].outputs[0]
    return value
