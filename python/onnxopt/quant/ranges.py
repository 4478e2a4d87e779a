"""Which range of an activation 8 bits cover: estimators over a histogram, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxopt.quant.histogram import Histogram

Range = tuple[float, float]
Function = Callable[[np.ndarray], np.ndarray]
"""Of numbers [n], as float64."""

LEVELS = 255
PERCENTILE = 99.99
FRACTIONS = np.linspace(0.1, 1.0, 91)
"""Of a bound, which are tried for the least error."""

ALL_FRACTIONS = np.concatenate([np.linspace(0.0, 0.1, 20, endpoint=False), FRACTIONS])
"""The same where a function follows, which may make nothing of most of a side."""


def whole(histogram: Histogram) -> Range:
    """All elements."""
    return min(histogram.least, 0.0), max(histogram.largest, 0.0)


def percentile(histogram: Histogram) -> Range:
    """All but the outermost elements on each side, one in ten thousand together."""
    below = np.cumsum(histogram.counts) / max(histogram.seen, 1) * 100.0
    cut = (100.0 - PERCENTILE) / 2
    width = (histogram.high - histogram.low) / len(histogram.counts)
    first = int(np.searchsorted(below, cut, side="right"))
    last = int(np.searchsorted(below, 100.0 - cut, side="left"))
    low, high = whole(histogram)
    return max(low, min(histogram.low + width * first, 0.0)), min(high, max(histogram.low + width * (last + 1), 0.0))


def squared_error(histogram: Histogram, limits: Range) -> float:
    """The expected squared error of an element: of rounding inside the limits, of clipping outside."""
    low, high = limits
    centers = histogram.centers
    outside = np.square(np.minimum(centers - low, 0.0)) + np.square(np.maximum(centers - high, 0.0))
    inside = (centers >= low) & (centers <= high)
    step = (high - low) / LEVELS
    errors = outside + inside * (step * step / 12)
    return float((errors * histogram.counts).sum() / max(histogram.seen, 1))


def least_error(histogram: Histogram, function: Function | None = None) -> Range:
    """The limits with the least expected squared error, each chosen by itself: a bound of an activation function lies at one end, a tail
    that may be clipped at the other.

    Args:
        function: what is computed of the elements: the error is that of its results.
    """
    low, high = whole(histogram)
    counts, centers = histogram.counts.astype(np.float64), histogram.centers
    results = None if function is None else function(centers)
    if function is None or results is None or not np.isfinite(results).all():
        lows, highs = low * FRACTIONS, high * FRACTIONS
        clipped_below = np.minimum(centers - lows[:, None], 0.0)
        clipped_above = np.maximum(centers - highs[:, None], 0.0)
        weights = counts
    else:
        lows, highs = low * ALL_FRACTIONS, high * ALL_FRACTIONS
        clipped_below = np.where(centers < lows[:, None], results - function(lows)[:, None], 0.0)
        clipped_above = np.where(centers > highs[:, None], results - function(highs)[:, None], 0.0)
        weights = counts * np.square(np.gradient(results, centers))
    clipped = (np.square(clipped_below) @ counts)[:, None] + np.square(clipped_above) @ counts
    below, above = centers < lows[:, None], centers > highs[:, None]
    inside = weights.sum() - (below @ weights)[:, None] - above @ weights
    errors = clipped + inside * np.square((highs - lows[:, None]) / LEVELS) / 12
    first, second = np.unravel_index(int(np.argmin(errors)), errors.shape)
    return float(lows[first]), float(highs[second])


def entropy(histogram: Histogram) -> Range:
    """The part of the range whose quantized distribution diverges least from the true one (S. Migacz, "8-bit Inference with TensorRT")."""
    low, high = whole(histogram)
    candidates = [(low * fraction, high * fraction) for fraction in FRACTIONS]
    return min(candidates, key=lambda limits: _divergence(histogram, limits))


def _divergence(histogram: Histogram, limits: Range) -> float:
    low, high = limits
    if high <= low:
        return 0.0
    counts = histogram.counts.astype(np.float64)
    levels = np.clip((histogram.centers - low) / (high - low) * LEVELS, 0, LEVELS).round().astype(np.int64)
    inside = (histogram.centers >= low) & (histogram.centers <= high)
    # What is clipped counts at the ends.
    true = np.where(inside, counts, 0.0)
    ends = np.flatnonzero(inside)
    if ends.size == 0:
        return float("inf")
    true[ends[0]] += counts[: ends[0]].sum()
    true[ends[-1]] += counts[ends[-1] + 1 :].sum()
    taken = inside & (counts > 0)
    sums = np.bincount(levels[taken], counts[taken], LEVELS + 1)
    filled = np.bincount(levels[taken], minlength=LEVELS + 1)
    spread = np.where(taken, (sums / np.maximum(filled, 1))[levels], 0.0)
    total_true, total_spread = true.sum(), spread.sum()
    if total_true == 0 or total_spread == 0:
        return 0.0
    p, q = true / total_true, spread / total_spread
    both = p > 0
    return float((p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))).sum())


ESTIMATORS: Mapping[str, Callable[[Histogram], Range]] = {
    "minmax": whole,
    "percentile": percentile,
    "mse": least_error,
    "entropy": entropy,
}


def best(histogram: Histogram) -> Range:
    """What the estimator gives that has the least expected squared error here."""
    return min(
        (estimate(histogram) for estimate in ESTIMATORS.values()), key=lambda limits: squared_error(histogram, limits)
    )


def estimate(histogram: Histogram, method: str, function: Function | None = None) -> Range:
    """The range by a method of `ESTIMATORS`, or "auto"; (0, 0) of a tensor without elements. Of them, "mse" looks at the errors of what a
    function makes of the elements."""
    if histogram.seen == 0:
        return 0.0, 0.0
    if method == "mse":
        return least_error(histogram, function)
    return best(histogram) if method == "auto" else ESTIMATORS[method](histogram)


def scale_and_zero(limits: Range) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of uint8 for a range, which is widened to include 0."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    scale = np.float32((high - low) / LEVELS)
    if not scale >= np.finfo(np.float32).tiny:
        return np.float32(1.0), np.uint8(0)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, LEVELS))
