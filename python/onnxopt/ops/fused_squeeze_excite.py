"""FusedSqueezeExcite: every channel of an image is scaled by a gate that two products make of the means of all its channels.

Inputs: X [N, ..., C], channels-last with at least one spatial dim; the packed product that squeezes [1, ceil(R / 16), C, 16] and its biases [R];
the packed product that excites [1, ceil(C / 16), R, 16] and its biases [C]; what else the epilogue reads. Attributes: expressions (see
fused_elementwise) `between`, of the squeezed vectors [N, R], `gate`, of the excited ones [N, C], and `epilogue`, of the result, which has the
shape of X. All float32.

Source: J. Hu et al., "Squeeze-and-Excitation Networks".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import BodyBuilder, OpSpec
from onnxopt.ops.fused_conv import channels_first, channels_last, unpack

SPEC = OpSpec(
    name="FusedSqueezeExcite",
    attributes=("between", "gate", "epilogue"),
    dtypes=(DataType.FLOAT,),
    tolerance={DataType.FLOAT: 1e-4},
)


@dataclasses.dataclass(frozen=True, slots=True)
class Activation:
    """Element-wise nodes that make `result` of `raw` alone, in topological order; without nodes both are the same."""

    raw: ir.Value
    result: ir.Value
    nodes: Sequence[ir.Node]


def body(
    rank: int, squeezed: int, channels: int, between: Activation, gate: Activation, overload: str, opset: int
) -> ir.Function:
    """The function of a block over X of `rank` dims, without an epilogue."""
    builder = BodyBuilder(5, opset)
    x, *products = builder.inputs
    ones = [1] * (rank - 2)

    def layer(vectors: ir.Value, product: Sequence[ir.Value], filters: int, depth: int, after: Activation) -> ir.Value:
        weights = unpack(builder, product[0], [filters, depth, *ones], 1)
        known = {after.raw: builder.op("Conv", [vectors, weights, product[1]], {"kernel_shape": ones})}
        builder.copy(after.nodes, known)
        return known[after.result]

    means = builder.op("GlobalAveragePool", [builder.op("Transpose", [x], {"perm": channels_first(rank)})])
    vectors = layer(means, products[:2], squeezed, channels, between)
    gates = layer(vectors, products[2:], channels, squeezed, gate)
    gates = builder.op("Transpose", [gates], {"perm": channels_last(rank)})
    return builder.function(SPEC, overload, [builder.op("Mul", [x, gates])])
