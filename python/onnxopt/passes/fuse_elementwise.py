"""Regions of element-wise ops become FusedElementwise nodes."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import fused_elementwise
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.rules import Refusal


@register_pass
class FuseElementwise(Pass):
    """Turn every maximal connected region of element-wise ops of one shape into one FusedElementwise node.

    Refused: single ops, types that the kernel does not compute, shapes that are not proved equal, and ops that onnxruntime computes in
    the kernel of a convolution. Bodies of Scan are left alone: onnxruntime wants the shapes of their outputs before it runs, which it
    does not get of a custom op whose inputs have an unknown rank.
    """

    name = "fuse_elementwise"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        scanned = {graph for node in ctx.walk() if node.op_type == "Scan" for graph in _all_inner(node)}
        for graph in ctx.graphs():
            if graph in scanned:
                continue
            fused = [self._fuse(nodes, ctx) for nodes in fused_elementwise.find_regions(graph, ctx)]
            if any(fused):
                # A region's node stands where its last op stood; what used an earlier op of it may stand before that.
                ir.sort_nodes(graph)
            patches += sum(fused)
        return PassResult(patches > 0, patches)

    def _fuse(self, nodes: list[ir.Node], ctx: Context) -> bool:
        patch = fused_elementwise.build(nodes, ctx)
        if isinstance(patch, Refusal):
            ctx.log.refused(self.name, nodes[0], patch, len(nodes))
            return False
        return ctx.editor.apply(patch, unused=reversed(nodes))


def _all_inner(node: ir.Node) -> list[ir.Graph]:
    return [graph for inner in ir.inner_graphs(node) for graph in ir.walk_graphs(inner)]
