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

LOWEST = float(np.finfo(np.float32).min)

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
    multiplied first, whether the first axis has both batches and heads, the order of its axes where it is another one, and whether numbers
    that are added are not to be below the lowest one."""

    kind: str
    value: ir.Value
    empty: tuple[int, ...] = ()
    factor: float = 1.0
    joined: bool = False
    order: tuple[int, ...] = ()
    limited: bool = False


@dataclasses.dataclass(slots=True)
class Scores:
    """What is between the product of queries and keys and the Softmax."""

    placed: Placed
    scale: float = 1.0
    softcap: float = 0.0
    masks: list[Mask] = dataclasses.field(default_factory=list)
    scaled: ir.Node | None = None
    limited: ir.Node | None = None


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
    if scores.limited is not None:
        raise Unfit("scores are limited after the mask '{}'", mask.name, culprit=scores.limited)
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
        return _hide(scores, node, ctx)
    value = input_of(node, index)
    tanh = value.producer()
    if tanh is not None and tanh.op_type == "Tanh" and scores.scaled is None and ir.use_count(value) == 1:
        scores.softcap, value = factor, input_of(tanh, 0)
    scores.scaled = node
    scores.scale *= factor
    _continue(scores, value, ctx)
    return None


def _hide(scores: Scores, node: ir.Node, ctx: Context) -> None:
    """Scores times b plus c (1 - b), where b has zeros and ones: scores become c where b is 0."""
    index = 1 if _is_product(node.inputs[1], ctx) and not _is_product(node.inputs[0], ctx) else 0
    shown, (add, _), outer = input_of(node, 1 - index), next(iter(node.outputs[0].uses())), scores.masks[:1]
    is_added = (
        node.op_type == "Mul" and add.op_type == "Add" and [one.value for one in outer if one.value in add.inputs]
    )
    fill = _fill(shown, outer[0].value) if is_added else None
    if fill is None:
        raise Unfit("the scores are scaled by no constant", culprit=node)
    _continue(scores, input_of(node, index), ctx)
    scores.masks[0] = _mask(f"keep={float32(fill * scores.scale)!r}", shown, scores, ctx)


def _fill(shown: ir.Value, added: ir.Value) -> float | None:
    """The number c for which `added` is c (1 - shown), if `shown` has zeros and ones alone."""
    numbers = _constant_behind_slices(shown)
    if numbers is None or not np.isin(numbers, (0, 1)).all():
        return None
    maker, tensor = producer(added), ir.constant(added)
    if tensor is None:
        factor, index = factor_of(maker)
        one = None if maker is None or factor is None else producer(maker.inputs[index])
        is_rest = one is not None and one.op_type == "Sub" and one.inputs[1] is shown and ir.scalar(one.inputs[0]) == 1
        return factor if is_rest else None
    rest = np.asarray(tensor.numpy())
    fills = np.unique(rest[numbers == 0]) if rest.shape == numbers.shape else np.empty(0)
    return float(fills[0]) if fills.size == 1 and not rest[numbers == 1].any() else None


def _constant_behind_slices(value: ir.Value | None) -> np.ndarray | None:
    """Numbers of which a value has some."""
    while (node := producer(value)) is not None and node.op_type == "Slice" and not node.domain:
        value = node.inputs[0]
    tensor = None if value is None else ir.constant(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def _limit(scores: Scores, node: ir.Node, ctx: Context) -> None:
    """The maximum of scores + mask and the lowest number is scores + the maximum of the mask and that number: what is added to it is rounded
    away, unless scores are nearly as large or infinite."""
    numbers = [ir.scalar(value) for value in node.inputs]
    lowest = [index for index, number in enumerate(numbers) if number is not None and number <= LOWEST]
    if len(numbers) != 2 or len(lowest) != 1 or ctx.shapes.dtype(node.outputs[0]) is not ir.DataType.FLOAT:
        raise Unfit("scores are limited from below", culprit=node)
    value = input_of(node, 1 - lowest[0])
    add = producer(value)
    _continue(scores, value, ctx)
    if add is not None and add.op_type == "Add" and not add.domain and ir.use_count(value) == 1:
        _add(scores, add, ctx)
        scores.masks[0] = dataclasses.replace(scores.masks[0], limited=not _is_above(scores.masks[0].value))
    scores.limited = node


def _is_above(mask: ir.Value) -> bool:
    """Whether the numbers of a mask are constants that are not below the lowest one."""
    tensor = ir.constant(mask)
    return tensor is not None and bool((np.asarray(tensor.numpy()) >= LOWEST).all())


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
        is_pair = node.op_type == "Add" or (node.op_type == "Mul" and factor_of(node)[0] is None)
        if is_pair and _is_product(node.inputs[1], ctx):
            return True
        index = 0 if node.op_type == "Sub" else factor_of(node)[1]
        if node.op_type == "Where":
            index = 1 if ir.scalar(node.inputs[1]) is None else 2
        if node.op_type == "Max":
            index = 0 if ir.scalar(node.inputs[0]) is None else 1
        value = node.inputs[index]
    return False


SCORE_STEPS = {
    "Add": _add,
    "Sub": _subtract,
    "Where": _where,
    "Max": _limit,
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
    if mask.kind.startswith(("keep", "hide")):
        value = _as_booleans(b, value)
    if mask.limited:
        value = b.shared("Max", [value, b.constant(np.array(LOWEST, np.float32), "lowest")])
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


def _as_booleans(b: Builder, value: ir.Value) -> ir.Value:
    if b.ctx.shapes.dtype(value) is ir.DataType.BOOL:
        return value
    tensor = ir.constant(value)
    if tensor is not None:
        return b.constant(np.asarray(tensor.numpy()).astype(bool), "mask")
    return b.shared("Cast", [value], {"to": ir.DataType.BOOL.value})
