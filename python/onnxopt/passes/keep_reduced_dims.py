"""Reductions whose reduced dims are put back afterwards."""

from __future__ import annotations

import dataclasses

import numpy as np

from onnxopt import ir
from onnxopt.ir.dims import Dim
from onnxopt.ir.elementwise import ELEMENTWISE, UNIDIRECTIONAL
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.driver import discard
from onnxopt.rewrite.patch import Builder
from onnxopt.rewrite.permutations import REDUCTIONS, constant_axes
from onnxopt.rewrite.rules import attribute

RULE = "keep_reduced_dims"

MAX_NODES = 64
"""Nodes between reductions and the views that put the dims back: a variance and its root have six."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Reduction:
    """Which axes of a tensor of `rank` dims a node reduces away."""

    rank: int
    axes: tuple[int, ...]


def _reduction(node: ir.Node | None, ctx: Context) -> _Reduction | None:
    if node is None or node.op_type not in REDUCTIONS or node.domain or attribute(node, "keepdims", 1) != 0:
        return None
    source = node.inputs[0]
    rank = None if source is None else ctx.shapes.rank(source)
    axes = None if rank is None else constant_axes(node, 1, rank)
    return _Reduction(rank, tuple(sorted(axes))) if rank is not None and axes else None


class _Region:
    """The element-wise nodes between reductions over the same axes and the views that put these axes back."""

    def __init__(self, ctx: Context, start: ir.Node, reduction: _Reduction) -> None:
        self.ctx = ctx
        self.graph = start.graph
        self.reduction = reduction
        self.nodes: dict[ir.Node, None] = {start: None}
        self.views: dict[ir.Node, None] = {}

    def grow(self) -> bool:
        """Whether all nodes that belong together may keep the dims, and a view becomes superfluous."""
        waiting = list(self.nodes)
        while waiting:
            if len(self.nodes) > MAX_NODES:
                return False
            found = self._neighbours(waiting.pop())
            if found is None:
                return False
            for node in found:
                if node not in self.nodes:
                    self.nodes[node] = None
                    waiting.append(node)
        return bool(self.views)

    def _neighbours(self, node: ir.Node) -> list[ir.Node] | None:
        """The nodes that have to keep the dims when this one does; None where one cannot."""
        found: list[ir.Node] = []
        if node.op_type in ELEMENTWISE:
            for value in node.inputs:
                if value is None or self._takes_any_rank(value):
                    continue
                producer = value.producer()
                if producer is None or not self._may_join(producer):
                    return None
                found.append(producer)
        result = node.outputs[0]
        if result.is_graph_output():
            return None
        for user, _ in result.uses():
            if self._puts_back(user, result):
                self.views[user] = None
            elif user.op_type in ELEMENTWISE and self._may_join(user):
                found.append(user)
            else:
                return None
        return found

    def _may_join(self, node: ir.Node) -> bool:
        if node.graph is not self.graph or node.domain or len(node.outputs) != 1:
            return False
        if node.op_type in UNIDIRECTIONAL and any(one and ir.constant(one) is None for one in node.inputs[1:]):
            return False
        if node.op_type in ELEMENTWISE:
            return self.ctx.shapes.rank(node.outputs[0]) == self.reduction.rank - len(self.reduction.axes)
        return _reduction(node, self.ctx) == self.reduction

    def _takes_any_rank(self, value: ir.Value) -> bool:
        return ir.small_array(value) is not None or self.ctx.shapes.shape(value) == ()

    def _puts_back(self, node: ir.Node, source: ir.Value) -> bool:
        if node.graph is not self.graph or node.domain or node.inputs[0] is not source:
            return False
        if node.op_type == "Unsqueeze":
            axes = constant_axes(node, 1, self.reduction.rank)
            return axes is not None and tuple(sorted(axes)) == self.reduction.axes
        return node.op_type == "Reshape" and (self._is_full_target(node, source) or self._has_full_shape(node, source))

    def _full_shape(self, source: ir.Value) -> list[Dim] | None:
        """The shape of a value once it keeps the dims."""
        reduced = self.ctx.shapes.shape(source)
        if reduced is None or len(reduced) != self.reduction.rank - len(self.reduction.axes):
            return None
        kept = iter(reduced)
        return [1 if axis in self.reduction.axes else next(kept) for axis in range(self.reduction.rank)]

    def _is_full_target(self, node: ir.Node, source: ir.Value) -> bool:
        """Whether a constant target spells the full shape, with one dim left to -1."""
        target, wanted = ir.integers(node.inputs[1]), self._full_shape(source)
        if target is None or wanted is None or len(target) != len(wanted):
            return False
        return target.count(-1) <= 1 and all(
            given == dim or (given == -1 and axis not in self.reduction.axes)
            for axis, (given, dim) in enumerate(zip(target, wanted, strict=True))
        )

    def _has_full_shape(self, node: ir.Node, source: ir.Value) -> bool:
        full, wanted = self.ctx.shapes.shape(node.outputs[0]), self._full_shape(source)
        if full is None or wanted is None or len(full) != len(wanted):
            return False
        return all(self.ctx.shapes.equal(one, other) for one, other in zip(wanted, full, strict=True))


def _with_dims(b: Builder, value: ir.Value | None, region: _Region) -> ir.Value | None:
    """A constant as it broadcasts once the dims are kept; other values that any rank can take stay."""
    array = ir.small_array(value)
    if value is None or array is None or array.ndim == 0:
        return value
    rank, axes = region.reduction.rank, region.reduction.axes
    full = array.reshape((1,) * (rank - len(axes) - array.ndim) + array.shape)
    return b.constant(np.ascontiguousarray(np.expand_dims(full, axes)), value.name or "constant")


def _apply(region: _Region, order: list[ir.Node], ctx: Context) -> int:
    """Build the nodes again with their dims kept, then let them replace the views. Returns the number of patches."""
    kept: dict[ir.Value, ir.Value] = {}
    applied = 0
    for node in order:
        b = Builder(ctx, node)
        if node in region.views:
            source = node.inputs[0]
            assert source is not None
            pairs = {node.outputs[0]: kept[source]}
        elif node.op_type in REDUCTIONS:
            kept[node.outputs[0]] = b.copy_of(node, keepdims=1)[0]
            pairs = {}
        else:
            inputs = [kept[value] if value in kept else _with_dims(b, value, region) for value in node.inputs]
            kept[node.outputs[0]] = b.copy_of(node, inputs)[0]
            pairs = {}
        if not ctx.editor.apply(b.patch(RULE, pairs)):
            discard(b.nodes)
            return applied
        applied += 1
        if pairs:
            ctx.editor.remove_unused([node])
    return applied


def _keep_in(graph: ir.Graph, ctx: Context) -> int:
    applied = 0
    seen: set[ir.Node] = set()
    for node in list(graph):
        reduction = _reduction(node, ctx) if node.graph is graph and node not in seen else None
        if reduction is None:
            continue
        region = _Region(ctx, node, reduction)
        grown = region.grow()
        seen.update(region.nodes)
        if grown:
            wanted = {**region.nodes, **region.views}
            applied += _apply(region, [one for one in graph if one in wanted], ctx)
    return applied


@register_pass
class KeepReducedDims(Pass):
    """Let reductions keep the dims that a Reshape or Unsqueeze behind them puts back.

    Element-wise ops may stand between, with several reductions over the same axes; all of them then keep the dims. Exporters
    that know no `keepdims` write norms and Softmax this way. Refused: results that others use without the dims, operands that
    are neither constant nor reduced alike, views to another shape.
    """

    name = "keep_reduced_dims"
    phase = "simplify"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = sum(_keep_in(graph, ctx) for graph in ctx.graphs())
        return PassResult(patches > 0, patches)
