"""QGemm nodes that pass bytes to each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxopt
from helpers import evaluate, model, op_list, run_passes
from onnxopt import ir
from onnxopt.pipeline import PassManager

pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
PASSES = ("fuse_qgemms", "fuse_epilogues", "requantize_qgemms")

CONSTANTS: dict[str, Array] = {
    "xs": np.array(0.02, np.float32),
    "xz": np.array(120, np.uint8),
    "hs": np.array(0.05, np.float32),
    "hz": np.array(9, np.uint8),
    "sz": np.array(-9, np.int8),
    "other": np.array(0.06, np.float32),
    "w": RNG.integers(-127, 128, (20, 24)).astype(np.int8),
    "v": RNG.integers(-127, 128, (24, 17)).astype(np.int8),
    "ws": RNG.uniform(0.005, 0.01, 24).astype(np.float32),
    "vs": RNG.uniform(0.005, 0.01, 17).astype(np.float32),
    "b": RNG.standard_normal(24).astype(np.float32),
}
FIRST = """q = QuantizeLinear(x, xs, xz) d = DequantizeLinear(q, xs, xz) m = DequantizeLinear<axis=1>(w, ws)
    p = MatMul(d, m) a = Add(p, b) h = Relu(a)"""
SECOND = "n = DequantizeLinear<axis=1>(v, vs) y = MatMul(e, n)"
X, Y = "float[N,3,20] x", "float[N,3,17] y"


def build(text: str) -> onnx.ModelProto:
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return model(text, **{name: array for name, array in CONSTANTS.items() if name in words})


def feeds() -> dict[str, Array]:
    return {"x": RNG.standard_normal((2, 3, 20)).astype(np.float32)}


def assert_within_a_quantum(proto: onnx.ModelProto, after: onnx.ModelProto, quantum: float) -> None:
    given = feeds()
    wanted = evaluate(proto, given)
    for library in (True, False):
        for one, other in zip(evaluate(after, given, library=library), wanted, strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert np.abs(one.astype(np.float64) - other).max() <= quantum


@pytest.mark.parametrize("zero", ["hz", "sz"])
def test_product_after_product_reads_bytes(zero: str) -> None:
    proto = build(
        f"g ({X}) => ({Y}) {{ {FIRST} r = QuantizeLinear(h, hs, {zero}) e = DequantizeLinear(r, hs, {zero}) {SECOND} }}"
    )
    after, _ = run_passes(proto, *PASSES, target="cpu")
    assert op_list(after) == ["QGemm", "QGemm"]
    first, second = after.graph.node
    assert second.input[0] == first.output[0]
    assert [one.i for one in first.attribute if one.name == "output_dtype"] == [2 if zero == "hz" else 3]
    # A number between two integers may become either, in both products.
    assert_within_a_quantum(proto, after, 2 * 0.05 * 127 * 0.01)


def test_bytes_of_the_kernel_are_those_that_its_reader_would_make() -> None:
    text = f"g ({X}) => ({Y}) {{ {FIRST} r = QuantizeLinear(h, hs, hz) e = DequantizeLinear(r, hs, hz) {SECOND} }}"
    one, _ = run_passes(build(text), *PASSES, target="cpu")
    two, _ = run_passes(build(text), *PASSES[:2], target="cpu")
    given = feeds()
    np.testing.assert_array_equal(evaluate(one, given)[0], evaluate(two, given)[0])


def test_quantize_linear_of_a_result_goes() -> None:
    proto = build(f"g ({X}) => (uint8[N,3,24] y) {{ {FIRST} y = QuantizeLinear(h, hs, hz) }}")
    after, _ = run_passes(proto, *PASSES, target="cpu")
    assert op_list(after) == ["QGemm"]
    assert_within_a_quantum(proto, after, 1)


def test_several_readers_share_the_bytes() -> None:
    proto = build(f"""g ({X}) => ({Y}, float[N,3,17] z, uint8[N,3,24] k) {{
        {FIRST} r = QuantizeLinear(h, hs, hz) e = DequantizeLinear(r, hs, hz) {SECOND}
        t = QuantizeLinear(h, hs, hz) u = DequantizeLinear(t, hs, hz) o = MatMul(u, n) z = Neg(o) k = QuantizeLinear(h, hs, hz)
    }}""")
    after, _ = run_passes(proto, *PASSES, target="cpu")
    assert op_list(after).count("QGemm") == 3
    assert "QuantizeLinear" not in op_list(after)
    assert_within_a_quantum(proto, after, 1)


def test_whole_pipeline_keeps_bytes() -> None:
    proto = build(
        f"g ({X}) => ({Y}) {{ {FIRST} r = QuantizeLinear(h, hs, hz) e = DequantizeLinear(r, hs, hz) {SECOND} }}"
    )
    assert op_list(onnxopt.optimize(proto, target="cpu")) == ["QGemm", "QGemm"]


LEFT = {
    "a result of the model": (
        f"g ({X}) => ({Y}, float[N,3,24] h) {{ {FIRST} r = QuantizeLinear(h, hs, hz) e = DequantizeLinear(r, hs, hz) {SECOND} }}",
        "is a result of the model",
    ),
    "a reader of floats": (
        f"g ({X}) => ({Y}, float[N,3,1] k) {{ {FIRST} k = ReduceMax<axes=[-1]>(h) r = QuantizeLinear(h, hs, hz) "
        f"e = DequantizeLinear(r, hs, hz) {SECOND} }}",
        "reads floats",
    ),
    "different scales": (
        f"g ({X}) => ({Y}, uint8[N,3,24] k) {{ {FIRST} k = QuantizeLinear(h, other, hz) r = QuantizeLinear(h, hs, hz) "
        f"e = DequantizeLinear(r, hs, hz) {SECOND} }}",
        "different scales",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_leaves(case: str) -> None:
    text, sentence = LEFT[case]
    loaded = ir.load(build(text))
    report = PassManager("cpu", list(PASSES), explain=True).run(loaded)
    after = ir.to_proto(loaded)
    assert not any(one.name == "output_dtype" for node in after.graph.node for one in node.attribute)
    assert any(sentence in str(near.refusal) for near in report.near_misses)


def test_second_run_changes_nothing() -> None:
    proto = build(
        f"g ({X}) => ({Y}) {{ {FIRST} r = QuantizeLinear(h, hs, hz) e = DequantizeLinear(r, hs, hz) {SECOND} }}"
    )
    once, _ = run_passes(proto, *PASSES, target="cpu")
    twice, _ = run_passes(once, *PASSES, target="cpu")
    assert op_list(twice) == op_list(once)
