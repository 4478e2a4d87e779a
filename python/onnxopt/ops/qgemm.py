"""QGemm: the product of a tensor's rows, as 8-bit integers, with a constant matrix of int8, and what is computed of it element by element.

Inputs: X [..., K]; the packed weights [ceil(N / 16), ceil(K / 4), 16, 4] of int8, zero where there are none; their scales [N]; the sums of their
columns [N] of int32, which the kernel needs and the body does not; unless `by_row`, X's scale and zero point (scalars); with `biased` the biases
[N]; what else the epilogue reads; with `output_dtype` the scale and the zero point of the result (scalars). X is uint8 or int8, or float32 that is quantized on the way: with that scale and zero point (uint8 or int8),
or, `by_row`, each row to uint8 over its own range, which includes 0. Attributes: `columns` (N), `by_row`, `biased`, `epilogue` (an expression,
see fused_elementwise, whose first input is the product [..., N]; without it that is the output), `output_dtype` (uint8 or int8, as ONNX numbers
them: the output, one tensor, is quantized: rounded half to even, saturated).

The packing lets one instruction sum the products of four rows (VNNI), one layout for all instruction sets.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import BodyBuilder, OpSpec, overload_of

SPEC = OpSpec(
    name="QGemm",
    attributes=("columns", "by_row", "biased", "epilogue", "output_dtype"),
    dtypes=(DataType.FLOAT,),
    tolerance={DataType.FLOAT: 2e-2},  # a number between two integers may become either
)

GROUP = 4
"""Rows of a matrix that lie side by side (`kGroup` in kernels/cpu/qgemm/panel.h)."""

LEVELS = 255.0
"""Steps in the range of a row."""

MIN_OPSET = 13
"""The opset from which on DequantizeLinear knows a scale per column."""


@dataclasses.dataclass(frozen=True, slots=True)
class Variety:
    """What the body of a node without an epilogue depends on. `dtype` is X's, float32 where the kernel quantizes it."""

    depth: int
    columns: int
    dtype: DataType = DataType.FLOAT
    by_row: bool = False
    biased: bool = False

    def overload(self, opset: int) -> str:
        return overload_of(f"{opset}|{self.depth}|{self.columns}|{self.dtype}|{self.by_row}|{self.biased}")

    def body(self, opset: int) -> ir.Function:
        builder = BodyBuilder(4 + 2 * (not self.by_row) + self.biased, opset)
        x, weights, scales, _, *rest = builder.inputs
        rows = _by_row(builder, x) if self.by_row else _static(builder, x, rest[0], rest[1], self.dtype)
        matrix = builder.op(
            "DequantizeLinear", [unpack(builder, weights, self.depth, self.columns), scales], {"axis": 1}
        )
        result = builder.op("MatMul", [rows, matrix])
        if self.biased:
            result = builder.op("Add", [result, rest[-1]])
        return builder.function(SPEC, self.overload(opset), [result])


def pack(matrix: np.ndarray) -> np.ndarray:
    """A matrix [K, N] of int8, as the kernel reads it."""
    depth, columns = matrix.shape
    padded = np.pad(matrix, ((0, -depth % GROUP), (0, -columns % ir.PANEL)))
    groups = padded.reshape(padded.shape[0] // GROUP, GROUP, padded.shape[1] // ir.PANEL, ir.PANEL)
    return np.ascontiguousarray(groups.transpose(2, 0, 3, 1))


def column_sums(matrix: np.ndarray) -> np.ndarray:
    """The sums [N] (int32) of the columns of a matrix [K, N] of int8."""
    return np.asarray(matrix.sum(axis=0, dtype=np.int32))


def unpack(builder: BodyBuilder, packed: ir.Value, depth: int, columns: int) -> ir.Value:
    """The matrix [K, N] of packed weights."""
    rows = builder.op("Transpose", [packed], {"perm": [1, 3, 0, 2]})
    shape = (-(-depth // GROUP) * GROUP, -(-columns // ir.PANEL) * ir.PANEL)
    matrix = builder.op("Reshape", [rows, builder.integers(*shape)])
    if shape == (depth, columns):
        return matrix
    bounds = [builder.integers(0, 0), builder.integers(depth, columns), builder.integers(0, 1)]
    return builder.op("Slice", [matrix, *bounds])


def _static(builder: BodyBuilder, x: ir.Value, scale: ir.Value, zero: ir.Value, dtype: DataType) -> ir.Value:
    if dtype is DataType.FLOAT:
        x = builder.op("QuantizeLinear", [x, scale, zero])
    return builder.op("DequantizeLinear", [x, scale, zero])


def _by_row(builder: BodyBuilder, x: ir.Value) -> ir.Value:
    """What is left of rows that are quantized over their own ranges."""

    def number(value: float) -> ir.Value:
        return builder.constant(np.array(value, np.float32))

    low, high = (builder.op(kind, [builder.reduced(kind, x, -1), number(0.0)]) for kind in ("Min", "Max"))
    parts = [builder.op("Div", [end, number(LEVELS)]) for end in (high, low)]
    scale = builder.op("Sub", parts)
    empty = builder.op("Equal", [scale, number(0.0)])
    divisor = builder.op("Where", [empty, number(1.0), scale])
    zero = builder.op("Round", [builder.op("Div", [builder.op("Neg", [low]), divisor])])
    whole = builder.op("Add", [builder.op("Round", [builder.op("Div", [x, divisor])]), zero])
    kept = builder.op("Clip", [whole, number(0.0), number(LEVELS)])
    return builder.op("Mul", [builder.op("Sub", [kept, zero]), scale])
