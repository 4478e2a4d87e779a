"""Tensors whose bytes stay in a file: mapped when read, streamed when written."""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir
from onnx_ir import DataType, ExternalTensor, Shape

from onnxopt.errors import ModelError

CHUNK_BYTES = 8 << 20
"""Bytes moved at once where the kernel cannot copy between files by itself."""


SMALL_FILE_BYTES = 16 << 20
"""Pages of files up to this size stay mapped: mapping them anew for every reader costs more time than their memory is worth."""


class DataFile:
    """An open file whose ranges tensors refer to. It is mapped once; the file may be renamed or replaced meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file: BinaryIO = path.open("rb")
        except OSError as error:
            raise ModelError(f"The data file '{path}' cannot be read: {error.strerror}.") from error
        self.size = os.fstat(self.file.fileno()).st_size
        self._map: mmap.mmap | None = None

    def map(self) -> mmap.mmap:
        if self._map is None:
            self._map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def release(self, offset: int, length: int) -> None:
        """Let the kernel drop the pages of a range that was read: what passes look at must not stay resident."""
        if self._map is not None and self.size > SMALL_FILE_BYTES:
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, min(offset + length, self.size) - start)

    def copy_to(self, target: BinaryIO, offset: int, length: int) -> None:
        """Append a range to an unbuffered file, inside the kernel where that is possible."""
        while length > 0:
            copied = _kernel_copy(self.file.fileno(), target.fileno(), offset, length)
            if copied == 0:
                copied = target.write(os.pread(self.file.fileno(), min(length, CHUNK_BYTES), offset))
                if copied == 0:
                    raise ModelError(f"'{self.path}' became shorter while it was being read.")
            offset += copied
            length -= copied


def _kernel_copy(source: int, target: int, offset: int, length: int) -> int:
    try:
        return os.copy_file_range(source, target, length, offset)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _OUT_OF_SPACE:
            raise
        return 0


_OUT_OF_SPACE = frozenset({28, 27, 122})  # ENOSPC, EFBIG, EDQUOT
_PACKED_BITS = 8


def is_external(tensor: object) -> bool:
    """Whether a tensor is an `ExternalTensor`. onnx-ir's protocols make isinstance look at every member of what is none."""
    return ExternalTensor in type(tensor).__mro__


class MappedTensor(ExternalTensor):
    """A tensor that is a range of a `DataFile`: the .onnx file itself or its external data."""

    __slots__ = ("nbytes", "size", "source")
    dtype = ExternalTensor._dtype  # type: ignore[assignment, misc]  # read where they lie, as sizes are
    shape = ExternalTensor._shape  # type: ignore[assignment, misc]
    nbytes: int  # type: ignore[assignment]
    size: int  # type: ignore[assignment]

    def __init__(
        self, source: DataFile, location: str, offset: int, length: int, dtype: DataType, shape: Shape, name: str
    ) -> None:
        super().__init__(location, offset, length, dtype, shape=shape, name=name, base_dir=str(source.path.parent))
        self.source = source
        self.size, self.nbytes = math.prod(shape), length  # type: ignore[arg-type]

    def _load(self) -> None:
        if self.size == 0:
            self._array = np.empty(self.shape.numpy(), dtype=self.dtype.numpy())
            return
        raw = self.source.map()
        self.raw = raw
        if self.dtype.bitwidth < _PACKED_BITS:
            packed = onnx_ir.PackedTensor(
                np.frombuffer(raw, np.uint8, self.nbytes, self.offset or 0), self.dtype, shape=self.shape
            )
            self._array = packed.numpy()
        else:
            kind = np.dtype(self.dtype.numpy()).newbyteorder("<")
            self._array = np.frombuffer(raw, kind, self.size, self.offset or 0).reshape(self.shape.numpy())

    def tobytes(self) -> bytes:
        start = self.offset or 0
        return self.source.map()[start : start + self.nbytes] if self.size else b""

    def view(self) -> memoryview:
        """The bytes, without a copy."""
        start = self.offset or 0
        return memoryview(self.source.map())[start : start + self.nbytes] if self.size else memoryview(b"")

    def copy_to(self, target: BinaryIO) -> None:
        """Append the bytes to an unbuffered file without passing them through this process where that is possible."""
        self.source.copy_to(target, self.offset or 0, self.nbytes)

    def release(self) -> None:
        """Let go of the pages that reading the tensor made resident."""
        self.source.release(self.offset or 0, self.nbytes)

    def reshaped(self, shape: tuple[int, ...], name: str) -> MappedTensor:
        """The same bytes under another shape of equal size."""
        return MappedTensor(
            self.source, str(self.location), self.offset or 0, self.nbytes, self.dtype, Shape(shape), name
        )
