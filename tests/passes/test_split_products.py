"""Splits of products with constant matrices."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "split_products"
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


WEIGHTS = {
    "w": normal(24, 96),
    "wt": normal(96, 24),
    "b": normal(96),
    "one": normal(1),
    "thirds": np.array([32, 32, 32]),
}
WEIGHTS |= {"uneven": np.array([16, 32, 48])}
THIRDS = "q, k, v = Split<axis = -1>(p, thirds)"


def split(text: str, *, rows: str = "64", outputs: str = "q, k, v", opset: int = 17, rank: int = 3) -> onnx.ModelProto:
    shape = f"2,{rows}" if rank == 3 else rows
    results = ", ".join(f"float[{'a,' * (rank - 1)}w{name}] {name}" for name in outputs.split(", "))
    return model(f"g (float[{shape},24] x) => ({results}) {{ {text} }}", opset=opset, **WEIGHTS)


DIVIDED = {
    "a product": (f"p = MatMul(x, w) {THIRDS}", 3, "MatMul"),
    "a bias": (f"m = MatMul(x, w) p = Add(m, b) {THIRDS}", 3, "MatMul"),
    "a Gemm": (f"p = Gemm(x, w) {THIRDS}", 2, "Gemm"),
    "a Gemm with a bias and a transposed matrix": (f"p = Gemm<transB = 1>(x, wt, b) {THIRDS}", 2, "Gemm"),
}


@pytest.mark.parametrize("name", DIVIDED)
def test_divided(name: str) -> None:
    text, rank, op = DIVIDED[name]
    before = split(text, rank=rank)
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after).count(op) == 3
    assert "Split" not in op_list(after)
    x = normal(*((2, 64, 24) if rank == 3 else (64, 24)))
    x[..., 3, 5], x[..., 7, 1] = np.inf, np.nan
    assert_same(before, after, {"x": x})


def test_one_kernel_computes_all() -> None:
    before = split(DIVIDED["a bias"][0])
    after, _ = run_passes(before, PASS, "fuse_gemms", "merge_gemms", target="cpu")
    assert op_list(after) == ["FusedGemm"]
    for library in (True, False):
        assert_same(before, after, {"x": normal(2, 64, 24)}, library=library)


STAYS = {
    "parts of different widths": "p = MatMul(x, w) q, k, v = Split<axis = -1>(p, uneven)",
    "another axis": "p = MatMul(x, w) q, k = Split<axis = 0>(p)",
    "a result that others read": f"p = MatMul(x, w) {THIRDS} o = Relu(p)",
    "a bias of one number": f"m = MatMul(x, w) p = Add(m, one) {THIRDS}",
    "few rows": f"p = MatMul(x, w) {THIRDS}",
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    outputs = "q, k" if "axis" in name else "q, k, v, o" if "others" in name else "q, k, v"
    opset = 11 if "axis" in name else 17
    rows = 1 if "few" in name else 64
    before = split(STAYS[name], outputs=outputs, opset=opset, rows=str(rows))
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == op_list(before)
    assert_same(before, after, {"x": normal(2, rows, 24)}, rtol=0, atol=0)
