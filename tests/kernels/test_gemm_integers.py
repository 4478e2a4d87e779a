"""The kernels of FusedGemm with weights of int8 and int4: every variant against float64, with any number of threads."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt import ir
from variants import variant_fixture

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

Array = np.ndarray[Any, Any]
(OP,) = [op for op in native.ops() if op["op"] == "FusedGemm"]
USABLE = [one["name"] for one in OP["variants"] if one["usable"]]
LIMITS = {"int8": (-128, 128), "int4": (-8, 8)}
KINDS = pytest.mark.parametrize("kind", LIMITS)
ROWS = (1, 2, 3, 4, 7, 13, 40)
"""Up to eight rows stream the weights; more of them meet floats in the cache."""

ADD = "i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"


variant = variant_fixture(OP)


def draw(rng: np.random.Generator, rows: int, depth: int, columns: int, block: int, kind: str) -> tuple[Array, ...]:
    """Rows, integers [K, N], scales [blocks, N]."""
    x = rng.standard_normal((rows, depth)).astype(np.float32)
    scales = rng.uniform(0.1, 1.0, (-(-depth // block), columns)).astype(np.float32)
    return x, rng.integers(*LIMITS[kind], (depth, columns)).astype(np.int8), scales


def floats(matrix: Array, scales: Array, block: int) -> Array:
    """What the integers stand for, in float64."""
    return matrix * np.repeat(scales.astype(np.float64), block, axis=0)[: len(matrix)]


def pack(matrix: Array, kind: str) -> Array:
    packed = ir.pack(matrix)
    return packed.astype(ml_dtypes.int4) if kind == "int4" else packed


def gemm(
    x: Array,
    matrices: list[tuple[Array, Array]],
    block: int,
    kind: str,
    biases: list[Array] | None = None,
    extra: list[Array] | None = None,
    *,
    epilogue: str | None = None,
    variant: str | None = None,
    threads: int = 1,
) -> list[Array]:
    """The products with integers and their scales."""
    attributes: dict[str, Any] = {"columns": matrices[0][0].shape[1], "block": block, "products": len(matrices)}
    inputs = [x, *(pack(matrix, kind) for matrix, _ in matrices), *(ir.pack(scales) for _, scales in matrices)]
    if biases is not None:
        attributes["biased"] = 1
        inputs += biases
    if epilogue is not None:
        attributes["epilogue"] = epilogue
    return list(native.run("FusedGemm", inputs + (extra or []), attributes, variant=variant, threads=threads))


def assert_near(found: Array, x: Array, matrix: Array) -> None:
    """Sums of float32, of which the error grows with what they are made of."""
    wanted = x.astype(np.float64) @ matrix
    largest = np.abs(x).astype(np.float64) @ np.abs(matrix)
    assert (found.shape, found.dtype) == (wanted.shape, np.float32)
    assert (np.abs(found - wanted) <= 3e-6 * largest).all()


@KINDS
@pytest.mark.parametrize("columns", [1, 8, 9, 16, 17, 48, 130, 257])
@pytest.mark.parametrize("depth", [1, 7, 8, 33, 100, 1500])
def test_any_size(depth: int, columns: int, kind: str, variant: str) -> None:
    for rows in ROWS:
        for block in {depth, 16, 32, 7}:
            x, matrix, scales = draw(np.random.default_rng(rows), rows, depth, columns, block, kind)
            (found,) = gemm(x, [(matrix, scales)], block, kind, variant=variant)
            assert_near(found, x, floats(matrix, scales, block))


@KINDS
@pytest.mark.parametrize("rows", ROWS)
def test_every_integer(rows: int, kind: str, variant: str) -> None:
    """A row of one 1 picks weights out exactly."""
    numbers = np.arange(*LIMITS[kind]).astype(np.int8)
    matrix = np.stack([np.roll(numbers, shift) for shift in range(rows)])
    scales = np.full((1, matrix.shape[1]), 0.5, np.float32)
    (found,) = gemm(np.eye(rows, dtype=np.float32), [(matrix, scales)], rows, kind, variant=variant)
    np.testing.assert_array_equal(found, matrix * np.float32(0.5))


@KINDS
@pytest.mark.parametrize("rows", [0, 1, 4, 30])
def test_nothing_to_sum(rows: int, kind: str, variant: str) -> None:
    x, matrix, scales = np.zeros((rows, 0), np.float32), np.zeros((0, 20), np.int8), np.zeros((0, 20), np.float32)
    bias = np.arange(20, dtype=np.float32)
    (found,) = gemm(x, [(matrix, scales)], 16, kind, [bias], variant=variant)
    np.testing.assert_array_equal(found, np.broadcast_to(bias, (rows, 20)))


@KINDS
@pytest.mark.parametrize("rows", [1, 3, 4, 7])
def test_bias_clip_sum_and_program(rows: int, kind: str, variant: str) -> None:
    rng = np.random.default_rng(rows)
    x, matrix, scales = draw(rng, rows, 70, 45, 16, kind)
    bias, residual = rng.standard_normal(45).astype(np.float32), rng.standard_normal((rows, 45)).astype(np.float32)
    given = (x, [(matrix, scales)], 16, kind, [bias])
    (plain,) = gemm(*given, variant=variant)
    assert_near(plain - bias, x, floats(matrix, scales, 16))
    (clipped,) = gemm(*given, epilogue="i0:f32 | t0=relu(i0) | t0:f32", variant=variant)
    np.testing.assert_array_equal(clipped, np.maximum(plain, 0))
    (added,) = gemm(*given, [residual], epilogue=ADD, variant=variant)
    np.testing.assert_array_equal(added, plain + residual)
    (found,) = gemm(*given, epilogue="i0:f32 | t0=gelu(i0) | t0:f32", variant=variant)
    (wanted,) = native.run("FusedElementwise", [plain], {"expr": "i0:f32 | t0=gelu(i0) | t0:f32"})
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@KINDS
@pytest.mark.parametrize("rows", [1, 4, 9])
@pytest.mark.parametrize("count", [2, 4])
def test_several_products(count: int, rows: int, kind: str, variant: str) -> None:
    rng = np.random.default_rng(count)
    drawn = [draw(rng, rows, 50, 40, 32, kind) for _ in range(count)]
    x, matrices = drawn[0][0], [(matrix, scales) for _, matrix, scales in drawn]
    biases = [rng.standard_normal(40).astype(np.float32) for _ in range(count)]
    results = gemm(x, matrices, 32, kind, biases, variant=variant)
    for found, one, bias in zip(results, matrices, biases, strict=True):
        (alone,) = gemm(x, [one], 32, kind, [bias], variant=variant)
        np.testing.assert_array_equal(found, alone)
    program = f"{' '.join(f'i{k}:f32' for k in range(count))} | t0=mul(i0,i{count - 1}) | t0:f32"
    (found,) = gemm(x, matrices, 32, kind, biases, epilogue=program, variant=variant)
    np.testing.assert_array_equal(found, results[0] * results[-1])


@KINDS
@pytest.mark.parametrize("rows", [1, 4, 30])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite(special: float, rows: int, kind: str, variant: str) -> None:
    """They reach all results of their row and no others; infinity times a weight of 0 is not a number."""
    x, matrix, scales = draw(np.random.default_rng(0), rows, 64, 40, 32, kind)
    matrix[5] = np.where(np.arange(40) % 2, 3, 0)
    x[-1, 5] = special
    (found,) = gemm(x, [(matrix, scales)], 32, kind, variant=variant)
    assert np.isfinite(found[:-1]).all()
    np.testing.assert_array_equal(found[-1, 1::2], special)
    assert np.isnan(found[-1, ::2]).all()


@KINDS
def test_weights_that_are_zero(kind: str, variant: str) -> None:
    x = np.ones((3, 40), np.float32)
    zeros, ones = np.zeros((40, 20), np.int8), np.ones((3, 20), np.float32)
    for scales in (ones, 0 * ones):
        (found,) = gemm(x, [(zeros, scales)], 16, kind, variant=variant)
        np.testing.assert_array_equal(found, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_threads_give_the_same_bits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, depth, columns = int(rng.integers(1, 20)), int(rng.integers(1, 700)), int(rng.integers(1, 900))
    kind, block = str(rng.choice(list(LIMITS))), int(rng.choice([16, 32, 128, depth]))
    x, matrix, scales = draw(rng, rows, depth, columns, block, kind)
    for name in USABLE:
        (one,) = gemm(x, [(matrix, scales)], block, kind, variant=name)
        for threads in (2, 4):
            (found,) = gemm(x, [(matrix, scales)], block, kind, variant=name, threads=threads)
            np.testing.assert_array_equal(found, one)


X, WEIGHTS, SCALES = np.zeros((2, 40), np.float32), np.zeros((2, 40, 16), np.int8), np.zeros((2, 3, 16), np.float32)
WRONG: dict[str, tuple[list[Array], dict[str, int], str]] = {
    "float weights": (
        [X, WEIGHTS.astype(np.float32), SCALES],
        {},
        "Input 1 is of type float and should be int8 or int4.",
    ),
    "unsigned weights": (
        [X, WEIGHTS.astype(np.uint8), SCALES],
        {},
        "Input 1 is of type uint8 and should be int8 or int4.",
    ),
    "no scales": ([X, WEIGHTS], {}, "It got 2 inputs and needs at least 3."),
    "scales": ([X, WEIGHTS, SCALES[:, :2]], {}, r"Input 2 has the shape \[2,2,16\] and should have \[2,3,16\]."),
    "scales of double": ([X, WEIGHTS, SCALES.astype(float)], {}, "Input 2 is of type double and should be float."),
    "weights": ([X, WEIGHTS[:, 1:], SCALES], {}, r"Input 1 has the shape \[2,39,16\] and should have \[2,40,16\]."),
    "two types": (
        [X, WEIGHTS, WEIGHTS.astype(ml_dtypes.int4), SCALES, SCALES],
        {"products": 2},
        "Input 2 is of type int4 and should be int8.",
    ),
    "block": ([X, WEIGHTS, SCALES], {"block": -1}, "'block' is -1 and should be positive"),
    "integers without a block": ([X, WEIGHTS], {"block": 0}, "Input 1 is of type int8 and should be float."),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_get_a_sentence(case: str) -> None:
    inputs, attributes, sentence = WRONG[case]
    with pytest.raises(ValueError, match=sentence):
        native.run("FusedGemm", inputs, {"columns": 20, "block": 16} | attributes)
