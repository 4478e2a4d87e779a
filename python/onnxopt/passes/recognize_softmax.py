"""Decomposed Softmax."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import pattern
from onnxopt.rewrite.permutations import constant_axes
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, attribute, rule

ANY_AXIS_OPSET = 13
"""Older Softmax works on all axes from one on as if they were one."""


@pattern
def _softmax(p, x):  # type: ignore[no-untyped-def]
    largest = p.ReduceMax(x, as_="largest", open_inputs=True)
    powers = p.Exp(p.Sub(x, largest))
    return p.Div(powers, p.ReduceSum(powers, as_="sum", open_inputs=True))


def _kept_axis(node: ir.Node, rank: int) -> int | None:
    """The only axis that a node reduces and keeps as a dim of 1."""
    axes = constant_axes(node, 1, rank)
    return axes[0] if axes is not None and len(axes) == 1 and attribute(node, "keepdims", 1) == 1 else None


@rule(_softmax)
def recognize_softmax(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """exp(x - max(x)) / sum(exp(x - max(x))) along one axis."""
    rank = m.rank("x")
    axes = None if rank is None else [_kept_axis(m.node(name), rank) for name in ("largest", "sum")]
    if axes is None or rank is None or axes[0] is None or axes[0] != axes[1]:
        return Refusal("the reductions are not along one and the same axis", culprit=m.root)
    if m.ctx.opset < ANY_AXIS_OPSET and axes[0] != rank - 1:
        return Refusal("before opset {} Softmax joins axes", ANY_AXIS_OPSET, culprit=m.root)
    return b.Softmax(m["x"], axis=axes[0])


@register_pass
class RecognizeSoftmax(RulePass):
    """Recognize Softmax written with ReduceMax, Sub, Exp, ReduceSum and Div.

    Refused: several axes, reductions along different axes, and the form without the largest element taken away, which overflows
    where Softmax does not.
    """

    name = "recognize_softmax"
    phase = "simplify"
    rules = RuleSet([recognize_softmax])
