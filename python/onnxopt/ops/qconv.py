"""QConv: a convolution of channels-last tensors of 8-bit integers, and what is computed of it element by element.

Inputs: X [N, H, W, C] or [N, L, C] of uint8 or int8; the packed filters of int8 (see `pack`); their scales [M]; their sums [M] of int32, which
the kernel needs and the body does not; X's scale and zero point (scalars); with `biased` the biases [M]; with `rounded` scale and zero point
of a quantization that the results pass through; with `added` a tensor of the result's shape, of uint8 or int8, its scale and zero point; with
`output_dtype` uint8 or int8 scale and zero point of the output; what else the epilogue reads. Attributes: those of Conv, `filters` (M),
`biased`, `rounded`, `added`, `output_dtype` (float32 where it is left out), `epilogue` (an expression, see fused_elementwise, whose first
input is the sum [N, H', W', M]).

Padding is X's zero point. Sums are exact; the output is rounded once, from float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import WINDOW_ATTRIBUTES, BodyBuilder, OpSpec, overload_of
from onnxopt.ops.fused_conv import channels_first, channels_last
from onnxopt.ops.qgemm import GROUP

SPEC = OpSpec(
    name="QConv",
    attributes=(
        *WINDOW_ATTRIBUTES,
        "filters",
        "group",
        "biased",
        "rounded",
        "added",
        "epilogue",
        "output_dtype",
    ),
    dtypes=(DataType.FLOAT,),
    tolerance={DataType.FLOAT: 2e-2},  # a number between two integers may become either
)

MIN_OPSET = 13
"""The opset from which on DequantizeLinear knows a scale per channel."""


def in_lines(kernel: Sequence[int], group: int, windows: Mapping[str, Any]) -> bool:
    """Whether the weights of a line of a window lie together, without gaps between its pixels (`in_lines` in kernels/cpu/qconv/qconv.h)."""
    return group == 1 and (list(windows.get("dilations") or []) or [1])[-1] == 1


def pack(filters: np.ndarray, group: int, windows: Mapping[str, Any]) -> np.ndarray:
    """Filters [M, C / group, (kh,) kw] of int8, as the kernel reads them: [group, ceil(M / group / 16), rows / 4, 16, 4], where the rows are
    those of a window, line by line or tap by tap, each filled up with zeros to a multiple of 4; depthwise [kw, ceil(kh / 4), C, 4]."""
    count, depth = filters.shape[:2]
    width = filters.shape[-1]
    cube = filters.reshape(count, depth, -1, width).transpose(0, 2, 3, 1)  # [M, kh, kw, C / group]
    if ir.is_depthwise(filters.shape, group):
        rows = cube[..., 0]
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % GROUP), (0, 0)))
        return np.ascontiguousarray(rows.reshape(count, -1, GROUP, width).transpose(3, 1, 0, 2))
    length = depth * width if in_lines(filters.shape[2:], group, windows) else depth
    rows = cube.reshape(group, count // group, -1, length)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % ir.PANEL), (0, 0), (0, -length % GROUP)))
    return np.ascontiguousarray(
        rows.reshape(group, -1, ir.PANEL, rows[0, 0].size // GROUP, GROUP).transpose(0, 1, 3, 2, 4)
    )


def filter_sums(filters: np.ndarray) -> np.ndarray:
    """The sums [M] (int32) of filters [M, C / group, ...] of int8."""
    return np.asarray(filters.reshape(filters.shape[0], -1).sum(axis=1, dtype=np.int32))


@dataclasses.dataclass(frozen=True, slots=True)
class Variety:
    """What the body of a node that only convolves depends on: the filters' shape [M, C / group, ...], windows, groups."""

    shape: tuple[int, ...]
    windows: Mapping[str, Any]
    group: int = 1
    biased: bool = False

    def overload(self, opset: int) -> str:
        return overload_of(f"{opset}|{self.shape}|{sorted(self.windows.items())}|{self.group}|{self.biased}")

    def body(self, opset: int) -> ir.Function:
        builder = BodyBuilder(6 + self.biased, opset)
        x, packed, scales, _, scale, zero, *bias = builder.inputs
        rank = len(self.shape)
        numbers = builder.op("DequantizeLinear", [x, scale, zero])
        numbers = builder.op("Transpose", [numbers], {"perm": channels_first(rank)})
        filters = builder.op("DequantizeLinear", [self._unpack(builder, packed), scales], {"axis": 0})
        result = builder.op("Conv", [numbers, filters, *bias], {**self.windows, "group": self.group})
        result = builder.op("Transpose", [result], {"perm": channels_last(rank)})
        return builder.function(SPEC, self.overload(opset), [result])

    def _unpack(self, builder: BodyBuilder, packed: ir.Value) -> ir.Value:
        count, depth, *kernel = self.shape
        height, width = math.prod(kernel[:-1]), kernel[-1]

        def first(value: ir.Value, size: int, axis: int) -> ir.Value:
            return builder.op("Slice", [value, *(builder.integers(number) for number in (0, size, axis))])

        if ir.is_depthwise(self.shape, self.group):
            rows = builder.op("Transpose", [packed], {"perm": [2, 1, 3, 0]})
            rows = first(builder.op("Reshape", [rows, builder.integers(count, -1, width)]), height, 1)
            return builder.op("Reshape", [rows, builder.integers(*self.shape)])
        length = depth * width if in_lines(kernel, self.group, self.windows) else depth
        stretches = height * width * depth // length
        rows = builder.op("Transpose", [packed], {"perm": [0, 1, 3, 2, 4]})
        rows = builder.op("Reshape", [rows, builder.integers(self.group, -1, stretches, -(-length // GROUP) * GROUP)])
        rows = first(first(rows, count // self.group, 1), length, 3)
        rows = builder.op("Reshape", [rows, builder.integers(count, height, width, depth)])
        rows = builder.op("Transpose", [rows], {"perm": [0, 3, 1, 2]})
        return builder.op("Reshape", [rows, builder.integers(*self.shape)])
