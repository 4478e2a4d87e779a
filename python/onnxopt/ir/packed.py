"""Matrices of weights in the order in which kernels read them."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import onnx_ir
from onnx_ir import DataType, Shape, Tensor, TensorProtocol

from onnxopt.ir.lazy import StreamedTensor, TransposedTensor, make_panels, write_panels
from onnxopt.ir.mapped import MappedTensor

PANEL = 16
"""Columns of a panel (`kPanel` in kernels/cpu/gemm/panel.h)."""


def pack(matrix: np.ndarray, *, transposed: bool = False) -> np.ndarray:
    """A matrix as panels of 16 columns: [K, N] (or [N, K], `transposed`) becomes [ceil(N / 16), K, 16], missing columns being zero."""
    return make_panels(_by_column(matrix, transposed), PANEL)[:, 0]


def _by_column(matrix: np.ndarray, transposed: bool) -> np.ndarray:
    return (matrix if transposed else matrix.T)[:, :, None]


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
        write_panels(target, _by_column(self.source.numpy(), self.transposed), PANEL)
        self.mapped.release()


def packed(tensor: TensorProtocol, name: str, *, transposed: bool = False) -> TensorProtocol:
    """A constant matrix, packed: while it is written where it is mapped, else now. That of int4 is packed now."""
    if tensor.dtype is DataType.INT4:
        return int4(pack(tensor.numpy().view(np.int8), transposed=transposed), name)
    if isinstance(tensor, (MappedTensor, StreamedTensor)):
        return PackedTensor(tensor, name, transposed=transposed)
    return Tensor(pack(tensor.numpy(), transposed=transposed), dtype=tensor.dtype, name=name)


def int4(array: np.ndarray, name: str) -> TensorProtocol:
    """Integers of int8 between -8 and 7 as a tensor of int4, which keeps two of them in a byte, the first one in its lower half."""
    flat = array.reshape(-1).view(np.uint8)
    low, high = flat[::2] & 15, flat[1::2] << 4
    low[: high.size] |= high
    return onnx_ir.PackedTensor(low, DataType.INT4, shape=Shape(array.shape), name=name)
