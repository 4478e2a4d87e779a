"""Matrices of weights in the order in which kernels read them."""

from __future__ import annotations

import functools
from typing import BinaryIO

import numpy as np
from onnx_ir import Shape, Tensor, TensorProtocol

from onnxopt.ir.lazy import StreamedTensor, TransposedTensor, transpose_into, write_blocks
from onnxopt.ir.mapped import MappedTensor

PANEL = 16
"""Columns of a panel (`kPanel` in kernels/cpu/gemm/panel.h)."""

BLOCK_BYTES = 1 << 20
"""Bytes that are packed at once: they are still in the cache when they are written."""


def pack(matrix: np.ndarray, *, transposed: bool = False) -> np.ndarray:
    """A matrix as panels of 16 columns: [K, N] (or [N, K], `transposed`) becomes [ceil(N / 16), K, 16], missing columns being zero."""
    depth, columns = matrix.shape[::-1] if transposed else matrix.shape
    packed = np.empty((-(-columns // PANEL), depth, PANEL), matrix.dtype)
    _fill(matrix, packed, transposed)
    return packed


def _fill(matrix: np.ndarray, packed: np.ndarray, transposed: bool) -> None:
    columns = matrix.shape[0 if transposed else 1]
    if not transposed and columns % PANEL == 0 and matrix.strides[1] == matrix.itemsize:
        # A row of a panel is moved as one element: twice as fast as 16 of them.
        rows = np.dtype((np.void, PANEL * matrix.itemsize))
        np.copyto(packed.view(rows)[..., 0], matrix.view(rows).T)
        return
    for number, panel in enumerate(packed):
        part = slice(number * PANEL, min(number * PANEL + PANEL, columns))
        count = part.stop - part.start
        if count < PANEL:
            panel[:, count:] = 0
        if transposed:
            transpose_into(matrix[part], panel[:, :count])
        else:
            panel[:, :count] = matrix[:, part]


class PackedTensor(StreamedTensor):
    """A mapped matrix, packed while it is written."""

    def __init__(self, source: MappedTensor | StreamedTensor, name: str, *, transposed: bool = False) -> None:
        if isinstance(source, TransposedTensor):
            assert isinstance(source.source, MappedTensor)
            source, transposed = source.source, not transposed
        self.source = source
        self.transposed = transposed
        depth, columns = source.shape.numpy()[::-1] if transposed else source.shape.numpy()
        super().__init__(
            lambda: Tensor(pack(source.numpy(), transposed=transposed), dtype=source.dtype),
            dtype=source.dtype,
            shape=Shape((-(-columns // PANEL), depth, PANEL)),
            cache=False,
            name=name,
        )

    def copy_to(self, target: BinaryIO) -> None:
        """Append the bytes to an unbuffered file."""
        matrix = self.source.numpy()
        columns = matrix.shape[0 if self.transposed else 1]
        depth = matrix.shape[1 if self.transposed else 0]
        panel = depth * PANEL * matrix.itemsize
        step = max(1, BLOCK_BYTES // max(panel, 1))
        slices = [slice(start, start + step * PANEL) for start in range(0, columns, step * PANEL)]
        parts = [matrix[part] if self.transposed else matrix[:, part] for part in slices]
        fills = [functools.partial(_packed, part, self.transposed) for part in parts]
        write_blocks(target, step * panel, fills)
        self.mapped.release()


def _packed(matrix: np.ndarray, transposed: bool, memory: np.ndarray) -> np.ndarray:
    depth, columns = matrix.shape[::-1] if transposed else matrix.shape
    count = -(-columns // PANEL)
    block = memory[: count * depth * PANEL * matrix.itemsize].view(matrix.dtype).reshape(count, depth, PANEL)
    _fill(matrix, block, transposed)
    return block


def packed(tensor: TensorProtocol, name: str, *, transposed: bool = False) -> TensorProtocol:
    """A constant matrix, packed: while it is written where it is mapped, else now."""
    if isinstance(tensor, (MappedTensor, StreamedTensor)):
        return PackedTensor(tensor, name, transposed=transposed)
    return Tensor(pack(tensor.numpy(), transposed=transposed), dtype=tensor.dtype, name=name)
