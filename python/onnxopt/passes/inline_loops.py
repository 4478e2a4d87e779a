"""Loops that run no or one time are replaced by what they compute."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.loops.view import state_of
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import walk
from onnxopt.rewrite.patch import Builder

UNSQUEEZE_INPUT_OPSET = 13
"""The opset from which Unsqueeze takes its axes as an input."""


@register_pass
class InlineLoops(Pass):
    """Inline Loops whose trip count is 0 or 1 and known beforehand.

    With one trip the body takes the Loop's place; scan outputs get their leading axis by Unsqueeze. With no trip carried values pass
    through. Refused: a condition that is not constant, and scan outputs of no trip whose shape is not known.
    """

    name = "inline_loops"
    phase = "fold"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if not ctx.has_subgraphs:
            return PassResult(False)
        patches = 0
        for node in list(walk(model.graph)):
            if node.op_type != "Loop" or node.domain or node.graph is None:
                continue
            trips = _trips(node, ctx)
            if trips == 1:
                patches += self._inline_once(node, ctx)
            elif trips == 0:
                patches += self._drop(node, ctx)
        return PassResult(patches > 0, patches)

    def _inline_once(self, node: ir.Node, ctx: Context) -> bool:
        body = node.attributes["body"].as_graph()
        carried = len(node.inputs) - 2
        given = [value for value in node.inputs[2:] if value is not None]
        if len(given) != carried or len(body.inputs) != len(node.inputs):
            return False
        arguments = [*state_of(body.inputs, 0, node, ctx), *given]
        results = list(body.outputs)[1:]
        scanned = list(zip(node.outputs[carried:], results[carried:], strict=True))
        builder = Builder(ctx, node)
        axes = builder.constant(np.array([0], np.int64), "axes") if ctx.opset >= UNSQUEEZE_INPUT_OPSET else None
        formal_to_actual = dict(zip(body.inputs, arguments, strict=True))
        outputs = dict(zip(node.outputs[:carried], results[:carried], strict=True))
        for old, inner in scanned:
            source = formal_to_actual.get(inner, inner)
            stacked = builder.Unsqueeze(source, axes) if axes is not None else builder.Unsqueeze(source, axes=[0])
            assert stacked is not None
            outputs[old] = stacked
        graph = node.graph
        assert graph is not None
        graph.insert_before(node, builder.nodes)
        done = ctx.editor.inline_graph(self.name, node, body, arguments, outputs)
        # The Unsqueezes were put first, so that they are users of the body's results; they belong behind them.
        for stacked_node in builder.nodes:
            if not done:
                graph.remove(stacked_node, safe=True)
                continue
            result = stacked_node.inputs[0]
            producer = None if result is None else result.producer()
            if producer is not None and producer.graph is graph:
                graph.remove(stacked_node)
                graph.insert_after(producer, stacked_node)
            ctx.shapes.infer_node(stacked_node)
        return done

    def _drop(self, node: ir.Node, ctx: Context) -> bool:
        carried = len(node.inputs) - 2
        body = node.attributes["body"].as_graph()
        builder = Builder(ctx, node)
        pairs = dict(zip(node.outputs[:carried], node.inputs[2:], strict=True))
        for old, inner in zip(node.outputs[carried:], list(body.outputs)[1 + carried :], strict=True):
            shape, dtype = ctx.shapes.static_shape(inner), ctx.shapes.dtype(inner)
            if not ir.use_count(old) and not old.is_graph_output():
                continue
            if shape is None or dtype is None:
                return False
            pairs[old] = builder.constant(np.empty((0, *shape), dtype.numpy()), "empty")
        if any(value is None for value in pairs.values()):
            return False
        done = ctx.editor.apply(builder.patch(self.name, {old: new for old, new in pairs.items() if new is not None}))
        if done:
            ctx.editor.remove_unused([node])
        return done


def _trips(node: ir.Node, ctx: Context) -> int | None:
    """0 or 1 when it is certain that the body runs so often, else None."""
    if len(node.inputs) < 2:
        return None
    limit, condition = node.inputs[0], node.inputs[1]
    start = True if condition is None else ir.scalar(condition)
    if start is None:
        return None
    if not start:
        return 0
    count = None if limit is None else ctx.shapes.integers(limit)
    if count:
        return 0 if count[0] <= 0 else 1 if count[0] == 1 else None
    body_condition = ir.scalar(node.attributes["body"].as_graph().outputs[0])
    return 1 if limit is None and body_condition is not None and not body_condition else None
