"""The layers that can multiply integers: convolutions and products with constant weights, as the search and the report see them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from onnxopt import ir
from onnxopt.fusions.quantize_product import integer_products
from onnxopt.inspection import node_flops
from onnxopt.passes.base import Context
from onnxopt.quant.placement import CONVOLUTIONS, PRODUCTS, Placement
from onnxopt.rewrite.rules import attribute

OPS = (*CONVOLUTIONS, *PRODUCTS)


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """A node that can multiply integers. `operations` are those of the first sample; None where sizes are unknown."""

    name: str
    op_type: str
    activation: str
    operations: int | None
    weights: int


def nodes_of(placement: Placement, ctx: Context, *, products: bool) -> list[ir.Node]:
    """The nodes that are to multiply integers: those of the placement, and with `products` the ones whose rows a kernel quantizes."""
    return list(dict.fromkeys([*placement.nodes, *(integer_products(ctx) if products else ())]))


def describe(nodes: Iterable[ir.Node], shapes: ir.ShapeEnv) -> dict[str, Layer]:
    """The layers by name; nodes of one name are one layer. `shapes` are those of a sample."""
    found: dict[str, Layer] = {}
    for node in nodes:
        name, weights = ir.node_name(node), node.inputs[1]
        tensor = None if weights is None else ir.constant(weights)
        assert tensor is not None and node.inputs[0] is not None
        flops, before = node_flops(node, shapes), found.get(name)
        if before is not None:
            flops = None if flops is None or before.operations is None else flops + before.operations
        found[name] = Layer(name, node.op_type, str(node.inputs[0].name), flops, int(np.prod(tensor.shape.numpy())))
    return found


def costs(layers: Mapping[str, Layer]) -> dict[str, int]:
    """What a layer costs in float: its operations or, where those of a layer are unknown, the sizes of the weights of all."""
    known = [layer.operations for layer in layers.values()]
    return {
        name: layer.weights if None in known or layer.operations is None else layer.operations
        for name, layer in layers.items()
    }


def matrix_of(node: ir.Node) -> np.ndarray:
    """The constant weights of a layer as a matrix [K, N] whose columns have a scale each."""
    weights = node.inputs[1]
    tensor = None if weights is None else ir.constant(weights)
    assert tensor is not None
    return as_matrix(node, np.asarray(tensor.numpy()))


def as_matrix(node: ir.Node, array: np.ndarray) -> np.ndarray:
    """Weights in the layout of a layer as a matrix [K, N]."""
    if node.op_type in CONVOLUTIONS:
        return array.reshape(array.shape[0], -1).T
    return array.T if attribute(node, "transB", 0) else array
