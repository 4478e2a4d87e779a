"""Loops of element-wise expressions, products, reductions and moves of elements become FusedLoop nodes."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.fusions import fused_loop
from onnxopt.loops import loops_of
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.rules import Refusal

ON_DEVICES = Refusal("there is no kernel for CUDA devices")


@register_pass
class FuseLoops(Pass):
    """Turn Loops, whether a limit or a condition of their own ends them, and Scans into FusedLoop nodes, which run without a graph around each step.

    Refused: carried values whose rank may change or of other types than float32, int32, int64 and bool, steps with other ops than element-wise
    ones, products, reductions along neighbouring axes, Softmax, LayerNormalization, ArgMax, ArgMin, convolutions of one or two dims and those that
    move elements, large products and convolutions, slices whose bounds depend on other such slices or on what grows, and bodies that read their
    condition.
    """

    name = "fuse_loops"
    phase = "fuse"

    def rule_names(self) -> list[str]:
        return [fused_loop.RULE]

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for loop in loops_of(ctx):
            built = fused_loop.build(loop, ctx) if ctx.target.name == "cpu" else ON_DEVICES
            if isinstance(built, Refusal):
                ctx.log.refused(fused_loop.RULE, loop.node, built, 1)
            elif ctx.editor.apply(built):
                ctx.editor.remove_unused([loop.node])
                patches += 1
        return PassResult(patches > 0, patches)
