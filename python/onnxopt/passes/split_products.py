"""Products of which a Split takes equal parts: each part becomes a product of its own."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.fusions import halves, sizes
from onnxopt.fusions.fused_gemm import MIN_DEPTH, is_transposed
from onnxopt.ops.fused_gemm import MAX_PRODUCTS
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal, attribute

RULE = "split_product"

MOST_BYTES = 64 << 20
"""The largest matrix that is taken apart: its columns are gathered in memory, where larger ones stay in their file."""


@register_pass
class SplitProducts(Pass):
    """Turn Split(x W + b) into x W1 + b1, x W2 + b2 and so on, which one FusedGemm computes without a copy of its results.

    Refused: parts of different widths or of a width that is no multiple of a panel, more parts than a FusedGemm has products, results
    that others read, small products, and large matrices.
    """

    name = "split_products"
    phase = "fuse"

    def rule_names(self) -> list[str]:
        return [RULE]

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for node in ctx.nodes_of([("", "Split")]):
            built = _build(node, ctx) if ctx.runs_once(node) else None
            if isinstance(built, Refusal):
                ctx.log.refused(RULE, node, built, 1)
            elif built is not None and ctx.editor.apply(built, unused=[node]):
                patches += 1
        return PassResult(patches > 0, patches)


def _product_of(value: ir.Value | None) -> tuple[ir.Node, ir.Node | None] | None:
    """The product with a constant matrix that makes a value, and the Add of a constant behind it, if nothing else reads the results."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.domain or ir.use_count(value) != 1 or value.is_graph_output():
        return None
    if node.op_type == "Add" and ir.constant(node.inputs[1]) is not None:
        found = _product_of(node.inputs[0])
        return (found[0], node) if found is not None and found[1] is None and found[0].op_type == "MatMul" else None
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transA", 0)):
        return (node, None) if ir.constant(node.inputs[1]) is not None else None
    return None


def _build(split: ir.Node, ctx: Context) -> Patch | Refusal | None:
    shapes = ctx.shapes
    found = _product_of(split.inputs[0])
    if found is None or split.inputs[0] is None:
        return None
    product, added = found
    x, matrix = product.inputs[:2]
    bias = added.inputs[1] if added is not None else [*product.inputs, None][2]
    rank = shapes.rank(split.inputs[0])
    whole = None if matrix is None else shapes.static_shape(matrix)
    if x is None or whole is None or len(whole) != 2 or rank is None:
        return None
    transposed = is_transposed(product)
    depth, columns = reversed(whole) if transposed else whole
    dtype = shapes.dtype(x)
    if attribute(split, "axis", 0) % rank != rank - 1 or dtype is None or not halves.are_multiplied(ctx, dtype):
        return None
    count = len(split.outputs)
    parts = [shapes.shape(one) for one in split.outputs]
    width = columns // count
    if any(shape is None or shape[-1] != width for shape in parts) or width % ir.PANEL or count > MAX_PRODUCTS:
        return Refusal("its parts are not up to {} of one width of whole panels", MAX_PRODUCTS, culprit=split)
    size = sizes.elements(x, ctx)
    small = size is not None and size * width < ctx.target.costs.product_work
    if small or depth < MIN_DEPTH or depth * columns * dtype.itemsize > MOST_BYTES:
        return Refusal("a matrix of {} is too small or too large", whole, culprit=product)
    if bias is not None and (ir.constant(bias) is None or shapes.static_shape(bias) != (columns,)):
        return Refusal("its bias is no constant vector of the columns", culprit=product)
    return _patch(split, product, bias, count, ctx)


def _patch(split: ir.Node, product: ir.Node, bias: ir.Value | None, count: int, ctx: Context) -> Patch:
    builder = Builder(ctx, split)
    x, matrix = product.inputs[:2]
    assert matrix is not None
    matrices = _divided(builder, matrix, count, 0 if is_transposed(product) else 1)
    biases = [None] * count if bias is None else _divided(builder, bias, count, 0)
    results = {}
    for old, own, more in zip(split.outputs, matrices, biases, strict=True):
        if product.op_type == "Gemm":
            made = builder.copy_of(product, [x, own] if more is None else [x, own, more])[0]
        else:
            made = builder.MatMul(x, own)
            made = made if more is None else builder.Add(made, more)
        results[old] = made
    return builder.patch(RULE, results)


def _divided(builder: Builder, value: ir.Value, count: int, axis: int) -> list[ir.Value]:
    tensor = ir.constant(value)
    assert tensor is not None
    parts = np.split(tensor.numpy(), count, axis=axis)
    return [builder.constant(np.ascontiguousarray(part), value.name or "part") for part in parts]
