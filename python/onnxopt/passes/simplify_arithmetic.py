"""Arithmetic with constants: chains become one op, and costly ops cheaper ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.affine import FOLDABLE, rounded
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op, pattern
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, attribute, rule

MAX_ELEMENTS = 1 << 16
"""Constants of a chain are combined up to this size: vectors over channels are smaller, weights are not read."""

WIDENING_ELEMENTS = 1024
"""Two constants may broadcast each other to a larger one up to this size."""

PRECISION = {ir.DataType.FLOAT16: 11, ir.DataType.BFLOAT16: 8, ir.DataType.FLOAT: 24, ir.DataType.DOUBLE: 53}
"""Bits of the significand."""

SCALE_EXPONENT = 24
"""Scales around a matrix product are combined from 2 ** -SCALE_EXPONENT to its inverse: beyond, they guard a range."""

BOUND_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
EXPONENTS = {2.0: "square", -1.0: "reciprocal", 0.5: "root"}

NON_NEGATIVE = frozenset({"Abs", "Exp", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Sigmoid", "Softmax", "Softplus"})
NON_NEGATIVE_OF_SUCH = frozenset(
    {"Add", "Div", "Max", "Mul", "ReduceMax", "ReduceMean", "ReduceSum", "Reshape", "Sqrt"}
)
PROOF_DEPTH = 6
"""Nodes that a proof of a sign looks back over: the variance of a decomposed norm is four deep."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Term:
    """A node that combines `x` with a constant; `first` says that `x` is the first operand."""

    node: ir.Node
    x: ir.Value
    constant: ir.Value
    first: bool

    @property
    def array(self) -> np.ndarray:
        tensor = ir.constant(self.constant)
        assert tensor is not None
        return tensor.numpy()


def _term(node: ir.Node | None, op_types: tuple[str, ...]) -> _Term | None:
    if node is None or node.op_type not in op_types or node.domain or len(node.inputs) != 2:
        return None
    left, right = node.inputs
    if left is None or right is None or "axis" in node.attributes:
        return None
    for x, constant, first in ((left, right, True), (right, left, False)):
        tensor = ir.constant(constant)
        if tensor is not None and ir.constant(x) is None and 0 < tensor.size <= MAX_ELEMENTS:
            return _Term(node, x, constant, first)
    return None


def _chain(m: Match, op_types: tuple[str, ...]) -> tuple[_Term, _Term] | Refusal | None:
    """The root and the node before it, when both combine their data with constants that may become one."""
    outer = _term(m.root, op_types)
    inner = None if outer is None else _term(outer.x.producer(), op_types)
    if outer is None or inner is None:
        return None
    if ir.use_count(outer.x) > 1 or outer.x.is_graph_output():
        return Refusal("'{}' is used by others as well", outer.x.name, culprit=outer.x)
    first, second = inner.array, outer.array
    size = int(np.prod(np.broadcast_shapes(first.shape, second.shape)))
    if size > max(first.size, second.size, WIDENING_ELEMENTS):
        return Refusal("the constants together have {} elements", size, culprit=outer.constant)
    return outer, inner


def _exact(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _constant(b: Builder, array: np.ndarray, dtype: ir.DataType, name: str | None) -> ir.Value | None:
    tensor = rounded(array, dtype) if dtype in FOLDABLE else ir.tensor_of(array, dtype)
    return None if tensor is None else b.constant(tensor, name or "constant")


# --- (x + c1) + c2 -------------------------------------------------------------------------------------------------
def _shift(term: _Term, array: np.ndarray) -> tuple[int, np.ndarray]:
    """Sign of x and the constant of `sign * x + constant`."""
    if term.node.op_type == "Add":
        return 1, array
    return (1, -array) if term.first else (-1, array)


@rule(op("Add", "Sub"))
def merge_shifts(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """Two additions of constants are one."""
    found, dtype = _chain(m, ("Add", "Sub")), m.ctx.shapes.dtype(m.output)
    if not isinstance(found, tuple) or dtype is None:
        return found if isinstance(found, Refusal) else None
    outer, inner = found
    floats = dtype in FOLDABLE
    arrays = [_exact(term.array) if floats else term.array for term in found]
    with np.errstate(over="ignore", invalid="ignore"):
        (outer_sign, outer_shift), (inner_sign, inner_shift) = map(_shift, found, arrays)
        total = outer_shift + (inner_shift if outer_sign > 0 else -inner_shift)
    if floats and _rounds_on_purpose(total, arrays, dtype):
        return Refusal("adding and taking away a large number rounds", culprit=inner.constant)
    constant = _constant(b, np.asarray(total), dtype, outer.constant.name)
    if constant is None:
        return Refusal("the sum of the constants does not fit into {}", dtype.name, culprit=outer.constant)
    return b.Add(inner.x, constant) if outer_sign * inner_sign > 0 else b.Sub(constant, inner.x)


def _rounds_on_purpose(total: np.ndarray, parts: Sequence[np.ndarray], dtype: ir.DataType) -> bool:
    """Whether large constants cancel, as in the rounding to integers by `(x + 1.5 * 2**23) - 1.5 * 2**23`."""
    largest = max(float(np.abs(part).max()) for part in parts)
    return bool(largest > 2.0 ** (PRECISION[dtype] // 2) and np.abs(total).min() < largest / 2)


# --- (x * c1) / c2 -------------------------------------------------------------------------------------------------
def _scale(term: _Term, array: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Exponent of x, numerator and denominator of `x ** exponent * numerator / denominator`."""
    one = np.ones((), array.dtype)
    if term.node.op_type == "Mul":
        return 1, array, one
    return (1, one, array) if term.first else (-1, array, one)


@rule(op("Mul", "Div"))
def merge_scales(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """Two multiplications or divisions by constants are one."""
    found, dtype = _chain(m, ("Mul", "Div")), m.ctx.shapes.dtype(m.output)
    if not isinstance(found, tuple) or dtype is None:
        return found if isinstance(found, Refusal) else None
    outer, inner = found
    if dtype not in FOLDABLE:
        return _merge_integer_scales(b, outer, inner, dtype)
    (power, top, bottom), (inner_power, inner_top, inner_bottom) = (_scale(term, _exact(term.array)) for term in found)
    if power < 0:
        inner_top, inner_bottom = inner_bottom, inner_top
    with np.errstate(all="ignore"):
        top, bottom = np.asarray(top * inner_top), np.asarray(bottom * inner_bottom)
        ratio = np.asarray(top / bottom)
    if not (_is_normal(ratio, dtype) and _is_normal(top, dtype) and _is_normal(bottom, dtype)):
        return Refusal("the constants together leave the range of {}", dtype.name, culprit=outer.constant)
    divides = power * inner_power > 0 and bool((top == 1).all())
    constant = _constant(b, bottom if divides else ratio, dtype, outer.constant.name)
    if constant is None:
        return Refusal("the constants together leave the range of {}", dtype.name, culprit=outer.constant)
    if divides:
        return b.Div(inner.x, constant)
    return b.Mul(inner.x, constant) if power * inner_power > 0 else b.Div(constant, inner.x)


def _merge_integer_scales(b: Builder, outer: _Term, inner: _Term, dtype: ir.DataType) -> ir.Value | None:
    """Products of integers wrap alike in any order; quotients do not."""
    if outer.node.op_type != "Mul" or inner.node.op_type != "Mul":
        return None
    with np.errstate(over="ignore"):
        constant = _constant(b, np.asarray(outer.array * inner.array), dtype, outer.constant.name)
    return None if constant is None else b.Mul(inner.x, constant)


def _is_normal(array: np.ndarray, dtype: ir.DataType) -> bool:
    """Whether all numbers keep their precision in the element type: none is 0, subnormal, infinite or NaN."""
    smallest, largest = _range(dtype)
    magnitude = np.abs(array)
    return bool(((magnitude >= smallest) & (magnitude <= largest)).all())


def _range(dtype: ir.DataType) -> tuple[float, float]:
    info = np.finfo(np.float32 if dtype is ir.DataType.BFLOAT16 else dtype.numpy())
    return float(info.smallest_normal), float(info.max)


# --- division ------------------------------------------------------------------------------------------------------
@rule(op("Div"))
def multiply_by_reciprocal(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """Division by powers of two is multiplication by their reciprocals (with `fast_math`, division by any constant)."""
    term, dtype = _term(m.root, ("Div",)), m.ctx.shapes.dtype(m.output)
    if term is None or not term.first or dtype not in FOLDABLE:
        return None
    divisor = _exact(term.array)
    if not m.ctx.options.fast_math and not (np.abs(np.frexp(divisor)[0]) == 0.5).all():
        return Refusal("the reciprocal of '{}' is rounded", term.constant.name, culprit=term.constant)
    with np.errstate(divide="ignore"):
        reciprocal = np.asarray(1 / divisor)
    if not _is_normal(reciprocal, dtype):
        return Refusal("the reciprocal of '{}' leaves the range", term.constant.name, culprit=term.constant)
    constant = _constant(b, reciprocal, dtype, term.constant.name)
    return None if constant is None else b.Mul(term.x, constant)


@pattern
def _one_over(p, x):  # type: ignore[no-untyped-def]
    return p.Div(p.number(1, "one"), x)


def _is_float_of_own_shape(m: Match) -> bool:
    return m.dtype("x") in FOLDABLE and m.ctx.shapes.same_shape(m["x"], m.output) is True


@rule(_one_over, where=_is_float_of_own_shape, benefit=2)
def write_reciprocal(b: Builder, m: Match) -> ir.Value | None:
    """1 / x is Reciprocal."""
    return b.Reciprocal(m["x"]) if m.scalar("one") == 1 else None


@pattern
def _product_with_reciprocal(p, x, y):  # type: ignore[no-untyped-def]
    return p.Mul(x, p.Reciprocal(y))


def _saves_a_pass(m: Match) -> bool | Refusal:
    """Division is slower than multiplication: it must spare the Reciprocal of as many elements, unless only nodes count."""
    if not m.ctx.target.custom_ops or m.ctx.shapes.same_shape(m["y"], m.output):
        return True
    return Refusal("'{}' is smaller than the product", m["y"].name, culprit=m["y"])


@rule(_product_with_reciprocal, where=_saves_a_pass)
def divide_instead_of_reciprocal(b: Builder, m: Match) -> ir.Value:
    """x * Reciprocal(y) is x / y."""
    return b.Div(m["x"], m["y"])


@pattern
def _quotient_by_reciprocal(p, x, y):  # type: ignore[no-untyped-def]
    return p.Div(x, p.Reciprocal(y))


@rule(_quotient_by_reciprocal, benefit=2)
def multiply_instead_of_reciprocal(b: Builder, m: Match) -> ir.Value:
    """x / Reciprocal(y) is x * y."""
    return b.Mul(m["x"], m["y"])


@pattern
def _reciprocal_of_quotient(p, x, y):  # type: ignore[no-untyped-def]
    return p.Reciprocal(p.Div(x, y))


@rule(_reciprocal_of_quotient)
def turn_quotient(b: Builder, m: Match) -> ir.Value:
    """Reciprocal(x / y) is y / x."""
    return b.Div(m["y"], m["x"])


# --- Pow -----------------------------------------------------------------------------------------------------------
@pattern
def _power(p, x):  # type: ignore[no-untyped-def]
    return p.Pow(x, p.const("exponent"))


@rule(_power, where=_is_float_of_own_shape)
def replace_power(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """Pow by 2, -1 or 0.5 is a product, Reciprocal or Sqrt."""
    kind = EXPONENTS.get(m.scalar("exponent"))  # type: ignore[arg-type]
    x = m["x"]
    if kind == "square":
        users = m.output.uses()
        if users and all(user.op_type == "ReduceMean" for user, _ in users):
            return Refusal("it is the variance of a normalization, which runtimes know by its Pow", culprit=m.root)
        return b.Mul(x, x)
    if kind == "reciprocal":
        return b.Reciprocal(x)
    if kind == "root":
        if _is_non_negative(x, PROOF_DEPTH):
            return b.Sqrt(x)
        return Refusal("'{}' may be negative: Pow and Sqrt differ at minus infinity", x.name, culprit=x)
    return None


def _is_non_negative(value: ir.Value | None, depth: int) -> bool:
    """Whether every element is 0.0, positive or NaN, and never -0.0."""
    if value is None or depth == 0:
        return False
    array = ir.small_array(value)
    if array is not None:
        return not bool(np.signbit(array).any())
    node = value.producer()
    if node is None or node.domain:
        return False
    if node.op_type in NON_NEGATIVE:
        return True
    operands = node.inputs[:1] if node.op_type.startswith("Reduce") or node.op_type == "Reshape" else node.inputs
    if node.op_type == "Mul" and operands[0] is operands[1]:
        return True
    if node.op_type == "Pow":
        exponent = ir.scalar(node.inputs[1])
        return exponent is not None and exponent % 2 == 0
    return node.op_type in NON_NEGATIVE_OF_SUCH and all(_is_non_negative(one, depth - 1) for one in operands)


# --- Neg -----------------------------------------------------------------------------------------------------------
@pattern
def _sum_with_negative(p, x, y):  # type: ignore[no-untyped-def]
    return p.Add(x, p.Neg(y))


@rule(_sum_with_negative)
def subtract_instead_of_neg(b: Builder, m: Match) -> ir.Value:
    """x + Neg(y) is x - y."""
    return b.Sub(m["x"], m["y"])


@pattern
def _difference_with_negative(p, x, y):  # type: ignore[no-untyped-def]
    return p.Sub(x, p.Neg(y))


@rule(_difference_with_negative)
def add_instead_of_neg(b: Builder, m: Match) -> ir.Value:
    """x - Neg(y) is x + y."""
    return b.Add(m["x"], m["y"])


@pattern
def _scaled_negative(p, x, c):  # type: ignore[no-untyped-def]
    negative, constant = p.Neg(x), p.const("c")
    return [p.Mul(negative, constant), p.Div(negative, constant), p.Neg(p.Mul(x, constant)), p.Neg(p.Div(x, constant))]


@rule(_scaled_negative)
def fold_neg_into_scale(b: Builder, m: Match) -> ir.Value | None:
    """Neg before or after a scale is a scale of the other sign."""
    tensor, dtype = ir.constant(m["c"]), m.dtype("c")
    if tensor is None or dtype not in FOLDABLE or not 0 < tensor.size <= MAX_ELEMENTS:
        return None
    scale = next(node for node in m.matched if node.op_type != "Neg")
    constant = b.constant(ir.tensor_of(-tensor.numpy(), dtype), m["c"].name or "scale")
    return b.op(scale.op_type, [m["x"], constant])[0]


# --- Clip, Min, Max, Relu ------------------------------------------------------------------------------------------
BOUNDING = ("Clip", "Max", "Min", "Relu")


@pattern
def _bounded_twice(p):  # type: ignore[no-untyped-def]
    inner = p.op(BOUNDING, as_="inner", open_inputs=True)
    return [p.op(BOUNDING, inner, open_inputs=True), p.op(("Max", "Min"), p.const("c"), inner)]


def _bounds(node: ir.Node, dtype: ir.DataType) -> tuple[ir.Value, float, float] | None:
    """The operand that varies, its lowest and its highest value."""
    x = node.inputs[0]
    if node.op_type == "Relu":
        return None if x is None else (x, 0.0, np.inf)
    if node.op_type != "Clip":
        term = _term(node, (node.op_type,))
        number = None if term is None or term.array.size != 1 else ir.scalar(term.constant)
        if term is None or number is None:
            return None
        return (term.x, float(number), np.inf) if node.op_type == "Max" else (term.x, -np.inf, float(number))
    largest = _range(dtype)[1]
    found = []
    for index, name, default in ((1, "min", -largest), (2, "max", largest)):
        bound = ir.input_at(node, index)
        number = attribute(node, name, default) if bound is None else ir.scalar(bound)
        if number is None:
            return None
        found.append(float(number))
    return None if x is None else (x, found[0], found[1])


@rule(_bounded_twice)
def merge_bounds(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """Two of Clip, Relu, Min and Max with constants are one."""
    dtype = m.ctx.shapes.dtype(m.output)
    if dtype not in BOUND_TYPES:
        return None
    outer, inner = _bounds(m.root, dtype), _bounds(m.node("inner"), dtype)
    if outer is None or inner is None or outer[0] is not m.node("inner").outputs[0]:
        return None
    x, low, high = inner
    low, high = (min(max(bound, outer[1]), outer[2]) for bound in (low, high))
    if np.isnan([*inner[1:], *outer[1:]]).any() or m.ctx.shapes.same_shape(x, m.output) is not True:
        return Refusal("the bounds are not single numbers", culprit=m.root)
    return _bounded(b, x, low, high, dtype)


def _bounded(b: Builder, x: ir.Value, low: float, high: float, dtype: ir.DataType) -> ir.Value:
    def number(bound: float) -> ir.Value:
        return b.constant(np.array(bound, dtype.numpy()), "bound")

    if high == np.inf:
        return b.Relu(x) if low == 0 else b.Max(x, number(low))
    if low == -np.inf:
        return b.Min(x, number(high))
    if b.ctx.opset < 11:
        return b.Clip(x, min=low, max=high)
    return b.Clip(x, number(low), number(high))


# --- scales around a matrix product --------------------------------------------------------------------------------
@pattern
def _scaled_product(p, x, y):  # type: ignore[no-untyped-def]
    scales = ("Mul", "Div")
    left, right = p.op(scales, open_inputs=True, as_="first"), p.op(scales, open_inputs=True, as_="second")
    return p.MatMul(left, right)


def _single_scale(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The operand and the number by which a node multiplies it."""
    term = _term(node, ("Mul", "Div"))
    if term is None or term.array.size != 1 or term.array.ndim > 1:
        return None
    number = float(term.array.reshape(-1)[0])
    if not 2.0**-SCALE_EXPONENT <= abs(number) <= 2.0**SCALE_EXPONENT:
        return None
    if node.op_type == "Mul":
        return term.x, number
    return (term.x, 1 / number) if term.first else None


@rule(_scaled_product)
def merge_scales_of_product(b: Builder, m: Match) -> ir.Value | None:
    """A matrix product of two scaled operands needs only one of the scales, at the smaller operand."""
    dtype = m.ctx.shapes.dtype(m.output)
    first, second = _single_scale(m.node("first")), _single_scale(m.node("second"))
    if first is None or second is None or dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return None
    (x, left), (y, right) = first, second
    if (m.ctx.shapes.rank(x) or 0) < 1 or (m.ctx.shapes.rank(y) or 0) < 1:
        return None
    scale = b.constant(np.array(left * right, dtype.numpy()), "scale")
    if _elements(m, x) < _elements(m, y):
        return b.MatMul(b.Mul(x, scale), y)
    return b.MatMul(x, b.Mul(y, scale))


def _elements(m: Match, value: ir.Value) -> float:
    shape = m.ctx.shapes.static_shape(value)
    return np.inf if shape is None else float(np.prod(shape))


@register_pass
class SimplifyArithmetic(RulePass):
    """Combine chains of arithmetic and bounds with constants, and write costly ops as cheaper ones.

    Constants of floats are combined in float64 and rounded once; those of integers wrap as the ops do. Division by
    powers of two becomes multiplication, Pow by 2, -1 and 0.5 a product, Reciprocal and Sqrt, a Reciprocal or Neg
    part of the op behind it; two scales of the operands of a matrix product become one.

    Refused: chains whose middle others use, constants that together leave the normal range or broadcast to something
    large, the rounding by adding and taking away a large number, quotients of integers, Pow by 0.5 of what may be
    negative, division by other constants unless `fast_math` is chosen.
    """

    name = "simplify_arithmetic"
    phase = "simplify"
    rules = RuleSet(
        [
            merge_shifts,
            merge_scales,
            multiply_by_reciprocal,
            write_reciprocal,
            divide_instead_of_reciprocal,
            multiply_instead_of_reciprocal,
            turn_quotient,
            replace_power,
            subtract_instead_of_neg,
            add_instead_of_neg,
            fold_neg_into_scale,
            merge_bounds,
            merge_scales_of_product,
        ]
    )
