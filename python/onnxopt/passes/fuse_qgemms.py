"""Products of quantized operands become QGemm nodes."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import qgemm
from onnxopt.passes.base import Context, Pass, PassResult, register_pass


@register_pass
class FuseQGemms(Pass):
    """Turn MatMul and Gemm of a dequantized activation with dequantized constant weights, and MatMulInteger with the scales of its sums, and
    the bias after them, into QGemm.

    An activation that QuantizeLinear makes of floats with the same scale is quantized by the kernel. DynamicQuantizeLinear stays: the range
    of a whole tensor is known only after all of it was read, and several products may share its result. Refused: weights that are not
    around 0 or have scales per row, activations with several scales, opsets below 13.
    """

    name = "fuse_qgemms"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if not ctx.target.custom_ops:
            return PassResult(False)
        products = [
            node for node in model.graph if node.op_type in ("MatMul", "Gemm", "MatMulInteger") and not node.domain
        ]
        fused = [self._fuse(node, ctx) for node in products]
        return PassResult(any(fused), sum(fused))

    def _fuse(self, node: ir.Node, ctx: Context) -> bool:
        built = qgemm.build(node, ctx)
        return ctx.editor.try_built(qgemm.RULE, node, built, 3)

    def rule_names(self) -> list[str]:
        return [qgemm.RULE]
