"""What iterations compute from their elements of sequences alone is computed from the whole sequences, before the loop."""

from __future__ import annotations

import math
from collections.abc import Iterable

from onnxopt import ir
from onnxopt.loops import (
    Batch,
    Loop,
    ScanInput,
    can_batch,
    is_elementwise,
    is_movable,
    loops_of,
    runs_at_least_once,
    varying_values,
)
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import discard
from onnxopt.rewrite.patch import Builder

MOST_BYTES = 256 << 20
"""How large sequences may become that are computed before a loop, where their size is known."""
MOST_GROWTH = 16
"""How much larger than the sequences that they are made of, where it is not."""


@register_pass
class BatchLoopInputs(Pass):
    """Compute what depends on elements of a Scan's sequences, and on nothing that is carried, for all iterations at once.

    A product of each element with the same matrix becomes one product of the sequence. Refused: element-wise ops that broadcast elements
    to more than is read of sequences where the step may become one kernel, random ops, ops that have no batched
    form, sequences that are read in different directions, and results that would take too much memory.
    """

    name = "batch_loop_inputs"
    phase = "unroll"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = sum(self._batch(loop, ctx) for loop in loops_of(ctx) if loop.is_scan)
        return PassResult(patches > 0, patches)

    def _batch(self, loop: Loop, ctx: Context) -> bool:
        if len({one.reverse for one in loop.scan_inputs}) != 1 or any(one.axis for one in loop.scan_inputs):
            return False
        carried = varying_values(loop.body, [carry.inside for carry in loop.carries])
        builder = Builder(ctx, loop.node)
        batch = Batch(ctx, builder, never_empty=runs_at_least_once(loop, ctx))
        batch.values.update((one.element, one.sequence) for one in loop.scan_inputs)
        moved: dict[ir.Node, None] = {}
        for node in loop.body:
            inputs = list(ir.inputs_with_captures(node))
            outside = all(value in batch.values or value.graph is not loop.body for value in inputs)
            depends = any(value in batch.values for value in inputs)
            free = not any(value in carried for value in node.outputs)
            if (
                depends
                and outside
                and free
                and can_batch(node)
                and is_movable(node)
                and not _is_result(node)
                and not (loop.carries and _grows(node, batch, ctx))
                and batch.add(node)
            ):
                moved[node] = None
        frontier = [value for node in moved for value in node.outputs if _is_needed(value, moved)]
        if not moved or not frontier or not _fits(frontier, moved, loop, ctx) or not ctx.budget.take():
            discard(builder.nodes)
            return False
        for value in frontier:
            element = ir.Value(name=ctx.names.value(value.name or "element"), type=value.type)
            loop.replace(value, element)
            loop.scan_inputs.append(ScanInput(batch.values[value], element, 0, loop.scan_inputs[0].reverse))
        used = [
            one
            for one in loop.scan_inputs
            if any(user not in moved for user, _ in one.element.uses()) or _is_element(one, loop)
        ]
        loop.scan_inputs = used or loop.scan_inputs[-1:]
        results = loop.rebuild(self.name, ctx, before=builder)
        assert results is not None
        for node in reversed(moved):
            loop.body.remove(node, safe=True)
        return True


def _grows(node: ir.Node, batch: Batch, ctx: Context) -> bool:
    """Whether an element-wise node makes more than it reads of sequences, by broadcasting: a kernel of the step then saves the memory."""
    if not ctx.target.custom_ops or not is_elementwise(node):
        return False
    read = sum(_elements(value, ctx) for value in node.inputs if value is not None and value in batch.values)
    return _elements(node.outputs[0], ctx) > read


def _is_result(node: ir.Node) -> bool:
    """Whether the node only gives a result of the body its value."""
    return node.op_type == "Identity" and node.outputs[0].is_graph_output()


def _is_element(one: ScanInput, loop: Loop) -> bool:
    """Whether a result of the body is the element itself."""
    results = [carry.after for carry in loop.carries] + [output.element for output in loop.scan_outputs]
    return any(one.element is result for result in results)


def _is_needed(value: ir.Value, moved: dict[ir.Node, None]) -> bool:
    return value.is_graph_output() or any(user not in moved for user, _ in value.uses())


def _fits(frontier: list[ir.Value], moved: Iterable[ir.Node], loop: Loop, ctx: Context) -> bool:
    """Whether the sequences that are made are small enough. What is looked up by number is an element of a sequence as well."""
    made = sum(_elements(value, ctx) for value in frontier)
    looked_up = [node.outputs[0] for node in moved if node.op_type == "Gather" and _is_outside(node.inputs[0], loop)]
    read = sum(_elements(value, ctx) for value in [*(one.element for one in loop.scan_inputs), *looked_up])
    shape = ctx.shapes.shape(loop.scan_inputs[0].sequence)
    trips = shape[0] if shape else None
    if isinstance(trips, int) and math.isfinite(made):
        return made * trips * 4 <= MOST_BYTES
    return made <= MOST_GROWTH * read


def _is_outside(value: ir.Value | None, loop: Loop) -> bool:
    return value is not None and value.graph is not loop.body


def _elements(value: ir.Value, ctx: Context) -> float:
    """The number of elements, open dims counting as one."""
    shape = ctx.shapes.shape(value)
    return math.inf if shape is None else math.prod(dim if isinstance(dim, int) else 1 for dim in shape)
