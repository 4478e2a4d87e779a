"""Several Slices that take a tensor apart."""

from __future__ import annotations

import dataclasses

import numpy as np

from onnxopt import ir
from onnxopt.ir import shape_rules
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import discard
from onnxopt.rewrite.patch import Builder

RULE = "split_instead_of_slices"


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """What a Slice takes along its only axis."""

    node: ir.Node
    axis: int
    start: int
    stop: int


def _part(node: ir.Node, ctx: Context) -> _Part | None:
    source = node.inputs[0]
    shape = None if source is None else ctx.shapes.shape(source)
    bounds = None if shape is None else shape_rules.slice_bounds(ctx.shapes, node, len(shape))
    if shape is None or bounds is None or len(bounds) != 1:
        return None
    axis, start, stop, step = bounds[0]
    size = shape[axis]
    if step != 1 or not (isinstance(size, int) and isinstance(start, int) and isinstance(stop, int)):
        return None
    first, last, _ = slice(start, stop).indices(size)
    return _Part(node, axis, first, last) if first < last else None


def _cover(parts: list[_Part], size: int) -> bool:
    """Whether parts in order of their starts hold every index once."""
    ends = [part.stop for part in parts]
    return len(parts) > 1 and [part.start for part in parts] == [0, *ends[:-1]] and ends[-1] == size


def _split(parts: list[_Part], ctx: Context) -> int:
    """Replace parts that stand in graph order by one Split. Returns the number of patches."""
    b, axis, source = Builder(ctx, parts[0].node), parts[0].axis, parts[0].node.inputs[0]
    ordered = sorted(parts, key=lambda part: part.start)
    shape = None if source is None else ctx.shapes.shape(source)
    size = None if shape is None else shape[axis]
    if not isinstance(size, int) or not _cover(ordered, size):
        return 0
    lengths = [part.stop - part.start for part in ordered]
    if ctx.opset < 13:
        outputs = b.op("Split", [source], {"axis": axis, "split": lengths}, outputs=len(ordered))
    else:
        sizes = b.constant(np.array(lengths, np.int64), "split")
        outputs = b.op("Split", [source, sizes], {"axis": axis}, outputs=len(ordered))
    pairs = {part.node.outputs[0]: output for part, output in zip(ordered, outputs, strict=True)}
    if not ctx.editor.apply(b.patch(RULE, pairs)):
        discard(b.nodes)
        return 0
    ctx.editor.remove_unused([part.node for part in ordered])
    return 1


def _split_in(graph: ir.Graph, ctx: Context) -> int:
    slices: dict[tuple[ir.Value, int], list[_Part]] = {}
    for node in graph:
        if node.op_type != "Slice" or node.domain or node.inputs[0] is None or ir.use_count(node.inputs[0]) < 2:
            continue
        part = _part(node, ctx)
        if part is not None:
            slices.setdefault((node.inputs[0], part.axis), []).append(part)
    return sum(_split(parts, ctx) for parts in slices.values())


@register_pass
class SplitInsteadOfSlices(Pass):
    """Slices of one tensor along one axis that together take every index once become a Split.

    Refused: Slices along several axes, with steps, with bounds or sizes that are not constant, and those that overlap or
    leave something out.
    """

    name = "split_instead_of_slices"
    phase = "simplify"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = sum(_split_in(graph, ctx) for graph in ctx.graphs())
        return PassResult(patches > 0, patches)
