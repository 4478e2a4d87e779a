"""Products whose operand has outliers stay in float in the format for any engine."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxopt
from helpers import model, op_list
from onnxopt import ir
from onnxopt.quant.layers import matrix_of
from onnxopt.quant.outliers import too_coarse
from onnxopt.quant.result import Quantization
from onnxopt.quant.weights import QuantizedMatrix, quantize_columns

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def product() -> onnx.ModelProto:
    """Two products; whatever x has, what the second one reads has no outliers."""
    text = """g (float[N,64] x) => (float[N,32] y) {
        a = MatMul(x, w)  b = Tanh(a)  y = MatMul(b, v) }"""
    made = model(text, w=normal(64, 48) / 8, v=normal(48, 32))
    for node, name in zip(
        (one for one in made.graph.node if one.op_type == "MatMul"), ("first", "second"), strict=True
    ):
        node.name = name
    return made


def quantized(samples: list[np.ndarray]) -> tuple[list[str], Quantization]:
    kept: list[Quantization] = []
    calibration = [{"x": one} for one in samples]
    after = onnxopt.quantize(
        product(), format="qdq", method="minmax", calibration=calibration, smooth=False, report=kept.append
    )
    return op_list(after), kept[0]


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_an_element_that_takes_all_steps_keeps_a_product_in_float(size: float) -> None:
    """One token of one sample is enough: the others lose their steps."""
    samples = [normal(20, 64) for _ in range(8)]
    samples[3][5, 7] *= size
    made, result = quantized(samples)
    first, second = result.layers
    assert second.precision == "int8"
    assert (first.precision, "too coarse" in first.reason) == (("float", True) if size > 1 else ("int8", False))
    assert made.count("QuantizeLinear") == (1 if size > 1 else 2)


def test_weights_that_take_all_steps_keep_a_product_in_float() -> None:
    """One weight of a column is so large that nothing is left of the others, which alone meet something."""
    proto, samples = product(), [normal(20, 64) for _ in range(8)]
    weights = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weights[7] = 1e3
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    for one in samples:
        one[:, 7] = 0
    kept: list[Quantization] = []
    onnxopt.quantize(
        proto,
        format="qdq",
        method="minmax",
        calibration=[{"x": one} for one in samples],
        smooth=False,
        report=kept.append,
    )
    assert [layer.precision for layer in kept[0].layers] == ["float", "int8"]


@pytest.mark.parametrize(("rows", "widest"), [(20, 1), (400, 0)])
def test_a_row_that_is_clipped_counts_as_much_as_any_other(rows: int, widest: int) -> None:
    loaded = ir.load(model("g (float[N,64] x) => (float[N,32] y) { y = MatMul(x, w) }", w=normal(64, 32)))
    (node,) = loaded.graph
    samples = [{"x": normal(rows, 64)} for _ in range(3)]
    for one in samples:
        one["x"][5] *= 10
    tried = {"x": [(-4.0, 4.0), (-50.0, 50.0)]}
    matrices = {ir.node_name(node): QuantizedMatrix(*quantize_columns(matrix_of(node)))}
    chosen, coarse = too_coarse(loaded, [node], tried, matrices, samples)
    assert chosen == {"x": tried["x"][widest]} and coarse.keys() == {ir.node_name(node)}
    assert too_coarse(loaded, [node], {}, matrices, samples) == ({}, {})
