"""Means over all pixels: which become FusedPool, and that they are the same."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import assert_same, model, op_list, run_passes, set_costs

PASS = "fuse_means"


@pytest.fixture(autouse=True)
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    set_costs(monkeypatch, norm_elements=1)


def feeds(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


@pytest.mark.parametrize(
    ("shape", "axes", "keepdims", "expected"),
    [
        ((2, 7, 5, 19), (1, 2), 1, ["FusedPool"]),
        ((2, 7, 5, 19), (-2, -3), 0, ["FusedPool", "Flatten"]),
        ((3, 1, 1, 1), (1, 2), 0, ["FusedPool", "Flatten"]),
        ((1, 65, 33), (1,), 1, ["FusedPool"]),
        ((4, 9, 16), (1,), 0, ["FusedPool", "Flatten"]),
    ],
)
@pytest.mark.parametrize("opset", [13, 18])
def test_means_of_channels_become_a_pooling(
    shape: tuple[int, ...], axes: tuple[int, ...], keepdims: int, expected: list[str], opset: int
) -> None:
    sizes = "N," + ",".join(map(str, shape[1:]))
    given = "" if opset >= 18 else f", axes=[{','.join(map(str, axes))}]"
    operand = ", axes" if opset >= 18 else ""
    weights = {"axes": np.array(axes, np.int64)} if opset >= 18 else {}
    text = f"g (float[{sizes}] x) => (y) {{ y = ReduceMean <keepdims={keepdims}{given}> (x{operand}) }}"
    before = model(text, opset=opset, **weights)
    after, _ = run_passes(before, PASS, target="cpu")
    assert op_list(after) == expected
    assert_same(before, after, feeds(*shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "graph",
    [
        "g (float[2,3,4,5] x) => (y) { y = ReduceMean <axes=[2,3]> (x) }",
        "g (float[2,3,4,5] x) => (y) { y = ReduceMean <axes=[1]> (x) }",
        "g (float[2,3,4,5] x) => (y) { y = ReduceMean (x) }",
        "g (float[2,3] x) => (y) { y = ReduceMean <axes=[1]> (x) }",
        "g (double[2,3,4] x) => (y) { y = ReduceMean <axes=[1]> (x) }",
        "g (float[1,2,3,4,5] x) => (y) { y = ReduceMean <axes=[1,2,3]> (x) }",
    ],
)
def test_other_means_stay(graph: str) -> None:
    after, _ = run_passes(model(graph), PASS, target="cpu")
    assert op_list(after) == ["ReduceMean"]


def test_small_tensors_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    set_costs(monkeypatch, norm_elements=2048)
    after, _ = run_passes(model("g (float[2,3,4] x) => (y) { y = ReduceMean <axes=[1]> (x) }"), PASS, target="cpu")
    assert op_list(after) == ["ReduceMean"]


def test_means_inside_branches_stay() -> None:
    text = """g (float[2,3,4] x, bool c) => (y) {
      y = If (c) <
        then_branch = t () => (float[2,1,4] a) { a = ReduceMean <axes=[1]> (x) },
        else_branch = e () => (float[2,1,4] b) { b = ReduceMax <axes=[1]> (x) }
      >
    }"""
    after, _ = run_passes(model(text), PASS, target="cpu")
    assert not after.functions


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_channel(value: float) -> None:
    before = model("g (float[2,5,7,9] x) => (y) { y = ReduceMean <axes=[1,2], keepdims=0> (x) }")
    inputs = feeds(2, 5, 7, 9)
    inputs["x"][1, 2, 3, 4] = value
    assert_same(before, run_passes(before, PASS, target="cpu")[0], inputs, rtol=1e-5, atol=1e-6)
