"""Models and data that quantization has to survive: odd weights, tiny numbers, models that are quantized in part, subgraphs, open sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from helpers import evaluate, model
from onnxopt.errors import CalibrationError, OptionError
from onnxopt.quant import Quantization, quantize

pytest.importorskip("onnxopt._native", reason="the native library is not built")
pytestmark = pytest.mark.usefixtures("fuse_small_products")

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
FORMATS = pytest.mark.parametrize("format", ["fused", "qdq"])


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def check(
    proto: onnx.ModelProto, data: list[dict[str, Array]], format: str, least: float = 25, **more: Any
) -> Quantization:
    """Quantize, compare with the float model on the first sample with and without the library; at least so many dB."""
    found: list[Quantization] = []
    after = quantize(
        onnx.ModelProto.FromString(proto.SerializeToString()),
        calibration=data,
        format=format,
        report=found.append,
        **more,
    )
    (wanted,) = evaluate(proto, data[0])
    for library in (True, False):
        (result,) = evaluate(after, data[0], library=library)
        assert np.isfinite(result).all()
        error, signal = np.square(wanted - result, dtype=np.float64).sum(), np.square(wanted, dtype=np.float64).sum()
        assert error <= signal * 10 ** (-least / 10)
    return found[0]


CONVS = "g (float[N,8,H,9] x) => (float[N,8,H,9] y) { a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) y = Conv(r, v) }"


def convolutions(scale: float = 1.0) -> onnx.ModelProto:
    weights = {"w": normal(8, 8, 3, 3) / 8, "b": normal(8) * np.float32(scale), "v": normal(8, 8, 1, 1) / 3}
    return model(CONVS, **weights)


@FORMATS
@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e15])
def test_tiny_and_large_numbers(format: str, scale: float) -> None:
    check(convolutions(scale), [{"x": normal(1, 8, 5, 9) * np.float32(scale)} for _ in range(3)], format)


@FORMATS
def test_open_sizes_that_differ_from_sample_to_sample(format: str) -> None:
    data = [{"x": normal(1 + i, 8, 5 + 2 * i, 9)} for i in range(3)]
    result = check(convolutions(), data, format, max_drop="20dB")
    assert [one.operations for one in result.layers] == [2 * 8 * 45 * 72, 2 * 8 * 45 * 8]


@FORMATS
def test_weights_that_are_all_zero(format: str) -> None:
    proto = model(CONVS, w=np.zeros((8, 8, 3, 3), np.float32), b=normal(8), v=normal(8, 8, 1, 1))
    check(proto, [{"x": normal(1, 8, 5, 9)}], format)


@FORMATS
def test_activations_that_are_constant(format: str) -> None:
    check(convolutions(), [{"x": np.full((1, 8, 5, 9), 3.0, np.float32)}] * 2, format, max_drop="20dB")


@FORMATS
def test_weights_that_two_layers_share(format: str) -> None:
    text = "g (float[N,32] x) => (float[N,32] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
    result = check(model(text, w=normal(32, 32) / 6), [{"x": normal(5, 32)} for _ in range(3)], format)
    assert [one.precision for one in result.layers] == ["int8", "int8"]


@FORMATS
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_stay_in_float(format: str, bad: float) -> None:
    weights = {"w": normal(64, 64) / 8, "v": normal(64, 64) / 8}
    weights["v"][3, 5] = bad
    proto = model("g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }", **weights)
    found: list[Quantization] = []
    data = [{"x": normal(9, 64)} for _ in range(2)]
    after = quantize(proto, calibration=data, format=format, report=found.append)
    assert [(one.precision, one.reason) for one in found[0].layers] == [
        ("int8", ""),
        ("float", "its weights are not finite"),
    ]
    (result,) = evaluate(after, data[0])
    assert not np.isfinite(result[:, 5]).any()
    assert np.isfinite(np.delete(result, 5, axis=1)).all()


@FORMATS
def test_models_that_are_quantized_in_part(format: str) -> None:
    text = """g (float[N,32] x) => (float[N,32] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) u = DequantizeLinear<axis=1>(i, t, k)
        a = MatMul(d, u) b = Relu(a) y = MatMul(b, v)
    }"""
    weights = {"s": np.array(0.03, np.float32), "z": np.array(128, np.uint8), "v": normal(32, 32) / 6}
    integers = {
        "i": RNG.integers(-127, 128, (32, 32)).astype(np.int8),
        "t": np.full(32, 0.01, np.float32),
        "k": np.zeros(32, np.int8),
    }
    result = check(model(text, **weights, **integers), [{"x": normal(5, 32)} for _ in range(3)], format)
    assert [one.precision for one in result.layers] == ["int8"]


@FORMATS
def test_products_in_branches_stay_in_float(format: str) -> None:
    text = """g (float[N,32] x, bool c) => (float[N,32] y) {
        a = MatMul(x, w)
        y = If(c) <
            then_branch = t () => (float[N,32] p) { p = MatMul(a, v) },
            else_branch = e () => (float[N,32] q) { q = Relu(a) }
        >
    }"""
    data = [{"x": normal(5, 32), "c": np.array(number % 2 == 0)} for number in range(3)]
    result = check(model(text, w=normal(32, 32) / 6, v=normal(32, 32) / 6), data, format, max_drop="20dB")
    assert len(result.layers) == 1


@FORMATS
@pytest.mark.parametrize("move", ["Transpose<perm=[0,2,3,1]>(r)", "MaxPool<kernel_shape=[2,2]>(r)", "Identity(r)"])
def test_what_branches_capture_behind_a_move(format: str, move: str) -> None:
    """onnxruntime ends the process where it finds integers before such a move."""
    text = f"""g (float[N,8,8,9] x, bool c) => (float[N,8,8,9] y) {{
        a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) t = {move} m = Conv(r, v)
        z = If(c) <
            then_branch = p () => (float[1] p) {{ p = ReduceMax<keepdims=0,axes=[0,1,2,3]>(t) }},
            else_branch = q () => (float[1] q) {{ n = Neg(t) q = ReduceMax<keepdims=0,axes=[0,1,2,3]>(n) }}
        >
        y = Add(m, z)
    }}"""
    proto = model(text, w=normal(8, 8, 3, 3) / 8, b=normal(8), v=normal(8, 8, 1, 1) / 3)
    result = check(proto, [{"x": normal(1, 8, 8, 9), "c": np.array(n % 2 == 0)} for n in range(3)], format)
    assert [one.precision for one in result.layers] == ["int8", "int8"]


@FORMATS
def test_weights_that_are_computed_stay_in_float(format: str) -> None:
    text = "g (float[N,32] x, float[32,32] w) => (float[N,32] y) { a = MatMul(x, w) y = MatMul(a, v) }"
    data = [{"x": normal(5, 32), "w": normal(32, 32) / 6} for _ in range(3)]
    assert len(check(model(text, v=normal(32, 32) / 6), data, format).layers) == 1


@FORMATS
def test_models_without_anything_to_quantize(format: str) -> None:
    result = check(model("g (float[N] x) => (float[N] y) { y = Sin(x) }"), [{"x": normal(5)}], format, max_drop="20dB")
    assert result.layers == [] and result.quantized == {} and result.metric is not None and result.metric.within


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    def samples() -> list[dict[str, Array]]:
        raise AssertionError("the samples are read")

    with pytest.raises(OptionError, match="does not exist"):
        quantize(convolutions(), tmp_path / "missing" / "out.onnx", calibration=samples)


def test_no_samples_at_all() -> None:
    with pytest.raises(CalibrationError, match="There is no calibration sample"):
        quantize(convolutions(), calibration=[], format="qdq", max_drop="1%")
