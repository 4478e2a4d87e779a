"""The kernels of FusedLoop: every variant against steps computed in float64, and what is wrong with nodes and inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from panels import pack
from variants import variant_fixture

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

Array = np.ndarray[Any, Any]
(OP,) = [op for op in native.ops() if op["op"] == "FusedLoop"]
TOLERANCE = 1e-3


variant = variant_fixture(OP)


def run(inputs: list[Array], attributes: dict[str, Any], variant: str | None = None, threads: int = 1) -> list[Array]:
    results: list[Array] = native.run(
        "FusedLoop", inputs, {"carried": 1} | attributes, variant=variant, threads=threads
    )
    return results


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


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def layer(x: Array, *affine: Array) -> Array:
    made = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return made * affine[0] + (affine[1] if affine[1:] else 0) if affine else made


def log_sum(x: Array, axis: tuple[int, ...]) -> Array:
    return np.log(np.exp(x).sum(axis))


def scatter(x: Array, indices: Array, updates: Array) -> Array:
    made = x.copy()
    for place in np.ndindex(*indices.shape[:-1]):
        made[tuple(indices[place])] = updates[place]
    return made


def convolve(x: Array, weights: Array, bias: Array | float, geometry: list[int]) -> Array:
    """Channels first, one tap after the other; the geometry is that of the statement."""
    dims = x.ndim - 2
    groups, numbers = geometry[0], np.reshape(geometry[1:], (4, dims))
    strides, dilations, before, behind = numbers
    padded = np.pad(x, [(0, 0), (0, 0), *zip(before, behind, strict=True)])
    filters, channels, *kernel = weights.shape
    places = [
        (size - (length - 1) * dilation - 1) // stride + 1
        for size, length, dilation, stride in zip(padded.shape[2:], kernel, dilations, strides, strict=True)
    ]
    made = np.zeros((x.shape[0], filters, *places))
    for tap in np.ndindex(*kernel):
        starts = [int(one) for one in np.multiply(tap, dilations)]
        cuts = [
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, count, stride in zip(starts, places, strides, strict=True)
        ]
        seen = padded[(slice(None), slice(None), *cuts)].reshape(x.shape[0], groups, channels, math.prod(places))
        part = np.einsum("bgcp,gfc->bgfp", seen, weights[(..., *tap)].reshape(groups, filters // groups, channels))
        made += part.reshape(made.shape)
    return made + np.reshape(bias, (-1, *(1 for _ in places)))


RNG = np.random.default_rng(1)
X = RNG.normal(0, 2, (3, 5, 70)).astype(np.float32)
ROW, NUMBERS = X[0, 0].copy(), np.arange(105).reshape(3, 5, 7)
FLAGS = X > 0
STATEMENTS: dict[str, tuple[str, list[Array], Any]] = {
    "sum of rows": ("sum 2 0 2", [X], lambda x: x.sum(2)),
    "sum of columns, kept": ("sum 2 1 0", [X], lambda x: x.sum(0, keepdims=True)),
    "mean of inner axes": ("mean 2 0 1 2", [X], lambda x: x.mean((1, 2))),
    "largest of outer axes": ("max 2 0 0 1", [X], lambda x: x.max((0, 1))),
    "least of columns": ("min 2 1 1", [X], lambda x: x.min(1, keepdims=True)),
    "norms of columns": ("l2 2 0 1", [X], lambda x: np.sqrt((x**2).sum(1))),
    "magnitudes of columns": ("l1 2 0 0", [X], lambda x: np.abs(x).sum(0)),
    "squares of columns": ("squares 2 0 0", [X], lambda x: (x**2).sum(0)),
    "product": ("prod 2 0 1", [X], lambda x: x.prod(1)),
    "product of rows": ("prod 2 0 2", [X[:, :, :6]], lambda x: x.prod(2)),
    "logarithm of sums of rows": ("logsumexp 2 0 2", [X], lambda x: log_sum(x, (2,))),
    "logarithm of sums of columns": ("logsumexp 2 0 0 1", [X], lambda x: log_sum(x, (0, 1))),
    "logarithm of sums of long rows": ("logsumexp 2 0 1", [np.tile(X[0], (1, 9))], lambda x: log_sum(x, (1,))),
    "sums of short rows": ("mean 2 0 2", [X[:, :, :5]], lambda x: x.mean(2)),
    "largest of short rows": ("max 2 0 2", [X[:, :, :3]], lambda x: x.max(2)),
    "largest's place in rows": ("argmax 2 0 2", [X], lambda x: x.argmax(2)),
    "least's place in columns": ("argmin 2 1 0", [X], lambda x: np.expand_dims(x.argmin(0), 0)),
    "softmax": ("softmax 2 2", [X], lambda x: softmax(x, 2)),
    "softmax of columns": ("softmax 2 1", [X], lambda x: softmax(x, 1)),
    "logarithm of softmax": ("logsoftmax 2 0", [X], lambda x: np.log(softmax(x, 0))),
    "layer": ("layer 2 2 1e-05", [X], layer),
    "layer with scale": ("layer 2 2 1e-05 3", [X, ROW], layer),
    "layer with scale and bias": ("layer 2 2 1e-05 3 4", [X, ROW, ROW[::-1].copy()], layer),
    "reshape": ("reshape 2 0 -1 14", [X], lambda x: x.reshape(3, -1, 14)),
    "reshape to what is given": ("reshape_as 2 3", [X, np.array([-1, 7])], lambda x, s: x.reshape(-1, 7)),
    "unsqueeze": ("unsqueeze 2 0 -1", [X], lambda x: x[None, ..., None]),
    "squeeze": ("squeeze 2 1", [X[:, :1].copy()], lambda x: x[:, 0]),
    "transpose": ("transpose 2 2 0 1", [NUMBERS], lambda x: x.transpose(2, 0, 1)),
    "transpose of flags": ("transpose 2 1 2 0", [FLAGS], lambda x: x.transpose(1, 2, 0)),
    "transpose of halves": ("map 2 ! i0:f32 | t0=cast_f16(i0) | t0:f16; transpose 3 2 0 1", [X], lambda x: x.transpose(2, 0, 1)),
    "transpose of ones": ("transpose 2 1 0 2", [X[:1]], lambda x: x.transpose(1, 0, 2)),
    "slice in one piece": ("slice 2 0 1 3 1", [X], lambda x: x[1:3]),
    "slice": ("slice 2 -1 3 99 2", [X], lambda x: x[..., 3:99:2]),
    "slice from the back": ("slice 2 1 -1 -99 -2", [X], lambda x: x[:, -1::-2]),
    "slice of nothing": ("slice 2 1 4 2 1", [X], lambda x: x[:, 4:2]),
    "expand": ("expand 2 4 1 5 3", [X[:, :, :1].copy().transpose(2, 1, 0).copy()], lambda x: np.broadcast_to(x, (4, 1, 5, 3))),
    "expand to what is given": ("expand_as 2 3", [ROW, np.array([2, 70])], lambda x, s: np.broadcast_to(x, (2, 70))),
    "concat": ("concat 1 2 2 3", [X, X[:, :1].copy()], lambda x, y: np.concatenate([x, x, y], 1)),
    "concat of numbers": ("concat 0 2 3", [NUMBERS, NUMBERS[:0]], lambda x, y: x),
    "gather": ("gather 2 1 3", [X, np.array([[4, 0], [-1, 2]])], lambda x, i: x[:, i]),
    "gather one": ("gather 2 0 3", [X, np.array(-2)], lambda x, i: x[i]),
    "gather a column": ("gather 2 2 3", [FLAGS, np.array([7])], lambda x, i: x[..., [7]]),
    "gather nothing": ("gather 2 0 3", [X, np.zeros(0, np.int64)], lambda x, i: x[:0]),
    "scatter rows": ("scatter 2 3 4", [NUMBERS, np.array([[2], [-3]]), NUMBERS[:2] * 2], scatter),
    "scatter elements": ("scatter 2 3 4", [X, np.array([[[0, 1, 2]], [[-1, -1, -1]]]), X[:2, :1, 0].copy()], scatter),
    "scatter nothing": ("scatter 2 3 4", [FLAGS, np.zeros((0, 2), np.int64), FLAGS[0, :0]], scatter),
    "sum of numbers": ("sum 2 0 1 2", [NUMBERS], lambda x: x.sum((1, 2))),
    "largest of numbers": ("max 2 1 0", [NUMBERS.astype(np.int32)], lambda x: x.max(0, keepdims=True)),
    "least of numbers": ("min 2 0 2", [-NUMBERS], lambda x: x.min(2)),
    "product of numbers": ("prod 2 0 1", [NUMBERS % 5 + 1], lambda x: x.prod(1)),
    "largest in order": ("topk 2 4 2 1", [X], lambda x: -np.sort(-x, 2)[..., :4]),
    "places of the largest": ("topkplace 2 3 1 1", [np.round(X)], lambda x: np.argsort(-x, 1, kind="stable")[:, :3]),
    "least in order": ("topk 2 3 0 0", [X], lambda x: np.sort(x, 0)),
    "matrices": ("matmul 2 3", [X, X.transpose(0, 2, 1).copy()], lambda x, y: x @ y),
    "matrices of one stack": ("matmul 2 3", [X, X[0].T.copy()], lambda x, y: x @ y),
    "stacks that are broadcast": ("matmul 2 3", [X[:, None], X.transpose(0, 2, 1)[None, :2].copy()], lambda x, y: x @ y),
    "matrix and vector": ("matmul 2 3", [X, ROW], lambda x, y: x @ y),
    "vector and matrices": ("matmul 3 2", [X, X[0, :, 0].copy()], lambda x, y: y @ x),
    "vectors": ("matmul 2 2", [ROW], lambda x: np.dot(x, x)),
    "matrices without depth": ("matmul 2 3", [X[..., :0], X[0, :0, :9]], lambda x, y: np.zeros((3, 5, 9))),
    "large matrices": ("matmul 2 3", [np.tile(X[0], (8, 2)), np.tile(X[0].T, (2, 60))], lambda x, y: x @ y),
}  # fmt: skip


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], list[int]]] = {
    "of images": ((2, 3, 9, 11), (20, 3, 3, 3), [1, 1, 1, 1, 1, 1, 1, 1, 1]),
    "of many places": ((1, 16, 40, 33), (37, 16, 3, 3), [1, 1, 1, 1, 1, 1, 0, 1, 1]),
    "with strides and dilations": ((1, 4, 13, 17), (5, 4, 3, 2), [1, 2, 3, 2, 4, 3, 0, 1, 5]),
    "with a kernel larger than the image": ((1, 3, 4, 3), (5, 3, 5, 7), [1, 1, 1, 1, 1, 2, 3, 2, 3]),
    "dilated to lines as long": ((2, 2, 21, 18), (3, 2, 3, 2), [1, 1, 1, 2, 5, 3, 4, 0, 1]),
    "of groups": ((2, 6, 7, 7), (9, 2, 3, 1), [3, 1, 1, 1, 1, 0, 0, 0, 0]),
    "of each channel": ((2, 5, 8, 9), (10, 1, 3, 3), [5, 2, 1, 1, 2, 1, 1, 2, 1]),
    "of lines": ((3, 7, 70), (4, 7, 5), [1, 1, 1, 2, 2]),
    "of each channel's lines": ((1, 33, 100), (33, 1, 4), [33, 1, 1, 3, 0]),
    "of one window": ((2, 64, 4), (48, 64, 4), [1, 1, 1, 0, 0]),
    "of one window of each channel": ((2, 21, 4), (21, 1, 4), [21, 1, 1, 0, 0]),
    "of places beyond the image": ((1, 2, 1), (3, 2, 2), [1, 1, 1, 4, 5]),
    "of single pixels": ((1, 20, 6, 6), (3, 20, 1, 1), [1, 1, 1, 1, 1, 0, 0, 0, 0]),
    "with a stride beyond the image": ((1, 3, 5), (2, 3, 2), [1, 9, 1, 1, 0]),
    "of no images": ((0, 3, 5), (2, 3, 2), [1, 1, 1, 0, 0]),
    "of no filters": ((1, 3, 5), (0, 3, 2), [1, 1, 1, 0, 0]),
    "of no channels": ((1, 0, 5), (2, 0, 2), [1, 1, 1, 0, 0]),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(variant: str, name: str, biased: bool, threads: int) -> None:
    size, kernel, geometry = CONVOLUTIONS[name]
    x, weights = (RNG.normal(0, 1, shape).astype(np.float32) for shape in (size, kernel))
    bias = RNG.normal(0, 1, kernel[0]).astype(np.float32)
    invariants = [x, weights, bias][: 3 if biased else 2]
    numbers = " ".join(map(str, [len(size) - 2, *geometry]))
    text = f"conv {numbers} 2 3{' 4' if biased else ''}"
    attributes = {"invariants": len(invariants), "step": text, "next": [1], "stacked": [2 + len(invariants)]}
    _, (made,) = run([*start(1), np.zeros((), np.float32), *invariants], attributes, variant, threads)
    expected = convolve(x.astype(np.float64), weights.astype(np.float64), bias if biased else 0, geometry)
    np.testing.assert_allclose(made, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["of images", "of each channel", "of one window"])
def test_convolutions_of_what_is_not_finite(variant: str, name: str, special: float) -> None:
    size, kernel, geometry = CONVOLUTIONS[name]
    x, weights = (np.ones(shape, np.float32) for shape in (size, kernel))
    x[0, 0, -1] = special
    text = f"conv {' '.join(map(str, [len(size) - 2, *geometry]))} 2 3"
    attributes = {"invariants": 2, "step": text, "next": [1], "stacked": [4]}
    _, (made,) = run([*start(1), np.zeros((), np.float32), x, weights], attributes, variant)
    # A tap that lies in the padding adds nothing: no window of zeros is one of infinities.
    clean = convolve(np.where(np.isfinite(x), x, 0).astype(np.float64), weights.astype(np.float64), 0, geometry)
    seen = convolve(np.isfinite(x) == 0, weights.astype(np.float64), 0, geometry) > 0
    np.testing.assert_array_equal(made[~seen], clean[~seen])
    np.testing.assert_array_equal(made[seen], np.full(seen.sum(), special, np.float32))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", STATEMENTS)
def test_statements(variant: str, name: str, threads: int) -> None:
    text, inputs, reference = STATEMENTS[name]
    made = 2 + len(inputs) + text.count(";")
    attributes = {"invariants": len(inputs), "step": text, "next": [1], "stacked": [made]}
    carried = np.zeros((), np.float32)
    _, stacked = run([*start(3), carried, *(np.copy(one, order="C") for one in inputs)], attributes, variant, threads)
    exact = [one.astype(np.float64) if one.dtype == np.float32 else one for one in inputs]
    expected = np.asarray(reference(*exact))
    assert stacked.shape == (3, *expected.shape)
    for one in stacked:
        if one.dtype.kind == "f":
            tolerance = 2e-5 if one.dtype == np.float32 else 1e-3
            np.testing.assert_allclose(one, expected, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(one, expected)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "text", ["max 2 0 1", "min 2 0 0", "sum 2 0 0", "logsumexp 2 0 1", "logsumexp 2 0 0", "prod 2 0 0"]
)
def test_reductions_of_what_is_not_finite(variant: str, text: str, special: float) -> None:
    x = X[0, :, :6].copy()
    x[2, 3] = special
    function = {"max": np.max, "min": np.min, "sum": np.sum, "prod": np.prod, "logsumexp": None}[text.split()[0]]
    axis = int(text[-1])
    with np.errstate(all="ignore"):
        expected = np.logaddexp.reduce(x, axis) if function is None else function(x, axis)
    attributes = {"invariants": 1, "step": text, "next": [1], "stacked": [3]}
    _, stacked = run([*start(1), np.zeros((), np.float32), x], attributes, variant)
    np.testing.assert_allclose(stacked[0], expected, rtol=1e-5)


@pytest.mark.parametrize("limit", [0, 1, 4])
@pytest.mark.parametrize(("axis", "reverse"), [(0, 0), (0, 1), (1, 0), (-1, 1)])
def test_elements_of_sequences(variant: str, limit: int, axis: int, reverse: int) -> None:
    """The running sum of a sequence's elements, which is carried, and the element before."""
    x = RNG.normal(0, 1, (4, 4, 4)).astype(np.float32)
    step = f"element 3 {axis} {reverse}; map 1 4 ! i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"
    attributes = {"carried": 2, "invariants": 1, "step": step, "next": [5, 4], "stacked": [2, 5]}
    zero = np.zeros((4, 4), np.float32)
    total, last, before, sums = run([*start(limit), zero, zero, x], attributes, variant)
    elements = [np.take(x, limit - 1 - i if reverse else i, axis) for i in range(limit)]
    np.testing.assert_array_equal(last, elements[-1] if elements else zero)
    np.testing.assert_array_equal(before, np.array([zero, *elements][:limit]).reshape(limit, 4, 4))
    np.testing.assert_allclose(sums, np.cumsum(np.array(elements).reshape(limit, 4, 4), 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(total, sum(elements, zero), rtol=1e-5, atol=1e-6)


def test_views_of_carried_values_outlive_the_step(variant: str) -> None:
    """Two values change places through a view, and a third one stays as it is."""
    a, b, c = (RNG.normal(0, 1, shape).astype(np.float32) for shape in ((2, 3), (2, 3), (1, 2, 3)))
    attributes = {
        "carried": 3,
        "step": "reshape 1 1 2 3; reshape 4 2 3; reshape 3 2 3; map 2 ! i0:f32 | t0=neg(i0) | t0:f32",
        "next": [7, 5, 3],
    }
    one, other, third = run([*start(5), a, b, c], attributes, variant)
    state = a, b
    for _ in range(5):
        state = -state[1], state[0]
    np.testing.assert_array_equal(one, state[0])
    np.testing.assert_array_equal(other, state[1])
    np.testing.assert_array_equal(third, c)


MOVING: dict[str, tuple[int, int, int, int, Any]] = {
    "of one size": (0, 0, 4, 1, lambda x, i: x[i : i + 2]),
    "of columns": (1, 0, 4, 1, lambda x, i: x[:, i : i + 2]),
    "that grow": (0, 3, 4, 1, lambda x, i: x[: i + 2]),
    "backwards": (-1, 4, 3, -2, lambda x, i: x[:, i + 2 : 0 : -2]),
    "beyond the end": (0, 4, 0, -1, lambda x, i: x[i + 2 : i : -1]),
}
"""Axis, the values that are start and end (0 is i, 3 is 0, 4 is i + 2), the step, and what is meant."""


@pytest.mark.parametrize("limit", [0, 1, 5])
@pytest.mark.parametrize("name", MOVING)
def test_slices_whose_bounds_are_computed(variant: str, name: str, limit: int) -> None:
    """Each step adds the sum of the one before to the elements of a slice, and sums them up."""
    axis, begin, end, step, reference = MOVING[name]
    x, zero = RNG.normal(0, 1, (6, 7)).astype(np.float32), np.array([0])
    text = f"map 0 ! i0:i64 | t0=add(i0,#2:i64) | t0:i64; slice_at 2 {axis} {begin} {end} {step}; map 5 1 ! i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32; sum 6 0"
    attributes = {"invariants": 2, "step": text, "next": [7], "stacked": [7]}
    total, sums = run([*start(limit), np.zeros((), np.float32), x, zero], attributes, variant)
    expected, state = [], 0.0
    for i in range(limit):
        state = float((reference(x.astype(np.float64), i) + state).sum())
        expected.append(state)
    np.testing.assert_allclose(sums, expected, rtol=1e-4)
    np.testing.assert_allclose(total, state, rtol=1e-4)


def test_slices_of_what_grows(variant: str) -> None:
    """s gets a row that is the sum of its last two, or of the only one: bounds and the dims of what they cut change in each step."""
    text = "map 0 ! i0:i64 | t0=sub(i0,#1:i64) t1=max(t0,#0:i64) t2=add(i0,#1:i64) | t1:i64 t2:i64; slice_at 1 0 2 3 1; sum 4 1 0; concat 0 1 5"
    attributes = {"step": text, "next": [6], "growing": [0]}
    (made,) = run([*start(8), np.ones((1, 3), np.float32)], attributes, variant)
    np.testing.assert_array_equal(made, np.repeat([[1.0], [1], [2], [3], [5], [8], [13], [21], [34]], 3, 1))


def test_bounds_of_no_steps(variant: str) -> None:
    text = "element 2 0 0; slice_at 1 0 4 4 1; sum 5 0"
    attributes = {"invariants": 2, "step": text, "next": [1], "stacked": [6]}
    given, sums = run([*start(0), ROW, np.zeros(0, np.int64), ROW], attributes, variant)
    assert sums.shape == (0,)
    np.testing.assert_array_equal(given, ROW)


def test_bounds_that_are_carried(variant: str) -> None:
    """Windows of x one behind the other, whose length a table gives."""
    lengths, x = np.array([2, 1, 4, 0, 3]), RNG.normal(0, 1, 10).astype(np.float32)
    text = "element 4 0 0; map 1 5 ! i0:i64 i1:i64 | t0=add(i0,i1) | t0:i64; slice_at 3 0 1 6 1; sum 7 0; map 8 2 ! i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"
    attributes = {"carried": 2, "invariants": 2, "step": text, "next": [6, 9], "stacked": [8]}
    place, total, sums = run([*start(5), np.array(0), np.float32(0), x, lengths], attributes, variant)
    ends = np.cumsum(lengths)
    np.testing.assert_allclose(
        sums, [x[end - length : end].sum() for end, length in zip(ends, lengths, strict=True)], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(total, x.sum(), rtol=1e-5)
    assert place == 10


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


@pytest.mark.parametrize("limit", [0, 1, 2, 70])
def test_rows_that_are_appended(limit: int, variant: str) -> None:
    """s gets a row of the sums of its columns, and the number of elements that it has is what the sum of ones gives."""
    s, other = np.full((2, 20), 1e-3, np.float32), np.zeros((1, 20), np.float32)
    attributes = {"invariants": 1, "step": "sum 1 1 0; concat 0 1 3", "next": [4], "stacked": [3], "growing": [0]}
    final, sums = run([*start(limit), s, other], attributes, variant)
    expected = s.astype(np.float64)
    for made in sums:
        np.testing.assert_allclose(made, expected.sum(0, keepdims=True), rtol=1e-5)
        expected = np.concatenate([expected, expected.sum(0, keepdims=True).astype(np.float32)])
    assert sums.shape == (limit, 1, 20)
    np.testing.assert_allclose(final, expected, rtol=1e-5)


WRONG_NODES = {
    "a growing value that is not carried": ({"growing": [1]}, "carries no value 1"),
    "no text": ({"step": None}, "no attribute 'step'"),
    "no statement": ({"step": "nothing 1"}, "'nothing 1' is no statement"),
    "an unknown value": ({"step": "sum 9 0"}, "is no statement"),
    "an unknown matrix": ({"step": "product 1 0"}, "is no statement"),
    "a program that is none": ({"step": "map 1 ! i0:f32 | t0=nothing(i0) | t0:f32"}, "Its step: "),
    "too few operands": ({"step": "map ! i0:f32 | t0=neg(i0) | t0:f32"}, "is no statement"),
    "carried values without a next one": ({"next": []}, "'next' has 0 numbers"),
    "a condition that is none": ({"keep": 99}, "no value 99"),
    "a condition below zero": ({"keep": -1}, "no value"),
    "an axis that is no number": ({"step": "softmax 1 last"}, "is no statement"),
    "a flag of two": ({"step": "sum 1 2 0"}, "is no statement"),
    "one operand of two": ({"step": "matmul 1"}, "is no statement"),
    "a norm without epsilon": ({"step": "layer 1 0"}, "is no statement"),
    "a slice without an end": ({"step": "slice_at 1 0 0 1"}, "is no statement"),
    "a convolution of three dims": ({"step": f"conv 3 1 {'1 ' * 12} 1 1"}, "is no statement"),
    "a convolution without weights": ({"step": "conv 1 1 1 1 0 0 1"}, "is no statement"),
    "bounds that depend on a slice": (
        {"step": "slice_at 1 0 0 0 1; slice_at 1 0 0 3 1"},
        "depend on another such slice",
    ),
    "bounds that depend on what grows": (
        {"step": "slice_at 1 0 0 1 1", "growing": [0]},
        "depend on a value whose dims may change",
    ),
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


def test_values_that_grow_are_not_stacked() -> None:
    attributes = {"invariants": 1, "step": "concat 0 1 2", "next": [3], "stacked": [3], "growing": [0]}
    with pytest.raises(ValueError, match=r"stacks values of the shapes \[4\] and \[6\]"):
        run([*start(), ONES, ONES], attributes)


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_inputs(case: str) -> None:
    inputs, sentence = WRONG_INPUTS[case]
    with pytest.raises(ValueError, match=sentence):
        run(inputs, ROOT)


MOVED = {
    "an axis too many": ("softmax 2 2", "does not have the axes"),
    "an axis twice": ("sum 2 0 0 0", "does not have the axes"),
    "axes that are no neighbours": ("sum 2 0 0 2", "does not have the axes"),
    "a shape of other elements": ("reshape 2 4", "cannot be moved"),
    "a dim that is not 1": ("squeeze 2 0", "cannot be moved"),
    "a permutation that is none": ("transpose 2 0 0", "cannot be moved"),
    "a step of 0": ("slice 2 0 0 1 0", "cannot be moved"),
    "a shape that is computed": ("map 3 ! i0:i64 | t0=add(i0,i0) | t0:i64; reshape_as 2 4", "no list of numbers from outside"),
    "matrices that do not fit": ("matmul 2 2", "cannot be multiplied"),
    "indices that are floats": ("gather 2 0 2", "should be int64"),
    "indices outside": ("gather 2 0 3", "lies outside"),
    "parts that do not fit": ("concat 0 2 3", "do not fit"),
    "a sequence that is too short": ("element 2 0 0", "shorter than its limit"),
    "more of the largest than there are": ("topk 2 3 0 1", "more of the largest"),
    "updates that do not fit": ("scatter 2 3 2", "do not fit their indices"),
    "norms of numbers": ("l2 3 0 0", "not reduced so"),
    "a shape beyond all memory": ("expand 1 4611686018427387904; l1 4 0", "is too large"),
    "a shape whose product wraps around": ("reshape 2 9 6148914691236517206; sum 4 0 1", "is too large"),
    "bounds that are floats": ("slice_at 2 0 0 1 1", "no int64 of one element"),
    "several bounds": ("slice_at 2 0 0 3 1", "no int64 of one element"),
    "an axis of a slice too many": ("slice_at 2 2 0 0 1", "cannot be moved"),
    "weights of another rank": ("conv 1 1 1 1 0 0 2 2", "cannot be convolved"),
    "a kernel larger than the image": ("unsqueeze 2 0; unsqueeze 2 1; conv 1 1 1 9 0 0 4 5", "cannot be convolved"),
    "no groups": ("unsqueeze 2 0; conv 1 0 1 1 0 0 4 4", "too large or small"),
    "a padding without end": (f"unsqueeze 2 0; conv 1 1 1 1 0 {2**40} 4 4", "too large or small"),
    "a largest of nothing": ("slice 2 0 0 0 1; argmax 4 0 0", "largest of no elements"),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVED)
def test_wrong_statements(case: str) -> None:
    text, sentence = MOVED[case]
    attributes = {"invariants": 2, "step": text, "next": [1]}
    with pytest.raises(ValueError, match=sentence):
        run([*start(), np.zeros((), np.float32), np.ones((2, 3), np.float32), np.array([5, 9])], attributes)


@pytest.mark.parametrize("shape", [[2**62], [2**32, 2**32], [0, 2**62, 4]])
def test_shapes_from_outside_that_no_memory_holds(shape: list[int]) -> None:
    attributes = {
        "invariants": 1,
        "step": "expand_as 1 2; map 3 ! i0:f32 | t0=neg(i0) | t0:f32",
        "next": [1],
        "stacked": [4],
    }
    with pytest.raises(ValueError, match="is too large"):
        run([*start(), np.ones(1, np.float32), np.array(shape)], attributes)


def test_wrong_matrix() -> None:
    attributes = {"columns": [5], "step": "product 1 0", "next": [2]}
    with pytest.raises(ValueError, match="is no packed matrix of 5 columns"):
        run([*start(), ONES, np.ones((2, 2, 16), np.float32)], attributes)
    with pytest.raises(ValueError, match="cannot be multiplied with a matrix of 3 rows"):
        run([*start(), ONES, np.ones((1, 3, 16), np.float32)], attributes)
