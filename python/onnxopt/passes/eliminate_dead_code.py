"""Removal of what nothing uses."""

from __future__ import annotations

import itertools

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import walk
from onnxopt.rewrite.editor import SIDE_EFFECT_FREE_DOMAINS, removable
from onnxopt.rewrite.rules import attribute

OPTIONAL_OUTPUTS = {
    "BatchNormalization": 1,
    "Dropout": 1,
    "GRU": 0,
    "LSTM": 0,
    "LayerNormalization": 1,
    "MaxPool": 1,
    "RNN": 0,
    "SkipLayerNormalization": 1,
    "Unique": 1,
}
"""Ops whose outputs from this position on may be absent."""


@register_pass
class EliminateDeadCode(Pass):
    """Remove nodes, initializers, optional outputs and custom-op functions that nothing uses.

    Nodes of unknown domains stay, since they may have effects, and so do functions that the model came with. Graph inputs stay: they
    are the model's interface.
    """

    name = "eliminate_dead_code"
    phase = "simplify"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        removed = self._remove_nodes(ctx) + self._trim_outputs(ctx) + self._remove_initializers(ctx)
        removed += self._remove_functions(model, ctx)
        return PassResult(removed > 0, removed)

    @staticmethod
    def _remove_nodes(ctx: Context) -> int:
        graphs = ctx.graphs()
        before = sum(graph.num_nodes() for graph in graphs)
        for graph in graphs:
            ctx.editor.remove_unused([node for node in graph if removable(node)])
        return before - sum(graph.num_nodes() for graph in graphs)

    @staticmethod
    def _trim_outputs(ctx: Context) -> int:
        trimmed = 0
        for node in ctx.nodes_of(itertools.product(SIDE_EFFECT_FREE_DOMAINS, OPTIONAL_OUTPUTS)):
            first = OPTIONAL_OUTPUTS[node.op_type]
            if len(node.outputs) <= max(first, 1) or attribute(node, "training_mode", 0):
                continue
            keep = len(node.outputs)
            while keep > max(first, 1) and not _used(node.outputs[keep - 1]):
                keep -= 1
            if keep < len(node.outputs):
                trimmed += len(node.outputs) - keep
                node.resize_outputs(keep)
        return trimmed

    @staticmethod
    def _remove_initializers(ctx: Context) -> int:
        unused = [
            (graph, name)
            for graph in ctx.graphs()
            for name, value in graph.initializers.data.items()
            if not _used(value) and not value.is_graph_input()
        ]
        named = _named_by_annotations(ctx) if unused else set()
        gone = [(graph, name) for graph, name in unused if name not in named]
        for graph, name in gone:
            del graph.initializers[name]
        return len(gone)

    @staticmethod
    def _remove_functions(model: ir.Model, ctx: Context) -> int:
        ours = [key for key, function in model.functions.items() if function.domain in ("ai.onnxopt", "com.microsoft")]
        if not ours:
            return 0
        called = {node.op_identifier() for node in ctx.walk() if node.domain}
        for function in model.functions.values():
            for graph in ir.graphs_of(function):
                called.update(node.op_identifier() for node in walk(graph) if node.domain)
        unused = [key for key in ours if key not in called]
        for key in unused:
            del model.functions[key]
        return len(unused)


def _named_by_annotations(ctx: Context) -> set[str]:
    """The names of tensors that quantization annotations of values tell."""
    names: set[str] = set()
    for graph in ctx.graphs():
        made = (value for node in graph for value in node.outputs)
        for value in itertools.chain(graph.inputs, graph.initializers.values(), made):
            names.update(ir.annotated(value))
    return names


def _used(value: ir.Value) -> bool:
    return bool(ir.use_count(value)) or value.is_graph_output()
