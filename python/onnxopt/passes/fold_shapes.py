"""Shape arithmetic on symbolic dims: what is known becomes constant, what is symbolic is computed once and in one node."""

from __future__ import annotations

import numpy as np

from onnxopt import ir
from onnxopt.ir import dims
from onnxopt.ir.dims import Dim
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.patch import Builder, Patch
from onnxopt.rewrite.rules import attribute

_INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})

_PARTS = frozenset({"Slice", "Gather", "Unsqueeze", "Squeeze", "Reshape", "Cast"})
"""Ops that take a part of a shape, or give it another one."""

SHAPE_START_OPSET = 15
"""The opset from which Shape has `start` and `end`, so that one node reads one dim."""


@register_pass
class FoldShapes(Pass):
    """Fold integer arithmetic on shapes.

    Elements that are all known become a constant. Reshape targets with one unknown element, or with dims copied from the input at
    the same position, become constant with -1 and 0. Of several values with equal symbolic elements one is kept, and a vector that
    holds a single dim of some tensor is read by one Shape node.

    Dims of graph inputs are taken to be at least 1 (see `ShapeEnv`); where a dim may be 0, a -1 that would be ambiguous is refused.
    """

    name = "fold_shapes"
    phase = "fold"

    def rule_names(self) -> list[str]:
        return ["fold_known_elements", "fold_reshape_target", "share_equal_elements", "read_dim_at_once"]

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = self._fold_known(model, ctx) + self._fold_targets(model, ctx)
        for graph in ctx.graphs():
            patches += self._share(graph, ctx)
        return PassResult(patches > 0, patches)

    # --- everything known
    def _fold_known(self, model: ir.Model, ctx: Context) -> int:
        known = [node for node in ctx.walk() if _is_known(node, ctx)]
        inside = set(known)
        patches = 0
        for node in known:
            value = node.outputs[0]
            if not value.is_graph_output() and all(user in inside for user, _ in value.uses()):
                continue
            dtype, shape = ctx.shapes.dtype(value), ctx.shapes.static_shape(value)
            assert dtype is not None and shape is not None
            array = np.array(ctx.shapes.integers(value), dtype.numpy()).reshape(shape)
            constant = ctx.constant(array, value.name or "shape", node)
            patches += ctx.editor.apply(Patch("fold_known_elements", node, [], {value: constant}))
        ctx.editor.remove_unused(reversed(known))
        return patches

    # --- Reshape targets
    def _fold_targets(self, model: ir.Model, ctx: Context) -> int:
        patches = 0
        for node in ctx.nodes_of([("", "Reshape")]):
            if node.graph is None or len(node.inputs) < 2 or node.inputs[1] is None:
                continue
            if ir.constant(node.inputs[1]) is not None:
                continue
            target = self._constant_target(node, ctx)
            if target is None:
                continue
            builder = Builder(ctx, node)
            shape = builder.constant(np.array(target, np.int64), "shape")
            output = builder.op("Reshape", [node.inputs[0], shape])[0]
            if ctx.editor.apply(builder.patch("fold_reshape_target", {node.outputs[0]: output}), unused=[node]):
                patches += 1
        return patches

    @staticmethod
    def _constant_target(node: ir.Node, ctx: Context) -> list[int] | None:
        """The target with 0 where a dim is copied and at most one -1, or None."""
        data, shape_input = node.inputs[0], node.inputs[1]
        assert data is not None
        elements, source = ctx.shapes.elements(shape_input), ctx.shapes.shape(data)
        if elements is None:
            elements = ctx.shapes.shape(node.outputs[0])
            # In a target, a dim of 0 would copy that of the input.
            if elements is None or any(dims.is_fresh(one) or one == 0 for one in elements):
                return None
        elif 0 in elements and attribute(node, "allowzero", 0):
            return None
        else:
            elements = _with_known_rest(elements, ctx.shapes.shape(node.outputs[0]))
        target: list[int] = []
        rest = 0
        for index, element in enumerate(elements):
            if isinstance(element, int):
                target.append(element)
                rest += element == -1
            elif source is not None and index < len(source) and source[index] == element:
                target.append(0)
            else:
                target.append(-1)
                rest += 1
        return target if rest <= 1 else None

    # --- symbolic elements
    def _share(self, graph: ir.Graph, ctx: Context) -> int:
        first: dict[tuple[object, ...], ir.Value] = {}
        dim_sources: dict[object, tuple[ir.Value, int]] = {}
        patches = 0
        for value in graph.inputs:
            _note_dims(value, ctx, dim_sources)
        for node in list(graph):
            if node.graph is None:
                continue
            for value in node.outputs:
                patches += self._share_value(node, value, ctx, first, dim_sources)
            if node.graph is not None:
                for value in node.outputs:
                    _note_dims(value, ctx, dim_sources)
        return patches

    def _share_value(
        self,
        node: ir.Node,
        value: ir.Value,
        ctx: Context,
        first: dict[tuple[object, ...], ir.Value],
        dim_sources: dict[object, tuple[ir.Value, int]],
    ) -> int:
        elements, shape = ctx.shapes.elements(value), ctx.shapes.static_shape(value)
        if not elements or shape is None or node.domain or all(isinstance(one, int) for one in elements):
            return 0
        key = (ctx.shapes.dtype(value), shape, elements)
        earlier = first.get(key)
        if earlier is None or not _alive(earlier):
            earlier = first[key] = value
        if earlier is not value:
            if value.is_graph_output() or not ctx.editor.apply(
                Patch("share_equal_elements", node, [], {value: earlier})
            ):
                return 0
            ctx.editor.remove_unused([node])
            return 1
        return self._read_at_once(node, value, elements, shape, ctx, first, dim_sources, key)

    @staticmethod
    def _read_at_once(
        node: ir.Node,
        value: ir.Value,
        elements: tuple[object, ...],
        shape: tuple[int, ...],
        ctx: Context,
        first: dict[tuple[object, ...], ir.Value],
        dim_sources: dict[object, tuple[ir.Value, int]],
        key: tuple[object, ...],
    ) -> int:
        if shape != (1,) or ctx.opset < SHAPE_START_OPSET or ctx.shapes.dtype(value) != ir.DataType.INT64:
            return 0
        source = _source_of(elements[0], node, ctx, dim_sources)
        if source is None or not _alive(source[0]) or node.op_type in ("Shape", "Identity"):
            return 0
        builder = Builder(ctx, node)
        read = builder.Shape(source[0], start=source[1], end=source[1] + 1)
        if not ctx.editor.apply(builder.patch("read_dim_at_once", {value: read})):
            return 0
        ctx.editor.remove_unused([node])
        first[key] = read
        return 1


def _with_known_rest(elements: tuple[Dim, ...], shape: tuple[Dim, ...] | None) -> tuple[Dim, ...]:
    """The elements with -1 replaced by what it stands for, where that is a positive number."""
    if shape is None or len(shape) != len(elements):
        return elements
    return tuple(
        dim if one == -1 and isinstance(dim, int) and dim > 0 else one for one, dim in zip(elements, shape, strict=True)
    )


def _is_known(node: ir.Node, ctx: Context) -> bool:
    if node.domain or len(node.outputs) != 1 or node.op_type in ("Constant", "Identity", "If", "Loop", "Scan"):
        return False
    value = node.outputs[0]
    return (
        value in ctx.shapes.known_elements
        and ctx.shapes.integers(value) is not None
        and ctx.shapes.dtype(value) in _INTEGERS
        and ctx.shapes.static_shape(value) is not None
    )


def _source_of(
    dim: object, node: ir.Node, ctx: Context, dim_sources: dict[object, tuple[ir.Value, int]]
) -> tuple[ir.Value, int] | None:
    """A tensor with a dim that a node computes: a graph input, else the one that the model reads, as the first one may be fused away."""
    source = dim_sources.get(dim)
    read = _tensor_read(node)
    if source is None or read is None or source[0].producer() is None:
        return source
    shape = ctx.shapes.shape(read) or ()
    return (read, shape.index(dim)) if dim in shape else source


def _tensor_read(node: ir.Node | None) -> ir.Value | None:
    """The tensor of whose shape a node takes a part."""
    while node is not None and node.op_type in _PARTS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node.inputs[0] if node is not None and node.op_type == "Shape" else None


def _note_dims(value: ir.Value, ctx: Context, dim_sources: dict[object, tuple[ir.Value, int]]) -> None:
    for axis, dim in enumerate(ctx.shapes.shape(value) or ()):
        if dim.__class__ is not int:
            known = dim_sources.get(dim)
            if known is None or not _alive(known[0]):
                dim_sources[dim] = (value, axis)


def _alive(value: ir.Value) -> bool:
    """Whether the value is still in the graph: nodes that nothing uses any more are removed on the way."""
    producer = value.producer()
    return producer is None or producer.graph is not None
