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
    Refused: element types other than float32 (for CUDA devices float16 and bfloat16 too), scores or weights that others use too, sizes
    of heads that are not known, masks whose shape is not proved to fit, and what is inside loops.
    """

    name = "fuse_attention"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        masks: attention_op.CausalMasks = {}
        graphs: dict[ir.Graph, None] = {}
        fused = 0
        for node in [*ctx.nodes_of([("", "MatMul")]), *ctx.nodes_of([("", "Attention")])]:
            graph = node.graph
            if isinstance(graph, ir.Graph) and ctx.runs_once(node) and self._fuse(node, masks, ctx):
                graphs[graph] = None
                fused += 1
        for graph in graphs:
            # The node stands where its result was moved to; what it shares with others, and what used a joined cache, may stand elsewhere.
            graph.sort()
        return PassResult(fused > 0, fused)

    def _fuse(self, node: ir.Node, masks: attention_op.CausalMasks, ctx: Context) -> bool:
        if node.op_type == "Attention":
            return ctx.editor.try_built(fused_attention.RULE, node, attention_op.build(node, masks, ctx), 1)
        return ctx.editor.try_built(fused_attention.RULE, node, fused_attention.build(node, ctx), 3)

    def rule_names(self) -> list[str]:
        return [fused_attention.RULE]
