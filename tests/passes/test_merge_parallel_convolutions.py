"""Convolutions of one tensor that are added: merged where their windows fit together, and the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import assert_same, model, op_list, run_passes

PASS = "merge_parallel_convolutions"
RNG = np.random.default_rng(0)


def randoms(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def branches(first: str, second: str, *, inputs: int = 4, size: str = "9,8", **weights: np.ndarray) -> onnx.ModelProto:
    """Two nodes of the convolution's input `x`, which make `a` and `b`, and their sum."""
    return model(f"g (float[2,{inputs},{size}] x) => (y) {{ {first} {second} y = Add (a, b) }}", **weights)


def assert_merged(before: onnx.ModelProto, expected: list[str], *shape: int) -> onnx.ModelProto:
    after, _ = run_passes(before, PASS)
    assert op_list(after) == expected
    assert_same(before, after, {"x": randoms(*(shape or (2, 4, 9, 8)))})
    return after


@pytest.mark.parametrize(
    ("first", "second", "kernels"),
    [
        ("pads=[1,1,1,1]", "group=1", ((3, 3), (1, 1))),
        ("group=1", "pads=[1,1,1,1]", ((1, 1), (3, 3))),
        ("pads=[1,1,1,1], strides=[2,2]", "strides=[2,2]", ((3, 3), (1, 1))),
        ("pads=[3,3,3,3]", "pads=[1,1,1,1]", ((7, 7), (3, 3))),
        ("pads=[2,2,2,2], dilations=[2,2]", "dilations=[3,3]", ((3, 3), (1, 1))),
        ("pads=[0,1,2,1]", "pads=[2,1,0,1]", ((3, 3), (3, 3))),
        ("pads=[1,1,1,1]", "pads=[1,1,1,1]", ((3, 3), (3, 3))),
        ("pads=[1,0,1,0]", "pads=[0,0,0,0]", ((3, 1), (1, 1))),
        ('auto_pad="VALID"', "group=1", ((1, 1), (1, 1))),
    ],
)
@pytest.mark.parametrize("biased", [(True, True), (True, False), (False, False)], ids=str)
def test_sums_of_convolutions_are_one(
    first: str, second: str, kernels: tuple[tuple[int, int], ...], biased: tuple[bool, bool]
) -> None:
    w, v, c, d = randoms(5, 4, *kernels[0]), randoms(5, 4, *kernels[1]), randoms(5), randoms(5)
    nodes = [
        f"{name} = Conv <{window}> (x, {weights}{', ' + bias if has else ''})"
        for name, window, weights, bias, has in (("a", first, "w", "c", biased[0]), ("b", second, "v", "d", biased[1]))
    ]
    assert_merged(branches(*nodes, w=w, v=v, c=c, d=d), ["Conv"])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_branch_may_be_a_normalization_alone(groups: int) -> None:
    before = branches(
        f"a = Conv <pads=[1,1,1,1], group={groups}> (x, w)", "b = BatchNormalization (x, s, t, t, u)",
        w=randoms(4, 4 // groups, 3, 3), s=randoms(4), t=randoms(4), u=np.abs(randoms(4)),
    )  # fmt: skip
    assert_merged(before, ["Conv"])


def test_branches_of_branches_become_one() -> None:
    text = """g (float[2,4,9,8] x) => (y) {
      a = Conv <pads=[1,1,1,1], group=4> (x, w) b = BatchNormalization (x, s, t, t, u) c = Conv <group=4> (x, v)
      d = Conv <pads=[2,2,2,2], group=4> (x, q) e = Add (c, b) f = Add (e, a) y = Add (d, f)
    }"""
    constants = {"w": randoms(4, 1, 3, 3), "v": randoms(4, 1, 1, 1), "q": randoms(4, 1, 5, 5), "s": randoms(4)}
    assert_merged(model(text, **constants, t=randoms(4), u=np.abs(randoms(4))), ["Conv"])


def test_sequences_and_volumes() -> None:
    first, second = "a = Conv <pads=[1,1]> (x, w)", "b = Conv (x, v)"
    assert_merged(branches(first, second, size="7", w=randoms(3, 4, 3), v=randoms(3, 4, 1)), ["Conv"], 2, 4, 7)
    volumes = {"w": randoms(3, 4, 3, 3, 3), "v": randoms(3, 4, 1, 1, 1)}
    first = "a = Conv <pads=[1,1,1,1,1,1]> (x, w)"
    assert_merged(branches(first, second, size="5,4,3", **volumes), ["Conv"], 2, 4, 5, 4, 3)


@pytest.mark.parametrize(
    ("first", "second", "kernels"),
    [
        ("pads=[0,1,0,1]", "pads=[1,0,1,0]", ((1, 3), (3, 1))),
        ("pads=[1,1,1,1], strides=[2,2]", "pads=[1,1,1,1], strides=[2,2], dilations=[1,1], auto_pad=\"SAME_UPPER\"", ((3, 3), (3, 3))),
        ("pads=[1,1,1,1]", "pads=[2,2,2,2], dilations=[2,2]", ((3, 3), (3, 3))),
        ("pads=[1,1,1,1], group=2", "group=1", ((3, 3), (1, 1))),
    ],
)  # fmt: skip
def test_windows_that_do_not_fit_stay(first: str, second: str, kernels: tuple[tuple[int, int], ...]) -> None:
    if "SAME_UPPER" in second:
        second = second.replace("pads=[1,1,1,1], ", "")
    depth = 2 if "group" in first else 4
    before = branches(
        f"a = Conv <{first}> (x, w)", f"b = Conv <{second}> (x, v)",
        w=randoms(4, depth, *kernels[0]), v=randoms(4, 4, *kernels[1]),
    )  # fmt: skip
    assert op_list(run_passes(before, PASS)[0]) == ["Conv", "Conv", "Add"]


def test_a_result_that_is_also_used_elsewhere_stays() -> None:
    text = "g (float[2,4,9,8] x) => (y, a) { a = Conv (x, w) b = Conv (x, v) y = Add (a, b) }"
    after, _ = run_passes(model(text, w=randoms(4, 4, 1, 1), v=randoms(4, 4, 1, 1)), PASS)
    assert op_list(after) == ["Conv", "Conv", "Add"]


def test_a_scale_of_a_convolution_that_shrinks_or_moves_stays() -> None:
    for window in ("strides=[2,2], pads=[1,1,1,1]", "pads=[0,0,2,2]"):
        size = "1,1" if "strides" in window else "9,8"
        before = branches(
            f"a = Conv <{window}> (x, w)", "b = Mul (x, s)", size=size, w=randoms(4, 4, 3, 3), s=randoms(4, 1, 1)
        )
        merged = "pads=[0,0,2,2]" in window  # its first tap reads the element at the same place
        assert op_list(run_passes(before, PASS)[0]) == (["Conv"] if merged else ["Conv", "Mul", "Add"])
        assert_same(before, run_passes(before, PASS)[0], {"x": randoms(2, 4, *map(int, size.split(",")))})


def test_sums_that_do_not_fit_into_the_type_stay() -> None:
    big = np.full((4, 4, 1, 1), 60000, np.float16)
    text = "g (float16[2,4,3,3] x) => (y) { a = Conv (x, w) b = Conv (x, w2) y = Add (a, b) }"
    assert op_list(run_passes(model(text, w=big, w2=big), PASS)[0]) == ["Conv", "Conv", "Add"]
