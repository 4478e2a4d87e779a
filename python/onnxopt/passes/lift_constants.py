"""Constant nodes become initializers."""

from __future__ import annotations

from collections.abc import Hashable

from onnxopt import ir
from onnxopt.passes.base import SHARED_CONSTANT_BYTES, Context, Pass, PassResult, register_pass


@register_pass
class LiftConstants(Pass):
    """Turn Constant nodes of the main graph and its subgraphs into initializers of the main graph.

    Every later pass then meets constants in one form; small ones that are equal become one at once. Refused: sparse constants,
    and Constant nodes that are graph outputs of a subgraph (a subgraph's output must be made inside of it).
    """

    name = "lift_constants"
    phase = "canonicalize"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        lifted: list[ir.Node] = []
        made: dict[Hashable, ir.Value] = {}
        for node in ctx.nodes_of([("", "Constant")]):
            value = node.outputs[0]
            tensor = ir.constant(value)
            if tensor is None or value.is_graph_output():
                continue
            key = _content(tensor)
            constant = None if key is None else made.get(key)
            if constant is None:
                constant = ctx.constant(tensor, value.name or "constant")
                if key is not None:
                    made[key] = constant
            if not ctx.editor.lift(self.name, node, constant):
                break
            lifted.append(node)
        ctx.editor.remove_unused(lifted)
        patches = len(lifted)
        patches += self._lift_initializers(model, ctx)
        return PassResult(patches > 0, patches)

    def _lift_initializers(self, model: ir.Model, ctx: Context) -> int:
        """Initializers of subgraphs move to the main graph too."""
        moved = 0
        for graph in ctx.graphs():
            if graph is model.graph:
                continue
            for value in list(graph.initializers.values()):
                if value.is_graph_input() or value.is_graph_output() or value.const_value is None:
                    continue
                if not ctx.budget.take():
                    return moved
                ctx.log.replaced(value)
                constant = ctx.constant(value.const_value, value.name or "constant")
                ctx.editor.replace(value, constant)
                graph.initializers.pop(value.name or "")
                moved += 1
        return moved


def _content(tensor: ir.TensorProtocol) -> Hashable | None:
    """What equal constants have in common; None for what is not compared here: text, and what is large."""
    if tensor.dtype is ir.DataType.STRING or tensor.nbytes > SHARED_CONSTANT_BYTES:
        return None
    return tensor.dtype, tuple(tensor.shape), tensor.tobytes()
