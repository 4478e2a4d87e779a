"""QConv rounds its results to bytes where those are all that is read."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import qconv
from onnxopt.passes.base import Context, Pass, PassResult, register_pass


@register_pass
class FuseRequantization(Pass):
    """Let QConv quantize its result where a QuantizeLinear with one scale alone reads it.

    Refused: results that others read too, several scales, types other than uint8 and int8.
    """

    name = "fuse_requantization"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if not any(node.op_type == "QConv" for node in model.graph):
            return PassResult(False)
        fused = sum(self._fuse(node, ctx) for node in [one for one in model.graph if one.op_type == "QuantizeLinear"])
        return PassResult(fused > 0, fused)

    def _fuse(self, node: ir.Node, ctx: Context) -> bool:
        ctx.log.attempted(qconv.REQUANTIZATION)
        patch = qconv.build_requantization(node, ctx)
        return patch is not None and ctx.editor.apply(patch, unused=[node])

    def rule_names(self) -> list[str]:
        return [qconv.REQUANTIZATION]
