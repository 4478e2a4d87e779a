"""Scans along other axes than the first get their sequences transposed, as runtimes do in every run."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.loops import Loop, ScanInput, ScanOutput, arranged, loops_of
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder


@register_pass
class MoveScanAxes(Pass):
    """Let Scans take elements of their sequences, and stack their outputs, along the first axis, with Transposes around them.

    Other passes take sequences along the first axis alone; the Transposes may become part of what is around the Scan. Refused: sequences
    and outputs of unknown rank.
    """

    name = "move_scan_axes"
    phase = "unroll"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = sum(self._move(loop, ctx) for loop in loops_of(ctx) if loop.is_scan)
        return PassResult(patches > 0, patches)

    def _move(self, loop: Loop, ctx: Context) -> bool:
        inputs = [one for one in loop.scan_inputs if _axis(one.sequence, one.axis, ctx)]
        outputs = [one for one in loop.scan_outputs if one.stacked is not None and _axis(one.stacked, one.axis, ctx)]
        if not (inputs or outputs) or not ctx.budget.take():
            return False
        before = Builder(ctx, loop.node)
        for given in inputs:
            _take_first(given, before, ctx)
        moved = [(one, ScanOutput(one.element, one.stacked, one.axis)) for one in outputs]
        for output in outputs:
            output.axis = 0
        loop.rebuild(self.name, ctx, before=before, after=lambda builder: _results(moved, builder))
        return True


def _axis(value: ir.Value, axis: int, ctx: Context) -> int:
    """The axis from the front; 0 where the rank is unknown, for which nothing is done."""
    rank = ctx.shapes.rank(value)
    return axis % rank if rank else 0


def _take_first(given: ScanInput, before: Builder, ctx: Context) -> None:
    rank, axis = ctx.shapes.rank(given.sequence), _axis(given.sequence, given.axis, ctx)
    assert rank is not None
    given.sequence = before.Transpose(given.sequence, perm=[axis, *(one for one in range(rank) if one != axis)])
    given.axis = 0


def _results(moved: list[tuple[ScanOutput, ScanOutput]], builder: Builder) -> dict[ir.Value, ir.Value]:
    """What stands for outputs as they were, the second of each pair."""
    made: dict[ir.Value, ir.Value] = {}
    for new, old in moved:
        assert new.stacked is not None and old.stacked is not None
        made[old.stacked] = arranged(new.stacked, old, builder.ctx.shapes.rank(old.stacked), builder)
    return made
