"""Slice, Concat, Split, Pad, Gather: what takes or adds nothing goes, chains become one node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.ir import dims, shape_rules
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op, pattern
from onnxopt.rewrite.rules import Match, Refusal, Rule, RuleSet, attribute, rule


def _first_input(_: Builder, m: Match) -> ir.Value:
    value = m.root.inputs[0]
    assert value is not None
    return value


def _unit_steps(m: Match) -> bool:
    rank = m.ctx.shapes.rank(m.root.inputs[0]) if m.root.inputs[0] is not None else None
    bounds = None if rank is None else shape_rules.slice_bounds(m.ctx.shapes, m.root, rank)
    return bounds is not None and all(step == 1 for _, _, _, step in bounds)


def _keeps_all(m: Match) -> bool:
    source = m.root.inputs[0]
    return source is not None and m.ctx.shapes.same_shape(source, m.output) is True


def _slices_all(m: Match) -> bool:
    return _keeps_all(m) and _unit_steps(m)


def _pads_nothing(m: Match) -> bool:
    pads = attribute(m.root, "pads") or ir.integers(ir.input_at(m.root, 1))
    return pads is not None and not any(pads)


def _splits_into_one(m: Match) -> bool:
    return len(m.root.outputs) == 1


@pattern
def _concat_of_split(p):  # type: ignore[no-untyped-def]
    return p.Concat(p.Split(p.any("x"), open_inputs=True, as_="split", shared=True), open_inputs=True)


@rule(_concat_of_split)
def drop_split_and_concat(_: Builder, m: Match) -> ir.Value | Refusal | None:
    """All parts of a Split, in order and along the same axis, are its input."""
    split, concat = m.node("split"), m.root
    rank = m.rank("x")
    if rank is None or tuple(concat.inputs) != tuple(split.outputs):
        return None
    if attribute(split, "axis", 0) % rank != attribute(concat, "axis", 0) % rank:
        return Refusal("they split and join along different axes", culprit=concat)
    return m["x"]


@rule(op("Concat"))
def merge_concats(b: Builder, m: Match) -> ir.Value | None:
    """A Concat inside a Concat along the same axis."""
    axis, rank = attribute(m.root, "axis", 0), m.ctx.shapes.rank(m.output)
    if rank is None:
        return None
    inputs: list[ir.Value | None] = []
    merged = False
    for value in m.root.inputs:
        inner = None if value is None else value.producer()
        alone = value is not None and ir.use_count(value) == 1 and not value.is_graph_output()
        if (
            inner is not None
            and inner.op_type == "Concat"
            and not inner.domain
            and alone
            and inner.graph is m.root.graph
            and attribute(inner, "axis", 0) % rank == axis % rank
        ):
            inputs.extend(inner.inputs)
            merged = True
            continue
        inputs.append(value)
    return b.op("Concat", inputs, {"axis": axis})[0] if merged else None


@rule(op("Concat"))
def drop_empty_parts(b: Builder, m: Match) -> ir.Value | None:
    """Parts of a Concat that hold no element."""
    rank, axis = m.ctx.shapes.rank(m.output), attribute(m.root, "axis", 0)
    if rank is None:
        return None
    kept = [value for value in m.root.inputs if not _is_empty(value, axis % rank, m)]
    if len(kept) == len(m.root.inputs) or not kept:
        return None
    return b.op("Concat", kept, {"axis": axis})[0]


def _is_empty(value: ir.Value | None, axis: int, m: Match) -> bool:
    shape = None if value is None else m.ctx.shapes.shape(value)
    return shape is not None and axis < len(shape) and shape[axis] == 0


@pattern
def _slice_of_slice(p, x):  # type: ignore[no-untyped-def]
    return p.Slice(p.Slice(x, open_inputs=True, as_="inner", shared=True), open_inputs=True)


@rule(_slice_of_slice)
def merge_slices(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """Two Slices along different axes are one."""
    rank = m.rank("x")
    if rank is None or m.ctx.opset < 10:
        return None
    inner = shape_rules.slice_bounds(m.ctx.shapes, m.node("inner"), rank)
    outer = shape_rules.slice_bounds(m.ctx.shapes, m.root, rank)
    if inner is None or outer is None:
        return Refusal("the bounds are not constant", culprit=m.root)
    both = [*inner, *outer]
    if len({axis for axis, *_ in both}) != len(both):
        return Refusal("both slice the same axis", culprit=m.root)
    if not all(isinstance(part, int) for bound in both for part in bound):
        return Refusal("the bounds are not constant", culprit=m.root)
    return b.Slice(m["x"], *_slice_inputs(b, both))


@rule(op("Slice"), benefit=2)
def drop_full_axes(b: Builder, m: Match) -> ir.Value | None:
    """Axes of a Slice of which it takes everything."""
    source = m.root.inputs[0]
    shape = None if source is None else m.ctx.shapes.shape(source)
    bounds = None if shape is None else shape_rules.slice_bounds(m.ctx.shapes, m.root, len(shape))
    if source is None or shape is None or bounds is None or m.ctx.opset < 10:
        return None
    kept = [bound for bound in bounds if not _takes_all(shape[bound[0]], *bound[1:])]
    if len(kept) == len(bounds) or not kept or not all(isinstance(part, int) for bound in kept for part in bound):
        return None
    return b.Slice(source, *_slice_inputs(b, kept))


def _takes_all(size: dims.Dim, start: dims.Dim, end: dims.Dim, step: int) -> bool:
    if start != 0 or step != 1 or not isinstance(end, int):
        return False
    return end >= shape_rules.OPEN_END or (isinstance(size, int) and end >= size)


def _slice_inputs(b: Builder, bounds: Sequence[tuple[int, dims.Dim, dims.Dim, int]]) -> list[ir.Value]:
    """Starts, ends, axes and steps as constants."""
    axes, starts, ends, steps = (
        b.constant(np.array(column, np.int64), "slice") for column in zip(*bounds, strict=True)
    )
    return [starts, ends, axes, steps]


@pattern
def _lookup(p, x):  # type: ignore[no-untyped-def]
    return p.Gather(x, p.const("index"))


@rule(_lookup)
def take_only_row(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """One index along a dim of size 1 takes all there is: the dim goes, or nothing changes."""
    index, shape = ir.integers(m["index"]), m.ctx.shapes.shape(m["x"])
    rank = m.ctx.shapes.rank(m["index"])
    if index is None or len(index) != 1 or not shape or rank is None or rank > 1:
        return None
    axis = attribute(m.root, "axis", 0) % len(shape)
    if shape[axis] != 1 or index[0] not in (0, -1):
        return Refusal("it has more than the one element", culprit=m["x"])
    return m["x"] if rank else b.squeeze(m["x"], axis)


RULES = RuleSet(
    [
        Rule("drop_full_slice", op("Slice"), _first_input, _slices_all),
        Rule("drop_empty_pad", op("Pad"), _first_input, _pads_nothing),
        Rule("drop_single_split", op("Split"), _first_input, _splits_into_one),
        drop_split_and_concat,
        merge_concats,
        drop_empty_parts,
        merge_slices,
        drop_full_axes,
        take_only_row,
    ]
)


@register_pass
class SimplifySlices(RulePass):
    """Remove Slices, Pads, Splits and Gathers that keep everything; merge Slices, Concats, and Splits that are joined again.

    Refused: bounds that are not constant, Slices of the same axis, Concats along different axes.
    """

    name = "simplify_slices"
    phase = "simplify"
    rules = RULES
