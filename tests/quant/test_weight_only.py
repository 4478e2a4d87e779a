"""Models whose weights alone become integers: both formats, the command line, what stays in float and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from helpers import evaluate, model, op_list, ops
from onnxopt.cli import app
from onnxopt.errors import OptionError
from onnxopt.quant import Quantization, quantize

pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
FORMATS = pytest.mark.parametrize("format", ["fused", "qdq"])
TYPES = pytest.mark.parametrize(("weights", "least"), [("int8", 30), ("int4", 12)])
MODEL = """g (float[N,3,70] x) => (float[N,3,40] y) {
    a = MatMul(x, w) b = Add(a, c) d = Gelu(b) e = MatMul(d, v) s = Sigmoid(e) g = Mul(e, s)
    h = MatMul(d, u) i = Mul(g, h) y = Add(i, r)
}"""


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def network(opset: int = 20) -> onnx.ModelProto:
    return model(
        MODEL, opset=opset, w=normal(70, 33) / 8, c=normal(33), v=normal(33, 40) / 6, u=normal(33, 40), r=normal(40)
    )


def ratio(wanted: Array, found: Array) -> float:
    """Of signal to noise, in dB."""
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()))


def copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(proto.SerializeToString())


@TYPES
@pytest.mark.parametrize("rows", [1, 4, 20])
def test_both_formats_compute_the_same(weights: str, least: float, rows: int) -> None:
    proto, x = network(), normal(rows, 3, 70)
    (wanted,) = evaluate(proto, {"x": x})
    results = []
    for format in ("fused", "qdq"):
        after = quantize(copy(proto), format=format, weights=weights)
        results += [evaluate(after, {"x": x}, library=library)[0] for library in (True, False)]
    assert ratio(wanted, results[0]) > least
    for one in results[1:]:
        np.testing.assert_allclose(one, results[0], rtol=1e-4, atol=1e-4)


@TYPES
def test_what_comes_out(weights: str, least: float) -> None:
    fused, qdq = (quantize(network(), format=format, weights=weights) for format in ("fused", "qdq"))
    assert op_list(fused) == ["FusedGemm", "FusedGemm"]
    assert ops(qdq)["DequantizeLinear"] == 3 and not any(node.domain for node in qdq.graph.node)
    kind = onnx.TensorProto.INT8 if weights == "int8" else onnx.TensorProto.INT4
    for proto in (fused, qdq):
        assert [one.data_type for one in proto.graph.initializer].count(kind) == 3
        onnx.checker.check_model(proto)
        assert proto.opset_import[0].version == (20 if weights == "int8" else 21)


@FORMATS
@TYPES
def test_samples_measure_the_result(weights: str, least: float, format: str) -> None:
    found: list[Quantization] = []
    data = [{"x": normal(2, 3, 70)} for _ in range(3)]
    quantize(network(), calibration=data, format=format, weights=weights, report=found.append)
    (result,) = found
    assert result.samples == 3 and result.sqnr["y"] > least and result.weights == weights
    assert result.quantized == {"MatMul": 3} and not result.activations and not result.warnings
    assert [one.precision for one in result.layers] == [weights] * 3
    assert all(one.weight_sqnr is not None and one.weight_sqnr > least for one in result.layers)
    assert result.bytes_after < result.bytes_before * (0.4 if weights == "int8" else 0.35)


def test_smaller_blocks_are_nearer() -> None:
    found: list[Quantization] = []
    data = [{"x": normal(2, 3, 70)}]
    proto = network()
    for block in (16, 64):
        quantize(copy(proto), calibration=data, weights="int4", block=block, report=found.append)
    for small, large in zip(found[0].layers, found[1].layers, strict=True):
        assert small.weight_sqnr is not None and large.weight_sqnr is not None
        assert small.weight_sqnr >= large.weight_sqnr


@FORMATS
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_stay_in_float(format: str, weights: str, bad: float) -> None:
    held = {"w": normal(64, 64) / 8, "v": normal(64, 64) / 8}
    held["v"][3, 5] = bad
    proto = model("g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }", **held)
    found: list[Quantization] = []
    after = quantize(proto, format=format, weights=weights, report=found.append)
    assert [(one.precision, one.reason) for one in found[0].layers] == [
        (weights, ""),
        ("float", "its weights are not finite"),
    ]
    (result,) = evaluate(after, {"x": normal(3, 64)})
    assert not np.isfinite(result[:, 5]).any() and np.isfinite(np.delete(result, 5, axis=1)).all()


@FORMATS
def test_shared_weights_and_tables(format: str) -> None:
    """A table of embeddings stays in float; the product with its transpose reads integers."""
    text = """g (int64[N] i) => (float[N,50] y) {
        e = Gather(t, i) a = MatMul(e, w) b = Relu(a) d = MatMul(b, w) u = Transpose(t) y = MatMul(d, u)
    }"""
    proto = model(text, t=normal(50, 32), w=normal(32, 32) / 6)
    found: list[Quantization] = []
    after = quantize(copy(proto), format=format, weights="int8", report=found.append)
    feeds = {"i": np.array([3, 49, 0])}
    (wanted,) = evaluate(proto, feeds)
    for library in (True, False):
        assert ratio(wanted, evaluate(after, feeds, library=library)[0]) > 35
    sizes = [(one.data_type, np.prod(one.dims)) for one in after.graph.initializer]
    assert [kind for kind, size in sizes if size == 32 * 32] == [onnx.TensorProto.INT8]
    assert (onnx.TensorProto.FLOAT, 50 * 32) in sizes


def test_a_budget_keeps_layers_in_float() -> None:
    results: list[Quantization] = []
    data = [{"x": normal(2, 3, 70)} for _ in range(2)]
    for drop in ("5dB", "30dB", "200dB"):
        quantize(network(), calibration=data, weights="int4", max_drop=drop, report=results.append)
    kept = [sum(one.precision == "float" for one in result.layers) for result in results]
    assert kept[0] == 0 < kept[1] <= kept[2] == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weights": "int2"}, "There is no type 'int2' of weights"),
        ({"weights": "int4", "block": 20}, "has 20 rows; expected a power of two"),
        ({"block": 32}, "needs the type of weights"),
        ({"weights": "int4", "keep": ["nothing"]}, "is named 'nothing'"),
    ],
)
def test_wrong_options(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        quantize(network(), **options)


@FORMATS
def test_on_the_command_line(format: str, tmp_path: Path) -> None:
    source, target, report = tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "report.html"
    proto = network()
    onnx.save(proto, source)
    arguments = ["quantize", str(source), "-o", str(target), "--format", format, "--weights", "int4", "--block", "64"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0 and "3 MatMul in float, weights of int4" in shown.output
    after, x = onnx.load(target), normal(2, 3, 70)
    onnx.checker.check_model(after)
    assert ratio(evaluate(proto, {"x": x})[0], evaluate(after, {"x": x}, library=True)[0]) > 12
    shown = CliRunner().invoke(app, [*arguments, "--json", "--report", str(report)])
    assert json.loads(shown.stdout)["weights"] == "int4"
    assert "weights of int4" in report.read_text()


@FORMATS
def test_same_bytes_again(format: str) -> None:
    proto = network()
    first, second = (
        quantize(copy(proto), format=format, weights="int4").SerializeToString(deterministic=True) for _ in range(2)
    )
    assert first == second
