"""Which quantized products become QGemm, as several tools write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxopt
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
    "zero": np.array(0, np.int8),
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
    "int8 around zero": f"g ({X}) => ({Y}) {{ q = QuantizeLinear(x, xs, zero) d = DequantizeLinear(q, xs) m = DequantizeLinear(w, one) y = MatMul(d, m) }}",
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


def test_type_of_bytes_that_an_attribute_tells() -> None:
    rows = "q = QuantizeLinear<output_dtype=3>(x, xs)  d = DequantizeLinear(q, xs)"
    proto = build(f"g ({X}) => ({Y}) {{ {rows} m = DequantizeLinear(w, one) y = MatMul(d, m) }}")
    proto.opset_import[0].version, proto.ir_version = 21, 10
    after = fuse(proto)
    assert op_list(after) == ["QGemm"]
    feeds = {"x": RNG.standard_normal((2, 3, 20)).astype(np.float32)}
    (wanted,) = evaluate(proto, feeds)
    for library in (True, False):
        (found,) = evaluate(after, feeds, library=library)
        assert np.abs(found - wanted).max() <= 0.02 * 127 * 0.02 + 1e-4


@pytest.mark.parametrize(("target", "fused"), [("cuda", ["QGemm"]), ("generic", None)])
def test_devices_have_the_kernel(target: str, fused: list[str] | None) -> None:
    proto = build(FUSED["bias"])
    assert op_list(run_passes(proto, PASS, target=target)[0]) == (fused or op_list(proto))


DYNAMIC = "q, qs, qz = DynamicQuantizeLinear(x)"
SUMS = {
    "scale of all": "f = Mul(qs, one) m = MatMulInteger(q, w, qz) c = Cast<to=1>(m) y = Mul(c, f)",
    "scales of columns": "f = Mul(s, qs) m = MatMulInteger(q, w, qz, none) c = Cast<to=1>(m) y = Mul(f, c)",
    "scale after scale": "m = MatMulInteger(q, w, qz) c = Cast<to=1>(m) d = Mul(c, qs) y = Mul(d, s)",
    "uint8 weights": "f = Mul(qs, one) m = MatMulInteger(q, u, qz, middle) c = Cast<to=1>(m) y = Mul(c, f)",
    "bias": "f = Mul(qs, s) m = MatMulInteger(q, w, qz) c = Cast<to=1>(m) p = Mul(c, f) y = Add(p, b)",
    "no scale of columns": "m = MatMulInteger(q, w, qz) c = Cast<to=1>(m) y = Mul(c, qs)",
    "constant scales": "z = QuantizeLinear(x, xs, xz) m = MatMulInteger(z, w, xz) c = Cast<to=1>(m) y = Mul(c, s)",
    "no zero point": "m = MatMulInteger(q, w) c = Cast<to=1>(m) y = Mul(c, s)",
}


@pytest.mark.parametrize("case", SUMS)
def test_scaled_sums_fuse_exactly(case: str) -> None:
    proto = build(f"g ({X}) => ({Y}) {{ {DYNAMIC} {SUMS[case]} }}")
    after = fuse(proto)
    assert "QGemm" in ops(after)
    assert not {"MatMulInteger", "Cast"} & set(ops(after))
    feeds = {"x": RNG.standard_normal((2, 3, 20)).astype(np.float32)}
    (wanted,) = evaluate(proto, feeds)
    for library in (True, False):
        np.testing.assert_allclose(evaluate(after, feeds, library=library)[0], wanted, rtol=1e-5, atol=1e-4)


def test_products_share_what_is_quantized_dynamically() -> None:
    text = f"""g ({X}) => ({Y}, float[N,3,24] z) {{
        {DYNAMIC} f = Mul(qs, one) m = MatMulInteger(q, w, qz) c = Cast<to=1>(m) y = Mul(c, f)
        n = MatMulInteger(q, u, qz, middle) d = Cast<to=1>(n) z = Mul(d, f)
    }}"""
    assert sorted(op_list(fuse(build(text)))) == ["DynamicQuantizeLinear", "QGemm", "QGemm"]


@pytest.mark.parametrize("per_channel", [False, True])
def test_what_onnxruntime_quantizes_dynamically(per_channel: bool, tmp_path: Path) -> None:
    tool = pytest.importorskip("onnxruntime.quantization", reason="onnxruntime's quantization needs more packages")
    shapes = {"w1": (64, 48), "b1": (48,), "w2": (48, 40), "b2": (40,)}
    constants = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    text = """g (float[N,3,64] x) => (float[N,3,40] y) {
        p = MatMul(x, w1) a = Add(p, b1) c = Relu(a) d = MatMul(c, w2) y = Add(d, b2)
    }"""
    onnx.save(model(text, **constants), tmp_path / "float.onnx")
    tool.quantize_dynamic(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", per_channel=per_channel, weight_type=tool.QuantType.QInt8
    )
    proto = onnx.load(tmp_path / "int8.onnx")
    after = onnxopt.optimize(proto, target="cpu")
    assert sorted(op_list(after)) == ["DynamicQuantizeLinear"] * 2 + ["QGemm"] * 2
    feeds = {"x": RNG.standard_normal((2, 3, 64)).astype(np.float32)}
    np.testing.assert_allclose(evaluate(after, feeds)[0], evaluate(proto, feeds)[0], rtol=1e-4, atol=1e-3)


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
    "sums with weights not around zero": (
        f"g ({X}) => ({Y}) {{ {DYNAMIC} m = MatMulInteger(q, u, qz, xz) c = Cast<to=1>(m) y = Mul(c, qs) }}",
        "not around zero",
    ),
    "sums that stay integers": (
        f"g ({X}) => (int32[N,3,24] y) {{ {DYNAMIC} y = MatMulInteger(q, w, qz) }}",
        "not scaled to float32",
    ),
    "weights that are computed": (
        f"g ({X}, int8[20,24] v) => ({Y}) {{ {DYNAMIC} m = MatMulInteger(q, v, qz) c = Cast<to=1>(m) y = Mul(c, qs) }}",
        "its weights are computed",
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
