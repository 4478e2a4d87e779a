"""Which products of float rows with matrices of integers become FusedGemm, as several tools write them, and which do not and why."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
PASS = "fuse_gemms"
RNG = np.random.default_rng(0)
X, Y = "float[N,3,40] x", "float[N,3,24] y"


def integers(low: int, high: int, *shape: int) -> Array:
    return RNG.integers(low, high, shape).astype(np.int8)


INT4 = integers(-8, 8, 40, 24)
CONSTANTS: dict[str, Array] = {
    "w": integers(-128, 128, 40, 24),
    "t": integers(-128, 128, 24, 40),
    "u": integers(0, 128, 40, 24).astype(np.uint8),
    "i": INT4.astype(ml_dtypes.int4),
    "j": INT4.T.astype(ml_dtypes.int4),
    "k": (INT4 + 8).astype(ml_dtypes.uint4),
    "s": RNG.uniform(0.01, 0.02, 24).astype(np.float32),
    "r": RNG.uniform(0.01, 0.02, 40).astype(np.float32),
    "h": RNG.uniform(0.01, 0.02, 24).astype(np.float16),
    "f": RNG.uniform(0.01, 0.02, (3, 24)).astype(np.float32),
    "g": RNG.uniform(0.01, 0.02, (24, 3)).astype(np.float32),
    "q": RNG.uniform(0.01, 0.02, (40, 2)).astype(np.float32),
    "one": np.array(0.015, np.float32),
    "none": np.zeros(24, np.int8),
    "some": np.arange(24).astype(np.int8),
    "middle": np.array(128, np.uint8),
    "eights": np.full((3, 24), 8).astype(ml_dtypes.uint4),
    "b": RNG.standard_normal(24).astype(np.float32),
}


def build(text: str, opset: int = 21) -> onnx.ModelProto:
    for sign in "(),{}":
        text = text.replace(sign, f" {sign} ")
    words = set(text.split())
    return model(text, opset=opset, ir_version=10, **{k: array for k, array in CONSTANTS.items() if k in words})


def fuse(proto: onnx.ModelProto, target: str = "cpu") -> tuple[onnx.ModelProto, list[str]]:
    after, report = run_passes(proto, PASS, "eliminate_dead_code", target=target, explain=True)
    return after, [str(near.refusal) for near in report.near_misses]


FUSED = {
    "scale per column": f"g ( {X} ) => ( {Y} ) {{ m = DequantizeLinear<axis=1>(w, s, none) y = MatMul(x, m) }}",
    "one scale": f"g ( {X} ) => ( {Y} ) {{ m = DequantizeLinear(w, one) y = MatMul(x, m) }}",
    "uint8": f"g ( {X} ) => ( {Y} ) {{ m = DequantizeLinear(u, one, middle) y = MatMul(x, m) }}",
    "bias": f"g ( {X} ) => ( {Y} ) {{ m = DequantizeLinear<axis=1>(w, s) p = MatMul(x, m) y = Add(b, p) }}",
    "transposed": f"g ( {X} ) => ( {Y} ) {{ n = DequantizeLinear<axis=0>(t, s) m = Transpose(n) y = MatMul(x, m) }}",
    "gemm": "g (float[N,40] x) => (float[N,24] y) { n = DequantizeLinear<axis=0>(t, s) y = Gemm<transB=1>(x, n, b) }",
    "blocks": f"g ( {X} ) => ( {Y} ) {{ m = DequantizeLinear<axis=0, block_size=16>(w, f) y = MatMul(x, m) }}",
    "int4": f"g ( {X} ) => ( {Y} ) {{ m = DequantizeLinear<axis=0, block_size=16>(i, f) y = MatMul(x, m) }}",
    "int4 per column": f"g ( {X} ) => ( {Y} ) {{ m = DequantizeLinear<axis=1>(i, s) p = MatMul(x, m) y = Add(p, b) }}",
    "uint4": f"g ( {X} ) => ( {Y} ) {{ m = DequantizeLinear<axis=0, block_size=16>(k, f, eights) y = MatMul(x, m) }}",
    "int4 transposed": f"g ( {X} ) => ( {Y} ) {{ n = DequantizeLinear<axis=1, block_size=16>(j, g) m = Transpose(n) y = MatMul(x, m) }}",
}


@pytest.mark.parametrize("case", FUSED)
def test_fuses(case: str) -> None:
    proto = build(FUSED[case])
    after, _ = fuse(proto)
    assert op_list(after) == ["FusedGemm"]
    kinds = {one.data_type for one in after.graph.initializer if len(one.dims) == 3 and "scales" not in one.name}
    assert kinds == {onnx.TensorProto.INT4 if "int4" in case else onnx.TensorProto.INT8}
    dims = [dim.dim_value or 2 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    wild = RNG.standard_normal(dims).astype(np.float32)
    wild.flat[7], wild.flat[-1] = np.inf, np.nan
    for x in (
        RNG.standard_normal(dims).astype(np.float32),
        RNG.standard_normal((1, *dims[1:])).astype(np.float32),
        wild,
    ):
        for library in (True, False):
            assert_same(proto, after, {"x": x}, rtol=2e-5, atol=2e-5, library=library)


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_scales_of_columns_in_older_opsets(opset: int) -> None:
    proto = build(FUSED["scale per column"], opset)
    after, _ = fuse(proto)
    assert op_list(after) == ["FusedGemm"]
    x = RNG.standard_normal((2, 3, 40)).astype(np.float32)
    for library in (True, False):
        assert_same(proto, after, {"x": x}, rtol=2e-5, atol=2e-5, library=library)


def test_two_products_share_one_matrix() -> None:
    text = f"g ( {X} ) => ( {Y}, float[N,3,24] z ) {{ m = DequantizeLinear<axis=1>(w, s) y = MatMul(x, m) a = Neg(x) z = MatMul(a, m) }}"
    proto = build(text)
    after, _ = run_passes(proto, PASS, "eliminate_dead_code", "deduplicate_initializers", target="cpu")
    assert op_list(after).count("FusedGemm") == 2
    assert len(after.graph.initializer) == 2
    assert_same(proto, after, {"x": RNG.standard_normal((2, 3, 40)).astype(np.float32)}, rtol=2e-5, atol=2e-5)


KEPT = {
    "scale per row": ("m = DequantizeLinear<axis=0>(w, r) y = MatMul(x, m)", "a scale for each row"),
    "blocks of columns": ("m = DequantizeLinear<axis=1, block_size=16>(w, q) y = MatMul(x, m)", "a scale for each row"),
    "not around zero": ("m = DequantizeLinear<axis=1>(w, s, some) y = MatMul(x, m)", "not around zero"),
    "uint8 around 0": ("m = DequantizeLinear(u, one) y = MatMul(x, m)", "not around zero"),
    "half": (
        "m = DequantizeLinear<axis=1>(w, h) c = Cast<to=10>(x) p = MatMul(c, m) y = Cast<to=1>(p)",
        "the kernel does not multiply FLOAT16",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_keeps(case: str) -> None:
    body, sentence = KEPT[case]
    after, refusals = fuse(build(f"g ( {X} ) => ( {Y} ) {{ {body} }}"))
    assert "FusedGemm" not in op_list(after)
    assert any(sentence in one for one in refusals)


@pytest.mark.parametrize("target", ["generic", "cuda"])
def test_only_the_processor_has_the_kernel(target: str) -> None:
    after, _ = fuse(build(FUSED["int4"]), target)
    assert op_list(after) == ["DequantizeLinear", "MatMul"]


def test_scaled_product_stays() -> None:
    text = "g (float[N,40] x) => (float[N,24] y) { n = DequantizeLinear<axis=0>(t, s) y = Gemm<transB=1, alpha=2.0>(x, n, b) }"
    after, refusals = fuse(build(text))
    assert "Gemm" in op_list(after)
    assert any("it is scaled" in one for one in refusals)


def test_gated_pairs_and_projections_merge() -> None:
    """Products of the same rows with integers of one type meet in one node; others do not."""
    made = "DequantizeLinear<axis=0, block_size=16>"
    text = f"""g ( {X} ) => ( {Y}, float[N,3,24] z, float[N,3,24] v ) {{
        m = {made}(i, f) p = MatMul(x, m) o = Sigmoid(p) a = Mul(p, o)
        l = {made}(k, f, eights) d = MatMul(x, l) y = Mul(a, d)
        e = DequantizeLinear<axis=1>(w, s) c = MatMul(x, e) z = Add(c, b)
        n = DequantizeLinear(u, one, middle) v = MatMul(x, n)
    }}"""
    proto = build(text)
    after, _ = run_passes(proto, PASS, "eliminate_dead_code", "fuse_epilogues", "merge_gemms", target="cpu")
    products = [
        next((one.i for one in node.attribute if one.name == "products"), 1)
        for node in after.graph.node
        if node.op_type == "FusedGemm"
    ]
    assert sorted(products) == [1, 1, 2]  # one has a bias, one has none
    for rows in (1, 5):
        x = RNG.standard_normal((rows, 3, 40)).astype(np.float32)
        for library in (True, False):
            assert_same(proto, after, {"x": x}, rtol=2e-5, atol=2e-5, library=library)
