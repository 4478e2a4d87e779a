"""Residual sums of bytes become part of the QConv before them."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import qconv
from onnxopt.passes.base import Context, Pass, PassResult, register_pass


@register_pass
class FuseQConvSums(Pass):
    """Let QConv add a tensor of bytes of its result's shape, also where the result is rounded before.

    Refused: results that others read too, shapes that are not proved equal.
    """

    name = "fuse_qconv_sums"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if not any(node.op_type == "QConv" for node in model.graph):
            return PassResult(False)
        fused = sum(self._fuse(node, ctx) for node in [one for one in model.graph if one.op_type == "Add"])
        return PassResult(fused > 0, fused)

    def _fuse(self, node: ir.Node, ctx: Context) -> bool:
        ctx.log.attempted(qconv.SUM)
        patch = qconv.build_sum(node, ctx)
        if patch is None or not ctx.editor.apply(patch):
            return False
        ctx.editor.remove_unused([node])
        return True

    def rule_names(self) -> list[str]:
        return [qconv.SUM]
