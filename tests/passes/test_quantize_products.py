"""Which products multiply 8-bit integers once that is asked for, and how near they come."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from helpers import evaluate, model, op_list
from onnxopt import ir
from onnxopt.passes.base import Options
from onnxopt.pipeline import PassManager

pytest.importorskip("onnxopt._native", reason="the native library is not built")
pytestmark = pytest.mark.usefixtures("fuse_small_products")

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
QUANTIZE = Options(quantize_products=True)


def quantize(proto: onnx.ModelProto, options: Options = QUANTIZE) -> tuple[onnx.ModelProto, list[str]]:
    loaded = ir.load(proto)
    report = PassManager(
        "cpu", ["quantize_products", "eliminate_dead_code"], options=options, explain=True, strict=True
    ).run(loaded)
    return ir.to_proto(loaded), [str(near.refusal) for near in report.near_misses]


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


CASES = {
    "product": "g (float[N,5,64] x) => (float[N,5,48] y) { y = MatMul(x, w) }",
    "bias": "g (float[N,5,64] x) => (float[N,5,48] y) { p = MatMul(x, w) y = Add(p, b) }",
    "gemm": "g (float[N,64] x) => (float[N,48] y) { y = Gemm(x, w, b) }",
    "transposed": "g (float[N,64] x) => (float[N,48] y) { y = Gemm<transB=1>(x, t, b) }",
}


@pytest.mark.parametrize("case", CASES)
def test_quantizes(case: str) -> None:
    weights = {"w": normal(64, 48), "t": normal(48, 64), "b": normal(48)}
    proto = model(
        CASES[case], **{name: array for name, array in weights.items() if f"{name}" in CASES[case].split("{")[1]}
    )
    after, _ = quantize(proto)
    assert op_list(after) == ["QGemm"]
    assert {one.data_type for one in after.graph.initializer if len(one.dims) > 1} == {onnx.TensorProto.INT8}
    shape = [2 if not dim.dim_value else dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": normal(*shape)}
    (wanted,) = evaluate(proto, feeds)
    for library in (True, False):
        (found,) = evaluate(after, feeds, library=library)
        assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("text", "weights", "sentence"),
    [
        ("g (float[N,8] x) => (float[N,48] y) { y = MatMul(x, w) }", normal(8, 48), "too narrow"),
        ("g (double[N,64] x) => (double[N,48] y) { y = MatMul(x, w) }", np.ones((64, 48)), "does not multiply DOUBLE"),
        (
            "g (float[N,64] x) => (float[N,48] y) { y = MatMul(x, w) }",
            np.full((64, 48), np.inf, np.float32),
            "not finite",
        ),
    ],
)
def test_refuses(text: str, weights: Array, sentence: str) -> None:
    after, refusals = quantize(model(text, w=weights))
    assert op_list(after) == ["MatMul"]
    assert any(sentence in one for one in refusals)


def test_products_that_share_a_matrix_share_its_integers() -> None:
    proto = model(
        "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }", w=normal(64, 64)
    )
    loaded = ir.load(proto)
    names = ["quantize_products", "eliminate_dead_code", "deduplicate_initializers"]
    PassManager("cpu", names, options=QUANTIZE, strict=True).run(loaded)
    after = ir.to_proto(loaded)
    assert op_list(after) == ["QGemm", "Relu", "QGemm"]
    assert [one.data_type for one in after.graph.initializer if len(one.dims) > 1] == [onnx.TensorProto.INT8]


def test_matrices_that_others_read_too_stay_in_float() -> None:
    text = "g (float[N,64] x) => (float[N,48] y, float[64,48] z) { y = MatMul(x, w) z = Neg(w) }"
    after, refusals = quantize(model(text, w=normal(64, 48)))
    assert op_list(after) == ["MatMul", "Neg"]
    assert any("others use the weights" in one for one in refusals)


def test_only_where_it_is_asked_for() -> None:
    after, _ = quantize(model(CASES["product"], w=normal(64, 48)), Options())
    assert op_list(after) == ["MatMul"]


def test_old_opsets_stay_in_float() -> None:
    after, refusals = quantize(model(CASES["product"], opset=12, w=normal(64, 48)))
    assert op_list(after) == ["MatMul"]
    assert "opset 12" in refusals[0]
