"""Attention becomes one node."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import attention_op, fused_attention
from onnxopt.passes.base import Context, Pass, PassResult, register_pass


@register_pass
class FuseAttention(Pass):
    """Turn the products and the Softmax of an attention, and what belongs to them, into FusedAttention, which never holds the scores;
    so too the standard op Attention.

    Head splits and merges, transposes, copies of shared heads, scales, masks, soft-cap and rotary embeddings are taken into the node.
    Refused: element types other than float32, scores or weights that others use too, sizes of heads that are not known, masks whose
    shape is not proved to fit, and what is inside loops.
    """

    name = "fuse_attention"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        products = [node for node in ctx.nodes_of([("", "MatMul")]) if ctx.runs_once(node)]
        fused = sum(self._fuse(node, ctx) for node in products)
        fused += self._fuse_ops([node for node in ctx.nodes_of([("", "Attention")]) if ctx.runs_once(node)], ctx)
        return PassResult(fused > 0, fused)

    def _fuse(self, node: ir.Node, ctx: Context) -> bool:
        built = None if node.graph is None else fused_attention.build(node, ctx)
        return ctx.editor.try_built(fused_attention.RULE, node, built, 3)

    def _fuse_ops(self, nodes: list[ir.Node], ctx: Context) -> int:
        graphs = dict.fromkeys(node.graph for node in nodes)
        masks: attention_op.CausalMasks = {}
        fused = 0
        for node in nodes:
            built = attention_op.build(node, masks, ctx)
            fused += ctx.editor.try_built(fused_attention.RULE, node, built, 1)
        for graph in graphs if fused else ():
            # The node stands where its result was moved to; what used the joined cache may stand before that.
            assert graph is not None
            graph.sort()
        return fused

    def rule_names(self) -> list[str]:
        return [fused_attention.RULE]
