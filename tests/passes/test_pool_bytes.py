"""Maxima that are taken of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from helpers import evaluate, model, op_list, run_passes

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
CONSTANTS: dict[str, Array] = {
    "s": np.array(0.03, np.float32),
    "z": np.array(120, np.uint8),
    "i": np.array(-9, np.int8),
    "other": np.array(0.031, np.float32),
    "tiny": np.array(1e-41, np.float32),
    "huge": np.array(3e37, np.float32),
}
POOL = "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>"


def build(text: str, results: str = "uint8[N,8,D,E] y", of: str = "uint8") -> onnx.ModelProto:
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    constants = {name: array for name, array in CONSTANTS.items() if name in words}
    return model(f"g ({of}[N,8,H,W] x) => ({results}) {{ {text} }}", **constants)


@pytest.mark.parametrize(("dtype", "zero"), [(np.uint8, "z"), (np.int8, "i")])
@pytest.mark.parametrize("scale", ["s", "tiny"])
def test_bytes_stay_bytes(scale: str, dtype: Any, zero: str) -> None:
    name, limits = np.dtype(dtype).name, np.iinfo(dtype)
    text = f"d = DequantizeLinear(x, {scale}, {zero}) p = {POOL}(d) y = QuantizeLinear(p, {scale}, {zero})"
    before = build(text, f"{name}[N,8,D,E] y", name)
    after, _ = run_passes(before, "pool_bytes", target="cpu")
    assert op_list(after) == ["MaxPool"]
    x = RNG.integers(limits.min, limits.max + 1, (2, 8, 7, 10)).astype(dtype)
    np.testing.assert_array_equal(evaluate(after, {"x": x})[0], evaluate(before, {"x": x})[0])


@pytest.mark.parametrize(
    ("text", "results"),
    [
        (f"d = DequantizeLinear(x, s, z) p = {POOL}(d) y = QuantizeLinear(p, other, z)", "uint8[N,8,D,E] y"),
        (f"d = DequantizeLinear(x, s, z) p = {POOL}(d) y = QuantizeLinear(p, s, i)", "int8[N,8,D,E] y"),
        (f"d = DequantizeLinear(x, huge, z) p = {POOL}(d) y = QuantizeLinear(p, huge, z)", "uint8[N,8,D,E] y"),
        (
            f"d = DequantizeLinear(x, s, z) p = {POOL}(d) y = QuantizeLinear(p, s, z)",
            "uint8[N,8,D,E] y, float[N,8,D,E] p",
        ),
        (
            f"d = DequantizeLinear(x, s, z) p, k = {POOL}(d) y = QuantizeLinear(p, s, z)",
            "uint8[N,8,D,E] y, int64[N,8,D,E] k",
        ),
    ],
)
def test_refuses(text: str, results: str) -> None:
    before = build(text, results)
    after, report = run_passes(before, "pool_bytes", target="cpu")
    assert not report.patches and op_list(after) == op_list(before)
