"""Dims that are broadcasts of dims of which nothing is known: what is still the same dim, against onnxruntime."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import helpers
from onnxopt import ir

SUMS = "s = Add (x, y) t = Mul (y, s) u = Add (t, x) v = Add (u, z)"
INPUTS = "float[A, 3] x, float[B, 3] y, float[C, 3] z"


def shapes(body: str, names: str, **weights: np.ndarray) -> list[ir.Shape | None]:
    """What is known of values that are no outputs, whose dims the model names."""
    model = ir.load(helpers.model(f"g ({INPUTS}) => (float[O, P] o) {{ {body} o = Neg (t) }}", **weights))
    env = ir.ShapeEnv(model)
    env.infer_model()
    values = {value.name: value for node in model.graph for value in node.outputs}
    return [env.shape(values[name]) for name in names]


def test_broadcast_with_its_own_dims_is_the_same_dim() -> None:
    first, second, third, other = shapes(SUMS, "stuv")
    assert first == second == third
    assert other != first


@pytest.mark.parametrize(
    "sizes", [sizes for sizes in itertools.product([0, 1, 2], repeat=3) if len({*sizes} - {1}) <= 1]
)
def test_such_dims_are_equal_wherever_the_model_runs(sizes: tuple[int, int, int]) -> None:
    feeds = {name: np.ones((size, 3), np.float32) for name, size in zip("xyz", sizes, strict=True)}
    outputs = ", ".join(f"float[{name}0, 3] {name}" for name in "stu")
    s, t, u = helpers.evaluate(helpers.model(f"g ({INPUTS}) => ({outputs}) {{ {SUMS} }}"), feeds)
    assert s.shape == t.shape == u.shape


REST = {
    "rest": np.array([-1]),
    "flat": np.array([-1, 3]),
    "three": np.array([3]),
    "zero": np.array([0]),
    "one": np.array([1]),
}


@pytest.mark.parametrize(
    "view", ["r = Reshape (s, rest)", "r = Reshape (s, flat)", "w = Transpose (s) r = Reshape (w, rest)"]
)
def test_reshape_back_to_a_dim_that_may_be_0(view: str) -> None:
    """A target of 0 copies the input's dim, which is 0 as well, or else the sizes would not fit."""
    body = f"s = Add (x, y) k = Shape (s) d = Slice (k, zero, one) p = Concat <axis = 0> (d, three) {view} t = Reshape (r, p)"
    before, after = shapes(body, "st", **REST)
    assert before == after


def test_reshape_to_a_dim_of_another_tensor_is_unknown() -> None:
    body = "s = Add (x, y) k = Shape (s) d = Slice (k, zero, one) p = Concat <axis = 0> (d, three) t = Reshape (z, p)"
    before, after = shapes(body, "st", **REST)
    assert before != after
