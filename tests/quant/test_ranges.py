"""Ranges of activations."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.quant import ranges
from onnxopt.quant.histogram import Histogram

RNG = np.random.default_rng(0)


def seen(*arrays: np.ndarray) -> Histogram:
    histogram = Histogram()
    for array in arrays:
        histogram.add(array.astype(np.float32))
    return histogram


def true_error(array: np.ndarray, limits: ranges.Range) -> float:
    scale, zero = ranges.scale_and_zero(limits)
    rounded = (np.clip(np.rint(array / scale) + float(zero), 0, 255) - float(zero)) * scale
    return float(np.square(rounded - array).mean())


@pytest.mark.parametrize("method", [*ranges.ESTIMATORS, "auto"])
def test_ranges_hold_zero_and_lie_within_the_elements(method: str) -> None:
    for array in (
        RNG.standard_normal(5000),
        RNG.uniform(3, 4, 500),
        -RNG.exponential(1, 900),
        np.zeros(7),
        np.full(9, -2.0),
    ):
        low, high = ranges.estimate(seen(array), method)
        assert low <= 0 <= high
        assert low >= min(array.min(), 0) - 1e-5 and high <= max(array.max(), 0) + 1e-5


@pytest.mark.parametrize("method", ["mse", "auto", "percentile"])
def test_a_far_outlier_is_clipped(method: str) -> None:
    array = np.append(RNG.standard_normal(200_000), 20.0)
    found, whole = ranges.estimate(seen(array), method), ranges.estimate(seen(array), "minmax")
    assert whole[1] == 20.0
    assert found[1] < 19.0
    assert np.square(array[:-1]).mean() > true_error(array[:-1], found)


def test_the_estimated_error_is_the_true_one() -> None:
    array = RNG.standard_normal(100_000)
    for limits in ((-4.0, 4.0), (-2.0, 2.0), (-1.0, 3.0)):
        assert ranges.squared_error(seen(array), limits) == pytest.approx(true_error(array, limits), rel=0.1)


def test_auto_is_never_worse_than_any_method() -> None:
    for array in (RNG.standard_normal(3000), RNG.standard_t(2, 3000), RNG.exponential(1, 3000)):
        histogram = seen(array)
        errors = {
            m: ranges.squared_error(histogram, ranges.estimate(histogram, m)) for m in (*ranges.ESTIMATORS, "auto")
        }
        assert errors["auto"] == min(errors.values())


@pytest.mark.parametrize("limits", [(0.0, 1.0), (-3.0, 5.0), (-2.0, 0.0), (0.5, 2.0), (0.0, 0.0), (-1e-44, 1e-44)])
def test_zero_is_exact(limits: ranges.Range) -> None:
    scale, zero = ranges.scale_and_zero(limits)
    assert scale > 0 and scale.dtype == np.float32 and zero.dtype == np.uint8
    if limits[1] - limits[0] > 1e-30:
        assert (0 - float(zero)) * scale <= max(min(limits[0], 0), -1e30) + scale
        assert (255 - float(zero)) * scale >= limits[1] - scale


def test_a_tensor_without_elements() -> None:
    assert ranges.estimate(Histogram(), "mse") == (0.0, 0.0)


def test_each_bound_is_chosen_by_itself() -> None:
    swish = RNG.standard_normal(100_000) * 3
    swish = swish * np.clip(swish / 6 + 0.5, 0, 1)
    array = np.append(swish, 100.0)
    low, high = ranges.estimate(seen(array), "mse")
    assert high < 95
    together = min(
        ((array.min() * one, array.max() * one) for one in ranges.FRACTIONS), key=lambda it: true_error(array, it)
    )
    assert true_error(array, (low, high)) <= true_error(array, together) * 1.01


def test_a_function_that_follows_decides_about_the_error() -> None:
    """Of SiLU hardly anything is left below -8."""
    array = RNG.normal(0, 20, 50_000)

    def silu(x: np.ndarray) -> np.ndarray:
        return np.asarray(x / (1 + np.exp(-np.clip(x, -80, 80))))

    def error(limits: ranges.Range) -> float:
        scale, zero = ranges.scale_and_zero(limits)
        rounded = (np.clip(np.rint(array / scale) + float(zero), 0, 255) - float(zero)) * scale
        return float(np.square(silu(rounded) - silu(array)).mean())

    plain, better = ranges.estimate(seen(array), "mse"), ranges.estimate(seen(array), "mse", silu)
    assert plain[0] < -30 and -10 < better[0] < -1
    assert error(better) < 0.5 * error(plain)


def test_a_function_without_numbers_decides_nothing() -> None:
    histogram = seen(RNG.standard_normal(500))
    with np.errstate(invalid="ignore", divide="ignore"):
        assert ranges.estimate(histogram, "mse", np.log) == ranges.estimate(histogram, "mse")
