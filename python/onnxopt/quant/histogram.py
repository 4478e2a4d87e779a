"""Histograms that grow with what they see: what is kept of a tensor over all calibration samples."""

from __future__ import annotations

import dataclasses

import numpy as np

BINS = 2048


@dataclasses.dataclass(slots=True)
class Histogram:
    """Counts of a tensor's elements between `low` and `high`, in bins of one width; the true least and largest element.

    When an element lies outside, the range is doubled towards it, and bins are joined in pairs. Memory is constant.
    """

    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))
    low: float = 0.0
    high: float = 0.0
    least: float = np.inf
    largest: float = -np.inf

    @property
    def seen(self) -> int:
        return int(self.counts.sum())

    @property
    def centers(self) -> np.ndarray:
        width = (self.high - self.low) / BINS
        return self.low + width * (np.arange(BINS) + 0.5)

    def add(self, array: np.ndarray) -> None:
        """Count the elements of an array, all of which are finite."""
        if array.size == 0:
            return
        least, largest = float(array.min()), float(array.max())
        if self.least > self.largest:
            margin = max((largest - least) * 1e-3, abs(largest) * 1e-6, 1e-30)
            self.low, self.high = least - margin, largest + margin
        self.least, self.largest = min(self.least, least), max(self.largest, largest)
        while least < self.low:
            self._join(keep_high=True)
        while largest >= self.high:
            self._join(keep_high=False)
        scaled = (array.reshape(-1).astype(np.float64) - self.low) * (BINS / (self.high - self.low))
        self.counts += np.bincount(np.clip(scaled.astype(np.int64), 0, BINS - 1), minlength=BINS)

    def _join(self, *, keep_high: bool) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        nothing = np.zeros_like(pairs)
        width = self.high - self.low
        if keep_high:
            self.low -= width
            self.counts = np.concatenate([nothing, pairs])
        else:
            self.high += width
            self.counts = np.concatenate([pairs, nothing])
