"""Tensors that are filled part by part are joined from the parts."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.rules import Refusal, attribute

SCATTERS = ("ScatterND", "ScatterElements")


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """What a ScatterND or ScatterElements writes: the indices from `start` to `end` along `axis`, all of the other dims."""

    updates: ir.Value
    axis: int
    start: int
    end: int


@register_pass
class ConcatInsteadOfScatters(Pass):
    """Put a Concat in the place of ScatterNDs or ScatterElements that fill a tensor, one part along an axis after the other.

    Exporters write `out[:, i] = y` this way, and each of these nodes copies all of the tensor. Refused: indices that are not constant, parts that do not
    have all of the other dims, parts that overlap or leave something of the tensor as it was, sums and other reductions, and tensors
    that others read before they are full.
    """

    name = "concat_instead_of_scatters"
    phase = "unroll"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for node in reversed(ctx.nodes_of([("", op_type) for op_type in SCATTERS])):
            if node.graph is None or _next_of(node) is not None:
                continue
            built = _joined(node, ctx)
            if isinstance(built, Refusal):
                ctx.log.refused(self.name, node, built, 1)
            elif built is not None:
                builder, whole = built
                patches += ctx.editor.apply(builder.patch(self.name, {node.outputs[0]: whole}), unused=[node])
        return PassResult(patches > 0, patches)


def _next_of(node: ir.Node) -> ir.Node | None:
    """The node of these that alone reads the result of one, as what it writes to."""
    result = node.outputs[0]
    if result.is_graph_output() or ir.use_count(result) != 1:
        return None
    ((user, index),) = result.uses()
    same = user.op_type in SCATTERS and not user.domain and index == 0 and user.graph is node.graph
    return user if same else None


def _joined(last: ir.Node, ctx: Context) -> tuple[Builder, ir.Value] | Refusal | None:
    """The Concat of what the nodes up to the last one write; None where there is only one."""
    shape = ctx.shapes.static_shape(last.outputs[0])
    if shape is None or not math.prod(shape):
        return Refusal("the shape of the tensor is not known")
    parts: list[_Part] = []
    written = 0
    node: ir.Node | None = last
    while node is not None:
        part = _part(node, shape)
        if isinstance(part, Refusal):
            return part if len(parts) > 1 or node is last else Refusal("what is written before stays in part")
        if parts and part.axis != parts[0].axis:
            return Refusal("what is written before stays in part")
        parts.append(part)
        written += part.end - part.start
        if written >= shape[part.axis]:
            break
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        node = before if before is not None and before.op_type in SCATTERS and _next_of(before) is node else None
    if len(parts) < 2:
        return None
    if not _is_full(parts, shape):
        return Refusal("the parts leave something of the tensor as it was")
    builder = Builder(ctx, last)
    ordered = sorted(parts, key=lambda part: part.start)
    return builder, builder.Concat(*(_shaped(part, shape, builder) for part in ordered), axis=parts[0].axis)


def _is_full(parts: list[_Part], shape: tuple[int, ...]) -> bool:
    """Whether parts along one axis are all of a tensor and overlap nowhere."""
    spans = sorted((part.start, part.end) for part in parts)
    joined = all(end == start for (_, end), (start, _) in itertools.pairwise(spans))
    return joined and (spans[0][0], spans[-1][1]) == (0, shape[parts[0].axis])


def _part(node: ir.Node, shape: tuple[int, ...]) -> _Part | Refusal:
    """Which part of a tensor a node writes."""
    tensor, updates = ir.constant(ir.input_at(node, 1)), ir.input_at(node, 2)
    if tensor is None or updates is None or not tensor.size:
        return Refusal("the indices are not constant", culprit=node)
    if attribute(node, "reduction", b"none") not in (b"none", "none"):
        return Refusal("it does more than to replace elements", culprit=node)
    indices = tensor.numpy()
    if node.op_type == "ScatterElements":
        return _part_of_elements(node, indices, updates, shape)
    places = indices.reshape(-1, indices.shape[-1])
    depth = places.shape[1]
    if depth > len(shape):
        return Refusal("its indices have more places than the tensor has dims", culprit=node)
    places = np.where(places < 0, places + np.array(shape[:depth]), places)
    lowest, highest = places.min(axis=0), places.max(axis=0) + 1
    short = [axis for axis in range(depth) if (lowest[axis], highest[axis]) != (0, shape[axis])]
    axis = short[0] if short else 0
    spans = [np.arange(low, high) for low, high in zip(lowest, highest, strict=True)]
    if len(short) > 1 or math.prod(map(len, spans)) != len(places):
        return Refusal("it does not write all of the other dims", culprit=node)
    grid = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, depth)
    if not np.array_equal(grid, places):
        return Refusal("it does not write in order", culprit=node)
    return _Part(updates, axis, int(lowest[axis]), int(highest[axis]))


def _part_of_elements(node: ir.Node, indices: np.ndarray, updates: ir.Value, shape: tuple[int, ...]) -> _Part | Refusal:
    axis = attribute(node, "axis", 0) % len(shape)
    width = indices.shape[axis]
    wanted = (*shape[:axis], width, *shape[axis + 1 :])
    row = np.moveaxis(indices, axis, -1).reshape(-1, width)[0]
    row = np.where(row < 0, row + shape[axis], row)
    places = np.arange(row[0], row[0] + width)
    if indices.shape != wanted:
        return Refusal("it does not write all of the other dims", culprit=node)
    along = places.reshape([-1 if one == axis else 1 for one in range(len(shape))])
    if not np.array_equal(np.where(indices < 0, indices + shape[axis], indices), np.broadcast_to(along, wanted)):
        return Refusal("it does not write in order", culprit=node)
    return _Part(updates, axis, int(row[0]), int(row[0]) + width)


def _shaped(part: _Part, shape: tuple[int, ...], builder: Builder) -> ir.Value:
    wanted = (*shape[: part.axis], part.end - part.start, *shape[part.axis + 1 :])
    if builder.ctx.shapes.static_shape(part.updates) == wanted:
        return part.updates
    return builder.Reshape(part.updates, builder.constant(np.array(wanted, np.int64), "shape"))
