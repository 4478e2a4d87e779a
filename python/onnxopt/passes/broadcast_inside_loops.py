"""Sequences that are broadcast before a Scan are broadcast by its steps."""

from __future__ import annotations

import math

from onnxopt import ir
from onnxopt.loops import Loop, ScanInput, is_elementwise, loops_of
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder

MOST_NODES = 16
"""Nodes that are taken in for one sequence, at most."""


@register_pass
class BroadcastInsideLoops(Pass):
    """Take element-wise ops that only make a sequence of a Scan, by broadcasting smaller ones, into its body.

    A kernel of the step then reads the small sequences, and the large one never lies in memory. Refused: loops without a state, results that others
    read, shapes that are not known, ops that broadcast nothing, and targets without such kernels.
    """

    name = "broadcast_inside_loops"
    phase = "unroll"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        if not ctx.target.custom_ops:
            return PassResult(False)
        patches = 0
        for loop in loops_of(ctx):
            for one in list(loop.scan_inputs if loop.carries else ()):
                region = _region(one, loop, ctx)
                if region and ctx.budget.take():
                    _take_in(one, region, loop, ctx)
                    loop.rebuild(self.name, ctx)
                    ctx.editor.remove_unused(reversed(region))
                    patches += 1
        return PassResult(patches > 0, patches)


def _region(one: ScanInput, loop: Loop, ctx: Context) -> list[ir.Node]:
    """The nodes that make a sequence by broadcasting, in order; none where nothing is broadcast."""
    found: dict[ir.Node, None] = {}
    stack = [one.sequence]
    while stack and len(found) < MOST_NODES:
        value = stack.pop()
        node = value.producer()
        if node is None or node in found or not _is_own(value, node, loop, ctx) or not _rank_fits(value, one, ctx):
            continue
        found[node] = None
        stack += [operand for operand in node.inputs if operand is not None]
    kept: set[ir.Node] = set()
    # What grows, and what is made of that: the rest is computed as quickly before the loop.
    for node in reversed(found):
        makers = {operand.producer() for operand in node.inputs if operand is not None}
        if makers & kept or _grows(node, one, ctx):
            kept.add(node)
    return [node for node in reversed(found) if node in kept] if one.sequence.producer() in kept else []


def _is_own(value: ir.Value, node: ir.Node, loop: Loop, ctx: Context) -> bool:
    """Whether an element-wise op makes a value for one user in the graph of the loop."""
    alone = ir.use_count(value) == 1 and not value.is_graph_output()
    known = all(operand is not None and ctx.shapes.static_shape(operand) is not None for operand in node.inputs)
    return alone and is_elementwise(node) and len(node.outputs) == 1 and node.graph is loop.node.graph and known


def _rank_fits(value: ir.Value, one: ScanInput, ctx: Context) -> bool:
    """Whether a value has the sequence's steps at the same place from the back."""
    whole, shape = ctx.shapes.static_shape(one.sequence), ctx.shapes.static_shape(value)
    return whole is not None and shape is not None and len(shape) == len(whole) and shape[one.axis] == whole[one.axis]


def _grows(node: ir.Node, one: ScanInput, ctx: Context) -> bool:
    """Whether a node makes more than it reads of what has a part for each step."""
    read = 0
    for operand in node.inputs:
        shape = None if operand is None else ctx.shapes.static_shape(operand)
        if operand is not None and shape is not None and _has_steps(operand, one, ctx):
            read += math.prod(shape)
    made = ctx.shapes.static_shape(node.outputs[0])
    return made is not None and math.prod(made) > read > 0


def _axis(value: ir.Value, one: ScanInput, ctx: Context) -> int:
    """Where a value has the steps of a sequence that it is broadcast to; negative where it has no such dim."""
    whole, rank = ctx.shapes.rank(one.sequence), ctx.shapes.rank(value)
    assert whole is not None and rank is not None
    return one.axis % whole - (whole - rank)


def _has_steps(value: ir.Value, one: ScanInput, ctx: Context) -> bool:
    axis, shape = _axis(value, one, ctx), ctx.shapes.static_shape(value)
    return axis >= 0 and shape is not None and shape[axis] != 1


def _take_in(one: ScanInput, region: list[ir.Node], loop: Loop, ctx: Context) -> None:
    before, inside = Builder(ctx, loop.node), Builder(ctx, next(iter(loop.body)))
    stands_for: dict[ir.Value, ir.Value] = {}
    for node in region:
        for operand in node.inputs:
            if operand is not None and operand not in stands_for:
                stands_for[operand] = _operand(operand, one, loop, before, ctx)
        made = inside.copy_of(node, [None if operand is None else stands_for[operand] for operand in node.inputs])
        stands_for[node.outputs[0]] = made[0]
    graph = loop.node.graph
    assert graph is not None
    for builder, where in ((before, graph), (inside, loop.body)):
        where.insert_before(builder.anchor, builder.nodes)
        for node in builder.nodes:
            ctx.shapes.infer_node(node)
    loop.scan_inputs.remove(one)
    loop.replace(one.element, stands_for[one.sequence])


def _operand(value: ir.Value, one: ScanInput, loop: Loop, before: Builder, ctx: Context) -> ir.Value:
    """What a step reads of a value: its element, or all of it without the dim of the steps."""
    axis, dtype, shape = _axis(value, one, ctx), ctx.shapes.dtype(value), ctx.shapes.static_shape(value)
    if not _has_steps(value, one, ctx):
        return value if axis < 0 else before.squeeze(value, axis)
    known = next(
        (it for it in loop.scan_inputs if (it.sequence, it.axis, it.reverse) == (value, axis, one.reverse)), None
    )
    if known is not None and known is not one:
        return known.element
    assert dtype is not None and shape is not None
    element = ir.Value(name=ctx.names.value(value.name or "element"), type=ir.TensorType(dtype))
    ctx.shapes.set(element, dtype, shape[:axis] + shape[axis + 1 :])
    loop.scan_inputs.append(ScanInput(value, element, axis, one.reverse))
    return element
