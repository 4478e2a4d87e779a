"""FusedResize: every pixel of a channels-last image repeated, and what is computed of it element by element.

Inputs: X [N, H, W, C]; what else the epilogue reads. Attributes: `factors` (how often a pixel is repeated along H and W), `epilogue` (an
expression, see fused_elementwise, whose first input is the result). All float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxopt import ir
from onnxopt.ir import DataType
from onnxopt.ops.base import BodyBuilder, OpSpec, overload_of

SPEC = OpSpec(
    name="FusedResize",
    attributes=("factors", "epilogue"),
    dtypes=(DataType.FLOAT,),
    tolerance={DataType.FLOAT: 2e-6},
)
OPTIONAL_ROI_OPSET = 13


def body(factors: Sequence[int], opset: int) -> ir.Function:
    """The function without an epilogue."""
    builder = BodyBuilder(1, opset)
    scales = builder.constant(np.array([1, *factors, 1], np.float32))
    if opset < 11:
        inputs: list[ir.Value | None] = [*builder.inputs, scales]
        attributes: dict[str, str] = {"mode": "nearest"}
    else:
        roi = None if opset >= OPTIONAL_ROI_OPSET else builder.constant(np.zeros(0, np.float32))
        inputs = [*builder.inputs, roi, scales]
        attributes = {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        }
    return builder.function(SPEC, overload(factors, opset), [builder.op("Resize", inputs, attributes)])


def overload(factors: Sequence[int], opset: int) -> str:
    """The name of the body for those factors."""
    return overload_of(f"{opset}|{list(factors)}")
