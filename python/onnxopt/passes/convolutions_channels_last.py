"""Regions of convolutions run channels-last, in kernels of our own."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions.channels_last import KERNELS, RULE, Conversion, Finder
from onnxopt.ops.base import prepare_model
from onnxopt.passes.base import Context, Pass, PassResult, register_pass

GAINING = {"QConv", *(name for name, kernel in KERNELS.items() if kernel.gain)}
"""What a region is converted for."""


@register_pass
class ConvolutionsChannelsLast(Pass):
    """Convert regions of convolutions, pooling and what runs in any layout from [N, C, H, W] to [N, H, W, C].

    Convolutions and poolings become FusedConv and FusedPool, whose element-wise neighbours can then be their epilogues; Transposes are
    left at the border of a region. Refused: element types other than float32 (and bytes for maxima), filters that are not constant, three spatial dims,
    regions whose border costs more than their convolutions gain, and targets other than the CPU.
    """

    name = "convolutions_channels_last"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if ctx.target.name != "cpu":
            return PassResult(False)
        applied = sum(self._convert_graph(graph, ctx) for graph in ctx.graphs())
        if applied:
            prepare_model(model)
        return PassResult(applied > 0, applied)

    def _convert_graph(self, graph: ir.Graph, ctx: Context) -> int:
        if not any(node.op_type in GAINING for node in graph):
            return 0
        finder = Finder(graph, ctx)
        applied = sum(self._convert(finder, nodes, ctx) for nodes in finder.regions())
        if applied:
            # New nodes stand before the last one of their region; what reads an earlier one may stand before that.
            ir.sort_nodes(graph)
        return applied

    def _convert(self, finder: Finder, nodes: list[ir.Node], ctx: Context) -> bool:
        return ctx.editor.apply(Conversion(finder, nodes, ctx).patch(), unused=reversed(nodes))

    def rule_names(self) -> list[str]:
        return [RULE]
