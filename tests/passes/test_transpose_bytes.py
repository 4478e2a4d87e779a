"""Transposes beside quantization."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from helpers import evaluate, model, op_list, run_passes

PASS = "transpose_bytes"
CONSTANTS = {
    "s": np.array(0.1, np.float32),
    "several": np.full(4, 0.1, np.float32),
    "z": np.array(128, np.uint8),
    "zeros": np.full(4, 128, np.uint8),
    "six": np.array(6, np.float32),
    "zero": np.array(0, np.float32),
}
FLOATS, BYTES = "float[N,3,5,4]", "uint8[N,3,5,4]"
LAST = "t = Transpose<perm=[0, 2, 3, 1]>"
Y = "float[N,5,4,3] y"


def build(text: str) -> onnx.ModelProto:
    return model(
        f"g {text}", **{name: array for name, array in CONSTANTS.items() if f"{name})" in text or f"{name}," in text}
    )


def feeds(proto: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    drawn = {"x": rng.normal(0, 3, (2, 3, 5, 4)).astype(np.float32), "b": rng.integers(0, 256, (2, 3, 5, 4), np.uint8)}
    drawn["x"][0, 0, 0] = [np.inf, -np.inf, 0, -0.0]
    return {one.name: drawn[one.name] for one in proto.graph.input}


MOVED = {
    "behind a quantization": (
        f"({FLOATS} x) => (uint8[N,5,4,3] y) {{ {LAST}(x) y = QuantizeLinear(t, s, z) }}",
        ["QuantizeLinear", "Transpose"],
    ),
    "with what is between": (
        f"({FLOATS} x) => (uint8[N,5,4,3] y) {{ {LAST}(x) r = Relu(t) c = Clip(r, zero, six) y = QuantizeLinear(c, s, z) }}",
        ["Relu", "Clip", "QuantizeLinear", "Transpose"],
    ),
    "before a dequantization": (
        f"({BYTES} b) => ({Y}) {{ d = DequantizeLinear(b, s, z) y = Transpose<perm=[0, 2, 3, 1]>(d) }}",
        ["Transpose", "DequantizeLinear"],
    ),
    "floats that others read": (
        f"({BYTES} b) => ({Y}, {FLOATS} o) {{ d = DequantizeLinear(b, s, z) y = Transpose<perm=[0, 2, 3, 1]>(d) o = Relu(d) }}",
        ["DequantizeLinear", "Transpose", "DequantizeLinear", "Relu"],
    ),
    "bytes that are at hand": (
        f"""({BYTES} b) => ({Y}, uint8[N,5,4,3] o) {{ d = DequantizeLinear(b, s, z) y = Transpose<perm=[0, 2, 3, 1]>(d)
            o = Transpose<perm=[0, 2, 3, 1]>(b) }}""",
        ["Transpose", "DequantizeLinear"],
    ),
}


@pytest.mark.parametrize("case", MOVED)
def test_moves(case: str) -> None:
    text, expected = MOVED[case]
    before = build(text)
    after, _ = run_passes(before, PASS, target="cuda")
    assert op_list(after) == expected
    for wanted, found in zip(evaluate(before, feeds(before)), evaluate(after, feeds(before)), strict=True):
        np.testing.assert_array_equal(found, wanted)


LEFT = {
    "several scales": f"({FLOATS} x) => (uint8[N,5,4,3] y) {{ {LAST}(x) y = QuantizeLinear<axis=2>(t, several, zeros) }}",
    "several scales of bytes": f"({BYTES} b) => ({Y}) {{ d = DequantizeLinear<axis=3>(b, several, zeros) y = Transpose<perm=[0, 2, 3, 1]>(d) }}",
    "result that others read": f"({FLOATS} x) => (uint8[N,5,4,3] y, float[N,5,4,3] o) {{ {LAST}(x) r = Relu(t) o = Relu(r) y = QuantizeLinear(r, s, z) }}",
    "sum of two": f"({FLOATS} x) => (uint8[N,5,4,3] y) {{ {LAST}(x) r = Add(t, t) y = QuantizeLinear(r, s, z) }}",
    "no Transpose": f"({FLOATS} x) => (uint8[N,3,5,4] y) {{ r = Relu(x) y = QuantizeLinear(r, s, z) }}",
    "fixed axes": f"({FLOATS} x) => (uint8[N,5,2,1] y) {{ {LAST}(x) r = MaxPool<kernel_shape=[3, 3]>(t) y = QuantizeLinear(r, s, z) }}",
}


@pytest.mark.parametrize("case", LEFT)
def test_leaves(case: str) -> None:
    before = build(LEFT[case])
    assert op_list(run_passes(before, PASS, target="cuda")[0]) == op_list(before)


@pytest.mark.parametrize("target", ["cpu", "generic"])
def test_other_targets_are_left(target: str) -> None:
    before = build(MOVED["behind a quantization"][0])
    assert op_list(run_passes(before, PASS, target=target)[0]) == op_list(before)
