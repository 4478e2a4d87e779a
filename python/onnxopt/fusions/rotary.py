"""Rotary embeddings: x cos + rotated(x) sin, where `rotated` exchanges the halves of the columns and negates one."""

from __future__ import annotations

import dataclasses

import numpy as np

from onnxopt import ir
from onnxopt.fusions.attention_axes import Placed
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import attribute


@dataclasses.dataclass(frozen=True, slots=True)
class Rotation:
    """The cosines and sines, over how many columns they go, and whether the sines carry the sign already."""

    cos: ir.Value
    sin: ir.Value
    width: int
    signed: bool

    def agrees(self, other: Rotation) -> bool:
        """Whether both rotate alike."""
        tables = ((self.cos, other.cos), (self.sin, other.sin))
        return self.width == other.width and self.signed == other.signed and all(_same(*pair) for pair in tables)

    def signed_sines(self, b: Builder) -> ir.Value:
        """The sines with the sign of the first half turned."""
        if self.signed:
            return self.sin
        signs = np.ones(self.width, np.float32)
        signs[: self.width // 2] = -1.0
        for user, _ in self.sin.uses():
            if user.op_type == "Mul" and user.domain == "" and _equals(user.inputs[1], signs):
                return user.outputs[0]  # made for another attention
        return b.Mul(self.sin, b.constant(signs, "signs"))


def find_rotation(placed: Placed, ctx: Context) -> tuple[Placed, Rotation] | None:
    """What is rotated to make a value, and how; None where the value is no rotation of rows."""
    node = placed.value.producer()
    in_order = placed.labels[-2:] == ("s", "d") and all(start is None for start in placed.starts)
    if node is None or node.op_type != "Add" or node.domain != "" or not in_order:
        return None
    first, second = (None if value is None else value.producer() for value in node.inputs)
    for plain, crossed in ((first, second), (second, first)):
        if plain is None or crossed is None or plain.op_type != "Mul" or crossed.op_type != "Mul":
            continue
        for x, cos in (plain.inputs, reversed(plain.inputs)):
            for exchanged, sin in (crossed.inputs, reversed(crossed.inputs)):
                if x is None or cos is None or sin is None or exchanged is None:
                    continue
                signed = _exchanges_halves(exchanged, x, ctx)
                if signed is None or not ctx.shapes.same_shape(x, placed.value):
                    continue
                width = placed.sizes["d"]
                if isinstance(width, int) and _fits(cos, width, ctx) and _fits(sin, width, ctx):
                    return placed.moved(x, placed.labels, placed.starts), Rotation(cos, sin, width, signed)
    return None


def _exchanges_halves(value: ir.Value, x: ir.Value, ctx: Context) -> bool | None:
    """Whether `value` is x with its halves exchanged (True) and the new first one negated (False); None where it is neither."""
    node = value.producer()
    rank = ctx.shapes.rank(x)
    if node is None or node.op_type != "Concat" or rank is None or len(node.inputs) != 2:
        return None
    if attribute(node, "axis") % rank != rank - 1:
        return None
    first, second = node.inputs
    producer = None if first is None else first.producer()
    negated = producer is not None and producer.op_type == "Neg"
    if negated:
        assert producer is not None
        first = producer.inputs[0]
    if first is None or second is None or _half(first, ctx) != (x, 1) or _half(second, ctx) != (x, 0):
        return None
    return not negated


def _half(value: ir.Value, ctx: Context) -> tuple[ir.Value | None, int] | None:
    """Which half of the columns of which tensor a value is."""
    node = value.producer()
    shape = ctx.shapes.shape(value)
    source = None if node is None else node.inputs[0]
    whole = None if source is None else ctx.shapes.shape(source)
    if node is None or shape is None or whole is None or not isinstance(shape[-1], int) or whole[-1] != 2 * shape[-1]:
        return None
    rank = len(shape)
    if node.op_type == "Split" and len(node.outputs) == 2 and attribute(node, "axis", 0) % rank == rank - 1:
        return source, value.index() or 0
    if (
        node.op_type == "Slice"
        and len(node.inputs) >= 4
        and ctx.shapes.integers(node.inputs[3]) in ((rank - 1,), (-1,))
    ):
        starts = ctx.shapes.integers(node.inputs[1])
        steps = ctx.shapes.integers(node.inputs[4]) if len(node.inputs) > 4 else (1,)
        if steps == (1,) and starts is not None and starts[0] in (0, shape[-1], -shape[-1]):
            return source, int(starts[0] != 0)
    return None


def _fits(table: ir.Value, width: int, ctx: Context) -> bool:
    """Whether a table is broadcast to [batch, heads, rows, columns] and the same for all heads."""
    shape = ctx.shapes.shape(table)
    if shape is None or not 2 <= len(shape) <= 4 or shape[-1] != width:
        return False
    return len(shape) == 2 or shape[-3] == 1


def _same(a: ir.Value, b: ir.Value) -> bool:
    first, second = ir.constant(a), ir.constant(b)
    return a is b or (first is not None and second is not None and np.array_equal(first.numpy(), second.numpy()))


def _equals(value: ir.Value | None, array: np.ndarray) -> bool:
    found = ir.small_array(value)
    return found is not None and found.shape == array.shape and bool((found == array).all())
