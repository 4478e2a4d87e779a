"""Weights of products are written as integers, while their rows stay in float."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.quant.blocks import BlockedMatrix
from onnxopt.quant.placement import PRODUCTS
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import attribute

RULE = "write_weights"


@register_pass
class WriteWeights(Pass):
    """Let products read what DequantizeLinear makes of int8 or int4: one scale for each column, or for each block of rows of it.

    Runs only where weights were quantized (`Options.blocked`, from `onnxopt.quantize`). Refused: nodes that are to stay in float.
    """

    name = "write_weights"
    phase = "quantize"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        matrices = ctx.options.blocked
        nodes = [node for node in model.graph if node.op_type in PRODUCTS and not node.domain] if matrices else []
        applied = sum(
            self._write(node, matrices[ir.node_name(node)], ctx)
            for node in nodes
            if ir.node_name(node) in matrices.keys() - ctx.options.keep_float and ir.constant(node.inputs[1])
        )
        return PassResult(applied > 0, applied)

    def _write(self, node: ir.Node, matrix: BlockedMatrix, ctx: Context) -> bool:
        builder = Builder(ctx, node)
        weights = _dequantized(builder, node, matrix)
        (result,) = builder.copy_of(node, [node.inputs[0], weights, *node.inputs[2:]])
        return ctx.editor.apply(builder.patch(RULE, {node.outputs[0]: result}), unused=[node])

    def rule_names(self) -> list[str]:
        return [RULE]


def _dequantized(builder: Builder, node: ir.Node, matrix: BlockedMatrix) -> ir.Value:
    """The weights of a node, which DequantizeLinear makes in the order in which the node reads them."""
    transposed = bool(attribute(node, "transB", 0))
    array, scales = (matrix.array.T, matrix.scales.T) if transposed else (matrix.array, matrix.scales)
    weights = node.inputs[1]
    assert weights is not None
    name = weights.name or "weights"
    array = np.ascontiguousarray(array)
    integers = builder.constant(ir.int4(array, name) if matrix.dtype == "int4" else array, name)
    rows, columns = (1, 0) if transposed else (0, 1)
    if len(matrix.scales) == 1:
        return builder.DequantizeLinear(integers, builder.constant(scales.reshape(-1), f"{name}_scales"), axis=columns)
    held = builder.constant(np.ascontiguousarray(scales), f"{name}_scales")
    return builder.DequantizeLinear(integers, held, axis=rows, block_size=matrix.block)
