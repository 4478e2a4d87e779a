"""FusedConv: a convolution of channels-last tensors, and what is computed of it element by element.

Inputs: X [N, H, W, C] or [N, L, C]; the packed filters [group, ceil(M / group / 16), taps * C / group, 16], where groups are lanes of a panel (`ir.is_lanewise`)
[taps * C / group, M]; with `biased` the biases [M]; what else the epilogue reads. Attributes: those of Conv, `filters` (M), `biased`, `planar` (X is [N, C, H, W] or [N, C, L]), `epilogue` (an expression, see
fused_elementwise, whose first input is the result [N, H', W', M]). All float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import WINDOW_ATTRIBUTES, BodyBuilder, OpSpec, overload_of

SPEC = OpSpec(
    name="FusedConv",
    attributes=(
        *WINDOW_ATTRIBUTES,
        "filters",
        "group",
        "biased",
        "planar",
        "epilogue",
    ),
    dtypes=(DataType.FLOAT,),
    tolerance={DataType.FLOAT: 1e-4},
)

Windows = Mapping[str, Any]
"""The attributes of a Conv or a pooling that say where its windows lie."""


def channels_last(rank: int) -> tuple[int, ...]:
    """The `perm` of the Transpose from [N, C, ...] to [N, ..., C]."""
    return (0, *range(2, rank), 1)


def channels_first(rank: int) -> tuple[int, ...]:
    """The `perm` of the Transpose back."""
    return (0, rank - 1, *range(1, rank - 1))


def unpack(builder: BodyBuilder, packed: ir.Value, shape: Sequence[int], group: int) -> ir.Value:
    """The filters of `shape` [M, C / group, ...] out of packed ones."""
    count, depth, taps = shape[0], shape[1], math.prod(shape[2:])
    if ir.is_lanewise(tuple(shape), group):
        columns = builder.op("Transpose", [packed], {"perm": [1, 0]})
        if depth > 1:
            columns = builder.op("Reshape", [columns, builder.integers(count, taps, depth)])
            columns = builder.op("Transpose", [columns], {"perm": [0, 2, 1]})
        return builder.op("Reshape", [columns, builder.integers(*shape)])
    per_group = count // group
    rows = builder.op("Transpose", [packed], {"perm": [0, 1, 3, 2]})
    rows = builder.op("Reshape", [rows, builder.integers(group, -1, taps, depth)])
    if per_group % ir.PANEL:
        if builder.opset < 10:
            rows = builder.op("Slice", [rows], {"starts": [0], "ends": [per_group], "axes": [1]})
        else:
            rows = builder.op("Slice", [rows, *(builder.integers(number) for number in (0, per_group, 1))])
    filters = builder.op("Transpose", [rows], {"perm": [0, 1, 3, 2]})
    return builder.op("Reshape", [filters, builder.integers(*shape)])


def body(shape: Sequence[int], windows: Windows, group: int, opset: int, *, biased: bool, planar: bool) -> ir.Function:
    """The function of a convolution by filters of `shape` [M, C / group, ...] without an epilogue."""
    builder = BodyBuilder(3 if biased else 2, opset)
    x, packed, *bias = builder.inputs
    if not planar:
        x = builder.op("Transpose", [x], {"perm": channels_first(len(shape))})
    filters = unpack(builder, packed, shape, group)
    result = builder.op("Conv", [x, filters, *bias], {**windows, "group": group})
    result = builder.op("Transpose", [result], {"perm": channels_last(len(shape))})
    return builder.function(SPEC, overload(shape, windows, group, opset, biased=biased, planar=planar), [result])


def overload(shape: Sequence[int], windows: Windows, group: int, opset: int, *, biased: bool, planar: bool) -> str:
    """The name of the body for filters of that shape [M, C / group, ...]."""
    return overload_of(f"{opset}|{list(shape)}|{sorted(windows.items())}|{group}|{biased}|{planar}")
