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
from onnxopt.ops.base import BodyBuilder, OpSpec, overload_of

SPEC = OpSpec(
    name="FusedSeparableConv",
    attributes=("kernel_shape", "strides", "pads", "dilations", "auto_pad", "filters", "between", "epilogue"),
    dtypes=(DataType.FLOAT,),
    tolerance={DataType.FLOAT: 1e-4},
)


def body(depthwise: ir.Function, pointwise: ir.Function, further: int, opset: int) -> ir.Function:
    """The functions of two FusedConv nodes with biases, one after the other; the second has `further` inputs for its epilogue."""
    builder = BodyBuilder(5 + further, opset)
    x, *rest = builder.inputs
    known = dict(zip(depthwise.inputs, [x, *rest[:2]], strict=True))
    builder.copy(depthwise, known)
    then = dict(zip(pointwise.inputs, [known[depthwise.outputs[0]], *rest[2:]], strict=True))
    builder.copy(pointwise, then)
    return builder.function(SPEC, overload(depthwise.overload, pointwise.overload), [then[pointwise.outputs[0]]])


def overload(*parts: str) -> str:
    return overload_of("|".join(parts))


def programs(nodes: Sequence[ir.Node]) -> tuple[str | None, ...]:
    """The epilogues of FusedConv nodes."""
    return tuple(node.attributes["epilogue"].as_string() if "epilogue" in node.attributes else None for node in nodes)
