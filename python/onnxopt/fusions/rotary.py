"""Rotary embeddings: x cos + rotated(x) sin, where `rotated` exchanges the halves of the columns and negates one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.fusions.attention_axes import Placed
from onnxopt.passes.base import Context
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.permutations import constant_axes
from onnxopt.rewrite.rules import attribute


@dataclasses.dataclass(frozen=True, slots=True)
class Rotation:
    """A rotation.

    Attributes:
        cos, sin: the tables.
        width: over how many columns it goes.
        signed: the sines carry the sign already.
        interleaved: neighbours are exchanged instead of halves.
        rows_first: the tables have their rows before a dim for heads.
        halved: the tables have one column for each pair, and no dim for heads, as those of the op RotaryEmbedding.
        positions: which rows of the tables are taken.
    """

    cos: ir.Value
    sin: ir.Value
    width: int
    signed: bool
    interleaved: bool
    rows_first: bool = False
    halved: bool = False
    positions: ir.Value | None = None

    def agrees(self, other: Rotation, ctx: Context) -> bool:
        """Whether both rotate alike, wherever their tables have the rows."""
        tables = ((self.cos, other.cos), (self.sin, other.sin))
        alike = dataclasses.replace(self, cos=other.cos, sin=other.sin, rows_first=other.rows_first) == other
        return alike and all(
            _same(_origin(one, self.rows_first, ctx), _origin(two, other.rows_first, ctx)) for one, two in tables
        )

    def tables(self, b: Builder) -> list[ir.Value]:
        """The cosines, and the sines with the sign of the first of each pair turned, as [batch, heads, rows, columns] has them."""
        cos, sin = (self._whole(b, one) for one in (self.cos, self.sin))
        if not self.signed:
            dtype = b.ctx.shapes.dtype(self.sin)
            assert dtype is not None
            signs = np.ones(self.width, dtype.numpy())
            signs[: self.width : 2 if self.interleaved else 1][: self.width // 2] = -1.0
            sin = b.shared("Mul", [sin, b.constant(signs, "signs")])
        return [self._with_heads(b, cos, self.cos), self._with_heads(b, sin, self.sin)]

    def _whole(self, b: Builder, table: ir.Value) -> ir.Value:
        if self.positions is not None:
            table = b.shared("Gather", [table, self.positions], {"axis": 0})
        if not self.halved:
            return table
        pairs = np.arange(self.width // 2)
        columns = np.repeat(pairs, 2) if self.interleaved else np.tile(pairs, 2)
        return b.shared("Gather", [table, b.constant(columns, "columns")], {"axis": -1})

    def _with_heads(self, b: Builder, table: ir.Value, given: ir.Value) -> ir.Value:
        if self.halved:
            return b.shared("Unsqueeze", [table, b.constant(np.array([1], np.int64), "axes")])
        if not self.rows_first:
            return table
        perm = (1, 0, 2) if b.ctx.shapes.rank(given) == 3 else (0, 2, 1, 3)
        return b.shared("Transpose", [table], {"perm": perm})


def find_rotation(placed: Placed, ctx: Context) -> tuple[Placed, Rotation] | None:
    """What is rotated to make a value, and how; None where the value is no rotation of rows. Columns behind the rotated ones may stay."""
    rows_first = placed.labels[-3:] in (("s", "h", "d"), ("s", "k", "d"))
    in_order = rows_first or placed.labels[-2:] == ("s", "d")
    if not in_order or any(start is not None for start in placed.starts):
        return None
    part, rest = placed.value, None
    node = part.producer()
    if node is not None and node.op_type == "Concat" and len(node.inputs) == 2 and _is_last_axis(node, part, ctx):
        first, rest = node.inputs
        part = part if first is None else first
    turned = _rotated(part, rows_first, ctx) or (None if rest is not None else _rotated_by_op(part, rows_first, ctx))
    if turned is None:
        return None
    x, rotation = turned
    source = x if rest is None else _source(x, rest, ctx)
    return None if source is None else (placed.moved(source, placed.labels, placed.starts), rotation)


def _rotated(value: ir.Value, rows_first: bool, ctx: Context) -> tuple[ir.Value, Rotation] | None:
    """x of x cos + rotated(x) sin."""
    node = value.producer()
    if node is None or node.op_type != "Add" or node.domain != "":
        return None
    first, second = (None if value is None else value.producer() for value in node.inputs)
    for plain, crossed in ((first, second), (second, first)):
        if plain is None or crossed is None or plain.op_type != "Mul" or crossed.op_type != "Mul":
            continue
        for x, cos in (plain.inputs, reversed(plain.inputs)):
            for exchanged, sin in (crossed.inputs, reversed(crossed.inputs)):
                if x is None or cos is None or sin is None or exchanged is None:
                    continue
                kind = _exchanges(exchanged, x, ctx)
                shape = ctx.shapes.shape(x)
                if kind is None or not shape or not ctx.shapes.same_shape(x, value):
                    continue
                width = shape[-1]
                if isinstance(width, int) and all(_fits(table, width, rows_first, ctx) for table in (cos, sin)):
                    return x, Rotation(cos, sin, width, *kind, rows_first)
    return None


def _rotated_by_op(value: ir.Value, rows_first: bool, ctx: Context) -> tuple[ir.Value, Rotation] | None:
    """What the op RotaryEmbedding rotates: [batch, heads, rows, columns]."""
    node = value.producer()
    if node is None or node.op_type != "RotaryEmbedding" or node.domain or rows_first:
        return None
    x, cos, sin, positions = (*node.inputs, None)[:4]
    shape = None if x is None else ctx.shapes.shape(x)
    if x is None or cos is None or sin is None or shape is None or len(shape) != 4 or not isinstance(shape[3], int):
        return None
    width = int(attribute(node, "rotary_embedding_dim", 0)) or shape[3]
    rank = 3 if positions is None else 2
    for table in (cos, sin):
        known = ctx.shapes.shape(table)
        if known is None or len(known) != rank or known[-1] != width // 2:
            return None
    interleaved = bool(attribute(node, "interleaved", 0))
    return x, Rotation(cos, sin, width, False, interleaved, halved=True, positions=positions)


def _source(first: ir.Value, rest: ir.Value, ctx: Context) -> ir.Value | None:
    """What the two values are the first columns and all other columns of."""
    one, two = _columns(first, ctx), _columns(rest, ctx)
    if one is None or two is None:
        return None
    (whole, start, end), (other, begin, last) = one, two
    shape = ctx.shapes.shape(whole)
    complete = whole is other and start == 0 and end == begin and shape is not None and shape[-1] == last
    return whole if complete else None


def _columns(value: ir.Value, ctx: Context) -> tuple[ir.Value, int, int] | None:
    """Of which value a value has the columns from where to where."""
    node = value.producer()
    source = None if node is None else node.inputs[0]
    shape = ctx.shapes.shape(value)
    if node is None or node.domain or source is None or not shape or not isinstance(shape[-1], int):
        return None
    if node.op_type == "Split" and _is_last_axis(node, value, ctx, 0):
        before = [ctx.shapes.shape(one) for one in node.outputs[: value.index()]]
        widths = [one[-1] if one else None for one in before]
        start = sum(width for width in widths if isinstance(width, int))
        return (source, start, start + shape[-1]) if all(isinstance(width, int) for width in widths) else None
    sliced = _sliced(node, len(shape), ctx)
    whole = ctx.shapes.shape(source)
    if sliced is None or sliced[1] != 1 or not whole or not isinstance(whole[-1], int):
        return None
    start = sliced[0] + whole[-1] if sliced[0] < 0 else sliced[0]
    return source, start, start + shape[-1]


def _sliced(node: ir.Node, rank: int, ctx: Context) -> tuple[int, int] | None:
    """Where the columns that a Slice takes begin, and their step."""
    if (
        node.op_type != "Slice"
        or len(node.inputs) < 4
        or ctx.shapes.integers(node.inputs[3]) not in ((rank - 1,), (-1,))
    ):
        return None
    starts = ctx.shapes.integers(node.inputs[1])
    steps = ctx.shapes.integers(node.inputs[4]) if len(node.inputs) > 4 else (1,)
    return None if starts is None or steps is None else (starts[0], steps[0])


def _is_last_axis(node: ir.Node, value: ir.Value, ctx: Context, default: int | None = None) -> bool:
    rank = ctx.shapes.rank(value)
    return rank is not None and attribute(node, "axis", default) in (-1, rank - 1)


def _exchanges(value: ir.Value, x: ir.Value, ctx: Context) -> tuple[bool, bool] | None:
    """Whether signs are left to the sines, and whether neighbours instead of halves of x are exchanged; None where `value` is neither."""
    signed = _exchanges_halves(value, x, ctx)
    if signed is not None:
        return signed, False
    if (interleaved := _gathers_partners(value, x, ctx)) is not None:
        return True, interleaved
    return (False, True) if _exchanges_neighbours(value, x, ctx) else None


def _gathers_partners(value: ir.Value, x: ir.Value, ctx: Context) -> bool | None:
    """Whether `value` has the columns of x in another order, neighbours exchanged (True) or halves (False); None where it has not."""
    node, shape = value.producer(), ctx.shapes.shape(x)
    if node is None or node.op_type != "Gather" or node.domain or node.inputs[0] is not x or not shape:
        return None
    width, rank = shape[-1], len(shape)
    columns = ctx.shapes.integers(node.inputs[1])
    if not isinstance(width, int) or width % 2 or columns is None or attribute(node, "axis", 0) % rank != rank - 1:
        return None
    if columns == tuple(column ^ 1 for column in range(width)):
        return True
    return False if columns == tuple((column + width // 2) % width for column in range(width)) else None


def _exchanges_neighbours(value: ir.Value, x: ir.Value, ctx: Context) -> bool:
    """Whether `value` is -x1, x0, -x3, x2 ..., as made by stacking."""
    node = value.producer()
    stack = None if node is None or node.op_type != "Reshape" or node.inputs[0] is None else node.inputs[0].producer()
    rank = ctx.shapes.rank(x)
    if stack is None or stack.op_type != "Concat" or len(stack.inputs) != 2 or rank is None:
        return False
    if not ctx.shapes.same_shape(value, x) or attribute(stack, "axis") not in (-1, rank):
        return False
    odd, even = (_without_last_axis(one, rank, ctx) for one in stack.inputs)
    negated = None if odd is None else odd.producer()
    if negated is None or negated.op_type != "Neg" or even is None:
        return False
    return _every_other(negated.inputs[0], rank, ctx) == (x, 1) and _every_other(even, rank, ctx) == (x, 0)


def _without_last_axis(value: ir.Value | None, rank: int, ctx: Context) -> ir.Value | None:
    """What is given another last axis of size 1."""
    node = None if value is None else value.producer()
    source = None if node is None else node.inputs[0]
    shape, before = (None if one is None else ctx.shapes.shape(one) for one in (value, source))
    if (
        node is None
        or node.op_type not in ("Unsqueeze", "Reshape")
        or not shape
        or before is None
        or len(before) != rank
    ):
        return None
    return source if shape == (*before, 1) else None


def _every_other(value: ir.Value | None, rank: int, ctx: Context) -> tuple[ir.Value | None, int] | None:
    """Of which value a value has every other column, and the first of them."""
    node = None if value is None else value.producer()
    sliced = None if node is None else _sliced(node, rank, ctx)
    return None if node is None or sliced is None or sliced[1] != 2 else (node.inputs[0], sliced[0])


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
    sliced = _sliced(node, rank, ctx)
    if sliced is not None and sliced[1] == 1 and sliced[0] in (0, shape[-1], -shape[-1]):
        return source, int(sliced[0] != 0)
    return None


def _fits(table: ir.Value, width: int, rows_first: bool, ctx: Context) -> bool:
    """Whether a table is broadcast to [batch, heads, rows, columns], or [batch, rows, heads, columns], and the same for all heads."""
    shape = ctx.shapes.shape(table)
    if shape is None or not 2 <= len(shape) <= 4 or shape[-1] != width:
        return False
    if rows_first:
        return len(shape) > 2 and shape[-2] == 1
    return len(shape) == 2 or shape[-3] == 1


@dataclasses.dataclass(frozen=True, slots=True)
class _Origin:
    """What a table is by moving dims: a value, and the dims of it that are the table's batch, heads, rows and columns, None for those that
    came in with size 1."""

    value: ir.Value
    dims: tuple[int | None, ...]


def _origin(table: ir.Value, rows_first: bool, ctx: Context) -> _Origin:
    rank = ctx.shapes.rank(table) or 0
    dims: list[int | None] = [None] * (4 - rank) + list(range(rank))
    if rows_first:
        dims[1], dims[2] = dims[2], dims[1]
    while True:
        node = table.producer()
        source = None if node is None else node.inputs[0]
        moved = None if node is None else _dims_before(node, ctx)
        if source is None or moved is None:
            return _Origin(table, tuple(dims))
        dims = [None if dim is None else moved[dim] for dim in dims]
        table = source


def _dims_before(node: ir.Node, ctx: Context) -> Sequence[int | None] | None:
    """For each dim of the result of a node that only moves dims, which dim of its operand it is; None for a new one."""
    rank = ctx.shapes.rank(node.outputs[0])
    if rank is None or node.domain:
        return None
    if node.op_type == "Transpose":
        return tuple(attribute(node, "perm", tuple(reversed(range(rank)))))
    axes = constant_axes(node, 1, rank) if node.op_type == "Unsqueeze" else None
    if axes is None:
        return None
    old = iter(range(rank))
    return [None if dim in axes else next(old) for dim in range(rank)]


def _same(a: _Origin, b: _Origin) -> bool:
    if a == b:
        return True
    first, second = (_numbers(one) for one in (a, b))
    return first is not None and second is not None and np.array_equal(first, second)


def _numbers(origin: _Origin) -> np.ndarray | None:
    """A constant table as [batch, heads, rows, columns]."""
    tensor = ir.constant(origin.value)
    if tensor is None:
        return None
    kept = [dim for dim in origin.dims if dim is not None]
    if len(kept) != len(tensor.shape):
        return None
    whole = tensor.numpy().transpose(kept)
    return np.expand_dims(whole, [axis for axis, dim in enumerate(origin.dims) if dim is None])
