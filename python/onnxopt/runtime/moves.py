"""Ops that only move elements, done by numpy: making a session of onnxruntime costs more than all of them together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from onnxopt import ir
from onnxopt.ir.shape_rules.layout import TO_THE_END
from onnxopt.rewrite.rules import attribute

Arrays = Sequence[np.ndarray | None]


def moved(nodes: Iterable[ir.Node]) -> dict[ir.Value, np.ndarray]:
    """What those of `nodes`, which are in topological order, make that move elements of constants and of each other's results.

    The arrays may be views of the constants. What does not fit is left out: onnxruntime refuses it.
    """
    known: dict[ir.Value, np.ndarray] = {}
    for node in nodes:
        move = MOVES.get(node.op_type)
        if move is None or node.domain or any(attr.is_ref() for attr in node.attributes.data.values()):
            continue
        try:
            known[node.outputs[0]] = np.asarray(move(node, [_array(value, known) for value in node.inputs]))
        except (ArithmeticError, LookupError, TypeError, ValueError):
            continue
    return known


def _array(value: ir.Value | None, known: Mapping[ir.Value, np.ndarray]) -> np.ndarray | None:
    if value is None or value in known:
        return None if value is None else known[value]
    tensor = ir.constant(value)
    if tensor is None or tensor.dtype not in _NUMPY:
        raise LookupError(value.name)
    return tensor.numpy()


_NUMPY = frozenset(
    {
        *(ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BOOL),
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
    }
)
"""Element types that numpy has too."""


def _data(arrays: Arrays) -> np.ndarray:
    if arrays[0] is None:
        raise ValueError("the data is left out")
    return arrays[0]


def _numbers(node: ir.Node, name: str, arrays: Arrays, index: int) -> list[int] | None:
    """Integers that are an attribute or, in later opsets, an input."""
    if index < len(arrays) and (array := arrays[index]) is not None:
        return [int(number) for number in array.reshape(-1)]
    found = attribute(node, name)
    return None if found is None else list(found)


def _reshape(node: ir.Node, arrays: Arrays) -> np.ndarray:
    data, shape = _data(arrays), _numbers(node, "shape", arrays, 1)
    if shape is None:
        raise ValueError("no shape")
    if not attribute(node, "allowzero", 0):
        shape = [data.shape[axis] if dim == 0 else dim for axis, dim in enumerate(shape)]
    return data.reshape(shape)


def _squeeze(node: ir.Node, arrays: Arrays) -> np.ndarray:
    axes = _numbers(node, "axes", arrays, 1)
    if axes == []:
        raise ValueError("runtimes disagree on what no axes are")
    return np.squeeze(_data(arrays), None if axes is None else tuple(axes))


def _unsqueeze(node: ir.Node, arrays: Arrays) -> np.ndarray:
    axes = _numbers(node, "axes", arrays, 1)
    if axes is None:
        raise ValueError("no axes")
    return np.expand_dims(_data(arrays), tuple(axes))


def _flatten(node: ir.Node, arrays: Arrays) -> np.ndarray:
    data, axis = _data(arrays), attribute(node, "axis", 1)
    if not -data.ndim <= axis <= data.ndim:
        raise ValueError("the axis is out of range")
    rows = math.prod(data.shape[: axis + data.ndim if axis < 0 else axis])
    return data.reshape(rows, data.size // rows)


def _transpose(node: ir.Node, arrays: Arrays) -> np.ndarray:
    return _data(arrays).transpose(attribute(node, "perm"))


def _concat(node: ir.Node, arrays: Arrays) -> np.ndarray:
    return np.concatenate([array for array in arrays if array is not None], attribute(node, "axis", 1), casting="no")


def _slice(node: ir.Node, arrays: Arrays) -> np.ndarray:
    data = _data(arrays)
    starts, ends = _numbers(node, "starts", arrays, 1), _numbers(node, "ends", arrays, 2)
    if starts is None or ends is None:
        raise ValueError("no bounds")
    axes = _numbers(node, "axes", arrays, 3) or list(range(len(starts)))
    steps = _numbers(node, "steps", arrays, 4) or [1] * len(starts)
    parts = [slice(None)] * data.ndim
    if len({axis % data.ndim for axis in axes}) < len(axes):
        raise ValueError("an axis is given twice")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            if end in TO_THE_END:
                raise ValueError("runtimes disagree on where it ends")
            start = max(start, -data.shape[axis])  # the beginning, other than in Python
        parts[axis] = slice(start, end, step)
    return data[tuple(parts)]


def _gather(node: ir.Node, arrays: Arrays) -> np.ndarray:
    indices = arrays[1]
    if indices is None:
        raise ValueError("no indices")
    return _data(arrays).take(indices, attribute(node, "axis", 0))


MOVES: Mapping[str, Callable[[ir.Node, Arrays], np.ndarray]] = {
    "Concat": _concat,
    "Flatten": _flatten,
    "Gather": _gather,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
