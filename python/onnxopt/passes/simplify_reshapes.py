"""Reshape, Squeeze, Unsqueeze and Flatten: what changes nothing goes, chains become one node."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.ir import dims
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op, pattern
from onnxopt.rewrite.rules import Match, Refusal, Rule, RuleSet, attribute, rule

VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
"""Ops that only give the same elements another shape."""


def target_of(value: ir.Value, source: ir.Value, m: Match) -> list[int] | None:
    """A constant Reshape target that makes the shape of `value` out of `source`: dims copied with 0, at most one -1."""
    shape, origin = m.ctx.shapes.shape(value), m.ctx.shapes.shape(source)
    if shape is None:
        return None
    target: list[int] = []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            if dim == 0:
                return None
            target.append(dim)
        elif origin is not None and axis < len(origin) and origin[axis] == dim and not dims.is_fresh(dim):
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def _same_shape(m: Match) -> bool:
    source = m.root.inputs[0]
    return source is not None and m.ctx.shapes.same_shape(source, m.output) is True


def _first_input(_: Builder, m: Match) -> ir.Value:
    value = m.root.inputs[0]
    assert value is not None
    return value


@pattern
def _view_of_view(p, x):  # type: ignore[no-untyped-def]
    return p.op(VIEWS, p.op(VIEWS, x, as_="inner", open_inputs=True, shared=True), open_inputs=True)


def _same_as_source(m: Match) -> bool:
    return m.ctx.shapes.same_shape(m["x"], m.output) is True


@rule(_view_of_view, where=_same_as_source, benefit=3, name="drop_inverse_views")
def drop_inverse_views(_: Builder, m: Match) -> ir.Value:
    """Two views of which the second restores the shape are none."""
    return m["x"]


@rule(_view_of_view, benefit=2)
def merge_views(b: Builder, m: Match) -> ir.Value | Refusal:
    """Two views in a row are one Reshape."""
    target = target_of(m.output, m["x"], m)
    if target is None:
        return Refusal("the shape of '{}' has no constant target", m.output.name, culprit=m.root)
    if m.root.op_type == m.node("inner").op_type == "Unsqueeze" and m.rank("x") == 0 and not target:
        return Refusal("it is a scalar", culprit=m.root)
    return b.Reshape(m["x"], b.constant(np.array(target, np.int64), "shape"))


def _normal_reshape(m: Match) -> bool:
    """A Reshape whose constant target names a symbolic dim only by -1 next to plain numbers cannot be made simpler."""
    return attribute(m.root, "allowzero", 0) == 1 and ir.integers(m.root.inputs[1]) is not None


@rule(op("Reshape"), where=_normal_reshape)
def drop_allowzero(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """`allowzero` without a zero in the target means nothing."""
    target = ir.integers(m.root.inputs[1])
    if target is None or 0 in target:
        return None
    return b.Reshape(m.root.inputs[0], m.root.inputs[1])


@register_pass
class SimplifyReshapes(RulePass):
    """Remove Reshapes, Squeezes, Unsqueezes and Flattens that keep the shape, and merge chains of them into one Reshape.

    Refused: chains whose final shape cannot be written as a constant target with copied dims and one -1.
    """

    name = "simplify_reshapes"
    phase = "simplify"
    rules = RuleSet(
        [
            Rule("drop_view_to_own_shape", op(*VIEWS), _first_input, _same_shape, benefit=4),
            drop_inverse_views,
            merge_views,
            drop_allowzero,
        ]
    )
