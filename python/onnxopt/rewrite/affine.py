"""Reading nodes as `y = x * scale + shift` along one axis, and folding scales into weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from onnxopt import ir
from onnxopt.rewrite.pattern import Constant, Op, PatternBuilder, Term
from onnxopt.rewrite.rules import Refusal, attribute

if TYPE_CHECKING:
    from onnxopt.rewrite.patch import Builder

FOLDABLE = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
"""Element types whose arithmetic may be re-associated with constants; integers would wrap elsewhere."""

SHARED_COPY_BYTES = 64 << 10
"""Weights that others use as well are copied with a scale folded in up to this size: then the node saved is worth more
than the bytes."""

STREAMED_BYTES = 64 << 10
"""Mapped weights from this size on are not scaled now, but while the output is written."""

SMALLEST_FACTOR = 2.0**-32
"""Weights that are scaled unseen are scaled by this much at least and 1 at most: then they neither overflow nor lose
their precision."""

STATISTICS_INPUTS = 5

GATES = frozenset({"Sigmoid", "HardSigmoid"})


@dataclasses.dataclass(frozen=True, slots=True)
class Affine:
    """`y = x * scale + shift`: float64 vectors of one element or of the axis's length; None where the node has no such
    part."""

    scale: np.ndarray | None = None
    shift: np.ndarray | None = None

    def scale_or_one(self, length: int) -> np.ndarray:
        """The scale as a vector of the axis's length."""
        return np.ones(length) if self.scale is None else _vector(self.scale, length)

    def shift_or_zero(self, length: int) -> np.ndarray:
        """The shift as a vector of the axis's length."""
        return np.zeros(length) if self.shift is None else _vector(self.shift, length)


def _vector(numbers: np.ndarray, length: int) -> np.ndarray:
    return numbers if numbers.size == length else np.full(length, numbers[0])


def affine_terms(p: PatternBuilder, x: Term, as_: str | None = None) -> list[Op]:
    """The nodes that may be an affine map of `x` with constants."""
    statistics = [Constant(name) for name in ("gamma", "beta", "mean", "variance")]
    return [
        p.op(("Add", "Mul"), x, p.const("c"), as_=as_),
        p.op(("Sub", "Div"), x, p.const("c"), as_=as_),
        p.Sub(p.const("c"), x, as_=as_),
        p.BatchNormalization(x, *statistics, as_=as_),
    ]


def affine_of(node: ir.Node, source: ir.Value, *, rank: int, axis: int, length: int) -> Affine | Refusal:
    """Read Add, Sub, Mul, Div or BatchNormalization of `source` as an affine map along an axis.

    Args:
        node: the node; its other inputs must be constant.
        source: the input that varies, a tensor of `rank` dims.
        rank: the rank of `source`.
        axis: the axis along which the constants may vary; along all others they must not.
        length: the size of `source` along that axis.
    """
    if node.op_type == "BatchNormalization":
        return _batch_norm(node, length) if axis == 1 else Refusal("it normalizes another axis", culprit=node)
    first = node.inputs[0] is source
    operand = node.inputs[1 if first else 0]
    vector = axis_vector(operand, rank, axis, length)
    if vector is None:
        return Refusal("'{}' is no constant along axis {} only", getattr(operand, "name", ""), axis, culprit=operand)
    affine = _arithmetic(node.op_type, vector, first)
    if affine is None:
        return Refusal("'{}' is divided by, or divides by, what cannot be folded", source.name, culprit=node)
    return affine


def _arithmetic(op_type: str, vector: np.ndarray, source_first: bool) -> Affine | None:
    if op_type == "Add":
        return Affine(shift=vector)
    if op_type == "Sub":
        return Affine(shift=-vector) if source_first else Affine(-np.ones(1), vector)
    if op_type == "Mul":
        return Affine(scale=vector)
    if op_type == "Div" and source_first and vector.all():
        return Affine(scale=1 / vector)
    return None


def _batch_norm(node: ir.Node, length: int) -> Affine | Refusal:
    if attribute(node, "training_mode", 0) != 0 or attribute(node, "is_test", 1) == 0:
        return Refusal("it is in training mode", culprit=node)
    if any(ir.use_count(value) or value.is_graph_output() for value in node.outputs[1:]):
        return Refusal("its statistics are used", culprit=node)
    vectors = [axis_vector(value, 1, 0, length) for value in node.inputs[1:STATISTICS_INPUTS]]
    if any(vector is None or vector.size != length for vector in vectors):
        return Refusal("its parameters are no constants of {} elements", length, culprit=node)
    gamma, beta, mean, variance = vectors
    assert gamma is not None and beta is not None and mean is not None and variance is not None
    spread = variance + attribute(node, "epsilon", 1e-5)
    if not (spread > 0).all():
        return Refusal("a variance is not positive", culprit=node)
    scale = gamma / np.sqrt(spread)
    return Affine(scale, beta - mean * scale)


def axis_vector(value: ir.Value | None, rank: int, axis: int, length: int) -> np.ndarray | None:
    """The elements of a constant that varies along one axis of a tensor of `rank` dims at most, as float64.

    None where the value is not constant, varies along other axes, or would broadcast the tensor to more dims or a
    larger axis.
    """
    tensor = ir.constant(value)
    if tensor is None or tensor.dtype not in FOLDABLE or len(tensor.shape) > rank:
        return None
    shape = (1,) * (rank - len(tensor.shape)) + tuple(tensor.shape.numpy())
    if shape[axis] not in (1, length) or any(dim != 1 for index, dim in enumerate(shape) if index != axis):
        return None
    return tensor.numpy().astype(np.float64).reshape(-1)


def ends_formula(node: ir.Node, source: ir.Value, *, norms: bool) -> bool:
    """Whether a node may end the formula of an activation or, with `norms`, of a normalization.

    Examples are the `* 0.5` of Gelu, the `/ 6` of HardSwish, and the `* gamma` and `+ beta` of LayerNormalization.
    Those must stay: the formula is worth more to who recognizes it, onnxruntime included, than the one node.
    """
    producer = source.producer()
    if producer is None or producer.op_type not in ("Mul", "Div") or node.op_type == "BatchNormalization":
        return False
    if _is_gated(producer):
        return False
    if norms:
        return True
    return node.op_type in ("Mul", "Div") and any(ir.scalar(value) is not None for value in node.inputs)


def _is_gated(node: ir.Node) -> bool:
    """Whether a product is x * Sigmoid(x) or x * HardSigmoid(x): a formula that is complete."""
    for value, other in (node.inputs, reversed(node.inputs)):
        gate = None if value is None else value.producer()
        if node.op_type == "Mul" and gate is not None and gate.op_type in GATES and gate.inputs[0] is other:
            return True
    return False


def scaled_weights(b: Builder, value: ir.Value, factor: np.ndarray) -> ir.Value | Refusal:
    """A constant times a factor that broadcasts to it, rounded once. Large mapped weights are scaled while the model
    is written."""
    allowed = may_copy(value)
    if isinstance(allowed, Refusal):
        return allowed
    tensor = ir.constant(value)
    assert tensor is not None
    name = value.name or "weights"
    if tensor.nbytes >= STREAMED_BYTES and isinstance(tensor, (ir.MappedTensor, ir.StreamedTensor)):
        magnitudes = np.abs(factor)
        if tensor.dtype is not ir.DataType.FLOAT16 and SMALLEST_FACTOR <= magnitudes.min() <= magnitudes.max() <= 1:
            return b.constant(ir.ScaledTensor(tensor, factor, name), name)
    result = scaled(tensor.numpy(), factor, tensor.dtype, tuple(tensor.shape.numpy()))
    if isinstance(tensor, ir.MappedTensor):
        tensor.release()
    if result is None:
        return Refusal("'{}' times the constant does not fit into {}", name, tensor.dtype.name, culprit=value)
    return b.constant(result, name)


def may_copy(value: ir.Value) -> bool | Refusal:
    """Whether scaled weights may stand beside the original: it goes, or it is small."""
    tensor = ir.constant(value)
    if tensor is None or tensor.dtype not in FOLDABLE or tensor.size == 0:
        return Refusal("'{}' is not constant", value.name, culprit=value)
    if ir.use_count(value) > 1 and tensor.nbytes > SHARED_COPY_BYTES:
        return Refusal("'{}' is used by others and too large for a copy", value.name, culprit=value)
    return True


def scaled(
    weights: np.ndarray, factor: np.ndarray, dtype: ir.DataType, shape: tuple[int, ...]
) -> ir.TensorProtocol | None:
    """A tensor of `shape` of weights times a factor that broadcasts to them, computed in float64 and rounded once; None
    where the element type cannot hold it."""
    if dtype is not ir.DataType.FLOAT:
        return rounded((weights.astype(np.float64) * factor).reshape(shape), dtype)
    result = ir.multiply_weights(np.ascontiguousarray(weights), factor)
    return None if result is None else ir.tensor_of(result.reshape(shape), dtype)


def rounded(exact: np.ndarray, dtype: ir.DataType) -> ir.TensorProtocol | None:
    """A tensor of float64 results rounded once; None where the element type cannot hold them.

    They must be finite, and in float16 the largest of each row must be a normal number: else the row has lost its
    precision.
    """
    kind = dtype.numpy()
    with np.errstate(over="ignore"):
        result = exact.astype(kind)
    if not np.isfinite(result.astype(np.float64) if dtype is ir.DataType.BFLOAT16 else result).all():
        return None
    if dtype is ir.DataType.FLOAT16 and exact.size:
        largest = np.abs(exact).reshape(exact.shape[0] if exact.ndim > 1 else 1, -1).max(axis=1)
        if ((largest > 0) & (largest < np.finfo(np.float16).smallest_normal)).any():
            return None
    return ir.tensor_of(result, dtype)
