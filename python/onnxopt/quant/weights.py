"""Constant weights as 8-bit integers around 0."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

HIGHEST = 127
"""The largest magnitude: -128 stays unused, so that a matrix and its negative are quantized alike."""

SMALLEST_SCALE = np.finfo(np.float32).tiny

CLIPPED = (1.0, 0.95, 0.9, 0.85, 0.8)
"""The fractions of a range that are tried: clipping a few large weights lets all others be finer."""


@dataclasses.dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """Weights of a layer: int8 [K, N], and a scale for each column [N] of float32."""

    array: np.ndarray
    scales: np.ndarray

    def signal_to_noise(self, matrix: np.ndarray) -> float:
        """Of the weights that it stands for, in dB."""
        error = self.array * self.scales - matrix
        noise = float(np.square(error).sum(dtype=np.float64))
        return (
            10 * math.log10(max(float(np.square(matrix).sum(dtype=np.float64)), noise * 1e-30) / noise)
            if noise > 0
            else math.inf
        )


def quantize_columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix [K, N] of floats as int8 [K, N], and a scale for each column [N] of float32, chosen for the least squared error."""
    highest = np.abs(matrix).max(axis=0, initial=0.0).astype(np.float32)
    best, scales = np.full(highest.shape, np.inf), np.empty_like(highest)
    for fraction in CLIPPED:
        tried = np.maximum(highest * np.float32(fraction / HIGHEST), SMALLEST_SCALE)
        rounded = np.clip(np.rint(matrix / tried), -HIGHEST, HIGHEST)
        error = np.square(rounded * tried - matrix).sum(axis=0, dtype=np.float64)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, tried, scales).astype(np.float32)
    return np.clip(np.rint(matrix / scales), -HIGHEST, HIGHEST).astype(np.int8), scales
