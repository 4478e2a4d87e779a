"""Scans that hand elements of their sequences on."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.loops import Loop, ScanInput, ScanOutput, loops_of
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder


@register_pass
class VectorizeLoops(Pass):
    """Let stacked outputs of a Scan that are elements of its sequences be those sequences, and remove Scans of which nothing else is left.

    `batch_loop_inputs` takes out of a Scan what depends on its sequences alone; of a loop whose iterations are independent nothing
    else is left. Refused: outputs that depend on carried values or are computed in each iteration.
    """

    name = "vectorize_loops"
    phase = "unroll"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = sum(self._hand_on(loop, ctx) for loop in loops_of(ctx) if loop.is_scan)
        return PassResult(patches > 0, patches)

    def _hand_on(self, loop: Loop, ctx: Context) -> bool:
        handed: dict[ir.Value, tuple[ScanOutput, ScanInput]] = {}
        for output in loop.scan_outputs:
            source = _source(output, loop)
            if output.stacked is not None and source is not None and ctx.shapes.rank(source.sequence) is not None:
                handed[output.stacked] = output, source
        if not handed or not ctx.budget.take():
            return False
        loop.scan_outputs = [one for one in loop.scan_outputs if one.stacked not in handed]
        loop.rebuild(
            self.name,
            ctx,
            after=lambda builder: {old: _as_stacked(*pair, builder) for old, pair in handed.items()},
        )
        return True


def _as_stacked(output: ScanOutput, source: ScanInput, builder: Builder) -> ir.Value:
    """The sequence in the order and with the axis of the output."""
    value = source.sequence
    rank = builder.ctx.shapes.rank(value)
    assert rank is not None
    if source.reverse != output.reverse:
        numbers = [np.array([number], np.int64) for number in (-1, -(2**63), source.axis, -1)]
        value = builder.Slice(value, *map(builder.constant, numbers))
    axis, target = source.axis % rank, output.axis % rank
    if axis != target:
        perm = [one for one in range(rank) if one != axis]
        perm.insert(target, axis)
        value = builder.Transpose(value, perm=perm)
    return value


def _source(output: ScanOutput, loop: Loop) -> ScanInput | None:
    """The sequence whose elements a Scan stacks as they are."""
    value: ir.Value | None = output.element
    node = output.element.producer()
    if node is not None and node.op_type == "Identity" and not node.domain:
        value = node.inputs[0]
    return next((one for one in loop.scan_inputs if one.element is value), None)
