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


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("axis", [0, -1])
def test_empty_slices_and_parts(axis: int, opset: int) -> None:
    body = f"a = Slice(x, s, s, k)\n b = Concat<axis={axis}>(a, a)\n y = Concat<axis={axis}>(b, x)"
    before = graph(body, s=[2], k=[axis], opset=opset)
    after, _ = run_passes(before, PASS, "eliminate_noops", "eliminate_dead_code")
    assert_same(before, after, feeds(), rtol=0, atol=0)


@pytest.mark.parametrize("size", [1, 4, 9])
@pytest.mark.parametrize(
    "body",
    [
        "y = Slice(x, zero, five, axis)",
        "y = Slice(x, zero, last, axis)",
        "y = Slice(x, minus, last, axis)",
        "a = Slice(x, zero, five, axis)\n y = Slice(a, zero, two, other)",
        "s = Shape(x)\n e = Slice(s, zero, one, zero)\n y = Slice(x, zero, e, zero)",
    ],
)
def test_symbolic_sizes(body: str, size: int) -> None:
    names = {"zero": 0, "one": 1, "two": 2, "five": 5, "last": LAST, "minus": -5, "axis": 0, "other": 1}
    used = {name: np.array([number]) for name, number in names.items() if name in body}
    before = model(f"g (float[N,3] x) => (float[a,b] y) {{ {body} }}", **used)
    after, _ = run_passes(before, PASS)
    assert_same(before, after, {"x": RNG.standard_normal((size, 3)).astype(np.float32)}, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_pads_of_every_mode_that_add_nothing(mode: str) -> None:
    before = graph(f'y = Pad<mode="{mode}">(x, p)', p=[0] * 6)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Identity"]


def test_pads_that_cancel_stay() -> None:
    before = graph("y = Pad(x, p)", p=[1, 0, 0, -1, 0, 0])
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Pad"]
    assert_same(before, after, feeds(), rtol=0, atol=0)


@pytest.mark.parametrize("outputs", ["y, a", "y, b"])
def test_parts_that_others_use(outputs: str) -> None:
    before = graph("a, b = Split<axis=1>(x, n)\n y = Concat<axis=1>(a, b)", outputs=outputs, n=[3, 5])
    after, _ = run_passes(before, PASS, "eliminate_dead_code")
    assert sorted(op_list(after)) == ["Identity", "Split"]
    assert_same(before, after, feeds(), rtol=0, atol=0)


@pytest.mark.parametrize("body", ["y = Concat<axis=1>(a, b, a)", "y = Concat<axis=1>(a, a)", "y = Concat<axis=1>(b)"])
def test_other_joins_of_the_parts_stay(body: str) -> None:
    before = graph(f"a, b = Split<axis=1>(x, n)\n {body}", n=[4, 4])
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Split", "Concat"]
    assert_same(before, after, feeds(), rtol=0, atol=0)


def test_a_concat_that_a_branch_captures_stays() -> None:
    branches = (
        "then_branch = p () => (float[6,8,9] t) { t = Neg(a) }, else_branch = q () => (float[6,8,9] e) { e = Exp(a) }"
    )
    text = f"g (float[3,8,9] x, bool f) => (y, float[6,8,9] w) {{ a = Concat<axis=0>(x, x)\n y = Concat<axis=0>(a, x)\n w = If(f) <{branches}> }}"
    before = model(text)
    after, _ = run_passes(before, PASS)
    assert op_list(after) == ["Concat", "Concat", "If"]
    assert_same(before, after, {"x": feeds()["x"], "f": np.array(True)})


@pytest.mark.parametrize(
    ("index", "left"),
    [(0, ["Squeeze", "Neg"]), (-1, ["Squeeze", "Neg"]), ([0], ["Neg"]), ([0, 0], ["Gather", "Neg"])],
)
def test_lookup_of_all_there_is(index: int | list[int], left: list[str]) -> None:
    before = model(
        "g (float[3,1,9] x) => (y) { a = Gather<axis=1>(x, i)\n y = Neg(a) }", opset=12, i=np.array(index, np.int64)
    )
    after, _ = run_passes(before, PASS)
    assert op_list(after) == left
    assert_same(before, after, {"x": RNG.standard_normal((3, 1, 9)).astype(np.float32)}, rtol=0, atol=0)
