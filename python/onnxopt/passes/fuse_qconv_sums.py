"""Residual sums of bytes, and roundings to bytes on the way, become part of the QConv before them."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import qconv
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Patch


@register_pass
class FuseQConvSums(Pass):
    """Let QConv add a tensor of bytes of its result's shape, also where the result is rounded before, and round it where only element-wise ops
    read the bytes, so that those can be its epilogue.

    Refused: results that others read too, shapes that are not proved equal.
    """

    name = "fuse_qconv_sums"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if not any(node.op_type == "QConv" for node in model.graph):
            return PassResult(False)
        sums = [node for node in model.graph if node.op_type == "Add"]
        fused = sum(self._fuse(qconv.SUM, qconv.build_sum(node, ctx), ctx) for node in sums)
        restored = [node for node in model.graph if node.op_type == "DequantizeLinear"]
        fused += sum(self._fuse(qconv.ROUNDING, qconv.build_rounding(node, ctx), ctx) for node in restored)
        return PassResult(fused > 0, fused)

    def _fuse(self, rule: str, patch: Patch | None, ctx: Context) -> bool:
        ctx.log.attempted(rule)
        return patch is not None and ctx.editor.apply(patch, unused=[patch.anchor])

    def rule_names(self) -> list[str]:
        return [qconv.SUM, qconv.ROUNDING]
