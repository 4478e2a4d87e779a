"""The kernels of FusedLoop: every variant against steps computed in float64, and what is wrong with nodes and inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

Array = np.ndarray[Any, Any]
(OP,) = [op for op in native.ops() if op["op"] == "FusedLoop"]
PANEL = 16
TOLERANCE = 1e-3


@pytest.fixture(params=[one["name"] for one in OP["variants"]])
def variant(request: pytest.FixtureRequest) -> str:
    for one in OP["variants"]:
        if one["name"] == request.param and not one["usable"]:
            pytest.skip(one["problem"])
    return str(request.param)


def run(inputs: list[Array], attributes: dict[str, Any], variant: str | None = None, threads: int = 1) -> list[Array]:
    results: list[Array] = native.run(
        "FusedLoop", inputs, {"carried": 1} | attributes, variant=variant, threads=threads
    )
    return results


def pack(matrix: Array) -> Array:
    """[K, N] as [ceil(N / 16), K, 16]."""
    padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % PANEL)))
    return np.stack(np.split(padded, padded.shape[1] // PANEL, axis=1))


def start(limit: int = 50, begin: bool = True) -> list[Array]:
    return [np.array(limit), np.array(begin)]


ROOT = {
    "invariants": 1,
    "step": f"map 2 1 ! i0:f32 i1:f32 | t0=div(i0,i1) t1=add(i1,t0) t2=mul(t1,#{(0.5).hex()}:f32) t3=sub(t2,i1) | t2:f32 t3:f32; l1 4 0; "
    f"map 5 ! i0:f32 | t0=greater(i0,#{TOLERANCE.hex()}:f32) | t0:bool",
    "next": [3],
    "stacked": [3, 5],
    "keep": 6,
}
"""s = (s + a / s) / 2 until the sum of the changes is small; all s and the sums are stacked."""


def roots(a: Array, limit: int) -> tuple[Array, list[Array], list[float]]:
    state, states, sums = a.astype(np.float64), [], []
    for _ in range(limit):
        following = (state + a / state) / 2
        states.append(following)
        sums.append(np.abs(following - state).sum())
        state = following
        if not sums[-1] > TOLERANCE:
            break
    return state, states, sums


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("shape", [(), (1,), (5, 7), (3, 0, 2), (300, 301)])
def test_runs_until_its_condition_is_false(variant: str, shape: tuple[int, ...], threads: int) -> None:
    a = np.random.default_rng(0).uniform(0.5, 9, shape).astype(np.float32)
    limit = 50 if a.size < 1000 else 6  # what is left of rounding errors depends on their number
    expected, states, sums = roots(a, limit)
    final, stacked, changes = run([*start(limit), a, a], ROOT, variant, threads)
    assert len(stacked) == len(changes) == len(states) and stacked.shape[1:] == shape
    np.testing.assert_allclose(final, expected, rtol=1e-5)
    np.testing.assert_allclose(stacked, np.array(states).reshape(stacked.shape), rtol=1e-5)
    np.testing.assert_allclose(changes, sums, rtol=1e-3, atol=1e-4 * max(a.size, 1))


@pytest.mark.parametrize(("limit", "begin"), [(0, True), (-3, True), (5, False), (-(2**63), True)])
def test_runs_not_at_all(variant: str, limit: int, begin: bool) -> None:
    a = np.ones((2, 3), np.float32)
    final, stacked, changes = run([*start(limit, begin), a, a], ROOT, variant)
    np.testing.assert_array_equal(final, a)
    assert (stacked.shape, changes.shape) == ((0, 2, 3), (0,))


def test_nan_ends_a_loop_that_goes_on_while_something_is_large(variant: str) -> None:
    a = np.array([4, np.nan], np.float32)
    _, stacked, changes = run([*start(), a, a], ROOT, variant)
    assert len(stacked) == 1 and np.isnan(changes[0])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 5, 3), (1, 64, 200), (7, 33, 17), (40, 130, 90)])
def test_products_of_any_shape(variant: str, rows: int, depth: int, columns: int, threads: int) -> None:
    """s = tanh(tanh(s W + b) V), W being wide or narrow and V the way back."""
    rng = np.random.default_rng([rows, depth])
    w, v = (rng.normal(0, 0.2, shape).astype(np.float32) for shape in ((depth, columns), (columns, depth)))
    b, s = rng.normal(0, 1, columns).astype(np.float32), rng.normal(0, 1, (rows, depth)).astype(np.float32)
    text = "product 1 0 2; map 3 ! i0:f32 | t0=tanh(i0) | t0:f32; product 4 1; map 5 ! i0:f32 | t0=tanh(i0) | t0:f32"
    attributes = {"invariants": 1, "columns": [columns, depth], "step": text, "next": [6]}
    (final,) = run([*start(3), s, b, pack(w), pack(v)], attributes, variant, threads)
    expected = s.astype(np.float64)
    for _ in range(3):
        expected = np.tanh(np.tanh(expected @ w + b) @ v)
    np.testing.assert_allclose(final, expected, rtol=1e-4, atol=1e-5)


REDUCTIONS = {
    "max": np.max, "min": np.min, "sum": np.sum, "mean": np.mean, "l1": lambda x: np.abs(x).sum(), "l2": np.linalg.norm, "squares": lambda x: (x**2).sum(),
}  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 64, 1003])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(variant: str, name: str, size: int) -> None:
    x = np.random.default_rng(size).normal(0, 3, size).astype(np.float32)
    attributes = {"carried": 2, "step": f"{name} 2 0", "next": [3, 2]}
    made, _ = run([*start(1), np.array(0, np.float32), x], attributes, variant)
    np.testing.assert_allclose(made, REDUCTIONS[name](x.astype(np.float64)), rtol=1e-6, atol=1e-5)
    x[size // 2] = np.nan
    made, _ = run([*start(1), np.array(0, np.float32), x], attributes, variant)
    assert math.isnan(made)


def test_carried_values_are_swapped_and_counted(variant: str) -> None:
    a, b = np.arange(3, dtype=np.int64), np.arange(3, 6, dtype=np.int64)
    attributes = {
        "carried": 3,
        "step": "map 0 1 ! i0:i64 i1:i64 | t0=add(i0,i1) t1=less(i0,#4:i64) | t0:i64; map 0 ! i0:i64 | t0=less(i0,#4:i64) | t0:bool",
        "next": [2, 1, 0],
        "stacked": [4],
        "keep": 5,
    }
    one, other, count, stacked = run([*start(), a, b, np.array(-1)], attributes, variant)
    np.testing.assert_array_equal(one, b)
    np.testing.assert_array_equal(other, a)
    assert count == 4
    np.testing.assert_array_equal(stacked, [i + (b if i % 2 else a) for i in range(5)])


WRONG_NODES = {
    "no text": ({"step": None}, "no attribute 'step'"),
    "no statement": ({"step": "nothing 1"}, "'nothing 1' is no statement"),
    "an unknown value": ({"step": "sum 9 0"}, "is no statement"),
    "an unknown matrix": ({"step": "product 1 0"}, "is no statement"),
    "a program that is none": ({"step": "map 1 ! i0:f32 | t0=nothing(i0) | t0:f32"}, "Its step: "),
    "too few operands": ({"step": "map ! i0:f32 | t0=neg(i0) | t0:f32"}, "is no statement"),
    "carried values without a next one": ({"next": []}, "'next' has 0 numbers"),
    "a condition that is none": ({"keep": 99}, "no value 99"),
    "a condition below zero": ({"keep": -1}, "no value"),
}


@pytest.mark.parametrize("case", WRONG_NODES)
def test_wrong_nodes(case: str) -> None:
    changed, sentence = WRONG_NODES[case]
    attributes = {key: value for key, value in (ROOT | changed).items() if value is not None}
    with pytest.raises(ValueError, match=sentence):
        run([*start(), np.ones(2, np.float32), np.ones(2, np.float32)], attributes)


ONES = np.ones(2, np.float32)
WRONG_INPUTS = {
    "too few": ([*start(), ONES], "got 3 inputs and needs 4"),
    "a limit that is no number": ([np.array(1.0), np.array(True), ONES, ONES], "the limit"),
    "several conditions": ([np.array(1), np.array([True, True]), ONES, ONES], "the condition"),
    "another type": ([*start(), ONES.astype(np.int64), ONES], "should be f32"),
    "a type that no kernel has": ([*start(), ONES.astype(np.float64), ONES], "is of type double"),
    "a shape that changes": ([*start(), ONES, np.ones((3, 2), np.float32)], "becomes another type or one of the shape"),
    "shapes that do not fit": ([*start(), ONES, np.ones(3, np.float32)], "broadcast"),
}


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_inputs(case: str) -> None:
    inputs, sentence = WRONG_INPUTS[case]
    with pytest.raises(ValueError, match=sentence):
        run(inputs, ROOT)


def test_wrong_matrix() -> None:
    attributes = {"columns": [5], "step": "product 1 0", "next": [2]}
    with pytest.raises(ValueError, match="is no packed matrix of 5 columns"):
        run([*start(), ONES, np.ones((2, 2, 16), np.float32)], attributes)
    with pytest.raises(ValueError, match="cannot be multiplied with a matrix of 3 rows"):
        run([*start(), ONES, np.ones((1, 3, 16), np.float32)], attributes)
