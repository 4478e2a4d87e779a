"""FusedConvTranspose: a transposed convolution whose windows do not overlap, channels-last, and what is computed of it element by element.

Inputs: X [N, H, W, C]; packed filters [kh, ceil(kw M / 16), C, 16]; biases for each column of the kernel [kw M]; what else the epilogue reads.
Attributes: `kernel_shape` [kh, kw], which are the strides too, `filters` (M), `epilogue` (an expression, see fused_elementwise, whose first
input is the result [N, kh H, kw W, M]). All float32.
"""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import BodyBuilder, OpSpec, overload_of
from onnxopt.ops.fused_conv import channels_first, channels_last

SPEC = OpSpec(
    name="FusedConvTranspose",
    attributes=("kernel_shape", "filters", "epilogue"),
    dtypes=(DataType.FLOAT,),
    tolerance={DataType.FLOAT: 2e-5},
)
RANK = 4


def pack(filters: np.ndarray) -> np.ndarray:
    """Filters [C, M, kh, kw] as one matrix [C, kw M] for each row of the kernel, packed."""
    channels, count, height, width = filters.shape
    rows = filters.transpose(2, 0, 3, 1).reshape(height, channels, width * count)
    return np.stack([ir.pack(np.ascontiguousarray(row)) for row in rows])


def body(shape: tuple[int, int, int, int], opset: int) -> ir.Function:
    """The function for filters of `shape` [C, M, kh, kw] without an epilogue."""
    channels, count, height, width = shape
    builder = BodyBuilder(3, opset)
    x, packed, bias = builder.inputs
    x = builder.op("Transpose", [x], {"perm": channels_first(RANK)})
    columns = builder.op("Transpose", [packed], {"perm": [2, 0, 1, 3]})
    columns = builder.op("Reshape", [columns, builder.integers(channels, height, -1)])
    columns = _first(builder, columns, width * count, 2)
    columns = builder.op("Reshape", [columns, builder.integers(channels, height, width, count)])
    filters = builder.op("Transpose", [columns], {"perm": [0, 3, 1, 2]})
    windows = {"kernel_shape": [height, width], "strides": [height, width]}
    result = builder.op("ConvTranspose", [x, filters, _first(builder, bias, count, 0)], windows)
    result = builder.op("Transpose", [result], {"perm": channels_last(RANK)})
    return builder.function(SPEC, overload(shape, opset), [result])


def _first(builder: BodyBuilder, value: ir.Value, count: int, axis: int) -> ir.Value:
    """The first elements along an axis."""
    if builder.opset < 10:
        return builder.op("Slice", [value], {"starts": [0], "ends": [count], "axes": [axis]})
    return builder.op("Slice", [value, *(builder.integers(number) for number in (0, count, axis))])


def overload(shape: tuple[int, ...], opset: int) -> str:
    """The name of the body for weights of that shape."""
    return overload_of(f"{opset}|{shape}")
