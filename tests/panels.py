"""Packed weights, as kernels read them: written here once more, without what packs them in the package."""

from __future__ import annotations

import numpy as np

PANEL = 16


def pack(matrix: np.ndarray) -> np.ndarray:
    """[K, N] as [ceil(N / 16), K, 16], missing columns being zero."""
    padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % PANEL)))
    return np.stack(np.split(padded, padded.shape[1] // PANEL, axis=1))
