"""What a step computes, as expressions over its states and sequences: sums of products are kept apart from what is applied to them.

A `Linear` is a sum of products with constant matrices, whatever order they are added in and however their columns are split and joined: a
fused product of all gates, a product of each gate, and a product of state and element side by side read alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxopt import ir
from onnxopt.ir import shape_rules
from onnxopt.loops.recurrent_ops import KNOWN_ACTIVATIONS, Form, form_of
from onnxopt.loops.rules import filing
from onnxopt.loops.view import Loop
from onnxopt.rewrite.rules import attribute

if TYPE_CHECKING:
    from onnxopt.ir.dims import Dim
    from onnxopt.passes.base import Context


@dataclasses.dataclass(frozen=True, slots=True)
class Permuted:
    """What a Transpose does to a sequence."""

    axes: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Reshaped:
    """What a Reshape does to a sequence: its leading dims afterwards; the last one stays."""

    leading: tuple[Dim, ...]


Move = Permuted | Reshaped


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A value of a step. Two expressions are the same only where they are one object."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class State(Expression):
    """A carried value, as the step gets it."""

    index: int


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """A sequence outside of the loop: `value` with its leading dims moved, the last one staying; read from the back when `reverse`."""

    value: ir.Value
    reverse: bool
    moves: tuple[Move, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Element(Expression):
    """An element of a sequence."""

    origin: Origin


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Constant(Expression):
    array: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Linear(Expression):
    """A sum: of `x @ matrix` [K, W], of `vector * x` [W], of `activation * linear`, and of a bias [W]."""

    width: int
    products: tuple[tuple[Expression, np.ndarray], ...] = ()
    scaled: tuple[tuple[Expression, np.ndarray], ...] = ()
    gated: tuple[tuple[Activation, Linear], ...] = ()
    bias: np.ndarray | None = None

    def plus(self, other: Linear) -> Linear | None:
        if self.width != other.width:  # one number for all columns
            wide, narrow = (self, other) if other.width == 1 else (other, self)
            if narrow.width != 1 or narrow.products or narrow.scaled or narrow.gated or narrow.bias is None:
                return None
            return wide.plus(Linear(wide.width, bias=np.broadcast_to(narrow.bias, (wide.width,))))
        bias = other.bias if self.bias is None else self.bias if other.bias is None else self.bias + other.bias
        return Linear(
            self.width,
            self.products + other.products,
            self.scaled + other.scaled,
            self.gated + other.gated,
            bias,
        )

    def negated(self) -> Linear:
        return Linear(
            self.width,
            tuple((x, -matrix) for x, matrix in self.products),
            tuple((x, -vector) for x, vector in self.scaled),
            tuple((gate, one.negated()) for gate, one in self.gated),
            None if self.bias is None else -self.bias,
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Activation(Expression):
    """A function of a sum; `complement` is one minus it."""

    name: str
    of: Linear
    complement: bool = False


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Applied(Expression):
    """A function of anything else."""

    name: str
    of: Expression


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Sum(Expression):
    left: Expression
    right: Expression


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Difference(Expression):
    left: Expression
    right: Expression


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Times(Expression):
    left: Expression
    right: Expression


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Joined(Expression):
    """Values side by side along the last dim, with their widths."""

    parts: tuple[Expression, ...]
    widths: tuple[int, ...]


def either_way(left: Expression, right: Expression) -> Iterator[tuple[Expression, Expression]]:
    yield left, right
    yield right, left


class Step:
    """The values of a Scan's body as expressions. `culprit` is the first node that has none."""

    def __init__(self, loop: Loop, ctx: Context) -> None:
        self.states = [State(index) for index in range(len(loop.carries))]
        self.culprit: ir.Node | None = None
        self._known: dict[ir.Value, Expression | None] = {}
        self._known.update((carry.inside, state) for carry, state in zip(loop.carries, self.states, strict=True))
        outer = {reverse: _Outer(loop, ctx, reverse=reverse) for reverse in (False, True)}
        for one in loop.scan_inputs:
            self._known[one.element] = outer[one.reverse].of(one.sequence)
        for node in loop.body:
            made = _expressions(node, self.of, ctx)
            self._known.update(zip(node.outputs, made, strict=True))
            if self.culprit is None and None in made:
                self.culprit = node

    def of(self, value: ir.Value) -> Expression | None:
        """What a value of the body, or a constant from outside, is; None where it cannot be said."""
        if value not in self._known:
            self._known[value] = _constant(value)
        return self._known[value]


class _Outer:
    """Sequences around a loop, as the loop sees their elements: the products of a whole sequence are those of its elements."""

    def __init__(self, loop: Loop, ctx: Context, *, reverse: bool) -> None:
        self.graph, self.ctx, self.reverse = loop.node.graph, ctx, reverse
        self._known: dict[ir.Value, Expression] = {}

    def of(self, value: ir.Value) -> Expression:
        if value not in self._known:
            found = _constant(value) or self._made(value)
            self._known[value] = Element(Origin(value, self.reverse)) if found is None else found
        return self._known[value]

    def _made(self, value: ir.Value) -> Expression | None:
        node = value.producer()
        if node is None or node.domain or node.graph is not self.graph:
            return None
        if node.op_type in ("Transpose", "Reshape"):
            return self._moved(node)
        if node.op_type not in ("Add", "MatMul", "Gemm", "Split", "Identity"):
            return None
        return _expressions(node, self.of, self.ctx)[node.outputs.index(value)]

    def _moved(self, node: ir.Node) -> Expression | None:
        """A sum of products whose leading dims are moved is one of sequences that are moved so."""
        move = _move_of(node, self.ctx)
        traced = None if move is None or node.inputs[0] is None else self.of(node.inputs[0])
        if move is None or not isinstance(traced, Linear) or traced.scaled or traced.gated:
            return None
        products = []
        for x, matrix in traced.products:
            if not isinstance(x, Element):
                return None
            products.append((Element(dataclasses.replace(x.origin, moves=(*x.origin.moves, move))), matrix))
        return dataclasses.replace(traced, products=tuple(products))


def _move_of(node: ir.Node, ctx: Context) -> Move | None:
    """What a Transpose or Reshape does to leading dims, where the last one stays."""
    before, after = (None if one is None else ctx.shapes.shape(one) for one in (node.inputs[0], node.outputs[0]))
    if not before or not after or before[-1] != after[-1] or not isinstance(before[-1], int):
        return None
    if node.op_type == "Reshape":
        return Reshaped(tuple(after[:-1]))
    perm = tuple(attribute(node, "perm") or range(len(before) - 1, -1, -1))
    return Permuted(perm) if perm[-1] == len(perm) - 1 else None


def _constant(value: ir.Value) -> Constant | None:
    tensor = ir.constant(value)
    return None if tensor is None or tensor.dtype is not ir.DataType.FLOAT else Constant(np.asarray(tensor.numpy()))


READ_BY_FIRST = ("Split", "Slice", "Squeeze", "Unsqueeze")
"""Ops whose further inputs are numbers."""


def _expressions(node: ir.Node, of: Callable[[ir.Value], Expression | None], ctx: Context) -> list[Expression | None]:
    """What a node makes of its operands."""
    rule = None if node.domain else RULES.get(node.op_type)
    inputs = [value for value in node.inputs if value is not None]
    operands = [of(value) for value in inputs[: 1 if node.op_type in READ_BY_FIRST else None]] if rule else []
    known = [one for one in operands if one is not None]
    return [None] * len(node.outputs) if rule is None or len(known) < len(operands) else rule(ctx, node, known)


def _width(value: ir.Value | None, ctx: Context) -> int | None:
    shape = None if value is None else ctx.shapes.shape(value)
    return shape[-1] if shape and isinstance(shape[-1], int) else None


def as_linear(one: Expression) -> Linear | None:
    """An expression as a sum of one term, where it can be one."""
    if isinstance(one, Linear):
        return one
    if isinstance(one, Constant):
        array = one.array
        return Linear(array.size, bias=array.reshape(-1)) if array.shape[-1:] in ((), (array.size,)) else None
    if isinstance(one, Times):
        for gate, other in either_way(one.left, one.right):
            if isinstance(gate, Activation) and isinstance(other, Linear):
                return Linear(other.width, gated=((gate, other),))
    return None


def columns(one: Expression, begin: int, end: int) -> Expression | None:
    """Some columns of a value; None where they are none of what it is made of."""
    if isinstance(one, Constant):
        return one if one.array.size == 1 else Constant(one.array[..., begin:end])
    if isinstance(one, Activation):
        part = columns(one.of, begin, end)
        return Activation(one.name, part, one.complement) if isinstance(part, Linear) else None
    if not isinstance(one, Linear) or one.scaled or one.gated:
        return None
    products = tuple((x, matrix[:, begin:end]) for x, matrix in one.products)
    return Linear(end - begin, products, bias=None if one.bias is None else one.bias[begin:end])


Rule = Callable[["Context", ir.Node, Sequence[Expression]], "list[Expression | None]"]
RULES: dict[str, Rule] = {}

_on = filing(RULES)


@_on("Identity")
def _identity(_: Context, __: ir.Node, operands: Sequence[Expression]) -> list[Expression | None]:
    return [operands[0]]


@_on("Add")
def _add(_: Context, __: ir.Node, operands: Sequence[Expression]) -> list[Expression | None]:
    left, right = operands
    one, other = as_linear(left), as_linear(right)
    return [Sum(left, right) if one is None or other is None else one.plus(other)]


@_on("Sub")
def _subtract(_: Context, __: ir.Node, operands: Sequence[Expression]) -> list[Expression | None]:
    left, right = operands
    if isinstance(left, Constant) and isinstance(right, Activation) and (left.array == 1).all():
        return [Activation(right.name, right.of, not right.complement)]
    return [Difference(left, right)]


@_on("Mul")
def _multiply(ctx: Context, node: ir.Node, operands: Sequence[Expression]) -> list[Expression | None]:
    left, right = operands
    width = _width(node.outputs[0], ctx)
    for one, other in either_way(left, right):
        if isinstance(one, Constant) and not isinstance(other, Constant):
            vector = one.array.reshape(-1)
            fits = width is not None and vector.size == width and one.array.shape[-1:] == (width,)
            return [Linear(width, scaled=((other, vector),)) if fits and width is not None else None]
    return [Times(left, right)]


@_on(*KNOWN_ACTIVATIONS)
def _activation(_: Context, node: ir.Node, operands: Sequence[Expression]) -> list[Expression | None]:
    (one,) = operands
    return [Activation(node.op_type, one) if isinstance(one, Linear) else Applied(node.op_type, one)]


@_on("Concat")
def _concat(ctx: Context, node: ir.Node, operands: Sequence[Expression]) -> list[Expression | None]:
    rank = ctx.shapes.rank(node.outputs[0])
    widths = [None if value is None else _width(value, ctx) for value in node.inputs]
    known = [width for width in widths if width is not None]
    if rank is None or attribute(node, "axis") not in (-1, rank - 1) or len(known) != len(widths):
        return [None]
    return [Joined(tuple(operands), tuple(known))]


@_on("MatMul", "Gemm")
def _product(ctx: Context, node: ir.Node, operands: Sequence[Expression]) -> list[Expression | None]:
    x, matrix, *bias = operands
    if not isinstance(matrix, Constant) or matrix.array.ndim != 2 or isinstance(x, Constant):
        return [None]
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
        return [None]
    array = matrix.array.T if attribute(node, "transB", 0) else matrix.array
    parts, widths = (x.parts, x.widths) if isinstance(x, Joined) else ((x,), (array.shape[0],))
    if sum(widths) != array.shape[0]:
        return [None]
    rows = np.split(array, np.cumsum(widths)[:-1])
    result: Linear | None = Linear(array.shape[1], tuple(zip(parts, rows, strict=True)))
    for one in bias:
        added = as_linear(one)
        result = None if added is None or result is None else result.plus(added)
    return [result]


@_on("Split")
def _split(ctx: Context, node: ir.Node, operands: Sequence[Expression]) -> list[Expression | None]:
    rank = ctx.shapes.rank(node.outputs[0])
    widths = [_width(value, ctx) for value in node.outputs]
    known = [width for width in widths if width is not None]
    if rank is None or attribute(node, "axis", 0) not in (-1, rank - 1) or len(known) != len(widths):
        return [None] * len(widths)
    ends = [int(end) for end in np.cumsum(known)]
    return [columns(operands[0], end - width, end) for end, width in zip(ends, known, strict=True)]


@_on("Slice")
def _slice(ctx: Context, node: ir.Node, operands: Sequence[Expression]) -> list[Expression | None]:
    """Columns that are next to each other."""
    source = node.inputs[0]
    rank = None if source is None else ctx.shapes.rank(source)
    bounds = None if rank is None else shape_rules.slice_bounds(ctx.shapes, node, rank)
    width = _width(source, ctx)
    if not bounds or rank is None or width is None or len(bounds) != 1:
        return [None]
    axis, begin, _, pace = bounds[0]
    size = _width(node.outputs[0], ctx)
    if axis % rank != rank - 1 or pace != 1 or not isinstance(begin, int) or size is None:
        return [None]
    first = begin if begin >= 0 else begin + width
    return [columns(operands[0], first, first + size)] if 0 <= first <= width - size else [None]


@_on("Unsqueeze", "Squeeze")
def _leading_units(ctx: Context, node: ir.Node, operands: Sequence[Expression]) -> list[Expression | None]:
    """Dims of one element in front of all others change nothing that an expression says."""
    axes = ir.integers(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
    rank = ctx.shapes.rank(node.outputs[0] if node.op_type == "Unsqueeze" else node.inputs[0])  # type: ignore[arg-type]
    if axes is None or rank is None:
        return [None]
    return [operands[0] if sorted(axis % rank for axis in axes) == list(range(len(axes))) else None]


@_on("RNN", "GRU", "LSTM")
def _one_step(ctx: Context, node: ir.Node, operands: Sequence[Expression]) -> list[Expression | None]:
    """A recurrent op over a sequence of one element, which exporters write for a cell."""
    sequence = None if node.inputs[0] is None else ctx.shapes.shape(node.inputs[0])
    form = form_of(node, ctx)
    states = operands[-1:] if node.op_type != "LSTM" else operands[-2:]
    given = len(node.inputs) > 4 + len(states) and None not in node.inputs[5:]
    if sequence is None or sequence[0] != 1 or not isinstance(form, Form) or len(form.reverse) != 1 or not given:
        return [None] * len(node.outputs)
    after = _CellOf(form, operands[0], states[0]).after(states)
    return [after[0], *after][: len(node.outputs)]


class _CellOf:
    """The expressions of a recurrent op's step."""

    def __init__(self, form: Form, x: Expression, h: Expression) -> None:
        self.form, self.x, self.h = form, x, h

    def after(self, states: Sequence[Expression]) -> list[Expression | None]:
        names = self.form.activations[0]
        if self.form.node.op_type == "RNN":
            return [Activation(names[0], self._gate(0, self.h))]
        if self.form.node.op_type == "GRU":
            return [self._gru(*names)]
        f, g, last = names
        i, o, forget = (Activation(f, self._gate(gate, self.h)) for gate in range(3))
        state = Sum(Times(forget, states[1]), Times(i, Activation(g, self._gate(3, self.h))))
        return [Times(o, Applied(last, state)), state]

    def _gru(self, f: str, g: str) -> Expression:
        z, reset = (Activation(f, self._gate(gate, self.h)) for gate in (0, 1))
        if attribute(self.form.node, "linear_before_reset", 0):
            inner = self._linear(self.h, self.form.r[0, 2], self.form.r_bias[0, 2])
            outer = self._linear(self.x, self.form.w[0, 2], self.form.w_bias[0, 2])
            n = Activation(g, dataclasses.replace(outer, gated=((reset, inner),)))
        else:
            n = Activation(g, self._gate(2, Times(reset, self.h)))
        return Sum(Times(dataclasses.replace(z, complement=True), n), Times(z, self.h))

    def _gate(self, gate: int, h: Expression) -> Linear:
        form = self.form
        sum_of = self._linear(self.x, form.w[0, gate], form.w_bias[0, gate] + form.r_bias[0, gate])
        return dataclasses.replace(sum_of, products=(*sum_of.products, (h, form.r[0, gate].T)))

    @staticmethod
    def _linear(x: Expression, matrix: np.ndarray, bias: np.ndarray) -> Linear:
        return Linear(matrix.shape[0], ((x, matrix.T),), bias=bias)
