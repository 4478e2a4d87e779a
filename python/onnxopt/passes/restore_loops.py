"""Scans that were made in the hope of a kernel, and that no kernel took, become again what they were."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.fusions import fused_loop
from onnxopt.loops import Loop, ScanInput, ScanOutput, arranged, length, loops_of, runs_at_least_once, trip_count
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.passes.unroll_loops import unroll
from onnxopt.rewrite.patch import Builder


@register_pass
class RestoreLoops(Pass):
    """Turn Scans of which it is not certain that they run into Loops, and write the steps of those out that `roll_steps` made.

    onnxruntime's Scan fails where its sequences are empty, where its Loop gives the initial values; `convert_loops` makes such Scans in
    the hope of a kernel. Refused: other Scans that run at least once.
    """

    name = "restore_loops"
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for loop in loops_of(ctx):
            trips = trip_count(loop, ctx) if loop.body in ctx.rolled else None
            if isinstance(trips, int):
                patches += self._write_out(loop, trips, ctx)
            elif loop.is_scan and not runs_at_least_once(loop, ctx) and _is_known(loop, ctx) and ctx.budget.take():
                refusal = fused_loop.refuse(loop, ctx)
                _restore(loop, self.name, ctx)
                patches += 1
                if refusal is not None:
                    ctx.log.refused(self.name, loop.node, refusal, 1)
        return PassResult(patches > 0, patches)

    def _write_out(self, loop: Loop, trips: int, ctx: Context) -> bool:
        if not ctx.budget.take():
            return False
        refusal = fused_loop.refuse(loop, ctx)
        unroll(loop, trips, self.name, ctx)
        if refusal is not None:
            ctx.log.refused(self.name, loop.node, refusal, 1)
        return True


def _is_known(loop: Loop, ctx: Context) -> bool:
    """Whether it is known where elements and outputs lie."""
    moved = [one.stacked for one in loop.scan_outputs if one.stacked is not None and one.axis]
    return all(ctx.shapes.rank(value) is not None for value in [*(one.sequence for one in loop.scan_inputs), *moved])


def _restore(loop: Loop, rule: str, ctx: Context) -> None:
    before = Builder(ctx, loop.node)
    loop.limit = length(loop, before)
    loop.iteration = _scalar("iteration", ir.DataType.INT64, ctx)
    loop.condition_inside = _scalar("condition", ir.DataType.BOOL, ctx)
    first = next(iter(loop.body))
    inner = Builder(ctx, first)
    loop.condition_after = inner.Identity(loop.condition_inside)
    for given in loop.scan_inputs:
        loop.replace(given.element, _element(given, loop, before, inner))
    loop.scan_inputs = []
    outputs = [(one, ScanOutput(one.element, one.stacked, one.axis, one.reverse)) for one in loop.scan_outputs]
    for one in loop.scan_outputs:
        one.axis, one.reverse = 0, False
    for value in (loop.iteration, loop.condition_inside):
        ctx.shapes.set(value, value.dtype, ())
    loop.body.insert_before(first, inner.nodes)
    for node in inner.nodes:
        ctx.shapes.infer_node(node)
    loop.rebuild(rule, ctx, before=before, after=lambda builder: _results(outputs, builder))


def _scalar(name: str, dtype: ir.DataType, ctx: Context) -> ir.Value:
    return ir.Value(name=ctx.names.value(name), type=ir.TensorType(dtype), shape=ir.Shape(()))


def _element(one: ScanInput, loop: Loop, before: Builder, inner: Builder) -> ir.Value:
    assert loop.iteration is not None and loop.limit is not None
    maker = one.sequence.producer()
    counts = maker is not None and maker.op_type == "Range" and not maker.domain
    if (
        counts
        and not one.reverse
        and maker is not None
        and [ir.scalar(maker.inputs[0]), ir.scalar(maker.inputs[2])] == [0, 1]
    ):
        return inner.Identity(loop.iteration)
    place = loop.iteration
    if one.reverse:
        place = inner.Sub(before.Sub(loop.limit, before.constant(np.array(1, np.int64))), place)
    return inner.Gather(one.sequence, place, axis=one.axis)


def _results(outputs: list[tuple[ScanOutput, ScanOutput]], builder: Builder) -> dict[ir.Value, ir.Value]:
    """What stands for outputs that the Scan did not stack in order and in front; as it did, they are the second of each pair."""
    made: dict[ir.Value, ir.Value] = {}
    for new, old in outputs:
        if old.stacked is not None and new.stacked is not None and (old.axis or old.reverse):
            made[old.stacked] = arranged(new.stacked, old, builder.ctx.shapes.rank(old.stacked), builder)
    return made
