"""How ops run on a tensor before its Transpose: what becomes of their axes, and how their results are transposed then."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxopt import ir
from onnxopt.ir.elementwise import ELEMENTWISE
from onnxopt.rewrite.rules import attribute

if TYPE_CHECKING:
    from onnxopt.passes.base import Context

Permutation = tuple[int, ...]
"""As the attribute `perm` of Transpose: axis i of the result is axis perm[i] of the input."""

NUMPY_BROADCASTING_OPSET = 7
"""Older opsets broadcast along an attribute's axis."""


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """A node in another layout.

    Attributes:
        data: the inputs that it takes without their Transpose.
        outputs: the Transpose that each of its results needs then.
        attributes: attributes that change.
        constants: inputs that become other constants.
    """

    data: tuple[int, ...]
    outputs: tuple[Permutation, ...]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    constants: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)


def inverse(perm: Permutation) -> Permutation:
    """The permutation that undoes `perm`."""
    result = [0] * len(perm)
    for index, axis in enumerate(perm):
        result[axis] = index
    return tuple(result)


def compose(first: Permutation, second: Permutation) -> Permutation:
    """The permutation of one Transpose that does what two in a row do."""
    return tuple(first[axis] for axis in second)


def is_identity(perm: Permutation) -> bool:
    return perm == tuple(range(len(perm)))


def permutation(ctx: Context, node: ir.Node) -> Permutation | None:
    """The permutation of a Transpose; None for other nodes, and where neither attribute nor rank tells it."""
    if node.op_type != "Transpose" or node.domain:
        return None
    if "perm" in node.attributes:
        perm = attribute(node, "perm")
        return None if perm is None else tuple(perm)
    rank = None if node.inputs[0] is None else ctx.shapes.rank(node.inputs[0])
    return None if rank is None else tuple(reversed(range(rank)))


def move(ctx: Context, node: ir.Node, perm: Permutation) -> Move | None:
    """How `node` runs on data before their Transpose by `perm`, which then comes after it; None where it cannot."""
    if node.domain or ctx.opset < NUMPY_BROADCASTING_OPSET:
        return None
    if node.op_type in ELEMENTWISE:
        return _elementwise(ctx, node, perm)
    handler = _HANDLERS.get(node.op_type)
    return None if handler is None else handler(ctx, node, perm)


def _elementwise(ctx: Context, node: ir.Node, perm: Permutation) -> Move | None:
    if ctx.shapes.rank(node.outputs[0]) != len(perm):
        return None
    data = []
    for index, value in enumerate(node.inputs):
        if value is None or _is_single(ctx, value):
            continue
        rank = ctx.shapes.rank(value)
        if rank is None or (rank != len(perm) and ir.constant(value) is None):
            return None
        data.append(index)
    return Move(tuple(data), (perm,))


def _is_single(ctx: Context, value: ir.Value) -> bool:
    shape = ctx.shapes.static_shape(value)
    return shape is not None and all(dim == 1 for dim in shape)


def _axis(node: ir.Node, default: int, rank: int) -> int | None:
    axis = attribute(node, "axis", default)
    return axis % rank if isinstance(axis, int) and -rank <= axis < rank else None


def constant_axes(node: ir.Node, index: int, rank: int) -> tuple[int, ...] | None:
    """The axes of an attribute or of a constant input, counted from the front."""
    value = ir.input_at(node, index)
    axes = attribute(node, "axes") if value is None else ir.integers(value)
    if axes is None or any(not -rank <= axis < rank for axis in axes):
        return None
    return tuple(axis % rank for axis in axes)


def _with_axes(node: ir.Node, index: int, axes: Sequence[int]) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    """Changed axes in the form, attribute or input, in which the node has them."""
    if "axes" in node.attributes:
        return {"axes": list(axes)}, {}
    return {}, {index: np.array(axes, np.int64)}


def _without(perm: Permutation, axes: Sequence[int]) -> Permutation:
    """The permutation that is left when the result's `axes` go."""
    kept = [axis for index, axis in enumerate(perm) if index not in axes]
    order = sorted(kept)
    return tuple(order.index(axis) for axis in kept)


def _reduction(_: Context, node: ir.Node, perm: Permutation) -> Move | None:
    rank = len(perm)
    keeps = attribute(node, "keepdims", 1) != 0
    if "axes" not in node.attributes and (len(node.inputs) < 2 or node.inputs[1] is None):
        reduces_none = attribute(node, "noop_with_empty_axes", 0) != 0
        return Move((0,), (perm if keeps or reduces_none else (),))
    axes = constant_axes(node, 1, rank)
    if not axes:
        return None
    attributes, constants = _with_axes(node, 1, sorted(perm[axis] for axis in axes))
    return Move((0,), (perm if keeps else _without(perm, axes),), attributes, constants)


def _arg_reduction(_: Context, node: ir.Node, perm: Permutation) -> Move | None:
    axis = _axis(node, 0, len(perm))
    if axis is None:
        return None
    keeps = attribute(node, "keepdims", 1) != 0
    return Move((0,), (perm if keeps else _without(perm, [axis]),), {"axis": perm[axis]})


def _softmax(ctx: Context, node: ir.Node, perm: Permutation) -> Move | None:
    axis = _axis(node, -1, len(perm))
    return None if axis is None or ctx.opset < 13 else Move((0,), (perm,), {"axis": perm[axis]})


def _layer_norm(_: Context, node: ir.Node, perm: Permutation) -> Move | None:
    axis = _axis(node, -1, len(perm))
    if axis is None or len(node.outputs) > 1 or any(perm[index] != index for index in range(axis, len(perm))):
        return None
    return Move((0,), (perm,))


def _concat(ctx: Context, node: ir.Node, perm: Permutation) -> Move | None:
    axis = _axis(node, 0, len(perm))
    if axis is None or any(value is None or ctx.shapes.rank(value) != len(perm) for value in node.inputs):
        return None
    return Move(tuple(range(len(node.inputs))), (perm,), {"axis": perm[axis]})


def _split(_: Context, node: ir.Node, perm: Permutation) -> Move | None:
    axis = _axis(node, 0, len(perm))
    return None if axis is None else Move((0,), (perm,) * len(node.outputs), {"axis": perm[axis]})


def _slice(ctx: Context, node: ir.Node, perm: Permutation) -> Move | None:
    rank = len(perm)
    if "starts" in node.attributes:
        count, dtype = len(attribute(node, "starts", ())), np.dtype(np.int64)
    else:
        starts = node.inputs[1]
        shape, element = (None, None) if starts is None else (ctx.shapes.static_shape(starts), ctx.shapes.dtype(starts))
        if shape is None or element is None:
            return None
        count, dtype = shape[0], element.numpy()
    explicit = "axes" in node.attributes or ir.input_at(node, 3) is not None
    axes = constant_axes(node, 3, rank) if explicit else tuple(range(count))
    if axes is None:
        return None
    moved = [perm[axis] for axis in axes]
    if "starts" in node.attributes:
        return Move((0,), (perm,), {"axes": moved})
    return Move((0,), (perm,), {}, {3: np.array(moved, dtype)})


def _pad(_: Context, node: ir.Node, perm: Permutation) -> Move | None:
    rank = len(perm)
    if ir.input_at(node, 3) is not None:
        axes = constant_axes(node, 3, rank)
        return None if axes is None else Move((0,), (perm,), {}, {3: np.array([perm[axis] for axis in axes], np.int64)})
    listed = (
        attribute(node, "pads")
        if "pads" in node.attributes
        else ir.integers(node.inputs[1])
        if len(node.inputs) > 1
        else None
    )
    if listed is None or len(listed) != 2 * rank:
        return None
    back = inverse(perm)
    pads = [listed[axis] for axis in back] + [listed[rank + axis] for axis in back]
    if "pads" in node.attributes:
        return Move((0,), (perm,), {"pads": pads})
    return Move((0,), (perm,), {}, {1: np.array(pads, np.int64)})


def _squeeze(_: Context, node: ir.Node, perm: Permutation) -> Move | None:
    axes = constant_axes(node, 1, len(perm))
    if not axes:
        return None
    attributes, constants = _with_axes(node, 1, sorted(perm[axis] for axis in axes))
    return Move((0,), (_without(perm, axes),), attributes, constants)


def _unsqueeze(_: Context, node: ir.Node, perm: Permutation) -> Move | None:
    given = attribute(node, "axes") if "axes" in node.attributes else ir.integers(node.inputs[1])
    axes = None if given is None else constant_axes(node, 1, len(perm) + len(given))
    if not axes:
        return None
    rank = len(perm) + len(axes)
    others = [index for index in range(rank) if index not in axes]
    result = list(range(rank))
    for index, axis in zip(others, perm, strict=True):
        result[index] = others[axis]
    return Move((0,), (tuple(result),))


def _gather(ctx: Context, node: ir.Node, perm: Permutation) -> Move | None:
    axis = _axis(node, 0, len(perm))
    rank = None if node.inputs[1] is None else ctx.shapes.rank(node.inputs[1])
    if axis is None or rank not in (0, 1):
        return None
    return Move((0,), (perm if rank else _without(perm, [axis]),), {"axis": perm[axis]})


def _quantization(ctx: Context, node: ir.Node, perm: Permutation) -> Move | None:
    scale = node.inputs[1]
    if scale is None or attribute(node, "block_size", 0) != 0:
        return None
    if _is_single(ctx, scale):
        return Move((0,), (perm,))
    axis = _axis(node, 1, len(perm))
    return None if axis is None or ctx.shapes.rank(scale) != 1 else Move((0,), (perm,), {"axis": perm[axis]})


REDUCTIONS = tuple(
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
)

_HANDLERS: Mapping[str, Callable[[Context, ir.Node, Permutation], Move | None]] = {
    **dict.fromkeys(REDUCTIONS, _reduction),
    "ArgMax": _arg_reduction,
    "ArgMin": _arg_reduction,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "LayerNormalization": _layer_norm,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Gather": _gather,
    "QuantizeLinear": _quantization,
    "DequantizeLinear": _quantization,
}
