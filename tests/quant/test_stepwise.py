"""Models that are run layer by layer in two streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from helpers import evaluate, model
from onnxopt import ir
from onnxopt.errors import CalibrationError
from onnxopt.quant import layers, stepwise
from onnxopt.quant.ranges import scale_and_zero
from onnxopt.quant.weights import QuantizedMatrix, quantize_columns

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
TEXT = """g (float[N,8,H,9] x) => (float[N,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w, b) s = Sigmoid(a) m = Mul(a, s) p = GlobalAveragePool(m)
    f = Flatten(p) y = Gemm<transB=1>(f, v)
}"""


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def proto() -> onnx.ModelProto:
    return model(TEXT, w=normal(16, 8, 3, 3) / 8, b=normal(16), v=normal(5, 16))


def walked(given: onnx.ModelProto, data: list[dict[str, Array]], ranges: dict[str, tuple[float, float]]) -> Any:
    """What the last layer computes in both streams with its own weights, and the names of all layers in order."""
    loaded = ir.load(given)
    nodes = [node for node in loaded.graph if node.op_type in layers.OPS]
    everywhere = [value for node in loaded.graph for value in node.outputs if value.name in ranges]
    results: list[tuple[list[Array], list[Array]]] = []

    def finish(step: stepwise.Step) -> tuple[list[Array], list[Array]]:
        matrix = QuantizedMatrix(*quantize_columns(layers.matrix_of(step.node)))
        bias = stepwise.bias_of(step.node)
        added = 0 if bias is None else stepwise.along_channels(step.node, bias, step.floats[0].ndim)
        results.append((step.outputs(), [one + added for one in step.sums(matrix)]))
        return results[-1]

    names = list(stepwise.Walk(loaded, nodes, everywhere, ranges, data).steps(finish))
    return *results[-1], names


def test_the_first_stream_is_the_float_model() -> None:
    given, data = proto(), [{"x": normal(2, 8, 3 + i, 9)} for i in range(3)]
    floats, rounded, names = walked(given, data, {})
    assert names == ["a", "y"]
    for sample, wanted, found in zip(data, floats, rounded, strict=True):
        np.testing.assert_allclose(wanted, evaluate(given, sample)[0], rtol=1e-5, atol=1e-5)
        assert 0 < np.abs(found - wanted).max() < 0.1


def test_values_that_all_read_as_bytes_are_rounded_in_the_second_stream() -> None:
    given, data = proto(), [{"x": normal(1, 8, 4, 9)}]
    _, fine, _ = walked(given, data, {"x": (-4.0, 4.0)})
    _, coarse, _ = walked(given, data, {"x": (-4.0, 4.0), "m": (-100.0, 100.0)})
    assert np.abs(fine[0] - coarse[0]).max() > 1e-3


def test_rounding_to_a_range_is_that_of_bytes() -> None:
    array, limits = normal(50) * 2, (-1.5, 3.0)
    scale, zero = scale_and_zero(limits)
    found = stepwise.rounded_to(array, limits)
    integers = found / scale + np.float32(zero)
    np.testing.assert_allclose(integers, np.rint(integers), atol=1e-3)
    inside = (array > -1.5) & (array < 3.0)
    assert np.abs(found - array)[inside].max() <= scale * 0.501
    assert stepwise.rounded_to(np.zeros(3, np.float32), limits).any() == False  # noqa: E712


@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 5), (0, 4), (3, 0)])
def test_rounding_by_row_has_a_range_for_each(shape: tuple[int, ...]) -> None:
    array = normal(*shape)
    array[..., :1] *= 1000
    found = stepwise.rounded_by_row(array)
    spread = np.ptp(array, axis=-1, keepdims=True) if array.size else np.zeros(())
    assert found.shape == shape
    assert (np.abs(found - array) <= np.maximum(spread, np.abs(array)) / 255).all()


def test_a_branch_reads_what_lies_outside_of_it() -> None:
    text = """g (float[N,16] x, bool c) => (float[N,16] y) {
        a = MatMul(x, w) r = Relu(a)
        s = If(c) <then_branch = t () => (float[N,16] p) { p = Add(r, a) },
                   else_branch = e () => (float[N,16] q) { q = Neg(r) }>
        y = MatMul(s, w)
    }"""
    given, data = model(text, w=normal(16, 16) / 4), [{"x": normal(3, 16), "c": np.array(i == 0)} for i in range(2)]
    floats, _, _ = walked(given, data, {})
    for sample, wanted in zip(data, floats, strict=True):
        np.testing.assert_allclose(wanted, evaluate(given, sample)[0], rtol=1e-5, atol=1e-5)


def test_values_that_are_no_tensors_are_named() -> None:
    text = """g (float[2,16] x) => (float[2,16] y) {
        s = SplitToSequence(x) a = MatMul(x, w) z = SequenceAt(s, i) y = MatMul(a, w)
        u = Add(z, z)
    }"""
    given = model(text, w=normal(16, 16), i=np.array(0, np.int64))
    given.graph.output.append(onnx.helper.make_tensor_value_info("u", onnx.TensorProto.FLOAT, None))
    with pytest.raises(CalibrationError, match=r"makes what is no tensor|cannot be run by itself"):
        walked(given, [{"x": normal(2, 16)}], {})
