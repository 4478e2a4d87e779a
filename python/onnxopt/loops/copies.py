"""Copies of nodes and their subgraphs, for bodies that are written out several times."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from onnxopt import ir

if TYPE_CHECKING:
    from onnxopt.passes.base import Context

GRAPH_TYPES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def copy_nodes(nodes: Iterable[ir.Node], stands_for: dict[ir.Value, ir.Value], ctx: Context) -> list[ir.Node]:
    """Copies of `nodes`, in no graph yet, with fresh names.

    `stands_for` says what the copies read instead of values that the originals read; the copies' results are added to it. Values that it
    does not name are read as they are.
    """
    return [_copy_node(node, stands_for, ctx) for node in nodes]


def _copy_node(node: ir.Node, stands_for: dict[ir.Value, ir.Value], ctx: Context) -> ir.Node:
    copy = ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else stands_for.get(value, value) for value in node.inputs],
        [_copy_attribute(attr, stands_for, ctx) for attr in node.attributes.values()],
        num_outputs=len(node.outputs),
        overload=node.overload,
        name=ctx.names.node(node.name or node.op_type),
    )
    for old, new in zip(node.outputs, copy.outputs, strict=True):
        # An optional output that a node leaves out has an empty name.
        new.name = ctx.names.value(old.name) if old.name else old.name
        new.type = old.type
        stands_for[old] = new
    return copy


def _copy_attribute(attr: ir.Attr, stands_for: dict[ir.Value, ir.Value], ctx: Context) -> ir.Attr:
    if attr.is_ref() or attr.type not in GRAPH_TYPES:
        return attr
    if attr.type is ir.AttributeType.GRAPH:
        return ir.Attr(attr.name, attr.type, copy_graph(attr.as_graph(), stands_for, ctx))
    return ir.Attr(attr.name, attr.type, [copy_graph(graph, stands_for, ctx) for graph in attr.as_graphs()])


def copy_graph(graph: ir.Graph, stands_for: dict[ir.Value, ir.Value], ctx: Context) -> ir.Graph:
    """A copy of a graph and all in it; values from outside are read as `stands_for` says."""
    inside = dict(stands_for)
    initializers = []
    for value in [*graph.inputs, *graph.initializers.values()]:
        stem = value.name or "input"
        copy = ir.Value(name=ctx.names.value(stem), type=value.type, shape=value.shape, const_value=value.const_value)
        inside[value] = copy
        if value.is_initializer():
            initializers.append(copy)
    nodes = copy_nodes(graph, inside, ctx)
    return ir.Graph(
        [inside[value] for value in graph.inputs],
        [inside.get(value, value) for value in graph.outputs],
        nodes=nodes,
        initializers=initializers,
        opset_imports=dict(graph.opset_imports),
        name=graph.name,
    )
