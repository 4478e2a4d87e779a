"""The scores of attention: what is between the product of queries and keys and the Softmax, which is scale, masks and soft-cap."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.fusions import attention_axes as axes
from onnxopt.fusions.attention_axes import Labels, Placed
from onnxopt.ir.dims import Dim, is_plain
from onnxopt.ops.fused_elementwise import TWO_BYTES
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal

_PLACES = {"b": 0, "x": 0, "h": 1, "k": 1, "g": 1, "q": 2, "t": 3}
"""The order of the axes of scores."""

SINGLE = ("b", "h", "q", "t")
JOINED = ("x", "bh")
"""Labels of dims that have both batches and heads."""

MOST_STEPS = 16
"""Nodes between a product and its Softmax that are looked at."""


class Unfit(Exception):
    """Why nodes that look like attention are not fused."""

    def __init__(self, template: str, *args: object, culprit: ir.Node | ir.Value | None = None) -> None:
        super().__init__(template)
        self.refusal = Refusal(template, *args, culprit=culprit)


@dataclasses.dataclass(frozen=True, slots=True)
class Mask:
    """What is done to the scores by `value`, its axes of size 1 that stand for no axis of the scores, by what numbers that are added are
    multiplied first, whether the first axis has both batches and heads, and the order of its axes where it is another one."""

    kind: str
    value: ir.Value
    empty: tuple[int, ...] = ()
    factor: float = 1.0
    joined: bool = False
    order: tuple[int, ...] = ()


@dataclasses.dataclass(slots=True)
class Scores:
    """What is between the product of queries and keys and the Softmax."""

    placed: Placed
    scale: float = 1.0
    softcap: float = 0.0
    masks: list[Mask] = dataclasses.field(default_factory=list)
    scaled: ir.Node | None = None


def producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def input_of(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise Unfit("it has no input {}", index, culprit=node)
    return value


def float32(number: float) -> float:
    """The number as an attribute holds it."""
    return float(np.float32(number))


# --- from the Softmax to the product


def trace(start: Placed, ctx: Context) -> Scores:
    """Walk from the Softmax to the product of queries and keys."""
    scores = Scores(start)
    for _ in range(MOST_STEPS):
        value = scores.placed.value
        node = value.producer()
        if node is None or node.domain != "":
            raise Unfit("the scores '{}' are not made by a product", value.name, culprit=value)
        if value.is_graph_output() or ir.use_count(value) > 1:
            raise Unfit("others use the scores '{}' too", value.name, culprit=value)
        if node.op_type == "MatMul":
            return scores
        step = SCORE_STEPS.get(node.op_type)
        if step is None:
            raise Unfit("{} is between the product and the Softmax", node.op_type, culprit=node)
        step(scores, node, ctx)
    raise Unfit("too much is between the product and the Softmax", culprit=start.value)


def _add(scores: Scores, node: ir.Node, ctx: Context) -> None:
    index = 1 if _is_product(node.inputs[1], ctx) and not _is_product(node.inputs[0], ctx) else 0
    _continue(scores, input_of(node, index), ctx)
    scores.masks.insert(0, _mask("add", input_of(node, 1 - index), scores, ctx, scores.scale))


def _subtract(scores: Scores, node: ir.Node, ctx: Context) -> None:
    _continue(scores, input_of(node, 0), ctx)
    scores.masks.insert(0, _mask("add", input_of(node, 1), scores, ctx, -scores.scale))


def _where(scores: Scores, node: ir.Node, ctx: Context) -> None:
    fills = ir.scalar(node.inputs[1]), ir.scalar(node.inputs[2])
    if (fills[0] is None) == (fills[1] is None):
        raise Unfit("it replaces scores by no constant", culprit=node)
    kind, index, fill = ("keep", 1, fills[1]) if fills[0] is None else ("hide", 2, fills[0])
    assert fill is not None
    _continue(scores, input_of(node, index), ctx)
    scores.masks.insert(0, _mask(f"{kind}={float32(float(fill) * scores.scale)!r}", input_of(node, 0), scores, ctx))


def _mask(kind: str, mask: ir.Value, scores: Scores, ctx: Context, factor: float = 1.0) -> Mask:
    """A mask that broadcasts to the scores as they are where it applies; what is scaled after it is scaled with it."""
    dims = ctx.shapes.shape(scores.placed.value)
    if scores.softcap:
        raise Unfit("scores are capped after the mask '{}'", mask.name, culprit=scores.scaled)
    return fitting(kind, mask, scores.placed.labels, dims, ctx, factor)


def fitting(
    kind: str, mask: ir.Value, labels: Labels, dims: Sequence[Dim] | None, ctx: Context, factor: float = 1.0
) -> Mask:
    """A mask that broadcasts to scores whose dims hold these axes."""
    shape = ctx.shapes.shape(mask)
    if shape is None or dims is None or len(shape) > len(labels):
        raise Unfit("the shape of the mask '{}' does not fit the scores", mask.name, culprit=mask)
    order = _order(labels)
    if order and (len(shape) != len(labels) or not all(labels)):
        raise Unfit("scores to which the mask '{}' is applied are moved", mask.name, culprit=mask)
    first = len(labels) - len(shape)
    for letter, dim, size in zip(labels[first:], shape, dims[first:], strict=True):
        # Of batches and heads in one dim, the heads are taken apart: a size that may be 1 does not do.
        same = (
            bool(ctx.shapes.equal(dim, size)) if letter in JOINED else letter in SINGLE and _may_equal(dim, size, ctx)
        )
        if dim != 1 and not same:
            raise Unfit("the mask '{}' of shape {} does not fit the scores", mask.name, shape, culprit=mask)
    empty = tuple(axis for axis, letters in enumerate(labels[first:]) if not letters)
    joined = first == 0 and labels[0] in JOINED and shape[0] != 1
    return Mask(kind, mask, empty, factor, joined, order)


def _order(labels: Labels) -> tuple[int, ...]:
    """How dims with these axes are transposed into the order of the op's; nothing where they are in it."""
    places = {axis: _PLACES.get(letters[:1], 0) for axis, letters in enumerate(labels) if letters}
    order = tuple(sorted(places, key=lambda axis: places[axis]))
    return () if order == tuple(places) else order


def _may_equal(dim: Dim, other: Dim, ctx: Context) -> bool:
    """Whether two dims are proved equal, or one of them is computed, so that it cannot be told."""
    return bool(ctx.shapes.equal(dim, other)) or not (is_plain(dim) and is_plain(other))


def _scale(scores: Scores, node: ir.Node, ctx: Context) -> None:
    factor, index = factor_of(node)
    if factor is None:
        raise Unfit("the scores are scaled by no constant", culprit=node)
    value = input_of(node, index)
    tanh = value.producer()
    if tanh is not None and tanh.op_type == "Tanh" and scores.scaled is None and ir.use_count(value) == 1:
        scores.softcap, value = factor, input_of(tanh, 0)
    scores.scaled = node
    scores.scale *= factor
    _continue(scores, value, ctx)


def factor_of(node: ir.Node | None) -> tuple[float | None, int]:
    """The number that a Mul or Div scales by, None where there is none, and which input it scales."""
    if node is None or node.domain != "" or node.op_type not in ("Mul", "Div"):
        return None, 0
    for index in (0, 1) if node.op_type == "Mul" else (0,):
        number = ir.scalar(node.inputs[1 - index])
        if number is not None and number != 0:
            return (1.0 / float(number) if node.op_type == "Div" else float(number)), index
    return None, 0


def _cast(scores: Scores, node: ir.Node, ctx: Context) -> None:
    """Scores of two bytes, which the kernel never rounds to them."""
    value = input_of(node, 0)
    if ctx.shapes.dtype(value) not in TWO_BYTES or ctx.shapes.dtype(node.outputs[0]) is not ir.DataType.FLOAT:
        raise Unfit("a Cast is between the product and the Softmax", culprit=node)
    _continue(scores, value, ctx)


def _reshape(scores: Scores, node: ir.Node, ctx: Context) -> None:
    source = input_of(node, 0)
    shape = ctx.shapes.shape(source)
    regrouped = None if shape is None else axes.regroup(scores.placed, source, shape, ctx)
    if regrouped is None:
        raise Unfit("the scores are reshaped to {}", shape, culprit=node)
    scores.placed = regrouped


def _move(scores: Scores, node: ir.Node, ctx: Context) -> None:
    before = axes.BACKWARD[node.op_type](scores.placed, node, ctx)
    if before is None:
        raise Unfit("the scores are moved", culprit=node)
    scores.placed = before


def _continue(scores: Scores, value: ir.Value, ctx: Context) -> None:
    """What is inside an element-wise op: scores of the same shape."""
    inner, outer = ctx.shapes.shape(value), ctx.shapes.shape(scores.placed.value)
    fit = inner is not None and outer is not None and len(inner) == len(outer)
    if not fit or not all(_may_equal(a, b, ctx) for a, b in zip(inner, outer, strict=True)):  # type: ignore[arg-type]
        raise Unfit("the scores '{}' are broadcast", value.name, culprit=value)
    scores.placed = scores.placed.moved(value, scores.placed.labels, scores.placed.starts)


def _is_product(value: ir.Value | None, ctx: Context) -> bool:
    """Whether a value is a product but for what may stand between it and the Softmax."""
    for _ in range(MOST_STEPS):
        node = producer(value)
        if node is None or node.op_type not in ("MatMul", "Tanh", *SCORE_STEPS) or ir.use_count(node.outputs[0]) > 1:
            return False
        if node.op_type == "MatMul":
            return True
        if node.op_type == "Add" and _is_product(node.inputs[1], ctx):
            return True
        index = 0 if node.op_type == "Sub" else factor_of(node)[1]
        if node.op_type == "Where":
            index = 1 if ir.scalar(node.inputs[1]) is None else 2
        value = node.inputs[index]
    return False


SCORE_STEPS = {
    "Add": _add,
    "Sub": _subtract,
    "Where": _where,
    "Mul": _scale,
    "Div": _scale,
    "Cast": _cast,
    "Reshape": _reshape,
    "Transpose": _move,
    "Squeeze": _move,
    "Unsqueeze": _move,
}


# --- masks as the op reads them


def prepared(b: Builder, mask: Mask, heads: int) -> ir.Value:
    """A mask as the op reads it, which broadcasts to [batches, heads, rows, keys]."""
    value = mask.value
    if mask.factor == -1.0:
        value = b.shared("Neg", [value])
    elif mask.factor != 1.0:
        dtype = b.ctx.shapes.dtype(value)
        assert dtype is not None
        value = b.shared("Mul", [value, b.constant(np.array(mask.factor, dtype.numpy()), "scale")])
    if mask.order:
        value = b.shared("Transpose", [value], {"perm": mask.order})
    if mask.empty:
        value = b.squeeze(value, *mask.empty)
    if not mask.joined:
        return value
    if heads == 1:
        return b.unsqueeze(value, 1)
    return b.Reshape(b.unsqueeze(value, 0), b.constant(np.array([-1, heads, 0, 0], np.int64), "apart"))
