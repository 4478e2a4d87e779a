"""Bytes that a subgraph reads behind moves are moved as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from helpers import assert_same, model, op_list, run_passes
from onnxopt import optimize

PASS = "dequantize_after_moves"
RNG = np.random.default_rng(0)
CONSTANTS: dict[str, np.ndarray[Any, Any]] = {
    "s": np.array(0.03, np.float32),
    "z": np.array(120, np.uint8),
    "scales": np.full(8, 0.1, np.float32),
    "zeros": np.zeros(8, np.uint8),
    "minus": np.array(-0.03, np.float32),
    "from": np.array([1, 2]),
    "to": np.array([7, 6]),
    "rows": np.array([0, 4, -1]),
    "first": np.array([0]),
}
QDQ = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "


def build(
    text: str, results: str = "", captured: str = "t", op: str = "If", opset: int = 17, **constants: Any
) -> onnx.ModelProto:
    """A model whose branches, or iterations, read `t`."""
    relu = f"r = Relu({captured})"
    if op == "If":
        node = f"""If(c) <then_branch = g1 () => (float[?] p) {{ {relu} p = ReduceMax<keepdims=0>(r) }},
                          else_branch = g2 () => (float[?] w) {{ n = Neg({captured}) w = ReduceMax<keepdims=0>(n) }}>"""
    else:
        node = f"""Loop(trips, c, start) <body = g1 (int64 i, bool go, float[?] state) => (bool go, float[?] p) {{
            {relu} k = ReduceMax<keepdims=0>(r) p = Add(state, k) }}>"""
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    held = {name: array for name, array in {**CONSTANTS, **constants}.items() if name in words}
    if op == "Loop":
        held |= {"trips": np.array(2), "start": np.array(0, np.float32)}
    return model(
        f"g (float[N,8,H,W] x, bool c) => (float[?] y{results}) {{ {text} m = {node} y = Identity(m) }}",
        opset=opset,
        **held,
    )


def feeds(size: int = 9) -> list[dict[str, np.ndarray[Any, Any]]]:
    x = RNG.standard_normal((2, 8, size, 10)).astype(np.float32)
    return [{"x": x, "c": np.array(flag)} for flag in (True, False)]


MOVED = {
    "Transpose": "t = Transpose<perm=[0,2,3,1]>(d)",
    "Reshape": "t = Reshape(d, rows)",
    "Squeeze": "u = Unsqueeze(x, first) q = QuantizeLinear(u, s, z) d = DequantizeLinear(q, s, z) t = Squeeze(d, first)",
    "Unsqueeze": "t = Unsqueeze(d, first)",
    "Slice": "t = Slice(d, from, to, from)",
    "MaxPool": "t = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(d)",
    "a chain": "a = Transpose<perm=[0,2,3,1]>(d) t = Reshape(a, rows)",
}


@pytest.mark.parametrize("op", ["If", "Loop"])
@pytest.mark.parametrize("case", MOVED)
def test_moves_bytes_that_a_subgraph_reads(case: str, op: str) -> None:
    before = build((QDQ if case != "Squeeze" else "") + MOVED[case], op=op)
    after, _ = run_passes(before, PASS)
    before_it = [one for one in op_list(before) if one not in ("DequantizeLinear", "Identity", op)]
    assert op_list(after) == [*before_it, "DequantizeLinear", op, "Identity"]
    assert_same(before, after, feeds(), rtol=0, atol=0)
    onnxruntime.InferenceSession(after.SerializeToString(), providers=["CPUExecutionProvider"])


def test_others_read_what_was_moved_and_what_was_not() -> None:
    before = build(QDQ + MOVED["Transpose"] + " o = Neg(t) e = Neg(d)", ", float[?,?,?,?] o, float[?,?,?,?] e")
    after, _ = run_passes(before, PASS)
    assert op_list(after).count("DequantizeLinear") == 2
    assert_same(before, after, feeds(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "text",
    [
        "q = QuantizeLinear<axis=1>(x, scales, zeros) d = DequantizeLinear<axis=1>(q, scales, zeros) t = Identity(d) a = Reshape(t, rows)",
        "q = QuantizeLinear<axis=1>(x, scales, zeros) d = DequantizeLinear<axis=1>(q, scales, zeros) t = Reshape(d, rows)",
        "q = QuantizeLinear(x, minus, z) d = DequantizeLinear(q, minus, z) t = MaxPool<kernel_shape=[2,2]>(d)",
        QDQ + "t = MaxPool<kernel_shape=[2,2], dilations=[2,1]>(d)",
        QDQ + "t = MaxPool<kernel_shape=[2,2], pads=[2,0,0,0]>(d)",
        QDQ + "t = MaxPool<kernel_shape=[2,2], ceil_mode=1>(d)",
        QDQ + "t, k = MaxPool<kernel_shape=[2,2]>(d)",
        QDQ + "t = Relu(d)",
        QDQ + "t = Identity(d) a = Reshape(d, rows)",
        "t = Transpose<perm=[0,2,3,1]>(x)",
    ],
)
def test_refuses(text: str) -> None:
    _, report = run_passes(build(text), PASS)
    assert not report.patches


def test_maxima_of_floats_before_opset_12() -> None:
    _, report = run_passes(build(QDQ + MOVED["MaxPool"], opset=11), PASS)
    assert not report.patches


@pytest.mark.parametrize("target", ["generic", "cpu"])
def test_common_moves_of_branches_leave_a_model_that_loads(target: str) -> None:
    """Branches that begin alike capture what they have in common."""
    text = f"""g (float[1,8,9,9] x, bool c) => (float[?,?,?,?] y) {{ {QDQ} y = If(c) <
        then_branch = g1 () => (float[?,?,?,?] p) {{ a = Transpose<perm=[0,2,3,1]>(d) p = Sin(a) }},
        else_branch = g2 () => (float[?,?,?,?] w) {{ b = Transpose<perm=[0,2,3,1]>(d) w = Cos(b) }}> }}"""
    before = model(text, **{name: CONSTANTS[name] for name in ("s", "z")})
    after = optimize(before, target=target)
    assert "Transpose" in op_list(after)
    onnxruntime.InferenceSession(after.SerializeToString(), providers=["CPUExecutionProvider"])
    assert_same(before, after, feeds(9)[0] | {"x": RNG.standard_normal((1, 8, 9, 9)).astype(np.float32)})
