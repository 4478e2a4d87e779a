"""Ops over all iterations at once: what a node computes from elements of sequences, computed from the sequences.

A batched value is a value of the body with a new leading dim, one entry for each element of the sequences it depends on. The rules below
say of each op how it is computed on batched inputs; other inputs are values from outside, the same for every iteration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxopt import ir
from onnxopt.ir.elementwise import ELEMENTWISE, UNIDIRECTIONAL
from onnxopt.loops.rules import filing
from onnxopt.rewrite.patch import AXES_INPUT_OPSET, Builder
from onnxopt.rewrite.rules import attribute

if TYPE_CHECKING:
    from onnxopt.passes.base import Context


@dataclasses.dataclass(frozen=True, slots=True)
class Operand:
    """An input of a node: the value to read outside, its rank inside, and whether the outer one has the leading dim."""

    value: ir.Value
    rank: int
    batched: bool


class Batch:
    """Builds the batched forms of nodes of one body."""

    def __init__(self, ctx: Context, builder: Builder, *, never_empty: bool) -> None:
        self.ctx = ctx
        self.builder = builder
        self.never_empty = never_empty
        self.values: dict[ir.Value, ir.Value] = {}

    def add(self, node: ir.Node) -> bool:
        """Build the batched form of a node whose inputs are batched values or values from outside; False where it has none."""
        operands = self._operands(node)
        rule = RULES.get(node.op_type)
        if operands is None or rule is None or node.domain:
            return False
        made = rule(self, node, operands)
        if made is None:
            return False
        self.values.update(zip(node.outputs, made, strict=True))
        return True

    def _operands(self, node: ir.Node) -> list[Operand | None] | None:
        operands: list[Operand | None] = []
        for value in node.inputs:
            rank = None if value is None else self.ctx.shapes.rank(value)
            if value is None:
                operands.append(None)
            elif rank is None:
                return None
            else:
                operands.append(Operand(self.values.get(value, value), rank, value in self.values))
        return operands

    # --- parts that rules share
    @property
    def opset(self) -> int:
        return self.ctx.opset

    def numbers(self, *numbers: int) -> ir.Value:
        return self.builder.constant(np.array(numbers, np.int64))

    def aligned(self, operand: Operand, rank: int) -> ir.Value:
        """The operand such that it broadcasts as it does inside against others of `rank`."""
        if not operand.batched or operand.rank == rank:
            return operand.value
        return self.builder.unsqueeze(operand.value, *range(1, 1 + rank - operand.rank))

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None], **attributes: object) -> list[ir.Value]:
        return list(self.builder.copy_of(node, inputs, **attributes))

    def static_shape(self, value: ir.Value) -> tuple[int, ...] | None:
        return self.ctx.shapes.static_shape(value)


Rule = Callable[[Batch, ir.Node, list["Operand | None"]], "list[ir.Value] | None"]
RULES: dict[str, Rule] = {}

_on = filing(RULES)


def can_batch(node: ir.Node) -> bool:
    """Whether there is a rule for the op; it may still refuse."""
    return not node.domain and node.op_type in RULES


def is_elementwise(node: ir.Node) -> bool:
    """Whether the op computes each element of its result from the elements at that place."""
    return not node.domain and RULES.get(node.op_type) is _elementwise


def _batched_first(operands: Sequence[Operand | None]) -> Operand | None:
    """The first input where it is batched and no other is: what most ops can do."""
    first, *others = operands
    return (
        first
        if first is not None and first.batched and not any(one is not None and one.batched for one in others)
        else None
    )


def _values(operands: Sequence[Operand | None], first: ir.Value) -> list[ir.Value | None]:
    return [first, *(None if one is None else one.value for one in operands[1:])]


def _axis(axis: int, rank: int) -> int:
    """An axis of the inside value, as one of the batched value."""
    return axis + 1 if axis >= 0 else axis + rank + 1


@_on(*ELEMENTWISE)
def _elementwise(batch: Batch, node: ir.Node, operands: list[Operand | None]) -> list[ir.Value] | None:
    if node.op_type in UNIDIRECTIONAL and _batched_first(operands) is None:
        return None
    rank = max((one.rank for one in operands if one is not None), default=0)
    return batch.copy(node, [None if one is None else batch.aligned(one, rank) for one in operands])


@_on("MatMul")
def _matmul(batch: Batch, node: ir.Node, operands: list[Operand | None]) -> list[ir.Value] | None:
    a, b = operands
    if a is None or b is None:
        return None
    if a.batched and not b.batched and b.rank == 2:
        return batch.copy(node, [a.value, b.value])
    if a.rank < 2 or b.rank < 2:
        return None
    rank = max(a.rank, b.rank)
    return batch.copy(node, [batch.aligned(a, rank), batch.aligned(b, rank)])


@_on("Gemm")
def _gemm(batch: Batch, node: ir.Node, operands: list[Operand | None]) -> list[ir.Value] | None:
    a, b, c = (*operands, None)[:3]
    if a is None or b is None:
        return None
    b_ = batch.builder
    left = b_.Transpose(a.value, perm=[0, 2, 1] if a.batched else [1, 0]) if attribute(node, "transA", 0) else a.value
    right = b_.Transpose(b.value, perm=[0, 2, 1] if b.batched else [1, 0]) if attribute(node, "transB", 0) else b.value
    result = b_.MatMul(left, right)
    dtype = batch.ctx.shapes.dtype(node.outputs[0])
    if dtype is None:
        return None
    result = _scaled(batch, result, attribute(node, "alpha", 1.0), dtype)
    if c is not None and attribute(node, "beta", 1.0) != 0:
        added = _scaled(batch, batch.aligned(c, 2), attribute(node, "beta", 1.0), dtype)
        result = b_.Add(result, added)
    return [result]


def _scaled(batch: Batch, value: ir.Value, factor: float, dtype: ir.DataType) -> ir.Value:
    return value if factor == 1 else batch.builder.Mul(value, batch.builder.constant(np.array(factor, dtype.numpy())))


@_on("Unsqueeze", "Squeeze")
def _unit_dims(batch: Batch, node: ir.Node, operands: list[Operand | None]) -> list[ir.Value] | None:
    data = _batched_first(operands)
    inside = node.inputs[0]
    axes = _axes(batch, node)
    rank = batch.ctx.shapes.rank(node.outputs[0])
    shape = None if inside is None else batch.static_shape(inside)
    if data is None or rank is None:
        return None
    if axes is None:
        if node.op_type == "Unsqueeze" or shape is None or ir.input_at(node, 1) is not None:
            return None
        axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    whole = rank if node.op_type == "Unsqueeze" else data.rank
    return _with_axes(batch, node, data.value, [_axis(axis, whole) for axis in axes])


def _axes(batch: Batch, node: ir.Node) -> tuple[int, ...] | None:
    if batch.opset >= AXES_INPUT_OPSET:
        return ir.integers(ir.input_at(node, 1))
    found = attribute(node, "axes")
    return None if found is None else tuple(found)


def _with_axes(batch: Batch, node: ir.Node, value: ir.Value, axes: Sequence[int]) -> list[ir.Value]:
    if batch.opset >= AXES_INPUT_OPSET:
        return batch.copy(node, [value, batch.numbers(*axes)])
    return batch.copy(node, [value], axes=ir.make_attribute("axes", list(axes)))


@_on("Transpose")
def _transpose(batch: Batch, node: ir.Node, operands: list[Operand | None]) -> list[ir.Value] | None:
    (data,) = operands
    assert data is not None
    perm = attribute(node, "perm") or range(data.rank - 1, -1, -1)
    return batch.copy(node, [data.value], perm=ir.make_attribute("perm", [0, *(axis + 1 for axis in perm)]))


@_on("Reshape", "Flatten")
def _reshape(batch: Batch, node: ir.Node, operands: list[Operand | None]) -> list[ir.Value] | None:
    data = _batched_first(operands)
    shape = batch.static_shape(node.outputs[0])
    if data is None or shape is None or attribute(node, "allowzero", 0) or 0 in shape:
        return None
    # 0 copies the leading dim, which may be open.
    return [batch.builder.Reshape(data.value, batch.numbers(0, *shape))]


@_on("Gather")
def _gather(batch: Batch, node: ir.Node, operands: list[Operand | None]) -> list[ir.Value] | None:
    data, indices = operands
    axis = attribute(node, "axis", 0)
    if data is None or indices is None:
        return None
    if data.batched and not indices.batched:
        return batch.copy(node, [data.value, indices.value], axis=ir.make_attribute("axis", _axis(axis, data.rank)))
    if indices.batched and not data.batched:
        (taken,) = batch.copy(node, [data.value, indices.value])
        before = axis % data.rank
        if before == 0:
            return [taken]
        rank = data.rank + indices.rank  # the leading dim of the indices is one of them
        perm = [before, *(one for one in range(rank) if one != before)]
        return [batch.builder.Transpose(taken, perm=perm)]
    return None


@_on("Slice")
def _slice(batch: Batch, node: ir.Node, operands: list[Operand | None]) -> list[ir.Value] | None:
    data = _batched_first(operands)
    if data is None or len(operands) < 3:
        return None
    starts, ends, axes, steps = (*operands, None, None)[1:5]
    inside = node.inputs[1]
    count = None if inside is None else batch.static_shape(inside)
    dtype = None if inside is None else batch.ctx.shapes.dtype(inside)
    numbers = ir.integers(node.inputs[3]) if axes is not None else tuple(range(count[0])) if count else None
    if numbers is None or starts is None or ends is None or dtype is None:
        return None
    moved = batch.builder.constant(np.array([_axis(axis, data.rank) for axis in numbers], dtype.numpy()))
    return batch.copy(node, [data.value, starts.value, ends.value, moved, *([] if steps is None else [steps.value])])


@_on("Concat")
def _concat(batch: Batch, node: ir.Node, operands: list[Operand | None]) -> list[ir.Value] | None:
    if not all(one is not None and one.batched for one in operands):
        return None
    known = [one for one in operands if one is not None]
    axis = _axis(attribute(node, "axis"), known[0].rank)
    return batch.copy(node, [one.value for one in known], axis=ir.make_attribute("axis", axis))


@_on("Split")
def _split(batch: Batch, node: ir.Node, operands: list[Operand | None]) -> list[ir.Value] | None:
    data = _batched_first(operands)
    if data is None:
        return None
    axis = _axis(attribute(node, "axis", 0), data.rank)
    return batch.copy(node, _values(operands, data.value), axis=ir.make_attribute("axis", axis))


@_on("Softmax", "LogSoftmax", "LayerNormalization", "ArgMax", "ArgMin")
def _along_axis(batch: Batch, node: ir.Node, operands: list[Operand | None]) -> list[ir.Value] | None:
    data = _batched_first(operands)
    softmax = node.op_type in ("Softmax", "LogSoftmax")
    if data is None or (softmax and batch.opset < AXES_INPUT_OPSET):
        return None
    default = 0 if node.op_type.startswith("Arg") else -1
    axis = _axis(attribute(node, "axis", default), data.rank)
    return batch.copy(node, _values(operands, data.value), axis=ir.make_attribute("axis", axis))


REDUCTIONS_WITH_AXES_INPUT = {"ReduceSum": 13}
"""The opset from which a reduction takes its axes as an input; 18 for those not named."""


@_on(
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
)
def _reduce(batch: Batch, node: ir.Node, operands: list[Operand | None]) -> list[ir.Value] | None:
    data = _batched_first(operands)
    if data is None:
        return None
    as_input = batch.opset >= REDUCTIONS_WITH_AXES_INPUT.get(node.op_type, 18)
    given = ir.input_at(node, 1) if as_input else None
    axes = ir.integers(given) if as_input else attribute(node, "axes")
    if not axes:
        if given is not None or attribute(node, "noop_with_empty_axes", 0):
            return None
        axes = range(data.rank)
    moved = [_axis(axis, data.rank) for axis in axes]
    if not moved:
        return None
    if as_input:
        return batch.copy(node, [data.value, batch.numbers(*moved)])
    return batch.copy(node, [data.value], axes=ir.make_attribute("axes", moved))


@_on("Conv")
def _conv(batch: Batch, node: ir.Node, operands: list[Operand | None]) -> list[ir.Value] | None:
    """The iterations become samples of one batch."""
    data = _batched_first(operands)
    inside = node.inputs[0]
    shape = None if inside is None else batch.static_shape(inside)
    result = batch.static_shape(node.outputs[0])
    if data is None or shape is None or result is None or 0 in shape or 0 in result or not batch.never_empty:
        return None
    merged = batch.builder.Reshape(data.value, batch.numbers(-1, *shape[1:]))
    (computed,) = batch.copy(node, _values(operands, merged))
    return [batch.builder.Reshape(computed, batch.numbers(-1, *result))]
