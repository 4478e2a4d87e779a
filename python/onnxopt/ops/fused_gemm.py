"""FusedGemm: products of a tensor's rows with constant matrices, and what is computed of them element by element.

Inputs: X [..., K]; for each of `products` matrices its packed weights [ceil(N / 16), K, 16]; with `block` for each its scales
[ceil(N / 16), ceil(K / block), 16]; with `biased` as many biases [N]; what else the epilogue reads. Attributes: `columns` (N), `products`,
`block` (the weights are int8 or int4, all of one type, and so many rows of a matrix share the scale of a column), `biased`, `epilogue` (an
expression, see fused_elementwise, whose first inputs are the products [..., N]; without it they are the outputs). All float32, but for
weights with scales and what the epilogue says; or, for CUDA devices, all float16 or bfloat16 (the epilogue's first inputs too), of which sums
are float32 and rounded once. Processors have kernels for float32 alone, and convert those to it.

The packing is that of K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), one for all instruction sets
and types of weights.
"""

from __future__ import annotations

import dataclasses

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import BodyBuilder, OpSpec, overload_of

SPEC = OpSpec(
    name="FusedGemm",
    attributes=("products", "columns", "block", "biased", "epilogue"),
    dtypes=(DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16),
    tolerance={DataType.FLOAT: 2e-5, DataType.FLOAT16: 2e-3, DataType.BFLOAT16: 2e-2},
)

MAX_PRODUCTS = 4
"""The kernel's limit (`kMostProducts` in kernels/cpu/gemm/gemm.h)."""


BLOCKS_OPSET = 21
"""The opset from which on DequantizeLinear knows scales of blocks, and int4."""


@dataclasses.dataclass(frozen=True, slots=True)
class Variety:
    """What the body of one product without an epilogue depends on. `weights` is their type; integers have a scale for each `block` rows."""

    depth: int
    columns: int
    biased: bool = False
    weights: DataType = DataType.FLOAT
    block: int | None = None

    def overload(self, opset: int) -> str:
        kind = "" if self.block is None else f"|{self.weights}|{self.block}"
        return overload_of(f"{opset}|{self.depth}|{self.columns}|{self.biased}{kind}")

    def body(self, opset: int) -> ir.Function:
        builder = BodyBuilder(2 + (self.block is not None) + self.biased, opset)
        x, weights, *rest = builder.inputs
        if self.block is not None:
            weights = _dequantized(builder, weights, rest.pop(0), self.block)
        result = builder.op("MatMul", [x, unpack(builder, weights, self.depth, self.columns)])
        if self.biased:
            result = builder.op("Add", [result, rest[0]])
        return builder.function(SPEC, self.overload(opset), [result])


def is_supported(weights: DataType, depth: int, block: int, opset: int) -> bool:
    """Whether a body of that opset can say what integers with scales of blocks stand for."""
    return opset >= BLOCKS_OPSET or (weights is DataType.INT8 and block >= depth)


def _dequantized(builder: BodyBuilder, packed: ir.Value, scales: ir.Value, block: int) -> ir.Value:
    """The floats that packed integers stand for. One block is scaled by its single row of scales."""
    if builder.opset >= BLOCKS_OPSET:
        return builder.op("DequantizeLinear", [packed, scales], {"axis": 1, "block_size": block})
    return builder.op("Mul", [builder.op("Cast", [packed], {"to": int(DataType.FLOAT.value)}), scales])


def unpack(builder: BodyBuilder, packed: ir.Value, depth: int, columns: int) -> ir.Value:
    """The matrix [K, N] of packed weights."""
    rows = builder.op("Transpose", [packed], {"perm": [1, 0, 2]})
    matrix = builder.op("Reshape", [rows, builder.integers(depth, -(-columns // ir.PANEL) * ir.PANEL)])
    if columns % ir.PANEL == 0:
        return matrix
    if builder.opset < 10:
        return builder.op("Slice", [matrix], {"starts": [0], "ends": [columns], "axes": [1]})
    bounds = [builder.integers(number) for number in (0, columns, 1)]
    return builder.op("Slice", [matrix, *bounds])
