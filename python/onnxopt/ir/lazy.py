"""Tensors that are computed from mapped ones while they are written, block by block."""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from onnx_ir import LazyTensor, Shape

from onnxopt.ir.mapped import MappedTensor

BLOCK_BYTES = 1 << 20
"""Bytes that a thread moves at once: they are still in its cache when they are written."""

WIDE_BLOCK_BYTES = 8 << 20
"""The same for matrices that are transposed: of each of their rows, a block has to take more than a few elements."""

MOST_THREADS = 2
"""Writes to one file take turns, and take longer than moving the elements: a third thread would only wait."""


class StreamedTensor(LazyTensor):
    """A tensor that is computed from a mapped one while it is written."""

    source: MappedTensor | StreamedTensor

    @property
    def mapped(self) -> MappedTensor:
        """The mapped tensor that everything is computed from."""
        source = self.source
        return source.mapped if isinstance(source, StreamedTensor) else source

    def copy_to(self, target: BinaryIO) -> None:
        """Append the bytes to an unbuffered file."""
        raise NotImplementedError


def is_streamed(tensor: object) -> bool:
    """Whether a tensor is a `StreamedTensor`. onnx-ir's protocols make isinstance look at every member of what is none."""
    return StreamedTensor in type(tensor).__mro__


class TransposedTensor(StreamedTensor):
    """A mapped matrix, transposed. Writing it needs one block of memory, whatever its size."""

    def __init__(self, source: MappedTensor, name: str) -> None:
        rows, columns = source.shape.numpy()
        self.source: MappedTensor = source
        super().__init__(
            lambda: _as_tensor(make_panels(source.numpy()[:, :, None], rows).reshape(columns, rows), source),
            dtype=source.dtype,
            shape=Shape((columns, rows)),
            cache=False,
            name=name,
        )

    def copy_to(self, target: BinaryIO) -> None:
        """Append the bytes to an unbuffered file."""
        array = self.source.numpy()
        write_panels(target, array[:, :, None], array.shape[0], WIDE_BLOCK_BYTES)
        self.source.release()


class ScaledTensor(StreamedTensor):
    """A tensor times a factor that broadcasts to it, computed in float64 and rounded once."""

    def __init__(self, source: MappedTensor | StreamedTensor, factor: np.ndarray, name: str) -> None:
        if isinstance(source, ScaledTensor):
            factor = source.factor * factor
            source = source.source
        self.source = source
        self.factor: np.ndarray = factor
        kind = source.dtype.numpy()
        super().__init__(
            lambda: _as_tensor((source.numpy() * factor).astype(kind), source),
            dtype=source.dtype,
            shape=source.shape,
            cache=False,
            name=name,
        )

    def copy_to(self, target: BinaryIO) -> None:
        """Append the bytes to an unbuffered file."""
        array = self.source.numpy()
        factor = np.broadcast_to(self.factor, array.shape)
        step = max(1, BLOCK_BYTES // max(array[:1].nbytes, 1))
        for start in range(0, array.shape[0], step):
            part = slice(start, start + step)
            _write(target, (array[part] * factor[part]).astype(array.dtype))
        self.mapped.release()


@functools.cache
def _native() -> ModuleType:
    from onnxopt.runtime.library import native

    return native()


def make_panels(array: np.ndarray, width: int) -> np.ndarray:
    """Constants [columns, rows, taps] as panels [ceil(columns / width), taps, rows, width], missing columns being zero."""
    made: np.ndarray = _native().make_panels(array, width)
    return made


def multiply_weights(weights: np.ndarray, factor: np.ndarray) -> np.ndarray | None:
    """float32 weights that lie in order times a factor that broadcasts to them, multiplied in float64 and rounded once: the products
    of all weights in float64 never lie in memory. None where one is not finite."""
    made: np.ndarray | None = _native().multiply_weights(weights, factor)
    return made


def write_panels(target: BinaryIO, array: np.ndarray, width: int, block_bytes: int | None = None) -> None:
    """Append what `make_panels` makes to an unbuffered file, a block of about `block_bytes` (`BLOCK_BYTES`) at a time.

    Raises:
        OSError: the file cannot be written.
    """
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    _native().write_panels(target.fileno(), array, width, block_bytes or BLOCK_BYTES, threads)


def _as_tensor(array: np.ndarray, like: MappedTensor | StreamedTensor) -> Any:
    from onnx_ir import Tensor

    return Tensor(array, dtype=like.dtype)


def _write(target: BinaryIO, array: np.ndarray) -> None:
    view = memoryview(array.reshape(-1).view(np.uint8).data)
    while view:
        view = view[target.write(view) :]


def can_stream_transpose(tensor: object) -> bool:
    """Whether a tensor is a mapped matrix of whole bytes."""
    return (
        isinstance(tensor, MappedTensor) and len(tensor.shape) == 2 and tensor.dtype.bitwidth >= 8 and tensor.size > 0
    )
