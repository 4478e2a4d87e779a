"""Constant weights as integers around 0 with a scale for each block of rows of a column, for products whose rows stay in float."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from onnxopt.errors import OptionError
from onnxopt.quant.weights import HIGHEST

TYPES = {"int8": (-HIGHEST, HIGHEST), "int4": (-8, 7)}
"""The integers of each type: a few blocks need the lowest one of int4, which is an eighth of its range."""

DEFAULT_BLOCKS = {"int8": None, "int4": 32}
"""Rows that share the scale of a column; None is all of them."""

MIN_BLOCK = 16
"""The fewest rows of a block: below, scales are as large as the integers, and onnxruntime's own kernel takes no fewer."""

CLIPPED = {
    "int8": (1.0, 0.95, 0.9, 0.85, 0.8),
    "int4": (1.05, 1.0, 0.95, 0.9, 0.875, 0.85, 0.8, 0.75, 0.7),
}
"""The fractions of a range that are tried: clipping a few large weights lets all others be finer. 7/8 lets -8 stand for the largest."""

CHUNK = 1 << 18
"""Weights that are rounded at once: all that is computed of them stays in the cache."""


@dataclasses.dataclass(frozen=True, slots=True)
class WeightFormat:
    """How weights are kept: as "int8" or "int4", each column in blocks of so many rows that share a scale (None: a column is a block)."""

    dtype: str
    block: int | None

    @classmethod
    def of(cls, dtype: str, block: int | None = None) -> WeightFormat:
        """The format of that name; without a block, the default one.

        Raises:
            OptionError: there is no such type, or the block is no power of two of at least `MIN_BLOCK`.
        """
        if dtype not in TYPES:
            raise OptionError(f"There is no type '{dtype}' of weights. The types are: {', '.join(TYPES)}.")
        if block is not None and (not isinstance(block, int) or block < MIN_BLOCK or block & (block - 1)):
            raise OptionError(f"A block of weights has {block} rows; expected a power of two of at least {MIN_BLOCK}.")
        return cls(dtype, DEFAULT_BLOCKS[dtype] if block is None else block)


@dataclasses.dataclass(frozen=True, slots=True)
class BlockedMatrix:
    """Weights of a product: integers [K, N] as int8, and scales [ceil(K / block), N] of float32."""

    array: np.ndarray
    scales: np.ndarray
    dtype: str
    block: int

    def signal_to_noise(self, matrix: np.ndarray) -> float:
        """Of the weights that it stands for, in dB."""
        noise = signal = 0.0
        for first in range(0, len(matrix), self.block):
            part = slice(first, first + self.block)
            exact = matrix[part]
            error = self.array[part] * self.scales[first // self.block] - exact
            noise += float(np.square(error).sum(dtype=np.float64))
            signal += float(np.square(exact, dtype=np.float64).sum())
        return 10 * math.log10(max(signal, noise * 1e-30) / noise) if noise > 0 else math.inf


def quantize_blocks(matrix: np.ndarray, form: WeightFormat) -> BlockedMatrix:
    """A finite matrix [K, N] of floats as integers, with scales of the least squared error among those that are tried.

    For each clipped range the weights are rounded; the best scale for the integers that come out is then known exactly (least squares).
    """
    depth, columns = matrix.shape
    block = max(depth, 1) if form.block is None else form.block
    array, scales = np.empty((depth, columns), np.int8), np.empty((-(-depth // block), columns), np.float32)
    step = max(1, CHUNK // block)
    for row in range(0, depth, block):
        for column in range(0, columns, step):
            part = slice(row, row + block), slice(column, column + step)
            array[part], scales[row // block, part[1]] = _round(matrix[part], form.dtype)
    return BlockedMatrix(array, scales, form.dtype, block)


def _round(weights: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The integers of weights [block, columns], and a scale for each column."""
    lowest, highest = TYPES[dtype]
    largest = np.abs(weights).max(axis=0)
    whole = weights / np.where(largest > 0, largest, 1)  # between -1 and 1: squares neither overflow nor vanish
    best = np.full(largest.shape, -1.0)
    steps = np.ones(largest.shape)
    chosen = np.zeros(weights.shape, np.float32)
    for fraction in CLIPPED[dtype]:
        rounded = np.clip(np.rint(whole * np.float32(highest / fraction)), lowest, highest)
        product = np.einsum("kn,kn->n", whole, rounded).astype(np.float64)
        square = np.maximum(np.einsum("kn,kn->n", rounded, rounded).astype(np.float64), 1)
        explained = product * product / square  # of the squares of the weights: what is left is the error
        better = explained > best
        np.copyto(chosen, rounded, where=better)
        np.copyto(steps, product / square, where=better)
        best = np.maximum(best, explained)
    scales = np.where(largest > 0, largest * steps, 1).astype(np.float32)
    return chosen.astype(np.int8), scales
