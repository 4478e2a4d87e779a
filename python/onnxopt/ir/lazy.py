"""Tensors that are computed from mapped ones while they are written, block by block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
from onnx_ir import LazyTensor, Shape

from onnxopt.ir.mapped import MappedTensor

BLOCK_BYTES = 8 << 20
"""Bytes that are transposed at once: many times a cache, and small beside any model."""

_kept: list[np.ndarray] = []


def _blocks(size: int) -> list[np.ndarray]:
    """Two blocks of memory: one is filled while the other is written. They are kept, since fresh pages cost as much as the work."""
    if not _kept or _kept[0].nbytes < size:
        _kept[:] = [np.empty(size, np.uint8) for _ in range(2)]
    return list(_kept)


CACHE_LINE = 64
"""Bytes that are written at once to each row of a transposed matrix: whole lines are filled before they leave the cache."""


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


class TransposedTensor(StreamedTensor):
    """A mapped matrix, transposed. Writing it needs one block of memory, whatever its size."""

    def __init__(self, source: MappedTensor, name: str) -> None:
        rows, columns = source.shape.numpy()
        self.source: MappedTensor = source
        super().__init__(
            lambda: _as_tensor(np.ascontiguousarray(source.numpy().T), source),
            dtype=source.dtype,
            shape=Shape((columns, rows)),
            cache=False,
            name=name,
        )

    def copy_to(self, target: BinaryIO) -> None:
        """Append the bytes to an unbuffered file."""
        array = self.source.numpy()
        rows, columns = array.shape
        step = min(columns, max(1, BLOCK_BYTES // max(rows * array.itemsize, 1)))
        parts = [array[:, start : start + step] for start in range(0, columns, step)]
        write_blocks(target, step * rows * array.itemsize, [functools.partial(_transposed, part) for part in parts])
        self.source.release()


def _transposed(part: np.ndarray, memory: np.ndarray) -> np.ndarray:
    block = memory[: part.nbytes].view(part.dtype).reshape(part.shape[::-1])
    transpose_into(part, block)
    return block


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


def write_blocks(target: BinaryIO, size: int, fills: Sequence[Callable[[np.ndarray], np.ndarray]]) -> None:
    """Append blocks to an unbuffered file; while one is written, the next is filled.

    Args:
        target: the file.
        size: bytes of the largest block.
        fills: each gets `size` bytes of memory (uint8), and returns the array in it that is to be written.
    """
    blocks = _blocks(size)
    with ThreadPoolExecutor(1) as writer:
        written: list[Future[None]] = []
        for number, fill in enumerate(fills):
            if number >= len(blocks):
                written[number - len(blocks)].result()
            written.append(writer.submit(_write, target, fill(blocks[number % len(blocks)])))
        for done in written:
            done.result()


def transpose_into(source: np.ndarray, target: np.ndarray) -> None:
    """target[j, i] = source[i, j], in strips of as many rows as a cache line of the target holds."""
    step = max(1, CACHE_LINE // source.itemsize)
    for start in range(0, source.shape[0], step):
        target[:, start : start + step] = source[start : start + step].T


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
