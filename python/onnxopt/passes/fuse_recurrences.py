"""Scans of element-wise expressions and products become FusedRecurrence nodes."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import fused_recurrence
from onnxopt.loops import loops_of
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.rules import Refusal


@register_pass
class FuseRecurrences(Pass):
    """Turn Scans into FusedRecurrence nodes, which run all steps without a graph around each.

    Refused: carried values of several shapes or of other types than float32, steps with other ops than element-wise ones and products
    of carried values with constant square matrices, and sequences or outputs along other axes than the first.
    """

    name = "fuse_recurrences"
    phase = "fuse"

    def rule_names(self) -> list[str]:
        return [fused_recurrence.RULE]

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for loop in loops_of(ctx):
            if not loop.is_scan:
                continue
            built = fused_recurrence.build(loop, ctx)
            if isinstance(built, Refusal):
                ctx.log.refused(fused_recurrence.RULE, loop.node, built, 1)
                continue
            readers = [user for value in loop.node.outputs for user, _ in value.uses()]
            if ctx.editor.apply(built):
                ctx.editor.remove_unused([*readers, loop.node])
                patches += 1
        return PassResult(patches > 0, patches)
