"""The kernels of QConv: every variant against exact integer arithmetic, and against each other bit for bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.ops.qconv import filter_sums, pack
from variants import variant_fixture

native = pytest.importorskip("onnxopt._native", reason="the native module is not built")

Array = np.ndarray[Any, Any]
(OP,) = [op for op in native.ops() if op["op"] == "QConv"]
EMULATED = "qconv__cuda_emulated"
"""The kernel for CUDA devices, run by the host."""
USABLE = [*(one["name"] for one in OP["variants"] if one["usable"]), EMULATED]
UINT8, INT8 = 2, 3
RELU, GATE = "i0:f32 | t0=relu(i0) | t0:f32", "i0:f32 | t0=hard_swish(i0) | t0:f32"
SILU = "i0:f32 | t0=silu(i0) | t0:f32"
X_SCALE, Y_SCALE, ADDED_SCALE = np.float32(0.02), np.float32(0.05), np.float32(0.03)


variant = variant_fixture(OP, EMULATED)


class Case:
    """One convolution with random operands. `pads` are those before and after each axis."""

    def __init__(
        self,
        size: tuple[int, int],
        channels: int,
        filters: int,
        kernel: tuple[int, int] = (3, 3),
        *,
        group: int = 1,
        strides: tuple[int, int] = (1, 1),
        dilations: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (1, 1, 1, 1),
        dtype: Any = np.uint8,
        batch: int = 1,
        extreme: bool = False,
        biased: bool = True,
    ) -> None:
        rng = np.random.default_rng(0)
        limits = np.iinfo(dtype)
        draw = (lambda *shape: rng.choice([limits.min, limits.max], shape)) if extreme else None
        self.x = (
            draw(batch, *size, channels) if draw else rng.integers(limits.min, limits.max + 1, (batch, *size, channels))
        ).astype(dtype)
        shape = (filters, channels // group, *kernel)
        self.w = (rng.choice([-128, 127], shape) if extreme else rng.integers(-128, 128, shape)).astype(np.int8)
        self.zero = np.array(rng.integers(limits.min, limits.max + 1), dtype)
        self.scales = rng.uniform(0.001, 0.002, filters).astype(np.float32)
        self.bias = rng.standard_normal(filters).astype(np.float32) if biased else None
        self.group, self.strides, self.dilations, self.pads = group, strides, dilations, pads

    def sums(self) -> Array:
        """Exact sums of products, channels-last."""
        top, left, bottom, right = self.pads
        x = np.pad(self.x.astype(np.int64) - int(self.zero), ((0, 0), (top, bottom), (left, right), (0, 0)))
        filters, depth, *kernel = self.w.shape
        sizes = [
            (x.shape[1 + axis] - (kernel[axis] - 1) * self.dilations[axis] - 1) // self.strides[axis] + 1
            for axis in (0, 1)
        ]
        y = np.zeros((x.shape[0], *sizes, filters), np.int64)
        for ky, kx in itertools.product(*map(range, kernel)):
            rows = slice(
                ky * self.dilations[0], ky * self.dilations[0] + (sizes[0] - 1) * self.strides[0] + 1, self.strides[0]
            )
            cols = slice(
                kx * self.dilations[1], kx * self.dilations[1] + (sizes[1] - 1) * self.strides[1] + 1, self.strides[1]
            )
            part = x[:, rows, cols].reshape(*y.shape[:3], self.group, depth)
            w = self.w[:, :, ky, kx].reshape(self.group, filters // self.group, depth).astype(np.int64)
            y += np.einsum("nhwgc,gfc->nhwgf", part, w).reshape(y.shape)
        return y

    def floats(self) -> Array:
        y = self.sums().astype(np.float32) * (X_SCALE * self.scales)
        return y if self.bias is None else y + self.bias

    def run(
        self,
        variant: str | None = None,
        *,
        threads: int = 1,
        to: tuple[int, Any] | None = None,
        rounded: Any = None,
        added: tuple[Array, Any] | None = None,
        epilogue: str | None = None,
        extra: tuple[Array, ...] = (),
    ) -> Array:
        """`to` is the element type of the result and its zero point; `added` a tensor and its zero point."""
        windows = {"strides": list(self.strides), "dilations": list(self.dilations), "pads": list(self.pads)}
        attributes: dict[str, Any] = {
            **windows,
            "kernel_shape": list(self.w.shape[2:]),
            "filters": len(self.w),
            "group": self.group,
        }
        inputs = [self.x, pack(self.w, self.group, windows), self.scales, filter_sums(self.w), X_SCALE, self.zero]
        if self.bias is not None:
            attributes["biased"] = 1
            inputs.append(self.bias)
        if rounded is not None:
            attributes["rounded"] = 1
            inputs += [Y_SCALE, rounded]
        if added is not None:
            attributes["added"] = 1
            inputs += [added[0], ADDED_SCALE, added[1]]
        if to is not None:
            attributes["output_dtype"] = to[0]
            inputs += [Y_SCALE, to[1]]
        if epilogue is not None:
            attributes["epilogue"] = epilogue
        arrays = [np.asarray(one) for one in (*inputs, *extra)]
        (result,) = native.run("QConv", arrays, attributes, variant=variant, threads=threads)
        return np.asarray(result)


def quantized(y: Array, zero: Any) -> Array:
    limits = np.iinfo(zero.dtype)
    return np.clip(np.rint(y / Y_SCALE) + int(zero), limits.min, limits.max).astype(zero.dtype)


CASES = {
    "1x1": lambda **more: Case((5, 7), 36, 40, (1, 1), pads=(0, 0, 0, 0), **more),
    "1x1 of odd channels": lambda **more: Case((4, 5), 13, 7, (1, 1), pads=(0, 0, 0, 0), batch=2, **more),
    "1x1 strided": lambda **more: Case((7, 8), 16, 33, (1, 1), strides=(2, 2), pads=(0, 0, 0, 0), **more),
    "3x3": lambda **more: Case((9, 10), 16, 48, **more),
    "3x3 of a batch": lambda **more: Case((5, 4), 20, 17, batch=3, **more),
    "image": lambda **more: Case((17, 19), 3, 32, strides=(2, 2), **more),
    "7x7 of an image": lambda **more: Case((20, 21), 3, 24, (7, 7), strides=(2, 2), pads=(3, 3, 3, 3), **more),
    "uneven pads": lambda **more: Case((6, 7), 5, 18, (2, 4), pads=(0, 2, 1, 0), **more),
    "dilated": lambda **more: Case((12, 11), 10, 20, dilations=(2, 3), pads=(2, 3, 2, 3), **more),
    "dilated in height": lambda **more: Case((12, 11), 8, 20, dilations=(2, 1), pads=(2, 1, 2, 1), **more),
    "groups": lambda **more: Case((7, 6), 24, 36, group=3, **more),
    "groups of odd channels": lambda **more: Case((7, 6), 14, 4, group=2, **more),
    "multiplied depthwise": lambda **more: Case((6, 6), 5, 10, group=5, **more),
    "1-D": lambda **more: Case((1, 30), 12, 20, (1, 5), pads=(0, 2, 0, 2), **more),
    "depthwise": lambda **more: Case((8, 9), 40, 40, group=40, **more),
    "depthwise 5x5": lambda **more: Case((9, 11), 33, 33, (5, 5), group=33, pads=(2, 2, 2, 2), **more),
    "depthwise strided": lambda **more: Case((11, 13), 64, 64, group=64, strides=(2, 2), **more),
    "depthwise 5x5 strided": lambda **more: Case(
        (11, 13), 48, 48, (5, 5), group=48, strides=(2, 2), pads=(2, 2, 2, 2), **more
    ),
    "depthwise strided in height": lambda **more: Case((11, 13), 32, 32, group=32, strides=(2, 1), **more),
    "depthwise of few channels": lambda **more: Case((6, 5), 8, 8, group=8, batch=2, **more),
    "depthwise 7x7": lambda **more: Case((9, 9), 35, 35, (7, 7), group=35, pads=(3, 3, 3, 3), **more),
    "depthwise 9x5 of low images": lambda **more: Case(
        (2, 11), 33, 33, (9, 5), group=33, pads=(4, 2, 4, 2), batch=2, **more
    ),
    "depthwise 5x3 beyond the image": lambda **more: Case((3, 6), 20, 20, (5, 3), group=20, pads=(7, 1, 6, 1), **more),
    "depthwise 5x5 dilated": lambda **more: Case(
        (4, 9), 40, 40, (5, 5), group=40, dilations=(3, 1), pads=(6, 2, 6, 2), **more
    ),
    "depthwise dilated": lambda **more: Case((10, 10), 32, 32, group=32, dilations=(2, 2), pads=(2, 2, 2, 2), **more),
    "depthwise of narrow images": lambda **more: Case((6, 2), 32, 32, group=32, **more),
    "one pixel": lambda **more: Case((1, 1), 17, 19, **more),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("name", CASES)
def test_against_exact_integers(name: str, dtype: Any, variant: str) -> None:
    case = CASES[name](dtype=dtype)
    np.testing.assert_array_equal(case.run(variant), case.floats())


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("name", ["1x1", "3x3", "image", "groups", "depthwise", "depthwise 5x5"])
def test_extremes_of_bytes_do_not_saturate(name: str, dtype: Any, variant: str) -> None:
    case = CASES[name](dtype=dtype, extreme=True)
    np.testing.assert_array_equal(case.run(variant), case.floats())


@pytest.mark.parametrize("zero", [np.uint8(7), np.int8(-20)])
@pytest.mark.parametrize("epilogue", [None, RELU, GATE, SILU])
@pytest.mark.parametrize("name", ["1x1 of odd channels", "3x3", "depthwise"])
def test_quantized_results(name: str, epilogue: str | None, zero: Any, variant: str) -> None:
    case = CASES[name]()
    y = case.floats()
    if epilogue == RELU:
        y = np.maximum(y, 0)
    elif epilogue == GATE:
        y = y * np.clip(y / 6 + 0.5, 0, 1)
    elif epilogue == SILU:
        y = y / (1 + np.exp(-y))
    got = case.run(variant, to=(INT8 if zero.dtype == np.int8 else UINT8, zero), epilogue=epilogue)
    assert got.dtype == zero.dtype
    assert np.abs(got.astype(int) - quantized(y, zero).astype(int)).max() <= 1


@pytest.mark.parametrize("zero", [np.uint8(100), np.int8(-3)])
@pytest.mark.parametrize("name", ["1x1 of odd channels", "3x3", "depthwise 5x5"])
@pytest.mark.parametrize("rounded", [None, np.uint8(130), np.int8(4)])
def test_added_bytes(name: str, zero: Any, rounded: Any, variant: str) -> None:
    case = CASES[name]()
    y = case.floats()
    other = (
        np.random.default_rng(1)
        .integers(np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max + 1, y.shape)
        .astype(zero.dtype)
    )
    if rounded is not None:
        y = (quantized(y, rounded).astype(np.int32) - int(rounded)) * Y_SCALE
    y = np.maximum(y + (other.astype(np.int32) - int(zero)) * ADDED_SCALE, 0)
    got = case.run(variant, added=(other, zero), rounded=rounded, epilogue=RELU)
    error = np.abs(got - y)
    # A number between two integers may become either.
    assert error.max() <= (1.01 * Y_SCALE if rounded is not None else 1e-5)
    assert (error > 1e-5).mean() < 0.01


@pytest.mark.parametrize("name", ["3x3", "depthwise"])
def test_added_floats_and_broadcast_inputs(name: str, variant: str) -> None:
    case = CASES[name]()
    y = case.floats()
    added = np.random.default_rng(2).standard_normal(y.shape).astype(np.float32)
    got = case.run(variant, epilogue="i0:f32 i1:f32 | t0=add(i0,i1) t1=relu(t0) | t1:f32", extra=(added,))
    np.testing.assert_array_equal(got, np.maximum(y + added, 0))
    scale = np.random.default_rng(3).standard_normal(y.shape[-1]).astype(np.float32)
    got = case.run(variant, epilogue="i0:f32 i1:f32 | t0=mul(i0,i1) | t0:f32", extra=(scale,), to=(UINT8, np.uint8(5)))
    assert np.abs(got.astype(int) - quantized(y * scale, np.uint8(5)).astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["1x1", "image", "3x3 of a batch", "groups", "depthwise", "depthwise strided"])
@pytest.mark.parametrize("epilogue", [None, RELU, SILU])
def test_variants_and_threads_agree_bit_for_bit(name: str, epilogue: str | None) -> None:
    case = CASES[name]()
    first = case.run(USABLE[0], to=(UINT8, np.uint8(9)), epilogue=epilogue)
    for other, threads in itertools.product(USABLE, (1, 2, 4)):
        np.testing.assert_array_equal(
            case.run(other, to=(UINT8, np.uint8(9)), epilogue=epilogue, threads=threads), first
        )


CLIP = "i0:f32 | t0=clip(i0,#-0x1p+0:f32,#0x1.8p+0:f32) | t0:f32"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_convolutions_agree_bit_for_bit(seed: int) -> None:
    """With every way in which bytes are made of sums."""
    rng = np.random.default_rng(seed)

    def one_of(*choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    group = one_of(1, 1, 1, 2, 5, 8)
    channels, filters = (group * one_of(1, 3, 4, 8, 16) for _ in "xy")
    case = Case(
        (int(rng.integers(3, 14)), int(rng.integers(3, 14))),
        channels,
        one_of(filters, channels, 4 * filters),
        (one_of(1, 2, 3), one_of(1, 3)),
        group=group,
        strides=(one_of(1, 2), one_of(1, 2)),
        dilations=(1, one_of(1, 1, 2)) if seed % 2 else (1, 1),
        pads=(1, one_of(0, 2), 1, 2),
        dtype=one_of(np.uint8, np.int8),
        batch=one_of(1, 2),
        biased=one_of(True, False),
    )
    zeros = [np.uint8(rng.integers(256)), np.int8(rng.integers(-128, 128))]
    zero = one_of(*zeros)
    shape = case.run(USABLE[0]).shape
    other = rng.integers(0, 256, shape).astype(np.uint8)
    addend = one_of(zeros[0], zeros[1], None)
    options = {
        "to": one_of((UINT8 if zero.dtype == np.uint8 else INT8, zero), None),
        "rounded": one_of(*zeros, None),
        "added": None if addend is None else (other.view(addend.dtype), addend),
        "epilogue": one_of(None, RELU, CLIP, GATE),
    }
    first, *others = (case.run(name, **options) for name in USABLE)
    for found in others:
        np.testing.assert_array_equal(found, first)


def test_many_tasks_agree_with_one_thread() -> None:
    case = Case((40, 41), 64, 96, biased=False)
    np.testing.assert_array_equal(case.run(threads=3), case.floats())
    case = Case((40, 41), 160, 160, group=160)
    np.testing.assert_array_equal(case.run(threads=3), case.floats())


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
@pytest.mark.parametrize("channels", [16, 20, 33])
def test_large_tiles_of_devices(channels: int, kernel: tuple[int, int]) -> None:
    case = Case((14, 15), channels, 140, kernel, batch=2)
    np.testing.assert_array_equal(case.run(EMULATED), case.floats())


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("group", [1, 4])
def test_no_channels_give_the_biases(group: int, dtype: Any, variant: str) -> None:
    weights = np.zeros((group, 2 // min(group, 2), 0, 16, 4), np.int8)
    scales, bias = np.ones(20, np.float32), np.arange(20, dtype=np.float32)
    inputs = [np.ones((1, 4, 5, 0), dtype), weights, scales, np.zeros(20, np.int32), np.array(X_SCALE), dtype(3), bias]
    attributes = {"kernel_shape": [3, 3], "pads": [1] * 4, "filters": 20, "group": group, "biased": 1}
    (y,) = native.run("QConv", [np.asarray(one) for one in inputs], attributes, variant=variant)
    np.testing.assert_array_equal(y, np.broadcast_to(bias, (1, 4, 5, 20)))


@pytest.mark.parametrize("group", [1, 8])
def test_strides_beyond_the_input(group: int, variant: str) -> None:
    case = Case((5, 6), 8, 8, group=group, strides=(2**31, 2**31))
    if variant == EMULATED:
        pytest.skip("kernels for devices number bytes with 31 bits")
    np.testing.assert_allclose(case.run(variant), case.floats(), rtol=1e-6, atol=1e-5)


def test_empty_batch(variant: str) -> None:
    assert Case((4, 4), 8, 8, batch=0).run(variant).shape == (0, 4, 4, 8)
