"""Nodes read as y = x * scale + shift, and weights that take a scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import helpers
from onnxopt import ir
from onnxopt.rewrite.affine import (
    SHARED_COPY_BYTES,
    STREAMED_BYTES,
    Affine,
    affine_of,
    may_copy,
    rounded,
    scaled,
    scaled_weights,
)
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal
from rewriting import context, node_of, value

CHANNELS = 3
RNG = np.random.default_rng(0)


def vector(*shape: int) -> np.ndarray:
    return RNG.uniform(0.5, 2, shape).astype(np.float32)


NORM = {name: vector(CHANNELS) for name in ("g", "b", "m", "v")}


def read(body: str, **weights: np.ndarray) -> tuple[Affine | Refusal, onnx.ModelProto]:
    proto = helpers.model(f"g (float[2,{CHANNELS},4] x) => (y) {{ {body} }}", **weights)
    ctx = context(proto)
    node = value(ctx, "y").producer()
    assert node is not None
    return affine_of(node, value(ctx, "x"), rank=3, axis=1, length=CHANNELS), proto


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("y = Add(x, c)", {"c": vector(CHANNELS, 1)}),
        ("y = Add(c, x)", {"c": vector(1, CHANNELS, 1)}),
        ("y = Add(x, c)", {"c": vector()}),
        ("y = Sub(x, c)", {"c": vector(CHANNELS, 1)}),
        ("y = Sub(c, x)", {"c": vector(CHANNELS, 1)}),
        ("y = Mul(x, c)", {"c": vector(1)}),
        ("y = Mul(c, x)", {"c": vector(CHANNELS, 1)}),
        ("y = Div(x, c)", {"c": vector(CHANNELS, 1)}),
        ("y = BatchNormalization(x, g, b, m, v)", NORM),
        ("y = BatchNormalization<epsilon=0.1>(x, g, b, m, v)", NORM),
    ],
)
def test_affine_maps_along_an_axis(body: str, weights: dict[str, np.ndarray]) -> None:
    affine, proto = read(body, **weights)
    assert isinstance(affine, Affine)
    x = RNG.standard_normal((2, CHANNELS, 4)).astype(np.float32)
    (expected,) = helpers.evaluate(proto, {"x": x})
    actual = x * affine.scale_or_one(CHANNELS)[:, None] + affine.shift_or_zero(CHANNELS)[:, None]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "weights", "sentence"),
    [
        ("y = Mul(x, c)", {"c": vector(4)}, "'c' is no constant along axis 1 only"),
        ("y = Mul(x, c)", {"c": vector(2, 1, 1)}, "'c' is no constant along axis 1 only"),
        ("y = Mul(x, c)", {"c": vector(1, 2, CHANNELS, 1)}, "'c' is no constant along axis 1 only"),
        ("c = Exp(x) y = Mul(x, c)", {}, "'c' is no constant along axis 1 only"),
        ("y = Div(c, x)", {"c": vector(1)}, "'x' is divided by, or divides by, what cannot be folded"),
        ("y = Div(x, c)", {"c": np.array([[1], [0], [1]], np.float32)}, "'x' is divided by, or divides by, what cannot be folded"),
        ("y = BatchNormalization(x, g, b, m, v)", {**NORM, "v": -NORM["v"]}, "a variance is not positive"),
        ("y = BatchNormalization(x, g, b, m, v)", {**NORM, "v": np.full(3, np.nan, np.float32)}, "a variance is not positive"),
        ("y, mm, vv = BatchNormalization<training_mode=1>(x, g, b, m, v)", NORM, "it is in training mode"),
        ("w = Exp(g) y = BatchNormalization(x, w, b, m, v)", NORM, "its parameters are no constants of 3 elements"),
    ],
    ids=[
        "along another axis", "along the batch", "of higher rank", "variable", "divisor", "division by zero", "negative variance",
        "variance is no number", "training", "variable parameters",
    ],
)  # fmt: skip
def test_what_is_no_affine_map(body: str, weights: dict[str, np.ndarray], sentence: str) -> None:
    found, _ = read(body, **weights)
    assert isinstance(found, Refusal) and str(found) == sentence


# --- weights -------------------------------------------------------------------------------------------------------
def weights_of(proto: onnx.ModelProto) -> tuple[Builder, ir.Value]:
    ctx = context(proto)
    return Builder(ctx, next(iter(ctx.model.graph))), value(ctx, "w")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scaled_weights_are_rounded_once(dtype: type) -> None:
    weights = RNG.standard_normal((5, CHANNELS)).astype(dtype)
    factor = RNG.uniform(0.3, 3, (5, 1))
    kind = {np.float16: "float16", np.float32: "float", np.float64: "double"}[dtype]
    b, w = weights_of(helpers.model(f"g ({kind}[5] x) => (y) {{ y = MatMul(x, w) }}", w=weights))
    made = scaled_weights(b, w, factor)
    assert isinstance(made, ir.Value)
    np.testing.assert_array_equal(ir.small_array(made), (weights.astype(np.float64) * factor).astype(dtype))


@pytest.mark.parametrize(
    ("shape", "factor"),
    [
        ((2, 4, 3, 9), (2, 4, 1, 1)),
        ((2, 4, 3, 9), (2, 1, 3, 1)),
        ((4, 3), (3,)),
        ((4, 3), (4, 3)),
        ((4, 3), ()),
        ((1, 4, 1), (1,)),
        ((0, 3), (3,)),
    ],
)
def test_factors_broadcast_to_weights(shape: tuple[int, ...], factor: tuple[int, ...]) -> None:
    weights, numbers = RNG.standard_normal(shape).astype(np.float32), RNG.standard_normal(factor)
    tensor = scaled(weights, numbers, ir.DataType.FLOAT, shape)
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), (weights * numbers).astype(np.float32))


@pytest.mark.parametrize(
    ("weights", "factor", "fits"),
    [
        (np.array([1e38], np.float32), 10.0, False),
        (np.array([6e4], np.float16), 2.0, False),
        (np.array([1.0, 2.0], np.float16), 1e-6, False),
        (np.array([1.0, 0.0], np.float16), 0.5, True),
        (np.array([[1.0], [1e-4]], np.float16), 0.1, False),
        (np.array([0.0, 0.0], np.float16), 0.5, True),
        (np.array([np.inf], np.float32), 1.0, False),
    ],
    ids=["float32 overflow", "float16 overflow", "float16 precision", "float16 zero", "row of float16", "zeros", "infinity"],
)  # fmt: skip
def test_weights_that_the_type_cannot_hold_are_refused(weights: np.ndarray, factor: float, fits: bool) -> None:
    dtype = ir.DataType.FLOAT if weights.dtype == np.float32 else ir.DataType.FLOAT16
    assert (rounded(weights.astype(np.float64) * factor, dtype) is not None) is fits
    assert (scaled(weights, np.array(factor), dtype, weights.shape) is not None) is fits


@pytest.mark.parametrize(
    ("elements", "uses", "allowed"),
    [(4, 1, True), (4, 2, True), (SHARED_COPY_BYTES // 4 + 1, 1, True), (SHARED_COPY_BYTES // 4 + 1, 2, False)],
    ids=["small", "small and shared", "large", "large and shared"],
)
def test_only_small_weights_are_copied(elements: int, uses: int, allowed: bool) -> None:
    body = "y = Mul(x, w)" if uses == 1 else "a = Mul(x, w) y = Add(a, w)"
    _, w = weights_of(helpers.model(f"g (float x) => (y) {{ {body} }}", w=np.ones(elements, np.float32)))
    assert bool(may_copy(w)) is allowed


@pytest.mark.parametrize("weights", [np.ones(2, np.int32), np.ones(0, np.float32)], ids=["integers", "empty"])
def test_weights_that_have_no_scale(weights: np.ndarray) -> None:
    kind = "int32" if weights.dtype == np.int32 else "float"
    _, w = weights_of(helpers.model(f"g ({kind} x) => (y) {{ y = Mul(x, w) }}", w=weights))
    assert str(may_copy(w)) == "'w' is not constant"


@pytest.mark.parametrize(("factor", "streamed"), [(0.5, True), (2.0, False), (2.0**-40, False)])
def test_large_mapped_weights_are_scaled_while_they_are_written(tmp_path: Path, factor: float, streamed: bool) -> None:
    weights = np.linspace(-1, 1, STREAMED_BYTES // 4, dtype=np.float32)
    path = tmp_path / "m.onnx"
    onnx.save(helpers.model("g (float x) => (y) { y = Mul(x, w) }", w=weights), path)
    loaded = ir.load(path)
    from onnxopt.passes.base import Context
    from onnxopt.runtime.target import Target

    ctx = Context(loaded, target=Target.named("generic"))
    scaled = scaled_weights(Builder(ctx, node_of(ctx, "Mul")), value(ctx, "w"), np.array([factor]))
    assert isinstance(scaled, ir.Value)
    assert isinstance(scaled.const_value, ir.ScaledTensor) is streamed
    assert scaled.const_value is not None
    np.testing.assert_array_equal(scaled.const_value.numpy(), (weights.astype(np.float64) * factor).astype(np.float32))
