"""Biases, scales, normalizations and transposes around matrix products become part of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import RulePass, register_pass
from onnxopt.rewrite.affine import (
    FOLDABLE,
    Affine,
    affine_of,
    affine_terms,
    ends_formula,
    rounded,
    scaled_weights,
)
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import op, pattern
from onnxopt.rewrite.rules import Match, Refusal, RuleSet, attribute, rule

PRODUCTS = ("Gemm", "MatMul")
VIEWS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")
"""Ops that move elements and leave them as they are, so that a scale may pass them."""

ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Relu", "Gelu", "Erf", "Tanh", "Sigmoid", "HardSwish", "FusedElementwise"}
)
"""Ops into which a bias fuses when it is no longer added by the Gemm."""

OPTIONAL_BIAS_OPSET = 11
"""Since then Gemm may do without C."""

RANK = 2


# --- a bias --------------------------------------------------------------------------------------------------------
@pattern
def _matmul_add(p, a, w, c):  # type: ignore[no-untyped-def]
    return p.Add(p.MatMul(a, w, as_="product"), c)


@rule(_matmul_add)
def fuse_matmul_add(b: Builder, m: Match) -> ir.Value | Refusal:
    """The product of two matrices plus what broadcasts to it is a Gemm."""
    if m.rank("a") != RANK or m.rank("w") != RANK:
        return Refusal("they are not matrices", culprit=m.root)
    if m.dtype("a") not in FOLDABLE:
        return Refusal("Gemm of {} is not worth having", m.dtype("a"), culprit=m.root)
    objection = _against_bias(m, "c", m.node("product").outputs[0])
    return objection if objection is not None else b.Gemm(m["a"], m["w"], m["c"])


def _against_bias(m: Match, name: str, product: ir.Value) -> Refusal | None:
    """Why a value cannot be the C of a Gemm: its dims must be those of the product or 1, and it must not make the
    product larger."""
    rank = m.rank(name)
    if rank is None or rank > RANK or m.ctx.shapes.same_shape(product, m.output) is not True:
        return Refusal("'{}' does not broadcast to the product", m[name].name, culprit=m[name])
    return None


@pattern
def _gemm_add(p, a, w, d):  # type: ignore[no-untyped-def]
    return p.Add(p.Gemm(a, w, as_="product"), d)


@rule(_gemm_add)
def fuse_gemm_add(b: Builder, m: Match) -> ir.Value | Refusal:
    """A Gemm without C takes what is added to it."""
    gemm = m.node("product")
    objection = _against_bias(m, "d", gemm.outputs[0])
    return objection if objection is not None else b.copy_of(gemm, [m["a"], m["w"], m["d"]], beta=None)[0]


# --- scales and shifts ---------------------------------------------------------------------------------------------
class _Product:
    """A Gemm or MatMul whose right operand is a matrix, as `alpha * a @ w + beta * c`."""

    def __init__(self, node: ir.Node, a: ir.Value, w: ir.Value, c: ir.Value | None, shape: tuple[int, ...]) -> None:
        self.node, self.a, self.w, self.c = node, a, w, c
        self.is_gemm = node.op_type == "Gemm"
        self.transposed = self.is_gemm and bool(attribute(node, "transB", 0))
        self.depth, self.columns = reversed(shape) if self.transposed else shape
        self.alpha = attribute(node, "alpha", 1.0) if self.is_gemm else 1.0
        self.beta = attribute(node, "beta", 1.0) if self.is_gemm else 1.0

    def along_columns(self, vector: np.ndarray) -> np.ndarray:
        """A vector over columns of the result (or one element), as it multiplies the weights."""
        return vector.reshape((-1, 1) if self.transposed else (1, -1))

    def along_depth(self, vector: np.ndarray) -> np.ndarray:
        """A vector over columns of the left operand (or one element), as it multiplies the weights."""
        return vector.reshape((1, -1) if self.transposed else (-1, 1))

    def bias(self) -> np.ndarray | Refusal | None:
        """`beta * c` as float64, None where there is none."""
        if self.c is None:
            return None
        tensor = ir.constant(self.c)
        if tensor is None or tensor.dtype not in FOLDABLE:
            return Refusal("'{}' is not constant", self.c.name, culprit=self.c)
        return np.asarray(tensor.numpy().astype(np.float64) * self.beta)

    def build(self, b: Builder, a: ir.Value, w: ir.Value, c: ir.Value | None, **attributes: Any) -> ir.Value:
        """The same product of other operands."""
        if not self.is_gemm:
            return b.MatMul(a, w) if c is None else b.Gemm(a, w, c)
        return b.copy_of(self.node, [a, w] if c is None else [a, w, c], **attributes)[0]


def _product(node: ir.Node, m: Match) -> _Product | Refusal:
    operands = [*node.inputs, None]
    a, w, c = operands[0], operands[1], operands[2]
    shape = None if w is None else m.ctx.shapes.static_shape(w)
    if a is None or w is None or shape is None or len(shape) != RANK or 0 in shape:
        return Refusal("its right operand is no matrix of known size", culprit=node)
    return _Product(node, a, w, c if node.op_type == "Gemm" else None, shape)


@pattern
def _affine_of_product(p, a, w):  # type: ignore[no-untyped-def]
    return affine_terms(p, p.op(PRODUCTS, a, w, p.optional("c0"), as_="product"))


@rule(_affine_of_product)
def fold_affine_after_product(b: Builder, m: Match) -> list[ir.Value | None] | Refusal:
    """Scales per column become part of the weights (or of alpha and beta), shifts of C."""
    node = m.node("product")
    product = _product(node, m)
    if isinstance(product, Refusal):
        return product
    rank = m.ctx.shapes.rank(node.outputs[0])
    if rank is None or rank < 1 or m.ctx.shapes.same_shape(node.outputs[0], m.output) is not True:
        return Refusal("the constant may broadcast the product to another shape", culprit=m.root)
    affine = affine_of(m.root, node.outputs[0], rank=rank, axis=rank - 1, length=product.columns)
    if isinstance(affine, Refusal):
        return affine
    built = _with_affine(b, m, product, affine, is_matrix=rank == RANK)
    return built if isinstance(built, Refusal) else [built, *(None for _ in m.root.outputs[1:])]


def _with_affine(b: Builder, m: Match, product: _Product, affine: Affine, *, is_matrix: bool) -> ir.Value | Refusal:
    """The product with an affine map of its columns folded in; a MatMul becomes a Gemm for a shift where its result is
    a matrix."""
    if affine.shift is None and affine.scale is not None and affine.scale.size == 1 and product.is_gemm:
        changed = _scaled_attributes(m, product, float(affine.scale[0]))
        if changed is not None:
            return product.build(b, product.a, product.w, product.c, **changed)
    if affine.shift is not None and not product.is_gemm and not is_matrix:
        return Refusal("only a Gemm adds", culprit=product.node)
    bias = product.bias()
    if isinstance(bias, Refusal):
        return bias
    w: ir.Value | Refusal = product.w
    if affine.scale is not None:
        w = scaled_weights(b, product.w, product.along_columns(affine.scale))
    if isinstance(w, Refusal):
        return w
    if bias is None and affine.shift is None:
        return product.build(b, product.a, w, None)
    scale = np.ones(1) if affine.scale is None else affine.scale
    shift = np.zeros(1) if affine.shift is None else affine.shift
    folded = (np.zeros(1) if bias is None else bias) * scale + shift
    if bias is not None and folded.size > max(bias.size, product.columns):
        return Refusal("the bias would grow to a matrix", culprit=product.c)
    return _with_bias(b, m, product, w, folded)


def _with_bias(b: Builder, m: Match, product: _Product, w: ir.Value, exact: np.ndarray) -> ir.Value | Refusal:
    """The product with C computed anew."""
    dtype = m.ctx.shapes.dtype(product.w)
    tensor = None if dtype is None else rounded(exact, dtype)
    if tensor is None:
        return Refusal("the folded bias does not fit into its element type", culprit=product.node)
    name = product.c.name if product.c is not None else f"{product.node.name}.bias"
    return product.build(b, product.a, w, b.constant(tensor, name or "bias"), beta=None)


def _scaled_attributes(m: Match, product: _Product, scale: float) -> dict[str, float] | None:
    """New alpha and beta; None where float32, which attributes are, would lose precision or range."""
    alpha, beta = np.float32(product.alpha * scale), np.float32(product.beta * scale)
    if m.ctx.shapes.dtype(product.w) is ir.DataType.DOUBLE or not _is_normal(alpha):
        return None
    if product.c is None:
        return {"alpha": float(alpha)}
    return {"alpha": float(alpha), "beta": float(beta)} if _is_normal(beta) else None


def _is_normal(number: np.float32) -> bool:
    return bool(np.isfinite(number)) and abs(float(number)) >= float(np.finfo(np.float32).smallest_normal)


@pattern
def _product_of_affine(p, x, w):  # type: ignore[no-untyped-def]
    return [p.op(PRODUCTS, affine, w, p.optional("c0")) for affine in affine_terms(p, x, as_="affine")]


@rule(_product_of_affine)
def fold_affine_before_product(b: Builder, m: Match) -> ir.Value | Refusal:
    """Scales per column of the left operand become part of the weights, shifts of a Gemm's C."""
    node = m.node("affine")
    product = _product(m.root, m)
    if isinstance(product, Refusal):
        return product
    rank = m.rank("x")
    if rank is None or rank < 1 or m.ctx.shapes.same_shape(m["x"], node.outputs[0]) is not True:
        return Refusal("'{}' may be broadcast to another shape", m["x"].name, culprit=node)
    if product.a is not node.outputs[0] or (product.is_gemm and attribute(m.root, "transA", 0)):
        return Refusal("it does not scale columns of the left operand", culprit=node)
    if ends_formula(node, m["x"], norms=True):
        return Refusal("it may end the formula of an activation or a norm", culprit=node)
    affine = affine_of(node, m["x"], rank=rank, axis=rank - 1, length=product.depth)
    if isinstance(affine, Refusal):
        return affine
    product.a = m["x"]
    return _of_affine(b, m, product, affine)


def _of_affine(b: Builder, m: Match, product: _Product, affine: Affine) -> ir.Value | Refusal:
    w: ir.Value | Refusal = product.w
    if affine.scale is not None:
        w = scaled_weights(b, product.w, product.along_depth(affine.scale))
    if isinstance(w, Refusal):
        return w
    if affine.shift is None:
        return product.build(b, product.a, w, product.c)
    tensor, bias = ir.constant(product.w), product.bias()
    if not product.is_gemm or tensor is None:
        return Refusal("only a Gemm of constant weights adds", culprit=product.node)
    if isinstance(bias, Refusal):
        return bias
    weights = tensor.numpy().astype(np.float64)
    added = affine.shift_or_zero(product.depth) @ (weights.T if product.transposed else weights) * product.alpha
    return _with_bias(b, m, product, w, added if bias is None else bias + added)


# --- a scale further behind ----------------------------------------------------------------------------------------
@pattern
def _scaled(p, x):  # type: ignore[no-untyped-def]
    return [p.Mul(x, p.const("c")), p.Div(x, p.const("c"))]


@rule(_scaled)
def fold_scale_behind_views(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """A number that multiplies a product behind a constant bias, reshapes and transposes multiplies weights and bias
    instead."""
    number = m.scalar("c")
    array = m.array("c")
    if number is None or array is None or m.dtype("x") not in FOLDABLE:
        return None
    if not m.ctx.shapes.same_shape(m["x"], m.output):
        return Refusal("'{}' may broadcast it to another shape", m["c"].name, culprit=m.root)
    scale = float(number) if m.root.op_type == "Mul" else (1 / float(number) if number else math.nan)
    if not math.isfinite(scale):
        return Refusal("it is not finite", culprit=m.root)
    views, value = _views(m["x"])
    add = _only_user_of_product(value)
    node = value.producer() if add is None else add[0].producer()
    if node is None or node.op_type not in PRODUCTS or node.domain or not (views or add):
        return None
    product = _product(node, m)
    if isinstance(product, Refusal):
        return product
    built = _with_affine(b, m, product, Affine(scale=np.array([scale])), is_matrix=False)
    if isinstance(built, ir.Value) and add is not None:
        built = _plus_scaled(b, built, add[1], scale)
    if isinstance(built, Refusal):
        return built
    for view in reversed(views):
        built = b.copy_of(view, [built, *view.inputs[1:]])[0]
    return built


def _views(value: ir.Value) -> tuple[list[ir.Node], ir.Value]:
    """The single-use views that a value went through, the last first, and what they view."""
    views: list[ir.Node] = []
    while _is_inner(value):
        node = value.producer()
        if node is None or node.domain or node.op_type not in VIEWS or node.inputs[0] is None:
            break
        views.append(node)
        value = node.inputs[0]
    return views, value


def _only_user_of_product(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The product and the constant where `value` is their sum and the sum has no other use."""
    node = value.producer()
    if node is None or node.domain or node.op_type != "Add" or not _is_inner(value):
        return None
    for product, addend in (node.inputs, reversed(node.inputs)):
        if product is not None and addend is not None and _is_inner(product) and ir.constant(addend) is not None:
            return product, addend
    return None


def _is_inner(value: ir.Value) -> bool:
    return ir.use_count(value) == 1 and not value.is_graph_output()


def _plus_scaled(b: Builder, product: ir.Value, addend: ir.Value, scale: float) -> ir.Value | Refusal:
    scaled = scaled_weights(b, addend, np.full((1,), scale))
    return scaled if isinstance(scaled, Refusal) else b.Add(product, scaled)


# --- transposes ----------------------------------------------------------------------------------------------------
def _transposed(value: ir.Value | None, m: Match) -> ir.Value | None:
    """The matrix that `value` is the transpose of, where nothing else uses the transpose."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.op_type != "Transpose" or node.domain or not _is_inner(value):
        return None
    source = node.inputs[0]
    if source is None or m.ctx.shapes.rank(source) != RANK or list(attribute(node, "perm", (1, 0))) != [1, 0]:
        return None
    return source


@rule(op("Gemm"), benefit=2)
def fuse_transpose_into_gemm(b: Builder, m: Match) -> ir.Value | None:
    """Gemm transposes its operands itself."""
    inputs = list(m.root.inputs)
    flags: dict[str, int] = {}
    for index, flag in ((0, "transA"), (1, "transB")):
        source = _transposed(inputs[index], m)
        if source is not None:
            inputs[index] = source
            flags[flag] = 1 - attribute(m.root, flag, 0)
    return b.copy_of(m.root, inputs, **flags)[0] if flags else None


@rule(op("MatMul"), benefit=2)
def fuse_transpose_into_matmul(b: Builder, m: Match) -> ir.Value | Refusal | None:
    """The product of two matrices of which one is transposed is a Gemm."""
    left, right = (_transposed(value, m) for value in m.root.inputs)
    if left is None and right is None:
        return None
    a, w = left or m.root.inputs[0], right or m.root.inputs[1]
    assert a is not None and w is not None
    shapes = m.ctx.shapes
    if shapes.rank(a) != RANK or shapes.rank(w) != RANK or shapes.dtype(a) not in FOLDABLE:
        return Refusal("they are not matrices of floats", culprit=m.root)
    if m.ctx.opset < OPTIONAL_BIAS_OPSET:
        return Refusal("Gemm needs C before opset {}", OPTIONAL_BIAS_OPSET, culprit=m.root)
    return b.Gemm(a, w, transA=int(left is not None) or None, transB=int(right is not None) or None)


# --- reshapes ------------------------------------------------------------------------------------------------------
@pattern
def _gemm_between_reshapes(p, x, w):  # type: ignore[no-untyped-def]
    rows = p.Reshape(x, p.any("rows"))
    return p.Reshape(p.Gemm(rows, w, p.optional("c0"), as_="product"), p.any("shape"))


@rule(_gemm_between_reshapes)
def lift_gemm_to_matmul(b: Builder, m: Match) -> ir.Value | Refusal:
    """A Gemm over the flattened rows of a tensor is a MatMul of the tensor; a bias is added where the next op can take
    it."""
    product = _product(m.node("product"), m)
    if isinstance(product, Refusal):
        return product
    if product.transposed or product.alpha != 1 or product.beta != 1 or attribute(product.node, "transA", 0):
        return Refusal("it does more than multiply and add", culprit=product.node)
    before, after = m.ctx.shapes.shape(m["x"]), m.ctx.shapes.shape(m.output)
    if before is None or after is None or before[:-1] != after[:-1] or not before:
        return Refusal("the reshapes do not restore the leading dims", culprit=m.root)
    if before[-1] != product.depth or after[-1] != product.columns:
        return Refusal("the reshapes do not keep the columns", culprit=m.root)
    result = b.MatMul(m["x"], m["w"])
    if product.c is None:
        return result
    if m.ctx.shapes.shape(product.c) not in ((product.columns,), (1, product.columns), (1,), ()):
        return Refusal("the bias varies by row", culprit=product.c)
    users = [user.op_type for user, _ in m.output.uses()]
    if not m.ctx.target.custom_ops or len(users) != 1 or users[0] not in ELEMENTWISE:
        return Refusal("nothing behind it takes the bias", culprit=m.root)
    return b.Add(result, product.c)


@register_pass
class FuseIntoGemms(RulePass):
    """Fold biases, scales, BatchNormalization, Transposes and Reshapes around Gemm and MatMul into them.

    MatMul and Add of matrices become a Gemm; constants that multiply columns become part of the weights (of alpha and
    beta where that does), also from behind a constant bias, reshapes and transposes; weights are scaled in float64 and
    rounded once, large mapped ones while the model is written.

    Refused: biases that broadcast the product to another shape, products that others use as well, integers, constants
    that vary along other axes, what may end the formula of an activation or a norm, large weights that others use as
    well, and results that the element type cannot hold.
    """

    name = "fuse_into_gemms"
    phase = "simplify"
    rules = RuleSet(
        [
            fuse_matmul_add,
            fuse_gemm_add,
            fold_affine_after_product,
            fold_affine_before_product,
            fold_scale_behind_views,
            fuse_transpose_into_gemm,
            fuse_transpose_into_matmul,
            lift_gemm_to_matmul,
        ]
    )
