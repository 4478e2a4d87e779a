"""Which products of float rows with matrices of integers become FusedGemm, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.fusions.fused_gemm import awaits_bias, is_plain, is_transposed, make_node, split_bias
from onnxopt.ir import DataType
from onnxopt.ops import fused_gemm as op
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.pattern import pattern
from onnxopt.rewrite.rules import Match, Refusal, attribute, rule

ZERO_POINTS = {DataType.INT8: 0, DataType.UINT8: 128, DataType.INT4: 0, DataType.UINT4: 8}
"""The types of matrices that the kernel reads, and the integer that stands for 0 in what it reads."""


@dataclasses.dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """A constant matrix: int8 or int4 around 0, [K, N] or, where `transposed`, [N, K], and scales [ceil(K / block), N] of float32."""

    integers: ir.TensorProtocol
    transposed: bool
    scales: np.ndarray
    block: int


@pattern
def dequantized_product(p, x, w):  # type: ignore[no-untyped-def]
    found = p.MatMul(x, w, as_="product")
    return [p.Add(found, p.const("bias")), found, p.Gemm(x, w, p.optional("bias"), as_="product")]


def _is_product_with_integers(m: Match) -> bool | Refusal:
    node, shape = m.node("product"), m.ctx.shapes.static_shape(m["w"])
    if _dequantized(m["w"]) is None or m.ctx.target.name != "cpu":
        return False
    if m.dtype("x") is not DataType.FLOAT or m.dtype("w") is not DataType.FLOAT:
        return Refusal("the kernel does not multiply {}", m.dtype("x"), culprit=node)
    if shape is None or len(shape) != 2 or m.rank("x") in (None, 0, 1) or node.graph is not m.ctx.model.graph:
        return Refusal("it is no product of rows with a matrix", culprit=node)
    if not is_plain(node):
        return Refusal("its left operand is transposed, or it is scaled", culprit=node)
    return not awaits_bias(m, shape[0] if is_transposed(node) else shape[1])


@rule(dequantized_product, where=_is_product_with_integers)
def fuse_dequantized_gemm(b: Builder, m: Match) -> ir.Value | Refusal:
    """A product of float rows with a matrix that DequantizeLinear makes reads the integers and their scales."""
    node = m.node("product")
    matrix = integer_matrix(m["w"], transposed=is_transposed(node))
    if isinstance(matrix, Refusal):
        return matrix
    sizes = matrix.integers.shape.numpy()
    depth, columns = reversed(sizes) if matrix.transposed else sizes
    if not op.is_supported(matrix.integers.dtype, depth, matrix.block, m.ctx.opset):
        return Refusal("opset {} has no scales of blocks", m.ctx.opset, culprit=node)
    added, bias = split_bias(m, columns)
    name = str(matrix.integers.name or "weights")
    inputs = [
        m["x"],
        b.constant(ir.packed(matrix.integers, name, transposed=matrix.transposed), name),
        b.constant(ir.pack(matrix.scales), f"{name}_scales"),
        *([] if bias is None else [bias]),
    ]
    variety = op.Variety(depth, columns, bias is not None, matrix.integers.dtype, matrix.block)
    result = make_node(b, m, variety, inputs)
    return result if added is None else b.Add(result, added)


def _dequantized(value: ir.Value | None) -> tuple[ir.Node, bool] | None:
    """The DequantizeLinear of a constant that makes a value, and whether a Transpose follows it."""
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return None
    if node.op_type == "DequantizeLinear":
        return (node, False) if ir.constant(node.inputs[0]) is not None else None
    if node.op_type != "Transpose" or list(attribute(node, "perm", (1, 0))) != [1, 0]:
        return None
    found = _dequantized(node.inputs[0])
    return None if found is None or found[1] else (found[0], True)


def integer_matrix(value: ir.Value | None, *, transposed: bool) -> IntegerMatrix | Refusal:
    """The integers that make a matrix, which the product reads as it is or `transposed`, or why the kernel cannot read them."""
    found = _dequantized(value)
    assert found is not None
    node, turned = found
    transposed ^= turned
    tensor, scale = ir.constant(node.inputs[0]), ir.constant(node.inputs[1])
    if tensor is None or tensor.dtype not in ZERO_POINTS or len(tensor.shape) != 2:
        return Refusal("its weights are no matrix of int8 or int4", culprit=node)
    if scale is None or scale.dtype is not DataType.FLOAT:
        return Refusal("the scales of its weights are no constants of float32", culprit=node)
    around_zero = _around_zero(tensor, ir.input_at(node, 2))
    if around_zero is None:
        return Refusal("its weights are not around zero", culprit=node)
    scales = _scales_by_row(node, np.asarray(scale.numpy()), tensor.shape.numpy(), transposed)
    if scales is None:
        return Refusal("its weights have a scale for each row", culprit=node)
    depth = tensor.shape.numpy()[1 if transposed else 0]
    return IntegerMatrix(around_zero, transposed, scales, attribute(node, "block_size", 0) or max(depth, 1))


def _scales_by_row(node: ir.Node, scale: np.ndarray, sizes: Sequence[int], transposed: bool) -> np.ndarray | None:
    """The scales as [blocks, N]; None where rows of a matrix [K, N] that are no block have scales."""
    rows, columns = (1, 0) if transposed else (0, 1)
    axis = attribute(node, "axis", 1) % 2
    if attribute(node, "block_size", 0):
        by_row = scale.T if transposed else scale
        return np.ascontiguousarray(by_row) if axis == rows else None
    if scale.size == 1:
        return np.full((1, sizes[columns]), scale.reshape(()), np.float32)
    return scale.reshape(1, -1) if axis == columns else None


def _around_zero(tensor: ir.TensorProtocol, zero: ir.Value | None) -> ir.TensorProtocol | None:
    """The integers as signed ones around 0; None where something else stands for 0."""
    held = ir.constant(zero)
    if zero is not None and held is None:
        return None
    middle = ZERO_POINTS[tensor.dtype]
    is_signed = tensor.dtype in (DataType.INT8, DataType.INT4)
    given = np.zeros((), np.int8) if held is None else np.asarray(held.numpy()).astype(np.int16)
    if (given != middle).any():
        return None
    if is_signed:
        return tensor
    array = (np.asarray(tensor.numpy()).astype(np.int16) - middle).astype(np.int8)
    name = str(tensor.name or "weights")
    return ir.tensor(array, name=name) if tensor.dtype is DataType.UINT8 else ir.int4(array, name)
