"""Filters of convolutions in the order in which kernels read them."""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np
from onnx_ir import Shape, Tensor, TensorProtocol

from onnxopt.ir.lazy import StreamedTensor, transpose_into
from onnxopt.ir.mapped import MappedTensor
from onnxopt.ir.packed import PANEL


def is_depthwise(shape: tuple[int, ...], groups: int) -> bool:
    """Whether every filter [M, C / groups, ...] reads one channel of its own."""
    return groups > 1 and shape[0] == groups and shape[1] == 1


def packed_shape(shape: tuple[int, ...], groups: int) -> tuple[int, ...]:
    """The shape of packed filters, see `pack_filters`."""
    taps = math.prod(shape[2:])
    if is_depthwise(shape, groups):
        return (taps, shape[0])
    return (groups, -(-(shape[0] // groups) // PANEL), taps * shape[1], PANEL)


def pack_filters(filters: np.ndarray, groups: int) -> np.ndarray:
    """Filters [M, C / groups, ...] as panels of 16: [groups, ceil(M / groups / 16), taps * C / groups, 16], missing ones being zero;
    depthwise ones as [taps, C]."""
    count, depth = filters.shape[:2]
    shape = packed_shape(filters.shape, groups)
    if is_depthwise(filters.shape, groups):
        return np.ascontiguousarray(filters.reshape(count, -1).T)
    taps = math.prod(filters.shape[2:])
    packed = np.empty(shape, filters.dtype).reshape(groups, shape[1], taps, depth, PANEL)
    per_group = count // groups
    for number, group in enumerate(filters.reshape(groups, per_group, depth, taps)):
        for panel, target in enumerate(packed[number]):
            part = group[panel * PANEL : (panel + 1) * PANEL]
            if len(part) < PANEL:
                target[..., len(part) :] = 0
            for tap in range(taps):
                transpose_into(part[:, :, tap], target[tap, :, : len(part)])
    return packed.reshape(shape)


class PackedFilters(StreamedTensor):
    """Mapped filters, packed while they are written."""

    def __init__(self, source: MappedTensor | StreamedTensor, name: str, groups: int) -> None:
        self.source = source
        self.groups = groups
        super().__init__(
            lambda: Tensor(self._pack(), dtype=source.dtype),
            dtype=source.dtype,
            shape=Shape(packed_shape(source.shape.numpy(), groups)),
            cache=False,
            name=name,
        )

    def _pack(self) -> np.ndarray:
        return pack_filters(self.source.numpy(), self.groups)

    def copy_to(self, target: BinaryIO) -> None:
        """Append the bytes to an unbuffered file."""
        view = memoryview(self._pack().reshape(-1).view(np.uint8).data)
        while view:
            view = view[target.write(view) :]
        self.mapped.release()


def packed_filters(tensor: TensorProtocol, name: str, groups: int) -> TensorProtocol:
    """Constant filters, packed: while they are written where they are mapped, else now."""
    if isinstance(tensor, (MappedTensor, StreamedTensor)):
        return PackedFilters(tensor, name, groups)
    return Tensor(pack_filters(tensor.numpy(), groups), dtype=tensor.dtype, name=name)
