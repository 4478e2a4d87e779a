"""Models in float64: as exact as float64 is, whatever floats the model makes inside."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxopt.kernelbench.float64 import evaluate_in_float64

X = np.array([0.1, 1 / 3, 2e-9], np.float32)
HEAD = '<ir_version: 10, opset_import: ["" : 21, "f" : 1]>'


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ("c = Constant<value_float=1.0>() y = Add(x, c)", X.astype(np.float64) + 1),
        ("c = Constant<value = float[3] {1, 2, 3}>() y = Add(x, c)", X + np.array([1.0, 2.0, 3.0])),
        ("s = Shape(x) c = ConstantOfShape(s) d = Cos(c) y = Add(x, d)", X.astype(np.float64) + 1),
        ("h = Cast<to=10>(x) o = Cast<to=1>(h) y = Identity(o)", X.astype(np.float64)),
        ("t = Constant<value_int=1>() b = Cast<to=9>(t) y = If (b) <then_branch = a () => (float[3] u) { c = Constant<value_float=1.0>() u = Add(x, c) }, else_branch = b () => (float[3] v) { v = Neg(x) }>", X.astype(np.float64) + 1),
        ("y = f.Shifted<by=1.0>(x)", X.astype(np.float64) + 1),
    ],
    ids=["a number", "a tensor", "filled", "casts", "a branch", "a function"],
)  # fmt: skip
def test_nothing_is_rounded_to_float32(nodes: str, wanted: np.ndarray) -> None:
    model = onnx.parser.parse_model(f"{HEAD} g (float[3] x) => (float[3] y) {{ {nodes} }}")
    function = '<domain: "f", opset_import: ["" : 21]> Shifted <by> (a) => (b) { c = Constant<value_float: float = @by>() b = Add(a, c) }'
    model.functions.append(onnx.parser.parse_function(function))
    (found,) = evaluate_in_float64(model, {"x": X})
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, rtol=1e-15)
