"""Slices of shapes and of what is made of them, against onnxruntime: bounds inside and outside, forwards and backwards."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import helpers
import onnxopt
from onnxopt import ir

LARGEST, LEAST = 2**63 - 1, -(2**63) + 1
BOUNDS = [LEAST, -10, -5, -4, -3, -1, 0, 1, 3, 4, 10, LARGEST]
SIZES = {"A": 3, "B": 5}


def inferred(env: ir.ShapeEnv, value: ir.Value) -> list[int] | None:
    """The elements that are known, for the sizes of the test."""
    found = env.elements(value)
    return None if found is None else [one if isinstance(one, int) else SIZES[str(one)] for one in found]


@pytest.mark.parametrize("step", [1, 2, 5, -1, -2, -5])
def test_slice_of_a_shape(step: int) -> None:
    pairs = [pair for pair in itertools.product(BOUNDS, BOUNDS) if step > 0 or pair[1] != LARGEST]
    body, weights = ["s = Shape (x)"], {"axes": np.array([0]), "step": np.array([step])}
    for index, (start, end) in enumerate(pairs):
        weights |= {f"from{index}": np.array([start]), f"to{index}": np.array([end])}
        body.append(f"y{index} = Slice (s, from{index}, to{index}, axes, step) n{index} = Shape (y{index})")
    outputs = ", ".join(f"int64[K{index}] y{index}, int64[1] n{index}" for index in range(len(pairs)))
    proto = helpers.model(f"g (float[A, 2, B, 4] x) => ({outputs}) {{ {' '.join(body)} }}", **weights)
    results = helpers.evaluate(proto, {"x": np.zeros((3, 2, 5, 4), np.float32)})
    model = ir.load(proto)
    env = ir.ShapeEnv(model)
    env.infer_model()
    for value, result, bounds in zip(
        model.graph.outputs, results, [pair for pair in pairs for _ in range(2)], strict=True
    ):
        assert inferred(env, value) == result.tolist(), bounds


@pytest.mark.parametrize("end", [2**31 - 1, LARGEST])
def test_slice_backwards_to_the_largest_integer_is_unknown(end: int) -> None:
    """onnxruntime goes to the beginning, ONNX's reference keeps nothing."""
    weights = {"start": np.array([2]), "end": np.array([end]), "axes": np.array([0]), "step": np.array([-1])}
    model = ir.load(
        helpers.model(
            "g (float[A, 2, B] x) => (int64[K] y) { s = Shape (x) y = Slice (s, start, end, axes, step) }", **weights
        )
    )
    env = ir.ShapeEnv(model)
    env.infer_model()
    assert env.elements(model.graph.outputs[0]) is None and env.static_shape(model.graph.outputs[0]) is None


@pytest.mark.parametrize("seed", range(30))
def test_chains_of_views_of_a_shape(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, name, body, weights = (
        (4, 3),
        "v0",
        ["s = Shape (x) c = Concat <axis = 0> (s, s, s) v0 = Reshape (c, two_dims)"],
        {},
    )
    for index in range(4):
        if rng.random() < 0.5:
            perm = [int(axis) for axis in rng.permutation(len(shape))]
            shape = tuple(shape[axis] for axis in perm)
            body.append(f"v{index + 1} = Transpose <perm = {perm}> ({name})")
        else:
            axes = rng.permutation(len(shape))[: rng.integers(1, len(shape) + 1)]
            weights[f"p{index}"] = rng.choice(BOUNDS[:-1], len(axes))
            weights[f"q{index}"] = rng.choice(BOUNDS[:-1], len(axes))
            weights[f"a{index}"] = axes.astype(np.int64)
            weights[f"t{index}"] = rng.choice([1, 2, -1, -2], len(axes))
            body.append(f"v{index + 1} = Slice ({name}, p{index}, q{index}, a{index}, t{index})")
        name = f"v{index + 1}"
    weights = {key: np.asarray(one, np.int64) for key, one in {**weights, "two_dims": [4, 3]}.items()}
    proto = helpers.model(f"g (float[A, 2, B, 4] x) => (int64[K, L] {name}) {{ {' '.join(body)} }}", **weights)
    feeds = {"x": np.zeros((3, 2, 5, 4), np.float32)}
    (result,) = helpers.evaluate(proto, feeds)
    model = ir.load(proto)
    env = ir.ShapeEnv(model)
    env.infer_model()
    assert inferred(env, model.graph.outputs[0]) == result.reshape(-1).tolist()
    assert env.static_shape(model.graph.outputs[0]) == result.shape
    helpers.assert_same(proto, onnxopt.optimize(proto, target="generic", strict=True), feeds)


@pytest.mark.parametrize("seed", range(40))
def test_chains_of_slices_keep_their_results(seed: int) -> None:
    rng = np.random.default_rng(seed)
    body, weights = [], {}
    for index in range(3):
        axes = rng.permutation(2)[: rng.integers(1, 3)]
        bounds = {
            "p": rng.choice(BOUNDS[:-1], len(axes)),
            "q": rng.choice(BOUNDS, len(axes)),
            "a": axes,
            "t": rng.choice([1, 1, 2, -1], len(axes)),
        }
        weights |= {f"{key}{index}": np.asarray(one, np.int64) for key, one in bounds.items()}
        body.append(f"v{index + 1} = Slice (v{index}, p{index}, q{index}, a{index}, t{index})")
    shape = ["7, 6", "N, 6", "N, M"][seed % 3]
    proto = helpers.model(f"g (float[{shape}] v0) => (float[K, L] v3) {{ {' '.join(body)} }}", **weights)
    feeds = {"v0": np.arange(42, dtype=np.float32).reshape(7, 6)}
    helpers.assert_same(proto, onnxopt.optimize(proto, target="generic", strict=True), feeds)
