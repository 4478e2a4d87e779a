"""Which float products become QGemm with rows quantized on the way, and how."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.fusions.fused_gemm import is_product_of_rows, is_transposed, product, split_bias
from onnxopt.ops import qgemm as op
from onnxopt.ops.base import prepare_model
from onnxopt.passes.base import Context
from onnxopt.quant.weights import quantize_columns
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, rule

MIN_DEPTH, MIN_COLUMNS = 32, 16
"""The least size of a matrix: below, quantizing the rows takes as long as it saves."""


def _is_worthwhile(m: Match) -> bool | Refusal:
    fits = is_product_of_rows(m)
    if not fits:
        return fits
    node = m.node("product")
    if ir.node_name(node) in m.ctx.options.keep_float:
        return Refusal("it is to stay in float", culprit=node)
    if m.ctx.opset < op.MIN_OPSET:
        return Refusal("opset {} has no scales per column", m.ctx.opset, culprit=node)
    shape = m.ctx.shapes.static_shape(m["w"])
    assert shape is not None
    depth, columns = reversed(shape) if is_transposed(node) else shape
    if depth < MIN_DEPTH or columns < MIN_COLUMNS:
        return Refusal("a matrix of {} is too narrow", shape, culprit=node)
    return True


@rule(product, where=_is_worthwhile)
def quantize_product(b: Builder, m: Match) -> ir.Value | Refusal:
    """A product with a constant matrix multiplies 8-bit integers: the matrix column by column, each row over its own range."""
    node = m.node("product")
    tensor = ir.constant(m["w"])
    assert tensor is not None
    matrix = np.asarray(tensor.numpy())
    matrix = matrix.T if is_transposed(node) else matrix
    depth, columns = matrix.shape
    added, bias = split_bias(m, columns)
    if not np.isfinite(matrix).all():
        return Refusal("its weights '{}' are not finite", m["w"].name, culprit=m["w"])
    held = m.ctx.options.matrices.get(ir.node_name(node))
    quantized, scales = quantize_columns(matrix) if held is None else (held.array, held.scales)
    if held is not None and held.correction is not None:
        bias = _corrected(b, bias, held.correction)
    name = m["w"].name or "weights"
    inputs = [
        m["x"],
        b.constant(op.pack(quantized), name),
        b.constant(scales, f"{name}_scales"),
        b.constant(op.column_sums(quantized), f"{name}_sums"),
        *([] if bias is None else [bias]),
    ]
    variety = op.Variety(depth, columns, by_row=True, biased=bias is not None)
    overload = variety.overload(m.ctx.opset)
    b.define(op.SPEC.domain, op.SPEC.name, overload, lambda: variety.body(m.ctx.opset))
    attributes = {"columns": columns, "by_row": 1, "biased": 1 if bias is not None else None}
    prepare_model(m.ctx.model)
    (result,) = b.op(
        op.SPEC.name, inputs, attributes, domain=op.SPEC.domain, overload=overload, name=ir.node_name(node)
    )
    m.ctx.shapes.set(result, m.ctx.shapes.dtype(m.output), m.ctx.shapes.shape(m.output))
    return result if added is None else b.Add(result, added)


def _corrected(b: Builder, bias: ir.Value | None, correction: np.ndarray) -> ir.Value:
    tensor = ir.constant(bias)
    total = correction if tensor is None else np.asarray(tensor.numpy()).reshape(-1) + correction
    return b.constant(total.astype(np.float32), "bias")


def integer_products(ctx: Context) -> list[ir.Node]:
    """The products of a model that would become QGemm."""
    pattern, found = quantize_product.pattern, []
    for node in ctx.nodes_of(RuleSet([quantize_product]).by_root):
        match = pattern.match(node, ctx, None, None)
        if match is not None and quantize_product.where(match):
            found.append(match.node("product"))
    return found
