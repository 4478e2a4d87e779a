"""Which quantized convolutions become QConv, and what each takes with it."""

from __future__ import annotations

import re
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
PASSES = (
    "fuse_qconvs",
    "convolutions_channels_last",
    "sink_transposes",
    "fuse_qconv_sums",
    "fuse_epilogues",
    "fuse_requantization",
    "eliminate_dead_code",
)


def draw(*shape: int) -> Array:
    return RNG.integers(-127, 128, shape).astype(np.int8)


CONSTANTS: dict[str, Array] = {
    "xs": np.array(0.02, np.float32),
    "xz": np.array(120, np.uint8),
    "ss": np.array(0.03, np.float32),
    "sz": np.array(-5, np.int8),
    "w": draw(12, 8, 3, 3),
    "v": draw(12, 12, 1, 1),
    "d": draw(12, 1, 3, 3),
    "l": draw(6, 8, 5),
    "s": RNG.uniform(0.002, 0.003, 12).astype(np.float32),
    "six": RNG.uniform(0.002, 0.003, 6).astype(np.float32),
    "one": np.array(0.0025, np.float32),
    "b": RNG.standard_normal(12).astype(np.float32),
    "i": RNG.integers(-1000, 1000, 12).astype(np.int32),
    "bs": np.full(12, 0.001, np.float32),
    "f": RNG.standard_normal((12, 1, 1)).astype(np.float32),
    "low": np.array(-0.5, np.float32),
    "high": np.array(0.75, np.float32),
}
X, Y = "uint8[N,8,9,H] x", "float[N,12,9,H] y"
ROWS = "a = DequantizeLinear(x, xs, xz)"
W = "m = DequantizeLinear<axis=0>(w, s)"
CONV = f"{ROWS} {W} c = Conv<pads=[1,1,1,1]>(a, m)"
BYTES = "uint8[N,12,9,H] y"
FUSED = {
    "scale per channel": f"g ({X}) => ({Y}) {{ {ROWS} {W} y = Conv<pads=[1,1,1,1]>(a, m) }}",
    "one scale": f"g ({X}) => ({Y}) {{ {ROWS} m = DequantizeLinear(w, one) y = Conv<pads=[1,1,1,1]>(a, m) }}",
    "bias": f"g ({X}) => ({Y}) {{ {ROWS} {W} y = Conv<pads=[1,1,1,1]>(a, m, b) }}",
    "bias of int32": f"g ({X}) => ({Y}) {{ {ROWS} {W} n = DequantizeLinear<axis=0>(i, bs) y = Conv<pads=[1,1,1,1]>(a, m, n) }}",
    "int8": f'g (int8[N,8,9,H] x) => ({Y}) {{ a = DequantizeLinear(x, xs, sz) {W} y = Conv<auto_pad="SAME_UPPER">(a, m) }}',
    "int8 around zero": f"g (int8[N,8,9,H] x) => ({Y}) {{ a = DequantizeLinear(x, xs) {W} y = Conv<pads=[1,1,1,1]>(a, m) }}",
    "1-D": "g (uint8[N,8,L] x) => (float[N,6,K] y) { a = DequantizeLinear(x, xs, xz) m = DequantizeLinear<axis=0>(l, six) y = Conv<strides=[2]>(a, m) }",
    "depthwise": """g (uint8[N,12,9,H] x) => (float[N,12,9,H] y) {
        a = DequantizeLinear(x, xs, xz) m = DequantizeLinear<axis=0>(d, s) y = Conv<group=12,pads=[1,1,1,1]>(a, m) }""",
    "quantized result": f"g ({X}) => ({BYTES}) {{ {CONV} y = QuantizeLinear(c, ss, xz) }}",
    "activation": f"g ({X}) => ({BYTES}) {{ {CONV} r = Relu(c) y = QuantizeLinear(r, ss, xz) }}",
    "gated activation": f"g ({X}) => ({BYTES}) {{ {CONV} h = HardSigmoid(c) r = Mul(c, h) y = QuantizeLinear(r, ss, xz) }}",
    "scaled channels": f"g ({X}) => ({BYTES}) {{ {CONV} r = Mul(c, f) t = Tanh(r) y = QuantizeLinear(t, ss, xz) }}",
    "activation of a rounded result": f"""g ({X}) => ({BYTES}) {{ {CONV} q = QuantizeLinear(c, xs, xz) p = DequantizeLinear(q, xs, xz)
        h = HardSigmoid(p) r = Mul(h, p) y = QuantizeLinear(r, ss, xz) }}""",
}


def build(text: str) -> onnx.ModelProto:
    words = set(re.split(r"\W+", text))
    return model(text, **{name: array for name, array in CONSTANTS.items() if name in words})


def feeds_of(proto: onnx.ModelProto) -> dict[str, Array]:
    feeds = {}
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or {"N": 2}.get(dim.dim_param, 7) for dim in tensor.shape.dim]
        dtype = {2: np.uint8, 3: np.int8, 1: np.float32}[tensor.elem_type]
        feeds[value.name] = RNG.integers(0, 120, shape).astype(dtype)
    return feeds


def assert_within_one_quantum(proto: onnx.ModelProto, after: onnx.ModelProto, quantum: float) -> None:
    feeds = feeds_of(proto)
    (wanted,) = evaluate(proto, feeds)
    for library in (True, False):
        (found,) = evaluate(after, feeds, library=library)
        assert found.dtype == wanted.dtype
        step = 1 if found.dtype.kind in "ui" else quantum
        assert np.abs(found.astype(float) - wanted.astype(float)).max() <= step


@pytest.mark.parametrize("case", FUSED)
def test_fuses(case: str) -> None:
    proto = build(FUSED[case])
    after, _ = run_passes(proto, *PASSES, target="cpu")
    assert [one for one in op_list(after) if one != "Transpose"] == ["QConv"]
    assert_within_one_quantum(proto, after, 1e-3)


FIRST = f"{CONV} r = Relu(c) q = QuantizeLinear(r, ss, xz) p = DequantizeLinear(q, ss, xz)"
SECOND = f"{FIRST} n = DequantizeLinear<axis=0>(v, s) e = Conv(p, n)"
CHAINS = {
    "chain": f"g ({X}) => ({BYTES}) {{ {SECOND} y = QuantizeLinear(e, ss, xz) }}",
    "residual": f"g ({X}) => ({BYTES}) {{ {SECOND} t = Add(e, p) u = Relu(t) y = QuantizeLinear(u, ss, xz) }}",
    "residual of a rounded result": f"""g ({X}) => (int8[N,12,9,H] y) {{ {SECOND} k = QuantizeLinear(e, xs, xz)
        h = DequantizeLinear(k, xs, xz) t = Add(p, h) y = QuantizeLinear(t, ss, sz) }}""",
}


@pytest.mark.parametrize("case", CHAINS)
def test_bytes_alone_lie_between_convolutions(case: str) -> None:
    proto = build(CHAINS[case])
    after, _ = run_passes(proto, *PASSES, target="cpu")
    assert op_list(after) == ["Transpose", "QConv", "QConv", "Transpose"]
    feeds = feeds_of(proto)
    for library in (True, False):
        (wanted,), (found,) = evaluate(proto, feeds), evaluate(after, feeds, library=library)
        # A number between two integers of the first convolution may become either.
        assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 3


def test_maxima_between_convolutions_are_of_bytes() -> None:
    pool = "o = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(p)"
    second = "k = QuantizeLinear(o, ss, xz) h = DequantizeLinear(k, ss, xz) n = DequantizeLinear<axis=0>(v, s) e = Conv(h, n)"
    proto = build(f"g ({X}) => (uint8[N,12,D,E] y) {{ {FIRST} {pool} {second} y = QuantizeLinear(e, ss, xz) }}")
    after, _ = run_passes(proto, "pool_bytes", *PASSES, target="cpu")
    assert op_list(after) == ["Transpose", "QConv", "FusedPool", "QConv", "Transpose"]
    assert_within_one_quantum(proto, after, 1)


def test_a_mean_reads_results_as_they_lie() -> None:
    proto = build(f"g ({X}) => (float[N,12,1,1] y) {{ {CONV} k = Clip(c, low, high) y = GlobalAveragePool(k) }}")
    after, _ = run_passes(proto, *PASSES, target="cpu")
    assert [one for one in op_list(after) if one != "Reshape"] == ["Transpose", "QConv", "FusedPool"]
    assert_within_one_quantum(proto, after, 1e-4)


LEFT = {
    "float rows": (f"g (float[N,8,9,H] x) => ({Y}) {{ {W} y = Conv<pads=[1,1,1,1]>(x, m) }}", ""),
    "filters with a scale per input channel": (
        "g (uint8[N,12,9,H] x) => (float[N,12,9,H] y) { a = DequantizeLinear(x, xs, xz) m = DequantizeLinear<axis=1>(v, s) y = Conv(a, m) }",
        "along axis 1",
    ),
    "computed bias": (
        f"g ({X}, float[12] o) => ({Y}) {{ {ROWS} {W} y = Conv<pads=[1,1,1,1]>(a, m, o) }}",
        "is not constant",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_leaves(case: str) -> None:
    text, sentence = LEFT[case]
    loaded = ir.load(build(text))
    report = PassManager("cpu", ["fuse_qconvs"], explain=True).run(loaded)
    assert "QConv" not in ops(ir.to_proto(loaded))
    assert not sentence or any(sentence in str(near.refusal) for near in report.near_misses)


def test_result_that_others_read_stays_float() -> None:
    proto = build(
        f"g ({X}) => ({Y}, {BYTES.replace(' y', ' z')}) {{ {CONV} y = Relu(c) z = QuantizeLinear(c, ss, xz) }}"
    )
    after, _ = run_passes(proto, *PASSES, target="cpu")
    (y, z), (new_y, new_z) = evaluate(proto, feeds_of(proto)), evaluate(after, feeds_of(proto))
    assert y.shape == new_y.shape and z.dtype == new_z.dtype
    assert {"QuantizeLinear"} <= set(ops(after))


@pytest.mark.parametrize("case", ["chain", "residual"])
def test_devices_have_the_kernel(case: str) -> None:
    """What lies behind the last convolution stays, since floats there are not channels-last."""
    proto = build(CHAINS[case])
    after, _ = run_passes(proto, *PASSES, target="cuda")
    assert op_list(after)[:4] == ["Transpose", "QConv", "QConv", "Transpose"]
    feeds = feeds_of(proto)
    (wanted,), (found,) = evaluate(proto, feeds), evaluate(after, feeds)
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 3


def test_other_targets_keep_standard_ops() -> None:
    after, _ = run_passes(build(FUSED["bias"]), "fuse_qconvs", target="generic")
    assert "QConv" not in ops(after)
