"""What in a loop's body depends on what, and what may be computed elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from onnxopt import ir
from onnxopt.ir.elementwise import ELEMENTWISE
from onnxopt.passes.fold_constants import RANDOM
from onnxopt.rewrite.driver import walk
from onnxopt.rewrite.editor import SIDE_EFFECT_FREE_DOMAINS
from onnxopt.rewrite.rules import attribute

if TYPE_CHECKING:
    from onnxopt.passes.base import Context

SAFE_OPS = ELEMENTWISE - {"BitShift", "Div", "Mod", "Pow"} | {
    "CastLike",
    "Concat",
    "Constant",
    "Flatten",
    "Gemm",
    "LayerNormalization",
    "LogSoftmax",
    "MatMul",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Shape",
    "Size",
    "Softmax",
    "Transpose",
    "Unsqueeze",
}
"""Ops that do not fail on values, whatever they are: they may be computed where the original would not have come to them. Shapes that do not
fit fail in every iteration alike."""


RECURRENT_OPS = SAFE_OPS | frozenset(
    [
        "MatMul",
        "Gemm",
        "Concat",
        "Split",
        "Slice",
        "Squeeze",
        "Unsqueeze",
        "Reshape",
        "Gather",
        "Identity",
        "LSTM",
        "GRU",
        "RNN",
        "Div",
        "Pow",
    ]
)
"""Element-wise ops and the ops of cells: loops of these alone over carried tensors are left to the passes that make one kernel of them."""


def is_recurrent(node: ir.Node) -> bool:
    """Whether a node may be part of the step of a recurrence."""
    return not node.domain and node.op_type in RECURRENT_OPS


def varying_values(body: ir.Graph, sources: Iterable[ir.Value]) -> set[ir.Value]:
    """The values of the body that depend on any of `sources`, themselves included."""
    varying = set(sources)
    for node in body:
        if any(value in varying for value in ir.inputs_with_captures(node)):
            varying.update(node.outputs)
    return varying


def is_movable(node: ir.Node) -> bool:
    """Whether a node gives the same results wherever it is computed from the same inputs."""
    if node.domain not in SIDE_EFFECT_FREE_DOMAINS or node.op_type in RANDOM:
        return False
    return all(
        one.domain in SIDE_EFFECT_FREE_DOMAINS and one.op_type not in RANDOM
        for graph in ir.inner_graphs(node)
        for one in walk(graph)
    )


def can_fail(node: ir.Node, ctx: Context) -> bool:
    """Whether a node might stop a run for what its inputs hold, so that it must not be computed unless the original computes it."""
    if node.domain:
        return True
    check = CHECKED_OPS.get(node.op_type)
    return node.op_type not in SAFE_OPS if check is None else check(node, ctx)


def _is_integer(node: ir.Node, ctx: Context) -> bool:
    """Whether a division may be one of integers, which stops at zero."""
    dtype = ctx.shapes.dtype(node.outputs[0])
    return dtype is None or not dtype.is_floating_point()


def _may_miss(node: ir.Node, ctx: Context) -> bool:
    """Whether an index may lie outside."""
    data, indices = node.inputs[0], ir.integers(node.inputs[1])
    shape = None if data is None else ctx.shapes.shape(data)
    axis = attribute(node, "axis", 0)
    if shape is None or indices is None or not -len(shape) <= axis < len(shape):
        return True
    size = shape[axis]
    return not isinstance(size, int) or not all(-size <= index < size for index in indices)


def _may_not_fit(node: ir.Node, ctx: Context) -> bool:
    """Whether anything but the data is computed, or a shape is not known."""
    computed = any(value is not None and ir.constant(value) is None for value in node.inputs[1:])
    values = [value for value in (node.inputs[0], *node.outputs) if value is not None]
    return computed or any(ctx.shapes.static_shape(value) is None for value in values)


CHECKED_OPS: dict[str, Callable[[ir.Node, Context], bool]] = {
    "Div": _is_integer,
    "Gather": _may_miss,
    "Reshape": _may_not_fit,
    "Slice": _may_not_fit,
    "Split": _may_not_fit,
    "Squeeze": _may_not_fit,
}
"""Ops that may fail for some inputs: whether a node may."""
