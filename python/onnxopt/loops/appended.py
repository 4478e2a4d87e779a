"""Carried values that grow by one element in each iteration: they are stacked outputs in disguise."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from onnxopt import ir
from onnxopt.loops.view import Carry, Loop, ScanOutput
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import attribute

if TYPE_CHECKING:
    from onnxopt.passes.base import Context


@dataclasses.dataclass(frozen=True, slots=True)
class Grown:
    """A carried value to which each iteration appends `element`, with a dim of 1 at `axis`; in front of it when `reverse`."""

    carry: Carry
    append: ir.Node
    element: ir.Value
    axis: int
    reverse: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
    """A carried sequence of `start` to which each iteration appends `element`, and the nodes that read what it holds in the end."""

    carry: Carry
    append: ir.Node
    element: ir.Value
    users: tuple[ir.Node, ...]
    start: tuple[ir.Value, ...]


def appended(carry: Carry, loop: Loop, ctx: Context) -> Grown | Listed | None:
    """How a carried value grows; None where it does otherwise, or where something reads it before the end."""
    return _grown(carry, loop, ctx) or _listed(carry, loop, ctx)


def _grown(carry: Carry, loop: Loop, ctx: Context) -> Grown | None:
    node = carry.after.producer()
    if node is None or node.op_type != "Concat" or node.domain or len(node.inputs) != 2 or node.graph is not loop.body:
        return None
    first, second = node.inputs
    reverse = second is carry.inside
    element = first if reverse else second
    if element is None or (not reverse and first is not carry.inside) or element is carry.inside:
        return None
    if _is_read(carry, loop):
        return None
    shape = ctx.shapes.shape(element)
    axis = attribute(node, "axis")
    if shape is None or not -len(shape) <= axis < len(shape) or shape[axis] != 1 or ctx.shapes.dtype(element) is None:
        return None
    return Grown(carry, node, element, axis % len(shape), reverse)


def _listed(carry: Carry, loop: Loop, ctx: Context) -> Listed | None:
    node, first = carry.after.producer(), carry.initial.producer()
    if (
        first is None
        or first.op_type not in ("SequenceEmpty", "SequenceConstruct")
        or first.domain
        or carry.final is None
    ):
        return None
    start = tuple(value for value in first.inputs if value is not None)
    if node is None or node.op_type != "SequenceInsert" or node.domain or node.inputs[0] is not carry.inside:
        return None
    element = node.inputs[1]
    if ir.input_at(node, 2) is not None or element is None or node.graph is not loop.body:
        return None
    if _is_read(carry, loop) or carry.final.is_graph_output():
        return None
    users = tuple(dict.fromkeys(user for user, _ in carry.final.uses()))
    known = ctx.shapes.dtype(element) is not None and ctx.shapes.rank(element) is not None
    fit = all(_can_read(user, element, loop, ctx) for user in users)
    alike = all(
        ctx.shapes.same_shape(one, element) is True and ctx.shapes.dtype(one) is ctx.shapes.dtype(element)
        for one in start
    )
    return Listed(carry, node, element, users, start) if known and fit and alike else None


def _is_read(carry: Carry, loop: Loop) -> bool:
    """Whether anything but the node that appends, and the next iteration, sees the carried value."""
    results = [one.after for one in loop.carries if one is not carry] + [one.element for one in loop.scan_outputs]
    elsewhere = any(value is carry.after or value is carry.inside for value in results)
    return ir.use_count(carry.inside) != 1 or ir.use_count(carry.after) > 0 or elsewhere


def _can_read(user: ir.Node, element: ir.Value, loop: Loop, ctx: Context) -> bool:
    """Whether a stacked tensor tells a node what the sequence would: elements of one shape, or of one that they must have."""
    static = ctx.shapes.static_shape(element) is not None
    if user.domain:
        return False
    if user.op_type == "ConcatFromSequence":
        return user.graph is loop.node.graph and (static or bool(attribute(user, "new_axis", 0)))
    return static and user.op_type in ("SequenceAt", "SequenceLength")


def stack(found: Grown | Listed, loop: Loop, ctx: Context, *, as_scan: bool) -> ScanOutput:
    """Let the loop stack what it appended, in the order and along the axis that a Scan can do itself."""
    element = found.element
    inner = Builder(ctx, found.append)
    if isinstance(found, Grown):
        element = inner.squeeze(element, found.axis)
    elif not as_scan:
        element = inner.Identity(element)  # a Loop's results are its own
    loop.body.insert_before(found.append, inner.nodes)
    for node in inner.nodes:
        ctx.shapes.infer_node(node)
    output = ScanOutput(element, None)
    if as_scan and isinstance(found, Grown):
        output = ScanOutput(element, None, found.axis, found.reverse)
    loop.carries.remove(found.carry)
    loop.scan_outputs.append(output)
    return output


def finals(found: Grown | Listed, output: ScanOutput, builder: Builder) -> dict[ir.Value, ir.Value]:
    """What stands for the values outside of the loop that the carried value gave."""
    stacked = output.stacked
    assert stacked is not None
    if isinstance(found, Listed):
        outer = [user for user in found.users if user.graph is builder.anchor.graph]
        return {user.outputs[0]: _read(user, found, stacked, builder) for user in outer}
    final, initial = found.carry.final, found.carry.initial
    if final is None:
        return {}
    shapes = builder.ctx.shapes
    shape, rank = shapes.shape(initial), shapes.rank(found.element)
    assert rank is not None
    if found.reverse and not output.reverse:
        bounds = [builder.constant(np.array([number], np.int64)) for number in (-1, -(2**63), 0, -1)]
        stacked = builder.Slice(stacked, *bounds)
    if output.axis != found.axis:
        stacked = _along(stacked, found.axis, rank, builder)
    if shape is None or shape[found.axis] != 0:
        pair = [stacked, initial] if found.reverse else [initial, stacked]
        stacked = builder.Concat(*pair, axis=found.axis)
    return {final: stacked}


def finish(found: Grown | Listed, output: ScanOutput, loop: Loop, ctx: Context) -> None:
    """Remove the node that appended, and let nodes of other graphs that read the list read the stacked tensor."""
    stacked = output.stacked
    assert stacked is not None
    loop.body.remove(found.append, safe=True)
    if not isinstance(found, Listed):
        return
    for user in found.users:
        if user.graph is None or user.graph is loop.node.graph:
            continue
        builder = Builder(ctx, user)
        made = _read(user, found, stacked, builder)
        user.graph.insert_before(user, builder.nodes)
        for node in builder.nodes:
            ctx.shapes.infer_node(node)
        ctx.editor.replace(user.outputs[0], made)
    ctx.forget_nodes()
    ctx.editor.remove_unused(found.users)


def _along(stacked: ir.Value, axis: int, rank: int, builder: Builder) -> ir.Value:
    """A tensor of `rank` whose first axis becomes the one given."""
    if axis == 0:
        return stacked
    return builder.Transpose(stacked, perm=[*range(1, axis + 1), 0, *range(axis + 1, rank)])


def _read(user: ir.Node, found: Listed, stacked: ir.Value, builder: Builder) -> ir.Value:
    """What a node makes of the list, from the stacked elements."""
    shapes, element = builder.ctx.shapes, found.element
    rank = shapes.rank(element)
    assert rank is not None
    if found.start:
        stacked = builder.Concat(*(builder.unsqueeze(one, 0) for one in found.start), stacked, axis=0)
    if user.op_type == "SequenceAt":
        return builder.Gather(stacked, user.inputs[1], axis=0)
    if user.op_type == "SequenceLength":
        return builder.Gather(builder.Shape(stacked), builder.constant(np.array(0, np.int64)), axis=0)
    whole = rank + 1 if attribute(user, "new_axis", 0) else rank
    axis = attribute(user, "axis") % whole
    stacked = _along(stacked, axis, rank + 1, builder)
    if whole > rank:
        return stacked
    shape = shapes.static_shape(element)
    assert shape is not None
    sizes = [*shape[:axis], -1, *shape[axis + 1 :]]
    return builder.Reshape(stacked, builder.constant(np.array(sizes, np.int64), "shape"))
