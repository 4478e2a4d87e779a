"""Transposes and Reshapes between rows of pixels and images are exchanged next to convolutions, and convolutions run channels-last for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxopt
from helpers import assert_same, model, op_list, ops, run_passes

pytest.importorskip("onnxopt._native", reason="the native library is not built")

PASS = "move_transposes_to_convolutions"
RNG = np.random.default_rng(2)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def make(text: str, **arrays: np.ndarray[Any, Any]) -> onnx.ModelProto:
    return model(text, w=normal(8, 8, 3, 3), **arrays)


def feed_forward(batch: str = "N", height: int = 4, width: int = 6) -> onnx.ModelProto:
    """Rows of pixels, an image, a convolution, and rows again."""
    shape = {"image": np.array([0, 8, height, width]), "rows": np.array([0, 8, -1])}
    return make(
        f"""g (float[{batch},{height * width},8] x) => (float[{batch},{height * width},8] y) {{
        t = Transpose<perm = [0, 2, 1]>(x)  i = Reshape(t, image)  c = Conv<pads = [1, 1, 1, 1]>(i, w)
        r = Reshape(c, rows)  y = Transpose<perm = [0, 2, 1]>(r) }}""",
        **shape,
    )


@pytest.mark.parametrize(("batch", "size"), [("N", 1), ("N", 3), ("2", 2)])
def test_both_sides_of_a_convolution(batch: str, size: int) -> None:
    before = feed_forward(batch)
    after, report = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["Reshape", "Transpose", "Conv", "Transpose", "Reshape"]
    assert [patch.rule for patch in report.patches] == ["transpose_before_convolution", "transpose_behind_convolution"]
    assert_same(before, after, {"x": normal(size, 24, 8)})


def test_no_transposes_are_left() -> None:
    before = feed_forward()
    after = onnxopt.optimize(before, strict=True)
    assert ops(after)["FusedConv"] == 1 and "Transpose" not in ops(after)
    for library in (True, False):
        assert_same(before, after, {"x": normal(2, 24, 8)}, rtol=1e-4, atol=1e-5, library=library)


def test_sides_that_are_not_known_behind_a_convolution() -> None:
    before = make(
        """g (float[N,8,H,W] x) => (float[N,P,8] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w)  r = Reshape(c, rows)  y = Transpose<perm = [0, 2, 1]>(r) }""",
        rows=np.array([0, 8, -1]),
    )
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == ["Conv", "Transpose", "Reshape"]
    assert_same(before, after, {"x": normal(2, 8, 5, 3)})


REFUSED = {
    "unknown sides": """g (float[N,P,8] x, int64[4] s) => (float[N,8,H,W] y) {
        t = Transpose<perm = [0, 2, 1]>(x)  i = Reshape(t, s)  y = Conv<pads = [1, 1, 1, 1]>(i, w) }""",
    "another user": """g (float[N,24,8] x) => (float[N,8,4,6] y, float[N,8,4,6] z) {
        s = Constant<value_ints = [0, 8, 4, 6]>()
        t = Transpose<perm = [0, 2, 1]>(x)  i = Reshape(t, s)  y = Conv<pads = [1, 1, 1, 1]>(i, w)  z = Relu(i) }""",
    "another order": """g (float[8,N,24] x) => (float[N,8,4,6] y) {
        s = Constant<value_ints = [0, 8, 4, 6]>()
        t = Transpose<perm = [1, 0, 2]>(x)  i = Reshape(t, s)  y = Conv<pads = [1, 1, 1, 1]>(i, w) }""",
    "channels apart": """g (float[N,48,4] x) => (float[N,8,4,6] y) {
        s = Constant<value_ints = [0, 8, 4, 6]>()
        t = Transpose<perm = [0, 2, 1]>(x)  i = Reshape(t, s)  y = Conv<pads = [1, 1, 1, 1]>(i, w) }""",
    "no convolution": """g (float[N,8,4,6] x) => (float[N,24,8] y) {
        s = Constant<value_ints = [0, 8, 24]>()  r = Reshape(x, s)  y = Transpose<perm = [0, 2, 1]>(r) }""",
    "channels joined": """g (float[N,8,4,6] x) => (float[N,12,16] y) {
        s = Constant<value_ints = [0, 16, 12]>()
        c = Conv<pads = [1, 1, 1, 1]>(x, w)  r = Reshape(c, s)  y = Transpose<perm = [0, 2, 1]>(r) }""",
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    before = make(REFUSED[case])
    after, report = run_passes(before, PASS, target="cpu")
    assert not report.patches and op_list(after) == op_list(before)
