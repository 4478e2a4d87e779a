"""Gemms of loops that do more than multiply with a constant matrix and add a vector: each part becomes a node of its own."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.loops import loops_of
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import attribute

OPTIONAL_BIAS_OPSET = 11
"""Since then Gemm may do without C."""


@register_pass
class SplitLoopGemms(Pass):
    """Take what a Gemm of a loop's step adds or scales, and the operands that it transposes, out of it.

    `fuse_into_gemms` makes one Gemm of `h W + x`; the kernels that run whole loops multiply with constant matrices, add vectors, and
    compute everything else element by element. Refused: Gemms that are no more than such a product.
    """

    name = "split_loop_gemms"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        if ctx.opset < OPTIONAL_BIAS_OPSET:
            return PassResult(False, 0)
        for loop in loops_of(ctx):
            for node in [node for node in loop.body if node.op_type == "Gemm" and not node.domain]:
                if _is_plain(node, loop.body, ctx):
                    continue
                builder = Builder(ctx, node)
                patch = builder.patch(self.name, {node.outputs[0]: _split(builder, node, ctx)})
                if ctx.editor.apply(patch):
                    ctx.editor.remove_unused([node])
                    patches += 1
        return PassResult(patches > 0, patches)


def _is_plain(node: ir.Node, body: ir.Graph, ctx: Context) -> bool:
    """Whether a Gemm multiplies with a constant matrix, and adds a vector from outside at most."""
    a, w, c = (*node.inputs, None)[:3]
    scaled = attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0
    if a is None or w is None or scaled or attribute(node, "transA", 0) or ir.constant(w) is None:
        return False
    return c is None or (c.graph is not body and ctx.shapes.rank(c) == 1)


def _split(b: Builder, node: ir.Node, ctx: Context) -> ir.Value:
    a, w, c = (*node.inputs, None)[:3]
    assert a is not None and w is not None
    a = b.Transpose(a, perm=[1, 0]) if attribute(node, "transA", 0) else a
    transposed = bool(attribute(node, "transB", 0))
    if transposed and ir.constant(w) is not None:
        made = b.Gemm(a, w, transB=1)
    else:
        made = b.MatMul(a, b.Transpose(w, perm=[1, 0]) if transposed else w)
    dtype = ctx.shapes.dtype(node.outputs[0]) or ir.DataType.FLOAT

    def scaled(value: ir.Value, factor: float) -> ir.Value:
        return value if factor == 1.0 else b.Mul(value, b.constant(np.array(factor, dtype.numpy()), "factor"))

    made = scaled(made, attribute(node, "alpha", 1.0))
    beta = attribute(node, "beta", 1.0)
    return made if c is None or beta == 0 else b.Add(made, scaled(c, beta))
