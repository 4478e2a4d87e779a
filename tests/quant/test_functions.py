"""What is computed of an activation before anything else reads it."""

from __future__ import annotations

import numpy as np
import pytest

import onnxopt
from helpers import evaluate, model
from onnxopt import ir
from onnxopt.quant.functions import function_of

RNG = np.random.default_rng(0)
X = np.linspace(-9, 9, 301)


def found(body: str, value: str = "a", results: str = "float[N,8,H,W] y", **weights: np.ndarray):  # type: ignore[no-untyped-def]
    loaded = ir.load(model(f"g (float[N,8,H,W] x) => ({results}) {{ a = Neg(x) {body} }}", **weights))
    shapes = ir.ShapeEnv(loaded)
    shapes.infer_model()
    (wanted,) = [one for node in loaded.graph for one in node.outputs if one.name == value]
    return function_of(wanted, loaded, shapes)


SIGMOID = 1 / (1 + np.exp(-X))


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("s = Sigmoid(a) m = Mul(a, s) y = MaxPool<kernel_shape=[2,2]>(m)", X * SIGMOID),
        ("b = Squeeze(a, i) p = Relu(b) y = GlobalMaxPool(p)", np.maximum(X, 0)),
        ("b = Add(a, half) c = Clip(b, zero, half) y = MaxPool<kernel_shape=[2,2]>(c)", np.clip(X + 0.5, 0, 0.5)),
        ("y = LeakyRelu(a)", np.where(X < 0, 0.01 * X, X)),
    ],
)
def test_functions(body: str, wanted: np.ndarray) -> None:
    weights = {"i": np.array([3]), "half": np.array([[0.5]], np.float32), "zero": np.array(0, np.float32)}
    function = found(body, **{name: one for name, one in weights.items() if name in body})
    assert function is not None
    np.testing.assert_allclose(function(X), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "y = MaxPool<kernel_shape=[2,2]>(a)",
        "b = Relu(a) c = Softmax(b) d = Add(a, c) y = Neg(d)",
        "b = Mul(a, channels) y = MaxPool<kernel_shape=[2,2]>(b)",
        "y = Transpose(a)",
        "b = Relu(a) c = Softmax(a) y = Add(b, c)",
    ],
)
def test_no_functions_of_a_number_alone(body: str) -> None:
    weights = {"channels": np.ones((8, 1, 1), np.float32)} if "channels" in body else {}
    assert found(body, **weights) is None


def test_an_output_is_read_as_it_is() -> None:
    assert found("y = Relu(a)", results="float[N,8,H,W] y, float[N,8,H,W] a") is None


@pytest.mark.parametrize("activation", ["s = Sigmoid(a) b = Mul(a, s)", "b = HardSwish(a)", "b = Mul(a, one) "])
def test_models_come_nearer_where_negative_results_vanish(activation: str) -> None:
    """The steps of the range are spent on what is left of the convolution's results."""
    text = f"g (float[1,8,9,9] x) => (float[1,16,7,7] y) {{ a = Conv(x, w) {activation} y = MaxPool<kernel_shape=[1,1]>(b) }}"
    constants = {"one": np.ones((1, 16, 1, 1), np.float32)} if "one" in activation else {}
    filters = RNG.standard_normal((16, 8, 3, 3)).astype(np.float32)
    filters[0] -= 3.0
    proto = model(text, w=filters, **constants)
    data = [{"x": np.abs(RNG.standard_normal((1, 8, 9, 9))).astype(np.float32)} for _ in range(4)]
    errors = {}
    for method in ("mse", "minmax"):
        after = onnxopt.quantize(proto, calibration=data, format="qdq", method=method)
        pairs = [(evaluate(proto, one)[0], evaluate(after, one)[0]) for one in data]
        errors[method] = sum(float(np.square(wanted - given).sum()) for wanted, given in pairs)
    assert errors["mse"] < (0.2 if "one" not in activation else 1.1) * errors["minmax"]
