"""FusedPool: pooling of channels-last tensors.

Input: X [N, H, W, C] or [N, L, C], float32, or uint8 or int8 where `kind` is max. Attributes: `kind` (max, average, average_with_pads, or global_average, which has no windows) and those of
MaxPool and AveragePool that say where the windows lie.
"""

from __future__ import annotations

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import WINDOW_ATTRIBUTES, BodyBuilder, OpSpec, overload_of
from onnxopt.ops.fused_conv import Windows, channels_first, channels_last

SPEC = OpSpec(
    name="FusedPool",
    attributes=("kind", *WINDOW_ATTRIBUTES, "ceil_mode"),
    dtypes=(DataType.FLOAT, DataType.UINT8, DataType.INT8),
    tolerance={DataType.FLOAT: 2e-6},
)

STANDARD = {
    "max": ("MaxPool", {}),
    "average": ("AveragePool", {}),
    "average_with_pads": ("AveragePool", {"count_include_pad": 1}),
    "global_average": ("GlobalAveragePool", {}),
}
"""The standard op of each kind, and what attributes say that it is this kind."""


def body(kind: str, rank: int, windows: Windows, opset: int) -> ir.Function:
    """The function of a pooling."""
    builder = BodyBuilder(1, opset)
    op_type, attributes = STANDARD[kind]
    x = builder.op("Transpose", builder.inputs, {"perm": channels_first(rank)})
    result = builder.op(op_type, [x], {**windows, **attributes})
    result = builder.op("Transpose", [result], {"perm": channels_last(rank)})
    return builder.function(SPEC, overload(kind, rank, windows, opset), [result])


def overload(kind: str, rank: int, windows: Windows, opset: int) -> str:
    """The name of the body for a tensor of that rank."""
    return overload_of(f"{opset}|{kind}|{rank}|{sorted(windows.items())}")
