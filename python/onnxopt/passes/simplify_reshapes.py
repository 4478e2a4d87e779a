"""Reshape, Squeeze, Unsqueeze and Flatten: what changes nothing goes, chains become one node, and so does what stacks tensors."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.ir import dims
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op, pattern
from onnxopt.rewrite.permutations import REDUCTIONS, constant_axes
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


def _viewed(value: ir.Value | None) -> ir.Value | None:
    """What a view reads."""
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and node.op_type in VIEWS and not node.domain else None


def _is_made_by(value: ir.Value, *ops: str) -> bool:
    node = value.producer()
    return node is not None and node.op_type in ops


def _unstacked(value: ir.Value | None, axis: int, m: Match) -> ir.Value | None:
    """What a view adds an axis of size 1 to, in front of an axis that there is. A chain of views becomes one first, or none; an If may
    yet turn out to give a view."""
    source = _viewed(value)
    if value is None or source is None or _is_made_by(source, *VIEWS, "If", "Identity"):
        return None
    before, after = m.ctx.shapes.shape(source), m.ctx.shapes.shape(value)
    if before is None or after is None or axis >= len(before):
        return None
    return source if after == (*before[:axis], 1, *before[axis:]) else None


def _only_here(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


@rule(op("Concat"))
def concat_instead_of_stack(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """Tensors that each get an axis of size 1 and are joined along it are joined along the next axis, and one Reshape makes the new one."""
    rank = m.ctx.shapes.rank(m.output)
    if rank is None or sum(map(_only_here, m.root.inputs)) < 2:
        return None
    axis = attribute(m.root, "axis", 0) % rank
    sources = [_unstacked(value, axis, m) for value in m.root.inputs]
    if sources[0] is None or None in sources:
        return None
    target = target_of(m.output, sources[0], m)
    if target is None:
        return Refusal("the shape of '{}' has no constant target", m.output.name, culprit=m.root)
    return b.Reshape(b.Concat(*sources, axis=axis), b.constant(np.array(target, np.int64), "shape"))


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


@pattern
def _squeezed_reduction(p, x):  # type: ignore[no-untyped-def]
    return p.Squeeze(p.op(REDUCTIONS, x, p.optional("axes"), as_="reduction"), p.optional("squeezed"))


@rule(_squeezed_reduction)
def drop_reduced_dims(b: Builder, m: Match) -> tuple[ir.Value, ...] | Refusal | None:
    """A reduction whose dims go afterwards does not keep them."""
    reduction, rank = m.node("reduction"), m.ctx.shapes.rank(m["x"])
    if rank is None or attribute(reduction, "keepdims", 1) != 1:
        return None
    axes, gone = constant_axes(reduction, 1, rank), constant_axes(m.root, 1, rank)
    if not axes or gone is None or sorted(axes) != sorted(gone):
        return Refusal("other dims go than were reduced", culprit=reduction)
    return b.copy_of(reduction, keepdims=0)


@register_pass
class SimplifyReshapes(RulePass):
    """Remove Reshapes, Squeezes, Unsqueezes and Flattens that keep the shape, and merge chains of them into one Reshape, and those of
    tensors that are stacked; a Squeeze of what a reduction kept becomes part of it.

    Refused: chains whose final shape cannot be written as a constant target with copied dims and one -1.
    """

    name = "simplify_reshapes"
    phase = "simplify"
    rules = RuleSet(
        [
            Rule("drop_view_to_own_shape", op(*VIEWS), _first_input, _same_shape, benefit=4),
            drop_inverse_views,
            merge_views,
            concat_instead_of_stack,
            drop_allowzero,
            drop_reduced_dims,
        ]
    )
