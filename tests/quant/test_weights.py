"""Weights as 8-bit integers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.quant.weights import quantize_columns


def test_every_weight_is_within_half_a_step_where_nothing_is_clipped() -> None:
    matrix = np.random.default_rng(0).uniform(-1, 1, (50, 7)).astype(np.float32)
    quantized, scales = quantize_columns(matrix)
    assert quantized.dtype == np.int8
    inside = np.abs(matrix) <= 127 * scales
    assert (np.abs(quantized * scales - matrix)[inside] <= 0.5001 * np.broadcast_to(scales, matrix.shape)[inside]).all()


def test_clipping_an_outlier_is_chosen_where_it_lowers_the_error() -> None:
    matrix = np.random.default_rng(1).uniform(-1, 1, (50_000, 1)).astype(np.float32)
    matrix[7] = 1.2
    quantized, scales = quantize_columns(matrix)
    plain = np.abs(matrix).max() / 127
    error = np.square(quantized * scales - matrix).sum()
    assert scales[0] < plain
    assert error < np.square(np.rint(matrix / plain) * plain - matrix).sum()


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
def test_constant_columns_are_exact(value: float) -> None:
    quantized, scales = quantize_columns(np.full((9, 4), value, np.float32))
    np.testing.assert_allclose(quantized * scales, value, rtol=1e-6)


def test_no_rows() -> None:
    quantized, scales = quantize_columns(np.zeros((0, 3), np.float32))
    assert quantized.shape == (0, 3)
    assert (scales > 0).all()
