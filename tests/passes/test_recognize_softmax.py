"""Softmax written out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "recognize_softmax"
RNG = np.random.default_rng(0)


def written_out(
    axis: int, *, sum_axis: int | None = None, opset: int = 18, shift: str = "s = Sub(x, m)"
) -> onnx.ModelProto:
    body = f"m = ReduceMax(x, a)\n {shift}\n e = Exp(s)\n t = ReduceSum(e, b)\n y = Div(e, t)"
    axes = {"a": np.array([axis]), "b": np.array([axis if sum_axis is None else sum_axis])}
    if opset < 13:
        body = body.replace("ReduceMax(x, a)", f"ReduceMax<axes=[{axis}]>(x)")
        body = body.replace("ReduceSum(e, b)", f"ReduceSum<axes=[{axis}]>(e)")
        axes = {}
    return model(f"g (float[2,3,4] x) => (y) {{ {body} }}", opset=opset, **axes)


def feeds() -> list[dict[str, np.ndarray]]:
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32) * 10
    wild = x.copy()
    wild[0, 0, 0], wild[1, 1, 1], wild[1, 2, 3], wild[0, 2, :3] = np.inf, np.nan, -np.inf, -np.inf
    return [{"x": x}, {"x": wild}, {"x": x * 100}]


@pytest.mark.parametrize(("axis", "opset"), [(-1, 18), (2, 18), (0, 18), (1, 18), (-1, 11)])
def test_becomes_softmax(axis: int, opset: int) -> None:
    before = written_out(axis, opset=opset)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Softmax"]
    assert_same(before, after, feeds())


@pytest.mark.parametrize(
    "before",
    [
        written_out(1, sum_axis=2),
        written_out(1, opset=11),
        written_out(1, shift="s = Sub(m, x)"),
        written_out(1, shift="s = Add(x, m)"),
    ],
    ids=["other axis", "old Softmax", "negated", "added"],
)
def test_refuses(before: onnx.ModelProto) -> None:
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)
