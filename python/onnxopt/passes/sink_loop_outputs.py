"""What iterations compute for stacked outputs alone is computed from stacked values, after the loop."""

from __future__ import annotations

import math

from onnxopt import ir
from onnxopt.loops import Batch, Loop, ScanOutput, can_batch, is_movable, loops_of, runs_at_least_once, varying_values
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import discard
from onnxopt.rewrite.patch import Builder

HEAVY_OPS = frozenset(
    [
        "ArgMax",
        "ArgMin",
        "Conv",
        "Gather",
        "Gemm",
        "LayerNormalization",
        "LogSoftmax",
        "MatMul",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Softmax",
    ]
)
"""Ops that gain from seeing all iterations at once; element-wise ones on the way to them stay in the loop."""

MOST_BYTES = 256 << 20
"""How large stacked values may become, where their size is known."""
MOST_GROWTH = 64
"""How much larger than the outputs they replace, where it is not."""


@register_pass
class SinkLoopOutputs(Pass):
    """Compute products, reductions and what follows them, where only stacked outputs of a Scan depend on them, after the loop.

    What they read of each iteration is stacked instead. Refused: random ops, ops that have no batched form, sequences that are read
    from the back, and stacked values that would take too much memory.
    """

    name = "sink_loop_outputs"
    phase = "unroll"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = sum(self._sink(loop, ctx) for loop in loops_of(ctx) if loop.is_scan)
        return PassResult(patches > 0, patches)

    def _sink(self, loop: Loop, ctx: Context) -> bool:
        sunk = _sunk_nodes(loop)
        backwards = [one.reverse for one in loop.scan_inputs] + [one.reverse for one in loop.scan_outputs]
        if not sunk or any(backwards):
            return False
        made = {value for node in sunk for value in node.outputs}
        read = {
            value: None
            for node in sunk
            for value in node.inputs
            if value is not None and value.graph is loop.body and value not in made
        }
        outputs = [one for one in loop.scan_outputs if one.element in made]
        # A trial with stand-ins for the stacked values shows whether all nodes have a batched form.
        if not _fits(list(read), outputs, loop, ctx) or not _has_batched_form(sunk, list(read), loop, ctx):
            return False
        if not ctx.budget.take():
            return False
        sequences = {one.element: one.sequence for one in loop.scan_inputs if one.axis == 0}
        stacks = {value: ScanOutput(value, None) for value in read if value not in sequences}
        loop.scan_outputs = [one for one in loop.scan_outputs if one.element not in made] + list(stacks.values())
        never_empty = runs_at_least_once(loop, ctx)

        def finals(builder: Builder) -> dict[ir.Value, ir.Value]:
            batch = Batch(ctx, builder, never_empty=never_empty)
            batch.values.update(sequences)
            batch.values.update((value, one.stacked) for value, one in stacks.items() if one.stacked is not None)
            for node in sunk:
                assert batch.add(node)
            results = {}
            for one in outputs:
                assert one.stacked is not None
                results[one.stacked] = _moved_axis(batch.values[one.element], one, ctx, builder)
            return results

        loop.rebuild(self.name, ctx, after=finals)
        for node in reversed(sunk):
            loop.body.remove(node, safe=True)
        return True


def _sunk_nodes(loop: Loop) -> list[ir.Node]:
    """Heavy nodes of which only stacked outputs are made, and what follows them, in order."""
    carried = {carry.after for carry in loop.carries}
    free: set[ir.Node] = set()
    for node in reversed(list(loop.body)):
        users = {user for value in node.outputs for user, _ in value.uses()}
        kept = any(value in carried for value in node.outputs)
        if not kept and users <= free and can_batch(node) and is_movable(node) and len(node.outputs) == 1:
            free.add(node)
    sunk: list[ir.Node] = []
    made: set[ir.Value] = set()
    varying = varying_values(loop.body, loop.body.inputs)
    for node in loop.body:
        follows = any(value in made for value in node.inputs)
        if node in free and (follows or node.op_type in HEAVY_OPS) and node.outputs[0] in varying:
            sunk.append(node)
            made.update(node.outputs)
    return sunk


def _fits(read: list[ir.Value], outputs: list[ScanOutput], loop: Loop, ctx: Context) -> bool:
    stacked = sum(_elements(value, ctx) for value in read)
    replaced = sum(_elements(one.element, ctx) for one in outputs)
    if not math.isfinite(stacked):
        return False
    shape = ctx.shapes.shape(loop.scan_inputs[0].sequence) if loop.scan_inputs else None
    trips = shape[loop.scan_inputs[0].axis] if shape else None
    if isinstance(trips, int):
        return stacked * trips * 4 <= MOST_BYTES
    return stacked <= MOST_GROWTH * max(replaced, 1)


def _elements(value: ir.Value, ctx: Context) -> float:
    """The number of elements, open dims counting as one."""
    shape = ctx.shapes.shape(value)
    return math.inf if shape is None else math.prod(dim if isinstance(dim, int) else 1 for dim in shape)


def _has_batched_form(sunk: list[ir.Node], read: list[ir.Value], loop: Loop, ctx: Context) -> bool:
    builder = Builder(ctx, loop.node)
    batch = Batch(ctx, builder, never_empty=runs_at_least_once(loop, ctx))
    batch.values.update((value, ir.Value(name=value.name)) for value in read)
    possible = all(batch.add(node) for node in sunk)
    discard(builder.nodes)
    return possible


def _moved_axis(value: ir.Value, output: ScanOutput, ctx: Context, builder: Builder) -> ir.Value:
    """A batched value with its leading dim where the output had it."""
    rank = ctx.shapes.rank(output.element)
    assert rank is not None
    axis = output.axis % (rank + 1)
    if axis == 0:
        return value
    perm = list(range(1, rank + 1))
    perm.insert(axis, 0)
    return builder.Transpose(value, perm=perm)
