"""Loops of few iterations are written out."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.loops import Loop, loops_of, trip_count
from onnxopt.loops.copies import copy_nodes
from onnxopt.loops.dependences import is_recurrent
from onnxopt.loops.trips import condition_is_true
from onnxopt.loops.view import ScanOutput, state_of
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal

PAYING_NODES = 64
"""Nodes up to which a loop is written out unasked: each iteration of a loop costs the runtime about what a few nodes do, and what is known
of a single iteration often folds; more nodes than this make a model longer to load than its runs get shorter."""

PAYING_TRIPS = 8
"""Iterations up to which a loop is written out unasked: longer ones are recurrences, for which one kernel does better."""

MAX_BYTES = 64 << 20
"""What the constants of a body may come to in all its copies. Copies share the constants of the model, not those of their subgraphs."""


@register_pass
class UnrollLoops(Pass):
    """Write the iterations of a Loop or Scan out, one after the other.

    Stacked outputs become one Concat. A condition that is certain to hold vanishes. Unasked, only short loops of few nodes that do not
    compute a recurrence by element-wise ops and products; with `unroll_nodes`, every loop that takes at most so many nodes. Refused: trip
    counts that are not known or 0, and conditions that may end the loop before.
    """

    name = "unroll_loops"
    phase = "unroll"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for loop in loops_of(ctx):
            trips = trip_count(loop, ctx)
            refusal = _refusal(loop, trips, ctx)
            if refusal is not None:
                ctx.log.refused(self.name, loop.node, refusal, 1)
            elif isinstance(trips, int) and ctx.budget.take():
                unroll(loop, trips, self.name, ctx)
                patches += 1
        return PassResult(patches > 0, patches)


def _refusal(loop: Loop, trips: object, ctx: Context) -> Refusal | None:
    if not isinstance(trips, int):
        return Refusal("its number of iterations is not known")
    if trips == 0:
        return Refusal("it does not run")
    if not _results_used(loop):
        return Refusal("nothing uses its results")
    nodes = _count(loop.body) * trips
    asked = ctx.options.unroll_nodes
    if nodes > (PAYING_NODES if asked is None else asked):
        return Refusal("{} iterations are {} nodes", trips, nodes)
    if _bytes(loop.body) * trips > MAX_BYTES:
        return Refusal("the constants of {} iterations take too much memory", trips)
    if asked is None and trips > 1 and (trips > PAYING_TRIPS or _is_recurrence(loop, ctx)):
        return Refusal("one kernel for all of its {} iterations does better", trips)
    return None


def _results_used(loop: Loop) -> bool:
    return any(ir.use_count(value) or value.is_graph_output() for value in loop.node.outputs)


def _count(body: ir.Graph) -> int:
    return sum(graph.num_nodes() for graph in ir.walk_graphs(body))


def _bytes(body: ir.Graph) -> int:
    return sum(tensor.nbytes for tensor in ir.constant_tensors(ir.walk_graphs(body)))


def _is_recurrence(loop: Loop, ctx: Context) -> bool:
    tensors = all(_keeps_shape(carry.initial, carry.after, ctx) for carry in loop.carries)
    return bool(loop.carries) and tensors and all(map(is_recurrent, loop.body)) and condition_is_true(loop)


def _keeps_shape(before: ir.Value, after: ir.Value, ctx: Context) -> bool:
    shapes = ctx.shapes.shape(before), ctx.shapes.shape(after)
    return shapes[0] is not None and shapes[0] == shapes[1]


def unroll(loop: Loop, trips: int, rule: str, ctx: Context) -> None:
    """Write the iterations of a loop out; the caller has taken the patch from the budget."""
    move_initializers(loop.body, ctx)
    graph = loop.node.graph
    assert graph is not None
    carried = [carry.initial for carry in loop.carries]
    stacks: list[list[ir.Value]] = [[] for _ in loop.scan_outputs]
    for number in range(trips):
        stands_for = _inputs(loop, number, trips, carried, ctx)
        nodes = copy_nodes(loop.body, stands_for, ctx)
        graph.insert_before(loop.node, nodes)
        for node in nodes:
            ctx.shapes.infer_node(node)
        carried = [stands_for.get(carry.after, carry.after) for carry in loop.carries]
        for stack, output in zip(stacks, loop.scan_outputs, strict=True):
            stack.append(stands_for.get(output.element, output.element))
    builder = Builder(ctx, loop.node)
    finals = {carry.final: value for carry, value in zip(loop.carries, carried, strict=True) if carry.final is not None}
    for stack, output in zip(stacks, loop.scan_outputs, strict=True):
        if output.stacked is not None:
            finals[output.stacked] = _stacked(stack, output, builder)
    graph.insert_before(loop.node, builder.nodes)
    for node in builder.nodes:
        ctx.shapes.infer_node(node)
    ctx.forget_nodes()
    for old, new in finals.items():
        ctx.editor.replace(old, new)
    ctx.log.applied(rule, loop.node)
    ctx.editor.remove_unused([loop.node])


def _inputs(loop: Loop, number: int, trips: int, carried: list[ir.Value], ctx: Context) -> dict[ir.Value, ir.Value]:
    """What stands for the body's inputs in one iteration."""
    stands_for = {carry.inside: value for carry, value in zip(loop.carries, carried, strict=True)}
    if loop.iteration is not None and loop.condition_inside is not None:
        state = (loop.iteration, loop.condition_inside)
        stands_for.update(zip(state, state_of(state, number, loop.node, ctx), strict=True))
    builder = Builder(ctx, loop.node)
    for one in loop.scan_inputs:
        place = builder.constant(np.array(trips - 1 - number if one.reverse else number, np.int64), "number")
        stands_for[one.element] = builder.Gather(one.sequence, place, axis=one.axis)
    assert loop.node.graph is not None
    loop.node.graph.insert_before(loop.node, builder.nodes)
    for node in builder.nodes:
        ctx.shapes.infer_node(node)
    return stands_for


def _stacked(elements: list[ir.Value], output: ScanOutput, builder: Builder) -> ir.Value:
    parts = []
    for element in reversed(elements) if output.reverse else elements:
        parts.append(builder.unsqueeze(element, output.axis))
    return parts[0] if len(parts) == 1 else builder.Concat(*parts, axis=output.axis)


def move_initializers(body: ir.Graph, ctx: Context) -> None:
    """Let the model hold the body's constants, so that the copies share them."""
    for name in list(body.initializers):
        value = body.initializers.pop(name)
        value.name = ctx.names.value(name)
        ctx.model.graph.register_initializer(value)
