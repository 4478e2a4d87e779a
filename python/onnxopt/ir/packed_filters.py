"""Filters of convolutions in the order in which kernels read them."""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np
from onnx_ir import Shape, Tensor, TensorProtocol

from onnxopt.ir.lazy import StreamedTensor, make_panels, write_panels
from onnxopt.ir.mapped import MappedTensor
from onnxopt.ir.packed import PANEL
from onnxopt.ir.protos import array_tensor

LANES = (1, 2, 4, 8)
"""Channels of groups that share a panel of 16."""


def is_depthwise(shape: tuple[int, ...], groups: int) -> bool:
    """Whether every filter [M, C / groups, ...] reads one channel of its own."""
    return groups > 1 and shape[0] == groups and shape[1] == 1


def is_lanewise(shape: tuple[int, ...], groups: int) -> bool:
    """Whether groups of filters [M, C / groups, ...] have as many filters as channels, and several whole ones fill a panel: they are
    depthwise, or nearly so."""
    return groups > 1 and shape[0] == groups * shape[1] and shape[1] in LANES


def packed_shape(shape: tuple[int, ...], groups: int) -> tuple[int, ...]:
    """The shape of packed filters, see `pack_filters`."""
    taps = math.prod(shape[2:])
    if is_lanewise(shape, groups):
        return (taps * shape[1], shape[0])
    return (groups, -(-(shape[0] // groups) // PANEL), taps * shape[1], PANEL)


def pack_filters(filters: np.ndarray, groups: int) -> np.ndarray:
    """Filters [M, C / groups, ...] as panels of 16: [groups, ceil(M / groups / 16), taps * C / groups, 16], missing ones being zero;
    where groups are lanes of a panel [taps * C / groups, M]."""
    shape = packed_shape(filters.shape, groups)
    if filters.size == 0:
        return np.zeros(shape, filters.dtype)
    parts = [make_panels(*one) for one in _by_column(filters, groups)]
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(shape)


def _by_column(filters: np.ndarray, groups: int) -> list[tuple[np.ndarray, int]]:
    """What is made into panels, part by part, and how wide they are."""
    count, depth = filters.shape[:2]
    if is_lanewise(filters.shape, groups):
        return [(filters.reshape(count, depth, -1), count)]
    return [(group, PANEL) for group in filters.reshape(groups, count // groups, depth, -1)]


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
        for array, width in _by_column(self.source.numpy(), self.groups):
            write_panels(target, array, width)
        self.mapped.release()


def packed_filters(tensor: TensorProtocol, name: str, groups: int) -> TensorProtocol:
    """Constant filters, packed: while they are written where they are mapped, else now."""
    if isinstance(tensor, (MappedTensor, StreamedTensor)):
        return PackedFilters(tensor, name, groups)
    return array_tensor(pack_filters(tensor.numpy(), groups), name)
