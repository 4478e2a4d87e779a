"""The kernels of FusedNorm and FusedSoftmax, every variant that this machine runs, against float64 references."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

native = pytest.importorskip("onnxopt._native", reason="the native library is not built")

Array = np.ndarray[Any, Any]
VARIANTS = [v for op in native.ops() if op["op"] == "FusedNorm" for v in op["variants"]]
EMULATED = "norm__cuda_emulated"
"""The kernel for CUDA devices, run by the host."""
SUPPORTED = [*(v["name"] for v in VARIANTS if v["usable"]), EMULATED]
WIDTHS = [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 49, 63, 64, 65, 100, 129, 768, 4095, 4096, 4097, 9001]
TOLERANCE = 1e-6
INF, NAN = math.inf, math.nan
EPSILON = 1e-5

ADD = "i0:f32 i1:f32 | t0=add(i0,i1) | t0:f32"
SCALE_AND_ADD = "i0:f32 i1:f32 | t0=mul(i0,#0x1p-1:f32) t1=add(t0,i1) | t1:f32"
SILU = "i0:f32 | t0=silu(i0) | t0:f32"


@pytest.fixture(params=SUPPORTED)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def draw(*shape: int, seed: int = 0, scale: float = 1.0, offset: float = 0.0) -> Array:
    return np.random.default_rng(seed).normal(offset, scale, shape).astype(np.float32)


def run(op: str, inputs: list[Array], variant: str | None = None, threads: int = 1, **attributes: Any) -> list[Array]:
    results: list[Array] = native.run(op, inputs, attributes, variant=variant, threads=threads)
    return results


# --- references ---
def normalized(x: Array, axes: tuple[int, ...], kind: str = "layer", epsilon: float = EPSILON) -> Array:
    x = x.astype(np.float64)
    if kind == "layer":
        x = x - x.mean(axes, keepdims=True)
    return x / np.sqrt(np.square(x).mean(axes, keepdims=True) + np.float64(np.float32(epsilon)))


def softmax(x: Array, axis: int = -1) -> Array:
    x = x.astype(np.float64)
    with np.errstate(all="ignore"):
        powers = np.exp(x - x.max(axis, keepdims=True))
        return powers / powers.sum(axis, keepdims=True)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def assert_close(actual: Array, expected: Array, tolerance: float = TOLERANCE) -> None:
    """Within `tolerance` of the largest expected number."""
    assert (actual.shape, actual.dtype) == (expected.shape, np.float32)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max(initial=1e-30))


# --- accuracy ---
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_rows_of_any_width(kind: str, width: int, variant: str) -> None:
    x, scale, bias = draw(5, width, scale=3, offset=1), draw(width, seed=1), draw(width, seed=2)
    (actual,) = run("FusedNorm", [x, scale, bias], variant, kind=kind, scaled=1, biased=1)
    assert_close(actual, normalized(x, (1,), kind) * scale + bias)


@pytest.mark.parametrize("width", WIDTHS)
def test_softmax_of_any_width(width: int, variant: str) -> None:
    x = draw(5, width, scale=4)
    (actual,) = run("FusedSoftmax", [x], variant)
    np.testing.assert_allclose(actual, softmax(x), rtol=4e-6, atol=1e-30)
    (actual,) = run("FusedSoftmax", [x], variant, log=1)
    assert_close(actual, np.log(softmax(x)))


@pytest.mark.parametrize("width", [1 << 17, (1 << 17) + 5])
def test_long_rows(width: int, variant: str) -> None:
    x = draw(2, width)
    (actual,) = run("FusedNorm", [x], variant)
    assert_close(actual, normalized(x, (1,)))
    (actual,) = run("FusedSoftmax", [x], variant)
    np.testing.assert_allclose(actual, softmax(x), rtol=4e-6)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("offset", [100.0, -1e4, 1e6])
def test_variance_beside_a_large_mean(offset: float, axis: int, variant: str) -> None:
    x = draw(300, 300, offset=offset)
    (actual,) = run("FusedNorm", [x], variant, axis=axis, inner=-1 - axis)
    assert_close(actual, normalized(x, (axis,)))


@pytest.mark.parametrize("value", [0.0, 3.0, -1e6, 1e-20])
def test_constant_rows_become_the_bias(value: float, variant: str) -> None:
    bias = draw(100)
    for inputs in ([np.full((3, 100), value, np.float32)], [np.full((3, 100), value, np.float32), bias]):
        (actual,) = run("FusedNorm", inputs, variant, **({"biased": 1} if len(inputs) > 1 else {}))
        assert_close(actual, np.broadcast_to(inputs[1] if len(inputs) > 1 else np.float32(0), actual.shape), 1e-5)


@pytest.mark.parametrize(("scaled", "biased"), itertools.product([0, 1], [0, 1]))
@pytest.mark.parametrize("shape", [(4, 70), (2, 70, 9)])
def test_with_and_without_scale_and_bias(shape: tuple[int, ...], scaled: int, biased: int, variant: str) -> None:
    inner = len(shape) - 2
    x, scale, bias = draw(*shape), draw(70, seed=1), draw(70, seed=2)
    (actual,) = run(
        "FusedNorm",
        [x, *[scale] * scaled, *[bias] * biased],
        variant,
        axis=-1 - inner,
        inner=inner,
        scaled=scaled,
        biased=biased,
    )
    dims = (70, *[1] * inner)
    expected = normalized(x, (1,))
    expected = expected * scale.reshape(dims) if scaled else expected
    assert_close(actual, expected + bias.reshape(dims) if biased else expected)


# --- axes ---
AXES = [
    ((2, 3, 5), -2, 0), ((2, 3, 5), -3, 0), ((2, 7, 9), -2, 1), ((1, 200, 65), -2, 1), ((2, 5, 7, 9), -3, 2), ((3, 4, 130), -2, 1),
    ((2, 33, 1, 1), -3, 2), ((2, 6, 5, 64), -3, 1), ((2, 6, 5, 64), -2, 1), ((5, 1), -1, 0), ((7,), -1, 0), ((300, 2), -2, 1),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "axis", "inner"), AXES)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_axes_of_a_norm(shape: tuple[int, ...], axis: int, inner: int, kind: str, variant: str) -> None:
    x, axes = draw(*shape, scale=2, offset=1), tuple(range(axis, -inner))
    dims = shape[len(shape) + axis : len(shape) - inner]
    scale, bias = draw(*dims, seed=1), draw(*dims, seed=2)
    attributes = {"axis": axis, "inner": inner, "kind": kind, "scaled": 1, "biased": 1}
    (actual,) = run("FusedNorm", [x, scale, bias], variant, **attributes)
    across = dims + (1,) * inner
    assert_close(actual, normalized(x, axes, kind) * scale.reshape(across) + bias.reshape(across), 2e-6)


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 3, 5), -1), ((4, 3, 5), -2), ((4, 3, 5), -3), ((2, 300, 7, 11), -3), ((3, 70), -2)]
)
@pytest.mark.parametrize("log", [0, 1])
def test_axes_of_softmax(shape: tuple[int, ...], axis: int, log: int, variant: str) -> None:
    x = draw(*shape, scale=4)
    (actual,) = run("FusedSoftmax", [x], variant, axis=axis, log=log)
    expected = softmax(x, axis)
    assert_close(actual, np.log(expected) if log else expected)


@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 8, 5), 2), ((2, 8, 5, 7), 8), ((1, 6, 3, 2, 5), 1), ((2, 12, 64), 3), ((3, 4, 1), 2)]
)
def test_groups(shape: tuple[int, ...], groups: int, variant: str) -> None:
    x, scale, bias = draw(*shape, scale=2, offset=1), draw(shape[1], seed=1), draw(shape[1], seed=2)
    (actual,) = run("FusedNorm", [x, scale, bias], variant, groups=groups, scaled=1, biased=1)
    expected = normalized(x.reshape(shape[0], groups, -1), (2,)).reshape(shape)
    dims = (-1, *[1] * (len(shape) - 2))
    assert_close(actual, expected * scale.reshape(dims) + bias.reshape(dims), 2e-6)


CPU = [name for name in SUPPORTED if name != EMULATED]
LAST = [((2, 5, 8), 2), ((2, 5, 7, 8), 8), ((1, 3, 2, 5, 6), 1), ((2, 64, 12), 3), ((3, 1, 4), 2), ((1, 2000, 3), 1), ((2, 700, 96), 32),
        ((1, 9, 9, 130), 26), ((1, 5, 5000), 5), ((1, 3, 5, 1), 1)]  # fmt: skip


def in_groups(x: Array, groups: int) -> Array:
    """Groups of the last dim, normalized."""
    n, *places, channels = x.shape
    return normalized(x.reshape(n, math.prod(places), groups, channels // groups), (1, 3)).reshape(x.shape)


@pytest.mark.parametrize(("shape", "groups"), LAST)
@pytest.mark.parametrize("name", CPU)
def test_groups_of_channels_that_lie_last(shape: tuple[int, ...], groups: int, name: str) -> None:
    x, scale, bias = draw(*shape, scale=3, offset=2), draw(shape[-1], seed=1), draw(shape[-1], seed=2)
    (actual,) = run("FusedNorm", [x, scale, bias], name, groups=groups, channels_last=1, scaled=1, biased=1)
    assert_close(actual, in_groups(x, groups) * scale + bias)
    for flags, affine in (({}, []), ({"scaled": 1}, [scale]), ({"biased": 1}, [bias])):
        (actual,) = run("FusedNorm", [x, *affine], name, groups=groups, channels_last=1, **flags)
        assert_close(
            actual, in_groups(x, groups) * (scale if "scaled" in flags else 1) + (bias if "biased" in flags else 0)
        )


@pytest.mark.parametrize("offset", [100.0, -1e4, 1e6])
@pytest.mark.parametrize("name", CPU)
def test_groups_that_lie_last_beside_a_large_mean(offset: float, name: str) -> None:
    x = draw(1, 3000, 24, offset=offset)
    (actual,) = run("FusedNorm", [x], name, groups=4, channels_last=1)
    assert_close(actual, in_groups(x, 4))


@pytest.mark.parametrize("name", CPU)
def test_groups_that_lie_last_and_begin_with_other_numbers(name: str) -> None:
    """The first places say nothing of the others."""
    x = draw(1, 4000, 16, scale=1e-2, offset=1e3)
    x[:, :40] = 0
    (actual,) = run("FusedNorm", [x], name, groups=2, channels_last=1)
    assert_close(actual, in_groups(x, 2), 3e-6)


@pytest.mark.parametrize("name", CPU)
def test_groups_that_lie_last_with_an_epilogue(name: str) -> None:
    x, other = draw(2, 70, 48), draw(2, 70, 48, seed=1)
    program = "i0:f32 i1:f32 | t0=silu(i0) t1=add(t0,i1) | t1:f32"
    (actual,) = run("FusedNorm", [x, other], name, groups=8, channels_last=1, epilogue=program)
    assert_close(actual, silu(in_groups(x, 8)) + other)
    both = "i0:f32 | t0=silu(i0) t1=less(i0,t0) | t0:f32 t1:bool"
    actual, less = run("FusedNorm", [x], name, groups=8, channels_last=1, epilogue=both)
    assert_close(actual, silu(in_groups(x, 8)))
    assert less.dtype == np.bool_
    (actual,) = run("FusedNorm", [x], name, groups=8, channels_last=1, epilogue="i0:f32 | t0=relu(i0) | t0:f32")
    assert_close(actual, np.maximum(in_groups(x, 8), 0))


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize("name", CPU)
def test_numbers_that_are_not_finite_concern_their_group_alone(number: float, name: str) -> None:
    x = draw(2, 300, 32)
    expected = in_groups(x, 4).reshape(2, 300, 4, 8)
    x[1, 7, 9] = number
    (actual,) = run("FusedNorm", [x], name, groups=4, channels_last=1)
    actual = actual.reshape(2, 300, 4, 8)
    assert np.isnan(actual[1, :, 1]).all()
    actual[1, :, 1] = expected[1, :, 1]
    assert_close(actual, expected)


@pytest.mark.parametrize("name", CPU)
def test_groups_that_lie_last_do_not_depend_on_threads(name: str) -> None:
    x = draw(2, 3000, 40)
    results = [run("FusedNorm", [x], name, threads, groups=5, channels_last=1)[0] for threads in (1, 2, 4)]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_the_cuda_kernel_takes_no_groups_that_lie_last() -> None:
    with pytest.raises(ValueError, match="takes no groups of channels that lie last"):
        run("FusedNorm", [draw(1, 3, 4)], EMULATED, groups=2, channels_last=1)


def test_groups_have_no_inner_axes(variant: str) -> None:
    """The attribute is not read, however large it is."""
    x = draw(1, 4, 5)
    (expected,), (actual,) = (run("FusedNorm", [x], variant, groups=2, inner=inner) for inner in (0, 2**63 - 1))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (2, 0, 3), (0,)])
@pytest.mark.parametrize("threads", [1, 3])
def test_empty_tensors(shape: tuple[int, ...], threads: int, variant: str) -> None:
    x = draw(*shape)
    for op in ("FusedNorm", "FusedSoftmax"):
        for attributes in ({}, {"prologue": ADD, "kept": 1, "epilogue": SILU}):
            for actual in run(op, [x, x] if attributes else [x], variant, threads, **attributes):
                assert actual.shape == shape


# --- numbers that are not finite ---
@pytest.mark.parametrize("value", [NAN, INF, -INF, 3e38, -3e38])
@pytest.mark.parametrize("position", [0, 15, 16, 69])
@pytest.mark.parametrize("axis", [-1, -2])
def test_an_extreme_number_in_a_row(value: float, position: int, axis: int, variant: str) -> None:
    x = draw(3, 70)
    x[1, position] = value
    source = x if axis == -1 else np.ascontiguousarray(x.T)
    with np.errstate(all="ignore"):
        exact = {"FusedNorm": normalized(x, (1,)), "FusedSoftmax": softmax(x)}
    for op, expected in exact.items():
        attributes = {"axis": axis} | ({"inner": -1 - axis} if op == "FusedNorm" else {})
        (actual,) = run(op, [source], variant, **attributes)
        actual = actual if axis == -1 else actual.T
        np.testing.assert_allclose(actual[[0, 2]], expected[[0, 2]], rtol=1e-5, atol=1e-6)
        if np.isfinite(value) and op == "FusedNorm":
            assert np.all(np.isfinite(actual[1]) | np.isnan(actual[1]))  # the square overflows in float32
        else:
            np.testing.assert_array_equal(np.isnan(actual[1]), np.isnan(expected[1]))


@pytest.mark.parametrize("width", [1, 5, 16, 40, 200])
@pytest.mark.parametrize("log", [0, 1])
def test_softmax_of_masked_rows(width: int, log: int, variant: str) -> None:
    """A row that is masked as a whole is NaN, as in the standard; masked elements of other rows are 0."""
    x, mask = draw(4, width), np.zeros((4, width), np.float32)
    mask[1] = -INF
    mask[2, : width // 2] = -INF
    mask[3, width // 2 + 1 :] = -INF
    (actual,) = run("FusedSoftmax", [x, mask], variant, prologue=ADD, log=log)
    expected = softmax(x + mask)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(actual, np.log(expected) if log else expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(actual[1]).all()


# --- programs ---
BROADCAST = [(7, 5, 100), (100,), (1,), (5, 1), (5, 100), (7, 1, 100), (7, 1, 1), (1, 5, 1)]


@pytest.mark.parametrize("other", BROADCAST)
@pytest.mark.parametrize("prologue", [ADD, SCALE_AND_ADD, "i0:f32 i1:f32 | t0=sub(i0,i1) t1=relu(t0) | t1:f32"])
@pytest.mark.parametrize(("axis", "inner"), [(-1, 0), (-2, 1), (-2, 0)])
@pytest.mark.parametrize("kept", [0, 1])
def test_prologue(other: tuple[int, ...], prologue: str, axis: int, inner: int, kept: int, variant: str) -> None:
    x, r = draw(7, 5, 100), draw(*other, seed=1)
    made = {ADD: x + r, SCALE_AND_ADD: x * np.float32(0.5) + r}.get(prologue, np.maximum(x - r, 0))
    y, *rest = run(
        "FusedNorm", [x, r], variant, prologue=prologue, axis=axis, inner=inner, **({"kept": 1} if kept else {})
    )
    assert_close(y, normalized(made, tuple(range(axis, -inner))), 2e-6)
    assert len(rest) == kept
    for one in rest:
        np.testing.assert_array_equal(one, made)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["first", "last"])
def test_prologue_that_is_a_sum(count: int, order: str, variant: str) -> None:
    """Bit for bit what single additions in that order make."""
    shapes = [(3, 4, 37), (37,), (4, 37), (3, 1, 1), (3, 4, 37)]
    inputs = [draw(*shape, seed=i) for i, shape in enumerate(shapes[:count])]
    steps = [f"t{i}=add({a},{b})" for i in range(count - 1) for a, b in [(f"t{i - 1}" if i else "i0", f"i{i + 1}")]]
    if order == "last":
        steps = [
            step.split("(")[0] + "(" + ",".join(reversed(step[:-1].split("(")[1].split(","))) + ")" for step in steps
        ]
    prologue = f"{' '.join(f'i{i}:f32' for i in range(count))} | {' '.join(steps)} | t{count - 2}:f32"
    total = inputs[0]
    for one in inputs[1:]:
        total = total + one
    y, kept = run("FusedNorm", inputs, variant, prologue=prologue, kept=1)
    np.testing.assert_array_equal(kept, total)
    assert_close(y, normalized(total, (2,)))


@pytest.mark.parametrize("other", BROADCAST)
@pytest.mark.parametrize(("axis", "inner"), [(-1, 0), (-2, 1), (-3, 2)])
def test_epilogue(other: tuple[int, ...], axis: int, inner: int, variant: str) -> None:
    x, r = draw(7, 5, 100), draw(*other, seed=1)
    epilogue = "i0:f32 i1:f32 | t0=silu(i0) t1=add(t0,i1) t2=less(t1,i0) | t1:f32 t2:bool"
    y, mask = run("FusedNorm", [x, r], variant, epilogue=epilogue, axis=axis, inner=inner)
    n = normalized(x, tuple(range(axis, -inner)))
    expected = silu(n) + r
    assert_close(y, expected, 2e-6)
    sure = np.abs(expected - n) > 1e-5
    np.testing.assert_array_equal(mask[sure], (expected < n)[sure])


@pytest.mark.parametrize(
    "epilogue", ["i0:f32 | t0=relu(i0) | t0:f32", "i0:f32 | t0=clip(i0,#-0x1p-1:f32,#0x1p-1:f32) | t0:f32"]
)
@pytest.mark.parametrize("shape", [(6, 50), (2, 50, 33)])
def test_clipped(epilogue: str, shape: tuple[int, ...], variant: str) -> None:
    x, inner = draw(*shape), len(shape) - 2
    x[-1, 3] = NAN
    (actual,) = run("FusedNorm", [x], variant, epilogue=epilogue, axis=-1 - inner, inner=inner)
    low, high = (0, INF) if "relu" in epilogue else (-0.5, 0.5)
    np.testing.assert_allclose(actual, np.clip(normalized(x, (1,)), low, high), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prologue", [None, ADD, "i0:f32 i1:f32 | t0=mul(i0,i1) | t0:f32"])
@pytest.mark.parametrize("dims", [(3, 4, 5, 7), (2, 9, 6, 11)])
@pytest.mark.parametrize("other", ["whole", "channel", "row", "column"])
def test_programs_of_channels_first(prologue: str | None, dims: tuple[int, ...], other: str, variant: str) -> None:
    """Axes after the normalized one, which programs may or may not see as one."""
    shape = {"whole": dims, "channel": (dims[1], 1, 1), "row": (1, dims[3]), "column": (dims[2], 1)}[other]
    x, r = draw(*dims), draw(*shape, seed=1)
    attributes: dict[str, Any] = {
        "axis": -3,
        "inner": 2,
        "epilogue": "i0:f32 i1:f32 | t0=silu(i0) t1=mul(t0,i1) | t1:f32",
    }
    made = x if prologue is None else x + r if prologue == ADD else x * r
    inputs = [x, r] if prologue is None else [x, r, r]
    (actual,) = run("FusedNorm", inputs, variant, 2, **attributes, **({"prologue": prologue} if prologue else {}))
    assert_close(actual, silu(normalized(made, (1,))) * r, 2e-6)


def test_half_precision_before_and_after(variant: str) -> None:
    x = draw(9, 48).astype(np.float16)
    (actual,) = run(
        "FusedNorm",
        [x],
        variant,
        prologue="i0:f16 | t0=cast_f32(i0) | t0:f32",
        epilogue="i0:f32 | t0=cast_f16(i0) | t0:f16",
    )
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual, normalized(x.astype(np.float32), (1,)), rtol=1e-3, atol=1e-3)


# --- threads ---
SPLITS = [
    ((3000, 40), {}), ((40, 3000), {}), ((3, 100000), {}), ((2, 40, 3000), {"axis": -2, "inner": 1}), ((3, 32, 40, 50), {"groups": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "attributes"), SPLITS)
@pytest.mark.parametrize("programs", [False, True])
def test_same_bits_for_any_number_of_threads(
    shape: tuple[int, ...], attributes: dict[str, int], programs: bool, variant: str
) -> None:
    x = draw(*shape)
    more: dict[str, Any] = {"prologue": ADD, "epilogue": SILU, "kept": 1} if programs else {}
    one, *others = (
        run("FusedNorm", [x] * (1 + programs), variant, threads, **attributes, **more) for threads in (1, 2, 4)
    )
    for other in others:
        for expected, actual in zip(one, other, strict=True):
            np.testing.assert_array_equal(actual, expected)


@given(
    outer=st.integers(0, 9),
    width=st.integers(1, 200),
    inner=st.integers(1, 90),
    op=st.sampled_from(["FusedNorm", "FusedSoftmax"]),
    programs=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_any_shape(outer: int, width: int, inner: int, op: str, programs: bool, seed: int) -> None:
    x, r = draw(outer, width, inner, seed=seed), draw(width, 1, seed=seed + 1)
    more: dict[str, Any] = (
        {"prologue": ADD, "epilogue": "i0:f32 i1:f32 | t0=tanh(i0) t1=mul(t0,i1) | t1:f32"} if programs else {}
    )
    attributes = {"axis": -2} | ({"inner": 1} if op == "FusedNorm" else {})
    made = x + r if programs else x
    expected = normalized(made, (1,)) if op == "FusedNorm" else softmax(made, 1) if outer else made.astype(np.float64)
    expected = np.tanh(expected) * r if programs else expected
    for name in SUPPORTED:
        (actual,) = run(op, [x, r, r] if programs else [x], name, **attributes, **more)
        assert_close(actual, expected, 1e-5)
