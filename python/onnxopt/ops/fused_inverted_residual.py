"""FusedInvertedResidual: a pointwise convolution that expands channels, a depthwise one, and a pointwise one that projects them, channels-last.

Inputs: X [N, H, W, C]; the packed filters that expand [1, ceil(E / 16), C, 16] and their biases [E]; depthwise filters [taps, E] and biases
[E]; the packed filters that project [1, ceil(M / 16), E, 16] and their biases [M]; what else the epilogue reads. Attributes: those of the
depthwise Conv, `expanded` (E), `filters` (M), `expansion`, `between` and `epilogue` (expressions, see fused_elementwise, of the expanded, the
depthwise and the last result; only the last one reads more). All float32.

Source: M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks".
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import WINDOW_ATTRIBUTES, OpSpec
from onnxopt.ops.fused_separable_conv import chain

SPEC = OpSpec(
    name="FusedInvertedResidual",
    attributes=(
        *WINDOW_ATTRIBUTES,
        "expanded",
        "filters",
        "expansion",
        "between",
        "epilogue",
    ),
    dtypes=(DataType.FLOAT,),
    tolerance={DataType.FLOAT: 1e-4},
)


def body(convolutions: Sequence[ir.Function], further: int, opset: int) -> ir.Function:
    """The functions of three FusedConv nodes with biases, one after the other; the last has `further` inputs for its epilogue."""
    return chain(SPEC, convolutions, further, opset)
