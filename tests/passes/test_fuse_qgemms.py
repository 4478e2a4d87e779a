"""Which quantized products become QGemm, as several tools write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from helpers import evaluate, model, op_list, ops, run_passes
from onnxopt import ir
from onnxopt.pipeline import PassManager

pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
PASS = "fuse_qgemms"

ROWS = "q = QuantizeLinear(x, xs, xz)  d = DequantizeLinear(q, xs, xz)"
X, Y = "float[N,3,20] x", "float[N,3,24] y"


def draw(*shape: int) -> Array:
    return RNG.integers(-127, 128, shape).astype(np.int8)


CONSTANTS: dict[str, Array] = {
    "xs": np.array(0.02, np.float32),
    "xz": np.array(120, np.uint8),
    "w": draw(20, 24),
    "t": draw(24, 20),
    "u": (draw(20, 24).astype(np.int16) + 128).astype(np.uint8),
    "s": RNG.uniform(0.01, 0.02, 24).astype(np.float32),
    "one": np.array(0.015, np.float32),
    "none": np.zeros(24, np.int8),
    "middle": np.array(128, np.uint8),
    "b": RNG.standard_normal(24).astype(np.float32),
    "i": RNG.integers(-1000, 1000, 24).astype(np.int32),
    "bs": np.full(24, 0.001, np.float32),
}
FUSED = {
    "scale per column": f"g ({X}) => ({Y}) {{ {ROWS} m = DequantizeLinear<axis=1>(w, s, none) y = MatMul(d, m) }}",
    "one scale": f"g ({X}) => ({Y}) {{ {ROWS} m = DequantizeLinear(w, one) y = MatMul(d, m) }}",
    "uint8 weights": f"g ({X}) => ({Y}) {{ {ROWS} m = DequantizeLinear(u, one, middle) y = MatMul(d, m) }}",
    "transposed": f"g ({X}) => ({Y}) {{ {ROWS} n = DequantizeLinear<axis=0>(t, s, none) m = Transpose(n) y = MatMul(d, m) }}",
    "bias": f"g ({X}) => ({Y}) {{ {ROWS} m = DequantizeLinear<axis=1>(w, s) p = MatMul(d, m) y = Add(b, p) }}",
    "bytes given": f"g (uint8[N,3,20] x) => ({Y}) {{ d = DequantizeLinear(x, xs, xz) m = DequantizeLinear<axis=1>(w, s) y = MatMul(d, m) }}",
    "gemm": f"""g (float[N,20] x) => (float[N,24] y) {{
        {ROWS} n = DequantizeLinear<axis=0>(t, s) c = DequantizeLinear<axis=0>(i, bs) y = Gemm<transB=1>(d, n, c)
    }}""",
}


def fuse(proto: onnx.ModelProto) -> onnx.ModelProto:
    return run_passes(proto, PASS, target="cpu")[0]


def build(text: str) -> onnx.ModelProto:
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return model(text, **{name: array for name, array in CONSTANTS.items() if name in words})


@pytest.mark.parametrize("case", FUSED)
def test_fuses(case: str) -> None:
    proto = build(FUSED[case])
    after = fuse(proto)
    assert op_list(after) == ["QGemm"]
    shape = [dim.dim_value or 2 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    x = RNG.standard_normal(shape).astype(np.float32)
    feeds = {"x": RNG.integers(0, 256, shape).astype(np.uint8) if "uint8" in FUSED[case].split(")")[0] else x}
    (wanted,) = evaluate(proto, feeds)
    for library in (True, False):
        (found,) = evaluate(after, feeds, library=library)
        # A number between two integers may become either.
        assert np.abs(found - wanted).max() <= 0.02 * 127 * 0.02 + 1e-4


def test_one_quantized_tensor_for_several_products() -> None:
    text = f"""g ({X}) => (float[N,3,24] y, float[N,3,24] z) {{
        {ROWS} m = DequantizeLinear<axis=1>(w, s) n = DequantizeLinear(u, one, middle) y = MatMul(d, m) z = MatMul(d, n)
    }}"""
    assert op_list(fuse(build(text))) == ["QGemm", "QGemm"]


def test_epilogues_are_taken_in() -> None:
    text = (
        f"g ({X}) => ({Y}) {{ {ROWS} m = DequantizeLinear<axis=1>(w, s) p = MatMul(d, m) a = Add(p, b) y = Relu(a) }}"
    )
    after, _ = run_passes(build(text), PASS, "fuse_epilogues", target="cpu")
    assert op_list(after) == ["QGemm"]


LEFT = {
    "weights not around zero": (f"g ({X}) => ({Y}) {{ {ROWS} m = DequantizeLinear(u, one, xz) y = MatMul(d, m) }}", ""),
    "scale per row": (
        "g (float[N,24] x) => (float[N,20] y) { q = QuantizeLinear(x, xs, xz) d = DequantizeLinear(q, xs, xz) "
        "m = DequantizeLinear<axis=0>(t, s) y = MatMul(d, m) }",
        "a scale for each row",
    ),
    "float rows": (f"g ({X}) => ({Y}) {{ m = DequantizeLinear<axis=1>(w, s) y = MatMul(x, m) }}", ""),
}


@pytest.mark.parametrize("case", LEFT)
def test_leaves(case: str) -> None:
    text, sentence = LEFT[case]
    loaded = ir.load(build(text))
    report = PassManager("cpu", [PASS], explain=True).run(loaded)
    assert "QGemm" not in ops(ir.to_proto(loaded))
    assert not sentence or any(sentence in str(near.refusal) for near in report.near_misses)


def test_other_targets_keep_standard_ops() -> None:
    after, _ = run_passes(build(FUSED["bias"]), PASS, target="generic")
    assert "QGemm" not in ops(after)
