"""Attention becomes one node."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import fused_attention
from onnxopt.passes.base import Context, Pass, PassResult, register_pass


@register_pass
class FuseAttention(Pass):
    """Turn the products and the Softmax of an attention, and what belongs to them, into FusedAttention, which never holds the scores.

    Head splits and merges, transposes, copies of shared heads, scales, masks, soft-cap and rotary embeddings are taken into the node.
    Refused: element types other than float32, scores or weights that others use too, sizes of heads that are not known, masks whose
    shape is not proved to fit.
    """

    name = "fuse_attention"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        products = [node for node in model.graph if node.op_type == "MatMul" and node.domain == ""]
        fused = [self._fuse(node, ctx) for node in products]
        return PassResult(any(fused), sum(fused))

    def _fuse(self, node: ir.Node, ctx: Context) -> bool:
        built = None if node.graph is None else fused_attention.build(node, ctx)
        return ctx.editor.try_built(fused_attention.RULE, node, built, 3)

    def rule_names(self) -> list[str]:
        return [fused_attention.RULE]
