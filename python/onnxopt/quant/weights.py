"""Constant weights as 8-bit integers around 0."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

HIGHEST = 127
"""The largest magnitude: -128 stays unused, so that a matrix and its negative are quantized alike."""

SMALLEST_SCALE = np.finfo(np.float32).tiny

LARGEST_BIAS = 1 << 30
"""Of a convolution, in steps of its sums: half of what 32 bits hold, the other half is for the sums."""

CLIPPED = (1.0, 0.95, 0.9, 0.85, 0.8)
"""The fractions of a range that are tried: clipping a few large weights lets all others be finer."""


@dataclasses.dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """Weights of a layer: int8 [K, N], a scale for each column [N] of float32, and what is added to each column's results [N] of float32."""

    array: np.ndarray
    scales: np.ndarray
    correction: np.ndarray | None = None

    def floats(self) -> np.ndarray:
        """The weights that it stands for, float32 [K, N]."""
        return np.asarray(self.array * self.scales)

    def signal_to_noise(self, matrix: np.ndarray) -> float:
        """Of the weights that it stands for, in dB."""
        error = self.floats() - matrix
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


def whole_bias(bias: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """A bias in steps of a layer's sums, int32: what does not fit is cut off."""
    limits = np.iinfo(np.int32)
    return np.asarray(np.clip(np.rint(bias / unit), limits.min, limits.max), np.int32)


def unit_of_sums(x_scale: np.float32, scales: np.ndarray) -> np.ndarray:
    """What one step of a layer's sums stands for, float32 [N]: the scale of its operand times that of each column."""
    return np.maximum(x_scale * scales, SMALLEST_SCALE).astype(np.float32)


def coarse_enough(
    columns: np.ndarray, quantized: np.ndarray, scales: np.ndarray, bias: np.ndarray, x_scale: np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """The integers of columns [K, N], and scales with which their bias fits 32 bits: weights too small for that count for nothing."""
    least = np.abs(bias) / (x_scale * LARGEST_BIAS)
    fine = scales < least
    if not fine.any():
        return quantized, scales
    raised = np.where(fine, least, scales).astype(np.float32)
    rounded = np.clip(np.rint(columns / raised), -HIGHEST, HIGHEST).astype(np.int8)
    return np.where(fine, rounded, quantized), raised
