"""What every iteration computes alike is computed once, before the loop."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.loops import Loop, can_fail, is_movable, loops_of, runs_at_least_once, varying_values
from onnxopt.passes.base import Context, Pass, PassResult, register_pass


@register_pass
class HoistLoopInvariants(Pass):
    """Move nodes whose inputs no iteration changes from the body of a Loop or Scan before it.

    Refused: random ops, ops of unknown domains, and ops that might fail where it is not certain that the loop runs at all.
    """

    name = "hoist_loop_invariants"
    phase = "unroll"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = sum(self._hoist(loop, ctx) for loop in loops_of(ctx))
        return PassResult(patches > 0, patches)

    def _hoist(self, loop: Loop, ctx: Context) -> int:
        varying = varying_values(loop.body, loop.body.inputs)
        invariant = [
            node for node in loop.body if is_movable(node) and not any(value in varying for value in node.outputs)
        ]
        if not invariant:
            return 0
        runs = runs_at_least_once(loop, ctx)
        staying: set[ir.Value] = set()
        patches = 0
        for node in invariant:
            needs_staying = any(value in staying for value in ir.inputs_with_captures(node))
            is_result = any(value.is_graph_output() for value in node.outputs)
            if needs_staying or is_result or (not runs and can_fail(node, ctx)) or not ctx.budget.take():
                staying.update(node.outputs)
                continue
            _move_before(node, loop, ctx)
            ctx.log.applied(self.name, loop.node)
            patches += 1
        return patches


def _move_before(node: ir.Node, loop: Loop, ctx: Context) -> None:
    graph = loop.node.graph
    assert graph is not None
    loop.body.remove(node)
    node.name = None if not node.name else ctx.names.node(node.name)
    for value in node.outputs:
        value.name = ctx.names.value(value.name) if value.name else None
    graph.insert_before(loop.node, node)
    ctx.forget_nodes()
    ctx.shapes.infer_node(node)
