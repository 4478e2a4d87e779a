"""Shape rules of shape arithmetic and of ops that move elements: Reshape, Concat, Slice, Pad and their kin."""

from __future__ import annotations

import math

import numpy as np
from onnx_ir import AttributeType, DataType, Node

from onnxopt.ir import dims
from onnxopt.ir.dims import Dim
from onnxopt.ir.shape_rules.base import (
    attribute,
    broadcast,
    dtype_at,
    input_at,
    integer,
    integers,
    is_given,
    known_integers,
    on,
    shape_at,
    unknown,
)
from onnxopt.ir.shapes import MAX_ELEMENTS, Shape, ShapeEnv

OPEN_END = 10**9
"""No dim is as large: exporters write the end of the tensor as this number, or as the largest int32 or int64."""


@on("Constant")
def _constant(env: ShapeEnv, node: Node) -> None:
    env.set_constant(node.outputs[0])


@on("Shape")
def _shape_op(env: ShapeEnv, node: Node) -> None:
    shape = shape_at(env, node, 0)
    if shape is None:
        return env.set(node.outputs[0], DataType.INT64, unknown(1))
    end = attribute(node, "end")
    part = shape[integer(node, "start", 0) : end if isinstance(end, int) else None]
    return env.set(node.outputs[0], DataType.INT64, (len(part),), part)


@on("Size")
def _size(env: ShapeEnv, node: Node) -> None:
    shape = shape_at(env, node, 0)
    env.set(node.outputs[0], DataType.INT64, (), None if shape is None else (dims.product(shape),))


@on("Gather")
def _gather(env: ShapeEnv, node: Node) -> None:
    data, indices = shape_at(env, node, 0), shape_at(env, node, 1)
    if data is None or indices is None or not data:
        return env.set(node.outputs[0], dtype_at(env, node), None)
    axis = integer(node, "axis", 0) % len(data)
    elements, wanted = env.elements(node.inputs[0]), env.integers(node.inputs[1])
    found = None
    if (
        elements is not None
        and wanted is not None
        and len(data) == 1
        and all(-len(elements) <= index < len(elements) for index in wanted)
    ):
        found = tuple(elements[index] for index in wanted)
    return env.set(node.outputs[0], dtype_at(env, node), (*data[:axis], *indices, *data[axis + 1 :]), found)


@on("Concat")
def _concat(env: ShapeEnv, node: Node) -> None:
    shapes = [None if value is None else env.shape(value) for value in node.inputs]
    known = next((shape for shape in shapes if shape is not None), None)
    if known is None or not known:
        return env.set(node.outputs[0], dtype_at(env, node), None)
    axis = integer(node, "axis", 1) % len(known)
    result = list(known)
    total: Dim = 0
    for shape in shapes:
        if shape is None or len(shape) != len(known):
            result[axis] = dims.fresh()
            break
        total = total + shape[axis]
    else:
        result[axis] = total
        for position in range(len(known)):
            if position != axis:
                sizes = [shape[position] for shape in shapes if shape is not None]
                result[position] = next((size for size in sizes if isinstance(size, int)), sizes[0])
    elements = None
    if len(known) == 1:
        parts = [env.elements(value) for value in node.inputs]
        if all(part is not None for part in parts):
            elements = tuple(one for part in parts if part is not None for one in part)
    return env.set(node.outputs[0], dtype_at(env, node), result, elements)


@on("Unsqueeze")
def _unsqueeze(env: ShapeEnv, node: Node) -> None:
    shape, axes = shape_at(env, node, 0), known_integers(env, node, "axes", 1)
    elements = env.elements(node.inputs[0])
    if shape is None or axes is None:
        return env.set(node.outputs[0], dtype_at(env, node), None, elements)
    rank = len(shape) + len(axes)
    new = {axis % rank for axis in axes}
    rest = iter(shape)
    result = [1 if axis in new else next(rest, 1) for axis in range(rank)]
    return env.set(node.outputs[0], dtype_at(env, node), result, elements)


@on("Squeeze")
def _squeeze(env: ShapeEnv, node: Node) -> None:
    shape, axes = shape_at(env, node, 0), known_integers(env, node, "axes", 1)
    elements = env.elements(node.inputs[0])
    if shape is None or (not axes and is_given(node, "axes", 1)):  # no axes at all are read as none, and as all
        return env.set(node.outputs[0], dtype_at(env, node), None, elements)
    if axes is None:
        if not all(isinstance(dim, int) or env.bounds.prove_at_least(dim, 2) for dim in shape):
            return env.set(node.outputs[0], dtype_at(env, node), None, elements)
        return env.set(node.outputs[0], dtype_at(env, node), [dim for dim in shape if dim != 1], elements)
    gone = {axis % len(shape) for axis in axes} if shape else set()
    return env.set(
        node.outputs[0], dtype_at(env, node), [dim for axis, dim in enumerate(shape) if axis not in gone], elements
    )


def _unknown_but_rank(env: ShapeEnv, node: Node, index: int) -> Shape | None:
    """The shape of a result of which an input of the node has the dims: as many as that input has elements, if there may be so many."""
    count = shape_at(env, node, index)
    rank = count[0] if count else None
    return unknown(rank) if isinstance(rank, int) and rank <= MAX_ELEMENTS else None  # type: ignore[arg-type]


@on("Reshape")
def _reshape(env: ShapeEnv, node: Node) -> None:
    shape = shape_at(env, node, 0)
    target = integers(node, "shape") or env.elements(input_at(node, 1))
    dtype = dtype_at(env, node)
    if target is None:
        return env.set(node.outputs[0], dtype, _unknown_but_rank(env, node, 1), env.elements(node.inputs[0]))
    return env.set(
        node.outputs[0],
        dtype,
        reshaped(env, shape, target, bool(integer(node, "allowzero", 0))),
        env.elements(node.inputs[0]),
    )


def reshaped(env: ShapeEnv, shape: Shape | None, target: Shape, allowzero: bool) -> Shape:
    """The shape that Reshape makes of `shape` for a target with 0 (copy) and -1 (the rest)."""
    result: list[Dim] = []
    rest: int | None = None
    for index, size in enumerate(target):
        if size == 0 and not allowzero:
            result.append(shape[index] if shape is not None and index < len(shape) else dims.fresh())
        elif size == -1:
            rest = index
            result.append(1)
        elif isinstance(size, int) or env.bounds.prove_at_least(size, 1) or _is_0_where_0(env, shape, target, index):
            result.append(size)
        else:
            result.append(dims.fresh())
    if rest is not None:
        result[rest] = _remaining(shape, result)
    return tuple(result)


def _is_0_where_0(env: ShapeEnv, shape: Shape | None, target: Shape, index: int) -> bool:
    """Whether a dim of a target that is 0, which copies the input's, means 0: the input's is a multiple of it, or elements would be made of none."""
    if shape is None:
        return False
    size, copied = target[index], shape[index : index + 1]
    if any(dims.exact_quotient(one, size) is not None for one in copied):
        return True
    others = [*target[:index], *target[index + 1 :], *copied]
    return dims.exact_quotient(dims.product(shape), size) is not None and all(
        env.bounds.prove_at_least(one, 1) for one in others
    )


def _remaining(shape: Shape | None, others: list[Dim]) -> Dim:
    if shape is None:
        return dims.fresh()
    total, taken = dims.product(shape), dims.product(tuple(others))
    if isinstance(total, int) and isinstance(taken, int):
        return total // taken if taken else dims.fresh()
    # Dims that stand on both sides cancel, so that N*S*768 over N*768 is S.
    quotient = dims.exact_quotient(total, taken)
    return dims.fresh() if quotient is None else quotient


@on("Flatten")
def _flatten(env: ShapeEnv, node: Node) -> None:
    shape = shape_at(env, node, 0)
    if shape is None:
        return env.set(node.outputs[0], dtype_at(env, node), unknown(2))
    axis = integer(node, "axis", 1)
    axis += len(shape) if axis < 0 else 0
    return env.set(node.outputs[0], dtype_at(env, node), (dims.product(shape[:axis]), dims.product(shape[axis:])))


@on("Transpose")
def _transpose(env: ShapeEnv, node: Node) -> None:
    shape = shape_at(env, node, 0)
    if shape is None:
        return env.set(node.outputs[0], dtype_at(env, node), None)
    perm = integers(node, "perm") or tuple(reversed(range(len(shape))))
    if sorted(perm) != list(range(len(shape))):
        return env.set(node.outputs[0], dtype_at(env, node), None)
    grid = _grid(env.elements(node.inputs[0]), shape)
    elements = None if grid is None else tuple(grid.transpose(perm).reshape(-1))
    return env.set(node.outputs[0], dtype_at(env, node), [shape[axis] for axis in perm], elements)


def _grid(elements: Shape | None, shape: Shape) -> np.ndarray | None:
    """Elements in the places that they have in the tensor, None where they or its shape are not known."""
    sizes = [dim for dim in shape if isinstance(dim, int)]
    if elements is None or len(sizes) != len(shape) or math.prod(sizes) != len(elements):
        return None
    grid = np.empty(len(elements), object)
    grid[:] = elements
    return grid.reshape(sizes)


@on("Expand")
def _expand(env: ShapeEnv, node: Node) -> None:
    shape, target = shape_at(env, node, 0), env.elements(input_at(node, 1))
    if shape is None or target is None:
        known = _unknown_but_rank(env, node, 1)
        if known is not None:
            known = None if shape is None else unknown(max(len(known), len(shape)))
        return env.set(node.outputs[0], dtype_at(env, node), known)
    result = broadcast(env, [shape, target])
    elements = env.elements(node.inputs[0])
    spread = (
        elements * result[0]  # type: ignore[operator]
        if elements and len(elements) == 1 and len(result) == 1 and _small(result[0])
        else None
    )
    return env.set(node.outputs[0], dtype_at(env, node), result, spread)


def _small(dim: Dim) -> bool:
    return isinstance(dim, int) and dim <= MAX_ELEMENTS


@on("Tile")
def _tile(env: ShapeEnv, node: Node) -> None:
    shape, repeats = shape_at(env, node, 0), env.elements(input_at(node, 1))
    if shape is None:
        return env.set(node.outputs[0], dtype_at(env, node), None)
    if repeats is None or len(repeats) != len(shape):
        return env.set(node.outputs[0], dtype_at(env, node), unknown(len(shape)))
    return env.set(node.outputs[0], dtype_at(env, node), [a * b for a, b in zip(shape, repeats, strict=True)])


@on("ConstantOfShape")
def _constant_of_shape(env: ShapeEnv, node: Node) -> None:
    attr = node.attributes.get("value")
    dtype, fill = DataType.FLOAT, None
    if attr is not None and not attr.is_ref() and attr.type == AttributeType.TENSOR:
        tensor = attr.value  # `as_tensor` would check a protocol's every member
        dtype = tensor.dtype
        if dtype in (DataType.INT64, DataType.INT32, DataType.BOOL) and tensor.size == 1:
            fill = int(tensor.numpy().reshape(-1)[0])
    shape = env.elements(node.inputs[0])
    if shape is None:
        return env.set(node.outputs[0], dtype, _unknown_but_rank(env, node, 0))
    elements = None
    if fill is not None and len(shape) <= 1 and all(map(_small, shape)):
        elements = (fill,) * (shape[0] if shape else 1)  # type: ignore[operator]
    return env.set(node.outputs[0], dtype, shape, elements)


@on("Range")
def _range(env: ShapeEnv, node: Node) -> None:
    parts = [env.elements(value) for value in node.inputs]
    dtype = dtype_at(env, node)
    if not all(part is not None and len(part) == 1 for part in parts):
        return env.set(node.outputs[0], dtype, unknown(1))
    start, limit, step = (part[0] for part in parts if part is not None)
    if isinstance(start, int) and isinstance(limit, int) and isinstance(step, int) and step:
        count = len(range(start, limit, step))
        numbers = tuple(range(start, limit, step)) if count <= MAX_ELEMENTS else None
        return env.set(node.outputs[0], dtype, (count,), numbers)
    length = limit - start if step == 1 else start - limit
    if step in (1, -1) and env.bounds.prove_at_least(length, 0):
        return env.set(node.outputs[0], dtype, (length,))
    return env.set(node.outputs[0], dtype, unknown(1))


@on("EyeLike", "RandomNormalLike", "RandomUniformLike", "Bernoulli")
def _like(env: ShapeEnv, node: Node) -> None:
    asked = integer(node, "dtype", 0)
    return env.set(node.outputs[0], DataType(asked) if asked else dtype_at(env, node), shape_at(env, node, 0))


@on("Slice")
def _slice(env: ShapeEnv, node: Node) -> None:
    shape = shape_at(env, node, 0)
    if shape is None:
        return env.set(node.outputs[0], dtype_at(env, node), None)
    bounds = slice_bounds(env, node, len(shape))
    if bounds is None:
        axes = known_integers(env, node, "axes", 3)
        cut = {axis % len(shape) for axis in axes} if axes is not None and shape else set(range(len(shape)))
        return env.set(
            node.outputs[0],
            dtype_at(env, node),
            [dims.fresh() if axis in cut else dim for axis, dim in enumerate(shape)],
        )
    result = list(shape)
    for axis, start, end, step in bounds:
        result[axis] = slice_length(env, shape[axis], start, end, step)
    return env.set(
        node.outputs[0], dtype_at(env, node), result, _sliced(_grid(env.elements(node.inputs[0]), shape), bounds)
    )


def _sliced(grid: np.ndarray | None, bounds: list[tuple[int, Dim, Dim, int]]) -> Shape | None:
    if grid is None:
        return None
    for axis, start, end, step in bounds:
        if not isinstance(start, int) or not isinstance(end, int):
            return None
        indices = taken(grid.shape[axis], start, end, step)
        if indices is None:
            return None
        grid = grid.take(indices, axis)
    return tuple(grid.reshape(-1))


TO_THE_END = frozenset({2**31 - 1, 2**63 - 1})
"""Ends of slices that exporters write for the end of a tensor, whatever its size."""


def taken(size: int, start: int, end: int, step: int) -> range | None:
    """The indices that a slice of an axis keeps. Unlike in Python, a start before the beginning is the beginning for steps backwards too.

    None for a slice backwards to the largest integer, which runtimes understand differently.
    """
    if step < 0 and end in TO_THE_END:
        return None
    if size == 0:
        return range(0)
    first = min(max(start + size if start < 0 else start, 0), size if step > 0 else size - 1)
    stop = min(max(end + size if end < 0 else end, 0 if step > 0 else -1), size)
    return range(first, stop, step)


def slice_bounds(env: ShapeEnv, node: Node, rank: int) -> list[tuple[int, Dim, Dim, int]] | None:
    """(axis, start, end, step) of each sliced axis; None where axes or steps are unknown."""
    if "starts" in node.attributes:
        starts: Shape | None = integers(node, "starts")
        ends: Shape | None = integers(node, "ends")
        axes, steps = integers(node, "axes"), None
        has_axes, has_steps = axes is not None, False
    else:
        starts, ends = env.elements(input_at(node, 1)), env.elements(input_at(node, 2))
        axes, steps = env.integers(input_at(node, 3)), env.integers(input_at(node, 4))
        has_axes, has_steps = input_at(node, 3) is not None, input_at(node, 4) is not None
    if starts is None or ends is None or (has_axes and axes is None) or (has_steps and steps is None):
        return None
    axes = axes if axes is not None else tuple(range(len(starts)))
    steps = steps if steps is not None else (1,) * len(starts)
    if (
        not len(starts) == len(ends) == len(axes) == len(steps)
        or any(not -rank <= axis < rank for axis in axes)
        or 0 in steps
    ):
        return None
    return [(axis % rank, start, end, step) for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)]


def slice_length(env: ShapeEnv, size: Dim, start: Dim, end: Dim, step: int) -> Dim:
    """How many elements a slice keeps."""
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        indices = taken(size, start, end, step)
        return dims.fresh() if indices is None else len(indices)
    if step != 1:
        return dims.fresh()
    low_end = _clamped(env, start, size)
    high_end = _clamped(env, end, size)
    if low_end is None or high_end is None:
        return dims.fresh()
    length = high_end - low_end
    return length if env.bounds.prove_at_least(length, 0) else dims.fresh()


def _clamped(env: ShapeEnv, index: Dim, size: Dim) -> Dim | None:
    """The position that a start or end index means, between 0 and `size`; None where that cannot be told."""
    if isinstance(index, int) and index < 0:
        position = size + index
        return position if env.bounds.prove_at_least(position, 0) else None
    if env.bounds.prove_at_least(index, 0) is not True:
        return None
    if env.bounds.prove_le(index, size):
        return index
    if env.bounds.prove_le(size, index) or (isinstance(index, int) and index >= OPEN_END):
        return size
    return dims.minimum(index, size)


@on("Split")
def _split(env: ShapeEnv, node: Node) -> None:
    shape, dtype = shape_at(env, node, 0), dtype_at(env, node)
    if not shape:
        for value in node.outputs:
            env.set(value, dtype, None)
        return
    axis, count = integer(node, "axis", 0) % len(shape), len(node.outputs)
    sizes: Shape | None = integers(node, "split") or env.elements(input_at(node, 1))
    if sizes is None and not is_given(node, "split", 1):
        whole = shape[axis]
        if isinstance(whole, int):
            chunk = -(-whole // count)
            sizes = tuple(min(chunk, max(whole - chunk * index, 0)) for index in range(count))
        else:
            sizes = (dims.floordiv(whole, count),) * count if dims.mod(whole, count) == 0 else None
    elements, position = env.elements(node.inputs[0]), 0
    for index, value in enumerate(node.outputs):
        size = sizes[index] if sizes is not None and index < len(sizes) else dims.fresh()
        part = None
        if elements is not None and len(shape) == 1 and isinstance(size, int):
            part, position = elements[position : position + size], position + size
        else:
            elements = None
        env.set(value, dtype, (*shape[:axis], size, *shape[axis + 1 :]), part)


@on("Pad")
def _pad(env: ShapeEnv, node: Node) -> None:
    shape = shape_at(env, node, 0)
    pads: Shape | None = integers(node, "pads") or env.elements(input_at(node, 1))
    axes = env.integers(input_at(node, 3))
    if shape is None:
        return env.set(node.outputs[0], dtype_at(env, node), None)
    if pads is None or (input_at(node, 3) is not None and axes is None):
        return env.set(node.outputs[0], dtype_at(env, node), unknown(len(shape)))
    chosen = [axis % len(shape) for axis in axes] if axes is not None else list(range(len(shape)))
    if len(pads) != 2 * len(chosen):
        return env.set(node.outputs[0], dtype_at(env, node), unknown(len(shape)))
    result = list(shape)
    for index, axis in enumerate(chosen):
        result[axis] = result[axis] + pads[index] + pads[index + len(chosen)]
    return env.set(node.outputs[0], dtype_at(env, node), result)
