"""QAttention: attention (see fused_attention) whose products multiply 8-bit integers.

Inputs and attributes are those of FusedAttention, and float32. Each query, each key and each column of values is rounded around 0, so that its
largest byte is 127 or -127; of values, a kernel may do so tile by tile. Weights, as parts of the largest of their row, are rounded to 65535 steps; the
sum that they are divided by is that of weights that are not rounded. What is not finite in a query or key makes all of its scores NaN.

Source: J. Zhang et al., "SageAttention: Accurate 8-Bit Attention for Plug-and-play Inference Acceleration" (2024).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops import fused_attention
from onnxopt.ops.base import BodyBuilder, OpSpec

SPEC = OpSpec(
    name="QAttention",
    attributes=fused_attention.SPEC.attributes,
    dtypes=(DataType.FLOAT,),
    tolerance={DataType.FLOAT: 2e-2},  # a number between two integers may become either
)

LARGEST, LEVELS = 127.0, 65535.0


@dataclasses.dataclass(frozen=True, slots=True)
class QAttention(fused_attention.Attention):
    """The attributes of a node."""

    def body(self, opset: int) -> ir.Function:
        builder = BodyBuilder(self.inputs, opset)
        return builder.function(SPEC, self.overload(opset), [_Body(self, builder).result()])


class _Body(fused_attention.Body):
    def rounded_rows(self, x: ir.Value) -> ir.Value:
        return self._around_zero(x, -1)

    def rounded_columns(self, x: ir.Value) -> ir.Value:
        return self._around_zero(x, -2)

    def rounded_weights(self, x: ir.Value) -> ir.Value:
        return self._rounded(x, self.builder.reduced("Max", x, -1), LEVELS)

    def _around_zero(self, x: ir.Value, axis: int) -> ir.Value:
        largest = self.builder.reduced("Max", self.builder.op("Abs", [x]), axis)
        return self._rounded(x, largest, LARGEST)

    def _rounded(self, x: ir.Value, largest: ir.Value, levels: float) -> ir.Value:
        b = self.builder
        one, count = (b.constant(np.array(number, np.float32)) for number in (1.0, levels))
        empty = b.op("Equal", [largest, b.constant(np.array(0.0, np.float32))])
        step = b.op("Div", [b.op("Where", [empty, one, largest]), count])
        return b.op("Mul", [b.op("Round", [b.op("Div", [x, step])]), step])
