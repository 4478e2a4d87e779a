"""Element-wise regions become prologues of the ops that read their result."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import prologue
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.rules import Refusal


@register_pass
class FusePrologues(Pass):
    """Let ops with the attribute `prologue` compute the element-wise region that makes their first input.

    A result that others read too is kept as another output. Refused: regions whose inner values others read, shapes that are not proved
    equal, and results that the op's other inputs may depend on.
    """

    name = "fuse_prologues"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = sum(self._fuse_graph(graph, ctx) for graph in ctx.graphs_run_once())
        return PassResult(patches > 0, patches)

    def _fuse_graph(self, graph: ir.Graph, ctx: Context) -> int:
        hosts = [node for node in graph if prologue.takes_prologue(node, ctx)]
        fused = sum(self._fuse(host, ctx) for host in hosts)
        if fused:
            # The node stands where its op stood; what used the kept result may stand before that.
            ir.sort_nodes(graph)
        return fused

    def _fuse(self, host: ir.Node, ctx: Context) -> bool:
        built = prologue.build(host, ctx)
        if isinstance(built, Refusal):
            ctx.log.refused("fuse_prologue", host, built, 1)
            return False
        patch, nodes = built
        return ctx.editor.apply(patch, unused=[host, *reversed(nodes)])

    def rule_names(self) -> list[str]:
        return ["fuse_prologue"]
