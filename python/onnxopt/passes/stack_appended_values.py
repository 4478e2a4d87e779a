"""Carried values of Loops to which each iteration appends become stacked outputs."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.loops import Loop, loops_of, runs_at_least_once
from onnxopt.loops.appended import Grown, Listed, appended, finals, finish, stack
from onnxopt.passes.base import Context, Pass, PassResult, register_pass


@register_pass
class StackAppendedValues(Pass):
    """Let Loops that stay Loops stack what they append to a carried tensor or list, which they would copy in each iteration.

    A list may be concatenated in the end, or read by number. Refused: values that the loop reads before its end, and, where the loop may
    not run at all, elements of unknown shape: nothing would say what shape no elements have.
    """

    name = "stack_appended_values"
    phase = "unroll"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = sum(self._stack(loop, ctx) for loop in loops_of(ctx) if not loop.is_scan)
        return PassResult(patches > 0, patches)

    def _stack(self, loop: Loop, ctx: Context) -> bool:
        found = [one for carry in loop.carries if (one := appended(carry, loop, ctx)) and _is_known(one, loop, ctx)]
        if not found or not ctx.budget.take():
            return False
        outputs = [stack(one, loop, ctx, as_scan=False) for one in found]
        pairs = list(zip(found, outputs, strict=True))
        loop.rebuild(
            self.name,
            ctx,
            after=lambda builder: {old: new for pair in pairs for old, new in finals(*pair, builder).items()},
        )
        for one, output in pairs:
            finish(one, output, loop, ctx)
        return True


def _is_known(found: Grown | Listed, loop: Loop, ctx: Context) -> bool:
    return ctx.shapes.static_shape(found.element) is not None or runs_at_least_once(loop, ctx)
