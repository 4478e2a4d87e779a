"""Slice, Concat, Split and Pad: what takes or adds nothing goes, chains become one node."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "simplify_slices"
LAST = 2**63 - 1
RNG = np.random.default_rng(0)


def graph(body: str, *, outputs: str = "y", opset: int = 17, **constants: int | list[int]) -> onnx.ModelProto:
    weights = {name: np.array(numbers, np.int64) for name, numbers in constants.items()}
    return model(f"g (float[3,8,9] x, float[3,8,9] z) => ({outputs}) {{ {body} }}", opset=opset, **weights)


def feeds() -> dict[str, np.ndarray]:
    return {name: RNG.standard_normal((3, 8, 9)).astype(np.float32) for name in "xz"}


@pytest.mark.parametrize(
    ("before", "left"),
    [
        (graph("y = Slice(x, s, e)", s=[0, 0], e=[3, LAST]), ["Identity"]),
        (graph("y = Slice(x, s, e, a)", s=[-8], e=[8], a=[1]), ["Identity"]),
        (graph("y = Pad(x, p)", p=[0] * 6), ["Identity"]),
        (graph("y = Split<axis=1>(x, n)", n=[8]), ["Identity"]),
        (graph("a, b = Split<axis=1>(x, n)\n y = Concat<axis=-2>(a, b)", n=[3, 5]), ["Identity"]),
        (graph("a = Concat<axis=1>(x, z)\n y = Concat<axis=-2>(a, x)"), ["Concat"]),
        (graph("a = Slice(x, s, s, k)\n y = Concat<axis=1>(a, z, x)", s=[0], k=[1]), ["Concat"]),
        (graph("a = Slice(x, o, e, k)\n y = Slice(a, s, e, l)", o=[1], e=[5], k=[1], s=[-9], l=[2]), ["Slice"]),
        (graph("y = Slice(x, s, e, k)", s=[0, 2, 0], e=[LAST, 5, 100], k=[1, 2, 0]), ["Slice"]),
    ],
    ids=["slice", "from the end", "pad", "split", "split and concat", "concats", "empty part", "slices", "full axes"],
)
def test_becomes(before: onnx.ModelProto, left: list[str]) -> None:
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert op_list(after) == left
    assert_same(before, after, feeds(), rtol=0, atol=0)


def test_keeps_only_the_axes_that_are_cut() -> None:
    before = graph("y = Slice(x, s, e, k)", s=[0, 2, 0], e=[LAST, 5, 100], k=[1, 2, 0])
    after, _ = run_passes(before, PASS)
    constants = {one.name: onnx.numpy_helper.to_array(one).tolist() for one in after.graph.initializer}
    assert [constants[name] for name in after.graph.node[0].input[1:]] == [[2], [5], [2], [1]]


def test_slices_of_a_shared_slice() -> None:
    body = "a = Slice(x, o, e, k, t)\n y = Slice(a, o, e, l, t)\n w = Slice(a, s, e, l, t)"
    before = graph(body, outputs="y, w", o=[0], e=[LAST], k=[1], t=[2], l=[2], s=[1])
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Slice", "Slice"]
    assert_same(before, after, feeds(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "before",
    [
        graph("y = Slice(x, s, e, k, t)", s=[-1], e=[-LAST], k=[1], t=[-1]),
        graph("y = Slice(x, s, e, k)", s=[0, 1], e=[2, 3], k=[0, 1]),
        graph("a = Slice(x, s, e, k)\n y = Slice(a, s, e, k)", s=[1], e=[5], k=[1]),
        graph("a, b = Split<axis=1>(x, n)\n y = Concat<axis=1>(b, a)", n=[3, 5]),
        graph("a, b = Split<axis=1>(x, n)\n y = Concat<axis=0>(a, b)", n=[4, 4]),
        graph("a = Concat<axis=1>(x, z)\n y = Concat<axis=1>(a, x)", outputs="y, a"),
        graph("a = Concat<axis=0>(x, z)\n b = Concat<axis=0>(z, z)\n y = Concat<axis=1>(a, b)"),
    ],
    ids=["reversed", "cut axes", "same axis", "other order", "other axis", "an output", "concats of other axes"],
)
def test_refuses(before: onnx.ModelProto) -> None:
    after, _ = run_passes(before, PASS)
    assert op_list(after) == op_list(before)
    assert_same(before, after, feeds(), rtol=0, atol=0)


def test_refuses_a_pad_of_unknown_width() -> None:
    before = model("g (float[3] x, int64[2] p) => (float[n] y) { y = Pad(x, p) }")
    assert op_list(run_passes(before, PASS)[0]) == ["Pad"]
