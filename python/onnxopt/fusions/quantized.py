"""Quantized operands as QuantizeLinear and DequantizeLinear write them."""

from __future__ import annotations

import dataclasses

import numpy as np

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.passes.base import Context
from onnxopt.rewrite.rules import Refusal, attribute

BYTES = (DataType.UINT8, DataType.INT8)

MAX_SCALE = np.finfo(np.float32).max / 255
"""With larger ones, a byte may stand for infinity."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operand:
    """An activation: its bytes, or the float tensor that they are made of, and one scale and zero point."""

    value: ir.Value
    dtype: DataType
    scale: np.ndarray | ir.Value
    zero: np.ndarray | ir.Value


@dataclasses.dataclass(frozen=True, slots=True)
class Bytes:
    """An activation of bytes with one constant scale and zero point."""

    value: ir.Value
    dtype: DataType
    scale: np.ndarray
    zero: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class Weights:
    """A constant: int8 around 0, and a scale for each index of `axis` (one for all where it is None)."""

    array: np.ndarray
    scale: np.ndarray
    axis: int | None

    def transposed(self) -> Weights:
        return Weights(self.array.T, self.scale, None if self.axis is None else 1 - self.axis)


def dequantized(value: ir.Value | None, ctx: Context) -> Bytes | None:
    """The bytes that a DequantizeLinear with one scale makes `value` of; None where none does."""
    node = _dequantized(value)
    if node is None:
        return None
    source = node.inputs[0]
    scale, zero = _scale_and_zero(node)
    if (
        source is None
        or scale is None
        or zero is None
        or scale.size != 1
        or zero.size != 1
        or scale.dtype != np.float32
    ):
        return None
    dtype = ctx.shapes.dtype(source)
    if ir.constant(source) is not None or dtype is None or dtype not in BYTES or scale.dtype != np.float32:
        return None
    return Bytes(source, dtype, scale.reshape(()), zero.reshape(()).astype(dtype.numpy()))


def measured(value: ir.Value | None, ctx: Context) -> Operand | None:
    """The bytes that DynamicQuantizeLinear makes, where a DequantizeLinear with its scale makes `value` of them; None where it does not."""
    node = _dequantized(value)
    maker = None if node is None or node.inputs[0] is None else node.inputs[0].producer()
    if node is None or maker is None or maker.op_type != "DynamicQuantizeLinear" or maker.domain:
        return None
    if tuple(node.inputs) != tuple(maker.outputs) or ctx.shapes.dtype(maker.outputs[1]) is not DataType.FLOAT:
        return None
    data, scale, zero = maker.outputs
    return Operand(data, DataType.UINT8, scale, zero)


def quantization(node: ir.Node | None) -> tuple[np.ndarray, np.ndarray] | None:
    """The single scale and zero point of a QuantizeLinear of float32 to bytes; None where it is something else."""
    if node is None or node.op_type != "QuantizeLinear" or node.domain:
        return None
    scale, zero = _scale_and_zero(node)
    if scale is None or zero is None or scale.size != 1 or zero.size != 1 or scale.dtype != np.float32:
        return None
    if made := attribute(node, "output_dtype", 0):
        zero = zero.astype(DataType(made).numpy())
    return (scale.reshape(()), zero.reshape(())) if zero.dtype in (np.uint8, np.int8) else None


def gives_back(node: ir.Node, given: Bytes) -> bool:
    """Whether a QuantizeLinear makes the same bytes again of what stands for some: its scale, an ordinary number, and its zero point are
    theirs."""
    own = quantization(node)
    if own is None or own[0] != given.scale or own[1] != given.zero or own[1].dtype != given.zero.dtype:
        return False
    return bool(0 < own[0] <= MAX_SCALE)


def operand(value: ir.Value | None, ctx: Context) -> Operand | None:
    """What a DequantizeLinear of bytes with one scale makes `value` of, before a QuantizeLinear that fits it; None where none does."""
    found = dequantized(value, ctx)
    if found is None:
        return None
    value, dtype, maker = found.value, found.dtype, found.value.producer()
    own = quantization(maker)
    data = None if maker is None else maker.inputs[0]
    fits = own is not None and own[0] == found.scale and own[1] == found.zero
    if data is not None and fits and ctx.shapes.dtype(data) is DataType.FLOAT:
        value, dtype = data, DataType.FLOAT
    return Operand(value, dtype, found.scale, found.zero)


def weights(value: ir.Value | None) -> Weights | None:
    """The constant bytes that a DequantizeLinear, and perhaps a Transpose of a matrix, makes `value` of; None where they are not around 0."""
    maker = None if value is None else value.producer()
    if maker is not None and maker.op_type == "Transpose" and maker.domain == "":
        inner = weights(maker.inputs[0])
        swaps = list(attribute(maker, "perm", (1, 0))) == [1, 0]
        return inner.transposed() if inner is not None and inner.array.ndim == 2 and swaps else None
    node = _dequantized(value)
    tensor = None if node is None else ir.constant(node.inputs[0])
    if node is None or tensor is None or tensor.dtype not in BYTES or attribute(node, "block_size", 0):
        return None
    scale, zero = _scale_and_zero(node)
    array = _around_zero(np.asarray(tensor.numpy()), zero)
    if scale is None or array is None or scale.dtype != np.float32 or array.ndim == 0:
        return None
    axis = attribute(node, "axis", 1) % array.ndim
    return Weights(array, scale.reshape(-1), None if scale.size == 1 else axis)


@dataclasses.dataclass(frozen=True, slots=True)
class Scaled:
    """What a MatMulInteger computes once its sums are scaled: its operands, and the node that makes the floats."""

    x: Operand
    matrix: Weights
    last: ir.Node


def scaled(node: ir.Node, ctx: Context) -> Scaled | Refusal:
    """A MatMulInteger and what makes floats of its sums: Cast, and Mul by scales, at most one of which is computed by the model."""
    tensor = ir.constant(node.inputs[1])
    array = None if tensor is None else np.asarray(tensor.numpy())
    if array is None:
        return Refusal("its weights are computed", culprit=node)
    given = ir.input_at(node, 3)
    middle = None if given is None else ir.constant(given)
    if given is not None and middle is None:
        return Refusal("the zero points of its weights are computed", culprit=node)
    matrix = _around_zero(array, np.zeros((), array.dtype) if middle is None else np.asarray(middle.numpy()))
    if matrix is None:
        return Refusal("its weights are not around zero", culprit=node)
    cast = _only_user(node.outputs[0], "Cast")
    if cast is None or attribute(cast, "to", 0) != DataType.FLOAT.value:
        return Refusal("its sums are not scaled to float32", culprit=node)
    last = cast
    factors: list[np.ndarray | ir.Value] = []
    while (scaling := _only_user(last.outputs[0], "Mul")) is not None:
        found = _factors(next(one for one in scaling.inputs if one is not last.outputs[0]), ctx)
        if found is None:
            break
        last, factors = scaling, [*factors, *found]
    return _scaled(node, matrix, last, factors, ctx)


def _scaled(
    node: ir.Node, matrix: np.ndarray, last: ir.Node, factors: list[np.ndarray | ir.Value], ctx: Context
) -> Scaled | Refusal:
    computed = [one for one in factors if isinstance(one, ir.Value)]
    scale = np.ones((), np.float32)
    for one in factors:
        if not isinstance(one, ir.Value):
            scale = scale * one.reshape(-1)
    columns = matrix.shape[-1]
    if len(computed) > 1 or scale.size not in (1, columns) or (scale.size > 1 and matrix.ndim != 2):
        return Refusal("its scales are not those of a tensor and of columns", culprit=node)
    source = node.inputs[0]
    dtype = None if source is None else ctx.shapes.dtype(source)
    zero = ir.input_at(node, 2)
    if source is None or dtype not in BYTES or (zero is not None and ctx.shapes.static_shape(zero) not in ((), (1,))):
        return Refusal("its left operand has several zero points", culprit=node)
    held = None if zero is None else ir.constant(zero)
    if zero is not None and held is None and ctx.shapes.static_shape(zero) != ():
        return Refusal("its zero point is no scalar", culprit=node)
    middle = np.zeros((), dtype.numpy()) if zero is None else zero if held is None else held.numpy().reshape(())
    x = Operand(source, dtype, computed[0] if computed else np.ones((), np.float32), middle)
    return Scaled(x, Weights(matrix, scale.reshape(-1), None if scale.size == 1 else 1), last)


def _only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    """The one node that reads a value, where it is of that kind."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    user = uses[0][0]
    return user if user.op_type == op_type and not user.domain else None


def _factors(value: ir.Value | None, ctx: Context) -> list[np.ndarray | ir.Value] | None:
    """Scales whose product a value is: constants (one number, or a vector of columns), and scalars that the model computes."""
    if value is None:
        return None
    tensor = ir.constant(value)
    if tensor is not None:
        array = np.asarray(tensor.numpy())
        return [array] if tensor.dtype is DataType.FLOAT and array.size in (1, *array.shape[-1:]) else None
    maker = value.producer()
    if maker is not None and maker.op_type == "Mul" and not maker.domain:
        parts = [_factors(one, ctx) for one in maker.inputs]
        if all(part is not None for part in parts):
            return [one for part in parts for one in part or []]
    return [value] if ctx.shapes.static_shape(value) == () and ctx.shapes.dtype(value) is DataType.FLOAT else None


def bias(value: ir.Value | None) -> np.ndarray | None:
    """A constant vector of floats, also where it is held as int32 with a scale."""
    if value is None:
        return None
    tensor = ir.constant(value)
    if tensor is not None:
        return np.asarray(tensor.numpy()) if tensor.dtype is DataType.FLOAT else None
    node = _dequantized(value)
    tensor = None if node is None else ir.constant(node.inputs[0])
    if node is None or tensor is None:
        return None
    scale, zero = _scale_and_zero(node)
    if scale is None or zero is None or zero.any():
        return None
    return np.asarray(np.asarray(tensor.numpy()) * scale.astype(np.float64), np.float32)


def is_rounded(node: ir.Node) -> bool:
    """Whether an op, or an op and what alone reads it, lies between DequantizeLinear and QuantizeLinear: engines that know the
    op in 8 bits compute it there."""
    reads = any(_dequantized(value) is not None or _is_rounded_product(value) for value in node.inputs)
    return reads and bool(node.outputs) and all(map(_is_quantized, node.outputs))


def _is_rounded_product(value: ir.Value | None) -> bool:
    """Whether Conv or Add makes a value of dequantized operands."""
    maker = None if value is None else value.producer()
    return maker is not None and maker.op_type in ("Conv", "Add") and _dequantized(maker.inputs[0]) is not None


def _is_quantized(value: ir.Value) -> bool:
    """Whether a value is read to be quantized alone, perhaps behind one more op."""
    users = [user for user, _ in value.uses()]
    if not users or value.is_graph_output():
        return False
    if len(users) == 1 and users[0].op_type in ("Relu", "Clip"):
        return _is_quantized(users[0].outputs[0])
    return all(user.op_type == "QuantizeLinear" for user in users)


def _dequantized(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" and node.domain == "" else None


def _scale_and_zero(node: ir.Node) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The constants of a node; a zero point that is left out is 0, here of uint8."""
    scale = None if node.inputs[1] is None else ir.constant(node.inputs[1])
    given = ir.input_at(node, 2)
    zero = None if given is None else ir.constant(given)
    if scale is None or (given is not None and zero is None):
        return None, None
    return np.asarray(scale.numpy()), np.zeros((), np.uint8) if zero is None else np.asarray(zero.numpy())


def _around_zero(array: np.ndarray, zero: np.ndarray | None) -> np.ndarray | None:
    """The bytes as int8 around 0; None where that is not possible."""
    middle = 0 if array.dtype == np.int8 else 128
    if zero is None or (zero != middle).any():
        return None
    return np.asarray((array.astype(np.int16) - middle).astype(np.int8))
