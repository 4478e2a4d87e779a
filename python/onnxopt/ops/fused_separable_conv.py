"""FusedSeparableConv: a depthwise convolution and the pointwise one that reads its results, channels-last.

Inputs: X [N, H, W, C] or [N, L, C]; depthwise filters [taps, C] and biases [C]; the packed pointwise filters [1, ceil(M / 16), C, 16] and biases
[M]; what else the epilogue reads. Attributes: those of the depthwise Conv, `filters` (M), `between` and `epilogue` (expressions, see
fused_elementwise, of the depthwise result alone and of the pointwise one). All float32.

Source: A. Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications".
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import WINDOW_ATTRIBUTES, BodyBuilder, OpSpec, overload_of

SPEC = OpSpec(
    name="FusedSeparableConv",
    attributes=(*WINDOW_ATTRIBUTES, "filters", "between", "epilogue"),
    dtypes=(DataType.FLOAT,),
    tolerance={DataType.FLOAT: 1e-4},
)


def body(convolutions: Sequence[ir.Function], further: int, opset: int) -> ir.Function:
    """The functions of two FusedConv nodes with biases, one after the other; the second has `further` inputs for its epilogue."""
    return chain(SPEC, convolutions, further, opset)


def chain(spec: OpSpec, convolutions: Sequence[ir.Function], further: int, opset: int) -> ir.Function:
    """The function of an op that is FusedConv nodes with biases, each of which reads the result of the one before."""
    builder = BodyBuilder(1 + 2 * len(convolutions) + further, opset)
    value, *weights = builder.inputs
    for convolution in convolutions:
        count = len(convolution.inputs) - 1
        known = dict(zip(convolution.inputs, [value, *weights[:count]], strict=True))
        builder.copy(convolution, known)
        value, weights = known[convolution.outputs[0]], weights[count:]
    return builder.function(spec, overload(*(one.overload for one in convolutions)), [value])


def overload(*parts: str) -> str:
    """The name of the body made of functions of these names, or of whatever else tells bodies apart."""
    return overload_of("|".join(parts))


def programs(nodes: Sequence[ir.Node]) -> tuple[str | None, ...]:
    """The epilogues of FusedConv nodes."""
    return tuple(node.attributes["epilogue"].as_string() if "epilogue" in node.attributes else None for node in nodes)
