"""Weights that are rounded for the least error of results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers import evaluate, model, set_costs
from onnxopt import ir
from onnxopt.errors import OptionError
from onnxopt.quant import Quantization, layers, quantize, rounding
from onnxopt.quant.weights import quantize_columns

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def correlated(count: int, depth: int) -> Array:
    """Rows that lie near a space of few dimensions, as activations do."""
    return normal(count, depth // 4) @ normal(depth // 4, depth) + normal(count, depth) / 10


def test_results_come_nearer_than_with_the_nearest_weights() -> None:
    x, matrix = correlated(500, 150), normal(150, 20)
    nearest, scales = quantize_columns(matrix)
    found = rounding.adapt(matrix, nearest, scales, (x.T @ x).astype(np.float64))
    before, after = (np.square(x @ (one * scales - matrix)).sum() for one in (nearest, found))
    assert found.dtype == np.int8 and np.abs(found.astype(int)).max() <= 127
    assert after < 0.5 * before


@pytest.mark.parametrize("depth", [1, 5, 130])
def test_operands_without_correlation_leave_the_nearest(depth: int) -> None:
    matrix = normal(depth, 7)
    nearest, scales = quantize_columns(matrix)
    np.testing.assert_array_equal(rounding.adapt(matrix, nearest, scales, np.eye(depth)), nearest)


def test_channels_that_samples_do_not_show_are_rounded_to_the_nearest() -> None:
    x, matrix = correlated(300, 40), normal(40, 6)
    x[:, 7] = 0
    nearest, scales = quantize_columns(matrix)
    found = rounding.adapt(matrix, nearest, scales, (x.T @ x).astype(np.float64))
    np.testing.assert_array_equal(found[7], nearest[7])
    np.testing.assert_array_equal(rounding.adapt(matrix, nearest, scales, np.zeros((40, 40))), nearest)


@pytest.mark.parametrize(
    ("op", "x", "w"),
    [
        ("Conv", (2, 3, 7, 8), (5, 3, 3, 2)),
        ("Conv<pads=[1,0,2,1], strides=[2,1], dilations=[1,2]>", (2, 3, 7, 8), (5, 3, 3, 2)),
        ("Conv<pads=[1,2]>", (2, 4, 9), (5, 4, 3)),
        ("MatMul", (2, 6, 4), (4, 5)),
        ("Gemm<transB=1>", (6, 4), (5, 4)),
    ],
)
def test_the_hessian_is_that_of_the_operands(op: str, x: tuple[int, ...], w: tuple[int, ...]) -> None:
    """The energy of results is the quadratic form of the weights."""
    given, weights = normal(*x), normal(*w)
    shape = ",".join(map(str, x))
    proto = model(f"g (float[{shape}] x) => (float y) {{ y = {op}(x, w) }}", w=weights)
    (node,) = list(ir.load(proto).graph)
    second, matrix = rounding.hessian(node, [given, given]), layers.matrix_of(node)
    assert second is not None
    energy = np.square(evaluate(proto, {"x": given})[0]).sum()
    assert (matrix * (second @ matrix)).sum() == pytest.approx(2 * energy, rel=1e-4)


@pytest.mark.parametrize("op", ["Conv<group=3>", 'Conv<auto_pad="SAME_UPPER">'])
def test_other_layers_have_none(op: str) -> None:
    proto = model(
        f"g (float[1,3,8,8] x) => (float y) {{ y = {op}(x, w) }}", w=normal(3, 1 if "group" in op else 3, 3, 3)
    )
    (node,) = list(ir.load(proto).graph)
    assert rounding.hessian(node, [normal(1, 3, 8, 8)]) is None


@pytest.mark.parametrize("format", ["fused", "qdq"])
def test_quantized_models_come_nearer(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxopt._native", reason="the native library is not built")
    set_costs(monkeypatch, product_work=1)
    text = "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"
    proto = model(text, w=normal(64, 64) / 8, v=normal(64, 64) / 8)
    mixing = normal(8, 64)
    data = [{"x": normal(60, 8) @ mixing + normal(60, 64) / 20} for _ in range(8)]
    found: list[Quantization] = []
    for one in ("nearest", "adaptive"):
        quantize(proto, calibration=data, format=format, method="minmax", rounding=one, report=found.append)
    assert found[1].sqnr["y"] > found[0].sqnr["y"] + 0.3


def test_wrong_roundings() -> None:
    proto = model("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", w=normal(64, 64))
    with pytest.raises(OptionError, match=r"There is no rounding 'up'\. The roundings are: nearest, adaptive"):
        quantize(proto, rounding="up")
    with pytest.raises(OptionError, match="Adaptive rounding needs calibration samples"):
        quantize(proto, rounding="adaptive")
