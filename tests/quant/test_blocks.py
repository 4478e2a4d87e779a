"""Rounding matrices to integers with scales of blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxopt.errors import OptionError
from onnxopt.quant.blocks import TYPES, BlockedMatrix, WeightFormat, quantize_blocks
from onnxopt.quant.weights import QuantizedMatrix, quantize_columns

RNG = np.random.default_rng(0)
FORMATS = pytest.mark.parametrize(
    "form", [WeightFormat("int8", None), WeightFormat("int4", 32), WeightFormat("int4", 64)]
)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def restored(matrix: BlockedMatrix) -> np.ndarray:
    return matrix.array * np.repeat(matrix.scales, matrix.block, axis=0)[: len(matrix.array)]


@FORMATS
@pytest.mark.parametrize("depth", [1, 31, 32, 33, 100])
def test_shapes_and_limits(depth: int, form: WeightFormat) -> None:
    exact = normal(depth, 5)
    found = quantize_blocks(exact, form)
    blocks = 1 if form.block is None else -(-depth // form.block)
    assert found.array.dtype == np.int8 and found.array.shape == exact.shape
    assert found.scales.dtype == np.float32 and found.scales.shape == (blocks, 5)
    lowest, highest = TYPES[form.dtype]
    assert lowest <= found.array.min() and found.array.max() <= highest
    assert (found.scales > 0).all()


def test_error_is_no_larger_than_without_a_search() -> None:
    exact = normal(256, 40)
    for block in (16, 32, 64, 128):
        found = quantize_blocks(exact, WeightFormat("int4", block))
        parts = exact.reshape(-1, block, 40)
        scales = np.abs(parts).max(axis=1, keepdims=True) / 7
        plain = np.square(np.clip(np.rint(parts / scales), -8, 7) * scales - parts).sum(axis=1)
        error = np.square(restored(found) - exact).reshape(-1, block, 40).sum(axis=1)
        assert (error <= plain * (1 + 1e-5)).all()
        assert error.sum() < 0.85 * plain.sum()


def test_int8_is_as_good_as_by_columns() -> None:
    exact = normal(300, 20)
    columns = QuantizedMatrix(*quantize_columns(exact)).signal_to_noise(exact)
    assert quantize_blocks(exact, WeightFormat("int8", None)).signal_to_noise(exact) >= columns - 0.01


def test_signal_to_noise() -> None:
    exact = normal(100, 20)
    found = quantize_blocks(exact, WeightFormat("int4", 32))
    wanted = 10 * np.log10(np.square(exact).sum() / np.square(restored(found) - exact).sum())
    assert found.signal_to_noise(exact) == pytest.approx(wanted, abs=1e-3)
    assert quantize_blocks(np.zeros((40, 3), np.float32), WeightFormat("int4", 32)).signal_to_noise(
        np.zeros((40, 3), np.float32)
    ) == float("inf")


@FORMATS
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1.0, 1e30, 1e37])
def test_any_magnitude(scale: float, form: WeightFormat) -> None:
    exact = np.clip(normal(64, 8), -3, 3) * np.float32(scale)
    assert quantize_blocks(exact, form).signal_to_noise(exact.astype(np.float64)) > 15


@FORMATS
def test_zeros_and_constants_are_exact(form: WeightFormat) -> None:
    exact = np.zeros((64, 4), np.float32)
    exact[:, 1], exact[:, 2], exact[7, 3] = 0.3, -5.0, 2.0
    np.testing.assert_allclose(restored(quantize_blocks(exact, form)), exact, rtol=1e-6)


def test_the_lowest_integer_of_int4_is_used() -> None:
    exact = np.arange(-8, 8, dtype=np.float32)[:, None] * np.float32(0.7)
    found = quantize_blocks(exact, WeightFormat("int4", 16))
    np.testing.assert_array_equal(found.array[:, 0], np.arange(-8, 8))


def test_defaults() -> None:
    assert WeightFormat.of("int8") == WeightFormat("int8", None)
    assert WeightFormat.of("int4") == WeightFormat("int4", 32)
    assert WeightFormat.of("int8", 64) == WeightFormat("int8", 64)


@pytest.mark.parametrize(
    ("dtype", "block", "sentence"),
    [
        ("int3", None, "There is no type 'int3' of weights. The types are: int8, int4."),
        ("int4", 8, "A block of weights has 8 rows; expected a power of two of at least 16."),
        ("int4", 48, "expected a power of two"),
        ("int8", -32, "expected a power of two"),
        ("int4", 32.0, "expected a power of two"),
        ("int4", "32", "expected a power of two"),
    ],
)
def test_wrong_formats(dtype: str, block: Any, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        WeightFormat.of(dtype, block)
