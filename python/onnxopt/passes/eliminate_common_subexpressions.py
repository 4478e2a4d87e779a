"""Common subexpressions: what is computed twice from the same inputs is computed once."""

from __future__ import annotations

from collections.abc import Hashable

from onnxopt import ir
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.passes.fold_constants import RANDOM
from onnxopt.rewrite.editor import SIDE_EFFECT_FREE_DOMAINS, subgraphs
from onnxopt.rewrite.patch import Patch

Scope = list[dict[Hashable, ir.Node]]

_COUNTED = frozenset({"BatchNormalization", "Split"})
"""Ops that compute something else when they have more outputs: parts of other sizes, or, before opset 14, statistics of the batch."""


@register_pass
class EliminateCommonSubexpressions(Pass):
    """Merge nodes of equal op, inputs and attributes; an expression of an outer graph also serves the subgraphs inside it.

    Equal subgraphs in attributes count as equal attributes when they take the same outer values. Refused: random ops, ops of unknown
    domains, pairs of which both are outputs of the graph, and a first node that leaves out an output which the second one has.
    """

    name = "eliminate_common_subexpressions"
    phase = "simplify"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = self._run_graph(model.graph, ctx, [])
        return PassResult(patches > 0, patches)

    def _run_graph(self, graph: ir.Graph, ctx: Context, outer: Scope) -> int:
        own: dict[Hashable, ir.Node] = {}
        scope = [*outer, own]
        patches = 0
        for node in list(graph):
            for inner in subgraphs(node):
                patches += self._run_graph(inner, ctx, scope)
            key = expression_key(node)
            if key is None:
                continue
            earlier = next((found[key] for found in scope if key in found), None)
            if earlier is None:
                own[key] = node
            elif self._merge(node, earlier, ctx):
                patches += 1
        return patches

    def _merge(self, node: ir.Node, earlier: ir.Node, ctx: Context) -> bool:
        pairs = dict(zip(node.outputs, earlier.outputs, strict=False))
        if len(node.outputs) > len(earlier.outputs) or not all(_can_stand_for(*pair) for pair in pairs.items()):
            return False
        return ctx.editor.apply(Patch(self.name, node, [], pairs), unused=[node])


def _can_stand_for(old: ir.Value, new: ir.Value) -> bool:
    if old.is_graph_output() and (new.is_graph_output() or new.graph is not old.graph):
        return False
    # An optional output that a node leaves out has an empty name.
    return new.name != "" or old.name == ""


def expression_key(node: ir.Node, *, inputs: bool = True) -> Hashable | None:
    """What two nodes must share to compute the same (with `inputs`, also what they read); None for nodes that are never merged."""
    if node.domain not in SIDE_EFFECT_FREE_DOMAINS or node.op_type in RANDOM or not node.outputs:
        return None
    if node.op_type == "Constant":
        return None
    read = tuple(map(id, node.inputs)) if inputs else ()
    attributes = _attributes_key(node, {})
    if attributes is None:
        return None
    count = len(node.outputs) if node.op_type in _COUNTED else 0
    return (node.domain, node.op_type, node.overload, read, attributes, count)


def _attributes_key(node: ir.Node, numbers: dict[ir.Value, int]) -> Hashable | None:
    attributes = node.attributes.data
    if not attributes:
        return ()
    parts: list[Hashable] = []
    for name in sorted(attributes):
        attr = attributes[name]
        key = _attribute_key(attr, numbers)
        if key is None:
            return None
        parts.append((name, key))
    return tuple(parts)


_EXACT = frozenset({ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING, ir.AttributeType.STRINGS})
"""Types of attributes whose values are equal only where they are the same: of floats, 0.0 equals -0.0."""


def _attribute_key(attr: ir.Attr, numbers: dict[ir.Value, int]) -> Hashable | None:
    if attr.ref_attr_name is not None:
        return ("ref", attr.ref_attr_name)
    kind, value = attr.type, attr.value
    if kind in _EXACT:
        return (kind, value)
    if kind is ir.AttributeType.GRAPH:
        return _graph_key(value, dict(numbers))
    if kind is ir.AttributeType.TENSOR:
        if value.size > ir.SMALL_ELEMENTS or value.dtype == ir.DataType.STRING:
            return None
        return (kind.value, value.dtype.value, tuple(value.shape.numpy()), value.tobytes())
    if isinstance(value, (list, tuple)):
        return (kind.value, tuple(map(repr, value)))
    return (kind.value, repr(value)) if isinstance(value, (int, float, str, bytes)) else None


def _graph_key(graph: ir.Graph, numbers: dict[ir.Value, int]) -> Hashable | None:
    """A graph by its structure: inner values by position, outer ones by identity."""
    if graph.initializers:
        return None
    for value in graph.inputs:
        numbers[value] = len(numbers)
    parts: list[Hashable] = [len(graph.inputs)]
    for node in graph:
        if node.op_type in RANDOM or node.domain not in SIDE_EFFECT_FREE_DOMAINS:
            return None
        attributes = _attributes_key(node, numbers)
        if attributes is None:
            return None
        inputs = tuple(
            -1 if value is None else ("in", numbers[value]) if value in numbers else id(value) for value in node.inputs
        )
        parts.append((node.domain, node.op_type, node.overload, inputs, attributes, len(node.outputs)))
        for value in node.outputs:
            numbers[value] = len(numbers)
    parts.append(tuple(("in", numbers[value]) if value in numbers else id(value) for value in graph.outputs))
    return tuple(parts)
