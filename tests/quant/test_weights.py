"""Weights as 8-bit integers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.quant import weights
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


def test_a_bias_is_whole_steps_of_sums_and_fits_32_bits() -> None:
    unit = weights.unit_of_sums(np.float32(0.5), np.array([0.25, 1e-45], np.float32))
    assert unit.dtype == np.float32 and unit[0] == 0.125 and unit[1] == weights.SMALLEST_SCALE
    found = weights.whole_bias(np.array([1.3, -1.0]), unit)
    assert found.dtype == np.int32 and found.tolist() == [10, np.iinfo(np.int32).min]


def test_scales_grow_until_a_bias_fits() -> None:
    columns = np.array([[1e-20, 0.5]], np.float32)
    integers, scales = weights.quantize_columns(columns)
    bias, x_scale = np.array([3.0, 3.0]), np.float32(0.1)
    found, raised = weights.coarse_enough(columns, integers, scales, bias, x_scale)
    assert found.tolist() == [[0, 127]] and raised[1] == scales[1]
    assert abs(bias[0] / weights.unit_of_sums(x_scale, raised)[0]) <= weights.LARGEST_BIAS * 1.001
