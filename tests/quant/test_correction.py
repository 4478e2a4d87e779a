"""Biases that make up for what rounding moves on average."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from helpers import evaluate, model, op_list
from onnxopt.quant import Quantization, job, quantize
from onnxopt.quant.correction import mean_error
from onnxopt.quant.search import Found

pytest.importorskip("onnxopt._native", reason="the native library is not built")
pytestmark = pytest.mark.usefixtures("fuse_small_products")

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
FORMATS = pytest.mark.parametrize("format", ["fused", "qdq"])


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


CONVS = """g (float[N,8,H,W] x) => (float[N,16,H,W] y) {
    a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) d = Conv<group=16, pads=[1,1,1,1]>(r, k) y = Conv(d, v)
}"""
PRODUCTS = """g (float[N,32] x) => (float[N,48] y) {
    a = MatMul(x, w) s = Add(b, a) r = Relu(s) c = MatMul(r, v) t = Gelu(c) e = Gemm<transB=1>(t, u, f) g = Relu(e) y = Gemm(g, z)
}"""


def convolutions() -> onnx.ModelProto:
    constants = {"w": normal(16, 8, 3, 3) / 8, "b": normal(16), "k": normal(16, 1, 3, 3) + 0.5}
    return model(CONVS, **constants, v=normal(16, 16, 1, 1) / 4)


def products() -> onnx.ModelProto:
    constants = {"w": normal(32, 64) / 6, "b": normal(64), "v": normal(64, 64) / 8, "u": normal(64, 64) / 8}
    return model(PRODUCTS, opset=20, **constants, f=normal(64), z=normal(64, 48) / 8)


def copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(proto.SerializeToString())


def images(count: int) -> list[dict[str, Array]]:
    """Mostly of one colour, as padded ones are: rounding moves all of that alike."""
    data = [np.full((1, 8, 12, 12), 0.377, np.float32) for _ in range(count)]
    for one in data:
        one[..., :4] = normal(1, 8, 12, 4)
    return [{"x": one} for one in data]


def rows(count: int) -> list[dict[str, Array]]:
    return [{"x": normal(9, 32) + 1} for _ in range(count)]


def errors(proto: onnx.ModelProto, after: onnx.ModelProto, data: list[dict[str, Array]], axis: int) -> tuple[Any, Any]:
    """The energy of the error, and the squared mean error of channels, over samples."""
    found = [evaluate(proto, one)[0].astype(np.float64) - evaluate(after, one)[0] for one in data]
    moved = np.concatenate([np.moveaxis(one, axis, -1).reshape(-1, one.shape[axis]) for one in found])
    return np.square(moved).mean(), np.square(moved.mean(axis=0)).mean()


@FORMATS
@pytest.mark.parametrize(("build", "data", "axis"), [(convolutions, images, 1), (products, rows, 1)])
def test_mean_errors_vanish_and_others_do_not_grow(build: Any, data: Any, axis: int, format: str) -> None:
    proto, calibration, test = build(), data(12), data(12)
    plain, corrected = (
        quantize(proto, calibration=calibration, format=format, bias_correction=one) for one in (False, True)
    )
    before, after = errors(proto, plain, test, axis), errors(proto, corrected, test, axis)
    assert after[1] < 0.5 * before[1]
    assert after[0] < 1.02 * before[0]


@FORMATS
def test_no_op_is_added_where_there_is_a_bias(format: str) -> None:
    text = "g (float[N,32] x) => (float[N,64] y) { a = MatMul(x, w) s = Add(a, b) y = Relu(s) }"
    proto = model(text, w=normal(32, 64), b=normal(64))
    plain, corrected = (
        quantize(proto, calibration=rows(4), format=format, bias_correction=one) for one in (False, True)
    )
    assert op_list(plain) == op_list(corrected)


def test_layers_that_stay_in_float_are_as_they_were() -> None:
    proto = convolutions()
    found: list[Quantization] = []
    quantize(proto, calibration=images(2), report=found.append)
    names = [one.name for one in found[0].layers]
    after = quantize(proto, calibration=images(4), keep=names)
    for sample in images(2):
        np.testing.assert_allclose(evaluate(after, sample)[0], evaluate(proto, sample)[0], rtol=1e-4, atol=1e-4)


@FORMATS
@pytest.mark.parametrize("again", [0.5, -1.0])
def test_corrections_are_those_of_the_layers_that_a_budget_leaves(
    format: str, again: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the first layer had been kept by name; unless the metric is worse for it."""
    proto, data = convolutions(), images(4)
    for number, node in enumerate(node for node in proto.graph.node if node.op_type == "Conv"):
        node.name = f"c{number}"
    scores = iter([1.0, 0.0, again])  # of the float model, of integers alone, and with corrections anew
    monkeypatch.setattr(job, "search", lambda *_: Found(frozenset({"c0"}), 0.0))
    options: dict[str, Any] = {"calibration": data, "format": format, "smooth": False}
    by_name = quantize(copy(proto), keep=["c0"], **options)
    by_budget = quantize(copy(proto), max_drop=0.1, metric=lambda _: next(scores), **options)
    constants = [sorted(one.raw_data for one in made.graph.initializer) for made in (by_name, by_budget)]
    assert (constants[0] == constants[1]) == (again > 0)


def test_a_model_that_cannot_be_cut_says_so() -> None:
    text = """g (float[2,32] x) => (float[2,32] y, float[2,32] z) {
        s = SequenceConstruct(x) a = MatMul(x, w) z = SequenceAt(s, i) y = MatMul(a, v)
    }"""
    proto = model(text, w=normal(32, 32), v=normal(32, 32), i=np.array(0, np.int64))
    found: list[Quantization] = []
    quantize(proto, calibration=[{"x": normal(2, 32)}] * 2, report=found.append)
    assert found[0].warnings == [] or "Layers are not corrected" in found[0].warnings[0]


def test_chance_is_not_corrected() -> None:
    wanted = [RNG.standard_normal((400, 3)) + np.array([0.0, 1.0, 0.0]) for _ in range(8)]
    found = mean_error(wanted, [np.zeros_like(one) for one in wanted], -1)
    assert found.dtype == np.float32 and found[1] == pytest.approx(1, abs=0.05)
    plain = np.mean([one.mean(axis=0) for one in wanted], axis=0)
    assert (np.abs(found) <= np.abs(plain) + 1e-6).all() and np.abs(found[[0, 2]]).max() < 0.03


def test_one_sample_is_taken_at_its_word_and_none_at_zero() -> None:
    one = [np.full((1, 2, 3, 3), 2.0)]
    np.testing.assert_array_equal(mean_error(one, [np.zeros((1, 2, 3, 3))], 1), [2, 2])
    np.testing.assert_array_equal(mean_error([np.zeros((0, 4))], [np.zeros((0, 4))], -1), np.zeros(4))


@FORMATS
@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (
            "g (float[N,8,H,W] x, float[16] b) => (float[N,16,H,W] y) { a = Conv(x, k, b) r = Relu(a) y = Conv(r, v) }",
            (1, 8, 5, 5),
        ),
        ("g (float[N,32] x, float[1] b) => (float[N,64] y) { y = Gemm(x, w, b) }", (5, 32)),
        ("g (float[N,32] x, float[N,64] b) => (float[N,64] y) { a = MatMul(x, w) y = Add(a, b) }", (5, 32)),
    ],
)
def test_biases_that_are_computed(text: str, shape: tuple[int, ...], format: str) -> None:
    weights = {"k": normal(16, 8, 1, 1) / 3, "v": normal(16, 16, 1, 1) / 4, "w": normal(32, 64) / 6}
    proto = model(text, **{name: one for name, one in weights.items() if f" {name}," in text or f" {name})" in text})
    sizes = {"float[16] b": (16,), "float[1] b": (1,), "float[N,64] b": (5, 64)}
    size = next(one for key, one in sizes.items() if key in text)
    data = [{"x": normal(*shape), "b": 5 * normal(*size)} for _ in range(4)]
    after = quantize(proto, calibration=data, format=format)
    for sample in data:
        wanted = evaluate(proto, sample)[0]
        for library in (True, False):
            found = evaluate(after, sample, library=library)[0]
            assert np.square(found - wanted).sum() < 10**-2.5 * np.square(wanted).sum()
