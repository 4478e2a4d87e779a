"""Element-wise regions become epilogues of the ops before them."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import epilogue
from onnxopt.fusions.fused_elementwise import all_regions
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.rules import Refusal


@register_pass
class FuseEpilogues(Pass):
    """Let ops with the attribute `epilogue` compute the element-wise region that reads their result.

    Where a region reads the results of several such ops, the last of them computes it. Refused: results that others read too, shapes
    that are not proved equal, and ops that have an epilogue already.
    """

    name = "fuse_epilogues"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        fused = sum(self._fuse_graph(graph, ctx) for graph in ctx.graphs())
        return PassResult(fused > 0, fused)

    def _fuse_graph(self, graph: ir.Graph, ctx: Context) -> int:
        if not any(node.op_type in epilogue.OPS for node in graph):
            return 0
        fused = sum(self._fuse(nodes, ctx) for nodes in all_regions(graph, ctx))
        if fused:
            # The node stands where the region's last op stood; what used an earlier op of it may stand before that.
            ir.sort_nodes(graph)
        return fused

    def _fuse(self, nodes: list[ir.Node], ctx: Context) -> bool:
        host = epilogue.find_host(nodes, ctx)
        if host is None:
            return False
        patch = epilogue.build(host, nodes, ctx)
        if isinstance(patch, Refusal):
            ctx.log.refused("fuse_epilogue", host.node, patch, len(nodes))
            return False
        return ctx.editor.apply(patch, unused=[*reversed(nodes), host.node])

    def rule_names(self) -> list[str]:
        return ["fuse_epilogue"]
