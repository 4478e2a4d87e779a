"""Histograms over several arrays."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.quant.histogram import BINS, Histogram


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(0, 200)), min_size=1, max_size=6))
def test_counts_every_element_in_a_bin_near_it(parts: list[tuple[float, float, int]]) -> None:
    rng = np.random.default_rng(0)
    histogram, arrays = Histogram(), []
    for middle, width, count in parts:
        arrays.append((middle + width * rng.standard_normal(count)).astype(np.float32))
        histogram.add(arrays[-1])
    every = np.concatenate(arrays)
    assert histogram.seen == every.size and len(histogram.counts) == BINS
    if every.size:
        assert (histogram.least, histogram.largest) == (every.min(), every.max())
        width = (histogram.high - histogram.low) / BINS
        mean = (histogram.centers * histogram.counts).sum() / every.size
        assert abs(mean - every.mean(dtype=np.float64)) <= width + 1e-6 * np.abs(every).max()


def test_a_constant_tensor() -> None:
    histogram = Histogram()
    for _ in range(3):
        histogram.add(np.full(5, 2.5, np.float32))
    assert histogram.seen == 15 and histogram.least == histogram.largest == 2.5


def test_no_elements() -> None:
    histogram = Histogram()
    histogram.add(np.zeros((0, 4), np.float32))
    assert histogram.seen == 0
