"""Tensors that are split as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers import evaluate, model, op_list, run_passes

RNG = np.random.default_rng(0)
CONSTANTS = {
    "s": np.array(0.03, np.float32),
    "z": np.array(120, np.uint8),
    "i": np.array(-9, np.int8),
    "other": np.array(0.031, np.float32),
    "huge": np.array(3e37, np.float32),
    "sizes": np.array([3, 5]),
}
TWO = "uint8[N,3,W] y, uint8[N,5,W] t"


def build(text: str, results: str = TWO, of: str = "uint8") -> Any:
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    constants = {name: array for name, array in CONSTANTS.items() if name in words}
    return model(f"g ({of}[N,8,W] x) => ({results}) {{ {text} }}", **constants)


@pytest.mark.parametrize(("dtype", "zero"), [(np.uint8, "z"), (np.int8, "i")])
def test_bytes_stay_bytes(dtype: Any, zero: str) -> None:
    name, limits = np.dtype(dtype).name, np.iinfo(dtype)
    text = f"""d = DequantizeLinear(x, s, {zero}) a, b = Split<axis=1>(d, sizes)
        y = QuantizeLinear(a, s, {zero}) t = QuantizeLinear(b, s, {zero})"""
    before = build(text, f"{name}[N,3,W] y, {name}[N,5,W] t", name)
    after, _ = run_passes(before, "split_bytes", target="cpu")
    assert op_list(after) == ["Split"]
    x = RNG.integers(limits.min, limits.max + 1, (2, 8, 7)).astype(dtype)
    for found, wanted in zip(evaluate(after, {"x": x}), evaluate(before, {"x": x}), strict=True):
        np.testing.assert_array_equal(found, wanted)
    _, report = run_passes(after, "split_bytes", target="cpu")
    assert not report.patches


def test_a_part_that_nothing_reads_does_not_matter() -> None:
    before = build(
        "d = DequantizeLinear(x, s, z) a, b = Split<axis=1>(d, sizes) y = QuantizeLinear(a, s, z)", "uint8[N,3,W] y"
    )
    after, _ = run_passes(before, "split_bytes", target="cpu")
    assert op_list(after) == ["Split"]


@pytest.mark.parametrize(
    ("text", "results"),
    [
        ("y = QuantizeLinear(a, s, z) t = QuantizeLinear(b, other, z)", TWO),
        ("y = QuantizeLinear(a, s, z) t = QuantizeLinear(b, s, i)", "uint8[N,3,W] y, int8[N,5,W] t"),
        ("y = QuantizeLinear(a, s, z) t = Relu(b)", "uint8[N,3,W] y, float[N,5,W] t"),
        ("y = QuantizeLinear(a, s, z) t = QuantizeLinear(b, s, z)", f"{TWO}, float[N,3,W] a"),
    ],
)
def test_refuses(text: str, results: str) -> None:
    before = build(f"d = DequantizeLinear(x, s, z) a, b = Split<axis=1>(d, sizes) {text}", results)
    after, report = run_passes(before, "split_bytes", target="cpu")
    assert not report.patches and op_list(after) == op_list(before)


def test_refuses_bytes_that_may_be_infinite() -> None:
    text = "d = DequantizeLinear(x, huge, z) a, b = Split<axis=1>(d, sizes) y = QuantizeLinear(a, huge, z) t = QuantizeLinear(b, huge, z)"
    assert not run_passes(build(text), "split_bytes", target="cpu")[1].patches
