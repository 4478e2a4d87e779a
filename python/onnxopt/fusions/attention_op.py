"""Which nodes of the standard op Attention become FusedAttention, and how: caches are joined before it, causal masks become tensors."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from onnxopt import ir
from onnxopt.fusions import fused_attention as fusion
from onnxopt.fusions import halves
from onnxopt.fusions.attention_axes import Placed
from onnxopt.fusions.attention_scores import Mask, Scores, Unfit, fitting
from onnxopt.ir.dims import Dim
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import Refusal, attribute

SHORT_MASK_OPSET = 24
"""From here on a mask may have fewer keys than there are: the rest is hidden."""

MASK, PAST_KEYS, PAST_VALUES, SIZES = 3, 4, 5, 6
"""Inputs."""

HIDDEN = "keep=-inf"

CausalMasks = dict[tuple[object, ...], ir.Value]
"""Masks that were made for attentions of the same sizes, by graph, rows, earlier keys and keys."""


def build(node: ir.Node, masks: CausalMasks, ctx: Context) -> Patch | Refusal:
    """The patch that makes FusedAttention of a node of the op. Rows that masks hide whole are zero, as those with NaNs are then."""
    try:
        return _Writer(node, masks, ctx).patch()
    except Unfit as problem:
        return problem.refusal


@dataclasses.dataclass(frozen=True, slots=True)
class _Keys:
    """Keys or values, those of the cache included, and the sizes of their rows: all, and those of the cache."""

    placed: Placed
    rows: Dim
    past: Dim


class _Writer:
    """One node and the patch for it."""

    def __init__(self, node: ir.Node, masks: CausalMasks, ctx: Context) -> None:
        self.node, self.masks, self.ctx = node, masks, ctx
        self.dtype = _checked_type(node, ctx)
        heads, self.kv_heads = (int(attribute(node, f"{one}_num_heads", 0)) for one in ("q", "kv"))
        self.q = _place(self._input(0), "h", heads, ctx)
        self.y = fusion.result_of(_place(node.outputs[0], "h", heads, ctx), ctx)
        anchor = self.y.value.producer()
        assert anchor is not None
        self.builder = Builder(ctx, anchor)

    def patch(self) -> Patch:
        k, v = self._keys(1, PAST_KEYS), self._keys(2, PAST_VALUES)
        q = fusion.operand(self.q, self.ctx)
        of_k, of_v = fusion.operand(k.placed, self.ctx, q.rotation), fusion.unscaled_operand(v.placed, self.ctx)
        width = self.q.sizes["d"]
        if not isinstance(width, int):
            raise Unfit("the size of its heads is not known", culprit=self.node)
        scale = float(attribute(self.node, "scale", 1 / math.sqrt(width)))
        scores = Scores(self.q, scale=scale, softcap=float(attribute(self.node, "softcap", 0.0)))
        given = self._given(k)
        causal = self._causal((q.placed, of_k.placed), k) if attribute(self.node, "is_causal", 0) else None
        scores.masks = [one for one in (given, causal) if one is not None]
        fusion.check_types(self.dtype, scores, (q, of_k, of_v), self.ctx)
        found = fusion.describe(scores, (q, of_k, of_v), self.y, self.dtype, guarded=given is not None)
        result = fusion.write(self.builder, self.node, found)
        presents = {
            old: new.placed.value
            for old, new in zip(self.node.outputs[1:3], (k, v), strict=False)
            if old.is_graph_output() or ir.use_count(old)
        }
        return self.builder.patch(fusion.RULE, {found.result: result, **presents})

    def _input(self, index: int) -> ir.Value:
        value = ir.input_at(self.node, index)
        if value is None:
            raise Unfit("it has no input {}", index, culprit=self.node)
        return value

    def _keys(self, index: int, past_index: int) -> _Keys:
        past = ir.input_at(self.node, past_index)
        letter = "h" if self.kv_heads in (0, self.q.sizes["h"]) else "k"
        placed = _place(self._input(index), letter, self.kv_heads, self.ctx)
        if placed.sizes[letter] != self.q.sizes["h"]:
            placed = _renamed(placed, letter, "k")
        if past is None:
            return _Keys(placed, placed.sizes["s"], 0)
        shape = self.ctx.shapes.shape(past)
        if shape is None or len(shape) != 4:
            raise Unfit("the shape of '{}' is not known", past.name, culprit=past)
        joined = self.builder.Concat(past, self._with_heads_first(placed), axis=2)
        batch, heads, rows, columns = shape
        total = rows + placed.sizes["s"]
        self.ctx.shapes.set(joined, self.dtype, (batch, heads, total, columns))
        labels = tuple("bksd" if "k" in placed.sizes else "bhsd")
        sizes = placed.sizes | {"s": total}
        return _Keys(Placed(joined, labels, (None,) * 4, sizes), total, rows)

    def _with_heads_first(self, placed: Placed) -> ir.Value:
        """As [batch, heads, rows, columns]."""
        if len(placed.labels) == 4:
            return placed.value
        apart = np.array([0, 0, self.kv_heads, -1], np.int64)
        split = self.builder.Reshape(placed.value, self.builder.constant(apart, "apart"))
        return self.builder.Transpose(split, perm=[0, 2, 1, 3])

    def _given(self, keys: _Keys) -> Mask | None:
        mask = ir.input_at(self.node, MASK)
        if mask is None:
            return None
        shape = self.ctx.shapes.shape(mask)
        if self.ctx.opset >= SHORT_MASK_OPSET and (not shape or not self.ctx.shapes.equal(shape[-1], keys.rows)):
            raise Unfit("the mask '{}' may have fewer keys", mask.name, culprit=mask)
        kind = HIDDEN if self.ctx.shapes.dtype(mask) is ir.DataType.BOOL else "add"
        return self._fitting(kind, mask, keys)

    def _causal(self, operands: tuple[Placed, Placed], keys: _Keys) -> Mask | None:
        """A mask of the keys behind a row's own, those of the cache being before all rows; None where there are no such keys."""
        rows = self.q.sizes["s"]
        if rows == 1 and self.ctx.shapes.equal(keys.rows, keys.past + 1):
            return None
        key = (self.builder.anchor.graph, rows, keys.past, keys.rows)
        known = self.masks.get(key)
        if known is None or not (known.is_initializer() or known.graph is not None):
            known = self.masks[key] = self._causal_mask(operands, keys)
            self.ctx.shapes.set(known, ir.DataType.BOOL, (rows, keys.rows))
        return self._fitting(HIDDEN, known, keys)

    def _causal_mask(self, operands: tuple[Placed, Placed], keys: _Keys) -> ir.Value:
        b, rows = self.builder, self.q.sizes["s"]
        if isinstance(rows, int) and isinstance(keys.past, int) and isinstance(keys.rows, int):
            return b.constant(np.tri(rows, keys.rows, keys.past, dtype=bool), "causal")
        zero, one = (b.constant(np.array(number, np.int64)) for number in (0, 1))
        own = every = b.Range(zero, self._rows(operands[0], self.q), one)
        past = ir.input_at(self.node, PAST_KEYS)
        if past is not None:
            own = b.Add(own, self._size(past, 2))
        if past is not None or not self.ctx.shapes.equal(rows, keys.rows):
            every = b.Range(zero, self._rows(operands[1], keys.placed), one)
        return b.GreaterOrEqual(b.unsqueeze(own, 1), b.unsqueeze(every, 0))

    def _rows(self, furthest: Placed, whole: Placed) -> ir.Value:
        """The number of rows of an operand, as a scalar, by its furthest source where they have a dim of their own in it."""
        placed = furthest if "s" in furthest.labels else whole
        return self._size(placed.value, placed.labels.index("s"))

    def _size(self, value: ir.Value, axis: int) -> ir.Value:
        return self.builder.squeeze(self.builder.Shape(value, start=axis, end=axis + 1), 0)

    def _fitting(self, kind: str, mask: ir.Value, keys: _Keys) -> Mask:
        sizes = self.q.sizes
        dims = (sizes["b"], sizes["h"], sizes["s"], keys.rows)
        return fitting(kind, mask, ("b", "h", "q", "t"), dims, self.ctx)


def _checked_type(node: ir.Node, ctx: Context) -> ir.DataType:
    """The type of a node's tensors."""
    dtype = ctx.shapes.dtype(node.outputs[0])
    if dtype is None or not halves.are_multiplied(ctx, dtype):
        raise Unfit("the kernel does not compute {}", dtype, culprit=node)
    if attribute(node, "softmax_precision", dtype.value) not in (dtype.value, ir.DataType.FLOAT.value):
        raise Unfit("its Softmax is of another type", culprit=node)
    if ir.input_at(node, SIZES) is not None:
        raise Unfit("its samples have keys of their own number", culprit=node)
    if any(attribute(node, f"{side}_window_size", -1) != -1 for side in ("left", "right")):
        raise Unfit("it has a window", culprit=node)
    if any(value.is_graph_output() or ir.use_count(value) for value in node.outputs[3:]):
        raise Unfit("others use its scores", culprit=node)
    past = [ir.input_at(node, index) is not None for index in (PAST_KEYS, PAST_VALUES)]
    uses_presents = any(value.is_graph_output() or ir.use_count(value) for value in node.outputs[1:3])
    if past[0] != past[1] or (uses_presents and not past[0]):
        raise Unfit("it has a half of a cache", culprit=node)
    return dtype


def _place(value: ir.Value, letter: str, heads: int, ctx: Context) -> Placed:
    """An operand or the result: [batch, heads, rows, columns], or [batch, rows, heads * columns], where `heads` says how many."""
    shape = ctx.shapes.shape(value)
    if shape is not None and len(shape) == 4:
        return Placed(
            value, ("b", letter, "s", "d"), (None,) * 4, dict(zip(("b", letter, "s", "d"), shape, strict=True))
        )
    if shape is None or len(shape) != 3 or not heads or not isinstance(shape[2], int):
        raise Unfit("'{}' of shape {} has no batches and heads", value.name, shape, culprit=value)
    sizes: dict[str, Dim] = {"b": shape[0], "s": shape[1], letter: heads, "d": shape[2] // heads}
    return Placed(value, ("b", "s", f"{letter}d"), (None,) * 3, sizes)


def _renamed(placed: Placed, old: str, new: str) -> Placed:
    sizes = {new if axis == old else axis: size for axis, size in placed.sizes.items()}
    return dataclasses.replace(placed.renamed(**{old: new}), sizes=sizes)
