"""FusedGemm: products of a tensor's rows with constant matrices, and what is computed of them element by element.

Inputs: X [..., K]; for each of `products` matrices its packed weights [ceil(N / 16), K, 16]; with `biased` as many biases [N]; what else the
epilogue reads. Attributes: `columns` (N), `products`, `biased`, `epilogue` (an expression, see fused_elementwise, whose first inputs are the
products [..., N]; without it they are the outputs). All float32, but for what the epilogue says.

The packing is that of K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), one for all instruction sets.
"""

from __future__ import annotations

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import BodyBuilder, OpSpec, overload_of

SPEC = OpSpec(
    name="FusedGemm",
    attributes=("products", "columns", "biased", "epilogue"),
    dtypes=(DataType.FLOAT,),
    tolerance={DataType.FLOAT: 2e-5},
)

MAX_PRODUCTS = 4
"""The kernel's limit (`kMostProducts` in kernels/cpu/gemm/gemm.h)."""


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


def body(depth: int, columns: int, opset: int, *, biased: bool) -> ir.Function:
    """The function of one product without an epilogue."""
    builder = BodyBuilder(3 if biased else 2, opset)
    x, weights, *bias = builder.inputs
    result = builder.op("MatMul", [x, unpack(builder, weights, depth, columns)])
    if bias:
        result = builder.op("Add", [result, bias[0]])
    return builder.function(SPEC, overload(depth, columns, opset, biased=biased), [result])


def overload(depth: int, columns: int, opset: int, *, biased: bool) -> str:
    return overload_of(f"{opset}|{depth}|{columns}|{biased}")
