"""Chains that only move rows become one Gather."""

from __future__ import annotations

import math

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal, attribute

RULE = "gather_moved_rows"

COPIES = frozenset({"Concat", "Slice", "Split", "Transpose"})
MOVES = COPIES | {"Reshape", "Squeeze", "Unsqueeze", "Flatten"}

LEAST_COPIES = 2
"""A single copy is what a Gather costs."""

LEAST_ROW = 8
"""Elements of a row from which on copying it costs more than finding it."""

MOST_ELEMENTS = 1 << 22
"""Elements whose places are followed one by one."""


@register_pass
class GatherMovedRows(Pass):
    """Turn a chain of Transpose, Split, Concat, Slice and Reshape that only moves rows of a tensor into one Gather of its rows.

    So do the window partition and cyclic shift of a Swin transformer and its patch merging. Refused: chains that copy only once, sizes that
    are not known, parts that others read too, and chains that move less than rows.
    """

    name = RULE
    phase = "fuse"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        ends = [node for node in model.graph if _ends_chain(node)]
        done = [self._gather(node, ctx) for node in ends]
        return PassResult(any(done), sum(done))

    def _gather(self, end: ir.Node, ctx: Context) -> bool:
        built = None if end.graph is None else build(end, ctx)
        return ctx.editor.try_built(RULE, end, built, 2)


def _moves(node: ir.Node | None) -> bool:
    return node is not None and node.op_type in MOVES and node.domain == ""


def _ends_chain(node: ir.Node) -> bool:
    if not _moves(node) or len(node.outputs) != 1:
        return False
    result = node.outputs[0]
    return result.is_graph_output() or any(not _moves(user) for user, _ in result.uses())


def _moved(node: ir.Node) -> list[ir.Value]:
    """The inputs whose elements a node moves."""
    inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return [value for value in inputs if value is not None]


def build(end: ir.Node, ctx: Context) -> Patch | Refusal | None:
    """The patch that gathers what the chain up to `end` moves; None where there are too few copies."""
    nodes: dict[ir.Node, None] = {}
    sources: dict[ir.Value, None] = {}
    stack = [end]
    while stack:
        node = stack.pop()
        if node in nodes:
            continue
        nodes[node] = None
        for value in _moved(node):
            producer = value.producer()
            if producer is not None and _moves(producer):
                stack.append(producer)
            else:
                sources[value] = None
    if sum(node.op_type in COPIES for node in nodes) < LEAST_COPIES:
        return None
    if len(sources) != 1:
        return Refusal("it joins {} tensors", len(sources), culprit=end)
    (source,) = sources
    for node in nodes:
        for value in node.outputs if node is not end else ():
            if value.is_graph_output() or any(user not in nodes for user, _ in value.uses()):
                return Refusal("others read '{}' too", value.name, culprit=value)
    return _gather(source, end, ctx)


def _gather(source: ir.Value, end: ir.Node, ctx: Context) -> Patch | Refusal:
    shape, result = ctx.shapes.static_shape(source), ctx.shapes.static_shape(end.outputs[0])
    if shape is None or result is None or not 0 < math.prod(shape) <= MOST_ELEMENTS:
        return Refusal("the shape of '{}' is not known, or too large", source.name, culprit=source)
    width = shape[-1] if shape else 0
    if width < LEAST_ROW:
        return Refusal("rows of {} elements are too short", width, culprit=source)
    places = {source: np.arange(math.prod(shape), dtype=np.int32).reshape(shape)}
    found = _follow(end.outputs[0], places, ctx)
    if found is None or found.size == 0 or found.size % width != 0:
        return Refusal("where its elements go is not known", culprit=end)
    rows = found.reshape(-1, width)
    if (rows[:, 0] % width != 0).any() or (rows != rows[:, :1] + np.arange(width, dtype=np.int32)).any():
        return Refusal("it moves less than rows", culprit=end)
    b = Builder(ctx, end)
    flat = b.Reshape(source, b.constant(np.array([-1, width], np.int64), "shape"))
    taken = b.Gather(flat, b.constant(rows[:, 0].astype(np.int64) // width, "rows"), axis=0)
    made = b.Reshape(taken, b.constant(np.array(result, np.int64), "shape"))
    return b.patch(RULE, {end.outputs[0]: made})


def _follow(value: ir.Value, places: dict[ir.Value, np.ndarray], ctx: Context) -> np.ndarray | None:
    """Where the elements of a value come from."""
    if value in places:
        return places[value]
    node, shape = value.producer(), ctx.shapes.static_shape(value)
    if node is None or shape is None:
        return None
    parts = [_follow(one, places, ctx) for one in _moved(node)]
    known = [one for one in parts if one is not None]
    if len(known) != len(parts):
        return None
    found = _move(node, value, known, shape, ctx)
    if found is not None and found.shape == shape:
        places[value] = found
        return found
    return None


def _move(
    node: ir.Node, value: ir.Value, parts: list[np.ndarray], shape: tuple[int, ...], ctx: Context
) -> np.ndarray | None:
    first = parts[0]
    if node.op_type == "Transpose":
        return first.transpose(attribute(node, "perm", tuple(reversed(range(first.ndim)))))
    if node.op_type == "Concat":
        return np.concatenate(parts, attribute(node, "axis"))
    if node.op_type == "Split":
        axis = attribute(node, "axis", 0) % first.ndim
        sizes = [ctx.shapes.static_shape(output) for output in node.outputs]
        before = sizes[: value.index()]
        if None in before:
            return None
        start = sum(one[axis] for one in before if one is not None)
        return first.take(range(start, start + shape[axis]), axis)
    if node.op_type == "Slice":
        return _slice(node, first, ctx)
    return first.reshape(shape) if first.size == math.prod(shape) else None


def _slice(node: ir.Node, grid: np.ndarray, ctx: Context) -> np.ndarray | None:
    given = [ctx.shapes.integers(value) for value in node.inputs[1:]]
    if len(given) < 2 or None in given:
        return None
    starts, ends, *rest = (one for one in given if one is not None)
    axes = rest[0] if rest else tuple(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else (1,) * len(starts)
    if any(step < 1 for step in steps):
        return None
    cut = [slice(None)] * grid.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(start, end, step)
    return grid[tuple(cut)]
