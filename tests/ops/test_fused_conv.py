"""The ops of convolutions: what they say of inputs and attributes that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxopt.runtime.library import native


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


X, PACKED, BIAS = zeros(1, 5, 5, 8), zeros(1, 2, 72, 16), zeros(20)
CONV = {"kernel_shape": [3, 3], "filters": 20}
DEPTHWISE = zeros(9, 8)
SEPARABLE = [X, DEPTHWISE, zeros(8), zeros(1, 2, 8, 16), BIAS]
INVERTED = [X, zeros(1, 2, 8, 16), zeros(24), zeros(9, 24), zeros(24), zeros(1, 2, 24, 16), BIAS]
EXCITE = [X, zeros(1, 1, 8, 16), zeros(3), zeros(1, 1, 3, 16), zeros(8)]

MISUSE: list[tuple[str, list[np.ndarray], dict[str, Any], str]] = [
    ("FusedConv", [X, PACKED], {"filters": 20}, "needs an attribute 'kernel_shape'"),
    ("FusedConv", [X, PACKED], CONV | {"kernel_shape": [3, 3, 3]}, "one or two numbers"),
    ("FusedConv", [X, PACKED], CONV | {"strides": [1]}, "'strides' has 1 numbers and should have 2"),
    ("FusedConv", [X, PACKED], CONV | {"strides": [0, 1]}, "'strides' has the number 0"),
    ("FusedConv", [X, PACKED], CONV | {"pads": [0, 0, -1, 0]}, "'pads' has the number -1"),
    ("FusedConv", [X, PACKED], CONV | {"auto_pad": "SAME"}, "which ONNX does not have"),
    ("FusedConv", [X, PACKED], CONV | {"filters": 0}, "needs a positive attribute 'filters'"),
    ("FusedConv", [X, PACKED], CONV | {"group": 3}, "should divide its 20 filters"),
    ("FusedConv", [X, PACKED], CONV | {"group": 4, "planar": 1}, "cannot have groups"),
    ("FusedConv", [zeros(1, 8, 5, 5), PACKED], CONV | {"dilations": [1, 2], "planar": 1}, "cannot be dilated"),
    ("FusedConv", [X], CONV, "got 1 inputs and needs at least 2"),
    ("FusedConv", [X, PACKED], CONV | {"biased": 1}, "got 2 inputs and needs at least 3"),
    ("FusedConv", [X.astype(np.float64), PACKED], CONV, "Input 0 is of type double"),
    ("FusedConv", [zeros(5, 5, 8), PACKED], CONV, "should have 4 dims"),
    ("FusedConv", [zeros(1, 1, 5, 8), PACKED], CONV, "windows are larger"),
    ("FusedConv", [zeros(1, 5, 5, 7), PACKED], CONV, r"Input 1 has the shape \[1,2,72,16\] and should have \[1,2,63,16\]"),
    ("FusedConv", [X, PACKED, zeros(21)], CONV | {"biased": 1}, r"Input 2 has the shape \[21\] and should have \[20\]"),
    ("FusedConv", [X, PACKED, BIAS], CONV, "inputs for its epilogue"),
    ("FusedConv", [X, PACKED], CONV | {"epilogue": "i0:f32 | t0=nothing(i0) | t0:f32"}, "Its epilogue"),
    ("FusedConv", [X, PACKED], CONV | {"epilogue": "i0:f32 | t0=cast_f16(i0) | t0:f16"}, "one output, of type f32"),
    ("FusedPool", [X], {"kind": "median", "kernel_shape": [2, 2]}, "'median', which is no pooling"),
    ("FusedPool", [X, X], {"kind": "max", "kernel_shape": [2, 2]}, "got 2 inputs and takes 1"),
    ("FusedPool", [X.astype(np.int32)], {"kind": "max", "kernel_shape": [2, 2]}, "should be float"),
    ("FusedPool", [zeros(2, 3)], {"kind": "global_average"}, "at least 3 dims"),
    ("FusedPool", [zeros(1, 2, 2, 3)], {"kind": "max", "kernel_shape": [5, 5]}, "windows are larger"),
    ("FusedConvTranspose", [X], {"kernel_shape": [2, 2], "filters": 3}, "got 1 inputs and needs at least 3"),
    ("FusedConvTranspose", [X, zeros(2, 1, 7, 16), zeros(6)], {"kernel_shape": [2, 2], "filters": 3}, "Input 1 has the shape"),
    ("FusedConvTranspose", [X], {"kernel_shape": [2], "filters": 3}, "of two positive numbers"),
    ("FusedConvTranspose", [X], {"kernel_shape": [2, 2]}, "needs a positive attribute 'filters'"),
    ("FusedResize", [X], {"factors": [2, 0]}, "of two positive numbers"),
    ("FusedResize", [zeros(2, 3, 4)], {"factors": [2, 2]}, "should have 4 dims"),
    ("FusedResize", [zeros(1, 3, 1, 1)], {"factors": [6148914691236517206, 1]}, "less than 2\\^31"),
    ("FusedResize", [zeros(1, 2**12, 2**11, 1)], {"factors": [2**20, 2**21]}, "too large"),
    ("FusedConvTranspose", [zeros(1, 4, 2, 3), zeros(1, 1, 3, 16), zeros(4)], {"kernel_shape": [1, 6148914691236517206], "filters": 6}, "less than 2\\^31"),
    ("FusedConv", [zeros(1, 1, 1, 0), zeros(1, 1, 0, 16)], {"kernel_shape": [2**31] * 2, "pads": [2**31] * 4, "filters": 3}, "too large"),
    ("FusedSeparableConv", SEPARABLE[:4], CONV, "got 4 inputs and needs at least 5"),
    ("FusedSeparableConv", [X, zeros(9, 7), *SEPARABLE[2:]], CONV, r"Input 1 has the shape \[9,7\]"),
    ("FusedSeparableConv", SEPARABLE, CONV | {"between": "i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"}, "inputs for its epilogue"),
    ("FusedInvertedResidual", INVERTED[:6], CONV | {"expanded": 24}, "got 6 inputs and needs at least 7"),
    ("FusedInvertedResidual", INVERTED, CONV, "needs a positive attribute 'expanded'"),
    ("FusedInvertedResidual", INVERTED, {"kernel_shape": [3, 3], "expanded": 24}, "needs a positive attribute 'filters'"),
    ("FusedInvertedResidual", INVERTED, CONV | {"expanded": 25}, r"Input 2 has the shape \[24\] and should have \[25\]"),
    ("FusedInvertedResidual", [zeros(1, 5, 8), *INVERTED[1:]], CONV | {"expanded": 24}, "should have 4 dims"),
    ("FusedInvertedResidual", [*INVERTED, X], CONV | {"expanded": 24}, "inputs for its epilogue"),
    ("FusedInvertedResidual", INVERTED, CONV | {"expanded": 24, "expansion": "i0:f32 | t0=cast_f16(i0) | t0:f16"}, "one output, of type f32"),
    ("FusedSqueezeExcite", EXCITE[:4], {}, "got 4 inputs and needs at least 5"),
    ("FusedSqueezeExcite", [zeros(1, 8), *EXCITE[1:]], {}, "at least 3 dims"),
    ("FusedSqueezeExcite", [X.astype(np.int32), *EXCITE[1:]], {}, "Input 0 is of type int32"),
    ("FusedSqueezeExcite", [*EXCITE[:2], zeros(3, 1), *EXCITE[3:]], {}, r"Input 2 has the shape \[3,1\]"),
    ("FusedSqueezeExcite", [*EXCITE[:3], zeros(1, 1, 4, 16), EXCITE[4]], {}, r"Input 3 has the shape \[1,1,4,16\] and should have \[1,1,3,16\]"),
    ("FusedSqueezeExcite", [*EXCITE, X], {}, "inputs for its epilogue"),
    ("FusedSqueezeExcite", EXCITE, {"gate": "i0:f32 | t0=nothing(i0) | t0:f32"}, "Its epilogue"),
    ("FusedSqueezeExcite", EXCITE, {"between": "i0:f32 | t0=cast_f16(i0) | t0:f16"}, "one output, of type f32"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "attributes", "sentence"), MISUSE, ids=lambda part: str(part)[:60])
def test_misuse_gets_a_sentence(op: str, inputs: list[np.ndarray], attributes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        native().run(op, inputs, attributes)
