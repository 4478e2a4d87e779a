"""Which nodes are attention, and the FusedAttention node that stands for them.

The core is found from its second product: weights times values, weights by Softmax of scores, scores by a product of queries and keys, with
scale, masks and soft-cap between. Around the core, what only moves elements (heads split and merged, keys transposed or copied for heads that
share them) is taken into the layouts of the operands, and scales and rotary embeddings of queries and keys into the op.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from onnxopt import ir
from onnxopt.fusions import attention_axes as axes
from onnxopt.fusions import halves
from onnxopt.fusions.attention_axes import Labels, Placed
from onnxopt.fusions.attention_scores import (
    MOST_STEPS,
    Mask,
    Scores,
    Unfit,
    factor_of,
    float32,
    input_of,
    prepared,
    producer,
    trace,
)
from onnxopt.fusions.nodes import make_node
from onnxopt.fusions.requantization import is_qgemm
from onnxopt.fusions.rotary import Rotation, find_rotation
from onnxopt.ir import dims
from onnxopt.ir.dims import Dim
from onnxopt.ops import fused_attention as op
from onnxopt.ops import qattention
from onnxopt.ops.fused_elementwise import TWO_BYTES
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal, attribute

RULE = "fuse_attention"

FLOATS = TWO_BYTES | {ir.DataType.FLOAT, ir.DataType.DOUBLE}

BATCH: dict[int, Labels] = {3: ("x",), 4: ("b", "h")}
"""The axes of a product before its rows and columns, by its rank."""

LEAST_KEYS = 64
"""Of an attention that rounds its operands: with fewer, that takes longer than it saves."""


@dataclasses.dataclass(frozen=True, slots=True)
class Weights:
    """The weights that a product multiplies: where their Softmax makes them, the Where that clears NaNs after it, which operand they are, and
    the values from the Softmax to the product, among them that of a Cast that rounds them to the type of the product."""

    placed: Placed
    guard: ir.Node | None
    operand: int
    values: tuple[ir.Value, ...]

    @property
    def softmax(self) -> ir.Node:
        node = self.placed.value.producer()
        assert node is not None
        return node


@dataclasses.dataclass(frozen=True, slots=True)
class Operand:
    """Queries, keys or values: where they are, and what is done to them besides."""

    placed: Placed
    scale: float = 1.0
    rotation: Rotation | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """An attention in a graph: its description, queries, keys and values, masks, the rotation of queries or keys, and its result."""

    made: op.Attention
    operands: tuple[ir.Value, ...]
    masks: list[Mask]
    rotation: Rotation | None
    result: ir.Value


def build(node: ir.Node, ctx: Context) -> Patch | Refusal | None:
    """The patch that makes attention of the product `node` and what belongs to it; None where it does not multiply weights."""
    found = find(node, ctx)
    return _patch(node, found, ctx) if isinstance(found, Found) else found


def find(node: ir.Node, ctx: Context) -> Found | Refusal | None:
    """The attention whose last product is `node`; None where it does not multiply weights."""
    try:
        weights = find_weights(node, ctx)
        return None if weights is None else _find(node, weights, ctx)
    except Unfit as problem:
        return problem.refusal


def find_weights(node: ir.Node, ctx: Context) -> Weights | None:
    """The weights that a product multiplies, None where neither operand is made by a Softmax and moved."""
    for index, value in enumerate(node.inputs[:2]):
        softmax = None if value is None else _softmax_of(value, ctx)
        if softmax is None or value is None:
            continue
        chain = axes.sources(_place(value, ("q", "t") if index == 0 else ("t", "q"), ctx), ctx)
        rounding = chain[-1].value.producer()
        if rounding is not None and rounding.op_type == "Cast":
            chain += axes.sources(chain[-1].moved(input_of(rounding, 0), chain[-1].labels, chain[-1].starts), ctx)
        last = chain[-1]
        guard = last.value.producer()
        ends = guard is softmax or (guard is not None and guard.op_type == "Where")
        if not ends or not _is_all(value, last, ctx):
            raise Unfit("the weights are reshaped", culprit=guard)
        made = softmax.outputs[0]
        values = tuple(one.value for one in chain)
        if guard is softmax:
            return Weights(last, None, index, values)
        return Weights(last.moved(made, last.labels, last.starts), guard, index, (*values, made))
    return None


def _is_all(value: ir.Value, source: Placed, ctx: Context) -> bool:
    """Whether a value has every element of what it was moved from, once."""
    shapes = [ctx.shapes.shape(one) for one in (value, source.value)]
    sizes = [None if shape is None else dims.product(shape) for shape in shapes]
    whole = all(start is None for start in source.starts)
    return whole and sizes[0] is not None and sizes[1] is not None and bool(ctx.shapes.equal(sizes[0], sizes[1]))


def _softmax_of(value: ir.Value, ctx: Context) -> ir.Node | None:
    """The Softmax that makes a value, but for what moves or rounds elements and a Where that clears NaNs."""
    node = value.producer()
    for _ in range(MOST_STEPS):
        if node is None or node.domain:
            return None
        if node.op_type == "Where":
            node = _guarded(node)
            return node if node is not None and node.op_type == "Softmax" and not node.domain else None
        if node.op_type == "Softmax":
            return node
        rounds = node.op_type == "Cast" and ctx.shapes.dtype(input_of(node, 0)) in FLOATS
        node = producer(node.inputs[0]) if rounds or node.op_type in axes.BACKWARD else None
    return None


def _guarded(where: ir.Node) -> ir.Node | None:
    """The producer of x in Where(IsNaN(x), 0, x)."""
    condition, zero, value = where.inputs
    test = producer(condition)
    if test is None or test.op_type != "IsNaN" or test.inputs[0] is not value or ir.scalar(zero) != 0.0:
        return None
    return producer(value)


def _find(node: ir.Node, weights: Weights, ctx: Context) -> Found:
    dtype = ctx.shapes.dtype(node.outputs[0])
    _check_weights(weights, dtype, ctx)
    start = weights.placed.moved(input_of(weights.softmax, 0), weights.placed.labels, weights.placed.starts)
    scores = trace(start, ctx)
    product = producer(scores.placed.value)
    assert product is not None
    if scores.placed.labels[-2:] not in (("q", "t"), ("t", "q")):
        raise Unfit("the scores are moved", culprit=product)
    like = scores.placed.value
    left, right = (
        _place(input_of(product, 0), ("s", "d"), ctx, like),
        _place(input_of(product, 1), ("d", "s"), ctx, like),
    )
    of_q, of_k = (left, right) if scores.placed.labels[-1] == "t" else (right, left)
    q = operand(of_q, ctx)
    k = operand(of_k, ctx, q.rotation)
    rows = ("s", "d") if weights.operand == 0 else ("d", "s")
    values = _place(input_of(node, 1 - weights.operand), rows, ctx, input_of(node, weights.operand))
    v = unscaled_operand(values, ctx)
    y = result_of(_place(node.outputs[0], rows, ctx), ctx)
    check_types(dtype, scores, (q, k, v), ctx)
    return describe(scores, (q, k, v), y, dtype, guarded=weights.guard is not None, others=(start, scores.placed))


def result_of(placed: Placed, ctx: Context) -> Placed:
    """What a result becomes by moving elements."""
    return [one for one in axes.users(placed, ctx) if all(one.labels)][-1]


def check_types(dtype: ir.DataType | None, scores: Scores, operands: tuple[Operand, ...], ctx: Context) -> None:
    """Refuse tensors of numbers that are of another type than the result."""
    rotations = [one.rotation for one in operands if one.rotation is not None]
    values = [
        *(one.placed.value for one in operands),
        *(table for rotation in rotations for table in (rotation.cos, rotation.sin)),
        *(mask.value for mask in scores.masks if mask.kind == "add"),
    ]
    for value in values:
        if ctx.shapes.dtype(value) is not dtype:
            raise Unfit("'{}' is of another type than the result", value.name, culprit=value)


def _check_weights(weights: Weights, dtype: ir.DataType | None, ctx: Context) -> None:
    result = weights.softmax.outputs[0]
    if not halves.are_multiplied(ctx, dtype) or ctx.shapes.dtype(result) not in (dtype, ir.DataType.FLOAT):
        raise Unfit("the kernel does not compute {}", dtype, culprit=weights.softmax)
    rank = len(weights.placed.labels)
    axis = attribute(weights.softmax, "axis", -1 if ctx.opset >= 13 else 1)
    if weights.placed.labels[axis % rank] != "t" or (ctx.opset < 13 and axis % rank != rank - 1):
        raise Unfit("the Softmax is not over the keys", culprit=weights.softmax)
    for value in weights.values:
        uses = 2 if weights.guard is not None and value is result else 1
        if value.is_graph_output() or ir.use_count(value) > uses:
            raise Unfit("others use the weights '{}' too", value.name, culprit=value)


def _place(value: ir.Value, rows: Labels, ctx: Context, like: ir.Value | None = None) -> Placed:
    """An operand or result of a product; `like` is the result whose batches and heads it should have, but for heads that all share."""
    shape = ctx.shapes.shape(value)
    if shape is None or len(shape) not in BATCH:
        raise Unfit("'{}' of shape {} has no batches and heads", value.name, shape, culprit=value)
    outer = BATCH[len(shape)]
    result = None if like is None else ctx.shapes.shape(like)
    if result is not None and len(result) == len(shape) + 1 and result[0] == 1:
        outer, result = BATCH[len(result)][1:], result[1:]
    placed = axes.place(value, (*outer, *rows), ctx)
    assert placed is not None
    if result is None:
        return placed
    if len(result) != len(shape):
        raise Unfit("'{}' is broadcast", value.name, culprit=value)
    for letter, dim, wanted in zip(outer, shape, result, strict=False):
        if letter == "h" and dim == 1 and wanted != 1:
            placed = placed.without("h")
        elif not ctx.shapes.equal(dim, wanted):
            raise Unfit("'{}' of shape {} is broadcast", value.name, shape, culprit=value)
    return placed


# --- operands


def operand(placed: Placed, ctx: Context, like: Rotation | None = None) -> Operand:
    """Where queries or keys are, before scale and rotation. Keys are rotated `like` queries."""
    scale = 1.0
    rotation: Rotation | None = None
    while True:
        chain = axes.sources(placed, ctx)
        last = chain[-1]
        node = last.value.producer()
        factor, index = factor_of(node)
        if node is not None and factor is not None and ctx.shapes.same_shape(node.inputs[index], last.value):  # type: ignore[arg-type]
            scale *= factor
            placed = last.moved(input_of(node, index), last.labels, last.starts)
            continue
        turned = None if rotation is not None else next(filter(None, (find_rotation(one, ctx) for one in chain)), None)
        if turned is None or (like is not None and not like.agrees(turned[1], ctx)):
            return Operand(_furthest(chain), scale, rotation)
        placed, rotation = turned


def unscaled_operand(placed: Placed, ctx: Context) -> Operand:
    """Where values are."""
    return Operand(_furthest(axes.sources(placed, ctx)))


def _furthest(chain: list[Placed]) -> Placed:
    """The last value of which the op can tell where its axes are: in a dim there is at most one of unknown size."""
    fit = [one for one in chain if "g" not in "".join(one.labels) and all(map(_is_clear, one.labels))]
    return fit[-1]


def _is_clear(letters: str) -> bool:
    return sum(letter not in "hkd" for letter in letters) <= 1


# --- the node


def describe(
    scores: Scores,
    operands: tuple[Operand, Operand, Operand],
    y: Placed,
    dtype: ir.DataType | None,
    *,
    guarded: bool,
    others: Sequence[Placed] = (),
) -> Found:
    """The attention of these scores and operands; `others` say more about its sizes, and with `guarded` weights that are NaN become 0."""
    q, k, _ = operands
    places = [one.placed for one in operands]
    heads = _agreed({one.sizes["h"] for one in (*places, y, *others) if "h" in one.sizes} or {1}, y.value)
    q_layout, k_layout, v_layout, y_layout = (
        one.renamed(x="b" if heads == 1 else "bh", k="h", q="s").layout for one in (*places, y)
    )
    rotation = q.rotation or k.rotation
    rotary = ("q" if q.rotation else "") + ("k" if k.rotation else "")
    if len(scores.masks) > op.MOST_MASKS:
        raise Unfit("it has {} masks", len(scores.masks), culprit=y.value)
    made = op.Attention(
        q=q_layout,
        k=k_layout,
        v=v_layout,
        y=y_layout,
        heads=heads,
        kv_heads=_agreed({_kv_heads(one, heads) for one in places[1:]}, y.value),
        head_size=_agreed({one.sizes["d"] for one in places[:2]}, y.value),
        value_size=_agreed({places[2].sizes["d"]}, y.value),
        scale=float32(scores.scale * q.scale * k.scale),
        softcap=float32(scores.softcap),
        masks=tuple(mask.kind for mask in scores.masks),
        nan_to_zero=guarded,
        rotary=rotary,
        interleaved=rotation is not None and rotation.interleaved,
        width=rotation.width if rotation else 0,
        dtype=dtype or ir.DataType.FLOAT,
    )
    return Found(made, tuple(one.value for one in places), scores.masks, rotation, y.value)


def _agreed(sizes: set[Dim], culprit: ir.Value) -> int:
    """The one size that all have."""
    (size, *others) = sizes
    if others or not isinstance(size, int) or size < 1:
        raise Unfit("the number of heads and their size are not known: {}", ", ".join(map(str, sizes)), culprit=culprit)
    return size


def _kv_heads(placed: Placed, heads: int) -> Dim:
    letters = "".join(placed.labels)
    if "k" in letters:
        return placed.sizes["k"]
    return heads if "h" in letters or "x" in letters else 1


def _multiplies_bytes(found: Found, ctx: Context) -> bool:
    """Whether the products round their operands: where quantization was asked for, products of integers make queries, keys and values, and
    there are enough keys."""
    if not ctx.options.quantize_products or ctx.target.name != "cpu":
        return False
    makers = [value.producer() for value in found.operands]
    keys = ctx.shapes.shape(found.operands[1])
    assert keys is not None
    rows = keys[found.made.k.split(" ").index("s")] if "s" in found.made.k.split(" ") else None
    few = isinstance(rows, int) and rows < LEAST_KEYS
    return not few and all(maker is not None and is_qgemm(maker) for maker in makers)


def _patch(node: ir.Node, found: Found, ctx: Context) -> Patch:
    anchor = found.result.producer()
    assert anchor is not None
    builder = Builder(ctx, anchor)
    return builder.patch(RULE, {found.result: write(builder, node, found)})


def write(builder: Builder, node: ir.Node, found: Found) -> ir.Value:
    """The result of the node for an attention whose last product, or op, is `node`."""
    made, spec, ctx = found.made, op.SPEC, builder.ctx
    if _multiplies_bytes(found, ctx):
        made, spec = qattention.QAttention(**dataclasses.asdict(made)), qattention.SPEC
    inputs = [*found.operands, *(prepared(builder, mask, made.heads) for mask in found.masks)]
    if found.rotation is not None:
        inputs += found.rotation.tables(builder)
    old = found.result
    return make_node(builder, spec, made, inputs, made.attributes(), old, ctx.shapes.dtype(old), node.name)
