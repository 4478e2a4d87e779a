"""Which products of quantized operands become QGemm, and how."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.fusions import quantized
from onnxopt.fusions.nodes import make_node
from onnxopt.fusions.quantized import Operand, Weights
from onnxopt.ops import qgemm as op
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal, attribute

RULE = "fuse_qgemm"


def build(node: ir.Node, ctx: Context) -> Patch | Refusal | None:
    """The patch for MatMul, Gemm or MatMulInteger `node`, and the bias after it; None where its operands are not quantized."""
    if node.op_type == "MatMulInteger":
        return _build_from_sums(node, ctx)
    matrix = quantized.weights(node.inputs[1])
    x = None if matrix is None else quantized.operand(node.inputs[0], ctx)
    if matrix is None or x is None:
        return None
    if ctx.opset < op.MIN_OPSET:
        return Refusal("opset {} has no scales per column", ctx.opset, culprit=node)
    if matrix.array.ndim != 2 or (ctx.shapes.rank(x.value) or 0) < 2:
        return Refusal("it is no product of rows with a matrix", culprit=node)
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return Refusal("its left operand is transposed, or it is scaled", culprit=node)
    if attribute(node, "transB", 0):
        matrix = matrix.transposed()
    if matrix.axis == 0:
        return Refusal("its weights have a scale for each row", culprit=node)
    columns = matrix.array.shape[1]
    given = ir.input_at(node, 2)
    if given is None:
        addend, last = added_bias(node, columns)
        return _patch(last, x, matrix, addend, ctx)
    vector = quantized.bias(given)
    if vector is None or vector.shape not in ((columns,), (1, columns)):
        return Refusal("its bias '{}' is no vector of its columns", given.name, culprit=given)
    return _patch(node, x, matrix, vector.reshape(columns), ctx)


def _build_from_sums(node: ir.Node, ctx: Context) -> Patch | Refusal:
    """The patch for a MatMulInteger, the scales of its sums and the bias after them. What quantizes X stays, for all that read it."""
    found = quantized.scaled(node, ctx)
    if isinstance(found, Refusal):
        return found
    if ctx.opset < op.MIN_OPSET:
        return Refusal("opset {} has no scales per column", ctx.opset, culprit=node)
    if found.matrix.array.ndim != 2 or (ctx.shapes.rank(found.x.value) or 0) < 2:
        return Refusal("it is no product of rows with a matrix", culprit=node)
    addend, last = added_bias(found.last, found.matrix.array.shape[1])
    return _patch(last, found.x, found.matrix, addend, ctx)


def added_bias(node: ir.Node, columns: int) -> tuple[np.ndarray | None, ir.Node]:
    """The bias of the columns that is added to a node's result, and the node whose result has it."""
    result = node.outputs[0]
    uses = list(result.uses())
    if len(uses) == 1 and not result.is_graph_output() and (user := uses[0][0]).op_type == "Add" and not user.domain:
        vector = quantized.bias(user.inputs[1 - uses[0][1]])
        if vector is not None and vector.shape in ((columns,), (1, columns)):
            return vector.reshape(columns), user
    return None, node


def _patch(last: ir.Node, x: Operand, matrix: Weights, bias: np.ndarray | None, ctx: Context) -> Patch:
    old = last.outputs[0]
    depth, columns = matrix.array.shape
    variety = op.Variety(depth, columns, x.dtype, biased=bias is not None)
    builder = Builder(ctx, last)
    scales = np.broadcast_to(matrix.scale, (columns,)).astype(np.float32)
    operands: dict[str, np.ndarray | ir.Value] = {
        "weights": op.pack(matrix.array),
        "weight_scales": scales,
        "weight_sums": op.column_sums(matrix.array),
        "scale": x.scale,
        "zero_point": x.zero,
    }
    if bias is not None:
        operands["bias"] = bias.astype(np.float32)
    inputs = [x.value]
    for name, one in operands.items():
        inputs.append(one if isinstance(one, ir.Value) else builder.constant(one, name))
    attributes = {"columns": columns, "biased": 1 if bias is not None else None}
    result = make_node(builder, op.SPEC, variety, inputs, attributes, old, ir.DataType.FLOAT, last.name)
    return builder.patch(RULE, {old: result})
