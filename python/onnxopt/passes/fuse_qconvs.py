"""Convolutions of quantized operands become QConv nodes."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import qconv
from onnxopt.passes.base import Context, Pass, PassResult, register_pass


@register_pass
class FuseQConvs(Pass):
    """Turn Conv of a dequantized activation with dequantized constant filters into QConv, between Transposes to channels-last and back.

    Refused: filters that are not around 0 or have scales along other axes, activations with several scales, biases that are not
    constant, three spatial dims, opsets below 13.
    """

    name = "fuse_qconvs"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if not ctx.target.custom_ops:
            return PassResult(False)
        nodes = [node for node in model.graph if node.op_type == "Conv" and not node.domain]
        fused = sum(self._fuse(node, ctx) for node in nodes)
        return PassResult(fused > 0, fused)

    def _fuse(self, node: ir.Node, ctx: Context) -> bool:
        built = qconv.build(node, ctx)
        return ctx.editor.try_built(qconv.CONVOLUTION, node, built, 3)

    def rule_names(self) -> list[str]:
        return [qconv.CONVOLUTION]
